//! Where another linker put the sections of some objects: from its map, from the symbols of the linked file, or from
//! the contents.

use std::collections::HashMap;

use crate::elf::{Elf, Home, Section, Symbol};
use crate::formula::Operand;
use crate::image::Image;
use crate::judge::Object;
use crate::layout::{Layout, Rules, Stored};
use crate::map::Map;
use crate::names::Names;
use crate::table;

/// Zeros of the image are looked at up to this length, bytes.
const LONGEST_ZEROS: u64 = 64 << 20;

/// `SHF_MERGE`: of equal contents one stays.
const MERGE: u64 = 0x10;

/// `SHF_TLS`: a template, which has no address of its own.
const THREAD_LOCAL: u64 = 0x400;

/// What a linked file says of the objects that it was made from.
#[derive(Debug)]
pub struct Linked {
    /// Its memory, with what the dynamic linker stores relative to a base of 0.
    pub image: Image,
    /// Where the objects are in it.
    pub layout: Layout,
    /// Sections of the objects that have relocations and were not found: object, section.
    pub lost: Vec<(usize, usize)>,
}

impl Linked {
    /// Finds `objects` in the linked file `elf`.
    pub fn locate(objects: &[Object<'_>], elf: &Elf<'_>, map: Option<&Map>) -> Self {
        let image = memory(elf);
        let finder = Finder {
            objects,
            elf,
            image: &image,
            names: Names::resolve(objects.iter().map(|object| &object.elf)),
            by_name: by_name(elf),
        };
        let mut sections = HashMap::new();
        let mut lost = Vec::new();
        for (number, object) in objects.iter().enumerate() {
            for index in 0..object.elf.sections.len() {
                if let Some(address) = finder.section(number, index, map) {
                    sections.insert((number, index), address);
                }
            }
            finder.by_references(number, &mut sections);
            lost.extend(
                (0..object.elf.sections.len())
                    .map(|index| (number, index))
                    .filter(|place| {
                        !sections.contains_key(place) && finder.is_wanted(place.0, place.1)
                    }),
            );
        }
        let layout = Layout {
            sections,
            commons: finder.addresses(|global| matches!(global, Some((_, Home::Common)))),
            outside: finder.addresses(|global| global.is_none()),
            table: finder.address("_GLOBAL_OFFSET_TABLE_"),
            block: None,
            rules: Rules::Executable {
                dynamic: dynamic(elf),
            },
        };
        Self {
            image,
            layout,
            lost,
        }
    }
}

/// The memory of the program.
fn memory(elf: &Elf<'_>) -> Image {
    let mut image = Image::new();
    for section in &elf.sections {
        let template = section.flags & THREAD_LOCAL != 0 && section.is_zero();
        if !section.is_loaded() || template {
            continue;
        }
        if section.is_zero() {
            let len = section.len_bytes.min(LONGEST_ZEROS);
            image.add(section.address, vec![0; len as usize]);
        } else if !section.bytes.is_empty() {
            image.add(section.address, section.bytes.to_vec());
        }
    }
    for relocation in &elf.relocations {
        // R_X86_64_RELATIVE: the base, here 0, and the addend.
        if !relocation.of_symbols && relocation.kind == 8 {
            image.store(relocation.offset, relocation.addend as u64);
        }
    }
    image
}

/// What the dynamic linker finds out and stores: `R_X86_64_64`, `GLOB_DAT`, `JUMP_SLOT`, `IRELATIVE`.
fn dynamic(elf: &Elf<'_>) -> HashMap<u64, Stored> {
    let all = elf.relocations.iter();
    all.filter(|relocation| !relocation.of_symbols)
        .filter_map(|relocation| {
            let stored = match relocation.kind {
                1 | 6 | 7 => {
                    let symbol = elf.dynamic_symbols.get(relocation.symbol as usize)?;
                    Stored::Name(symbol.name.to_owned())
                }
                37 => Stored::Resolved(relocation.addend as u64),
                _ => return None,
            };
            Some((relocation.offset, stored))
        })
        .collect()
}

fn by_name<'a>(elf: &Elf<'a>) -> HashMap<&'a str, Vec<usize>> {
    let mut by_name: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, symbol) in elf.symbols.iter().enumerate().skip(1) {
        if symbol.home != Home::Undefined {
            by_name
                .entry(crate::names::stem(symbol.name))
                .or_default()
                .push(index);
        }
    }
    by_name
}

