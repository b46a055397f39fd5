//! Threads that published code starts: they run published code from their first instruction to their last, so
//! they are inside for their whole life, at the generation of the thread that started them.
//!
//! Invariant: the new thread's pin is there before its creator's guard can leave
//! ([`jitcast_runtime::pin::hand_over`]).

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use jitcast_runtime::WorkerAddr;

use crate::thread_record;
use crate::trap;
use crate::worker::Inner;

type StartRoutine = extern "C-unwind" fn(*mut c_void) -> *mut c_void;
type C11Routine = extern "C-unwind" fn(*mut c_void) -> c_int;

unsafe extern "C" {
    #[link_name = "pthread_create"]
    fn host_pthread_create(
        thread: *mut c_void,
        attributes: *const c_void,
        start: StartRoutine,
        argument: *mut c_void,
    ) -> c_int;
    #[link_name = "thrd_create"]
    fn host_thrd_create(thread: *mut c_void, start: C11Routine, argument: *mut c_void) -> c_int;
}

/// `thrd_error` of glibc's <threads.h>.
const THRD_ERROR: c_int = 2;

/// What a new thread is told.
struct Start {
    worker: Arc<Inner>,
    /// Its record in the mailbox, pinned.
    record: u32,
    function: u64,
    argument: *mut c_void,
}

/// What becomes of a thread that is to start at some function.
enum Plan {
    /// It is no business of ours: the function is the host's.
    Host,
    Inside(Box<Start>),
    /// All thread records of the worker are taken.
    Full,
}

fn plan(function: u64, argument: *mut c_void) -> Plan {
    let Some(worker) = trap::worker_at(WorkerAddr::new(function)) else {
        return Plan::Host;
    };
    let inside = worker
        .starting()
        .here()
        .or_else(|| thread_record::generation_inside(&worker));
    let Some(generation) = inside.filter(|_| worker.is_attached_here()) else {
        return Plan::Host;
    };
    worker.release_ended_threads();
    match worker.mailbox().claim_for_another(generation) {
        Some(record) => Plan::Inside(Box::new(Start {
            worker,
            record,
            function,
            argument,
        })),
        None => Plan::Full,
    }
}

impl Start {
    /// Makes the calling thread the one that was planned.
    fn adopt(start: *mut c_void) -> (u64, *mut c_void) {
        // SAFETY: what `into_raw` gave, taken back once: by the thread that was created.
        let start = unsafe { Box::from_raw(start.cast::<Self>()) };
        let Self {
            worker,
            record,
            function,
            argument,
        } = *start;
        thread_record::adopt(worker, record);
        (function, argument)
    }

    /// Gives back what a thread would have had that was not created.
    fn abandon(start: *mut c_void) {
        // SAFETY: as in `adopt`: nobody else has it, since there is no thread.
        let start = unsafe { Box::from_raw(start.cast::<Self>()) };
        start.worker.mailbox().release(start.record);
    }
}

/// What published code calls as `pthread_create`.
///
/// # Safety
/// As pthread_create(3).
pub(crate) unsafe extern "C" fn pthread_create(
    thread: *mut c_void,
    attributes: *const c_void,
    start: StartRoutine,
    argument: *mut c_void,
) -> c_int {
    let planned = match plan(start as usize as u64, argument) {
        // SAFETY: the caller's promise.
        Plan::Host => return unsafe { host_pthread_create(thread, attributes, start, argument) },
        Plan::Full => return libc::EAGAIN,
        Plan::Inside(planned) => Box::into_raw(planned).cast(),
    };
    // SAFETY: the caller's promise for `thread` and `attributes`; `begin` takes what is planned.
    let failed = unsafe { host_pthread_create(thread, attributes, begin, planned) };
    if failed != 0 {
        Start::abandon(planned);
    }
    failed
}

extern "C-unwind" fn begin(start: *mut c_void) -> *mut c_void {
    let (function, argument) = Start::adopt(start);
    let function = core::ptr::with_exposed_provenance::<()>(function as usize);
    // SAFETY: what the creator passed as the function to start at.
    let function: StartRoutine = unsafe { core::mem::transmute(function) };
    function(argument)
}

/// What published code calls as `thrd_create`.
///
/// # Safety
/// As thrd_create(3).
pub(crate) unsafe extern "C" fn thrd_create(
    thread: *mut c_void,
    start: C11Routine,
    argument: *mut c_void,
) -> c_int {
    let planned = match plan(start as usize as u64, argument) {
        // SAFETY: the caller's promise.
        Plan::Host => return unsafe { host_thrd_create(thread, start, argument) },
        Plan::Full => return THRD_ERROR,
        Plan::Inside(planned) => Box::into_raw(planned).cast(),
    };
    // SAFETY: the caller's promise for `thread`; `begin_c11` takes what is planned.
    let failed = unsafe { host_thrd_create(thread, begin_c11, planned) };
    if failed != 0 {
        Start::abandon(planned);
    }
    failed
}

