//! Debugging sections of a unit that is placed: those of its objects, put together, with their relocations done.
//!
//! Nothing of it gets into the segment: it is made for who asks, for one window. Invariant: a field says where something is only if
//! that is placed; of what was dropped it says what GNU ld says, which readers take for nothing.

use std::collections::HashMap;

use jitcast_runtime::SegmentOffset;
use jitcast_runtime::debug::DebugSection;
use object::LittleEndian as LE;
use object::elf::{self, Rela64, SectionHeader64};
use object::read::elf::{Rela as _, SectionHeader as _, Sym as _};

use crate::input::{Carried, Placement};
use crate::object_file::ObjectFile;
use crate::prepared::Prepared;
use crate::unit::Meaning;

/// Where sections of one object begin in those of the unit: the section's number, by that of the object's.
#[derive(Debug, Default)]
struct Starts(HashMap<usize, (usize, u64)>);

impl Prepared<'_> {
    /// The debugging sections of the unit as it is placed, in a window that begins at `base`; `carried` says which variables lie
    /// elsewhere. What cannot be read (compressed sections) is left out, with the object that it is in.
    pub fn debug_sections(
        &self,
        at: &Placement,
        base: u64,
        carried: &[Carried],
    ) -> Vec<DebugSection> {
        let moved = carried.iter().filter_map(|carried| {
            let global = self.unit.defined.get(carried.definition)?;
            Some((*global, carried.place))
        });
        let moved: HashMap<u32, SegmentOffset> = moved.collect();
        let mut sections: Vec<DebugSection> = Vec::new();
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        for (number, object) in self.unit.objects.iter().enumerate() {
            let Some(starts) = gather(object, &mut sections, &mut numbers) else {
                continue;
            };
            let value = |index: u32| self.debug_value(number, index, &starts, (at, base), &moved);
            // Tables that overlap, as no compiler makes them, are not read again and again.
            let mut left = object.bytes.len();
            for header in object.table.iter() {
                let target = header.info_link(LE).0;
                if let (elf::SHT_RELA, Some(&(section, start))) =
                    (header.sh_type(LE), starts.0.get(&target))
                    && let Ok(Some((entries, _))) = header.rela(LE, object.bytes)
                    && let Some(rest) = left.checked_sub(size_of_val(entries))
                {
                    left = rest;
                    let section = &mut sections[section];
                    let dead = dead_value(&section.name);
                    for entry in entries {
                        relocate(&mut section.bytes, start, entry, value, dead);
                    }
                }
            }
        }
        sections
    }

    /// What a symbol is to debugging information; `None`: nothing that is there.
    fn debug_value(
        &self,
        object: usize,
        index: u32,
        starts: &Starts,
        (at, base): (&Placement, u64),
        moved: &HashMap<u32, SegmentOffset>,
    ) -> Option<u64> {
        let file = &self.unit.objects[object];
        let symbol = file.symbol(index)?;
        let section = file.symbol_section(index, symbol).ok()?;
        if let Some((_, start)) = section.and_then(|section| starts.0.get(&section)) {
            return Some(start.wrapping_add(symbol.st_value(LE)));
        }
        match self.unit.meaning(object, index).ok()? {
            Meaning::Own(own) if own.thread_local => {
                let place = i128::from(self.place(own.spot, at).ok()?.1.get());
                u64::try_from(place - self.block_start(at)).ok()
            }
            Meaning::Own(own) => {
                let carried = own.exported.and_then(|global| moved.get(&global).copied());
                let place = match carried {
                    Some(place) => place,
                    None => self.place(own.spot, at).ok()?.1,
                };
                Some(base.wrapping_add(place.get().into()))
            }
            Meaning::Absolute(value) => Some(value),
            Meaning::External(_) | Meaning::Window => None,
        }
    }
}

/// Adds the debugging sections of `object` to those of the unit; `None`: it has none, or such as cannot be read.
fn gather<'a>(
    object: &ObjectFile<'a>,
    sections: &mut Vec<DebugSection>,
    numbers: &mut HashMap<&'a str, usize>,
) -> Option<Starts> {
    let mut found = Vec::new();
    let mut left = object.bytes.len();
    for (index, header) in object.table.iter().enumerate() {
        let name = object.sections.get(index)?.name;
        if !is_debugging(name, header) {
            continue;
        }
        if header.sh_flags(LE) & u64::from(elf::SHF_COMPRESSED) != 0 {
            return None;
        }
        let bytes = header.data(LE, object.bytes).ok()?;
        left = left.checked_sub(bytes.len())?;
        found.push((index, name, bytes));
    }
    let mut starts = Starts::default();
    for (index, name, bytes) in found {
        let number = *numbers.entry(name).or_insert_with(|| {
            sections.push(DebugSection {
                name: name.to_owned(),
                bytes: Vec::new(),
            });
            sections.len() - 1
        });
        let start = sections[number].bytes.len() as u64;
        sections[number].bytes.extend_from_slice(bytes);
        starts.0.insert(index, (number, start));
    }
    (!starts.0.is_empty()).then_some(starts)
}

fn is_debugging(name: &str, header: &SectionHeader64<LE>) -> bool {
    header.sh_flags(LE) & u64::from(elf::SHF_ALLOC) == 0
        && header.sh_type(LE) != elf::SHT_NOBITS
        && name.starts_with(".debug_")
}

/// What a field holds that is about what is not there. In the old lists of ranges and places two zeros would end the list.
fn dead_value(section: &str) -> u64 {
    match section {
        ".debug_ranges" | ".debug_loc" => 1,
        _ => 0,
    }
}

/// Fills the field of `entry`, as far as it lies in the section, whose object's part begins at `start`.
fn relocate(
    bytes: &mut [u8],
    start: u64,
    entry: &Rela64<LE>,
    value: impl Fn(u32) -> Option<u64>,
    dead: u64,
) {
    let len_bytes = match entry.r_type(LE, false) {
        elf::R_X86_64_64 | elf::R_X86_64_DTPOFF64 => 8,
        elf::R_X86_64_32 | elf::R_X86_64_32S | elf::R_X86_64_DTPOFF32 => 4,
        _ => return,
    };
    let symbol = value(entry.r_sym(LE, false));
    let value = symbol.map_or(dead, |value| value.wrapping_add_signed(entry.r_addend(LE)));
    let field = usize::try_from(start.wrapping_add(entry.r_offset(LE)))
        .ok()
        .and_then(|first| bytes.get_mut(first..)?.get_mut(..len_bytes));
    if let Some(field) = field {
        field.copy_from_slice(&value.to_le_bytes()[..len_bytes]);
    }
}
