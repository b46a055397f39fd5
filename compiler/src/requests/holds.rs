//! Who has which asked-for unit.
//!
//! Invariant: a worker that may have a unit bound, and every child of it that may, holds it here, until it says that it is done
//! or its process has ended. What nobody holds is removed. Counts are of replies: one that is on its way is a hold already.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::catalog::Asked;

/// Who has a unit.
#[derive(Debug, Default)]
struct Held {
    /// Workers, and how many replies brought it to each.
    by: HashMap<u64, u32>,
    /// Answers that have not been given.
    answers: u32,
    /// What it takes, bytes.
    len_bytes: u64,
    /// A journal brought it back, or a server ended: those that have it may come.
    restored: bool,
}

/// What lies ready for a worker's child.
#[derive(Clone, Copy, Debug)]
struct Spare {
    parent: u64,
    /// The so-manieth of this parent, from 1.
    ordinal: u64,
}

/// Who has what.
#[derive(Debug)]
pub(crate) struct Holds {
    units: HashMap<u32, Held>,
    spares: HashMap<u64, Spare>,
    given: HashMap<u64, u64>,
    started: Instant,
    linger: Duration,
    /// How many texts were compiled.
    pub(crate) compiled: u64,
}

impl Holds {
    /// Nobody has `restored`, which a journal brought back, yet.
    pub(crate) fn new<'a>(restored: impl Iterator<Item = &'a Asked>) -> Self {
        let held = |unit: &Asked| {
            let held = Held {
                len_bytes: unit.len_bytes,
                restored: true,
                ..Held::default()
            };
            (unit.number, held)
        };
        Self {
            units: restored.map(held).collect(),
            spares: HashMap::new(),
            given: HashMap::new(),
            started: Instant::now(),
            linger: Duration::MAX,
            compiled: 0,
        }
    }

    /// A server begins. Units that nobody has are kept for `linger`, for workers that come back to it and say that they have them.
    pub(crate) fn begin(&mut self, linger: Duration) {
        (self.started, self.linger) = (Instant::now(), linger);
    }

    /// The server of worker `worker` ends: it may come back to another one.
    pub(crate) fn server_ends(&mut self, worker: u64) {
        self.started = Instant::now();
        for held in self.units.values_mut() {
            held.restored |= held.by.remove(&worker).is_some();
        }
        self.spares
            .retain(|child, spare| *child != worker && spare.parent != worker);
        self.given.remove(&worker);
    }

    /// When restored units are given up; `None`: there are none, or never.
    pub(crate) fn linger_ends(&self) -> Option<Instant> {
        let any = self.units.values().any(|held| held.restored);
        any.then(|| self.started.checked_add(self.linger))?
    }

    /// An answer that brings `unit` will be given.
    pub(crate) fn answer_due(&mut self, unit: &Asked) {
        let held = self.units.entry(unit.number).or_default();
        (held.answers, held.len_bytes) = (held.answers + 1, unit.len_bytes);
    }

    /// It is given to `workers`.
    pub(crate) fn answer_given(&mut self, unit: u32, workers: &[u64]) {
        let Some(held) = self.units.get_mut(&unit) else {
            return;
        };
        held.answers = held.answers.saturating_sub(1);
        for worker in workers {
            *held.by.entry(*worker).or_default() += 1;
        }
    }

    /// Worker `worker` gives up what `grants` replies brought. Of its children, the first `forks` have it still.
    pub(crate) fn release(&mut self, worker: u64, unit: u32, grants: u32, forks: u64) {
        let Some(held) = self.units.get_mut(&unit) else {
            return;
        };
        let Some(known) = held.by.get_mut(&worker) else {
            return;
        };
        *known = known.saturating_sub(grants);
        if *known == 0 {
            held.by.remove(&worker);
        }
        for (child, spare) in &self.spares {
            if spare.parent == worker && spare.ordinal <= forks {
                held.by.insert(*child, 1);
            }
        }
    }

    /// Worker `worker` says what it has, of what it had when its connection began; at most `limit` units.
    pub(crate) fn state(&mut self, worker: u64, units: impl Iterator<Item = u32>, limit: usize) {
        for held in self.units.values_mut() {
            held.by.remove(&worker);
        }
        for unit in units.take(limit) {
            if let Some(held) = self.units.get_mut(&unit) {
                held.by.insert(worker, 1);
            }
        }
    }

    /// What a child of `parent` will be known by.
    pub(crate) fn spare_given(&mut self, parent: u64, number: u64) {
        let ordinal = self.given.entry(parent).or_default();
        *ordinal += 1;
        let ordinal = *ordinal;
        self.spares.insert(number, Spare { parent, ordinal });
    }

    /// The child is there. It has what its parent had; what the parent got since, the child will say that it lacks.
    pub(crate) fn child_arrived(&mut self, number: u64) {
        if let Some(Spare { parent, .. }) = self.spares.remove(&number) {
            self.inherit(parent, number);
        }
    }

    fn inherit(&mut self, parent: u64, child: u64) {
        for held in self.units.values_mut() {
            if held.by.contains_key(&parent) {
                held.by.insert(child, 1);
            }
        }
    }

    /// A worker has ended. A child of it may be there that has not said so yet; if not, its connection ends too.
    pub(crate) fn worker_gone(&mut self, worker: u64) {
        let spares = self.spares.iter();
        let children = spares.filter(|(_, spare)| spare.parent == worker);
        let children: Vec<u64> = children.map(|(child, _)| *child).collect();
        for child in children {
            self.inherit(worker, child);
        }
        for held in self.units.values_mut() {
            held.by.remove(&worker);
        }
        self.spares.remove(&worker);
        self.given.remove(&worker);
    }

    /// How many units `worker` has, and what they take, bytes.
    pub(crate) fn usage(&self, worker: u64) -> (usize, u64) {
        let units = self.units.values();
        let own = units.filter(|held| held.by.contains_key(&worker));
        own.fold((0, 0), |(count, bytes), held| {
            (count + 1, bytes.saturating_add(held.len_bytes))
        })
    }

    /// What a unit takes, bytes, and whether `worker` has it already.
    pub(crate) fn cost(&self, worker: u64, unit: u32) -> (u64, bool) {
        let held = self.units.get(&unit);
        held.map_or((0, false), |held| {
            (held.len_bytes, held.by.contains_key(&worker))
        })
    }

    /// Who has a unit, in order.
    pub(crate) fn holders(&self, unit: u32) -> Vec<u64> {
        let held = self.units.get(&unit);
        let mut holders: Vec<u64> = held
            .into_iter()
            .flat_map(|held| held.by.keys())
            .copied()
            .collect();
        holders.sort_unstable();
        holders
    }

    /// Forgets units that are not in `asked`.
    pub(crate) fn keep_only(&mut self, asked: &BTreeMap<u32, Asked>) {
        self.units.retain(|unit, _| asked.contains_key(unit));
    }

    /// Which of `asked` nobody has. Restored ones are waited for.
    pub(crate) fn unheld(&mut self, asked: &BTreeMap<u32, Asked>, now: Instant) -> Vec<u32> {
        let waited = now.saturating_duration_since(self.started) >= self.linger;
        let is_held = |unit: &u32| {
            self.units.get_mut(unit).is_some_and(|held| {
                let has = !held.by.is_empty() || held.answers > 0;
                // Whoever has it came in time: from now on it is like any.
                held.restored &= !has && !waited;
                has || held.restored
            })
        };
        let mut numbers: Vec<u32> = asked.keys().copied().collect();
        let mut is_held = is_held;
        numbers.retain(|unit| !is_held(unit));
        numbers
    }

    /// Whether some unit may have to go.
    pub(crate) fn has_unheld(&self) -> bool {
        let mut units = self.units.values();
        units.any(|held| held.by.is_empty() && held.answers == 0 && !held.restored)
    }
}
