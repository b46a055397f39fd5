//! What a fork wipes: the gate, and what the threads' guards touch.
//!
//! Invariant: in the process that attached, `alive` is not 0; in any child of it all words are 0, so a guard
//! there takes the slow path before it stores anything.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use jitcast_runtime::gate::{Door, Gate, NEVER};
use jitcast_runtime::mailbox::{
    HEADER_BYTES, MAILBOX_BYTES, MAX_THREADS, THREAD_BYTES, ThreadWord,
};
use jitcast_runtime::sys::{Mapping, MappingAdvice};

use crate::thread_words::ThreadWords;

/// The process that attached. Hosts in C compare with it too ([`crate::thread_words`]).
pub(crate) const ALIVE: u64 = 1;

/// The same, while threads are inside at different generations.
pub(crate) const MOVING: u64 = 2;

/// Where the first thread's words are: the worker's own come before, in the same page.
const THREADS_AT: usize = 64;

/// What a fork wipes, bytes. The worker's mailbox is mapped right behind.
const BYTES: usize = (THREADS_AT + (MAX_THREADS * THREAD_BYTES) as usize).next_multiple_of(4096);

/// From a thread's words to its pin, bytes: there are as many of both, at the same distances.
pub(crate) const TO_PIN_BYTES: usize =
    BYTES + HEADER_BYTES as usize + ThreadWord::Pin as usize * 8 - THREADS_AT;

const _: () = assert!(size_of::<ThreadWords>() <= THREAD_BYTES as usize);

/// What the words of the worker and of one thread held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life {
    worker: [u64; 3],
    thread: crate::thread_words::Saved,
}

/// The words.
#[derive(Debug)]
pub(crate) struct LifePage {
    mapping: Mapping,
}

impl LifePage {
    /// The words, and the place where the mailbox is to be mapped.
    pub(crate) fn new() -> io::Result<(Self, Mapping)> {
        let mut mapping = Mapping::anonymous(BYTES + MAILBOX_BYTES as usize)?;
        let mailbox = mapping.split_off(BYTES);
        mapping.advise(MappingAdvice::LinuxWipeOnFork)?;
        let page = Self { mapping };
        page.alive().store(ALIVE, Ordering::Relaxed);
        page.never().store(NEVER, Ordering::Relaxed);
        Ok((page, mailbox))
    }

    /// The words of the thread of record `index`, for that thread. Others have [`LifePage::for_threads`].
    pub(crate) fn thread(&self, index: u32) -> core::ptr::NonNull<ThreadWords> {
        let at = THREADS_AT + (index.min(MAX_THREADS - 1) * THREAD_BYTES) as usize;
        // SAFETY: inside the mapping, whose length counts so many threads.
        unsafe { self.mapping.base().add(at) }.cast()
    }

    /// Whose words these are, which are of this worker.
    pub(crate) fn index_of(&self, words: &ThreadWords) -> u32 {
        let first = self.mapping.base().addr().get() + THREADS_AT;
        let distance = core::ptr::from_ref(words).addr() - first;
        (distance / THREAD_BYTES as usize) as u32
    }

    /// Calls `each` with the words that other threads than its own may load and store, of the first `count` threads.
    pub(crate) fn for_threads(&self, count: u64, mut each: impl FnMut(Door<'_>, &AtomicU64)) {
        for index in 0..count.min(MAX_THREADS.into()) as u32 {
            let words = self.thread(index).as_ptr();
            // SAFETY: mapped read-write while self lives, aligned; this and the two that follow are atomics, which alone of what
            // lies there are referred to.
            let generation = unsafe { &(*words).generation };
            // SAFETY: as above.
            let head = unsafe { &(*words).head };
            // SAFETY: as above.
            let alive = unsafe { &(*words).alive };
            each(Door::new(generation, head), alive);
        }
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

    /// Calls `each` with the index and the mark of each of the first `count` threads that has ended and may have guards.
    pub(crate) fn for_ended(&self, count: u64, each: impl Fn(u32, &AtomicU64)) {
        for index in 0..count.min(MAX_THREADS.into()) as u32 {
            // SAFETY: as in `for_threads`.
            let ended = unsafe { &(*self.thread(index).as_ptr()).ended };
            // Acquire: pairs with the release in `end_thread`.
            if ended.load(Ordering::Acquire) == 1 {
                each(index, ended);
            }
        }
    }

    /// How many there are of them.
    pub(crate) fn ended(&self) -> &AtomicU64 {
        self.word(6)
    }

    /// What a fork wipes that the thread of record `thread`, which forks, goes on with.
    pub(crate) fn save(&self, thread: u32) -> Life {
        Life {
            worker: [1, 2, 4].map(|index| self.word(index).load(Ordering::Relaxed)),
            // SAFETY: the calling thread's.
            thread: unsafe { self.thread(thread).as_ref() }.save(),
        }
    }

    /// Puts it back. The gate stays closed.
    pub(crate) fn restore(&self, life: &Life, thread: u32) {
        for (index, value) in [1, 2, 4].into_iter().zip(life.worker) {
            self.word(index).store(value, Ordering::Relaxed);
        }
        self.never().store(NEVER, Ordering::Relaxed);
        // SAFETY: the calling thread's.
        unsafe { self.thread(thread).as_ref() }.restore(life.thread, self.never());
    }

    /// What doors are shut with.
    pub(crate) fn never(&self) -> &AtomicU64 {
        self.word(5)
    }

    /// The newest generation applied that put text where other text had been.
    pub(crate) fn reused_text(&self) -> &AtomicU64 {
        self.word(2)
    }

    #[inline(always)]
    fn word(&self, index: usize) -> &AtomicU64 {
        // SAFETY: `index` is 0 to 6, before the threads' words.
        let word = unsafe { self.mapping.base().cast::<u64>().add(index) };
        // SAFETY: mapped read-write while self lives, aligned, accessed atomically only.
        unsafe { AtomicU64::from_ptr(word.as_ptr()) }
    }
}
