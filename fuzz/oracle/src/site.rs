//! One relocated field: what stood around it in the object, what stands there now.

use core::ops::Range;

use iced_x86::{Decoder, DecoderOptions, Instruction};

use crate::answer::{Answer, Entry};
use crate::elf::{Elf, Home, Section};
use crate::formula::{Formula, Operand};
use crate::image::Image;
use crate::judge::Meaning;
use crate::layout::{Layout, Rules, Stored};
use crate::table::Field;
use crate::usage::Usage;

/// A field, and all that is known of it.
#[derive(Debug)]
pub(crate) struct Site<'a> {
    pub(crate) elf: &'a Elf<'a>,
    pub(crate) section: &'a Section<'a>,
    /// The section's number, and the symbol's.
    pub(crate) section_number: usize,
    pub(crate) symbol: usize,
    /// Where the section is.
    pub(crate) start: u64,
    /// Where in the section the field is.
    pub(crate) at: usize,
    pub(crate) addend: i64,
    pub(crate) size: u64,
    pub(crate) meaning: Meaning<'a>,
    pub(crate) usage: Usage,
    pub(crate) in_text: bool,
    pub(crate) answer: Answer,
    pub(crate) formula: Formula,
    pub(crate) field: Field,
    pub(crate) view: &'a Image,
    pub(crate) layout: &'a Layout,
}

