//! What a worker has to tell its host, which alone decides what becomes of it: a library never prints.
//!
//! Invariant: the host's function is called while nothing of the worker is locked, so that it may use the worker.

use core::fmt;
use std::sync::Arc;

use crate::startup::FailedUnit;

/// Something that a host may want to write down. Its text says it for people.
///
/// ```
/// use jitcast_worker::{Event, Log, WorkerOptions};
///
/// let log = Log::new(|event| match event {
///     Event::Disconnected => eprintln!("warning: {event}"),
///     _ => eprintln!("{event}"),
/// });
/// let options = WorkerOptions { log, ..WorkerOptions::default() };
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// An attempt to attach later came to nothing; it is tried again.
    NotAttached {
        /// Why.
        why: String,
    },
    /// What a host took a handle of before the worker attached is something else. The host's own function serves.
    Unfit {
        /// Why.
        why: String,
    },
    /// The compiler process is gone. The worker goes on with what it has, and looks for another one.
    Disconnected,
    /// The worker goes on with another object: another compiler process's, or one to which the same one has moved.
    Renewed {
        /// The number by which the compiler process knows the worker.
        number: u64,
    },
    /// What the compiler process offered to go on with is not what this worker has.
    Declined,
    /// A unit failed in this worker.
    UnitFailed(FailedUnit),
    /// A host symbol is missing: functions that need it cannot be called in this worker.
    MissingImport {
        /// Its name, with the signatures if the host defines it by another one than published code calls it by.
        import: String,
    },
    /// Debuggers or profilers are not shown all that was asked for.
    NotShown {
        /// Why, and what to do.
        why: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAttached { why } => write!(f, "not attached yet: {why}"),
            Self::Unfit { why } => write!(f, "the host's own function serves: {why}"),
            Self::Disconnected => f.write_str(
                "the compiler process is gone; what is published goes on, and another one is looked for",
            ),
            Self::Renewed { number } => {
                write!(f, "goes on as worker {number}, with another object")
            }
            Self::Declined => f.write_str(
                "the segment that was offered is not of the same history, and is not gone on with\n  help: attach again",
            ),
            Self::UnitFailed(failed) => failed.fmt(f),
            Self::NotShown { why } => f.write_str(why),
            Self::MissingImport { import } => write!(
                f,
                "the host symbol `{import}` is missing in this worker\n  help: define it in the worker's host table"
            ),
        }
    }
}

/// What the host does with events.
type Sink = Arc<dyn Fn(&Event) + Send + Sync>;

/// Who is told of events: nobody, unless the host says so. Events are what no call returns as an error. Any thread tells them that
/// enters a guard or looks after the worker ([`Worker::tend`](crate::Worker::tend)).
///
/// ```
/// # use std::sync::mpsc;
/// use jitcast_worker::{Event, Log};
///
/// let (sender, events) = mpsc::channel::<Event>();
/// let log = Log::new(move |event| drop(sender.send(event.clone()))); // whoever receives them writes them down
/// ```
#[derive(Clone, Default)]
pub struct Log(Option<Sink>);

impl Log {
    /// Lets `sink` be told.
    pub fn new(sink: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(sink)))
    }

    /// Tells `events`. By who holds nothing.
    pub(crate) fn tell(&self, events: &[Event]) {
        if let Some(sink) = &self.0 {
            events.iter().for_each(|event| sink(event));
        }
    }
}

/// Keeps `event` in `events` until it can be told.
pub(crate) fn note(events: &mut Vec<Event>, event: Event) {
    /// Nobody looks after a worker that has so many to tell.
    const MAX_EVENTS: usize = 1000;
    if events.len() < MAX_EVENTS {
        events.push(event);
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() {
            "Log(..)"
        } else {
            "Log(none)"
        })
    }
}
