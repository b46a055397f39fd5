//! What a guard touches, laid out for C: the inline functions of the C header do on these words what
//! [`Worker::enter`] and a guard's drop do.
//!
//! A guard that finds nothing new touches a cache line of these words, its pin, which lies at a fixed distance from them in the mailbox, and
//! the head of the ring. Invariant: they stay where they are while the worker lives, since a renewal and a fork map other memory
//! over the same addresses; and they are zeros, so that no guard enters by them, in a child that is no worker and where no thread
//! has them.

use core::ffi::c_void;
use core::ptr::{self, NonNull};
use std::cell::Cell;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};

use jitcast_runtime::gate::{Door, HeadPointer};
use jitcast_runtime::mailbox::{ThreadWord, Word};
use jitcast_runtime::pin;

use crate::error::EnterError;
use crate::fault::{Fault, seeded};
use crate::life::{ALIVE, TO_PIN_BYTES};
use crate::thread_record::ThreadRecord;
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

/// From a thread's words to its pin, bytes.
pub const THREAD_TO_PIN: usize = 73664;

const _: () = assert!(THREAD_TO_PIN == TO_PIN_BYTES);

/// Of so many polls of a thread, one tends the worker.
const POLLS: u32 = 1 << 16;

/// A thread in a worker, as the inline functions see it. Its members are theirs.
#[derive(Debug)]
#[repr(C)]
pub struct ThreadWords {
    /// The generation that was applied when the thread's door was opened last.
    pub(crate) generation: AtomicU64,
    /// The head of the ring; while the thread's door is shut, a word that no generation equals.
    pub(crate) head: HeadPointer,
    /// 1 in the process that attached, 0 in a child that is no worker, 2 while threads are inside at
    /// different generations.
    pub(crate) alive: AtomicU64,
    /// How many guards this thread holds besides the outermost one. The pin is set while it holds any: guards may be left in any
    /// order.
    pub(crate) nested: Cell<u32>,
    /// How often this thread enters before it has to go the slow way; always 0 in a worker whose guards execute a fence, which is
    /// done there.
    pub(crate) polls: Cell<u32>,
    /// What the library knows of the thread.
    pub(crate) record: Cell<*const c_void>,
    /// 1: the thread has ended, and may have guards still.
    pub(crate) ended: AtomicU64,
}

const _: () = {
    assert!(size_of::<ThreadWords>() == 48 && align_of::<ThreadWords>() == 8);
    assert!(offset_of!(ThreadWords, generation) == 0);
    assert!(offset_of!(ThreadWords, head) == 8);
    assert!(offset_of!(ThreadWords, alive) == 16);
    assert!(offset_of!(ThreadWords, nested) == 24);
    assert!(offset_of!(ThreadWords, polls) == 28);
    assert!(offset_of!(ThreadWords, record) == 32);
    assert!(offset_of!(ThreadWords, ended) == 40);
};

/// What a thread's words held before a fork.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Saved {
    alive: u64,
    nested: u32,
    polls: u32,
    record: *const c_void,
}

impl ThreadWords {
    /// Makes them those of `record`'s thread, which has yet to be admitted. `never` is what doors are shut with.
    pub(crate) fn begin(&self, record: *const ThreadRecord, never: &AtomicU64) {
        self.nested.set(0);
        self.record.set(record.cast());
        // Whoever opens doors meanwhile may find this one shut after: then the thread is let in when it is admitted.
        self.door().shut(never);
    }

    /// Makes them nobody's. `held`: the thread may have guards still, which are left when it ends, and leave nothing any more.
    pub(crate) fn end(&self, held: bool) {
        self.polls.set(0);
        self.nested.set(if held { u32::MAX / 2 } else { 0 });
        self.record.set(ptr::null());
    }

    /// What a fork wipes.
    pub(crate) fn save(&self) -> Saved {
        Saved {
            alive: self.alive.load(Ordering::Relaxed),
            nested: self.nested.get(),
            polls: self.polls.get(),
            record: self.record.get(),
        }
    }

