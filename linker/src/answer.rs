//! What relocations of text come to, shared by those that ask alike.
//!
//! Most calls of a function, and most loads of a datum's address, are like others before. What is planned for a relocation
//! of text depends on nothing but its kind, its symbol, its addend and up to three bytes before its field
//! ([`classify::in_text`]), and everything that it takes beside its fixup (cells, stubs) is there after the first of
//! them. So the first is planned, and those that agree with it in all four are answered by its number. Displacements to what
//! nobody else sees need to agree in kind and symbol alone: they lead to its place, whatever goes there.
//!
//! Invariant: a relocation that has an answer has no fixup of its own, and the answer's, with its own site and addend, is
//! what it would have.

use object::LittleEndian as LE;
use object::elf::Rela64;

use crate::classify::{self, BEFORE, Use};
use crate::fixup::{Fixup, Rewrite};
use crate::layout::Spot;
use crate::request::Request;

/// The width of the fields that are answered for, bytes.
const WIDTH_BYTES: usize = 4;

/// How many answers a symbol may have. What asks in yet another way is planned by itself.
const MOST: u8 = 8;

/// "None" among the numbers of answers.
const NONE: u32 = u32::MAX;

/// An answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    /// The fixup of the first relocation that asked.
    pub(crate) fixup: Fixup,
    /// The bytes before its field, as far as they count.
    before: u32,
    /// Which bits of them count.
    mask: u32,
    /// The symbol's answer before this one.
    earlier: u32,
    kind: u8,
    /// Neither the bytes nor the addend count.
    unconditional: bool,
    /// How many answers the symbol has, with this one.
    count: u8,
}

/// The relocations of a piece of text.
#[derive(Clone, Copy, Debug)]
struct Batch<'a> {
    chunk: u32,
    entries: &'a [Rela64<LE>],
    /// Where the answers to them start among those that were given.
    first: usize,
}

/// The answers of a unit, and who got them.
#[derive(Debug, Default)]
pub(crate) struct Answers<'a> {
    list: Vec<Answer>,
    /// The last answer for each symbol of the object that is read.
    last: Vec<u32>,
    batches: Vec<Batch<'a>>,
    given: Vec<u32>,
}

impl Answer {
    /// The fixup of `entry`, which this answers, in a piece of text.
    #[inline(always)]
    pub(crate) fn fixup_of(&self, entry: &Rela64<LE>, chunk: u32) -> Fixup {
        let asked = entry.r_offset.get(LE) as u32;
        let offset = asked.wrapping_sub(self.fixup.asked_after as u32);
        Fixup {
            site: Spot { chunk, offset },
            addend: entry.r_addend.get(LE),
            symbol: entry.r_sym(LE, false),
            ..self.fixup
        }
    }
}

impl<'a> Answers<'a> {
    /// Makes room for the answers to `count` relocations.
    pub(crate) fn reserve(&mut self, count: usize) {
        self.given.reserve(count);
    }

    /// Begins with an object that has `symbols`.
    pub(crate) fn begin(&mut self, symbols: usize) {
        self.last.clear();
        self.last.resize(symbols, NONE);
    }

    /// Begins with the relocations of a piece of text, each of which is then given an answer, or none.
    pub(crate) fn begin_batch(&mut self, chunk: u32, entries: &'a [Rela64<LE>]) {
        let first = self.given.len();
        self.batches.push(Batch {
            chunk,
            entries,
            first,
        });
    }

    #[inline]
    pub(crate) fn give(&mut self, answer: Option<u32>) {
        self.given.push(answer.unwrap_or(NONE));
    }

    /// The answer to `entry`, a relocation of a piece of text with these `bytes`, if there is one already.
    #[inline(always)]
    pub(crate) fn find(&self, entry: &Rela64<LE>, bytes: &[u8]) -> Option<u32> {
        let mut number = *self.last.get(entry.r_sym(LE, false) as usize)?;
        let offset = u32::try_from(entry.r_offset.get(LE)).ok()?;
        let word = before(bytes, offset as usize)?;
        loop {
            // No more than `MOST`.
            let answer = self.list.get(number as usize)?;
            if (word ^ answer.before) & answer.mask == 0
                && entry.r_type(LE, false) == u32::from(answer.kind)
                && (answer.unconditional || entry.r_addend.get(LE) == answer.fixup.addend)
            {
                return Some(number);
            }
            number = answer.earlier;
        }
    }

