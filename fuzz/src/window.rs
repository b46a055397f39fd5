//! A window without a process: units are linked, placed, bound, and looked at from any base.
//!
//! It does what the compiler process and a worker do, with vectors in place of memory: gives each name its cells and
//! its stub, fills them, copies templates, applies patches.

use std::collections::{BTreeMap, HashMap};

use jitcast_linker::{
    Binding, Dialect, Input, LinkError, Linked, Options, Place, Placement, Prepared, SymbolKind,
};
use jitcast_oracle::elf::Home;
use jitcast_oracle::{Image, Layout, Object, Published, Rules, Stored};
use jitcast_runtime::{ImportId, Patch, PatchKind, PatchTarget, SegmentOffset, module};

use crate::build::{Built, GHOST, HOST_DATA, HOST_FUNCTIONS, START, WEAK};
use crate::case::Places;

/// The host's first symbol lies here, far from every window.
pub const HOST: u64 = 0x7fff_5555_0000;

/// The host's address of a name; `None` if it has none. Of names that the generators do not know it has all.
pub fn host_address(name: &str) -> Option<u64> {
    let present = WEAK.iter().take(2).map(|(name, _)| *name);
    let mut names = HOST_FUNCTIONS.into_iter().chain(HOST_DATA).chain(present);
    if let Some(index) = names.position(|known| known == name) {
        return Some(HOST + index as u64 * 0x10_0010);
    }
    if name == GHOST || WEAK.iter().any(|(weak, _)| *weak == name) {
        return None;
    }
    // FNV-1a: an address for each name, most likely its own.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    Some(HOST + (1 << 28) + (hash >> 40) * 16)
}

/// What stands in memory for what a worker finds out otherwise than by an address.
const FOUND_OUT: u64 = 0xf0f0_f0f0_f0f0_f0f0;

/// `STT_GNU_IFUNC`.
pub(crate) const INDIRECT: u8 = 10;

/// A unit, linked, and where it went.
#[derive(Debug)]
pub struct LinkedUnit {
    /// Its place.
    pub at: Placement,
    /// Its bytes and patches.
    pub linked: Linked,
    /// How long its private data are, zeros included, bytes.
    pub private_len_bytes: u64,
    /// The same of its shared data.
    pub shared_len_bytes: u64,
    /// Its definitions: name, what it is, where.
    pub definitions: Vec<(String, SymbolKind, Place)>,
}

/// Several units in one window.
#[derive(Debug)]
pub struct Window {
    places: Places,
    /// The units.
    pub units: Vec<LinkedUnit>,
    /// The number of each name: its cells and stub follow from it.
    numbers: BTreeMap<String, u32>,
    /// The definition of each name that a unit has.
    owners: HashMap<String, (SymbolKind, Place)>,
}

/// Where a name's cells and stub are.
fn cells(places: Places, number: u32) -> (SegmentOffset, SegmentOffset, SegmentOffset) {
    let at = SegmentOffset::new;
    (
        at(places.slots + number * 16),
        at(places.slots + number * 16 + 8),
        at(places.stubs + number * 8),
    )
}

fn aligned(start: u32, align_bytes: u64) -> u32 {
    u64::from(start).next_multiple_of(align_bytes) as u32
}

impl Window {
    /// Links the units at their places.
    ///
    /// # Errors
    ///
    /// The linker refuses one of them.
    pub fn link(units: &[Vec<Built>], places: Places) -> Result<Self, LinkError> {
        let inputs: Vec<Vec<Input<'_>>> = units.iter().map(|unit| inputs(unit)).collect();
        let options = Options {
            runs_resolvers: true,
            keeps_unique: true,
            ..Options::default()
        };
        let prepared = inputs
            .iter()
            .map(|inputs| Prepared::read("unit", inputs, &options))
            .collect::<Result<Vec<_>, _>>()?;
        let mut window = Self {
            places,
            units: Vec::new(),
            numbers: BTreeMap::new(),
            owners: HashMap::new(),
        };
        let mut next = places;
        let mut placed = Vec::new();
        for prepared in &prepared {
            let extents = prepared.extents();
            let take = |start: &mut u32, extent: jitcast_linker::Extent| {
                let at = aligned(*start, extent.align_bytes);
                *start = at + extent.len_bytes as u32;
                SegmentOffset::new(at)
            };
            placed.push(Placement {
                text: take(&mut next.text, extents.text),
                read_only: take(&mut next.read_only, extents.read_only),
                private: take(&mut next.private, extents.private),
                shared: take(&mut next.shared, extents.shared),
                number: placed.len() as u64 + 1,
            });
        }
        for (prepared, at) in prepared.iter().zip(&placed) {
            for symbol in prepared.symbols(at)? {
                let definition = prepared.definitions()[symbol.definition];
                window
                    .owners
                    .insert(definition.name.to_owned(), (definition.kind, symbol.place));
                window.number(definition.name);
            }
            for reference in prepared.references() {
                window.number(reference.name);
            }
        }
        for (prepared, at) in prepared.iter().zip(placed) {
            window.units.push(window.unit(prepared, at)?);
        }
        Ok(window)
    }

