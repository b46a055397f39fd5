//! The windows of this process, for whoever has only an address.
//!
//! A list that only grows, each entry reused when its worker is gone, so that readers need no lock. Invariant: an
//! entry of a length other than 0 has a window that is mapped.

use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use jitcast_runtime::window::Window;
use jitcast_runtime::{SegmentOffset, WorkerAddr};

use super::frame_at;

#[derive(Debug, Default)]
struct Entry {
    base: AtomicU64,
    /// 0: the entry is free.
    len_bytes: AtomicU64,
    window: AtomicPtr<Window>,
    /// The directory of the generation that threads inside run at.
    root: AtomicU32,
    next: AtomicPtr<Entry>,
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
    let (fde, start) = frame_at(window, root, at)?;
    Some((window.addr_of(fde), window.addr_of(start)))
}
