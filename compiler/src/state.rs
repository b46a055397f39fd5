//! What is published, as the compiler process holds it, and the commit that moves it on.
//!
//! Invariant: heap, catalog, history and latest commit are of one generation, which is the segment's.

use std::collections::BTreeSet;

use jitcast_runtime::SegmentOffset;
use jitcast_runtime::directory::{Edit, record_flags};
use jitcast_runtime::geometry::{Area, SLOT_BYTES};
use jitcast_runtime::header::Control;
use jitcast_runtime::heap::{Heap, SegmentFull, Txn};
use jitcast_runtime::mailbox::FIRST_GENERATION;
use jitcast_runtime::records::{Root, TRAP_CELL};
use jitcast_runtime::ring::Record;
use jitcast_runtime::segment::Segment;
use jitcast_runtime::sys;

use crate::catalog::Catalog;
use crate::changeset::Changeset;
use crate::contents::Contents;
use crate::fault::{CrashPoint, Fault, crash_at, seeded};
use crate::history::{ContentHash, History, RetainedUnit};
use crate::publish::{Changes, Publication, Retaining, UnitSource};
use crate::removed::Removed;

/// Everything that a publication reads and changes.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) heap: Heap,
    pub(crate) catalog: Catalog,
    pub(crate) history: History,
    /// What the history's files contain; empty with a journal, which has them.
    pub(crate) contents: Contents,
    pub(crate) latest: Commit,
    /// Units that were replaced or removed by a generation whose memory may be held back, in order.
    pub(crate) retired_units: Vec<(u64, String)>,
    /// Names that are published no longer.
    pub(crate) removed: Removed,
    /// Objects that the segment was in before, which some worker may map still.
    pub(crate) older: Vec<Older>,
}

/// An object that the segment was renewed from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Older {
    /// Its number.
    pub(crate) object: u64,
    /// What it takes of the system's memory until nobody maps it, bytes.
    pub(crate) bytes: u64,
}

/// What a commit made visible.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Commit {
    pub(crate) root: Root,
    pub(crate) root_at: SegmentOffset,
    pub(crate) extents: [u32; Area::COUNT],
    pub(crate) ring: Record,
}

impl State {
    /// That of a fresh segment: an empty directory, committed.
    /// It will retain the last `retain` publications of units.
    pub(crate) fn fresh(segment: &Segment, retain: usize) -> Result<Self, SegmentFull> {
        let mut heap = Heap::new(segment.geometry());
        let nothing = Root {
            generation: FIRST_GENERATION - 1,
            ..zerocopy::FromZeros::new_zeroed()
        };
        let mut txn = heap.begin(segment.memory(), segment, FIRST_GENERATION);
        let trap = txn.alloc(Area::CallCells, SLOT_BYTES, SLOT_BYTES)?;
        assert_eq!(trap.offset(), TRAP_CELL, "the first cell is the traps' own");
        let edit = Edit::new(nothing, SegmentOffset::NONE);
        let latest = commit(segment, txn, edit, &[0; Area::COUNT], |_, _| {
            Ok::<_, SegmentFull>(())
        })?;
        Ok(Self {
            heap,
            catalog: Catalog::default(),
            history: History::new(retain, FIRST_GENERATION),
            contents: Contents::default(),
            latest,
            retired_units: Vec::new(),
            removed: Removed::default(),
            older: Vec::new(),
        })
    }

    /// The generation of what is published.
    pub(crate) fn generation(&self) -> u64 {
        self.latest.root.generation
    }

    /// Remembers what the latest commit, of `units` among others, changed. What it returns cannot be had again.
    pub(crate) fn take_over(
        &mut self,
        changes: Changes,
        units: &[RetainedUnit],
    ) -> Vec<RetainedUnit> {
        let Root {
            generation,
            published_ns,
            ..
        } = self.latest.root;
        if let Some(canary) = changes
            .aborted
            .and_then(|id| self.catalog.canaries.get(&id))
        {
            let names = canary.names().map(|name| (generation, name.to_owned()));
            self.retired_units.extend(names);
        }
        let removed = &changes.removed_units;
        let replaced = changes.units.iter().map(|(name, _)| name);
        let replaced = replaced.filter(|name| self.catalog.units.contains_key(*name));
        let retired = replaced.chain(removed).cloned();
        self.retired_units
            .extend(retired.map(|name| (generation, name)));
        let forgotten = match changes.canary {
            // What only a part of the workers runs is not what is published.
            Some(_) => Vec::new(),
            None => self
                .history
                .record((generation, published_ns), units, removed),
        };
        self.removed.note(generation, &changes, &self.catalog);
        self.catalog.merge(changes);
        forgotten
    }