impl<'a> Site<'a> {
    pub(crate) fn image(&self) -> &'a Image {
        self.view
    }

    /// The bytes of the object.
    pub(crate) fn was(&self, range: Range<usize>) -> Option<&'a [u8]> {
        self.section.bytes.get(range)
    }

    /// The bytes of the image; no further than the section.
    pub(crate) fn now(&self, range: Range<usize>) -> Option<&'a [u8]> {
        let inside = range.end <= self.section.bytes.len();
        let address = self.start.checked_add(range.start as u64)?;
        self.view.read(address, range.len()).filter(|_| inside)
    }

    pub(crate) fn address(&self, at: usize) -> u64 {
        self.start.wrapping_add(at as u64)
    }

    pub(crate) fn field_range(&self) -> Range<usize> {
        self.at..self.at + self.field.width_bytes
    }

    /// Four bytes of the image, with their sign.
    pub(crate) fn word_32(&self, at: usize) -> Option<i64> {
        let bytes = self.now(at..at + 4)?.first_chunk()?;
        Some(i32::from_le_bytes(*bytes).into())
    }

    /// Where the displacement at `at` leads, in an instruction that ends at `end`.
    pub(crate) fn reached(&self, at: usize, end: usize) -> Option<u64> {
        let displacement = self.word_32(at)?;
        Some(self.address(end).wrapping_add_signed(displacement))
    }

    pub(crate) fn leads(&self, at: usize, end: usize, address: u64) -> bool {
        self.reached(at, end) == Some(address)
    }

    /// Whether the entry at `address` is one that the site may go through.
    pub(crate) fn is_entry(&self, address: u64) -> bool {
        let next = address.wrapping_add(8);
        match &self.answer.entry {
            Some(Entry::At(entry)) => address == *entry,
            Some(Entry::Holding(held)) => {
                self.view.word(address) == Some(*held) || self.is_dynamic(address)
            }
            Some(Entry::Pair(module, offset)) => {
                self.view.word(address) == Some(*module) && self.view.word(next) == Some(*offset)
            }
            Some(Entry::Stored(first, second)) => {
                self.stored(address) == Some(first)
                    && second
                        .as_ref()
                        .is_none_or(|second| self.stored(next) == Some(second))
            }
            None => false,
        }
    }

    /// What is found out and stored at `address`, if anything.
    fn stored(&self, address: u64) -> Option<&'a Stored> {
        match &self.layout.rules {
            Rules::Executable { dynamic } => dynamic.get(&address),
            Rules::Window(window) => window.dynamic.get(&address),
        }
    }

    /// Whether the dynamic linker stores the symbol's address at `address`.
    pub(crate) fn is_dynamic(&self, address: u64) -> bool {
        let name = match &self.meaning {
            Meaning::Outside(name) => Some(*name),
            own => own.seen(),
        };
        match self.stored(address) {
            Some(Stored::Name(stored)) => name == Some(stored.as_str()),
            Some(Stored::Resolved(resolver)) => self.answer.direct == Some(*resolver),
            _ => false,
        }
    }

    fn operand(&self, operand: Operand, entry: i128) -> i128 {
        let direct = self.answer.direct.unwrap_or_default().into();
        match operand {
            // A number may as well be one below zero, modulo 2^64.
            Operand::Symbol | Operand::Linkage if matches!(self.meaning, Meaning::Number(_)) => {
                i128::from(self.answer.direct.unwrap_or_default().cast_signed())
            }
            Operand::Symbol | Operand::Linkage => direct,
            Operand::Addend => self.addend.into(),
            Operand::Place => self.address(self.at).into(),
            Operand::Entry => entry,
            Operand::Table => self.layout.table.unwrap_or_default().into(),
            Operand::Size => self.size.into(),
            Operand::Block => self.layout.block.unwrap_or_default().into(),
        }
    }

    /// The value of the plain formula, if the rules say enough to know it.
    pub(crate) fn value(&self) -> Option<i128> {
        let table = self.layout.table;
        let known = !self.formula.mentions(Operand::Entry)
            || matches!(self.answer.entry, Some(Entry::At(_)));
        let placed = !(self.formula.mentions(Operand::Symbol)
            || self.formula.mentions(Operand::Linkage))
            || self.answer.direct.is_some();
        let tabled = !self.formula.mentions(Operand::Table) || table.is_some();
        let entry = match (&self.answer.entry, table) {
            (Some(Entry::At(entry)), Some(table)) => i128::from(*entry) - i128::from(table),
            _ => 0,
        };
        (known && placed && tabled).then(|| {
            self.formula
                .evaluate(|operand| self.operand(operand, entry))
        })
    }

    /// The entry that the field names, if the formula is about one.
    pub(crate) fn named_entry(&self) -> Option<u64> {
        let table = self.layout.table.unwrap_or_default();
        // Where the formula has both G and GOT, only their sum matters.
        let value = self.field.decode(self.now(self.field_range())?);
        let offset = self
            .formula
            .solve(Operand::Entry, value, |operand| self.operand(operand, 0))?;
        Some(table.wrapping_add(offset as u64))
    }

    /// The address of the symbol that the field names.
    pub(crate) fn solved(&self) -> Option<u64> {
        let value = self.field.decode(self.now(self.field_range())?);
        let of = |unknown| {
            self.formula
                .solve(unknown, value, |operand| self.operand(operand, 0))
        };
        let found = of(Operand::Symbol).or_else(|| of(Operand::Linkage))?;
        Some(found as u64)
    }

    /// The instruction around the field as it was, and where it starts: found by decoding from the start of
    /// the function, or else of the section.
    pub(crate) fn instruction(&self) -> Option<(usize, Instruction)> {
        let functions = self.elf.symbols.iter().filter(|symbol| {
            symbol.kind == 2
                && symbol.home == Home::Section(self.section_number)
                && symbol.value <= self.at as u64
        });
        let start = functions.map(|symbol| symbol.value).max().unwrap_or(0);
        let mut decoder = Decoder::new(64, self.section.bytes, DecoderOptions::NONE);
        decoder.set_position(usize::try_from(start).ok()?).ok()?;
        while decoder.can_decode() {
            let start = decoder.position();
            let instruction = decoder.decode();
            if instruction.is_invalid() || start > self.at {
                return None;
            }
            if decoder.position() > self.at {
                return Some((start, instruction));
            }
        }
        None
    }

    /// What the object has in a section of mergeable contents where the site leads, and whether it is known
    /// to be whole: a string with its end, or one element.
    pub(crate) fn mergeable(&self, ahead: i64) -> Option<(&'a [u8], bool)> {
        const MERGE: u64 = 0x10;
        const STRINGS: u64 = 0x20;
        let symbol = self.elf.symbols.get(self.symbol)?;
        let Home::Section(home) = symbol.home else {
            return None;
        };
        let home = self
            .elf
            .section(home)
            .filter(|home| home.flags & MERGE != 0)?;
        let at = symbol
            .value
            .checked_add_signed(self.addend.checked_add(ahead)?)?;
        let rest = home.bytes.get(usize::try_from(at).ok()?..)?;
        if home.flags & STRINGS == 0 {
            return Some((rest.get(..8).unwrap_or(rest), true));
        }
        let end = rest.iter().position(|&byte| byte == 0)?;
        Some((rest.get(..=end)?, true))
    }
}
