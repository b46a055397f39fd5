//! How to unwind through a unit: the `.eh_frame` sections of its objects, taken apart and put together as one.
//!
//! Assemblers write one section for all functions of an object, outside of the COMDAT groups that it
//! describes. What describes a function that is not placed goes; the rest becomes one chunk, whose area
//! follows from its relocations as everybody's does, with a zero word at its end (`__register_frame` takes such).
//!
//! What a record refers to is code or data of the unit itself, never a stub: an unwinder looks for the
//! place that was executing. Invariant: each field of the chunk that depends on a place has a fixup.

mod place;

use std::collections::HashMap;

use jitcast_runtime::eh_frame::{self, Cie, FaultKind, Fde, Pointer};
use object::LittleEndian as LE;
use object::elf::{self, Rela64};
use object::read::elf::Sym as _;

use crate::error::{LinkError, Problem, SectionRefusal};
use crate::object_file::ObjectFile;
use crate::section::{self, Role, refuse};

pub use place::Unwinding;
pub(crate) use place::{Unwound, place};

/// A section that says how to unwind, and its relocations.
#[derive(Debug)]
pub(crate) struct Frames<'a> {
    object: usize,
    section: usize,
    bytes: &'a [u8],
    cies: Vec<Cie>,
    fdes: Vec<Fde>,
    /// For each FDE the section of its function and the place in it, if the object defines the function.
    functions: Vec<Option<(usize, u64)>>,
    /// In the order of their offsets.
    relocations: Vec<&'a Rela64<LE>>,
}

/// Reads the sections of all objects, before it is known what is placed.
pub(crate) fn read<'a>(objects: &[Box<ObjectFile<'a>>]) -> Result<Vec<Frames<'a>>, LinkError> {
    let mut all = Vec::new();
    for (number, object) in objects.iter().enumerate() {
        if !object.has_frames {
            continue;
        }
        for (index, section) in object.sections.iter().enumerate() {
            if let section::Content::Bytes(bytes) = section.content
                && section.role == Role::Frames
            {
                all.push(Frames::read(object, number, index, bytes)?);
            }
        }
    }
    Ok(all)
}

/// What the records of each section's functions refer to beside the functions: symbols of its own object.
pub(crate) fn references(frames: &[Frames<'_>]) -> HashMap<(usize, usize), Vec<u32>> {
    let mut references: HashMap<_, Vec<u32>> = HashMap::new();
    for part in frames {
        let symbol =
            |pointer: Pointer| part.relocation(pointer).map(|entry| entry.r_sym(LE, false));
        // Once each: many functions have one in common.
        let personalities: Vec<_> = (part.cies.iter())
            .map(|cie| cie.personality.and_then(symbol))
            .collect();
        for (fde, function) in part.fdes.iter().zip(&part.functions) {
            let Some((section, _)) = *function else {
                continue;
            };
            let personality = personalities[fde.cie as usize];
            let symbols = references.entry((part.object, section)).or_default();
            symbols.extend(personality);
            symbols.extend(fde.lsda.and_then(symbol));
        }
    }
    references
}

impl<'a> Frames<'a> {
    fn read(
        object: &ObjectFile<'a>,
        number: usize,
        section: usize,
        bytes: &'a [u8],
    ) -> Result<Self, LinkError> {
        let (cies, fdes) = eh_frame::read(bytes).map_err(|fault| {
            let problem = match fault.kind {
                FaultKind::Damaged(what) => Problem::Corrupt(what.into()),
                FaultKind::Unsupported(what) => {
                    refuse(object.sections[section].name, SectionRefusal::Frames(what))
                }
            };
            object.error_at(section, fault.offset.into(), problem)
        })?;
        let tables = object.relocations.iter();
        let tables = tables.filter(|table| table.section == section);
        let mut relocations: Vec<_> = tables.flat_map(|table| table.entries).collect();
        relocations.sort_by_key(|entry| entry.r_offset.get(LE));
        let mut part = Self {
            object: number,
            section,
            bytes,
            cies,
            fdes,
            functions: Vec::new(),
            relocations,
        };
        part.check_relocations(object)?;
        for fde in &part.fdes {
            let function = part.function(object, fde);
            let function = function
                .map_err(|problem| object.error_at(section, fde.function.offset.into(), problem))?;
            part.functions.push(function);
        }
        Ok(part)
    }

    /// Every relocation has to be that of a pointer, and there is one for each: else something would be left out.
    fn check_relocations(&self, object: &ObjectFile<'_>) -> Result<(), LinkError> {
        let pointers = self.cies.iter().filter_map(|cie| cie.personality);
        let functions = self.fdes.iter();
        let functions = functions.flat_map(|fde| [Some(fde.function), fde.lsda]);
        let mut known: Vec<u64> = pointers
            .chain(functions.flatten())
            .map(|pointer| pointer.offset.into())
            .collect();
        known.sort_unstable();
        let mut last = None;
        for entry in &self.relocations {
            let offset = entry.r_offset.get(LE);
            let is_known = known.binary_search(&offset).is_ok();
            if entry.r_type(LE, false) != elf::R_X86_64_NONE
                && (!is_known || last.replace(offset) == Some(offset))
            {
                let what = "a relocation of it is for no pointer that is known";
                let problem = refuse(
                    object.sections[self.section].name,
                    SectionRefusal::Frames(what),
                );
                return Err(object.error_at(self.section, offset, problem));
            }
        }
        Ok(())
    }

    /// What is relocated at `offset`.
    fn relocations_at(&self, offset: u32) -> impl Iterator<Item = &'a Rela64<LE>> {
        let offset = u64::from(offset);
        let first = self
            .relocations
            .partition_point(|entry| entry.r_offset.get(LE) < offset);
        let here = self.relocations[first..].iter().copied();
        here.take_while(move |entry| entry.r_offset.get(LE) == offset)
    }

    /// The relocation of a pointer.
    fn relocation(&self, pointer: Pointer) -> Option<&'a Rela64<LE>> {
        self.relocations_at(pointer.offset)
            .find(|entry| entry.r_type(LE, false) != elf::R_X86_64_NONE)
    }

    /// Where the function of an FDE is: the object's own, also where another definition of its name counts.
    /// `None`: nowhere; `ld -r` leaves such records where it discarded the function.
    fn function(
        &self,
        object: &ObjectFile<'_>,
        fde: &Fde,
    ) -> Result<Option<(usize, u64)>, Problem> {
        let corrupt = |what: &str| Err(Problem::Corrupt(what.into()));
        let Some(entry) = self.relocation(fde.function) else {
            let discarded = self.relocations_at(fde.function.offset).next().is_some();
            if discarded || fde.len_bytes == 0 {
                return Ok(None);
            }
            return corrupt(".eh_frame FDE without a relocation of its function");
        };
        let index = entry.r_sym(LE, false);
        let symbol = object.symbol(index).filter(|_| index != 0);
        let Some(symbol) = symbol else {
            return corrupt(".eh_frame FDE of a symbol that does not exist");
        };
        let section = object.symbol_section(index, symbol);
        match section.map_err(|error| error.problem.clone())? {
            Some(section) => {
                let value = symbol.st_value(LE);
                Ok(Some((
                    section,
                    value.wrapping_add_signed(entry.r_addend.get(LE)),
                )))
            }
            None => corrupt(".eh_frame FDE of a function that the object does not define"),
        }
    }
}
