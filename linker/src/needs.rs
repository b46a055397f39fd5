//! Which code needs which references: the graph between atoms.
//!
//! The graph errs on the side of needing more where a section has no symbols, and may need less where an
//! assembler hides what is meant behind a section and an addend: what is missed meets a slot that traps
//! and names itself.

use object::LittleEndian as LE;
use object::elf::Rela64;

use crate::atoms::{Around, Atoms, Found, meant};
use crate::dynamic::Held;
use crate::fixup::{Fixup, Target};
use crate::input::{Area, Needs, Reference};
use crate::label::Label;
use crate::layout::{CELLS, CONSTANTS, DYNAMIC_CELLS, FRAMES, Spot};
use crate::local_calls;
use crate::plan::Plan;
use crate::unit::Unit;

/// The graph of a unit, and the node of each of its definitions: [`NONE`] of those that have no place.
pub(crate) fn graph(
    unit: &Unit<'_>,
    plan: &Plan<'_>,
    atoms: Atoms,
    labels: &[Label],
    thunks: &[(Spot, u32)],
) -> (Needs, Vec<u32>) {
    let atoms = atoms.refine(unit, plan, thunks);
    let symbols = unit.objects.iter().map(|object| object.symbols.len());
    let mut found = Found::new(symbols.max().unwrap_or_default());
    let defined = definitions(unit, &atoms, labels, &mut found);
    let bound: Vec<u32> = (0..)
        .zip(&plan.references)
        .map(|(number, reference)| bound_node(&defined, number, reference))
        .collect();
    let mut targets = Targets {
        unit,
        plan,
        atoms: &atoms,
        bound,
        found,
    };
    let mut edges = Edges::new(atoms.nodes(), plan.references.len());
    // Sites come in their order, more or less: the next one is often in the same atom.
    let mut here = atoms.around(Spot {
        chunk: 0,
        offset: 0,
    });
    answered(&mut targets, &mut edges, &mut here);
    for fixup in &plan.fixups {
        if matches!(fixup.site.chunk, CELLS | DYNAMIC_CELLS | FRAMES) {
            continue;
        }
        if !here.has(fixup.site) {
            here = atoms.around_next(here, fixup.site);
        }
        edges.begin(here.node);
        if let Some(to) = targets.of(fixup, here.start.offset) {
            edges.add(edges.place(to));
        }
    }
    local_edges(unit, &atoms, &mut edges);
    (edges.group(), defined)
}

/// What needs nothing, and nothing is part of.
pub(crate) const NONE: u32 = 0;

/// The node of each definition. Most have labels, which are in the order of the nodes; those are `found` then.
#[inline(never)]
fn definitions(unit: &Unit<'_>, atoms: &Atoms, labels: &[Label], found: &mut Found) -> Vec<u32> {
    let mut nodes = vec![NONE; unit.defined.len()];
    let mut here = atoms.around(Spot {
        chunk: 0,
        offset: 0,
    });
    for label in labels {
        if !here.has(label.start) {
            here = atoms.around_next(here, label.start);
        }
        found.keep(label.symbol, label.start, here.node);
        if let Some(global) = label.global
            && let Some(definition) = unit.definition_of(global)
            // Another object's, perhaps.
            && (unit.own(global)).is_some_and(|own| own.spot == label.start)
        {
            nodes[definition] = here.node;
        }
    }
    for (node, &global) in nodes.iter_mut().zip(&unit.defined) {
        if *node == NONE
            && let Some(own) = unit.own(global)
        {
            *node = atoms.node(own.spot);
        }
    }
    nodes
}

/// Among the places of answers: that it is found out for each relocation.
const EACH: u32 = u32::MAX;

