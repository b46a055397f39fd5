//! What a worker runs by itself when units come and go: resolvers of indirect functions, constructors,
//! destructors.
//!
//! Constructors run when the unit's own data, patches and new names are in place, and before names that it
//! replaces move. One that throws, crashes or needs what is missing marks its unit as failed, in this worker: its
//! names then lead to a trap. Destructors run when a publication that retires their unit is applied, when the
//! worker detaches, or when the process ends, whichever comes first; of several units the newest comes first.
//!
//! Invariant: the constructors of a unit run once in a worker, its destructors once and only if all of its
//! constructors returned.

pub(crate) mod protect;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_void;
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Once, TryLockError};

use jitcast_runtime::memory::View;
use jitcast_runtime::records::{Root, StoredRegion, UnitRecord, trailing_text};
use jitcast_runtime::{Corrupt, SegmentOffset, index};

use crate::canary::Canaries;
use crate::error::UpdateError;
use crate::log::{Event, note};
use crate::startup::protect::Ended;
use crate::thread_record;
use crate::trap;
use crate::worker::{Inner, State};

/// A unit that was bound just now.
#[derive(Debug)]
pub(crate) struct Fresh {
    pub(crate) number: u32,
    name: String,
    text: StoredRegion,
    init: Vec<SegmentOffset>,
    ending: Ending,
    /// Cells that hold what a resolver returns, with the resolver.
    pub(crate) resolvers: Vec<(SegmentOffset, SegmentOffset)>,
}

impl Fresh {
    /// What the record at `at` says of it.
    pub(crate) fn read(view: &View, at: SegmentOffset, unit: &UnitRecord) -> Result<Self, Corrupt> {
        Ok(Self {
            number: u32::try_from(unit.key).map_err(|_| Corrupt {
                what: "number of a unit",
                at,
            })?,
            name: trailing_text::<UnitRecord>(view, at, 0, unit.name_len)?,
            text: unit.text,
            init: slots(view, unit.init)?,
            ending: Ending {
                fini: slots(view, unit.fini)?,
                module: Some(unit.module).filter(|module| !module.is_none()),
            },
            resolvers: Vec::new(),
        })
    }

    /// Whether something of it is run when it ends.
    pub(crate) fn ends(&self) -> bool {
        self.ending.module.is_some() || !self.ending.fini.is_empty()
    }

    /// Where its text begins.
    pub(crate) fn text(&self) -> SegmentOffset {
        SegmentOffset::new(self.text.start)
    }

    /// Whether anything of it is run before its names move.
    pub(crate) fn starts(&self) -> bool {
        !self.init.is_empty() || !self.resolvers.is_empty()
    }
}

/// The offsets of a table in control.
fn slots(view: &View, table: StoredRegion) -> Result<Vec<SegmentOffset>, Corrupt> {
    if table.len_bytes == 0 {
        return Ok(Vec::new());
    }
    let at = SegmentOffset::new(table.start);
    let bytes = view.bytes(at, table.len_bytes as usize)?;
    let (slots, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(Corrupt {
            what: "table of constructors",
            at,
        });
    }
    Ok(slots
        .iter()
        .map(|slot| SegmentOffset::new(u32::from_le_bytes(*slot)))
        .collect())
}

/// What is to be run when a unit is retired.
#[derive(Debug, Default)]
struct Ending {
    fini: Vec<SegmentOffset>,
    module: Option<SegmentOffset>,
}

/// What this worker remembers of its units.
#[derive(Debug, Default)]
pub(crate) struct Units {
    endings: BTreeMap<u32, Ending>,
    failed: BTreeMap<u32, FailedUnit>,
    /// The highest number that a unit had which this worker has bound.
    newest: Option<u32>,
    /// Units of canaries that it has bound, until they have ended or nobody can be inside at a generation at which they were a
    /// canary's: they are not bound again.
    candidates: BTreeSet<u32>,
}

