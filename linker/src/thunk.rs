//! Instructions of position-independent executables that reach the host's data or functions directly.
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
//! The byte before an opcode may be its REX prefix or the end of the instruction before it (`8b 47 48 8b
//! 05` is either), so the instruction's start is found by decoding from the start of its function.
//! Invariant: no byte is rewritten before an instruction boundary that the decoder found.

use iced_x86::{Decoder, DecoderOptions};

use crate::atoms::Atoms;
use crate::classify::is_relative;
use crate::error::{LinkError, Misuse, Problem};
use crate::fixup::{Detour, Fixup, Rewrite, Target};
use crate::layout::{Content, Spot, THUNKS};
use crate::plan::Plan;
use crate::relocation::{CELL, OutOfRange, RELATIVE};
use crate::unit::Unit;

/// A load of a general register, or a `lea`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Load {
    /// REX.W.
    wide: bool,
    /// The register that is loaded, 0 to 15.
    register: u8,
    /// One byte, or two that begin with 0f.
    opcode: [u8; 2],
    opcode_len: usize,
    /// Length of the whole instruction, bytes.
    len_bytes: u8,
}

const REX: u8 = 0x40;
const REX_W: u8 = 0x48;
const STACK_POINTER: u8 = 4;

impl Load {
    /// Reads `instruction`, whose last four bytes are a displacement, if it is one that can be redirected.
    fn read(instruction: &[u8]) -> Option<Self> {
        let (rex, rest) = match *instruction {
            [rex @ 0x40..=0x4f, ref rest @ ..] => (rex, rest),
            _ => (REX, instruction),
        };
        let wide = rex & 8 != 0;
        let (opcode, opcode_len, modrm) = match *rest {
            // mov, 32 and 64 bits.
            [0x8b, modrm, _, _, _, _] => ([0x8b, 0], 1, modrm),
            // lea and movslq, 64 bits.
            [opcode @ (0x8d | 0x63), modrm, _, _, _, _] if wide => ([opcode, 0], 1, modrm),
            // movzx and movsx of 8 and 16 bits, into 32 and 64.
            [
                0x0f,
                opcode @ (0xb6 | 0xb7 | 0xbe | 0xbf),
                modrm,
                _,
                _,
                _,
                _,
            ] => ([0x0f, opcode], 2, modrm),
            _ => return None,
        };
        let register = modrm >> 3 & 7 | (rex & 4) << 1;
        // A stack pointer that is an address for a moment would be a signal handler's stack.
        let usable = is_relative(modrm) && register != STACK_POINTER;
        let len_bytes = u8::try_from(instruction.len()).ok()?;
        usable.then_some(Self {
            wide,
            register,
            opcode,
            opcode_len,
            len_bytes,
        })
    }

    fn is_lea(&self) -> bool {
        self.opcode[0] == 0x8d
    }

    /// The thunk's bytes, its fields zero. The cell's field is at 3, the way back is in the last four bytes.
    fn thunk(&self, displacement: i32) -> Vec<u8> {
        let (high, low) = (self.register >> 3, self.register & 7);
        let mut bytes = vec![REX_W | high << 2, 0x8b, 0x05 | low << 3, 0, 0, 0, 0];
        let rex = REX | u8::from(self.wide) << 3 | high << 2 | high;
        if rex != REX {
            bytes.push(rex);
        }
        bytes.extend_from_slice(&self.opcode[..self.opcode_len]);
        // mod = 10: the register and 32 bits of displacement.
        bytes.push(0x80 | low << 3 | low);
        if low == STACK_POINTER {
            // %r12 as a base is spelled with a SIB byte: no index.
            bytes.push(0x24);
        }
        bytes.extend_from_slice(&displacement.to_le_bytes());
        bytes.extend_from_slice(&[0xe9, 0, 0, 0, 0]);
        bytes
    }
}

/// Finds instructions, each chunk of text in one sweep.
struct Sweep<'u> {
    chunk: u32,
    text: &'u [u8],
    /// An instruction boundary.
    position: usize,
}

