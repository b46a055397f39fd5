//! Guards: being inside published code.
//!
//! Entering the outermost guard of a thread is the poll: it pins the thread at the applied generation,
//! looks at the head of the ring, and applies what is new first. Invariant: while a thread is inside, its
//! record in the mailbox holds the generation that it runs at, and nothing that generation can reach is
//! reused.

use core::hint::cold_path;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU64, Ordering};

use jitcast_runtime::mailbox::{ThreadWord, Word};
use jitcast_runtime::pin;

use crate::barrier::serialise_this;
use crate::error::EnterError;
use crate::fault::{Fault, seeded};
use crate::life::{ALIVE, MOVING};
use crate::polled::Polled;
use crate::thread_record::{LAST, ThreadRecord};
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
    words: &'a ThreadWords,
    _not_send: PhantomData<*const ()>,
}

impl Worker {
    /// Enters a guard: applies what is new, if this thread is not inside already, and pins the thread.
    ///
    /// # Errors
    /// [`EnterError`]; the host then goes on without published code.
    #[inline(always)]
    pub fn enter(&self) -> Result<Guard<'_>, EnterError> {
        let last = LAST.get();
        let words = if core::ptr::eq(last.worker, self.inner()) {
            // SAFETY: words of this worker, which are there as long as it is.
            unsafe { &*last.words }
        } else {
            self.record()?.words()
        };
        self.enter_with(words)
    }

    /// What the calling thread enters guards by without looking for its words each time, which is a quarter of what a guard costs
    /// that finds nothing new.
    ///
    /// # Errors
    /// [`EnterError`].
    ///
    /// ```
    /// # use jitcast_worker::{EnterError, Function, Worker};
    /// fn sum(worker: &Worker, score: &Function<extern "C" fn(i64) -> i64>, n: i64) -> Result<i64, EnterError> {
    ///     let thread = worker.thread()?;
    ///     let mut sum = 0;
    ///     for number in 0..n {
    ///         sum += score.call(&thread.enter()?, number); // each call of what is newest
    ///     }
    ///     Ok(sum)
    /// }
    /// ```
    pub fn thread(&self) -> Result<Thread<'_>, EnterError> {
        let record = self.record()?;
        record.handles.set(record.handles.get() + 1);
        Ok(Thread {
            worker: self,
            words: record.words(),
            _not_send: PhantomData,
        })
    }

    /// Looks for what is new and applies it, unless this thread is inside a guard: then nothing is applied, whatever is new. What is
    /// applied in an idle moment, no request has to wait for.
    ///
    /// # Errors
    /// [`EnterError`].
    pub fn poll(&self) -> Result<Polled, EnterError> {
        let (inner, record) = (self.inner(), self.record()?);
        if record.depth(inner) > 0 {
            let generation = record.pin(inner).load(Ordering::Relaxed);
            let newest = inner.watched_head().load(Ordering::Acquire);
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
            record.words().nested.set(token.depth().saturating_sub(1));
            if token.depth() == 0 && !record.applies.get() {
                self.inner().leave(record.words());
            }
        }
    }

    #[inline(always)]
    fn enter_with<'a>(&'a self, words: &'a ThreadWords) -> Result<Guard<'a>, EnterError> {
        let entered = Guard {
            worker: self,
            words,
            _not_send: PhantomData,
        };
        let entered = ManuallyDrop::new(entered);
        let Some(polls) = words.polls.get().checked_sub(1) else {
            cold_path();
            self.enter_otherwise(words)?;
            return Ok(ManuallyDrop::into_inner(entered));
        };
        let pin = self.inner().pin_of(words);
        if pin.load(Ordering::Relaxed) != 0 {
            cold_path();
            words.nested.set(words.nested.get() + 1);
            return Ok(ManuallyDrop::into_inner(entered));
        }
        words.polls.set(polls);
        // SAFETY: a thread that has polls left has been admitted; its door is shut and opened with words of its worker's.
        if unsafe { words.door().enter(pin) }.is_none() {
            cold_path();
            // It is outside, though its pin is there.
            pin::leave(pin, 0);
            self.enter_otherwise(words)?;
        }
        Ok(ManuallyDrop::into_inner(entered))
    }

    /// Enters where the fast path does not, a thread whose pin says whether it is inside: because its polls have run out (it has none where
    /// guards execute a fence), or for any other reason.
    #[cold]
    pub(crate) fn enter_otherwise(&self, words: &ThreadWords) -> Result<(), EnterError> {
        let inner = self.inner();
        if !inner.is_attached_here() {
            return Err(EnterError::Forked);
        }
        // SAFETY: whoever enters has the calling thread's words.
        let record = unsafe { words.record() }.ok_or(EnterError::ThreadEnds)?;
        if record.depth(inner) > 0 {
            words.nested.set(words.nested.get() + 1);
            return Ok(());
        }
        if words.polls.get() > 0 {
            // Its door did not let it in.
            return self.enter_slowly(record);
        }
        if !record.admitted.get() {
            self.enter_slowly(record)?;
            if inner.fenced() {
                record.count_slowly(inner);
            }
            return Ok(());
        }
        if record.count_slowly(inner) {
            inner.mailbox().count_entered();
            self.tend();
        }
        let pin = record.pin(inner);
        let entered = if inner.fenced() {
            inner.life().gate().enter(pin, inner.watched_head())
        } else {
            // SAFETY: as in `enter_with`.
            unsafe { words.door().enter(pin) }
        };
        if entered.is_none() {
            return self.enter_slowly(record);
        }
        if inner.fenced() {
            record.serialise_if_needed(inner);
        }
        Ok(())
    }

    /// Everything but the common case, for a thread that is outside, though it may have stored its pin: something new, another thread that
    /// applies, a thread that has not been admitted.
    #[cold]
    fn enter_slowly(&self, record: &ThreadRecord) -> Result<(), EnterError> {
        let inner = self.inner();
        // While this thread waits for another that applies, it is not inside.
        pin::leave(record.pin(inner), 0);
        if inner.starting().here().is_some() {
            return Err(EnterError::WhileEnding);
        }
        // Constructors may enter guards too.
        record.applies.set(true);
        let caught_up = inner.catch_up(record.index);
        record.applies.set(false);
        record.words().nested.set(0);
        caught_up?;
        if inner.fenced() {
            record.serialise_if_needed(inner);
        }
        Ok(())
    }

    /// The index of this thread's record; `None`: it is inside, or can have none.
    pub(crate) fn thread_outside(&self) -> Option<u32> {
        let record = self.record().ok()?;
        (record.depth(self.inner()) == 0).then_some(record.index)
    }
}

