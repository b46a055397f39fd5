//! Where the sections of objects are in a linked file: by a map, by symbols, by references, by contents.

use std::collections::HashMap;

use crate::elf::{Elf, Home, Relocation, Section, Symbol};
use crate::formula::Operand;
use crate::image::Image;
use crate::judge::Object;
use crate::linked::{MERGE, THREAD_LOCAL};
use crate::map::Map;
use crate::names::Names;
use crate::table;

/// `STT_SECTION`, `STT_FILE`.
const SECTION: u8 = 3;
const FILE: u8 = 4;

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

/// Looks for sections.
pub(crate) struct Finder<'f, 'a> {
    objects: &'f [Object<'a>],
    elf: &'f Elf<'a>,
    image: &'f Image,
    names: Names<'a>,
    by_name: HashMap<&'f str, Vec<usize>>,
    /// The file that each symbol of the linked file comes from.
    files: Vec<&'f str>,
    parts: Vec<Parts<'f, 'a>>,
}

/// What belongs to each section of an object.
struct Parts<'f, 'a> {
    relocations: Vec<Vec<&'f Relocation>>,
    /// Each with the file that it comes from.
    symbols: Vec<Vec<(&'f Symbol<'a>, &'f str)>>,
    /// How many sections of the same name come before.
    before: Vec<usize>,
}

impl<'f, 'a> Parts<'f, 'a> {
    fn of(elf: &'f Elf<'a>) -> Self {
        let count = elf.sections.len();
        let mut parts = Self {
            relocations: vec![Vec::new(); count],
            symbols: vec![Vec::new(); count],
            before: Vec::with_capacity(count),
        };
        for relocation in &elf.relocations {
            if let Some(list) = parts.relocations.get_mut(relocation.section) {
                list.push(relocation);
            }
        }
        for (symbol, file) in elf.symbols.iter().zip(files(elf)) {
            if let Home::Section(home) = symbol.home
                && symbol.kind != SECTION
                && let Some(list) = parts.symbols.get_mut(home)
            {
                list.push((symbol, file));
            }
        }
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for section in &elf.sections {
            let so_far = seen.entry(section.name).or_default();
            parts.before.push(*so_far);
            *so_far += usize::from(section.len_bytes > 0);
        }
        parts
    }
}

/// The file that each symbol comes from: local ones follow the symbol of their file.
fn files<'f>(elf: &'f Elf<'_>) -> Vec<&'f str> {
    let mut file = "";
    let of = |symbol: &Symbol<'f>| {
        if symbol.kind == FILE {
            file = symbol.name;
        }
        file
    };
    elf.symbols.iter().map(of).collect()
}

impl<'f, 'a> Finder<'f, 'a> {
    pub(crate) fn new(objects: &'f [Object<'a>], elf: &'f Elf<'a>, image: &'f Image) -> Self {
        Self {
            objects,
            elf,
            image,
            names: Names::resolve(objects.iter().map(|object| &object.elf)),
            by_name: by_name(elf),
            files: files(elf),
            parts: objects
                .iter()
                .map(|object| Parts::of(&object.elf))
                .collect(),
        }
    }

    /// The address of a global name.
    pub(crate) fn address(&self, name: &str) -> Option<u64> {
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

    pub(crate) fn addresses(
        &self,
        wanted: impl Fn(Option<(usize, Home)>) -> bool,
    ) -> HashMap<String, u64> {
        let names = self
            .names
            .all()
            .filter(|(_, global)| wanted(global.definition));
        names
            .map(|(name, _)| (name.to_owned(), self.address(name).unwrap_or(0)))
            .collect()
    }

    /// Whether something in a section is to be compared.
    pub(crate) fn is_wanted(&self, object: usize, index: usize) -> bool {
        let section = &self.objects[object].elf.sections[index];
        section.is_loaded()
            && section.name != ".eh_frame"
            && !self.names.is_discarded(object, index)
            && !self.parts[object].relocations[index].is_empty()
    }

    pub(crate) fn section(&self, object: usize, index: usize, map: Option<&Map>) -> Option<u64> {
        let Object { name, elf } = &self.objects[object];
        let section = elf.section(index)?;
        if !section.is_loaded()
            || section.len_bytes == 0
            || section.flags & (THREAD_LOCAL | MERGE) != 0
            || self.names.is_discarded(object, index)
        {
            return None;
        }
        let nth = self.parts[object].before[index];
        let told = map.and_then(|map| map.find(name, section.name, nth));
        let fits = |&address: &u64| self.fits(object, index, address);
        // A symbol is believed also where the contents are other ones: that is for the judge to say.
        told.or_else(|| self.by_symbols(object, index).find(fits))
            .or_else(|| self.by_contents(object, index))
            .or_else(|| self.by_symbols(object, index).next())
    }

    /// Where the symbols of a section say that it starts.
    fn by_symbols(&self, object: usize, index: usize) -> impl Iterator<Item = u64> {
        let own = self.parts[object].symbols[index].iter();
        own.filter_map(move |&(symbol, file)| {
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
        let of_file = |&&index: &&usize| self.files[index] == file;
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
    pub(crate) fn by_references(&self, object: usize, sections: &mut HashMap<(usize, usize), u64>) {
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
                && self.fits(object, home, found)
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
    fn fixed(&self, object: usize, index: usize) -> Vec<bool> {
        let section = &self.objects[object].elf.sections[index];
        let mut fixed = vec![true; section.bytes.len()];
        for relocation in &self.parts[object].relocations[index] {
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
    fn fits(&self, object: usize, index: usize, address: u64) -> bool {
        let section = &self.objects[object].elf.sections[index];
        if section.is_zero() {
            return true;
        }
        let Some(now) = self.image.read(address, section.bytes.len()) else {
            return false;
        };
        let fixed = self.fixed(object, index);
        let mut bytes = section.bytes.iter().zip(now).zip(fixed);
        bytes.all(|((was, now), fixed)| !fixed || was == now)
    }

    /// The one place where the contents are.
    fn by_contents(&self, object: usize, index: usize) -> Option<u64> {
        let section: &Section<'_> = self.objects[object].elf.section(index)?;
        let fixed = self.fixed(object, index);
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
                if address.is_multiple_of(section.align_bytes) && self.fits(object, index, address)
                {
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
