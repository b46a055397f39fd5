//! The compiler: a segment, what is published in it, and the workers that map it.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use jitcast_linker::Prepared;
use jitcast_runtime::directory::{Edit, record_flags};
use jitcast_runtime::geometry::{Area, SLOT_BYTES};
use jitcast_runtime::header::Control;
use jitcast_runtime::heap::{Heap, Txn};
use jitcast_runtime::mailbox::FIRST_GENERATION;
use jitcast_runtime::records::{Root, TRAP_CELL};
use jitcast_runtime::segment::{self, Segment, SegmentOptions};
use jitcast_runtime::{SegmentOffset, sys};
use parking_lot::Mutex;
use rustix::thread::{MembarrierCommand, futex, membarrier};

use crate::catalog::Catalog;
use crate::changeset::{Changeset, PublishOptions, SymbolUpdate};
use crate::error::{PublishError, StartError};
use crate::fault::{self, Fault};
use crate::history::{History, RetainedUnit};
use crate::options::CompilerOptions;
use crate::publish::{self, Batch, Publication, Site, UnitSource};
use crate::status::{AreaStatus, HistoryStatus, Status, SymbolStatus, UnitStatus};
use crate::stragglers::{Inside, Straggler};
use crate::workers::{Admission, Workers};

/// The compiler process's side of a segment. Shared between threads.
#[derive(Debug)]
pub struct Compiler {
    segment: Segment,
    state: Mutex<State>,
    workers: Mutex<Workers>,
    reclaim_above_bytes: u64,
    max_held_bytes: Option<u64>,
}

#[derive(Debug)]
struct State {
    heap: Heap,
    catalog: Catalog,
    history: History,
    root: Root,
    root_at: SegmentOffset,
    committed: [u32; Area::COUNT],
    /// Units that were replaced or removed by a generation whose memory may be held back, in order.
    retired_units: Vec<(u64, String)>,
}