struct Finder<'f, 'a> {
    objects: &'f [Object<'a>],
    elf: &'f Elf<'a>,
    image: &'f Image,
    names: Names<'a>,
    by_name: HashMap<&'f str, Vec<usize>>,
}

impl Finder<'_, '_> {
    /// The address of a global name.
    fn address(&self, name: &str) -> Option<u64> {
        let known = self.by_name.get(name)?;
        let mut known = known.iter().map(|&index| &self.elf.symbols[index]);
        known
            .find(|symbol| symbol.binding != 0)
            .or_else(|| {
                // What a linker defines itself, it may hide.
                let known = self.by_name.get(name)?;
                known.first().map(|&index| &self.elf.symbols[index])
            })
            .map(|symbol| symbol.value)
    }

    fn addresses(&self, wanted: impl Fn(Option<(usize, Home)>) -> bool) -> HashMap<String, u64> {
        let names = self
            .names
            .all()
            .filter(|(_, global)| wanted(global.definition));
        names
            .map(|(name, _)| (name.to_owned(), self.address(name).unwrap_or(0)))
            .collect()
    }

    /// Whether something in a section is to be compared.
    fn is_wanted(&self, object: usize, index: usize) -> bool {
        let elf = &self.objects[object].elf;
        let relocated = elf
            .relocations
            .iter()
            .any(|relocation| relocation.section == index);
        elf.sections[index].is_loaded()
            && elf.sections[index].name != ".eh_frame"
            && !self.names.is_discarded(object, index)
            && relocated
    }

    fn section(&self, object: usize, index: usize, map: Option<&Map>) -> Option<u64> {
        let Object { name, elf } = &self.objects[object];
        let section = elf.section(index)?;
        if !section.is_loaded()
            || section.len_bytes == 0
            || section.flags & (THREAD_LOCAL | MERGE) != 0
            || self.names.is_discarded(object, index)
        {
            return None;
        }
        let twins = elf.sections[..index]
            .iter()
            .filter(|twin| twin.name == section.name && twin.len_bytes > 0);
        let told = map.and_then(|map| map.find(name, section.name, twins.count()));
        let fits = |&address: &u64| self.fits(elf, index, address);
        // A symbol is believed also where the contents are other ones: that is for the judge to say.
        told.or_else(|| self.by_symbols(object, index).find(fits))
            .or_else(|| self.by_contents(elf, index))
            .or_else(|| self.by_symbols(object, index).next())
    }

