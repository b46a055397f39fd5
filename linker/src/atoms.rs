//! Atoms: the ranges of a unit's functions and objects.
//!
//! Invariant: atoms are sorted and do not overlap. Relocations ask for the atoms around places, so each chunk
//! is divided into about as many equal granules as it has atoms, and a search looks at one granule's.

use object::elf;

use crate::classify::immediate_len;
use crate::fixup::{Fixup, Target};
use crate::input::Area;
use crate::label::Label;
use crate::layout::Spot;
use crate::plan::Plan;
use crate::relocation::Resolved;
use crate::unit::Unit;

/// The range of a function or an object, or a stretch of read-only data that something refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Atom {
    pub(crate) start: Spot,
    end: u32,
    /// A function that only its own object can name.
    pub(crate) local: bool,
}

/// The node around a place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Around {
    pub(crate) node: u32,
    /// Where its atom starts, or the chunk of which it is the rest.
    pub(crate) start: Spot,
    end: u32,
}

impl Around {
    /// Whether `spot` is certainly in the same atom.
    pub(crate) fn has(&self, spot: Spot) -> bool {
        self.start.chunk == spot.chunk && self.start.offset <= spot.offset && spot.offset < self.end
    }
}

/// The nodes of places that were found last, by the index of the symbol that led there. It is no more than a hint: each
/// entry says which place it is of.
#[derive(Debug)]
pub(crate) struct Found {
    list: Vec<(Spot, u32)>,
}

impl Found {
    /// For the symbols of objects that have at most `count`.
    pub(crate) fn new(count: usize) -> Self {
        // No chunk has this number.
        let (chunk, offset) = (u32::MAX, 0);
        Self {
            list: vec![(Spot { chunk, offset }, 0); count],
        }
    }

    /// Keeps that `symbol` led to `spot`, whose node is `node`.
    #[inline]
    pub(crate) fn keep(&mut self, symbol: u32, spot: Spot, node: u32) {
        if let Some(entry) = self.list.get_mut(symbol as usize) {
            *entry = (spot, node);
        }
    }
}

/// The atoms of a unit, in order; they do not overlap.
#[derive(Debug)]
pub(crate) struct Atoms {
    list: Vec<Atom>,
    /// Each chunk's part of `list` and of `granules`; one more entry than there are chunks.
    homes: Vec<Home>,
    /// For each granule, the first atom of `list` that starts in it or after it.
    granules: Vec<u32>,
}

/// A chunk's atoms.
#[derive(Clone, Copy, Debug, Default)]
struct Home {
    /// The index of the first.
    first: u32,
    /// The first granule.
    granule: u32,
    /// The binary logarithm of a granule's length, bytes.
    shift: u32,
}

impl Atoms {
    /// The ranges of all functions and objects, of which these are the labels.
    pub(crate) fn of(unit: &Unit<'_>, labels: &[Label]) -> Self {
        let mut list = Vec::with_capacity(labels.len());
        for label in labels
            .iter()
            .filter(|label| label.kind != elf::STT_GNU_IFUNC)
        {
            let start = label.start;
            list.push(Atom {
                start,
                end: start.offset.saturating_add(label.len_bytes),
                local: label.kind == elf::STT_FUNC && label.global.is_none(),
            });
        }
        // Assembly leaves the sizes of its functions out: such a one ends where the next begins.
        let (mut here, mut next) = (None, None);
        for atom in list.iter_mut().rev() {
            let Spot { chunk, offset } = atom.start;
            if here != Some(atom.start) {
                (here, next) = (Some(atom.start), here);
            }
            if atom.end == offset {
                let whole = unit.chunks[chunk as usize].len_bytes() as u32;
                let next = next.filter(|next: &Spot| next.chunk == chunk);
                atom.end = next.map_or(whole, |next| next.offset);
            }
        }
        // What starts inside another one is part of it; those that start at one place become one.
        list.dedup_by(|atom, last| {
            let part = last.start == atom.start || last.reaches(atom.start);
            if part {
                last.end = last.end.max(atom.end);
                last.local |= atom.local;
            }
            part
        });
        Self::index(list, unit.chunks.len())
    }

    /// Makes the index of `list`, which is sorted.
    fn index(list: Vec<Atom>, chunks: usize) -> Self {
        let mut homes = vec![Home::default(); chunks + 1];
        let mut granules = Vec::with_capacity(list.len() + chunks);
        let mut first = 0;
        for (chunk, home) in (0..).zip(&mut homes) {
            let rest = &list[first..];
            let own = &rest[..rest
                .iter()
                .take_while(|atom| atom.start.chunk == chunk)
                .count()];
            *home = Home {
                first: first as u32,
                granule: granules.len() as u32,
                shift: granule_shift(own),
            };
            for (index, atom) in (home.first..).zip(own) {
                // The granules up to that of this atom, as far as an earlier one did not open them.
                let granule = home.granule + (atom.start.offset >> home.shift);
                while granules.len() as u32 <= granule {
                    granules.push(index);
                }
            }
            first += own.len();
        }
        Self {
            list,
            homes,
            granules,
        }
    }

