//! The windows of this process, for whoever has only an address.
//!
//! A list that only grows, each entry reused when its worker is gone, so that readers need no lock. Invariant: an
//! entry of a length other than 0 has a window that is mapped.

use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jitcast_runtime::geometry::Area;
use jitcast_runtime::records::TextRecord;
use jitcast_runtime::window::Window;
use jitcast_runtime::{SegmentOffset, WorkerAddr};

use super::{frame_at, frame_in, stub_fde, text_at};
use crate::crash::Reporter;
use crate::pin_slot;

#[derive(Debug, Default)]
struct Entry {
    base: AtomicU64,
    /// 0: the entry is free.
    len_bytes: AtomicU64,
    window: AtomicPtr<Window>,
    /// The directories of the generations that threads inside run at: the newest first, the others in any order.
    roots: [Directory; MAX_GENERATIONS],
    /// How far from the thread pointer a thread finds where its pin is; 0: nowhere.
    from_thread: AtomicU64,
    /// What may run when nobody is inside, and that directory is gone.
    left: AtomicPtr<Left>,
    /// Who reports crashes in it.
    reporter: AtomicPtr<Reporter>,
    next: AtomicPtr<Entry>,
}

/// How many generations threads of one worker can be inside at: more than one while some stay at older ones.
pub(crate) const MAX_GENERATIONS: usize = 8;

/// A directory, and its generation; 0: none.
#[derive(Debug, Default)]
struct Directory {
    generation: AtomicU64,
    root: AtomicU32,
}

impl Directory {
    fn get(&self) -> (u64, SegmentOffset) {
        // Acquire: pairs with the release in `set`, which stores this last.
        let generation = self.generation.load(Ordering::Acquire);
        (
            generation,
            SegmentOffset::new(self.root.load(Ordering::Acquire)),
        )
    }

    fn set(&self, generation: u64, root: SegmentOffset) {
        self.root.store(root.get(), Ordering::Release);
        self.generation.store(generation, Ordering::Release);
    }
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

/// Keeps the list as it is, for a fork.
pub(crate) fn lock_changes() -> MutexGuard<'static, ()> {
    CHANGES.lock().unwrap_or_else(PoisonError::into_inner)
}

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
        entry
            .roots
            .iter()
            .for_each(|directory| directory.set(0, SegmentOffset::NONE));
        entry.from_thread.store(0, Ordering::Relaxed);
        entry.base.store(window.base().get(), Ordering::Relaxed);
        // Release: pairs with the acquire load in `find`; the rest is there then.
        entry
            .len_bytes
            .store(window.reach_bytes(), Ordering::Release);
        Self { entry, keep: false }
    }

    /// Where a thread finds its pin ([`PinSlot::distance`](crate::pin_slot::PinSlot::distance)).
    pub(crate) fn set_pins(&self, from_thread: u64) {
        self.entry.from_thread.store(from_thread, Ordering::Release);
    }

    /// All directories, with their generations.
    pub(crate) fn all(&self) -> Vec<(u64, SegmentOffset)> {
        let known = self.entry.roots.iter().map(Directory::get);
        known.filter(|(generation, _)| *generation != 0).collect()
    }

    /// The directory that was applied at `generation`, at which the calling thread is inside.
    pub(crate) fn at(&self, generation: u64) -> Option<SegmentOffset> {
        let found = self
            .entry
            .roots
            .iter()
            .map(Directory::get)
            .find(|(known, _)| *known == generation);
        found.map(|(_, root)| root)
    }

    /// The directories that a thread inside at `generation` can read, the newest first.
    pub(crate) fn from(&self, generation: u64) -> impl Iterator<Item = SegmentOffset> {
        from(self.entry, generation)
    }

    /// From now on, addresses are looked up in the directory at `root` first. Threads are inside at `older` generations, fewer
    /// than [`MAX_GENERATIONS`], at the most. For one thread at a time.
    pub(crate) fn set_newest(&self, generation: u64, root: SegmentOffset, older: &[u64]) {
        let [newest, others @ ..] = &self.entry.roots;
        for other in others {
            let known = other.generation.load(Ordering::Relaxed);
            if known != 0 && !older.contains(&known) {
                other.set(0, SegmentOffset::NONE);
            }
        }
        let (before, before_root) = newest.get();
        if before != generation && older.contains(&before) {
            let free = others.iter().find(|other| other.get().0 == 0);
            free.expect("fewer generations than places")
                .set(before, before_root);
        }
        newest.set(generation, root);
    }

    /// Takes note of a text that may run without a guard. For one thread at a time.
    pub(crate) fn leave(&self, text: TextRecord) {
        let next = self.entry.left.load(Ordering::Relaxed);
        let left = Box::into_raw(Box::new(Left { text, next }));
        self.entry.left.store(left, Ordering::Release);
    }

    /// Has crashes in the window reported, until this is dropped.
    pub(crate) fn report(&self, reporter: Reporter) {
        let reporter = Box::into_raw(Box::new(reporter));
        let before = self.entry.reporter.swap(reporter, Ordering::AcqRel);
        assert!(before.is_null(), "a window has one reporter");
    }

    /// Leaves the window in the list, and mapped, for ever.
    pub(crate) fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        let reporter = &self.entry.reporter;
        let reporter = reporter.swap(core::ptr::null_mut(), Ordering::AcqRel);
        if !reporter.is_null() {
            // SAFETY: from `Box::into_raw` in `report`, taken out once. Who crashes in the window holds a guard, hence a worker,
            // or it is a destructor that runs when the process ends, by the thread that ends it.
            drop(unsafe { Box::from_raw(reporter) });
        }
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

