//! One publication, from objects to the release store that makes it visible.
//!
//! The steps: read every unit; settle which name means what; take memory; link; write; describe it all in a
//! new directory root. Invariant: until the last step nothing published changes, and dropping the
//! transaction gives everything back.

mod asked;
mod bind;
mod canary;
mod carry;
mod code;
mod describe;
mod frames;
mod place;
mod quarantine;
mod read;
mod remove;
mod settle;
#[cfg(test)]
mod tests;

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap, HashSet};

use jitcast_linker::{Definition, Dialect, Input, Options, Prepared, SymbolKind};
use jitcast_runtime::directory::Edit;
use jitcast_runtime::heap::Txn;
use jitcast_runtime::host_name::HostName;
use jitcast_runtime::records::{MAX_NAME_BYTES, hash_name};
use jitcast_runtime::signature::Signature;
use jitcast_runtime::{Geometry, SegmentOffset};

use crate::catalog::{
    Asked, Canary, Catalog, Import, ImportKey, ImportKind, Kind, Pooled, Symbol, Unit, Users,
    Variable, users_of,
};
use crate::changeset::Changeset;
use crate::error::PublishError;
use crate::front::Compiled;
use crate::support;

pub(crate) use asked::{dismiss_asked, read_asked, remove_asked, write_asked};
pub(crate) use canary::Ending;
pub(crate) use read::{Retaining, inputs, read};

/// A file of a unit, compiled.
#[derive(Clone, Debug)]
pub struct UnitFile {
    /// The name that messages use.
    pub name: String,
    /// An object or an archive.
    pub bytes: Vec<u8>,
    /// Which compiler's habits it follows.
    pub dialect: Dialect,
}

/// Whether the memory of a replaced unit is reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Reclaim {
    /// Reused if no address of the unit's locals can have been handed out: generated code is, C is not.
    #[default]
    Auto,
    /// Reused; the publisher vouches that nothing outside holds addresses of the unit's locals.
    Yes,
    /// Never reused: for units whose static functions or data are handed to the host (callbacks that it keeps, strings,
    /// tables), which nothing can notice.
    No,
}

/// A unit to publish.
///
/// ```
/// use jitcast_compiler::front::{Options, compile_bytes};
/// use jitcast_compiler::{Reclaim, UnitSource};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let text = "function %same(i64) -> i64 {
///             block0(v0: i64):
///                 return v0
///             }";
/// let file = compile_bytes("same.clif", text.into(), &Options::default())?;
/// let unit = UnitSource { reclaim: Reclaim::No, ..UnitSource::new("same", [file]) };
/// assert_eq!(unit.signatures[0].1.to_string(), "(i64) -> i64");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct UnitSource {
    /// Its name: publishing the same name again replaces it.
    pub name: String,
    /// Its files; archives give the members that are needed.
    pub files: Vec<UnitFile>,
    /// Signatures to record.
    pub signatures: Vec<(String, Signature)>,
    /// Functions that no host can call (several results, vectors), with what is recorded instead.
    pub uncallable: Vec<(String, String)>,
    /// The signatures by which it calls functions of others, as far as they are known. Workers compare them with those of the
    /// functions that their hosts registered.
    pub imports: Vec<(String, Signature)>,
    /// Whether its memory is reused after it was replaced.
    pub reclaim: Reclaim,
    /// How it is linked.
    pub link: LinkOptions,
}

/// How a unit is linked.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LinkOptions {
    /// Take every member of every archive (`--whole-archive`).
    pub whole_archive: bool,
    /// Drop the sections that these functions and data do not reach (`--gc-sections`).
    pub roots: Option<Vec<String>>,
    /// Data of the host that the unit gets a copy of, with their lengths, bytes (`--copy-data`).
    pub copies: Vec<(String, u64)>,
}

impl UnitSource {
    /// The unit `name` of these files, with the signatures that their compilers know.
    pub fn new(name: impl Into<String>, compiled: impl IntoIterator<Item = Compiled>) -> Self {
        let mut unit = Self {
            name: name.into(),
            files: Vec::new(),
            signatures: Vec::new(),
            uncallable: Vec::new(),
            imports: Vec::new(),
            reclaim: Reclaim::Auto,
            link: LinkOptions::default(),
        };
        unit.add(compiled);
        unit
    }

    /// Adds files, with the signatures that their compilers know.
    pub(crate) fn add(&mut self, compiled: impl IntoIterator<Item = Compiled>) {
        for file in compiled {
            let Compiled {
                name,
                bytes,
                dialect,
                ..
            } = file;
            self.signatures.extend(file.signatures);
            self.uncallable.extend(file.unlisted);
            self.imports.extend(file.imports);
            self.files.push(UnitFile {
                name,
                bytes,
                dialect,
            });
        }
    }