    /// Puts it back, with the door shut.
    pub(crate) fn restore(&self, saved: Saved, never: &AtomicU64) {
        self.door().shut(never);
        self.alive.store(saved.alive, Ordering::Relaxed);
        self.nested.set(saved.nested);
        self.record.set(saved.record);
        self.polls.set(saved.polls);
    }

    /// The thread's door.
    #[inline(always)]
    pub(crate) fn door(&self) -> Door<'_> {
        Door::new(&self.generation, &self.head)
    }

    /// The thread's pin.
    ///
    /// # Safety
    /// These words are a worker's, not orphaned.
    #[inline(always)]
    pub(crate) unsafe fn pin(&self) -> &AtomicU64 {
        // SAFETY: the worker's mailbox is mapped at this distance, as long as its words, and is as long as theirs (`life.rs`).
        let pin = unsafe { ptr::from_ref(self).byte_add(THREAD_TO_PIN) };
        // SAFETY: mapped while the worker lives, aligned, accessed atomically only.
        unsafe { &*pin.cast() }
    }

    /// What the library knows of the calling thread; `None` after its end, and in a child that is no worker.
    ///
    /// # Safety
    /// They are the calling thread's.
    pub(crate) unsafe fn record(&self) -> Option<&ThreadRecord> {
        // SAFETY: null, or a record of this thread, which lives until the thread ends.
        unsafe { self.record.get().cast::<ThreadRecord>().as_ref() }
    }

    /// The words and the record of the calling thread; an error in a child that is no worker.
    ///
    /// # Safety
    /// `words` are the calling thread's.
    unsafe fn known<'a>(words: NonNull<Self>) -> Result<(&'a Self, &'a ThreadRecord), EnterError> {
        // SAFETY: the caller's promise; they are there until the thread ends or the worker is gone.
        let words = unsafe { words.as_ref() };
        // SAFETY: the caller's promise.
        let record = unsafe { words.record() };
        Ok((words, record.ok_or(EnterError::Forked)?))
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
        // SAFETY: the caller's promise.
        let (words, record) = unsafe { Self::known(words) }?;
        let worker = Worker::of(record.owner.upgrade().ok_or(EnterError::Detached)?);
        worker.enter_otherwise(words)?;
        Ok(Token::new(record.depth(worker.inner())))
    }

    /// Leaves a guard where the fast path does not: whether there was one.
    ///
    /// # Errors
    /// [`EnterError`].
    ///
    /// # Safety
    /// As for [`ThreadWords::enter_otherwise`].
    pub unsafe fn leave_otherwise(words: NonNull<Self>) -> Result<bool, EnterError> {
        // SAFETY: the caller's promise.
        let (_, record) = unsafe { Self::known(words) }?;
        let worker = record.owner.upgrade().ok_or(EnterError::Detached)?;
        Ok(record.leave_one(&worker))
    }
}

impl ThreadRecord {
    /// Counts a poll that the fast path does not count: whether it is the time to tend the worker.
    pub(crate) fn count_slowly(&self, inner: &Inner) -> bool {
        if !inner.fenced() {
            self.words().polls.set(POLLS - 1);
            return true;
        }
        let polls = self.slow_polls.get().wrapping_add(1);
        self.slow_polls.set(polls);
        polls.is_multiple_of(POLLS)
    }
}

impl Inner {
    /// The word that guards look at.
    pub(crate) fn watched_head(&self) -> &AtomicU64 {
        if seeded(Fault::HeadMistaken) {
            self.life().applied()
        } else {
            self.head()
        }
    }

    /// Gives the record `index` of the calling thread back.
    pub(crate) fn release_thread(&self, index: u32) {
        self.end_thread(index, false);
    }

    /// The calling thread, of record `index`, ends. If it may have guards `held`, in thread-local variables that end later, its record and
    /// its words become no other thread's before it is gone.
    pub(crate) fn end_thread(&self, index: u32, held: bool) {
        // SAFETY: the calling thread's.
        let words = unsafe { self.life().thread(index).as_ref() };
        words.end(held);
        if held {
            pin::leave(self.mailbox().thread(index, ThreadWord::Pin), 0);
            self.life().ended().fetch_add(1, Ordering::Relaxed);
            words.ended.store(1, Ordering::Release);
        } else {
            self.mailbox().release(index);
        }
    }

