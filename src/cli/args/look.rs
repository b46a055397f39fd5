//! What only looks: `status`, `history`, `dis`, `why`, and what profilers and debuggers need.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};

#[derive(Debug, ClapArgs)]
#[command(group(clap::ArgGroup::new("where").args(["socket", "name", "pid"]).required(true)))]
pub(in crate::cli) struct StatusArgs {
    /// The compiler process's socket.
    #[arg(long)]
    pub(in crate::cli) socket: Option<String>,
    /// A named segment. If its compiler process is not there, what the segment itself says.
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) name: Option<String>,
    /// A worker: what its segment says, a sealed one too, and what it says itself, whether its compiler process is there or not.
    #[arg(long, value_name = "PID")]
    pub(in crate::cli) pid: Option<i32>,
    /// As JSON.
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, ClapArgs)]
#[command(group(clap::ArgGroup::new("where").args(["socket", "name", "pid"]).required(true)))]
pub(in crate::cli) struct MapArgs {
    /// The compiler process's socket.
    #[arg(long)]
    pub(in crate::cli) socket: Option<String>,
    /// A named segment. If its compiler process is not there, nobody knows what is free or retired.
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) name: Option<String>,
    /// A worker, of whose segment nobody is asked; what is free or retired is not known then.
    #[arg(long, value_name = "PID")]
    pub(in crate::cli) pid: Option<i32>,
    /// The file to write.
    #[arg(short, long, value_name = "FILE", default_value = "map.html")]
    pub(in crate::cli) output: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct HistoryArgs {
    /// The compiler process's socket.
    #[arg(long)]
    pub(in crate::cli) socket: String,
    /// As JSON.
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

/// A segment to look at.
#[derive(Debug, Clone, ClapArgs)]
#[group(required = true, multiple = true)]
pub(in crate::cli) struct ObserveArgs {
    /// The compiler process's socket.
    #[arg(long)]
    pub(in crate::cli) socket: Option<String>,
    /// A named segment, whose compiler process need not be there.
    #[arg(long, value_name = "NAME", conflicts_with = "socket")]
    pub(in crate::cli) name: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct DisArgs {
    /// The function.
    pub(in crate::cli) symbol: String,
    /// The unit whose function it is, by its name or its number: for functions that are not published themselves, static ones
    /// and those of units that workers asked for. The newest one of that name.
    #[arg(long, value_name = "UNIT|NUMBER")]
    pub(in crate::cli) unit: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) segment: ObserveArgs,
    /// Show the version that this worker runs, at its addresses there, and what its cells hold.
    #[arg(long, value_name = "PID")]
    pub(in crate::cli) worker: Option<i32>,
    /// How instructions are written.
    #[arg(long, value_enum, default_value_t)]
    pub(in crate::cli) syntax: Syntax,
    /// As JSON.
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct DebugArgs {
    /// The compiler process's socket.
    #[arg(long)]
    pub(in crate::cli) socket: String,
    /// Only the worker of this process [default: all that are attached].
    #[arg(long, value_name = "PID")]
    pub(in crate::cli) worker: Option<i32>,
    /// Functions for gdb: names in backtraces, breakpoints by name. The default, unless files are asked for.
    #[arg(long)]
    pub(in crate::cli) gdb: bool,
    /// Lines and arguments besides, where debugging information says them: for gdb, and lines in a jitdump.
    #[arg(long)]
    pub(in crate::cli) lines: bool,
    /// A jitdump for perf: `jit-PID.dump`, in /tmp or where the worker was told.
    #[arg(long)]
    pub(in crate::cli) jitdump: bool,
    /// A list of functions: `perf-PID.map`, likewise.
    #[arg(long)]
    pub(in crate::cli) perf_map: bool,
    /// Nothing any more, whatever the worker was started with.
    #[arg(long, conflicts_with_all = ["gdb", "lines", "jitdump", "perf_map"])]
    pub(in crate::cli) off: bool,
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct PerfResolveArgs {
    #[command(flatten)]
    pub(in crate::cli) segment: ObserveArgs,
    /// Take names from this list, as `perf-PID.map`, for addresses of that process.
    #[arg(long, value_name = "FILE", group = "ObserveArgs", conflicts_with_all = ["socket", "name"])]
    pub(in crate::cli) map: Option<PathBuf>,
    /// What `perf script` or `perf report` printed [default: standard input].
    pub(in crate::cli) file: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct WhyArgs {
    /// The name.
    pub(in crate::cli) symbol: String,
    #[command(flatten)]
    pub(in crate::cli) segment: ObserveArgs,
    /// As JSON.
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

/// How instructions are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Syntax {
    /// Intel's, as in its manuals.
    #[default]
    Intel,
    /// AT&T's, as GNU tools have it.
    #[value(alias = "gnu")]
    Att,
}
