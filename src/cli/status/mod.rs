//! `jitcast status`: what is published, who runs it, how full the segment is, and what went wrong lately.
//!
//! Invariant: it only looks. The compiler process is asked; where it is not there, what the segment says is shown, and what workers say.

mod holding;
mod segment;
mod show;

use std::process::ExitCode;

use jitcast::compiler::{Status, WorkerStatus, request};
use jitcast::runtime::observer::Observer;
use serde::Serialize;

use super::Failure;
use super::args::{HistoryArgs, StatusArgs};
use super::directory::{Directory, Import};
use super::observe::{self, Holds, Inside};
use super::publish::connect;
use super::resident;

/// Who was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Source {
    CompilerProcess,
    /// The segment alone.
    Segment,
}

/// The status. docs/json.md describes it.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    source: Source,
    #[serde(flatten)]
    status: &'a Status,
}

pub(super) fn status(args: &StatusArgs) -> Result<ExitCode, Failure> {
    let (source, mut status, observer) = find(args)?;
    // Where that cannot be had, nobody has looked.
    if let Some(observer) = observer {
        look_inside(&observer, &mut status.workers);
    }
    if args.json {
        let shown = Shown {
            source,
            status: &status,
        };
        println!("{}", serde_json::to_string_pretty(&shown)?);
    } else {
        show::show(&status, source);
    }
    Ok(ExitCode::SUCCESS)
}

/// The status, by whom, and the segment, if it can be looked at.
fn find(args: &StatusArgs) -> Result<(Source, Status, Option<Observer>), Failure> {
    if let Some(socket) = &args.socket {
        let status = request::status(connect(socket)?)?;
        return Ok((
            Source::CompilerProcess,
            status,
            observe::observe_at(socket).ok(),
        ));
    }
    if let Some(pid) = args.pid {
        let (observer, mailbox) = holding::of_worker(pid).map_err(Failure)?;
        let workers: Vec<_> = mailbox.map(|mailbox| (pid, mailbox)).into_iter().collect();
        let status = segment::status(&observer, None, &workers)?;
        return Ok((Source::Segment, status, Some(observer)));
    }
    let name = args.name.as_deref().unwrap_or_default();
    let observer = observe::observe_named(name)?;
    let socket = observe::stated_socket(&observer);
    let asked = (!socket.is_empty())
        .then(|| connect(&socket).ok())
        .flatten();
    if let Some(Ok(status)) = asked.map(request::status) {
        return Ok((Source::CompilerProcess, status, Some(observer)));
    }
    let workers = holding::workers_of(&observer, name);
    let status = segment::status(&observer, Some(name), &workers)?;
    Ok((Source::Segment, status, Some(observer)))
}

/// The segment that process `pid` is a worker of.
pub(super) fn of_worker(pid: i32) -> Result<Observer, Failure> {
    let (observer, _) = holding::of_worker(pid).map_err(Failure)?;
    Ok(observer)
}

/// Adds what workers have in their memory, as far as that may be read.
fn look_inside(observer: &Observer, workers: &mut [WorkerStatus]) {
    let imports = || observer.look(|look| Ok::<_, Failure>(Directory::read(look)?.imports));
    let wanted = workers.iter().any(|worker| worker.missing > 0);
    let imports = wanted.then(imports).and_then(Result::ok);
    let window_bytes = observer.geometry().window().len_bytes;
    for worker in workers {
        let Ok(inside) = Inside::open(worker, observer) else {
            continue;
        };
        let resident = resident::of_window(&worker.pid.to_string(), worker.base, window_bytes);
        worker.private_bytes = resident.ok().map(|(_, private)| private);
        worker.lacks = match (worker.missing, &imports) {
            (0, _) => Some(Vec::new()),
            (_, Some(imports)) => {
                let lacking = imports.values().filter(|import| lacks(&inside, import));
                let named = |import: &Import| {
                    let signature = import.signature.as_deref().unwrap_or_default();
                    format!("{}{signature}", import.name)
                };
                Some(lacking.map(named).collect())
            }
            (_, None) => None,
        };
    }
}

/// Whether the worker's cell of a host symbol leads to the trap that reports it as missing.
fn lacks(inside: &Inside, import: &Import) -> bool {
    let record = &import.record;
    let cells = [record.call_cell, record.address_cell];
    let cell = cells.into_iter().find(|cell| !cell.is_none());
    cell.is_some_and(|cell| inside.holds(cell) == Some(Holds::Place(record.trap)))
}

/// `jitcast history`: what can be rolled back to.
pub(super) fn history(args: &HistoryArgs) -> Result<ExitCode, Failure> {
    let status = request::status(connect(&args.socket)?)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status.history)?);
    } else {
        show::history(&status);
    }
    Ok(ExitCode::SUCCESS)
}
