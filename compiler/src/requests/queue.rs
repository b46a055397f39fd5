//! Requests on their way: equal ones together, within limits, and the threads that see to them.
//!
//! Invariant: the serving thread, to which [`Asks`] belongs, never waits here. A request is answered once, unless its connection
//! ends before.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded, unbounded};
use jitcast_runtime::wire::{ASK_BUSY, ASK_READY, ASK_REFUSED, AskReply, AskRequest};
use zerocopy::{FromBytes, IntoBytes};

use super::{Granted, How, RequestOptions, carry_out, unit_name};
use crate::compiler::Compiler;
use crate::front::Cpu;

/// When the removal of units that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A request, as a worker sent it.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) payload: Vec<u8>,
    /// The length of all that was sent, bytes: of what is too long only the beginning is there.
    pub(crate) len_bytes: usize,
    /// Why this peer may not ask, if so.
    pub(crate) refused: Option<String>,
}

/// What a worker is told about a request.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Ready(Granted),
    Refused(String),
    Busy(String),
}

impl Outcome {
    /// The payload that says it.
    pub(crate) fn payload(&self, id: u64) -> Vec<u8> {
        let none = Granted {
            unit: 0,
            generation: 0,
        };
        let (granted, outcome, text) = match self {
            Self::Ready(granted) => (*granted, ASK_READY, ""),
            Self::Refused(why) => (none, ASK_REFUSED, why.as_str()),
            Self::Busy(why) => (none, ASK_BUSY, why.as_str()),
        };
        let reply = AskReply {
            id,
            generation: granted.generation,
            unit: granted.unit,
            outcome,
        };
        let mut payload = reply.as_bytes().to_vec();
        let end = text.floor_char_boundary(MAX_WHY_BYTES);
        payload.extend_from_slice(&text.as_bytes()[..end]);
        payload
    }
}

impl Outcome {
    /// Counts a request that came to nothing, and remembers why.
    fn note(&self, compiler: &Compiler) {
        match self {
            Self::Ready(_) => compiler.metrics.asked("ready"),
            Self::Busy(_) => compiler.metrics.asked("busy"),
            Self::Refused(why) => {
                compiler.metrics.asked("refused");
                compiler.note_error("request", why);
            }
        }
    }
}

/// How much of a reason is told, bytes.
const MAX_WHY_BYTES: usize = 16 << 10;

/// What nobody compiles.
pub(super) fn no_command() -> String {
    "this compiler process compiles nothing for workers\n  help: name the command that compiles (RequestOptions::command), as `jitcast serve` does".to_owned()
}

/// Who waits for an answer.
#[derive(Clone, Copy, Debug)]
struct Waiter {
    connection: u64,
    worker: u64,
    id: u64,
}

/// A text to compile.
struct Job {
    name: String,
    text: Vec<u8>,
}

/// A text that was compiled, or not.
type Done = (String, Result<Granted, Outcome>);

/// An answer: for which connection, and its payload.
pub(crate) type Answered = (u64, Vec<u8>);

/// The requests that are under way.
pub(crate) struct Asks {
    options: RequestOptions,
    cpu: Cpu,
    compiler: Arc<Compiler>,
    /// By what they ask for.
    waiting: HashMap<String, Vec<Waiter>>,
    in_flight: HashMap<u64, usize>,
    jobs: Sender<Job>,
    done: Receiver<Done>,
    sweeps: Sender<()>,
    /// Shut down when the server ends: no child is waited for then.
    ending: UnixStream,
    threads: Vec<JoinHandle<()>>,
}

impl Asks {
    /// Starts the threads; `wake` wakes the serving thread.
    pub(crate) fn start(
        compiler: &Arc<Compiler>,
        options: &RequestOptions,
        cpu: Cpu,
        wake: &UnixStream,
    ) -> io::Result<Self> {
        let (jobs, queue) = bounded(options.limits.queue.max(1));
        let (results, done) = unbounded();
        let (sweeps, swept) = bounded(1);
        let (ending, ended) = UnixStream::pair()?;
        let mut threads = Vec::new();
        let named = |name: &str| std::thread::Builder::new().name(name.into());
        if options.command.is_some() {
            for _ in 0..options.limits.children.max(1) {
                let (compiler, options) = (Arc::clone(compiler), options.clone());
                let (queue, results) = (Receiver::clone(&queue), Sender::clone(&results));
                let (wake, ended) = (wake.try_clone()?, ended.try_clone()?);
                let compile = move || {
                    let how = How {
                        options: &options,
                        cpu,
                        ended: &ended,
                    };
                    compile_all(&compiler, &how, &queue, &results, &wake);
                };
                threads.push(named("codegen").spawn(compile)?);
            }
        }
        compiler.holds.lock().begin(options.limits.linger);
        let sweep = {
            let compiler = Arc::clone(compiler);
            move || sweep_all(&compiler, &swept)
        };
        threads.push(named("sweeper").spawn(sweep)?);
        Ok(Self {
            options: options.clone(),
            cpu,
            compiler: Arc::clone(compiler),
            waiting: HashMap::new(),
            in_flight: HashMap::new(),
            jobs,
            done,
            sweeps,
            ending,
            threads,
        })
    }

