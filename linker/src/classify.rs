//! What an instruction does with a symbol, told by the bytes before the relocated field.
//!
//! A displacement that is relative to the instruction pointer directly follows its ModRM byte, which has
//! mod = 00 and rm = 101: one of 05, 0d, 15, 1d, 25, 2d, 35, 3d (Intel SDM volume 2, section 2.1.3). No
//! opcode of a branch with a 32-bit displacement (e8, e9, 0f 80 to 0f 8f) is one of these, and `ff` before
//! 15 or 25 is the opcode of `call` or `jmp` through memory. So these forms are certain. Where a prefix
//! matters (REX.W), it is certain for the GOT loads that assemblers emit, which are all 64 bits wide, and
//! is *not* certain for other operands, whose prefix may as well be the last byte of the instruction
//! before: those are decoded from the start of their function (see [`crate::instruction`]).

use object::elf;

use crate::relocation::Relocation;

/// What is done with a symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// `call`, `jmp` or a conditional jump to it.
    Branch,
    /// `call *` through its GOT entry.
    IndirectCall,
    /// `jmp *` through its GOT entry.
    IndirectJump,
    /// `mov` of its GOT entry into a 64-bit register: may become `lea`.
    GotLoad,
    /// Anything else with its GOT entry.
    GotEntry,
    /// `lea` of its start into a 64-bit register.
    TakeAddress,
    /// An operand in or after it.
    Operand,
    /// Its absolute address, in a field of data or as an immediate.
    Word,
    /// The distance to it, in a field of data or as an immediate.
    Distance,
    /// The distance to its stub, in a field of data.
    StubDistance,
    /// A distance of 8 or 16 bits: to its own place, since no stub is that near.
    Near,
    /// Its distance from the start of the cells.
    FromTable,
    /// Its stub's distance from the start of the cells.
    StubFromTable,
    /// A number that does not depend on where the symbol lies.
    Number(Number),
    /// Its storage in the calling thread.
    Thread(Storage),
}

/// What is asked of a thread-local symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    /// The pair by which `__tls_get_addr` finds it (general dynamic).
    Pair,
    /// The pair by which `__tls_get_addr` finds the unit's block (local dynamic).
    Block,
    /// Its offset in the unit's block.
    Offset,
    /// The cell with its distance from the thread pointer (initial exec).
    FromThread,
}

/// A number that a field asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Number {
    /// The symbol's value, if it is one.
    Value,
    /// The symbol's size.
    Size,
    /// Where the cells start.
    Table,
}

/// What a kind says by itself, whatever is around its field. Nothing, of the kinds that [`in_text`] tells apart.
fn anywhere(row: &Relocation) -> Option<Use> {
    match row.number {
        elf::R_X86_64_64 => Some(Use::Word),
        elf::R_X86_64_TLSGD => Some(Use::Thread(Storage::Pair)),
        elf::R_X86_64_TLSLD => Some(Use::Thread(Storage::Block)),
        elf::R_X86_64_DTPOFF32 | elf::R_X86_64_DTPOFF64 => Some(Use::Thread(Storage::Offset)),
        elf::R_X86_64_GOTTPOFF => Some(Use::Thread(Storage::FromThread)),
        elf::R_X86_64_PC8 | elf::R_X86_64_PC16 => Some(Use::Near),
        // The code of the larger models loads the entry by itself, so that calls look like addresses.
        elf::R_X86_64_GOT32
        | elf::R_X86_64_GOT64
        | elf::R_X86_64_GOTPLT64
        | elf::R_X86_64_GOTPCREL64 => Some(Use::GotEntry),
        elf::R_X86_64_GOTOFF64 => Some(Use::FromTable),
        elf::R_X86_64_PLTOFF64 => Some(Use::StubFromTable),
        elf::R_X86_64_GOTPC32 | elf::R_X86_64_GOTPC64 => Some(Use::Number(Number::Table)),
        elf::R_X86_64_SIZE32 | elf::R_X86_64_SIZE64 => Some(Use::Number(Number::Size)),
        elf::R_X86_64_8 | elf::R_X86_64_16 | elf::R_X86_64_32 | elf::R_X86_64_32S => {
            Some(Use::Number(Number::Value))
        }
        _ => None,
    }
}

/// The addend of a symbol whose start is meant by an instruction that ends with the field.
const START: i64 = -4;

/// How many bytes before a field [`in_text`] looks at, at most.
pub(crate) const BEFORE: usize = 3;

