//! Pins against reuse: the handshake between a thread that enters published code and the compiler process
//! that wants to reuse memory.
//!
//! The thread stores its pin, then loads the head; the compiler publishes, then loads the pins; between store
//! and load each needs a full barrier (Dekker). The thread's is the cheap half of an asymmetric pair: only
//! the compiler's `membarrier(GLOBAL_EXPEDITED)` is a real one, and it makes every running thread of
//! every worker execute one too. Invariant: if the compiler missed a pin, the thread sees a head at least as new
//! as the compiler had published, and applies it before it runs anything.

use crate::atomic::{AtomicU64, Ordering, Release, fence};

/// The reader's half of the barrier: nothing to the processor, everything to the optimiser. In models, where
/// there is no membarrier, both halves are fences.
#[inline(always)]
pub fn light_barrier() {
    #[cfg(not(loom))]
    crate::atomic::compiler_fence(Ordering::SeqCst);
    #[cfg(loom)]
    fence(Ordering::SeqCst);
}

/// Pins the calling thread at `generation` and returns the head that it sees afterwards. `fenced`: a real
/// fence, for a worker that membarrier cannot reach.
#[inline(always)]
pub fn enter(pin: &AtomicU64, generation: u64, head: &AtomicU64, fenced: bool) -> u64 {
    pin.store(generation, Ordering::Relaxed);
    if fenced {
        fence(Ordering::SeqCst);
    } else {
        light_barrier();
    }
    // Acquire: pairs with the release store of the head in `Ring::publish`.
    head.load(Ordering::Acquire)
}

/// Puts back the pin that was there before: 0 when the outermost guard leaves. Inline guards of C do the same
/// (`worker/capi/src/inline.h`).
#[inline(always)]
pub fn leave(pin: &AtomicU64, previous: u64) {
    // Release: what the thread did inside happens before the compiler's acquire load in `oldest`, and
    // so before the memory is reused.
    pin.store(previous, Release::Pin.ordering());
}

/// Pins another thread, which is about to begin inside, at `generation`: by a thread that is inside itself, at that
/// generation or an older one, and leaves later. `handed` counts such pins.
pub fn hand_over(pin: &AtomicU64, generation: u64, handed: &AtomicU64) {
    pin.store(generation, Ordering::Relaxed);
    // Release: pairs with the acquires in `settled`. Whoever sees the count sees the pin.
    handed.fetch_add(1, Ordering::Release);
}

/// Says in `held` that a worker's pins hold memory of `object` from now on, and then looks at that object's floor, which may
/// have been raised as long as it was not seen to say so. If it is too high, `held` is to be put back.
pub fn hold<T>(held: &AtomicU64, object: u64, look: impl FnOnce() -> T) -> T {
    held.store(object, Ordering::SeqCst);
    // Pairs with the barrier that the compiler process executes between raising the floor and looking at `held` again.
    fence(Ordering::SeqCst);
    look()
}

/// What `look` says of all pins, looked at while none was handed over: whoever sees that the giver has left would
/// otherwise have looked at the taker too early. `handed` says how many were, in all mailboxes that are looked at, by loads that
/// acquire. `None`: there was one each of `tries` times.
pub fn settled<T>(handed: impl Fn() -> u64, tries: u32, mut look: impl FnMut() -> T) -> Option<T> {
    for _ in 0..tries {
        // Its loads acquire, and pair with the release in `hand_over`.
        let before = handed();
        // Its loads acquire: one that sees the giver's leaving sees the count that came before it.
        let seen = look();
        if handed() == before {
            return Some(seen);
        }
    }
    None
}

/// Between a look at pins, of whichever thread, and the stores of this one to what none of them holds.
///
/// Pairs with [`before_validation`]: whoever copied a word that is stored after this sees pins at least as new as were seen before it.
pub fn before_reuse() {
    fence(Ordering::Release);
}

/// Between copying words that the pin of another thread may hold, and the look whether it did.
///
/// Pairs with [`before_reuse`].
pub fn before_validation() {
    fence(Ordering::Acquire);
}

/// The oldest of `pins`, or `None` if nobody is inside. To be called after the heavy half of the barrier.
pub fn oldest<'a>(pins: impl Iterator<Item = &'a AtomicU64>) -> Option<u64> {
    // Acquire: pairs with the release in `leave`.
    pins.map(|pin| pin.load(Ordering::Acquire))
        .filter(|pin| *pin != 0)
        .min()
}
