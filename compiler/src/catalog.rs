//! What is published, as the compiler process remembers it: units, symbols, host symbols, and who uses
//! whom.
//!
//! Invariant: it says what the latest committed root says. A publication works on a copy of what it
//! changes ([`Changes`]) and merges it after the commit.

mod canary;
mod check;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use jitcast_runtime::host_name::HostName;
use jitcast_runtime::records::{
    CellValue, SYMBOL_ABSOLUTE, SYMBOL_DATA, SYMBOL_FUNCTION, SYMBOL_QUARANTINED,
    SYMBOL_THREAD_LOCAL, StoredRegion,
};
use jitcast_runtime::{Geometry, ImportId, PatchTarget, SegmentOffset};
use serde::{Deserialize, Serialize};

use crate::publish::{Changes, Publication, Reclaim};
use crate::status::TrapStatus;

pub(crate) use canary::Canary;
pub(crate) use check::Disagreement;

/// Everything published.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Catalog {
    pub(crate) units: HashMap<String, Unit>,
    pub(crate) symbols: HashMap<String, Symbol>,
    /// Functions that were removed under units which use them: their cells are theirs until the name is published
    /// again.
    pub(crate) orphans: HashMap<String, Symbol>,
    /// Names whose functions are not to be reached, published or not.
    pub(crate) quarantined: BTreeSet<String>,
    pub(crate) imports: BTreeMap<ImportKey, Import>,
    /// What is unique in a process, by name: it outlives the unit that brought it.
    pub(crate) pool: HashMap<String, Pooled>,
    /// The canaries that are running, by number.
    pub(crate) canaries: BTreeMap<u64, Canary>,
    /// Names by hash, those of canaries too, to notice collisions.
    pub(crate) hashes: HashMap<u64, String>,
    /// Units that workers asked for, by number.
    pub(crate) asked: BTreeMap<u32, Asked>,
    pub(crate) next_unit: u32,
    pub(crate) next_import: u32,
    /// Memory of replaced and removed units that is never reused.
    pub(crate) kept: Vec<Kept>,
    /// Symbols that those units define or refer to, as long as the cells they know are the symbols' own.
    pub(crate) kept_uses: HashSet<String>,
}

/// A published unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unit {
    pub(crate) number: u32,
    pub(crate) generation: u64,
    pub(crate) text: StoredRegion,
    pub(crate) read_only: StoredRegion,
    pub(crate) private: StoredRegion,
    pub(crate) shared: StoredRegion,
    /// What its shared data start with.
    pub(crate) shared_template: StoredRegion,
    pub(crate) keeps: bool,
    /// What its publisher said of that.
    pub(crate) reclaim: Reclaim,
    /// Whether workers have something to do when it is retired.
    pub(crate) ends: bool,
    /// Symbols that it publishes.
    pub(crate) defines: Vec<String>,
    /// Other units' symbols that it refers to.
    pub(crate) uses: Vec<String>,
    /// Host symbols that it refers to.
    pub(crate) imports: Vec<ImportKey>,
}

impl Unit {
    /// The names of the host symbols that it refers to.
    pub(crate) fn host_symbols(&self) -> impl Iterator<Item = String> {
        let imports = self.imports.iter();
        let hosts = imports.filter(|(_, kind)| *kind != ImportKind::Unique);
        hosts.map(|(text, _)| HostName::parse(text).name.to_owned())
    }
}

/// A unit that workers asked for. It publishes nothing, and nothing is kept for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Asked {
    pub(crate) number: u32,
    pub(crate) generation: u64,
    /// What it was asked for by: equal requests have equal names.
    pub(crate) name: String,
    pub(crate) text: StoredRegion,
    pub(crate) read_only: StoredRegion,
    pub(crate) private: StoredRegion,
    /// What it takes of all areas, bytes.
    pub(crate) len_bytes: u64,
    /// Published symbols that it refers to. Once one of them is not what it was, the unit goes.
    pub(crate) uses: Vec<String>,
    /// Host symbols that are bound for it alone.
    pub(crate) hosts: Vec<String>,
}

