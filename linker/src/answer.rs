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
use crate::request::Request;

/// The width of the fields that are answered for, bytes.
const WIDTH_BYTES: usize = 4;

/// How many answers a symbol may have. What asks in yet another way is planned by itself.
const MOST: u8 = 8;

/// "None" among the numbers of answers.
const NONE: u32 = u32::MAX;

/// Who gets an answer. Looked at by every relocation, so it is small.
#[derive(Clone, Copy, Debug)]
struct Condition {
    /// How the first relocation asked.
    asked: Asked,
    /// Which bits of it count.
    mask: Asked,
    /// The symbol's answer before this one.
    earlier: u32,
    /// How many answers the symbol has, with this one.
    count: u8,
}

/// How a relocation asks, apart from its symbol: as bits, of which an answer compares those that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    /// The kind in the upper half, the bytes before the field in the lower one.
    how: u64,
    addend: u64,
}

impl Asked {
    /// How `entry` asks, whose field has these bytes before it.
    #[inline(always)]
    fn by(entry: &Rela64<LE>, before: u32) -> Self {
        // The symbol is in the upper half.
        let kind = entry.r_info.get(LE) << 32;
        Self {
            how: kind | u64::from(before),
            addend: entry.r_addend.get(LE).cast_unsigned(),
        }
    }

    /// Whether `self` and `other` agree in `mask`.
    #[inline(always)]
    fn agrees(self, other: Self, mask: Self) -> bool {
        (self.how ^ other.how) & mask.how | (self.addend ^ other.addend) & mask.addend == 0
    }
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
    conditions: Vec<Condition>,
    /// The fixup of the first relocation that asked, of each answer.
    list: Vec<Fixup>,
    /// The last answer for each symbol of the object that is read.
    last: Vec<u32>,
    batches: Vec<Batch<'a>>,
    /// The number of the answer to each relocation of the batches, or [`NONE`].
    given: Vec<u32>,
    /// How many relocations have been looked at.
    next: usize,
}

impl<'a> Answers<'a> {
    /// Makes room for the answers to `count` relocations, all that there will be.
    pub(crate) fn reserve(&mut self, count: usize) {
        self.given.resize(count, NONE);
    }

    /// Begins with an object that has `symbols`.
    pub(crate) fn begin(&mut self, symbols: usize) {
        self.last.clear();
        self.last.resize(symbols, NONE);
        self.conditions.reserve(symbols);
        self.list.reserve(symbols);
    }

    /// Begins with the relocations of a piece of text, each of which is then given an answer, or none.
    pub(crate) fn begin_batch(&mut self, chunk: u32, entries: &'a [Rela64<LE>]) {
        self.batches.push(Batch {
            chunk,
            entries,
            first: self.next,
        });
    }

    /// Gives the next relocation an answer, or none.
    #[inline]
    pub(crate) fn give(&mut self, answer: Option<u32>) {
        if let Some((given, answer)) = self.given.get_mut(self.next).zip(answer) {
            *given = answer;
        }
        self.next += 1;
    }

