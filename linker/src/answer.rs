//! What relocations of text came to, for those that ask the same again.
//!
//! Most calls of a function, and most loads of a datum's address, are like the one before. What is planned for a relocation
//! of text depends on nothing but its kind, its symbol, its addend and up to three bytes before its field
//! ([`classify::in_text`]), and everything that it takes beside its fixup (cells, stubs) is there after the first of
//! them. So of those that agree in all four the first is planned, and the others copy its fixup. Displacements to what
//! nobody else sees need to agree in kind and symbol alone: they lead to its place, whatever goes there.

use object::LittleEndian as LE;
use object::elf::Rela64;

use crate::classify::{self, BEFORE, Use};
use crate::fixup::{Fixup, Rewrite, Target};
use crate::layout::Spot;
use crate::relocation::{RELATIVE, Row};
use crate::request::Request;

/// The width of the fields of which answers are kept, bytes.
const WIDTH_BYTES: usize = 4;

/// The last answer for each symbol of an object.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    list: Vec<Answer>,
}

/// A fixup but for its site and addend, and what has to be asked for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    addend: i64,
    target: Target,
    row: Row,
    /// The bytes before the field, as far as they count.
    before: u32,
    /// Which bits of them count.
    mask: u32,
    /// The kind that is asked for; no kind that has a field is 0.
    kind: u8,
    rewrite: Rewrite,
    asked_after: i8,
    by_section: bool,
    /// Neither the bytes nor the addend count.
    anyhow: bool,
}

impl Answer {
    /// What nobody asks for.
    const NONE: Self = Self {
        addend: 0,
        target: Target::Window,
        row: RELATIVE,
        before: 1,
        mask: 0,
        kind: 0,
        rewrite: Rewrite::Nothing,
        asked_after: 0,
        by_section: false,
        anyhow: false,
    };

    /// The fixup of `entry`, whose field is at `asked`.
    #[inline(always)]
    pub(crate) fn fixup(&self, asked: Spot, entry: &Rela64<LE>) -> Fixup {
        let offset = asked.offset.wrapping_sub(self.asked_after as u32);
        Fixup {
            site: Spot { offset, ..asked },
            row: self.row,
            target: self.target,
            addend: entry.r_addend.get(LE),
            rewrite: self.rewrite,
            symbol: entry.r_sym(LE, false),
            by_section: self.by_section,
            asked_after: self.asked_after,
            in_thunk: false,
        }
    }
}

impl Answers {
    /// Begins with an object that has `count` symbols.
    pub(crate) fn begin(&mut self, count: usize) {
        self.list.clear();
        self.list.resize(count, Answer::NONE);
    }

    /// What answers `entry`, a relocation of a piece of text with these `bytes`, and the offset of its field.
    #[inline(always)]
    pub(crate) fn find(&self, entry: &Rela64<LE>, bytes: &[u8]) -> Option<(&Answer, u32)> {
        let last = self.list.get(entry.r_sym(LE, false) as usize)?;
        let offset = u32::try_from(entry.r_offset.get(LE)).ok()?;
        let around = bytes.get((offset as usize).checked_sub(BEFORE)?..)?;
        let around = around.first_chunk::<{ BEFORE + WIDTH_BYTES }>()?;
        // The fourth byte is none of them, and no mask has it.
        let word = u32::from_le_bytes(*around.first_chunk()?);
        let differing = (word ^ last.before) & last.mask;
        let same = differing == 0
            && entry.r_type(LE, false) == u32::from(last.kind)
            && (last.anyhow || entry.r_addend.get(LE) == last.addend);
        same.then_some((last, offset))
    }

    /// Keeps the answer to `request`: that it was `fixup`.
    pub(crate) fn keep(&mut self, request: &Request<'_>, usage: Use, fixup: &Fixup) {
        let field = request.site.offset as usize;
        let before = field.checked_sub(BEFORE);
        let before = before.and_then(|start| request.bytes.get(start..)?.first_chunk());
        if let Some(before) = before
            && usize::from(request.row.field.width_bytes) == WIDTH_BYTES
            && let Ok(kind) = u8::try_from(request.row.number)
            && let Some(place) = self.list.get_mut(request.symbol as usize)
        {
            let anyhow = fixup.rewrite == Rewrite::Nothing && request.leads_to_its_place();
            let mask = word(&classify::looked_at(usage, before));
            *place = Answer {
                addend: request.addend,
                target: fixup.target,
                row: fixup.row,
                before: word(before),
                mask: if anyhow { 0 } else { mask },
                kind,
                rewrite: fixup.rewrite,
                asked_after: fixup.asked_after,
                by_section: fixup.by_section,
                anyhow,
            };
        }
    }
}

fn word(&[first, second, third]: &[u8; BEFORE]) -> u32 {
    u32::from_le_bytes([first, second, third, 0])
}
