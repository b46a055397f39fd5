//! Putting together what describes placed functions.

use jitcast_runtime::eh_frame::{Fde, LENGTH_BYTES, Pointer};
use jitcast_runtime::frames::Frame;
use jitcast_runtime::{Region, SegmentOffset};
use object::LittleEndian as LE;
use object::elf::{self, Rela64};

use super::Frames;
use crate::error::{LinkError, Misuse, Problem};
use crate::fixup::{Fixup, Rewrite, Target};
use crate::input::{Area, Placement};
use crate::layout::{Content, FRAMES, RANK_PATCHED, Spot};
use crate::plan::Plan;
use crate::prepared::Prepared;
use crate::relocation::{self, Refusal, Resolved, Row};
use crate::unit::{Meaning, Unit};

/// A function that can be unwound through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unwound {
    start: Spot,
    len_bytes: u32,
    /// Offset of its FDE in the chunk.
    fde: u32,
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
            | (elf::R_X86_64_64, false, 8) => Row::of(number),
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
            row,
            target,
            addend,
            rewrite: Rewrite::Nothing,
            symbol,
            by_section: false,
            asked_after: 0,
            in_thunk: false,
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