    /// Answers those of `entries`, relocations of a piece of text with these `bytes`, that ask as others did, up to the first
    /// that does not; returns that one and those after it.
    #[inline(never)]
    pub(crate) fn give_known<'e>(
        &mut self,
        entries: &'e [Rela64<LE>],
        bytes: &[u8],
    ) -> Option<(&'e Rela64<LE>, &'e [Rela64<LE>])> {
        let (list, last) = (self.conditions.as_slice(), self.last.as_slice());
        let given = self.given.get_mut(self.next..).unwrap_or_default();
        let mut count = 0;
        for (entry, given) in entries.iter().zip(given) {
            let Some(answer) = find(list, last, entry, bytes) else {
                break;
            };
            *given = answer;
            count += 1;
        }
        self.next += count;
        entries.get(count..)?.split_first()
    }

    /// Keeps `fixup` as the answer to `request`; returns its number.
    #[inline]
    pub(crate) fn keep(&mut self, request: &Request<'_>, usage: Use, fixup: &Fixup) -> Option<u32> {
        let before = before(request.bytes, request.site.offset.into())?;
        let last = self.last.get_mut(request.symbol as usize)?;
        let earlier = *last;
        let earliest = self.conditions.get(earlier as usize);
        let count = earliest.map_or(0, |condition| condition.count);
        if usize::from(request.row.field.width_bytes) != WIDTH_BYTES || count == MOST {
            return None;
        }
        let kind = u64::from(u32::MAX) << 32;
        let mask = if fixup.rewrite == Rewrite::Nothing && request.leads_to_its_place() {
            Asked {
                how: kind,
                addend: 0,
            }
        } else {
            let [first, second, third, _] = before.to_le_bytes();
            let [one, two, three] = classify::looked_at(usage, [first, second, third]);
            Asked {
                how: kind | u64::from(u32::from_le_bytes([one, two, three, 0])),
                addend: u64::MAX,
            }
        };
        let number = u32::try_from(self.list.len()).ok();
        *last = number.filter(|&number| number != NONE)?;
        self.list.push(*fixup);
        self.conditions.push(Condition {
            asked: Asked {
                how: u64::from(request.row.number) << 32 | u64::from(before),
                addend: fixup.addend.cast_unsigned(),
            },
            mask,
            earlier,
            count: count + 1,
        });
        Some(*last)
    }

    /// The fixups of all answers, by their numbers.
    pub(crate) fn list(&self) -> &[Fixup] {
        &self.list
    }

    /// How many relocations may have one.
    pub(crate) fn given(&self) -> usize {
        self.given.len()
    }

    /// The relocations of each piece of text, and the numbers of their answers; those that have none, have one that is none of the list.
    pub(crate) fn batches(&self) -> impl Iterator<Item = (u32, &'a [Rela64<LE>], &[u32])> {
        self.batches.iter().map(|batch| {
            let given = &self.given[batch.first..][..batch.entries.len()];
            (batch.chunk, batch.entries, given)
        })
    }

    /// The fixups of those relocations whose answer is `wanted`.
    pub(crate) fn fixups(&self, wanted: fn(&Fixup) -> bool) -> impl Iterator<Item = Fixup> {
        let some = self.list.iter().any(wanted);
        let batches = self.batches().take_while(move |_| some);
        batches.flat_map(move |(chunk, entries, given)| {
            entries
                .iter()
                .zip(given)
                .filter_map(move |(entry, &answer)| {
                    let answer = self.list.get(answer as usize);
                    let answer = answer.filter(|answer| wanted(answer))?;
                    Some(answer.of(entry, chunk))
                })
        })
    }
}

/// The answer to `entry`, if it is among these.
#[inline(always)]
fn find(list: &[Condition], last: &[u32], entry: &Rela64<LE>, bytes: &[u8]) -> Option<u32> {
    let number = *last.get(entry.r_sym(LE, false) as usize)?;
    let field = entry.r_offset.get(LE);
    match inside(bytes, field) {
        Some(before) => agreeing(list, number, Asked::by(entry, before)),
        None => agreeing(list, number, Asked::by(entry, at_the_start(bytes, field)?)),
    }
}

/// Of answer `number` and those before it, one to what is `asked`.
#[inline(always)]
fn agreeing(list: &[Condition], mut number: u32, asked: Asked) -> Option<u32> {
    loop {
        // No more than `MOST`.
        let answer = list.get(number as usize)?;
        if asked.agrees(answer.asked, answer.mask) {
            return Some(number);
        }
        number = answer.earlier;
    }
}

/// The bytes before a field, which has to be inside; zeros, which no instruction is told by, where there are none.
fn before(bytes: &[u8], field: u64) -> Option<u32> {
    inside(bytes, field).or_else(|| at_the_start(bytes, field))
}

/// The same, where there are as many as are looked at.
#[inline(always)]
fn inside(bytes: &[u8], field: u64) -> Option<u32> {
    let start = usize::try_from(field.wrapping_sub(BEFORE as u64)).ok()?;
    let around: &[u8; BEFORE + WIDTH_BYTES] = bytes.get(start..)?.first_chunk()?;
    Some(u32::from_le_bytes(*around.first_chunk()?) & 0xff_ffff)
}

/// The same, where there are fewer.
#[inline(never)]
#[cold]
fn at_the_start(bytes: &[u8], field: u64) -> Option<u32> {
    let field = usize::try_from(field).ok()?;
    bytes.get(field..)?.first_chunk::<WIDTH_BYTES>()?;
    let missing = BEFORE.checked_sub(field)?;
    let first = u32::from_le_bytes(*bytes.first_chunk()?);
    Some(first << (8 * missing) & 0xff_ffff)
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
        assert_eq!(before(&bytes, u64::MAX), None);
    }
}
