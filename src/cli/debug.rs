//! `jitcast debug`: what running workers show to debuggers and profilers.

use std::process::ExitCode;

use jitcast::compiler::request::{self, WantRequest};
use jitcast::runtime::debug::Wanted;

use super::Failure;
use super::args::DebugArgs;
use super::publish::connect;

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
    Ok(ExitCode::SUCCESS)
}
