//! Memory and cells for what a publication defines.

use jitcast_linker::{Place, PlacedSymbol, Placement, Prepared};
use jitcast_runtime::SegmentOffset;
use jitcast_runtime::directory::{Edit, record_flags};
use jitcast_runtime::geometry::{Area, Region, SLOT_BYTES};
use jitcast_runtime::heap::{SegmentFull, Txn};
use jitcast_runtime::records::CellValue;

use super::code::write_stub;
use super::{Batch, Details, check_name, kind_of};
use crate::catalog::{Kind, Pooled, Symbol, Variable};
use crate::error::PublishError;

/// No two units' shared data are in one cache line, which processes on several processors write.
const LINE_BYTES: u32 = 64;

impl Batch<'_, '_> {
    pub(super) fn place(&self, txn: &mut Txn<'_>) -> Result<Vec<Placement>, PublishError> {
        let mut take = |area, extent: jitcast_linker::Extent| {
            // The linker keeps units below 2 GiB; a segment's areas are smaller still.
            let len_bytes = u32::try_from(extent.len_bytes).unwrap_or(u32::MAX);
            let least = if area == Area::SharedData {
                LINE_BYTES
            } else {
                16
            };
            let align_bytes = u32::try_from(extent.align_bytes).unwrap_or(1).max(least);
            Ok::<_, SegmentFull>(txn.alloc(area, len_bytes, align_bytes)?.offset())
        };
        let mut place = |prepared: &Prepared<'_>| {
            let extents = prepared.extents();
            Ok(Placement {
                text: take(Area::Text, extents.text)?,
                read_only: take(Area::ReadOnly, extents.read_only)?,
                private: take(Area::Private, extents.private)?,
                shared: take(Area::SharedData, extents.shared)?,
                number: 0,
            })
        };
        let mut placements: Vec<Placement> = self
            .units
            .iter()
            .map(&mut place)
            .collect::<Result<_, PublishError>>()?;
        for (unit, placement) in placements.iter_mut().enumerate() {
            placement.number = self.number(unit).into();
        }
        Ok(placements)
    }

    /// Gives every published name of the batch its place and its cells.
    pub(super) fn place_symbols(
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
        let offset = |symbol: &PlacedSymbol| match symbol.place {
            Place::At(_, offset) => Some(offset),
            _ => None,
        };
        let offsets: Vec<Vec<_>> = placed
            .iter()
            .map(|symbols| symbols.iter().map(offset).collect())
            .collect();
        self.pool_unique(&placed)?;
        let mut names: Vec<_> = self.defined.iter().map(|(name, at)| (*name, *at)).collect();
        names.sort_unstable_by_key(|(_, at)| *at);
        for (name, (unit, index)) in names {
            let definition = *self.definition((unit, index));
            let kind = kind_of(definition.kind);
            let (fresh, size, block_offset) = match placed[unit][index].place {
                Place::At(_, offset) => (offset, definition.size, 0),
                Place::Absolute(value) => (SegmentOffset::NONE, value, 0),
                Place::ThreadLocal { module, offset } => (module, offset, offset),
            };
            let number = self.number(unit);
            self.details.insert(
                name,
                Details {
                    unit: number,
                    node: placed[unit][index].node,
                    size,
                },
            );
            let old = self.site.catalog.symbols.get(name);
            let same_function = self.site.catalog.function(name);
            let same_function = same_function.filter(|_| kind == Kind::Function);
            let carried = match placed[unit][index].place {
                Place::At(_, place) => self.carried_place(unit, place, &offsets[unit]),
                _ => None,
            };
            let same_datum = old.filter(|_| self.is_carried(name));
            let (place, since) = match carried {
                Some((place, variable)) => (place, variable.since),
                None => (fresh, number),
            };
            if let (Some(old), None) = (old, same_function.or(same_datum))
                && !self.is_canary()
            {
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
            let signature = self.recorded_signature(unit, name).to_owned();
            let symbol = Symbol {
                unit: self.sources[unit].name.clone(),
                kind,
                place,
                block_offset,
                call_cell,
                address_cell: same_function
                    .or(same_datum)
                    .and_then(|old| old.address_cell),
                signature,
                variable: definition.writable.then_some(Variable {
                    size: definition.size,
                    align_bytes: definition.align_bytes,
                    since,
                    fresh,
                }),
            };
            self.changes.symbols.insert(name.to_owned(), symbol);
        }
        Ok(())
    }

    /// Puts what is unique in a process into the pool, unless somebody else's copy is there.
    fn pool_unique(&mut self, placed: &[Vec<PlacedSymbol>]) -> Result<(), PublishError> {
        for (unit, prepared) in self.units.iter().enumerate() {
            for (index, definition) in prepared.definitions().iter().enumerate() {
                let Place::At(_, place) = placed[unit][index].place else {
                    continue;
                };
                if !definition.unique {
                    continue;
                }
                check_name(definition.name)?;
                let new = Pooled {
                    unit: self.sources[unit].name.clone(),
                    since: self.number(unit),
                    place,
                    size: definition.size,
                    align_bytes: definition.align_bytes,
                };
                match self.pooled(definition.name) {
                    None => drop(self.changes.pool.insert(definition.name.to_owned(), new)),
                    Some(old) if (old.size, old.align_bytes) == (new.size, new.align_bytes) => {}
                    Some(old) => {
                        return Err(PublishError::UniqueDiffers {
                            symbol: definition.name.to_owned(),
                            unit: new.unit,
                            other: old.unit.clone(),
                            lengths: (new.size, old.size),
                            alignments: (new.align_bytes, old.align_bytes),
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// The process's one copy of `name`, if it is such a datum.
    pub(super) fn pooled(&self, name: &str) -> Option<&Pooled> {
        let published = || self.site.catalog.pool.get(name);
        self.changes.pool.get(name).or_else(published)
    }

    /// The number of a unit of the batch.
    pub(super) fn number(&self, unit: usize) -> u32 {
        self.site.catalog.next_unit + unit as u32
    }

    /// Whether a kept unit may go on using the cells of `name`, which is published no longer or anew.
    pub(super) fn leaves_cells(&self, name: &str) -> bool {
        self.held.contains(name) || self.site.catalog.kept_uses.contains(name)
    }

    pub(super) fn new_call_cell(&self, txn: &mut Txn<'_>) -> Result<SegmentOffset, SegmentFull> {
        let cell = txn.alloc(Area::CallCells, SLOT_BYTES, SLOT_BYTES)?.offset();
        write_stub(txn, self.site.geometry, cell);
        Ok(cell)
    }
}

pub(super) fn retire_cells(txn: &mut Txn<'_>, symbol: &Symbol) {
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
