//! How to unwind through a unit: the `.eh_frame` sections of its objects, taken apart and put together as one.
//!
//! Assemblers write one section for all functions of an object, outside of the COMDAT groups that it
//! describes. What describes a function that is not placed goes; the rest becomes one chunk, whose area
//! follows from its relocations as everybody's does, with a zero word at its end (`__register_frame` takes such).
//!
//! What a record refers to is code or data of the unit itself, never a stub: an unwinder looks for the
//! place that was executing. Invariant: each field of the chunk that depends on a place has a fixup.

use std::collections::HashMap;

use jitcast_runtime::eh_frame::{self, Cie, FaultKind, Fde, LENGTH_BYTES, Pointer};
use jitcast_runtime::frames::Frame;
use jitcast_runtime::{Region, SegmentOffset};
use object::LittleEndian as LE;
use object::elf::{self, Rela64};
use object::read::elf::Sym as _;

use crate::error::{LinkError, Misuse, Problem, SectionRefusal};
use crate::fixup::{Fixup, Rewrite, Target};
use crate::input::{Area, Placement};
use crate::layout::{Content, FRAMES, RANK_PATCHED, Spot};
use crate::object_file::ObjectFile;
use crate::plan::Plan;
use crate::prepared::Prepared;
use crate::relocation::{self, Refusal, Resolved};
use crate::section::{self, Role, refuse};
use crate::unit::{Meaning, Unit};

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

/// A function that can be unwound through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unwound {
    start: Spot,
    len_bytes: u32,
    /// Offset of its FDE in the chunk.
    fde: u32,
}

