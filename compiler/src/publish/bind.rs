//! What each name that a unit refers to means: the segment's definition, or the host's.

use std::collections::HashMap;

use jitcast_linker::{Binding, Reference};
use jitcast_runtime::directory::Edit;
use jitcast_runtime::geometry::{Area, SLOT_BYTES};
use jitcast_runtime::heap::{SegmentFull, Txn};
use jitcast_runtime::host_name::HostName;
use jitcast_runtime::records::{CellValue, ImportRecord};
use jitcast_runtime::signature::Signature;
use jitcast_runtime::{ImportId, PatchTarget};

use super::code::write_import_trap;
use super::{Batch, check_name};
use crate::catalog::{Import, ImportKey, ImportKind, Kind};
use crate::error::PublishError;

impl<'p> Batch<'_, 'p> {
    /// Settles what each reference of a unit means.
    pub(super) fn bind(
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

    pub(super) fn bind_one(
        &mut self,
        txn: &mut Txn<'_>,
        edit: &mut Edit,
        unit: usize,
        reference: &Reference<'p>,
    ) -> Result<Binding, PublishError> {
        check_name(reference.name)?;
        if !self.is_segments(reference.name) || self.pooled(reference.name).is_some() {
            return Ok(self.bind_host(txn, edit, unit, reference)?);
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
        if (symbol.kind == Kind::ThreadLocal) != reference.thread_local {
            return Err(PublishError::ThreadLocal {
                symbol: reference.name.to_owned(),
                unit: self.sources[unit].name.clone(),
                other: symbol.unit,
            });
        }
        let target = symbol.target(self.site.geometry);
        if reference.address_cell && symbol.address_cell.is_none() {
            let cell = txn
                .alloc(Area::AddressCells, SLOT_BYTES, SLOT_BYTES)?
                .offset();
            edit.set_cell(cell, CellValue::new(target));
            symbol.address_cell = Some(cell);
            self.share_address_cell(reference.name, &symbol, cell);
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
            block_offset: reference.thread_local.then_some(symbol.block_offset),
            call_cell,
            address_cell: symbol.address_cell,
            stub,
        })
    }

    /// Whether `name` means the segment's definition. A name that live units have bound to the host stays the
    /// host's; one that a unit of this batch defines is the batch's.
    pub(super) fn is_segments(&self, name: &str) -> bool {
        if self.defined.contains_key(name) || self.gave_way.contains(name) {
            return true;
        }
        let staying = self.is_imported_by_others(name);
        let published = self.site.catalog.symbols.get(name);
        !staying && published.is_some_and(|symbol| !self.leaves(&symbol.unit))
    }

    /// Whether units that stay refer to the host symbol `name`.
    pub(super) fn is_imported_by_others(&self, name: &str) -> bool {
        let users = self.site.catalog.users_of_import(name);
        users > self.leaving_users.get(name).copied().unwrap_or(0)
    }

    /// Which import a reference of unit number `unit` is that is not to a published symbol.
    pub(super) fn import_key(&self, unit: usize, reference: &Reference<'p>) -> ImportKey {
        let unique = self.pooled(reference.name).is_some();
        import_key(&self.calls[unit], reference, unique)
    }

    pub(super) fn bind_host(
        &mut self,
        txn: &mut Txn<'_>,
        edit: &mut Edit,
        unit: usize,
        reference: &Reference<'p>,
    ) -> Result<Binding, SegmentFull> {
        let key = self.import_key(unit, reference);
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
                    fallback: self
                        .pooled(reference.name)
                        .map(|pooled| pooled.place)
                        .unwrap_or_default(),
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
            block_offset: None,
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
                weak: (key.1 == ImportKind::Weak).into(),
                name_len: key.0.len() as u32,
                fallback: import.fallback,
            };
            edit.put_import(txn, &record, &key.0)?;
        }
        self.changes.imports.insert(key, import);
        Ok(binding)
    }
}

/// Which import a reference of a unit is that calls others so ([`UnitSource::calls`](super::UnitSource::calls)); `unique`: to what is
/// one in a process.
pub(super) fn import_key(
    calls: &HashMap<&str, Option<&Signature>>,
    reference: &Reference<'_>,
    unique: bool,
) -> ImportKey {
    if unique {
        return (reference.name.to_owned(), ImportKind::Unique);
    }
    let kind = match reference.weak {
        true => ImportKind::Weak,
        false => ImportKind::Strong,
    };
    // Workers look for `name@VERSION` in that version.
    let versioned = reference
        .version
        .map(|version| format!("{}@{version}", reference.name));
    let name = versioned.as_deref().unwrap_or(reference.name);
    let signature = calls.get(reference.name).copied().flatten().cloned();
    (HostName::new(name, signature).to_string(), kind)
}
