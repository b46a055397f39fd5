//! A bare linker: it copies what is loaded, puts names into a table, and stores `S + A - P` for every relocation.
//!
//! Nothing is checked, nobody can ask afterwards what is where, and what somebody else defines is taken to lie at the beginning. What it reads
//! and writes, every linker does; so how its time grows where caches end, anybody's does. It is no limit: its table is the standard library's.

use std::collections::HashMap;

use object::LittleEndian as LE;
use object::elf::{FileHeader64, Rela64, SHF_ALLOC, SHN_UNDEF, SHT_NOBITS, SHT_SYMTAB, STB_LOCAL};
use object::read::elf::{FileHeader as _, Rela as _, SectionHeader as _, Sym as _};

type Elf = FileHeader64<LE>;

/// A file, once it is known where its sections and symbols lie.
struct Placed<'a> {
    /// The number of each symbol among those of all files.
    symbols: Vec<usize>,
    /// Where each section lies that has relocations, and these.
    relocated: Vec<(usize, &'a [Rela64<LE>])>,
}

/// Links `files`, objects of our own making.
pub(crate) fn link(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut image = Vec::new();
    let (mut names, mut places) = (HashMap::new(), Vec::new());
    let placed: Vec<_> = (files.iter())
        .map(|&(_, bytes)| read(bytes, &mut image, &mut names, &mut places))
        .collect();
    for file in &placed {
        for &(home, entries) in &file.relocated {
            for entry in entries {
                let field = home + entry.r_offset(LE) as usize;
                let target = places[file.symbols[entry.r_sym(LE, false) as usize]];
                let value = target as i64 + entry.r_addend(LE) - field as i64;
                image[field..field + 4].copy_from_slice(&(value as u32).to_le_bytes());
            }
        }
    }
    image
}

/// Copies what is loaded of a file into the image, and finds the places of its symbols.
fn read<'a>(
    bytes: &'a [u8],
    image: &mut Vec<u8>,
    names: &mut HashMap<&'a [u8], usize>,
    places: &mut Vec<usize>,
) -> Placed<'a> {
    let table = Elf::parse(bytes).unwrap().sections(LE, bytes).unwrap();
    let mut homes = vec![0; table.len()];
    let mut relocated = Vec::new();
    for (section, home) in table.iter().zip(&mut homes) {
        let is_loaded = section.sh_flags(LE) & u64::from(SHF_ALLOC) != 0;
        if is_loaded && section.sh_type(LE) != SHT_NOBITS {
            *home = image.len().next_multiple_of(16);
            image.resize(*home, 0);
            image.extend_from_slice(section.data(LE, bytes).unwrap());
        }
    }
    for section in table.iter() {
        if let Some((entries, _)) = section.rela(LE, bytes).unwrap() {
            relocated.push((homes[section.info_link(LE).0], entries));
        }
    }
    let table = table.symbols(LE, bytes, SHT_SYMTAB).unwrap();
    let mut symbols = Vec::with_capacity(table.len());
    for symbol in table.iter() {
        let mut new = || {
            places.push(0);
            places.len() - 1
        };
        let number = match symbol.st_bind() {
            STB_LOCAL => new(),
            _ => *names
                .entry(table.symbol_name(LE, symbol).unwrap())
                .or_insert_with(new),
        };
        let section = symbol.st_shndx(LE);
        if section != SHN_UNDEF
            && let Some(home) = homes.get(usize::from(section))
        {
            places[number] = home + symbol.st_value(LE) as usize;
        }
        symbols.push(number);
    }
    Placed { symbols, relocated }
}
