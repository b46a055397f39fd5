//! What debuggers and profilers are shown: what a worker is asked to show, and how the compiler process tells it, and whoever else
//! asks, what debugging information says of a unit.
//!
//! Invariant: whoever reads an answer trusts no length in it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What the compiler process asks a worker to show ([`Word::Wanted`](crate::mailbox::Word)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Names of functions, to gdb.
    pub names: bool,
    /// What debugging information says besides, to gdb and to profilers.
    pub lines: bool,
    /// A jitdump, for perf.
    pub jitdump: bool,
    /// A map of names, for perf and its like.
    pub perf_map: bool,
}

/// The bit that tells what is asked for, were it nothing, from nothing being asked.
const SAID: u64 = 1;

impl Wanted {
    /// As a word.
    pub fn word(self) -> u64 {
        let bits = [self.names, self.lines, self.jitdump, self.perf_map];
        (1..).zip(bits).fold(SAID, |word, (bit, is_set)| word | u64::from(is_set) << bit)
    }

    /// What a word says; `None`: nothing.
    pub fn of(word: u64) -> Option<Self> {
        let bit = |bit: u32| word >> bit & 1 == 1;
        bit(0).then(|| Self { names: bit(1), lines: bit(2), jitdump: bit(3), perf_map: bit(4) })
    }
}

/// A question about a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DebugRequest {
    /// Of sections: where the window begins whose addresses they are to hold.
    pub base: u64,
    /// The unit's number.
    pub unit: u32,
    /// [`ASK_SECTIONS`] or [`ASK_LINES`].
    pub what: u32,
}

/// [`DebugRequest::what`]: its debugging sections.
pub const ASK_SECTIONS: u32 = 1;
/// [`DebugRequest::what`]: which lines its code comes from.
pub const ASK_LINES: u32 = 2;

/// The longest answer, bytes.
pub const MAX_ANSWER_BYTES: u32 = 48 << 20;

/// A debugging section, its relocations done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DebugSection {
    /// Its name, as `.debug_info`.
    pub name: String,
    /// Its contents.
    pub bytes: Vec<u8>,
}

/// Sections as an answer: of each its name's and its own length, 32 bits each, name and contents.
pub fn encode_sections(sections: &[DebugSection]) -> Vec<u8> {
    let mut out = Vec::new();
    for section in sections {
        push_word(&mut out, section.name.len());
        push_word(&mut out, section.bytes.len());
        out.extend_from_slice(section.name.as_bytes());
        out.extend_from_slice(&section.bytes);
    }
    out
}

/// The sections of an answer; `None`: it is none.
pub fn decode_sections(bytes: &[u8]) -> Option<Vec<DebugSection>> {
    let (mut rest, mut sections) = (bytes, Vec::new());
    while !rest.is_empty() {
        let (name, len) = (take_word(&mut rest)?, take_word(&mut rest)?);
        let name = String::from_utf8(take(&mut rest, name)?.to_vec()).ok()?;
        let bytes = take(&mut rest, len)?.to_vec();
        sections.push(DebugSection { name, bytes });
    }
    Some(sections)
}

/// Which lines code comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    /// Names of source files.
    pub files: Vec<String>,
    /// In the order of their places.
    pub rows: Vec<Row>,
}

/// From here on, up to the next row, code comes from this line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Row {
    /// A place in text: its offset in the window.
    pub at: u32,
    /// The line, from 1 on; 0: nothing is known from here on.
    pub line: u32,
    /// The index of the file.
    pub file: u32,
}

