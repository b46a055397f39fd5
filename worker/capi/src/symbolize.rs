//! What published code is called, by its addresses: for backtraces.

use std::ffi::{c_char, c_void};

use ::jitcast_worker::WorkerAddr;

use crate::attach::{jitcast_worker, of};
use crate::status::{Failure, bounded, jitcast_status};

/// Writes what is at `address` into `text`, as "twice+0x12 (score)": a function, static ones too, how far into it, and its unit. What does
/// not fit into `size` bytes with the zero at the end is left out. Of a frame's return address, as backtrace(3) gives them, pass one
/// less: the call may be the last thing that its function does. Not for signal handlers, which store addresses.
///
/// Errors: those of jitcast_enter; JITCAST_STATUS_NOT_FOUND: no published code of this worker is there, and `text` is empty.
///
/// # Safety
/// `worker` is null or attached; `text` is null or can be stored to, `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_symbolize(
    worker: *const jitcast_worker,
    address: *const c_void,
    text: *mut c_char,
    size: usize,
) -> jitcast_status {
    bounded(|| {
        if text.is_null() || size == 0 {
            return Err(Failure::argument("`text` is NULL, or has no room"));
        }
        // SAFETY: the caller's promise: one byte at least.
        unsafe { text.write(0) };
        // SAFETY: the caller's promise.
        let worker = unsafe { of(worker) }?;
        drop(worker.enter()?);
        let address = address.addr() as u64;
        let found = worker.symbolize(WorkerAddr::new(address));
        let nothing = || {
            let text = format!("no published code is at {address:#x}");
            Failure::new(jitcast_status::NotFound, text)
        };
        let found = found.ok_or_else(nothing)?;
        let found = found.to_string();
        let found = &found[..found.floor_char_boundary(size - 1)];
        let bytes = found
            .bytes()
            .map(|byte| if byte == 0 { b'?' } else { byte });
        for (index, byte) in bytes.chain([0]).enumerate() {
            // SAFETY: the caller's promise: the text is shorter than `size`, by a zero at least.
            unsafe { text.wrapping_add(index).write(byte.cast_signed()) };
        }
        Ok(())
    })
}
