//! What becomes of the memory that a server frees.
//!
//! Linking a large unit takes tens of megabytes for as many milliseconds. glibc's malloc gives such memory back to the kernel at
//! once and asks for it anew, page by page, for the next unit: with 60,000 functions that is a third of the whole time.

/// How much freed memory each of malloc's arenas keeps, bytes; there is one for each thread that publishes while others do.
const KEPT_BYTES: i32 = 64 << 20;

/// The longest piece that does not get a mapping of its own, bytes: the most that glibc's malloc takes.
const UNMAPPED_BYTES: i32 = 32 << 20;

/// Has malloc keep what is freed. To be called while there is one thread.
pub(super) fn keep_freed() {
    for (parameter, bytes) in [
        (libc::M_TRIM_THRESHOLD, KEPT_BYTES),
        (libc::M_MMAP_THRESHOLD, UNMAPPED_BYTES),
    ] {
        // SAFETY: both are parameters of mallopt(3), which reads nothing else, and does nothing where it takes no such
        // value. It is not to race with itself or with malloc: no other thread has been started yet.
        unsafe { libc::mallopt(parameter, bytes) };
    }
}
