//! What the picture shows: areas, and what lies where in them.
//!
//! Invariant: what is said of the directory is of one generation. What the compiler process says of free and retired ranges may be of
//! a later one, if something was published in between; then nothing of it overlaps what the directory has, for what is published is
//! drawn last.

use std::collections::BTreeMap;

use jitcast::compiler::{RangeStatus, Status};
use jitcast::runtime::geometry::{Area, Region, SLOT_BYTES, STUB_BYTES};
use jitcast::runtime::observer::Look;
use jitcast::runtime::records::{StoredRegion, TextRecord, UNIT_KEPT, trailing_text};
use jitcast::runtime::{Corrupt, SegmentOffset, index};
use serde::Serialize;

use crate::cli::Failure;
use crate::cli::directory::Directory;

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Model {
    pub(super) generation: u64,
    pub(super) window_bytes: u64,
    /// Whether the compiler process has said what is free and what is retired.
    pub(super) asked: bool,
    pub(super) areas: Vec<AreaModel>,
    pub(super) units: Vec<UnitModel>,
    /// Who holds retired memory back.
    pub(super) holders: Vec<String>,
}

/// An area of the window.
#[derive(Debug, Serialize)]
pub(super) struct AreaModel {
    pub(super) name: &'static str,
    pub(super) start: u32,
    pub(super) len_bytes: u32,
    /// How much of it from the start on has ever had memory, bytes.
    pub(super) backed_bytes: u32,
    /// What is not free; `None`: nobody knows.
    pub(super) used_bytes: Option<u64>,
    pub(super) retired_bytes: u64,
    pub(super) largest_free_bytes: Option<u64>,
    /// What lies in it, in order.
    pub(super) items: Vec<Item>,
}

/// A range, as a row of numbers, since there are many.
#[derive(Clone, Debug, Serialize)]
#[serde(into = "(u32, u32, u8, i64, i64)")]
pub(super) struct Item {
    start: u32,
    len_bytes: u32,
    kind: Kind,
    /// The unit, by its place in the list; -1: none.
    unit: i64,
    /// Of what is retired, by which generation; else -1.
    generation: i64,
}

impl From<Item> for (u32, u32, u8, i64, i64) {
    fn from(item: Item) -> Self {
        let Item {
            start,
            len_bytes,
            kind,
            unit,
            generation,
        } = item;
        (start, len_bytes, kind as u8, unit, generation)
    }
}

impl Item {
    fn is_followed_by(&self, next: &Self) -> bool {
        let whose = |item: &Self| (item.kind, item.unit, item.generation);
        whose(self) == whose(next) && self.start + self.len_bytes == next.start
    }
}

/// What a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Of a published unit.
    Unit = 0,
    /// Of a canary's unit.
    Canary = 1,
    /// Of a unit that was replaced or removed, and is kept.
    Kept = 2,
    /// Cells and stubs of host symbols.
    Host = 3,
    /// Retired, and held back by a thread.
    Held = 4,
    /// Retired, and reused when memory is needed.
    Retired = 5,
    /// The directory, tables, and what nobody says more of.
    Tables = 6,
    /// Whatever is to be published next may lie there.
    Free = 7,
}

/// A unit.
#[derive(Debug, Serialize)]
pub(super) struct UnitModel {
    pub(super) name: String,
    pub(super) generation: u64,
    pub(super) kind: &'static str,
    pub(super) text_bytes: u32,
    pub(super) read_only_bytes: u32,
    pub(super) private_bytes: u32,
    pub(super) shared_bytes: u32,
    pub(super) cells: u32,
}

impl UnitModel {
    pub(super) fn len_bytes(&self) -> u64 {
        let parts = [
            self.text_bytes,
            self.read_only_bytes,
            self.private_bytes,
            self.shared_bytes,
        ];
        parts.iter().map(|part| u64::from(*part)).sum()
    }
}

/// Ranges by area, then by where they begin.
type Ranges = BTreeMap<(usize, u32), Item>;

