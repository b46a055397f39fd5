//! Applying publications: bringing the private area from one generation to another.
//!
//! Invariant: while slots change, no thread of this process is inside a guard. A thread may read what a root
//! reaches if the root was the latest one after the thread was pinned, or if it is of the generation that the
//! thread is pinned at. A ring record needs no pin, since it is validated after it was copied.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use jitcast_runtime::directory::{read_page, record_flags, record_root, unpack_op};
use jitcast_runtime::geometry::{Area, SLOT_BYTES};
use jitcast_runtime::index;
use jitcast_runtime::mailbox::{PIN_EVERYTHING, ThreadWord, Word};
use jitcast_runtime::pin;
use jitcast_runtime::records::{
    CELL_PAGE_BYTES, CELLS_PER_PAGE, CellValue, ImportRecord, Root, TRAP_CELL, trailing_text,
};
use jitcast_runtime::ring::Record;
use jitcast_runtime::{Corrupt, ImportId, PatchTarget, SegmentOffset, WorkerAddr};

use crate::error::UpdateError;
use crate::startup::Fresh;
use crate::trap;
use crate::unwind::register::Registered;
use crate::unwind::{Unwinding, hook, text_at};
use crate::worker::{Import, Inner, State};

/// How often a thread looks whether the others have left before it goes on with what is applied.
const PATIENCE: u32 = 64;

/// A worker further behind than this reads the directory at once.
const RING_STEPS: u64 = 64;

impl Inner {
    /// Binds everything that is published, when the worker attaches.
    pub(crate) fn bind_everything(&self, unwinding: Unwinding) -> Result<(), UpdateError> {
        let mut state = self.state().lock().unwrap_or_else(PoisonError::into_inner);
        self.bind_traps()?;
        state.registered = self.start_registering(unwinding);
        let tid = rustix::thread::gettid()
            .as_raw_nonzero()
            .get()
            .unsigned_abs();
        let index = self.mailbox().claim(tid.into()).ok_or(Corrupt {
            what: "a mailbox without free records",
            at: SegmentOffset::NONE,
        })?;
        let word = self.mailbox().thread(index, ThreadWord::Pin);
        pin::enter(word, PIN_EVERYTHING, self.head(), true);
        let result = self.resync(&mut state);
        self.finish(&mut state, &result);
        self.mailbox().release(index);
        result.map(|_| ())
    }

    /// Starts registering what is bound with the unwinder, if that is how it is to know it.
    fn start_registering(&self, unwinding: Unwinding) -> Option<Registered> {
        let wanted = match unwinding {
            Unwinding::Auto => !hook::is_active(self.window()),
            Unwinding::Register => true,
            Unwinding::Off => false,
        };
        wanted.then(|| Registered::new(self.window()))?
    }

    /// Applies what is new, if no other thread is inside, and leaves the calling thread (whose pin is 0)
    /// pinned at the generation that is applied then.
    pub(crate) fn catch_up(&self, thread: u32) -> Result<(), UpdateError> {
        let mut state = self.state().lock().unwrap_or_else(PoisonError::into_inner);
        let word = self.mailbox().thread(thread, ThreadWord::Pin);
        let applied = self.life().applied().load(Ordering::Relaxed);
        if applied != 0 && pin::enter(word, applied, self.head(), true) == applied {
            // Another thread has applied it while this one waited for the lock.
            return Ok(());
        }
        // From here on, whoever enters finds 0 and waits for the lock.
        self.life().applied().store(0, Ordering::Relaxed);
        let alone = self.mailbox().word(Word::Threads).load(Ordering::Relaxed) == 1;
        if !alone {
            self.barriers().all_threads();
        }
        // Pinned at what is applied before the others are looked at: the compiler process sees this pin, or
        // this thread sees the floor that it announced before it reused anything.
        let head = pin::enter(word, state.applied, self.head(), true);
        let result = if !alone && self.others_stay(thread, state.applied) {
            Ok(state.applied)
        } else {
            self.apply(&mut state, head)
        };
        self.finish(&mut state, &result);
        match result {
            Ok(generation) => {
                word.store(generation, Ordering::Release);
                Ok(())
            }
            Err(error) => {
                pin::leave(word, 0);
                Err(error)
            }
        }
    }

    /// Lets the other threads in again, at what is applied now.
    fn finish(&self, state: &mut State, result: &Result<u64, UpdateError>) {
        if let Ok(generation) = result {
            if *generation != state.applied {
                state.applied = *generation;
                self.mailbox()
                    .word(Word::Applied)
                    .store(*generation, Ordering::Relaxed);
                self.mailbox()
                    .word(Word::Updates)
                    .fetch_add(1, Ordering::Relaxed);
            }
            self.listing().set_root(state.root_at);
            // Release: pairs with the relaxed load in `enter` by way of x86-64's ordered stores and loads, and
            // of the barrier above for threads that were running: slots first, then the number.
            self.life().applied().store(*generation, Ordering::Release);
        }
        // After an error it stays 0: every guard tries again.
    }

