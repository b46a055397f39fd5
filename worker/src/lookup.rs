//! Finding published functions by name, and whether this worker has what they need.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use jitcast_runtime::index;
use jitcast_runtime::needs::{Needs, Reference};
use jitcast_runtime::records::{
    AskedRecord, Root, SYMBOL_DATA, SYMBOL_FUNCTION, SYMBOL_QUARANTINED, SYMBOL_THREAD_LOCAL,
    SymbolRecord, UnitRecord, hash_name, trailing_text,
};
use jitcast_runtime::{Corrupt, SegmentOffset, WorkerAddr};

use crate::canary::Canaries;
use crate::error::LookupError;
use crate::guard::Guard;
use crate::imports::Import;
use crate::worker::{Inner, State, Worker};

/// A published function, as the directory describes it at one generation.
///
/// ```
/// # use jitcast_worker::Worker;
/// fn describe(worker: &Worker) -> Result<String, Box<dyn std::error::Error>> {
///     let guard = worker.enter()?;
///     let score = worker.symbol(&guard, "score")?;
///     let signature = score.signature.as_deref().unwrap_or(", of unknown types");
///     Ok(format!("score{signature}, published as generation {}", score.generation))
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Symbol {
    /// Its canonical address: the stub, which always leads to the current version.
    pub stub: WorkerAddr,
    /// The code of this version.
    pub code: WorkerAddr,
    /// The signature recorded at publication, in its canonical text.
    pub signature: Option<String>,
    /// The generation that published this version.
    pub generation: u64,
    /// The call cell.
    pub(crate) call_cell: SegmentOffset,
}

impl Worker {
    /// Finds the function `name`, and makes sure that what it needs is there.
    ///
    /// # Errors
    /// [`LookupError`].
    pub fn symbol(&self, guard: &Guard<'_>, name: &str) -> Result<Symbol, LookupError> {
        assert!(core::ptr::eq(guard.worker().inner(), self.inner()));
        let state = self.inner().lock_state()?;
        let directory = self.inner().directory(&state, guard);
        self.inner().look_up(&state, directory, name)
    }

    /// `CLOCK_MONOTONIC` at the moment when the generation of `guard` was published, ns.
    ///
    /// # Errors
    /// [`LookupError`].
    pub fn published_ns(&self, guard: &Guard<'_>) -> Result<u64, LookupError> {
        assert!(core::ptr::eq(guard.worker().inner(), self.inner()));
        let state = self.inner().lock_state()?;
        let root_at = self.inner().directory(&state, guard);
        let root: Root = self.inner().window().control().read(root_at)?;
        Ok(root.published_ns)
    }
}

impl Inner {
    /// The directory of the generation that the calling thread is inside at.
    pub(crate) fn directory(&self, state: &State, guard: &Guard<'_>) -> SegmentOffset {
        let directory = self.listing().at(guard.generation());
        directory.unwrap_or(state.root_at)
    }

    /// What the directory at `root_at` says of `name`.
    pub(crate) fn look_up(
        &self,
        state: &State,
        root_at: SegmentOffset,
        name: &str,
    ) -> Result<Symbol, LookupError> {
        let view = self.window().control();
        let root: Root = view.read(root_at)?;
        let not_found = || LookupError::NotFound {
            name: name.to_owned(),
        };
        let hash = hash_name(name.as_bytes(), self.hash_seed());
        let canaries = self.canaries_at(state, &root)?;
        let found = self.symbol_at(&root, &canaries, hash)?;
        let (at, record) = found.ok_or_else(not_found)?;
        if trailing_text::<SymbolRecord>(view, at, 0, record.name_len)? != name {
            return Err(not_found());
        }
        if record.kind != SYMBOL_FUNCTION {
            let found = match record.kind {
                SYMBOL_DATA => "a datum",
                SYMBOL_THREAD_LOCAL => "a thread-local datum",
                _ => "an absolute symbol",
            };
            return Err(LookupError::NotAFunction {
                name: name.to_owned(),
                found,
            });
        }
        if record.flags & SYMBOL_QUARANTINED != 0 {
            let name = name.to_owned();
            return Err(LookupError::Quarantined { name });
        }
        if let Some(failed) = state.units.failure(record.unit) {
            let (name, failed) = (name.to_owned(), failed.clone());
            return Err(LookupError::UnitFailed { name, failed });
        }
        let start = (record.unit, record.node);
        self.check_needs(state, (&root, &canaries), name, start)?;
        let signature =
            trailing_text::<SymbolRecord>(view, at, record.name_len, record.signature_len)?;
        Ok(Symbol {
            stub: self.window().addr_of(record.stub),
            code: self.window().addr_of(record.place),
            signature: (!signature.is_empty()).then_some(signature),
            generation: record.generation,
            call_cell: record.call_cell,
        })
    }

    /// Refuses a function whose code reaches a host symbol that this worker lacks, in its own unit or in
    /// another.
    pub(crate) fn check_needs(
        &self,
        state: &State,
        (root, canaries): (&Root, &Canaries),
        name: &str,
        start: (u32, u32),
    ) -> Result<(), LookupError> {
        let missing = state.imports.missing();
        if missing.is_empty() {
            return Ok(());
        }
        let mut graphs = HashMap::new();
        let mut seen = HashSet::new();
        let mut pending = vec![start];
        while let Some((unit, node)) = pending.pop() {
            if !seen.insert((unit, node)) {
                continue;
            }
            let needs = match graphs.entry(unit) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(self.needs(root, unit)?),
            };
            for reference in needs.reachable(node) {
                match reference {
                    Reference::Import(number) if missing.contains(&number) => {
                        if let Some(import) = state.imports.get(number) {
                            return Err(lacks(name, import));
                        }
                    }
                    Reference::Import(_) => {}
                    Reference::Symbol(hash) => {
                        if let Some((_, other)) = self.symbol_at(root, canaries, hash)? {
                            pending.push((other.unit, other.node));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn needs(&self, root: &Root, unit: u32) -> Result<Needs, Corrupt> {
        let view = self.window().control();
        let needs = match index::get(view, root.units, unit.into())? {
            Some(at) => view.read::<UnitRecord>(at)?.needs,
            None => match index::get(view, root.asked, unit.into())? {
                Some(at) => view.read::<AskedRecord>(at)?.needs,
                None => return Ok(Needs::default()),
            },
        };
        match needs.region() {
            Some(region) if region.len_bytes > 0 => Needs::read(view, region),
            _ => Ok(Needs::default()),
        }
    }
}

/// Function `name` needs a host symbol that is missing.
fn lacks(name: &str, import: &Import) -> LookupError {
    let (name, pid) = (name.to_owned(), std::process::id());
    let host_symbol = import.name.clone();
    match &import.mismatch {
        None => LookupError::MissingImport {
            name,
            import: host_symbol,
            pid,
        },
        Some(mismatch) => LookupError::ImportSignature {
            name,
            import: host_symbol,
            called: mismatch.called.to_string(),
            defined: mismatch.defined.to_string(),
            pid,
        },
    }
}
