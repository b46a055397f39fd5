//! A worker's mailbox: the pins of its threads and what it tells about itself. Shared by that worker and
//! the compiler process only.
//!
//! A pin is the generation that a thread inside a guard runs at, or 0. Invariant of reclamation: memory
//! retired by generation g is reused only if, after a barrier on every processor that runs a worker, no
//! pin is older than g. A thread stores its pin first and looks at the head of the ring second; the
//! barrier makes sure that either the compiler sees the pin, or the thread sees the head that the compiler had
//! published.

use crate::addr::SegmentOffset;
use crate::atomic::Ordering;
use crate::geometry::Region;
use crate::memory::{Corrupt, View};
use crate::pin;
use crate::sys::Mapping;

/// The first word of every mailbox.
pub const MAILBOX_MAGIC: u64 = u64::from_le_bytes(*b"JCMAIL\0\x01");

/// The most threads of a worker that can be inside at once.
pub const MAX_THREADS: u32 = 1024;

/// Distance between thread records, bytes: a cache line each.
pub const THREAD_BYTES: u32 = 64;

/// Bytes before the first thread record.
pub const HEADER_BYTES: u32 = 4096;

/// The size of a mailbox, bytes.
pub const MAILBOX_BYTES: u32 = HEADER_BYTES + MAX_THREADS * THREAD_BYTES;

/// The pin of a thread that is attaching: older than every generation.
pub const PIN_EVERYTHING: u64 = 1;

/// The first generation is 2, so that 0 can mean "not inside" and 1 "everything".
pub const FIRST_GENERATION: u64 = 2;

/// A word of the mailbox's header, by its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// [`MAILBOX_MAGIC`].
    Magic = 0,
    /// How many thread records have ever been used.
    Threads = 1,
    /// 1: the worker's guards use a fence, since it cannot be reached by membarrier.
    Fenced = 2,
    /// The generation that the worker has applied. No thread enters at an older one any more.
    Applied = 3,
    /// The base of its window (for people: the compiler never uses it).
    Base = 4,
    /// Publications applied.
    Updates = 5,
    /// Times that it read the directory instead of the ring.
    Resyncs = 6,
    /// Host symbols that it lacks.
    Missing = 7,
    /// 1: it has detached; no thread of it will enter again.
    Detached = 8,
    /// How many pins were handed over to new threads.
    HandedOver = 9,
    /// Units that failed in it.
    Failed = 10,
    /// The object that its pins hold ([`Header::object`](crate::header::Header)).
    Object = 11,
    /// Its seat among the workers, and 1; 0: it has none yet. The compiler process gives each the lowest that is free, before
    /// it lets the worker in: audiences of canaries that are a number of workers are made of the lowest seats.
    Seat = 12,
    /// The object that it has mapped: what its pins hold, but said only once it has gone on to it.
    Mapped = 13,
    /// What the compiler process wants shown to debuggers and profilers ([`debug::Wanted`](crate::debug::Wanted)); 0: it has said
    /// nothing.
    Wanted = 14,
}

/// A word of a thread's record, by its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadWord {
    /// The pin.
    Pin = 0,
    /// The thread's id in its own pid namespace; 0: the record is free.
    Tid = 1,
}

/// A mailbox, mapped.
#[derive(Debug)]
pub struct Mailbox {
    // Declared, and so dropped, before the mapping that it looks at.
    view: View,
    mapping: Mapping,
}

/// The offsets that a mailbox's view spans. It is no part of the window; they are distances in the mailbox.
pub const MAILBOX_SPAN: Region = Region { start: 0, len_bytes: MAILBOX_BYTES };

impl Mailbox {
    /// The mailbox that `mapping`, a writable one, maps.
    ///
    /// # Errors
    /// [`Corrupt`] if the mapping is shorter than a mailbox.
    pub fn new(mapping: Mapping) -> Result<Self, Corrupt> {
        if mapping.len_bytes() < MAILBOX_BYTES as usize {
            return Err(Corrupt {
                what: "mailbox shorter than its format",
                at: SegmentOffset::NONE,
            });
        }
        // SAFETY: the mapping is long enough (checked above), page-aligned, and lives as long as the view;
        // the memory is accessed atomically only.
        let view = unsafe { View::new(mapping.base(), MAILBOX_SPAN, MAILBOX_SPAN.end()) };
        Ok(Self {
            view,
            mapping,
        })
    }

    /// Puts the mailbox behind `fd`, which is as long, in this one's place, at the same addresses.
    ///
    /// # Errors
    /// As mmap(2); then it is what it was.
    ///
    /// # Safety
    /// No other thread of this process uses it.
    pub unsafe fn replace(&self, fd: std::os::fd::BorrowedFd<'_>) -> std::io::Result<()> {
        // SAFETY: words that are accessed atomically; whoever calls knows that they change.
        unsafe { self.mapping.replace(fd) }
    }

    /// Lets go of it: from now on these words are this process's own.
    ///
    /// # Errors
    /// As mmap(2); then it is what it was.
    ///
    /// # Safety
    /// No other thread of this process uses it.
    pub unsafe fn forget(&self) -> std::io::Result<()> {
        // SAFETY: words that are accessed atomically; whoever calls knows that they change.
        unsafe { self.mapping.forget() }
    }