    /// Whether other threads stay inside for longer than is worth waiting, at a generation that this thread may
    /// join. One that only looks, and will wait for the lock, has a pin for a moment too; so somebody's being
    /// inside does not prove that the generation's memory is still there. The floor does.
    fn others_stay(&self, thread: u32, applied: u64) -> bool {
        let mut looks = 0;
        while self.mailbox().others_inside(thread) {
            looks += 1;
            if looks < PATIENCE {
                std::hint::spin_loop();
            } else if self.control().floor().load(Ordering::Acquire) <= applied {
                return true;
            } else {
                std::thread::yield_now();
            }
        }
        false
    }

    fn apply(&self, state: &mut State, head: u64) -> Result<u64, UpdateError> {
        // The root is committed before the head moves, so what was read from the root may be ahead of it.
        let head = head.max(state.applied);
        let behind = head - state.applied;
        let lacks_something = state
            .imports
            .values()
            .any(|import| import.address.is_none());
        if behind > RING_STEPS || lacks_something {
            return self.resync(state);
        }
        let ring = self.control().ring();
        let (mut serialise, mut names) = (0, false);
        for generation in state.applied + 1..=head {
            match ring.read(generation) {
                Some(record) if record[1] & record_flags::RESYNC == 0 => {
                    self.apply_record(state, &record)?;
                    state.root_at = record_root(&record);
                    names |= record[1] & record_flags::NAMES != 0;
                    if record[1] & record_flags::SERIALISE != 0 {
                        serialise = generation;
                    }
                }
                _ => return self.resync(state),
            }
        }
        if let Some(registered) = &mut state.registered {
            let root = self.window().control().read(state.root_at)?;
            registered.update(self.window(), &root)?;
        }
        if names {
            self.look_up_handles(state);
        }
        if serialise != 0 {
            self.serialise(serialise);
        }
        Ok(head)
    }

    fn apply_record(&self, state: &mut State, record: &Record) -> Result<(), UpdateError> {
        if record[1] & record_flags::EXTENTS != 0 {
            self.open_extents()?;
        }
        let count = (record[1] & 0xff) as usize;
        for op in record[2..].iter().take(count) {
            let (cell, value) = unpack_op(*op);
            let address = self.store_cell(state, cell, value)?;
            state.handles.cell_changed(cell, address);
        }
        Ok(())
    }

    /// Brings everything to the latest root.
    fn resync(&self, state: &mut State) -> Result<u64, UpdateError> {
        let control = self.control();
        let root_at = control.root();
        self.open_extents()?;
        let view = self.window().control();
        let root: Root = view.read(root_at)?;
        let applied = state.applied;
        if root.generation < applied {
            return Err(Corrupt {
                what: "root older than what is applied",
                at: root_at,
            }
            .into());
        }
        self.forget_failed(state, root.units)?;
        // From here on what is bound can be unwound through.
        self.listing().set_root(root_at);
        index::walk(view, root.imports, applied, &mut |at| {
            self.resolve_import(state, at)
        })?;
        let mut fresh = Vec::new();
        index::walk(view, root.units, applied, &mut |at| {
            fresh.push(self.bind_unit(state, at)?);
            Ok::<_, UpdateError>(())
        })?;
        if let Some(registered) = &mut state.registered {
            registered.update(self.window(), &root)?;
        }
        for unit in fresh.iter().filter(|unit| unit.ends()) {
            if let Some((_, text)) = text_at(view, root_at, unit.text())? {
                self.listing().leave(text);
            }
        }
        if root.reused_text > applied {
            self.serialise(root.reused_text);
        }
        if fresh.iter().any(Fresh::starts) {
            // Names that are new lead to the new units before their constructors run; others move after.
            index::walk(view, root.cells, applied, &mut |at| {
                self.bind_page(state, at, true)
            })?;
            self.start_units(state, root.generation, &mut fresh);
        }
        self.remember_units(state, fresh);
        index::walk(view, root.cells, applied, &mut |at| {
            self.bind_page(state, at, false)
        })?;
        state.root_at = root_at;
        self.retire_units(state, root.units, root.generation)?;
        self.look_up_handles(state);
        let failed = state.units.failed().count() as u64;
        self.mailbox()
            .word(Word::Failed)
            .store(failed, Ordering::Relaxed);
        let missing = state
            .imports
            .values()
            .filter(|import| import.address.is_none())
            .count();
        self.mailbox()
            .word(Word::Missing)
            .store(missing as u64, Ordering::Relaxed);
        self.mailbox()
            .word(Word::Resyncs)
            .fetch_add(1, Ordering::Relaxed);
        Ok(root.generation)
    }

