//! The compiler: a segment, what is published in it, and the workers that map it.

use std::collections::HashSet;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use jitcast_runtime::cpu::CpuFeatures;
use jitcast_runtime::directory::Edit;
use jitcast_runtime::geometry::{Area, DEFAULT_WINDOW_BYTES, Geometry, GeometryError};
use jitcast_runtime::header::Control;
use jitcast_runtime::heap::Txn;
use jitcast_runtime::mailbox::Word;
use jitcast_runtime::records::Root;
use jitcast_runtime::segment::{self, BackEnd, Segment, SegmentOptions};
use parking_lot::Mutex;
use rustix::thread::{MembarrierCommand, futex, membarrier};

use crate::catalog::ImportKind;
use crate::error::{PublishError, StartError};
use crate::fault::{self, Fault};
use crate::journal::{self, Journal, JournalError, JournalOptions, Past, Storage};
use crate::publish::{self, Batch, Changes, Publication, Site, UnitSource};
use crate::state::{Commit, State, commit};
use crate::status::{AreaStatus, Status, SymbolStatus, UnitStatus, WorkerStatus};
use crate::workers::{Admission, Workers};

/// How a compiler process is to be.
#[derive(Clone, Debug)]
pub struct CompilerOptions {
    /// The layout of the window; `None`: that of the journal, or else the default.
    pub geometry: Option<Geometry>,
    /// Where the segment lies.
    pub back_end: BackEnd,
    /// The path of its socket, for the header; empty if there is none.
    pub socket: String,
    /// The processor features that code may use.
    pub cpu: CpuFeatures,
    /// Retired memory is looked through for what can be reused once it exceeds this, bytes.
    pub reclaim_above_bytes: u64,
    /// Where publications are written down, so that the next compiler process has them too; `None`: nowhere.
    pub journal: Option<JournalOptions>,
}

impl Default for CompilerOptions {
    /// A sealed segment of a 1 GiB window for this machine's processor.
    fn default() -> Self {
        Self {
            geometry: None,
            back_end: BackEnd::Sealed,
            socket: String::new(),
            cpu: CpuFeatures::host(),
            reclaim_above_bytes: 256 << 10,
            journal: None,
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
            geometry: Some(Geometry::new(window_bytes)?),
            ..Self::default()
        })
    }
}

/// The compiler process's side of a segment. Shared between threads.
#[derive(Debug)]
pub struct Compiler {
    pub(crate) segment: Segment,
    pub(crate) state: Mutex<State>,
    /// Locked while the state is.
    pub(crate) journal: Mutex<Option<Journal>>,
    workers: Mutex<Workers>,
    reclaim_above_bytes: u64,
}

