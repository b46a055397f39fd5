//! Whatever was acknowledged outlives the process at any step, and the machine's power with any part of what was
//! not synced.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::disk::{Choices, Disk, Lie};
use super::{
    Image, LEAVE_TRAPS, UNITS, VERSIONS, compact, has_all_contents, image, options, start, unit,
};
use crate::catalog::Canary;
use crate::history::RetainedUnit;
use crate::{
    Audience, Changeset, Compiler, JournalOptions, Publication, PublishError, PublishOptions,
    SymbolUpdate,
};

/// What a publisher asks for, units by their numbers.
#[derive(Clone, Debug)]
enum Asked {
    Change {
        /// Units and their versions.
        units: BTreeMap<usize, usize>,
        removals: BTreeSet<usize>,
        /// The functions of units that are quarantined (`true`) or restored.
        updates: BTreeMap<usize, bool>,
    },
    /// Going back by so many generations; 0: what the latest publication did.
    Rollback(u64),
    /// A canary of units of these versions.
    Canary(BTreeMap<usize, usize>),
    /// The end of the canary that has a unit: it is promoted (`true`), or aborted.
    End(usize, bool),
}

/// What a test does next.
#[derive(Clone, Debug)]
enum Step {
    Publish {
        asked: Asked,
        leave_traps: bool,
    },
    Compact,
    /// The process ends after some more steps on the disk; then the power goes, or not. The next one ends so while
    /// it starts, or not.
    Crash {
        after: u64,
        power: Option<u64>,
        again: Option<u64>,
    },
}

fn change(
    units: impl IntoIterator<Item = (usize, usize)>,
    removals: impl IntoIterator<Item = usize>,
    updates: impl IntoIterator<Item = (usize, bool)>,
) -> Asked {
    Asked::Change {
        units: units.into_iter().collect(),
        removals: removals.into_iter().collect(),
        updates: updates.into_iter().collect(),
    }
}

