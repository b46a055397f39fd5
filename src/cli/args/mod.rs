//! What can be written on the command line.

mod linker;
mod look;
mod publish;
mod serve;
mod unit;
mod work;

use clap::{ColorChoice, Parser, Subcommand};
use clap_complete::Shell;

pub(super) use linker::{FuzzArgs, LinkArgs, OracleArgs};
pub(super) use look::{
    DebugArgs, DisArgs, HistoryArgs, MapArgs, ObserveArgs, PerfResolveArgs, StatusArgs, Syntax,
    WhyArgs,
};
pub(super) use publish::{
    DecideArgs, PublishArgs, QuarantineArgs, RemoveArgs, RenewArgs, RestoreArgs, RollbackArgs,
};
pub(super) use serve::{RequestArgs, ServeArgs, Who};
pub(super) use unit::{Cpu, SegmentArgs, UnitArgs};
pub(super) use work::{RunArgs, WorkerArgs};

/// Compile once, link once, run in every worker.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    propagate_version = true,
    after_help = "Exit status: 0 done, 1 failed, 2 wrong usage. Data go to standard output, everything else to standard error.\n\n\
                  Environment: JITCAST_LOG says what is logged, as `info` or `jitcast_compiler=debug`; NO_COLOR is heeded."
)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Command,
    /// Colours in messages and in what is logged: always, never, or where a terminal shows them and NO_COLOR is not set.
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value_t,
        hide_possible_values = true
    )]
    pub(super) color: ColorChoice,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Compile files, link them once, and call functions in worker processes.
    #[command(
        after_help = "Example:\n  jitcast run examples/score.clif --call 'score(21)' --workers 4"
    )]
    Run(RunArgs),
    /// Be the compiler process: let workers attach and publishers publish.
    #[command(
        after_help = "A service manager may hand the socket over (LISTEN_FDS), and is told when workers are served \
                      (NOTIFY_SOCKET).\n\nExamples:\n  jitcast serve --socket /run/jitcast.sock --allow-attach uid:33\n  \
                      jitcast serve --socket /run/jitcast.sock --preload score.clif + table.o libfoo.a"
    )]
    Serve(ServeArgs),
    /// Publish units through a running compiler process.
    #[command(
        after_help = "A `+` between files begins another unit; all of them, and what is removed, quarantined and restored \
                      with them, become visible as one.\n\nExamples:\n  jitcast publish --socket /run/jitcast.sock \
                      examples/score.clif\n  jitcast publish --socket /run/jitcast.sock table.c + reader.c libfoo.a \
                      --remove old\n  jitcast publish --socket /run/jitcast.sock score.clif --canary 2"
    )]
    Publish(PublishArgs),
    /// Let every worker run a canary, in place of what it replaces.
    #[command(
        after_help = "Workers that run it already go on as they are: no constructor runs again.\n\nExample:\n  jitcast \
                      promote --socket /run/jitcast.sock score"
    )]
    Promote(DecideArgs),
    /// Let nobody run a canary any more.
    #[command(
        after_help = "What it was to replace was there all the time, and goes on with the data that it has.\n\nExample:\n  \
                      jitcast abort --socket /run/jitcast.sock score"
    )]
    Abort(DecideArgs),
    /// Remove published units.
    #[command(after_help = "Example:\n  jitcast remove --socket /run/jitcast.sock score")]
    Remove(RemoveArgs),
    /// Move functions to the fallbacks that hosts gave for them, until they are restored.
    #[command(
        after_help = "Every worker does so at its next guard, also one that attaches later, whatever is published under \
                      the name meanwhile. Where a host gave no fallback, a call ends its process. Calls inside the \
                      function's own unit go on.\n\nExample:\n  jitcast quarantine --socket /run/jitcast.sock score"
    )]
    Quarantine(QuarantineArgs),
    /// Put quarantined functions back.
    #[command(after_help = "Example:\n  jitcast restore --socket /run/jitcast.sock score")]
    Restore(RestoreArgs),
    /// Publish again what an earlier generation had, for the units that have changed since.
    #[command(after_help = "Example:\n  jitcast rollback --socket /run/jitcast.sock")]
    Rollback(RollbackArgs),
    /// Go on in another shared object, with memory only for what is published: gives memory back to the system.
    #[command(after_help = "Example:\n  jitcast renew --socket /run/jitcast.sock")]
    Renew(RenewArgs),
    /// Show what can be rolled back to.
    #[command(after_help = "Example:\n  jitcast history --socket /run/jitcast.sock")]
    History(HistoryArgs),
    /// Link files without publishing them, and tell what the linker does with them.
    #[command(after_help = "Example:\n  jitcast link --explain --map score.o libfoo.a")]
    Link(LinkArgs),
    /// Be a worker: attach and call functions.
    #[command(
        after_help = "Example:\n  jitcast worker --socket /run/jitcast.sock --call 'score(21)'"
    )]
    Worker(WorkerArgs),
    /// Show what is published, who runs it, how full the segment is, and what went wrong lately.
    #[command(
        after_help = "Examples:\n  jitcast status --socket /run/jitcast.sock --json\n  jitcast status --pid 4711"
    )]
    Status(StatusArgs),
    /// Draw where everything lies: one page that opens in a browser, without a network.
    #[command(after_help = "Example:\n  jitcast map --socket /run/jitcast.sock -o map.html")]
    Map(MapArgs),
    /// Show the code of a published function.
    #[command(
        after_help = "What code reaches is called by its name: `f` is code or a stub, `f@call` the cell that calls of f go \
                      through, `f@addr` the cell that holds its address, `f@trap` what reports a host symbol as \
                      missing.\n\nExamples:\n  jitcast dis score --socket /run/jitcast.sock\n  jitcast dis score --socket \
                      /run/jitcast.sock --worker 4711 --syntax att"
    )]
    Dis(DisArgs),
    /// Let running workers show what is published to debuggers and profilers.
    #[command(
        after_help = "Each worker does so at its next guard. One that nobody can ask (its compiler process is gone, or it was \
                      started before there was one) does so if JITCAST_DEBUG is set in its environment: gdb, lines, jitdump, \
                      perf-map, dir=FOLDER, with commas between.\n\nExamples:\n  jitcast debug --socket /run/jitcast.sock \
                      --worker 4711 --lines && gdb -p 4711\n  jitcast debug --socket /run/jitcast.sock --jitdump --lines\n  \
                      jitcast debug --socket /run/jitcast.sock --off"
    )]
    Debug(DebugArgs),
    /// Give names to what perf shows of published code as numbers.
    #[command(
        name = "perf-resolve",
        after_help = "perf knows no symbols of what lies in a segment, nor takes those of perf-PID.map for it. A jitdump tells it \
                      (`jitcast debug --jitdump`); this is for what was recorded without. Addresses of processes that have ended \
                      need `--show-mmap-events`.\n\nExamples:\n  perf script --show-mmap-events | jitcast perf-resolve --socket \
                      /run/jitcast.sock\n  perf report --stdio | jitcast perf-resolve --socket /run/jitcast.sock"
    )]
    PerfResolve(PerfResolveArgs),
    /// Show what becomes of a name: where it is defined, who runs which version, and what is in its way.
    #[command(
        after_help = "It looks into the workers' memory where it may (as a debugger does), and else goes by what they say.\n\n\
                      Exit status: 0 the name is published, if only for a canary, 1 it is not, or the command failed.\n\nExample:\n  jitcast why score --socket /run/jitcast.sock"
    )]
    Why(WhyArgs),
    /// Fuzz the linker: random objects, every relocated field compared with an independent oracle.
    #[command(after_help = "Example:\n  jitcast fuzz --seed 7 --time 60 --save found/")]
    Fuzz(FuzzArgs),
    /// Print a script that completes commands and options in a shell.
    #[command(after_help = "Example:\n  jitcast completions bash > /etc/bash_completion.d/jitcast")]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Compile one request of a worker, from standard input to standard output: what `serve` starts for each.
    #[command(hide = true)]
    Codegen,
    /// Judge a file that any linker made from objects: does every relocated field hold what it must?
    #[command(
        after_help = "Example:\n  ld -o linked.elf a.o b.o\n  jitcast oracle --object a.o --object b.o --image linked.elf"
    )]
    Oracle(OracleArgs),
}