    fn serialise(&self, generation: u64) {
        self.barriers().serialise_all();
        self.life()
            .reused_text()
            .store(generation, Ordering::Relaxed);
    }

    fn open_extents(&self) -> Result<(), UpdateError> {
        let control = self.control();
        for area in Area::ALL {
            self.window().open(area, control.extent(area))?;
        }
        Ok(())
    }

    /// The first call cell is where the segment's traps jump through.
    fn bind_traps(&self) -> Result<(), UpdateError> {
        self.open_extents()?;
        let trap: extern "C" fn(u32, u64) -> ! = trap::missing_import;
        self.store_slot(TRAP_CELL, WorkerAddr::new(trap as *const () as u64))?;
        Ok(())
    }

    fn resolve_import(&self, state: &mut State, at: SegmentOffset) -> Result<(), UpdateError> {
        let view = self.window().control();
        let record: ImportRecord = view.read(at)?;
        let import = u32::try_from(record.key).map_err(|_| Corrupt {
            what: "number of an import",
            at,
        })?;
        let name = trailing_text::<ImportRecord>(view, at, 0, record.name_len)?;
        if state.imports.contains_key(&ImportId::new(import)) {
            // Its cells and patches hold what was found first, and go on to.
            return Ok(());
        }
        let found = self.host().resolve(&name);
        let address = found.or_else(|| (record.weak == 1).then_some(WorkerAddr::NULL));
        let trap = self.window().addr_of(record.trap);
        let fallback = Some(record.fallback).filter(|fallback| !fallback.is_none());
        let address = address.or_else(|| Some(self.window().addr_of(fallback?)));
        state.imports.insert(
            ImportId::new(import),
            Import {
                name,
                address,
                trap,
            },
        );
        Ok(())
    }

    /// Stores a page of cells; `only_new`: those that lead nowhere yet.
    fn bind_page(
        &self,
        state: &State,
        at: SegmentOffset,
        only_new: bool,
    ) -> Result<(), UpdateError> {
        let page = read_page(self.window().control(), at)?;
        let first = page.key.checked_mul((CELLS_PER_PAGE * SLOT_BYTES).into());
        let first = first
            .and_then(|first| u32::try_from(first).ok())
            .filter(|first| *first <= u32::MAX - CELL_PAGE_BYTES)
            .ok_or(Corrupt {
                what: "number of a page of cells",
                at,
            })?;
        for (index, value) in page.values.iter().enumerate() {
            let cell = SegmentOffset::new(first + index as u32 * SLOT_BYTES);
            let value = CellValue::from_bits(*value);
            // The first cell is the traps' own. Unbound cells may lie beyond what is backed.
            let skip =
                value == CellValue::UNBOUND && (cell == TRAP_CELL || self.slot(cell).is_none());
            if !(skip || only_new && self.leads_somewhere(cell)) {
                self.store_cell(state, cell, value)?;
            }
        }
        Ok(())
    }

    /// Whether a cell leads to something published.
    fn leads_somewhere(&self, cell: SegmentOffset) -> bool {
        let nowhere = [0, removed_trap().get()];
        self.slot(cell)
            .is_some_and(|slot| !nowhere.contains(&slot.load(Ordering::Relaxed)))
    }

    fn store_cell(
        &self,
        state: &State,
        cell: SegmentOffset,
        value: CellValue,
    ) -> Result<WorkerAddr, UpdateError> {
        let address = match value.target() {
            Some(PatchTarget::Window(place)) if state.units.is_failed(place) => failed_trap(),
            Some(target) => self.address(state, target),
            None if value == CellValue::QUARANTINED => trap::quarantined_trap(),
            None => removed_trap(),
        };
        self.store_slot(cell, address)?;
        Ok(address)
    }

    fn store_slot(&self, cell: SegmentOffset, address: WorkerAddr) -> Result<(), UpdateError> {
        let slot = self.slot(cell).ok_or(Corrupt {
            what: "cell outside the slots",
            at: cell,
        })?;
        // Release: on a processor that reads the slot, what it leads to was stored before.
        slot.store(address.get(), Ordering::Release);
        Ok(())
    }

    /// What a cell or a patch that leads to `target` holds in this worker.
    pub(crate) fn address(&self, state: &State, target: PatchTarget) -> WorkerAddr {
        match target {
            PatchTarget::Window(offset) => self.window().addr_of(offset),
            PatchTarget::Host(import) => state
                .imports
                .get(&import)
                .map_or_else(removed_trap, |import| import.address.unwrap_or(import.trap)),
        }
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