fn asked() -> impl Strategy<Value = Asked> {
    let (index, version) = (0..UNITS.len(), 0..VERSIONS);
    let units = prop::collection::btree_map(index.clone(), version.clone(), 0..3);
    let removals = prop::option::of(index.clone());
    let updates = prop::option::of((index.clone(), any::<bool>()));
    prop_oneof![
        4 => (index.clone(), version.clone()).prop_map(|unit| change([unit], [], [])),
        1 => version.prop_map(|version| change([0, 1, 2].map(|unit| (unit, version)), [], [])),
        2 => index.clone().prop_map(|unit| change([], [unit], [])),
        2 => (index, any::<bool>()).prop_map(|update| change([], [], [update])),
        2 => (units, removals, updates)
            .prop_map(|(units, removals, updates)| change(units, removals, updates)),
        2 => (0u64..4).prop_map(Asked::Rollback),
        3 => prop::collection::btree_map(0..UNITS.len(), 0..VERSIONS, 1..3).prop_map(Asked::Canary),
        3 => (0..UNITS.len(), any::<bool>()).prop_map(|(unit, promotes)| Asked::End(unit, promotes)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let power = prop::option::weighted(0.7, 1..u64::MAX);
    prop_oneof![
        8 => (asked(), any::<bool>())
            .prop_map(|(asked, leave_traps)| Step::Publish { asked, leave_traps }),
        1 => Just(Step::Compact),
        4 => (0u64..24, power, prop::option::of(0u64..6))
            .prop_map(|(after, power, again)| Step::Crash { after, power, again }),
    ]
}

/// What has to be there.
#[derive(Clone, Debug)]
struct Expected {
    generation: u64,
    units: BTreeMap<String, RetainedUnit>,
    quarantined: BTreeSet<String>,
    /// The canaries that are running, in order.
    canaries: Vec<BTreeMap<String, RetainedUnit>>,
    /// Where it is known.
    image: Option<Image>,
}

impl Expected {
    /// What `image` says.
    fn of(image: Image) -> Self {
        let published = image.history.published().iter();
        let units = published.map(|(name, published)| (name.clone(), published.unit.clone()));
        Self {
            generation: image.status.generation,
            units: units.collect(),
            quarantined: image.status.quarantined.iter().cloned().collect(),
            canaries: image.catalog.canaries.values().map(retained).collect(),
            image: Some(image),
        }
    }

    /// What is there after `asked`, if that is done.
    fn after(&self, asked: &Asked) -> Self {
        let mut after = self.clone();
        match asked {
            Asked::Change {
                units,
                removals,
                updates,
            } => {
                let units = units.iter().map(|(&index, &version)| unit(index, version));
                let units = units.map(|unit| (unit.name.clone(), RetainedUnit::new(unit)));
                after.units.extend(units);
                for unit in removals {
                    after.units.remove(UNITS[*unit]);
                }
                for (unit, quarantined) in updates {
                    let name = UNITS[*unit].to_owned();
                    if *quarantined {
                        after.quarantined.insert(name);
                    } else {
                        after.quarantined.remove(&name);
                    }
                }
            }
            Asked::Canary(units) => {
                let units = units.iter().map(|(&index, &version)| unit(index, version));
                let units = units.map(|unit| (unit.name.clone(), RetainedUnit::new(unit)));
                after.canaries.push(units.collect());
            }
            Asked::End(unit, promotes) => {
                let mut canaries = after.canaries.iter();
                let found = canaries.position(|canary| canary.contains_key(UNITS[*unit]));
                let ended = found.map(|found| after.canaries.remove(found));
                after
                    .units
                    .extend(ended.filter(|_| *promotes).into_iter().flatten());
            }
            Asked::Rollback(by) => {
                let history = &self.image.as_ref().unwrap().history;
                if let Ok(undo) = history.undo(self.back_by(*by)) {
                    let units = undo.units.into_iter();
                    after
                        .units
                        .extend(units.map(|unit| (unit.name.clone(), unit)));
                    undo.removals
                        .iter()
                        .for_each(|name| drop(after.units.remove(name)));
                }
            }
        }
        after.image = None;
        after
    }

    /// Whether the same is published.
    fn is_same(&self, other: &Self) -> bool {
        (&self.units, &self.quarantined, &self.canaries)
            == (&other.units, &other.quarantined, &other.canaries)
    }

    /// The generation `by` ones ago.
    fn back_by(&self, by: u64) -> Option<u64> {
        (by > 0).then(|| self.generation.saturating_sub(by))
    }
}

/// What a canary was made of, by name.
fn retained(canary: &Canary) -> BTreeMap<String, RetainedUnit> {
    let units = canary.retained.iter();
    units
        .map(|unit| (unit.name.clone(), unit.clone()))
        .collect()
}

#[derive(Debug)]
struct Model {
    disk: Disk,
    options: JournalOptions,
    compiler: Option<Compiler>,
    acknowledged: Expected,
    /// A publication that was under way, and may be there or not.
    under_way: Option<Expected>,
    /// The newest generation that ever was visible.
    used: u64,
    /// What is done to the power after the next crash, and when the restart after it ends.
    power: Option<u64>,
    again: Option<u64>,
}

/// What is wrong, if anything is.
type Verdict = Result<(), String>;

impl Model {
    fn new(durable: bool, lie: Option<Lie>) -> Self {
        let (disk, options) = (
            Disk::default(),
            JournalOptions {
                durable,
                ..options()
            },
        );
        disk.lie(lie);
        let compiler = start(&disk, &options).unwrap();
        let acknowledged = Expected::of(image(&compiler));
        let used = acknowledged.generation;
        Self {
            disk,
            options,
            compiler: Some(compiler),
            acknowledged,
            under_way: None,
            used,
            power: None,
            again: None,
        }
    }

    fn run(&mut self, steps: &[Step]) -> Verdict {
        for step in steps {
            match step {
                Step::Publish { asked, leave_traps } => self.publish(asked, *leave_traps)?,
                Step::Compact => {
                    // It fails if the process dies in it, and changes nothing either way.
                    let _ = self.compiler.as_ref().map(compact);
                    self.recover_if_dead()?;
                }
                Step::Crash {
                    after,
                    power,
                    again,
                } => {
                    (self.power, self.again) = (*power, *again);
                    self.disk.die_after(Some(*after));
                }
            }
        }
        self.disk.die_after(Some(0));
        self.publish(&change([(0, 0)], [], []), true)
    }

    fn ask(&self, asked: &Asked, leave_traps: bool) -> Result<Publication, PublishError> {
        let compiler = self.compiler.as_ref().unwrap();
        let options = PublishOptions {
            leave_traps,
            ..LEAVE_TRAPS
        };
        match asked {
            Asked::Change {
                units,
                removals,
                updates,
            } => {
                let units = units.iter().map(|(&index, &version)| unit(index, version));
                let updates = updates.iter().map(|(&unit, &quarantined)| {
                    let name = UNITS[unit].to_owned();
                    if quarantined {
                        SymbolUpdate::Quarantine(name)
                    } else {
                        SymbolUpdate::Restore(name)
                    }
                });
                let removals = removals.iter().map(|&unit| UNITS[unit].to_owned());
                compiler.change(&Changeset {
                    units: &units.cloned().collect::<Vec<_>>(),
                    removals: &removals.collect::<Vec<_>>(),
                    updates: &updates.collect::<Vec<_>>(),
                    options,
                    canary: None,
                })
            }
            Asked::Canary(units) => {
                let units = units.iter().map(|(&index, &version)| unit(index, version));
                compiler.change(&Changeset {
                    units: &units.cloned().collect::<Vec<_>>(),
                    canary: Some(&Audience::Workers(1)),
                    ..Changeset::default()
                })
            }
            Asked::End(unit, true) => compiler.promote(UNITS[*unit]),
            Asked::End(unit, false) => compiler.abort(UNITS[*unit]),
            Asked::Rollback(by) => compiler.rollback(self.acknowledged.back_by(*by), options),
        }
    }

    fn publish(&mut self, asked: &Asked, leave_traps: bool) -> Verdict {
        let mut expected = self.acknowledged.after(asked);
        let published = self.ask(asked, leave_traps);
        let compiler = self.compiler.as_ref().unwrap();
        let generation = compiler.status().generation;
        let is_visible = generation > self.acknowledged.generation;
        if is_visible {
            if generation <= self.used {
                return Err(format!("generation {generation} is used again"));
            }
            self.used = generation;
            let seen = Expected::of(image(compiler));
            if !seen.is_same(&expected) {
                return Err(format!("generation {generation} is not what was asked for"));
            }
            expected = seen;
        }
        match published {
            Ok(_) => self.acknowledged = expected,
            Err(_) if self.disk.is_dead() => self.under_way = Some(expected),
            // What nobody may ask for at this time is refused: that is no matter of the journal.
            Err(error) if is_visible => return Err(error.to_string()),
            Err(_) => {}
        }
        self.recover_if_dead()
    }

    /// The process is gone, and with a seed the power too.
    fn go_down(&self, power: Option<u64>) {
        match power {
            Some(seed) => self.disk.lose_power(&mut Choices(seed)),
            None => self.disk.revive(),
        }
    }

    fn recover_if_dead(&mut self) -> Verdict {
        if !self.disk.is_dead() {
            return Ok(());
        }
        self.compiler = None;
        let power = self.power.take();
        self.go_down(power);
        self.disk.die_after(self.again.take());
        let mut restarted = start(&self.disk, &self.options);
        if self.disk.is_dead() {
            drop(restarted);
            self.go_down(power);
            restarted = start(&self.disk, &self.options);
        }
        self.disk.die_after(None);
        let compiler = restarted.map_err(|error| error.to_string())?;
        self.judge(&compiler, power.is_some())?;
        self.compiler = Some(compiler);
        Ok(())
    }

    /// Whether a publication that was not acknowledged has to be there: a worker may have run it, and either the
    /// power stayed, or it was durable before.
    fn has_to_survive(&self, publication: &Expected, lost_power: bool) -> bool {
        publication.image.is_some() && (self.options.durable || !lost_power)
    }

    /// Compares what is there after a restart with what has to be.
    fn judge(&mut self, compiler: &Compiler, lost_power: bool) -> Verdict {
        let found = image(compiler);
        let generation = found.status.generation;
        let mut expected = self.acknowledged.clone();
        if let Some(mut maybe) = self.under_way.take()
            && (generation > expected.generation || self.has_to_survive(&maybe, lost_power))
        {
            if maybe.image.is_none() {
                // It was written, but not shown: its number is only known now.
                maybe.generation = generation;
            }
            expected = maybe;
        }
        if generation != expected.generation {
            let wanted = expected.generation;
            return Err(format!("generation {generation} instead of {wanted}"));
        }
        if expected.image.as_ref().is_some_and(|image| *image != found) {
            return Err(format!("generation {generation} is not what it was"));
        }
        let found = Expected::of(found);
        if !found.is_same(&expected) {
            return Err(format!("generation {generation} is not what was asked for"));
        }
        has_all_contents(compiler)?;
        self.used = self.used.max(generation);
        self.acknowledged = found;
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn what_was_acknowledged_outlives_crashes_at_any_step(
        durable in any::<bool>(),
        steps in prop::collection::vec(step(), 1..24),
    ) {
        let verdict = Model::new(durable, None).run(&steps);
        prop_assert_eq!(verdict, Ok(()));
    }
}

/// Steps that follow from a number.
fn steps(seed: u64) -> Vec<Step> {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let steps = prop::collection::vec(step(), 12..24);
    steps.new_tree(&mut runner).unwrap().current()
}

/// The story: each sync is there for a reason, so the test above must notice if one is left out.
#[test]
fn every_sync_that_is_left_out_is_noticed() {
    const TRIES: u64 = 400;
    for lie in [
        Lie::Publication,
        Lie::Reservation,
        Lie::NewLog,
        Lie::Object,
        Lie::Objects,
        Lie::Top,
    ] {
        let is_noticed = |seed| Model::new(false, Some(lie)).run(&steps(seed)).is_err();
        assert!((0..TRIES).any(is_noticed), "{lie:?} goes unnoticed");
    }
}
