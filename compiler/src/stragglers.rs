//! Who holds retired memory back: threads that stay inside at an older generation. They are named, not killed.
//!
//! What a mailbox says is its worker's own word. Since when a thread has been where it is, is what this process saw.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use jitcast_runtime::heap::SegmentFull;
use serde::{Deserialize, Serialize};

use crate::compiler::{Compiler, has_strangers};
use crate::error::PublishError;
use crate::fault::{Fault, seeded};
use crate::state::State;
use crate::workers::WorkerEntry;

/// A thread that is inside at a generation before the newest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Straggler {
    /// The worker's number; 0: workers that an earlier compiler process let in, and that have not come back. Of these, nothing else
    /// is known.
    pub worker: u64,
    /// Its process, in the compiler's pid namespace.
    pub pid: i32,
    /// The thread, in the worker's own pid namespace.
    pub thread: u64,
    /// The generation that it is inside at.
    pub generation: u64,
    /// How long it has been seen there, ms.
    pub since_ms: u64,
    /// Retired memory that is not reused as long as it stays, whoever else stays too, bytes.
    pub held_bytes: u64,
    /// The units that this memory was, some of which it may be inside of.
    pub units: Vec<String>,
    /// Whether what it holds is a whole object that the segment was renewed from. With `thread` 0 nobody is inside: the
    /// worker has not looked yet.
    pub older: bool,
}

impl fmt::Display for Straggler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 4;
        let Self {
            worker,
            pid,
            thread,
            generation,
            since_ms,
            held_bytes,
            units,
            older,
        } = self;
        if *worker == 0 {
            return write!(
                f,
                "workers that an earlier compiler process let in, and that have not come back: {held_bytes} bytes"
            );
        }
        if *older {
            write!(f, "worker {worker} (pid {pid})")?;
            if *thread != 0 {
                write!(
                    f,
                    ", thread {thread}: inside at generation {generation} for {since_ms} ms, and so"
                )?;
            }
            return write!(
                f,
                " still at what was before the segment was renewed, {held_bytes} bytes"
            );
        }
        write!(
            f,
            "worker {worker} (pid {pid}), thread {thread}: inside at generation {generation} for {since_ms} ms, holds {held_bytes} bytes"
        )?;
        if !units.is_empty() {
            write!(f, " of {}", units[..units.len().min(SHOWN)].join(", "))?;
        }
        if units.len() > SHOWN {
            write!(f, " and {} more", units.len() - SHOWN)?;
        }
        Ok(())
    }
}

/// Where threads were seen last, and since when.
#[derive(Debug, Default)]
pub(crate) struct Seen(HashMap<(u64, u32), (u64, Instant)>);

/// A thread that is inside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inside {
    pub(crate) worker: u64,
    pub(crate) pid: i32,
    pub(crate) thread: u64,
    pub(crate) pin: u64,
    pub(crate) since: Duration,
    /// The object that it is at, if that is one from before the segment was renewed.
    pub(crate) older: Option<u64>,
}

impl Seen {
    /// Looks at all threads: those that are inside at generations before `newest`, or at one of the objects `older`; and
    /// workers that are at one of those for no reason.
    pub(crate) fn look(
        &mut self,
        workers: &[WorkerEntry],
        newest: u64,
        older: &[u64],
    ) -> Vec<Inside> {
        let now = Instant::now();
        let (mut inside, mut seen) = (Vec::new(), HashMap::new());
        for worker in workers {
            let object = worker.object();
            let older = older.contains(&object).then_some(object);
            if let (Some(_), None, false) = (older, worker.mailbox.oldest_pin(), worker.spare) {
                inside.push(Inside {
                    worker: worker.number,
                    pid: worker.pid,
                    thread: 0,
                    pin: 0,
                    since: Duration::ZERO,
                    older,
                });
            }
            for (index, pin, thread) in worker.mailbox.inside() {
                if pin >= newest && older.is_none() {
                    continue;
                }
                let key = (worker.number, index);
                let before = self.0.get(&key).filter(|(known, _)| *known == pin);
                let first = before.map_or(now, |(_, first)| *first);
                seen.insert(key, (pin, first));
                let since = now.duration_since(first);
                inside.push(Inside {
                    worker: worker.number,
                    pid: worker.pid,
                    thread,
                    pin,
                    since,
                    older,
                });
            }
        }
        self.0 = seen;
        inside
    }
}

impl Compiler {
    /// Refuses publications while more is held back than is allowed.
    pub(crate) fn check_held(&self, state: &mut State) -> Result<(), PublishError> {
        let Some(limit) = self
            .max_held_bytes
            .filter(|_| !seeded(Fault::HeldUnlimited))
        else {
            return Ok(());
        };
        if state.heap.retired_bytes() + self.older_bytes(state) <= limit {
            return Ok(());
        }
        self.reclaim(state);
        let held = state.heap.retired_bytes() + self.older_bytes(state);
        if held <= limit {
            return Ok(());
        }
        let why = format!("{held} bytes are retired and held back, {limit} may be (--max-held)");
        Err(PublishError::HeldBack {
            why,
            stragglers: self.stragglers(state),
        })
    }

    /// Says who holds back what is lacking, if somebody does.
    pub(crate) fn name_stragglers(&self, state: &State, full: SegmentFull) -> PublishError {
        let stragglers = self.stragglers(state);
        if stragglers.is_empty() {
            return full.into();
        }
        PublishError::HeldBack {
            why: full.to_string(),
            stragglers,
        }
    }

    /// The threads that hold retired memory back, those that hold most first.
    pub(crate) fn stragglers(&self, state: &State) -> Vec<Straggler> {
        let older: Vec<u64> = state.older.iter().map(|older| older.object).collect();
        let inside = self.workers.lock().stragglers(state.generation(), &older);
        let straggler = |inside: Inside| {
            let mut objects = state.older.iter();
            let older = objects.find(|older| inside.older == Some(older.object));
            let (held_bytes, units) = match older {
                Some(older) => (older.bytes, Vec::new()),
                None => {
                    let held_bytes = state.heap.held_bytes(inside.pin);
                    (held_bytes, state.units_retired_after(inside.pin))
                }
            };
            Straggler {
                worker: inside.worker,
                pid: inside.pid,
                thread: inside.thread,
                generation: inside.pin,
                since_ms: u64::try_from(inside.since.as_millis()).unwrap_or(u64::MAX),
                held_bytes,
                units,
                older: older.is_some(),
            }
        };
        let mut stragglers: Vec<_> = inside.into_iter().map(straggler).collect();
        if has_strangers(&self.segment()) {
            let (pin, held_bytes) = (state.heap.floor(), state.heap.retired_bytes());
            stragglers.push(Straggler {
                worker: 0,
                pid: 0,
                thread: 0,
                generation: pin,
                since_ms: 0,
                held_bytes,
                units: state.units_retired_after(pin),
                older: false,
            });
        }
        stragglers.retain(|straggler| straggler.held_bytes > 0);
        stragglers
            .sort_by_key(|straggler| (straggler.generation, straggler.worker, straggler.thread));
        stragglers
    }
}
