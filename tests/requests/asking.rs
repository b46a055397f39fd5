//! Asking for units, for tests of it.

#![allow(
    dead_code,
    reason = "each test file is a crate of its own and uses some of the helpers"
)]

use jitcast::compiler::{AskedStatus, RequestLimits};
use jitcast::worker::{AskedUnit, Function, RequestError, Worker};

use crate::common::host::Host;
use crate::common::process::{PATIENCE, Process, await_some};
use crate::common::scratch::adds;
use crate::common::{remote, role};
use crate::units::Code;

pub(crate) const ASKS: &str = "asks";

pub(crate) fn host() -> Host {
    Host::compiling(RequestLimits::default())
}

/// Asks, and waits for the unit.
pub(crate) fn request(worker: &Worker, clif: &str) -> Result<AskedUnit, RequestError> {
    let mut pending = worker.request(clif)?;
    assert!(pending.wait(Some(PATIENCE)), "no answer came");
    let guard = worker.enter().unwrap();
    pending.unit(&guard)
}

#[track_caller]
pub(crate) fn ask(worker: &Worker, clif: &str) -> AskedUnit {
    request(worker, clif).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
pub(crate) fn function(worker: &Worker, unit: &AskedUnit, name: &str) -> Function<Code> {
    let guard = worker.enter().unwrap();
    let function = unit.function(&guard, name);
    function.unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
pub(crate) fn result(worker: &Worker, function: &Function<Code>, argument: i64) -> i64 {
    function.call(&worker.enter().unwrap(), argument)
}

/// The reason of a refusal.
#[track_caller]
pub(crate) fn refused(result: Result<AskedUnit, RequestError>) -> String {
    match result {
        Err(RequestError::Refused { reason }) => reason,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn asked(host: &Host) -> Vec<AskedStatus> {
    host.compiler.status().asked
}

/// Waits until there are so many. `workers` look after their connections meanwhile, as hosts do: one that was at it when a handle was
/// dropped (a fork of this process holds it for a moment) says so then.
#[track_caller]
pub(crate) fn await_asked(host: &Host, workers: &[&Worker], count: usize) {
    await_some("another number of asked-for units", || {
        workers.iter().for_each(|worker| worker.tend());
        (asked(host).len() == count).then_some(())
    });
}

/// The role: asks for what the test says, and does with it what the test says.
pub(crate) fn asks(target: &str) {
    let worker = remote::attach(target);
    role::report("there");
    let mut unit = None;
    let mut function: Option<Function<Code>> = None;
    while let Some(line) = role::next_line() {
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["ask", name, bonus] => {
                let asked = request(&worker, &adds(name, bonus.parse().unwrap()));
                role::report(
                    asked
                        .as_ref()
                        .map_or_else(ToString::to_string, |unit| unit.name().to_owned()),
                );
                unit = asked.ok();
                function = unit
                    .as_ref()
                    .map(|unit| self::function(&worker, unit, name));
            }
            ["call", argument] => {
                let argument = argument.parse().unwrap();
                role::report(result(&worker, function.as_ref().unwrap(), argument));
            }
            ["drop"] => {
                (unit, function) = (None, None);
                role::report("dropped");
            }
            _ => panic!("unknown command `{line}`"),
        }
    }
    drop((unit, function));
}

pub(crate) fn asker(socket: &str) -> Process {
    let mut process = role::start(ASKS, socket);
    assert_eq!(role::next_report(&mut process), "there");
    process
}

pub(crate) fn say(process: &mut Process, line: &str) -> String {
    process.send(line);
    role::next_report(process)
}

/// CLIF of a function of so many blocks.
pub(crate) fn huge(blocks: usize) -> String {
    let mut text =
        "function %f(i64) -> i64 {\nblock0(v0: i64):\n    brif v0, block1(v0), block1(v0)\n"
            .to_owned();
    for block in 1..=blocks {
        let next = if block == blocks { 1 } else { block + 1 };
        text += &format!(
            "block{block}(v{block}0: i64):\n    v{block}2 = iconst.i64 {block}\n    v{block}1 = imul v{block}0, v{block}2\n    brif v{block}1, block{next}(v{block}1), block{blocks}(v{block}0)\n"
        );
    }
    text + "}\n"
}
