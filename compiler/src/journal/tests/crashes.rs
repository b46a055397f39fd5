//! Whatever was acknowledged outlives the process at any step, and the machine's power with any part of what was
//! not synced.

use proptest::prelude::*;

use super::disk::{Choices, Disk, Lie};
use super::{Image, UNITS, VERSIONS, compact, image, is_same, options, start, unit};
use crate::{Compiler, JournalOptions};

/// What a test does next.
#[derive(Clone, Debug)]
enum Step {
    Publish {
        unit: usize,
        version: usize,
    },
    /// All units as one publication.
    PublishAll {
        version: usize,
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

fn step() -> impl Strategy<Value = Step> {
    let power = prop::option::weighted(0.7, 1..u64::MAX);
    prop_oneof![
        4 => (0..UNITS.len(), 0..VERSIONS).prop_map(|(unit, version)| Step::Publish { unit, version }),
        1 => (0..VERSIONS).prop_map(|version| Step::PublishAll { version }),
        1 => Just(Step::Compact),
        3 => (0u64..24, power, prop::option::of(0u64..6))
            .prop_map(|(after, power, again)| Step::Crash { after, power, again }),
    ]
}

/// What has to be there.
#[derive(Clone, Debug, Default)]
struct Expected {
    generation: u64,
    /// The version of each unit and the generation that published it.
    versions: [Option<(usize, u64)>; UNITS.len()],
    /// Where it is known.
    image: Option<Image>,
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

/// The generation of a publication that was not shown before the process died.
const UNKNOWN: u64 = u64::MAX;

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
        let acknowledged = Expected {
            generation: compiler.status().generation,
            image: Some(image(&compiler)),
            ..Expected::default()
        };
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
                Step::Publish { unit, version } => self.publish(&[(*unit, *version)])?,
                Step::PublishAll { version } => {
                    self.publish(&[0, 1, 2].map(|unit| (unit, *version)))?;
                }
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
        self.publish(&[(0, 0)])
    }

    fn publish(&mut self, batch: &[(usize, usize)]) -> Verdict {
        let sources: Vec<_> = batch
            .iter()
            .map(|(index, version)| unit(*index, *version).clone())
            .collect();
        let compiler = self.compiler.as_ref().unwrap();
        let published = compiler.publish(&sources);
        let generation = compiler.status().generation;
        let is_visible = generation > self.acknowledged.generation;
        let mut expected = self.acknowledged.clone();
        expected.image = None;
        if is_visible {
            if generation <= self.used {
                return Err(format!("generation {generation} is used again"));
            }
            self.used = generation;
            expected.generation = generation;
            expected.image = Some(image(compiler));
        }
        let at = if is_visible { generation } else { UNKNOWN };
        for (index, version) in batch {
            expected.versions[*index] = Some((*version, at));
        }
        match published {
            Ok(_) => self.acknowledged = expected,
            Err(_) if self.disk.is_dead() => self.under_way = Some(expected),
            // A unit may not be published before the one it calls; that is no matter of the journal.
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
                for (_, at) in maybe.versions.iter_mut().flatten() {
                    *at = if *at == UNKNOWN { generation } else { *at };
                }
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
        for (index, version) in expected.versions.iter().enumerate() {
            let Some((version, at)) = version else {
                continue;
            };
            let source = compiler.sources_of(*at, UNITS[index]);
            let source = source.map_err(|error| error.to_string())?;
            if !source.is_some_and(|source| is_same(&source, unit(index, *version))) {
                return Err(format!("the sources of {} at {at} are lost", UNITS[index]));
            }
        }
        expected.image = Some(found);
        self.used = self.used.max(generation);
        self.acknowledged = expected;
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
