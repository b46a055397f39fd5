//! Whether a catalog that was read back says what the directory says, and neither names what is not there.

use std::collections::HashMap;

use jitcast_runtime::directory::read_page;
use jitcast_runtime::geometry::{Area, Region, SLOT_BYTES};
use jitcast_runtime::heap::Heap;
use jitcast_runtime::memory::{Memory, SharedRecord};
use jitcast_runtime::records::{
    CELL_PAGE_BYTES, ImportRecord, Root, StoredRegion, SymbolRecord, TextRecord, UnitRecord,
    hash_name, trailing_text,
};
use jitcast_runtime::{Corrupt, SegmentOffset, index};

use super::Catalog;

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

/// The memory that is to agree.
struct Image<'a> {
    memory: &'a Memory,
    heap: &'a Heap,
    /// What the directory reaches: each range belongs to one thing only.
    owned: Vec<(Area, Region)>,
}

impl Image<'_> {
    fn own(&mut self, area: Area, start: u32, len_bytes: u32) {
        if len_bytes > 0 {
            self.owned.push((area, Region { start, len_bytes }));
        }
    }

    fn own_tables(&mut self, tables: &[StoredRegion]) {
        for table in tables {
            self.own(Area::Control, table.start, table.len_bytes);
        }
    }

    fn holds_cell(&self, area: Area, cell: Option<SegmentOffset>) -> bool {
        cell.is_none_or(|cell| {
            let region = Region {
                start: cell.get(),
                len_bytes: SLOT_BYTES,
            };
            cell.get().is_multiple_of(SLOT_BYTES) && self.heap.is_used(area, region)
        })
    }

    /// The records of an index, each with its name; `lens` says how long the name is, and all the text.
    fn records<R: SharedRecord>(
        &mut self,
        root: SegmentOffset,
        lens: impl Fn(&R) -> (u32, u32),
    ) -> Result<Vec<(R, String)>, Disagreement> {
        self.own_nodes(root)?;
        let (mut found, mut owned) = (Vec::new(), Vec::new());
        index::walk(self.memory, root, 0, &mut |at| {
            let record: R = self.memory.read(at)?;
            let (name_len, text_len) = lens(&record);
            let name = trailing_text::<R>(self.memory, at, 0, name_len)?;
            owned.push((at.get(), (size_of::<R>() as u32).saturating_add(text_len)));
            found.push((record, name));
            Ok::<_, Disagreement>(())
        })?;
        for (start, len_bytes) in owned {
            self.own(Area::Control, start, len_bytes);
        }
        Ok(found)
    }

    fn own_nodes(&mut self, root: SegmentOffset) -> Result<(), Disagreement> {
        let nodes = index::nodes(self.memory, root)?;
        self.owned
            .extend(nodes.into_iter().map(|node| (Area::Control, node)));
        Ok(())
    }

    fn own_cells(&mut self, root: SegmentOffset) -> Result<(), Disagreement> {
        self.own_nodes(root)?;
        let (memory, mut owned) = (self.memory, Vec::new());
        index::walk(memory, root, 0, &mut |at| {
            owned.push(at.get());
            read_page(memory, at).map(drop).map_err(Disagreement::from)
        })?;
        for start in owned {
            self.own(Area::Control, start, CELL_PAGE_BYTES);
        }
        Ok(())
    }

    /// Whether what is owned is in use, and nothing of it twice.
    fn is_consistent(&mut self) -> bool {
        self.owned.sort_unstable();
        let in_use = |(area, region): &(Area, Region)| self.heap.is_used(*area, *region);
        let apart =
            |pair: &[(Area, Region)]| pair[0].0 != pair[1].0 || pair[0].1.end() <= pair[1].1.start;
        self.owned.iter().all(in_use) && self.owned.windows(2).all(apart)
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
        memory: &Memory,
        heap: &Heap,
        hash_seed: u64,
    ) -> Result<(), Disagreement> {
        let mut image = Image {
            memory,
            heap,
            owned: Vec::new(),
        };
        let root = &memory.read(root_at)?;
        image.own(Area::Control, root_at.get(), size_of::<Root>() as u32);
        self.check_units()?;
        self.check_symbols(&image, hash_seed)?;
        self.check_imports(&image)?;
        self.compare_units(&mut image, root)?;
        self.compare_symbols(&mut image, root)?;
        self.compare_imports(&mut image, root)?;
        let lens = |text: &TextRecord| (text.name_len, text.name_len);
        for (text, _) in image.records(root.texts, lens)? {
            image.own_tables(&[text.frames, text.names]);
        }
        image.own_cells(root.cells)?;
        if !image.is_consistent() {
            return Err(Disagreement::Directory { what: "places" });
        }
        Ok(())
    }

    fn check_units(&self) -> Result<(), Disagreement> {
        for (name, unit) in &self.units {
            let has_symbols = unit
                .defines
                .iter()
                .all(|name| self.symbols.contains_key(name));
            let has_imports = unit
                .imports
                .iter()
                .all(|key| self.imports.contains_key(key));
            if !(has_symbols && has_imports) || unit.number >= self.next_unit {
                return Err(dangling("unit", name));
            }
        }
        Ok(())
    }

    fn check_symbols(&self, image: &Image<'_>, hash_seed: u64) -> Result<(), Disagreement> {
        for (name, symbol) in &self.symbols {
            let hash = hash_name(name.as_bytes(), hash_seed);
            let has_cells = image.holds_cell(Area::CallCells, symbol.call_cell)
                && image.holds_cell(Area::AddressCells, symbol.address_cell);
            if self.hashes.get(&hash) != Some(name) || !has_cells {
                return Err(dangling("symbol", name));
            }
        }
        Ok(())
    }

    fn check_imports(&self, image: &Image<'_>) -> Result<(), Disagreement> {
        let mut users = HashMap::new();
        for key in self.units.values().flat_map(|unit| &unit.imports) {
            *users.entry(key).or_insert(0) += 1;
        }
        for (key, import) in &self.imports {
            let has_cells = image.holds_cell(Area::CallCells, import.call_cell)
                && image.holds_cell(Area::AddressCells, import.address_cell);
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
                ..
            } = record;
            image.own(Area::Text, text.start, text.len_bytes);
            image.own(Area::ReadOnly, read_only.start, read_only.len_bytes);
            image.own(Area::Private, private.start, private.len_bytes);
            image.own_tables(&[
                record.template,
                record.patches,
                record.needs,
                record.init,
                record.fini,
            ]);
        }
        let is_known = |(record, name): &(UnitRecord, String)| {
            let unit = self.units.get(name);
            unit.is_some_and(|unit| {
                u64::from(unit.number) == record.key
                    && (unit.text, unit.read_only, unit.private)
                        == (record.text, record.read_only, record.private)
            })
        };
        let are_known = records.iter().all(is_known);
        agree("units", records.len(), self.units.len(), are_known)
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
                symbol.place == record.place
                    && cells == (some(record.call_cell), some(record.address_cell))
                    && self.hashes.get(&record.key) == Some(name)
                    && symbol.signature.len() == record.signature_len as usize
            })
        };
        agree(
            "symbols",
            records.len(),
            self.symbols.len(),
            records.iter().all(is_known),
        )
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
                    && import.trap == record.trap
                    && cells == (some(record.call_cell), some(record.address_cell))
            })
        };
        agree(
            "host symbols",
            records.len(),
            self.imports.len(),
            records.iter().all(is_known),
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

fn agree(
    what: &'static str,
    records: usize,
    entries: usize,
    are_known: bool,
) -> Result<(), Disagreement> {
    if records != entries || !are_known {
        return Err(Disagreement::Directory { what });
    }
    Ok(())
}
