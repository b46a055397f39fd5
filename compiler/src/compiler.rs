//! The compiler: a segment, what is published in it, and the workers that map it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use jitcast_linker::Prepared;
use jitcast_runtime::cpu::CpuFeatures;
use jitcast_runtime::directory::Edit;
use jitcast_runtime::geometry::Area;
use jitcast_runtime::header::Control;
use jitcast_runtime::heap::{SegmentFull, Txn};
use jitcast_runtime::records::Root;
use jitcast_runtime::segment::{self, Segment, SegmentOptions};
use parking_lot::{Mutex, MutexGuard, RwLock};
use rustix::thread::{MembarrierCommand, futex, membarrier};

use crate::changeset::{Changeset, PublishOptions, SymbolUpdate};
use crate::error::{PublishError, StartError};
use crate::fault::{self, Fault};
use crate::history::RetainedUnit;
use crate::journal::{self, Journal, JournalError, Past, Storage};
use crate::options::CompilerOptions;
use crate::publish::{self, Batch, Changes, Ending, Publication, Site, UnitSource};
use crate::renewal::Offering;
use crate::requests::Holds;
use crate::state::{Commit, State, commit};
use crate::status::{
    AreaStatus, AskedStatus, CanaryStatus, HistoryStatus, Status, SymbolStatus, UnitStatus,
};
use crate::stragglers::{Inside, Straggler};
use crate::workers::{Admission, Workers};

