//! The handles of a worker: who follows which name, and which of them a publication concerns.
//!
//! Invariant: while no publication is being applied, each handle leads to what its name means in the applied directory. So of
//! the next one only those need to be looked up again whose names it changes, which the two directories tell, unless something
//! else decides too: host symbols that are missing, units that failed, canaries.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use jitcast_runtime::records::{Root, hash_name};
use jitcast_runtime::{Corrupt, SegmentOffset, WorkerAddr, index};

use crate::handle::{HandleCell, instead};
use crate::transition::{Step, Transitions};
use crate::worker::{Inner, State};

/// A handle and the slot that it follows, if there is one: its name may not be published, or its fallback serves.
#[derive(Debug)]
struct Follower {
    slot: Option<SegmentOffset>,
    handle: Weak<HandleCell>,
}

/// The handles of a worker.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    /// By the hash of the name.
    by_name: BTreeMap<u64, Vec<Follower>>,
    /// The name of each slot that is followed.
    by_slot: BTreeMap<SegmentOffset, u64>,
    count: usize,
    /// How many handles there are when those that were dropped are looked for.
    prune_at: usize,
    /// Whether each leads to what the applied directory has under its name, and nothing else decided.
    settled: bool,
}

impl Handles {
    /// Adds a handle of a name with this hash, which follows `slot`.
    pub(crate) fn add(&mut self, name: u64, slot: Option<SegmentOffset>, cell: &Arc<HandleCell>) {
        if self.count >= self.prune_at {
            self.prune();
        }
        let handle = Arc::downgrade(cell);
        let followers = self.by_name.entry(name).or_default();
        followers.push(Follower { slot, handle });
        self.count += 1;
        if let Some(slot) = slot {
            self.by_slot.insert(slot, name);
        }
    }

    /// Forgets those that were dropped: how many there are.
    pub(crate) fn prune(&mut self) -> usize {
        self.count = 0;
        self.by_name.retain(|_, followers| {
            followers.retain(|follower| follower.handle.strong_count() > 0);
            self.count += followers.len();
            !followers.is_empty()
        });
        self.by_slot
            .retain(|_, name| self.by_name.contains_key(name));
        self.prune_at = (self.count * 2).max(64);
        self.count
    }

    /// An application failed, or the directory that was applied is somewhere else now: the next one looks all of them up.
    pub(crate) fn unsettle(&mut self) {
        self.settled = false;
    }

    /// A slot leads to another version now; so do its handles.
    pub(crate) fn cell_changed(
        &self,
        transitions: &mut Transitions,
        step: &Step<'_>,
        cell: SegmentOffset,
        address: WorkerAddr,
    ) {
        let followers = self
            .by_slot
            .get(&cell)
            .and_then(|name| self.by_name.get(name));
        for follower in followers.into_iter().flatten() {
            if follower.slot == Some(cell) {
                transitions.lead_handle(step, &follower.handle, address.get());
            }
        }
    }
}

impl Inner {
    /// Finds what the names of handles mean now: of those that differ from the directory at `before`, which was applied before
    /// and can still be read; or of all.
    pub(crate) fn look_up_handles(
        &self,
        state: &mut State,
        step: &Step<'_>,
        before: Option<SegmentOffset>,
    ) -> Result<(), Corrupt> {
        let decide = names_decide(state);
        let before = before.filter(|_| decide && state.handles.settled);
        state.handles.settled = decide;
        if state.handles.by_name.is_empty() {
            return Ok(());
        }
        let names = match before {
            Some(before) => self.changed_names(state, before)?,
            None => state.handles.by_name.keys().copied().collect(),
        };
        let mut handles = core::mem::take(&mut state.handles);
        for name in names {
            let Some(followers) = handles.by_name.get_mut(&name) else {
                continue;
            };
            for slot in followers.iter().filter_map(|follower| follower.slot) {
                // Another name's, by now, perhaps.
                if handles.by_slot.get(&slot) == Some(&name) {
                    handles.by_slot.remove(&slot);
                }
            }
            for follower in followers {
                let Some(cell) = follower.handle.upgrade() else {
                    continue;
                };
                let target = match self.find(state, state.root_at, &cell) {
                    Ok((slot, code)) => {
                        follower.slot = slot;
                        code
                    }
                    Err(why) => {
                        follower.slot = None;
                        instead(state, &cell, &why)
                    }
                };
                if let Some(slot) = follower.slot {
                    handles.by_slot.insert(slot, name);
                }
                let transitions = &mut state.transitions;
                transitions.lead_handle(step, &follower.handle, target.get());
            }
        }
        state.handles = handles;
        Ok(())
    }

    /// The names with handles whose records differ between the directory at `before` and the one that is applied now.
    fn changed_names(&self, state: &State, before: SegmentOffset) -> Result<Vec<u64>, Corrupt> {
        let view = self.window().control();
        let (before, after): (Root, Root) = (view.read(before)?, view.read(state.root_at)?);
        let mut names = Vec::new();
        index::changes(view, before.symbols, after.symbols, &mut |name| {
            if state.handles.by_name.contains_key(&name) {
                names.push(name);
            }
            Ok::<_, Corrupt>(())
        })?;
        Ok(names)
    }

    /// The hash under which a handle of `name` is kept.
    pub(crate) fn name_of_handles(&self, name: &str) -> u64 {
        hash_name(name.as_bytes(), self.hash_seed())
    }
}

/// Whether what a handle leads to is decided by the record of its name alone.
fn names_decide(state: &State) -> bool {
    let all_callable = state.imports.missing().is_empty() && state.units.failed().next().is_none();
    all_callable && state.canaries.is_empty()
}
