//! The gate of a worker: at which generation its threads enter while one of them brings it to another.
//!
//! The thread that applies a publication closes the gate, executes a barrier that reaches every thread, and looks at the
//! pins. If nobody is inside, nobody will be until the gate is opened, and cells are simply stored. Otherwise it lets
//! others stay at the old generation, and makes each replaced cell tell threads apart by their pins. Invariant: whoever is
//! inside has a pin of a generation at which the gate was open, or let threads stay; and if the thread that applies did not
//! see that pin, nothing was changed since.

use crate::atomic::{AtomicU64, Ordering, Release, fence};
use crate::pin;

/// The gate over its words, wherever these lie.
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    /// The applied generation; 0: closed.
    applied: &'a AtomicU64,
    /// The generation at which threads may enter while the gate is closed; 0: none.
    staying: &'a AtomicU64,
}

impl<'a> Gate<'a> {
    /// The gate over these words.
    #[inline(always)]
    pub fn new(applied: &'a AtomicU64, staying: &'a AtomicU64) -> Self {
        Self { applied, staying }
    }

    /// Pins the calling thread at the applied generation, if that is what `head` says, and the gate is open. Else the pin is
    /// there, but the thread is not inside. `fenced` as in [`pin::enter`]. Inline guards of C do the same
    /// (`worker/capi/src/inline.h`).
    #[inline(always)]
    pub fn enter(self, pin: &AtomicU64, head: &AtomicU64, fenced: bool) -> Option<u64> {
        Self::pinned(self.applied, pin, head, fenced)
    }

    /// [`Gate::enter`], for who has the gate's first word at hand.
    #[inline(always)]
    pub fn pinned(
        gate: &AtomicU64,
        pin: &AtomicU64,
        head: &AtomicU64,
        fenced: bool,
    ) -> Option<u64> {
        // Acquire: pairs with the release in `open`; what was applied is there.
        let applied = gate.load(Ordering::Acquire);
        if applied == 0 {
            return None;
        }
        let newest = pin::enter(pin, applied, head, fenced);
        // Who closes the gate executes a barrier before it looks at pins: it sees this one, or this load sees the 0.
        (newest == applied && gate.load(Ordering::Relaxed) == applied).then_some(applied)
    }

    /// Pins the calling thread, whose pin is 0, at the generation that threads may stay at, if there is one. `floor` as in
    /// [`Control::floor`](crate::header::Control::floor).
    pub fn stay(self, pin: &AtomicU64, floor: &AtomicU64) -> Option<u64> {
        // Acquire: pairs with the release in `let_stay`.
        let generation = self.staying.load(Ordering::Acquire);
        if generation == 0 {
            return None;
        }
        pin.store(generation, Ordering::Relaxed);
        // Pairs with the fence in `shut`, and with the compiler process's barrier after it announced a floor.
        fence(Ordering::SeqCst);
        let stays = self.staying.load(Ordering::Acquire) == generation;
        if stays && floor.load(Ordering::Acquire) <= generation {
            return Some(generation);
        }
        pin::leave(pin, 0);
        None
    }

    /// Closes the gate. The caller executes a barrier that reaches every thread before it looks at pins.
    pub fn close(self) {
        self.applied.store(0, Ordering::Relaxed);
        self.shut();
    }

    /// Lets nobody stay either.
    pub fn shut(self) {
        self.staying.store(0, Ordering::Relaxed);
        // Pairs with the fence in `stay`: it sees the 0, or who shut it sees the pin.
        fence(Ordering::SeqCst);
    }

    /// Lets threads enter at `generation`, the old one, although the gate is closed.
    pub fn let_stay(self, generation: u64) {
        // Release: nothing has changed for those who enter.
        self.staying.store(generation, Ordering::Release);
    }

    /// Opens the gate at `generation`, the new one, or the old one if nothing was applied.
    pub fn open(self, generation: u64) {
        // Release: cells first, then the number.
        self.applied.store(generation, Release::Gate.ordering());
        self.staying.store(0, Ordering::Release);
    }
}
