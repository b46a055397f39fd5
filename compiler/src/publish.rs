//! One publication, from objects to the release store that makes it visible.
//!
//! The steps: read every unit; settle which name means what; take memory; link; write; describe it all in a
//! new directory root. Invariant: until the last step nothing published changes, and dropping the
//! transaction gives everything back.

use std::collections::{BTreeMap, HashMap, HashSet};

use jitcast_linker::{
    Binding, Definition, Dialect, Input, Linked, Options, Place, PlacedSymbol, Placement, Prepared,
    Reference, SymbolKind,
};
use jitcast_runtime::directory::{Edit, record_flags};
use jitcast_runtime::geometry::{Area, Region, SLOT_BYTES, STUB_BYTES};
use jitcast_runtime::heap::{SegmentFull, Txn};
use jitcast_runtime::needs;
use jitcast_runtime::records::{
    CellValue, ImportRecord, MAX_NAME_BYTES, SYMBOL_ABSOLUTE, SYMBOL_DATA, SYMBOL_FUNCTION,
    StoredRegion, SymbolRecord, TRAP_CELL, UNIT_KEPT, UnitRecord, hash_name,
};
use jitcast_runtime::signature::Signature;
use jitcast_runtime::{Geometry, ImportId, PatchTarget, SegmentOffset};
use zerocopy::IntoBytes;

use crate::catalog::{Catalog, Import, ImportKey, Kind, Symbol, Unit};
use crate::error::PublishError;
use crate::front::Compiled;

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
    /// Never reused.
    No,
}

/// A unit to publish.
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
    /// Whether its memory is reused after it was replaced.
    pub reclaim: Reclaim,
}

impl UnitSource {
    /// The unit `name` of these files, with the signatures that their compilers know.
    pub fn new(name: impl Into<String>, compiled: impl IntoIterator<Item = Compiled>) -> Self {
        let (mut files, mut signatures, mut uncallable) = (Vec::new(), Vec::new(), Vec::new());
        for file in compiled {
            let Compiled {
                name,
                bytes,
                dialect,
                ..
            } = file;
            signatures.extend(file.signatures);
            uncallable.extend(file.unlisted);
            files.push(UnitFile {
                name,
                bytes,
                dialect,
            });
        }
        let (name, reclaim) = (name.into(), Reclaim::Auto);
        Self {
            name,
            files,
            signatures,
            uncallable,
            reclaim,
        }
    }
}

impl UnitSource {
    /// What is recorded of the signature of `name`; empty: nothing is known.
    fn recorded_signature(&self, name: &str) -> String {
        let known = self.signatures.iter().find(|(known, _)| known == name);
        let other = self.uncallable.iter().find(|(known, _)| known == name);
        match (known, other) {
            (Some((_, signature)), _) => signature.to_string(),
            (None, Some((_, text))) => text.clone(),
            (None, None) => String::new(),
        }
    }
}

/// What a publication did.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Publication {
    /// Its number.
    pub generation: u64,
    /// `CLOCK_MONOTONIC` at its commit, ns.
    pub published_ns: u64,
    /// The functions that it published.
    pub functions: Vec<String>,
    /// The host symbols that it refers to.
    pub imports: Vec<String>,
}

/// Everything that a publication needs to know about the segment.
pub(crate) struct Site<'a> {
    pub(crate) geometry: &'a Geometry,
    pub(crate) hash_seed: u64,
    pub(crate) catalog: &'a Catalog,
}

/// What a publication changes in the catalog, merged after the commit.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) units: Vec<(String, Unit)>,
    pub(crate) symbols: BTreeMap<String, Symbol>,
    pub(crate) removed: Vec<(String, u64)>,
    /// Symbols whose cells lead nowhere else any more, but are left to kept units.
    pub(crate) left: Vec<String>,
    /// Units whose replaced version is kept for the sake of its data.
    pub(crate) kept: Vec<String>,
    pub(crate) added_hashes: Vec<(u64, String)>,
    pub(crate) imports: BTreeMap<ImportKey, Import>,
    pub(crate) next_unit: u32,
    pub(crate) next_import: u32,
}

