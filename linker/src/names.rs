//! What the functions of a unit are called, the local ones too: for backtraces and profilers.

use std::borrow::Cow;

use jitcast_runtime::SegmentOffset;
use jitcast_runtime::frames::Name;
use object::LittleEndian as LE;
use object::elf;
use object::read::elf::Sym as _;

use crate::error::LinkError;
use crate::input::{Area, Placement};
use crate::layout::Spot;
use crate::object_file::ask_ahead;
use crate::order;
use crate::prepared::Prepared;
use crate::resolve::SymbolUse;
use crate::unit::Unit;

/// A function and its name.
#[derive(Clone, Debug)]
pub(crate) struct Named<'a> {
    start: Spot,
    len_bytes: u32,
    name: Cow<'a, str>,
}

/// Every function that is placed, sorted; of several names for one place, a global one.
pub(crate) fn collect<'a>(unit: &mut Unit<'a>) -> Result<Vec<Named<'a>>, LinkError> {
    let mut found = Vec::with_capacity(unit.chunks.len());
    for number in 0..unit.objects.len() {
        ask_ahead(&unit.objects, number);
        let symbols = unit.objects[number].symbols.symbols();
        for (index, symbol) in (0..).zip(symbols) {
            if !matches!(symbol.st_type(), elf::STT_FUNC | elf::STT_GNU_IFUNC) {
                continue;
            }
            let Some(section) = unit.objects[number].symbol_section(index, symbol)? else {
                continue;
            };
            let name = match unit.symbol_use(number, index) {
                Some(SymbolUse::Global { global, .. }) => {
                    Ok(unit.globals.list[global as usize].name)
                }
                _ => Err(unit.objects[number].global_name(symbol)?),
            };
            let Some(chunk) = unit.chunk_of(number, section) else {
                continue;
            };
            let home = &unit.chunks[chunk as usize];
            if let Ok(offset) = u32::try_from(symbol.st_value(LE))
                && home.area == Area::Text
                && u64::from(offset) < home.len_bytes()
            {
                let rest = home.len_bytes() as u32 - offset;
                let len_bytes = u32::try_from(symbol.st_size(LE)).unwrap_or(rest).min(rest);
                let local = symbol.st_bind() == elf::STB_LOCAL;
                let start = Spot { chunk, offset };
                found.push((start, local, len_bytes, name));
            }
        }
    }
    order::sort(&mut found, |&(_, local, ..)| local.into());
    order::sort(&mut found, |&(start, ..)| start.key());
    found.dedup_by_key(|&mut (start, ..)| start);
    let ends: Vec<u32> = found
        .iter()
        .enumerate()
        .map(|(index, (start, ..))| {
            let next = found.get(index + 1).map(|(next, ..)| next);
            let whole = unit.chunks[start.chunk as usize].len_bytes() as u32;
            next.filter(|next| next.chunk == start.chunk)
                .map_or(whole, |next| next.offset)
        })
        .collect();
    let named = found.into_iter().zip(ends);
    Ok(named
        .map(|((start, _, len_bytes, name), end)| Named {
            start,
            // Assembly leaves the sizes of its functions out: such a one ends where the next begins.
            len_bytes: match len_bytes {
                0 => end - start.offset,
                len_bytes => len_bytes,
            },
            name: name.map_or_else(String::from_utf8_lossy, Cow::Borrowed),
        })
        .collect())
}

impl Prepared<'_> {
    /// What its functions are called, sorted by their places.
    ///
    /// # Errors
    /// A placement outside every window.
    pub fn names(&self, at: &Placement) -> Result<Vec<Name<'_>>, LinkError> {
        let mut names = Vec::with_capacity(self.names.len());
        for named in &self.names {
            let start: SegmentOffset = self.offset(named.start, at)?;
            names.push(Name {
                start,
                len_bytes: named.len_bytes,
                name: &named.name,
            });
        }
        names.sort_unstable_by_key(|name| name.start);
        Ok(names)
    }
}
