//! Whether a catalog that was read back says what the directory says, and neither names what is not there.

mod canaries;
mod image;

use std::collections::{HashMap, HashSet};

use jitcast_runtime::geometry::{Area, SLOT_BYTES};
use jitcast_runtime::heap::Heap;
use jitcast_runtime::records::{
    AskedFunction, AskedImport, AskedRecord, CellValue, ImportRecord, Root, SymbolRecord,
    TRAP_CELL, TextRecord, UNIT_KEPT, UnitRecord, hash_name, walk_texts,
};
use jitcast_runtime::segment::Segment;
use jitcast_runtime::{Corrupt, Geometry, PatchTarget, SegmentOffset};

use super::{Catalog, ImportKind, Kind, Symbol, Variable};
use image::Image;

/// What does not agree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Disagreement {
    #[error("the catalog's {what} `{name}` names what is not there")]
    Dangling { what: &'static str, name: String },
    #[error("the directory's {what} are not the catalog's")]
    Directory { what: &'static str },
    #[error("{} at {}", .0.what, .0.at)]
    Corrupt(Corrupt),
}

impl From<Corrupt> for Disagreement {
    fn from(corrupt: Corrupt) -> Self {
        Self::Corrupt(corrupt)
    }
}

impl Catalog {
    /// Checks it against the directory under the root at `root_at`.
    ///
    /// # Errors
    /// [`Disagreement`].
    pub(crate) fn check(
        &self,
        root_at: SegmentOffset,
        segment: &Segment,
        heap: &Heap,
    ) -> Result<(), Disagreement> {
        let mut image = Image::new(segment.memory(), heap);
        let root: &Root = &image.memory.read(root_at)?;
        image.own(Area::Control, root_at.get(), size_of::<Root>() as u32);
        image.own(Area::CallCells, TRAP_CELL.get(), SLOT_BYTES);
        image.read_cells(root.cells)?;
        self.check_units()?;
        self.check_symbols(&mut image, segment)?;
        self.check_orphans(&mut image, segment.geometry())?;
        self.check_imports(&mut image)?;
        self.compare_units(&mut image, root)?;
        self.compare_asked(&mut image, root)?;
        self.compare_symbols(&mut image, root)?;
        self.compare_imports(&mut image, root)?;
        self.check_canaries(&mut image, segment)?;
        self.compare_canaries(&mut image, root)?;
        let lens = |text: &TextRecord| (text.name_len, text.name_len);
        for (text, _) in image.records(root.texts, lens)? {
            image.own_tables(&[text.frames, text.names]);
        }
        if !image.is_consistent() {
            return Err(Disagreement::Directory { what: "places" });
        }
        Ok(())
    }

    /// Each unit defines symbols of its own, and uses what is published or was removed under it.
    fn check_units(&self) -> Result<(), Disagreement> {
        let mut defined = HashSet::new();
        for (name, unit) in &self.units {
            let mut defines = unit.defines.iter();
            let has_symbols = defines.all(|symbol| {
                let known = self.symbols.get(symbol);
                known.is_some_and(|known| known.unit == *name) && defined.insert(symbol)
            });
            let mut uses = unit.uses.iter();
            let has_used =
                uses.all(|used| self.symbols.contains_key(used) || self.orphans.contains_key(used));
            let mut imports = unit.imports.iter();
            let has_imports = imports.all(|key| self.imports.contains_key(key));
            if !(has_symbols && has_used && has_imports) || unit.number >= self.next_unit {
                return Err(dangling("unit", name));
            }
        }
        let all = defined.len() == self.symbols.len();
        agree("units' symbols", all)
    }

    fn check_symbols(&self, image: &mut Image<'_>, segment: &Segment) -> Result<(), Disagreement> {
        let (geometry, seed) = (segment.geometry(), segment.header().hash_seed);
        for (name, symbol) in &self.symbols {
            let hash = hash_name(name.as_bytes(), seed);
            let (_, value) = symbol.reached(self.is_quarantined(name, symbol));
            let has_variable = symbol
                .variable
                .is_none_or(|variable| self.has_variable(image, geometry, symbol, variable));
            let is_callable = symbol.call_cell.is_some() == (symbol.kind == Kind::Function);
            if self.hashes.get(&hash) != Some(name)
                || !(is_callable && has_variable)
                || !own_symbol(image, geometry, symbol, value)
            {
                return Err(dangling("symbol", name));
            }
        }
        let canaries = self.canaries.values();
        let candidates = canaries.flat_map(|canary| canary.symbols.keys());
        let own = candidates.filter(|name| !self.symbols.contains_key(*name));
        let names = self.symbols.len() + own.count();
        agree("names by hash", self.hashes.len() == names)
    }

    /// Whether a variable lies in data, and what it starts with in data of the same kind.
    fn has_variable(
        &self,
        image: &Image<'_>,
        geometry: &Geometry,
        symbol: &Symbol,
        variable: Variable,
    ) -> bool {
        let lies_in = |area| {
            let region = geometry.region(area);
            region.contains(symbol.place, variable.size)
                && region.contains(variable.fresh, variable.size)
                && image.is_used(area, symbol.place)
        };
        variable.since < self.next_unit && (lies_in(Area::Private) || lies_in(Area::SharedData))
    }

    /// What was removed under its users is called by them, and by no name.
    fn check_orphans(
        &self,
        image: &mut Image<'_>,
        geometry: &Geometry,
    ) -> Result<(), Disagreement> {
        let users = self.users(&HashSet::new(), None);
        for (name, orphan) in &self.orphans {
            let is_orphan = orphan.kind == Kind::Function
                && orphan.call_cell.is_some()
                && !self.symbols.contains_key(name)
                && users.contains_key(name.as_str());
            if !is_orphan || !own_symbol(image, geometry, orphan, CellValue::UNBOUND) {
                return Err(dangling("removed function", name));
            }
        }
        Ok(())
    }

    fn check_imports(&self, image: &mut Image<'_>) -> Result<(), Disagreement> {
        let mut users = HashMap::new();
        let candidates = self.canaries.values().flat_map(|canary| &canary.units);
        let candidates = candidates.map(|(_, unit)| unit);
        let units = self.units.values().chain(candidates);
        for key in units.flat_map(|unit| &unit.imports) {
            *users.entry(key).or_insert(0) += 1;
        }
        for (key, import) in &self.imports {
            let value = CellValue::new(PatchTarget::Host(import.id));
            let cell = |cell: Option<SegmentOffset>| cell.map(|cell| (cell, value));
            let has_cells = image.own_cells(cell(import.call_cell), cell(import.address_cell));
            let users = users.get(key).copied().unwrap_or(0);
            if import.users != users || import.id.get() >= self.next_import || !has_cells {
                return Err(dangling("host symbol", &key.0));
            }
        }
        Ok(())
    }

    fn compare_units(&self, image: &mut Image<'_>, root: &Root) -> Result<(), Disagreement> {
        let records = image.records(root.units, |unit: &UnitRecord| {
            (unit.name_len, unit.name_len)
        })?;
        for (record, _) in &records {
            let UnitRecord {
                text,
                read_only,
                private,
                shared,
                ..
            } = record;
            image.own(Area::Text, text.start, text.len_bytes);
            image.own(Area::ReadOnly, read_only.start, read_only.len_bytes);
            image.own(Area::Private, private.start, private.len_bytes);
            image.own(Area::SharedData, shared.start, shared.len_bytes);
            image.own_tables(&[
                record.template,
                record.shared_template,
                record.patches,
                record.needs,
                record.init,
                record.fini,
            ]);
        }
        let candidates = self.canaries.values().flat_map(|canary| &canary.units);
        let candidates: HashMap<_, _> = candidates
            .map(|(name, unit)| (u64::from(unit.number), (name, unit)))
            .collect();
        let is_known = |(record, name): &(UnitRecord, String)| {
            let candidate = candidates.get(&record.key);
            let candidate = candidate.filter(|(known, _)| *known == name);
            let unit = candidate.map(|(_, unit)| *unit);
            unit.or_else(|| self.units.get(name)).is_some_and(|unit| {
                (unit.number.into(), unit.generation) == (record.key, record.generation)
                    && unit.keeps == (record.flags & UNIT_KEPT != 0)
                    && (unit.text, unit.read_only, unit.private)
                        == (record.text, record.read_only, record.private)
                    && (unit.shared, unit.shared_template)
                        == (record.shared, record.shared_template)
            })
        };
        let are_known = records.iter().all(is_known);
        let count = self.units.len() + candidates.len();
        agree("units", records.len() == count && are_known)
    }

    fn compare_asked(&self, image: &mut Image<'_>, root: &Root) -> Result<(), Disagreement> {
        let records = image.records(root.asked, |unit: &AskedRecord| {
            (unit.name_len, unit.name_len)
        })?;
        for (unit, _) in &records {
            image.own(Area::Text, unit.text.start, unit.text.len_bytes);
            image.own(
                Area::ReadOnly,
                unit.read_only.start,
                unit.read_only.len_bytes,
            );
            image.own(Area::Private, unit.private.start, unit.private.len_bytes);
            image.own_tables(&[
                unit.template,
                unit.patches,
                unit.needs,
                unit.imports,
                unit.functions,
            ]);
            let readable = |_| Ok::<_, Disagreement>(());
            walk_texts(
                image.memory,
                unit.functions,
                &mut |function: AskedFunction, _| readable(function.place),
            )?;
            walk_texts(image.memory, unit.imports, &mut |import: AskedImport, _| {
                agree(
                    "host symbols of asked-for units",
                    import.number < self.next_import,
                )
            })?;
        }
        let is_known = |(record, name): &(AskedRecord, String)| {
            let number = u32::try_from(record.key).ok();
            let unit = number.and_then(|number| self.asked.get(&number));
            unit.is_some_and(|unit| {
                let mut uses = unit.uses.iter();
                (u64::from(unit.number), unit.generation, &unit.name)
                    == (record.key, record.generation, name)
                    && unit.number < self.next_unit
                    && uses.all(|used| self.symbols.contains_key(used))
                    && (unit.text, unit.read_only, unit.private)
                        == (record.text, record.read_only, record.private)
            })
        };
        let are_known = records.iter().all(is_known);
        agree(
            "asked-for units",
            records.len() == self.asked.len() && are_known,
        )
    }

    fn compare_symbols(&self, image: &mut Image<'_>, root: &Root) -> Result<(), Disagreement> {
        let lens = |symbol: &SymbolRecord| {
            let text_len = symbol.name_len.saturating_add(symbol.signature_len);
            (symbol.name_len, text_len)
        };
        let records = image.records(root.symbols, lens)?;
        let is_known = |(record, name): &(SymbolRecord, String)| {
            let symbol = self.symbols.get(name);
            symbol.is_some_and(|symbol| {
                let cells = (symbol.call_cell, symbol.address_cell);
                let (flags, _) = symbol.reached(self.is_quarantined(name, symbol));
                let unit = self.units.get(&symbol.unit).map(|unit| unit.number);
                (symbol.place, symbol.kind.code(), flags, unit)
                    == (record.place, record.kind, record.flags, Some(record.unit))
                    && cells == (some(record.call_cell), some(record.address_cell))
                    && self.hashes.get(&record.key) == Some(name)
                    && symbol.signature.len() == record.signature_len as usize
            })
        };
        let are_known = records.iter().all(is_known);
        agree("symbols", records.len() == self.symbols.len() && are_known)
    }

    fn compare_imports(&self, image: &mut Image<'_>, root: &Root) -> Result<(), Disagreement> {
        let records = image.records(root.imports, |import: &ImportRecord| {
            (import.name_len, import.name_len)
        })?;
        let by_id = self.imports.iter();
        let by_id: HashMap<u64, _> = by_id
            .map(|(key, import)| (import.id.get().into(), (key, import)))
            .collect();
        let is_known = |(record, name): &(ImportRecord, String)| {
            by_id.get(&record.key).is_some_and(|(key, import)| {
                let cells = (import.call_cell, import.address_cell);
                key.0 == *name
                    && (key.1 == ImportKind::Weak) == (record.weak != 0)
                    && (import.trap, import.fallback) == (record.trap, record.fallback)
                    && cells == (some(record.call_cell), some(record.address_cell))
            })
        };
        let are_known = records.iter().all(is_known);
        agree(
            "host symbols",
            records.len() == self.imports.len() && are_known,
        )
    }
}

fn some(cell: SegmentOffset) -> Option<SegmentOffset> {
    (!cell.is_none()).then_some(cell)
}

fn dangling(what: &'static str, name: &str) -> Disagreement {
    Disagreement::Dangling {
        what,
        name: name.to_owned(),
    }
}

fn agree(what: &'static str, do_agree: bool) -> Result<(), Disagreement> {
    if do_agree {
        return Ok(());
    }
    Err(Disagreement::Directory { what })
}

/// Lets the cells of a symbol belong to it: whether its call cell holds `value`, and the other one its address.
fn own_symbol(
    image: &mut Image<'_>,
    geometry: &Geometry,
    symbol: &Symbol,
    value: CellValue,
) -> bool {
    let address = CellValue::new(symbol.target(geometry));
    let call = symbol.call_cell.map(|cell| (cell, value));
    let address = symbol.address_cell.map(|cell| (cell, address));
    image.own_cells(call, address)
}
