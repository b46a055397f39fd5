//! `jitcast debug`: what running workers show to debuggers and profilers.

use std::process::ExitCode;

use jitcast::compiler::request::{self, WantRequest};
use jitcast::runtime::debug::Wanted;
use jitcast::runtime::geometry::Area;

use super::args::{DebugArgs, ObserveArgs};
use super::publish::connect;
use super::{Failure, observe};

pub(super) fn debug(args: &DebugArgs) -> Result<ExitCode, Failure> {
    let writes = args.jitdump || args.perf_map;
    let wanted = Wanted {
        names: !args.off && (args.gdb || !writes),
        lines: args.lines,
        jitdump: args.jitdump,
        perf_map: args.perf_map,
    };
    let request = WantRequest {
        pid: args.worker,
        wanted: wanted.word(),
    };
    let done = request::want(connect(&args.socket)?, &request)?;
    let who = args
        .worker
        .map_or_else(|| "every worker".to_owned(), |pid| format!("worker {pid}"));
    let parts = [
        (wanted.names, "functions to gdb"),
        (wanted.lines, "their lines"),
        (wanted.jitdump, "a jitdump"),
        (wanted.perf_map, "perf-PID.map"),
    ];
    let shown: Vec<_> = parts
        .into_iter()
        .filter_map(|(is, what)| is.then_some(what))
        .collect();
    let shown = if shown.is_empty() {
        "nothing".to_owned()
    } else {
        shown.join(", ")
    };
    println!("generation {}: {who} shows {shown}", done.generation);
    if let Some(pid) = args.worker.filter(|_| wanted.names) {
        hint(args, pid)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Says how to begin. Not even a debugger can write to published text, so its breakpoints have to be the processor's: gdb makes
/// them so where it knows that memory cannot be written to.
fn hint(args: &DebugArgs, pid: i32) -> Result<(), Failure> {
    let segment = ObserveArgs {
        socket: Some(args.socket.clone()),
        name: None,
    };
    let observer = observe::observe(&segment)?;
    let status = observe::status(&segment, &observer)?;
    let worker = status.workers.iter().find(|worker| worker.pid == pid);
    let Some(worker) = worker.filter(|worker| worker.base != 0) else {
        return Ok(());
    };
    let geometry = observer.geometry();
    let (start, end) = (
        geometry.region(Area::Stubs).start,
        geometry.region(Area::Text).end(),
    );
    let address = |offset: u32| worker.base.wrapping_add(offset.into());
    println!(
        "gdb -p {pid} -ex 'set mem inaccessible-by-default off' -ex 'mem {:#x} {:#x} ro'",
        address(start),
        address(end)
    );
    Ok(())
}