    /// Takes a request of worker `worker`: what is to be answered at once.
    pub(crate) fn take(
        &mut self,
        connection: u64,
        worker: Option<u64>,
        incoming: Incoming,
    ) -> Result<Option<Vec<u8>>, String> {
        let Ok((request, text)) = AskRequest::read_from_prefix(&incoming.payload) else {
            return Err("malformed request for a unit".to_owned());
        };
        let worker = worker.ok_or("only workers ask for units: attach first")?;
        let waiter = Waiter {
            connection,
            worker,
            id: request.id,
        };
        let outcome = match self.check(worker, &incoming) {
            Some(outcome) => Some(outcome),
            None => self.join(waiter, text.to_vec()),
        };
        if let Some(outcome) = &outcome {
            outcome.note(&self.compiler);
        }
        Ok(outcome.map(|outcome| outcome.payload(request.id)))
    }

    /// Why a request is not even looked at.
    fn check(&self, worker: u64, incoming: &Incoming) -> Option<Outcome> {
        let limits = &self.options.limits;
        let len_bytes = incoming.len_bytes.saturating_sub(size_of::<AskRequest>());
        if let Some(why) = &incoming.refused {
            return Some(Outcome::Refused(why.clone()));
        }
        if self.options.command.is_none() {
            return Some(Outcome::Refused(no_command()));
        }
        if len_bytes > limits.text_bytes as usize {
            return Some(Outcome::Refused(format!(
                "the text has {len_bytes} bytes, the limit is {}\n  help: divide it, or start the compiler process with a wider limit (--request-bytes)",
                limits.text_bytes
            )));
        }
        if self.in_flight.get(&worker).copied().unwrap_or(0) >= limits.in_flight_per_worker {
            return Some(Outcome::Busy(
                "busy: as many requests of this worker are under way as may be\n  help: wait for one of them".to_owned(),
            ));
        }
        let (units, bytes) = self.compiler.holds.lock().usage(worker);
        if units >= limits.units_per_worker || bytes >= limits.unit_bytes_per_worker {
            return Some(Outcome::Refused(too_much(units, bytes)));
        }
        None
    }

    /// Lets a request wait for its text to be compiled, with others that ask for the same.
    fn join(&mut self, waiter: Waiter, text: Vec<u8>) -> Option<Outcome> {
        let name = unit_name(&text, self.cpu);
        if let Some(waiting) = self.waiting.get_mut(&name) {
            waiting.push(waiter);
        } else {
            let job = Job {
                name: name.clone(),
                text,
            };
            match self.jobs.try_send(job) {
                Ok(()) => drop(self.waiting.insert(name, vec![waiter])),
                Err(TrySendError::Full(_)) => {
                    return Some(Outcome::Busy(
                        "busy: too many texts wait to be compiled\n  help: ask again later"
                            .to_owned(),
                    ));
                }
                Err(TrySendError::Disconnected(_)) => {
                    return Some(Outcome::Refused(
                        "the compiler process is ending".to_owned(),
                    ));
                }
            }
        }
        *self.in_flight.entry(waiter.worker).or_default() += 1;
        None
    }

    /// What has come of requests since; `is_there` says whether a worker's connection is.
    pub(crate) fn answers(&mut self, is_there: impl Fn(u64, u64) -> bool) -> Vec<Answered> {
        let mut answers = Vec::new();
        while let Ok((name, result)) = self.done.try_recv() {
            let mut waiters = self.waiting.remove(&name).unwrap_or_default();
            for waiter in &waiters {
                if let Some(count) = self.in_flight.get_mut(&waiter.worker) {
                    *count -= 1;
                    if *count == 0 {
                        self.in_flight.remove(&waiter.worker);
                    }
                }
            }
            waiters.retain(|waiter| is_there(waiter.connection, waiter.worker));
            let outcomes = self.outcomes(&waiters, result);
            let answered = waiters.iter().zip(outcomes);
            answers.extend(
                answered.map(|(waiter, outcome)| (waiter.connection, outcome.payload(waiter.id))),
            );
        }
        self.sweep();
        answers
    }

