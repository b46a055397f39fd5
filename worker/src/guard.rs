//! Guards: being inside published code.
//!
//! Entering the outermost guard of a thread is the poll: it pins the thread at the applied generation,
//! looks at the head of the ring, and applies what is new first. Invariant: while a thread is inside, its
//! record in the mailbox holds the generation that it runs at, and nothing that generation can reach is
//! reused.

use core::marker::PhantomData;
use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, Weak};

use jitcast_runtime::mailbox::{MAX_THREADS, ThreadWord};
use jitcast_runtime::pin;

use crate::barrier::serialise_this;
use crate::error::EnterError;
use crate::worker::{Inner, Worker};

/// A thread's permission to call published code; everything called under the outermost one belongs to one
/// generation. Leaves when dropped. Neither `Send` nor to be held across an await.
#[derive(Debug)]
#[must_use = "published code is entered only while the guard lives"]
pub struct Guard<'a> {
    worker: &'a Worker,
    thread: *const ThreadRecord,
    previous: u64,
    _not_send: PhantomData<*const ()>,
}

/// What was pinned before a guard was entered: for hosts that leave by longjmp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(u64);

/// A thread's record in a worker's mailbox.
#[derive(Debug)]
pub(crate) struct ThreadRecord {
    /// [`Inner::id`] of the worker.
    worker: u64,
    owner: Weak<Inner>,
    index: u32,
    /// The generation up to which this thread has serialised, where membarrier does not do it for all.
    serialised: std::cell::Cell<u64>,
}

thread_local! {
    /// This thread's records, one for each worker that it entered. Boxed, since guards point at them.
    static RECORDS: RefCell<Records> = const { RefCell::new(Records(Vec::new())) };
    /// The record used last.
    static LAST: std::cell::Cell<*const ThreadRecord> = const { std::cell::Cell::new(core::ptr::null()) };
}

#[derive(Debug)]
struct Records(
    #[expect(clippy::vec_box, reason = "guards point at the records")] Vec<Box<ThreadRecord>>,
);

impl Drop for Records {
    fn drop(&mut self) {
        LAST.set(core::ptr::null());
        for record in self.0.drain(..) {
            if let Some(worker) = record
                .owner
                .upgrade()
                .filter(|worker| worker.is_attached_here())
            {
                worker.mailbox().release(record.index);
            }
        }
    }
}

