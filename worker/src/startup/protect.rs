//! Calls that come back whatever happens inside: an exception, a crash, a call of what is missing. For
//! constructors, destructors and resolvers, which a worker runs by itself and whose failure is the unit's alone.
//!
//! An exception is caught by a personality routine of our own, since neither Rust nor C++ catches everybody's. A
//! crash arrives as a signal, whose handler is there only while such a call runs; it changes the saved registers so
//! that the thread goes on where the call was made. What was left in between (locks, half-written data) stays as it
//! is: the unit counts as failed.
//!
//! Source: System V ABI, AMD64 supplement 1.0, section 3.7 and the Itanium C++ ABI, exception handling, level I;
//! sigaction(2).

use std::arch::global_asm;
use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How a protected call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It returned this.
    Returned(u64),
    /// It threw.
    Threw,
    /// A signal, by its number.
    Crashed(c_int),
    /// It came to a trap, which says this.
    Trapped(String),
}

/// A protected call, while it runs.
#[repr(C)]
struct Frame {
    /// The stack pointer at the call.
    stack: u64,
    /// What it returned, or the exception.
    value: u64,
    signal: c_int,
    trapped: Option<String>,
    /// The call around this one.
    outer: *mut Self,
}

thread_local! {
    static FRAME: Cell<*mut Frame> = const { Cell::new(core::ptr::null_mut()) };
}

// frame: %rdi, function: %rsi, its arguments: %rdx, %rcx, %r8. Returns 0, or 1 after an exception, or 2.
global_asm!(
    "    .text",
    "    .p2align 4",
    "    .type jitcast_protected_call, @function",
    "jitcast_protected_call:",
    "    .cfi_startproc",
    "    .cfi_personality 0x9b, .Ljitcast_personality",
    "    endbr64",
    "    push %rbp",
    "    .cfi_def_cfa_offset 16",
    "    .cfi_offset %rbp, -16",
    "    mov %rsp, %rbp",
    "    .cfi_def_cfa_register %rbp",
    "    push %rbx",
    "    push %r12",
    "    push %r13",
    "    push %r14",
    "    push %r15",
    "    .cfi_offset %rbx, -24",
    "    .cfi_offset %r12, -32",
    "    .cfi_offset %r13, -40",
    "    .cfi_offset %r14, -48",
    "    .cfi_offset %r15, -56",
    "    push %rdi",
    "    mov %rsp, (%rdi)",
    "    mov %rsi, %rax",
    "    mov %rdx, %rdi",
    "    mov %rcx, %rsi",
    "    mov %r8, %rdx",
    "    call *%rax",
    "    mov (%rsp), %rcx",
    "    mov %rax, 8(%rcx)",
    "    xor %eax, %eax",
    "    jmp 1f",
    "jitcast_protected_threw:",
    "    endbr64",
    "    mov (%rsp), %rcx",
    "    mov %rax, 8(%rcx)",
    "    mov $1, %eax",
    "    jmp 1f",
    "jitcast_protected_crashed:",
    "    endbr64",
    "    cld",
    "    mov $2, %eax",
    "1:",
    "    pop %rdi",
    "    pop %r15",
    "    pop %r14",
    "    pop %r13",
    "    pop %r12",
    "    pop %rbx",
    "    pop %rbp",
    "    .cfi_def_cfa %rsp, 8",
    "    ret",
    "    .cfi_endproc",
    "    .size jitcast_protected_call, . - jitcast_protected_call",
    "    .type jitcast_protected_escape, @function",
    "jitcast_protected_escape:",
    "    endbr64",
    "    mov (%rdi), %rsp",
    "    jmp jitcast_protected_crashed",
    "    .size jitcast_protected_escape, . - jitcast_protected_escape",
    "    .section .data.rel.ro, \"aw\", @progbits",
    "    .p2align 3",
    ".Ljitcast_personality:",
    "    .quad {personality}",
    "    .text",
    personality = sym personality,
    options(att_syntax),
);

unsafe extern "C" {
    safe static jitcast_protected_threw: u8;
    safe static jitcast_protected_crashed: u8;
    fn jitcast_protected_call(
        frame: *mut c_void,
        function: u64,
        first: u64,
        second: u64,
        third: u64,
    ) -> c_int;
    fn jitcast_protected_escape(frame: *mut c_void) -> !;
    fn _Unwind_SetGR(context: *mut c_void, register: c_int, value: usize);
    fn _Unwind_SetIP(context: *mut c_void, address: usize);
    fn _Unwind_DeleteException(exception: *mut c_void);
}

