//! Guards: being inside published code.
//!
//! Entering the outermost guard of a thread is the poll: it pins the thread at the applied generation,
//! looks at the head of the ring, and applies what is new first. Invariant: while a thread is inside, its
//! record in the mailbox holds the generation that it runs at, and nothing that generation can reach is
//! reused.

use core::marker::PhantomData;
use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use jitcast_runtime::gate::Gate;
use jitcast_runtime::mailbox::{MAX_THREADS, ThreadWord, Word};
use jitcast_runtime::pin;

use crate::barrier::serialise_this;
use crate::error::EnterError;
use crate::fault::{Fault, seeded};
use crate::life::{ALIVE, MOVING};
use crate::polled::Polled;
use crate::thread_words::{ThreadWords, Token};
use crate::worker::{Inner, Worker};

/// A thread's permission to call published code; everything called under the outermost one belongs to one
/// generation. Leaves when dropped. Neither `Send` nor to be held across an await.
///
/// ```
/// # use jitcast_worker::{EnterError, Function, Worker};
/// type Score = extern "C" fn(i64) -> i64;
///
/// fn difference(worker: &Worker, low: &Function<Score>, high: &Function<Score>) -> Result<i64, EnterError> {
///     let guard = worker.enter()?; // what is new is applied here
///     Ok(high.call(&guard, 21) - low.call(&guard, 21)) // both of one generation
/// }
/// ```
#[derive(Debug)]
#[must_use = "published code is entered only while the guard lives"]
pub struct Guard<'a> {
    worker: &'a Worker,
    thread: *const ThreadRecord,
    _not_send: PhantomData<*const ()>,
}

/// A thread's record in a worker's mailbox. What entering touches comes first: hosts in C are given its address.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct ThreadRecord {
    pub(crate) words: ThreadWords,
    /// The worker, and whose record this is.
    pub(crate) owner: Weak<Inner>,
    index: u32,
    /// The generation up to which this thread has serialised, where membarrier does not do it for all.
    serialised: Cell<u64>,
    /// How often this thread left while threads were inside at different generations.
    leaves: Cell<u32>,
    /// How often it entered, where the fast path does not count.
    pub(crate) slow_polls: Cell<u32>,
    /// The worker of a thread that published code started, which holds no guard that would keep it.
    keep: RefCell<Option<Arc<Inner>>>,
}

thread_local! {
    /// This thread's records, one for each worker that it entered. Boxed, since guards point at them.
    static RECORDS: RefCell<Records> = const { RefCell::new(Records(Vec::new())) };
    /// The record used last.
    static LAST: Cell<*const ThreadRecord> = const { Cell::new(core::ptr::null()) };
}

#[derive(Debug)]
struct Records(
    #[expect(clippy::vec_box, reason = "guards point at the records")] Vec<Box<ThreadRecord>>,
);

impl Drop for Records {
    fn drop(&mut self) {
        LAST.set(core::ptr::null());
        for record in self.0.drain(..) {
            let worker = record.owner.upgrade();
            if let Some(worker) = worker.filter(|worker| worker.is_attached_here()) {
                // The end of a thread leaves its guards, those that were forgotten too.
                worker.find_pin(None);
                worker.mailbox().release(record.index);
            }
            let keep = record.keep.take();
            if record.words.depth.get() > 0 {
                // A guard in another thread-local may be dropped after this: it finds its record, and never
                // gets to touch a pin that is another thread's by then.
                record.words.depth.set(u32::MAX / 2);
                std::mem::forget(record);
            }
            drop(keep);
        }
    }
}

