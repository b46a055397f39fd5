//! The C ABI of the worker: what a module of nginx, an extension of PostgreSQL or ctypes needs.
//!
//! The header is `include/jitcast.h`, made from this crate and from the words of a thread in `jitcast-worker`. A worker, a
//! handle and a thread's record are pointers there; what a caller fills begins with its own size, so that it can grow;
//! every function that can fail returns a [`jitcast_status`](status::jitcast_status), and [`jitcast_last_error`](status::jitcast_last_error) has the text.
//!
//! Invariants: no panic crosses the boundary. What can be seen to be wrong is refused: null pointers, sizes, text that is no UTF-8, a guard
//! left that was not entered. No protocol is written twice but the fast path of guards (`inline.h`), on the words of `ThreadWords`.

#![allow(
    non_camel_case_types,
    reason = "these are the names of C, which cbindgen takes over"
)]

pub mod attach;
pub mod function;
pub mod guard;
pub mod log;
pub mod options;
pub mod request;
pub mod status;
pub mod symbolize;
pub mod watch;

/// The version of the ABI, which is the number in the library's SONAME: raised when something that was there changes.
pub const JITCAST_ABI_VERSION: u32 = 1;

/// The version of the ABI of the library that runs: JITCAST_ABI_VERSION of the header, if the two belong together.
#[unsafe(no_mangle)]
pub extern "C" fn jitcast_abi_version() -> u32 {
    JITCAST_ABI_VERSION
}
