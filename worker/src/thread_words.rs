//! What a guard touches, laid out for C: the inline functions of the C header do on these words what
//! [`Worker::enter`] and a guard's drop do.
//!
//! Invariant: the words come first in a thread's record, and what they refer to stays where it is while the worker lives: a
//! renewal and a fork map other memory over the same addresses.

use core::ptr::NonNull;
use std::cell::Cell;
use std::mem::offset_of;
use std::sync::atomic::AtomicU64;

use jitcast_runtime::mailbox::ThreadWord;

use crate::error::EnterError;
use crate::fault::{Fault, seeded};
use crate::guard::ThreadRecord;
use crate::life::ALIVE;
use crate::worker::{Inner, Worker};

/// How deep a thread was inside before a guard was entered: for hosts that leave by longjmp.
///
/// ```
/// use jitcast_worker::Token;
///
/// // What a host in another language keeps of a token is a number.
/// let token = Token::new(2);
/// assert_eq!(Token::new(token.depth()), token);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(u32);

impl Token {
    /// The token of a thread that holds so many guards, as [`Token::depth`] said.
    pub const fn new(depth: u32) -> Self {
        Self(depth)
    }

    /// How many guards the thread held.
    pub const fn depth(self) -> u32 {
        self.0
    }
}

/// What `alive` holds when the fast path may leave.
pub const THREAD_ALIVE: u64 = 1;

const _: () = assert!(THREAD_ALIVE == ALIVE);

/// Of so many polls of a thread, one tends the worker.
const POLLS: u32 = 1 << 16;

/// A thread in a worker, as the inline functions see it. Its members are theirs.
#[derive(Debug)]
#[repr(C)]
pub struct ThreadWords {
    /// The thread's pin in the worker's mailbox.
    pub(crate) pin: NonNull<AtomicU64>,
    /// The head of the ring.
    pub(crate) head: NonNull<AtomicU64>,
    /// The gate: the applied generation, or 0.
    pub(crate) applied: NonNull<AtomicU64>,
    /// 1 in the process that attached, 0 in a child that is no worker, 2 while threads are inside at
    /// different generations.
    pub(crate) alive: NonNull<AtomicU64>,
    /// How many guards this thread holds. The pin is set while it is not 0: guards may be left in any order.
    pub(crate) depth: Cell<u32>,
    /// How often this thread enters before it has to go the slow way; always 0 in a worker whose guards execute a fence, which is
    /// done there.
    pub(crate) polls: Cell<u32>,
}

const _: () = {
    assert!(offset_of!(ThreadRecord, words) == 0);
    assert!(size_of::<ThreadWords>() == 40 && align_of::<ThreadWords>() == 8);
    assert!(offset_of!(ThreadWords, pin) == 0);
    assert!(offset_of!(ThreadWords, head) == 8);
    assert!(offset_of!(ThreadWords, applied) == 16);
    assert!(offset_of!(ThreadWords, alive) == 24);
    assert!(offset_of!(ThreadWords, depth) == 32);
    assert!(offset_of!(ThreadWords, polls) == 36);
};

impl ThreadWords {
    pub(crate) fn new(inner: &Inner, index: u32) -> Self {
        let head = if seeded(Fault::HeadMistaken) {
            inner.life().applied()
        } else {
            inner.head()
        };
        Self {
            pin: NonNull::from(inner.mailbox().thread(index, ThreadWord::Pin)),
            head: NonNull::from(head),
            applied: NonNull::from(inner.life().applied()),
            alive: NonNull::from(inner.life().alive()),
            depth: Cell::new(0),
            polls: Cell::new(if inner.fenced() { 0 } else { POLLS - 1 }),
        }
    }

    /// What is left to do where the fast path does not let a thread in: something new, a closed gate, a fence, a forked child,
    /// or the time to tend the worker, when the thread's polls have run out.
    ///
    /// # Errors
    /// [`EnterError`]; the thread holds as many guards as before.
    ///
    /// # Safety
    /// `words` are the calling thread's, as [`Worker::thread_words`] gave them.
    pub unsafe fn enter_otherwise(words: NonNull<Self>) -> Result<Token, EnterError> {
        // SAFETY: the words come first in a record of this thread (asserted above), which lives until the thread ends; the
        // pointer was made from one to the whole record.
        let record = unsafe { words.cast::<ThreadRecord>().as_ref() };
        let worker = Worker::of(record.owner.upgrade().ok_or(EnterError::Detached)?);
        let depth = record.words.depth.get();
        if depth == 0 {
            if record.words.polls.get() == 0 {
                worker.enter_seldom(record)?;
            } else {
                worker.pin_thread(record)?;
            }
        } else if !worker.inner().is_attached_here() {
            return Err(EnterError::Forked);
        }
        record.words.depth.set(depth + 1);
        Ok(Token::new(depth + 1))
    }

    /// Leaves a guard where the fast path does not: whether there was one.
    ///
    /// # Safety
    /// As for [`ThreadWords::enter_otherwise`].
    pub unsafe fn leave_otherwise(words: NonNull<Self>) -> Result<bool, EnterError> {
        // SAFETY: as in `enter_otherwise`.
        let record = unsafe { words.cast::<ThreadRecord>().as_ref() };
        let worker = record.owner.upgrade().ok_or(EnterError::Detached)?;
        Ok(record.leave_one(&worker))
    }
}

impl ThreadRecord {
    /// Counts a poll that the fast path does not count: whether it is the time to tend the worker.
    pub(crate) fn count_slowly(&self, inner: &Inner) -> bool {
        if !inner.fenced() {
            self.words.polls.set(POLLS - 1);
            return true;
        }
        let polls = self.slow_polls.get().wrapping_add(1);
        self.slow_polls.set(polls);
        polls.is_multiple_of(POLLS)
    }

    /// Leaves a guard that nobody holds: whether there was one.
    fn leave_one(&self, inner: &Inner) -> bool {
        let Some(depth) = self.words.depth.get().checked_sub(1) else {
            return false;
        };
        self.words.depth.set(depth);
        if depth == 0 {
            self.leave(inner);
        }
        true
    }
}

impl Worker {
    /// The calling thread's words, for code that enters guards without a call. They are there until the thread ends or the
    /// worker is gone.
    ///
    /// # Errors
    /// [`EnterError`].
    pub fn thread_words(&self) -> Result<NonNull<ThreadWords>, EnterError> {
        self.record().map(|record| NonNull::from(record).cast())
    }

    /// Leaves a guard that was forgotten ([`core::mem::forget`]) or entered by [`ThreadWords`]: whether the thread was inside.
    ///
    /// # Safety
    /// Such a guard is there.
    pub unsafe fn leave(&self) -> bool {
        let record = self.known_record().ok().flatten();
        record.is_some_and(|record| record.leave_one(self.inner()))
    }

    /// How deep the calling thread is inside.
    pub fn token(&self) -> Token {
        let record = self.known_record().ok().flatten();
        Token::new(record.map_or(0, |record| record.words.depth.get()))
    }
}
