//! Where functions and objects are, told by the symbols of the inputs: the one list of which atoms and names are made.

use object::LittleEndian as LE;
use object::elf::{self, Sym64};
use object::read::elf::Sym as _;

use crate::layout::Spot;
use crate::order;
use crate::unit::Unit;

/// A symbol of a function or an object that is placed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Label {
    pub(crate) start: Spot,
    /// `st_size`, bytes, or as much of it as 32 bits hold.
    pub(crate) len_bytes: u32,
    pub(crate) object: u32,
    /// Its index in the object.
    pub(crate) symbol: u32,
    /// `STT_FUNC`, `STT_GNU_IFUNC` or `STT_OBJECT`.
    pub(crate) kind: u8,
    /// What others know it by, if they do: an index into [`Globals::list`](crate::resolve::Globals::list).
    pub(crate) global: Option<u32>,
}

/// Those of all objects, as they are read. The chunks that they are in are still numbers of their objects' sections.
#[derive(Debug, Default)]
pub(crate) struct Labels {
    list: Vec<Label>,
}

/// Whether a symbol of `kind` is that of a function or an object.
pub(crate) fn is_labelled(kind: u8) -> bool {
    matches!(kind, elf::STT_FUNC | elf::STT_GNU_IFUNC | elf::STT_OBJECT)
}

impl Labels {
    /// Makes room for `count` more.
    pub(crate) fn reserve(&mut self, count: usize) {
        self.list.reserve(count);
    }

    /// Takes note of a symbol that is defined in `section`, if it is one of a function or an object.
    #[inline]
    pub(crate) fn note(
        &mut self,
        (object, index): (u32, u32),
        symbol: &Sym64<LE>,
        section: u32,
        global: Option<u32>,
    ) {
        let kind = symbol.st_type();
        if is_labelled(kind)
            && let Ok(offset) = u32::try_from(symbol.st_value(LE))
        {
            let label = Label {
                start: Spot {
                    chunk: section,
                    offset,
                },
                len_bytes: u32::try_from(symbol.st_size(LE)).unwrap_or(u32::MAX),
                object,
                symbol: index,
                kind,
                global,
            };
            self.list.push(label);
        }
    }

    /// Those that are placed, in the order of their places; those of one place in the order of the files.
    pub(crate) fn placed(self, unit: &Unit<'_>) -> Vec<Label> {
        let mut labels = self.list;
        labels.retain_mut(|label| {
            let section = label.start.chunk as usize;
            let chunk = unit.chunk_of(label.object as usize, section);
            label.start.chunk = chunk.unwrap_or_default();
            chunk.is_some()
        });
        order::sort(&mut labels, |label| label.start.key());
        labels
    }
}