/// A unit whose constructor or resolver failed in this worker.
///
/// ```
/// # use jitcast_worker::{FailedUnit, Worker};
/// fn unfit(worker: &Worker) -> Vec<String> {
///     let failed: Vec<FailedUnit> = worker.failed_units();
///     failed.into_iter().map(|failed| failed.unit).collect()
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedUnit {
    /// Its name.
    pub unit: String,
    /// What failed, and how.
    pub why: String,
    text: StoredRegion,
}

impl fmt::Display for FailedUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the unit `{}` failed in this worker: {}",
            self.unit, self.why
        )
    }
}

impl Units {
    /// The units that failed.
    pub(crate) fn failed(&self) -> impl Iterator<Item = &FailedUnit> {
        self.failed.values()
    }

    /// Whether this worker has bound unit `number` or a later one, by the end of the latest application. Those that it has left
    /// out since they are canaries' it has not, which only its canaries tell.
    pub(crate) fn has_had(&self, number: u32) -> bool {
        self.newest.is_some_and(|newest| number <= newest)
    }

    /// From now on, it has had these.
    pub(crate) fn have(&mut self, fresh: &[Fresh]) {
        let numbers = fresh.iter().map(|unit| unit.number);
        self.newest = self.newest.max(numbers.max());
    }

    /// Whether unit `number`, a canary's or one that was, is bound.
    pub(crate) fn is_candidate(&self, number: u32) -> bool {
        self.candidates.contains(&number)
    }

    /// Units of canaries have been bound.
    pub(crate) fn bound_candidates(&mut self, numbers: impl IntoIterator<Item = u32>) {
        self.candidates.extend(numbers);
    }

    /// The failure of unit `number`, if it failed.
    pub(crate) fn failure(&self, number: u32) -> Option<&FailedUnit> {
        self.failed.get(&number)
    }

    /// Whether any failed.
    pub(crate) fn have_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Whether code at `place` belongs to a unit that failed.
    pub(crate) fn is_failed(&self, place: SegmentOffset) -> bool {
        let inside = |failed: &FailedUnit| {
            failed
                .text
                .region()
                .is_some_and(|text| text.contains(place, 1))
        };
        self.failed.values().any(inside)
    }
}

impl Inner {
    /// Runs what the new units want to be run, in the order of their numbers, as threads of `generation`.
    pub(crate) fn start_units(&self, state: &mut State, generation: u64, fresh: &mut [Fresh]) {
        // Before what they register, so that it runs after that.
        end_with_the_process();
        fresh.sort_by_key(|unit| unit.number);
        self.starting().begin(hand_over_at(state, generation));
        for unit in &*fresh {
            for &(cell, resolver) in &unit.resolvers {
                if let Err(why) = self.resolve(cell, resolver) {
                    self.fail(state, unit, why);
                    break;
                }
            }
        }
        for unit in &*fresh {
            if state.units.failure(unit.number).is_none()
                && let Err(why) = self.construct(unit)
            {
                self.fail(state, unit, why);
            }
        }
        self.starting().end();
    }

    fn resolve(&self, cell: SegmentOffset, resolver: SegmentOffset) -> Result<(), String> {
        let function = self.window().addr_of(resolver);
        // SAFETY: a resolver, which takes no arguments; its unit's data and patches are in place.
        match unsafe { protect::call(function.get(), [0; 3]) } {
            Ended::Returned(address) => {
                let address = jitcast_runtime::WorkerAddr::new(address);
                // SAFETY: the cell is the unit's own, and nothing of the unit runs yet but this.
                let stored = unsafe { self.window().patch_private(cell, address) };
                stored.map_err(|error| error.to_string())
            }
            ended => Err(format!(
                "the resolver of an indirect function {}",
                how(&ended)
            )),
        }
    }

