//! The one door to atomics: std's, or loom's under `cfg(loom)`, so that what the models explore is the code
//! that runs.

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, compiler_fence, fence};

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, fence};

/// A store that makes something visible, by what loads it. It releases; only a build for ThreadSanitizer can be told to leave that
/// out (`tsan.rs`), to show that it is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    /// The root of the directory.
    #[cfg_attr(loom, expect(dead_code, reason = "no segment is modelled"))]
    Root,
    /// The head of the ring.
    Head,
    /// The pin of a thread that leaves.
    Pin,
    /// The gate that is opened.
    Gate,
}

impl Release {
    /// How it is stored.
    #[cfg(not(tsan))]
    #[inline(always)]
    pub(crate) const fn ordering(self) -> Ordering {
        Ordering::Release
    }
}