/// Which bits of the bytes before a field made [`in_text`] say `usage`: whatever agrees with `before` in them, and has the
/// same row and addend, is used in the same way.
pub(crate) fn looked_at(usage: Use, before: [u8; BEFORE]) -> [u8; BEFORE] {
    match usage {
        Use::Branch if matches!(before, [.., 0xe8 | 0xe9]) => [0, 0, 0xff],
        Use::Branch | Use::IndirectCall | Use::IndirectJump => [0, 0xff, 0xff],
        // REX.W with any of its other bits, the opcode, and ModRM with any register.
        Use::GotLoad | Use::TakeAddress => [0xf8, 0xff, 0xc7],
        _ => [0xff; BEFORE],
    }
}

/// What the instruction around `field` in `text` does with the symbol of a relocation.
#[inline]
pub(crate) fn in_text(row: &Relocation, text: &[u8], field: usize, addend: i64) -> Use {
    let before = text.get(..field).unwrap_or_default();
    match row.number {
        elf::R_X86_64_GOTPCREL | elf::R_X86_64_GOTPCRELX | elf::R_X86_64_REX_GOTPCRELX => {
            match before {
                _ if addend != START => Use::GotEntry,
                [.., 0xff, 0x15] => Use::IndirectCall,
                [.., 0xff, 0x25] => Use::IndirectJump,
                [.., 0x48..=0x4f, 0x8b, modrm] if is_relative(*modrm) => Use::GotLoad,
                _ => Use::GotEntry,
            }
        }
        elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 => match before {
            [.., 0xe8 | 0xe9] | [.., 0x0f, 0x80..=0x8f] => Use::Branch,
            [.., 0x48..=0x4f, 0x8d, modrm] if is_relative(*modrm) && addend == START => {
                Use::TakeAddress
            }
            [.., modrm] if is_relative(*modrm) => Use::Operand,
            _ => Use::Distance,
        },
        _ => anywhere(row).unwrap_or(Use::Distance),
    }
}

/// What a field of data does with the symbol of a relocation.
pub(crate) fn in_data(row: &Relocation) -> Use {
    if let Some(usage) = anywhere(row) {
        return usage;
    }
    match row.number {
        elf::R_X86_64_PLT32 => Use::StubDistance,
        elf::R_X86_64_GOTPCREL | elf::R_X86_64_GOTPCRELX | elf::R_X86_64_REX_GOTPCRELX => {
            Use::GotEntry
        }
        _ => Use::Distance,
    }
}

/// Whether a ModRM byte says: memory, at a displacement from the instruction pointer.
pub(crate) fn is_relative(modrm: u8) -> bool {
    modrm & 0xc7 == 0x05
}