    fn construct(&self, unit: &Fresh) -> Result<(), String> {
        let arguments = core::ptr::null::<u64>();
        for (number, slot) in (1..).zip(&unit.init) {
            // SAFETY: the slot is the unit's own, and its constructors run one after another, here.
            let function = unsafe { self.window().private_value(*slot) };
            let function = function.map_err(|error| error.to_string())?;
            let list = [
                0,
                (&raw const arguments).addr() as u64,
                protect::environment().addr() as u64,
            ];
            // SAFETY: a constructor takes what `main` takes, or less; all that the unit needs is in place.
            let ended = unsafe { protect::call(function, list) };
            if !matches!(ended, Ended::Returned(_)) {
                return Err(format!(
                    "constructor {number} of {} {}",
                    unit.init.len(),
                    how(&ended)
                ));
            }
        }
        Ok(())
    }

    fn fail(&self, state: &mut State, unit: &Fresh, why: String) {
        let failed = FailedUnit {
            unit: unit.name.clone(),
            why,
            text: unit.text,
        };
        // What its constructors made before ends here, not when its code may be gone.
        if let Some(module) = unit.ending.module {
            self.end(&Ending {
                fini: Vec::new(),
                module: Some(module),
            });
        }
        note(&mut state.events, Event::UnitFailed(failed.clone()));
        state.units.failed.insert(unit.number, failed);
    }

    /// Remembers what the new units want to be run when they are retired.
    pub(crate) fn remember_units(&self, state: &mut State, fresh: Vec<Fresh>) {
        state.units.have(&fresh);
        for unit in fresh {
            let ends = !unit.ending.fini.is_empty() || unit.ending.module.is_some();
            if ends && state.units.failure(unit.number).is_none() {
                end_with_the_process();
                state.units.endings.insert(unit.number, unit.ending);
            }
        }
    }

    /// Runs the destructors of units that are in the applied directory no longer, or not for this worker, the newest first. No thread is inside at a
    /// generation that had them.
    pub(crate) fn retire_units(&self, state: &mut State) -> Result<(), UpdateError> {
        let view = self.window().control();
        let root: Root = view.read(state.root_at)?;
        let mut gone = Vec::new();
        for &number in state.units.endings.keys() {
            let left = state.canaries.leaves_out(number);
            if left || index::get(view, root.units, number.into())?.is_none() {
                gone.push(number);
            }
        }
        self.starting().begin(hand_over_at(state, root.generation));
        for number in gone.into_iter().rev() {
            if let Some(ending) = state.units.endings.remove(&number) {
                self.end(&ending);
            }
        }
        self.starting().end();
        let canaries = &state.canaries;
        state
            .units
            .candidates
            .retain(|number| canaries.runs(*number));
        state.ending = false;
        Ok(())
    }

    /// Forgets units that failed and are in the directory no longer, or not for this worker: others may lie where they lay.
    pub(crate) fn forget_failed(
        &self,
        state: &mut State,
        units: SegmentOffset,
        canaries: &Canaries,
    ) -> Result<(), UpdateError> {
        let view = self.window().control();
        let mut gone = Vec::new();
        for &number in state.units.failed.keys() {
            let left = canaries.leaves_out(number);
            if left || index::get(view, units, number.into())?.is_none() {
                gone.push(number);
            }
        }
        for number in gone {
            state.units.failed.remove(&number);
        }
        Ok(())
    }

    /// Runs all destructors that have not run: the worker detaches, or the process ends.
    pub(crate) fn end_units(&self, state: &mut State) {
        if thread_record::record_of(self).is_none() {
            // Else a selector would look for the pin of a worker that had the slot before.
            self.find_pin(None);
        }
        self.starting().begin(state.applied);
        while let Some((_, ending)) = state.units.endings.pop_last() {
            self.end(&ending);
        }
        self.starting().end();
    }