    /// Gives back the records of threads that are gone. Without a lock, which a forked child might find locked for good.
    pub(crate) fn release_ended_threads(&self) {
        if self.life().ended().load(Ordering::Relaxed) == 0 {
            return;
        }
        let threads = self.mailbox().word(Word::Threads).load(Ordering::Acquire);
        self.life().for_ended(threads, |index, ended| {
            // Who takes the mark decides.
            if ended.swap(0, Ordering::AcqRel) == 0 {
                return;
            }
            let tid = self.mailbox().thread(index, ThreadWord::Tid);
            if is_thread(tid.load(Ordering::Relaxed)) {
                ended.store(1, Ordering::Release);
            } else {
                self.life().ended().fetch_sub(1, Ordering::Relaxed);
                self.mailbox().release(index);
            }
        });
    }

    /// Closes the gate, and shuts the threads' doors. By who holds the worker's state; a barrier that reaches every thread follows
    /// before anybody looks at pins.
    pub(crate) fn close_gate(&self) {
        let never = self.life().never();
        let threads = self.mailbox().word(Word::Threads).load(Ordering::Acquire);
        self.life().for_threads(threads, |door, _| door.shut(never));
        self.life().gate().close();
    }

    /// Opens them at `generation`. By who holds the worker's state.
    pub(crate) fn open_gate(&self, generation: u64) {
        let threads = self.mailbox().word(Word::Threads).load(Ordering::Acquire);
        self.life().gate().open(generation);
        let head = self.watched_head();
        self.life()
            .for_threads(threads, |door, _| door.open(generation, head));
    }

    /// Says to all threads whether this is the process that attached, and whether some are inside at different generations. By who
    /// holds the worker's state.
    pub(crate) fn set_alive(&self, alive: u64) {
        if self.life().alive().load(Ordering::Relaxed) == alive {
            // Whoever is admitted is told.
            return;
        }
        let threads = self.mailbox().word(Word::Threads).load(Ordering::Acquire);
        self.life().alive().store(alive, Ordering::Relaxed);
        self.life()
            .for_threads(threads, |_, word| word.store(alive, Ordering::Relaxed));
    }

    /// Lets the thread of record `index`, which calls, enter by its door from now on, and leave. By who holds the worker's state.
    pub(crate) fn admit(&self, index: u32) {
        // SAFETY: the calling thread's.
        let words = unsafe { self.life().thread(index).as_ref() };
        if words.polls.get() > 0 {
            // It has been admitted: whoever opens doors opens its door too.
            return;
        }
        let alive = self.life().alive().load(Ordering::Relaxed);
        words.alive.store(alive, Ordering::Relaxed);
        // SAFETY: the calling thread's. A fork admits one that has none, for a moment.
        if let Some(record) = unsafe { words.record() } {
            record.admitted.set(true);
        }
        if self.fenced() {
            return;
        }
        if self.life().gate().is_open() {
            let applied = self.life().applied().load(Ordering::Relaxed);
            words.door().open(applied, self.watched_head());
        }
        // This one was the first.
        words.polls.set(POLLS - 2);
    }
}

impl Worker {
    /// The calling thread's words, for code that enters guards without a call. They are there until the thread ends or the
    /// worker is gone.
    ///
    /// # Errors
    /// [`EnterError`].
    pub fn thread_words(&self) -> Result<NonNull<ThreadWords>, EnterError> {
        self.record().map(|record| NonNull::from(record.words()))
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
        Token::new(record.map_or(0, |record| record.depth(self.inner())))
    }
}

/// Whether a thread of this process has this id. (0: a fork has left it behind.)
fn is_thread(tid: u64) -> bool {
    let process = std::process::id();
    // SAFETY: signal 0 is sent to nobody (tgkill(2)).
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, process, tid as libc::pid_t, 0) };
    let error = std::io::Error::last_os_error().raw_os_error();
    tid != 0 && (sent == 0 || error != Some(libc::ESRCH))
}
