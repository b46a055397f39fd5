//! What a publication is, in the directory: records of its units and symbols, and their tables.

use std::collections::HashMap;

use jitcast_linker::{Dialect, Linked, Placement, Prepared, Reference};
use jitcast_runtime::directory::{Edit, record_flags};
use jitcast_runtime::geometry::{Area, Region};
use jitcast_runtime::heap::{SegmentFull, Txn};
use jitcast_runtime::records::{StoredRegion, SymbolRecord, UNIT_KEPT, UnitRecord};
use jitcast_runtime::{Patch, PatchKind, SegmentOffset, module, needs};
use zerocopy::IntoBytes;

use super::frames::write_text;
use super::{Batch, Details, Reclaim};
use crate::catalog::{Catalog, Kind, Pooled, Unit};
use crate::error::PublishError;

impl<'p> Batch<'_, 'p> {
    pub(super) fn write_unit(
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
        let brings = |pooled: &Pooled| pooled.unit == source.name;
        let keeps = match source.reclaim {
            // What outlives the unit lies in it, or it may be called after it was retired.
            _ if self.changes.pool.values().any(brings) => true,
            _ if leaves_something(prepared, linked) => true,
            Reclaim::Yes => false,
            Reclaim::No => true,
            Reclaim::Auto => source
                .files
                .iter()
                .any(|file| file.dialect != Dialect::Cranelift),
        };
        let number = self.number(unit);
        self.changes.next_unit = number + 1;
        let private = region(placement.private, extents.private);
        let shared = region(placement.shared, extents.shared);
        let shared_template = write_table(txn, &linked.shared)?;
        fill(txn, shared, shared_template)?;
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
            init: write_slots(txn, &linked.init)?,
            fini: write_slots(txn, &linked.fini)?,
            shared,
            shared_template,
            name_len: source.name.len() as u32,
            flags: if keeps { UNIT_KEPT } else { 0 },
            module: linked.module.unwrap_or_default(),
            reserved: 0,
        };
        let resolves = |patch: &Patch| patch.kind() == Some(PatchKind::Resolver);
        let ends = !linked.fini.is_empty()
            || !linked.init.is_empty()
            || linked.module.is_some()
            || linked.patches.iter().any(resolves);
        edit.put_unit(txn, &record, &source.name)?;
        let named = (number, source.name.as_str());
        write_text(txn, edit, named, prepared, placement, record.text)?;
        if !self.is_canary() {
            self.retire_unit(txn, edit, &source.name);
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
            .partition(|reference| {
                self.is_segments(reference.name) && self.pooled(reference.name).is_none()
            });
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
            shared,
            shared_template,
            keeps,
            reclaim: source.reclaim,
            ends,
            defines,
            uses: uses
                .iter()
                .map(|used: &&Reference<'p>| used.name.to_owned())
                .collect(),
            imports: imports
                .iter()
                .map(|import| self.import_key(unit, import))
                .collect(),
        };
        self.changes.units.push((source.name.clone(), unit_record));
        Ok(())
    }

    pub(super) fn write_needs(
        &self,
        txn: &mut Txn<'_>,
        unit: usize,
        linked: &Linked,
    ) -> Result<StoredRegion, SegmentFull> {
        let reference = |reference: &Reference<'_>| {
            let pooled = self.pooled(reference.name).is_some();
            if !pooled && (reference.own.is_some() || self.is_segments(reference.name)) {
                return needs::Reference::Symbol(self.hash(reference.name));
            }
            // Bound just before, and so among the changes.
            let key = self.import_key(unit, reference);
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
    pub(super) fn write_symbols(
        &mut self,
        txn: &mut Txn<'_>,
        edit: &mut Edit,
    ) -> Result<(), PublishError> {
        let mut added = HashMap::new();
        let changed = self.changes.symbols.iter().map(|changed| (changed, false));
        let covered = self.covered.iter().map(|covered| (covered, true));
        for ((name, symbol), is_covered) in changed.chain(covered) {
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
            let own = self.details.get(name.as_str()).copied();
            let Some(details) = own
                .filter(|_| !is_covered)
                .or_else(|| published_details(txn, edit, key))
            else {
                continue;
            };
            let (flags, value) = self.reached(name, symbol);
            let record = SymbolRecord {
                key,
                generation: txn.generation(),
                size: details.size,
                unit: details.unit,
                kind: symbol.kind.code(),
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
                flags,
            };
            let is_own = self.defined.contains_key(name.as_str()) && !is_covered;
            if is_own && self.is_canary() {
                // What its cells hold in the audience follows from it.
                edit.put_overlay(txn, &record, name, &symbol.signature)?;
                continue;
            }
            edit.put_symbol(txn, &record, name, &symbol.signature)?;
            if let Some(cell) = symbol
                .call_cell
                .filter(|_| is_own || self.changes.quarantined.contains_key(name))
            {
                edit.set_cell(cell, value);
            }
        }
        self.changes.added_hashes.extend(added);
        Ok(())
    }

    /// Takes the published version of a unit out of the directory, if there is one.
    pub(super) fn retire_unit(&mut self, txn: &mut Txn<'_>, edit: &mut Edit, name: &str) {
        let Some(old) = self.site.catalog.units.get(name) else {
            return;
        };
        let is_carried = |name: &str| self.is_carried(name);
        let keep = keeps_data(self.site.catalog, old, is_carried, |name| {
            self.leaves_cells(name)
        }) || self.carries_from(old.number);
        edit.remove_unit(txn, old.number.into(), keep);
        if old.ends {
            // Only a look at the directory tells that it is gone.
            edit.flag(record_flags::RESYNC);
        }
        if keep {
            self.changes.kept.push(name.to_owned());
        }
    }
}