/// The compiler process's side of a segment. Shared between threads.
#[derive(Debug)]
pub struct Compiler {
    /// Replaced when the segment is renewed, under the state's lock.
    segment: RwLock<Arc<Segment>>,
    pub(crate) state: Mutex<State>,
    /// Locked while the state is.
    pub(crate) journal: Mutex<Option<Journal>>,
    pub(crate) workers: Mutex<Workers>,
    /// Who is told of renewals.
    pub(crate) servers: Mutex<Vec<Arc<Offering>>>,
    /// Who has which asked-for unit. Locked while the state is, or by itself.
    pub(crate) holds: Mutex<Holds>,
    reclaim_above_bytes: u64,
    pub(crate) max_held_bytes: Option<u64>,
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
            ..options.segment()
        };
        let segment = Segment::restore(&segment, header.instance, header.hash_seed)?;
        let (state, journal) = past.replay(storage, &segment, options.retain)?;
        Ok(Self::new(options, segment, state, Some(journal)))
    }

    /// Nothing is published yet.
    fn fresh(
        options: &CompilerOptions,
        storage: Option<Box<dyn Storage>>,
    ) -> Result<Self, StartError> {
        let segment = Segment::create(&options.segment())?;
        let state = State::fresh(&segment, options.retain)?;
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
        let holds = Holds::new(state.catalog.asked.values());
        Self {
            segment: RwLock::new(Arc::new(segment)),
            state: Mutex::new(state),
            journal: Mutex::new(journal),
            workers: Mutex::new(Workers::default()),
            holds: Mutex::new(holds),
            servers: Mutex::default(),
            reclaim_above_bytes: options.reclaim_above_bytes,
            max_held_bytes: options.max_held_bytes,
        }
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

    /// Makes all of `changes` visible as one generation. Whatever goes wrong, nothing of it is, unless the error is
    /// [`JournalError::NotDurable`]. With a journal, what it returns is durable.
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
        let mut state = self.state.lock();
        let mut undo = state.history.undo(to)?;
        // Others may publish while the units are read, and so change what leads back; after that they wait.
        let mut others_wait = false;
        loop {
            let sources = self.sources(&state, &undo.units)?;
            let changes = Changeset {
                units: &sources,
                removals: &undo.removals,
                options,
                ..Changeset::default()
            };
            let inputs = publish::inputs(changes.units);
            let units = if others_wait {
                publish::read(&changes, &inputs)?
            } else {
                MutexGuard::unlocked(&mut state, || publish::read(&changes, &inputs))?
            };
            let now = state.history.undo(to)?;
            if now == undo {
                return self.publish_locked(&mut state, &changes, &undo.units, &units);
            }
            (undo, others_wait) = (now, true);
        }
    }

    /// What retained units were made of.
    fn sources(
        &self,
        state: &State,
        units: &[RetainedUnit],
    ) -> Result<Vec<UnitSource>, JournalError> {
        let mut journal = self.journal.lock();
        let source = |unit| match &mut *journal {
            None => Ok(state.contents.source(unit)),
            Some(journal) => journal.source(unit),
        };
        units.iter().map(source).collect()
    }

    /// Lets the units of a canary replace what is published, for all workers. Those that run them already go on as they are;
    /// the others bind them at their next guard. `canary` is its number, or the name of a unit of it.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn promote(&self, canary: &str) -> Result<Publication, PublishError> {
        self.decide(canary, |state| {
            let id = find_canary(state, canary)?;
            let retained = state.catalog.canaries[&id].retained.clone();
            let names: Vec<_> = retained.iter().map(|unit| unit.name.clone()).collect();
            let (generation, published_ns) =
                self.commit(state, (&retained, &[]), |site, txn, edit| {
                    let catalog = site.catalog;
                    let canary = &catalog.canaries[&id];
                    let mut changes = Ending::new(site, canary).promote(txn, edit)?;
                    publish::dismiss_asked(catalog, &mut changes, txn, edit)?;
                    Ok(changes)
                })?;
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            Ok(Publication {
                generation,
                published_ns,
                ..state.catalog.describe(&names)
            })
        })
    }

    /// Lets nobody run the units of a canary any more: those that did go back to what is published, at their next guards.
    /// `canary` is its number, or the name of a unit of it.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn abort(&self, canary: &str) -> Result<Publication, PublishError> {
        self.decide(canary, |state| {
            let id = find_canary(state, canary)?;
            let gone = state.catalog.canaries[&id].retained.clone();
            let removed = state.catalog.canaries[&id].names();
            let removed = removed.map(str::to_owned).collect();
            let (generation, published_ns) =
                self.commit(state, (&[], &[]), |site, txn, edit| {
                    let canary = &site.catalog.canaries[&id];
                    Ok(Ending::new(site, canary).abort(txn, edit)?)
                })?;
            gone.iter().for_each(|unit| state.contents.release(unit));
            Ok(Publication {
                generation,
                published_ns,
                removed,
                ..Publication::default()
            })
        })
    }

    /// Ends a canary. Also while threads hold back more than is allowed: it takes next to no memory.
    fn decide(
        &self,
        canary: &str,
        end: impl Fn(&mut State) -> Result<Publication, PublishError>,
    ) -> Result<Publication, PublishError> {
        let mut state = self.state.lock();
        find_canary(&state, canary)?;
        self.make_visible(&mut state, end)
    }

    fn publish_locked(
        &self,
        state: &mut State,
        asked: &Changeset<'_>,
        retained: &[RetainedUnit],
        units: &[Prepared<'_>],
    ) -> Result<Publication, PublishError> {
        self.check_held(state)?;
        self.make_visible(state, |state| {
            self.link_and_commit(state, asked, retained, units)
        })
    }

    /// Makes visible what `link` commits, and durable.
    fn make_visible(
        &self,
        state: &mut State,
        link: impl Fn(&mut State) -> Result<Publication, PublishError>,
    ) -> Result<Publication, PublishError> {
        let result = self.with_room(state, link).and_then(|publication| {
            self.wake();
            self.settle(publication.generation)?;
            Ok(publication)
        });
        self.tidy(state);
        result
    }

    /// Makes a publication by `commit`, with all the room that can be had.
    pub(crate) fn with_room<T>(
        &self,
        state: &mut State,
        commit: impl Fn(&mut State) -> Result<T, PublishError>,
    ) -> Result<T, PublishError> {
        match commit(state) {
            // There may be room once what nobody can be inside any more is freed.
            Err(PublishError::Full(_)) => {
                self.reclaim(state);
                match commit(state) {
                    Err(PublishError::Full(full)) => match self.renew_for(state, &full) {
                        Ok(true) => commit(state),
                        Ok(false) => Err(self.name_stragglers(state, full)),
                        Err(error) => Err(error),
                    },
                    other => other,
                }
            }
            other => other,
        }
    }

    /// Frees and rewrites what has grown too large.
    pub(crate) fn tidy(&self, state: &mut State) {
        if state.heap.retired_bytes() > self.reclaim_above_bytes {
            self.reclaim(state);
        }
        self.compact(state);
    }

    fn link_and_commit(
        &self,
        state: &mut State,
        asked: &Changeset<'_>,
        retained: &[RetainedUnit],
        units: &[Prepared<'_>],
    ) -> Result<Publication, PublishError> {
        let (generation, published_ns) =
            self.commit(state, (retained, asked.units), |site, txn, edit| {
                Batch::new(site, asked, units)?.write(txn, edit)
            })?;
        let names: Vec<&str> = asked.units.iter().map(|unit| unit.name.as_str()).collect();
        let published = match asked.canary {
            Some(_) => state.catalog.describe_canary(generation),
            None => state.catalog.describe(&names),
        };
        Ok(Publication {
            generation,
            published_ns,
            removed: asked.removals.to_vec(),
            ..published
        })
    }

    /// Commits what `write` changes: `units`, with what they were made of where that is new. Says which generation it is, and
    /// when it was published, `CLOCK_MONOTONIC`, ns.
    pub(crate) fn commit(
        &self,
        state: &mut State,
        (units, sources): (&[RetainedUnit], &[UnitSource]),
        write: impl FnOnce(Site<'_>, &mut Txn<'_>, &mut Edit) -> Result<Changes, PublishError>,
    ) -> Result<(u64, u64), PublishError> {
        let mut journal = self.journal.lock();
        let segment = self.segment();
        let geometry = segment.geometry();
        let generation = match &mut *journal {
            None => state.generation() + 1,
            Some(journal) => journal.next_generation(state.generation())?,
        };
        let site = Site {
            geometry,
            hash_seed: segment.header().hash_seed,
            catalog: &state.catalog,
        };
        let latest = state.latest;
        let mut txn = state.heap.begin(segment.memory(), &*segment, generation);
        let mut edit = Edit::new(latest.root, latest.root_at);
        let mut changes = write(site, &mut txn, &mut edit)?;
        if let Some(canary) = &mut changes.canary {
            canary.retained = units.to_vec();
        }
        let write_ahead = |txn: &Txn<'_>, commit: &Commit| match &mut *journal {
            None => Ok(()),
            Some(journal) => {
                let units = (units, sources);
                Ok::<_, PublishError>(journal.write_ahead(geometry, txn, commit, &changes, units)?)
            }
        };
        state.latest = commit(&segment, txn, edit, &latest.extents, write_ahead)?;
        let forgotten = state.take_over(changes, units);
        if journal.is_none() {
            state.hold(units, sources, &forgotten);
        }
        let Root {
            generation,
            published_ns,
            ..
        } = state.latest.root;
        Ok((generation, published_ns))
    }

    /// Makes a publication that is visible durable.
    pub(crate) fn settle(&self, generation: u64) -> Result<(), JournalError> {
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
            && let Err(error) = journal.compact(&self.segment(), state)
        {
            // What is published is in the old log, or the journal takes no more.
            tracing::warn!(%error, "the journal's log is not compacted");
        }
    }

    /// Frees retired memory that no thread of a worker can be inside. What will be reused is announced first, and
    /// the pins are looked at again: a thread that decides to stay at an older generation in between either
    /// has its pin seen, or sees the announcement. Whatever pins come later, what was reused stays announced: a thread that
    /// attaches, or lies, pins all that ever was.
    fn reclaim(&self, state: &mut State) {
        if state.heap.oldest_retired().is_none() {
            return;
        }
        let mut workers = self.workers.lock();
        let segment = self.segment();
        let object = segment.header().object;
        let control = Control::new(segment.memory()).expect("our own segment has a header");
        let reused = state.heap.floor();
        let announce = |oldest: u64| control.floor().store(oldest.max(reused), Ordering::Release);
        let announced = workers.oldest_pin(object).min(state.generation());
        announce(announced);
        let oldest = workers.oldest_pin(object).min(announced);
        announce(oldest);
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
    pub(crate) fn check_held(&self, state: &mut State) -> Result<(), PublishError> {
        let Some(limit) = self.max_held_bytes else {
            return Ok(());
        };
        if state.heap.retired_bytes() + self.older_bytes(state) <= limit {
            return Ok(());
        }
        self.reclaim(state);
        let held = state.heap.retired_bytes() + self.older_bytes(state);
        if held <= limit {
            return Ok(());
        }
        let why = format!("{held} bytes are retired and held back, {limit} may be (--max-held)");
        Err(PublishError::HeldBack {
            why,
            stragglers: self.stragglers(state),
        })
    }

    /// Says who holds back what is lacking, if somebody does.
    fn name_stragglers(&self, state: &State, full: SegmentFull) -> PublishError {
        let stragglers = self.stragglers(state);
        if stragglers.is_empty() {
            return full.into();
        }
        PublishError::HeldBack {
            why: full.to_string(),
            stragglers,
        }
    }

    /// The threads that hold retired memory back, those that hold most first.
    fn stragglers(&self, state: &State) -> Vec<Straggler> {
        let older: Vec<u64> = state.older.iter().map(|older| older.object).collect();
        let inside = self.workers.lock().stragglers(state.generation(), &older);
        let straggler = |inside: Inside| {
            let mut objects = state.older.iter();
            let older = objects.find(|older| inside.older == Some(older.object));
            let (held_bytes, units) = match older {
                Some(older) => (older.bytes, Vec::new()),
                None => {
                    let held_bytes = state.heap.held_bytes(inside.pin);
                    (held_bytes, state.units_retired_after(inside.pin))
                }
            };
            Straggler {
                worker: inside.worker,
                pid: inside.pid,
                thread: inside.thread,
                generation: inside.pin,
                since_ms: u64::try_from(inside.since.as_millis()).unwrap_or(u64::MAX),
                held_bytes,
                units,
                older: older.is_some(),
            }
        };
        let mut stragglers: Vec<_> = inside.into_iter().map(straggler).collect();
        stragglers.retain(|straggler| straggler.held_bytes > 0);
        stragglers
            .sort_by_key(|straggler| (straggler.generation, straggler.worker, straggler.thread));
        stragglers
    }

    /// Wakes workers that wait for something new.
    pub(crate) fn wake(&self) {
        wake_all(&self.segment());
    }

    /// The segment, in the object that it is in now. An object is there as long as somebody holds it.
    pub fn segment(&self) -> Arc<Segment> {
        Arc::clone(&self.segment.read())
    }

    /// What is published lies in `segment` from now on.
    pub(crate) fn go_on_in(&self, segment: Segment) {
        *self.segment.write() = Arc::new(segment);
    }

    /// Lets a worker in: a mailbox for it, known here before the worker is.
    pub(crate) fn admit(&self, pid: i32, uid: u32, label: String) -> io::Result<Admission> {
        let segment = self.segment();
        let (mailbox, fd, presence) = segment::create_mailbox(segment.header().object)?;
        let mailbox = (mailbox, presence);
        let number = self.workers.lock().add((pid, uid), label, mailbox);
        Ok(Admission {
            number,
            mailbox: fd,
            segment,
        })
    }

    /// Lets a worker in again that was attached to another compiler process, with the mailbox that it has.
    pub(crate) fn admit_again(
        &self,
        process: (i32, u32),
        label: String,
        mailbox: &std::os::fd::OwnedFd,
    ) -> io::Result<u64> {
        let mailbox = segment::adopt_mailbox(mailbox)?;
        Ok(self.workers.lock().add_again(process, label, mailbox))
    }

    /// Which segment it is.
    pub(crate) fn instance(&self) -> [u8; 16] {
        self.segment().header().instance
    }

    /// What a child of worker `parent` takes over when it is forked; `None`: there is no such worker.
    pub(crate) fn admit_child(&self, parent: u64) -> io::Result<Option<Admission>> {
        let segment = self.segment();
        let (mailbox, fd, presence) = segment::create_mailbox(segment.header().object)?;
        let number = self.workers.lock().add_spare(parent, (mailbox, presence));
        if let Some(number) = number {
            self.holds.lock().spare_given(parent, number);
        }
        Ok(number.map(|number| Admission {
            number,
            mailbox: fd,
            segment,
        }))
    }

    /// The child is there: process `pid`.
    pub(crate) fn child_arrived(&self, number: u64, pid: i32) {
        self.workers.lock().adopt(number, pid);
        self.holds.lock().child_arrived(number);
    }

    /// A worker's process has ended.
    pub(crate) fn worker_died(&self, number: u64) {
        self.workers.lock().remove(number);
        self.holds.lock().worker_gone(number);
    }

    /// Whether somebody has a worker's mailbox still.
    pub(crate) fn worker_is_there(&self, number: u64) -> bool {
        self.workers.lock().is_there(number)
    }

    /// Whether a worker has said that it is done.
    pub(crate) fn worker_detached(&self, number: u64) -> bool {
        self.workers.lock().is_detached(number)
    }

    /// Whether the segment is sealed against writing.
    pub fn is_sealed(&self) -> bool {
        self.segment().name().is_none()
    }

    /// Whether workers must use fences, since this process cannot reach them by membarrier.
    pub fn needs_fences(&self) -> bool {
        membarrier(MembarrierCommand::GlobalExpedited).is_err()
    }

    /// How many workers are attached.
    pub fn worker_count(&self) -> usize {
        self.workers
            .lock()
            .entries
            .iter()
            .filter(|entry| !entry.spare)
            .count()
    }

    /// Keeps a named segment's name when this value is dropped, for workers that still use it.
    pub fn keep_name(&self) {
        self.segment().keep_name();
    }

    /// What is published, by whom it is used, and how full the segment is.
    pub fn status(&self) -> Status {
        let mut state = self.state.lock();
        let older_bytes = self.older_bytes(&mut state);
        let segment = self.segment();
        let areas = Area::ALL.map(|area| AreaStatus {
            name: area.name().to_owned(),
            used_bytes: state.heap.used_bytes(area),
            area_bytes: segment.geometry().allocated(area).len_bytes.into(),
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
        let holds = self.holds.lock();
        let asked = catalog.asked.values().map(|unit| AskedStatus {
            name: unit.name.clone(),
            generation: unit.generation,
            len_bytes: unit.len_bytes,
            workers: holds.holders(unit.number),
        });
        let (asked, compiled_requests) = (asked.collect(), holds.compiled);
        drop(holds);
        let workers = self.workers.lock().status(&catalog.canaries);
        let status = Status {
            generation: state.generation(),
            segment: segment.name().map(str::to_owned),
            backed_bytes: state.heap.backed_bytes(),
            older_bytes,
            window_bytes: segment.geometry().window().len_bytes.into(),
            retired_bytes: state.heap.retired_bytes(),
            areas: areas.to_vec(),
            units,
            symbols,
            asked,
            compiled_requests,
            kept: catalog.kept.iter().map(Into::into).collect(),
            traps: catalog.traps(),
            quarantined: catalog.quarantined.iter().cloned().collect(),
            history: HistoryStatus::list(&state.history),
            oldest_retained: state.history.oldest(),
            canaries: catalog.canaries.values().map(CanaryStatus::new).collect(),
            workers,
            stragglers: self.stragglers(&state),
        };
        drop(state);
        status.with_audiences()
    }
}

/// The number of the canary that is called `name`.
fn find_canary(state: &State, name: &str) -> Result<u64, PublishError> {
    publish::check_name(name)?;
    let canary = state.catalog.find_canary(name);
    let canary = canary.ok_or_else(|| PublishError::NoSuchCanary {
        canary: name.to_owned(),
    })?;
    Ok(canary.id)
}

/// Wakes workers that wait for something new in `segment`.
pub(crate) fn wake_all(segment: &Segment) {
    let control = Control::new(segment.memory()).expect("our own segment has a header");
    // SAFETY: the first four bytes of an aligned eight, little-endian; both are accessed atomically only.
    let low = unsafe { AtomicU32::from_ptr(control.head_word().as_ptr().cast()) };
    // Nobody to wake is no failure; nor is anything else that a waiter's timeout will not mend.
    let _ = futex::wake(low, futex::Flags::empty(), i32::MAX as u32);
}