    /// The atoms of a chunk, in order.
    pub(crate) fn of_chunk(&self, chunk: u32) -> &[Atom] {
        let (first, end) = self.range(chunk);
        &self.list[first..end]
    }

    /// The indices in `list` at which the atoms of a chunk start and end.
    fn range(&self, chunk: u32) -> (usize, usize) {
        let at = |chunk: usize| self.homes.get(chunk).map(|home| home.first as usize);
        let end = at(chunk as usize + 1).unwrap_or(self.list.len());
        (at(chunk as usize).unwrap_or(end), end)
    }

    /// The last atom that starts at `spot` or before it in its chunk.
    fn before(&self, spot: Spot) -> Option<usize> {
        let [home, next] = *self.homes.get(spot.chunk as usize..)?.first_chunk()?;
        let granules = self
            .granules
            .get(home.granule as usize..next.granule as usize)?;
        let granule = (spot.offset >> home.shift) as usize;
        let starts_at = |granule: usize| *granules.get(granule).unwrap_or(&next.first) as usize;
        let (from, to) = (starts_at(granule), starts_at(granule + 1));
        let inside = self.list.get(from..to)?;
        let after = from + inside.partition_point(|atom| atom.start.offset <= spot.offset);
        (after > home.first as usize).then(|| after - 1)
    }

    /// Where the function around `spot` starts, or the code after the last function before it.
    pub(crate) fn start_of(&self, spot: Spot) -> u32 {
        match self.before(spot).map(|index| self.list[index]) {
            Some(atom) if atom.end > spot.offset || atom.end == atom.start.offset => {
                atom.start.offset
            }
            Some(atom) => atom.end,
            None => 0,
        }
    }

    /// Adds the ranges of thunks, and splits unnamed read-only data where something refers into it: a jump
    /// table is then not taken for the string beside it.
    pub(crate) fn refine(
        mut self,
        unit: &Unit<'_>,
        plan: &Plan<'_>,
        thunks: &[(Spot, u32)],
    ) -> Self {
        let mut more: Vec<Atom> = thunks
            .iter()
            .map(|&(start, len)| Atom {
                start,
                end: start.plus(len).offset,
                local: false,
            })
            .collect();
        let answered = plan.answers.fixups(|answer| answer.by_section);
        let others = plan.fixups.iter().filter(|fixup| fixup.by_section);
        let mut starts: Vec<Spot> = answered
            .chain(others.copied())
            .filter_map(|fixup| {
                let Target::Spot(spot) = fixup.target else {
                    return None;
                };
                let target = &unit.chunks[spot.chunk as usize];
                let from_text = unit.chunks[fixup.site.chunk as usize].area == Area::Text;
                (from_text && target.area == Area::ReadOnly)
                    .then(|| meant(unit, &fixup, spot, 0))
                    .filter(|spot| {
                        u64::from(spot.offset) < target.len_bytes() && self.find(*spot).is_none()
                    })
            })
            .collect();
        starts.sort_unstable();
        starts.dedup();
        for (index, &start) in starts.iter().enumerate() {
            let mut end = unit.chunks[start.chunk as usize].len_bytes() as u32;
            let after = self.list.partition_point(|atom| atom.start <= start);
            for next in [
                starts.get(index + 1).copied(),
                self.list.get(after).map(|atom| atom.start),
            ] {
                end = next
                    .filter(|next| next.chunk == start.chunk)
                    .map_or(end, |next| end.min(next.offset));
            }
            more.push(Atom {
                start,
                end,
                local: false,
            });
        }
        if more.is_empty() {
            return self;
        }
        self.list.append(&mut more);
        self.list.sort_unstable();
        Self::index(self.list, unit.chunks.len())
    }

    fn find(&self, spot: Spot) -> Option<usize> {
        let index = self.before(spot)?;
        let atom = &self.list[index];
        (atom.start == spot || atom.reaches(spot)).then_some(index)
    }

    /// The node of what lies at `spot`: of its atom, or of the rest of its chunk.
    pub(crate) fn node(&self, spot: Spot) -> u32 {
        self.around(spot).node
    }

    /// What lies at `spot`: its atom, or the rest of its chunk, of which no more than that place is known.
    pub(crate) fn around(&self, spot: Spot) -> Around {
        let rest = self.homes.len() as u32;
        match self.find(spot) {
            Some(index) => Around {
                node: rest + index as u32,
                start: self.list[index].start,
                end: self.list[index].end,
            },
            None => Around {
                node: 1 + spot.chunk,
                start: Spot { offset: 0, ..spot },
                end: 0,
            },
        }
    }

    /// [`Atoms::around`], of a place that is likely in the atom after `last`.
    #[inline]
    pub(crate) fn around_next(&self, last: Around, spot: Spot) -> Around {
        let next = last.node + 1;
        let index = (next as usize).checked_sub(self.homes.len());
        match index.and_then(|index| self.list.get(index)) {
            Some(atom) if atom.start.offset <= spot.offset && atom.reaches(spot) => Around {
                node: next,
                start: atom.start,
                end: atom.end,
            },
            _ => self.around(spot),
        }
    }

