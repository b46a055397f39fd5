//! Doing again what transactions did, on another heap: for one who rebuilds a segment from what was written
//! down about it.
//!
//! Invariant: what is done again comes from outside, so it is checked; a heap that says [`Inconsistent`] is of no
//! further use.

use crate::geometry::{Area, GRANULE_BYTES, Region};
use crate::heap::{Backing, Heap, SegmentFull, Txn};

/// What a transaction took and retired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "create", derive(serde::Serialize, serde::Deserialize))]
pub struct Effects {
    /// What it took, in no overlap with what was in use.
    pub taken: Vec<(Area, Region)>,
    /// What it retired of what others had taken.
    pub retired: Vec<(Area, Region)>,
}

/// A heap without its history: what is retired counts as free.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "create", derive(serde::Serialize, serde::Deserialize))]
pub struct HeapImage {
    /// What is in use and not retired.
    pub live: Vec<(Area, Region)>,
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

impl Txn<'_> {
    /// What has been taken and retired so far, in the order of places.
    pub fn effects(&self) -> Effects {
        let region = |&(area, start): &(Area, u32), &len_bytes: &u32| (area, Region { start, len_bytes });
        let mut taken: Vec<_> = self.taken.iter().map(|(at, len)| region(at, len)).collect();
        let mut retired = self.given.clone();
        taken.sort_unstable();
        retired.sort_unstable();
        Effects { taken, retired }
    }
}

impl Heap {
    /// The heap as it would be if nobody were inside anything that is retired.
    pub fn image(&self) -> HeapImage {
        let mut spaces = self.spaces.clone();
        for retired in &self.retired {
            spaces[retired.area.index()].free(retired.region);
        }
        let used = |area: Area| spaces[area.index()].used().into_iter().map(move |region| (area, region));
        HeapImage {
            live: Area::ALL.into_iter().flat_map(used).collect(),
            fresh_text: self.fresh_text,
        }
    }

    /// Takes what `image` says of a heap that has taken nothing yet.
    ///
    /// # Errors
    /// [`Inconsistent`].
    pub fn restore(&mut self, image: &HeapImage) -> Result<(), Inconsistent> {
        self.redo(&Effects { taken: image.live.clone(), retired: Vec::new() })?;
        self.fresh_text = self.fresh_text.max(image.fresh_text);
        Ok(())
    }

    /// Does again what a transaction did, once the areas are backed as far as it had them. What it retired is free
    /// at once.
    ///
    /// # Errors
    /// [`Inconsistent`].
    pub fn redo(&mut self, effects: &Effects) -> Result<(), Inconsistent> {
        for &(area, range) in &effects.taken {
            let space = &mut self.spaces[area.index()];
            let fits = Region::new(range.start, range.len_bytes).is_some();
            if !fits || range.end() > self.backed[area.index()] || !space.take(range) {
                return Err(Inconsistent { area: area.name(), range, what: "is taken, but is not free" });
            }
            if area == Area::Text {
                self.fresh_text = self.fresh_text.max(range.end());
            }
        }
        for &(area, range) in &effects.retired {
            if !self.is_used(area, range) || range.len_bytes == 0 {
                return Err(Inconsistent { area: area.name(), range, what: "is retired, but is not in use" });
            }
            self.spaces[area.index()].free(range);
        }
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
            if range.len_bytes > 0 && !area.is_private() {
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
