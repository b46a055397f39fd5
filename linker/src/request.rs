//! One relocation, as it is read: its row, its field, its symbol.

use object::LittleEndian as LE;
use object::elf::{self, Rela64};

use crate::error::{Misuse, Problem};
use crate::fixup::{Fixup, Rewrite, Target};
use crate::input::Dialect;
use crate::layout::Spot;
use crate::object_file::Relocations;
use crate::relocation::{self, Refusal, Relocation, Resolved};
use crate::resolve::SymbolUse;
use crate::unit::{Meaning, Unit};

/// A relocation, as read.
pub(crate) struct Request<'u> {
    pub(crate) row: &'static Relocation,
    pub(crate) fixup: Fixup,
    /// Addresses only: `f@addr`, or an object where calls and addresses differ by their bytes.
    pub(crate) address: bool,
    pub(crate) bytes: &'u [u8],
    pub(crate) origin: (u32, u32),
}

impl Request<'_> {
    pub(crate) fn meaning(&self, unit: &Unit<'_>) -> Result<Meaning, Problem> {
        unit.meaning(self.origin.0 as usize, self.fixup.symbol)
    }

    pub(crate) fn misuse(&self, unit: &Unit<'_>, misuse: Misuse) -> Problem {
        let symbol = unit.objects[self.origin.0 as usize].symbol_label(self.fixup.symbol);
        Problem::Misused {
            kind: self.row.name,
            symbol,
            misuse,
        }
    }

    /// Why this kind does not go with its symbol.
    pub(crate) fn refuse(&self, unit: &Unit<'_>, refusal: Refusal) -> Problem {
        let symbol = unit.objects[self.origin.0 as usize].symbol_label(self.fixup.symbol);
        Problem::Refused {
            kind: self.row.name,
            symbol,
            refusal,
        }
    }
}

/// Checks one relocation; `None` if there is nothing to do.
#[inline]
pub(crate) fn read<'u>(
    unit: &Unit<'_>,
    object: usize,
    table: &Relocations<'_>,
    chunk: u32,
    bytes: &'u [u8],
    entry: &Rela64<LE>,
) -> Result<Option<Request<'u>>, Problem> {
    let file = &unit.objects[object];
    let (number, symbol) = (entry.r_type(LE, false), entry.r_sym(LE, false));
    let Some(row) = relocation::lookup(number) else {
        return Err(match relocation::refusal(number) {
            Some((kind, refusal)) => Problem::Refused {
                kind,
                symbol: file.symbol_label(symbol),
                refusal,
            },
            None => Problem::UnknownRelocation(number),
        });
    };
    if row.resolved == Resolved::Never {
        return Ok(None);
    }
    let width_bytes = row.field.width_bytes;
    let len_bytes = bytes.len() as u64;
    let offset = entry.r_offset.get(LE);
    let inside = offset
        .checked_add(u64::from(width_bytes))
        .is_some_and(|end| end <= len_bytes);
    let offset = u32::try_from(offset).ok().filter(|_| inside);
    let offset = offset.ok_or(Problem::FieldOutside {
        kind: row.name,
        width_bytes,
        len_bytes,
    })?;
    let address = match unit.symbol_use(object, symbol) {
        Some(SymbolUse::Global { address, .. }) => address || file.dialect == Dialect::Elf,
        _ => true,
    };
    let by_section = file
        .symbol(symbol)
        .is_some_and(|symbol| symbol.st_type() == elf::STT_SECTION);
    let site = Spot { chunk, offset };
    let (target, addend) = (Target::Number(0), entry.r_addend.get(LE));
    let fixup = Fixup {
        site,
        asked: site,
        row,
        target,
        addend,
        rewrite: Rewrite::Nothing,
        symbol,
        by_section,
    };
    // Objects and sections are numbered with 32 bits.
    let origin = (object as u32, table.section as u32);
    Ok(Some(Request {
        row,
        fixup,
        address,
        bytes,
        origin,
    }))
}