    /// What the unit registered runs first, then what it was linked with: as at the end of a process.
    fn end(&self, ending: &Ending) {
        if let Some(module) = ending.module {
            let handle = self.window().addr_of(module).get();
            // SAFETY: runs the handlers that were registered with this handle, each of them once.
            // However it ends, the destructors run.
            let _ = unsafe { protect::call(finalize as *const () as u64, [handle, 0, 0]) };
        }
        for slot in &ending.fini {
            // SAFETY: the slot is the unit's own; its destructors run one after another, here.
            if let Ok(function) = unsafe { self.window().private_value(*slot) } {
                // SAFETY: a destructor takes no arguments; the unit's memory is kept. However it ends, the others
                // run.
                let _ = unsafe { protect::call(function, [0; 3]) };
            }
        }
    }
}

/// The generation at which threads begin that constructors and destructors start. Cells still lead to what older
/// generations had, so it is the one that was applied; at attach nothing was.
fn hand_over_at(state: &State, generation: u64) -> u64 {
    if state.applied == 0 {
        generation
    } else {
        state.applied
    }
}

extern "C-unwind" fn finalize(handle: *mut c_void) {
    unsafe extern "C-unwind" {
        fn __cxa_finalize(handle: *mut c_void);
    }
    // SAFETY: a handle is not null, else the process's own handlers would run; any other is good.
    unsafe { __cxa_finalize(handle) };
}

/// How a call ended that did not return, in words.
fn how(ended: &Ended) -> String {
    match ended {
        Ended::Returned(_) => "returned".to_owned(),
        Ended::Threw => "threw an exception".to_owned(),
        Ended::Crashed(libc::SIGSEGV) => "crashed (SIGSEGV)".to_owned(),
        Ended::Crashed(libc::SIGBUS) => "crashed (SIGBUS)".to_owned(),
        Ended::Crashed(libc::SIGILL) => "crashed (SIGILL)".to_owned(),
        Ended::Crashed(libc::SIGFPE) => "crashed (SIGFPE)".to_owned(),
        Ended::Crashed(signal) => format!("crashed (signal {signal})"),
        Ended::Trapped(why) => format!("did not get far: {why}"),
    }
}

/// Makes sure that destructors run when the process ends, if their worker is still there.
fn end_with_the_process() {
    static ONCE: Once = Once::new();
    extern "C" fn end_all() {
        for worker in trap::workers() {
            match worker.state().try_lock() {
                Ok(mut state) => worker.end_units(&mut state),
                Err(TryLockError::Poisoned(state)) => worker.end_units(&mut state.into_inner()),
                // The process ends in the middle of an application of what is new.
                Err(TryLockError::WouldBlock) => {}
            }
        }
    }
    ONCE.call_once(|| {
        // SAFETY: a function of this library, which is never unloaded (a worker's threads hold it).
        // Without room for one more handler destructors do not run at exit.
        let _ = unsafe { libc::atexit(end_all) };
    });
}

/// Which thread runs units' own code while it applies a publication, and at which generation.
#[derive(Debug, Default)]
pub(crate) struct Starting {
    generation: std::sync::atomic::AtomicU64,
    thread: std::sync::atomic::AtomicU64,
}

impl Starting {
    fn begin(&self, generation: u64) {
        // Only the thread itself looks for itself.
        self.generation.store(generation, Ordering::Relaxed);
        self.thread.store(this_thread(), Ordering::Relaxed);
    }

    fn end(&self) {
        self.thread.store(0, Ordering::Relaxed);
    }

    /// Whether some thread runs constructors or destructors, and holds the worker's state meanwhile.
    pub(crate) fn anywhere(&self) -> bool {
        self.thread.load(Ordering::Relaxed) != 0
    }

    /// The generation at which the calling thread runs constructors, if it does.
    pub(crate) fn here(&self) -> Option<u64> {
        // A system call, which whoever applies something is spared where no thread runs any.
        let here = self.anywhere() && self.thread.load(Ordering::Relaxed) == this_thread();
        here.then(|| self.generation.load(Ordering::Relaxed))
    }
}

fn this_thread() -> u64 {
    rustix::thread::gettid()
        .as_raw_nonzero()
        .get()
        .unsigned_abs()
        .into()
}