impl Sweep<'_> {
    /// The instruction around `field`, which starts no earlier than the one asked for before.
    fn find(&mut self, field: usize, function: usize) -> Option<&[u8]> {
        self.position = self.position.max(function);
        let mut decoder = Decoder::new(64, self.text, DecoderOptions::NONE);
        decoder.set_position(self.position).ok()?;
        while decoder.position() <= field && decoder.can_decode() {
            self.position = decoder.position();
            if decoder.decode().is_invalid() {
                return None;
            }
            if decoder.position() > field {
                return self.text.get(self.position..decoder.position());
            }
        }
        None
    }
}

/// Settles the detours: adds the thunks' bytes, and fixups for what changes. Returns where each thunk is.
pub(crate) fn build(
    unit: &mut Unit<'_>,
    plan: &mut Plan<'_>,
    atoms: &Atoms,
) -> Result<Vec<(Spot, u32)>, LinkError> {
    let mut detours = core::mem::take(&mut plan.detours);
    detours.sort_by_key(|detour| detour.fixup.site);
    let mut thunks = Vec::new();
    let mut places = Vec::new();
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
    let Detour { fixup, origin } = *detour;
    let site = fixup.site;
    let label = || unit.objects[origin.0 as usize].symbol_label(fixup.symbol);
    let misuse = |misuse| Problem::Misused {
        kind: RELATIVE.name,
        symbol: label(),
        misuse,
    };
    let field = site.offset as usize;
    let instruction = sweep.find(field, atoms.start_of(site) as usize);
    let instruction = instruction.ok_or_else(|| misuse(Misuse::NoInstruction))?;
    let len_bytes = instruction.len();
    let load = Load::read(instruction);
    // The field has to be the displacement, and the displacement the end of the instruction.
    let end = sweep.position + len_bytes;
    let load = load
        .filter(|_| end == field + 4)
        .ok_or_else(|| misuse(Misuse::DirectOutside))?;
    if load.is_lea() && fixup.addend == -4 {
        fixups.push(Fixup {
            rewrite: Rewrite::Load,
            ..fixup
        });
        return Ok(());
    }
    let displacement = i128::from(fixup.addend) + 4;
    let narrow = i32::try_from(displacement).map_err(|_| {
        let range = OutOfRange {
            value: displacement,
            min: i32::MIN.into(),
            max: i32::MAX.into(),
        };
        Problem::OutOfRange {
            kind: RELATIVE.name,
            symbol: label(),
            range,
        }
    })?;
    let too_many = Problem::Limit {
        what: "the length of the thunks",
        value: thunks.len() as u64,
        limit: 1 << 31,
    };
    let start = u32::try_from(thunks.len())
        .ok()
        .filter(|&start| start < 1 << 31)
        .ok_or(too_many)?;
    thunks.extend_from_slice(&load.thunk(narrow));
    let thunk = |offset| Spot {
        chunk: THUNKS,
        offset,
    };
    let jump = Fixup {
        row: RELATIVE,
        addend: -4,
        rewrite: Rewrite::Nothing,
        by_section: false,
        ..fixup
    };
    let back = Spot {
        offset: site.offset + 4,
        ..site
    };
    let way_back = thunk(thunks.len() as u32 - 4);
    let first = Spot {
        offset: sweep.position as u32 + 1,
        ..site
    };
    fixups.extend([
        Fixup {
            site: thunk(start + 3),
            row: CELL,
            ..jump
        }
        .to(fixup.target),
        Fixup {
            site: way_back,
            ..jump
        }
        .to(Target::Spot(back)),
        Fixup {
            site: first,
            rewrite: Rewrite::Jump(load.len_bytes),
            ..jump
        }
        .to(Target::Spot(thunk(start))),
    ]);
    Ok(())
}