impl Worker {
    /// Enters a guard: applies what is new, if this thread is not inside already, and pins the thread.
    ///
    /// # Errors
    /// [`EnterError`]; the host then goes on without published code.
    #[inline]
    pub fn enter(&self) -> Result<Guard<'_>, EnterError> {
        let inner = self.inner();
        let last = LAST.get();
        // SAFETY: `LAST` is null or points to a record of this thread, which lives until the thread ends.
        if let Some(record) = unsafe { last.as_ref() }
            && record.worker == inner.id()
        {
            return self.enter_with(record);
        }
        self.enter_with(self.record()?)
    }

    /// Looks for what is new and applies it, unless this thread is inside a guard. Returns the generation
    /// that is applied then.
    ///
    /// # Errors
    /// [`EnterError`].
    pub fn poll(&self) -> Result<u64, EnterError> {
        self.enter().map(|guard| guard.generation())
    }

    /// Puts back what was pinned before the guard that gave `token` was entered, as leaving would: for hosts
    /// that jump out of published code past their guards.
    pub fn unwind(&self, token: Token) {
        if let (Ok(record), true) = (self.record(), self.inner().is_attached_here()) {
            pin::leave(record.pin(self.inner()), token.0);
        }
    }

    #[inline(always)]
    fn enter_with(&self, record: &ThreadRecord) -> Result<Guard<'_>, EnterError> {
        let inner = self.inner();
        let word = record.pin(inner);
        // Only this thread writes its pin: if it is set, this thread is inside.
        let previous = word.load(Ordering::Relaxed);
        let applied = inner.life().applied().load(Ordering::Relaxed);
        if applied == 0 {
            self.enter_slowly(record, previous)?;
        } else if previous == 0 {
            let head = pin::enter(word, applied, inner.head(), inner.fenced());
            if head != applied || inner.life().applied().load(Ordering::Relaxed) != applied {
                self.enter_slowly(record, 0)?;
            } else if inner.fenced() {
                record.serialise_if_needed(inner);
            }
        }
        Ok(Guard {
            worker: self,
            thread: core::ptr::from_ref(record),
            previous,
            _not_send: PhantomData,
        })
    }

    /// Everything but the common case: a forked child, another thread that applies, something new.
    #[cold]
    fn enter_slowly(&self, record: &ThreadRecord, previous: u64) -> Result<(), EnterError> {
        let inner = self.inner();
        if !inner.is_attached_here() {
            return Err(EnterError::Forked);
        }
        if previous == 0 {
            // While this thread waits for another that applies, it is not inside.
            pin::leave(record.pin(inner), 0);
            inner.catch_up(record.index)?;
            if inner.fenced() {
                record.serialise_if_needed(inner);
            }
        }
        Ok(())
    }

    /// This thread's record, made if need be.
    fn record(&self) -> Result<&ThreadRecord, EnterError> {
        let inner = self.inner();
        if !inner.is_attached_here() {
            return Err(EnterError::Forked);
        }
        let known = RECORDS.with_borrow(|records| {
            let found = records.0.iter().find(|record| record.worker == inner.id());
            found.map(|record| core::ptr::from_ref::<ThreadRecord>(record))
        });
        let record = match known {
            Some(record) => record,
            None => self.register_thread()?,
        };
        LAST.set(record);
        // SAFETY: records are boxed and live until the thread ends; `&self` does not outlive that on this
        // thread.
        Ok(unsafe { &*record })
    }

    fn register_thread(&self) -> Result<*const ThreadRecord, EnterError> {
        let inner = self.inner();
        // Under the lock, so that whoever applies knows all threads.
        let _state = inner.state().lock().unwrap_or_else(PoisonError::into_inner);
        let tid = rustix::thread::gettid()
            .as_raw_nonzero()
            .get()
            .unsigned_abs();
        let index = inner
            .mailbox()
            .claim(tid.into())
            .ok_or(EnterError::TooManyThreads { max: MAX_THREADS })?;
        let record = Box::new(ThreadRecord {
            worker: inner.id(),
            owner: self.downgrade(),
            index,
            serialised: std::cell::Cell::new(0),
        });
        let pointer = core::ptr::from_ref::<ThreadRecord>(&record);
        RECORDS.with_borrow_mut(|records| {
            // Workers that are gone free their records' places here.
            records.0.retain(|record| record.owner.strong_count() > 0);
            records.0.push(record);
        });
        Ok(pointer)
    }
}

impl ThreadRecord {
    #[inline(always)]
    fn pin<'a>(&self, inner: &'a Inner) -> &'a AtomicU64 {
        inner.mailbox().thread(self.index, ThreadWord::Pin)
    }

    fn serialise_if_needed(&self, inner: &Inner) {
        let reused = inner.life().reused_text().load(Ordering::Relaxed);
        if self.serialised.get() < reused {
            serialise_this();
            self.serialised.set(reused);
        }
    }
}

impl Guard<'_> {
    /// The generation that this thread runs at.
    pub fn generation(&self) -> u64 {
        self.pin().load(Ordering::Relaxed)
    }

    /// The worker that was entered.
    pub fn worker(&self) -> &Worker {
        self.worker
    }

    /// What [`Worker::unwind`] takes, should this guard never be dropped.
    pub fn token(&self) -> Token {
        Token(self.previous)
    }

    fn pin(&self) -> &AtomicU64 {
        // SAFETY: the record lives until this thread ends, and the guard cannot leave the thread.
        let record = unsafe { &*self.thread };
        record.pin(self.worker.inner())
    }
}

impl Drop for Guard<'_> {
    #[inline]
    fn drop(&mut self) {
        // In a child that was forked under the guard, the record is the parent's: hands off.
        if self.worker.inner().is_attached_here() {
            pin::leave(self.pin(), self.previous);
        }
    }
}
