//! The page that a fork wipes: the generation that every guard compares with the head of the ring.
//!
//! Invariant: in the process that attached, `alive` is 1; in any child of it both words are 0, so a guard
//! there takes the slow path before it stores anything.

use std::io;
use std::sync::atomic::AtomicU64;

use jitcast_runtime::sys::{Mapping, MappingAdvice};

/// The page.
#[derive(Debug)]
pub(crate) struct LifePage {
    mapping: Mapping,
}

impl LifePage {
    pub(crate) fn new() -> io::Result<Self> {
        let mapping = Mapping::anonymous(4096)?;
        mapping.advise(MappingAdvice::LinuxWipeOnFork)?;
        let page = Self { mapping };
        page.alive().store(1, std::sync::atomic::Ordering::Relaxed);
        Ok(page)
    }

    /// The applied generation; 0 while one is being applied, and in a forked child.
    #[inline(always)]
    pub(crate) fn applied(&self) -> &AtomicU64 {
        self.word(0)
    }

    /// 1 in the process that attached.
    #[inline(always)]
    pub(crate) fn alive(&self) -> &AtomicU64 {
        self.word(1)
    }

    /// The newest generation applied that put text where other text had been.
    pub(crate) fn reused_text(&self) -> &AtomicU64 {
        self.word(2)
    }

    #[inline(always)]
    fn word(&self, index: usize) -> &AtomicU64 {
        // SAFETY: `index` is 0 to 2, inside the page.
        let word = unsafe { self.mapping.base().cast::<u64>().add(index) };
        // SAFETY: mapped read-write while self lives, aligned, accessed atomically only.
        unsafe { AtomicU64::from_ptr(word.as_ptr()) }
    }
}
