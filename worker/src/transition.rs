//! Cells on their way from one generation to another, while threads of this worker are inside at both.
//!
//! A cell that is replaced then leads to a selector, or to a chain of them if threads are inside at several older
//! generations: each thread goes to the version of its pin. Invariant: of a cell's versions those are kept that a
//! thread which is inside may need, and the last; selectors are used again once every thread that may be inside one has
//! left.

use std::collections::{HashMap, VecDeque};
use std::sync::Weak;
use std::sync::atomic::{AtomicU64, Ordering};

use jitcast_runtime::SegmentOffset;
use jitcast_runtime::selector::SelectorWord;
use jitcast_runtime::window::Window;

use crate::fault::{Fault, seeded};
use crate::handle::HandleCell;

/// What leads to a version: a slot of the window, or a handle.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Cell(SegmentOffset),
    /// Whoever calls through a handle has a share in it, so nobody is inside the selectors of one that was dropped.
    Handle(Weak<HandleCell>),
}

/// A place as a key: handles by their addresses, which are nobody else's while they are kept here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Cell(u32),
    Handle(usize),
}

impl Place {
    fn key(&self) -> Key {
        match self {
            Self::Cell(cell) => Key::Cell(cell.get()),
            Self::Handle(handle) => Key::Handle(handle.as_ptr().addr()),
        }
    }

    /// What threads load; `None` if there is no such slot, or the handle was dropped.
    fn load(&self, window: &Window) -> Option<u64> {
        self.with(window, |word| word.load(Ordering::Relaxed))
    }

    fn store(&self, window: &Window, address: u64) {
        // Release: what it leads to was stored before, and records of selectors.
        let _ = self.with(window, |word| word.store(address, Ordering::Release));
    }

    fn with<T>(&self, window: &Window, access: impl FnOnce(&AtomicU64) -> T) -> Option<T> {
        match self {
            Self::Cell(cell) => window.slot(*cell).map(access),
            Self::Handle(handle) => handle.upgrade().map(|handle| access(handle.target())),
        }
    }
}

/// A version, and the first generation at which it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    since: u64,
    address: u64,
}

/// A place with more than one version.
#[derive(Debug)]
struct Moving {
    place: Place,
    versions: Vec<Version>,
    selectors: Vec<u32>,
}

/// What is applied, as places see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step<'a> {
    pub(crate) window: &'a Window,
    /// [`PinSlot::distance`](crate::pin_slot::PinSlot::distance).
    pub(crate) from_thread: u64,
    /// The generation at which the new versions count.
    pub(crate) since: u64,
    /// The older generations that threads are inside at, or may enter at, ascending. None: nobody is inside.
    pub(crate) pins: &'a [u64],
}

/// Everything that is on its way, and the selectors.
#[derive(Debug, Default)]
pub(crate) struct Transitions {
    moving: HashMap<Key, Moving>,
    free: Vec<u32>,
    /// Selectors that nothing leads to any more: free once all threads that are inside are so at this generation or later.
    retired: VecDeque<(u64, Vec<u32>)>,
    /// Selectors that were ever handed out.
    known: u32,
    newest: u64,
    /// How many places there are when handles that were dropped are looked for.
    prune_at: usize,
}

impl Transitions {
    /// Whether nothing is on its way.
    pub(crate) fn is_empty(&self) -> bool {
        self.moving.is_empty()
    }

    /// Whether nobody is inside, and nothing on its way: no thread has to be led past what is applied in `step`, so places are simply
    /// stored to.
    pub(crate) fn lead_all_alike(&self, step: &Step<'_>) -> bool {
        step.pins.is_empty() && self.moving.is_empty()
    }

    /// The generation from which on what is on its way is new: nothing that is, is newer.
    pub(crate) fn newest(&self) -> u64 {
        self.newest
    }

    /// What a cell leads to from now on, selectors aside; `None` if there is no such slot.
    pub(crate) fn latest(&self, window: &Window, cell: SegmentOffset) -> Option<u64> {
        let place = Place::Cell(cell);
        if self.moving.is_empty() {
            return place.load(window);
        }
        let moving = self.moving.get(&place.key());
        let latest = moving.and_then(|moving| moving.versions.last());
        match latest {
            Some(version) => Some(version.address),
            None => place.load(window),
        }
    }

    /// Makes sure that there are `count` selectors to be had, if threads are inside at `oldest` at the least.
    pub(crate) fn reserve(&mut self, window: &Window, count: usize, oldest: u64) -> bool {
        while self
            .retired
            .front()
            .is_some_and(|(needs, _)| *needs <= oldest)
        {
            let (_, selectors) = self.retired.pop_front().unwrap_or_default();
            self.free.extend(selectors);
        }
        if self.free.len() < count {
            self.forget_dropped();
        }
        while self.free.len() < count {
            if self.known == window.selector_count() && window.add_selectors().is_err() {
                return false;
            }
            self.free.extend(self.known..window.selector_count());
            self.known = window.selector_count();
        }
        true
    }

    fn forget_dropped(&mut self) {
        let free = &mut self.free;
        self.moving.retain(|_, moving| {
            let used = match &moving.place {
                Place::Cell(_) => true,
                Place::Handle(handle) => handle.strong_count() > 0,
            };
            if !used {
                free.append(&mut moving.selectors);
            }
            used
        });
    }

    /// Lets a handle lead to `address` in `step`.
    pub(crate) fn lead_handle(&mut self, step: &Step<'_>, handle: &Weak<HandleCell>, address: u64) {
        if !self.lead_all_alike(step) {
            return self.lead(step, Place::Handle(Weak::clone(handle)), address);
        }
        if let Some(handle) = handle.upgrade() {
            // Release: as in `Place::store`.
            handle.target().store(address, Ordering::Release);
        }
    }

