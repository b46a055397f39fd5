//! Rounds: every contestant of a row takes its turn in each round, so what disturbs the machine disturbs them all.
//!
//! Invariant: no figure stands alone. Each comes with the spread of its rounds' medians, which is the noise of this very run.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::environment::Environment;
use crate::report::Report;

/// Raw samples that are kept of a round; the percentiles are of all.
const KEPT: usize = 1000;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// For a look only.
    pub(crate) quick: bool,
    /// Rounds of a row.
    pub(crate) rounds: usize,
}

impl Plan {
    pub(crate) fn new(quick: bool) -> Self {
        let rounds = if quick { 3 } else { 7 };
        Self { quick, rounds }
    }

    /// `full`, or in a quick run `quick`.
    pub(crate) fn pick<T>(self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }
}

/// Whether what is measured was done before in the same process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Warm,
    Cold,
}

/// What a contestant measured in one round.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    pub(crate) who: String,
    pub(crate) state: State,
    /// Where it stands in a plot.
    pub(crate) x: Option<f64>,
    pub(crate) samples: Vec<f64>,
}

impl Taken {
    pub(crate) fn warm(who: impl Into<String>, samples: Vec<f64>) -> Self {
        Self {
            who: who.into(),
            state: State::Warm,
            x: None,
            samples,
        }
    }

    pub(crate) fn cold(who: impl Into<String>, samples: Vec<f64>) -> Self {
        Self {
            state: State::Cold,
            ..Self::warm(who, samples)
        }
    }

    pub(crate) fn at(self, x: usize) -> Self {
        Self {
            x: Some(x as f64),
            ..self
        }
    }
}

/// Takes part in a row: measures one round.
pub(crate) type Contestant<'a> = Box<dyn FnMut() -> Vec<Taken> + 'a>;

/// What a row is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) group: String,
    pub(crate) name: String,
    pub(crate) unit: String,
}

/// What is known of one contestant of a row after all rounds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Series {
    #[serde(flatten)]
    pub(crate) row: Row,
    pub(crate) who: String,
    pub(crate) state: State,
    pub(crate) x: Option<f64>,
    pub(crate) summary: Summary,
    /// Raw samples, by rounds; at most [`KEPT`] of each, evenly chosen.
    pub(crate) rounds: Vec<Vec<f64>>,
}

impl Series {
    /// Whether `other` is the same, of another run.
    pub(crate) fn is_of(&self, other: &Self) -> bool {
        self.row == other.row
            && self.who == other.who
            && self.state == other.state
            && self.x == other.x
    }
}

/// The figures of a series.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) count: usize,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    /// The lowest and the highest median of a round; of five rounds or more without the outermost at either end.
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Summary {
    fn of(rounds: &[Vec<f64>]) -> Self {
        let all = sorted(rounds.iter().flatten().copied().collect());
        let medians = rounds.iter().map(|round| sorted(round.clone()));
        let medians = sorted(medians.map(|round| percentile(&round, 0.5)).collect());
        let last = medians.len().saturating_sub(1);
        Self {
            count: all.len(),
            p50: percentile(&all, 0.5),
            p99: percentile(&all, 0.99),
            p999: percentile(&all, 0.999),
            low: medians.get(last / 4).copied().unwrap_or(f64::NAN),
            high: medians
                .get((3 * last).div_ceil(4))
                .copied()
                .unwrap_or(f64::NAN),
        }
    }

    /// How far these are apart, as a part of the median.
    pub(crate) fn noise(&self) -> f64 {
        ((self.high - self.low) / self.p50).abs()
    }
}

fn sorted(mut samples: Vec<f64>) -> Vec<f64> {
    samples.sort_by(f64::total_cmp);
    samples
}

/// The sample below which `part` of the sorted `samples` lie.
fn percentile(samples: &[f64], part: f64) -> f64 {
    let last = samples.len().saturating_sub(1);
    let index = (last as f64 * part).round() as usize;
    samples.get(index).copied().unwrap_or(f64::NAN)
}