    /// What the linker is given.
    pub fn inputs(&self) -> Vec<Input<'_>> {
        let files = self.files.iter();
        files
            .map(|file| Input {
                name: &file.name,
                bytes: &file.bytes,
                dialect: file.dialect,
            })
            .collect()
    }

    /// What the linker is told: workers run, resolve and keep what has to be, and what a static link would have
    /// brought along is there.
    pub fn options(&self) -> Options {
        Options {
            whole_archive: self.link.whole_archive,
            roots: self.link.roots.clone(),
            copies: self.link.copies.clone(),
            runs_resolvers: true,
            keeps_unique: true,
            runs_startup: true,
            support: Some((support::NAME, support::archive())),
            ..Options::default()
        }
    }

    /// The signatures by which it calls functions of others, by name; `None` where it does so by several.
    fn calls(&self) -> HashMap<&str, Option<&Signature>> {
        let mut calls = HashMap::new();
        for (name, signature) in &self.imports {
            let known = calls.entry(name.as_str()).or_insert(Some(signature));
            *known = known.filter(|first| first.compatible(signature));
        }
        calls
    }

    /// What is recorded of the signatures of its functions, as far as anything is known, by name.
    fn recorded_signatures(&self) -> BTreeMap<&str, String> {
        let mut recorded = BTreeMap::new();
        for (name, signature) in &self.signatures {
            let text = || signature.to_string();
            recorded.entry(name.as_str()).or_insert_with(text);
        }
        for (name, text) in &self.uncallable {
            let text = || text.clone();
            recorded.entry(name.as_str()).or_insert_with(text);
        }
        recorded
    }
}

/// What a publication did.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Publication {
    /// Its number.
    pub generation: u64,
    /// `CLOCK_MONOTONIC` at its commit, ns.
    pub published_ns: u64,
    /// The functions that it published.
    pub functions: Vec<String>,
    /// The host symbols that it refers to.
    pub imports: Vec<String>,
    /// The units that it removed.
    pub removed: Vec<String>,
}

/// Everything that a publication needs to know about the segment.
pub(crate) struct Site<'a> {
    pub(crate) geometry: &'a Geometry,
    pub(crate) hash_seed: u64,
    pub(crate) catalog: &'a Catalog,
}

/// What a publication changes in the catalog, merged after the commit.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Changes {
    pub(crate) units: Vec<(String, Unit)>,
    pub(crate) removed_units: Vec<String>,
    pub(crate) symbols: BTreeMap<String, Symbol>,
    pub(crate) removed: Vec<(String, u64)>,
    /// Removed functions whose cells stay with those who use them.
    pub(crate) orphaned: BTreeMap<String, Symbol>,
    /// Names that are quarantined from now on (`true`) or restored.
    pub(crate) quarantined: BTreeMap<String, bool>,
    /// Orphans that are published again, or that nobody uses any more.
    pub(crate) settled: Vec<String>,
    /// Symbols whose cells lead nowhere else any more, but are left to kept units.
    pub(crate) left: Vec<String>,
    /// Units whose version so far is kept for the sake of its data.
    pub(crate) kept: Vec<String>,
    pub(crate) added_hashes: Vec<(u64, String)>,
    pub(crate) imports: BTreeMap<ImportKey, Import>,
    pub(crate) pool: BTreeMap<String, Pooled>,
    /// Units that workers asked for.
    pub(crate) asked: Vec<Asked>,
    /// The numbers of such as are gone.
    pub(crate) dismissed: Vec<u32>,
    /// The canary that begins.
    pub(crate) canary: Option<Canary>,
    /// The canary whose units are published for all.
    pub(crate) promoted: Option<u64>,
    /// The canary of which nothing is left.
    pub(crate) aborted: Option<u64>,
    /// Address cells that symbols of canaries have got together with those that they cover.
    pub(crate) overlay_cells: Vec<(String, SegmentOffset)>,
    pub(crate) next_unit: u32,
    pub(crate) next_import: u32,
}

/// A publication in the making.
pub(crate) struct Batch<'a, 'p> {
    site: Site<'a>,
    asked: Changeset<'p>,
    sources: &'p [UnitSource],
    units: &'p [Prepared<'p>],
    /// Which unit of the batch publishes a name, and as which of its definitions.
    defined: HashMap<&'p str, (usize, usize)>,
    /// For each unit of the batch, what is recorded of its signatures.
    recorded: Vec<BTreeMap<&'p str, String>>,
    /// For each unit of the batch, [`UnitSource::calls`].
    calls: Vec<HashMap<&'p str, Option<&'p Signature>>>,
    /// Names of the units that are replaced or removed.
    leaving: HashSet<&'p str>,
    /// Who of the others uses what, once somebody asks.
    users: OnceCell<Users<'a>>,
    /// How many of these refer to a host symbol.
    leaving_users: HashMap<&'a str, u32>,
    /// Symbols that those of them which are kept define or refer to.
    held: HashSet<&'a str>,
    /// Weak definitions that a published one keeps from counting: whoever refers to them means that.
    gave_way: HashSet<&'p str>,
    /// Variables that keep their places, by unit and definition.
    carried: HashMap<(usize, usize), (SegmentOffset, Variable)>,
    /// What the linker says of the symbols in `defined`.
    details: HashMap<&'p str, Details>,
    /// Published symbols that have got an address cell together with the canary's which covers them.
    covered: BTreeMap<String, Symbol>,
    changes: Changes,
}

