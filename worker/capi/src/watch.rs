//! Looking after a worker: what to watch, to wait for and to count.

use core::mem::size_of;
use std::ffi::c_int;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use ::jitcast_worker::{LateWorker, Worker};

use crate::attach::{given, jitcast_worker, of};
use crate::status::{Failure, bounded, bounded_or, jitcast_status};

/// For jitcast_wait: as long as it takes.
pub const JITCAST_FOREVER: u64 = u64::MAX;

/// The descriptor of the connection to the compiler process, for an event loop: when it is readable or has hung up, jitcast_tend is to be called.
/// Publications do not show there: guards find them, and jitcast_wait. The descriptor is the library's: it is neither read nor closed. -1 if
/// `worker` is NULL, or has not attached yet.
///
/// The number stays the same, but leads to another file once another compiler process is found, which epoll(7) does not notice; until
/// then it goes on to show that the first one has hung up. So a loop stops watching it at JITCAST_EVENT_DISCONNECTED, calls jitcast_tend now
/// and then, and watches it again at JITCAST_EVENT_RENEWED, unless it still does: that is told of the same connection, too.
///
/// # Safety
/// `worker` is null or attached.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_fd(worker: *const jitcast_worker) -> c_int {
    bounded_or(-1, || {
        // SAFETY: the caller's promise.
        let worker = unsafe { given(worker) }?.worker();
        Ok(worker.map_or(-1, |worker| worker.connection().as_raw_fd()))
    })
}

/// Looks whether the compiler process is still there; if not, for another one that goes on with its journal. Never waits. To be called
/// when jitcast_fd shows something, and, while the worker is not connected, now and then. Guards do it every 65,536th time.
///
/// Errors: JITCAST_STATUS_INVALID_ARGUMENT.
///
/// # Safety
/// `worker` is null or attached.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_tend(worker: *const jitcast_worker) -> jitcast_status {
    bounded(|| {
        // SAFETY: the caller's promise.
        let given = unsafe { given(worker) }?;
        match given.worker() {
            Some(worker) => worker.tend(),
            None => given.late().into_iter().for_each(LateWorker::tend),
        }
        Ok(())
    })
}

/// Whether the compiler process was there when somebody last looked (jitcast_tend).
///
/// # Safety
/// `worker` is null or attached.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_is_connected(worker: *const jitcast_worker) -> bool {
    bounded_or(false, || {
        // SAFETY: the caller's promise.
        let worker = unsafe { given(worker) }?.worker();
        Ok(worker.is_some_and(Worker::is_connected))
    })
}

/// Waits until something newer than generation `seen` is published, at most `timeout_ns` nanoseconds or JITCAST_FOREVER, and tends the
/// worker meanwhile; one that attaches late has to attach first. To be called outside guards.
///
/// Errors: JITCAST_STATUS_TIMED_OUT; JITCAST_STATUS_INVALID_ARGUMENT.
///
/// # Safety
/// `worker` is null or attached.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_wait(
    worker: *const jitcast_worker,
    seen: u64,
    timeout_ns: u64,
) -> jitcast_status {
    let mut news = false;
    let status = bounded(|| {
        let timeout = (timeout_ns != JITCAST_FOREVER).then(|| Duration::from_nanos(timeout_ns));
        // SAFETY: the caller's promise.
        let given = unsafe { given(worker) }?;
        let began = Instant::now();
        if let Some(late) = given.late() {
            late.join(timeout);
        }
        if let Some(worker) = given.worker() {
            let left = timeout.map(|timeout| timeout.saturating_sub(began.elapsed()));
            news = worker.wait(seen, left);
        }
        Ok(())
    });
    match status {
        jitcast_status::Ok if !news => jitcast_status::TimedOut,
        status => status,
    }
}

/// The generation that the calling thread is inside at, or else the one that the worker has applied; 0 if `worker` is NULL.
///
/// # Safety
/// `worker` is null or attached.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_generation(worker: *const jitcast_worker) -> u64 {
    bounded_or(0, || {
        // SAFETY: the caller's promise.
        let Some(worker) = unsafe { given(worker) }?.worker() else {
            return Ok(0);
        };
        if worker.token().depth() > 0 {
            // Nested, so nothing is applied.
            return Ok(worker.enter()?.generation());
        }
        Ok(worker.stats().applied)
    })
}

/// What a worker can say about itself. The caller fills `size`; members may be added at the end.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct jitcast_statistics {
    /// sizeof(jitcast_statistics), as the caller's header has it.
    pub size: usize,
    /// The number by which the compiler process knows the worker.
    pub number: u64,
    /// The base of its window.
    pub base: u64,
    /// The generation that it has applied.
    pub applied: u64,
    /// Publications applied.
    pub updates: u64,
    /// Times that it read the directory instead of the ring.
    pub resyncs: u64,
    /// Host symbols that it lacks.
    pub missing: u64,
}

/// Fills `statistics`, as far as its `size` goes; what a newer header has besides becomes 0.
///
/// Errors: JITCAST_STATUS_INVALID_ARGUMENT.
///
/// # Safety
/// `worker` is null or attached; `statistics` is null, or can be stored to for as many bytes as its `size` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_stats(
    worker: *const jitcast_worker,
    statistics: *mut jitcast_statistics,
) -> jitcast_status {
    bounded(|| {
        // SAFETY: the caller's promise.
        let stats = unsafe { of(worker) }?.stats();
        // SAFETY: the caller's promise, if it is not null.
        let Some(size) = (unsafe { statistics.as_ref() }).map(|given| given.size) else {
            return Err(Failure::argument("`statistics` is NULL"));
        };
        // What the first version of the header has; grows never.
        const FIRST: usize = 56;
        if size < FIRST {
            return Err(Failure::argument(format!(
                "`statistics->size` is {size}, and no header has less than {FIRST}\n  help: store sizeof(jitcast_statistics) there first"
            )));
        }
        let known = jitcast_statistics {
            size,
            number: stats.number,
            base: stats.base.get(),
            applied: stats.applied,
            updates: stats.updates,
            resyncs: stats.resyncs,
            missing: stats.missing,
        };
        let count = size.min(size_of::<jitcast_statistics>());
        let to = statistics.cast::<u8>();
        // SAFETY: the caller's promise: `size` bytes.
        unsafe { to.write_bytes(0, size) };
        // SAFETY: not more than either has; they do not overlap, since `known` is ours.
        unsafe { to.copy_from_nonoverlapping((&raw const known).cast(), count) };
        Ok(())
    })
}

const _: () = assert!(size_of::<jitcast_statistics>() == 56);
