//! Functions by name: handles that follow updates, and canonical addresses.

use core::mem::{align_of, size_of, transmute};
use core::ptr::NonNull;
use std::ffi::{c_char, c_void};
use std::sync::atomic::AtomicU64;

use ::jitcast_worker::{Code, Function, Signature};

use crate::attach::{given, jitcast_worker, of, put, text};
use crate::status::{Failure, bounded, jitcast_status};

/// Some function: to be cast to its type.
pub type jitcast_code = Option<unsafe extern "C" fn()>;

/// A handle of a function, which follows updates. jitcast_address says what to call.
#[derive(Debug)]
#[repr(C)]
pub struct jitcast_handle {
    /// jitcast_address loads it.
    target: AtomicU64,
}

const _: () = assert!(size_of::<jitcast_handle>() == size_of::<AtomicU64>());
const _: () = assert!(align_of::<jitcast_handle>() == align_of::<AtomicU64>());

/// Makes a handle of the function `name`, to be freed by jitcast_handle_free. `signature`, as "(i64, f64) -> i32", is compared with
/// what was recorded at publication; NULL: the caller vouches for the type, of every version that will be published.
/// `fallback`, if it is not NULL, is called instead while the name is quarantined, not published (yet), or cannot be
/// called in this worker. A handle without one leads to a trap then, which ends the process with a message. Handles follow at the next
/// guard. While a worker that attaches late (JITCAST_LATE) has not, a handle with a fallback is made whatever will be published; what is
/// something else then is told (JITCAST_EVENT_UNFIT), and the fallback goes on to serve.
///
/// Errors: those of jitcast_enter; JITCAST_STATUS_NOT_A_FUNCTION; JITCAST_STATUS_SIGNATURE; JITCAST_STATUS_UNKNOWN_SIGNATURE, if none was
/// recorded; JITCAST_STATUS_WHILE_STARTING; JITCAST_STATUS_OUTDATED; JITCAST_STATUS_CORRUPT; without a fallback also
/// JITCAST_STATUS_NOT_FOUND, JITCAST_STATUS_MISSING_IMPORT, JITCAST_STATUS_UNIT_FAILED, JITCAST_STATUS_QUARANTINED.
///
/// # Safety
/// `worker` is null or attached; `name` and `signature` are null or C strings; `fallback` is a function of the same type;
/// `handle` is null or can be stored to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_function(
    worker: *const jitcast_worker,
    name: *const c_char,
    signature: *const c_char,
    fallback: jitcast_code,
    handle: *mut *mut jitcast_handle,
) -> jitcast_status {
    bounded(|| {
        // SAFETY: the caller's promise.
        let given = unsafe { given(worker) }?;
        // SAFETY: the caller's promise.
        let name = unsafe { text(name, "name") }?;
        // SAFETY: the caller's promise.
        let signature = unsafe { signature_of(signature) }?;
        if handle.is_null() {
            return Err(Failure::argument("`handle` is NULL"));
        }
        let fallback = pointer(fallback);
        let early = match given.late().zip(fallback) {
            Some((late, fallback)) => {
                let signature = signature.clone();
                // SAFETY: the caller's promise.
                unsafe { late.early_by_signature(name, signature, fallback) }
            }
            None => None,
        };
        let found = match early {
            Some(early) => early,
            None => {
                // SAFETY: the caller's promise.
                let worker = unsafe { of(worker) }?;
                let guard = worker.enter()?;
                // SAFETY: the caller's promise.
                unsafe { worker.function_by_signature(&guard, name, signature, fallback) }?
            }
        };
        let word = found.into_raw();
        // SAFETY: the caller's promise.
        unsafe { put(handle, word.cast().as_ptr(), "handle") }
    })
}

/// Frees a handle, which nobody uses any more. It may be of a worker that was detached, and NULL.
///
/// # Safety
/// `handle` is null or came from jitcast_function or jitcast_request_function, and is freed once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_handle_free(handle: *mut jitcast_handle) {
    bounded(|| {
        if let Some(word) = NonNull::new(handle) {
            // SAFETY: the caller's promise.
            drop(unsafe { Function::<Code>::from_raw(word.cast()) });
        }
        Ok(())
    });
}

/// Finds the canonical address of the function `name`, its stub: for those who keep pointers. It leads to the current
/// version, is the same for all of them, and is to be called inside a guard, and only while the name is published.
///
/// Errors: those of jitcast_function without a fallback and a signature.
///
/// # Safety
/// `worker` is null or attached; `name` is null or a C string; `code` is null or can be stored to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_stub(
    worker: *const jitcast_worker,
    name: *const c_char,
    code: *mut jitcast_code,
) -> jitcast_status {
    bounded(|| {
        // SAFETY: the caller's promise.
        let worker = unsafe { of(worker) }?;
        // SAFETY: the caller's promise.
        let name = unsafe { text(name, "name") }?;
        if code.is_null() {
            return Err(Failure::argument("`code` is NULL"));
        }
        let guard = worker.enter()?;
        let stub = worker.symbol(&guard, name)?.stub.get() as usize;
        let stub = core::ptr::with_exposed_provenance::<()>(stub);
        // SAFETY: the address of a function, or null, which is `None`.
        let stub = unsafe { transmute::<*const (), jitcast_code>(stub) };
        // SAFETY: the caller's promise.
        unsafe { put(code, stub, "code") }
    })
}

/// The signature that is asked for, if one is.
///
/// # Safety
/// `signature` is null or a C string.
pub(crate) unsafe fn signature_of(signature: *const c_char) -> Result<Option<Signature>, Failure> {
    if signature.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise, and not null.
    let text = unsafe { text(signature, "signature") }?;
    let parsed = text.parse::<Signature>();
    let parsed =
        parsed.map_err(|error| Failure::argument(format!("the signature `{text}`: {error}")));
    parsed.map(Some)
}

pub(crate) fn pointer(code: jitcast_code) -> Option<NonNull<c_void>> {
    NonNull::new(code? as *mut c_void)
}