/// Everything is caught here, but for the forced unwinding of a thread that is cancelled.
unsafe extern "C" fn personality(
    _version: c_int,
    actions: c_int,
    _class: u64,
    exception: *mut c_void,
    context: *mut c_void,
) -> c_int {
    const SEARCH_PHASE: c_int = 1;
    const HANDLER_FRAME: c_int = 4;
    const HANDLER_FOUND: c_int = 6;
    const INSTALL_CONTEXT: c_int = 7;
    const CONTINUE_UNWIND: c_int = 8;
    if actions & SEARCH_PHASE != 0 {
        return HANDLER_FOUND;
    }
    if actions & HANDLER_FRAME == 0 {
        return CONTINUE_UNWIND;
    }
    // SAFETY: `context` is the unwinder's; register 0 is %rax, which may be given to a landing pad.
    unsafe { _Unwind_SetGR(context, 0, exception.addr()) };
    // SAFETY: as above; the landing pad belongs to the frame that is being installed.
    unsafe { _Unwind_SetIP(context, (&raw const jitcast_protected_threw).addr()) };
    INSTALL_CONTEXT
}

/// Calls `function` with three arguments.
///
/// # Safety
/// `function` is the address of a function of the C calling convention that takes no more than these.
pub(crate) unsafe fn call(function: u64, arguments: [u64; 3]) -> Ended {
    let _handlers = Handlers::install();
    let outer = FRAME.get();
    let mut frame = Frame {
        stack: 0,
        value: 0,
        signal: 0,
        trapped: None,
        outer,
    };
    let [first, second, third] = arguments;
    FRAME.set(&raw mut frame);
    // SAFETY: the caller's promise; the frame lives until the call is over.
    let how =
        unsafe { jitcast_protected_call((&raw mut frame).cast(), function, first, second, third) };
    FRAME.set(outer);
    match how {
        0 => Ended::Returned(frame.value),
        1 => {
            let exception = core::ptr::with_exposed_provenance_mut::<c_void>(frame.value as usize);
            // SAFETY: an exception begins with the class of who threw it.
            let class = unsafe { exception.cast::<u64>().read() };
            // Deleting Rust's ends the process; it is left to be.
            if !RUST_EXCEPTIONS.contains(&class) && !end_cplusplus(class, exception) {
                // SAFETY: the exception that was caught, deleted once.
                unsafe { _Unwind_DeleteException(exception) };
            }
            Ended::Threw
        }
        _ => match frame.trapped {
            Some(message) => Ended::Trapped(message),
            None => Ended::Crashed(frame.signal),
        },
    }
}

/// Leaves the protected call that this thread is in, if it is in one: for traps.
pub(crate) fn escape(message: &str) {
    let frame = FRAME.get();
    // SAFETY: not null, so the frame of a call that has not returned, on this thread's stack.
    let Some(inside) = (unsafe { frame.as_mut() }) else {
        return;
    };
    FRAME.set(inside.outer);
    inside.trapped = Some(message.to_owned());
    // SAFETY: the frame's stack is further up than this one's, and what lies between is abandoned. It belongs to
    // published code, and to the trap that called this, which owns nothing.
    unsafe { jitcast_protected_escape(frame.cast()) }
}

/// The class of a Rust panic: its vendor and language, in the one or the other order (compilers differ).
const RUST_EXCEPTIONS: [u64; 2] = [
    u64::from_ne_bytes(*b"MOZ\0RUST"),
    u64::from_be_bytes(*b"MOZ\0RUST"),
];

/// Catches a C++ exception as C++ does, so that its runtime counts it no longer; whether it is one.
fn end_cplusplus(class: u64, exception: *mut c_void) -> bool {
    const CLASS: u64 = u64::from_be_bytes(*b"\0GNUCC++");
    if class >> 8 != CLASS {
        return false;
    }
    let find = |name: &core::ffi::CStr| {
        // SAFETY: a C string.
        unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }
    };
    let (begin, end) = (find(c"__cxa_begin_catch"), find(c"__cxa_end_catch"));
    if begin.is_null() || end.is_null() {
        return false;
    }
    // SAFETY: `void *__cxa_begin_catch(void *)` of the Itanium C++ ABI.
    let begin: extern "C" fn(*mut c_void) -> *mut c_void = unsafe { core::mem::transmute(begin) };
    // SAFETY: `void __cxa_end_catch()` of the same.
    let end: extern "C" fn() = unsafe { core::mem::transmute(end) };
    begin(exception);
    end();
    true
}

