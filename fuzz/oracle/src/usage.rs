//! What a relocation is used for: told by its kind and, in text, by the bytes before its field.

use crate::table::Row;

/// A use of a symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usage {
    /// A direct call or jump.
    Branch,
    /// `call *entry(%rip)`.
    EntryCall,
    /// `jmp *entry(%rip)`.
    EntryJump,
    /// `mov entry(%rip), %r64`.
    EntryLoad,
    /// The entry, in any other way.
    Entry,
    /// `lea symbol(%rip), %r64`.
    Lea,
    /// Another operand at a displacement from the instruction pointer.
    Operand,
    /// An absolute address of 64 bits.
    Word,
    /// The distance from the field.
    Distance,
    /// The same in 8 or 16 bits.
    ShortDistance,
    /// The distance from the field to where a call would lead.
    LinkageDistance,
    /// The distance from the table.
    TableDistance,
    /// The distance from the table to where a call would lead.
    LinkageTableDistance,
    /// The value of an absolute symbol, or an address of fewer than 64 bits.
    Value,
    /// The pair of words by which `__tls_get_addr` finds a thread-local symbol.
    Pair,
    /// The same for the unit's whole block.
    BlockPair,
    /// The entry that holds a symbol's distance from the thread pointer.
    FromThread,
    /// A thread-local symbol's offset in its block.
    BlockOffset,
    /// What does not depend on the symbol's address: its size, the table.
    Number,
}

/// The addend of an instruction that ends with its field and means the symbol's start.
pub(crate) const START: i64 = -4;

impl Usage {
    pub(crate) fn of(row: &Row, addend: i64, before: &[u8], in_text: bool) -> Self {
        match (row.name.trim_start_matches("R_X86_64_"), in_text) {
            ("64", _) => Self::Word,
            ("PC8" | "PC16", _) => Self::ShortDistance,
            ("8" | "16" | "32" | "32S", _) => Self::Value,
            ("TLSGD", _) => Self::Pair,
            ("TLSLD", _) => Self::BlockPair,
            ("GOTTPOFF", _) => Self::FromThread,
            ("DTPOFF32" | "DTPOFF64", _) => Self::BlockOffset,
            ("GOTOFF64", _) => Self::TableDistance,
            ("PLTOFF64", _) => Self::LinkageTableDistance,
            ("PC32" | "PLT32", true) => Self::of_displacement(addend, before),
            ("PLT32", false) => Self::LinkageDistance,
            ("PC32" | "PC64", _) => Self::Distance,
            ("GOTPCREL" | "GOTPCRELX" | "REX_GOTPCRELX", true) if addend == START => match before {
                [.., 0xff, 0x15] => Self::EntryCall,
                [.., 0xff, 0x25] => Self::EntryJump,
                [.., rex, 0x8b, modrm] if is_wide(*rex) && is_relative(*modrm) => Self::EntryLoad,
                _ => Self::Entry,
            },
            _ if row.uses_entry() => Self::Entry,
            _ => Self::Number,
        }
    }

    fn of_displacement(addend: i64, before: &[u8]) -> Self {
        match before {
            [.., 0xe8 | 0xe9] | [.., 0x0f, 0x80..=0x8f] => Self::Branch,
            [.., rex, 0x8d, modrm] if is_wide(*rex) && is_relative(*modrm) && addend == START => {
                Self::Lea
            }
            [.., modrm] if is_relative(*modrm) => Self::Operand,
            _ => Self::Distance,
        }
    }
}

/// A REX prefix with its W bit.
pub(crate) fn is_wide(rex: u8) -> bool {
    rex & 0xf8 == 0x48
}

/// A ModRM byte that says: memory, at a displacement of 32 bits from the next instruction.
pub(crate) fn is_relative(modrm: u8) -> bool {
    modrm & 0xc7 == 0x05
}
