//! The compiler's allocator over all areas, in transactions: what a publication takes is given back when it
//! fails, and what it retires is reused only when no pin can reach it.
//!
//! Invariant: a range is free, or belongs to exactly one of: an open transaction, the published state,
//! the retired lists. Shared data have a list of their own: they stay where they are when the segment goes on in another
//! object, so whoever is at an older one holds them too.

mod redo;
mod renew;
mod taken;
mod txn;

use std::collections::{BTreeSet, VecDeque};

use crate::geometry::{Area, GRANULE_BYTES, Geometry, Region};
use crate::memory::Memory;
use crate::pin;
use crate::space::Space;

pub use redo::{Effects, HeapImage, Inconsistent, RedoError};
pub use txn::Txn;

/// An area has no room left, or the system has no memory to back it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "segment full: {asked_bytes} bytes of {area} are needed, {free_bytes} of {area_bytes} are free \
     (largest piece {largest_bytes}, {retired_bytes} more are retired but may still be in use){}\n  \
     help: {}",
    cause.as_ref().map(|cause| format!("\n  the system refused to back them: {cause}")).unwrap_or_default(),
    if cause.is_some() {
        "enlarge the tmpfs, the memory cgroup or the machine; what was published goes on"
    } else {
        "start the compiler process with a larger --window; what was published goes on"
    }
)]
pub struct SegmentFull {
    /// The area.
    pub area: &'static str,
    /// What was asked for, bytes.
    pub asked_bytes: u64,
    /// What is free in the area, bytes.
    pub free_bytes: u64,
    /// The largest free piece, bytes.
    pub largest_bytes: u64,
    /// The area's size, bytes.
    pub area_bytes: u64,
    /// What is retired and waits for pins, bytes.
    pub retired_bytes: u64,
    /// The system's refusal, if it was that.
    pub cause: Option<String>,
}

/// Backs ranges of the shared object with memory before they are stored to.
pub trait Backing {
    /// Makes sure that the window offsets `range` can be stored to.
    ///
    /// # Errors
    /// What the system said.
    fn reserve(&self, range: Region) -> std::io::Result<()>;

    /// Gives `range` of the shared data memory and what it starts with: the bytes of `template`, in control, then zeros.
    ///
    /// # Errors
    /// What the system said.
    fn fill(&self, range: Region, template: Region) -> std::io::Result<()>;
}

/// A retired range.
#[derive(Clone, Copy, Debug)]
struct Retired {
    generation: u64,
    area: Area,
    region: Region,
}

/// The allocator of a segment.
#[derive(Debug)]
pub struct Heap {
    geometry: Geometry,
    spaces: [Space; Area::COUNT],
    /// First offset of each area that is not backed yet, a multiple of the granule.
    backed: [u32; Area::COUNT],
    /// The granules before that which are not backed all the same: nothing lay there when the segment was renewed.
    holes: BTreeSet<(Area, u32)>,
    /// First text offset that has never been executed: anything below is reused memory.
    fresh_text: u32,
    retired: VecDeque<Retired>,
    /// The same of shared data.
    retired_shared: VecDeque<Retired>,
    retired_bytes: u64,
    /// The newest generation of which something retired was freed: what later ones retired is there.
    floor: u64,
    /// While it is made again: what is in use and not retired.
    live: Option<Box<[Space; Area::COUNT]>>,
}

impl Heap {
    /// The allocator of a fresh segment.
    pub fn new(geometry: &Geometry) -> Self {
        let spaces = Area::ALL.map(|area| Space::new(geometry.allocated(area)));
        Self {
            geometry: *geometry,
            spaces,
            backed: Area::ALL.map(|area| geometry.allocated(area).start / GRANULE_BYTES * GRANULE_BYTES),
            holes: BTreeSet::new(),
            fresh_text: geometry.allocated(Area::Text).start,
            retired: VecDeque::new(),
            retired_shared: VecDeque::new(),
            retired_bytes: 0,
            floor: 0,
            live: None,
        }
    }

