//! A worker process that does what the test says, line by line.

use std::path::Path;
use std::process::Command;

use jitcast::worker::{Endpoint, Worker, WorkerOptions};
use rustix::process::Signal;

use super::process::Process;
use super::{role, smaps};

/// The name of the role.
pub(crate) const ROLE: &str = "worker";

/// Attaches to `target`: a socket, or, after `name:`, a named segment.
pub(crate) fn attach(target: &str) -> Worker {
    let endpoint = match target.strip_prefix("name:") {
        Some(name) => Endpoint::Name(name),
        None => Endpoint::Path(Path::new(target)),
    };
    Worker::attach(endpoint, WorkerOptions::default()).unwrap_or_else(|error| panic!("{error}"))
}

/// Calls the published function `name`, of the signature `(i64) -> i64`.
pub(crate) fn call(worker: &Worker, name: &str, argument: i64) -> Result<i64, String> {
    let guard = worker.enter().map_err(|error| error.to_string())?;
    let function = worker
        .function::<extern "C" fn(i64) -> i64>(&guard, name)
        .map_err(|error| error.to_string())?;
    Ok(function.call(&guard, argument))
}

/// Where the function `name` is, as distances from the base: its stub, its code and its cells.
fn places(worker: &Worker, name: &str) -> String {
    let guard = worker.enter().unwrap();
    let base = worker.stats().base.get();
    match worker.symbol(&guard, name) {
        Ok(symbol) => format!(
            "{:#x} {:#x}",
            symbol.stub.get() - base,
            symbol.code.get() - base
        ),
        Err(error) => error.to_string(),
    }
}

/// The role: attaches, reports its base, and obeys until its input ends.
pub(crate) fn play(target: &str) {
    let worker = attach(target);
    role::report(worker.stats().base.get());
    while let Some(line) = role::next_line() {
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["call", name, argument] => {
                let result = call(&worker, name, argument.parse().unwrap());
                role::report(result.map_or_else(|error| error, |value| value.to_string()));
            }
            ["place", name] => role::report(places(&worker, name)),
            ["generation"] => role::report(worker.poll().unwrap().generation()),
            ["tend"] => {
                worker.tend();
                role::report(worker.is_connected());
            }
            ["mappings"] => role::report(smaps::of_window(&worker).len()),
            ["smaps"] => role::report(smaps::faults(&worker).join("; ")),
            _ => panic!("unknown command `{line}`"),
        }
    }
}

/// The test's end of it.
#[derive(Debug)]
pub(crate) struct Remote {
    process: Process,
    base: u64,
}

impl Remote {
    /// Starts a worker process that attaches to `target`.
    pub(crate) fn start(target: &str) -> Self {
        Self::start_as(&mut role::command(ROLE, target))
    }

    /// Starts one by a command of the role that was prepared.
    pub(crate) fn start_as(command: &mut Command) -> Self {
        let mut process = Process::start_listening(command);
        let base = role::next_report(&mut process).parse().unwrap();
        Self { process, base }
    }

    /// The base of its window.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Has it do something, and gives its report.
    #[track_caller]
    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.process.send(line);
        role::next_report(&mut self.process)
    }

    /// What it gets for `name(argument)`.
    #[track_caller]
    pub(crate) fn call(&mut self, name: &str, argument: i64) -> String {
        self.ask(&format!("call {name} {argument}"))
    }
}
