//! What cells, patches and handles hold in this worker, by what the directory says of them.

use std::sync::atomic::{AtomicU64, Ordering};

use jitcast_runtime::directory::{PageInPlace, read_page};
use jitcast_runtime::geometry::{Area, SLOT_BYTES};
use jitcast_runtime::host_name::HostName;
use jitcast_runtime::records::{
    CELL_PAGE_BYTES, CELLS_PER_PAGE, CellValue, ImportRecord, Root, TRAP_CELL, trailing_text,
};
use jitcast_runtime::{Corrupt, ImportId, PatchTarget, SegmentOffset, WorkerAddr, index};

use crate::canary::Canaries;
use crate::error::UpdateError;
use crate::imports::Import;
use crate::log::{Event, note};
use crate::transition::{Place, Step};
use crate::trap;
use crate::worker::{Inner, State};

/// What the kernel gives memory by, bytes.
const MEMORY_PAGE_BYTES: u32 = 4096;

/// From so many pages of memory on, one system call is less than their faults.
const MANY: u32 = 4;

impl Inner {
    /// The first call cell is where the segment's traps jump through.
    pub(crate) fn bind_traps(&self) -> Result<(), UpdateError> {
        self.open_extents()?;
        let trap: extern "C" fn(u32, u64) -> ! = trap::missing_import;
        let slot = self.slot(TRAP_CELL)?;
        slot.store(trap as *const () as u64, Ordering::Release);
        Ok(())
    }

    pub(crate) fn resolve_import(
        &self,
        state: &mut State,
        at: SegmentOffset,
    ) -> Result<(), UpdateError> {
        let view = self.window().control();
        let record: ImportRecord = view.read(at)?;
        let import = u32::try_from(record.key).map_err(|_| Corrupt {
            what: "number of an import",
            at,
        })?;
        let name = trailing_text::<ImportRecord>(view, at, 0, record.name_len)?;
        if state.imports.get(ImportId::new(import)).is_some() {
            // Its cells and patches hold what was found first, and go on to.
            return Ok(());
        }
        let mut found = self.find_import(name, record.weak == 1, record.trap);
        let fallback = Some(record.fallback).filter(|fallback| !fallback.is_none());
        if found.mismatch.is_none() {
            found.address = found
                .address
                .or_else(|| Some(self.window().addr_of(fallback?)));
        }
        note_missing(state, &found);
        state.imports.insert(ImportId::new(import), found);
        Ok(())
    }

    /// Looks a host symbol up.
    pub(crate) fn find_import(&self, name: String, weak: bool, trap: SegmentOffset) -> Import {
        let host = HostName::parse(&name);
        let (address, mismatch) = match self.host().resolve_import(&host) {
            Ok(found) => (found.or_else(|| weak.then_some(WorkerAddr::NULL)), None),
            Err(mismatch) => (None, Some(mismatch)),
        };
        Import {
            name: host.name.to_owned(),
            address,
            mismatch,
            trap: self.window().addr_of(trap),
        }
    }

    /// Stores the cells of a page that lead nowhere yet: nobody who is inside can reach them.
    pub(crate) fn bind_new(
        &self,
        state: &State,
        canaries: &Canaries,
        at: SegmentOffset,
    ) -> Result<(), UpdateError> {
        self.bind_new_cells(state, self.page(at, canaries)?)
    }

    /// The same, of any cells.
    pub(crate) fn bind_new_cells(
        &self,
        state: &State,
        cells: impl Iterator<Item = (SegmentOffset, CellValue)>,
    ) -> Result<(), UpdateError> {
        for (cell, value) in cells {
            if !self.leads_somewhere(state, cell) {
                let address = self.cell_address(state, value);
                self.slot(cell)?.store(address.get(), Ordering::Release);
            }
        }
        Ok(())
    }

    /// Stores a page of cells.
    pub(crate) fn bind_page(
        &self,
        state: &mut State,
        step: &Step<'_>,
        canaries: &Canaries,
        at: SegmentOffset,
    ) -> Result<(), UpdateError> {
        if state.transitions.lead_all_alike(step) {
            return self.store_page(state, canaries, at);
        }
        for (cell, value) in self.page(at, canaries)? {
            let address = self.cell_address(state, value);
            self.lead_cell(state, step, cell, address)?;
        }
        Ok(())
    }

