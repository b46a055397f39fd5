//! Threads' records: what the library knows of a thread in a worker.
//!
//! Invariant: a thread's record is there until the thread ends, and its words are no other thread's before it is gone, whatever it leaves in
//! thread-local variables that end later.

use core::ptr::NonNull;
use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use jitcast_runtime::mailbox::{MAX_THREADS, ThreadWord};

use crate::error::EnterError;
use crate::thread_words::ThreadWords;
use crate::worker::{Inner, Worker};

/// What the library knows of a thread in a worker, besides its words and its record in the mailbox.
#[derive(Debug)]
pub(crate) struct ThreadRecord {
    /// The thread's words, in the worker.
    words: NonNull<ThreadWords>,
    /// The worker, and whose record this is.
    pub(crate) owner: Weak<Inner>,
    pub(crate) index: u32,
    /// Whether it has been let in by [`Inner::admit`].
    pub(crate) admitted: Cell<bool>,
    /// Whether it applies something, and so holds something like a guard, whatever its pin says.
    pub(crate) applies: Cell<bool>,
    /// How many [`Thread`](crate::Thread)s there are of it.
    pub(crate) handles: Cell<u32>,
    /// The generation up to which this thread has serialised, where membarrier does not do it for all.
    pub(crate) serialised: Cell<u64>,
    /// How often this thread left while threads were inside at different generations.
    pub(crate) leaves: Cell<u32>,
    /// How often it entered, where the fast path does not count.
    pub(crate) slow_polls: Cell<u32>,
    /// The worker of a thread that published code started, which holds no guard that would keep it.
    keep: RefCell<Option<Arc<Inner>>>,
}

thread_local! {
    /// This thread's records, one for each worker that it entered. Boxed, since the threads' words point at them.
    static RECORDS: RefCell<Records> = const { RefCell::new(Records(Vec::new())) };
    /// The worker entered last, and this thread's words in it.
    pub(crate) static LAST: Cell<Last> = const { Cell::new(Last::NONE) };
}

/// A worker and the calling thread's words in it. As long as there is a record of it, no other worker has that one's address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Last {
    pub(crate) worker: *const Inner,
    pub(crate) words: *const ThreadWords,
}

impl Last {
    const NONE: Self = Self {
        worker: core::ptr::null(),
        words: core::ptr::null(),
    };

    fn of(record: &ThreadRecord) -> Self {
        Self {
            worker: record.owner.as_ptr(),
            words: record.words.as_ptr(),
        }
    }
}

#[derive(Debug)]
struct Records(
    #[expect(clippy::vec_box, reason = "words point at the records")] Vec<Box<ThreadRecord>>,
);

impl Drop for Records {
    fn drop(&mut self) {
        LAST.set(Last::NONE);
        for record in self.0.drain(..) {
            let worker = record.owner.upgrade();
            if let Some(worker) = worker.filter(|worker| worker.is_attached_here()) {
                worker.find_pin(None);
                let held = record.handles.get() > 0 || record.depth(&worker) > 0;
                // The end of a thread leaves its guards, those that were forgotten too.
                worker.end_thread(record.index, held);
            }
            let keep = record.keep.take();
            drop(record);
            drop(keep);
        }
    }
}

impl Worker {
    /// This thread's record, made if need be.
    #[cold]
    pub(crate) fn record(&self) -> Result<&ThreadRecord, EnterError> {
        if !self.inner().is_attached_here() {
            return Err(EnterError::Forked);
        }
        if let Some(record) = self.known_record()? {
            return Ok(record);
        }
        let record = self.register_thread()?;
        // SAFETY: records are boxed and live until the thread ends; `&self` does not outlive that on this
        // thread.
        let record = unsafe { &*record };
        LAST.set(Last::of(record));
        Ok(record)
    }

    /// This thread's record, if there is one; a forked child's too.
    pub(crate) fn known_record(&self) -> Result<Option<&ThreadRecord>, EnterError> {
        let last = LAST.get();
        if core::ptr::eq(last.worker, self.inner()) && self.inner().is_attached_here() {
            // SAFETY: words of this worker, which are there as long as it is.
            let words = unsafe { &*last.words };
            // SAFETY: the calling thread's, since its end resets `LAST`.
            return Ok(unsafe { words.record() });
        }
        let known = RECORDS.try_with(|records| {
            let records = records.borrow();
            let mut all = records.0.iter();
            let found = all.find(|record| record.is_of(self.inner()));
            found.map(|record| core::ptr::from_ref::<ThreadRecord>(record))
        });
        let Some(record) = known.map_err(|_| EnterError::ThreadEnds)? else {
            return Ok(None);
        };
        // SAFETY: records are boxed and live until the thread ends; `&self` does not outlive that on this
        // thread.
        let record = unsafe { &*record };
        LAST.set(Last::of(record));
        Ok(Some(record))
    }

