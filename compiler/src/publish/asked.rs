//! Units that workers asked for.
//!
//! Such a unit is linked like any other, but nothing that is shared changes for it: it publishes no name, and what it refers to
//! has cells and stubs of its own, behind its own data and text. Only calls of published functions go through those functions'
//! own cells, which lead to the current version. Invariant: nobody but those that asked binds anything of it, and nothing is
//! kept for its sake: a publication that takes away or moves what it refers to takes the unit away too.

use std::collections::{BTreeMap, BTreeSet};

use jitcast_linker::{
    Binding, Extent, Input, Linked, Needs, Options, Place, Placement, Prepared, Reference,
};
use jitcast_runtime::directory::Edit;
use jitcast_runtime::geometry::{Area, Region, SLOT_BYTES, STUB_BYTES};
use jitcast_runtime::heap::{SegmentFull, Txn};
use jitcast_runtime::host_name::HostName;
use jitcast_runtime::records::{
    AskedFunction, AskedImport, AskedRecord, StoredRegion, hash_name, push_texts,
};
use jitcast_runtime::{ImportId, Patch, PatchKind, PatchTarget, SegmentOffset, module, needs};
use zerocopy::IntoBytes;

use super::bind::import_key;
use super::code::{TRAP_BYTES, write_import_trap_at, write_stub_at};
use super::describe::write_table;
use super::frames::write_text;
use super::settle::differ;
use super::{Changes, Site, UnitSource, check_name, kind_of};
use crate::catalog::{Asked, Catalog, ImportKey, ImportKind, Kind, Symbol};
use crate::error::PublishError;

/// What registers handlers in the C library's static part, which such a unit does without.
const REGISTER: [&str; 3] = ["atexit", "at_quick_exit", "pthread_atfork"];

/// Reads a unit that was asked for. Nobody would run its constructors, resolve its indirect functions or keep what is unique.
pub(crate) fn read_asked<'a>(
    name: &'a str,
    inputs: &'a [Input<'a>],
) -> Result<Prepared<'a>, PublishError> {
    check_name(name)?;
    let prepared = Prepared::read(name, inputs, &Options::default())?;
    for reference in prepared.references() {
        check_name(reference.name)?;
        if module::registers(reference.name) || REGISTER.contains(&reference.name) {
            return Err(PublishError::AskedRegisters {
                symbol: reference.name.to_owned(),
            });
        }
    }
    for definition in prepared.definitions() {
        check_name(definition.name)?;
    }
    if prepared.extents().shared.len_bytes > 0 {
        return Err(PublishError::AskedStarts {
            what: "shared data",
        });
    }
    let mut definitions = prepared.definitions().iter();
    if definitions.any(|definition| kind_of(definition.kind) == Kind::Function) {
        return Ok(prepared);
    }
    Err(PublishError::AskedEmpty)
}

/// What a reference of the unit is to.
#[derive(Clone, Copy)]
enum Meaning<'a> {
    /// One of its own definitions.
    Own(usize),
    Published(&'a Symbol),
    /// A host symbol that is bound in every worker already.
    KnownHost(ImportId),
    /// The so-manieth host symbol that is bound for this unit alone.
    Host(usize),
}

/// A unit in the making.
struct Making<'a, 'p> {
    site: &'a Site<'a>,
    source: &'p UnitSource,
    prepared: &'p Prepared<'p>,
    number: u32,
    meanings: Vec<Meaning<'a>>,
    /// The host symbols that are bound for this unit alone, in order.
    hosts: Vec<ImportKey>,
    text: Region,
    private: Region,
    placement: Placement,
    /// Where the next cell and the next stub go.
    next_cell: u32,
    next_stub: u32,
    /// What fills the cells.
    cells: Vec<Patch>,
}