/// Reads every unit of the batch.
pub(crate) fn read<'a>(
    sources: &'a [UnitSource],
    inputs: &'a [Vec<Input<'a>>],
) -> Result<Vec<Prepared<'a>>, PublishError> {
    if sources.is_empty() {
        return Err(PublishError::Empty);
    }
    let mut names = HashSet::new();
    for source in sources {
        check_name(&source.name)?;
        if !names.insert(&source.name) {
            return Err(PublishError::SameUnit {
                unit: source.name.clone(),
            });
        }
        if source.files.is_empty() {
            return Err(PublishError::Empty);
        }
    }
    let prepare = |(source, inputs): (&'a UnitSource, &'a Vec<Input<'a>>)| {
        Ok(Prepared::read(&source.name, inputs, &Options::default())?)
    };
    sources.iter().zip(inputs).map(prepare).collect()
}

/// The linker's view of the files.
pub(crate) fn inputs(sources: &[UnitSource]) -> Vec<Vec<Input<'_>>> {
    fn input(file: &UnitFile) -> Input<'_> {
        Input {
            name: &file.name,
            bytes: &file.bytes,
            dialect: file.dialect,
        }
    }
    sources
        .iter()
        .map(|source| source.files.iter().map(input).collect())
        .collect()
}

/// A publication in the making.
pub(crate) struct Batch<'a, 'p> {
    site: Site<'a>,
    sources: &'p [UnitSource],
    units: &'p [Prepared<'p>],
    /// Which unit of the batch publishes a name, and as which of its definitions.
    defined: HashMap<&'p str, (usize, usize)>,
    /// Names of the batch's units.
    replaced: HashSet<&'p str>,
    /// How many of the units that are replaced refer to a host symbol.
    leaving_users: HashMap<&'a str, u32>,
    /// Symbols that units which are replaced and kept define or refer to.
    held: HashSet<&'a str>,
    /// What the linker says of the symbols in `defined`.
    details: HashMap<&'p str, Details>,
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
        sources: &'p [UnitSource],
        units: &'p [Prepared<'p>],
    ) -> Result<Self, PublishError> {
        let (next_unit, next_import) = (site.catalog.next_unit, site.catalog.next_import);
        let changes = Changes {
            next_unit,
            next_import,
            ..Changes::default()
        };
        let (mut leaving_users, mut held) = (HashMap::new(), HashSet::new());
        for unit in sources
            .iter()
            .filter_map(|source| site.catalog.units.get(&source.name))
        {
            for (import, _) in &unit.imports {
                *leaving_users.entry(import.as_str()).or_insert(0) += 1;
            }
            if unit.keeps {
                held.extend(unit.defines.iter().chain(&unit.uses).map(String::as_str));
            }
        }
        let mut batch = Self {
            site,
            sources,
            units,
            defined: HashMap::new(),
            replaced: sources.iter().map(|source| source.name.as_str()).collect(),
            leaving_users,
            held,
            details: HashMap::new(),
            changes,
        };
        batch.settle_definitions()?;
        batch.check_replaced()?;
        Ok(batch)
    }

    fn replaces(&self, unit: &str) -> bool {
        self.replaced.contains(unit)
    }

    fn definition(&self, (unit, definition): (usize, usize)) -> &Definition<'p> {
        &self.units[unit].definitions()[definition]
    }

    fn settle_definitions(&mut self) -> Result<(), PublishError> {
        for (unit, prepared) in self.units.iter().enumerate() {
            for (index, definition) in prepared.definitions().iter().enumerate() {
                check_name(definition.name)?;
                let published = self.site.catalog.symbols.get(definition.name);
                let staying = published.filter(|symbol| !self.replaces(&symbol.unit));
                let rival = self.defined.get(definition.name).copied();
                let rival_is_weak = rival.is_none_or(|rival| self.definition(rival).weak);
                let other = match (staying, rival) {
                    (Some(symbol), _) => Some((symbol.unit.clone(), true)),
                    (None, Some((other, _))) if !rival_is_weak => {
                        Some((self.sources[other].name.clone(), false))
                    }
                    _ => None,
                };
                match other {
                    // A weak definition gives way; the unit itself goes on using its own.
                    Some(_) if definition.weak => {}
                    Some((other, published)) => {
                        return Err(PublishError::Duplicate {
                            symbol: definition.name.to_owned(),
                            unit: self.sources[unit].name.clone(),
                            other,
                            published,
                        });
                    }
                    None if rival.is_some() && definition.weak => {}
                    None => {
                        self.defined.insert(definition.name, (unit, index));
                    }
                }
            }
        }
        Ok(())
    }

    /// What the replaced units published must stay, or nobody who stays may use it.
    fn check_replaced(&mut self) -> Result<(), PublishError> {
        for source in self.sources {
            let Some(old) = self.site.catalog.units.get(&source.name) else {
                continue;
            };
            for name in &old.defines {
                let symbol = &self.site.catalog.symbols[name];
                let becomes = self
                    .defined
                    .get(name.as_str())
                    .map(|new| kind_of(self.definition(*new).kind));
                let unused = becomes == Some(Kind::Function) && symbol.kind == Kind::Function;
                let users = if unused {
                    Vec::new()
                } else {
                    self.site
                        .catalog
                        .users_of(name, &|unit| self.replaces(unit))
                };
                let (symbol_name, unit) = (name.clone(), source.name.clone());
                match becomes {
                    _ if users.is_empty() => {}
                    None => {
                        let is_data = symbol.kind == Kind::Data;
                        return Err(PublishError::StillUsed {
                            symbol: symbol_name,
                            unit,
                            users,
                            is_data,
                        });
                    }
                    Some(kind) if kind != symbol.kind => {
                        let (was, becomes) = (symbol.kind.name(), kind.name());
                        return Err(PublishError::KindChanges {
                            symbol: symbol_name,
                            was,
                            becomes,
                            users,
                        });
                    }
                    Some(_) => {
                        return Err(PublishError::DataMoves {
                            symbol: symbol_name,
                            unit,
                            users,
                        });
                    }
                }
                if becomes.is_none() {
                    self.changes.removed.push((name.clone(), self.hash(name)));
                }
            }
        }
        Ok(())
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
        for (unit, placement) in placements.iter().enumerate() {
            let bindings = self.bind(txn, edit, unit)?;
            let linked = self.units[unit].link(placement, &bindings)?;
            self.write_unit(txn, edit, unit, placement, &linked)?;
        }
        self.write_symbols(txn, edit)?;
        self.remove(txn, edit)?;
        Ok(self.changes)
    }

    fn place(&self, txn: &mut Txn<'_>) -> Result<Vec<Placement>, PublishError> {
        let mut take = |area, extent: jitcast_linker::Extent| {
            // The linker keeps units below 2 GiB; a segment's areas are smaller still.
            let len_bytes = u32::try_from(extent.len_bytes).unwrap_or(u32::MAX);
            let align_bytes = u32::try_from(extent.align_bytes).unwrap_or(1).max(16);
            Ok::<_, SegmentFull>(txn.alloc(area, len_bytes, align_bytes)?.offset())
        };
        let mut place = |prepared: &Prepared<'_>| {
            let extents = prepared.extents();
            Ok(Placement {
                text: take(Area::Text, extents.text)?,
                read_only: take(Area::ReadOnly, extents.read_only)?,
                private: take(Area::Private, extents.private)?,
            })
        };
        self.units.iter().map(&mut place).collect()
    }

    /// Gives every published name of the batch its place and its cells.
    fn place_symbols(
        &mut self,
        txn: &mut Txn<'_>,
        edit: &mut Edit,
        placements: &[Placement],
    ) -> Result<(), PublishError> {
        let placed = self
            .units
            .iter()
            .zip(placements)
            .map(|(unit, placement)| unit.symbols(placement));
        let placed: Vec<Vec<PlacedSymbol>> = placed.collect::<Result<_, _>>()?;
        let mut names: Vec<_> = self.defined.iter().map(|(name, at)| (*name, *at)).collect();
        names.sort_unstable_by_key(|(_, at)| *at);
        for (name, (unit, index)) in names {
            let definition = self.definition((unit, index));
            let kind = kind_of(definition.kind);
            let (place, size) = match placed[unit][index].place {
                Place::At(_, offset) => (offset, definition.size),
                Place::Absolute(value) => (SegmentOffset::NONE, value),
            };
            let number = self.site.catalog.next_unit + unit as u32;
            self.details.insert(
                name,
                Details {
                    unit: number,
                    node: placed[unit][index].node,
                    size,
                },
            );
            let old = self.site.catalog.symbols.get(name);
            let same_function =
                old.filter(|old| old.kind == Kind::Function && kind == Kind::Function);
            if let (Some(old), None) = (old, same_function) {
                // A datum's cell belongs to its version: old code may still read it.
                if self.leaves_cells(name) {
                    self.changes.left.push(name.to_owned());
                } else {
                    retire_cells(txn, old);
                }
                if let Some(cell) = old.call_cell {
                    // What was a function is none any more: no handle or pointer may reach its old code.
                    edit.set_cell(cell, CellValue::UNBOUND);
                    edit.flag(record_flags::NAMES | record_flags::RESYNC);
                }
            }
            let call_cell = match (same_function, kind) {
                (Some(old), _) => old.call_cell,
                (None, Kind::Function) => Some(self.new_call_cell(txn)?),
                (None, _) => None,
            };
            let signature = self.sources[unit].recorded_signature(name);
            let symbol = Symbol {
                unit: self.sources[unit].name.clone(),
                kind,
                place,
                call_cell,
                address_cell: same_function.and_then(|old| old.address_cell),
                signature,
            };
            self.changes.symbols.insert(name.to_owned(), symbol);
        }
        Ok(())
    }

    /// Whether a kept unit may go on using the cells of `name`, which is published no longer or anew.
    fn leaves_cells(&self, name: &str) -> bool {
        self.held.contains(name) || self.site.catalog.kept_uses.contains(name)
    }

    fn new_call_cell(&self, txn: &mut Txn<'_>) -> Result<SegmentOffset, SegmentFull> {
        let cell = txn.alloc(Area::CallCells, SLOT_BYTES, SLOT_BYTES)?.offset();
        write_stub(txn, self.site.geometry, cell);
        Ok(cell)
    }

    /// Settles what each reference of a unit means.
    fn bind(
        &mut self,
        txn: &mut Txn<'_>,
        edit: &mut Edit,
        unit: usize,
    ) -> Result<Vec<Binding>, PublishError> {
        let references = self.units[unit].references();
        references
            .iter()
            .map(|reference| self.bind_one(txn, edit, unit, reference))
            .collect()
    }

    fn bind_one(
        &mut self,
        txn: &mut Txn<'_>,
        edit: &mut Edit,
        unit: usize,
        reference: &Reference<'p>,
    ) -> Result<Binding, PublishError> {
        check_name(reference.name)?;
        if !self.is_segments(reference.name) {
            if let Some(version) = reference.version {
                return Err(PublishError::Versioned {
                    symbol: reference.name.to_owned(),
                    version: version.to_owned(),
                    unit: self.sources[unit].name.clone(),
                });
            }
            return Ok(self.bind_host(txn, edit, reference)?);
        }
        let mut symbol = match self.changes.symbols.get(reference.name) {
            Some(symbol) => symbol.clone(),
            None => self.site.catalog.symbols[reference.name].clone(),
        };
        if symbol.kind == Kind::Absolute {
            // Cells and patches hold places of the window or host symbols, no numbers.
            return Err(PublishError::Absolute {
                symbol: reference.name.to_owned(),
                unit: self.sources[unit].name.clone(),
                other: symbol.unit,
            });
        }
        let target = symbol_target(self.site.geometry, &symbol);
        if reference.address_cell && symbol.address_cell.is_none() {
            let cell = txn
                .alloc(Area::AddressCells, SLOT_BYTES, SLOT_BYTES)?
                .offset();
            edit.set_cell(cell, CellValue::new(target));
            symbol.address_cell = Some(cell);
            self.changes
                .symbols
                .insert(reference.name.to_owned(), symbol.clone());
        }
        let stub = symbol
            .call_cell
            .and_then(|cell| self.site.geometry.stub_of(cell));
        // Data is not called; code that does so anyway goes where its address cell leads.
        let call_cell = symbol.call_cell.or(symbol.address_cell);
        Ok(Binding {
            target,
            call_cell,
            address_cell: symbol.address_cell,
            stub,
        })
    }

    /// Whether `name` means the segment's definition. A name that live units have bound to the host stays the
    /// host's; one that a unit of this batch defines is the batch's.
    fn is_segments(&self, name: &str) -> bool {
        if self.defined.contains_key(name) {
            return true;
        }
        let staying = self.is_imported_by_others(name);
        let published = self.site.catalog.symbols.get(name);
        !staying && published.is_some_and(|symbol| !self.replaces(&symbol.unit))
    }

    /// Whether units that this publication does not replace refer to the host symbol `name`.
    fn is_imported_by_others(&self, name: &str) -> bool {
        let users = self.site.catalog.users_of_import(name);
        users > self.leaving_users.get(name).copied().unwrap_or(0)
    }

    fn bind_host(
        &mut self,
        txn: &mut Txn<'_>,
        edit: &mut Edit,
        reference: &Reference<'p>,
    ) -> Result<Binding, SegmentFull> {
        let name = reference.name;
        // Weak and strong references of one name are two imports: where the host lacks it, one is 0 and the
        // other a trap.
        let key = (name.to_owned(), reference.weak);
        let published = self.site.catalog.imports.get(&key);
        let known = self.changes.imports.get(&key).or(published).cloned();
        let mut changed = known.is_none();
        let mut import = match known {
            Some(import) => import,
            None => {
                let id = ImportId::new(self.changes.next_import);
                self.changes.next_import += 1;
                let trap = write_import_trap(txn, id)?;
                Import {
                    id,
                    trap,
                    call_cell: None,
                    address_cell: None,
                    users: 0,
                }
            }
        };
        let target = PatchTarget::Host(import.id);
        if (reference.stub || reference.call_cell) && import.call_cell.is_none() {
            let cell = self.new_call_cell(txn)?;
            edit.set_cell(cell, CellValue::new(target));
            (import.call_cell, changed) = (Some(cell), true);
        }
        if reference.address_cell && import.address_cell.is_none() {
            let cell = txn
                .alloc(Area::AddressCells, SLOT_BYTES, SLOT_BYTES)?
                .offset();
            edit.set_cell(cell, CellValue::new(target));
            (import.address_cell, changed) = (Some(cell), true);
        }
        let binding = Binding {
            target,
            call_cell: import.call_cell,
            address_cell: import.address_cell,
            stub: import
                .call_cell
                .and_then(|cell| self.site.geometry.stub_of(cell)),
        };
        if changed {
            let record = ImportRecord {
                key: import.id.get().into(),
                generation: txn.generation(),
                trap: import.trap,
                call_cell: import.call_cell.unwrap_or_default(),
                address_cell: import.address_cell.unwrap_or_default(),
                weak: reference.weak.into(),
                name_len: name.len() as u32,
                reserved: 0,
            };
            edit.put_import(txn, &record, name)?;
        }
        self.changes.imports.insert(key, import);
        Ok(binding)
    }

    fn write_unit(
        &mut self,
        txn: &mut Txn<'_>,
        edit: &mut Edit,
        unit: usize,
        placement: &Placement,
        linked: &Linked,
    ) -> Result<(), PublishError> {
        let (source, prepared) = (&self.sources[unit], &self.units[unit]);
        let memory = txn.memory();
        memory.write_bytes(placement.text, &linked.text);
        memory.write_bytes(placement.read_only, &linked.read_only);
        let extents = prepared.extents();
        let region = |start: SegmentOffset, extent: jitcast_linker::Extent| StoredRegion {
            start: start.get(),
            len_bytes: extent.len_bytes as u32,
        };
        let keeps = match source.reclaim {
            Reclaim::Yes => false,
            Reclaim::No => true,
            Reclaim::Auto => source
                .files
                .iter()
                .any(|file| file.dialect != Dialect::Cranelift),
        };
        let number = self.site.catalog.next_unit + unit as u32;
        self.changes.next_unit = number + 1;
        let private = region(placement.private, extents.private);
        if private.len_bytes > 0 || !linked.patches.is_empty() {
            edit.flag(record_flags::RESYNC);
        }
        let record = UnitRecord {
            key: number.into(),
            generation: txn.generation(),
            text: region(placement.text, extents.text),
            read_only: region(placement.read_only, extents.read_only),
            private,
            template: write_table(txn, &linked.template)?,
            patches: write_table(txn, linked.patches.as_bytes())?,
            needs: self.write_needs(txn, unit, linked)?,
            name_len: source.name.len() as u32,
            flags: if keeps { UNIT_KEPT } else { 0 },
        };
        edit.put_unit(txn, &record, &source.name)?;
        if let Some(old) = self.site.catalog.units.get(&source.name) {
            // What kept code reads directly is kept with it.
            let data = old.defines.iter().filter(|name| {
                let symbol = self.site.catalog.symbols.get(*name);
                symbol.is_some_and(|symbol| symbol.kind != Kind::Function)
            });
            let keep = data.into_iter().any(|name| self.leaves_cells(name));
            edit.remove_unit(txn, old.number.into(), keep)?;
            if keep {
                self.changes.kept.push(source.name.clone());
            }
        }
        // A weak definition that gave way is no longer the unit's own: it uses somebody else's.
        let is_own = |reference: &Reference<'p>| {
            let own = reference.own.map(|index| (unit, index));
            own.is_some() && self.defined.get(reference.name).copied() == own
        };
        let outside = |reference: &&Reference<'p>| !is_own(reference);
        let (uses, imports): (Vec<_>, Vec<_>) = prepared
            .references()
            .iter()
            .filter(outside)
            .partition(|reference| self.is_segments(reference.name));
        let published = prepared.definitions().iter().enumerate();
        let defines = published
            .filter(|(index, definition)| {
                self.defined.get(definition.name) == Some(&(unit, *index))
            })
            .map(|(_, definition)| definition.name.to_owned())
            .collect();
        let unit_record = Unit {
            number,
            generation: txn.generation(),
            text: record.text,
            read_only: record.read_only,
            private,
            keeps,
            defines,
            uses: uses
                .iter()
                .map(|used: &&Reference<'p>| used.name.to_owned())
                .collect(),
            imports: imports
                .iter()
                .map(|import| (import.name.to_owned(), import.weak))
                .collect(),
        };
        self.changes.units.push((source.name.clone(), unit_record));
        Ok(())
    }

    fn write_needs(
        &self,
        txn: &mut Txn<'_>,
        unit: usize,
        linked: &Linked,
    ) -> Result<StoredRegion, SegmentFull> {
        let reference = |reference: &Reference<'_>| {
            if reference.own.is_some() || self.is_segments(reference.name) {
                return needs::Reference::Symbol(self.hash(reference.name));
            }
            // Bound just before, and so among the changes.
            let key = (reference.name.to_owned(), reference.weak);
            needs::Reference::Import(self.changes.imports[&key].id)
        };
        let references: Vec<_> = self.units[unit]
            .references()
            .iter()
            .map(reference)
            .collect();
        if references.is_empty() {
            return Ok(StoredRegion::default());
        }
        let needs = needs::Needs {
            references,
            first: linked.needs.first.clone(),
            edges: linked.needs.targets.clone(),
        };
        write_table(txn, &needs.to_bytes())
    }

    /// Writes the records of the names that are new, that moved, or that got an address cell.
    fn write_symbols(&mut self, txn: &mut Txn<'_>, edit: &mut Edit) -> Result<(), PublishError> {
        let mut added = HashMap::new();
        for (name, symbol) in &self.changes.symbols {
            let key = self.hash(name);
            let known = self
                .site
                .catalog
                .hashes
                .get(&key)
                .or_else(|| added.get(&key));
            match known {
                Some(other) if other != name => {
                    return Err(PublishError::HashCollision {
                        symbol: name.clone(),
                        other: other.clone(),
                    });
                }
                Some(_) => {}
                None => drop(added.insert(key, name.clone())),
            }
            let old = self.site.catalog.symbols.get(name);
            if old.is_some_and(|old| old.signature != symbol.signature) {
                // Handles compare signatures, which a ring record does not carry.
                edit.flag(record_flags::RESYNC);
            }
            let Some(details) = self
                .details
                .get(name.as_str())
                .copied()
                .or_else(|| published_details(txn, edit, key))
            else {
                continue;
            };
            let record = SymbolRecord {
                key,
                generation: txn.generation(),
                size: details.size,
                unit: details.unit,
                kind: match symbol.kind {
                    Kind::Function => SYMBOL_FUNCTION,
                    Kind::Data => SYMBOL_DATA,
                    Kind::Absolute => SYMBOL_ABSOLUTE,
                },
                place: symbol.place,
                stub: symbol
                    .call_cell
                    .and_then(|cell| self.site.geometry.stub_of(cell))
                    .unwrap_or_default(),
                call_cell: symbol.call_cell.unwrap_or_default(),
                address_cell: symbol.address_cell.unwrap_or_default(),
                node: details.node,
                name_len: name.len() as u32,
                signature_len: symbol.signature.len() as u32,
                reserved: 0,
            };
            edit.put_symbol(txn, &record, name, &symbol.signature)?;
            if let Some(cell) = symbol
                .call_cell
                .filter(|_| self.defined.contains_key(name.as_str()))
            {
                edit.set_cell(cell, CellValue::new(PatchTarget::Window(symbol.place)));
            }
        }
        self.changes.added_hashes.extend(added);
        Ok(())
    }

    fn remove(&mut self, txn: &mut Txn<'_>, edit: &mut Edit) -> Result<(), SegmentFull> {
        for (name, key) in &self.changes.removed.clone() {
            let symbol = &self.site.catalog.symbols[name];
            for cell in [symbol.call_cell, symbol.address_cell]
                .into_iter()
                .flatten()
            {
                edit.set_cell(cell, CellValue::UNBOUND);
            }
            if self.leaves_cells(name) {
                self.changes.left.push(name.clone());
            } else {
                retire_cells(txn, symbol);
            }
            edit.remove_symbol(txn, *key)?;
        }
        Ok(())
    }
}