impl Fixup {
    fn to(self, target: Target) -> Self {
        Self { target, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(bytes: &[u8]) -> Option<Load> {
        Load::read(&[bytes, &[0; 4]].concat())
    }

    #[test]
    fn loads_of_whole_general_registers_can_be_redirected() {
        let good: [(&[u8], u8); 10] = [
            (&[0x8b, 0x05], 0),
            (&[0x48, 0x8b, 0x0d], 1),
            (&[0x44, 0x8b, 0x25], 12),
            (&[0x4c, 0x8b, 0x3d], 15),
            (&[0x48, 0x63, 0x15], 2),
            (&[0x0f, 0xb6, 0x05], 0),
            (&[0x44, 0x0f, 0xb7, 0x05], 8),
            (&[0x48, 0x0f, 0xbe, 0x1d], 3),
            (&[0x0f, 0xbf, 0x2d], 5),
            (&[0x48, 0x8d, 0x35], 6),
        ];
        for (bytes, register) in good {
            assert_eq!(
                load(bytes).map(|load| load.register),
                Some(register),
                "{bytes:02x?}"
            );
        }
    }

    #[test]
    fn nothing_else_can() {
        let bad: [&[u8]; 11] = [
            &[0x8a, 0x05],                         // mov x, %al: the rest of %rax stays
            &[0x66, 0x8b, 0x05],                   // mov x, %ax
            &[0x89, 0x05],                         // a store
            &[0x3b, 0x05],                         // cmp
            &[0x8b, 0x25],                         // mov x, %esp
            &[0x48, 0x8d, 0x25],                   // lea x, %rsp
            &[0x8d, 0x05],                         // lea of 32 bits
            &[0x8b, 0x80],                         // not relative
            &[0xf2, 0x0f, 0x10, 0x05],             // movsd
            &[0x64, 0x48, 0x8b, 0x05],             // of a segment
            &[0x62, 0xf2, 0xfd, 0x48, 0x8d, 0x05], // vpermw
        ];
        for bytes in bad {
            assert_eq!(load(bytes), None, "{bytes:02x?}");
        }
    }

    #[test]
    fn thunks_are_what_the_decoder_reads() {
        use iced_x86::{Mnemonic, Register};
        for (bytes, register, loaded) in [
            (&[0x44_u8, 0x8b, 0x25][..], Register::R12, Register::R12D),
            (&[0x48, 0x8b, 0x05], Register::RAX, Register::RAX),
            (&[0x4c, 0x0f, 0xb6, 0x2d], Register::R13, Register::R13),
            (&[0x48, 0x63, 0x2d], Register::RBP, Register::RBP),
        ] {
            let thunk = load(bytes).unwrap().thunk(-0x1234);
            let mut decoder = Decoder::new(64, &thunk, DecoderOptions::NONE);
            let (cell, load, back) = (decoder.decode(), decoder.decode(), decoder.decode());
            assert!(cell.is_ip_rel_memory_operand());
            assert_eq!(
                (cell.mnemonic(), cell.op0_register()),
                (Mnemonic::Mov, register)
            );
            assert_eq!(
                (load.memory_base(), load.memory_index()),
                (register, Register::None)
            );
            assert_eq!(load.memory_displacement64() as i64, -0x1234);
            assert_eq!(load.op0_register(), loaded);
            assert_eq!(back.mnemonic(), Mnemonic::Jmp);
            assert!(!decoder.can_decode());
        }
    }

    #[test]
    fn a_prefix_is_told_from_the_end_of_the_instruction_before() {
        // mov 0x48(%rdi), %eax; mov x(%rip), %eax
        let text = [0x8b, 0x47, 0x48, 0x8b, 0x05, 0, 0, 0, 0];
        let mut sweep = Sweep {
            chunk: 0,
            text: &text,
            position: 0,
        };
        assert_eq!(sweep.find(5, 0), Some(&text[3..]));
        assert_eq!(sweep.find(5, 0), Some(&text[3..]), "asked again");
        // mov 0(%rdi), %eax; mov x(%rip), %rax
        let text = [0x8b, 0x07, 0x48, 0x8b, 0x05, 0, 0, 0, 0];
        let mut sweep = Sweep {
            chunk: 0,
            text: &text,
            position: 0,
        };
        assert_eq!(sweep.find(5, 0), Some(&text[2..]));
    }
}