    /// [`Atoms::node`], of places that were looked for before.
    #[inline]
    pub(crate) fn known(&self, found: &mut Found, symbol: u32, spot: Spot) -> u32 {
        let Some(entry) = found.list.get_mut(symbol as usize) else {
            return self.node(spot);
        };
        if entry.0 != spot {
            *entry = (spot, self.node(spot));
        }
        entry.1
    }

    /// How many nodes there are: one that needs nothing, the rest of each chunk, the atoms.
    pub(crate) fn nodes(&self) -> usize {
        self.homes.len() + self.list.len()
    }
}

impl Atom {
    /// Whether `spot` is inside, given that it does not lie before.
    fn reaches(&self, spot: Spot) -> bool {
        self.start.chunk == spot.chunk && self.end > spot.offset
    }
}

/// How long the granules of a chunk with these atoms are, as a binary logarithm: so that there are no more than twice as
/// many granules as atoms.
fn granule_shift(atoms: &[Atom]) -> u32 {
    let Some(last) = atoms.last() else { return 0 };
    (u64::from(last.start.offset) / atoms.len() as u64)
        .checked_ilog2()
        .unwrap_or_default()
}

/// What a fixup against `spot` means: for the symbol of a section, the place that the addend adds up to.
/// `base` is where a table of distances starts that the site is in.
#[inline]
pub(crate) fn meant(unit: &Unit<'_>, fixup: &Fixup, spot: Spot, base: u32) -> Spot {
    if fixup.by_section {
        meant_by_section(unit, fixup, spot, base)
    } else {
        spot
    }
}

fn meant_by_section(unit: &Unit<'_>, fixup: &Fixup, spot: Spot, base: u32) -> Spot {
    let home = &unit.chunks[fixup.site.chunk as usize];
    let past = match (home.area, fixup.row.resolved) {
        (_, Resolved::AtAttach) => 0,
        _ if !fixup.row.is_relative() => 0,
        // The distance is counted from the instruction's end.
        (Area::Text, _) => {
            let immediate =
                immediate_len(home.bytes().unwrap_or_default(), fixup.site.offset as usize);
            i64::from(fixup.row.field.width_bytes) + i64::from(immediate)
        }
        // The distance is counted from the start of the table.
        _ => i64::from(base) - i64::from(fixup.site.offset),
    };
    let offset = i64::from(spot.offset)
        .checked_add(fixup.addend)
        .and_then(|sum| sum.checked_add(past));
    let offset = offset.map_or(spot.offset, |offset| {
        offset.clamp(0, i64::from(u32::MAX)) as u32
    });
    Spot { offset, ..spot }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_atoms_or_the_rest_of_a_chunk() {
        let spot = |offset| Spot { chunk: 3, offset };
        let atom = |start, end| Atom {
            start: spot(start),
            end,
            local: false,
        };
        let list = vec![atom(4, 8), atom(16, 16)];
        let atoms = Atoms::index(list, 5);
        assert_eq!(
            [0, 4, 7, 8, 16, 17].map(|offset| atoms.node(spot(offset))),
            [4, 6, 6, 4, 7, 4]
        );
        assert_eq!(
            [0, 5, 9, 20].map(|offset| atoms.start_of(spot(offset))),
            [0, 4, 8, 16]
        );
        assert_eq!(
            atoms.start_of(Spot {
                chunk: 4,
                offset: 9
            }),
            0
        );
    }

    /// Spread evenly, bunched together, far from the start, or many in one place.
    #[test]
    fn what_granules_find_is_what_lies_before() {
        for (count, step, from) in [
            (1, 1, 0),
            (50, 16, 0),
            (50, 1, 3),
            (9, 1000, u32::MAX - 9000),
        ] {
            for bunch in [1, 7] {
                let start = |number: u32| Spot {
                    chunk: 1 + number % 2,
                    offset: from + number / bunch * step,
                };
                let mut list: Vec<_> = (0..count)
                    .map(|number| Atom {
                        start: start(number),
                        end: start(number).offset + 1,
                        local: false,
                    })
                    .collect();
                list.sort_unstable();
                let atoms = Atoms::index(list.clone(), 4);
                for chunk in 0..5 {
                    let around = (0..count).map(|number| start(number).offset);
                    let around =
                        around.flat_map(|offset| [offset.saturating_sub(1), offset, offset + 1]);
                    for offset in around.chain([0, u32::MAX]) {
                        let spot = Spot { chunk, offset };
                        let before = |atom: &Atom| atom.start.chunk == chunk && atom.start <= spot;
                        let expected = list.iter().rposition(before);
                        assert_eq!(atoms.before(spot), expected, "{spot:?} {count} {step}");
                    }
                }
            }
        }
    }
}
