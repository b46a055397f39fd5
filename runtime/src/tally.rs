//! What a worker leaves in its mailbox for people: what it has counted, and what it crashed in.
//!
//! Invariant: nobody acts on any of it. It is the worker's own word, so whoever reads it takes whatever it says for hostile: numbers
//! are added up with saturation, texts are cut and made printable. A worker pays a relaxed store for it where it is slow already.

use core::sync::atomic::AtomicU64;
use std::io;
use std::os::fd::AsFd;

use crate::atomic::{Ordering, fence};
use crate::mailbox::{HEADER_BYTES, MAILBOX_BYTES, MAILBOX_MAGIC, MAX_THREADS, Mailbox, THREAD_BYTES, ThreadWord, Word};

/// How many buckets a histogram of times has: the first is for less than [`bucket_limit_ns`]`(0)`, the last for all that is more.
pub const BUCKETS: usize = 24;

/// The longest name that a crash keeps, bytes.
pub const CRASH_NAME_BYTES: usize = 128;

/// The header's words that are counters.
const ENTERED: usize = 64;
const APPLIED_NS: usize = 65;
const LATENCY: usize = 66;

/// The header's words that are the latest crash.
const CRASHES: usize = 96;
const TURN: usize = 97;
const SIGNAL: usize = 98;
const GENERATION: usize = 99;
const INSIDE: usize = 100;
const PLACE: usize = 101;
const DISTANCE: usize = 102;
const SECONDS: usize = 103;
const SYMBOL: usize = 104;
const UNIT: usize = SYMBOL + CRASH_NAME_BYTES / 8;
const END: usize = UNIT + CRASH_NAME_BYTES / 8;

const _: () = assert!(LATENCY + BUCKETS <= CRASHES && END <= HEADER_BYTES as usize / 8 && (Word::Mapped as usize) < ENTERED);

/// What bucket `index` but the last is for: times of less, ns.
pub const fn bucket_limit_ns(index: usize) -> u64 {
    1 << (10 + index)
}

/// How many guards are entered before a thread says so.
pub const ENTERED_AT_ONCE: u64 = 1 << 16;

/// What a worker has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Outermost guards that were entered, in steps of [`ENTERED_AT_ONCE`] for each thread.
    pub entered: u64,
    /// From publications to when they were applied, all together, ns.
    pub applied_ns: u64,
    /// How many of them took how long.
    pub latency: [u64; BUCKETS],
}

impl Tally {
    fn read(word: impl Fn(usize) -> u64) -> Self {
        Self {
            entered: word(ENTERED),
            applied_ns: word(APPLIED_NS),
            latency: core::array::from_fn(|index| word(LATENCY + index)),
        }
    }

    /// Adds what another worker has counted.
    pub fn add(&mut self, other: &Self) {
        self.entered = self.entered.saturating_add(other.entered);
        self.applied_ns = self.applied_ns.saturating_add(other.applied_ns);
        for (bucket, more) in self.latency.iter_mut().zip(other.latency) {
            *bucket = bucket.saturating_add(more);
        }
    }
}

/// What a worker crashed in. The names may be any bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crash {
    /// The signal.
    pub signal: i32,
    /// The thread, in the worker's own pid namespace.
    pub thread: u32,
    /// The generation that published the unit; 0: unknown.
    pub generation: u64,
    /// The generation that the thread was inside at; 0: unknown.
    pub inside: u64,
    /// Where it was: an offset in the window.
    pub place: u32,
    /// The unit's number.
    pub unit_number: u32,
    /// How far into the function, else into the unit's text, bytes.
    pub distance: u64,
    /// When: seconds since 1970.
    pub seconds: u64,
    /// The function, cut and filled up with zeros.
    pub symbol: [u8; CRASH_NAME_BYTES],
    /// The unit, likewise.
    pub unit: [u8; CRASH_NAME_BYTES],
}

impl Crash {
    /// One of which nothing is known.
    pub const NONE: Self = Self {
        signal: 0,
        thread: 0,
        generation: 0,
        inside: 0,
        place: 0,
        unit_number: 0,
        distance: 0,
        seconds: 0,
        symbol: [0; CRASH_NAME_BYTES],
        unit: [0; CRASH_NAME_BYTES],
    };