/// Adds the edges of the relocations that are answered for.
#[inline(never)]
fn answered(targets: &mut Targets<'_, '_>, edges: &mut Edges, here: &mut Around) {
    let (plan, atoms) = (targets.plan, targets.atoms);
    let answers = plan.answers.list();
    let places: Vec<u32> = answers
        .iter()
        .map(|answer| match answer.by_section {
            true => EACH,
            false => match targets.of(answer, 0) {
                Some(to) => edges.place(to),
                None => edges.nowhere(),
            },
        })
        .collect();
    edges.reserve(plan.answers.given());
    for (chunk, mut entries, mut given) in plan.answers.batches() {
        let site = |entry: &Rela64<LE>| Spot {
            chunk,
            // Inside its section, whose length has 31 bits.
            offset: entry.r_offset.get(LE) as u32,
        };
        while let Some(first) = entries.first() {
            if !here.has(site(first)) {
                *here = atoms.around_next(*here, site(first));
            }
            edges.begin(here.node);
            let others = entries[1..]
                .iter()
                .take_while(|entry| here.has(site(entry)));
            let count = 1 + others.count();
            let (ours, answers_of_ours) = (&entries[..count], &given[..count]);
            (entries, given) = (&entries[count..], &given[count..]);
            if edges.add_answered(&places, answers_of_ours) {
                continue;
            }
            for (entry, &answer) in ours.iter().zip(answers_of_ours) {
                if places.get(answer as usize) == Some(&EACH) {
                    let fixup = answers[answer as usize].of(entry, chunk);
                    if let Some(to) = targets.of(&fixup, here.start.offset) {
                        edges.add(edges.place(to));
                    }
                }
            }
        }
    }
}

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
fn local_edges(unit: &Unit<'_>, atoms: &Atoms, edges: &mut Edges) {
    for (chunk, home) in (0..).zip(&unit.chunks) {
        let group = atoms.of_chunk(chunk);
        if home.area != Area::Text || group.len() < 2 || !group.iter().any(|atom| atom.local) {
            continue;
        }
        let find = |offset| group.binary_search_by_key(&offset, |atom| atom.start.offset);
        let is_start = |offset| find(offset).is_ok_and(|index| group[index].local);
        local_calls::scan(home.bytes().unwrap_or_default(), is_start, |at, target| {
            let node = |offset| atoms.node(Spot { chunk, offset });
            edges.begin(node(at));
            edges.add(edges.place(node(target)));
        });
    }
}

/// The node of a reference: that of the unit's own function, which is needed itself, or the reference.
fn bound_node(defined: &[u32], number: u32, reference: &Reference<'_>) -> u32 {
    let node = reference.own.and_then(|own| defined.get(own));
    match node {
        Some(&node) if node != NONE => node,
        _ => number | Needs::REFERENCE,
    }
}

/// The edges of the graph, run by run of those that start at one node, as long as they come.
///
/// What edges lead to has a place in one table: the nodes, then the references, then what stands for nothing.
#[derive(Debug)]
struct Edges {
    nodes: u32,
    /// The places that edges lead to.
    places: Vec<u32>,
    /// The node that each run starts at, and its first place.
    runs: Vec<(u32, u32)>,
    /// The node of the last run.
    from: u32,
    /// For each place, the last node from which an edge led there, or would have.
    last: Vec<u32>,
}

impl Edges {
    fn new(nodes: usize, references: usize) -> Self {
        Self {
            // Nodes and references are numbered with 31 bits each.
            nodes: nodes as u32,
            places: Vec::new(),
            runs: Vec::new(),
            from: u32::MAX,
            last: vec![u32::MAX; nodes + references + 1],
        }
    }

    fn reserve(&mut self, count: usize) {
        self.places.reserve(count);
        self.runs.reserve(self.nodes as usize);
    }

    /// The place of a node or a reference.
    fn place(&self, to: u32) -> u32 {
        match to & Needs::REFERENCE {
            0 => to,
            _ => self.nodes + (to & !Needs::REFERENCE),
        }
    }

    /// The place of nothing.
    fn nowhere(&self) -> u32 {
        self.last.len() as u32 - 1
    }

    /// Begins with edges that start at `from`.
    fn begin(&mut self, from: u32) {
        if from != self.from {
            self.from = from;
            self.runs.push((from, self.places.len() as u32));
            // Neither leads anywhere else.
            let nowhere = self.nowhere();
            self.last[from as usize] = from;
            self.last[nowhere as usize] = from;
        }
    }

    /// Adds an edge, unless there has been the same since the run began, or it leads nowhere else.
    #[inline]
    fn add(&mut self, place: u32) {
        let last = &mut self.last[place as usize];
        if *last != self.from {
            *last = self.from;
            self.places.push(place);
        }
    }

