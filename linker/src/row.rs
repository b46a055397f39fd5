//! Rows of the table of relocations by their indices: a byte each, for what there are as many of as relocations.

use core::fmt;
use core::ops::Deref;

use jitcast_runtime::PatchKind;
use object::elf;

use crate::relocation::{NOTHING, Operands, Relocation, Resolved, TABLE, WORD_64};

/// How many numbers [`ROW_OF`] has a place for: the psABI's go to 42.
const NUMBERS: usize = 64;

/// The index of each number's row.
const ROW_OF: [Option<u8>; NUMBERS] = {
    let mut rows = [None; NUMBERS];
    let mut index = 0;
    while index < TABLE.len() {
        rows[TABLE[index].number as usize] = Some(index as u8);
        index += 1;
    }
    rows
};

/// A row for a word that only the linker itself asks for: what a worker finds out at attach.
const fn dynamic(kind: PatchKind, name: &'static str) -> Relocation {
    Relocation {
        number: kind as u32,
        name,
        formula: "S + A",
        value: |Operands { S, A, .. }| S + A,
        field: WORD_64,
        resolved: Resolved::AtAttach,
    }
}

/// What only the linker itself asks for. The field of a copy is only where it starts.
static OTHERS: [Relocation; 5] = [
    dynamic(PatchKind::TlsModule, "R_X86_64_DTPMOD64"),
    dynamic(PatchKind::TlsOffset, "R_X86_64_DTPOFF64"),
    dynamic(PatchKind::ThreadOffset, "R_X86_64_TPOFF64"),
    dynamic(PatchKind::Resolver, "R_X86_64_IRELATIVE"),
    Relocation {
        field: NOTHING,
        ..dynamic(PatchKind::Copy, "R_X86_64_COPY")
    },
];

/// A row of [`TABLE`], or of those that only the linker itself asks for, by its index.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row(u8);

/// The module of a thread-local symbol that the unit does not define.
pub(crate) const MODULE: Row = Row::other(0);
/// Its offset in that module's block.
pub(crate) const OFFSET: Row = Row::other(1);
/// Its distance from the thread pointer.
pub(crate) const THREAD_OFFSET: Row = Row::other(2);
/// What an indirect function's resolver returns.
pub(crate) const RESOLVED: Row = Row::other(3);
/// A copy of the host's datum: the addend is its length.
pub(crate) const COPY: Row = Row::other(4);
/// Row for `R_X86_64_64`: also what a cell of the unit's own holds.
pub(crate) const ABSOLUTE: Row = Row(1);
/// Row for `R_X86_64_PC32`: also what a relaxed instruction computes.
pub(crate) const RELATIVE: Row = Row(2);
/// Row for `R_X86_64_GOTPCREL`: also how an instruction of ours loads a cell.
pub(crate) const CELL: Row = Row(4);
/// Row for `R_X86_64_DTPOFF64`: also what the second word of a pair of the unit's own holds.
pub(crate) const BLOCK_OFFSET: Row = Row(28);

/// The rows, as bits, whose value is `X + A - P` in a field of 32 bits.
const DISPLACEMENTS: u64 = {
    let numbers: u64 = 1 << elf::R_X86_64_PC32
        | 1 << elf::R_X86_64_PLT32
        | 1 << elf::R_X86_64_GOTPCREL
        | 1 << elf::R_X86_64_GOTPCRELX
        | 1 << elf::R_X86_64_REX_GOTPCRELX;
    let (mut rows, mut index) = (0, 0);
    while index < TABLE.len() {
        rows |= (numbers >> TABLE[index].number & 1) << index;
        index += 1;
    }
    rows
};

impl Row {
    const fn other(index: u8) -> Self {
        Self(TABLE.len() as u8 + index)
    }

    /// The row of relocation `number`.
    #[inline]
    pub(crate) fn of(number: u32) -> Option<Self> {
        ROW_OF.get(number as usize).copied().flatten().map(Self)
    }

    /// The row, if it is one of the table's.
    pub(crate) fn of_table(self) -> Option<&'static Relocation> {
        TABLE.get(usize::from(self.0))
    }

    /// Whether the field is a displacement of 32 bits whose value is `X + A - P`, X being the one operand (S, L or G, of
    /// cells counted from the window's start) that stands for the target: what nearly all relocations of text are.
    #[inline]
    pub(crate) fn is_displacement(self) -> bool {
        DISPLACEMENTS >> self.0 & 1 != 0
    }
}

impl Deref for Row {
    type Target = Relocation;

    #[inline]
    fn deref(&self) -> &Relocation {
        let other = || &OTHERS[usize::from(self.0) - TABLE.len()];
        self.of_table().unwrap_or_else(other)
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_the_row_that_it_is_called() {
        for (row, name) in [
            (ABSOLUTE, "R_X86_64_64"),
            (RELATIVE, "R_X86_64_PC32"),
            (CELL, "R_X86_64_GOTPCREL"),
            (BLOCK_OFFSET, "R_X86_64_DTPOFF64"),
            (MODULE, "R_X86_64_DTPMOD64"),
            (OFFSET, "R_X86_64_DTPOFF64"),
            (THREAD_OFFSET, "R_X86_64_TPOFF64"),
            (RESOLVED, "R_X86_64_IRELATIVE"),
            (COPY, "R_X86_64_COPY"),
        ] {
            assert_eq!(row.name, name);
        }
        assert_ne!(OFFSET, BLOCK_OFFSET, "one is found out by a worker");
    }

    #[test]
    fn numbers_lead_to_their_rows() {
        for row in &TABLE {
            assert_eq!(Row::of(row.number).unwrap().number, row.number);
        }
        assert_eq!(Row::of(NUMBERS as u32), None);
        assert_eq!(Row::of(u32::MAX), None);
    }
}
