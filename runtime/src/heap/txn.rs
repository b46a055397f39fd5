//! What one publication takes and gives up.
//!
//! Invariant: until it is committed, dropping it leaves the heap as it was, but for what is backed.

use crate::geometry::{Area, Region};
use crate::heap::taken::Taken;
use crate::heap::{Backing, Effects, Heap, Retired, SegmentFull, merge};
use crate::memory::Memory;

/// What one publication takes and retires.
pub struct Txn<'a> {
    heap: &'a mut Heap,
    memory: &'a Memory,
    backing: &'a dyn Backing,
    generation: u64,
    taken: [Taken; Area::COUNT],
    given: Vec<(Area, Region)>,
    reused_text: bool,
    committed: bool,
}

impl<'a> Txn<'a> {
    pub(super) fn new(heap: &'a mut Heap, (memory, backing): (&'a Memory, &'a dyn Backing), generation: u64) -> Self {
        Self {
            heap,
            memory,
            backing,
            generation,
            taken: Default::default(),
            // As much as replacing a small unit gives.
            given: Vec::with_capacity(32),
            reused_text: false,
            committed: false,
        }
    }
}

impl Txn<'_> {
    /// The generation that is being written.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The segment's memory.
    pub fn memory(&self) -> &Memory {
        self.memory
    }

    /// Whether text was taken where other text had been: workers must serialise before they enter it.
    pub fn reused_text(&self) -> bool {
        self.reused_text
    }

    /// First offset of `area` past what is backed by memory.
    pub fn extent(&self, area: Area) -> u32 {
        self.heap.extent(area)
    }

    /// What has been taken and retired so far, in the order of places.
    pub fn effects(&self) -> Effects {
        let of = |area: Area| self.taken[area.index()].ranges().map(move |range| (area, range));
        let mut effects =
            Effects { taken: Area::ALL.into_iter().flat_map(of).collect(), retired: self.given.clone() };
        merge(&mut effects.taken);
        merge(&mut effects.retired);
        effects
    }

    /// Takes `len_bytes` of `area`, aligned (a power of two), backed by memory.
    ///
    /// # Errors
    /// [`SegmentFull`].
    pub fn alloc(&mut self, area: Area, len_bytes: u32, align_bytes: u32) -> Result<Region, SegmentFull> {
        if len_bytes == 0 {
            return Ok(Region { start: self.heap.geometry.allocated(area).start, len_bytes });
        }
        let Some(region) = self.find(area, len_bytes, align_bytes) else {
            return Err(self.heap.full(area, len_bytes.into(), None));
        };
        self.taken[area.index()].add(region);
        let mut backed = self.heap.back(area, region, self.backing);
        if area == Area::CallCells && backed.is_ok() {
            let stubs = self.heap.stubs_of(region);
            backed = self.heap.back(Area::Stubs, stubs, self.backing);
        }
        if let Err(full) = backed {
            self.retire(area, region);
            return Err(full);
        }
        if area == Area::Text {
            self.reused_text |= region.start < self.heap.fresh_text;
        }
        Ok(region)
    }

    fn find(&mut self, area: Area, len_bytes: u32, align_bytes: u32) -> Option<Region> {
        let space = &mut self.heap.spaces[area.index()];
        if area != Area::Control {
            return space.alloc(len_bytes, align_bytes);
        }
        // Control is divided in words: no record may begin inside another's last word.
        let len_bytes = len_bytes.checked_next_multiple_of(8)?;
        // A publication's records and tables lie together, and mostly go together.
        if align_bytes <= 8 { space.alloc_next(len_bytes) } else { space.alloc(len_bytes, align_bytes) }
    }

    /// Asks that the next `len_bytes` of control lie together, if there is room for that: they are going to be read together, and so
    /// share pages of memory.
    pub fn gather(&mut self, len_bytes: u32) {
        self.heap.spaces[Area::Control.index()].gather(len_bytes);
    }

    /// Gives `region` of the shared data, which was taken, what it starts with: the bytes of `template`, in control, then
    /// zeros.
    ///
    /// # Errors
    /// [`SegmentFull`] if the system has no memory for it.
    pub fn fill(&self, region: Region, template: Region) -> Result<(), SegmentFull> {
        let refused = |cause: std::io::Error| {
            self.heap.full(Area::SharedData, region.len_bytes.into(), Some(cause.to_string()))
        };
        if region.len_bytes == 0 { Ok(()) } else { self.backing.fill(region, template).map_err(refused) }
    }

    /// Gives `region` up: once the transaction is committed and no pin is older, it is reused. What the
    /// transaction itself took is free at once.
    pub fn retire(&mut self, area: Area, region: Region) {
        if region.len_bytes == 0 {
            return;
        }
        let region = if area == Area::Control {
            Region { len_bytes: region.len_bytes.next_multiple_of(8), ..region }
        } else {
            region
        };
        if self.taken[area.index()].remove(region) {
            self.heap.spaces[area.index()].free(region);
        } else {
            self.given.push((area, region));
        }
    }

    /// Ends the transaction: what it took is published, what it gave waits for pins.
    pub fn commit(mut self) {
        self.committed = true;
        merge(&mut self.given);
        let heap = &mut *self.heap;
        for &(area, region) in &self.given {
            heap.retired_bytes += u64::from(region.len_bytes);
            heap.retired_of(area).push_back(Retired { generation: self.generation, area, region });
        }
        heap.fresh_text = heap.fresh_text.max(heap.spaces[Area::Text.index()].watermark());
    }
}

impl Drop for Txn<'_> {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        for (taken, space) in self.taken.iter().zip(&mut self.heap.spaces) {
            taken.ranges().for_each(|range| space.free(range));
        }
    }
}
