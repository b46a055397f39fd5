//! The windows of this process, for whoever has only an address.
//!
//! A list that only grows, each entry reused when its worker is gone, so that readers need no lock. Invariant: an
//! entry of a length other than 0 has a window that is mapped.

use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use jitcast_runtime::records::TextRecord;
use jitcast_runtime::window::Window;
use jitcast_runtime::{SegmentOffset, WorkerAddr};

use super::{frame_at, frame_in};

#[derive(Debug, Default)]
struct Entry {
    base: AtomicU64,
    /// 0: the entry is free.
    len_bytes: AtomicU64,
    window: AtomicPtr<Window>,
    /// The directory of the generation that threads inside run at.
    root: AtomicU32,
    /// What may run when nobody is inside, and that directory is gone.
    left: AtomicPtr<Left>,
    next: AtomicPtr<Entry>,
}

/// A text that may run without a guard: of a unit with destructors, which is kept, and so are the tables that the
/// record refers to.
#[derive(Debug)]
struct Left {
    text: TextRecord,
    next: *mut Self,
}

static FIRST: AtomicPtr<Entry> = AtomicPtr::new(core::ptr::null_mut());

/// Held by whoever changes the list.
static CHANGES: Mutex<()> = Mutex::new(());

/// The entries. None is ever freed.
fn entries() -> impl Iterator<Item = &'static Entry> {
    let entry = |pointer: &AtomicPtr<Entry>| {
        // SAFETY: null, or leaked when it was added.
        unsafe { pointer.load(Ordering::Acquire).as_ref() }
    };
    core::iter::successors(entry(&FIRST), move |last| entry(&last.next))
}

/// A window's place in the list, until it is dropped.
#[derive(Debug)]
pub(crate) struct Listing {
    entry: &'static Entry,
    keep: bool,
}

impl Listing {
    /// Adds `window`.
    pub(crate) fn new(window: &Arc<Window>) -> Self {
        let _changes = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
        let free = entries().find(|entry| entry.len_bytes.load(Ordering::Acquire) == 0);
        let entry = free.unwrap_or_else(|| {
            let entry = Box::leak(Box::<Entry>::default());
            entry.next = AtomicPtr::new(FIRST.load(Ordering::Relaxed));
            FIRST.store(entry, Ordering::Release);
            entry
        });
        let pointer = Arc::into_raw(Arc::clone(window)).cast_mut();
        entry.window.store(pointer, Ordering::Relaxed);
        entry.root.store(0, Ordering::Relaxed);
        entry.base.store(window.base().get(), Ordering::Relaxed);
        // Release: pairs with the acquire load in `find`; the rest is there then.
        let len_bytes = window.geometry().window().len_bytes;
        entry.len_bytes.store(len_bytes.into(), Ordering::Release);
        Self { entry, keep: false }
    }

    /// The directory that addresses are looked up in.
    pub(crate) fn root(&self) -> SegmentOffset {
        SegmentOffset::new(self.entry.root.load(Ordering::Acquire))
    }

    /// From now on, addresses are looked up in the directory at `root`. Nobody else is inside.
    pub(crate) fn set_root(&self, root: SegmentOffset) {
        self.entry.root.store(root.get(), Ordering::Release);
    }

    /// Takes note of a text that may run without a guard. For one thread at a time.
    pub(crate) fn leave(&self, text: TextRecord) {
        let next = self.entry.left.load(Ordering::Relaxed);
        let left = Box::into_raw(Box::new(Left { text, next }));
        self.entry.left.store(left, Ordering::Release);
    }

    /// Leaves the window in the list, and mapped, for ever.
    pub(crate) fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        let _changes = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
        self.entry.len_bytes.store(0, Ordering::Release);
        let window = self.entry.window.load(Ordering::Relaxed);
        // SAFETY: from `Arc::into_raw` in `new`, and given back once. Whoever unwinds through the window holds a
        // guard, hence a worker, so nobody is between finding the entry and looking at the window.
        drop(unsafe { Arc::from_raw(window) });
        let mut left = self
            .entry
            .left
            .swap(core::ptr::null_mut(), Ordering::Acquire);
        while !left.is_null() {
            // SAFETY: from `Box::into_raw` in `leave`, taken out of the list once, and nobody looks at it, as above.
            left = unsafe { Box::from_raw(left) }.next;
        }
    }
}

/// The record of the published function around `pc`, and its start. Neither allocates nor locks: an address
/// outside of all windows costs a comparison for each worker of this process.
#[inline]
pub(crate) fn find(pc: u64) -> Option<(WorkerAddr, WorkerAddr)> {
    let inside = |entry: &&Entry| {
        let len_bytes = entry.len_bytes.load(Ordering::Acquire);
        pc.wrapping_sub(entry.base.load(Ordering::Relaxed)) < len_bytes
    };
    let entry = entries().find(inside)?;
    find_in(entry, pc)
}

#[cold]
fn find_in(entry: &Entry, pc: u64) -> Option<(WorkerAddr, WorkerAddr)> {
    // SAFETY: the entry has a window (its length was not 0), which stays while the calling thread, which is
    // executing in it, holds a guard.
    let window = unsafe { entry.window.load(Ordering::Acquire).as_ref() }?;
    let at = window.offset_of(WorkerAddr::new(pc))?;
    let root = SegmentOffset::new(entry.root.load(Ordering::Acquire));
    let found = frame_at(window, root, at).or_else(|| frame_left(entry, window, at));
    let (fde, start) = found?;
    Some((window.addr_of(fde), window.addr_of(start)))
}

/// The record of a function that runs without a guard.
fn frame_left(
    entry: &Entry,
    window: &Window,
    at: SegmentOffset,
) -> Option<(SegmentOffset, SegmentOffset)> {
    let next = |pointer: *mut Left| {
        // SAFETY: null, or made in `leave`, and there as long as the window is listed.
        unsafe { pointer.as_ref() }
    };
    let first = next(entry.left.load(Ordering::Acquire));
    let mut all = core::iter::successors(first, |left| next(left.next));
    all.find_map(|left| frame_in(window, &left.text, at))
}