impl Compiler {
    /// Creates a segment with an empty directory.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn create(options: &CompilerOptions) -> Result<Self, StartError> {
        let segment = Segment::create(&SegmentOptions {
            geometry: options.geometry,
            cpu: options.cpu,
            back_end: options.back_end.clone(),
            socket: options.socket.clone(),
        })?;
        let mut state = State {
            heap: Heap::new(&options.geometry),
            catalog: Catalog::default(),
            history: History::new(options.retain, FIRST_GENERATION),
            root: Root {
                generation: FIRST_GENERATION - 1,
                ..zerocopy::FromZeros::new_zeroed()
            },
            root_at: SegmentOffset::NONE,
            committed: [0; Area::COUNT],
            retired_units: Vec::new(),
        };
        let mut txn = state
            .heap
            .begin(segment.memory(), &segment, FIRST_GENERATION);
        let trap = txn.alloc(Area::CallCells, SLOT_BYTES, SLOT_BYTES)?;
        assert_eq!(trap.offset(), TRAP_CELL, "the first cell is the traps' own");
        let edit = Edit::new(state.root, SegmentOffset::NONE);
        let committed = commit(&segment, txn, edit, &state.committed)?;
        (state.root, state.root_at, state.committed) = committed;
        Ok(Self {
            segment,
            state: Mutex::new(state),
            workers: Mutex::new(Workers::default()),
            reclaim_above_bytes: options.reclaim_above_bytes,
            max_held_bytes: options.max_held_bytes,
        })
    }

    /// Links `units` and makes them visible as one. Whatever goes wrong, nothing of them is.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn publish(&self, units: &[UnitSource]) -> Result<Publication, PublishError> {
        self.change(&Changeset {
            units,
            ..Changeset::default()
        })
    }

    /// Removes published units as one. Each worker runs their destructors; their memory is reused, or kept, as if they
    /// had been replaced.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn remove(&self, removals: &[String]) -> Result<Publication, PublishError> {
        self.change(&Changeset {
            removals,
            ..Changeset::default()
        })
    }

    /// Makes all of `changes` visible as one generation. Whatever goes wrong, nothing of it is.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn change(&self, changes: &Changeset<'_>) -> Result<Publication, PublishError> {
        let retained: Vec<_> = changes.units.iter().map(RetainedUnit::new).collect();
        // Who does not ask for it does not wait here for somebody else's publication.
        if changes.options.if_changed
            && let Some(published) = self.state.lock().unchanged(changes, &retained)
        {
            return Ok(published);
        }
        let inputs = publish::inputs(changes.units);
        let units = publish::read(changes, &inputs)?;
        let mut state = self.state.lock();
        // Somebody may have published the same meanwhile.
        match state.unchanged(changes, &retained) {
            Some(published) => Ok(published),
            None => self.publish_locked(&mut state, changes, &retained, &units),
        }
    }

    /// Moves functions to the fallbacks of their handles, at the next guard of every worker, until they are restored.
    /// Refused for a function that other units call, unless [`Compiler::change`] is asked to leave traps.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn quarantine(&self, symbols: &[String]) -> Result<Publication, PublishError> {
        self.update(symbols, SymbolUpdate::Quarantine)
    }

    /// Puts quarantined functions back.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn restore(&self, symbols: &[String]) -> Result<Publication, PublishError> {
        self.update(symbols, SymbolUpdate::Restore)
    }

    fn update(
        &self,
        symbols: &[String],
        update: fn(String) -> SymbolUpdate,
    ) -> Result<Publication, PublishError> {
        let updates: Vec<_> = symbols.iter().cloned().map(update).collect();
        self.change(&Changeset {
            updates: &updates,
            ..Changeset::default()
        })
    }

    /// Publishes again what the units were made of that have changed since generation `to` (`None`: by the latest
    /// publication of units), as a new generation: those that did not exist then are removed, removed ones come back,
    /// replaced ones get their earlier sources. Quarantines stay. It is refused for all the reasons that a publication
    /// is, and can be undone like one.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn rollback(
        &self,
        to: Option<u64>,
        options: PublishOptions,
    ) -> Result<Publication, PublishError> {
        // Nobody publishes between the look at the history and the publication.
        let mut state = self.state.lock();
        let undo = state.history.undo(to)?;
        let changes = Changeset {
            units: &undo.units,
            removals: &undo.removals,
            options,
            ..Changeset::default()
        };
        let retained: Vec<_> = undo.units.iter().map(RetainedUnit::new).collect();
        let inputs = publish::inputs(changes.units);
        let units = publish::read(&changes, &inputs)?;
        self.publish_locked(&mut state, &changes, &retained, &units)
    }

    fn publish_locked(
        &self,
        state: &mut State,
        asked: &Changeset<'_>,
        retained: &[RetainedUnit],
        units: &[Prepared<'_>],
    ) -> Result<Publication, PublishError> {
        self.check_held(state)?;
        let result = match self.link_and_commit(state, asked, units) {
            // There may be room once what nobody can be inside any more is freed.
            Err(PublishError::Full(_)) => {
                self.reclaim(state);
                let result = self.link_and_commit(state, asked, units);
                result.map_err(|error| self.name_stragglers(state, error))
            }
            other => other,
        };
        if state.heap.retired_bytes() > self.reclaim_above_bytes {
            self.reclaim(state);
        }
        let publication = result?;
        let number = (publication.generation, publication.published_ns);
        state
            .history
            .record(number, retained, asked.units, asked.removals);
        self.wake();
        Ok(publication)
    }

    fn link_and_commit(
        &self,
        state: &mut State,
        asked: &Changeset<'_>,
        units: &[Prepared<'_>],
    ) -> Result<Publication, PublishError> {
        let geometry = self.segment.geometry();
        let site = Site {
            geometry,
            hash_seed: self.segment.header().hash_seed,
            catalog: &state.catalog,
        };
        let batch = Batch::new(site, asked, units)?;
        let generation = state.root.generation + 1;
        let mut txn = state
            .heap
            .begin(self.segment.memory(), &self.segment, generation);
        let mut edit = Edit::new(state.root, state.root_at);
        let changes = batch.write(&mut txn, &mut edit)?;
        (state.root, state.root_at, state.committed) =
            commit(&self.segment, txn, edit, &state.committed)?;
        let removed = changes.removed_units.clone();
        let replaced = changes.units.iter().map(|(name, _)| name);
        let replaced = replaced.filter(|name| state.catalog.units.contains_key(*name));
        let retired = replaced.chain(&removed).cloned();
        state
            .retired_units
            .extend(retired.map(|name| (generation, name)));
        state.catalog.merge(changes);
        let names: Vec<&str> = asked.units.iter().map(|unit| unit.name.as_str()).collect();
        Ok(Publication {
            generation: state.root.generation,
            published_ns: state.root.published_ns,
            removed,
            ..state.catalog.describe(&names)
        })
    }

    /// Frees retired memory that no thread of a worker can be inside. What will be reused is announced first, and
    /// the pins are looked at again: a thread that decides to stay at an older generation in between either
    /// has its pin seen, or sees the announcement.
    fn reclaim(&self, state: &mut State) {
        if state.heap.oldest_retired().is_none() {
            return;
        }
        let mut workers = self.workers.lock();
        let control = Control::new(self.segment.memory()).expect("our own segment has a header");
        let announced = workers.oldest_pin().min(state.root.generation);
        control.floor().store(announced, Ordering::Release);
        let oldest = workers.oldest_pin().min(announced);
        control.floor().store(oldest, Ordering::Release);
        state
            .retired_units
            .retain(|(generation, _)| *generation > oldest);
        state.heap.reclaim(if fault::seeded(Fault::ReuseEarly) {
            u64::MAX
        } else {
            oldest
        });
    }

    /// Refuses publications while more is held back than is allowed.
    fn check_held(&self, state: &mut State) -> Result<(), PublishError> {
        let Some(limit) = self.max_held_bytes else {
            return Ok(());
        };
        if state.heap.retired_bytes() <= limit {
            return Ok(());
        }
        self.reclaim(state);
        let retired = state.heap.retired_bytes();
        if retired <= limit {
            return Ok(());
        }
        let why = format!("{retired} bytes are retired and held back, {limit} may be (--max-held)");
        Err(PublishError::HeldBack {
            why,
            stragglers: self.stragglers(state),
        })
    }

    /// Says who holds back what is lacking, if somebody does.
    fn name_stragglers(&self, state: &State, error: PublishError) -> PublishError {
        let stragglers = self.stragglers(state);
        match error {
            PublishError::Full(full) if !stragglers.is_empty() => PublishError::HeldBack {
                why: full.to_string(),
                stragglers,
            },
            other => other,
        }
    }

    /// The threads that hold retired memory back, those that hold most first.
    fn stragglers(&self, state: &State) -> Vec<Straggler> {
        let inside = self.workers.lock().stragglers(state.root.generation);
        let straggler = |inside: Inside| Straggler {
            worker: inside.worker,
            pid: inside.pid,
            thread: inside.thread,
            generation: inside.pin,
            since_ms: u64::try_from(inside.since.as_millis()).unwrap_or(u64::MAX),
            held_bytes: state.heap.held_bytes(inside.pin),
            units: state.units_retired_after(inside.pin),
        };
        let mut stragglers: Vec<_> = inside.into_iter().map(straggler).collect();
        stragglers.retain(|straggler| straggler.held_bytes > 0);
        stragglers
            .sort_by_key(|straggler| (straggler.generation, straggler.worker, straggler.thread));
        stragglers
    }

    /// Wakes workers that wait for something new.
    fn wake(&self) {
        let control = Control::new(self.segment.memory()).expect("our own segment has a header");
        // SAFETY: the first four bytes of an aligned eight, little-endian; both are accessed atomically only.
        let low = unsafe { AtomicU32::from_ptr(control.head_word().as_ptr().cast()) };
        // Nobody to wake is no failure; nor is anything else that a waiter's timeout will not mend.
        let _ = futex::wake(low, futex::Flags::empty(), i32::MAX as u32);
    }

    /// Lets a worker in: a mailbox for it, known here before the worker is.
    pub(crate) fn admit(&self, pid: i32, uid: u32, label: String) -> io::Result<Admission> {
        let (mailbox, fd) = segment::create_mailbox()?;
        let number = self.workers.lock().add(pid, uid, label, mailbox);
        Ok(Admission {
            number,
            mailbox: fd,
        })
    }

    /// Lets a worker in again that was attached to another compiler process, with the mailbox that it has.
    pub(crate) fn admit_again(
        &self,
        (pid, uid): (i32, u32),
        label: String,
        mailbox: &std::os::fd::OwnedFd,
    ) -> io::Result<u64> {
        let mailbox = segment::adopt_mailbox(mailbox)?;
        Ok(self.workers.lock().add(pid, uid, label, mailbox))
    }

    /// Which segment it is.
    pub(crate) fn instance(&self) -> [u8; 16] {
        self.segment.header().instance
    }

    /// What a child of worker `parent` takes over when it is forked; `None`: there is no such worker.
    pub(crate) fn admit_child(&self, parent: u64) -> io::Result<Option<Admission>> {
        let (mailbox, fd) = segment::create_mailbox()?;
        let number = self.workers.lock().add_spare(parent, mailbox);
        Ok(number.map(|number| Admission {
            number,
            mailbox: fd,
        }))
    }

    /// The child is there: process `pid`.
    pub(crate) fn child_arrived(&self, number: u64, pid: i32) {
        self.workers.lock().adopt(number, pid);
    }

    /// A worker's process has ended.
    pub(crate) fn worker_died(&self, number: u64) {
        self.workers.lock().remove(number);
    }

    /// A worker's connection has ended, and nobody will tell when its process does.
    pub(crate) fn worker_hung_up(&self, number: u64) {
        self.workers.lock().hang_up(number);
    }

    /// Whether a worker has said that it is done.
    pub(crate) fn worker_detached(&self, number: u64) -> bool {
        self.workers.lock().is_detached(number)
    }

    /// The descriptor that workers map, open for reading only.
    pub fn worker_fd(&self) -> BorrowedFd<'_> {
        self.segment.worker_fd()
    }

    /// Whether the segment is sealed against writing.
    pub fn is_sealed(&self) -> bool {
        self.segment.name().is_none()
    }

    /// Whether workers must use fences, since this process cannot reach them by membarrier.
    pub(crate) fn needs_fences(&self) -> bool {
        membarrier(MembarrierCommand::GlobalExpedited).is_err()
    }

    /// How many workers are attached.
    pub fn worker_count(&self) -> usize {
        self.workers
            .lock()
            .entries
            .iter()
            .filter(|entry| !entry.gone && !entry.spare)
            .count()
    }

    /// Keeps a named segment's name when this value is dropped, for workers that still use it.
    pub fn keep_name(&mut self) {
        self.segment.keep_name();
    }

    /// What is published, by whom it is used, and how full the segment is.
    pub fn status(&self) -> Status {
        let state = self.state.lock();
        let areas = Area::ALL.map(|area| AreaStatus {
            name: area.name().to_owned(),
            used_bytes: state.heap.used_bytes(area),
            area_bytes: self.segment.geometry().allocated(area).len_bytes.into(),
        });
        let catalog = &state.catalog;
        let mut units: Vec<_> = catalog
            .units
            .iter()
            .map(|(name, unit)| UnitStatus::new(name, unit))
            .collect();
        units.sort_by(|a, b| a.name.cmp(&b.name));
        let mut symbols: Vec<_> = catalog
            .symbols
            .iter()
            .map(|(name, symbol)| SymbolStatus {
                quarantined: catalog.is_quarantined(name, symbol),
                ..SymbolStatus::new(name, symbol)
            })
            .collect();
        symbols.sort_by(|a, b| a.name.cmp(&b.name));
        let status = Status {
            generation: state.root.generation,
            segment: self.segment.name().map(str::to_owned),
            window_bytes: self.segment.geometry().window().len_bytes.into(),
            retired_bytes: state.heap.retired_bytes(),
            areas: areas.to_vec(),
            units,
            symbols,
            kept: catalog.kept.iter().map(Into::into).collect(),
            traps: catalog.traps(),
            quarantined: catalog.quarantined.iter().cloned().collect(),
            history: HistoryStatus::list(&state.history),
            oldest_retained: state.history.oldest(),
            workers: Vec::new(),
            stragglers: self.stragglers(&state),
        };
        drop(state);
        Status {
            workers: self.workers.lock().status(),
            ..status
        }
    }
}

