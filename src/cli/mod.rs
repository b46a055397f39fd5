//! The command line: one file for each subcommand.

// First: its macros are everybody's.
#[macro_use]
mod output;

mod args;
mod change;
mod children;
mod color;
mod debug;
mod directory;
mod dis;
mod fuzz;
mod link;
mod map;
mod memory;
mod metrics;
mod observe;
mod oracle;
mod perf_resolve;
mod places;
mod preload;
mod progress;
mod publish;
mod report;
mod resident;
mod run;
mod serve;
mod service;
mod signals;
mod status;
mod watch;
mod why;
mod worker;

use std::fmt::Display;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;
use jitcast::compiler::request::Decision;
use tracing_subscriber::fmt::format::FmtSpan;

use args::{Args, Command};

/// A failure, as it is shown. The parts below have said what, where, why and what to do.
#[derive(Debug)]
struct Failure(String);

impl<E: Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

pub(crate) fn main() -> ExitCode {
    let args = color::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("JITCAST_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(color::wanted(args.color))
        .with_span_events(FmtSpan::CLOSE)
        .init();
    let only_shows = matches!(
        args.command,
        Command::History(_)
            | Command::Link(_)
            | Command::Status(_)
            | Command::Map(_)
            | Command::Dis(_)
            | Command::PerfResolve(_)
            | Command::Why(_)
            | Command::Completions { .. }
    );
    if only_shows && let Err(error) = signals::end_with_the_reader() {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    let done = match args.command {
        Command::Run(args) => run::run(&args),
        Command::Serve(args) => serve::serve(&args),
        Command::Publish(args) => publish::publish(&args),
        Command::Promote(args) => change::decide(&args, Decision::Promote),
        Command::Abort(args) => change::decide(&args, Decision::Abort),
        Command::Remove(args) => change::remove(&args),
        Command::Quarantine(args) => change::quarantine(&args),
        Command::Restore(args) => change::restore(&args),
        Command::Rollback(args) => change::rollback(&args),
        Command::Renew(args) => change::renew(&args),
        Command::History(args) => status::history(&args),
        Command::Link(args) => link::link(&args),
        Command::Worker(args) => worker::worker(&args),
        Command::Status(args) => status::status(&args),
        Command::Map(args) => map::map(&args),
        Command::Dis(args) => dis::dis(&args),
        Command::Debug(args) => debug::debug(&args),
        Command::PerfResolve(args) => perf_resolve::resolve(&args),
        Command::Why(args) => why::why(&args),
        Command::Fuzz(args) => fuzz::fuzz(&args),
        Command::Oracle(args) => oracle::oracle(&args),
        Command::Completions { shell } => Ok(completions(shell)),
        Command::Codegen => Ok(jitcast::compiler::codegen()),
    };
    let code = done.unwrap_or_else(|Failure(text)| {
        eprintln!("error: {text}");
        ExitCode::FAILURE
    });
    if output::is_complete() {
        code
    } else {
        ExitCode::FAILURE
    }
}

/// Prints what completes the command line in `shell`.
fn completions(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    // Into memory, since it panics where it cannot write.
    clap_complete::generate(shell, &mut Args::command(), "jitcast", &mut script);
    print!("{}", String::from_utf8_lossy(&script));
    ExitCode::SUCCESS
}
