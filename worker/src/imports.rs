//! Host symbols that published code refers to, looked up in this process.
//!
//! Invariant: those that are missing are listed apart, since every application of what is new asks whether there are any.

use std::collections::{HashMap, HashSet};

use jitcast_runtime::{ImportId, WorkerAddr};

use crate::host::Mismatch;

/// A host symbol, looked up.
#[derive(Clone, Debug)]
pub(crate) struct Import {
    pub(crate) name: String,
    /// The address; null for a weak symbol that nobody has; `None`: missing.
    pub(crate) address: Option<WorkerAddr>,
    /// Why it is missing although the host has it.
    pub(crate) mismatch: Option<Mismatch>,
    /// What cells hold instead where it is missing.
    pub(crate) trap: WorkerAddr,
}

impl Import {
    /// Its name, and what the host has instead if it is missing for that.
    pub(crate) fn described(&self) -> String {
        match &self.mismatch {
            None => self.name.clone(),
            Some(Mismatch { called, defined }) => {
                format!("{}` (called as {called}, defined as `{defined})", self.name)
            }
        }
    }
}

/// All of a worker's, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Imports {
    all: HashMap<ImportId, Import>,
    missing: HashSet<ImportId>,
}

impl Imports {
    /// Takes note of what was found for `number`.
    pub(crate) fn insert(&mut self, number: ImportId, found: Import) {
        if found.address.is_none() {
            self.missing.insert(number);
        } else {
            self.missing.remove(&number);
        }
        self.all.insert(number, found);
    }

    pub(crate) fn get(&self, number: ImportId) -> Option<&Import> {
        self.all.get(&number)
    }

    /// Forgets one that nothing refers to any more.
    pub(crate) fn remove(&mut self, number: ImportId) {
        self.all.remove(&number);
        self.missing.remove(&number);
    }

    /// Takes one for missing, since published code cannot use what there is.
    pub(crate) fn lacks(&mut self, number: ImportId, why: &str) {
        if let Some(import) = self.all.get_mut(&number) {
            import.address = None;
            import.name = format!("{} ({why})", import.name);
            self.missing.insert(number);
        }
    }

    /// The numbers of those that are missing.
    pub(crate) fn missing(&self) -> &HashSet<ImportId> {
        &self.missing
    }

    /// Those that are missing.
    pub(crate) fn lacking(&self) -> impl Iterator<Item = &Import> {
        self.missing
            .iter()
            .filter_map(|number| self.all.get(number))
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &Import> {
        self.all.values()
    }
}