extern "C-unwind" fn begin_c11(start: *mut c_void) -> c_int {
    let (function, argument) = Start::adopt(start);
    let function = core::ptr::with_exposed_provenance::<()>(function as usize);
    // SAFETY: what the creator passed as the function to start at.
    let function: C11Routine = unsafe { core::mem::transmute(function) };
    function(argument)
}

/// The name of `std::thread::_M_start_thread(std::unique_ptr<std::thread::_State>, void (*)())`, by which the headers of
/// libstdc++ start threads: those of `std::thread`, `std::jthread` and `std::async`.
pub(crate) const STD_THREAD: &str =
    "_ZNSt6thread15_M_start_threadESt10unique_ptrINS_6_StateESt14default_deleteIS1_EEPFvvE";

/// What a C++ thread is to run: `std::thread::_State`, whose class has two destructors and `_M_run` as its virtual
/// functions (libstdc++ 6 and newer; its ABI of symbol version GLIBCXX_3.4.22).
#[repr(C)]
pub(crate) struct StdState {
    functions: *const [extern "C-unwind" fn(*mut StdState); 3],
}

/// What published code calls as [`STD_THREAD`]. libstdc++'s own calls the host's `pthread_create`, which would not know
/// that the thread is inside.
///
/// # Safety
/// `thread` is a `std::thread` without a thread, `state` leads to what it is to run.
pub(crate) unsafe extern "C-unwind" fn start_std_thread(
    thread: *mut c_void,
    state: *mut *mut StdState,
    depend: *const c_void,
) {
    type StartStdThread =
        unsafe extern "C-unwind" fn(*mut c_void, *mut *mut StdState, *const c_void);
    // SAFETY: the caller's promise.
    let run = unsafe { *state };
    // SAFETY: as above: a state is an object with virtual functions.
    let functions = unsafe { (*run).functions }.addr() as u64;
    // Its class is published where its table of functions lies.
    let plan = plan(functions, run.cast());
    if matches!(plan, Plan::Full) {
        // As libstdc++ does where the system has no thread left.
        throw_system_error(libc::EAGAIN);
    }
    if let Plan::Inside(planned) = plan {
        let planned = Box::into_raw(planned).cast();
        // SAFETY: a `std::thread` holds a `pthread_t`; `begin_std` takes what is planned.
        if unsafe { host_pthread_create(thread, core::ptr::null(), begin_std, planned) } == 0 {
            // The new thread owns it now.
            // SAFETY: the caller's promise: a unique pointer, which is one.
            unsafe { *state = core::ptr::null_mut() };
            return;
        }
        Start::abandon(planned);
    }
    // Not ours, or it fails: libstdc++'s own does it, or throws what a failure throws.
    let found = host_start_std_thread();
    // SAFETY: the function of this name has this type.
    let host: StartStdThread = unsafe { core::mem::transmute(found) };
    // SAFETY: the caller's promise.
    unsafe { host(thread, state, depend) };
}

/// `std::__throw_system_error(int)`.
fn throw_system_error(code: c_int) -> ! {
    type Throw = extern "C-unwind" fn(c_int) -> !;
    // SAFETY: a C string.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_ZSt20__throw_system_errori".as_ptr()) };
    if found.is_null() {
        trap::fatal("published code starts more threads than a worker has records for");
    }
    // SAFETY: the function of this name has this type.
    let throw: Throw = unsafe { core::mem::transmute(found) };
    throw(code)
}

/// libstdc++'s own, which is there: published code refers to it, so it was looked up before it was bound.
fn host_start_std_thread() -> *mut c_void {
    let name = std::ffi::CString::new(STD_THREAD).unwrap_or_default();
    // SAFETY: a C string.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if found.is_null() {
        trap::fatal("libstdc++ is not there, though published code starts its threads");
    }
    found
}

extern "C-unwind" fn begin_std(start: *mut c_void) -> *mut c_void {
    let (_, state) = Start::adopt(start);
    let state: *mut StdState = state.cast();
    // SAFETY: the state that the creator passed, this thread's own from now on.
    let functions = unsafe { (*state).functions };
    // SAFETY: the virtual functions of its class, published code that this thread is inside of.
    let [_, delete, run] = unsafe { *functions };
    run(state);
    delete(state);
    core::ptr::null_mut()
}
