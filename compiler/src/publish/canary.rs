//! Canaries: what a publication may not touch while one is running, what cannot be one, and how one ends.
//!
//! The units of a canary are linked and described like all others, but that what they define goes into the overlay, and what
//! they replace stays. To promote them is to let them replace it, without linking anything again.

use std::collections::HashSet;

use jitcast_runtime::SegmentOffset;
use jitcast_runtime::directory::{Edit, record_flags};
use jitcast_runtime::heap::{SegmentFull, Txn};
use jitcast_runtime::records::{CellValue, SYMBOL_HIDDEN, SymbolRecord, hash_name};

use super::describe::keeps_data;
use super::place::retire_cells;
use super::{Batch, Changes, Site};
use crate::catalog::{Canary, Kind, Symbol, Unit, users_of};
use crate::changeset::{Audience, SymbolUpdate};
use crate::error::PublishError;

/// The longest label, bytes: what a worker can say when it attaches.
const MAX_LABEL_BYTES: usize = 63;

impl Batch<'_, '_> {
    /// Whether its units are to be a canary.
    pub(super) fn is_canary(&self) -> bool {
        self.asked.canary.is_some()
    }

    /// Refuses what is a running canary's matter, and what cannot be one.
    pub(super) fn check_canaries(&self) -> Result<(), PublishError> {
        if let Some(audience) = self.asked.canary {
            check_audience(audience)?;
            self.check_candidate()?;
        }
        let catalog = self.site.catalog;
        if catalog.canaries.is_empty() {
            return Ok(());
        }
        let units = self.leaving.iter();
        let units = units.map(|name| (catalog.canary_of_unit(name), "the unit", *name));
        let defined = self.defined.keys();
        let defined = defined.map(|name| (catalog.canary_of_symbol(name), "the symbol", *name));
        let updated = self.asked.updates.iter().map(SymbolUpdate::symbol);
        let updated = updated.map(|name| (catalog.canary_of_symbol(name), "the symbol", name));
        let mut touched: Vec<_> = units.chain(defined).chain(updated).collect();
        touched.sort_unstable_by_key(|(_, what, name)| (*what == "the symbol", *name));
        for (canary, what, name) in touched {
            if let Some(canary) = canary {
                return Err(PublishError::CanaryRuns {
                    what: format!("{what} `{name}`"),
                    canary: canary.id,
                    units: canary.names().map(str::to_owned).collect(),
                });
            }
        }
        self.check_references()
    }

    /// Nothing is linked against what is not the same for all workers. Functions are: they are reached through their cells.
    fn check_references(&self) -> Result<(), PublishError> {
        let catalog = self.site.catalog;
        for (unit, prepared) in self.units.iter().enumerate() {
            for reference in prepared.references() {
                let published = catalog.symbols.get(reference.name);
                let canary = catalog.canary_of_symbol(reference.name);
                let (Some(published), Some(canary)) = (published, canary) else {
                    continue;
                };
                let candidate = canary.symbols.get(reference.name);
                if !candidate.is_some_and(|candidate| published.shares_cells(candidate)) {
                    return Err(PublishError::CanaryDiffers {
                        unit: self.sources[unit].name.clone(),
                        symbol: reference.name.to_owned(),
                        canary: canary.id,
                        units: canary.names().map(str::to_owned).collect(),
                    });
                }
            }
        }
        Ok(())
    }

    fn check_candidate(&self) -> Result<(), PublishError> {
        let asked = &self.asked;
        let no = |why: &str, help| {
            let why = why.to_owned();
            Err(PublishError::NoCanary { why, help })
        };
        if !asked.is_units_only() {
            let help = "remove, quarantine and restore for all workers, before or after it";
            return no("it is made of units to publish, and nothing else", help);
        }
        if asked.options.leave_traps {
            let help = "define what others use, or publish it for all workers";
            return no(
                "functions that others use cannot go in a part of the workers (--leave-traps)",
                help,
            );
        }
        if asked.options.if_changed {
            let help = "leave out --if-changed";
            return no(
                "what it is compared with is published for all workers (--if-changed)",
                help,
            );
        }
        let mut defined: Vec<_> = self.defined.keys().collect();
        defined.sort_unstable();
        for name in defined {
            if self.site.catalog.orphans.contains_key(*name) {
                let why =
                    format!("`{name}` was removed under its users, and is a trap for them all");
                return no(&why, "publish it for all workers");
            }
            let was = self.site.catalog.symbols.get(*name).map(|old| old.kind);
            if was == Some(Kind::Function) && self.becomes(name) != was {
                let why =
                    format!("`{name}` is a function, and would be none in a part of the workers");
                return no(&why, "use another name, or publish it for all workers");
            }
        }
        Ok(())
    }

