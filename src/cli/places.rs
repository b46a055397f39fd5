//! What lies at places of the window, and what cells lead to, by name.

use std::collections::HashMap;

use jitcast::runtime::frames::find_name;
use jitcast::runtime::geometry::{Area, SLOT_BYTES, STUB_BYTES};
use jitcast::runtime::observer::Look;
use jitcast::runtime::records::{StoredRegion, TextRecord, trailing_text};
use jitcast::runtime::{Corrupt, SegmentOffset, index};
use serde::Serialize;

use super::directory::{Directory, Symbol};

/// What a place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum What {
    /// Code of a unit.
    Code,
    /// Code that reports a host symbol as missing.
    Trap,
    /// The canonical address of a function: it jumps through the call cell.
    Stub,
    /// What calls go through.
    CallCell,
    /// What holds an address.
    AddressCell,
    /// Data of each worker's own.
    PrivateData,
    /// Constants.
    ReadOnlyData,
    /// Data that all workers write.
    SharedData,
}

/// What lies at a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Target {
    /// The place: an offset in the window, bytes.
    pub(super) offset: u32,
    pub(super) what: What,
    /// What it is called, or, of a stub or a cell, what it leads to; `None`: nothing that is published.
    pub(super) name: Option<String>,
    /// How far behind the beginning of that it lies, bytes.
    pub(super) distance: u32,
    /// Whether the name is a host symbol's.
    pub(super) host: bool,
    /// The unit that defines it.
    pub(super) unit: Option<String>,
    /// Its signature, where that is known.
    pub(super) signature: Option<String>,
}

impl Target {
    fn new(offset: SegmentOffset, what: What) -> Self {
        Self {
            offset: offset.get(),
            what,
            name: None,
            distance: 0,
            host: false,
            unit: None,
            signature: None,
        }
    }

    /// What an operand is called that refers to its beginning.
    pub(super) fn label(&self) -> String {
        let name = self.name.as_deref();
        let suffix = match self.what {
            What::CallCell => "@call",
            What::AddressCell => "@addr",
            What::Trap => "@trap",
            What::Code | What::Stub => "",
            What::PrivateData | What::ReadOnlyData | What::SharedData => "",
        };
        let start = self.offset - self.distance;
        name.map_or_else(|| format!("w+{start:#x}"), |name| format!("{name}{suffix}"))
    }

    /// The same, in words.
    pub(super) fn described(&self) -> String {
        let (what, leads_on) = match self.what {
            What::Code => ("code", false),
            What::Trap => ("trap", true),
            What::Stub => ("stub", true),
            What::CallCell => ("call cell", true),
            What::AddressCell => ("address cell", true),
            What::PrivateData => ("private data", false),
            What::ReadOnlyData => ("read-only data", false),
            What::SharedData => ("shared data", false),
        };
        let unit = self.unit.as_deref().map(|unit| format!("unit {unit}"));
        match (&self.name, unit) {
            (Some(_), Some(unit)) if !leads_on => format!("{what} of {unit}"),
            (Some(name), unit) => {
                let signature = self.signature.as_deref().unwrap_or_default();
                let host = if self.host { "the host's " } else { "" };
                let unit = unit.map_or_else(String::new, |unit| format!(", {unit}"));
                format!("{what} of {host}{name}{signature}{unit}")
            }
            (None, _) => format!("{what} that leads to nothing published"),
        }
    }
}

/// Names of places.
#[derive(Debug)]
pub(super) struct Places<'a> {
    look: &'a Look<'a>,
    directory: &'a Directory,
    /// What the cells lead to, as if they were there.
    cells: HashMap<u32, Target>,
}

impl<'a> Places<'a> {
    pub(super) fn new(look: &'a Look<'a>, directory: &'a Directory) -> Self {
        let mut cells = HashMap::new();
        let mut add = |cell: SegmentOffset, target: Target| {
            if !cell.is_none() {
                // What is published for all comes first.
                cells.entry(cell.get()).or_insert(Target {
                    offset: cell.get(),
                    ..target
                });
            }
        };
        for symbol in &directory.symbols {
            let unit = directory.units.get(&symbol.record.unit);
            let target = Target {
                name: Some(symbol.name.clone()),
                unit: unit.map(|unit| unit.name.clone()),
                signature: symbol.signature.clone(),
                ..Target::new(SegmentOffset::NONE, What::CallCell)
            };
            if symbol.record.kind == jitcast::runtime::records::SYMBOL_FUNCTION {
                add(symbol.record.call_cell, target.clone());
            }
            let what = What::AddressCell;
            add(symbol.record.address_cell, Target { what, ..target });
        }
        for import in directory.imports.values() {
            let target = Target {
                name: Some(import.name.clone()),
                host: true,
                signature: import.signature.clone(),
                ..Target::new(SegmentOffset::NONE, What::CallCell)
            };
            add(import.record.call_cell, target.clone());
            let what = What::AddressCell;
            add(import.record.address_cell, Target { what, ..target });
        }
        Self {
            look,
            directory,
            cells,
        }
    }