/// Reads the sections of all objects, before it is known what is placed.
pub(crate) fn read<'a>(objects: &[ObjectFile<'a>]) -> Result<Vec<Frames<'a>>, LinkError> {
    let mut all = Vec::new();
    for (number, object) in objects.iter().enumerate() {
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
        for (fde, function) in part.fdes.iter().zip(&part.functions) {
            let Some((section, _)) = *function else {
                continue;
            };
            let personality = part.cies[fde.cie as usize].personality;
            for pointer in [personality, fde.lsda].into_iter().flatten() {
                let symbol = part.relocation(pointer).map(|entry| entry.r_sym(LE, false));
                references
                    .entry((part.object, section))
                    .or_default()
                    .extend(symbol);
            }
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

/// Puts together what describes placed functions.
pub(crate) fn place<'a>(
    unit: &mut Unit<'a>,
    plan: &mut Plan<'a>,
) -> Result<Vec<Unwound>, LinkError> {
    let frames = core::mem::take(&mut unit.frames);
    let mut made = Made::default();
    for part in &frames {
        // Where each CIE went.
        let mut cies = vec![None; part.cies.len()];
        for (fde, function) in part.fdes.iter().zip(&part.functions) {
            let placed = function.and_then(|(section, offset)| {
                let chunk = unit.chunk_of(part.object, section)?;
                Some((chunk, offset))
            });
            if let Some(at) = placed.filter(|_| fde.len_bytes > 0) {
                made.function(unit, plan, part, &mut cies, fde, at)
                    .map_err(|(offset, problem)| {
                        unit.objects[part.object].error_at(part.section, offset.into(), problem)
                    })?;
            }
        }
    }
    if !made.functions.is_empty() {
        made.bytes.extend([0; LENGTH_BYTES as usize]);
    }
    let chunk = &mut unit.chunks[FRAMES as usize];
    if made.patched {
        (chunk.area, chunk.rank) = (Area::Private, RANK_PATCHED);
    }
    (chunk.align_bytes, chunk.pack_bytes) = if made.bytes.is_empty() {
        (1, 1)
    } else {
        (8, 8)
    };
    chunk.content = Content::Made(made.bytes);
    Ok(made.functions)
}

/// The chunk while it grows.
#[derive(Debug, Default)]
struct Made {
    bytes: Vec<u8>,
    functions: Vec<Unwound>,
    /// Something of it is resolved at attach.
    patched: bool,
}

impl Made {
    /// Adds an FDE whose function is at an offset of a chunk, and its CIE if that is not there yet.
    fn function<'a>(
        &mut self,
        unit: &Unit<'a>,
        plan: &mut Plan<'a>,
        part: &Frames<'a>,
        cies: &mut [Option<u32>],
        fde: &Fde,
        (chunk, offset): (u32, u64),
    ) -> Result<(), (u32, Problem)> {
        let at_function = |problem| (fde.function.offset, problem);
        let home = &unit.chunks[chunk as usize];
        let inside = home.area == Area::Text
            && offset
                .checked_add(fde.len_bytes)
                .is_some_and(|end| end <= home.len_bytes());
        if !inside {
            let what = ".eh_frame FDE of what is not all code of its section";
            return Err(at_function(Problem::Corrupt(what.into())));
        }
        // Chunks are shorter than 4 GiB.
        let start = Spot {
            chunk,
            offset: offset as u32,
        };
        let cie = &part.cies[fde.cie as usize];
        let cie_at = match cies[fde.cie as usize] {
            Some(at) => at,
            None => {
                let at = self.copy(part, cie.start, cie.end).map_err(at_function)?;
                if let Some(pointer) = cie.personality {
                    self.pointer(unit, plan, part, pointer, at + (pointer.offset - cie.start))
                        .map_err(|problem| (pointer.offset, problem))?;
                }
                cies[fde.cie as usize] = Some(at);
                at
            }
        };
        let at = self.copy(part, fde.start, fde.end).map_err(at_function)?;
        // How far back the CIE is, counted from this field.
        let field = (at + LENGTH_BYTES) as usize;
        let back = at + LENGTH_BYTES - cie_at;
        self.bytes[field..field + 4].copy_from_slice(&back.to_le_bytes());
        let moved = |pointer: Pointer| at + (pointer.offset - fde.start);
        let at_start = |_: &_| Ok((Target::Spot(start), 0));
        let fixup = self.field(unit, part, fde.function, moved(fde.function), at_start);
        plan.fixups.extend(fixup.map_err(at_function)?);
        if let Some(pointer) = fde.lsda {
            self.pointer(unit, plan, part, pointer, moved(pointer))
                .map_err(|problem| (pointer.offset, problem))?;
        }
        self.functions.push(Unwound {
            start,
            len_bytes: fde.len_bytes as u32,
            fde: at,
        });
        Ok(())
    }

    /// Appends a record as it is; returns where.
    fn copy(&mut self, part: &Frames<'_>, start: u32, end: u32) -> Result<u32, Problem> {
        let at = self.bytes.len();
        self.bytes
            .extend_from_slice(&part.bytes[start as usize..end as usize]);
        let fits = u32::try_from(self.bytes.len()).is_ok_and(|len| len < u32::MAX / 2);
        let limit = Problem::Limit {
            what: "the length of what says how to unwind",
            value: self.bytes.len() as u64,
            limit: (u32::MAX / 2).into(),
        };
        if fits { Ok(at as u32) } else { Err(limit) }
    }

    /// Plans what a pointer to landing pads or a personality routine will hold, now that it is at `at`.
    fn pointer<'a>(
        &mut self,
        unit: &Unit<'a>,
        plan: &mut Plan<'a>,
        part: &Frames<'a>,
        pointer: Pointer,
        at: u32,
    ) -> Result<(), Problem> {
        let fixup = self.field(unit, part, pointer, at, |entry| {
            let symbol = entry.r_sym(LE, false);
            let target = match unit.meaning(part.object, symbol)? {
                Meaning::Own(own) => Target::Spot(own.spot),
                Meaning::External(global) if !pointer.encoding.relative => {
                    plan.bound(unit, global)?
                }
                _ => {
                    return Err(Problem::Misused {
                        kind: relocation::lookup(entry.r_type(LE, false))
                            .map_or("a relocation", |row| row.name),
                        symbol: unit.objects[part.object].symbol_label(symbol),
                        misuse: Misuse::RelativeOutside,
                    });
                }
            };
            Ok((target, entry.r_addend.get(LE)))
        })?;
        plan.fixups.extend(fixup);
        Ok(())
    }

    /// The fixup of a pointer that is at `at` now; none where it has no relocation, and is null.
    fn field<'a>(
        &mut self,
        unit: &Unit<'a>,
        part: &Frames<'a>,
        pointer: Pointer,
        at: u32,
        target: impl FnOnce(&Rela64<LE>) -> Result<(Target, i64), Problem>,
    ) -> Result<Option<Fixup>, Problem> {
        let corrupt = |what: &str| Err(Problem::Corrupt(what.into()));
        let width = usize::from(pointer.encoding.width_bytes);
        let Some(entry) = part.relocation(pointer) else {
            let bytes = part
                .bytes
                .get(pointer.offset as usize..)
                .unwrap_or_default();
            let null = bytes.iter().take(width).all(|&byte| byte == 0);
            return if null {
                Ok(None)
            } else {
                corrupt(".eh_frame pointer without a relocation")
            };
        };
        let symbol = entry.r_sym(LE, false);
        let number = entry.r_type(LE, false);
        let row = match (number, pointer.encoding.relative, width) {
            (elf::R_X86_64_PC32, true, 4)
            | (elf::R_X86_64_PC64, true, 8)
            | (elf::R_X86_64_64, false, 8) => relocation::lookup(number),
            (elf::R_X86_64_32 | elf::R_X86_64_32S, false, 4) => {
                let symbol = unit.objects[part.object].symbol_label(symbol);
                return Err(Problem::Refused {
                    kind: "R_X86_64_32",
                    symbol,
                    refusal: Refusal::Absolute,
                });
            }
            _ => None,
        };
        let Some(row) = row else {
            return corrupt(".eh_frame pointer that is stored otherwise than its relocation says");
        };
        self.patched |= row.resolved == Resolved::AtAttach;
        let (target, addend) = target(entry)?;
        let site = Spot {
            chunk: FRAMES,
            offset: at,
        };
        Ok(Some(Fixup {
            site,
            asked: site,
            row,
            target,
            addend,
            rewrite: Rewrite::Nothing,
            symbol,
            by_section: false,
        }))
    }
}