/// What the published record of a symbol says, for one that only gets an address cell.
fn published_details(txn: &Txn<'_>, edit: &Edit, key: u64) -> Option<Details> {
    let SymbolRecord {
        unit, node, size, ..
    } = edit.symbol(txn, key)?;
    Some(Details { unit, node, size })
}

fn check_name(name: &str) -> Result<(), PublishError> {
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
        // Not taken unless the linker is told that resolvers are run.
        SymbolKind::Function | SymbolKind::IndirectFunction => Kind::Function,
        SymbolKind::Data => Kind::Data,
        SymbolKind::Absolute => Kind::Absolute,
    }
}

/// What the address of a published symbol is: a function's stub, or where the datum lies.
fn symbol_target(geometry: &Geometry, symbol: &Symbol) -> PatchTarget {
    let stub = symbol.call_cell.and_then(|cell| geometry.stub_of(cell));
    PatchTarget::Window(stub.unwrap_or(symbol.place))
}

fn retire_cells(txn: &mut Txn<'_>, symbol: &Symbol) {
    let cells = [
        (Area::CallCells, symbol.call_cell),
        (Area::AddressCells, symbol.address_cell),
    ];
    for (area, cell) in cells {
        if let Some(cell) = cell {
            txn.retire(
                area,
                Region {
                    start: cell.get(),
                    len_bytes: SLOT_BYTES,
                },
            );
        }
    }
}