    /// Adds the edges of relocations that have these answers, as far as answers have places; whether all have.
    #[inline(never)]
    fn add_answered(&mut self, places: &[u32], given: &[u32]) -> bool {
        let mut all = true;
        for &answer in given {
            match places.get(answer as usize) {
                Some(&EACH) => all = false,
                Some(&place) => self.add(place),
                // What has no answer has a fixup.
                None => {}
            }
        }
        all
    }

    /// Groups them by the nodes that they start at.
    fn group(mut self) -> Needs {
        if !self.runs.is_sorted_by(|one, next| one.0 < next.0) {
            self = self.sorted();
        }
        let nodes = self.nodes as usize;
        let mut first = Vec::with_capacity(nodes + 1);
        for (from, start) in self.runs {
            // Also of the nodes before, from which no edge starts.
            let missing = (from as usize + 1).saturating_sub(first.len());
            first.extend(std::iter::repeat_n(start, missing));
        }
        first.resize(nodes + 1, self.places.len() as u32);
        let mut targets = self.places;
        let reference = Needs::REFERENCE.wrapping_sub(self.nodes);
        for target in &mut targets {
            let more = if *target < self.nodes { 0 } else { reference };
            *target = target.wrapping_add(more);
        }
        Needs { first, targets }
    }

    /// The same with one run for each node, in order.
    fn sorted(self) -> Self {
        let ends = self.runs.iter().skip(1).map(|&(_, start)| start);
        let ends = ends.chain([self.places.len() as u32]);
        let mut runs: Vec<_> = self.runs.iter().copied().zip(ends).collect();
        runs.sort_by_key(|&((from, _), _)| from);
        let mut sorted = Self {
            nodes: self.nodes,
            places: Vec::with_capacity(self.places.len()),
            runs: Vec::with_capacity(runs.len()),
            from: u32::MAX,
            last: vec![u32::MAX; self.last.len()],
        };
        for ((from, start), end) in runs {
            sorted.begin(from);
            for &place in &self.places[start as usize..end as usize] {
                sorted.add(place);
            }
        }
        sorted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(edges: &[(u32, u32)], nodes: usize, references: usize) -> Needs {
        let mut all = Edges::new(nodes, references);
        for &(from, to) in edges {
            all.begin(from);
            all.add(all.place(to));
        }
        all.group()
    }

    #[test]
    fn edges_are_grouped_and_deduplicated() {
        let reference = 1 | Needs::REFERENCE;
        let edges = [
            (2, 5),
            (0, 1),
            (2, 5),
            (2, 1),
            (2, 2),
            (0, 1),
            (0, reference),
            (2, reference),
            (2, reference),
        ];
        let needs = group(&edges, 6, 2);
        assert_eq!(
            [0, 1, 2, 3, 5].map(|node| needs.of(node)),
            [&[1, reference][..], &[], &[5, 1, reference], &[], &[]]
        );
        assert_eq!(needs.of(9), &[] as &[u32]);
        assert_eq!(needs.first.len(), 7);
    }

    /// In whatever order they come, they are grouped as if they had been sorted by where they start.
    #[test]
    fn order_does_not_matter() {
        let mut edges = vec![
            (0, 3),
            (0, 1),
            (1, 1),
            (1, 0),
            (1, 0),
            (3, 2),
            (3, 4),
            (3, 2),
        ];
        let sorted = group(&edges, 5, 0);
        assert_eq!(sorted.targets, [3, 1, 0, 2, 4]);
        edges.rotate_left(3);
        let rotated = group(&edges, 5, 0);
        assert_eq!(
            (rotated.first, rotated.targets),
            (sorted.first, sorted.targets)
        );
        let none = group(&[], 5, 0);
        assert_eq!((none.first, none.targets), (vec![0; 6], vec![]));
    }

    #[test]
    fn needs_are_transitive_and_cycles_end() {
        let edges = [
            (0, 1),
            (1, 0),
            (1, 7 | Needs::REFERENCE),
            (2, 3 | Needs::REFERENCE),
        ];
        let needs = group(&edges, 3, 8);
        assert_eq!(needs.references_of(0), [7]);
        assert_eq!(needs.references_of(2), [3]);
        assert_eq!(needs.references_of(9), []);
    }
}
