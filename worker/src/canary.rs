//! Canaries: units that only some workers run, of which this may be one.
//!
//! Whether it is follows from the directory, the label that it gave, and its seat, which the compiler process writes into its
//! mailbox. Invariant: at one generation a thread that is inside sees one answer. So a worker whose seat changes, which only a
//! forked child's does when it is given one of its own, moves with the next generation, or when nobody is inside.

use std::collections::HashMap;

use jitcast_runtime::index;
use jitcast_runtime::records::{
    CanaryRecord, CellValue, Root, SYMBOL_HIDDEN, SYMBOL_QUARANTINED, SymbolRecord, trailing_text,
};
use jitcast_runtime::{Corrupt, PatchTarget, SegmentOffset};

use crate::error::UpdateError;
use crate::fault::{Fault, seeded};
use crate::worker::{Inner, State};

/// How many guards of a forked child look whether it has been given a seat, before it leaves that to publications and
/// [`tend`](crate::Worker::tend).
const LOOKS: u32 = 1000;

/// The canaries of a directory, as this worker sees them.
#[derive(Debug, Default)]
pub(crate) struct Canaries {
    inside: Vec<CanaryRecord>,
    outside: Vec<CanaryRecord>,
    /// What call cells hold instead of what their pages say.
    cells: HashMap<SegmentOffset, CellValue>,
}

impl Canaries {
    /// Whether a unit is one that this worker does not run.
    pub(crate) fn leaves_out(&self, unit: u32) -> bool {
        self.outside.iter().any(|canary| canary.has_unit(unit))
    }

    /// Whether a unit is a canary's that this worker runs.
    pub(crate) fn runs(&self, unit: u32) -> bool {
        self.inside.iter().any(|canary| canary.has_unit(unit))
    }

    /// Whether a page of cells does not say what this one holds here.
    pub(crate) fn covers(&self, cell: SegmentOffset) -> bool {
        self.cells.contains_key(&cell)
    }

    /// Whether pages of cells say what all cells hold here.
    pub(crate) fn cover_nothing(&self) -> bool {
        self.cells.is_empty()
    }

    /// The cells that it covers, and what they hold.
    pub(crate) fn cells(&self) -> impl Iterator<Item = (SegmentOffset, CellValue)> {
        self.cells.iter().map(|(cell, value)| (*cell, *value))
    }

    /// The cells that it covers and `newer` does not.
    fn uncovered(&self, newer: &Self) -> Vec<SegmentOffset> {
        let cells = self.cells.keys().filter(|cell| !newer.covers(**cell));
        cells.copied().collect()
    }

    /// Whether this worker runs the same ones by `other`.
    pub(crate) fn are_those_of(&self, other: &Self) -> bool {
        let keys = |canaries: &[CanaryRecord]| {
            canaries.iter().map(|canary| canary.key).collect::<Vec<_>>()
        };
        keys(&self.inside) == keys(&other.inside)
    }

    /// Whether none is running.
    pub(crate) fn is_empty(&self) -> bool {
        self.inside.is_empty() && self.outside.is_empty()
    }
}

/// The seats that a worker has had: what it goes by from which generation on, in order.
#[derive(Debug, Default)]
pub(crate) struct Seats {
    since: Vec<(u64, Option<u32>)>,
    /// How many guards of a child look for its own still.
    pub(crate) looks: u32,
}

impl Seats {
    /// What a thread goes by that is inside at `generation`.
    fn at(&self, generation: u64) -> Option<u32> {
        let known = self.since.iter().rev();
        let mut known = known.skip_while(|(since, _)| *since > generation);
        known.next().and_then(|(_, seat)| *seat)
    }

    fn latest(&self) -> Option<u32> {
        self.since.last().and_then(|(_, seat)| *seat)
    }

    /// From `generation` on, the latest, it is `seat`. If `nobody` is inside, what was before does not matter.
    pub(crate) fn set(&mut self, generation: u64, seat: Option<u32>, nobody: bool) {
        let stay = |(since, _): &(u64, Option<u32>)| !nobody && *since < generation;
        self.since.retain(stay);
        if self.since.last().is_none_or(|(_, last)| *last != seat) {
            self.since.push((generation, seat));
        }
    }
}

impl Inner {
    /// The seat that this worker goes by from now on: what its mailbox says, or, in a child that has been given none yet, its
    /// parent's.
    pub(crate) fn seat(&self, state: &State) -> Option<u32> {
        self.mailbox().seat().or_else(|| state.seats.latest())
    }

    /// Whether it has a seat by which it does not go yet.
    pub(crate) fn has_other_seat(&self, state: &State) -> bool {
        self.seat(state) != state.seats.latest()
    }

    /// Has guards look at the directory if it has been given a seat.
    pub(crate) fn look_at_seat(&self) {
        // Whoever holds the state looks there too.
        if let Ok(state) = self.state().try_lock()
            && self.has_other_seat(&state)
        {
            self.close_gate();
        }
    }

    /// A child's next guards look whether it has been given a seat, if that matters.
    pub(crate) fn await_seat(&self, state: &mut State) {
        if !state.canaries.is_empty() {
            state.seats.looks = LOOKS;
            self.close_gate();
        }
    }