fn write_table(txn: &mut Txn<'_>, bytes: &[u8]) -> Result<StoredRegion, SegmentFull> {
    let len_bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let region = txn.alloc(Area::Control, len_bytes, 8)?;
    txn.memory().write_bytes(region.offset(), bytes);
    Ok(StoredRegion {
        start: region.start,
        len_bytes,
    })
}

/// `endbr64; jmp *cell(%rip)` and traps up to the next stub. A stub's bytes follow from its cell's index, so
/// writing it again changes nothing.
fn write_stub(txn: &Txn<'_>, geometry: &Geometry, cell: SegmentOffset) {
    let stub = geometry.stub_of(cell).expect("a call cell has a stub");
    let mut code = [0xcc; STUB_BYTES as usize];
    code[..6].copy_from_slice(&[0xf3, 0x0f, 0x1e, 0xfa, 0xff, 0x25]);
    code[6..10].copy_from_slice(&rel32(cell, stub, 10).to_le_bytes());
    txn.memory().write_bytes(stub, &code);
}

/// Code that reports import number `id` as missing: it hands the number and the base of the window to the
/// worker's handler, which the first call cell leads to.
fn write_import_trap(txn: &mut Txn<'_>, id: ImportId) -> Result<SegmentOffset, SegmentFull> {
    const LEN: usize = 24;
    let at = txn.alloc(Area::Text, LEN as u32, 16)?.offset();
    let mut code = [0xcc; LEN];
    code[..4].copy_from_slice(&[0xf3, 0x0f, 0x1e, 0xfa]); // endbr64
    code[4] = 0xbf; // mov $id, %edi
    code[5..9].copy_from_slice(&id.get().to_le_bytes());
    code[9..12].copy_from_slice(&[0x48, 0x8d, 0x35]); // lea base(%rip), %rsi
    code[12..16].copy_from_slice(&rel32(SegmentOffset::new(0), at, 16).to_le_bytes());
    code[16..18].copy_from_slice(&[0xff, 0x25]); // jmp *trap_cell(%rip)
    code[18..22].copy_from_slice(&rel32(TRAP_CELL, at, 22).to_le_bytes());
    txn.memory().write_bytes(at, &code);
    Ok(at)
}

/// S - P for an instruction that begins at `at` and whose next begins `len_bytes` further on.
fn rel32(target: SegmentOffset, at: SegmentOffset, len_bytes: i64) -> i32 {
    i32::try_from(target.delta_from(at).get() - len_bytes).expect("a window is shorter than 2 GiB")
}