/// The signals by which the processor says that code cannot go on.
pub(crate) const SIGNALS: [c_int; 4] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE];

/// How many protected calls run, and the actions that were there before.
static PREVIOUS: Mutex<Previous> = Mutex::new((0, [None; 4]));

pub(crate) type Previous = (usize, [Option<libc::sigaction>; 4]);

/// Held over a fork, so that the child does not find it locked by a thread that it does not have.
pub(crate) fn lock() -> MutexGuard<'static, Previous> {
    PREVIOUS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The handlers that were there before and their flags, for a handler, which takes no lock.
static HANDLERS: [(AtomicUsize, AtomicI32); 4] =
    [const { (AtomicUsize::new(libc::SIG_DFL), AtomicI32::new(0)) }; 4];

/// The signal handlers are there while this lives.
struct Handlers;

/// Our handler, as a number.
fn ours() -> usize {
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = crashed;
    handler as usize
}

impl Handlers {
    fn install() -> Self {
        let mut previous = lock();
        previous.0 += 1;
        if previous.0 == 1 {
            // SAFETY: all zeros are a valid `sigaction`: no flags, an empty mask.
            let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
            action.sa_sigaction = ours();
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            for (index, (signal, old)) in SIGNALS.into_iter().zip(&mut previous.1).enumerate() {
                let (handler, flags) = &HANDLERS[index];
                if let Some(before) = current(signal) {
                    handler.store(before.sa_sigaction, Ordering::Relaxed);
                    flags.store(before.sa_flags, Ordering::Release);
                }
                *old = exchange(signal, &action);
            }
        }
        Self
    }
}

impl Drop for Handlers {
    fn drop(&mut self) {
        let mut previous = lock();
        previous.0 -= 1;
        if previous.0 == 0 {
            for (signal, old) in SIGNALS.into_iter().zip(&mut previous.1) {
                // What somebody else has put there meanwhile stays.
                let is_ours = |now: libc::sigaction| now.sa_sigaction == ours();
                if let Some(old) = old.take().filter(|_| current(signal).is_some_and(is_ours)) {
                    exchange(signal, &old);
                }
            }
        }
    }
}

/// Lets `action` handle `signal` from now on, beneath the handlers that are there while protected calls run. `keep` is
/// given what was there before, first.
pub(crate) fn beneath(
    signal: c_int,
    action: &libc::sigaction,
    keep: impl FnOnce(libc::sigaction),
) -> bool {
    let mut previous = lock();
    let index = SIGNALS.iter().position(|known| *known == signal);
    let index = index.filter(|_| previous.0 > 0);
    if let Some((index, old)) = index.and_then(|index| Some((index, previous.1[index].as_mut()?))) {
        keep(*old);
        *old = *action;
        let (handler, flags) = &HANDLERS[index];
        handler.store(action.sa_sigaction, Ordering::Relaxed);
        flags.store(action.sa_flags, Ordering::Release);
        return true;
    }
    let Some(before) = current(signal) else {
        return false;
    };
    keep(before);
    exchange(signal, action).is_some()
}

/// What happens at `signal` now.
fn current(signal: c_int) -> Option<libc::sigaction> {
    // SAFETY: all zeros are a valid `sigaction`.
    let mut now: libc::sigaction = unsafe { core::mem::zeroed() };
    // SAFETY: `now` lives through the call; nothing is changed.
    let done = unsafe { libc::sigaction(signal, core::ptr::null(), &raw mut now) };
    (done == 0).then_some(now)
}

fn exchange(signal: c_int, action: &libc::sigaction) -> Option<libc::sigaction> {
    // SAFETY: all zeros are a valid `sigaction`.
    let mut old: libc::sigaction = unsafe { core::mem::zeroed() };
    // SAFETY: both point to actions that live through the call.
    let done = unsafe { libc::sigaction(signal, action, &raw mut old) };
    (done == 0).then_some(old)
}