    /// Keeps `fixup` as the answer to `request`; returns its number.
    pub(crate) fn keep(&mut self, request: &Request<'_>, usage: Use, fixup: &Fixup) -> Option<u32> {
        let before = before(request.bytes, request.site.offset as usize)?;
        let kind = u8::try_from(request.row.number).ok()?;
        let last = self.last.get_mut(request.symbol as usize)?;
        let earlier = *last;
        let count = self
            .list
            .get(earlier as usize)
            .map_or(0, |answer| answer.count);
        if usize::from(request.row.field.width_bytes) != WIDTH_BYTES || count == MOST {
            return None;
        }
        let unconditional = fixup.rewrite == Rewrite::Nothing && request.leads_to_its_place();
        let [first, second, third, _] = before.to_le_bytes();
        let [one, two, three] = classify::looked_at(usage, [first, second, third]);
        let mask = u32::from_le_bytes([one, two, three, 0]);
        let number = u32::try_from(self.list.len()).ok();
        *last = number.filter(|&number| number != NONE)?;
        self.list.push(Answer {
            fixup: *fixup,
            before,
            mask: if unconditional { 0 } else { mask },
            earlier,
            kind,
            unconditional,
            count: count + 1,
        });
        Some(*last)
    }

    /// All answers, by their numbers.
    pub(crate) fn list(&self) -> &[Answer] {
        &self.list
    }

    /// How many relocations may have one.
    pub(crate) fn given(&self) -> usize {
        self.given.len()
    }

    /// The relocations that have answers, with these, piece by piece of text.
    pub(crate) fn batches(
        &self,
    ) -> impl Iterator<Item = (u32, impl Iterator<Item = (&'a Rela64<LE>, usize)>)> {
        self.batches.iter().map(|batch| {
            let given = &self.given[batch.first..];
            let answered = batch.entries.iter().zip(given);
            let answered = answered.filter(|&(_, &answer)| answer != NONE);
            (
                batch.chunk,
                answered.map(|(entry, &answer)| (entry, answer as usize)),
            )
        })
    }

    /// The fixups of those relocations whose answer is `wanted`.
    pub(crate) fn fixups(&self, wanted: fn(&Answer) -> bool) -> impl Iterator<Item = Fixup> {
        let some = self.list.iter().any(wanted);
        let batches = self.batches().take_while(move |_| some);
        batches.flat_map(move |(chunk, entries)| {
            entries.filter_map(move |(entry, answer)| {
                let answer = self.list.get(answer).filter(|answer| wanted(answer))?;
                Some(answer.fixup_of(entry, chunk))
            })
        })
    }
}

/// The bytes before a field, which has to be inside; zeros, which no instruction is told by, where there are none.
#[inline(always)]
fn before(bytes: &[u8], field: usize) -> Option<u32> {
    let Some(start) = field.checked_sub(BEFORE) else {
        return at_the_start(bytes, field);
    };
    let around: &[u8; BEFORE + WIDTH_BYTES] = bytes.get(start..)?.first_chunk()?;
    Some(u32::from_le_bytes(*around.first_chunk()?) & 0xff_ffff)
}

#[cold]
fn at_the_start(bytes: &[u8], field: usize) -> Option<u32> {
    bytes.get(field..)?.first_chunk::<WIDTH_BYTES>()?;
    let there = bytes.get(..field)?.iter().rev();
    let places = [16, 8, 0].into_iter();
    Some(
        places
            .zip(there)
            .fold(0, |word, (place, &byte)| word | u32::from(byte) << place),
    )
}

#[cfg(test)]
mod tests {
    use super::before;

    #[test]
    fn before_a_field_is_what_there_is() {
        let bytes = [1, 2, 3, 4, 5, 6, 7];
        assert_eq!(before(&bytes, 3), Some(0x03_0201));
        assert_eq!(before(&bytes, 2), Some(0x02_0100));
        assert_eq!(before(&bytes, 1), Some(0x01_0000));
        assert_eq!(before(&bytes, 0), Some(0));
        // A field that ends outside is none.
        assert_eq!(before(&bytes, 4), None);
        assert_eq!(before(&bytes[..4], 1), None);
        assert_eq!(before(&[], 0), None);
        assert_eq!(before(&bytes, usize::MAX), None);
    }
}
