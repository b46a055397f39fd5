//! Shared data after a restart: those of the compiler process before, which a worker brings, or which lie beside a named segment; or
//! else fresh ones.

use std::collections::HashSet;

use jitcast_runtime::geometry::{Area, Region};
use jitcast_runtime::heap::SegmentFull;
use jitcast_runtime::records::StoredRegion;
use jitcast_runtime::segment::Segment;

use crate::catalog::{Catalog, Symbol, Unit, Variable};
use crate::error::StartError;
use crate::state::State;

impl State {
    /// Sees to it that the shared data of all units are there, or are owed.
    pub(crate) fn restore_shared_data(&mut self, segment: &Segment) -> Result<(), StartError> {
        if segment.has_adopted_shared_data() {
            return Ok(());
        }
        self.start_shared_data(segment)?;
        segment.end_of_fresh_shared_data();
        if segment.shared_fd().is_none() && self.heap.used_bytes(Area::SharedData) == 0 {
            // There is nothing to wait for.
            segment.begin_shared_data()?;
        }
        Ok(())
    }

    /// Fills the shared data of every unit, and then variables whose contents outlived the version that brought them: these
    /// start as their present version would.
    fn start_shared_data(&mut self, segment: &Segment) -> Result<(), SegmentFull> {
        let area = segment.geometry().region(Area::SharedData);
        let generation = self.generation();
        let txn = self.heap.begin(segment.memory(), segment, generation);
        let units: Vec<&Unit> = units(&self.catalog).collect();
        for unit in &units {
            txn.fill(region(unit.shared), region(unit.shared_template))?;
        }
        let there: HashSet<u32> = units.iter().map(|unit| unit.number).collect();
        let mut started = HashSet::new();
        for (symbol, variable) in variables(&self.catalog) {
            let is_shared = area.contains(symbol.place, variable.size);
            if !is_shared || there.contains(&variable.since) || !started.insert(symbol.place) {
                continue;
            }
            // Its length was checked against the area's.
            let at = Region {
                start: symbol.place.get(),
                len_bytes: variable.size as u32,
            };
            let own = units.iter().find_map(|unit| template_of(unit, variable));
            txn.fill(at, own.unwrap_or_default())?;
        }
        Ok(())
    }
}

/// Every unit that somebody runs.
fn units(catalog: &Catalog) -> impl Iterator<Item = &Unit> {
    let candidates = catalog.canaries.values();
    let candidates = candidates.flat_map(|canary| canary.units.iter().map(|(_, unit)| unit));
    catalog.units.values().chain(candidates)
}

/// Every variable; what all workers run before what a part of them does.
fn variables(catalog: &Catalog) -> impl Iterator<Item = (&Symbol, Variable)> {
    let candidates = catalog.canaries.values();
    let candidates = candidates.flat_map(|canary| canary.symbols.values());
    let symbols = catalog.symbols.values().chain(candidates);
    symbols.filter_map(|symbol| Some((symbol, symbol.variable?)))
}

/// What `unit` starts a variable of its own with: as much of it as is not zero.
fn template_of(unit: &Unit, variable: Variable) -> Option<Region> {
    region(unit.shared)
        .contains(variable.fresh, variable.size)
        .then(|| {
            let template = region(unit.shared_template);
            let before = (variable.fresh.get() - unit.shared.start).min(template.len_bytes);
            let rest = u64::from(template.len_bytes - before);
            Region {
                start: template.start + before,
                len_bytes: rest.min(variable.size) as u32,
            }
        })
}

fn region(stored: StoredRegion) -> Region {
    // Ranges that the catalog has were checked against what is in use.
    stored.region().unwrap_or_default()
}