/// How to unwind through a linked unit.
#[derive(Clone, Debug, Default)]
pub struct Unwinding {
    /// Its `.eh_frame`, with a zero word at the end; `None` if nothing of it can be unwound through.
    pub eh_frame: Option<Region>,
    /// Its functions, sorted by their places.
    pub frames: Vec<Frame>,
}

impl Prepared<'_> {
    /// How to unwind through the unit.
    ///
    /// # Errors
    /// A placement outside every window.
    pub fn unwinding(&self, at: &Placement) -> Result<Unwinding, LinkError> {
        if self.unwound.is_empty() {
            return Ok(Unwinding::default());
        }
        let in_chunk = |offset| Spot {
            chunk: FRAMES,
            offset,
        };
        let start = self.offset(in_chunk(0), at)?;
        // Shorter than 2 GiB.
        let len_bytes = self.unit.chunks[FRAMES as usize].len_bytes() as u32;
        let mut frames = Vec::with_capacity(self.unwound.len());
        for unwound in &self.unwound {
            frames.push(Frame {
                start: self.offset(unwound.start, at)?,
                len_bytes: unwound.len_bytes,
                fde: self.offset(in_chunk(unwound.fde), at)?,
            });
        }
        frames.sort_unstable_by_key(|frame| frame.start);
        Ok(Unwinding {
            eh_frame: Region::new(start.get(), len_bytes),
            frames,
        })
    }

    /// Where `spot` is in the window.
    pub(crate) fn offset(&self, spot: Spot, at: &Placement) -> Result<SegmentOffset, LinkError> {
        let place = self.place(spot, at);
        Ok(place
            .map_err(|problem| LinkError::new(self.name, problem))?
            .1)
    }
}