    /// Whether the next guard is to look for a seat.
    pub(crate) fn awaits_seat(&self, state: &mut State) -> bool {
        if state.seats.looks == 0 {
            return false;
        }
        let awaited = self.mailbox().seat().is_none() || self.has_other_seat(state);
        state.seats.looks = if awaited {
            state.seats.looks.saturating_sub(1)
        } else {
            0
        };
        state.seats.looks > 0
    }

    /// The canaries under `root`, as a thread sees them that is inside at its generation; without their cells.
    pub(crate) fn canaries_at(&self, state: &State, root: &Root) -> Result<Canaries, Corrupt> {
        self.canaries(root, state.seats.at(root.generation))
    }

    /// The canaries under `root`, as this worker sees them at `seat`, with their cells.
    pub(crate) fn canaries_with_cells(
        &self,
        root: &Root,
        seat: Option<u32>,
    ) -> Result<Canaries, Corrupt> {
        let mut canaries = self.canaries(root, seat)?;
        if canaries.inside.is_empty() {
            return Ok(canaries);
        }
        let view = self.window().control();
        index::walk(view, root.overlay, 0, &mut |at| {
            let symbol: SymbolRecord = view.read(at)?;
            if !symbol.call_cell.is_none() && canaries.runs(symbol.unit) {
                let value = match symbol.flags {
                    flags if flags & SYMBOL_HIDDEN != 0 => CellValue::UNBOUND,
                    flags if flags & SYMBOL_QUARANTINED != 0 => CellValue::QUARANTINED,
                    _ => CellValue::new(PatchTarget::Window(symbol.place)),
                };
                canaries.cells.insert(symbol.call_cell, value);
            }
            Ok::<_, Corrupt>(())
        })?;
        Ok(canaries)
    }

    fn canaries(&self, root: &Root, seat: Option<u32>) -> Result<Canaries, Corrupt> {
        let (view, mut canaries) = (self.window().control(), Canaries::default());
        index::walk(view, root.canaries, 0, &mut |at| {
            let canary: CanaryRecord = view.read(at)?;
            let wanted = trailing_text::<CanaryRecord>(view, at, 0, canary.label_len)?;
            let is_inside = canary.is_for(&wanted, seat, self.label());
            if is_inside || seeded(Fault::AudienceIgnored) {
                canaries.inside.push(canary);
            } else {
                canaries.outside.push(canary);
            }
            Ok::<_, Corrupt>(())
        })?;
        Ok(canaries)
    }

    /// The record of the symbol whose name has this hash; `None`: none is published here.
    pub(crate) fn symbol_at(
        &self,
        root: &Root,
        canaries: &Canaries,
        hash: u64,
    ) -> Result<Option<(SegmentOffset, SymbolRecord)>, Corrupt> {
        let view = self.window().control();
        if !canaries.inside.is_empty()
            && let Some(at) = index::get(view, root.overlay, hash)?
        {
            let symbol: SymbolRecord = view.read(at)?;
            if canaries.runs(symbol.unit) {
                let is_there = symbol.flags & SYMBOL_HIDDEN == 0;
                return Ok(is_there.then_some((at, symbol)));
            }
        }
        let at = index::get(view, root.symbols, hash)?;
        at.map(|at| Ok((at, view.read(at)?))).transpose()
    }

    /// The units of canaries that this worker runs and has not bound, with their numbers.
    pub(crate) fn unbound_candidates(
        &self,
        state: &State,
        root: &Root,
        canaries: &Canaries,
    ) -> Result<Vec<(u32, SegmentOffset)>, Corrupt> {
        let mut unbound = Vec::new();
        for canary in &canaries.inside {
            let numbers = canary.first_unit..canary.first_unit.saturating_add(canary.unit_count);
            for number in numbers.filter(|number| !state.units.is_candidate(*number)) {
                let at = index::get(self.window().control(), root.units, number.into())?;
                let corrupt = Corrupt {
                    what: "units of a canary",
                    at: root.canaries,
                };
                unbound.push((number, at.ok_or(corrupt)?));
            }
        }
        Ok(unbound)
    }

    /// What cells are to hold that are covered by what was applied, and by `canaries` no more.
    pub(crate) fn uncovered_cells(
        &self,
        state: &State,
        root: &Root,
        canaries: &Canaries,
    ) -> Result<Vec<(SegmentOffset, CellValue)>, UpdateError> {
        let uncovered = state.canaries.uncovered(canaries).into_iter();
        uncovered
            .map(|cell| Ok((cell, self.published_cell(root, cell)?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Seats;

    #[test]
    fn a_seat_counts_from_its_generation_on() {
        let mut seats = Seats::default();
        assert_eq!(seats.at(7), None);
        seats.set(7, Some(3), true);
        seats.set(9, Some(3), false);
        seats.set(11, Some(5), false);
        seats.set(11, Some(6), false);
        let at = |generation| seats.at(generation);
        assert_eq!(
            [at(6), at(7), at(10), at(11), at(99)],
            [None, Some(3), Some(3), Some(6), Some(6)]
        );
        seats.set(11, Some(2), true);
        assert_eq!(seats.at(11), Some(2));
    }
}
