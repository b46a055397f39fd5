//! The one table of relocations: what each kind is called, computes, writes, and when it is resolved.
//!
//! Invariant: a kind that has no row in [`TABLE`] is refused by name ([`refusal()`]), never skipped.
//! Source: System V ABI, AMD64 supplement (psABI x86-64) 1.0, section 4.4.1, table 4.9.

use core::fmt;

use object::elf;

use crate::mutant::{Mutant, makes};
pub use crate::refusal::{Refusal, refusal};
pub(crate) use crate::row::{
    ABSOLUTE, BLOCK_OFFSET, CELL, COPY, MODULE, OFFSET, RELATIVE, RESOLVED, Row, THREAD_OFFSET,
};

/// The operands of a formula, named as in the psABI (x86-64 1.0, section 4.4.1).
///
/// Positions are offsets in the window: its base cancels out of every formula that is resolved at link.
/// 128 bits hold every sum of 64-bit operands exactly.
#[derive(Clone, Copy, Debug, Default)]
#[expect(non_snake_case, reason = "the names are the psABI's")]
pub struct Operands {
    /// The symbol's value.
    pub S: i128,
    /// The addend.
    pub A: i128,
    /// The place of the field.
    pub P: i128,
    /// The offset of the symbol's cell from `GOT`.
    pub G: i128,
    /// The start of the cells: the window's own start, so that what is counted from it is the same in
    /// every process.
    pub GOT: i128,
    /// The place of the symbol's stub, or of the function itself where it is called directly.
    pub L: i128,
    /// The symbol's size.
    pub Z: i128,
    /// The start of the unit's block of thread-local storage (the psABI counts `@dtpoff` from there, without
    /// a name for it).
    pub TLS: i128,
}

/// When the value of a field is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// There is no field.
    Never,
    /// At link: the same in every process, since everything named is in the window.
    AtLink,
    /// At attach: an address, which differs between processes, hence a patch in the private area.
    AtAttach,
}

/// What a relocation writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Width, bytes.
    pub width_bytes: u8,
    /// First and last value that fit; `None` if the field takes the value modulo its width.
    pub range: Option<(i128, i128)>,
    /// Where the range is laid down.
    pub reason: &'static str,
}

/// No field at all.
pub(crate) const NOTHING: Field = Field {
    width_bytes: 0,
    range: None,
    reason: "psABI table 4.9: none",
};

/// A displacement: 32 bits, sign-extended by the processor.
const SIGNED_32: Field = Field {
    width_bytes: 4,
    range: Some((i32::MIN as i128, i32::MAX as i128)),
    reason: "psABI table 4.9: word32; disp32 and rel32 are sign-extended to 64 bits \
             (Intel SDM volume 2, sections 2.2.1.3 and 2.2.1.6)",
};

/// An address that the processor extends with zeros.
const UNSIGNED_32: Field = Field {
    width_bytes: 4,
    range: Some((0, u32::MAX as i128)),
    reason: "psABI section 4.4.1: R_X86_64_32 is zero-extended to 64 bits",
};

/// The size of a symbol: GNU ld takes it for a number without a sign, and so do we, since sizes have none.
const SIZE_32: Field = Field {
    width_bytes: 4,
    range: Some((0, u32::MAX as i128)),
    reason: "psABI section 4.4.1 does not say; GNU ld 2.40 checks R_X86_64_SIZE32 as unsigned",
};

/// A number of 16 bits, with a sign or without.
const EITHER_16: Field = Field {
    width_bytes: 2,
    range: Some((i16::MIN as i128, u16::MAX as i128)),
    reason: "psABI table 4.9: word16, no extension named. lld takes what fits with a sign or without, as we \
             do; GNU ld 2.40 also takes -65536 to -32769, which reads back as another number",
};

/// A number of 8 bits, with a sign or without.
const EITHER_8: Field = Field {
    width_bytes: 1,
    range: Some((i8::MIN as i128, u8::MAX as i128)),
    reason: "psABI table 4.9: word8, no extension named. lld takes what fits with a sign or without, as we \
             do; GNU ld 2.40 also takes -256 to -129, which reads back as another number",
};

/// A distance of 16 bits.
const SIGNED_16: Field = Field {
    width_bytes: 2,
    range: Some((i16::MIN as i128, i16::MAX as i128)),
    reason: "a distance has a sign, as lld has it; GNU ld 2.40 also takes -65536 to 65535, which leads elsewhere \
             where it is sign-extended",
};

/// A distance of 8 bits.
const SIGNED_8: Field = Field {
    width_bytes: 1,
    range: Some((i8::MIN as i128, i8::MAX as i128)),
    reason: "rel8 and disp8 are sign-extended to 64 bits (Intel SDM volume 2, `Jcc`); linkers agree",
};

/// A whole address or distance.
pub(crate) const WORD_64: Field = Field {
    width_bytes: 8,
    range: None,
    reason: "psABI section 4.4.1: word64; 64-bit sums are taken modulo 2^64",
};