impl Compiler {
    /// Creates a segment: with an empty directory, or with what the journal says was published.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn create(options: &CompilerOptions) -> Result<Self, StartError> {
        let journal = options.journal.as_ref();
        match journal.map(journal::open).transpose()? {
            None => Self::fresh(options, None),
            Some((storage, past)) => Self::with_journal(options, storage, past),
        }
    }

    /// The one place that decides where the image of the segment comes from.
    pub(crate) fn with_journal(
        options: &CompilerOptions,
        storage: Box<dyn Storage>,
        past: Option<Past>,
    ) -> Result<Self, StartError> {
        let Some(past) = past else {
            return Self::fresh(options, Some(storage));
        };
        let header = past.header();
        let cpu = header.cpu_features | options.cpu.bits();
        let segment = SegmentOptions {
            geometry: past.geometry(options.geometry)?,
            cpu: CpuFeatures::from_bits(cpu),
            ..segment_options(options)
        };
        let segment = Segment::restore(&segment, header.instance, header.hash_seed)?;
        let (state, journal) = past.replay(storage, &segment)?;
        Ok(Self::new(options, segment, state, Some(journal)))
    }

    /// Nothing is published yet.
    fn fresh(
        options: &CompilerOptions,
        storage: Option<Box<dyn Storage>>,
    ) -> Result<Self, StartError> {
        let segment = Segment::create(&segment_options(options))?;
        let state = State::fresh(&segment)?;
        let journal = match (storage, &options.journal) {
            (Some(storage), Some(options)) => {
                Some(Journal::begin(storage, options, &segment, &state)?)
            }
            _ => None,
        };
        Ok(Self::new(options, segment, state, journal))
    }

    fn new(
        options: &CompilerOptions,
        segment: Segment,
        state: State,
        journal: Option<Journal>,
    ) -> Self {
        Self {
            segment,
            state: Mutex::new(state),
            journal: Mutex::new(journal),
            workers: Mutex::new(Workers::default()),
            reclaim_above_bytes: options.reclaim_above_bytes,
        }
    }

    /// Links `sources` and makes them visible as one. Whatever goes wrong, nothing of them is, unless the error is
    /// [`JournalError::NotDurable`]. With a journal, what it returns is durable.
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
        let result = result.and_then(|publication| {
            self.wake();
            self.settle(publication.generation)?;
            Ok(publication)
        });
        if state.heap.retired_bytes() > self.reclaim_above_bytes {
            self.reclaim(&mut state);
        }
        self.compact(&state);
        result
    }

    fn publish_locked(
        &self,
        state: &mut State,
        sources: &[UnitSource],
        units: &[jitcast_linker::Prepared<'_>],
    ) -> Result<Publication, PublishError> {
        let mut journal = self.journal.lock();
        let geometry = self.segment.geometry();
        let site = Site {
            geometry,
            hash_seed: self.segment.header().hash_seed,
            catalog: &state.catalog,
        };
        let batch = Batch::new(site, sources, units)?;
        let generation = match &mut *journal {
            None => state.generation() + 1,
            Some(journal) => journal.next_generation(state.generation())?,
        };
        let latest = state.latest;
        let memory = self.segment.memory();
        let mut txn = state.heap.begin(memory, &self.segment, generation);
        let mut edit = Edit::new(latest.root, latest.root_at);
        let changes = batch.write(&mut txn, &mut edit)?;
        let write_ahead = |txn: &Txn<'_>, commit: &Commit| match &mut *journal {
            None => Ok(()),
            Some(journal) => Ok::<_, PublishError>(
                journal.write_ahead(geometry, txn, commit, &changes, sources)?,
            ),
        };
        state.latest = commit(&self.segment, txn, edit, &latest.extents, write_ahead)?;
        let publication = describe(&state.latest.root, &changes);
        state.catalog.merge(changes);
        Ok(publication)
    }

    /// Makes a publication that is visible durable.
    fn settle(&self, generation: u64) -> Result<(), JournalError> {
        match &mut *self.journal.lock() {
            None => Ok(()),
            Some(journal) => journal.settle(generation),
        }
    }

    /// Writes the journal's log anew if it is due. That takes as long as writing the live image does, and nobody
    /// publishes meanwhile; calls go on.
    fn compact(&self, state: &State) {
        if let Some(journal) = &mut *self.journal.lock()
            && journal.is_compaction_due()
            && let Err(error) = journal.compact(&self.segment, state)
        {
            // What is published is in the old log, or the journal takes no more.
            tracing::warn!(%error, "the journal's log is not compacted");
        }
    }

    /// What the unit `name` of publication `generation` was made from, if the journal remembers it: it does for
    /// units as they are published now, and for all of the last three publications.
    ///
    /// # Errors
    /// [`JournalError`] if it cannot be read.
    pub fn sources_of(
        &self,
        generation: u64,
        name: &str,
    ) -> Result<Option<UnitSource>, JournalError> {
        match &*self.journal.lock() {
            None => Ok(None),
            Some(journal) => journal.sources_of(generation, name),
        }
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
        let announced = workers.oldest_pin().min(state.generation());
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
            .filter(|entry| !entry.gone)
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
            area_bytes: self.segment.geometry().region(area).len_bytes.into(),
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
            generation: state.generation(),
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
        let entries = workers.entries.iter();
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

fn segment_options(options: &CompilerOptions) -> SegmentOptions {
    let default =
        || Geometry::new(DEFAULT_WINDOW_BYTES.into()).expect("the default is within the limits");
    SegmentOptions {
        geometry: options.geometry.unwrap_or_else(default),
        cpu: options.cpu,
        back_end: options.back_end.clone(),
        socket: options.socket.clone(),
    }
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
