//! Where another linker put the sections of some objects: from its map, from the symbols of the linked file, or from
//! the contents.

use std::collections::HashMap;

use crate::elf::{Elf, Home};
use crate::finder::Finder;
use crate::image::Image;
use crate::judge::Object;
use crate::layout::{Layout, Rules, Stored};
use crate::map::Map;

/// So many zeros of the image are looked at, bytes.
const MOST_ZEROS: u64 = 64 << 20;

/// `SHF_MERGE`: of equal contents one stays.
pub(crate) const MERGE: u64 = 0x10;

/// `SHF_TLS`: a template, which has no address of its own.
pub(crate) const THREAD_LOCAL: u64 = 0x400;

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
    pub fn locate<'a>(objects: &[Object<'a>], elf: &Elf<'a>, map: Option<&Map>) -> Self {
        let image = memory(elf);
        let finder = Finder::new(objects, elf, &image);
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
    let mut zeros_left = MOST_ZEROS;
    for section in &elf.sections {
        let template = section.flags & THREAD_LOCAL != 0 && section.is_zero();
        if !section.is_loaded() || template {
            continue;
        }
        if section.is_zero() {
            let len = section.len_bytes.min(zeros_left);
            zeros_left -= len;
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
