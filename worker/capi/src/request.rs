//! Requests: CLIF that the compiler process compiles for the worker that asks.

use std::ffi::c_char;
use std::time::Duration;

use ::jitcast_worker::Pending;

use crate::attach::{jitcast_worker, of, put, text};
use crate::function::{jitcast_code, jitcast_handle, pointer, signature_of};
use crate::status::{Failure, bounded, bounded_or, jitcast_status};
use crate::watch::JITCAST_FOREVER;

/// A request that is under way or answered. Used by one thread at a time.
#[derive(Debug)]
pub struct jitcast_request(Pending);

/// Asks the compiler process to compile `clif` for this worker, if it has the right (`serve --allow-request`): functions that may call published functions and
/// host symbols, but have no names for anybody else. Equal texts of many workers are compiled once. Does not wait: jitcast_fd is readable when
/// something has come. The request is to be freed by jitcast_request_free, before the worker is detached.
///
/// Errors: JITCAST_STATUS_INVALID_ARGUMENT; JITCAST_STATUS_NOT_ATTACHED; JITCAST_STATUS_NOT_CONNECTED; JITCAST_STATUS_BUSY;
/// JITCAST_STATUS_WHILE_STARTING. What the compiler process says comes with jitcast_request_function.
///
/// # Safety
/// `worker` is null or attached; `clif` is null or a C string; `request` is null or can be stored to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_ask(
    worker: *const jitcast_worker,
    clif: *const c_char,
    request: *mut *mut jitcast_request,
) -> jitcast_status {
    bounded(|| {
        // SAFETY: the caller's promise.
        let worker = unsafe { of(worker) }?;
        // SAFETY: the caller's promise.
        let clif = unsafe { text(clif, "clif") }?;
        if request.is_null() {
            return Err(Failure::argument("`request` is NULL"));
        }
        let pending = jitcast_request(worker.request(clif)?);
        // SAFETY: the caller's promise.
        unsafe { put(request, Box::into_raw(Box::new(pending)), "request") }
    })
}

/// Whether the answer is there: functions, or why there are none. Looks at the connection, and never waits. false if `request` is NULL.
///
/// # Safety
/// `request` is null or came from jitcast_ask, and nobody else uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_request_is_ready(request: *const jitcast_request) -> bool {
    bounded_or(false, || {
        // SAFETY: the caller's promise.
        let request = unsafe { request.as_ref() };
        Ok(request.ok_or_else(no_request)?.0.is_ready())
    })
}

/// Waits for the answer, at most `timeout_ns` nanoseconds or JITCAST_FOREVER.
///
/// Errors: JITCAST_STATUS_TIMED_OUT; JITCAST_STATUS_INVALID_ARGUMENT.
///
/// # Safety
/// As for jitcast_request_is_ready.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_request_wait(
    request: *const jitcast_request,
    timeout_ns: u64,
) -> jitcast_status {
    let mut answered = false;
    let status = bounded(|| {
        // SAFETY: the caller's promise.
        let request = unsafe { request.as_ref() }.ok_or_else(no_request)?;
        let timeout = (timeout_ns != JITCAST_FOREVER).then(|| Duration::from_nanos(timeout_ns));
        answered = request.0.wait(timeout);
        Ok(())
    });
    match status {
        jitcast_status::Ok if !answered => jitcast_status::TimedOut,
        status => status,
    }
}

/// Makes a handle of function `name` of what was compiled, as jitcast_function does of a published one; `fallback`, if it is not NULL, is
/// called instead once the unit is gone, because what it refers to was removed, or the compiler process ended. The unit is there as long as
/// the request or a handle of it.
///
/// Errors: those of jitcast_function; JITCAST_STATUS_NOT_READY;
/// JITCAST_STATUS_REFUSED, with the compiler's words; JITCAST_STATUS_BUSY, ask again later; JITCAST_STATUS_LOST; JITCAST_STATUS_OUTDATED, if
/// the thread is inside at a generation that does not have it yet; JITCAST_STATUS_GONE, ask again; JITCAST_STATUS_FORKED, if the parent asked.
///
/// # Safety
/// As for jitcast_request_is_ready; the rest as for jitcast_function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_request_function(
    request: *mut jitcast_request,
    name: *const c_char,
    signature: *const c_char,
    fallback: jitcast_code,
    handle: *mut *mut jitcast_handle,
) -> jitcast_status {
    bounded(|| {
        // SAFETY: the caller's promise.
        let request = unsafe { request.as_mut() }.ok_or_else(no_request)?;
        // SAFETY: the caller's promise.
        let name = unsafe { text(name, "name") }?;
        // SAFETY: the caller's promise.
        let signature = unsafe { signature_of(signature) }?;
        if handle.is_null() {
            return Err(Failure::argument("`handle` is NULL"));
        }
        let worker = request.0.worker().clone();
        let guard = worker.enter()?;
        let unit = request.0.unit(&guard)?;
        // SAFETY: the caller's promise.
        let found =
            unsafe { unit.function_by_signature(&guard, name, signature, pointer(fallback)) }?;
        // SAFETY: the caller's promise.
        unsafe { put(handle, found.into_raw().cast().as_ptr(), "handle") }
    })
}

/// Frees a request, which is given up if it is not answered. Handles stay. NULL is let pass.
///
/// # Safety
/// `request` is null or came from jitcast_ask, nobody uses it any more, and it is freed once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_request_free(request: *mut jitcast_request) {
    bounded(|| {
        if !request.is_null() {
            // SAFETY: the caller's promise: `jitcast_ask` made it of a box.
            drop(unsafe { Box::from_raw(request) });
        }
        Ok(())
    });
}

fn no_request() -> Failure {
    Failure::argument("`request` is NULL")
}
