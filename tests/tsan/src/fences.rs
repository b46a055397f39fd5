//! The one fence that ThreadSanitizer has to see: that with which the standard library's `Arc` is dropped.
//!
//! ThreadSanitizer takes no notice of fences. An `Arc` of a standard library that was not built for it gives up its share by a
//! release, and if that was the last one, executes an acquire fence, which orders what is dropped after everybody's last use. Here such a
//! fence acquires the word that the thread gave something up in last: less than a fence orders, so it hides nothing. The linker's
//! `--wrap` leads calls of instrumented code here.

use core::cell::Cell;
use core::ffi::{c_int, c_void};
use core::ptr;

thread_local! {
    static LAST: Cell<*mut u64> = const { Cell::new(ptr::null_mut()) };
}

/// `memory_order_acquire` of ThreadSanitizer's interface.
const ACQUIRE: c_int = 2;

unsafe extern "C" {
    fn __real___tsan_atomic64_fetch_sub(word: *mut u64, value: u64, order: c_int) -> u64;
    fn __real___tsan_atomic_thread_fence(order: c_int);
    fn __tsan_acquire(word: *mut c_void);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap___tsan_atomic64_fetch_sub(
    word: *mut u64,
    value: u64,
    order: c_int,
) -> u64 {
    LAST.set(word);
    // SAFETY: the caller's promise.
    unsafe { __real___tsan_atomic64_fetch_sub(word, value, order) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap___tsan_atomic_thread_fence(order: c_int) {
    // SAFETY: any order will do.
    unsafe { __real___tsan_atomic_thread_fence(order) };
    let last = LAST.replace(ptr::null_mut());
    if order == ACQUIRE && !last.is_null() {
        // SAFETY: nothing is accessed but what ThreadSanitizer knows of the address.
        unsafe { __tsan_acquire(last.cast()) };
    }
}