impl Model {
    pub(super) fn new(look: &Look<'_>, status: Option<&Status>) -> Result<Self, Failure> {
        let directory = Directory::read(look)?;
        let (mut ranges, mut units) = (Ranges::new(), Vec::new());
        let mut numbers = BTreeMap::new();
        add_units(look, &directory, &mut ranges, &mut units, &mut numbers)?;
        add_kept(look, &mut ranges, &mut units, &mut numbers)?;
        add_cells(look, &directory, &mut ranges, &mut units, &numbers);
        if let Some(status) = status {
            let held_from = status.stragglers.iter().filter(|it| !it.older);
            let oldest = held_from.map(|it| it.generation).min();
            status
                .layout
                .iter()
                .for_each(|range| add_range(&mut ranges, range, oldest));
        }
        let areas = Area::ALL.into_iter();
        let areas = areas.map(|area| area_model(look, area, &ranges, status));
        let holders = status.into_iter().flat_map(|status| &status.stragglers);
        Ok(Self {
            generation: look.root.generation,
            window_bytes: look.observer().geometry().window().len_bytes.into(),
            asked: status.is_some(),
            areas: areas.collect(),
            units,
            holders: holders.map(ToString::to_string).collect(),
        })
    }
}

fn insert(ranges: &mut Ranges, area: Area, region: Region, kind: Kind, unit: i64) {
    if region.len_bytes > 0 {
        let item = Item {
            start: region.start,
            len_bytes: region.len_bytes,
            kind,
            unit,
            generation: -1,
        };
        ranges.entry((area.index(), region.start)).or_insert(item);
    }
}

fn add_units(
    look: &Look<'_>,
    directory: &Directory,
    ranges: &mut Ranges,
    units: &mut Vec<UnitModel>,
    numbers: &mut BTreeMap<u32, i64>,
) -> Result<(), Failure> {
    use jitcast::runtime::records::CanaryRecord;
    let view = look.view();
    let mut canaries: Vec<CanaryRecord> = Vec::new();
    index::walk(view, look.root.canaries, 0, &mut |at| {
        canaries.push(view.read(at)?);
        Ok::<_, Corrupt>(())
    })?;
    for (number, unit) in &directory.units {
        let record = &unit.record;
        let is_canary = canaries.iter().any(|canary| canary.has_unit(*number));
        let (kind, named) = if is_canary {
            (Kind::Canary, "canary")
        } else {
            (Kind::Unit, "published")
        };
        let index = units.len() as i64;
        numbers.insert(*number, index);
        let parts = [
            (Area::Text, record.text),
            (Area::ReadOnly, record.read_only),
            (Area::Private, record.private),
            (Area::SharedData, record.shared),
            (Area::Control, record.template),
            (Area::Control, record.patches),
            (Area::Control, record.needs),
            (Area::Control, record.init),
            (Area::Control, record.fini),
            (Area::Control, record.shared_template),
        ];
        for (area, part) in parts {
            if let Some(region) = part.region() {
                insert(ranges, area, region, kind, index);
            }
        }
        let bytes = |part: StoredRegion| part.len_bytes;
        let keeps = record.flags & UNIT_KEPT != 0 && !is_canary;
        units.push(UnitModel {
            name: unit.name.clone(),
            generation: record.generation,
            kind: if keeps {
                "published, kept when replaced"
            } else {
                named
            },
            text_bytes: bytes(record.text),
            read_only_bytes: bytes(record.read_only),
            private_bytes: bytes(record.private),
            shared_bytes: bytes(record.shared),
            cells: 0,
        });
    }
    Ok(())
}

/// Texts of units that are published no longer, and their tables.
fn add_kept(
    look: &Look<'_>,
    ranges: &mut Ranges,
    units: &mut Vec<UnitModel>,
    numbers: &mut BTreeMap<u32, i64>,
) -> Result<(), Failure> {
    let view = look.view();
    index::walk(view, look.root.texts, 0, &mut |at| {
        let record: TextRecord = view.read(at)?;
        let known = numbers.get(&record.unit).copied();
        let index = known.unwrap_or(units.len() as i64);
        let kind = match known {
            None => Kind::Kept,
            Some(_) => Kind::Unit,
        };
        if known.is_none() {
            let name = trailing_text::<TextRecord>(view, at, 0, record.name_len)?;
            numbers.insert(record.unit, index);
            units.push(UnitModel {
                name,
                generation: record.generation,
                kind: "kept",
                text_bytes: record.text.len_bytes,
                read_only_bytes: 0,
                private_bytes: 0,
                shared_bytes: 0,
                cells: 0,
            });
        }
        let parts = [
            (Area::Text, record.text),
            (Area::ReadOnly, record.eh_frame),
            (Area::Control, record.frames),
            (Area::Control, record.names),
        ];
        for (area, part) in parts {
            // Whatever of it lies in the unit's own data is there already.
            if let Some(region) = part.region() {
                insert(ranges, area, region, kind, index);
            }
        }
        Ok::<_, Corrupt>(())
    })?;
    Ok(())
}