    /// Lets `place` lead to `address` in `step`.
    pub(crate) fn lead(&mut self, step: &Step<'_>, place: Place, address: u64) {
        let Some(now) = place.load(step.window) else {
            return;
        };
        if seeded(Fault::SlotBySlot) {
            return place.store(step.window, address);
        }
        let at_once = step.pins.is_empty() || now == address;
        if at_once && self.moving.is_empty() {
            return place.store(step.window, address);
        }
        let key = place.key();
        let mut moving = match self.moving.remove(&key) {
            Some(moving) => moving,
            None if at_once => return place.store(step.window, address),
            None => Moving {
                place,
                versions: vec![Version {
                    since: 0,
                    address: now,
                }],
                selectors: Vec::new(),
            },
        };
        let before = moving.versions.clone();
        add(
            &mut moving.versions,
            Version {
                since: step.since,
                address,
            },
        );
        prune(&mut moving.versions, step.pins);
        let same = before
            .iter()
            .zip(&moving.versions)
            .take_while(|(old, new)| old == new);
        // Those of versions that stay lead on to the same.
        let stay = same.count().saturating_sub(1).min(moving.selectors.len());
        let gone = moving.selectors.split_off(stay);
        self.retire(gone, step.since);
        let target = self.chain(step, &mut moving);
        moving.place.store(step.window, target);
        if moving.versions.len() > 1 {
            self.moving.insert(key, moving);
            self.newest = self.newest.max(step.since);
            if self.moving.len() > self.prune_at {
                self.forget_dropped();
                self.prune_at = (self.moving.len() * 2).max(64);
            }
        }
    }

    /// Selectors for the versions of `moving` that have none yet: what its place leads to.
    fn chain(&mut self, step: &Step<'_>, moving: &mut Moving) -> u64 {
        let mut target = match moving.selectors.last() {
            Some(last) => step.window.selector(*last).get(),
            None => moving.versions[0].address,
        };
        for version in &moving.versions[moving.selectors.len() + 1..] {
            let selector = self
                .free
                .pop()
                .expect("as many were reserved as there can be versions");
            let word = |word| step.window.selector_word(selector, word);
            word(SelectorWord::Thread).store(step.from_thread, Ordering::Relaxed);
            word(SelectorWord::Before).store(version.since - 1, Ordering::Relaxed);
            word(SelectorWord::Old).store(target, Ordering::Relaxed);
            word(SelectorWord::New).store(version.address, Ordering::Relaxed);
            moving.selectors.push(selector);
            target = step.window.selector(selector).get();
        }
        target
    }

    /// Lets every place whose older versions no thread can need (all are inside at `oldest` or later) lead to its
    /// last one. Threads that are inside selectors now are so at generations before `next`.
    pub(crate) fn settle(&mut self, window: &Window, oldest: u64, next: u64) {
        if self.moving.is_empty() {
            return;
        }
        let mut settled = Vec::new();
        self.moving.retain(|_, moving| {
            let last = moving.versions.last().copied();
            let Some(last) = last.filter(|last| last.since <= oldest) else {
                return true;
            };
            moving.place.store(window, last.address);
            settled.append(&mut moving.selectors);
            false
        });
        self.retire(settled, next);
    }

    fn retire(&mut self, selectors: Vec<u32>, needs: u64) {
        if !selectors.is_empty() {
            self.retired.push_back((needs, selectors));
        }
    }
}

/// Adds the version that counts from now on.
fn add(versions: &mut Vec<Version>, new: Version) {
    match versions.last_mut() {
        Some(last) if last.address == new.address => {}
        Some(last) if last.since == new.since => last.address = new.address,
        _ => versions.push(new),
    }
}

/// Leaves out what no thread inside at one of `pins` can need.
fn prune(versions: &mut Vec<Version>, pins: &[u64]) {
    let all = std::mem::take(versions);
    let mut ends = all.iter().skip(1).map(|next| next.since).chain([u64::MAX]);
    let last = all.len() - 1;
    for (index, version) in all.iter().enumerate() {
        let end = ends.next().unwrap_or(u64::MAX);
        let needed = pins.iter().any(|pin| (version.since..end).contains(pin));
        if needed || index == last {
            versions.push(*version);
        }
    }
    // Whoever is older than all that is kept does not exist.
    versions[0].since = 0;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version((since, address): (u64, u64)) -> Version {
        Version { since, address }
    }

    #[track_caller]
    fn assert_pruned(all: &[(u64, u64)], pins: &[u64], kept: &[(u64, u64)]) {
        let mut versions: Vec<Version> = all.iter().copied().map(version).collect();
        prune(&mut versions, pins);
        let kept: Vec<Version> = kept.iter().copied().map(version).collect();
        assert_eq!(versions, kept);
    }

    #[test]
    fn versions_are_kept_that_a_pin_needs_and_the_last() {
        let all = [(0, 10), (5, 11), (7, 12), (9, 13)];
        assert_pruned(&all, &[], &[(0, 13)]);
        assert_pruned(&all, &[4], &[(0, 10), (9, 13)]);
        assert_pruned(&all, &[5], &[(0, 11), (9, 13)]);
        assert_pruned(&all, &[6, 8], &[(0, 11), (7, 12), (9, 13)]);
        assert_pruned(&all, &[3, 8, 9], &[(0, 10), (7, 12), (9, 13)]);
        assert_pruned(&all[..1], &[1], &all[..1]);
    }

    #[test]
    fn one_generation_has_one_version() {
        let mut versions = vec![version((0, 10))];
        for (since, address) in [(4, 10), (5, 11), (5, 12), (6, 12)] {
            add(&mut versions, version((since, address)));
        }
        assert_eq!(versions, [version((0, 10)), version((5, 12))]);
    }
}