    /// Refuses a candidate that brings data which are to be unique in each process: other units find them by their names.
    pub(super) fn check_pool(&self) -> Result<(), PublishError> {
        match self.changes.pool.keys().next() {
            Some(name) if self.is_canary() => Err(PublishError::NoCanary {
                why: format!(
                    "it brings `{name}`, which is to be one in each process, for all units that are published there"
                ),
                help: "publish a unit first, for all workers, that has it, or compile with -fno-gnu-unique and hidden visibility",
            }),
            _ => Ok(()),
        }
    }

    /// `name` has got an address cell: a canary's version and the one that it covers have the same.
    pub(super) fn share_address_cell(&mut self, name: &str, symbol: &Symbol, cell: SegmentOffset) {
        let published = self.site.catalog.symbols.get(name);
        if self.is_canary() && self.defined.contains_key(name) {
            if let Some(published) = published.filter(|published| published.shares_cells(symbol)) {
                let mut published = published.clone();
                published.address_cell = Some(cell);
                self.covered.insert(name.to_owned(), published);
            }
        } else if let Some(canary) = self.site.catalog.canary_of_symbol(name) {
            let candidate = canary.symbols.get(name);
            if candidate.is_some_and(|candidate| symbol.shares_cells(candidate)) {
                self.changes.overlay_cells.push((name.to_owned(), cell));
            }
        }
    }

    /// Writes the overlay's records of those symbols again that have got an address cell.
    pub(super) fn write_overlay_cells(
        &self,
        txn: &mut Txn<'_>,
        edit: &mut Edit,
    ) -> Result<(), SegmentFull> {
        for (name, cell) in &self.changes.overlay_cells {
            let canary = self.site.catalog.canary_of_symbol(name);
            let symbol = canary.and_then(|canary| canary.symbols.get(name));
            if let Some(symbol) = symbol
                && let Some(record) = edit.overlay(txn, self.hash(name))
            {
                let (generation, address_cell) = (txn.generation(), *cell);
                let record = SymbolRecord {
                    generation,
                    address_cell,
                    ..record
                };
                edit.put_overlay(txn, &record, name, &symbol.signature)?;
            }
        }
        Ok(())
    }

    /// Describes the canary, and takes what is its own out of the changes of what is published for all.
    pub(super) fn begin_canary(
        &mut self,
        audience: &Audience,
        txn: &mut Txn<'_>,
        edit: &mut Edit,
    ) -> Result<(), SegmentFull> {
        let own = |name: &String, _: &mut Symbol| self.defined.contains_key(name.as_str());
        let canary = Canary {
            id: txn.generation(),
            audience: audience.clone(),
            units: std::mem::take(&mut self.changes.units),
            symbols: self.changes.symbols.extract_if(.., own).collect(),
            hidden: self
                .changes
                .removed
                .drain(..)
                .map(|(name, _)| name)
                .collect(),
            retained: Vec::new(),
        };
        let (record, label) = canary.record(txn.generation());
        edit.put_canary(txn, &record, label)?;
        for name in &canary.hidden {
            let key = self.hash(name);
            if let Some(published) = edit.symbol(txn, key) {
                let hidden = SymbolRecord {
                    generation: txn.generation(),
                    unit: record.first_unit,
                    flags: SYMBOL_HIDDEN,
                    signature_len: 0,
                    ..published
                };
                edit.put_overlay(txn, &hidden, name, "")?;
            }
        }
        self.changes.symbols.append(&mut self.covered);
        self.changes.canary = Some(canary);
        Ok(())
    }
}

fn check_audience(audience: &Audience) -> Result<(), PublishError> {
    let (why, help) = match audience {
        Audience::Workers(0) => ("its audience is empty", "ask for one worker at the least"),
        Audience::Label(label) if label.is_empty() => (
            "its audience is empty: no worker has an empty label",
            "name a label",
        ),
        Audience::Label(label) if label.len() > MAX_LABEL_BYTES || label.contains('\0') => (
            "no worker has such a label",
            "labels have 1 to 63 bytes, none of them 0",
        ),
        Audience::Workers(_) | Audience::Label(_) => return Ok(()),
    };
    Err(PublishError::NoCanary {
        why: why.to_owned(),
        help,
    })
}

/// The end of a canary.
pub(crate) struct Ending<'a> {
    site: Site<'a>,
    canary: &'a Canary,
    /// Symbols that units which go, and are kept, define or refer to.
    held: HashSet<&'a str>,
    changes: Changes,
}

impl<'a> Ending<'a> {
    pub(crate) fn new(site: Site<'a>, canary: &'a Canary) -> Self {
        let changes = Changes {
            next_unit: site.catalog.next_unit,
            next_import: site.catalog.next_import,
            ..Changes::default()
        };
        Self {
            site,
            canary,
            held: HashSet::new(),
            changes,
        }
    }