    fn read(word: impl Fn(usize) -> u64) -> Self {
        let mut crash = Self {
            signal: word(SIGNAL) as u32 as i32,
            thread: (word(SIGNAL) >> 32) as u32,
            generation: word(GENERATION),
            inside: word(INSIDE),
            place: word(PLACE) as u32,
            unit_number: (word(PLACE) >> 32) as u32,
            distance: word(DISTANCE),
            seconds: word(SECONDS),
            ..Self::NONE
        };
        for (first, name) in [(SYMBOL, &mut crash.symbol), (UNIT, &mut crash.unit)] {
            for (index, bytes) in name.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                *bytes = word(first + index).to_le_bytes();
            }
        }
        crash
    }
}

/// A name of a [`Crash`], printable.
pub fn crash_name(bytes: &[u8; CRASH_NAME_BYTES]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    let text = String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]);
    text.chars().map(|char| if char.is_control() { char::REPLACEMENT_CHARACTER } else { char }).collect()
}

impl Mailbox {
    /// Counts guards: a thread has entered [`ENTERED_AT_ONCE`] more.
    pub fn count_entered(&self) {
        self.header(ENTERED).fetch_add(ENTERED_AT_ONCE, Ordering::Relaxed);
    }

    /// Counts `count` publications that were applied `after_ns` after they had been made.
    pub fn count_applied(&self, after_ns: u64, count: u64) {
        let bits = u64::BITS - after_ns.leading_zeros();
        let bucket = (bits.saturating_sub(10) as usize).min(BUCKETS - 1);
        self.header(LATENCY + bucket).fetch_add(count, Ordering::Relaxed);
        self.header(APPLIED_NS).fetch_add(after_ns.wrapping_mul(count), Ordering::Relaxed);
    }

    /// What was counted.
    pub fn tally(&self) -> Tally {
        Tally::read(|index| self.header(index).load(Ordering::Relaxed))
    }

    /// Begins to count anew: for a mailbox that is a forked child's, whose parent's it was not.
    pub fn clear_tally(&self) {
        (ENTERED..END).for_each(|index| self.header(index).store(0, Ordering::Relaxed));
    }

    /// Leaves word of a crash. For signal handlers: it neither allocates nor locks. The first of two threads that crash at once
    /// is kept.
    pub fn leave_crash(&self, crash: &Crash) {
        let turn = self.header(TURN);
        let before = turn.load(Ordering::Relaxed);
        let is_mine = before.is_multiple_of(2)
            && turn.compare_exchange(before, before | 1, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if is_mine {
            let store = |index: usize, value: u64| self.header(index).store(value, Ordering::Relaxed);
            fence(Ordering::Release);
            store(SIGNAL, u64::from(crash.signal.cast_unsigned()) | u64::from(crash.thread) << 32);
            store(GENERATION, crash.generation);
            store(INSIDE, crash.inside);
            store(PLACE, u64::from(crash.place) | u64::from(crash.unit_number) << 32);
            store(DISTANCE, crash.distance);
            store(SECONDS, crash.seconds);
            for (first, name) in [(SYMBOL, &crash.symbol), (UNIT, &crash.unit)] {
                let words = name.as_chunks::<8>().0.iter();
                words.enumerate().for_each(|(index, bytes)| store(first + index, u64::from_le_bytes(*bytes)));
            }
            turn.store(before.wrapping_add(2), Ordering::Release);
        }
        self.header(CRASHES).fetch_add(1, Ordering::Release);
    }

    /// How often the worker has crashed in published code, and the latest crash, once it is whole. A worker whose host goes on
    /// after a crash has more than one.
    pub fn crashes(&self) -> (u64, Option<Crash>) {
        crashes(|index| self.header(index).load(Ordering::Acquire))
    }

    fn header(&self, index: usize) -> &AtomicU64 {
        &self.words()[index]
    }
}

fn crashes(word: impl Fn(usize) -> u64) -> (u64, Option<Crash>) {
    let (count, turn) = (word(CRASHES), word(TURN));
    let crash = Crash::read(&word);
    let is_whole = turn.is_multiple_of(2) && turn > 0 && word(TURN) == turn;
    (count, (count > 0 && is_whole).then_some(crash))
}

/// A copy of a mailbox, for who looks at a worker and maps nothing of it.
#[derive(Debug)]
pub struct Snapshot(Vec<u64>);

impl Snapshot {
    /// Copies the mailbox behind `fd`; `None`: it is none.
    ///
    /// # Errors
    /// As pread(2).
    pub fn read(fd: impl AsFd) -> io::Result<Option<Self>> {
        let mut bytes = vec![0; MAILBOX_BYTES as usize];
        let mut filled = 0;
        while filled < bytes.len() {
            match rustix::io::pread(&fd, &mut bytes[filled..], filled as u64)? {
                0 => return Ok(None),
                count => filled += count,
            }
        }
        let words = bytes.as_chunks::<8>().0.iter();
        let words: Vec<_> = words.map(|bytes| u64::from_le_bytes(*bytes)).collect();
        Ok((words[Word::Magic as usize] == MAILBOX_MAGIC).then_some(Self(words)))
    }

