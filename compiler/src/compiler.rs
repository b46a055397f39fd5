//! The compiler: a segment, what is published in it, and the workers that map it.

use std::collections::HashSet;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use jitcast_runtime::directory::{Edit, record_flags};
use jitcast_runtime::geometry::{Area, DEFAULT_WINDOW_BYTES, Geometry, GeometryError, SLOT_BYTES};
use jitcast_runtime::header::Control;
use jitcast_runtime::heap::{Heap, Txn};
use jitcast_runtime::mailbox::{FIRST_GENERATION, Word};
use jitcast_runtime::records::{Root, TRAP_CELL};
use jitcast_runtime::segment::{self, BackEnd, Segment, SegmentOptions};
use jitcast_runtime::{SegmentOffset, sys};
use parking_lot::Mutex;
use rustix::thread::{MembarrierCommand, futex, membarrier};

use crate::catalog::{Catalog, ImportKind};
use crate::error::{PublishError, StartError};
use crate::fault::{self, Fault};
use crate::publish::{self, Batch, Changes, Publication, Site, UnitSource};
use crate::status::{AreaStatus, Status, SymbolStatus, UnitStatus, WorkerStatus};
use crate::workers::{Admission, WorkerEntry, Workers};

/// How a compiler process is to be.
#[derive(Clone, Debug)]
pub struct CompilerOptions {
    /// The layout of the window.
    pub geometry: Geometry,
    /// Where the segment lies.
    pub back_end: BackEnd,
    /// The path of its socket, for the header; empty if there is none.
    pub socket: String,
    /// The processor features that code may use.
    pub cpu: jitcast_runtime::cpu::CpuFeatures,
    /// Retired memory is looked through for what can be reused once it exceeds this, bytes.
    pub reclaim_above_bytes: u64,
}

impl Default for CompilerOptions {
    /// A sealed segment of a 1 GiB window for this machine's processor.
    fn default() -> Self {
        Self {
            geometry: Geometry::new(DEFAULT_WINDOW_BYTES.into())
                .expect("the default is within the limits"),
            back_end: BackEnd::Sealed,
            socket: String::new(),
            cpu: jitcast_runtime::cpu::CpuFeatures::host(),
            reclaim_above_bytes: 256 << 10,
        }
    }
}

impl CompilerOptions {
    /// The defaults with a window of `window_bytes`.
    ///
    /// # Errors
    /// [`GeometryError`] outside the limits.
    pub fn with_window(window_bytes: u64) -> Result<Self, GeometryError> {
        Ok(Self {
            geometry: Geometry::new(window_bytes)?,
            ..Self::default()
        })
    }
}

/// The compiler process's side of a segment. Shared between threads.
#[derive(Debug)]
pub struct Compiler {
    segment: Segment,
    state: Mutex<State>,
    workers: Mutex<Workers>,
    reclaim_above_bytes: u64,
}

#[derive(Debug)]
struct State {
    heap: Heap,
    catalog: Catalog,
    root: Root,
    root_at: SegmentOffset,
    committed: [u32; Area::COUNT],
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
            root: Root {
                generation: FIRST_GENERATION - 1,
                ..zerocopy::FromZeros::new_zeroed()
            },
            root_at: SegmentOffset::NONE,
            committed: [0; Area::COUNT],
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
        })
    }

    /// Links `sources` and makes them visible as one. Whatever goes wrong, nothing of them is.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn publish(&self, sources: &[UnitSource]) -> Result<Publication, PublishError> {
        let inputs = publish::inputs(sources);
        let units = publish::read(sources, &inputs)?;
        let mut state = self.state.lock();
        let result = match self.publish_locked(&mut state, sources, &units) {
            // There may be room once what nobody can be inside any more is freed.
            Err(PublishError::Full(_)) => {
                self.reclaim(&mut state);
                self.publish_locked(&mut state, sources, &units)
            }
            other => other,
        };
        if state.heap.retired_bytes() > self.reclaim_above_bytes {
            self.reclaim(&mut state);
        }
        drop(state);
        if result.is_ok() {
            self.wake();
        }
        result
    }

    fn publish_locked(
        &self,
        state: &mut State,
        sources: &[UnitSource],
        units: &[jitcast_linker::Prepared<'_>],
    ) -> Result<Publication, PublishError> {
        let geometry = self.segment.geometry();
        let site = Site {
            geometry,
            hash_seed: self.segment.header().hash_seed,
            catalog: &state.catalog,
        };
        let batch = Batch::new(site, sources, units)?;
        let generation = state.root.generation + 1;
        let mut txn = state
            .heap
            .begin(self.segment.memory(), &self.segment, generation);
        let mut edit = Edit::new(state.root, state.root_at);
        let changes = batch.write(&mut txn, &mut edit)?;
        (state.root, state.root_at, state.committed) =
            commit(&self.segment, txn, edit, &state.committed)?;
        let publication = describe(&state.root, &changes);
        state.catalog.merge(changes);
        Ok(publication)
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
        state.heap.reclaim(if fault::seeded(Fault::ReuseEarly) {
            u64::MAX
        } else {
            oldest
        });
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
            .map(|(name, symbol)| SymbolStatus::new(name, symbol))
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
            workers: Vec::new(),
        };
        drop(state);
        Status {
            workers: self.worker_status(),
            ..status
        }
    }

    fn worker_status(&self) -> Vec<WorkerStatus> {
        let workers = self.workers.lock();
        let there = |entry: &&WorkerEntry| {
            !entry.spare && (!entry.gone || entry.mailbox.oldest_pin().is_some())
        };
        let entries = workers.entries.iter().filter(there);
        entries
            .map(|entry| {
                let word = |word| entry.mailbox.word(word).load(Ordering::Relaxed);
                WorkerStatus {
                    number: entry.number,
                    pid: entry.pid,
                    uid: entry.uid,
                    label: entry.label.clone(),
                    base: word(Word::Base),
                    applied: word(Word::Applied),
                    updates: word(Word::Updates),
                    missing: word(Word::Missing),
                    failed: word(Word::Failed),
                    pinned: entry.mailbox.oldest_pin(),
                }
            })
            .collect()
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

fn describe(root: &Root, changes: &Changes) -> Publication {
    let units: HashSet<&str> = changes
        .units
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    // Symbols of other units are among the changes too, if they got an address cell.
    let functions = changes
        .symbols
        .iter()
        .filter(|(_, symbol)| symbol.call_cell.is_some() && units.contains(symbol.unit.as_str()));
    Publication {
        generation: root.generation,
        published_ns: root.published_ns,
        functions: functions.map(|(name, _)| name.clone()).collect(),
        imports: changes
            .units
            .iter()
            .flat_map(|(_, unit)| &unit.imports)
            .filter(|(_, kind)| *kind != ImportKind::Unique)
            .map(|(name, _)| name.clone())
            .collect(),
    }
}
