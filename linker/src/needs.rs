//! Which code needs which references: the graph between atoms.
//!
//! The graph errs on the side of needing more where a section has no symbols, and may need less where an
//! assembler hides what is meant behind a section and an addend: what is missed meets a slot that traps
//! and names itself.

use object::LittleEndian as LE;

use crate::atoms::{Atoms, Found, meant};
use crate::dynamic::Held;
use crate::fixup::{Fixup, Target};
use crate::input::{Area, Needs, Reference};
use crate::layout::{CELLS, CONSTANTS, DYNAMIC_CELLS, FRAMES, Spot};
use crate::local_calls;
use crate::plan::Plan;
use crate::unit::{Meaning, Unit};

/// The graph of a unit, and its nodes.
pub(crate) fn graph(
    unit: &Unit<'_>,
    plan: &Plan<'_>,
    atoms: Atoms,
    thunks: &[(Spot, u32)],
) -> (Needs, Atoms) {
    let atoms = atoms.refine(unit, plan, thunks);
    let bound: Vec<u32> = (0..)
        .zip(&plan.references)
        .map(|(number, reference)| bound_node(unit, &atoms, number, reference))
        .collect();
    let symbols = unit.objects.iter().map(|object| object.symbols.len());
    let mut targets = Targets {
        unit,
        plan,
        atoms: &atoms,
        bound,
        found: Found::new(symbols.max().unwrap_or_default()),
    };
    let mut edges = Vec::with_capacity(plan.answers.given() + plan.fixups.len());
    // Sites come in their order, more or less: the next one is often in the same atom.
    let mut here = atoms.around(Spot {
        chunk: 0,
        offset: 0,
    });
    let answers = plan.answers.list();
    let answered: Vec<u32> = answers
        .iter()
        .map(|answer| match answer.fixup.by_section {
            true => EACH,
            false => targets.of(&answer.fixup, 0).unwrap_or(NOTHING),
        })
        .collect();
    for (chunk, entries) in plan.answers.batches() {
        for (entry, answer) in entries {
            // Inside its section, whose length has 31 bits.
            let offset = entry.r_offset.get(LE) as u32;
            let site = Spot { chunk, offset };
            if !here.has(site) {
                here = atoms.around_next(here, site);
            }
            let to = match answered[answer] {
                EACH => {
                    let fixup = answers[answer].fixup_of(entry, chunk);
                    targets.of(&fixup, here.start.offset).unwrap_or(NOTHING)
                }
                to => to,
            };
            if to != NOTHING {
                edges.push((here.node, to));
            }
        }
    }
    for fixup in &plan.fixups {
        if matches!(fixup.site.chunk, CELLS | DYNAMIC_CELLS | FRAMES) {
            continue;
        }
        if !here.has(fixup.site) {
            here = atoms.around_next(here, fixup.site);
        }
        if let Some(to) = targets.of(fixup, here.start.offset) {
            edges.push((here.node, to));
        }
    }
    local_edges(unit, &atoms, &mut edges);
    let references = plan.references.len();
    (compress(edges, atoms.nodes(), references), atoms)
}

/// Among the nodes of answers: that nothing is needed, and that it is found out for each relocation.
const NOTHING: u32 = u32::MAX;
const EACH: u32 = u32::MAX - 1;

/// Finds the nodes that fixups lead to.
struct Targets<'t, 'a> {
    unit: &'t Unit<'a>,
    plan: &'t Plan<'a>,
    atoms: &'t Atoms,
    /// Of each reference.
    bound: Vec<u32>,
    found: Found,
}

impl Targets<'_, '_> {
    /// The node of what `fixup` leads to, if that is needed; `base` is where the atom around its site starts.
    fn of(&mut self, fixup: &Fixup, base: u32) -> Option<u32> {
        let spot = match fixup.target {
            Target::Stub(reference)
            | Target::CallCell(reference)
            | Target::AddressCell(reference)
            | Target::Bound(reference) => return self.bound.get(reference as usize).copied(),
            Target::Number(_) | Target::Window => return None,
            Target::Spot(spot) => spot,
        };
        match spot.chunk {
            CONSTANTS => None,
            CELLS | DYNAMIC_CELLS => self.of_cell(spot),
            _ => {
                let spot = meant(self.unit, fixup, spot, base);
                Some(self.atoms.known(&mut self.found, fixup.symbol, spot))
            }
        }
    }