/// Sends this thread back to its protected call. Another thread's signal, or one that somebody sent, is handled by who
/// handled it before.
extern "C" fn crashed(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let frame = FRAME.get();
    // SAFETY: the kernel's, as SA_SIGINFO says.
    let by_processor = unsafe { (*info).si_code } > 0;
    // SAFETY: not null, so the frame of a call that has not returned, on this thread's stack.
    let Some(inside) = unsafe { frame.as_mut() }.filter(|_| by_processor) else {
        pass_on(signal, info, context, by_processor);
        return;
    };
    FRAME.set(inside.outer);
    inside.signal = signal;
    let context: *mut libc::ucontext_t = context.cast();
    // SAFETY: the registers that the kernel saved and will restore, this handler's own to change.
    let registers = unsafe { &mut (*context).uc_mcontext.gregs };
    registers[libc::REG_RSP as usize] = inside.stack.cast_signed();
    registers[libc::REG_RIP as usize] = (&raw const jitcast_protected_crashed).addr() as i64;
}

/// Does what was done at `signal` before.
fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void, by_processor: bool) {
    let index = SIGNALS
        .iter()
        .position(|known| *known == signal)
        .unwrap_or(0);
    // Acquire: pairs with the release when the handlers were installed.
    let flags = HANDLERS[index].1.load(Ordering::Acquire);
    let handler = HANDLERS[index].0.load(Ordering::Relaxed);
    hand_on((handler, flags), signal, (info, context), by_processor);
}

/// Does what an action of this handler and these flags says.
pub(crate) fn hand_on(
    (handler, flags): (usize, c_int),
    signal: c_int,
    (info, context): (*mut libc::siginfo_t, *mut c_void),
    by_processor: bool,
) {
    if handler == libc::SIG_IGN && !by_processor {
        return;
    }
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        // SAFETY: all zeros are the default action.
        let default = unsafe { core::mem::zeroed() };
        exchange(signal, &default);
        if !by_processor {
            // SAFETY: raise(3) of a signal that just arrived. (What the processor raised, it raises again.)
            unsafe { libc::raise(signal) };
        }
        return;
    }
    let handler = core::ptr::with_exposed_provenance::<()>(handler);
    if flags & libc::SA_SIGINFO != 0 {
        type WithInfo = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
        // SAFETY: the handler that was there, of the type that its flags say.
        let handler: WithInfo = unsafe { core::mem::transmute(handler) };
        handler(signal, info, context);
    } else {
        // SAFETY: as above.
        let handler: extern "C" fn(c_int) = unsafe { core::mem::transmute(handler) };
        handler(signal);
    }
}

/// The environment, as constructors get it.
pub(crate) fn environment() -> *const *const c_char {
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    // SAFETY: the C library's, never null in a running process; only copied.
    unsafe { environ }
}

#[cfg(test)]
mod tests {
    use super::*;

    extern "C" fn sum(a: u64, b: u64, c: u64) -> u64 {
        a + b + c
    }

    extern "C-unwind" fn panics() {
        std::panic::resume_unwind(Box::new("thrown"));
    }

    extern "C" fn crashes() {
        let nowhere = core::hint::black_box(core::ptr::without_provenance_mut::<u64>(16));
        // SAFETY: none: it crashes, which is what this test is about.
        unsafe { nowhere.write_volatile(1) };
    }

    extern "C" fn traps() {
        escape("a trap");
        unreachable!("a trap is no way on");
    }

    fn run(function: usize) -> Ended {
        // SAFETY: the functions above.
        unsafe { call(function as u64, [1, 2, 3]) }
    }

    #[test]
    fn every_end_comes_back() {
        for _ in 0..3 {
            assert_eq!(run(sum as *const () as usize), Ended::Returned(6));
            assert_eq!(run(panics as *const () as usize), Ended::Threw);
            assert_eq!(
                run(crashes as *const () as usize),
                Ended::Crashed(libc::SIGSEGV)
            );
            assert_eq!(
                run(traps as *const () as usize),
                Ended::Trapped("a trap".into())
            );
        }
    }

    #[test]
    fn calls_nest() {
        extern "C" fn nested() -> u64 {
            assert_eq!(
                run(crashes as *const () as usize),
                Ended::Crashed(libc::SIGSEGV)
            );
            crashes();
            0
        }
        assert_eq!(
            run(nested as *const () as usize),
            Ended::Crashed(libc::SIGSEGV)
        );
    }
}
