//! The page that a fork wipes: the generation that every guard compares with the head of the ring.
//!
//! Invariant: in the process that attached, `alive` is not 0; in any child of it all words are 0, so a guard
//! there takes the slow path before it stores anything.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use jitcast_runtime::gate::Gate;
use jitcast_runtime::sys::{Mapping, MappingAdvice};

/// The process that attached. Hosts in C compare with it too ([`crate::thread_words`]).
pub(crate) const ALIVE: u64 = 1;

/// The same, while threads are inside at different generations.
pub(crate) const MOVING: u64 = 2;

/// What the page held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life([u64; 3]);

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
        page.alive().store(ALIVE, Ordering::Relaxed);
        Ok(page)
    }

    /// What threads enter through.
    #[inline(always)]
    pub(crate) fn gate(&self) -> Gate<'_> {
        Gate::new(self.applied(), self.word(3))
    }

    /// The gate's word: the applied generation, or 0.
    #[inline(always)]
    pub(crate) fn applied(&self) -> &AtomicU64 {
        self.word(0)
    }

    /// [`ALIVE`] or [`MOVING`] in the process that attached.
    #[inline(always)]
    pub(crate) fn alive(&self) -> &AtomicU64 {
        self.word(1)
    }

    /// The generation that the newest cell leads to which tells threads apart: whoever leaves at an older one looks whether
    /// it was the last.
    pub(crate) fn moving(&self) -> &AtomicU64 {
        self.word(4)
    }

    /// What a fork wipes.
    pub(crate) fn save(&self) -> Life {
        Life([1, 2, 4].map(|index| self.word(index).load(Ordering::Relaxed)))
    }

    /// Puts back what a fork wiped, and opens the gate at `applied`.
    pub(crate) fn restore(&self, life: &Life, applied: u64) {
        for (index, value) in [1, 2, 4].into_iter().zip(life.0) {
            self.word(index).store(value, Ordering::Relaxed);
        }
        self.gate().open(applied);
    }

    /// The newest generation applied that put text where other text had been.
    pub(crate) fn reused_text(&self) -> &AtomicU64 {
        self.word(2)
    }

    #[inline(always)]
    fn word(&self, index: usize) -> &AtomicU64 {
        // SAFETY: `index` is 0 to 4, inside the page.
        let word = unsafe { self.mapping.base().cast::<u64>().add(index) };
        // SAFETY: mapped read-write while self lives, aligned, accessed atomically only.
        unsafe { AtomicU64::from_ptr(word.as_ptr()) }
    }
}