impl ThreadRecord {
    /// While threads are inside at different generations: whoever leaves an older one may be the last.
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

impl Inner {
    /// The pin of the thread that has these words.
    #[inline(always)]
    pub(crate) fn pin_of<'a>(&'a self, words: &'a ThreadWords) -> &'a AtomicU64 {
        if cfg!(tsan) {
            // The mailbox is where the compiler process, which is this process too, has it mapped.
            let index = self.life().index_of(words);
            return self.mailbox().thread(index, ThreadWord::Pin);
        }
        // SAFETY: words of this worker's.
        unsafe { words.pin() }
    }

    /// The outermost guard is left of the calling thread, which has these words.
    #[inline(always)]
    pub(crate) fn leave(&self, words: &ThreadWords) {
        if words.alive.load(Ordering::Relaxed) == ALIVE {
            pin::leave(self.pin_of(words), 0);
        } else {
            self.leave_otherwise(words);
        }
    }

    #[cold]
    fn leave_otherwise(&self, words: &ThreadWords) {
        match self.life().alive().load(Ordering::Relaxed) {
            // It has not been admitted.
            ALIVE => pin::leave(self.pin_of(words), 0),
            MOVING => {
                // SAFETY: the calling thread's.
                if let Some(record) = unsafe { words.record() } {
                    record.leave_slowly(self);
                }
            }
            // In a child that was forked under the guard, the pin is the parent's: hands off.
            _ => {}
        }
    }
}

impl Guard<'_> {
    /// The generation that this thread runs at.
    pub fn generation(&self) -> u64 {
        self.worker
            .inner()
            .pin_of(self.words)
            .load(Ordering::Relaxed)
    }

    /// The worker that was entered.
    pub fn worker(&self) -> &Worker {
        self.worker
    }

    /// What [`Worker::unwind`] takes to leave what was entered after this guard, should those guards never be
    /// dropped.
    pub fn token(&self) -> Token {
        // SAFETY: the calling thread's.
        let record = unsafe { self.words.record() };
        Token::new(record.map_or(0, |record| record.depth(self.worker.inner())))
    }
}

impl Drop for Guard<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        let nested = &self.words.nested;
        match nested.get() {
            0 => self.worker.inner().leave(self.words),
            guards => {
                cold_path();
                nested.set(guards - 1);
            }
        }
    }
}

/// The calling thread in a worker ([`Worker::thread`]): enters guards as [`Worker::enter`] does. Stays in its thread.
#[derive(Debug)]
pub struct Thread<'a> {
    worker: &'a Worker,
    words: &'a ThreadWords,
    _not_send: PhantomData<*const ()>,
}

impl<'a> Thread<'a> {
    /// Enters a guard, as [`Worker::enter`].
    ///
    /// # Errors
    /// [`EnterError`].
    #[inline(always)]
    pub fn enter(&self) -> Result<Guard<'a>, EnterError> {
        self.worker.enter_with(self.words)
    }
}

impl Drop for Thread<'_> {
    fn drop(&mut self) {
        // SAFETY: the calling thread's; `None` after its end.
        if let Some(record) = unsafe { self.words.record() } {
            record.handles.set(record.handles.get() - 1);
        }
    }
}