    /// Holds what `units` were made of, and lets go of what those were that are forgotten.
    pub(crate) fn hold(
        &mut self,
        units: &[RetainedUnit],
        sources: &[UnitSource],
        forgotten: &[RetainedUnit],
    ) {
        if self.history.retains() {
            let units = units.iter().zip(sources);
            units.for_each(|(unit, source)| self.contents.hold(unit, source));
        }
        forgotten
            .iter()
            .for_each(|unit| self.contents.release(unit));
    }

    /// The hashes of all contents that may be asked for.
    pub(crate) fn contents_wanted(&self) -> impl Iterator<Item = ContentHash> {
        let canaries = self.catalog.canaries.values();
        let candidates = canaries.flat_map(|canary| &canary.retained);
        let candidates = candidates.flat_map(RetainedUnit::contents);
        self.history.contents().chain(candidates)
    }

    /// The units that generations after `pin` replaced or removed, each once.
    pub(crate) fn units_retired_after(&self, pin: u64) -> Vec<String> {
        let retired = self.retired_units.iter();
        let retired = retired.filter(|(generation, _)| *generation > pin);
        let names: BTreeSet<_> = retired.map(|(_, name)| name).collect();
        names.into_iter().cloned().collect()
    }

    /// The publication that did what `changes` asks for, if nothing would change and the publisher does not insist.
    pub(crate) fn unchanged(
        &self,
        changes: &Changeset<'_>,
        retaining: &Retaining<'_>,
    ) -> Option<Publication> {
        // A canary that asks for it is refused.
        let is_compared = changes.options.if_changed && changes.canary.is_none();
        if !is_compared || !changes.is_units_only() {
            return None;
        }
        let units = retaining.units();
        let published = self.history.published_as(units)?;
        let names: Vec<&str> = units.iter().map(|unit| unit.name.as_str()).collect();
        Some(Publication {
            generation: published.generation,
            published_ns: published.published_ns,
            ..self.catalog.describe(&names)
        })
    }

    /// Shows all of it in a segment that nobody maps yet. The floor says what has been reused in its history: workers whose
    /// threads are inside at generations after that can go on.
    pub(crate) fn show(&self, segment: &Segment) {
        let control = Control::new(segment.memory()).expect("our own segment has a header");
        for area in Area::ALL {
            control.set_extent(area, self.latest.extents[area.index()]);
        }
        let floor = control.floor();
        floor.store(self.heap.floor(), std::sync::atomic::Ordering::Release);
        control.commit(self.latest.root_at);
        control.ring().publish(&self.latest.ring);
    }
}

/// Makes what `txn` and `edit` hold the state of the segment, once `write_ahead` has written it down. If that
/// fails, nothing has changed.
pub(crate) fn commit<E: From<SegmentFull>>(
    segment: &Segment,
    mut txn: Txn<'_>,
    edit: Edit,
    committed: &[u32; Area::COUNT],
    write_ahead: impl FnOnce(&Txn<'_>, &Commit) -> Result<(), E>,
) -> Result<Commit, E> {
    let (root, root_at, mut ring) = edit.finish(&mut txn, sys::monotonic_ns)?;
    let extents = Area::ALL.map(|area| txn.extent(area));
    if extents != *committed {
        ring[1] |= record_flags::EXTENTS;
    }
    let commit = Commit {
        root,
        root_at,
        extents,
        ring,
    };
    write_ahead(&txn, &commit)?;
    let control = Control::new(segment.memory()).expect("our own segment has a header");
    if seeded(Fault::CommitRelaxed) {
        show_head_early(&control, ring[0]);
    }
    for area in Area::ALL {
        control.set_extent(area, extents[area.index()]);
    }
    control.commit(root_at);
    crash_at(CrashPoint::AfterRoot);
    control.ring().publish(&ring);
    crash_at(CrashPoint::AfterHead);
    txn.commit();
    Ok(commit)
}

/// What a reader may see where nothing orders the stores of a commit: the head, and the first word of a record whose other words
/// are those of the one that lay there before; for as long as another processor may lag.
fn show_head_early(control: &Control<'_>, generation: u64) {
    let ring = control.ring();
    if let Some(mut stale) = ring.read(generation.wrapping_sub(ring.places())) {
        stale[0] = generation;
        ring.publish(&stale);
        (0..10_000).for_each(|_| std::hint::spin_loop());
    }
}
