//! Whether canaries that were read back are what the directory says, and apart from each other.

use std::collections::HashSet;

use jitcast_runtime::records::{
    CanaryRecord, CellValue, Root, SYMBOL_HIDDEN, SymbolRecord, hash_name,
};
use jitcast_runtime::segment::Segment;

use super::super::{Canary, Catalog, Kind};
use super::image::Image;
use super::{Disagreement, agree, dangling, some};

impl Catalog {
    /// Each name belongs to one canary at the most; each canary's units follow one another, and what they use is there.
    pub(super) fn check_canaries(
        &self,
        image: &mut Image<'_>,
        segment: &Segment,
    ) -> Result<(), Disagreement> {
        let (mut units, mut symbols) = (HashSet::new(), HashSet::new());
        for (id, canary) in &self.canaries {
            let wrong = || dangling("canary", &id.to_string());
            let (first, _) = canary.record(*id);
            let retained = canary.retained.iter().map(|unit| unit.name.as_str());
            let in_order =
                canary
                    .units
                    .iter()
                    .zip(first.first_unit..)
                    .all(|((_, unit), number)| {
                        (unit.number, unit.generation) == (number, *id) && number < self.next_unit
                    });
            let names = canary.symbols.keys().chain(&canary.hidden);
            let apart = canary.names().all(|name| units.insert(name))
                && names.into_iter().all(|name| symbols.insert(name));
            let is_one =
                canary.id == *id && !canary.units.is_empty() && retained.eq(canary.names());
            let hidden = canary
                .hidden
                .iter()
                .all(|name| self.symbols.contains_key(name));
            if !(is_one && in_order && apart && hidden && self.defines_its_own(canary)) {
                return Err(wrong());
            }
            if !self.own_candidates(image, segment, canary) {
                return Err(wrong());
            }
        }
        Ok(())
    }

    /// Whether the units of a canary define its symbols, and refer to what is there.
    fn defines_its_own(&self, canary: &Canary) -> bool {
        let mut defined = 0;
        canary.units.iter().all(|(name, unit)| {
            defined += unit.defines.len();
            let mut defines = unit.defines.iter();
            let mut uses = unit.uses.iter();
            let is_own = |symbol: &String| {
                let known = canary.symbols.get(symbol);
                known.is_some_and(|known| known.unit == *name)
            };
            let is_there = |symbol: &String| {
                self.symbols.contains_key(symbol)
                    || self.orphans.contains_key(symbol)
                    || canary.symbols.contains_key(symbol)
            };
            let mut imports = unit.imports.iter();
            defines.all(is_own)
                && uses.all(is_there)
                && imports.all(|key| self.imports.contains_key(key))
        }) && defined == canary.symbols.len()
    }

    /// Lets the cells of a canary's symbols belong to them, unless they are those of what they cover: whether all is as it
    /// should be.
    fn own_candidates(&self, image: &mut Image<'_>, segment: &Segment, canary: &Canary) -> bool {
        let seed = segment.header().hash_seed;
        canary.symbols.iter().all(|(name, symbol)| {
            let known = self.hashes.get(&hash_name(name.as_bytes(), seed)) == Some(name);
            let callable = symbol.call_cell.is_some() == (symbol.kind == Kind::Function);
            let covered = self.symbols.get(name);
            let covered = covered.filter(|covered| covered.shares_cells(symbol));
            let owned = match covered {
                Some(covered) => covered.address_cell == symbol.address_cell,
                None => {
                    let target = CellValue::new(symbol.target(segment.geometry()));
                    let call = symbol.call_cell.map(|cell| (cell, CellValue::UNBOUND));
                    let address = symbol.address_cell.map(|cell| (cell, target));
                    image.own_cells(call, address)
                }
            };
            known && callable && owned
        })
    }

    pub(super) fn compare_canaries(
        &self,
        image: &mut Image<'_>,
        root: &Root,
    ) -> Result<(), Disagreement> {
        let records = image.records(root.canaries, |canary: &CanaryRecord| {
            (canary.label_len, canary.label_len)
        })?;
        let is_known = |(record, label): &(CanaryRecord, String)| {
            let canary = self.canaries.get(&record.key);
            canary.is_some_and(|canary| canary.record(record.generation) == (*record, label))
        };
        let are_known = records.len() == self.canaries.len() && records.iter().all(is_known);
        agree("canaries", are_known)?;
        let lens = |symbol: &SymbolRecord| {
            let text_len = symbol.name_len.saturating_add(symbol.signature_len);
            (symbol.name_len, text_len)
        };
        let records = image.records(root.overlay, lens)?;
        let is_known = |(record, name): &(SymbolRecord, String)| {
            let canary = self.canary_of_symbol(name);
            let known = self.hashes.get(&record.key) == Some(name);
            known && canary.is_some_and(|canary| self.is_candidate(canary, name, record))
        };
        let canaries = self.canaries.values();
        let count: usize = canaries
            .map(|canary| canary.symbols.len() + canary.hidden.len())
            .sum();
        let are_known = records.len() == count && records.iter().all(is_known);
        agree("symbols of canaries", are_known)
    }

    /// Whether an overlay's record is that of the canary's symbol `name`, or hides it.
    fn is_candidate(&self, canary: &Canary, name: &str, record: &SymbolRecord) -> bool {
        let Some(symbol) = canary.symbols.get(name) else {
            let (first, _) = canary.record(canary.id);
            let cell = self.symbols.get(name).and_then(|symbol| symbol.call_cell);
            let found = (record.flags, record.unit, record.signature_len);
            return found == (SYMBOL_HIDDEN, first.first_unit, 0) && cell == some(record.call_cell);
        };
        let (flags, _) = symbol.reached(self.is_quarantined(name, symbol));
        let unit = canary.units.iter().find(|(unit, _)| *unit == symbol.unit);
        let number = unit.map(|(_, unit)| unit.number);
        let cells = (some(record.call_cell), some(record.address_cell));
        (record.place, record.kind, record.flags, Some(record.unit))
            == (symbol.place, symbol.kind.code(), flags, number)
            && cells == (symbol.call_cell, symbol.address_cell)
            && symbol.signature.len() == record.signature_len as usize
    }
}
