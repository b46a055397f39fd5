//! The ring: a lossy broadcast from one writer to any number of readers, which write nothing.
//!
//! Record number g is publication g, so the head *is* the generation. Invariant: whoever reads a record
//! sees it whole, or learns that the writer has lapped it. The scheme is Aeron's broadcast buffer: the
//! writer announces a record (`intent`) before it overwrites the place, and readers look at the
//! announcement after they copied.

use crate::atomic::{AtomicU64, Ordering, Release, fence};

/// Words of a record: one cache line.
pub const RECORD_WORDS: usize = 8;

/// A record as it lies in the ring. Word 0 is its generation.
pub type Record = [u64; RECORD_WORDS];

/// The ring over its words, wherever these lie.
#[derive(Clone, Copy, Debug)]
pub struct Ring<'a> {
    head: &'a AtomicU64,
    intent: &'a AtomicU64,
    words: &'a [AtomicU64],
}

impl<'a> Ring<'a> {
    /// The ring with `words.len() / 8` places, which must be a power of two.
    ///
    /// # Panics
    /// If the number of places is not a power of two: it is a constant of the format.
    #[inline]
    pub fn new(head: &'a AtomicU64, intent: &'a AtomicU64, words: &'a [AtomicU64]) -> Self {
        let places = words.len() / RECORD_WORDS;
        assert!(places.is_power_of_two() && words.len().is_multiple_of(RECORD_WORDS));
        Self {
            head,
            intent,
            words,
        }
    }

    /// How many records the ring holds.
    #[inline]
    pub fn places(&self) -> u64 {
        (self.words.len() / RECORD_WORDS) as u64
    }

    /// The newest generation. Acquire: pairs with the release store in [`Ring::publish`].
    pub fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    /// The newest generation whose record was begun. For the writer, and whoever takes its place.
    pub fn announced(&self) -> u64 {
        self.intent.load(Ordering::Relaxed)
    }

    /// Publishes `record`, whose word 0 is the generation after the head. The release store of the head is
    /// the moment of publication. For the single writer only.
    pub fn publish(&self, record: &Record) {
        let generation = record[0];
        self.intent.store(generation, Ordering::Relaxed);
        // Pairs with the acquire fence in `read`: who copied a word stored below sees the announcement.
        fence(Ordering::Release);
        for (word, value) in self.place(generation).iter().zip(record) {
            word.store(*value, Ordering::Relaxed);
        }
        self.head.store(generation, Release::Head.ordering());
    }

    /// Record `generation`, which the caller has seen published (`generation <= self.head()`), or `None` if
    /// the writer has lapped it.
    #[inline]
    pub fn read(&self, generation: u64) -> Option<Record> {
        let mut record = [0; RECORD_WORDS];
        for (copy, word) in record.iter_mut().zip(self.place(generation)) {
            *copy = word.load(Ordering::Relaxed);
        }
        // Pairs with the release fence in `publish`.
        fence(Ordering::Acquire);
        let announced = self.intent.load(Ordering::Relaxed);
        let kept = announced.wrapping_sub(generation) < self.places();
        (kept && record[0] == generation).then_some(record)
    }

    /// Where record `generation` lies in this process: for who has it fetched.
    #[inline]
    pub fn address(&self, generation: u64) -> usize {
        core::ptr::from_ref(self.place(generation)).addr()
    }

    #[inline]
    fn place(&self, generation: u64) -> &'a [AtomicU64] {
        let index = (generation & (self.places() - 1)) as usize;
        &self.words[index * RECORD_WORDS..(index + 1) * RECORD_WORDS]
    }
}