    /// Stores a page of cells that nobody goes through now: what attaching consists of. So the slots are looked for once, and it is asked
    /// once whether anything but the page decides what they hold.
    fn store_page(
        &self,
        state: &State,
        canaries: &Canaries,
        at: SegmentOffset,
    ) -> Result<(), UpdateError> {
        let (first, values) = self.values(at)?;
        let slots = self.window().slots(first, CELLS_PER_PAGE);
        if slots.len() < CELLS_PER_PAGE as usize {
            // Unbound cells may lie beyond what is backed.
            let mut beyond = cells(first, values.clone()).skip(slots.len());
            if let Some((cell, _)) = beyond.find(|(_, value)| *value != CellValue::UNBOUND) {
                return Err(no_slot(cell).into());
            }
        }
        // Release: on a processor that reads a slot, what it leads to was stored before.
        let store =
            |slot: &AtomicU64, address: WorkerAddr| slot.store(address.get(), Ordering::Release);
        if first == TRAP_CELL || !canaries.cover_nothing() || state.units.have_failed() {
            for ((cell, value), slot) in cells(first, values).zip(slots) {
                if !is_reserved(cell, value) && !canaries.covers(cell) {
                    store(slot, self.cell_address(state, value));
                }
            }
            return Ok(());
        }
        for (slot, value) in slots.iter().zip(values) {
            let address = match value.target() {
                Some(PatchTarget::Window(place)) => self.window().addr_of(place),
                _ => self.cell_address(state, value),
            };
            store(slot, address);
        }
        Ok(())
    }

    /// How many cells of a page lead elsewhere than before.
    pub(crate) fn count_moves(
        &self,
        state: &State,
        canaries: &Canaries,
        at: SegmentOffset,
    ) -> Result<usize, UpdateError> {
        Ok(self.count_moving(state, self.page(at, canaries)?))
    }

    /// How many of these cells lead elsewhere than before.
    pub(crate) fn count_moving(
        &self,
        state: &State,
        cells: impl Iterator<Item = (SegmentOffset, CellValue)>,
    ) -> usize {
        let moves = |(cell, value): &(SegmentOffset, CellValue)| {
            let latest = state.transitions.latest(self.window(), *cell);
            let moves = latest != Some(self.cell_address(state, *value).get());
            moves && self.calls(*cell) && self.leads_somewhere(state, *cell)
        };
        cells.filter(moves).count()
    }

    /// What the page of a cell says that it holds.
    pub(crate) fn published_cell(
        &self,
        root: &Root,
        cell: SegmentOffset,
    ) -> Result<CellValue, UpdateError> {
        let (view, index) = (self.window().control(), cell.get() / SLOT_BYTES);
        let page = index::get(view, root.cells, (index / CELLS_PER_PAGE).into())?;
        let Some(at) = page else {
            return Ok(CellValue::UNBOUND);
        };
        let value = read_page(view, at)?.values[(index % CELLS_PER_PAGE) as usize];
        Ok(CellValue::from_bits(value))
    }

    /// The cells of a page and their values, but for those that canaries cover.
    fn page(
        &self,
        at: SegmentOffset,
        canaries: &Canaries,
    ) -> Result<impl Iterator<Item = (SegmentOffset, CellValue)>, UpdateError> {
        let (first, values) = self.values(at)?;
        // Unbound cells may lie beyond what is backed.
        let window = self.window();
        Ok(cells(first, values).filter(|&(cell, value)| {
            let there = value != CellValue::UNBOUND || window.slot(cell).is_some();
            there && !is_reserved(cell, value) && !canaries.covers(cell)
        }))
    }

    /// Where the pages of cells are that are newer than generation `applied`, each with its first cell, in the order of the cells.
    pub(crate) fn new_pages(&self, root: &Root, applied: u64) -> Result<Vec<NewPage>, UpdateError> {
        let view = self.window().control();
        // An index that has more is none: it may go around in circles.
        let most =
            self.window().geometry().region(Area::AddressCells).end() / SLOT_BYTES / CELLS_PER_PAGE;
        let mut pages = Vec::new();
        index::walk(view, root.cells, applied, &mut |at| {
            let first = first_cell(&PageInPlace::at(view, at)?, at)?;
            if pages.len() == most as usize {
                let what = "more pages of cells than there are cells";
                return Err(UpdateError::from(Corrupt { what, at }));
            }
            pages.push(NewPage { first, at });
            Ok(())
        })?;
        pages.sort_unstable_by_key(|page| page.first);
        Ok(pages)
    }

    /// Gives the slots of these pages their memory, where many pages of it lie together: each of them is going to be stored to, and
    /// would be a fault. None that no page of cells lies in gets any.
    pub(crate) fn populate(&self, pages: &[NewPage]) {
        let memory = |page: &NewPage| page.first.get() / MEMORY_PAGE_BYTES;
        let runs = pages.chunk_by(|page, next| memory(next) - memory(page) <= 1);
        for run in runs {
            if let [first, .., last] = run
                && memory(last) - memory(first) >= MANY
            {
                self.window().populate_slots(first.first, last.first);
            }
        }
    }

