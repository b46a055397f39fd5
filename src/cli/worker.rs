//! `jitcast worker`: attach and call.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use jitcast::runtime::signature::{CallExpr, Signature};
use jitcast::runtime::sys;
use jitcast::worker::invoke::invoke;
use jitcast::worker::{
    Endpoint, Event as WorkerEvent, Guard, HostTable, Log, LookupError, Worker, WorkerOptions,
};

use super::Failure;
use super::args::WorkerArgs;
use super::output::lost;
use super::report::{Event, Report, Row, table};
use super::resident;

/// How many rounds of calls a watching worker makes before it looks around.
const ROUNDS: u32 = 1000;

pub(super) fn worker(args: &WorkerArgs) -> Result<ExitCode, Failure> {
    if args.with_parent {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    }
    let mut host = HostTable::default();
    for library in &args.libs {
        host.load(library)?;
    }
    let endpoint = match (&args.socket, &args.name) {
        (Some(socket), _) => Endpoint::Path(Path::new(socket)),
        (None, Some(name)) => Endpoint::Name(name),
        (None, None) => return Err(Failure("give --socket or --name".into())),
    };
    let options = WorkerOptions {
        label: args.label.clone(),
        host,
        log: Log::new(|event| {
            if let WorkerEvent::NotShown { .. } = event {
                eprintln!("warning: {event}");
            }
        }),
        ..WorkerOptions::default()
    };
    let worker = Worker::attach(endpoint, options)?;
    if args.json {
        emit(&Event::Ready {
            pid: std::process::id(),
        })?;
    }
    let report = first_calls(&worker, args)?;
    let succeeded = report.results.iter().all(Result::is_ok);
    show(args, &report)?;
    if args.watch {
        watch(&worker, args, &report)?;
    }
    Ok(if succeeded {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Waits until everything is published that is to be called, and calls it.
fn first_calls(worker: &Worker, args: &WorkerArgs) -> Result<Report, Failure> {
    let deadline = Instant::now() + Duration::from_secs(args.wait.min(1 << 30));
    loop {
        let guard = worker.enter()?;
        let seen = guard.generation();
        let published = |call: &CallExpr| {
            !matches!(
                worker.symbol(&guard, &call.name),
                Err(LookupError::NotFound { .. })
            )
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || args.calls.iter().all(published) {
            return call_all(worker, &guard, &args.calls);
        }
        drop(guard);
        worker.wait(seen, Some(left));
    }
}

fn call_all(worker: &Worker, guard: &Guard<'_>, calls: &[CallExpr]) -> Result<Report, Failure> {
    let mut latency_ns = None;
    let mut results = Vec::new();
    for call in calls {
        let result = call_one(worker, guard, call);
        if latency_ns.is_none() && result.is_ok() {
            latency_ns = Some(sys::monotonic_ns().saturating_sub(worker.published_ns(guard)?));
        }
        results.push(result);
    }
    let base = worker.stats().base.get();
    let (shared_bytes, private_bytes) =
        resident::of_window("self", base, worker.geometry().window().len_bytes)?;
    Ok(Report {
        pid: std::process::id(),
        base,
        generation: guard.generation(),
        results,
        latency_ns: latency_ns.unwrap_or(0),
        shared_bytes,
        private_bytes,
    })
}

fn call_one(worker: &Worker, guard: &Guard<'_>, call: &CallExpr) -> Result<String, String> {
    let symbol = worker
        .symbol(guard, &call.name)
        .map_err(|error| error.to_string())?;
    let recorded = symbol
        .signature
        .as_deref()
        .map(str::parse::<Signature>)
        .transpose();
    let recorded = recorded.map_err(|error| error.to_string())?;
    let (signature, values) = call
        .resolve(recorded.as_ref())
        .map_err(|error| error.to_string())?;
    let entry = core::ptr::with_exposed_provenance(symbol.stub.get() as usize);
    // SAFETY: the stub leads to a published function whose signature was recorded, or is what the user says it
    // is; the guard keeps it.
    let result =
        unsafe { invoke(entry, &signature, &values) }.map_err(|error| error.to_string())?;
    Ok(result.map_or_else(|| "()".to_owned(), |value| value.to_string()))
}

/// Calls on and on; reports whenever another generation runs.
fn watch(worker: &Worker, args: &WorkerArgs, first: &Report) -> Result<(), Failure> {
    let mut generation = first.generation;
    loop {
        for _ in 0..ROUNDS {
            let guard = worker.enter()?;
            if guard.generation() == generation {
                for call in &args.calls {
                    // What fails was reported when this generation came.
                    let _ = call_one(worker, &guard, call);
                }
            } else {
                generation = guard.generation();
                show(args, &call_all(worker, &guard, &args.calls)?)?;
            }
        }
        worker.wait(generation, Some(Duration::from_millis(1)));
    }
}

fn show(args: &WorkerArgs, report: &Report) -> Result<(), Failure> {
    if args.json {
        return emit(&Event::Called(report.clone()));
    }
    for error in report
        .results
        .iter()
        .filter_map(|result| result.as_ref().err())
    {
        eprintln!("error: {error}");
    }
    let calls: Vec<_> = args.calls.iter().map(ToString::to_string).collect();
    println!("{}", table(&calls, &[Row::Done(report.clone())]));
    Ok(())
}

fn emit(event: &Event) -> Result<(), Failure> {
    let event = serde_json::to_string(event)?;
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{event}").and_then(|()| out.flush());
    Ok(written.map_err(lost)?)
}