impl Lines {
    /// As an answer: how many rows and files there are, 32 bits each; the rows; of each file its name's length and its name.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        push_word(&mut out, self.rows.len());
        push_word(&mut out, self.files.len());
        out.extend_from_slice(self.rows.as_bytes());
        for file in &self.files {
            push_word(&mut out, file.len());
            out.extend_from_slice(file.as_bytes());
        }
        out
    }

    /// Those of an answer; `None`: it is none, or rows name files that are not there.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let (rows, files) = (take_word(&mut rest)?, take_word(&mut rest)?);
        let rows = take(&mut rest, rows.checked_mul(size_of::<Row>())?)?;
        let rows: Vec<Row> = rows.chunks_exact(size_of::<Row>()).map(Row::read_from_bytes).collect::<Result<_, _>>().ok()?;
        // Each file takes four bytes at least, so a count that is too great ends soon.
        let mut names = Vec::new();
        for _ in 0..files {
            let len = take_word(&mut rest)?;
            names.push(String::from_utf8(take(&mut rest, len)?.to_vec()).ok()?);
        }
        let all_named = rows.iter().all(|row| row.line == 0 || (row.file as usize) < names.len());
        all_named.then_some(Self { files: names, rows })
    }

    /// Where the code at `at` comes from: file and line.
    pub fn find(&self, at: u32) -> Option<(&str, u32)> {
        let after = self.rows.partition_point(|row| row.at <= at);
        let row = self.rows.get(after.checked_sub(1)?)?;
        let file = self.files.get(row.file as usize)?;
        (row.line > 0).then_some((file, row.line))
    }

    /// The rows in the `len_bytes` from `start` on.
    pub fn within(&self, start: u32, len_bytes: u32) -> &[Row] {
        let end = start.saturating_add(len_bytes);
        let (first, last) = (
            self.rows.partition_point(|row| row.at < start),
            self.rows.partition_point(|row| row.at < end),
        );
        self.rows.get(first..last).unwrap_or_default()
    }
}

fn push_word(out: &mut Vec<u8>, value: usize) {
    // Answers are much shorter than 4 GiB.
    out.extend_from_slice(&u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
}

fn take_word(rest: &mut &[u8]) -> Option<usize> {
    let (word, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    Some(u32::from_le_bytes(*word) as usize)
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sections() -> Vec<DebugSection> {
        let section = |name: &str, bytes: &[u8]| DebugSection { name: name.into(), bytes: bytes.into() };
        vec![section(".debug_info", &[1, 2, 3]), section(".debug_str", &[])]
    }

    fn lines() -> Lines {
        let row = |at, line, file| Row { at, line, file };
        Lines { files: vec!["a.c".into(), "b.h".into()], rows: vec![row(16, 3, 0), row(20, 7, 1), row(24, 0, 0)] }
    }

    #[test]
    fn what_is_wanted_is_told_from_nothing_said() {
        assert_eq!(Wanted::of(0), None);
        for bits in 0..16 {
            let wanted = Wanted::of(bits << 1 | SAID).unwrap();
            assert_eq!(wanted.word(), bits << 1 | SAID);
        }
        assert_eq!(Wanted { lines: true, ..Wanted::default() }.word(), 5);
    }

    #[test]
    fn answers_come_back_whole() {
        assert_eq!(decode_sections(&encode_sections(&sections())), Some(sections()));
        assert_eq!(decode_sections(&[]), Some(Vec::new()));
        assert_eq!(Lines::decode(&lines().encode()), Some(lines()));
    }

    #[test]
    fn places_lead_to_lines() {
        let lines = lines();
        let found: Vec<_> = [15, 16, 19, 20, 24].map(|at| lines.find(at)).into();
        assert_eq!(found, [None, Some(("a.c", 3)), Some(("a.c", 3)), Some(("b.h", 7)), None]);
        assert_eq!(lines.within(17, 7), &lines.rows[1..2]);
        assert_eq!(lines.within(24, u32::MAX), &lines.rows[2..]);
    }

    #[test]
    fn hostile_answers_are_refused_or_safe() {
        for good in [encode_sections(&sections()), lines().encode()] {
            for at in 0..good.len() {
                let _ = (decode_sections(&good[..at]), Lines::decode(&good[..at]));
                for byte in [0, 1, 0x7f, 0xff] {
                    let mut bytes = good.clone();
                    bytes[at] = byte;
                    let _ = decode_sections(&bytes);
                    if let Some(lines) = Lines::decode(&bytes) {
                        let _ = (lines.find(20), lines.within(1, u32::MAX));
                    }
                }
            }
        }
    }
}