/// A value that its field cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange {
    /// The value.
    pub value: i128,
    /// The first value that fits.
    pub min: i128,
    /// The last value that fits.
    pub max: i128,
}

impl Field {
    /// First and last value that fit.
    fn limits(&self) -> Option<(i128, i128)> {
        let (min, max) = self.range?;
        if makes(Mutant::RangeShort) {
            return Some((min, max - 1));
        }
        if makes(Mutant::SignFlipped) && min < 0 && self.width_bytes == 4 {
            return Some((0, max * 2 + 1));
        }
        Some((min, max))
    }

    /// Stores `value` at the start of `bytes`, little-endian. `Ok(false)` if `bytes` is too short.
    pub fn store(&self, bytes: &mut [u8], value: i128) -> Result<bool, OutOfRange> {
        if let Some((min, max)) = self.limits()
            && !(min..=max).contains(&value)
        {
            return Err(OutOfRange { value, min, max });
        }
        let halved = makes(Mutant::WidthHalved) && self.width_bytes == 2;
        let width = usize::from(self.width_bytes) >> u8::from(halved);
        let (Some(field), encoded) = (bytes.get_mut(..width), value.to_le_bytes()) else {
            return Ok(false);
        };
        field.copy_from_slice(&encoded[..width]);
        Ok(true)
    }
}

/// One kind of relocation.
pub struct Relocation {
    /// The psABI's number, `r_type`.
    pub number: u32,
    /// The psABI's name.
    pub name: &'static str,
    /// The psABI's formula.
    pub formula: &'static str,
    /// The formula, computed.
    pub value: fn(Operands) -> i128,
    /// What is written.
    pub field: Field,
    /// When the value is known.
    pub resolved: Resolved,
}

