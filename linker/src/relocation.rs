//! The one table of relocations: what each kind is called, computes, writes, and when it is resolved.
//!
//! Invariant: a kind that has no row in [`TABLE`] is refused by name ([`refusal()`]), never skipped.
//! Source: System V ABI, AMD64 supplement (psABI x86-64) 1.0, section 4.4.1, table 4.9.

use core::fmt;

use object::elf;

pub use crate::refusal::{Refusal, refusal};

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
    /// The start of the cells.
    pub GOT: i128,
    /// The place of the symbol's stub, or of the function itself where it is called directly.
    pub L: i128,
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
const NOTHING: Field = Field {
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

/// A whole address or distance.
const WORD_64: Field = Field {
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
    /// Stores `value` at the start of `bytes`, little-endian. `Ok(false)` if `bytes` is too short.
    pub fn store(&self, bytes: &mut [u8], value: i128) -> Result<bool, OutOfRange> {
        if let Some((min, max)) = self.range
            && !(min..=max).contains(&value)
        {
            return Err(OutOfRange { value, min, max });
        }
        let width = usize::from(self.width_bytes);
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

/// Row for `R_X86_64_64`: also what a cell of the unit's own holds.
pub(crate) static ABSOLUTE: &Relocation = &TABLE[1];
/// Row for `R_X86_64_PC32`: also what a relaxed instruction computes.
pub(crate) static RELATIVE: &Relocation = &TABLE[2];
/// Row for `R_X86_64_GOTPCREL`: also how an instruction of ours loads a cell.
pub(crate) static CELL: &Relocation = &TABLE[4];

/// Every kind that is resolved.
pub static TABLE: [Relocation; 8] = [
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
    Relocation {
        number: elf::R_X86_64_PC32,
        name: "R_X86_64_PC32",
        formula: "S + A - P",
        value: |Operands { S, A, P, .. }| S + A - P,
        field: SIGNED_32,
        resolved: Resolved::AtLink,
    },
    Relocation {
        number: elf::R_X86_64_PLT32,
        name: "R_X86_64_PLT32",
        formula: "L + A - P",
        value: |Operands { L, A, P, .. }| L + A - P,
        field: SIGNED_32,
        resolved: Resolved::AtLink,
    },
    Relocation {
        number: elf::R_X86_64_GOTPCREL,
        name: "R_X86_64_GOTPCREL",
        formula: "G + GOT + A - P",
        value: |Operands { G, GOT, A, P, .. }| G + GOT + A - P,
        field: SIGNED_32,
        resolved: Resolved::AtLink,
    },
    Relocation {
        number: elf::R_X86_64_GOTPCRELX,
        name: "R_X86_64_GOTPCRELX",
        formula: "G + GOT + A - P",
        value: |Operands { G, GOT, A, P, .. }| G + GOT + A - P,
        field: SIGNED_32,
        resolved: Resolved::AtLink,
    },
    Relocation {
        number: elf::R_X86_64_REX_GOTPCRELX,
        name: "R_X86_64_REX_GOTPCRELX",
        formula: "G + GOT + A - P",
        value: |Operands { G, GOT, A, P, .. }| G + GOT + A - P,
        field: SIGNED_32,
        resolved: Resolved::AtLink,
    },
    Relocation {
        number: elf::R_X86_64_PC64,
        name: "R_X86_64_PC64",
        formula: "S + A - P",
        value: |Operands { S, A, P, .. }| S + A - P,
        field: WORD_64,
        resolved: Resolved::AtLink,
    },
];

/// The row of relocation `number`.
pub fn lookup(number: u32) -> Option<&'static Relocation> {
    TABLE.iter().find(|row| row.number == number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::REFUSED;

    /// Evaluates `S + A - P` and the like: terms joined by `+` and `-`.
    fn evaluate(formula: &str, operands: &Operands) -> i128 {
        let mut sum = 0;
        let mut sign = 1;
        for word in formula.split_whitespace() {
            let term = match word {
                "+" | "-" => {
                    sign = if word == "+" { 1 } else { -1 };
                    continue;
                }
                "S" => operands.S,
                "A" => operands.A,
                "P" => operands.P,
                "G" => operands.G,
                "GOT" => operands.GOT,
                "L" => operands.L,
                number => number.parse().unwrap(),
            };
            sum += sign * term;
        }
        sum
    }

    #[test]
    fn every_formula_says_what_its_function_computes() {
        // Powers of 1000 tell every operand and its sign apart.
        let operands = Operands {
            S: 1,
            A: -1_000,
            P: 1_000_000,
            G: 10i128.pow(9),
            GOT: 10i128.pow(12),
            L: 10i128.pow(15),
        };
        for row in &TABLE {
            assert_eq!(
                (row.value)(operands),
                evaluate(row.formula, &operands),
                "{}",
                row.name
            );
        }
    }

    #[test]
    fn every_field_holds_its_last_value_and_no_further_one() {
        for row in &TABLE {
            let mut bytes = [0xaa; 8];
            let Some((min, max)) = row.field.range else {
                assert_eq!(row.field.store(&mut bytes, -1), Ok(true), "{}", row.name);
                continue;
            };
            for value in [min, max] {
                assert_eq!(row.field.store(&mut bytes, value), Ok(true), "{}", row.name);
                let width = usize::from(row.field.width_bytes);
                assert_eq!(bytes[..width], value.to_le_bytes()[..width]);
                assert!(bytes[width..].iter().all(|&byte| byte == 0xaa));
            }
            for value in [min - 1, max + 1] {
                assert_eq!(
                    row.field.store(&mut bytes, value),
                    Err(OutOfRange { value, min, max })
                );
            }
        }
    }

    #[test]
    fn no_field_is_stored_past_the_end() {
        for row in TABLE.iter().filter(|row| row.field.width_bytes > 0) {
            let mut bytes = vec![0; usize::from(row.field.width_bytes) - 1];
            assert_eq!(row.field.store(&mut bytes, 0), Ok(false), "{}", row.name);
        }
    }

    #[test]
    fn a_number_has_one_row() {
        for number in 0..64 {
            let rows = TABLE.iter().filter(|row| row.number == number).count();
            let refused = REFUSED.iter().filter(|row| row.0 == number).count();
            assert!(
                rows + refused <= 1,
                "relocation {number} has {rows} rows and {refused} refusals"
            );
        }
        assert_eq!((ABSOLUTE.number, RELATIVE.number, CELL.number), (1, 2, 9));
    }
}
