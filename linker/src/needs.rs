//! Which code needs which references: the graph between atoms.
//!
//! The graph errs on the side of needing more where a section has no symbols, and may need less where an
//! assembler hides what is meant behind a section and an addend: what is missed meets a slot that traps
//! and names itself.

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
    let mut edges = Vec::with_capacity(plan.fixups.len());
    let bound: Vec<u32> = (0..)
        .zip(&plan.references)
        .map(|(number, reference)| bound_node(unit, &atoms, number, reference))
        .collect();
    let refers = |fixup: &&Fixup| !matches!(fixup.site.chunk, CELLS | DYNAMIC_CELLS | FRAMES);
    // Fixups come in the order of their sites, more or less: the next one is often in the same atom.
    let mut here = atoms.around(Spot {
        chunk: 0,
        offset: 0,
    });
    let symbols = unit.objects.iter().map(|object| object.symbols.len());
    let mut found = Found::new(symbols.max().unwrap_or_default());
    for fixup in plan.fixups.iter().filter(refers) {
        if !here.has(fixup.site) {
            here = atoms.around(fixup.site);
        }
        let (from, base) = (here.node, here.start.offset);
        if let Some(to) = target_node(unit, plan, &atoms, &mut found, &bound, fixup, base)
            && from != to
        {
            edges.push((from, to));
        }
    }
    local_edges(unit, &atoms, &mut edges);
    (compress(&mut edges, atoms.nodes()), atoms)
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

fn target_node(
    unit: &Unit<'_>,
    plan: &Plan<'_>,
    atoms: &Atoms,
    found: &mut Found,
    bound: &[u32],
    fixup: &Fixup,
    base: u32,
) -> Option<u32> {
    let reference = match fixup.target {
        Target::Number(_) | Target::Window => return None,
        Target::Spot(Spot {
            chunk: CONSTANTS, ..
        }) => return None,
        Target::Spot(Spot {
            chunk: CELLS,
            offset,
        }) => {
            return plan
                .cells
                .get(offset as usize / 8)
                .map(|&spot| atoms.node(spot));
        }
        Target::Spot(Spot {
            chunk: DYNAMIC_CELLS,
            offset,
        }) => match plan.dynamic.held(offset)? {
            Held::Pair(reference) | Held::FromThread(reference) => reference,
            Held::Own(spot) | Held::Resolved(spot) => return Some(atoms.node(spot)),
            Held::Block => return None,
        },
        Target::Spot(spot) => {
            let spot = meant(unit, fixup, spot, base);
            return Some(atoms.known(found, fixup.symbol, spot));
        }
        Target::Stub(reference)
        | Target::CallCell(reference)
        | Target::AddressCell(reference)
        | Target::Bound(reference) => reference,
    };
    bound.get(reference as usize).copied()
}

/// The node of a reference: that of the unit's own function, which is needed itself, or the reference.
fn bound_node(unit: &Unit<'_>, atoms: &Atoms, number: u32, reference: &Reference<'_>) -> u32 {
    let global = reference.own.and_then(|own| unit.defined.get(own));
    match global.map(|&global| unit.definition(global)) {
        Some(Ok(Meaning::Own(own))) => atoms.node(own.spot),
        _ => number | Needs::REFERENCE,
    }
}

/// Sorts edges by their start, without duplicates, in linear time.
fn compress(edges: &mut [(u32, u32)], nodes: usize) -> Needs {
    let mut first = vec![0_u32; nodes + 1];
    for &(from, _) in edges.iter() {
        first[from as usize + 1] += 1;
    }
    for node in 0..nodes {
        first[node + 1] += first[node];
    }
    let mut next = first.clone();
    let mut sorted = vec![0; edges.len()];
    for &(from, to) in edges.iter() {
        sorted[next[from as usize] as usize] = to;
        next[from as usize] += 1;
    }
    let mut targets = Vec::with_capacity(sorted.len());
    let mut start = 0;
    for node in 0..nodes {
        let end = first[node + 1] as usize;
        let own = &mut sorted[start..end];
        if own.len() > 1 {
            own.sort_unstable();
        }
        let kept = targets.len();
        for &target in own.iter() {
            if targets.len() == kept || targets.last() != Some(&target) {
                targets.push(target);
            }
        }
        start = end;
        first[node + 1] = targets.len() as u32;
    }
    Needs { first, targets }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_grouped_and_deduplicated() {
        let mut edges = [(2, 5), (0, 1), (2, 5), (2, 1), (0, 1)];
        let needs = compress(&mut edges, 3);
        assert_eq!(
            (needs.of(0), needs.of(1), needs.of(2)),
            (&[1][..], &[][..], &[1, 5][..])
        );
        assert_eq!(needs.of(3), &[] as &[u32]);
    }

    #[test]
    fn needs_are_transitive_and_cycles_end() {
        let mut edges = [
            (0, 1),
            (1, 0),
            (1, 7 | Needs::REFERENCE),
            (2, 3 | Needs::REFERENCE),
        ];
        let needs = compress(&mut edges, 3);
        assert_eq!(needs.references_of(0), [7]);
        assert_eq!(needs.references_of(2), [3]);
        assert_eq!(needs.references_of(9), []);
    }
}