/// What was not measured, and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Skipped {
    pub(crate) what: String,
    pub(crate) why: String,
}

/// Collects the rows of a run.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub(crate) plan: Plan,
    series: Vec<Series>,
    skipped: Vec<Skipped>,
    started: Instant,
}

impl Recorder {
    pub(crate) fn new(plan: Plan) -> Self {
        Self {
            plan,
            series: Vec::new(),
            skipped: Vec::new(),
            started: Instant::now(),
        }
    }

    /// Lets `contestants` take turns; in every second round the last one begins.
    pub(crate) fn row(
        &mut self,
        group: &str,
        name: &str,
        unit: &str,
        contestants: Vec<Contestant<'_>>,
    ) {
        self.row_of(self.plan.rounds, (group, name, unit), contestants);
    }

    /// The same with another number of rounds: for what takes long.
    pub(crate) fn row_of(
        &mut self,
        rounds: usize,
        (group, name, unit): (&str, &str, &str),
        mut contestants: Vec<Contestant<'_>>,
    ) {
        let begun = Instant::now();
        let row = Row {
            group: group.to_owned(),
            name: name.to_owned(),
            unit: unit.to_owned(),
        };
        let mut taken: Vec<(usize, Taken)> = Vec::new();
        for round in 0..rounds {
            let mut order: Vec<usize> = (0..contestants.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for index in order {
                taken.extend(contestants[index]().into_iter().map(|one| (index, one)));
            }
        }
        // In the order of the contestants, whoever began.
        taken.sort_by_key(|(index, _)| *index);
        for (_, one) in taken {
            self.add(&row, one);
        }
        eprintln!("  {name}: {:.1} s", begun.elapsed().as_secs_f64());
    }

    fn add(&mut self, row: &Row, taken: Taken) {
        // A peer that did not tell.
        if taken.samples.is_empty() {
            return;
        }
        let known = self.series.iter_mut().find(|series| {
            series.row == *row
                && series.who == taken.who
                && series.state == taken.state
                && series.x == taken.x
        });
        match known {
            Some(series) => series.rounds.push(taken.samples),
            None => self.series.push(Series {
                row: row.clone(),
                who: taken.who,
                state: taken.state,
                x: taken.x,
                summary: Summary::of(&[]),
                rounds: vec![taken.samples],
            }),
        }
    }

    /// Says loudly, and in the report, that something is left out.
    pub(crate) fn skip(&mut self, what: &str, why: impl Into<String>) {
        let why = why.into();
        eprintln!("SKIPPED: {what}: {why}");
        let what = what.to_owned();
        self.skipped.push(Skipped { what, why });
    }

    pub(crate) fn finish(mut self, environment: Environment) -> Report {
        for series in &mut self.series {
            series.summary = Summary::of(&series.rounds);
            for round in &mut series.rounds {
                let step = round.len().div_ceil(KEPT).max(1);
                *round = round.iter().copied().step_by(step).collect();
            }
        }
        Report {
            environment,
            quick: self.plan.quick,
            took_s: self.started.elapsed().as_secs_f64(),
            series: self.series,
            skipped: self.skipped,
        }
    }
}

/// How long `work` takes once, ns.
pub(crate) fn time_ns<R>(work: impl FnOnce() -> R) -> f64 {
    let start = Instant::now();
    let result = work();
    let taken = start.elapsed();
    std::hint::black_box(result);
    taken.as_nanos() as f64
}

/// How long one of `count` repetitions takes on average, ns.
pub(crate) fn per_repetition_ns(count: u32, mut work: impl FnMut()) -> f64 {
    let start = Instant::now();
    (0..count).for_each(|_| work());
    nanos(start.elapsed()) / f64::from(count)
}

fn nanos(duration: Duration) -> f64 {
    duration.as_nanos() as f64
}