/// Call cells with their stubs, and cells of addresses.
fn add_cells(
    look: &Look<'_>,
    directory: &Directory,
    ranges: &mut Ranges,
    units: &mut [UnitModel],
    numbers: &BTreeMap<u32, i64>,
) {
    let geometry = *look.observer().geometry();
    let mut add = |call: SegmentOffset, address: SegmentOffset, kind: Kind, unit: i64| {
        let mut cells = 0;
        for (area, cell) in [(Area::CallCells, call), (Area::AddressCells, address)] {
            if cell.is_none() {
                continue;
            }
            let Some(region) = Region::new(cell.get(), SLOT_BYTES) else {
                continue;
            };
            insert(ranges, area, region, kind, unit);
            cells += 1;
            if let Some(stub) = geometry.stub_of(cell).filter(|_| area == Area::CallCells)
                && let Some(region) = Region::new(stub.get(), STUB_BYTES)
            {
                insert(ranges, Area::Stubs, region, kind, unit);
            }
        }
        cells
    };
    for symbol in &directory.symbols {
        let unit = numbers.get(&symbol.record.unit).copied().unwrap_or(-1);
        let kind = if symbol.canary.is_some() {
            Kind::Canary
        } else {
            Kind::Unit
        };
        let cells = add(
            symbol.record.call_cell,
            symbol.record.address_cell,
            kind,
            unit,
        );
        if let Some(unit) = usize::try_from(unit)
            .ok()
            .and_then(|unit| units.get_mut(unit))
        {
            unit.cells += cells;
        }
    }
    for import in directory.imports.values() {
        add(
            import.record.call_cell,
            import.record.address_cell,
            Kind::Host,
            -1,
        );
    }
}

/// A range that the compiler process has told of. A thread that is inside at `oldest` holds back what later generations retired.
fn add_range(ranges: &mut Ranges, range: &RangeStatus, oldest: Option<u64>) {
    let Some(area) = Area::ALL.into_iter().find(|area| area.name() == range.area) else {
        return;
    };
    let kind = match range.retired_by {
        None => Kind::Free,
        Some(by) if oldest.is_some_and(|oldest| oldest < by) => Kind::Held,
        Some(_) => Kind::Retired,
    };
    let item = Item {
        start: range.offset,
        len_bytes: range.len_bytes,
        kind,
        unit: -1,
        generation: range.retired_by.map_or(-1, u64::cast_signed),
    };
    ranges.entry((area.index(), range.offset)).or_insert(item);
}

fn area_model(look: &Look<'_>, area: Area, ranges: &Ranges, status: Option<&Status>) -> AreaModel {
    // What comes before is the same in every segment: the header and the ring, selectors, the first cell.
    let region = look.observer().geometry().allocated(area);
    let backed = look.extent(area).clamp(region.start, region.end()) - region.start;
    let found = ranges.range((area.index(), 0)..(area.index() + 1, 0));
    let mut items: Vec<Item> = Vec::new();
    let mut at = region.start;
    // Stubs are as their cells: what is not somebody's is free. Of the others, what the compiler process does not call free is tables.
    let between = if area == Area::Stubs {
        Kind::Free
    } else {
        Kind::Tables
    };
    let fill = |items: &mut Vec<Item>, from: u32, to: u32| {
        let to = to.min(region.start + backed);
        if to > from && status.is_some() {
            let item = Item {
                start: from,
                len_bytes: to - from,
                kind: between,
                unit: -1,
                generation: -1,
            };
            items.push(item);
        }
    };
    for item in found.map(|(_, item)| item) {
        let Some(end) = item
            .start
            .checked_add(item.len_bytes)
            .filter(|end| *end <= region.end())
        else {
            continue;
        };
        if item.start < at {
            // Inside what is drawn already, or a picture of another moment.
            continue;
        }
        fill(&mut items, at, item.start);
        match items.last_mut() {
            // What is one thing's, one after the other, is one range.
            Some(last) if last.is_followed_by(item) => last.len_bytes += item.len_bytes,
            _ => items.push(item.clone()),
        }
        at = end;
    }
    fill(&mut items, at, region.end());
    let retired = items
        .iter()
        .filter(|item| [Kind::Held, Kind::Retired].contains(&item.kind));
    let told = status.and_then(|status| status.areas.iter().find(|it| it.name == area.name()));
    AreaModel {
        name: area.name(),
        start: region.start,
        len_bytes: region.len_bytes,
        backed_bytes: backed,
        used_bytes: told.map(|told| told.used_bytes),
        retired_bytes: retired.map(|item| u64::from(item.len_bytes)).sum(),
        largest_free_bytes: told.map(|told| told.largest_free_bytes),
        items,
    }
}
