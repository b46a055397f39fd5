//! The compiler: a segment, what is published in it, and the workers that map it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use jitcast_linker::Prepared;
use jitcast_runtime::cpu::CpuFeatures;
use jitcast_runtime::directory::Edit;
use jitcast_runtime::header::Control;
use jitcast_runtime::heap::{Heap, Txn};
use jitcast_runtime::records::Root;
use jitcast_runtime::segment::{DeadSegment, Segment, SegmentError, SegmentOptions, SharedOrigin};
use parking_lot::{Mutex, MutexGuard, RwLock};
use rustix::thread::{MembarrierCommand, futex, membarrier};

use crate::adoption;
use crate::catalog::Catalog;
use crate::changeset::{Changeset, PublishOptions, SymbolUpdate};
use crate::error::{PublishError, StartError};
use crate::fault::{self, Fault};
use crate::history::RetainedUnit;
use crate::incidents::Incidents;
use crate::journal::{self, Journal, JournalError, Past, Storage};
use crate::metrics::Metrics;
use crate::options::CompilerOptions;
use crate::publish::{self, Batch, Changes, Publication, Retaining, Site, UnitSource};
use crate::renewal::Offering;
use crate::requests::Holds;
use crate::state::{Commit, State, commit};
use crate::threads::Threads;
use crate::turn::Turn;
use crate::workers::Workers;