    fn number(&mut self, name: &str) {
        let next = self.numbers.len() as u32;
        self.numbers.entry(name.to_owned()).or_insert(next);
    }

    fn unit(&self, prepared: &Prepared<'_>, at: Placement) -> Result<LinkedUnit, LinkError> {
        let bindings: Vec<Binding> = prepared
            .references()
            .iter()
            .map(|reference| {
                let number = self.numbers[reference.name];
                let (call_cell, address_cell, stub) = cells(self.places, number);
                let target = match self.owners.get(reference.name) {
                    Some((SymbolKind::Function, _)) => PatchTarget::Window(stub),
                    Some((_, Place::At(_, offset))) => PatchTarget::Window(*offset),
                    Some((_, Place::ThreadLocal { module, .. })) => PatchTarget::Window(*module),
                    _ => PatchTarget::Host(ImportId::new(number)),
                };
                let block_offset = match self.owners.get(reference.name) {
                    Some((_, Place::ThreadLocal { offset, .. })) => Some(*offset),
                    _ => None,
                };
                // What was not asked for must not be needed.
                Binding {
                    target,
                    call_cell: (reference.call_cell || reference.stub).then_some(call_cell),
                    address_cell: reference.address_cell.then_some(address_cell),
                    stub: reference.stub.then_some(stub),
                    block_offset,
                }
            })
            .collect();
        let linked = prepared.link(&at, &bindings)?;
        let definitions = linked.symbols.iter().map(|symbol| {
            let definition = prepared.definitions()[symbol.definition];
            (definition.name.to_owned(), definition.kind, symbol.place)
        });
        Ok(LinkedUnit {
            at,
            definitions: definitions.collect(),
            linked,
            private_len_bytes: prepared.extents().private.len_bytes,
            shared_len_bytes: prepared.extents().shared.len_bytes,
        })
    }

    /// The address that everybody has of a name, in a window at `base`.
    fn canonical(&self, name: &str, base: u64) -> u64 {
        let (_, _, stub) = cells(self.places, self.numbers.get(name).copied().unwrap_or(0));
        match self.owners.get(name) {
            Some((SymbolKind::Function, _)) => base + u64::from(stub.get()),
            Some((_, place)) => address(*place, base),
            None => host_address(name).unwrap_or(0),
        }
    }

    /// What a worker at `base` has in its window.
    ///
    /// # Errors
    ///
    /// A patch that is none, or not in private data.
    pub fn image(&self, base: u64) -> Result<Image, String> {
        let mut image = Image::new();
        let place = |offset: SegmentOffset| base + u64::from(offset.get());
        let names = self.names();
        let mut slots = Vec::new();
        let mut stubs = Vec::new();
        for (number, name) in (0..).zip(&names) {
            let callee = match self.owners.get(*name) {
                Some((_, place)) => address(*place, base),
                None => host_address(name).unwrap_or(0),
            };
            slots.extend(callee.to_le_bytes());
            slots.extend(self.canonical(name, base).to_le_bytes());
            let (call_cell, _, stub) = cells(self.places, number);
            let displacement = call_cell.get().wrapping_sub(stub.get() + 6);
            stubs.extend([0xff, 0x25]);
            stubs.extend(displacement.to_le_bytes());
            stubs.extend([0xcc, 0xcc]);
        }
        image.add(base + u64::from(self.places.slots), slots);
        image.add(base + u64::from(self.places.stubs), stubs);
        for unit in &self.units {
            let mut private = unit.linked.template.clone();
            private.resize(unit.private_len_bytes as usize, 0);
            let mut shared = unit.linked.shared.clone();
            shared.resize(unit.shared_len_bytes as usize, 0);
            for (start, bytes) in [
                (unit.at.text, unit.linked.text.clone()),
                (unit.at.read_only, unit.linked.read_only.clone()),
                (unit.at.private, private),
                (unit.at.shared, shared),
            ] {
                if !bytes.is_empty() {
                    image.add(place(start), bytes);
                }
            }
            let start = unit.at.private.get();
            let private = start..start + unit.linked.template.len() as u32;
            for patch in &unit.linked.patches {
                let target = self.target(patch, &names, base)?;
                let value = match patch.kind() {
                    Some(PatchKind::Address) => target.wrapping_add_signed(patch.addend),
                    // Nobody runs anything here: see `dynamic`.
                    Some(_) => FOUND_OUT,
                    None => return Err("a patch of no kind".to_owned()),
                };
                let site = patch.site.get();
                let inside = private.contains(&site) && private.contains(&(site + 7));
                if !inside || !image.store(place(patch.site), value) {
                    return Err(format!(
                        "a patch at {site:#x}, outside the unit's private data"
                    ));
                }
            }
        }
        Ok(image)
    }

    /// All names, by their numbers.
    fn names(&self) -> Vec<&String> {
        let mut names: Vec<_> = self.numbers.iter().collect();
        names.sort_by_key(|(_, number)| **number);
        names.into_iter().map(|(name, _)| name).collect()
    }

