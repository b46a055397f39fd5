//! Canaries: units that only an audience runs, until they are promoted or aborted.
//!
//! Invariant: a name, of a unit or of a symbol, belongs to one canary at the most, and what is published under it stays as it is
//! meanwhile.

use std::collections::{BTreeMap, HashSet};

use jitcast_runtime::SegmentOffset;
use jitcast_runtime::records::CanaryRecord;
use serde::{Deserialize, Serialize};

use super::{Catalog, Kind, Symbol, Unit};
use crate::changeset::Audience;
use crate::history::RetainedUnit;

/// A canary that is running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Canary {
    /// Its number: the generation that began it.
    pub(crate) id: u64,
    pub(crate) audience: Audience,
    /// Its units, in the order of their numbers, which follow one another.
    pub(crate) units: Vec<(String, Unit)>,
    /// What they publish in the audience.
    pub(crate) symbols: BTreeMap<String, Symbol>,
    /// What the units that they replace publish, and they do not.
    pub(crate) hidden: Vec<String>,
    /// What they were made of.
    pub(crate) retained: Vec<RetainedUnit>,
}

impl Canary {
    /// The names of its units.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.units.iter().map(|(name, _)| name.as_str())
    }

    /// Whether it is about the symbol `name`.
    pub(crate) fn covers(&self, name: &str) -> bool {
        self.symbols.contains_key(name) || self.hides(name)
    }

    /// Whether `name` is not published in its audience.
    pub(crate) fn hides(&self, name: &str) -> bool {
        self.hidden.iter().any(|hidden| hidden == name)
    }

    /// What its record says, as of `generation`, and the label of its audience.
    pub(crate) fn record(&self, generation: u64) -> (CanaryRecord, &str) {
        let (seats, label) = match &self.audience {
            Audience::Workers(count) => (*count, ""),
            Audience::Label(label) => (0, label.as_str()),
        };
        let first = self.units.first().map_or(0, |(_, unit)| unit.number);
        let record = CanaryRecord {
            key: self.id,
            generation,
            first_unit: first,
            unit_count: self.units.len() as u32,
            seats,
            label_len: label.len() as u32,
        };
        (record, label)
    }

    /// Whether a worker at `seat` of that label is in its audience.
    pub(crate) fn is_for(&self, seat: Option<u32>, label: &str) -> bool {
        let (record, wanted) = self.record(self.id);
        record.is_for(wanted, seat, label)
    }
}

impl Symbol {
    /// Whether a canary's version of this symbol has the same cells: then who was linked against one reaches the other.
    pub(crate) fn shares_cells(&self, candidate: &Self) -> bool {
        match (self.kind, candidate.kind) {
            (Kind::Function, Kind::Function) => self.call_cell == candidate.call_cell,
            (Kind::Data, Kind::Data) => self.place == candidate.place,
            _ => false,
        }
    }
}

impl Catalog {
    /// The canary that is about the unit `name`.
    pub(crate) fn canary_of_unit(&self, name: &str) -> Option<&Canary> {
        let mut canaries = self.canaries.values();
        canaries.find(|canary| canary.names().any(|unit| unit == name))
    }

    /// The canary that is about the symbol `name`.
    pub(crate) fn canary_of_symbol(&self, name: &str) -> Option<&Canary> {
        self.canaries.values().find(|canary| canary.covers(name))
    }

    /// The canary that has a unit called `name`, or else that number.
    pub(crate) fn find_canary(&self, name: &str) -> Option<&Canary> {
        let by_number = || self.canaries.get(&name.parse().ok()?);
        self.canary_of_unit(name).or_else(by_number)
    }

    /// A canary begins: its units count as users of what they refer to.
    pub(super) fn begin_canary(&mut self, canary: Canary) {
        for (_, unit) in &canary.units {
            self.count_imports(unit);
        }
        self.canaries.insert(canary.id, canary);
    }

    /// A canary ends, whatever becomes of its units.
    pub(super) fn end_canary(&mut self, id: u64) -> Option<Canary> {
        let canary = self.canaries.remove(&id)?;
        for (_, unit) in &canary.units {
            self.discount_imports(unit);
        }
        Some(canary)
    }

    /// Nothing of a canary is left but what is never reused.
    pub(super) fn forget_canary(&mut self, canary: Canary) {
        for (name, unit) in canary.units.into_iter().filter(|(_, unit)| unit.keeps) {
            let defines = unit.defines.iter().filter(|name| {
                let candidate = canary.symbols.get(*name);
                let base = self.symbols.get(*name).zip(candidate);
                base.is_some_and(|(base, candidate)| base.shares_cells(candidate))
            });
            let defines: Vec<_> = defines.cloned().collect();
            self.keep(&name, defines, unit);
        }
        let gone = |name: &String| !self.symbols.contains_key(name);
        let gone: HashSet<_> = canary.symbols.into_keys().filter(gone).collect();
        self.hashes.retain(|_, name| !gone.contains(name));
    }

    /// A covering symbol has got the address cell of the one that it covers.
    pub(super) fn set_overlay_cell(&mut self, name: &str, cell: SegmentOffset) {
        let mut canaries = self.canaries.values_mut();
        if let Some(symbol) = canaries.find_map(|canary| canary.symbols.get_mut(name)) {
            symbol.address_cell = Some(cell);
        }
    }
}