/// Makes what `txn` and `edit` hold the state of the segment.
fn commit(
    segment: &Segment,
    mut txn: Txn<'_>,
    edit: Edit,
    committed: &[u32; Area::COUNT],
) -> Result<(Root, SegmentOffset, [u32; Area::COUNT]), jitcast_runtime::heap::SegmentFull> {
    let now = sys::monotonic_ns();
    let (root, root_at, mut record) = edit.finish(&mut txn, now)?;
    let control = Control::new(segment.memory()).expect("our own segment has a header");
    let extents = Area::ALL.map(|area| txn.extent(area));
    if extents != *committed {
        record[1] |= record_flags::EXTENTS;
        for area in Area::ALL {
            control.set_extent(area, extents[area.index()]);
        }
    }
    control.commit(root_at);
    control.ring().publish(&record);
    txn.commit();
    Ok((root, root_at, extents))
}

impl State {
    /// The units that generations after `pin` replaced or removed, each once.
    fn units_retired_after(&self, pin: u64) -> Vec<String> {
        let retired = self.retired_units.iter();
        let retired = retired.filter(|(generation, _)| *generation > pin);
        let names: std::collections::BTreeSet<_> = retired.map(|(_, name)| name).collect();
        names.into_iter().cloned().collect()
    }

    /// The publication that did what `changes` asks for, if nothing would change and the publisher does not insist.
    fn unchanged(&self, changes: &Changeset<'_>, units: &[RetainedUnit]) -> Option<Publication> {
        if !changes.options.if_changed || !changes.is_units_only() {
            return None;
        }
        let published = self.history.published_as(units)?;
        let names: Vec<&str> = units.iter().map(|unit| unit.name.as_str()).collect();
        Some(Publication {
            generation: published.generation,
            published_ns: published.published_ns,
            ..self.catalog.describe(&names)
        })
    }
}