    /// Lets its units replace what is published, for all workers. Nothing is linked again.
    pub(crate) fn promote(
        mut self,
        txn: &mut Txn<'_>,
        edit: &mut Edit,
    ) -> Result<Changes, SegmentFull> {
        let (catalog, canary) = (self.site.catalog, self.canary);
        let replaced = canary.names().filter_map(|name| catalog.units.get(name));
        self.hold(replaced);
        for (name, unit) in &canary.units {
            edit.renew_unit(txn, unit.number.into())?;
            let renewed = Unit {
                generation: txn.generation(),
                ..unit.clone()
            };
            self.changes.units.push((name.clone(), renewed));
            if let Some(old) = catalog.units.get(name) {
                let is_carried = |name: &str| self.is_shared(name);
                let since = |symbol: &Symbol| symbol.variable.map(|variable| variable.since);
                let keep = keeps_data(catalog, old, is_carried, |name| self.leaves_cells(name))
                    || canary
                        .symbols
                        .values()
                        .any(|symbol| since(symbol) == Some(old.number));
                edit.remove_unit(txn, old.number.into(), keep);
                if keep {
                    self.changes.kept.push(name.clone());
                }
            }
        }
        for (name, symbol) in &canary.symbols {
            let key = self.hash(name);
            if let Some(record) = edit.overlay(txn, key) {
                let record = SymbolRecord {
                    generation: txn.generation(),
                    ..record
                };
                edit.put_symbol(txn, &record, name, &symbol.signature)?;
            }
            edit.remove_overlay(txn, key);
            if let Some(cell) = symbol.call_cell {
                let (_, value) = symbol.reached(catalog.is_quarantined(name, symbol));
                edit.set_cell(cell, value);
            }
            if let Some(old) = catalog.symbols.get(name).filter(|_| !self.is_shared(name)) {
                self.give_up_cells(txn, name, old);
            }
            self.changes.symbols.insert(name.clone(), symbol.clone());
        }
        for name in &canary.hidden {
            let (key, symbol) = (self.hash(name), &catalog.symbols[name]);
            edit.remove_overlay(txn, key);
            for cell in symbol.call_cell.into_iter().chain(symbol.address_cell) {
                edit.set_cell(cell, CellValue::UNBOUND);
            }
            self.give_up_cells(txn, name, symbol);
            edit.remove_symbol(txn, key);
            self.changes.removed.push((name.clone(), key));
        }
        edit.remove_canary(txn, canary.id);
        edit.flag(record_flags::NAMES);
        self.changes.promoted = Some(canary.id);
        let except = canary.names().collect();
        self.release_orphans(txn, &except, None);
        Ok(self.changes)
    }

    /// Lets nobody run its units any more. What they replaced was there all the time.
    pub(crate) fn abort(mut self, txn: &mut Txn<'_>, edit: &mut Edit) -> Changes {
        let canary = self.canary;
        self.hold(canary.units.iter().map(|(_, unit)| unit));
        for (_, unit) in &canary.units {
            edit.remove_unit(txn, unit.number.into(), false);
        }
        for (name, symbol) in &canary.symbols {
            edit.remove_overlay(txn, self.hash(name));
            // Kept code goes on knowing the cells of its own.
            if !self.is_shared(name) && !self.leaves_cells(name) {
                retire_cells(txn, symbol);
            }
        }
        for name in &canary.hidden {
            edit.remove_overlay(txn, self.hash(name));
        }
        edit.remove_canary(txn, canary.id);
        edit.flag(record_flags::NAMES);
        self.changes.aborted = Some(canary.id);
        self.release_orphans(txn, &HashSet::new(), Some(canary.id));
        self.changes
    }

    fn hash(&self, name: &str) -> u64 {
        hash_name(name.as_bytes(), self.site.hash_seed)
    }

    fn hold(&mut self, leaving: impl Iterator<Item = &'a Unit>) {
        let kept = leaving.filter(|unit| unit.keeps);
        let names = kept.flat_map(|unit| unit.defines.iter().chain(&unit.uses));
        self.held.extend(names.map(String::as_str));
    }

    /// Whether the canary's version of `name` has the cells of the published one.
    fn is_shared(&self, name: &str) -> bool {
        let published = self.site.catalog.symbols.get(name);
        let both = published.zip(self.canary.symbols.get(name));
        both.is_some_and(|(published, candidate)| published.shares_cells(candidate))
    }

    fn leaves_cells(&self, name: &str) -> bool {
        self.held.contains(name) || self.site.catalog.kept_uses.contains(name)
    }

    fn give_up_cells(&mut self, txn: &mut Txn<'_>, name: &str, symbol: &Symbol) {
        if self.leaves_cells(name) {
            self.changes.left.push(name.to_owned());
        } else {
            retire_cells(txn, symbol);
        }
    }

    /// Lets go of removed functions that only those used who go.
    fn release_orphans(&mut self, txn: &mut Txn<'_>, except: &HashSet<&str>, without: Option<u64>) {
        let catalog = self.site.catalog;
        if catalog.orphans.is_empty() {
            return;
        }
        let users = catalog.users(except, without);
        for (name, orphan) in &catalog.orphans {
            if users_of(&users, name).is_empty() {
                self.give_up_cells(txn, name, orphan);
                self.changes.settled.push(name.clone());
            }
        }
    }
}