/// What a symbol is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    Function,
    Data,
    Absolute,
    ThreadLocal,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Function => "a function",
            Self::Data => "a datum",
            Self::Absolute => "an absolute symbol",
            Self::ThreadLocal => "a thread-local datum",
        }
    }

    /// How records say it.
    pub(crate) fn code(self) -> u32 {
        match self {
            Self::Function => SYMBOL_FUNCTION,
            Self::Data => SYMBOL_DATA,
            Self::Absolute => SYMBOL_ABSOLUTE,
            Self::ThreadLocal => SYMBOL_THREAD_LOCAL,
        }
    }
}

/// A published symbol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Symbol {
    pub(crate) unit: String,
    pub(crate) kind: Kind,
    /// Where the definition is; of a thread-local datum, its unit's module.
    pub(crate) place: SegmentOffset,
    /// The offset of a thread-local datum in its unit's block, bytes.
    pub(crate) block_offset: u64,
    /// A function's.
    pub(crate) call_cell: Option<SegmentOffset>,
    pub(crate) address_cell: Option<SegmentOffset>,
    pub(crate) signature: String,
    /// What it takes to carry a variable over.
    pub(crate) variable: Option<Variable>,
}

impl Symbol {
    /// The flags of its record and the value of its call cell.
    pub(crate) fn reached(&self, quarantined: bool) -> (u32, CellValue) {
        if self.kind == Kind::Function && quarantined {
            return (SYMBOL_QUARANTINED, CellValue::QUARANTINED);
        }
        (0, CellValue::new(PatchTarget::Window(self.place)))
    }

    /// What its address is: a function's stub, or where the datum lies.
    pub(crate) fn target(&self, geometry: &Geometry) -> PatchTarget {
        let stub = self.call_cell.and_then(|cell| geometry.stub_of(cell));
        PatchTarget::Window(stub.unwrap_or(self.place))
    }
}

/// A variable that a later version may take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Variable {
    pub(crate) size: u64,
    pub(crate) align_bytes: u64,
    /// The number of the unit in whose data it lies.
    pub(crate) since: u32,
    /// Where its own unit's copy lies, by which it starts afresh.
    pub(crate) fresh: SegmentOffset,
}

/// A host symbol by its name and the signature by which it is called ([`HostName`]), and how it is referred to.
pub(crate) type ImportKey = (String, ImportKind);

/// How a host symbol is referred to. Those of one name are different imports, since they differ where the host
/// lacks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum ImportKind {
    /// A function that needs it is disabled.
    Strong,
    /// It is 0.
    Weak,
    /// It is the segment's own ([`Catalog::pool`]).
    Unique,
}

/// A datum that is unique in a process, whichever units define it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pooled {
    /// The unit that brought it, which is kept.
    pub(crate) unit: String,
    /// That one's number.
    pub(crate) since: u32,
    pub(crate) place: SegmentOffset,
    pub(crate) size: u64,
    pub(crate) align_bytes: u64,
}

/// A host symbol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Import {
    pub(crate) id: ImportId,
    pub(crate) trap: SegmentOffset,
    pub(crate) call_cell: Option<SegmentOffset>,
    pub(crate) address_cell: Option<SegmentOffset>,
    /// The segment's own copy, where the host lacks it.
    pub(crate) fallback: SegmentOffset,
    /// How many published units refer to it.
    pub(crate) users: u32,
}

/// What a replaced or removed unit left that is never reused, since addresses of its locals may have been handed out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) unit: String,
    pub(crate) generation: u64,
    pub(crate) len_bytes: u64,
}

/// The units that use a symbol, by its name.
pub(crate) type Users<'a> = HashMap<&'a str, BTreeSet<&'a str>>;

/// The names of the units that use `symbol`, in order.
pub(crate) fn users_of(users: &Users<'_>, symbol: &str) -> Vec<String> {
    let users = users.get(symbol).into_iter().flatten();
    users.map(ToString::to_string).collect()
}

