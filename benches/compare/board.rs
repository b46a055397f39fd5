//! The board: shared memory on which a publisher and its followers tell each other what happened when.
//!
//! It is the bench's own, so that no contestant's means of telling are part of what is measured. Invariant: each word has one
//! writer; a `seen` that is loaded with acquire comes with the times that belong to it.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use jitcast::runtime::sys::{self, Mapping};
use rustix::thread::futex;

const BYTES: usize = 64 << 10;

/// Words of a cache line.
const LINE: usize = 8;

/// Followers begin here, a line each.
const FOLLOWERS: usize = 16 * LINE;

/// The bare ring begins here, a line for each record.
const RECORDS: usize = BYTES / 2 / 8;

/// Its places.
const PLACES: usize = 64;

#[derive(Debug)]
pub(crate) struct Board {
    mapping: Mapping,
    object: OwnedFd,
}

/// When a follower had what was published, `CLOCK_MONOTONIC`, ns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// It was published, as one follower says.
    pub(crate) published_ns: Option<u64>,
    /// It saw that something is new.
    pub(crate) noticed_ns: u64,
    /// It had called it.
    pub(crate) called_ns: u64,
}

impl Board {
    pub(crate) fn create() -> Self {
        let object = sys::memfd("bench-board", BYTES as u64).unwrap();
        Self::of(object)
    }

    /// Opens another process's.
    pub(crate) fn open(path: &str) -> Self {
        let file = OpenOptions::new().read(true).write(true).open(path);
        Self::of(file.unwrap().into())
    }

    fn of(object: OwnedFd) -> Self {
        let mapping = Mapping::shared(object.as_fd(), BYTES, true).unwrap();
        Self { mapping, object }
    }

    /// By which other processes open it.
    pub(crate) fn path(&self) -> String {
        format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.object.as_raw_fd()
        )
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < BYTES / 8);
        let first = self.mapping.base().cast::<AtomicU64>();
        // SAFETY: the mapping is `BYTES` long, which `index` is inside of.
        let word = unsafe { first.add(index) };
        // SAFETY: it is aligned to a page, lives as long as `self`, and is only used as atomics.
        unsafe { word.as_ref() }
    }

    /// Counts batches; followers sleep on it.
    pub(crate) fn batch(&self) -> &AtomicU64 {
        self.word(0)
    }

    /// How many events there are in this batch.
    pub(crate) fn events(&self) -> &AtomicU64 {
        self.word(LINE)
    }

    /// The head of a bare ring; also what tells of libraries.
    pub(crate) fn head(&self) -> &AtomicU64 {
        self.word(2 * LINE)
    }

    /// The record of event `event` in a bare ring: the event, and a word about it.
    pub(crate) fn record(&self, event: u64) -> [&AtomicU64; 2] {
        let line = RECORDS + event as usize % PLACES * LINE;
        [self.word(line), self.word(line + 1)]
    }

    fn follower(&self, number: usize, word: usize) -> &AtomicU64 {
        self.word(FOLLOWERS + number * LINE + word)
    }

    /// Of a follower: what it saw of event `event`; event 0 is being ready.
    pub(crate) fn tell(&self, number: usize, event: u64, times: Times) {
        self.follower(number, 1)
            .store(times.noticed_ns, Ordering::Relaxed);
        self.follower(number, 2)
            .store(times.called_ns, Ordering::Relaxed);
        self.follower(number, 3)
            .store(times.published_ns.unwrap_or(0), Ordering::Relaxed);
        // Pairs with the acquire in `hear`.
        self.follower(number, 0).store(event, Ordering::Release);
    }

    /// Of the publisher: waits until a follower has told of `event`.
    pub(crate) fn hear(&self, number: usize, event: u64, is_patient: bool) -> Times {
        while self.follower(number, 0).load(Ordering::Acquire) != event {
            if is_patient {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        let published_ns = self.follower(number, 3).load(Ordering::Relaxed);
        Times {
            published_ns: Some(published_ns).filter(|at| *at != 0),
            noticed_ns: self.follower(number, 1).load(Ordering::Relaxed),
            called_ns: self.follower(number, 2).load(Ordering::Relaxed),
        }
    }

    /// Of the publisher: begins a batch of `events` for `followers`, and waits until they are ready.
    pub(crate) fn begin(&self, events: u64, followers: usize) {
        for number in 0..followers {
            self.follower(number, 0).store(u64::MAX, Ordering::Relaxed);
        }
        self.head().store(0, Ordering::Relaxed);
        self.events().store(events, Ordering::Relaxed);
        self.batch().fetch_add(1, Ordering::Release);
        wake(self.batch());
        for number in 0..followers {
            self.hear(number, 0, true);
        }
    }

    /// Of a follower: sleeps until there is a batch after `last`, and says which.
    pub(crate) fn await_batch(&self, last: u64) -> u64 {
        loop {
            let batch = self.batch().load(Ordering::Acquire);
            if batch != last {
                return batch;
            }
            sleep(self.batch(), last);
        }
    }
}

/// The half of a word that a futex is.
fn low_half(word: &AtomicU64) -> &std::sync::atomic::AtomicU32 {
    // SAFETY: the word is eight bytes, aligned; its first four are its low half on this machine, and atomics of both sizes
    // may be used on the same memory here as far as the kernel's own load is concerned.
    unsafe { &*std::ptr::from_ref(word).cast() }
}

/// Wakes everybody who sleeps on `word`.
pub(crate) fn wake(word: &AtomicU64) {
    futex::wake(low_half(word), futex::Flags::empty(), i32::MAX as u32).unwrap();
}

/// Sleeps on `word` while it is `value`, or less long.
pub(crate) fn sleep(word: &AtomicU64, value: u64) {
    // Changed meanwhile, or interrupted: the caller looks again.
    let _ = futex::wait(low_half(word), futex::Flags::empty(), value as u32, None);
}