/// What a symbol's record says beside what the catalog remembers.
#[derive(Clone, Copy, Debug)]
struct Details {
    unit: u32,
    node: u32,
    size: u64,
}

impl<'a, 'p> Batch<'a, 'p> {
    /// Settles which names the batch publishes, and refuses what would break those who stay.
    pub(crate) fn new(
        site: Site<'a>,
        asked: &Changeset<'p>,
        units: &'p [Prepared<'p>],
    ) -> Result<Self, PublishError> {
        let sources = asked.units;
        let (next_unit, next_import) = (site.catalog.next_unit, site.catalog.next_import);
        let changes = Changes {
            next_unit,
            next_import,
            ..Changes::default()
        };
        let published = sources.iter().map(|source| source.name.as_str());
        let leaving: HashSet<_> = published
            .chain(asked.removals.iter().map(String::as_str))
            .collect();
        let (mut leaving_users, mut held) = (HashMap::new(), HashSet::new());
        for unit in leaving
            .iter()
            .filter_map(|name| site.catalog.units.get(*name))
        {
            for (import, kind) in &unit.imports {
                if *kind != ImportKind::Unique {
                    let name = HostName::parse(import).name;
                    *leaving_users.entry(name).or_insert(0) += 1;
                }
            }
            if unit.keeps {
                held.extend(unit.defines.iter().chain(&unit.uses).map(String::as_str));
            }
        }
        let mut batch = Self {
            site,
            asked: *asked,
            sources,
            units,
            defined: HashMap::new(),
            recorded: sources
                .iter()
                .map(UnitSource::recorded_signatures)
                .collect(),
            calls: sources.iter().map(UnitSource::calls).collect(),
            leaving,
            users: OnceCell::new(),
            leaving_users,
            held,
            gave_way: HashSet::new(),
            carried: HashMap::new(),
            details: HashMap::new(),
            covered: BTreeMap::new(),
            changes,
        };
        batch.settle_definitions()?;
        batch.check_canaries()?;
        batch.carry_data()?;
        batch.check_leaving()?;
        batch.check_orphans()?;
        batch.check_signatures()?;
        batch.check_updates()?;
        Ok(batch)
    }

    /// Whether a unit is replaced or removed.
    fn leaves(&self, unit: &str) -> bool {
        self.leaving.contains(unit)
    }

    /// The units that use `symbol` and stay as they are.
    fn staying_users(&self, symbol: &str) -> Vec<String> {
        let index = || self.site.catalog.users(&self.leaving, None);
        users_of(self.users.get_or_init(index), symbol)
    }

    fn definition(&self, (unit, definition): (usize, usize)) -> &Definition<'p> {
        &self.units[unit].definitions()[definition]
    }

    /// What is recorded of the signature of a definition of unit number `unit`; empty: nothing is known.
    fn recorded_signature(&self, unit: usize, name: &str) -> &str {
        self.recorded[unit].get(name).map_or("", String::as_str)
    }

    fn hash(&self, name: &str) -> u64 {
        hash_name(name.as_bytes(), self.site.hash_seed)
    }

    /// Takes memory, links, writes, and describes the result in `edit`.
    pub(crate) fn write(
        mut self,
        txn: &mut Txn<'_>,
        edit: &mut Edit,
    ) -> Result<Changes, PublishError> {
        let placements = self.place(txn)?;
        self.place_symbols(txn, edit, &placements)?;
        self.check_pool()?;
        for (unit, placement) in placements.iter().enumerate() {
            let bindings = self.bind(txn, edit, unit)?;
            let linked =
                self.units[unit].link_carrying(placement, &bindings, &self.carried_by(unit))?;
            self.write_unit(txn, edit, unit, placement, &linked)?;
        }
        if let Some(audience) = self.asked.canary {
            self.write_symbols(txn, edit)?;
            self.write_overlay_cells(txn, edit)?;
            self.begin_canary(audience, txn, edit)?;
            return Ok(self.changes);
        }
        for name in self.asked.removals {
            self.retire_unit(txn, edit, name);
        }
        self.update_symbols(edit);
        self.write_symbols(txn, edit)?;
        self.remove_symbols(txn, edit);
        self.release_orphans(txn);
        dismiss_asked(self.site.catalog, &mut self.changes, txn, edit);
        self.write_overlay_cells(txn, edit)?;
        Ok(self.changes)
    }
}

pub(crate) fn check_name(name: &str) -> Result<(), PublishError> {
    if name.len() <= MAX_NAME_BYTES / 2 {
        return Ok(());
    }
    let start = name.chars().take(40).collect();
    Err(PublishError::NameTooLong {
        len_bytes: name.len(),
        limit_bytes: MAX_NAME_BYTES / 2,
        start,
    })
}

fn kind_of(kind: SymbolKind) -> Kind {
    match kind {
        SymbolKind::Function => Kind::Function,
        SymbolKind::ThreadLocal => Kind::ThreadLocal,
        SymbolKind::Data => Kind::Data,
        SymbolKind::Absolute => Kind::Absolute,
    }
}