    /// Starts the transaction that writes `generation`.
    pub fn begin<'a>(
        &'a mut self,
        memory: &'a Memory,
        backing: &'a dyn Backing,
        generation: u64,
    ) -> Txn<'a> {
        // Some of what it stores to was freed by `reclaim`.
        pin::before_reuse();
        Txn::new(self, (memory, backing), generation)
    }

    /// First offset of `area` past what is backed by memory.
    pub fn extent(&self, area: Area) -> u32 {
        self.backed[area.index()]
    }

    /// Bytes of `area` in use (published or retired).
    pub fn used_bytes(&self, area: Area) -> u64 {
        self.spaces[area.index()].used_bytes()
    }

    /// How much of `area` could be had, bytes.
    pub fn free_bytes(&self, area: Area) -> u64 {
        u64::from(self.spaces[area.index()].area().len_bytes) - self.used_bytes(area)
    }

    /// The longest range of `area` that could be had, bytes.
    pub fn largest_free_bytes(&self, area: Area) -> u64 {
        self.spaces[area.index()].largest_free_bytes().into()
    }

    /// What could be had of `area`, as the longest ranges that hold nothing else, in order.
    pub fn free_ranges(&self, area: Area) -> impl Iterator<Item = Region> {
        self.spaces[area.index()].free_ranges()
    }

    /// Bytes that wait for pins before they can be reused.
    pub fn retired_bytes(&self) -> u64 {
        self.retired_bytes
    }

    /// What a thread that is inside at generation `pin` keeps from being reused, bytes.
    pub fn held_bytes(&self, pin: u64) -> u64 {
        let after = |list: &VecDeque<Retired>| -> u64 {
            let held = list.iter().rev().take_while(|retired| retired.generation > pin);
            held.map(|retired| u64::from(retired.region.len_bytes)).sum()
        };
        after(&self.retired) + after(&self.retired_shared)
    }

    fn all_retired(&self) -> impl Iterator<Item = &Retired> {
        self.retired.iter().chain(&self.retired_shared)
    }

    /// The newest generation of which something retired was freed.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// What is retired and not freed.
    pub fn retired(&self) -> impl Iterator<Item = (Area, Region)> {
        self.all_retired().map(|retired| (retired.area, retired.region))
    }

    /// The same, with the generations that retired it.
    pub fn retired_by(&self) -> impl Iterator<Item = (u64, Area, Region)> {
        self.all_retired().map(|retired| (retired.generation, retired.area, retired.region))
    }

    /// The oldest generation that retired something which has not been freed.
    pub fn oldest_retired(&self) -> Option<u64> {
        let oldest = [self.retired.front(), self.retired_shared.front()];
        oldest.into_iter().flatten().map(|retired| retired.generation).min()
    }

    /// The oldest generation that retired shared data which have not been freed.
    pub fn oldest_retired_shared(&self) -> Option<u64> {
        self.retired_shared.front().map(|retired| retired.generation)
    }

    /// Frees what was retired by generations up to `oldest_pin`, but for shared data: every thread that is inside a guard
    /// is pinned to at least that generation, and whoever enters from now on sees a newer root.
    pub fn reclaim(&mut self, oldest_pin: u64) {
        let count = self.retired.partition_point(|retired| retired.generation <= oldest_pin);
        let retired = self.retired.drain(..count).collect();
        self.free(retired);
    }

    /// The same of shared data: no thread of any worker, at whichever object, is inside at a generation before `oldest`, nor
    /// can be again.
    pub fn reclaim_shared(&mut self, oldest: u64) {
        let count = self.retired_shared.partition_point(|retired| retired.generation <= oldest);
        let retired = self.retired_shared.drain(..count).collect();
        self.free(retired);
    }

    fn free(&mut self, retired: Vec<Retired>) {
        for Retired { generation, region, .. } in &retired {
            self.floor = self.floor.max(*generation);
            self.retired_bytes -= u64::from(region.len_bytes);
        }
        let mut ranges = retired.into_iter().map(|retired| (retired.area, retired.region)).collect();
        merge(&mut ranges);
        for (area, range) in ranges {
            self.spaces[area.index()].free(range);
        }
    }

    fn retired_of(&mut self, area: Area) -> &mut VecDeque<Retired> {
        if area == Area::SharedData { &mut self.retired_shared } else { &mut self.retired }
    }

    fn full(&self, area: Area, asked_bytes: u64, cause: Option<String>) -> SegmentFull {
        let space = &self.spaces[area.index()];
        let area_bytes = u64::from(space.area().len_bytes);
        SegmentFull {
            area: area.name(),
            asked_bytes,
            free_bytes: u64::from(space.area().len_bytes) - space.used_bytes(),
            largest_bytes: space.largest_free_bytes().into(),
            area_bytes,
            retired_bytes: self
                .all_retired()
                .filter(|retired| retired.area == area)
                .map(|retired| u64::from(retired.region.len_bytes))
                .sum(),
            cause,
        }
    }

    /// The stubs of a range of call cells.
    fn stubs_of(&self, cells: Region) -> Region {
        let first = self.geometry.stub_of(cells.offset()).expect("a call cell has a stub");
        let len_bytes = cells.len_bytes / crate::geometry::SLOT_BYTES * crate::geometry::STUB_BYTES;
        Region { start: first.get(), len_bytes }
    }

    /// Backs `region` of `area`, and all before it.
    fn back(&mut self, area: Area, region: Region, backing: &dyn Backing) -> Result<(), SegmentFull> {
        self.fill_holes(area, region, backing)?;
        self.extend(area, region.end(), backing)
    }

    /// Backs `area` up to `end`, in steps of a granule or more.
    fn extend(&mut self, area: Area, end: u32, backing: &dyn Backing) -> Result<(), SegmentFull> {
        let start = self.backed[area.index()];
        if end <= start {
            return Ok(());
        }
        let limit = self.geometry.region(area).end();
        // Growth by an eighth keeps the number of steps (each an mprotect in every worker) logarithmic.
        let stride = ((start - self.geometry.region(area).start) / 8).max(GRANULE_BYTES);
        let generous = end.max(start.saturating_add(stride)).next_multiple_of(GRANULE_BYTES).min(limit);
        let reserve = |end: u32| {
            let range = Region { start, len_bytes: end - start };
            // Shared data get their memory when they are filled.
            if area.is_in_segment() { backing.reserve(range) } else { Ok(()) }
        };
        let exact = end.next_multiple_of(GRANULE_BYTES).min(limit);
        let end = match reserve(generous) {
            Ok(()) => generous,
            // There may be room for what is needed, though not for more.
            Err(_) => match reserve(exact) {
                Ok(()) => exact,
                Err(cause) => {
                    let asked_bytes = u64::from(exact - start);
                    return Err(self.full(area, asked_bytes, Some(cause.to_string())));
                }
            },
        };
        self.backed[area.index()] = end;
        Ok(())
    }
}

/// Sorts ranges, and makes one of those that follow one another: what one publication took lies together, and mostly goes together.
fn merge(ranges: &mut Vec<(Area, Region)>) {
    ranges.sort_unstable();
    ranges.dedup_by(|(area, range), (last_area, last)| {
        let follows = area == last_area && Region::new(last.start, last.len_bytes).is_some_and(|last| last.end() == range.start);
        let merged = last.len_bytes.checked_add(range.len_bytes).filter(|_| follows);
        last.len_bytes = merged.unwrap_or(last.len_bytes);
        merged.is_some()
    });
}
