//! The gate of a worker: at which generation its threads enter while one of them brings it to another.
//!
//! The thread that applies a publication closes the gate, executes a barrier that reaches every thread, and looks at the
//! pins. If nobody is inside, nobody will be until the gate is opened, and cells are simply stored. Otherwise it lets
//! others stay at the old generation, and makes each replaced cell tell threads apart by their pins. Invariant: whoever is
//! inside has a pin of a generation at which the gate was open, or let threads stay; and if the thread that applies did not
//! see that pin, nothing was changed since.
//!
//! Threads that membarrier reaches enter by *doors*, one for each, of words that nobody else loads: a guard with nothing new
//! costs a thread no more than that. Whoever applies shuts them all where it closes the gate, and opens them where it opens that.

use crate::atomic::{AtomicPtr, AtomicU64, Ordering, Release, fence};
use crate::pin;

/// Where a thread finds the word that its generation has to equal.
pub type HeadPointer = AtomicPtr<AtomicU64>;

/// What a word holds that no generation equals.
pub const NEVER: u64 = u64::MAX;

/// A thread's door, over its words. One at a time opens and shuts doors.
#[derive(Clone, Copy, Debug)]
pub struct Door<'a> {
    /// The generation that was applied when the door was opened last.
    generation: &'a AtomicU64,
    /// The head of the ring; while the door is shut, a word that holds [`NEVER`].
    head: &'a HeadPointer,
}

impl<'a> Door<'a> {
    /// The door over these words.
    #[inline(always)]
    pub fn new(generation: &'a AtomicU64, head: &'a HeadPointer) -> Self {
        Self { generation, head }
    }

    /// Pins the calling thread, whose door it is, at the generation that is applied, if that is what the head says, and the door
    /// is open. Else the pin is there, but the thread is not inside. Inline guards of C do the same (`worker/capi/src/inline.h`).
    ///
    /// # Safety
    /// The door has been shut or opened, and the words that it was shut and opened with are there still.
    #[inline(always)]
    pub unsafe fn enter(self, pin: &AtomicU64) -> Option<u64> {
        // Acquire: pairs with the release in `open`. Whoever sees the generation does not see a door that was open before.
        let generation = self.generation.load(Ordering::Acquire);
        pin.store(generation, Ordering::Relaxed);
        pin::light_barrier();
        // Who shuts the door executes a barrier before it looks at pins: it sees this one, or this load sees that it is shut.
        // Acquire: pairs with the release in `open`; what was applied is there.
        let head = self.head.load(Ordering::Acquire);
        // SAFETY: the caller's promise.
        let head = unsafe { &*head };
        // Acquire: pairs with the release store of the head in `Ring::publish`.
        (head.load(Ordering::Acquire) == generation).then_some(generation)
    }

    /// Lets the thread in at `generation`, as long as `head` says that.
    #[inline]
    pub fn open(self, generation: u64, head: &AtomicU64) {
        // Release: cells first, then the number, and then the way in.
        self.generation.store(generation, Release::Gate.ordering());
        let head = core::ptr::from_ref(head).cast_mut();
        self.head.store(head, Release::Gate.ordering());
    }

    /// Lets the thread in no more. `never` holds [`NEVER`].
    #[inline]
    pub fn shut(self, never: &AtomicU64) {
        let never = core::ptr::from_ref(never).cast_mut();
        self.head.store(never, Ordering::Relaxed);
    }
}

/// The gate over its words, wherever these lie.
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    /// The applied generation; 0: closed.
    applied: &'a AtomicU64,
    /// The generation at which threads may enter while the gate is closed; 0: none.
    staying: &'a AtomicU64,
}

impl<'a> Gate<'a> {
    /// The gate over these words.
    #[inline(always)]
    pub fn new(applied: &'a AtomicU64, staying: &'a AtomicU64) -> Self {
        Self { applied, staying }
    }

    /// Pins the calling thread at the applied generation, if that is what `head` says, and the gate is open. Else the pin may be
    /// there, but the thread is not inside. For threads without a door, and for who holds the worker's state.
    pub fn enter(self, pin: &AtomicU64, head: &AtomicU64) -> Option<u64> {
        // Acquire: pairs with the release in `open`; what was applied is there.
        let applied = self.applied.load(Ordering::Acquire);
        // Whom this look turns away needs no barrier. It lets nobody in.
        if applied == 0 || head.load(Ordering::Relaxed) != applied {
            return None;
        }
        let newest = pin::enter(pin, applied, head, true);
        // Who closes the gate executes a barrier before it looks at pins: it sees this one, or this load sees the 0.
        (newest == applied && self.applied.load(Ordering::Relaxed) == applied).then_some(applied)
    }

    /// Whether it is open.
    #[inline]
    pub fn is_open(self) -> bool {
        self.applied.load(Ordering::Relaxed) != 0
    }

    /// Pins the calling thread, whose pin is 0, at the generation that threads may stay at, if there is one. `floor` as in
    /// [`Control::floor`](crate::header::Control::floor).
    pub fn stay(self, pin: &AtomicU64, floor: &AtomicU64) -> Option<u64> {
        // Acquire: pairs with the release in `let_stay`.
        let generation = self.staying.load(Ordering::Acquire);
        if generation == 0 {
            return None;
        }
        pin.store(generation, Ordering::Relaxed);
        // Pairs with the fence in `shut`, and with the compiler process's barrier after it announced a floor.
        fence(Ordering::SeqCst);
        let stays = self.staying.load(Ordering::Acquire) == generation;
        if stays && floor.load(Ordering::Acquire) <= generation {
            return Some(generation);
        }
        pin::leave(pin, 0);
        None
    }

    /// Closes the gate, and executes a full barrier, for what the caller stored before, too. Where there are other threads, one that
    /// reaches them all follows before anybody looks at pins.
    #[inline]
    pub fn close(self) {
        self.applied.store(0, Ordering::Relaxed);
        self.shut();
    }

    /// Lets nobody stay either, and executes a full barrier.
    #[inline]
    pub fn shut(self) {
        self.staying.store(0, Ordering::Relaxed);
        // Pairs with the fence in `stay`: it sees the 0, or who shut it sees the pin.
        fence(Ordering::SeqCst);
    }

    /// Lets threads enter at `generation`, the old one, although the gate is closed.
    pub fn let_stay(self, generation: u64) {
        // Release: nothing has changed for those who enter.
        self.staying.store(generation, Ordering::Release);
    }

    /// Opens the gate at `generation`, the new one, or the old one if nothing was applied.
    #[inline]
    pub fn open(self, generation: u64) {
        // Release: cells first, then the number.
        self.applied.store(generation, Release::Gate.ordering());
        self.staying.store(0, Ordering::Release);
    }
}