/// Takes memory for a unit that was asked for, links it, writes it, and describes it in `edit`.
pub(crate) fn write_asked(
    site: &Site<'_>,
    txn: &mut Txn<'_>,
    edit: &mut Edit,
    source: &UnitSource,
    prepared: &Prepared<'_>,
) -> Result<Changes, PublishError> {
    let (meanings, hosts) = settle(site.catalog, source, prepared)?;
    let numbers = |next: u32, count: usize| {
        let count = u32::try_from(count).ok();
        let end = count.and_then(|count| next.checked_add(count));
        end.ok_or(PublishError::NumbersUsedUp)
    };
    let next_unit = numbers(site.catalog.next_unit, 1)?;
    let next_import = numbers(site.catalog.next_import, hosts.len())?;
    let mut making = Making::place(site, txn, (source, prepared), meanings, hosts)?;
    let bindings = making.bind(txn)?;
    let linked = prepared.link(&making.placement, &bindings)?;
    refuse_startup(&linked)?;
    let asked = making.write(txn, edit, &linked)?;
    Ok(Changes {
        asked: vec![asked],
        next_unit,
        next_import,
        ..Changes::default()
    })
}

/// Removes the asked-for units of these numbers.
pub(crate) fn remove_asked(
    catalog: &Catalog,
    txn: &mut Txn<'_>,
    edit: &mut Edit,
    numbers: &[u32],
) -> Changes {
    for number in numbers {
        edit.remove_asked(txn, u64::from(*number));
    }
    Changes {
        dismissed: numbers.to_vec(),
        next_unit: catalog.next_unit,
        next_import: catalog.next_import,
        ..Changes::default()
    }
}

/// What each reference of a unit means, and the host symbols that it needs for itself.
fn settle<'a>(
    catalog: &'a Catalog,
    source: &UnitSource,
    prepared: &Prepared<'_>,
) -> Result<(Vec<Meaning<'a>>, Vec<ImportKey>), PublishError> {
    let (mut hosts, mut known) = (Vec::new(), BTreeMap::new());
    let (calls, mut meanings) = (source.calls(), Vec::new());
    for reference in prepared.references() {
        if let Some(own) = reference.own {
            meanings.push(Meaning::Own(own));
            continue;
        }
        let symbol = catalog.symbols.get(reference.name);
        if let Some(symbol) = symbol.filter(|_| catalog.is_segments(reference.name)) {
            check_use(reference, symbol)?;
            meanings.push(Meaning::Published(symbol));
            continue;
        }
        let pooled = catalog.pool.contains_key(reference.name);
        let key = import_key(&calls, reference, pooled);
        meanings.push(match catalog.imports.get(&key) {
            Some(import) => Meaning::KnownHost(import.id),
            None => Meaning::Host(*known.entry(key.clone()).or_insert_with(|| {
                hosts.push(key);
                hosts.len() - 1
            })),
        });
    }
    Ok((meanings, hosts))
}

fn check_use(reference: &Reference<'_>, symbol: &Symbol) -> Result<(), PublishError> {
    let (name, unit) = (reference.name.to_owned(), "asked for".to_owned());
    let other = symbol.unit.clone();
    if symbol.kind == Kind::Absolute {
        return Err(PublishError::Absolute {
            symbol: name,
            unit,
            other,
        });
    }
    if (symbol.kind == Kind::ThreadLocal) != reference.thread_local {
        return Err(PublishError::ThreadLocal {
            symbol: name,
            unit,
            other,
        });
    }
    Ok(())
}

/// What a worker would have to run before or after.
fn refuse_startup(linked: &Linked) -> Result<(), PublishError> {
    let resolves = |patch: &Patch| patch.kind() == Some(PatchKind::Resolver);
    let what = if !linked.init.is_empty() {
        "constructors"
    } else if !linked.fini.is_empty() {
        "destructors"
    } else if linked.patches.iter().any(resolves) {
        "indirect functions"
    } else if linked.module.is_some() {
        "thread-local storage"
    } else {
        return Ok(());
    };
    Err(PublishError::AskedStarts { what })
}

