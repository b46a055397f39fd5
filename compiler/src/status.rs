//! What the compiler process tells about itself.

use jitcast_runtime::geometry::Area;
use serde::{Deserialize, Serialize};

use crate::catalog::{self, Kind};
use crate::changeset::Audience;
use crate::compiler::Compiler;
use crate::history::{History, HistoryEntry};
use crate::incidents::{CrashStatus, ErrorStatus};
use crate::journal::Journal;
use crate::layout::RangeStatus;
use crate::publish::Reclaim;
use crate::state::State;
use crate::stragglers::Straggler;

/// The state of a segment and its workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The newest generation.
    pub generation: u64,
    /// The segment's name; `None`: a sealed one.
    pub segment: Option<String>,
    /// Length of the window, bytes.
    pub window_bytes: u64,
    /// What the shared areas take of the system's memory, bytes.
    pub backed_bytes: u64,
    /// What objects take besides that the segment was renewed from, as long as a worker maps them, bytes.
    pub older_bytes: u64,
    /// What is retired and not reused yet, bytes.
    pub retired_bytes: u64,
    /// The areas and how full they are.
    pub areas: Vec<AreaStatus>,
    /// The units.
    pub units: Vec<UnitStatus>,
    /// The canaries that are running, the oldest first.
    pub canaries: Vec<CanaryStatus>,
    /// The symbols.
    pub symbols: Vec<SymbolStatus>,
    /// The units that workers asked for.
    pub asked: Vec<AskedStatus>,
    /// How many texts were compiled for workers that asked.
    pub compiled_requests: u64,
    /// Replaced and removed units whose memory is kept.
    pub kept: Vec<KeptStatus>,
    /// Functions that were removed under their users, whose calls end in a trap until somebody publishes them again.
    pub traps: Vec<TrapStatus>,
    /// Names that are published no longer, as far as this compiler process knows: those that were removed last.
    pub removed: Vec<RemovedStatus>,
    /// Names that are quarantined, published or not.
    pub quarantined: Vec<String>,
    /// The publications of units that can be undone, the newest first.
    pub history: Vec<HistoryStatus>,
    /// The oldest generation whose units can be had again.
    pub oldest_retained: u64,
    /// The workers.
    pub workers: Vec<WorkerStatus>,
    /// Threads that hold retired memory back, those that hold most first.
    pub stragglers: Vec<Straggler>,
    /// How many publications are under way over sockets: read, and not answered yet.
    pub publishing: u64,
    /// Units that were replaced or removed, whose memory is not free yet, and who holds it back; the oldest first, as many as fit.
    pub held: Vec<HeldStatus>,
    /// The journal; `None`: there is none.
    pub journal: Option<JournalStatus>,
    /// What the compiler process refused or met last, the newest first.
    pub errors: Vec<ErrorStatus>,
    /// Workers that died in published code, and said in what.
    pub crashes: Vec<CrashStatus>,
    /// What is free and what is retired, for who asks for it.
    pub layout: Vec<RangeStatus>,
}

/// A replaced or removed unit, whose memory is reused when nobody can be inside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldStatus {
    /// Its name.
    pub unit: String,
    /// The generation that replaced or removed it.
    pub retired_by: u64,
    /// Who is inside at an older generation; nobody: it is reused when memory is needed.
    pub holders: Vec<HolderStatus>,
}

/// A thread that keeps memory from being reused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderStatus {
    /// Its process, in the compiler's pid namespace; 0: a worker that an earlier compiler process let in, and that has not come back.
    pub pid: i32,
    /// The thread, in the worker's own pid namespace.
    pub thread: u64,
    /// The generation that it is inside at.
    pub generation: u64,
}

/// The journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalStatus {
    /// Its folder.
    pub folder: String,
    /// The length of its log, bytes.
    pub log_bytes: u64,
    /// Whether a publication is durable before it is visible.
    pub durable: bool,
    /// Why nothing more is written; `None`: it is.
    pub failed: Option<String>,
}

/// A publication that can be undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryStatus {
    /// Its generation.
    pub generation: u64,
    /// The units that it published.
    pub published: Vec<String>,
    /// The units that it removed.
    pub removed: Vec<String>,
}

impl HistoryStatus {
    /// What can be undone, the newest first.
    pub(crate) fn list(history: &History) -> Vec<Self> {
        let status = |entry: &HistoryEntry| {
            let names = entry.before.keys().cloned();
            let (removed, published) = names.partition(|name| entry.removed.contains(name));
            Self {
                generation: entry.generation,
                published,
                removed,
            }
        };
        history.entries().rev().map(status).collect()
    }
}