impl Catalog {
    /// Who uses what, units of canaries included, but for the published units in `except` and the canary `without`.
    pub(crate) fn users(&self, except: &HashSet<&str>, without: Option<u64>) -> Users<'_> {
        let published = self.units.iter();
        let staying = published.filter(|(name, _)| !except.contains(name.as_str()));
        let canaries = self.canaries.values();
        let running = canaries.filter(|canary| Some(canary.id) != without);
        let candidates = running.flat_map(|canary| &canary.units);
        let all = staying.chain(candidates.map(|(name, unit)| (name, unit)));
        let mut users = Users::new();
        for (name, unit) in all {
            for used in &unit.uses {
                users.entry(used).or_default().insert(name);
            }
        }
        users
    }

    /// Whether `symbol`, called `name`, is a function that is not to be reached.
    pub(crate) fn is_quarantined(&self, name: &str, symbol: &Symbol) -> bool {
        symbol.kind == Kind::Function && self.quarantined.contains(name)
    }

    /// What units have published.
    pub(crate) fn describe(&self, units: &[&str]) -> Publication {
        let units = units.iter().filter_map(|unit| self.units.get(*unit));
        describe(units, |name| self.function(name).is_some())
    }

    /// What the canary `id` has published.
    pub(crate) fn describe_canary(&self, id: u64) -> Publication {
        let Some(canary) = self.canaries.get(&id) else {
            return Publication::default();
        };
        let function = |name: &str| {
            let symbol = canary.symbols.get(name);
            symbol.is_some_and(|symbol| symbol.kind == Kind::Function)
        };
        describe(canary.units.iter().map(|(_, unit)| unit), function)
    }

    /// The function `name`, published or an orphan.
    pub(crate) fn function(&self, name: &str) -> Option<&Symbol> {
        let orphan = || self.orphans.get(name);
        let known = self.symbols.get(name).or_else(orphan);
        known.filter(|symbol| symbol.kind == Kind::Function)
    }

    /// The functions that were removed under their users, in order.
    pub(crate) fn traps(&self) -> Vec<TrapStatus> {
        if self.orphans.is_empty() {
            return Vec::new();
        }
        let users = self.users(&HashSet::new(), None);
        let trap = |symbol: &String| TrapStatus {
            symbol: symbol.clone(),
            users: users_of(&users, symbol),
        };
        let mut traps: Vec<_> = self.orphans.keys().map(trap).collect();
        traps.sort_by(|a, b| a.symbol.cmp(&b.symbol));
        traps
    }

    /// Takes over what a committed publication changed.
    pub(crate) fn merge(&mut self, changes: Changes) {
        if let Some(id) = changes.promoted {
            // Its units are counted again below, as published ones.
            self.end_canary(id);
        }
        if let Some(canary) = changes.aborted.and_then(|id| self.end_canary(id)) {
            self.forget_canary(canary);
        }
        for (name, cell) in changes.overlay_cells {
            self.set_overlay_cell(&name, cell);
        }
        for (name, hash) in &changes.removed {
            self.symbols.remove(name);
            self.hashes.remove(hash);
        }
        for name in &changes.settled {
            self.orphans.remove(name);
        }
        self.orphans.extend(changes.orphaned);
        for (name, quarantined) in changes.quarantined {
            if quarantined {
                self.quarantined.insert(name);
            } else {
                self.quarantined.remove(&name);
            }
        }
        self.pool.extend(changes.pool);
        self.hashes.extend(changes.added_hashes);
        self.symbols.extend(changes.symbols);
        for (name, import) in changes.imports {
            let users = self.imports.get(&name).map_or(0, |known| known.users);
            self.imports.insert(name, Import { users, ..import });
        }
        for (name, unit) in changes.units {
            let keep = changes.kept.contains(&name);
            self.replace_unit(&name, unit, keep);
        }
        for name in &changes.removed_units {
            if let Some(old) = self.units.remove(name) {
                self.retire_unit(name, old, changes.kept.contains(name));
            }
        }
        for unit in changes.asked {
            self.asked.insert(unit.number, unit);
        }
        for number in &changes.dismissed {
            self.asked.remove(number);
        }
        if let Some(canary) = changes.canary {
            self.begin_canary(canary);
        }
        for name in &changes.left {
            // Its cells are the kept units' for good; a new version has its own.
            self.kept_uses.remove(name);
        }
        self.next_unit = changes.next_unit;
        self.next_import = changes.next_import;
    }

    /// The unit that was asked for as `name`, if asking for it now would give the same.
    pub(crate) fn asked_for(&self, name: &str) -> Option<&Asked> {
        let mut asked = self.asked.values().filter(|unit| unit.name == name);
        asked.find(|unit| !unit.hosts.iter().any(|host| self.is_segments(host)))
    }

    /// Whether who refers to `name` means what is published. What published units have bound to the host stays the host's.
    pub(crate) fn is_segments(&self, name: &str) -> bool {
        self.symbols.contains_key(name) && self.users_of_import(name) == 0
    }

    /// How many published units refer to the host symbol `name`, weakly or not.
    pub(crate) fn users_of_import(&self, name: &str) -> u32 {
        let import = |kind| self.imports.get(&(name.to_owned(), kind));
        let users = [import(ImportKind::Strong), import(ImportKind::Weak)];
        // With signatures: from `name(` up to `name)`.
        let [first, end] = ["(", ")"].map(|bound| (format!("{name}{bound}"), ImportKind::Strong));
        let typed = self.imports.range(first..end);
        let typed = typed.filter(|((text, _), _)| HostName::parse(text).name == name);
        let users = users
            .into_iter()
            .flatten()
            .chain(typed.map(|(_, import)| import));
        users.map(|import| import.users).sum()
    }

    /// Puts `unit` in place of the one of the same name.
    fn replace_unit(&mut self, name: &str, unit: Unit, keep: bool) {
        self.count_imports(&unit);
        if let Some(old) = self.units.insert(name.to_owned(), unit) {
            self.retire_unit(name, old, keep);
        }
    }

    fn count_imports(&mut self, unit: &Unit) {
        for import in &unit.imports {
            if let Some(import) = self.imports.get_mut(import) {
                import.users += 1;
            }
        }
    }

    fn discount_imports(&mut self, unit: &Unit) {
        for import in &unit.imports {
            if let Some(import) = self.imports.get_mut(import) {
                // Never less than none, whatever a journal says.
                import.users = import.users.saturating_sub(1);
            }
        }
    }

    /// Lets go of a unit that was replaced or removed.
    fn retire_unit(&mut self, name: &str, mut old: Unit, keep: bool) {
        self.discount_imports(&old);
        if old.keeps || keep {
            let defines = std::mem::take(&mut old.defines);
            self.keep(name, defines, old);
        }
    }

    /// Keeps the memory of a unit that was published, and the cells of what it knows, `defines` among these.
    fn keep(&mut self, name: &str, defines: Vec<String>, old: Unit) {
        let regions = [old.text, old.read_only, old.private, old.shared].into_iter();
        let len_bytes = regions.map(|region| u64::from(region.len_bytes)).sum();
        self.kept_uses.extend(defines);
        self.kept_uses.extend(old.uses);
        self.kept.push(Kept {
            unit: name.to_owned(),
            generation: old.generation,
            len_bytes,
        });
    }
}

fn describe<'a>(
    units: impl Iterator<Item = &'a Unit> + Clone,
    is_function: impl Fn(&str) -> bool,
) -> Publication {
    let defined = units.clone().flat_map(|unit| &unit.defines);
    let functions = defined.filter(|name| is_function(name));
    let mut functions: Vec<_> = functions.cloned().collect();
    functions.sort();
    Publication {
        functions,
        imports: units.flat_map(Unit::host_symbols).collect(),
        ..Publication::default()
    }
}
