//! Instructions whose displacement or immediate is to become another one's: where they start, what they do.
//!
//! The byte before an opcode may be its REX prefix or the end of the instruction before it (`8b 47 48 8b
//! 05` is either), so an instruction's start is found by decoding from the start of its function.

use iced_x86::{Decoder, DecoderOptions};

use crate::classify::is_relative;

/// A load of a general register, or a `lea`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    /// REX.W.
    wide: bool,
    /// The register that is loaded, 0 to 15.
    pub(crate) register: u8,
    /// One byte, or two that begin with 0f.
    opcode: [u8; 2],
    opcode_len: usize,
    /// Length of the whole instruction, bytes.
    pub(crate) len_bytes: u8,
}

/// The length of `movabs $imm64, %r`, bytes: REX, opcode, the immediate (Intel SDM volume 2, `MOV`).
const MOVABS_LEN: u8 = 10;

const REX: u8 = 0x40;
const REX_W: u8 = 0x48;
const STACK_POINTER: u8 = 4;

impl Load {
    /// Reads `instruction`, whose last four bytes are a displacement, if it is one that can be redirected.
    pub(crate) fn read(instruction: &[u8]) -> Option<Self> {
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

    /// Reads `instruction`, if it is a `movabs` of an immediate: the `lea` that may stand in its place.
    pub(crate) fn of_movabs(instruction: &[u8]) -> Option<Self> {
        let [
            rex @ 0x48..=0x4f,
            opcode @ 0xb8..=0xbf,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
        ] = *instruction
        else {
            return None;
        };
        Some(Self {
            wide: true,
            register: opcode & 7 | (rex & 1) << 3,
            opcode: [0x8d, 0],
            opcode_len: 1,
            len_bytes: MOVABS_LEN,
        })
    }

    /// Reads `instruction`, if it is a `movabs` from memory into `%eax` or `%rax`: the load that may stand in
    /// its place.
    pub(crate) fn of_offset(instruction: &[u8]) -> Option<Self> {
        let (wide, len_bytes) = match *instruction {
            [0xa1, ref offset @ ..] if offset.len() == 8 => (false, 9),
            [REX_W, 0xa1, ref offset @ ..] if offset.len() == 8 => (true, 10),
            _ => return None,
        };
        Some(Self {
            wide,
            register: 0,
            opcode: [0x8b, 0],
            opcode_len: 1,
            len_bytes,
        })
    }

    /// Whether the register can hold an address for a moment that it should not have: a stack pointer
    /// that does would be a signal handler's stack.
    pub(crate) fn is_stack_pointer(&self) -> bool {
        self.register == STACK_POINTER
    }

    pub(crate) fn is_lea(&self) -> bool {
        self.opcode[0] == 0x8d
    }

    /// The thunk's bytes, its fields zero. The cell's field is at 3, the way back is in the last four bytes.
    pub(crate) fn thunk(&self, displacement: i32) -> Vec<u8> {
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

/// Whether `instruction` is a `movabs` between memory and `%al` to `%rax`, without a segment.
pub(crate) fn is_offset(instruction: &[u8]) -> bool {
    let Some((head, _)) = instruction.split_last_chunk::<8>() else {
        return false;
    };
    matches!(
        head,
        [0xa0..=0xa3] | [REX | REX_W | 0x66, 0xa0..=0xa3] | [0x66, REX | REX_W, 0xa0..=0xa3]
    )
}

/// Finds instructions, each chunk of text in one sweep.
pub(crate) struct Sweep<'u> {
    pub(crate) chunk: u32,
    pub(crate) text: &'u [u8],
    /// An instruction boundary.
    pub(crate) position: usize,
}

impl<'u> Sweep<'u> {
    /// The instruction around `field`, which starts no earlier than the one asked for before.
    pub(crate) fn find(&mut self, field: usize, function: usize) -> Option<&'u [u8]> {
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
    fn every_register_has_its_movabs() {
        for register in 0..16_u8 {
            for unused in [0, 2, 4, 6] {
                let mut bytes = [
                    0x48 | unused | register >> 3,
                    0xb8 | register & 7,
                    1,
                    2,
                    3,
                    4,
                    5,
                    6,
                    7,
                    8,
                ];
                let load = Load::of_movabs(&bytes).unwrap();
                assert_eq!(
                    (load.register, load.is_lea(), load.len_bytes),
                    (register, true, 10)
                );
                assert_eq!(Load::of_movabs(&bytes[..9]), None);
                bytes[0] = 0x40;
                assert_eq!(Load::of_movabs(&bytes), None, "32 bits");
            }
        }
    }

    #[test]
    fn offsets_are_without_a_segment() {
        let with = |head: &[u8]| [head, &[0; 8]].concat();
        for head in [&[0xa0][..], &[0xa3], &[0x48, 0xa1], &[0x66, 0xa3]] {
            assert!(is_offset(&with(head)), "{head:02x?}");
        }
        for head in [
            &[][..],
            &[0xb8],
            &[0x64, 0xa1],
            &[0x67, 0xa1],
            &[0x41, 0xa1],
        ] {
            assert!(!is_offset(&with(head)), "{head:02x?}");
        }
        assert!(!is_offset(&[0xa1, 0, 0, 0, 0]));
        assert_eq!(
            Load::of_offset(&with(&[0xa1])).map(|load| (load.wide, load.len_bytes)),
            Some((false, 9))
        );
        assert_eq!(
            Load::of_offset(&with(&[0x48, 0xa1])).map(|load| (load.wide, load.len_bytes)),
            Some((true, 10))
        );
        assert_eq!(Load::of_offset(&with(&[0xa3])), None, "a store");
        assert_eq!(Load::of_offset(&with(&[0x66, 0xa1])), None, "16 bits");
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
