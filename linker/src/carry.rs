//! Data that lie elsewhere: an earlier version of the unit has stored something in them, and it is kept.
//!
//! Invariant: whatever refers to such a datum, or into it, by a symbol, gets its place; what refers to it by its section and
//! shares that with other data is refused, since a place one past another datum would look the same. No patch is made for
//! shared data: they are filled once for all workers, and not by them.

use jitcast_runtime::{Patch, PatchKind, PatchTarget, SegmentOffset};

use crate::atoms;
use crate::error::{Problem, SymbolRefusal};
use crate::fixup::Fixup;
use crate::input::{Area, Carried, Definition, Placement};
use crate::layout::Spot;
use crate::prepared::Prepared;
use crate::unit::{Meaning, Unit};

/// Where the carried data of a unit lie, in the order of their spots.
#[derive(Debug, Default)]
pub(crate) struct Carriage<'a> {
    list: Vec<Moved<'a>>,
}

#[derive(Clone, Copy, Debug)]
struct Moved<'a> {
    start: Spot,
    end: u32,
    place: SegmentOffset,
    name: &'a str,
    /// Nothing else lies in its chunk.
    alone: bool,
}

impl<'a> Carriage<'a> {
    /// Finds the data, and makes the patches by which a worker that has not had them gets their initial bytes.
    pub(crate) fn new(
        prepared: &Prepared<'a>,
        at: &Placement,
        carried: &[Carried],
        patches: &mut Vec<Patch>,
    ) -> Result<Self, Problem> {
        let mut list = Vec::with_capacity(carried.len());
        for carried in carried {
            let wrong = Problem::Placement("what is carried over is no datum of the unit");
            let unit = &prepared.unit;
            let definition = unit.definitions.get(carried.definition);
            let kept = |definition: &&Definition<'_>| definition.writable || definition.unique;
            let (Some(definition), Meaning::Own(own)) = (
                definition.filter(kept),
                unit.definition(unit.defined[carried.definition])?,
            ) else {
                return Err(wrong);
            };
            let chunk = &unit.chunks[own.spot.chunk as usize];
            let (start, len_bytes) = (own.spot, definition.size);
            let end = u64::from(start.offset).checked_add(len_bytes);
            let end = end.filter(|end| *end <= chunk.len_bytes()).ok_or(wrong)?;
            match chunk.area {
                Area::Private => {
                    let fresh = PatchTarget::Window(prepared.place(start, at)?.1);
                    // Both halves are 32 bits wide: pieces are shorter than a window.
                    let addend = (u64::from(carried.since) << 32 | len_bytes).cast_signed();
                    patches.push(Patch::of(PatchKind::Copy, carried.place, fresh, addend));
                }
                Area::SharedData => {}
                Area::Text | Area::ReadOnly => continue,
            }
            if definition.unique {
                // Even the unit itself reaches it through cells.
                continue;
            }
            list.push(Moved {
                start,
                end: end as u32,
                place: carried.place,
                name: definition.name,
                alone: start.offset == 0 && end == chunk.len_bytes(),
            });
        }
        list.sort_unstable_by_key(|moved| moved.start);
        for pair in list.windows(2) {
            let (first, second) = (pair[0], pair[1]);
            let overlap =
                first.start.chunk == second.start.chunk && second.start.offset < first.end;
            let is_alias = first.start == second.start && first.place == second.place;
            if overlap && !is_alias {
                return Err(refused(second.name, SymbolRefusal::CarriedApart));
            }
        }
        Ok(Self { list })
    }

    /// Whether nothing lies elsewhere.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Where `spot` lies, to which `fixup` refers, if that is elsewhere.
    pub(crate) fn place(
        &self,
        unit: &Unit<'_>,
        fixup: &Fixup,
        spot: Spot,
    ) -> Result<Option<SegmentOffset>, Problem> {
        if self.list.is_empty() {
            return Ok(None);
        }
        let meant = atoms::meant(unit, fixup, spot, fixup.site.offset);
        let Some(moved) = self.around(meant) else {
            return Ok(None);
        };
        if fixup.by_section && !moved.alone {
            return Err(refused(moved.name, SymbolRefusal::CarriedBySection));
        }
        let inside = i64::from(spot.offset) - i64::from(moved.start.offset);
        let outside = Problem::Placement("a carried datum is outside every window");
        let place = u32::try_from(i64::from(moved.place.get()) + inside);
        Ok(Some(SegmentOffset::new(place.map_err(|_| outside)?)))
    }

    fn around(&self, spot: Spot) -> Option<&Moved<'a>> {
        let after = self.list.partition_point(|moved| moved.start <= spot);
        let moved = &self.list[after.checked_sub(1)?];
        let inside = spot.offset < moved.end || moved.alone;
        (moved.start.chunk == spot.chunk && inside).then_some(moved)
    }
}

fn refused(symbol: &str, refusal: SymbolRefusal) -> Problem {
    let symbol = symbol.into();
    Problem::Symbol { symbol, refusal }
}
