//! Instructions that become others, as long, when what they reach turns out to be near or far (psABI x86-64 1.0, appendix B).

use crate::fixup::Rewrite;
use crate::mutant::{Mutant, makes};

/// Changes the instruction whose field starts at `field`; `None` if its bytes are not there.
#[inline]
pub(crate) fn rewrite(bytes: &mut [u8], field: usize, rewrite: Rewrite) -> Option<()> {
    let before = |count: usize| field.checked_sub(count);
    match rewrite {
        Rewrite::Nothing => {}
        Rewrite::Lea if makes(Mutant::LeaWrong) => *bytes.get_mut(before(2)?)? = 0x8c,
        Rewrite::Lea => *bytes.get_mut(before(2)?)? = 0x8d,
        Rewrite::Load => *bytes.get_mut(before(2)?)? = 0x8b,
        Rewrite::Call if makes(Mutant::CallShort) => *bytes.get_mut(before(2)?)? = 0xe8,
        Rewrite::Call => bytes
            .get_mut(before(2)?..field)?
            .copy_from_slice(&[0x67, 0xe8]),
        Rewrite::MovabsToLea => without_immediate(bytes, field, 0x8d)?,
        Rewrite::MovabsToLoad => without_immediate(bytes, field, 0x8b)?,
        Rewrite::OffsetToOperand => {
            let instruction = bytes.get_mut(before(2)?..)?;
            // a0 to a3 are the loads, then the stores, of bytes and of words; 88 to 8b are the stores first.
            let opcode = instruction.first_mut()?;
            *opcode = 0x88 | (*opcode & 3) ^ 2;
            *instruction.get_mut(1)? = 0x05;
            instruction.get_mut(6..9)?.copy_from_slice(&NOP_3);
        }
        Rewrite::Jump(len_bytes) => {
            let start = before(1)?;
            let more = usize::from(makes(Mutant::JumpLong) && len_bytes == 6);
            let instruction = bytes.get_mut(start..start + usize::from(len_bytes) + more)?;
            instruction.fill(0x90);
            *instruction.first_mut()? = 0xe9;
        }
    }
    Some(())
}

/// `nopl (%rax)`, as Intel recommends for three bytes (SDM volume 2, `NOP`).
const NOP_3: [u8; 3] = [0x0f, 0x1f, 0x00];

/// Turns `movabs $x, %r` into another way to fill the register, whose displacement is at `field`.
fn without_immediate(bytes: &mut [u8], field: usize, opcode: u8) -> Option<()> {
    let instruction = bytes.get_mut(field.checked_sub(3)?..)?;
    let (rex, register) = (*instruction.first()?, *instruction.get(1)? & 7);
    let new = [0x48 | (rex & 1) << 2, opcode, 0x05 | register << 3];
    instruction.get_mut(..3)?.copy_from_slice(&new);
    if makes(Mutant::NopForgotten) {
        return Some(());
    }
    instruction.get_mut(7..10)?.copy_from_slice(&NOP_3);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten<const N: usize>(
        mut bytes: [u8; N],
        field: usize,
        how: Rewrite,
    ) -> Option<[u8; N]> {
        rewrite(&mut bytes, field, how).map(|()| bytes)
    }

    #[test]
    fn instructions_are_relaxed_as_the_psabi_says() {
        let call = rewritten([0xff, 0x15, 1, 2, 3, 4], 2, Rewrite::Call);
        assert_eq!(call, Some([0x67, 0xe8, 1, 2, 3, 4]), "addr32 call");
        let jump = rewritten([0xff, 0x25, 1, 2, 3, 4], 1, Rewrite::Jump(6));
        assert_eq!(
            jump,
            Some([0xe9, 0x90, 0x90, 0x90, 0x90, 0x90]),
            "the last nop stays"
        );
        let lea = rewritten([0x48, 0x8b, 0x05, 1, 2, 3, 4], 3, Rewrite::Lea);
        assert_eq!(lea, Some([0x48, 0x8d, 0x05, 1, 2, 3, 4]));
        let load = rewritten([0x48, 0x8d, 0x05, 1, 2, 3, 4], 3, Rewrite::Load);
        assert_eq!(load, Some([0x48, 0x8b, 0x05, 1, 2, 3, 4]));
    }

    #[test]
    fn immediates_become_displacements() {
        let movabs = [0x49, 0xbe, 1, 2, 3, 4, 5, 6, 7, 8];
        let lea = rewritten(movabs, 3, Rewrite::MovabsToLea);
        assert_eq!(lea, Some([0x4c, 0x8d, 0x35, 2, 3, 4, 5, 0x0f, 0x1f, 0x00]));
        let load = rewritten(movabs, 3, Rewrite::MovabsToLoad);
        assert_eq!(load, Some([0x4c, 0x8b, 0x35, 2, 3, 4, 5, 0x0f, 0x1f, 0x00]));
        let movabs = [0x48, 0xbc, 0, 0, 0, 0, 0, 0, 0, 0];
        let lea = rewritten(movabs, 3, Rewrite::MovabsToLea);
        assert_eq!(lea, Some([0x48, 0x8d, 0x25, 0, 0, 0, 0, 0x0f, 0x1f, 0x00]));
        let load = rewritten([0xa1, 1, 2, 3, 4, 5, 6, 7, 8], 2, Rewrite::OffsetToOperand);
        assert_eq!(load, Some([0x8b, 0x05, 2, 3, 4, 5, 0x0f, 0x1f, 0x00]));
        for (from, to) in [(0xa0, 0x8a), (0xa1, 0x8b), (0xa2, 0x88), (0xa3, 0x89)] {
            let done = rewritten([from, 0, 0, 0, 0, 0, 0, 0, 0], 2, Rewrite::OffsetToOperand);
            assert_eq!(done.map(|bytes| bytes[0]), Some(to));
        }
        for (len, field) in [(10, 2), (10, 4), (9, 3)] {
            let mut bytes = vec![0x48; len];
            assert_eq!(rewrite(&mut bytes, field, Rewrite::MovabsToLea), None);
        }
    }

    #[test]
    fn nothing_is_rewritten_outside_the_bytes() {
        for how in [Rewrite::Lea, Rewrite::Load, Rewrite::Call, Rewrite::Jump(6)] {
            assert_eq!(rewritten([0; 4], 0, how), None, "{how:?}");
        }
        assert_eq!(rewritten([0; 4], 1, Rewrite::Jump(6)), None);
    }
}