impl<'a, 'p> Making<'a, 'p> {
    fn place(
        site: &'a Site<'a>,
        txn: &mut Txn<'_>,
        (source, prepared): (&'p UnitSource, &'p Prepared<'p>),
        meanings: Vec<Meaning<'a>>,
        hosts: Vec<ImportKey>,
    ) -> Result<Self, PublishError> {
        let references = prepared.references();
        let extents = prepared.extents();
        // At most two cells and a stub for each reference.
        let stubs = references.iter().filter(|reference| reference.stub).count() as u64;
        let cells = references.iter().map(|reference| {
            u64::from(reference.call_cell || reference.stub) + u64::from(reference.address_cell)
        });
        let traps = (hosts.len() as u64).saturating_mul(TRAP_BYTES.next_multiple_of(16).into());
        let added_text = (stubs * u64::from(STUB_BYTES)).saturating_add(traps);
        let added_cells = cells.sum::<u64>() * u64::from(SLOT_BYTES);
        let with = |extent: Extent, align: u64, added: u64| Extent {
            len_bytes: extent.len_bytes.next_multiple_of(align) + added,
            ..extent
        };
        let mut take = |area, extent: Extent| {
            let len_bytes = u32::try_from(extent.len_bytes).unwrap_or(u32::MAX);
            let align_bytes = u32::try_from(extent.align_bytes).unwrap_or(1).max(16);
            txn.alloc(area, len_bytes, align_bytes)
        };
        let text = take(
            Area::Text,
            with(extents.text, STUB_BYTES.into(), added_text),
        )?;
        let read_only = take(Area::ReadOnly, extents.read_only)?;
        let private = take(
            Area::Private,
            with(extents.private, SLOT_BYTES.into(), added_cells),
        )?;
        let number = site.catalog.next_unit;
        let placement = Placement {
            text: text.offset(),
            read_only: read_only.offset(),
            private: private.offset(),
            // It has none.
            shared: site.geometry.region(Area::SharedData).offset(),
            number: number.into(),
        };
        Ok(Self {
            site,
            source,
            prepared,
            number,
            meanings,
            hosts,
            text,
            private,
            placement,
            // Both fit: they were just allocated together with what follows.
            next_cell: private.start
                + (extents.private.len_bytes as u32).next_multiple_of(SLOT_BYTES),
            next_stub: text.start + (extents.text.len_bytes as u32).next_multiple_of(STUB_BYTES),
            cells: Vec::new(),
        })
    }

    /// A cell of the unit's own that holds the address of `target`.
    fn cell(&mut self, target: PatchTarget) -> SegmentOffset {
        let cell = SegmentOffset::new(self.next_cell);
        self.next_cell += SLOT_BYTES;
        self.cells.push(Patch::new(cell, target, 0));
        cell
    }

    fn import(&self, host: usize) -> ImportId {
        ImportId::new(self.site.catalog.next_import + host as u32)
    }

    /// Settles where each reference leads, and writes the stubs.
    fn bind(&mut self, txn: &Txn<'_>) -> Result<Vec<Binding>, PublishError> {
        let placed = self.prepared.symbols(&self.placement)?;
        let references = self.prepared.references();
        let mut bindings = Vec::with_capacity(references.len());
        for (reference, meaning) in references.iter().zip(self.meanings.clone()) {
            let (target, published, block_offset) = match meaning {
                Meaning::Own(index) => match placed[index].place {
                    Place::At(_, place) => (PatchTarget::Window(place), None, None),
                    // What has no address has no cell either.
                    _ => {
                        return Err(PublishError::AskedStarts {
                            what: "thread-local storage or numbers with names",
                        });
                    }
                },
                Meaning::Published(symbol) => (
                    symbol.target(self.site.geometry),
                    symbol.call_cell,
                    reference.thread_local.then_some(symbol.block_offset),
                ),
                Meaning::KnownHost(id) => (PatchTarget::Host(id), None, None),
                Meaning::Host(host) => (PatchTarget::Host(self.import(host)), None, None),
            };
            let calls = reference.call_cell || reference.stub;
            // Cells of published functions lead to the current version.
            let call_cell = published.or_else(|| calls.then(|| self.cell(target)));
            let address_cell = reference.address_cell.then(|| self.cell(target));
            let stub = match (target, call_cell) {
                // A function of the unit's own, or a published one's stub.
                (PatchTarget::Window(place), _) => Some(place),
                (PatchTarget::Host(_), Some(cell)) if reference.stub => {
                    let stub = SegmentOffset::new(self.next_stub);
                    self.next_stub += STUB_BYTES;
                    write_stub_at(txn, stub, cell);
                    Some(stub)
                }
                _ => None,
            };
            bindings.push(Binding {
                target,
                block_offset,
                call_cell,
                address_cell,
                stub,
            });
        }
        Ok(bindings)
    }

    fn write(
        &mut self,
        txn: &mut Txn<'_>,
        edit: &mut Edit,
        linked: &Linked,
    ) -> Result<Asked, PublishError> {
        txn.memory().write_bytes(self.placement.text, &linked.text);
        txn.memory()
            .write_bytes(self.placement.read_only, &linked.read_only);
        let imports = self.write_imports(txn)?;
        let functions = self.write_functions(txn, linked)?;
        let mut patches = linked.patches.clone();
        // They lie behind everything else, in order.
        patches.append(&mut self.cells);
        let extents = self.prepared.extents();
        let name = &self.source.name;
        let record = AskedRecord {
            key: self.number.into(),
            generation: txn.generation(),
            text: self.text.into(),
            read_only: StoredRegion {
                start: self.placement.read_only.get(),
                len_bytes: extents.read_only.len_bytes as u32,
            },
            private: self.private.into(),
            template: write_table(txn, &linked.template)?,
            patches: write_table(txn, patches.as_bytes())?,
            needs: self.write_needs(txn, linked)?,
            imports,
            functions,
            name_len: name.len() as u32,
            reserved: 0,
        };
        edit.put_asked(txn, &record, name)?;
        let named = (self.number, name.as_str());
        write_text(
            txn,
            edit,
            named,
            self.prepared,
            &self.placement,
            record.text,
        )?;
        let taken = [
            record.text,
            record.read_only,
            record.private,
            record.template,
            record.patches,
            record.needs,
            record.imports,
            record.functions,
        ];
        let references = self.prepared.references().iter().zip(&self.meanings);
        let uses: BTreeSet<_> = references
            .filter(|(_, meaning)| matches!(meaning, Meaning::Published(_)))
            .map(|(reference, _)| reference.name.to_owned())
            .collect();
        let bare = |(text, _): &ImportKey| {
            let name = HostName::parse(text).name;
            match name.split_once('@') {
                Some((bare, _)) if !bare.is_empty() => bare.to_owned(),
                _ => name.to_owned(),
            }
        };
        Ok(Asked {
            number: self.number,
            generation: txn.generation(),
            name: name.clone(),
            text: record.text,
            read_only: record.read_only,
            private: record.private,
            len_bytes: taken.iter().map(|part| u64::from(part.len_bytes)).sum(),
            uses: uses.into_iter().collect(),
            hosts: self.hosts.iter().map(bare).collect(),
        })
    }

    /// Writes the traps of the host symbols that are bound for this unit alone, and their table.
    fn write_imports(&mut self, txn: &mut Txn<'_>) -> Result<StoredRegion, SegmentFull> {
        let mut table = Vec::new();
        for (index, (name, kind)) in self.hosts.iter().enumerate() {
            let trap = SegmentOffset::new(self.next_stub);
            self.next_stub += TRAP_BYTES.next_multiple_of(16);
            let import = self.import(index);
            write_import_trap_at(txn, trap, import);
            let record = AskedImport {
                number: import.get(),
                trap,
                weak: (*kind == ImportKind::Weak).into(),
                name_len: name.len() as u32,
            };
            push_texts(&mut table, &record, &[name]);
        }
        write_table(txn, &table)
    }

    fn write_functions(
        &self,
        txn: &mut Txn<'_>,
        linked: &Linked,
    ) -> Result<StoredRegion, SegmentFull> {
        let mut table = Vec::new();
        let recorded = self.source.recorded_signatures();
        for symbol in &linked.symbols {
            let definition = &self.prepared.definitions()[symbol.definition];
            if let (Kind::Function, Place::At(_, place)) = (kind_of(definition.kind), symbol.place)
            {
                let signature = recorded.get(definition.name).map_or("", String::as_str);
                let record = AskedFunction {
                    place,
                    node: symbol.node,
                    name_len: definition.name.len() as u32,
                    signature_len: signature.len() as u32,
                };
                push_texts(&mut table, &record, &[definition.name, signature]);
            }
        }
        write_table(txn, &table)
    }

    /// The graph of needs: what is the unit's own is a node of it.
    fn write_needs(&self, txn: &mut Txn<'_>, linked: &Linked) -> Result<StoredRegion, SegmentFull> {
        let references = self.prepared.references().iter().zip(&self.meanings);
        let references: Vec<_> = references
            .map(|(reference, meaning)| match meaning {
                Meaning::KnownHost(id) => needs::Reference::Import(*id),
                Meaning::Host(host) => needs::Reference::Import(self.import(*host)),
                Meaning::Own(_) | Meaning::Published(_) => needs::Reference::Symbol(hash_name(
                    reference.name.as_bytes(),
                    self.site.hash_seed,
                )),
            })
            .collect();
        if references.is_empty() {
            return Ok(StoredRegion::default());
        }
        let target = |target: &u32| {
            let reference = (target & Needs::REFERENCE != 0).then_some(target & !Needs::REFERENCE);
            let meaning = reference.and_then(|index| self.meanings.get(index as usize));
            match meaning {
                Some(Meaning::Own(index)) => linked.symbols[*index].node,
                _ => *target,
            }
        };
        let needs = needs::Needs {
            references,
            first: linked.needs.first.clone(),
            edges: linked.needs.targets.iter().map(target).collect(),
        };
        write_table(txn, &needs.to_bytes())
    }
}

/// Removes the asked-for units that refer to what `changes` takes away or makes another.
pub(crate) fn dismiss_asked(
    catalog: &Catalog,
    changes: &mut Changes,
    txn: &mut Txn<'_>,
    edit: &mut Edit,
) {
    let removed: BTreeSet<&str> = {
        let removed = changes.removed.iter();
        removed.map(|(name, _)| name.as_str()).collect()
    };
    let stays = |name: &String| {
        let was = catalog.symbols.get(name);
        let becomes = changes.symbols.get(name).or(was);
        let same = was
            .zip(becomes)
            .is_some_and(|(was, becomes)| is_same(was, becomes));
        same && !removed.contains(name.as_str())
    };
    let asked = catalog.asked.values();
    let goes = asked.filter(|unit| !unit.uses.iter().all(stays));
    let goes: Vec<u32> = goes.map(|unit| unit.number).collect();
    for number in goes {
        edit.remove_asked(txn, u64::from(number));
        changes.dismissed.push(number);
    }
}

/// Whether code that was linked against one means the other.
fn is_same(was: &Symbol, becomes: &Symbol) -> bool {
    let is_function = was.kind == Kind::Function && was.call_cell == becomes.call_cell;
    let is_datum = (was.place, was.block_offset) == (becomes.place, becomes.block_offset);
    was.kind == becomes.kind
        && (is_function || was.kind != Kind::Function && is_datum)
        && !differ(&was.signature, &becomes.signature)
}