    /// A word of the header.
    pub fn word(&self, word: Word) -> u64 {
        self.0[word as usize]
    }

    /// The oldest generation that a thread was inside at.
    pub fn oldest_pin(&self) -> Option<u64> {
        let threads = self.word(Word::Threads).min(MAX_THREADS.into()) as usize;
        let pin = |thread| (HEADER_BYTES as usize + thread * THREAD_BYTES as usize) / 8 + ThreadWord::Pin as usize;
        let pins = (0..threads).map(|thread| self.0[pin(thread)]);
        pins.filter(|pin| *pin != 0).min()
    }

    /// What was counted.
    pub fn tally(&self) -> Tally {
        Tally::read(|index| self.0[index])
    }

    /// As [`Mailbox::crashes`].
    pub fn crashes(&self) -> (u64, Option<Crash>) {
        crashes(|index| self.0[index])
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::{self, Mapping};

    fn mailbox() -> (Mailbox, std::os::fd::OwnedFd) {
        let fd = sys::memfd("tally", MAILBOX_BYTES.into()).unwrap();
        let mapping = Mapping::shared(fd.as_fd(), MAILBOX_BYTES as usize, true).unwrap();
        let mailbox = Mailbox::new(mapping).unwrap();
        mailbox.word(Word::Magic).store(MAILBOX_MAGIC, Ordering::Relaxed);
        (mailbox, fd)
    }

    #[test]
    fn times_fall_into_the_bucket_whose_limit_they_are_below() {
        let (mailbox, _) = mailbox();
        for (ns, bucket) in [(0, 0), (1023, 0), (1024, 1), (2047, 1), (2048, 2), (u64::MAX, BUCKETS - 1)] {
            let before = mailbox.tally().latency[bucket];
            mailbox.count_applied(ns, 1);
            mailbox.count_applied(ns, 16);
            assert_eq!(mailbox.tally().latency[bucket], before + 17, "{ns}");
            assert!(bucket == BUCKETS - 1 || ns < bucket_limit_ns(bucket), "{ns}");
        }
    }

    #[test]
    fn a_crash_is_found_as_it_was_left_and_by_who_looks_from_outside() {
        let (mailbox, fd) = mailbox();
        assert_eq!(mailbox.crashes(), (0, None));
        let mut crash = Crash { signal: 11, thread: 7, generation: 4, inside: 5, place: 64, distance: 3, ..Crash::NONE };
        crash.symbol[..5].copy_from_slice(b"score");
        crash.unit = [b'u'; CRASH_NAME_BYTES];
        mailbox.leave_crash(&crash);
        assert_eq!(mailbox.crashes(), (1, Some(crash)));
        let seen = Snapshot::read(&fd).unwrap().unwrap();
        assert_eq!(seen.crashes(), (1, Some(crash)));
        assert_eq!((crash_name(&crash.symbol), crash_name(&crash.unit).len()), ("score".to_owned(), CRASH_NAME_BYTES));
        // Somebody who died while he wrote: what is there is not whole.
        mailbox.header(TURN).store(3, Ordering::Relaxed);
        mailbox.leave_crash(&Crash::NONE);
        assert_eq!(mailbox.crashes(), (2, None));
    }

    #[test]
    fn hostile_names_are_printable() {
        let mut name = [0; CRASH_NAME_BYTES];
        name[..6].copy_from_slice(b"a\x1b[m\xff\n");
        assert_eq!(crash_name(&name), "a\u{fffd}[m\u{fffd}\u{fffd}");
    }
}
