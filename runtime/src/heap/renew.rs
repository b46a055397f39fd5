//! The same image in another object: what is retired is free there, and only what something lies in takes memory. Shared data
//! are in no such object, and stay as they are, retired ones too.
//!
//! Invariant: a granule before an area's extent is backed or a hole, and nothing in use lies in a hole.

use std::collections::BTreeSet;

use crate::geometry::{Area, GRANULE_BYTES, Region};
use crate::heap::{Backing, Heap, SegmentFull};

impl Heap {
    /// The heap of a fresh object that holds what is in use and not retired; what is to be copied there. Extents stay
    /// as they are, since workers have opened the areas up to there.
    ///
    /// # Errors
    /// [`SegmentFull`] if the system has no memory for it.
    pub fn renewed(&self, backing: &dyn Backing) -> Result<(Self, Vec<(Area, Region)>), SegmentFull> {
        let image = self.image();
        let mut heap = Self::new(&self.geometry);
        heap.spaces = self.spaces.clone();
        for retired in &self.retired {
            heap.spaces[retired.area.index()].free(retired.region);
        }
        heap.retired_shared.clone_from(&self.retired_shared);
        heap.retired_bytes = heap.all_retired().map(|retired| u64::from(retired.region.len_bytes)).sum();
        (heap.backed, heap.fresh_text) = (self.backed, self.fresh_text);
        heap.floor = self.retired.back().map_or(self.floor, |retired| retired.generation);
        for area in Area::ALL.into_iter().filter(|area| area.is_in_segment()) {
            let start = self.geometry.allocated(area).start / GRANULE_BYTES * GRANULE_BYTES;
            heap.holes.extend(granules(Region { start, len_bytes: self.extent(area) - start }).map(|at| (area, at)));
        }
        let mut live = image.live;
        let stubs = live.iter().filter(|(area, _)| *area == Area::CallCells);
        let stubs: Vec<_> = stubs.map(|(_, cells)| (Area::Stubs, self.stubs_of(*cells))).collect();
        live.extend(stubs);
        live.retain(|(area, _)| area.is_in_segment());
        for (area, region) in &live {
            heap.fill_holes(*area, *region, backing)?;
        }
        Ok((heap, live))
    }

    /// The granules of `area` before its extent that have no memory.
    pub fn holes(&self, area: Area) -> impl Iterator<Item = u32> {
        self.holes.range((area, 0)..=(area, u32::MAX)).map(|(_, at)| *at)
    }

    /// What the segment's object takes of the system's memory, bytes.
    pub fn backed_bytes(&self) -> u64 {
        let shared = Area::ALL.into_iter().filter(|area| area.is_in_segment());
        let all: u64 = shared.map(|area| u64::from(self.extent(area) - self.geometry.region(area).start)).sum();
        all - self.holes.len() as u64 * u64::from(GRANULE_BYTES)
    }

    pub(super) fn fill_holes(&mut self, area: Area, region: Region, backing: &dyn Backing) -> Result<(), SegmentFull> {
        if self.holes.is_empty() {
            return Ok(());
        }
        let holes: BTreeSet<u32> =
            granules(region).filter(|at| self.holes.contains(&(area, *at))).collect();
        for at in holes {
            let granule = Region { start: at, len_bytes: GRANULE_BYTES };
            backing.reserve(granule).map_err(|cause| {
                self.full(area, GRANULE_BYTES.into(), Some(cause.to_string()))
            })?;
            self.holes.remove(&(area, at));
        }
        Ok(())
    }
}

/// The granules that `region` touches.
fn granules(region: Region) -> impl Iterator<Item = u32> {
    let first = region.start / GRANULE_BYTES * GRANULE_BYTES;
    let end = if region.len_bytes == 0 { first } else { region.end() };
    (first..end).step_by(GRANULE_BYTES as usize)
}