/// Whether kept code may read data of the unit `old`, which goes: then they are kept with it.
pub(super) fn keeps_data(
    catalog: &Catalog,
    old: &Unit,
    is_carried: impl Fn(&str) -> bool,
    leaves_cells: impl Fn(&str) -> bool,
) -> bool {
    let mut data = old.defines.iter().filter(|name| {
        let symbol = catalog.symbols.get(*name);
        symbol.is_some_and(|symbol| symbol.kind != Kind::Function)
    });
    data.any(|name| !is_carried(name) && leaves_cells(name))
}

/// What the published record of a symbol says, for one that only gets an address cell.
fn published_details(txn: &Txn<'_>, edit: &Edit, key: u64) -> Option<Details> {
    let SymbolRecord {
        unit, node, size, ..
    } = edit.symbol(txn, key)?;
    Some(Details { unit, node, size })
}

/// Whether something of a unit may be called after it was replaced: destructors, which each worker runs in its
/// own time, and handlers that run when a thread or the process ends, or when a signal comes.
fn leaves_something(prepared: &Prepared<'_>, linked: &Linked) -> bool {
    let registers = |reference: &Reference<'_>| module::registers(reference.name);
    !linked.fini.is_empty() || prepared.references().iter().any(registers)
}

/// Gives shared data what they start with.
fn fill(txn: &Txn<'_>, shared: StoredRegion, template: StoredRegion) -> Result<(), SegmentFull> {
    let region = |stored: StoredRegion| Region {
        start: stored.start,
        len_bytes: stored.len_bytes,
    };
    txn.fill(region(shared), region(template))
}

/// Writes the offsets of slots.
fn write_slots(txn: &mut Txn<'_>, slots: &[SegmentOffset]) -> Result<StoredRegion, SegmentFull> {
    let bytes: Vec<u8> = slots
        .iter()
        .flat_map(|slot| slot.get().to_le_bytes())
        .collect();
    write_table(txn, &bytes)
}

pub(super) fn write_table(txn: &mut Txn<'_>, bytes: &[u8]) -> Result<StoredRegion, SegmentFull> {
    let len_bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let region = txn.alloc(Area::Control, len_bytes, 8)?;
    txn.memory().write_bytes(region.offset(), bytes);
    Ok(StoredRegion {
        start: region.start,
        len_bytes,
    })
}
