//! Many cases from one seed: the same seed gives the same objects, and a failure shrinks the same way again.

use std::panic::{AssertUnwindSafe, catch_unwind};

use jitcast_oracle::Report;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::build::build;
use crate::case::Case;
use crate::check::{Failure, check};
use crate::edge::{self, Edge};
use crate::strategy;

/// How many steps a shrink may take.
const SHRINK_STEPS: usize = 4096;

/// What a number stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trial {
    /// Units whose every site is compared.
    Case(Case),
    /// A field at the end of its range.
    Edge(Edge),
}

impl Trial {
    /// Runs it. A panic of the linker is a failure like another.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn run(&self) -> Result<Report, Failure> {
        let run = || match self {
            Self::Case(case) => check(case),
            Self::Edge(edge) => edge::check(edge),
        };
        catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(Failure::Panicked(text.unwrap_or_default()))
        })
    }

    /// The objects, unit by unit.
    pub fn objects(&self) -> Vec<Vec<crate::build::Built>> {
        match self {
            Self::Case(case) => build(case),
            Self::Edge(edge) => vec![vec![edge::build(edge, edge.addend().unwrap_or(0))]],
        }
    }

    /// A description for people.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for (number, unit) in self.objects().iter().enumerate() {
            text += &format!("unit {number}\n");
            for object in unit {
                text += &format!(" {}\n", object.name);
                for line in &object.text {
                    text += &format!("{line}\n");
                }
            }
        }
        text
    }
}

/// Every so many trials one is about the end of a range.
const EDGE_EVERY: u64 = 8;

/// A way in which a trial can still become smaller.
type Tree = Box<dyn ValueTree<Value = Trial>>;

fn runner(seed: u64, index: u64) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&index.to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    TestRunner::new_with_rng(Config::default(), random)
}

/// Trial number `index` of `seed`, with all that it shrinks to; `None` if the strategy gives none.
fn tree(seed: u64, index: u64) -> Option<Tree> {
    let mut runner = runner(seed, index);
    let strategy = if index % EDGE_EVERY == EDGE_EVERY - 1 {
        edge::edge().prop_map(Trial::Edge).boxed()
    } else {
        strategy::case().prop_map(Trial::Case).boxed()
    };
    strategy
        .new_tree(&mut runner)
        .ok()
        .map(|tree| Box::new(tree) as Tree)
}

/// Trial number `index` of `seed`.
pub fn trial(seed: u64, index: u64) -> Option<Trial> {
    tree(seed, index).map(|tree| tree.current())
}

/// Case number `index` of `seed` for other linkers, see [`strategy::single`].
pub fn single(seed: u64, index: u64) -> Option<Case> {
    let mut runner = runner(seed, index);
    let tree = strategy::single().new_tree(&mut runner).ok()?;
    Some(tree.current())
}

/// A trial that failed, as small as it got.
#[derive(Clone, Debug)]
pub struct Failed {
    /// The seed.
    pub seed: u64,
    /// Its number.
    pub index: u64,
    /// The smallest trial that fails.
    pub trial: Trial,
    /// How it fails.
    pub failure: Failure,
    /// How many smaller ones were tried.
    pub steps: usize,
}

/// Runs trial `index` of `seed`; if it fails, shrinks it until `stop` says so.
///
/// # Errors
///
/// The smallest failure.
pub fn run(seed: u64, index: u64, stop: impl Fn() -> bool) -> Result<Report, Box<Failed>> {
    let Some(mut tree) = tree(seed, index) else {
        return Ok(Report::default());
    };
    let trial = tree.current();
    let failure = match trial.run() {
        Ok(report) => return Ok(report),
        Err(failure) => failure,
    };
    let mut failed = Failed {
        seed,
        index,
        trial,
        failure,
        steps: 0,
    };
    if !tree.simplify() {
        return Err(Box::new(failed));
    }
    while failed.steps < SHRINK_STEPS && !stop() {
        failed.steps += 1;
        let trial = tree.current();
        let goes_on = match trial.run() {
            Err(failure) => {
                failed.trial = trial;
                failed.failure = failure;
                tree.simplify()
            }
            Ok(_) => tree.complicate(),
        };
        if !goes_on {
            break;
        }
    }
    Err(Box::new(failed))
}
