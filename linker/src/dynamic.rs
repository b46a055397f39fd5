//! Cells of the unit's own that hold something else than an address of the unit's: what `__tls_get_addr` is
//! given, distances from the thread pointer, what resolvers return.
//!
//! Invariant: a cell's words are asked for once, and filled by one fixup each.

use std::collections::HashMap;

use crate::additions::{RESOLVED_FIELD, RESOLVED_LEN};
use crate::fixup::{Fixup, Rewrite, Target};
use crate::layout::{DYNAMIC_CELLS, MODULE, Spot, THUNKS};
use crate::relocation::{
    ABSOLUTE, BLOCK_OFFSET, CELL, MODULE as MODULE_OF, OFFSET, RESOLVED, Row, THREAD_OFFSET,
};

/// What a cell holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Held {
    /// The unit's module and 0.
    Block,
    /// The unit's module and the offset of what lies there in its block.
    Own(Spot),
    /// The module of a reference and its offset there.
    Pair(u32),
    /// The distance of a reference from the thread pointer.
    FromThread(u32),
    /// What the resolver there returns.
    Resolved(Spot),
}

impl Held {
    fn words(self) -> u32 {
        match self {
            Self::Block | Self::Own(_) | Self::Pair(_) => 2,
            Self::FromThread(_) | Self::Resolved(_) => 1,
        }
    }
}

/// The cells.
#[derive(Debug, Default)]
pub(crate) struct DynamicCells {
    list: Vec<(Held, u32)>,
    of: HashMap<Held, u32>,
    words: u32,
}

impl DynamicCells {
    /// The cell that holds `held`.
    pub(crate) fn cell(&mut self, held: Held) -> Target {
        let (list, words) = (&mut self.list, &mut self.words);
        let offset = *self.of.entry(held).or_insert_with(|| {
            let offset = words.saturating_mul(8);
            list.push((held, offset));
            *words += held.words();
            offset
        });
        Target::Spot(spot(offset))
    }

    pub(crate) fn len_bytes(&self) -> usize {
        self.words as usize * 8
    }

    /// What the cell with the word at `offset` holds.
    pub(crate) fn held(&self, offset: u32) -> Option<Held> {
        let after = self.list.partition_point(|(_, start)| *start <= offset);
        self.list.get(after.checked_sub(1)?).map(|(held, _)| *held)
    }

    /// What fills the cells.
    pub(crate) fn fixups(&self) -> impl Iterator<Item = Fixup> {
        self.list.iter().flat_map(|&(held, offset)| {
            let module = Target::Spot(Spot {
                chunk: MODULE,
                offset: 0,
            });
            let (first, second) = match held {
                Held::Block => ((ABSOLUTE, module), None),
                Held::Own(place) => (
                    (ABSOLUTE, module),
                    Some((BLOCK_OFFSET, Target::Spot(place))),
                ),
                Held::Pair(reference) => {
                    let bound = Target::Bound(reference);
                    ((MODULE_OF, bound), Some((OFFSET, bound)))
                }
                Held::FromThread(reference) => ((THREAD_OFFSET, Target::Bound(reference)), None),
                Held::Resolved(resolver) => ((RESOLVED, Target::Spot(resolver)), None),
            };
            let first = fixup(spot(offset), first.0, first.1, 0);
            let second = second.map(|(row, target)| fixup(spot(offset + 8), row, target, 0));
            core::iter::once(first).chain(second)
        })
    }
}

/// What makes the thunk of resolver number `index` jump through `cell`.
pub(crate) fn thunk_fixup(index: u32, cell: Target) -> Fixup {
    let offset = index * RESOLVED_LEN + RESOLVED_FIELD;
    fixup(
        Spot {
            chunk: THUNKS,
            offset,
        },
        CELL,
        cell,
        -4,
    )
}

fn spot(offset: u32) -> Spot {
    Spot {
        chunk: DYNAMIC_CELLS,
        offset,
    }
}

/// A fixup that no relocation of an input asked for.
pub(crate) fn fixup(site: Spot, row: Row, target: Target, addend: i64) -> Fixup {
    Fixup {
        site,
        row,
        target,
        addend,
        rewrite: Rewrite::Nothing,
        symbol: 0,
        by_section: false,
        asked_after: 0,
        in_thunk: false,
    }
}