/// A place in a window whose crashes are to be reported, and what the calling thread can read there. For signal handlers.
pub(crate) struct Scene {
    pub(crate) window: &'static Window,
    pub(crate) reporter: &'static Reporter,
    /// The generation that the thread is inside at; 0: unknown.
    pub(crate) inside: u64,
    entry: &'static Entry,
}

impl Scene {
    /// The scene around `pc`. Neither allocates nor locks.
    pub(crate) fn at(pc: u64) -> Option<Self> {
        let inside = |entry: &&Entry| {
            let len_bytes = entry.len_bytes.load(Ordering::Acquire);
            pc.wrapping_sub(entry.base.load(Ordering::Relaxed)) < len_bytes
        };
        let entry = entries().find(inside)?;
        // SAFETY: as in `find_in`.
        let window = unsafe { entry.window.load(Ordering::Acquire).as_ref() }?;
        // SAFETY: null, or the reporter of a worker that is there, as in `find_in`.
        let reporter = unsafe { entry.reporter.load(Ordering::Acquire).as_ref() }?;
        Some(Self {
            window,
            reporter,
            inside: pin_slot::generation(entry.from_thread.load(Ordering::Acquire)),
            entry,
        })
    }

    /// The text around `at`, and where its record is, by the newest directory that knows it.
    pub(crate) fn text(&self, at: SegmentOffset) -> Option<(SegmentOffset, TextRecord)> {
        let view = self.window.control();
        let mut roots = from(self.entry, self.inside);
        roots.find_map(|root| text_at(view, root, at).ok().flatten())
    }
}

#[cold]
fn find_in(entry: &Entry, pc: u64) -> Option<(WorkerAddr, WorkerAddr)> {
    // SAFETY: the entry has a window (its length was not 0), which stays while the calling thread, which is
    // executing in it, holds a guard.
    let window = unsafe { entry.window.load(Ordering::Acquire).as_ref() }?;
    let pc = WorkerAddr::new(pc);
    if let Some(selectors) = window.selectors_at(pc) {
        // As in a stub, the stack is as it was at the call.
        return Some((window.addr_of(stub_fde(window)), selectors));
    }
    let at = window.offset_of(pc)?;
    let stubs = window.geometry().region(Area::Stubs);
    if stubs.contains(at, 1) {
        return Some((
            window.addr_of(stub_fde(window)),
            window.addr_of(stubs.offset()),
        ));
    }
    let generation = pin_slot::generation(entry.from_thread.load(Ordering::Acquire));
    let found = from(entry, generation).find_map(|root| frame_at(window, root, at));
    let found = found.or_else(|| frame_left(entry, window, at));
    let (fde, start) = found?;
    Some((window.addr_of(fde), window.addr_of(start)))
}

/// A directory that is newer than the thread's pin is as good as its own: whatever either reaches stays.
fn from(entry: &Entry, generation: u64) -> impl Iterator<Item = SegmentOffset> {
    let known = entry.roots.iter().map(Directory::get);
    let readable = known.filter(move |(known, _)| *known >= generation.max(1));
    readable.map(|(_, root)| root)
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