/// The compiler process's side of a segment. Shared between threads.
///
/// ```
/// use jitcast_compiler::front::{Options, compile_bytes};
/// use jitcast_compiler::{Compiler, CompilerOptions, UnitSource};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let compiler = Compiler::create(&CompilerOptions::default())?;
/// let text = "function %same(i64) -> i64 {
///             block0(v0: i64):
///                 return v0
///             }";
/// let file = compile_bytes("same.clif", text.into(), &Options::default())?;
/// let done = compiler.publish(&[UnitSource::new("same", [file])])?;
/// assert_eq!(done.functions, ["same"]);
/// # Ok(())
/// # }
/// ```
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
    /// What went wrong lately. Locked by itself, or while the state is.
    pub(crate) incidents: Mutex<Incidents>,
    pub(crate) metrics: Metrics,
    reclaim_above_bytes: u64,
    pub(crate) max_held_bytes: Option<u64>,
    threads: Threads,
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
        let dead = adoption::left_under(&options.back_end)?;
        let Some(past) = past else {
            dead.map_or(Ok(()), DeadSegment::unlink)
                .map_err(SegmentError::from)?;
            return Self::fresh(options, Some(storage));
        };
        let header = past.header();
        let cpu = header.cpu_features | options.cpu.bits();
        let folder = options.journal.as_ref().map(|journal| &journal.folder);
        let noted = folder.and_then(|folder| journal::noted(folder));
        let segment = SegmentOptions {
            geometry: past.geometry(options.geometry)?,
            cpu: CpuFeatures::from_bits(cpu),
            shared: noted.map_or(SharedOrigin::Fresh, SharedOrigin::Awaited),
            ..options.segment()
        };
        let (instance, hash_seed) = (header.instance, header.hash_seed);
        let Some(dead) = dead else {
            let segment = Segment::restore(&segment, instance, hash_seed)?;
            let (state, journal) = past.replay(storage, &segment, options.retain)?;
            return Ok(Self::again(options, segment, state, journal));
        };
        let made = Segment::restore_beside(&segment, instance, hash_seed)?;
        let (mut state, journal) = past.replay(storage, &made, options.retain)?;
        let segment = adoption::adopt_or_replace((made, &mut state), dead, &segment)?;
        Ok(Self::again(options, segment, state, journal))
    }

    /// What was published is there again, and so is what waited to be freed: it does not wait for the next publication, which
    /// would lie behind it.
    fn again(options: &CompilerOptions, segment: Segment, state: State, journal: Journal) -> Self {
        let compiler = Self::new(options, segment, state, Some(journal));
        compiler.free_surplus(&mut compiler.state.lock());
        compiler
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
        mut journal: Option<Journal>,
    ) -> Self {
        if let Some(journal) = &mut journal {
            journal.note_shared_data(segment.shared_identity());
        }
        let holds = Holds::new(state.catalog.asked.values());
        Self {
            segment: RwLock::new(Arc::new(segment)),
            state: Mutex::new(state),
            journal: Mutex::new(journal),
            workers: Mutex::new(Workers::default()),
            holds: Mutex::new(holds),
            servers: Mutex::default(),
            incidents: Mutex::default(),
            metrics: Metrics::default(),
            reclaim_above_bytes: options.reclaim_above_bytes,
            max_held_bytes: options.max_held_bytes,
            threads: options.threads.clone(),
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
        self.change_in_turn(changes, &mut ())
    }

    /// The same, where others go first. What depends neither on them nor on what is published is done before they have gone.
    pub(crate) fn change_in_turn(
        &self,
        changes: &Changeset<'_>,
        turn: &mut dyn Turn,
    ) -> Result<Publication, PublishError> {
        let _span = tracing::info_span!("publish", units = changes.units.len()).entered();
        let start = Instant::now();
        let retaining = Retaining::of(changes.units, &self.threads);
        // Who does not ask for it does not wait here for somebody else's publication.
        if changes.options.if_changed {
            retaining.units();
            turn.wait()?;
            if let Some(published) = self.state.lock().unchanged(changes, &retaining) {
                return Ok(published);
            }
        }
        let inputs = publish::inputs(changes.units);
        let units = {
            let _span = tracing::info_span!("read").entered();
            let read = publish::read(changes, &inputs, &self.threads);
            read.inspect_err(|_| self.metrics.refused())?
        };
        let prepared = start.elapsed();
        turn.wait()?;
        let mut state = self.state.lock();
        turn.begin();
        let locked = start.elapsed();
        // Somebody may have published the same meanwhile.
        let done = match state.unchanged(changes, &retaining) {
            Some(published) => Ok(published),
            None => self.publish_locked(&mut state, changes, &retaining, &units),
        };
        drop(state);
        let (waited, committed) = (locked - prepared, start.elapsed() - locked);
        tracing::debug!(?prepared, ?waited, ?committed, "publication");
        let (linking, all) = (prepared + committed, start.elapsed());
        self.metrics.published(linking, all, done.is_ok());
        done
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
                publish::read(&changes, &inputs, &self.threads)?
            } else {
                let read = || publish::read(&changes, &inputs, &self.threads);
                MutexGuard::unlocked(&mut state, read)?
            };
            let now = state.history.undo(to)?;
            if now == undo {
                let retaining = Retaining::known(undo.units, &sources);
                return self.publish_locked(&mut state, &changes, &retaining, &units);
            }
            (undo, others_wait) = (now, true);
        }
    }

    /// What retained units were made of.
    pub(crate) fn sources(
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

    fn publish_locked(
        &self,
        state: &mut State,
        asked: &Changeset<'_>,
        retaining: &Retaining<'_>,
        units: &[Prepared<'_>],
    ) -> Result<Publication, PublishError> {
        self.check_held(state)?;
        self.make_visible(state, |state| {
            self.link_and_commit(state, asked, retaining, units)
        })
    }

    /// Makes visible what `link` commits, and durable.
    pub(crate) fn make_visible(
        &self,
        state: &mut State,
        link: impl Fn(&mut State) -> Result<Publication, PublishError>,
    ) -> Result<Publication, PublishError> {
        let result = self.with_room(state, link).and_then(|publication| {
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
        self.free_surplus(state);
        self.compact(state);
    }

    fn free_surplus(&self, state: &mut State) {
        if state.heap.retired_bytes() > self.reclaim_above_bytes {
            self.reclaim(state);
        }
    }

    fn link_and_commit(
        &self,
        state: &mut State,
        asked: &Changeset<'_>,
        retaining: &Retaining<'_>,
        units: &[Prepared<'_>],
    ) -> Result<Publication, PublishError> {
        let _span = tracing::info_span!("link").entered();
        let (generation, published_ns) = self.commit(state, retaining, |site, txn, edit| {
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

    /// Commits what `write` changes: units of which `retaining` says what is retained; then wakes workers that wait for
    /// something new. Says which generation it is, and when it was published, `CLOCK_MONOTONIC`, ns.
    pub(crate) fn commit(
        &self,
        state: &mut State,
        retaining: &Retaining<'_>,
        write: impl FnOnce(Site<'_>, &mut Txn<'_>, &mut Edit) -> Result<Changes, PublishError>,
    ) -> Result<(u64, u64), PublishError> {
        let mut journal = self.journal.lock();
        let segment = self.segment();
        if let Some(journal) = &mut *journal {
            journal.note_shared_data(segment.shared_identity());
        }
        let place = (&*segment, &mut state.heap);
        let what = (state.latest, &state.catalog);
        let (latest, changes) = write_and_commit(&mut journal, place, what, retaining, write)?;
        // Whatever is left to do here, workers need not wait for it.
        wake_all(&segment);
        state.latest = latest;
        let units = retaining.units();
        let forgotten = state.take_over(changes, units);
        if journal.is_none() {
            state.hold(units, retaining.sources, &forgotten);
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
    /// attaches, or lies, pins all that ever was. Shared data are the same ones in every object that the segment has been in, so
    /// those wait for workers at older objects too, which see no announcement; after a restart, for all that have not come back.
    pub(crate) fn reclaim(&self, state: &mut State) {
        if state.heap.oldest_retired().is_none() {
            return;
        }
        let mut workers = self.workers.lock();
        let segment = self.segment();
        if has_strangers(&segment) {
            return;
        }
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
        let shared = match state.heap.oldest_retired_shared() {
            // Of those that have not come back nothing is known but that they are there.
            Some(_) if segment.has_earlier_users_of_shared_data() => 0,
            Some(_) => workers.oldest_user(object).min(oldest),
            None => oldest,
        };
        let early = fault::seeded(Fault::ReuseEarly);
        state.heap.reclaim(if early { u64::MAX } else { oldest });
        let shared = if early { u64::MAX } else { shared };
        state.heap.reclaim_shared(shared);
    }

    /// The segment, in the object that it is in now. An object is there as long as somebody holds it.
    pub fn segment(&self) -> Arc<Segment> {
        Arc::clone(&self.segment.read())
    }

    /// What is published lies in `segment` from now on.
    pub(crate) fn go_on_in(&self, segment: Segment) {
        *self.segment.write() = Arc::new(segment);
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
}

/// Whether workers may be inside of whose pins this process knows nothing. To be asked before pins are looked at: whoever comes back
/// hands over his mailbox first.
pub(crate) fn has_strangers(segment: &Segment) -> bool {
    !fault::seeded(Fault::StrangersIgnored) && segment.has_strangers()
}

/// Wakes workers that wait for something new in `segment`.
pub(crate) fn wake_all(segment: &Segment) {
    let control = Control::new(segment.memory()).expect("our own segment has a header");
    // SAFETY: the first four bytes of an aligned eight, little-endian; both are accessed atomically only.
    let low = unsafe { AtomicU32::from_ptr(control.head_word().as_ptr().cast()) };
    // Nobody to wake is no failure; nor is anything else that a waiter's timeout will not mend.
    let _ = futex::wake(low, futex::Flags::empty(), i32::MAX as u32);
}

/// Commits in `segment`, whose allocator is `heap`, what `write` changes of what is published; written down first, with what is
/// retained of the units. Whatever goes wrong, nothing has changed.
pub(crate) fn write_and_commit(
    journal: &mut Option<Journal>,
    (segment, heap): (&Segment, &mut Heap),
    (latest, catalog): (Commit, &Catalog),
    retaining: &Retaining<'_>,
    write: impl FnOnce(Site<'_>, &mut Txn<'_>, &mut Edit) -> Result<Changes, PublishError>,
) -> Result<(Commit, Changes), PublishError> {
    let generation = match journal {
        None => latest.root.generation + 1,
        Some(journal) => journal.next_generation(latest.root.generation)?,
    };
    let geometry = segment.geometry();
    let site = Site {
        geometry,
        hash_seed: segment.header().hash_seed,
        catalog,
    };
    let mut txn = heap.begin(segment.memory(), segment, generation);
    let mut edit = Edit::new(latest.root, latest.root_at);
    let mut changes = write(site, &mut txn, &mut edit)?;
    if let Some(canary) = &mut changes.canary {
        canary.retained = retaining.units().to_vec();
    }
    let write_ahead = |txn: &Txn<'_>, commit: &Commit| match journal {
        None => Ok(()),
        Some(journal) => {
            let units = (retaining.units(), retaining.sources);
            Ok::<_, PublishError>(journal.write_ahead(geometry, txn, commit, &changes, units)?)
        }
    };
    let commit = commit(segment, txn, edit, &latest.extents, write_ahead)?;
    Ok((commit, changes))
}
