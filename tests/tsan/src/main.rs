//! The driver for ThreadSanitizer: everything of the runtime that several threads do at once, in one process, which is compiler
//! process and worker together. `.ci/tsan` builds and runs it; what that sees, and what it cannot, says ARCHITECTURE.md.
//!
//! No test harness, whose threads would be in the reports. Fails if too little happened. The argument says for how many seconds; with
//! `codegen` in its place it compiles what a worker asks for.

#[cfg(tsan)]
mod fences;
mod mailboxes;
mod tally;
mod units;
mod whole;

use std::process::ExitCode;
use std::time::Duration;

use tally::Tally;

jitcast_worker::embed!();

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next().unwrap_or_default();
    if first == "codegen" {
        return jitcast_compiler::codegen();
    }
    let Ok(seconds) = first.parse() else {
        eprintln!("usage: jitcast-tsan SECONDS");
        return ExitCode::from(2);
    };
    let tally = Tally::default();
    mailboxes::run(&tally);
    whole::run(&tally, Duration::from_secs(seconds));
    tally.report()
}