/// How many bytes of immediate follow the displacement that starts at `field`, as far as one can tell: only
/// for estimates.
pub(crate) fn immediate_len(text: &[u8], field: usize) -> u8 {
    match text.get(..field).unwrap_or_default() {
        [.., 0x0f, _, _] => 0,
        [.., 0x80 | 0x83 | 0xc0 | 0xc1 | 0xc6 | 0x6b, _] => 1,
        [.., 0xf6, 0x05 | 0x0d] => 1,
        [.., 0x66, 0x81 | 0xc7 | 0x69, _] => 2,
        [.., 0x81 | 0xc7 | 0x69, _] => 4,
        [.., 0xf7, 0x05 | 0x0d] => 4,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relocation::lookup;

    fn text(number: u32, before: &[u8], addend: i64) -> Use {
        let bytes = [before, &[0; 4]].concat();
        in_text(lookup(number).unwrap(), &bytes, before.len(), addend)
    }

    #[test]
    fn calls_through_the_got_are_calls_whatever_the_kind() {
        for number in [
            elf::R_X86_64_GOTPCREL,
            elf::R_X86_64_GOTPCRELX,
            elf::R_X86_64_REX_GOTPCRELX,
        ] {
            assert_eq!(text(number, &[0xff, 0x15], -4), Use::IndirectCall);
            assert_eq!(text(number, &[0xff, 0x25], -4), Use::IndirectJump);
            assert_eq!(
                text(number, &[0x3e, 0xff, 0x25], -4),
                Use::IndirectJump,
                "notrack"
            );
            assert_eq!(text(number, &[0xff, 0x35], -4), Use::GotEntry, "push");
            assert_eq!(
                text(number, &[0xff, 0x15], 0),
                Use::GotEntry,
                "beside the entry"
            );
        }
    }

    #[test]
    fn only_a_64_bit_load_may_become_lea() {
        let got = elf::R_X86_64_REX_GOTPCRELX;
        assert_eq!(
            text(got, &[0x48, 0x8b, 0x05], -4),
            Use::GotLoad,
            "mov f@GOTPCREL(%rip), %rax"
        );
        assert_eq!(
            text(got, &[0x4c, 0x8b, 0x3d], -4),
            Use::GotLoad,
            "mov f@GOTPCREL(%rip), %r15"
        );
        assert_eq!(
            text(elf::R_X86_64_GOTPCREL, &[0x48, 0x8b, 0x0d], -4),
            Use::GotLoad
        );
        assert_eq!(
            text(elf::R_X86_64_GOTPCRELX, &[0x8b, 0x05], -4),
            Use::GotEntry,
            "32 bits"
        );
        assert_eq!(
            text(got, &[0x44, 0x8b, 0x05], -4),
            Use::GotEntry,
            "32 bits, %r8d"
        );
        assert_eq!(
            text(got, &[0x48, 0x8b, 0x04], -4),
            Use::GotEntry,
            "another operand"
        );
        assert_eq!(
            text(got, &[0x48, 0x8b, 0x45], -4),
            Use::GotEntry,
            "another operand"
        );
        assert_eq!(text(got, &[0x48, 0x3b, 0x05], -4), Use::GotEntry, "cmp");
        assert_eq!(
            text(got, &[0x48, 0x83, 0x3d], -5),
            Use::GotEntry,
            "cmp with an immediate"
        );
        assert_eq!(text(got, &[0x48, 0x85, 0x05], -4), Use::GotEntry, "test");
        assert_eq!(text(got, &[0x48, 0x03, 0x05], -4), Use::GotEntry, "add");
    }

    #[test]
    fn branches_and_addresses_are_told_apart() {
        for number in [elf::R_X86_64_PC32, elf::R_X86_64_PLT32] {
            assert_eq!(text(number, &[0xe8], -4), Use::Branch);
            assert_eq!(text(number, &[0xe9], -4), Use::Branch);
            for condition in 0x80..=0x8f {
                assert_eq!(text(number, &[0x0f, condition], -4), Use::Branch);
            }
            assert_eq!(
                text(number, &[0x48, 0x8d, 0x3d], -4),
                Use::TakeAddress,
                "lea f(%rip), %rdi"
            );
            assert_eq!(
                text(number, &[0x48, 0x8d, 0x3d], 4),
                Use::Operand,
                "lea f+8(%rip), %rdi"
            );
            assert_eq!(
                text(number, &[0x8b, 0x05], -4),
                Use::Operand,
                "mov x(%rip), %eax"
            );
            assert_eq!(text(number, &[0xb8], 1), Use::Distance, "mov $f-., %eax");
        }
    }

    /// Bytes that matter to some pattern, and others, before fields of every kind that is told apart by them.
    #[test]
    fn what_agrees_in_what_was_looked_at_is_used_alike() {
        let bytes = [
            0x00, 0x05, 0x0d, 0x0f, 0x15, 0x25, 0x35, 0x48, 0x4c, 0x4f, 0x50, 0x85, 0x8b, 0x8d,
            0xc7, 0xe8, 0xe9, 0xff,
        ];
        let all: Vec<[u8; BEFORE]> = bytes
            .iter()
            .flat_map(|&one| bytes.iter().map(move |&two| (one, two)))
            .flat_map(|(one, two)| bytes.iter().map(move |&three| [one, two, three]))
            .collect();
        for number in [
            elf::R_X86_64_PC32,
            elf::R_X86_64_PLT32,
            elf::R_X86_64_GOTPCREL,
            elf::R_X86_64_REX_GOTPCRELX,
        ] {
            for addend in [-4, 0] {
                let uses: Vec<Use> = all
                    .iter()
                    .map(|before| text(number, before, addend))
                    .collect();
                for (before, &usage) in all.iter().zip(&uses) {
                    let mask = looked_at(usage, *before);
                    let agrees = |other: &[u8; BEFORE]| {
                        (0..BEFORE).all(|at| (before[at] ^ other[at]) & mask[at] == 0)
                    };
                    for (other, &found) in all.iter().zip(&uses).filter(|(other, _)| agrees(other))
                    {
                        assert_eq!(usage, found, "{number}: {before:02x?} {other:02x?}");
                    }
                }
            }
        }
    }

    #[test]
    fn data_has_no_instructions() {
        let data = |number| in_data(lookup(number).unwrap());
        assert_eq!(data(elf::R_X86_64_64), Use::Word);
        assert_eq!(data(elf::R_X86_64_PC32), Use::Distance);
        assert_eq!(data(elf::R_X86_64_PC64), Use::Distance);
        assert_eq!(data(elf::R_X86_64_PLT32), Use::StubDistance);
        assert_eq!(data(elf::R_X86_64_GOTPCREL), Use::GotEntry);
    }

    #[test]
    fn a_field_at_the_start_has_nothing_before_it() {
        assert_eq!(text(elf::R_X86_64_GOTPCRELX, &[], -4), Use::GotEntry);
        assert_eq!(text(elf::R_X86_64_PC32, &[], -4), Use::Distance);
        assert_eq!(text(elf::R_X86_64_PC32, &[0x05], -4), Use::Operand);
    }
}