    /// The address of a patch's target.
    fn target(&self, patch: &Patch, names: &[&String], base: u64) -> Result<u64, String> {
        match patch.target().ok_or("a patch without a target")? {
            PatchTarget::Window(offset) => Ok(base + u64::from(offset.get())),
            PatchTarget::Host(import) => {
                let name = names.get(import.get() as usize);
                Ok(host_address(name.ok_or("a patch of no name")?).unwrap_or(0))
            }
        }
    }

    /// What a worker would find out and store, for unit `index`.
    fn dynamic(&self, index: usize, base: u64) -> HashMap<u64, Stored> {
        let names = self.names();
        let patches = self.units[index].linked.patches.iter();
        patches
            .filter_map(|patch| {
                let name = match patch.target()? {
                    PatchTarget::Host(import) => names.get(import.get() as usize)?.to_string(),
                    PatchTarget::Window(_) => String::new(),
                };
                let stored = match patch.kind()? {
                    PatchKind::TlsModule => Stored::Module(name),
                    PatchKind::TlsOffset => Stored::Offset(name),
                    PatchKind::ThreadOffset => Stored::FromThread(name),
                    PatchKind::Resolver => Stored::Resolved(self.target(patch, &names, base).ok()?),
                    PatchKind::Address | PatchKind::Copy => return None,
                };
                Some((base + u64::from(patch.site.get()), stored))
            })
            .collect()
    }

    /// Where the image of a unit's block is, as the unit's module says.
    fn block(&self, index: usize, base: u64) -> Option<u64> {
        let linked = &self.units[index].linked;
        let image = linked.module?.checked_add(module::Word::Image as u64 * 8)?;
        let patch = linked.patches.iter().find(|patch| patch.site == image)?;
        self.target(patch, &[], base).ok()
    }

    /// What the oracle is told of unit `index` in a window at `base`.
    pub fn layout(&self, index: usize, objects: &[Object<'_>], base: u64) -> Layout {
        let unit = &self.units[index];
        let block = self.block(index, base);
        let places: HashMap<&str, u64> = unit
            .definitions
            .iter()
            .map(|(name, _, place)| (name.as_str(), own_address(*place, base, block)))
            .collect();
        let indirect = objects.iter().flat_map(|object| &object.elf.symbols);
        let indirect = indirect.filter(|symbol| symbol.kind == INDIRECT);
        let indirect = indirect.filter_map(|symbol| {
            let place = places.get(symbol.name)?;
            Some((symbol.name.to_owned(), *place))
        });
        let mut sections = HashMap::new();
        let mut commons = HashMap::new();
        for (number, object) in objects.iter().enumerate() {
            for symbol in &object.elf.symbols {
                let Some(&place) = places.get(symbol.name) else {
                    continue;
                };
                match symbol.home {
                    Home::Section(section) if symbol.name.starts_with(START) => {
                        sections.insert((number, section), place);
                    }
                    Home::Common => {
                        commons.insert(symbol.name.to_owned(), place);
                    }
                    _ => {}
                }
            }
        }
        let published = self.numbers.iter().map(|(name, &number)| {
            let (call_cell, address_cell, stub) = cells(self.places, number);
            let place = |offset: SegmentOffset| base + u64::from(offset.get());
            let published = Published {
                call_cell: place(call_cell),
                address_cell: place(address_cell),
                stub: place(stub),
            };
            (name.clone(), published)
        });
        let thread_local = self
            .owners
            .iter()
            .filter_map(|(name, (_, place))| match place {
                Place::ThreadLocal { module, offset } => {
                    Some((name.clone(), (base + u64::from(module.get()), *offset)))
                }
                _ => None,
            });
        let outside = self
            .numbers
            .keys()
            .map(|name| (name.clone(), self.canonical(name, base)));
        Layout {
            sections,
            commons,
            outside: outside.collect(),
            table: Some(base),
            block,
            rules: Rules::Window(jitcast_oracle::Window {
                published: published.collect(),
                indirect: indirect.collect(),
                dynamic: self.dynamic(index, base),
                module: unit
                    .linked
                    .module
                    .map(|module| base + u64::from(module.get())),
                thread_local: thread_local.collect(),
            }),
        }
    }
}

/// The files of a unit, as the linker takes them.
fn inputs(unit: &[Built]) -> Vec<Input<'_>> {
    let mut inputs = Vec::new();
    for Built { name, bytes, .. } in unit {
        let dialect = Dialect::Elf;
        inputs.push(Input {
            name,
            bytes,
            dialect,
        });
    }
    inputs
}

/// The address of a place that is not a thread's own.
fn address(place: Place, base: u64) -> u64 {
    own_address(place, base, None)
}

/// The address of a place; of a thread's own, where it would be in the block's image.
pub(crate) fn own_address(place: Place, base: u64, block: Option<u64>) -> u64 {
    match place {
        Place::At(_, offset) => base + u64::from(offset.get()),
        Place::Absolute(value) => value,
        Place::ThreadLocal { offset, .. } => block.unwrap_or(0).wrapping_add(offset),
    }
}
