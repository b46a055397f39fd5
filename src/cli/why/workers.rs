//! Which version each worker runs.

use jitcast::compiler::WorkerStatus;
use jitcast::runtime::observer::Observer;
use jitcast::runtime::records::{SYMBOL_FUNCTION, SYMBOL_QUARANTINED};
use serde::Serialize;

use super::graph::Located;
use crate::cli::Failure;
use crate::cli::directory::Symbol;
use crate::cli::observe::{Holds, Inside};
use crate::cli::places::Places;

/// What a worker has in place of the name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub(super) enum State {
    /// This version.
    Runs {
        unit: String,
        generation: u64,
        /// Whether threads that are inside at older generations run older ones.
        changing: bool,
    },
    /// A version before those that are known.
    Older,
    /// Nothing, or nobody knows what: it has not applied the generation that published what it is to run.
    Behind,
    /// Its host's fallback.
    Quarantined,
    /// A trap: a constructor of the unit, or a resolver, failed in it.
    Failed { unit: String },
    /// Nothing is published for it, or nothing that is called.
    Nothing,
}

/// A worker.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Runner {
    pub(super) number: u64,
    pub(super) pid: i32,
    pub(super) label: String,
    /// The generation that it has applied.
    pub(super) applied: u64,
    /// How many generations that is behind the newest.
    pub(super) lag: u64,
    /// The canaries that it runs.
    pub(super) canaries: Vec<u64>,
    #[serde(flatten)]
    pub(super) state: State,
    /// Host symbols that are needed, and that it lacks; or does not take, being called by other signatures.
    pub(super) lacks: Vec<String>,
    /// Why its memory cannot be read: then the state follows from what it has applied, and nobody knows what it lacks.
    pub(super) unreadable: Option<String>,
}

impl Runner {
    /// What is in the way of a call in it.
    pub(super) fn obstacle(&self) -> Option<String> {
        let who = format!("worker {}", self.pid);
        match &self.state {
            State::Failed { unit } => Some(format!(
                "{who}: a constructor of the unit {unit} failed there; mend it and publish it again"
            )),
            State::Behind | State::Older => Some(format!(
                "{who}: it is at generation {}, {} behind; it applies what is new when it enters a guard",
                self.applied, self.lag
            )),
            _ if !self.lacks.is_empty() => Some(format!(
                "{who}: it lacks the host's {}; give it a library that has it, or publish that",
                self.lacks.join(", ")
            )),
            State::Runs { .. } | State::Quarantined | State::Nothing => None,
        }
    }
}

/// What `worker` has in place of a name by which it means the version `meant`.
pub(super) fn runner(
    worker: &WorkerStatus,
    (observer, newest): (&Observer, u64),
    places: &Places<'_>,
    meant: Option<&Symbol>,
    needs: &[Located],
) -> Result<Runner, Failure> {
    let inside = Inside::open(worker, observer);
    let state = match meant {
        None => State::Nothing,
        Some(symbol) => match &inside {
            Ok(inside) => seen(worker, inside, places, symbol)?,
            Err(_) => said(worker, places, symbol)?,
        },
    };
    let lacks = |need: &&Located| {
        let (Some((slot, addend, trap)), Ok(inside)) = (need.bound, &inside) else {
            return false;
        };
        match inside.holds(slot) {
            Some(Holds::Place(place)) => {
                i64::from(place.get()) == addend.wrapping_add(trap.get().into())
            }
            _ => false,
        }
    };
    let lacking = needs.iter().filter(lacks).map(|lacking| {
        let signature = lacking.need.signature.as_deref().unwrap_or_default();
        format!("{}{signature}", lacking.need.name)
    });
    Ok(Runner {
        number: worker.number,
        pid: worker.pid,
        label: worker.label.clone(),
        applied: worker.applied,
        lag: newest.saturating_sub(worker.applied),
        canaries: worker.canaries.clone(),
        state,
        lacks: if meant.is_some() {
            lacking.collect()
        } else {
            Vec::new()
        },
        unreadable: inside.err(),
    })
}

/// What the worker's cell holds.
fn seen(
    worker: &WorkerStatus,
    inside: &Inside,
    places: &Places<'_>,
    symbol: &Symbol,
) -> Result<State, Failure> {
    if symbol.record.kind != SYMBOL_FUNCTION {
        return said(worker, places, symbol);
    }
    let held = inside.holds(symbol.record.call_cell);
    let (place, changing) = match held {
        Some(Holds::Place(place)) => (Some(place), false),
        Some(Holds::Between(address)) => (inside.place_of(address), true),
        Some(Holds::Address(_)) | None => (None, false),
    };
    if let Some(place) = place {
        let text = places.text(place)?;
        // What was put there later is none of its.
        let known = text.filter(|(text, _)| text.generation <= worker.applied);
        let known = known.map(|(text, unit)| (unit, text.generation));
        let own = (place == symbol.record.place).then(|| places.unit(symbol));
        return Ok(match own.or(known) {
            Some((unit, generation)) => State::Runs {
                unit,
                generation,
                changing,
            },
            None => State::Older,
        });
    }
    let has_applied = worker.applied >= symbol.record.generation;
    Ok(match places.text(symbol.record.place)? {
        _ if symbol.record.flags & SYMBOL_QUARANTINED != 0 && has_applied => State::Quarantined,
        // A cell leads to where it is said to lead, unless the unit that lies there failed.
        Some((_, unit)) if has_applied && worker.failed > 0 => State::Failed { unit },
        _ => State::Behind,
    })
}

/// What follows from the generation that the worker says it has applied.
fn said(worker: &WorkerStatus, places: &Places<'_>, symbol: &Symbol) -> Result<State, Failure> {
    if worker.applied < symbol.record.generation {
        return Ok(State::Behind);
    }
    if symbol.record.flags & SYMBOL_QUARANTINED != 0 {
        return Ok(State::Quarantined);
    }
    let (unit, generation) = places.unit(symbol);
    Ok(State::Runs {
        unit,
        generation,
        changing: false,
    })
}