    fn register_thread(&self) -> Result<*const ThreadRecord, EnterError> {
        let inner = self.inner();
        if inner.starting().here().is_some() {
            return Err(EnterError::WhileEnding);
        }
        let tid = rustix::thread::gettid()
            .as_raw_nonzero()
            .get()
            .unsigned_abs();
        inner.release_ended_threads();
        let index = inner
            .mailbox()
            .claim(tid.into())
            .ok_or(EnterError::TooManyThreads { max: MAX_THREADS })?;
        let record = ThreadRecord::new(inner, self.downgrade(), index);
        inner.find_pin(Some(record.pin(inner)));
        let pointer = core::ptr::from_ref::<ThreadRecord>(&record);
        RECORDS.with_borrow_mut(|records| {
            // Workers that are gone free their records' places here.
            records.0.retain(|record| record.owner.strong_count() > 0);
            records.0.push(record);
        });
        Ok(pointer)
    }
}

/// The calling thread's record in `worker`'s mailbox, if it has one.
pub(crate) fn record_of(worker: &Inner) -> Option<u32> {
    let find = |records: &RefCell<Records>| {
        let records = records.borrow();
        let mut known = records.0.iter();
        let record = known.find(|record| record.is_of(worker))?;
        Some(record.index)
    };
    RECORDS.try_with(find).ok().flatten()
}

/// Whether published code started the calling thread, so that something published may wait for its end.
pub(crate) fn is_started_by_published_code(worker: &Inner) -> bool {
    let find = |records: &RefCell<Records>| {
        let records = records.borrow();
        let mut known = records.0.iter();
        known.any(|record| record.is_of(worker) && record.keep.borrow().is_some())
    };
    RECORDS.try_with(find).unwrap_or(false)
}

/// The generation that the calling thread is inside at, if it is.
pub(crate) fn generation_inside(worker: &Arc<Inner>) -> Option<u64> {
    let find = |records: &RefCell<Records>| {
        let records = records.borrow();
        let mut known = records.0.iter();
        let record = known.find(|record| record.is_of(worker) && record.depth(worker) > 0)?;
        Some(record.pin(worker).load(Ordering::Relaxed))
    };
    RECORDS.try_with(find).ok().flatten()
}

/// Takes thread record `index` for the calling thread, which published code started, and which is inside from now
/// on until it ends.
pub(crate) fn adopt(worker: Arc<Inner>, index: u32) {
    let tid = rustix::thread::gettid()
        .as_raw_nonzero()
        .get()
        .unsigned_abs();
    let word = worker.mailbox().thread(index, ThreadWord::Tid);
    word.store(tid.into(), Ordering::Relaxed);
    let record = ThreadRecord::new(&worker, Arc::downgrade(&worker), index);
    worker.find_pin(Some(record.pin(&worker)));
    record.keep.replace(Some(worker));
    RECORDS.with_borrow_mut(|records| records.0.push(record));
}

impl ThreadRecord {
    fn new(inner: &Inner, owner: Weak<Inner>, index: u32) -> Box<Self> {
        let words = inner.life().thread(index);
        let record = Box::new(Self {
            words,
            owner,
            index,
            admitted: Cell::new(false),
            applies: Cell::new(false),
            handles: Cell::new(0),
            serialised: Cell::new(0),
            leaves: Cell::new(0),
            slow_polls: Cell::new(0),
            keep: RefCell::new(None),
        });
        record
            .words()
            .begin(&raw const *record, inner.life().never());
        record
    }

    /// The thread's words.
    #[inline(always)]
    pub(crate) fn words(&self) -> &ThreadWords {
        // SAFETY: words of the worker's, which lives as long as anybody asks its records for anything; of them, other threads store
        // to atomics alone.
        unsafe { self.words.as_ref() }
    }

    /// The thread's pin.
    #[inline]
    pub(crate) fn pin<'a>(&self, inner: &'a Inner) -> &'a AtomicU64 {
        debug_assert!(self.is_of(inner));
        // SAFETY: as in `words`.
        inner.pin_of(unsafe { self.words.as_ref() })
    }

    /// How many guards the thread holds.
    pub(crate) fn depth(&self, inner: &Inner) -> u32 {
        let outermost = self.applies.get() || self.pin(inner).load(Ordering::Relaxed) != 0;
        self.words().nested.get() + u32::from(outermost)
    }

    /// Leaves a guard that nobody holds: whether there was one.
    pub(crate) fn leave_one(&self, inner: &Inner) -> bool {
        let nested = &self.words().nested;
        if !inner.is_attached_here() || self.depth(inner) == 0 {
            return false;
        }
        match nested.get().checked_sub(1) {
            Some(fewer) => nested.set(fewer),
            None if self.applies.get() => return false,
            None => inner.leave(self.words()),
        }
        true
    }

    /// Whether this is a record for `inner`: it keeps that worker's place in memory, so that no other one has it.
    #[inline(always)]
    fn is_of(&self, inner: &Inner) -> bool {
        core::ptr::eq(self.owner.as_ptr(), inner)
    }
}