    /// Where the symbols of a section say that it starts.
    fn by_symbols<'s>(
        &'s self,
        object: usize,
        index: usize,
    ) -> impl Iterator<Item = u64> + use<'s> {
        let elf = &self.objects[object].elf;
        let mut file = "";
        let own = elf.symbols.iter().filter_map(move |symbol| {
            if symbol.kind == 4 {
                file = symbol.name;
            }
            (symbol.home == Home::Section(index) && symbol.kind != 3).then_some((symbol, file))
        });
        own.filter_map(move |(symbol, file)| {
            let found = self.linked_symbol(object, symbol, file)?;
            found.value.checked_sub(symbol.value)
        })
    }

    /// The symbol of the linked file that a symbol of an object became, if it is certain.
    fn linked_symbol(&self, object: usize, symbol: &Symbol<'_>, file: &str) -> Option<&Symbol<'_>> {
        let name = crate::names::stem(symbol.name);
        let known = self.by_name.get(name)?;
        if symbol.binding != 0 {
            let definition = self.names.get(name)?.definition?;
            let index = known.first().filter(|_| definition.0 == object)?;
            return self.elf.symbols.get(*index).filter(|_| known.len() == 1);
        }
        // Local symbols come after the symbol of their file.
        let of_file = |&&index: &&usize| {
            let before = self.elf.symbols[..index].iter().rev();
            let owner = before.into_iter().find(|symbol| symbol.kind == 4);
            owner.is_some_and(|owner| owner.name == file)
        };
        let local: Vec<usize> = known
            .iter()
            .filter(|&&index| self.elf.symbols[index].kind == symbol.kind)
            .copied()
            .collect();
        let chosen: Vec<usize> = if local.len() == 1 {
            local
        } else {
            local.iter().filter(of_file).copied().collect()
        };
        match chosen[..] {
            [index] => self.elf.symbols.get(index),
            _ => None,
        }
    }

    /// Where sections are that nothing else tells: one site that refers to a section is believed, and all others are
    /// compared with it.
    fn by_references(&self, object: usize, sections: &mut HashMap<(usize, usize), u64>) {
        let elf = &self.objects[object].elf;
        for relocation in &elf.relocations {
            let Some(row) = table::lookup(relocation.kind) else {
                continue;
            };
            let symbol = elf.symbols.get(relocation.symbol as usize);
            let Some((symbol, Home::Section(home))) = symbol.map(|symbol| (symbol, symbol.home))
            else {
                continue;
            };
            let wanted = elf.section(home).is_some_and(|home| {
                home.is_loaded() && home.flags & (MERGE | THREAD_LOCAL) == 0 && home.len_bytes > 0
            });
            let start = sections.get(&(object, relocation.section));
            if !wanted
                || sections.contains_key(&(object, home))
                || self.names.is_discarded(object, home)
            {
                continue;
            }
            if let Some(&start) = start
                && let Some(found) = self.solve(
                    row,
                    start.wrapping_add(relocation.offset),
                    relocation.addend,
                )
                && let found = found.wrapping_sub(symbol.value)
                && self.fits(elf, home, found)
            {
                sections.insert((object, home), found);
            }
        }
    }

    /// The S that a field holds, if its formula is about S alone.
    fn solve(&self, row: &table::Row, place: u64, addend: i64) -> Option<u64> {
        let (formula, field) = (row.formula()?, row.field()?);
        let table = self.address("_GLOBAL_OFFSET_TABLE_").unwrap_or(0);
        let value = field.decode(self.image.read(place, field.width_bytes)?);
        let operand = |operand| match operand {
            Operand::Place => place.into(),
            Operand::Addend => addend.into(),
            Operand::Table => table.into(),
            _ => 0,
        };
        formula
            .solve(Operand::Symbol, value, operand)
            .map(|found| found as u64)
    }

    /// Which bytes of a section no relocation can change.
    fn fixed(elf: &Elf<'_>, index: usize) -> Vec<bool> {
        let section = &elf.sections[index];
        let mut fixed = vec![true; section.bytes.len()];
        for relocation in elf
            .relocations
            .iter()
            .filter(|relocation| relocation.section == index)
        {
            let field = table::lookup(relocation.kind).and_then(table::Row::field);
            let width = field.map_or(8, |field| field.width_bytes);
            let at = usize::try_from(relocation.offset).unwrap_or(usize::MAX);
            // What is before the field in text may be rewritten with it.
            let before = if section.is_text() { 12 } else { 0 };
            let range = at.saturating_sub(before)..at.saturating_add(width.max(8)).min(fixed.len());
            if let Some(bytes) = fixed.get_mut(range) {
                bytes.fill(false);
            }
        }
        fixed
    }

    /// Whether the bytes at `address` can be those of the section.
    fn fits(&self, elf: &Elf<'_>, index: usize, address: u64) -> bool {
        let section = &elf.sections[index];
        if section.is_zero() {
            return true;
        }
        let Some(now) = self.image.read(address, section.bytes.len()) else {
            return false;
        };
        let fixed = Self::fixed(elf, index);
        let mut bytes = section.bytes.iter().zip(now).zip(fixed);
        bytes.all(|((was, now), fixed)| !fixed || was == now)
    }

    /// The one place where the contents are.
    fn by_contents(&self, elf: &Elf<'_>, index: usize) -> Option<u64> {
        let section: &Section<'_> = elf.section(index)?;
        let fixed = Self::fixed(elf, index);
        let told = fixed.iter().filter(|&&fixed| fixed).count();
        if section.is_zero() || told < 8 {
            return None;
        }
        // The longest stretch that nothing changes is looked for first.
        let (skip, len) = longest(&fixed);
        let needle = section.bytes.get(skip..skip + len)?;
        let alike = self.elf.sections.iter().filter(|other| {
            other.is_loaded() && other.is_text() == section.is_text() && !other.bytes.is_empty()
        });
        let mut found = None;
        for other in alike {
            for (at, window) in other.bytes.windows(needle.len()).enumerate() {
                if window != needle || at < skip {
                    continue;
                }
                let address = other.address.wrapping_add((at - skip) as u64);
                if address.is_multiple_of(section.align_bytes) && self.fits(elf, index, address) {
                    if found.is_some() {
                        return None;
                    }
                    found = Some(address);
                }
            }
        }
        found
    }
}

/// Where the longest run of `true` starts, and its length.
fn longest(bits: &[bool]) -> (usize, usize) {
    let (mut best, mut start) = ((0, 0), 0);
    for at in 0..=bits.len() {
        if bits.get(at) == Some(&true) {
            continue;
        }
        if at - start > best.1 {
            best = (start, at - start);
        }
        start = at + 1;
    }
    best
}
