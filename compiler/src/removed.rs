//! Which names are published no longer, since when, and whose they were: for people who look for one.
//!
//! Invariant: it says nothing of a name that is published. It is not written down: the next compiler process knows of what the
//! journal's records remove when they are done again, and of nothing before.

use std::collections::BTreeMap;

use crate::catalog::Catalog;
use crate::publish::Changes;
use crate::status::RemovedStatus;

/// How many names are remembered.
const MAX_NAMES: usize = 4096;

/// The names that were removed last.
#[derive(Debug, Default)]
pub(crate) struct Removed(BTreeMap<String, (u64, String)>);

impl Removed {
    /// Notes what `generation` did with the names of `catalog`, before that takes the changes over.
    pub(crate) fn note(&mut self, generation: u64, changes: &Changes, catalog: &Catalog) {
        for (name, _) in &changes.removed {
            if let Some(symbol) = catalog.symbols.get(name) {
                let removed = (generation, symbol.unit.clone());
                self.0.insert(name.clone(), removed);
            }
        }
        for name in changes.symbols.keys() {
            self.0.remove(name);
        }
        let surplus = self.0.len().saturating_sub(MAX_NAMES);
        if surplus > 0 {
            let mut generations: Vec<u64> = self.0.values().map(|removed| removed.0).collect();
            generations.sort_unstable();
            let newest_forgotten = generations[surplus - 1];
            self.0.retain(|_, removed| removed.0 > newest_forgotten);
        }
    }

    /// As it is told.
    pub(crate) fn status(&self) -> Vec<RemovedStatus> {
        let names = self.0.iter();
        let status = |(symbol, (generation, unit)): (&String, &(u64, String))| RemovedStatus {
            symbol: symbol.clone(),
            unit: unit.clone(),
            generation: *generation,
        };
        names.map(status).collect()
    }
}
