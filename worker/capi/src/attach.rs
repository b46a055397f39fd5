//! Attaching and detaching.

use std::ffi::{CStr, OsStr, c_char, c_int};
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use ::jitcast_worker::{Endpoint, LateWorker, Worker, WorkerOptions};

use crate::options::{jitcast_options, read_options};
use crate::status::{Failure, bounded, jitcast_status};

/// A process's attachment to a segment, or to be.
#[derive(Debug)]
pub struct jitcast_worker(Attached);

#[derive(Debug)]
enum Attached {
    Now(Worker),
    Late(LateWorker),
}

impl jitcast_worker {
    /// The worker, once it is attached.
    pub(crate) fn worker(&self) -> Option<&Worker> {
        match &self.0 {
            Attached::Now(worker) => Some(worker),
            Attached::Late(late) => late.worker(),
        }
    }

    /// What attaches by itself, unless it has.
    pub(crate) fn late(&self) -> Option<&LateWorker> {
        match &self.0 {
            Attached::Late(late) if late.worker().is_none() => Some(late),
            _ => None,
        }
    }
}

/// Attaches to the compiler process at the socket `path`, or, after an `@`, of that name in the abstract name space: maps the
/// segment, binds what is published, and runs its constructors. `options` may be NULL.
///
/// Errors: JITCAST_STATUS_INVALID_ARGUMENT; JITCAST_STATUS_CONNECT; JITCAST_STATUS_PROTOCOL; JITCAST_STATUS_REFUSED;
/// JITCAST_STATUS_FOREIGN_COMPILER, if it is not this user's, root's or a trusted one's; JITCAST_STATUS_NOT_SEALED; JITCAST_STATUS_SEGMENT;
/// JITCAST_STATUS_SYSTEM; JITCAST_STATUS_LIBRARY; JITCAST_STATUS_UPDATE. Nothing is left behind then, but libraries that were loaded.
///
/// # Safety
/// `path` is null or a C string; `options` is null or as its description says; `worker` is null or can be stored to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_attach_path(
    path: *const c_char,
    options: *const jitcast_options,
    worker: *mut *mut jitcast_worker,
) -> jitcast_status {
    bounded(|| {
        // SAFETY: the caller's promise.
        let path = unsafe { bytes(path, "path") }?;
        let endpoint = Endpoint::Path(OsStr::from_bytes(path).as_ref());
        // SAFETY: the caller's promise.
        unsafe { attach(endpoint, options, worker) }
    })
}

/// The same, over a socket that is connected: inherited or handed over. It is the library's from then on if this succeeds, and else the
/// caller's. Such a worker does not look for another compiler process when this one is gone.
///
/// Errors: those of jitcast_attach_path, but for JITCAST_STATUS_CONNECT.
///
/// # Safety
/// As for jitcast_attach_path; nobody else uses `fd`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_attach_fd(
    fd: c_int,
    options: *const jitcast_options,
    worker: *mut *mut jitcast_worker,
) -> jitcast_status {
    bounded(|| {
        if fd < 0 || std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_err() {
            return Err(Failure::argument(format!(
                "`fd`: {fd} is no open descriptor"
            )));
        }
        // SAFETY: open (just looked), and the caller's while this runs.
        let given = unsafe { BorrowedFd::borrow_raw(fd) };
        let own = given.try_clone_to_owned();
        let own = own.map_err(|why| {
            Failure::new(
                jitcast_status::System,
                format!("F_DUPFD_CLOEXEC of {fd}: {why}"),
            )
        })?;
        // SAFETY: the caller's promise.
        unsafe { attach(Endpoint::Fd(own), options, worker) }?;
        // SAFETY: the caller gives it away with this call.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
        Ok(())
    })
}

/// The same, by the name of a named segment, whose header says where the socket is.
///
/// Errors: those of jitcast_attach_path.
///
/// # Safety
/// As for jitcast_attach_path.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_attach_name(
    name: *const c_char,
    options: *const jitcast_options,
    worker: *mut *mut jitcast_worker,
) -> jitcast_status {
    bounded(|| {
        // SAFETY: the caller's promise.
        let name = unsafe { text(name, "name") }?;
        // SAFETY: the caller's promise.
        unsafe { attach(Endpoint::Name(name), options, worker) }
    })
}