    /// The first cell of a page, and the values of all.
    fn values(
        &self,
        at: SegmentOffset,
    ) -> Result<(SegmentOffset, impl Iterator<Item = CellValue> + Clone), Corrupt> {
        let page = PageInPlace::at(self.window().control(), at)?;
        Ok((first_cell(&page, at)?, page.values()))
    }

    /// Whether a cell is one that calls go through.
    fn calls(&self, cell: SegmentOffset) -> bool {
        let cells = self.window().geometry().region(Area::CallCells);
        cells.contains(cell, SLOT_BYTES.into())
    }

    /// Whether a cell leads to something published.
    fn leads_somewhere(&self, state: &State, cell: SegmentOffset) -> bool {
        let nowhere = [0, removed_trap().get()];
        let latest = state.transitions.latest(self.window(), cell);
        latest.is_some_and(|latest| !nowhere.contains(&latest))
    }

    /// Lets a cell lead to `address` from now on.
    pub(crate) fn lead_cell(
        &self,
        state: &mut State,
        step: &Step<'_>,
        cell: SegmentOffset,
        address: WorkerAddr,
    ) -> Result<(), UpdateError> {
        let slot = self.slot(cell)?;
        let is_reached = !state.transitions.lead_all_alike(step)
            && self.calls(cell)
            && self.leads_somewhere(state, cell);
        if is_reached {
            state
                .transitions
                .lead(step, Place::Cell(cell), address.get());
        } else {
            // Nobody who is inside can reach it: there is nobody, or it is a datum's cell, which belongs to its version, or led nowhere.
            // Release: on a processor that reads the slot, what it leads to was stored before.
            slot.store(address.get(), Ordering::Release);
        }
        Ok(())
    }

    fn slot(&self, cell: SegmentOffset) -> Result<&AtomicU64, Corrupt> {
        self.window().slot(cell).ok_or_else(|| no_slot(cell))
    }

    /// What a cell of this value holds in this worker.
    pub(crate) fn cell_address(&self, state: &State, value: CellValue) -> WorkerAddr {
        match value.target() {
            Some(PatchTarget::Window(place)) if state.units.is_failed(place) => failed_trap(),
            Some(target) => self.address(state, target),
            None if value == CellValue::QUARANTINED => trap::quarantined_trap(),
            None => removed_trap(),
        }
    }

    /// What a cell or a patch that leads to `target` holds in this worker.
    pub(crate) fn address(&self, state: &State, target: PatchTarget) -> WorkerAddr {
        match target {
            PatchTarget::Window(offset) => self.window().addr_of(offset),
            PatchTarget::Host(import) => state
                .imports
                .get(import)
                .map_or_else(removed_trap, |import| import.address.unwrap_or(import.trap)),
        }
    }
}

/// A page of cells that is to be applied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewPage {
    /// Its first cell.
    first: SegmentOffset,
    /// Where the page is.
    pub(crate) at: SegmentOffset,
}

/// The first cell of the page at `at`.
fn first_cell(page: &PageInPlace<'_>, at: SegmentOffset) -> Result<SegmentOffset, Corrupt> {
    let first = page.key().checked_mul((CELLS_PER_PAGE * SLOT_BYTES).into());
    let first = first
        .and_then(|first| u32::try_from(first).ok())
        .filter(|first| *first <= u32::MAX - CELL_PAGE_BYTES);
    let what = "number of a page of cells";
    first.map(SegmentOffset::new).ok_or(Corrupt { what, at })
}

/// The cells from `first` on that have these values.
fn cells(
    first: SegmentOffset,
    values: impl Iterator<Item = CellValue>,
) -> impl Iterator<Item = (SegmentOffset, CellValue)> {
    (first.get()..)
        .step_by(SLOT_BYTES as usize)
        .map(SegmentOffset::new)
        .zip(values)
}

/// Whether a page has no say in a cell: the first is the traps' own.
fn is_reserved(cell: SegmentOffset, value: CellValue) -> bool {
    cell == TRAP_CELL && value == CellValue::UNBOUND
}

fn no_slot(cell: SegmentOffset) -> Corrupt {
    let what = "cell outside the slots";
    Corrupt { what, at: cell }
}

/// Lets the host know of a host symbol that is missing.
pub(crate) fn note_missing(state: &mut State, import: &Import) {
    if import.address.is_none() {
        let import = import.described();
        note(&mut state.events, Event::MissingImport { import });
    }
}

/// Where cells lead whose function is not published any more.
pub(crate) fn removed_trap() -> WorkerAddr {
    let trap: extern "C" fn() -> ! = trap::removed;
    WorkerAddr::new(trap as *const () as u64)
}

/// Where cells lead whose function's unit failed in this worker.
pub(crate) fn failed_trap() -> WorkerAddr {
    let trap: extern "C" fn() -> ! = trap::failed;
    WorkerAddr::new(trap as *const () as u64)
}
