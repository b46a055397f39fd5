//! The memory that a catalog is to agree with, and what of it belongs to whom.

use std::collections::HashMap;

use jitcast_runtime::directory::read_page;
use jitcast_runtime::geometry::{Area, Region, SLOT_BYTES};
use jitcast_runtime::heap::Heap;
use jitcast_runtime::memory::{Memory, SharedRecord};
use jitcast_runtime::records::{
    CELL_PAGE_BYTES, CELLS_PER_PAGE, CellValue, StoredRegion, trailing_text,
};
use jitcast_runtime::{SegmentOffset, index};

use super::Disagreement;

/// The memory that is to agree.
pub(super) struct Image<'a> {
    pub(super) memory: &'a Memory,
    heap: &'a Heap,
    /// What the directory and the catalog reach: each range belongs to one thing only.
    owned: Vec<(Area, Region)>,
    /// What the cells hold, by their offsets.
    cells: HashMap<u32, CellValue>,
}

impl<'a> Image<'a> {
    pub(super) fn new(memory: &'a Memory, heap: &'a Heap) -> Self {
        Self {
            memory,
            heap,
            // What is retired belongs to nobody else either.
            owned: heap.retired().collect(),
            cells: HashMap::new(),
        }
    }

    /// Lets a range belong to something.
    pub(super) fn own(&mut self, area: Area, start: u32, len_bytes: u32) {
        if len_bytes > 0 {
            self.owned.push((area, Region { start, len_bytes }));
        }
    }

    /// Lets tables of the directory belong to something.
    pub(super) fn own_tables(&mut self, tables: &[StoredRegion]) {
        for table in tables {
            self.own(Area::Control, table.start, table.len_bytes);
        }
    }

    /// Lets cells belong to something: whether they are cells and hold these values.
    pub(super) fn own_cells(
        &mut self,
        call: Option<(SegmentOffset, CellValue)>,
        address: Option<(SegmentOffset, CellValue)>,
    ) -> bool {
        let cells = [(Area::CallCells, call), (Area::AddressCells, address)];
        cells.into_iter().all(|(area, cell)| {
            let Some((cell, value)) = cell else {
                return true;
            };
            self.own(area, cell.get(), SLOT_BYTES);
            let held = self.cells.get(&cell.get());
            let held = held.copied().unwrap_or(CellValue::UNBOUND);
            cell.get().is_multiple_of(SLOT_BYTES) && held == value
        })
    }

    /// Whether `place` is in use.
    pub(super) fn is_used(&self, area: Area, place: SegmentOffset) -> bool {
        let region = Region {
            start: place.get(),
            len_bytes: 1,
        };
        self.heap.is_used(area, region)
    }

    /// The records of an index, each with its name; `lens` says how long the name is, and all the text.
    pub(super) fn records<R: SharedRecord>(
        &mut self,
        root: SegmentOffset,
        lens: impl Fn(&R) -> (u32, u32),
    ) -> Result<Vec<(R, String)>, Disagreement> {
        self.own_nodes(root)?;
        let (mut found, mut owned) = (Vec::new(), Vec::new());
        index::walk(self.memory, root, 0, &mut |at| {
            let record: R = self.memory.read(at)?;
            let (name_len, text_len) = lens(&record);
            let name = trailing_text::<R>(self.memory, at, 0, name_len)?;
            owned.push((at.get(), (size_of::<R>() as u32).saturating_add(text_len)));
            found.push((record, name));
            Ok::<_, Disagreement>(())
        })?;
        for (start, len_bytes) in owned {
            self.own(Area::Control, start, len_bytes);
        }
        Ok(found)
    }

    fn own_nodes(&mut self, root: SegmentOffset) -> Result<(), Disagreement> {
        let nodes = index::nodes(self.memory, root)?;
        self.owned
            .extend(nodes.into_iter().map(|node| (Area::Control, node)));
        Ok(())
    }

    /// Reads what the cells hold.
    pub(super) fn read_cells(&mut self, root: SegmentOffset) -> Result<(), Disagreement> {
        self.own_nodes(root)?;
        let (memory, mut pages) = (self.memory, Vec::new());
        index::walk(memory, root, 0, &mut |at| {
            pages.push((at.get(), read_page(memory, at)?));
            Ok::<_, Disagreement>(())
        })?;
        for (start, page) in pages {
            self.own(Area::Control, start, CELL_PAGE_BYTES);
            // A key may be anything: what would lie past all cells is none.
            let first = page.key.checked_mul(CELLS_PER_PAGE.into());
            let cells = (0u64..).zip(page.values);
            self.cells.extend(cells.filter_map(|(number, value)| {
                let index = first?.checked_add(number)?;
                let cell = u32::try_from(index.checked_mul(SLOT_BYTES.into())?).ok()?;
                Some((cell, CellValue::from_bits(value)))
            }));
        }
        Ok(())
    }

    /// Whether what is owned is in use, and nothing of it twice.
    pub(super) fn is_consistent(&mut self) -> bool {
        self.owned.sort_unstable();
        let in_use = |(area, region): &(Area, Region)| self.heap.is_used(*area, *region);
        let apart =
            |pair: &[(Area, Region)]| pair[0].0 != pair[1].0 || pair[0].1.end() <= pair[1].1.start;
        self.owned.iter().all(in_use) && self.owned.windows(2).all(apart)
    }
}