    /// What lies at `place`; `None`: nothing that code refers to.
    pub(super) fn at(&self, place: SegmentOffset) -> Result<Option<Target>, Corrupt> {
        let geometry = self.look.observer().geometry();
        let around = |area: &Area| geometry.region(*area).contains(place, 1);
        let Some(area) = Area::ALL.into_iter().find(around) else {
            return Ok(None);
        };
        Ok(match area {
            Area::CallCells => Some(self.cell(place, What::CallCell)),
            Area::AddressCells => Some(self.cell(place, What::AddressCell)),
            Area::Stubs => {
                let distance = place.get() - geometry.region(area).start;
                let index = distance / STUB_BYTES;
                let cell = geometry.region(Area::CallCells).start + index * SLOT_BYTES;
                let cell = self.cell(SegmentOffset::new(cell), What::CallCell);
                Some(Target {
                    offset: place.get(),
                    what: What::Stub,
                    distance: distance % STUB_BYTES,
                    ..cell
                })
            }
            Area::Text => self.code(place)?,
            Area::Private => self.data(place, What::PrivateData),
            Area::ReadOnly => self.data(place, What::ReadOnlyData),
            Area::SharedData => self.data(place, What::SharedData),
            Area::Control => None,
        })
    }

    /// The unit that defines a symbol, and the generation that published it.
    pub(super) fn unit(&self, symbol: &Symbol) -> (String, u64) {
        let unit = self.directory.units.get(&symbol.record.unit);
        let named = unit.map(|unit| (unit.name.clone(), unit.record.generation));
        named.unwrap_or_else(|| (String::new(), symbol.record.generation))
    }

    fn cell(&self, place: SegmentOffset, what: What) -> Target {
        let known = self.cells.get(&place.get());
        known.cloned().unwrap_or_else(|| Target::new(place, what))
    }

    /// The text around `place`: its record and its unit's name.
    pub(super) fn text(
        &self,
        place: SegmentOffset,
    ) -> Result<Option<(TextRecord, String)>, Corrupt> {
        let (view, root) = (self.look.view(), self.look.root);
        let Some(at) = index::floor(view, root.texts, place)? else {
            return Ok(None);
        };
        let record: TextRecord = view.read(at)?;
        let is_inside = is_in(record.text, place);
        let name = trailing_text::<TextRecord>(view, at, 0, record.name_len)?;
        Ok(is_inside.then_some((record, name)))
    }

    fn code(&self, place: SegmentOffset) -> Result<Option<Target>, Corrupt> {
        let mut imports = self.directory.imports.values();
        if let Some(import) = imports.find(|import| import.record.trap == place) {
            return Ok(Some(Target {
                name: Some(import.name.clone()),
                host: true,
                ..Target::new(place, What::Trap)
            }));
        }
        let Some((text, unit)) = self.text(place)? else {
            return Ok(None);
        };
        let names = text.names.region();
        let named = names.map(|names| find_name(self.look.view(), names, text.unit, place));
        let named = named.transpose()?.flatten();
        let (start, name) = match named {
            Some((start, name)) => (start.get(), name),
            None => (text.text.start, format!("{unit}.text")),
        };
        Ok(Some(Target {
            name: Some(name),
            distance: place.get() - start,
            unit: Some(unit),
            ..Target::new(place, What::Code)
        }))
    }

    /// A datum, or else how far it is into its unit's.
    fn data(&self, place: SegmentOffset, what: What) -> Option<Target> {
        let (region, suffix): (fn(&super::directory::Unit) -> StoredRegion, _) = match what {
            What::ReadOnlyData => (|unit| unit.record.read_only, "rodata"),
            What::SharedData => (|unit| unit.record.shared, "shared"),
            _ => (|unit| unit.record.private, "data"),
        };
        let mut units = self.directory.units.values();
        let unit = units.find(|unit| is_in(region(unit), place))?;
        let is_around = |symbol: &&Symbol| {
            let distance = place.get().wrapping_sub(symbol.record.place.get());
            symbol.record.kind == jitcast::runtime::records::SYMBOL_DATA
                && u64::from(distance) < symbol.record.size.max(1)
        };
        let datum = self.directory.symbols.iter().find(is_around);
        let (start, name) = match datum {
            Some(datum) => (datum.record.place.get(), datum.name.clone()),
            None => (region(unit).start, format!("{}.{suffix}", unit.name)),
        };
        Some(Target {
            name: Some(name),
            distance: place.get() - start,
            unit: Some(unit.name.clone()),
            ..Target::new(place, what)
        })
    }
}

fn is_in(region: StoredRegion, place: SegmentOffset) -> bool {
    region
        .region()
        .is_some_and(|region| region.contains(place, 1))
}
