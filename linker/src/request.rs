//! One relocation, as it is read: its row, its field, its symbol.

use object::LittleEndian as LE;
use object::elf::{self, Rela64};

use crate::error::{Misuse, Problem};
use crate::fixup::{Fixup, Rewrite, Target};
use crate::input::Dialect;
use crate::layout::Spot;
use crate::object_file::Relocations;
use crate::relocation::{self, Refusal, Resolved, Row};
use crate::resolve::SymbolUse;
use crate::unit::{Meaning, Unit};

/// A relocation, as read.
pub(crate) struct Request<'u> {
    pub(crate) row: Row,
    pub(crate) site: Spot,
    pub(crate) addend: i64,
    /// The symbol's index in its object.
    pub(crate) symbol: u32,
    /// Addresses only: `f@addr`, or an object where calls and addresses differ by their bytes.
    pub(crate) address: bool,
    pub(crate) bytes: &'u [u8],
    pub(crate) origin: (u32, u32),
    meaning: Option<&'u Meaning>,
    by_section: bool,
}

/// What relocations ask of a symbol.
#[derive(Clone, Copy, Debug)]
struct Symbol<'u> {
    /// [`Unit::meaning`]; `None` where that refuses.
    meaning: Option<&'u Meaning>,
    /// [`Request::address`].
    address: bool,
    /// It stands for a section.
    is_section: bool,
}

/// What symbols mean of the object whose relocations are read, as far as that is not known by their names: found out when the first
/// one asks.
#[derive(Debug, Default)]
pub(crate) struct Symbols<'u> {
    /// What each is, in the object's own words.
    uses: &'u [SymbolUse],
    /// By their indices, up to the last that was asked for; what there is not has that of the last.
    found: Vec<Option<Option<Meaning>>>,
}

impl<'u> Symbols<'u> {
    /// Begins with object `number` of `unit`.
    pub(crate) fn begin(&mut self, unit: &'u Unit<'_>, number: usize) {
        self.uses = unit.uses(number);
        self.found.clear();
    }

    #[inline]
    fn find<'s>(&'s mut self, unit: &'s Unit<'_>, object: usize, index: u32) -> Symbol<'s> {
        let file = &unit.objects[object];
        let symbol = file.symbol(index);
        let is_section = symbol.is_some_and(|symbol| symbol.st_type() == elf::STT_SECTION);
        let (known, address) = match self.uses.get(index as usize) {
            Some(&SymbolUse::Global { global, address }) => (
                unit.plain_meaning(global),
                address || file.dialect == Dialect::Elf,
            ),
            _ => (None, true),
        };
        Symbol {
            meaning: known.or_else(|| self.find_out(unit, object, index)),
            address,
            is_section,
        }
    }

    #[inline(never)]
    fn find_out(&mut self, unit: &Unit<'_>, object: usize, index: u32) -> Option<&Meaning> {
        let place = (index as usize).min(self.uses.len());
        if place >= self.found.len() {
            self.found.resize(place + 1, None);
        }
        let found = &mut self.found[place];
        let meaning = found.get_or_insert_with(|| unit.meaning(object, index).ok());
        meaning.as_ref()
    }
}

impl<'u> Request<'u> {
    /// What is asked for, once it is known what the symbol is.
    #[inline]
    pub(crate) fn fixup(&self, target: Target) -> Fixup {
        Fixup {
            site: self.site,
            row: self.row,
            target,
            addend: self.addend,
            rewrite: Rewrite::Nothing,
            symbol: self.symbol,
            by_section: self.by_section,
            asked_after: 0,
            in_thunk: false,
        }
    }

    /// Whether this is a displacement in text to what nobody else sees: whatever the instruction does with it, and whatever the
    /// addend says, it leads to its place.
    pub(crate) fn leads_to_its_place(&self) -> bool {
        let near =
            matches!(self.meaning, Some(Meaning::Own(own)) if !own.has_stub && !own.thread_local);
        near && matches!(self.row.number, elf::R_X86_64_PC32 | elf::R_X86_64_PLT32)
    }

    #[inline]
    pub(crate) fn meaning(&self, unit: &Unit<'_>) -> Result<&'u Meaning, Problem> {
        self.meaning.ok_or_else(|| self.refusal(unit))
    }

    /// Why the symbol means nothing.
    #[cold]
    fn refusal(&self, unit: &Unit<'_>) -> Problem {
        let meaning = unit.meaning(self.origin.0 as usize, self.symbol);
        let asked_twice = "symbol that means something the second time";
        meaning.map_or_else(|problem| problem, |_| Problem::Corrupt(asked_twice.into()))
    }

    pub(crate) fn misuse(&self, unit: &Unit<'_>, misuse: Misuse) -> Problem {
        let symbol = unit.objects[self.origin.0 as usize].symbol_label(self.symbol);
        Problem::Misused {
            kind: self.row.name,
            symbol,
            misuse,
        }
    }

    /// Why this kind does not go with its symbol.
    pub(crate) fn refuse(&self, unit: &Unit<'_>, refusal: Refusal) -> Problem {
        let symbol = unit.objects[self.origin.0 as usize].symbol_label(self.symbol);
        Problem::Refused {
            kind: self.row.name,
            symbol,
            refusal,
        }
    }
}

/// Checks one relocation of the object whose `symbols` they are; `None` if there is nothing to do.
#[inline]
pub(crate) fn read<'u>(
    unit: &'u Unit<'_>,
    symbols: &'u mut Symbols<'_>,
    object: usize,
    table: &Relocations<'_>,
    chunk: u32,
    bytes: &'u [u8],
    entry: &Rela64<LE>,
) -> Result<Option<Request<'u>>, Problem> {
    let file = &unit.objects[object];
    let (number, symbol) = (entry.r_type(LE, false), entry.r_sym(LE, false));
    let Some(row) = Row::of(number) else {
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
    let offset = offset.ok_or_else(|| Problem::FieldOutside {
        kind: row.name,
        width_bytes,
        len_bytes,
    })?;
    let known = symbols.find(unit, object, symbol);
    // Objects and sections are numbered with 32 bits.
    let origin = (object as u32, table.section as u32);
    Ok(Some(Request {
        row,
        site: Spot { chunk, offset },
        addend: entry.r_addend.get(LE),
        symbol,
        address: known.address,
        bytes,
        origin,
        meaning: known.meaning,
        by_section: known.is_section,
    }))
}
