//! Selectors: what a cell leads to while threads of one worker are inside at different generations.
//!
//! A selector is shared code with a private record: a thread whose pin is older than the record's generation goes
//! to the old version, every other one to the new. Invariant: a record that a cell leads to is never changed;
//! it is used again once no thread can be inside it.
//!
//! All selectors are the same bytes. They lie once in the segment, at the start of text, and a worker maps them behind
//! its window as often as it needs, each time next to a block of records: code and record are one distance apart.

use crate::geometry::GRANULE_BYTES;

/// The length of a block of records, and of the code that goes with it, bytes.
pub const BLOCK_BYTES: u32 = GRANULE_BYTES;

/// The distance from one selector to the next, and from one record to the next, bytes.
pub const SELECTOR_BYTES: u32 = 64;

/// Selectors of a block.
pub const SELECTORS_PER_BLOCK: u32 = BLOCK_BYTES / SELECTOR_BYTES;

/// What a window has room for behind it.
pub const MAX_BLOCKS: u32 = 256;

/// A word of a selector's record, by its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelectorWord {
    /// The distance from the thread pointer to the word that holds the address of the thread's pin; 0 there: the
    /// thread has none.
    Thread = 0,
    /// The first generation of the new version, less one. So no pin, which is 0, counts as newer than any.
    Before = 1,
    /// The address of the old version.
    Old = 2,
    /// The address of the new version.
    New = 3,
}

/// One selector's code, for a record [`BLOCK_BYTES`] before it. It changes %r11 and the flags, as the psABI lets
/// whatever stands between a call and its function (System V ABI, AMD64, section 3.2.1).
pub fn selector_code() -> [u8; SELECTOR_BYTES as usize] {
    let mut code = [0xcc; SELECTOR_BYTES as usize];
    let mut len = 0;
    let mut emit = |opcode: &[u8], word: Option<SelectorWord>| {
        code[len..len + opcode.len()].copy_from_slice(opcode);
        len += opcode.len();
        if let Some(word) = word {
            let next = len as i32 + 4;
            let distance = word as i32 * 8 - BLOCK_BYTES as i32 - next;
            code[len..len + 4].copy_from_slice(&distance.to_le_bytes());
            len += 4;
        }
    };
    emit(&[0xf3, 0x0f, 0x1e, 0xfa], None); // endbr64
    emit(&[0x4c, 0x8b, 0x1d], Some(SelectorWord::Thread)); // mov Thread(%rip), %r11
    emit(&[0x64, 0x4d, 0x8b, 0x1b], None); // mov %fs:(%r11), %r11
    emit(&[0x4d, 0x85, 0xdb], None); // test %r11, %r11
    emit(&[0x74, 0x0f], None); // je new
    emit(&[0x4d, 0x8b, 0x1b], None); // mov (%r11), %r11
    emit(&[0x49, 0xff, 0xcb], None); // dec %r11
    emit(&[0x4c, 0x3b, 0x1d], Some(SelectorWord::Before)); // cmp Before(%rip), %r11
    emit(&[0x72, 0x06], None); // jb old
    emit(&[0xff, 0x25], Some(SelectorWord::New)); // new: jmp *New(%rip)
    emit(&[0xff, 0x25], Some(SelectorWord::Old)); // old: jmp *Old(%rip)
    code
}

/// A block of selectors' code.
pub fn block_code() -> Vec<u8> {
    selector_code().repeat(SELECTORS_PER_BLOCK as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_fits_and_reaches_its_own_record() {
        let code = selector_code();
        // Where the fields are that hold a distance, and the word that each is for.
        let fields = [
            (7, SelectorWord::Thread),
            (29, SelectorWord::Before),
            (37, SelectorWord::New),
            (43, SelectorWord::Old),
        ];
        for (at, word) in fields {
            let field: [u8; 4] = code[at..at + 4].try_into().unwrap();
            let reached = at as i32 + 4 + i32::from_le_bytes(field);
            assert_eq!(reached, word as i32 * 8 - BLOCK_BYTES as i32, "{word:?}");
        }
        assert_eq!(code[47..], [0xcc; 17], "nothing behind the last jump");
        assert_eq!(block_code().len(), BLOCK_BYTES as usize);
    }
}