/// Detaches: runs destructors of published code, and unmaps the segment. No thread is inside or enters any more, and every
/// jitcast_thread of the worker is void. Requests have been freed; handles are still to be. NULL is let pass.
///
/// Errors: JITCAST_STATUS_INSIDE, if the calling thread holds a guard; then nothing has happened.
///
/// # Safety
/// `worker` is null, or attached and used by nobody else.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_detach(worker: *mut jitcast_worker) -> jitcast_status {
    bounded(|| {
        if worker.is_null() {
            return Ok(());
        }
        // SAFETY: the caller's promise, and not null.
        let given = unsafe { given(worker) }?;
        let depth = given.worker().map_or(0, |worker| worker.token().depth());
        if depth > 0 {
            return Err(Failure::new(
                jitcast_status::Inside,
                format!(
                    "this thread holds guards of the worker ({depth})\n  help: leave them first, or jitcast_unwind"
                ),
            ));
        }
        // SAFETY: `attach` made it of a box, and nobody else uses it.
        drop(unsafe { Box::from_raw(worker) });
        Ok(())
    })
}

/// # Safety
/// As for [`jitcast_attach_path`].
unsafe fn attach(
    endpoint: Endpoint<'_>,
    options: *const jitcast_options,
    worker: *mut *mut jitcast_worker,
) -> Result<(), Failure> {
    if worker.is_null() {
        return Err(Failure::argument("`worker` is NULL"));
    }
    let (options, late) = if options.is_null() {
        (WorkerOptions::default(), false)
    } else {
        // SAFETY: the caller's promise, and not null.
        unsafe { read_options(options) }?
    };
    let attached = jitcast_worker(if late {
        Attached::Late(attach_late(endpoint, options))
    } else {
        Attached::Now(Worker::attach(endpoint, options)?)
    });
    // SAFETY: the caller's promise, and not null.
    unsafe { worker.write(Box::into_raw(Box::new(attached))) };
    Ok(())
}

/// Attaches later, but for a compiler process that is there: that one may answer first.
fn attach_late(endpoint: Endpoint<'_>, options: WorkerOptions) -> LateWorker {
    const PATIENCE: Duration = Duration::from_secs(1);
    const LOOK: Duration = Duration::from_millis(1);
    let until = Instant::now() + PATIENCE;
    let late = LateWorker::attach(endpoint, options);
    while late.why_not().is_none() && Instant::now() < until && late.join(Some(LOOK)).is_none() {}
    late
}

/// # Safety
/// `from` is null or a C string, which stays as long as `'a`.
unsafe fn bytes<'a>(from: *const c_char, what: &str) -> Result<&'a [u8], Failure> {
    if from.is_null() {
        return Err(Failure::argument(format!("`{what}` is NULL")));
    }
    // SAFETY: the caller's promise, and not null.
    Ok(unsafe { CStr::from_ptr(from) }.to_bytes())
}

/// # Safety
/// As for [`bytes`].
pub(crate) unsafe fn text<'a>(from: *const c_char, what: &str) -> Result<&'a str, Failure> {
    // SAFETY: the caller's promise.
    let bytes = unsafe { bytes(from, what) }?;
    let text = core::str::from_utf8(bytes);
    text.map_err(|why| Failure::argument(format!("`{what}` is no UTF-8: {why}")))
}

/// The worker, which looks for its compiler process if it has not attached yet.
///
/// # Safety
/// `worker` is null, or attached as long as `'a`.
pub(crate) unsafe fn of<'a>(worker: *const jitcast_worker) -> Result<&'a Worker, Failure> {
    // SAFETY: the caller's promise.
    let given = unsafe { given(worker) }?;
    if let Some(late) = given.late() {
        late.tend();
    }
    given.worker().ok_or_else(|| {
        Failure::new(
            jitcast_status::NotAttached,
            "the worker has not attached yet (JITCAST_LATE)\n  help: call the host's own functions meanwhile; jitcast_options.log is told why",
        )
    })
}

/// # Safety
/// `worker` is null, or attached as long as `'a`, or late.
pub(crate) unsafe fn given<'a>(
    worker: *const jitcast_worker,
) -> Result<&'a jitcast_worker, Failure> {
    // SAFETY: the caller's promise.
    let worker = unsafe { worker.as_ref() };
    worker.ok_or_else(|| Failure::argument("`worker` is NULL"))
}

/// Stores `value` where the caller wants it.
///
/// # Safety
/// `to` is null or can be stored to.
pub(crate) unsafe fn put<T>(to: *mut T, value: T, what: &str) -> Result<(), Failure> {
    if to.is_null() {
        return Err(Failure::argument(format!("`{what}` is NULL")));
    }
    // SAFETY: the caller's promise, and not null.
    unsafe { to.write(value) };
    Ok(())
}