    /// The node of what the unit's own cell at `spot` holds.
    fn of_cell(&self, spot: Spot) -> Option<u32> {
        if spot.chunk == CELLS {
            let held = self.plan.cells.get(spot.offset as usize / 8);
            return held.map(|&spot| self.atoms.node(spot));
        }
        match self.plan.dynamic.held(spot.offset)? {
            Held::Pair(reference) | Held::FromThread(reference) => {
                self.bound.get(reference as usize).copied()
            }
            Held::Own(spot) | Held::Resolved(spot) => Some(self.atoms.node(spot)),
            Held::Block => None,
        }
    }
}

/// Adds the edges to local functions that no relocation shows.
fn local_edges(unit: &Unit<'_>, atoms: &Atoms, edges: &mut Vec<(u32, u32)>) {
    for (chunk, home) in (0..).zip(&unit.chunks) {
        let group = atoms.of_chunk(chunk);
        if home.area != Area::Text || group.len() < 2 || !group.iter().any(|atom| atom.local) {
            continue;
        }
        let find = |offset| group.binary_search_by_key(&offset, |atom| atom.start.offset);
        let is_start = |offset| find(offset).is_ok_and(|index| group[index].local);
        local_calls::scan(home.bytes().unwrap_or_default(), is_start, |at, target| {
            let node = |offset| atoms.node(Spot { chunk, offset });
            edges.push((node(at), node(target)));
        });
    }
}

/// The node of a reference: that of the unit's own function, which is needed itself, or the reference.
fn bound_node(unit: &Unit<'_>, atoms: &Atoms, number: u32, reference: &Reference<'_>) -> u32 {
    let global = reference.own.and_then(|own| unit.defined.get(own));
    match global.map(|&global| unit.definition(global)) {
        Some(Ok(Meaning::Own(own))) => atoms.node(own.spot),
        _ => number | Needs::REFERENCE,
    }
}

/// Groups edges by their start, without duplicates and those that lead nowhere else.
fn compress(mut edges: Vec<(u32, u32)>, nodes: usize, references: usize) -> Needs {
    // A few ascending runs, which this sort merges.
    edges.sort_by_key(|&(from, _)| from);
    let mut first = Vec::with_capacity(nodes + 1);
    let mut targets = Vec::with_capacity(edges.len());
    // For each node, then each reference, the last one from which an edge led there.
    let mut last = vec![u32::MAX; nodes + references];
    for (from, to) in edges {
        if from == to {
            continue;
        }
        if from as usize >= first.len() {
            // Also of the nodes before, from which no edge starts.
            first.resize(from as usize + 1, targets.len() as u32);
        }
        let place = match to & Needs::REFERENCE {
            0 => to as usize,
            _ => nodes + (to & !Needs::REFERENCE) as usize,
        };
        if last[place] != from {
            last[place] = from;
            targets.push(to);
        }
    }
    first.resize(nodes + 1, targets.len() as u32);
    Needs { first, targets }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_grouped_and_deduplicated() {
        let edges = vec![(2, 5), (0, 1), (2, 5), (2, 1), (0, 1)];
        let needs = compress(edges, 6, 0);
        assert_eq!(
            (needs.of(0), needs.of(1), needs.of(2)),
            (&[1][..], &[][..], &[5, 1][..])
        );
        assert_eq!(needs.of(9), &[] as &[u32]);
    }

    #[test]
    fn needs_are_transitive_and_cycles_end() {
        let edges = vec![
            (0, 1),
            (1, 0),
            (1, 7 | Needs::REFERENCE),
            (2, 3 | Needs::REFERENCE),
        ];
        let needs = compress(edges, 3, 8);
        assert_eq!(needs.references_of(0), [7]);
        assert_eq!(needs.references_of(2), [3]);
        assert_eq!(needs.references_of(9), []);
    }
}