/// An area of the window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AreaStatus {
    /// Its name.
    pub name: String,
    /// What is in use, bytes.
    pub used_bytes: u64,
    /// Its size, bytes.
    pub area_bytes: u64,
    /// What could be had, bytes.
    pub free_bytes: u64,
    /// The longest range of that, bytes: what is to lie there in one piece cannot be longer.
    pub largest_free_bytes: u64,
    /// How many ranges it is in.
    pub free_runs: u64,
}

/// A unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitStatus {
    /// Its name.
    pub name: String,
    /// The generation that published it.
    pub generation: u64,
    /// Text, bytes.
    pub text_bytes: u64,
    /// Read-only data, bytes.
    pub read_only_bytes: u64,
    /// Private data in each worker, bytes.
    pub private_bytes: u64,
    /// Length of its shared data, bytes.
    pub shared_bytes: u64,
    /// Whether its memory is kept when it is replaced.
    pub keeps: bool,
    /// What its publisher said of that.
    pub reclaim: Reclaim,
    /// Host symbols that it refers to.
    pub imports: Vec<String>,
}

/// A unit that workers asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedStatus {
    /// Its name: `sha256:` and the hash of what was asked for.
    pub name: String,
    /// The generation that has it first.
    pub generation: u64,
    /// What it takes of all areas, bytes.
    pub len_bytes: u64,
    /// The workers that have it.
    pub workers: Vec<u64>,
}

/// A symbol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SymbolStatus {
    /// Its name.
    pub name: String,
    /// What it is: "function", "data", "thread-local" or "absolute".
    pub kind: String,
    /// The unit that defines it.
    pub unit: String,
    /// Its recorded signature; empty: unknown.
    pub signature: String,
    /// Whether it is quarantined.
    pub quarantined: bool,
}

/// A function that is published no longer, but used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrapStatus {
    /// Its name.
    pub symbol: String,
    /// The units that use it.
    pub users: Vec<String>,
}

/// A name that is published no longer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedStatus {
    /// It.
    pub symbol: String,
    /// The unit that defined it last.
    pub unit: String,
    /// The generation that removed it.
    pub generation: u64,
}

/// What a replaced or removed unit left that is not reused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptStatus {
    /// The unit's name.
    pub unit: String,
    /// The generation that published it.
    pub generation: u64,
    /// Bytes.
    pub len_bytes: u64,
}

/// A worker. What it says about itself is as true as it makes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// The number by which the compiler process knows it.
    pub number: u64,
    /// Its process, in the compiler's pid namespace.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its label.
    pub label: String,
    /// The base of its window.
    pub base: u64,
    /// The generation that it has applied.
    pub applied: u64,
    /// Publications applied.
    pub updates: u64,
    /// Host symbols that it lacks.
    pub missing: u64,
    /// Units whose constructors failed in it.
    pub failed: u64,
    /// The oldest generation that a thread of it is inside.
    pub pinned: Option<u64>,
    /// Its seat among the workers: a canary of n workers is for those at seats below n. `None`: a forked child that has not been
    /// given one yet.
    pub seat: Option<u32>,
    /// The canaries that it is in the audience of, and has applied.
    pub canaries: Vec<u64>,
    /// How many generations it is behind the newest.
    pub lag: u64,
    /// Times that it read the directory instead of the ring.
    pub resyncs: u64,
    /// Outermost guards that its threads have entered, in steps of 65,536 for each.
    pub entered: u64,
    /// Whether a thread of it holds memory back.
    pub straggling: bool,
    /// How often it has crashed in published code, and gone on.
    pub crashes: u64,
    /// What of its window is memory of its own, bytes; `None`: nobody has looked. The compiler process does not: `jitcast status` does.
    pub private_bytes: Option<u64>,
    /// The host symbols that it lacks; `None`: nobody has looked.
    pub lacks: Option<Vec<String>>,
}

/// A canary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryStatus {
    /// Its number: the generation that began it.
    pub id: u64,
    /// Who runs it.
    pub audience: Audience,
    /// Its units.
    pub units: Vec<UnitStatus>,
    /// The symbols that its units publish.
    pub symbols: Vec<SymbolStatus>,
    /// The workers that are in the audience, and have applied it.
    pub workers: Vec<u64>,
}

