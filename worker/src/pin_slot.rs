//! Where selectors find the calling thread's pin: words at fixed distances from the thread pointer.
//!
//! Invariant: a thread's word is null, or holds the address of its pin in the mailbox of the worker that has the slot, as
//! long as that worker lives.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// How many workers of one process can have their cells tell threads apart: each takes eight bytes of every thread.
const SLOTS: u32 = 32;

// Initial exec: the distance from the thread pointer is the same in all threads, which `thread_local!` does not promise in a
// library that is loaded late. The C library keeps some room for such.
core::arch::global_asm!(
    ".pushsection .tbss.jitcast_pins,\"awT\",@nobits",
    ".balign 8",
    ".hidden jitcast_pins_0_1",
    ".weak jitcast_pins_0_1",
    ".type jitcast_pins_0_1, @object",
    ".size jitcast_pins_0_1, 256",
    "jitcast_pins_0_1:",
    ".zero 256",
    ".popsection",
);

const _: () = assert!(SLOTS * 8 == 256);

/// The slots that are taken, a bit each.
static TAKEN: AtomicU32 = AtomicU32::new(0);

/// A worker's word in every thread.
#[derive(Debug)]
pub(crate) struct PinSlot(u32);

impl PinSlot {
    /// Takes a slot, if one is free.
    pub(crate) fn claim() -> Option<Self> {
        let free = |taken: u32| {
            let slot = taken.trailing_ones();
            (slot < SLOTS).then(|| taken | 1 << slot)
        };
        let before = TAKEN.fetch_update(Ordering::AcqRel, Ordering::Relaxed, free);
        before.ok().map(|taken| Self(taken.trailing_ones()))
    }

    /// The distance of the word from the thread pointer, bytes (negative, as a number modulo 2^64).
    pub(crate) fn distance(&self) -> u64 {
        let distance: u64;
        // SAFETY: loads the distance of the words above from the thread pointer, which the loader put into the GOT.
        unsafe {
            core::arch::asm!(
                "mov {}, qword ptr [rip + jitcast_pins_0_1@GOTTPOFF]",
                out(reg) distance,
                options(nostack, pure, readonly, preserves_flags)
            );
        }
        distance.wrapping_add(u64::from(self.0) * 8)
    }

    /// The calling thread's pin; `None`: it has none.
    pub(crate) fn set(&self, pin: Option<&AtomicU64>) {
        let pin = pin.map_or(core::ptr::null(), core::ptr::from_ref);
        // SAFETY: stores into a word of this thread's own, which only selectors and `pin` load.
        unsafe {
            core::arch::asm!(
                "mov qword ptr fs:[{}], {}",
                in(reg) self.distance(),
                in(reg) pin,
                options(nostack, preserves_flags)
            );
        }
    }
}

/// The generation that the calling thread is inside at, if it finds its pin `from_thread` bytes from its thread pointer
/// (0: it cannot); 0: it is not. Fit for signal handlers.
pub(crate) fn generation(from_thread: u64) -> u64 {
    if from_thread == 0 {
        return 0;
    }
    let pin: *const AtomicU64;
    // SAFETY: loads a word of this thread's own.
    unsafe {
        core::arch::asm!(
            "mov {}, qword ptr fs:[{}]",
            out(reg) pin,
            in(reg) from_thread,
            options(nostack, readonly, preserves_flags)
        );
    }
    // SAFETY: null, or a pin in the mailbox of the slot's worker, which is there while it has the slot.
    let pin = unsafe { pin.as_ref() };
    pin.map_or(0, |pin| pin.load(Ordering::Relaxed))
}

impl Drop for PinSlot {
    fn drop(&mut self) {
        TAKEN.fetch_and(!(1 << self.0), Ordering::AcqRel);
    }
}
