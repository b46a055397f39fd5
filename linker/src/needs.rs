//! Which code needs which references: the graph between atoms.
//!
//! The graph errs on the side of needing more where a section has no symbols, and may need less where an
//! assembler hides what is meant behind a section and an addend: what is missed meets a slot that traps
//! and names itself.

use crate::atoms::{Atoms, Found, meant};
use crate::dynamic::Held;
use crate::fixup::Target;
use crate::input::{Area, Needs, Reference};
use crate::layout::{CELLS, CONSTANTS, DYNAMIC_CELLS, FIRST_INPUT, FRAMES, Spot};
use crate::local_calls;
use crate::order;
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
    let mut edges = Vec::with_capacity(plan.fixups.len());
    let bound: Vec<u32> = (0..)
        .zip(&plan.references)
        .map(|(number, reference)| bound_node(unit, &atoms, number, reference))
        .collect();
    // Fixups come in the order of their sites, more or less: the next one is often in the same atom.
    let mut here = atoms.around(Spot {
        chunk: 0,
        offset: 0,
    });
    let symbols = unit.objects.iter().map(|object| object.symbols.len());
    let mut found = Found::new(symbols.max().unwrap_or_default());
    for fixup in &plan.fixups {
        if matches!(fixup.site.chunk, CELLS | DYNAMIC_CELLS | FRAMES) {
            continue;
        }
        if !here.has(fixup.site) {
            here = atoms.around_next(here, fixup.site);
        }
        let to = match fixup.target {
            Target::Stub(reference)
            | Target::CallCell(reference)
            | Target::AddressCell(reference)
            | Target::Bound(reference) => bound.get(reference as usize).copied(),
            Target::Number(_) | Target::Window => None,
            Target::Spot(spot) if spot.chunk >= FIRST_INPUT && !fixup.by_section => {
                Some(atoms.known(&mut found, fixup.symbol, spot))
            }
            Target::Spot(spot) => match spot.chunk {
                CONSTANTS => None,
                CELLS | DYNAMIC_CELLS => cell_node(plan, &atoms, &bound, spot),
                _ => {
                    let spot = meant(unit, fixup, spot, here.start.offset);
                    Some(atoms.known(&mut found, fixup.symbol, spot))
                }
            },
        };
        if let Some(to) = to
            && here.node != to
        {
            edges.push((here.node, to));
        }
    }
    local_edges(unit, &atoms, &mut edges);
    let references = plan.references.len();
    (compress(edges, atoms.nodes(), references), atoms)
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
            let (from, to) = (node(at), node(target));
            if from != to {
                edges.push((from, to));
            }
        });
    }
}

/// The node of what the unit's own cell at `spot` holds.
fn cell_node(plan: &Plan<'_>, atoms: &Atoms, bound: &[u32], spot: Spot) -> Option<u32> {
    if spot.chunk == CELLS {
        let held = plan.cells.get(spot.offset as usize / 8);
        return held.map(|&spot| atoms.node(spot));
    }
    match plan.dynamic.held(spot.offset)? {
        Held::Pair(reference) | Held::FromThread(reference) => {
            bound.get(reference as usize).copied()
        }
        Held::Own(spot) | Held::Resolved(spot) => Some(atoms.node(spot)),
        Held::Block => None,
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

/// Groups edges by their start, without duplicates, in linear time: mostly they come in that order.
fn compress(mut edges: Vec<(u32, u32)>, nodes: usize, references: usize) -> Needs {
    order::sort(&mut edges, |&(from, _)| from.into());
    let mut first = Vec::with_capacity(nodes + 1);
    let mut targets = Vec::with_capacity(edges.len());
    // For each node, then each reference, the last one from which an edge led there.
    let mut last = vec![u32::MAX; nodes + references];
    for (from, to) in edges {
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
