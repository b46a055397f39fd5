//! Where slots lead that nothing binds: a message that names what is missing, and the end of the process,
//! instead of a jump to garbage.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use jitcast_runtime::{ImportId, WorkerAddr};

use crate::startup::protect;
use crate::worker::Inner;

/// The workers of a process, by the bases of their windows.
pub(crate) type List = Vec<(WorkerAddr, Weak<Inner>)>;

static WORKERS: Mutex<List> = Mutex::new(Vec::new());

/// Keeps the list of workers as it is, for a fork.
pub(crate) fn lock_list() -> MutexGuard<'static, List> {
    WORKERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The worker whose window `address` lies in.
pub(crate) fn worker_at(address: WorkerAddr) -> Option<Arc<Inner>> {
    workers()
        .into_iter()
        .find(|worker| worker.window().offset_of(address).is_some())
}

/// The workers of this process.
pub(crate) fn workers() -> Vec<Arc<Inner>> {
    let workers = lock_list();
    workers
        .iter()
        .filter_map(|(_, worker)| worker.upgrade())
        .collect()
}

pub(crate) fn register(base: WorkerAddr, worker: Weak<Inner>) {
    let mut workers = lock_list();
    workers.retain(|(_, worker)| worker.strong_count() > 0);
    workers.push((base, worker));
}

/// What the segment's traps for host symbols jump to: the import's number, and the base of the window or another
/// address in it.
pub(crate) extern "C" fn missing_import(import: u32, base: u64) -> ! {
    let worker = worker_at(WorkerAddr::new(base));
    let name = worker.and_then(|worker| worker.import_name(ImportId::new(import)));
    let name = name.unwrap_or_else(|| format!("number {import}"));
    fatal(&format!(
        "published code called the host symbol `{name}`, which is missing in this worker, or defined with another signature"
    ))
}

/// What slots hold whose function is not published any more.
pub(crate) extern "C" fn removed() -> ! {
    fatal("a function was called that is not published any more")
}

/// What slots hold whose function is quarantined.
extern "C" fn quarantined() -> ! {
    fatal("a function was called that is quarantined; `jitcast restore` puts it back")
}

/// Where cells lead whose function is quarantined.
pub(crate) fn quarantined_trap() -> WorkerAddr {
    let trap: extern "C" fn() -> ! = quarantined;
    WorkerAddr::new(trap as *const () as u64)
}

/// What slots hold whose function's unit failed.
pub(crate) extern "C" fn failed() -> ! {
    // Whoever is inside holds no state; who runs constructors does, and has no names for it.
    let failures: Vec<String> = workers()
        .iter()
        .filter_map(|worker| worker.state().try_lock().ok())
        .flat_map(|state| {
            state
                .units
                .failed()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        })
        .collect();
    let failures = failures.join("; ");
    fatal(&format!(
        "a function was called whose unit had failed ({failures})"
    ))
}

/// Makes a call that no exception may leave: one that tries ends the process.
#[inline(always)]
pub(crate) fn containing<R>(call: impl FnOnce() -> R) -> R {
    let unwound = Unwound;
    let result = call();
    core::mem::forget(unwound);
    result
}

/// Makes a call that exceptions may leave.
#[inline(always)]
pub(crate) fn letting_out<R>(call: impl FnOnce() -> R) -> R {
    call()
}

/// Dropped by an exception.
struct Unwound;

impl Drop for Unwound {
    fn drop(&mut self) {
        fatal(
            "an exception left published code, which the host called as `extern \"C\"`; through a handle of \
             type `extern \"C-unwind\" fn` it passes",
        )
    }
}

/// Says `what`, and ends the process; or ends what the worker itself runs of a unit.
pub(crate) fn fatal(what: &str) -> ! {
    protect::escape(what);
    // The one place where this library prints: the process is about to end.
    eprintln!("jitcast: {what} (pid {})", std::process::id());
    std::process::abort()
}
