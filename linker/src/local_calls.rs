//! References that have no relocation: assemblers resolve those between a section's local functions
//! themselves.
//!
//! They are found by looking for branches and `lea` whose displacement leads exactly to the start of a local
//! function. Bytes that are no instruction hardly ever do (once in 2^32 by chance, in 2^16 for a short
//! jump); what is found only says who needs whom, no byte is changed for it.
//!
//! All text is looked at, a block at a time: the test of a block is the same operations for each of its bytes, so that the
//! compiler does them for sixteen at once.

use crate::classify::is_relative;

/// How many bytes are tested at a time.
const BLOCK: usize = 64;

/// Calls `found` with the place of each displacement in `text` that leads to a place for which `is_start`
/// holds, and that place.
pub(crate) fn scan(text: &[u8], is_start: impl Fn(u32) -> bool, mut found: impl FnMut(u32, u32)) {
    // A branch of one opcode byte may be the first of all.
    if let [0xe8 | 0xe9 | 0xeb, ..] = text {
        found_at(text, [0, text[0]], 1, &is_start, &mut found);
    }
    let last = text.get(1..).unwrap_or_default();
    let (firsts, rest) = text[..last.len()].as_chunks::<BLOCK>();
    let (lasts, rest_lasts) = last.as_chunks::<BLOCK>();
    let mut look = |at: usize| {
        found_at(
            text,
            [text[at], text[at + 1]],
            at + 2,
            &is_start,
            &mut found,
        );
    };
    for ((first, last), start) in firsts.iter().zip(lasts).zip((0..).step_by(BLOCK)) {
        let mut may: [u8; BLOCK] = [0; BLOCK];
        for ((may, &first), &last) in may.iter_mut().zip(first).zip(last) {
            *may = u8::from(may_branch(first, last));
        }
        for (word, at) in may.as_chunks().0.iter().zip((start..).step_by(8)) {
            let mut word = u64::from_le_bytes(*word);
            while word != 0 {
                look(at + word.trailing_zeros() as usize / 8);
                word &= word - 1;
            }
        }
    }
    let start = firsts.len() * BLOCK;
    for (at, (&first, &last)) in (start..).zip(rest.iter().zip(rest_lasts)) {
        if may_branch(first, last) {
            look(at);
        }
    }
}

/// Whether these may be the bytes before a displacement: without branches, since most are not.
fn may_branch(first: u8, last: u8) -> bool {
    let near = (last & 0xfe == 0xe8) | (last == 0xeb);
    near | ((first == 0x0f) & (last & 0xf0 == 0x80)) | ((first == 0x8d) & is_relative(last))
}

fn found_at(
    text: &[u8],
    before: [u8; 2],
    at: usize,
    is_start: impl Fn(u32) -> bool,
    found: &mut impl FnMut(u32, u32),
) {
    let target = match before {
        [_, 0xe8 | 0xe9] | [0x0f, 0x80..=0x8f] => displacement(text, at),
        [0x8d, modrm] if is_relative(modrm) => displacement(text, at),
        [_, 0xeb] => text
            .get(at)
            .map(|byte| at as i64 + 1 + i64::from(byte.cast_signed())),
        _ => None,
    };
    if let Some(target) = target.and_then(|target| u32::try_from(target).ok())
        && is_start(target)
    {
        found(at as u32, target);
    }
}

/// Where the 32-bit displacement at `at` leads. A field that a relocation will fill holds zero.
fn displacement(text: &[u8], at: usize) -> Option<i64> {
    let field = i32::from_le_bytes(*text.get(at..)?.first_chunk()?);
    (field != 0).then(|| at as i64 + 4 + i64::from(field))
}

#[cfg(test)]
mod tests {
    use super::scan;

    fn found(text: &[u8], starts: &[u32]) -> Vec<(u32, u32)> {
        let mut all = Vec::new();
        scan(
            text,
            |target| starts.contains(&target),
            |at, target| all.push((at, target)),
        );
        all
    }

    #[test]
    fn branches_and_lea_to_starts_are_found() {
        assert_eq!(found(&[0xe8, 3, 0, 0, 0], &[8]), [(1, 8)], "call");
        assert_eq!(
            found(&[0xe9, 0xfb, 0xff, 0xff, 0xff], &[0]),
            [(1, 0)],
            "jmp back"
        );
        assert_eq!(found(&[0x0f, 0x84, 2, 0, 0, 0], &[8]), [(2, 8)], "je");
        assert_eq!(
            found(&[0x48, 0x8d, 0x3d, 9, 0, 0, 0], &[16]),
            [(3, 16)],
            "lea"
        );
        assert_eq!(found(&[0xeb, 0x0e], &[16]), [(1, 16)], "short jmp");
    }

    #[test]
    fn blocks_are_searched_to_their_ends() {
        for at in (0..4).chain(58..70).chain(120..140) {
            let mut text = vec![0x90; 200];
            text[at] = 0xeb;
            text[at + 1] = 5;
            assert_eq!(
                found(&text, &[at as u32 + 7]),
                [(at as u32 + 1, at as u32 + 7)]
            );
        }
    }

    #[test]
    fn nothing_else_is() {
        assert_eq!(found(&[0xe8, 3, 0, 0, 0], &[9]), [], "no start");
        assert_eq!(found(&[0xe8, 0, 0, 0, 0], &[5]), [], "a relocated field");
        assert_eq!(found(&[0x8b, 0x05, 2, 0, 0, 0], &[8]), [], "a load");
        assert_eq!(found(&[0xe8, 1, 0, 0], &[8]), [], "cut off");
        assert_eq!(found(&[], &[0]), []);
    }
}
