//! Instructions that cannot stay as they are: those of position-independent executables that reach the
//! host's data or functions directly, and those that hold an absolute address.
//!
//! `lea x(%rip), %r` becomes `mov cell(%rip), %r` in place, as long. Anything longer does not fit, so the
//! instruction becomes a jump to a thunk in the unit's text, and the thunk jumps back:
//!
//! ```text
//!     mov x+16(%rip), %ecx             jmp thunk; nop
//!                               thunk: mov cell(%rip), %rcx
//!                                      mov 16(%rcx), %ecx
//!                                      jmp back
//! ```
//!
//! The register that is loaded serves as the scratch register, hence only loads of a whole general register.
//! No flag, no other register and no stack is touched.
//!
//! A `movabs` of an address, 10 bytes, becomes `lea x(%rip), %r` where the unit has it, and `mov
//! cell(%rip), %r` where it has not, 7 bytes and a `nop` of 3. With an addend to a cell it goes through a
//! thunk. So does `movabs x, %rax`, the load; it and its store become PC-relative where the unit has x.
//!
//! Invariant: no byte is rewritten before an instruction boundary that the decoder found.

use crate::additions::RESOLVED_LEN;
use crate::atoms::Atoms;
use crate::error::{LinkError, Misuse, Problem};
use crate::fixup::{Detour, Field, Fixup, Rewrite, Target};
use crate::instruction::{Load, Sweep, is_offset};
use crate::layout::{Content, Spot, THUNKS};
use crate::mutant::{Mutant, makes};
use crate::plan::Plan;
use crate::relocation::{ABSOLUTE, CELL, OutOfRange, RELATIVE};
use crate::unit::Unit;

/// Settles the detours: adds the thunks' bytes, and fixups for what changes. Returns where each thunk is.
pub(crate) fn build(
    unit: &mut Unit<'_>,
    plan: &mut Plan<'_>,
    atoms: &Atoms,
) -> Result<Vec<(Spot, u32)>, LinkError> {
    let mut detours = core::mem::take(&mut plan.detours);
    detours.sort_by_key(|detour| detour.fixup.site);
    // Those of indirect functions come first.
    let mut thunks = (unit.chunks[THUNKS as usize].bytes()).map_or_else(Vec::new, <[u8]>::to_vec);
    let mut places: Vec<(Spot, u32)> = (0..unit.resolvers.len() as u32)
        .map(|index| {
            let offset = index * RESOLVED_LEN;
            (
                Spot {
                    chunk: THUNKS,
                    offset,
                },
                RESOLVED_LEN,
            )
        })
        .collect();
    let mut sweep = Sweep {
        chunk: u32::MAX,
        text: &[],
        position: 0,
    };
    for detour in &detours {
        let site = detour.fixup.site;
        if sweep.chunk != site.chunk {
            let text = unit.chunks[site.chunk as usize].bytes().unwrap_or_default();
            sweep = Sweep {
                chunk: site.chunk,
                text,
                position: 0,
            };
        }
        let start = thunks.len();
        let settled = settle(
            &mut sweep,
            detour,
            atoms,
            &mut thunks,
            &mut plan.fixups,
            unit,
        );
        settled.map_err(|problem| {
            let (object, section) = detour.origin;
            unit.objects[object as usize].error_at(
                section as usize,
                u64::from(site.offset),
                problem,
            )
        })?;
        if thunks.len() > start {
            let offset = u32::try_from(start).unwrap_or(u32::MAX);
            places.push((
                Spot {
                    chunk: THUNKS,
                    offset,
                },
                (thunks.len() - start) as u32,
            ));
        }
    }
    unit.chunks[THUNKS as usize].content = Content::Made(thunks);
    Ok(places)
}