    /// What each of `waiters` is told; who is told that a unit is there has it from now on.
    fn outcomes(&self, waiters: &[Waiter], result: Result<Granted, Outcome>) -> Vec<Outcome> {
        let granted = match result {
            Ok(granted) => granted,
            Err(why) => return vec![why; waiters.len()],
        };
        let limits = &self.options.limits;
        let mut holds = self.compiler.holds.lock();
        let mut given = Vec::new();
        let outcomes = waiters.iter().map(|waiter| {
            let (cost, has) = holds.cost(waiter.worker, granted.unit);
            let (units, bytes) = holds.usage(waiter.worker);
            let fits = units < limits.units_per_worker
                && bytes.saturating_add(cost) <= limits.unit_bytes_per_worker;
            if has || fits {
                given.push(waiter.worker);
                Outcome::Ready(granted)
            } else {
                Outcome::Refused(too_much(units, bytes + cost))
            }
        });
        let outcomes = outcomes.collect();
        holds.answer_given(granted.unit, &given);
        outcomes
    }

    /// Has units removed that nobody has any more.
    pub(crate) fn sweep(&self) {
        if self.compiler.holds.lock().has_unheld() {
            // A full channel has one in it already.
            let _ = self.sweeps.try_send(());
        }
    }

    /// How many units a worker may have.
    pub(crate) fn units_per_worker(&self) -> usize {
        self.options.limits.units_per_worker
    }

    /// Ends the threads, and the children that they wait for.
    pub(crate) fn end(self) {
        // Not by closing alone: a child that somebody forked in this process has a copy.
        let _ = self.ending.shutdown(Shutdown::Both);
        drop((self.jobs, self.sweeps));
        for thread in self.threads {
            let _ = thread.join();
        }
        // Nobody is told any more.
        let mut holds = self.compiler.holds.lock();
        for (_, result) in self.done.try_iter() {
            if let Ok(granted) = result {
                holds.answer_given(granted.unit, &[]);
            }
        }
    }
}

fn too_much(units: usize, bytes: u64) -> String {
    format!(
        "this worker would have {units} asked-for units or more, of {bytes} bytes, which exceeds its limits\n  help: drop functions that are not needed, or start the compiler process with wider limits (--request-units)"
    )
}

fn compile_all(
    compiler: &Compiler,
    how: &How<'_>,
    queue: &Receiver<Job>,
    results: &Sender<Done>,
    wake: &UnixStream,
) {
    for Job { name, text } in queue {
        // As for publications: whatever goes wrong in one, the next one is served.
        let start = Instant::now();
        let _span = tracing::info_span!("request", bytes = text.len()).entered();
        let run = || carry_out(compiler, how, &name, text);
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        let done = done.unwrap_or_else(|_| {
            let why =
                "the compiler process has a fault: it panicked\n  help: report this with the text";
            Err(Outcome::Refused(why.to_owned()))
        });
        compiler.metrics.answered(start.elapsed());
        match &done {
            Ok(_) => compiler.metrics.asked("ready"),
            Err(outcome) => outcome.note(compiler),
        }
        if results.send((name, done)).is_err() {
            return;
        }
        let _ = rustix::io::write(wake, &[0]);
    }
}

/// Removes what nobody has: when asked to, when what a journal brought back has been waited for, and again when it failed.
fn sweep_all(compiler: &Compiler, swept: &Receiver<()>) {
    let mut retry = false;
    loop {
        let linger = compiler.holds.lock().linger_ends();
        let linger = linger.map(|end| end.saturating_duration_since(Instant::now()));
        let next = linger.into_iter().chain(retry.then_some(RETRY)).min();
        let asked = match next {
            Some(next) => swept.recv_timeout(next),
            None => swept.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        if asked == Err(RecvTimeoutError::Disconnected) {
            return;
        }
        let run = || compiler.remove_unheld();
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        retry = !matches!(done, Ok(Ok(_)));
        if let Ok(Err(error)) = done {
            tracing::warn!(%error, "asked-for units that nobody has cannot be removed for now");
        }
    }
}