impl fmt::Debug for Relocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Relocation {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Relocation {}

/// A row for a kind that is the same in every process.
const fn at_link(
    number: u32,
    name: &'static str,
    formula: &'static str,
    value: fn(Operands) -> i128,
    field: Field,
) -> Relocation {
    Relocation {
        number,
        name,
        formula,
        value,
        field,
        resolved: Resolved::AtLink,
    }
}

/// Every kind that is resolved.
pub static TABLE: [Relocation; 29] = [
    Relocation {
        number: elf::R_X86_64_NONE,
        name: "R_X86_64_NONE",
        formula: "0",
        value: |_| 0,
        field: NOTHING,
        resolved: Resolved::Never,
    },
    Relocation {
        number: elf::R_X86_64_64,
        name: "R_X86_64_64",
        formula: "S + A",
        value: |Operands { S, A, .. }| S + A,
        field: WORD_64,
        resolved: Resolved::AtAttach,
    },
    at_link(
        elf::R_X86_64_PC32,
        "R_X86_64_PC32",
        "S + A - P",
        |Operands { S, A, P, .. }| S + A - P,
        SIGNED_32,
    ),
    at_link(
        elf::R_X86_64_PLT32,
        "R_X86_64_PLT32",
        "L + A - P",
        |Operands { L, A, P, .. }| L + A - P,
        SIGNED_32,
    ),
    at_link(
        elf::R_X86_64_GOTPCREL,
        "R_X86_64_GOTPCREL",
        "G + GOT + A - P",
        |Operands { G, GOT, A, P, .. }| G + GOT + A - P,
        SIGNED_32,
    ),
    at_link(
        elf::R_X86_64_GOTPCRELX,
        "R_X86_64_GOTPCRELX",
        "G + GOT + A - P",
        |Operands { G, GOT, A, P, .. }| G + GOT + A - P,
        SIGNED_32,
    ),
    at_link(
        elf::R_X86_64_REX_GOTPCRELX,
        "R_X86_64_REX_GOTPCRELX",
        "G + GOT + A - P",
        |Operands { G, GOT, A, P, .. }| G + GOT + A - P,
        SIGNED_32,
    ),
    at_link(
        elf::R_X86_64_PC64,
        "R_X86_64_PC64",
        "S + A - P",
        |Operands { S, A, P, .. }| S + A - P,
        WORD_64,
    ),
    at_link(
        elf::R_X86_64_32,
        "R_X86_64_32",
        "S + A",
        |Operands { S, A, .. }| S + A,
        UNSIGNED_32,
    ),
    at_link(
        elf::R_X86_64_32S,
        "R_X86_64_32S",
        "S + A",
        |Operands { S, A, .. }| S + A,
        SIGNED_32,
    ),
    at_link(
        elf::R_X86_64_16,
        "R_X86_64_16",
        "S + A",
        |Operands { S, A, .. }| S + A,
        EITHER_16,
    ),
    at_link(
        elf::R_X86_64_8,
        "R_X86_64_8",
        "S + A",
        |Operands { S, A, .. }| S + A,
        EITHER_8,
    ),
    at_link(
        elf::R_X86_64_PC16,
        "R_X86_64_PC16",
        "S + A - P",
        |Operands { S, A, P, .. }| S + A - P,
        SIGNED_16,
    ),
    at_link(
        elf::R_X86_64_PC8,
        "R_X86_64_PC8",
        "S + A - P",
        |Operands { S, A, P, .. }| S + A - P,
        SIGNED_8,
    ),
    at_link(
        elf::R_X86_64_SIZE32,
        "R_X86_64_SIZE32",
        "Z + A",
        |Operands { Z, A, .. }| Z + A,
        SIZE_32,
    ),
    at_link(
        elf::R_X86_64_SIZE64,
        "R_X86_64_SIZE64",
        "Z + A",
        |Operands { Z, A, .. }| Z + A,
        WORD_64,
    ),
    at_link(
        elf::R_X86_64_GOT32,
        "R_X86_64_GOT32",
        "G + A",
        |Operands { G, A, .. }| G + A,
        SIGNED_32,
    ),
    at_link(
        elf::R_X86_64_GOT64,
        "R_X86_64_GOT64",
        "G + A",
        |Operands { G, A, .. }| G + A,
        WORD_64,
    ),
    at_link(
        elf::R_X86_64_GOTPLT64,
        "R_X86_64_GOTPLT64",
        "G + A",
        |Operands { G, A, .. }| G + A,
        WORD_64,
    ),
    at_link(
        elf::R_X86_64_GOTPCREL64,
        "R_X86_64_GOTPCREL64",
        "G + GOT + A - P",
        |Operands { G, GOT, A, P, .. }| G + GOT + A - P,
        WORD_64,
    ),
    at_link(
        elf::R_X86_64_GOTPC32,
        "R_X86_64_GOTPC32",
        "GOT + A - P",
        |Operands { GOT, A, P, .. }| GOT + A - P,
        SIGNED_32,
    ),
    at_link(
        elf::R_X86_64_GOTPC64,
        "R_X86_64_GOTPC64",
        "GOT + A - P",
        |Operands { GOT, A, P, .. }| GOT + A - P,
        WORD_64,
    ),
    at_link(
        elf::R_X86_64_GOTOFF64,
        "R_X86_64_GOTOFF64",
        "S + A - GOT",
        |Operands { S, A, GOT, .. }| S + A - GOT,
        WORD_64,
    ),
    at_link(
        elf::R_X86_64_PLTOFF64,
        "R_X86_64_PLTOFF64",
        "L + A - GOT",
        |Operands { L, A, GOT, .. }| L + A - GOT,
        WORD_64,
    ),
    // The symbol's cell is a pair of words, as `__tls_get_addr` wants it.
    at_link(
        elf::R_X86_64_TLSGD,
        "R_X86_64_TLSGD",
        "G + GOT + A - P",
        |Operands { G, GOT, A, P, .. }| G + GOT + A - P,
        SIGNED_32,
    ),
    at_link(
        elf::R_X86_64_TLSLD,
        "R_X86_64_TLSLD",
        "G + GOT + A - P",
        |Operands { G, GOT, A, P, .. }| G + GOT + A - P,
        SIGNED_32,
    ),
    // The symbol's cell holds its distance from the thread pointer.
    at_link(
        elf::R_X86_64_GOTTPOFF,
        "R_X86_64_GOTTPOFF",
        "G + GOT + A - P",
        |Operands { G, GOT, A, P, .. }| G + GOT + A - P,
        SIGNED_32,
    ),
    at_link(
        elf::R_X86_64_DTPOFF32,
        "R_X86_64_DTPOFF32",
        "S + A - TLS",
        |Operands { S, A, TLS, .. }| S + A - TLS,
        SIGNED_32,
    ),
    at_link(
        elf::R_X86_64_DTPOFF64,
        "R_X86_64_DTPOFF64",
        "S + A - TLS",
        |Operands { S, A, TLS, .. }| S + A - TLS,
        WORD_64,
    ),
];

impl Relocation {
    /// The value.
    pub(crate) fn compute(&self, operands: Operands) -> i128 {
        let value = (self.value)(operands);
        match self.number {
            elf::R_X86_64_PC32 if makes(Mutant::PlaceForgotten) => value + operands.P,
            elf::R_X86_64_PC64 if makes(Mutant::AddendDropped) => value - operands.A,
            elf::R_X86_64_SIZE64 if makes(Mutant::SizeOff) => value + 1,
            elf::R_X86_64_GOTOFF64 if makes(Mutant::TableMoved) => value - 8,
            elf::R_X86_64_DTPOFF32 if makes(Mutant::BlockMoved) => value - 8,
            _ => value,
        }
    }

    /// Whether the value is a distance from the field.
    pub fn is_relative(&self) -> bool {
        self.formula.ends_with("- P")
    }
}

/// The row of relocation `number`.
pub fn lookup(number: u32) -> Option<&'static Relocation> {
    Row::of(number)?.of_table()
}

#[cfg(test)]
mod tests;