fn settle(
    sweep: &mut Sweep<'_>,
    detour: &Detour,
    atoms: &Atoms,
    thunks: &mut Vec<u8>,
    fixups: &mut Vec<Fixup>,
    unit: &Unit<'_>,
) -> Result<(), Problem> {
    let Detour { fixup, field, .. } = *detour;
    let site = fixup.site;
    let (kind, none, other) = match field {
        Field::Displacement => (RELATIVE.name, Misuse::NoInstruction, Misuse::DirectOutside),
        Field::Immediate => (
            ABSOLUTE.name,
            Misuse::AbsoluteInText,
            Misuse::AbsoluteInText,
        ),
    };
    let label = || unit.objects[detour.origin.0 as usize].symbol_label(fixup.symbol);
    let misuse = |misuse| Problem::Misused {
        kind,
        symbol: label(),
        misuse,
    };
    let instruction = sweep.find(site.offset as usize, atoms.start_of(site) as usize);
    let instruction = instruction.ok_or_else(|| misuse(none))?;
    let width = match field {
        Field::Displacement => 4,
        Field::Immediate => 8,
    };
    // The field has to be the displacement or the immediate, and that the end of the instruction.
    let end = sweep.position + instruction.len();
    if end != site.offset as usize + width {
        return Err(misuse(other));
    }
    let outside = fixup.row == CELL;
    let load = match field {
        Field::Displacement => Load::read(instruction),
        Field::Immediate => Load::of_movabs(instruction),
    };
    let is_lea = load.is_some_and(|load| load.is_lea());
    let displacement = match field {
        Field::Displacement => i128::from(fixup.addend) + 4,
        Field::Immediate => i128::from(fixup.addend),
    };
    let in_place = match field {
        Field::Displacement if is_lea && displacement == 0 => Some(Rewrite::Load),
        Field::Displacement => None,
        Field::Immediate if is_lea && !outside => Some(Rewrite::MovabsToLea),
        Field::Immediate if is_lea && displacement == 0 => Some(Rewrite::MovabsToLoad),
        // What is read or written there is no address: a function's stub will not do.
        Field::Immediate
            if is_offset(instruction) && !outside && !matches!(fixup.target, Target::Stub(_)) =>
        {
            Some(Rewrite::OffsetToOperand)
        }
        Field::Immediate => None,
    };
    if let Some(rewrite) = in_place {
        // The displacement of what a `movabs` becomes starts one byte after the immediate.
        let moved = u32::from(field == Field::Immediate);
        fixups.push(Fixup {
            site: site.plus(moved),
            asked_after: -(moved as i8),
            rewrite,
            addend: match field {
                Field::Displacement => fixup.addend,
                Field::Immediate => fixup.addend.saturating_sub(4),
            },
            ..fixup
        });
        return Ok(());
    }
    let load = load
        .or_else(|| Load::of_offset(instruction))
        .filter(|load| outside && !load.is_stack_pointer())
        .ok_or_else(|| misuse(other))?;
    let narrow = i32::try_from(displacement).map_err(|_| {
        let range = OutOfRange {
            value: displacement,
            min: i32::MIN.into(),
            max: i32::MAX.into(),
        };
        Problem::OutOfRange {
            kind,
            symbol: label(),
            range,
        }
    })?;
    let start = sweep.position as u32;
    send_through_thunk(&fixup, &load, narrow, start, thunks, fixups)
}

/// Turns the instruction at `start` into a jump to a thunk that does the same through a cell.
fn send_through_thunk(
    fixup: &Fixup,
    load: &Load,
    displacement: i32,
    start: u32,
    thunks: &mut Vec<u8>,
    fixups: &mut Vec<Fixup>,
) -> Result<(), Problem> {
    let too_many = Problem::Limit {
        what: "the length of the thunks",
        value: thunks.len() as u64,
        limit: 1 << 31,
    };
    let first = u32::try_from(thunks.len())
        .ok()
        .filter(|&first| first < 1 << 31)
        .ok_or(too_many)?;
    thunks.extend_from_slice(&load.thunk(displacement));
    let thunk = |offset| Spot {
        chunk: THUNKS,
        offset,
    };
    let here = |offset| Spot {
        offset,
        ..fixup.site
    };
    let jump = Fixup {
        row: RELATIVE,
        addend: -4,
        rewrite: Rewrite::Nothing,
        by_section: false,
        ..*fixup
    };
    let way_back = thunk(thunks.len() as u32 - 4);
    let early = u32::from(makes(Mutant::ThunkEarly));
    let back = here(start + u32::from(load.len_bytes) - early);
    fixups.extend([
        Fixup {
            site: thunk(first + 3),
            row: CELL,
            in_thunk: true,
            ..jump
        }
        .to(fixup.target),
        Fixup {
            site: way_back,
            in_thunk: true,
            ..jump
        }
        .to(Target::Spot(back)),
        Fixup {
            site: here(start + 1),
            // No instruction is longer than 15 bytes.
            asked_after: (fixup.site.offset - (start + 1)) as i8,
            rewrite: Rewrite::Jump(load.len_bytes),
            ..jump
        }
        .to(Target::Spot(thunk(first))),
    ]);
    Ok(())
}

impl Fixup {
    fn to(self, target: Target) -> Self {
        Self { target, ..self }
    }
}