impl Worker {
    /// Enters a guard: applies what is new, if this thread is not inside already, and pins the thread.
    ///
    /// # Errors
    /// [`EnterError`]; the host then goes on without published code.
    #[inline(always)]
    pub fn enter(&self) -> Result<Guard<'_>, EnterError> {
        let last = LAST.get();
        // SAFETY: `LAST` is null or points to a record of this thread, which lives until the thread ends.
        let record = match unsafe { last.as_ref() } {
            Some(record) if record.is_of(self.inner()) => record,
            _ => self.record()?,
        };
        self.enter_with(record)
    }

    /// Looks for what is new and applies it, unless this thread is inside a guard: then nothing is applied, whatever is new. What is
    /// applied in an idle moment, no request has to wait for.
    ///
    /// # Errors
    /// [`EnterError`].
    pub fn poll(&self) -> Result<Polled, EnterError> {
        let (inner, record) = (self.inner(), self.record()?);
        if record.words.depth.get() > 0 {
            let generation = record.pin(inner).load(Ordering::Relaxed);
            let newest = record.head(inner).load(Ordering::Acquire);
            return Ok(Polled::Inside { generation, newest });
        }
        let before = inner.mailbox().word(Word::Applied).load(Ordering::Relaxed);
        let generation = self.enter()?.generation();
        Ok(if generation > before {
            Polled::Applied { generation }
        } else {
            Polled::Current { generation }
        })
    }

    /// Leaves every guard that was entered after `token` was taken: for hosts that jump out of published
    /// code past their guards.
    ///
    /// # Safety
    /// Those guards are never used or dropped any more; `token` is of this worker and this thread, and the
    /// guard that gave it, or an outer one, has not been left.
    ///
    /// ```
    /// # use jitcast_worker::{EnterError, Worker};
    /// fn survives_jumps(worker: &Worker, calls_and_may_jump: impl Fn()) -> Result<(), EnterError> {
    ///     let guard = worker.enter()?;
    ///     let token = guard.token();
    ///     calls_and_may_jump(); // by setjmp and longjmp, past guards that it entered
    ///     // SAFETY: nobody has those guards any more; the one that gave the token is held.
    ///     unsafe { worker.unwind(token) };
    ///     Ok(())
    /// }
    /// ```
    pub unsafe fn unwind(&self, token: Token) {
        if let (Ok(record), true) = (self.record(), self.inner().is_attached_here()) {
            if seeded(Fault::PinCounted) {
                return;
            }
            record.words.depth.set(token.depth());
            if token.depth() == 0 {
                record.leave(self.inner());
            }
        }
    }

    #[inline(always)]
    fn enter_with(&self, record: &ThreadRecord) -> Result<Guard<'_>, EnterError> {
        let depth = record.words.depth.get();
        let inner = self.inner();
        if depth > 0 {
            if record.alive(inner).load(Ordering::Relaxed) == 0 {
                self.enter_slowly(record)?;
            }
        } else if let Some(polls) = record.words.polls.get().checked_sub(1) {
            record.words.polls.set(polls);
            let (pin, head) = (record.pin(inner), record.head(inner));
            if Gate::pinned(record.applied(inner), pin, head, false).is_none() {
                self.enter_slowly(record)?;
            }
        } else {
            self.enter_seldom(record)?;
        }
        record.words.depth.set(depth + 1);
        Ok(Guard {
            worker: self,
            thread: core::ptr::from_ref(record),
            _not_send: PhantomData,
        })
    }

    /// Enters where the fast path's polls have run out: always, in a worker whose guards execute a fence.
    #[cold]
    pub(crate) fn enter_seldom(&self, record: &ThreadRecord) -> Result<(), EnterError> {
        if record.count_slowly(self.inner()) {
            self.tend_seldom();
        }
        self.pin_thread(record)
    }

    /// Pins the thread, which is outside, at what is applied.
    pub(crate) fn pin_thread(&self, record: &ThreadRecord) -> Result<(), EnterError> {
        let inner = self.inner();
        let (pin, head, fenced) = (record.pin(inner), record.head(inner), inner.fenced());
        if Gate::pinned(record.applied(inner), pin, head, fenced).is_none() {
            self.enter_slowly(record)?;
        } else if fenced {
            record.serialise_if_needed(inner);
        }
        Ok(())
    }

    /// Everything but the common case: a forked child, another thread that applies, something new.
    #[cold]
    fn enter_slowly(&self, record: &ThreadRecord) -> Result<(), EnterError> {
        let inner = self.inner();
        if !inner.is_attached_here() {
            return Err(EnterError::Forked);
        }
        if record.words.depth.get() == 0 {
            if inner.starting().here().is_some() {
                return Err(EnterError::WhileEnding);
            }
            // While this thread waits for another that applies, it is not inside.
            pin::leave(record.pin(inner), 0);
            // Constructors may enter guards too.
            record.words.depth.set(1);
            let caught_up = inner.catch_up(record.index);
            record.words.depth.set(0);
            caught_up?;
            if inner.fenced() {
                record.serialise_if_needed(inner);
            }
        }
        Ok(())
    }

    fn tend_seldom(&self) {
        if self.inner().is_attached_here() {
            self.inner().mailbox().count_entered();
        }
        self.tend();
    }

    /// The index of this thread's record; `None`: it is inside, or can have none.
    pub(crate) fn thread_outside(&self) -> Option<u32> {
        let record = self.record().ok()?;
        (record.words.depth.get() == 0).then_some(record.index)
    }

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
        LAST.set(record);
        // SAFETY: records are boxed and live until the thread ends; `&self` does not outlive that on this
        // thread.
        Ok(unsafe { &*record })
    }

    /// This thread's record, if there is one; a forked child's too.
    pub(crate) fn known_record(&self) -> Result<Option<&ThreadRecord>, EnterError> {
        let last = LAST.get();
        // SAFETY: `LAST` is null or points to a record of this thread, which lives until the thread ends.
        let last = unsafe { last.as_ref() };
        if let Some(record) = last.filter(|record| record.is_of(self.inner())) {
            return Ok(Some(record));
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
        LAST.set(record);
        // SAFETY: records are boxed and live until the thread ends; `&self` does not outlive that on this
        // thread.
        Ok(Some(unsafe { &*record }))
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
        let record = known.find(|record| record.is_of(worker) && record.words.depth.get() > 0)?;
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
    record.words.depth.set(1);
    record.keep.replace(Some(worker));
    RECORDS.with_borrow_mut(|records| records.0.push(record));
}

impl ThreadRecord {
    fn new(inner: &Inner, owner: Weak<Inner>, index: u32) -> Box<Self> {
        Box::new(Self {
            words: ThreadWords::new(inner, index),
            owner,
            index,
            serialised: Cell::new(0),
            leaves: Cell::new(0),
            slow_polls: Cell::new(0),
            keep: RefCell::new(None),
        })
    }

    #[inline(always)]
    fn pin<'a>(&self, inner: &'a Inner) -> &'a AtomicU64 {
        debug_assert!(self.is_of(inner));
        // SAFETY: the word lies in the mailbox of the record's worker, which is `inner`: whoever has a record
        // for a worker compared the two. The mailbox lives as long as the worker.
        unsafe { self.words.pin.as_ref() }
    }

    #[inline(always)]
    fn head<'a>(&self, inner: &'a Inner) -> &'a AtomicU64 {
        debug_assert!(self.is_of(inner));
        if cfg!(tsan) {
            // Control stays where it was, and the worker looks elsewhere (`jitcast_runtime`, `tsan.rs`).
            return inner.head();
        }
        // SAFETY: as for `pin`; the word lies in the worker's window.
        unsafe { self.words.head.as_ref() }
    }

    /// The gate's word.
    #[inline(always)]
    fn applied<'a>(&self, inner: &'a Inner) -> &'a AtomicU64 {
        debug_assert!(self.is_of(inner));
        // SAFETY: as for `pin`; the word lies in the worker's own page, which stays where it is.
        unsafe { self.words.applied.as_ref() }
    }

    /// The word that says whether this process is the one that attached.
    #[inline(always)]
    fn alive<'a>(&self, inner: &'a Inner) -> &'a AtomicU64 {
        debug_assert!(self.is_of(inner));
        // SAFETY: as for `applied`.
        unsafe { self.words.alive.as_ref() }
    }

    /// Whether this is a record for `inner`: it keeps that worker's place in memory, so that no other one has it.
    #[inline(always)]
    fn is_of(&self, inner: &Inner) -> bool {
        core::ptr::eq(self.owner.as_ptr(), inner)
    }

    /// The outermost guard is left.
    #[inline(always)]
    pub(crate) fn leave(&self, inner: &Inner) {
        match self.alive(inner).load(Ordering::Relaxed) {
            ALIVE => pin::leave(self.pin(inner), 0),
            MOVING => self.leave_slowly(inner),
            // In a child that was forked under the guard, the pin is the parent's: hands off.
            _ => {}
        }
    }

    /// While threads are inside at different generations: whoever leaves an older one may be the last.
    #[cold]
    fn leave_slowly(&self, inner: &Inner) {
        /// The others look now and then: the last one may have left when somebody else was busy with the worker's state.
        const SELDOM: u32 = 64;
        let leaves = self.leaves.get().wrapping_add(1);
        self.leaves.set(leaves);
        let newest = inner.life().moving().load(Ordering::Relaxed);
        let pin = self.pin(inner);
        if pin.load(Ordering::Relaxed) < newest || leaves.is_multiple_of(SELDOM) {
            inner.settle(self.index);
        }
        pin::leave(pin, 0);
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

    /// What [`Worker::unwind`] takes to leave what was entered after this guard, should those guards never be
    /// dropped.
    pub fn token(&self) -> Token {
        Token::new(self.record().words.depth.get())
    }

    #[inline(always)]
    fn record(&self) -> &ThreadRecord {
        // SAFETY: the record lives until this thread ends, or longer while a guard of it is held, and the
        // guard cannot leave the thread.
        unsafe { &*self.thread }
    }

    #[inline(always)]
    fn pin(&self) -> &AtomicU64 {
        self.record().pin(self.worker.inner())
    }
}

impl Drop for Guard<'_> {
    #[inline]
    fn drop(&mut self) {
        let record = self.record();
        let depth = record.words.depth.get() - 1;
        record.words.depth.set(depth);
        if depth == 0 {
            record.leave(self.worker.inner());
        }
    }
}
