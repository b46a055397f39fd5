//! Fixups: what each field will hold, in terms of places that have no address yet.

use object::LittleEndian as LE;
use object::elf::Rela64;

use crate::classify::Use;
use crate::layout::Spot;
use crate::relocation::{RELATIVE, Row};

/// What a fixup refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A place of the unit.
    Spot(Spot),
    /// A number.
    Number(u64),
    /// The stub of a reference.
    Stub(u32),
    /// The call cell of a reference.
    CallCell(u32),
    /// The address cell of a reference.
    AddressCell(u32),
    /// What a reference is bound to.
    Bound(u32),
    /// The start of the window, where the global offset table starts too.
    Window,
}

/// How the instruction around a field changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rewrite {
    /// It does not.
    Nothing,
    /// `mov cell(%rip), %r` becomes `lea x(%rip), %r`.
    Lea,
    /// `lea x(%rip), %r` becomes `mov cell(%rip), %r`.
    Load,
    /// `call *cell(%rip)` becomes `addr32 call x` (psABI x86-64 1.0, appendix B).
    Call,
    /// `movabs $x, %r` becomes `lea x(%rip), %r` and a `nop`. The field is the displacement's.
    MovabsToLea,
    /// `movabs $x, %r` becomes `mov cell(%rip), %r` and a `nop`. The field is the displacement's.
    MovabsToLoad,
    /// `movabs x, %rax` and the like become `mov x(%rip), %rax` and a `nop`. The field is the displacement's.
    OffsetToOperand,
    /// The instruction, this many bytes long, becomes a jump, the rest of it `nop`. The field is the jump's.
    Jump(u8),
}

/// One field to compute. There are as many as relocations, so it is small.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fixup {
    /// The field.
    pub(crate) site: Spot,
    /// What is computed.
    pub(crate) row: Row,
    pub(crate) target: Target,
    pub(crate) addend: i64,
    pub(crate) rewrite: Rewrite,
    /// The symbol's index in its object, for messages.
    pub(crate) symbol: u32,
    /// The symbol is a section's: the addend says what is meant.
    pub(crate) by_section: bool,
    /// How far behind the site the field of the relocation is that asked for it, bytes.
    pub(crate) asked_after: i8,
    /// What asked for it is what asked for the next one that says otherwise; the site is in a thunk.
    pub(crate) in_thunk: bool,
}

/// Which part of an instruction a field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    /// A displacement from the instruction's end, 32 bits.
    Displacement,
    /// An immediate of 64 bits.
    Immediate,
}

/// An instruction that has to become another one: it reaches what the unit does not define as if it were
/// near, or holds an address. `fixup` is that of the cell's load, or of the distance to what the unit has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Detour {
    pub(crate) fixup: Fixup,
    pub(crate) field: Field,
    pub(crate) origin: (u32, u32),
}

impl Fixup {
    /// The field of the relocation that asked for it; of what nobody asked for, the site.
    pub(crate) fn asked(&self) -> Spot {
        let offset = self
            .site
            .offset
            .wrapping_add_signed(self.asked_after.into());
        Spot {
            offset,
            ..self.site
        }
    }

    /// The same for `entry`, a relocation in a piece of text that asks as the one did for which this is.
    #[inline(always)]
    pub(crate) fn of(&self, entry: &Rela64<LE>, chunk: u32) -> Self {
        // Inside its section, whose length has 31 bits.
        let asked = entry.r_offset.get(LE) as u32;
        let offset = asked.wrapping_sub(self.asked_after as u32);
        Self {
            site: Spot { chunk, offset },
            addend: entry.r_addend.get(LE),
            symbol: entry.r_sym(LE, false),
            ..*self
        }
    }

    /// Turns a use of a GOT entry into one of the symbol itself.
    #[inline]
    pub(crate) fn relax(&mut self, usage: Use) {
        self.row = RELATIVE;
        match usage {
            Use::IndirectCall => self.rewrite = Rewrite::Call,
            Use::IndirectJump => {
                // `ff 25 disp32` becomes `e9 rel32 90`: the field moves one byte down.
                self.site.offset -= 1;
                self.asked_after = 1;
                self.rewrite = Rewrite::Jump(6);
            }
            _ => self.rewrite = Rewrite::Lea,
        }
    }
}
