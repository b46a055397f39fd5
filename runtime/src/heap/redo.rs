//! Doing again what transactions did, on another heap: for one who rebuilds a segment from what was written
//! down about it.
//!
//! Invariant: what is done again comes from outside, so it is checked; a heap that says [`Inconsistent`] is of no
//! further use.

use crate::geometry::{Area, GRANULE_BYTES, Region};
use crate::heap::{Backing, Heap, SegmentFull};
use crate::space::Space;

/// What a transaction took and retired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "create", derive(serde::Serialize, serde::Deserialize))]
pub struct Effects {
    /// What it took, in no overlap with what was in use.
    pub taken: Vec<(Area, Region)>,
    /// What it retired of what others had taken.
    pub retired: Vec<(Area, Region)>,
}

/// A heap, as it can be made again.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "create", derive(serde::Serialize, serde::Deserialize))]
pub struct HeapImage {
    /// What is in use and not retired.
    pub live: Vec<(Area, Region)>,
    /// What is retired, and by which generation, in order; shared data by themselves, after all others.
    pub retired: Vec<(u64, Area, Region)>,
    /// The newest generation of which something retired was freed.
    pub floor: u64,
    /// First text offset that has never been executed.
    pub fresh_text: u32,
}

/// What is to be done again does not fit what was done before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{range} of {area} {what}")]
pub struct Inconsistent {
    /// The area.
    pub area: &'static str,
    /// Where.
    pub range: Region,
    /// What is wrong with it.
    pub what: &'static str,
}

/// Why something cannot be done again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedoError {
    /// It does not fit.
    #[error(transparent)]
    Inconsistent(#[from] Inconsistent),
    /// The system has no memory for it.
    #[error(transparent)]
    Full(#[from] SegmentFull),
}

impl Heap {
    /// The heap, to be made again.
    pub fn image(&self) -> HeapImage {
        let mut spaces = self.spaces.clone();
        for retired in self.all_retired() {
            spaces[retired.area.index()].free(retired.region);
        }
        let used = |area: Area| spaces[area.index()].used().into_iter().map(move |region| (area, region));
        let retired = self.all_retired();
        HeapImage {
            live: Area::ALL.into_iter().flat_map(used).collect(),
            retired: retired.map(|retired| (retired.generation, retired.area, retired.region)).collect(),
            floor: self.floor,
            fresh_text: self.fresh_text,
        }
    }

    /// Takes what `image` says of a heap that has taken nothing yet.
    ///
    /// # Errors
    /// [`Inconsistent`].
    pub fn restore(&mut self, image: &HeapImage) -> Result<(), Inconsistent> {
        let live = image.live.iter().copied();
        let retired = image.retired.iter().map(|&(_, area, region)| (area, region));
        self.redo(0, &Effects { taken: live.chain(retired).collect(), retired: Vec::new() })?;
        for &(generation, area, region) in &image.retired {
            self.retire_again(generation, area, region)?;
        }
        self.floor = self.floor.max(image.floor);
        self.fresh_text = self.fresh_text.max(image.fresh_text);
        Ok(())
    }

    /// Does again what the transaction of `generation` did, once the areas are backed as far as it had them. What was
    /// retired before is freed as far as it has to have been: the rest may still be in use by somebody.
    ///
    /// # Errors
    /// [`Inconsistent`].
    pub fn redo(&mut self, generation: u64, effects: &Effects) -> Result<(), Inconsistent> {
        for &(area, range) in &effects.taken {
            let fits = Region::new(range.start, range.len_bytes).is_some();
            let is_backed = fits && range.end() <= self.backed[area.index()];
            let is_free = is_backed && self.live()[area.index()].take(range);
            if !is_free || !self.take_again(area, range) {
                return Err(Inconsistent { area: area.name(), range, what: "is taken, but is not free" });
            }
            if area == Area::Text {
                self.fresh_text = self.fresh_text.max(range.end());
            }
        }
        for &(area, range) in &effects.retired {
            self.retire_again(generation, area, range)?;
        }
        Ok(())
    }

    /// Everything has been done again.
    pub fn end_redo(&mut self) {
        self.live = None;
    }

    fn live(&mut self) -> &mut [Space; Area::COUNT] {
        self.live.get_or_insert_with(|| Box::new(self.spaces.clone()))
    }

    fn take_again(&mut self, area: Area, range: Region) -> bool {
        if self.spaces[area.index()].take(range) {
            return true;
        }
        let overlaps = |retired: &&super::Retired| {
            let region = retired.region;
            retired.area == area && region.start < range.end() && range.start < region.end()
        };
        let Some(last) = self.retired_of(area).iter().rev().find(overlaps).copied() else {
            return false;
        };
        if area == Area::SharedData {
            self.reclaim_shared(last.generation);
        } else {
            self.reclaim(last.generation);
        }
        self.spaces[area.index()].take(range)
    }

    fn retire_again(&mut self, generation: u64, area: Area, region: Region) -> Result<(), Inconsistent> {
        let wrong = |what| Inconsistent { area: area.name(), range: region, what };
        let fits = Region::new(region.start, region.len_bytes).is_some();
        if !fits || region.len_bytes == 0 || !self.live()[area.index()].is_used(region) {
            return Err(wrong("is retired, but is not in use"));
        }
        self.live()[area.index()].free(region);
        let list = self.retired_of(area);
        if list.back().is_some_and(|retired| retired.generation > generation) {
            return Err(wrong("is retired out of order"));
        }
        list.push_back(super::Retired { generation, area, region });
        self.retired_bytes += u64::from(region.len_bytes);
        Ok(())
    }

    /// Whether all of `range` is in use, or retired.
    pub fn is_used(&self, area: Area, range: Region) -> bool {
        Region::new(range.start, range.len_bytes).is_some() && self.spaces[area.index()].is_used(range)
    }

    /// Backs each area as far as a transaction had it that is to be done again.
    ///
    /// # Errors
    /// [`RedoError`].
    pub fn back_up_to(
        &mut self,
        extents: &[u32; Area::COUNT],
        backing: &dyn Backing,
    ) -> Result<(), RedoError> {
        for area in Area::ALL {
            let (start, end) = (self.backed[area.index()], extents[area.index()]);
            let region = self.geometry.region(area);
            if end < start || end > region.end() || !(end - region.start).is_multiple_of(GRANULE_BYTES) {
                let range = Region { start, len_bytes: end.saturating_sub(start) };
                let what = "is no growth of the area";
                return Err(Inconsistent { area: area.name(), range, what }.into());
            }
            let range = Region { start, len_bytes: end - start };
            if range.len_bytes > 0 && area.is_in_segment() {
                let backed = backing.reserve(range);
                backed.map_err(|cause| {
                    self.full(area, range.len_bytes.into(), Some(cause.to_string()))
                })?;
            }
            self.backed[area.index()] = end;
        }
        Ok(())
    }
}