impl CanaryStatus {
    pub(crate) fn new(canary: &catalog::Canary) -> Self {
        let units = canary.units.iter();
        let symbols = canary.symbols.iter();
        Self {
            id: canary.id,
            audience: canary.audience.clone(),
            units: units
                .map(|(name, unit)| UnitStatus::new(name, unit))
                .collect(),
            symbols: symbols
                .map(|(name, symbol)| SymbolStatus::new(name, symbol))
                .collect(),
            workers: Vec::new(),
        }
    }
}

impl Status {
    /// Lets canaries say which workers run them, as the workers do.
    pub(crate) fn with_audiences(mut self) -> Self {
        for canary in &mut self.canaries {
            let workers = self.workers.iter();
            let inside = |worker: &&WorkerStatus| worker.canaries.contains(&canary.id);
            canary.workers = workers.filter(inside).map(|worker| worker.number).collect();
        }
        self
    }
}

impl UnitStatus {
    pub(crate) fn new(name: &str, unit: &catalog::Unit) -> Self {
        Self {
            name: name.to_owned(),
            generation: unit.generation,
            text_bytes: unit.text.len_bytes.into(),
            read_only_bytes: unit.read_only.len_bytes.into(),
            private_bytes: unit.private.len_bytes.into(),
            shared_bytes: unit.shared.len_bytes.into(),
            keeps: unit.keeps,
            reclaim: unit.reclaim,
            imports: unit.host_symbols().collect(),
        }
    }
}

impl SymbolStatus {
    pub(crate) fn new(name: &str, symbol: &catalog::Symbol) -> Self {
        let kind = match symbol.kind {
            Kind::Function => "function",
            Kind::Data => "data",
            Kind::Absolute => "absolute",
            Kind::ThreadLocal => "thread-local",
        };
        Self {
            name: name.to_owned(),
            kind: kind.to_owned(),
            unit: symbol.unit.clone(),
            signature: symbol.signature.clone(),
            quarantined: false,
        }
    }
}

impl From<&catalog::Kept> for KeptStatus {
    fn from(kept: &catalog::Kept) -> Self {
        Self {
            unit: kept.unit.clone(),
            generation: kept.generation,
            len_bytes: kept.len_bytes,
        }
    }
}

/// Who holds back the memory of which unit.
fn held(state: &State, stragglers: &[Straggler]) -> Vec<HeldStatus> {
    /// Nobody reads more.
    const MAX_HELD: usize = 1000;
    let retired = state.retired_units.iter().take(MAX_HELD);
    let held = retired.map(|(generation, unit)| {
        let inside = stragglers.iter();
        let inside = inside.filter(|it| !it.older && it.generation < *generation);
        let holder = |straggler: &Straggler| HolderStatus {
            pid: straggler.pid,
            thread: straggler.thread,
            generation: straggler.generation,
        };
        HeldStatus {
            unit: unit.clone(),
            retired_by: *generation,
            holders: inside.map(holder).take(MAX_HELD).collect(),
        }
    });
    held.collect()
}

impl Compiler {
    /// What is published, by whom it is used, and how full the segment is.
    pub fn status(&self) -> Status {
        let mut state = self.state.lock();
        let older_bytes = self.older_bytes(&mut state);
        let segment = self.segment();
        let areas = Area::ALL.map(|area| AreaStatus {
            name: area.name().to_owned(),
            used_bytes: state.heap.used_bytes(area),
            area_bytes: segment.geometry().allocated(area).len_bytes.into(),
            free_bytes: state.heap.free_bytes(area),
            largest_free_bytes: state.heap.largest_free_bytes(area),
            free_runs: state.heap.free_ranges(area).count() as u64,
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
        let mut workers = self.workers.lock().status(&catalog.canaries);
        let stragglers = self.stragglers(&state);
        for worker in &mut workers {
            worker.lag = state.generation().saturating_sub(worker.applied);
            worker.straggling = stragglers.iter().any(|it| it.worker == worker.number);
        }
        let journal = self.journal.lock().as_ref().map(Journal::status);
        let incidents = self.incidents.lock();
        let (errors, crashes) = (incidents.errors(), incidents.crashes());
        drop(incidents);
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
            removed: state.removed.status(),
            quarantined: catalog.quarantined.iter().cloned().collect(),
            history: HistoryStatus::list(&state.history),
            oldest_retained: state.history.oldest(),
            canaries: catalog.canaries.values().map(CanaryStatus::new).collect(),
            workers,
            held: held(&state, &stragglers),
            stragglers,
            publishing: 0,
            journal,
            errors,
            crashes,
            layout: Vec::new(),
        };
        drop(state);
        status.with_audiences()
    }
}