    /// A word of the header.
    #[inline]
    pub fn word(&self, word: Word) -> &core::sync::atomic::AtomicU64 {
        &self.words()[word as usize]
    }

    /// A word of thread record `index`, which is below [`MAX_THREADS`].
    #[inline]
    pub fn thread(&self, index: u32, word: ThreadWord) -> &core::sync::atomic::AtomicU64 {
        let at = (HEADER_BYTES + index.min(MAX_THREADS - 1) * THREAD_BYTES) as usize / 8;
        &self.words()[at + word as usize]
    }

    /// The worker's seat; `None`: it has none (yet), or what stands there is none.
    #[inline]
    pub fn seat(&self) -> Option<u32> {
        let word = self.word(Word::Seat).load(Ordering::Relaxed);
        u32::try_from(word).ok()?.checked_sub(1)
    }

    /// Gives the worker a seat.
    pub fn set_seat(&self, seat: u32) {
        self.word(Word::Seat).store(u64::from(seat) + 1, Ordering::Relaxed);
    }

    /// The oldest pin, or `None` if no thread is inside. Whatever garbage the worker wrote, this is a number
    /// or none, after at most a few times [`MAX_THREADS`] loads.
    pub fn oldest_pin(&self) -> Option<u64> {
        // A worker that hands over all the time holds everything back: itself alone pays with memory.
        const TRIES: u32 = 8;
        let oldest = pin::settled(|| self.handed_over(), TRIES, || self.pins(None).min());
        oldest.unwrap_or(Some(PIN_EVERYTHING))
    }

    /// How many pins were handed over to threads of this mailbox. Acquire: pairs with the release in [`pin::hand_over`].
    pub fn handed_over(&self) -> u64 {
        self.word(Word::HandedOver).load(Ordering::Acquire)
    }

    /// The generations that threads are inside at, ascending, each once.
    pub fn generations(&self) -> Vec<u64> {
        self.distinct(None)
    }

    /// The same, but for the thread of record `thread`.
    pub fn others(&self, thread: u32) -> Vec<u64> {
        self.distinct(Some(thread))
    }

    fn distinct(&self, except: Option<u32>) -> Vec<u64> {
        let look = || {
            let mut pins: Vec<u64> = self.pins(except).collect();
            pins.sort_unstable();
            pins.dedup();
            pins
        };
        let looked = pin::settled(|| self.handed_over(), u32::MAX, look);
        looked.unwrap_or_else(|| vec![PIN_EVERYTHING])
    }

    /// The threads that are inside: their records, pins, and ids in the worker's pid namespace. As the worker says.
    pub fn inside(&self) -> impl Iterator<Item = (u32, u64, u64)> {
        let threads = self.word(Word::Threads).load(Ordering::Acquire).min(MAX_THREADS.into()) as u32;
        let record = |index| {
            let word = |word| self.thread(index, word).load(Ordering::Relaxed);
            (index, word(ThreadWord::Pin), word(ThreadWord::Tid))
        };
        (0..threads).map(record).filter(|(_, pin, _)| *pin != 0)
    }

    /// The pins of threads that are inside, but for that of record `except`.
    fn pins(&self, except: Option<u32>) -> impl Iterator<Item = u64> {
        // The count is read after the barrier, like the pins: a thread raises it before its first pin.
        let threads = self.word(Word::Threads).load(Ordering::Acquire).min(MAX_THREADS.into()) as u32;
        (0..threads)
            .filter(move |index| Some(*index) != except)
            .map(|index| self.thread(index, ThreadWord::Pin).load(Ordering::Acquire))
            .filter(|pin| *pin != 0)
    }

    /// Takes a free thread record for a thread that will begin inside, at `generation`: its index, or `None` if all
    /// are taken. By a thread that is inside ([`pin::hand_over`]).
    pub fn claim_for_another(&self, generation: u64) -> Option<u32> {
        // No thread has this id; the new one puts its own there.
        const UNKNOWN: u64 = u64::MAX;
        let index = self.claim(UNKNOWN)?;
        let pin = self.thread(index, ThreadWord::Pin);
        pin::hand_over(pin, generation, self.word(Word::HandedOver));
        Some(index)
    }

    /// Takes a free thread record for thread `tid` (not 0): its index, or `None` if all are taken.
    pub fn claim(&self, tid: u64) -> Option<u32> {
        let index = (0..MAX_THREADS).find(|index| {
            let word = self.thread(*index, ThreadWord::Tid);
            word.compare_exchange(0, tid, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })?;
        self.word(Word::Threads).fetch_max(u64::from(index) + 1, Ordering::AcqRel);
        Some(index)
    }

    /// Gives thread record `index` back.
    pub fn release(&self, index: u32) {
        self.thread(index, ThreadWord::Pin).store(0, Ordering::Release);
        self.thread(index, ThreadWord::Tid).store(0, Ordering::Release);
    }

    #[inline]
    pub(crate) fn words(&self) -> &[core::sync::atomic::AtomicU64] {
        self.view
            .words(SegmentOffset::new(0), MAILBOX_BYTES as usize / 8)
            .expect("checked by `new`, and a view never shrinks")
    }
}
