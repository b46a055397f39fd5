//! A profiler that samples at every instruction of published code, stubs too: the thread is stepped through it.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use jitcast::runtime::geometry::Area;

use crate::scenes::worker;

/// The window, and the stubs in it.
static WINDOW: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static STUBS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Where Cranelift's function returns: it does not say how to unwind from there.
static MIDDLE: AtomicU64 = AtomicU64::new(0);

/// Where published code returns to the host.
static HOST: AtomicU64 = AtomicU64::new(0);

/// Samples in published code, those in stubs, and those that did not lead to the host.
static SAMPLES: AtomicU64 = AtomicU64::new(0);
static IN_STUBS: AtomicU64 = AtomicU64::new(0);
static LOST: AtomicU64 = AtomicU64::new(0);

fn is_inside(range: &[AtomicU64; 2], address: u64) -> bool {
    (range[0].load(Relaxed)..range[1].load(Relaxed)).contains(&address)
}

extern "C" fn sample(_: c_int, _: *mut c_void, context: *mut c_void) {
    let context: *mut libc::ucontext_t = context.cast();
    // SAFETY: the kernel's, of the thread that is stepped.
    let registers = unsafe { (*context).uc_mcontext.gregs };
    let at = registers[libc::REG_RIP as usize].cast_unsigned();
    if !is_inside(&WINDOW, at) {
        return;
    }
    let read = |address: u64| {
        let address: *const u64 = core::ptr::with_exposed_provenance(address as usize);
        // SAFETY: of code, or of the stack, of this thread.
        unsafe { address.read_unaligned() }
    };
    if HOST.load(Relaxed) == 0 {
        // The first instruction: the return address is on top of the stack.
        HOST.store(
            read(registers[libc::REG_RSP as usize].cast_unsigned()),
            Relaxed,
        );
    }
    let middle = MIDDLE.load(Relaxed);
    if (middle..middle + 64).contains(&at) && read(at) as u8 == 0xc3 {
        return;
    }
    let mut frames = [core::ptr::null_mut::<c_void>(); 32];
    // SAFETY: memory for as many addresses.
    let count = unsafe { libc::backtrace(frames.as_mut_ptr(), frames.len() as c_int) };
    let mut frames = frames[..count as usize]
        .iter()
        .map(|frame| frame.addr() as u64);
    SAMPLES.fetch_add(1, Relaxed);
    IN_STUBS.fetch_add(is_inside(&STUBS, at).into(), Relaxed);
    LOST.fetch_add(
        (!frames.any(|frame| frame == HOST.load(Relaxed))).into(),
        Relaxed,
    );
}

/// The scene: calls published code step by step.
pub(crate) fn everywhere() {
    let guard = worker().enter().unwrap();
    let window = worker().window();
    let ends = |region: jitcast::runtime::Region| {
        [region.start, region.end()].map(|at| window.base().get() + u64::from(at))
    };
    for (range, region) in [
        (&WINDOW, window.geometry().window()),
        (&STUBS, window.geometry().region(Area::Stubs)),
    ] {
        for (end, value) in range.iter().zip(ends(region)) {
            end.store(value, Relaxed);
        }
    }
    MIDDLE.store(
        worker().symbol(&guard, "middle").unwrap().code.get(),
        Relaxed,
    );
    let stub = worker().symbol(&guard, "catches").unwrap().stub.get();
    // SAFETY: all zeros are an action.
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    action.sa_sigaction = sample as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: a handler that reads the stack of the thread that it interrupts, and counts.
    let set = unsafe { libc::sigaction(libc::SIGTRAP, &raw const action, core::ptr::null_mut()) };
    assert_eq!(set, 0);
    for (x, expected) in [(0, 4), (1, 1001)] {
        assert_eq!(step_through(stub, x), expected);
        let counts = [&SAMPLES, &IN_STUBS, &LOST].map(|count| count.swap(0, Relaxed));
        assert!(counts[0] > 50 && counts[1] >= 4, "{counts:?}");
        assert_eq!(counts[2], 0, "{counts:?}");
    }
}

/// Calls `stub` with the processor's trap flag set.
fn step_through(stub: u64, x: i64) -> i64 {
    let result;
    HOST.store(0, Relaxed);
    // SAFETY: a published function of a long that returns a long, which catches what it throws; a guard is held. The
    // flag is cleared again.
    unsafe {
        core::arch::asm!(
            "pushfq",
            "or qword ptr [rsp], 0x100",
            "popfq",
            "call {stub}",
            "pushfq",
            "and qword ptr [rsp], -257",
            "popfq",
            stub = in(reg) stub,
            inout("rdi") x => _,
            lateout("rax") result,
            clobber_abi("C"),
        );
    }
    result
}
