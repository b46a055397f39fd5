//! What can be written on the command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, ColorChoice, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use jitcast::compiler::front;
use jitcast::compiler::{Audience, DEFAULT_RETAIN, LinkOptions, PublishOptions, Reclaim};
use jitcast::runtime::signature::{CallExpr, NamedSignature};

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
    History(StatusArgs),
    /// Link files without publishing them, and tell what the linker does with them.
    #[command(after_help = "Example:\n  jitcast link --explain --map score.o libfoo.a")]
    Link(LinkArgs),
    /// Be a worker: attach and call functions.
    #[command(
        after_help = "Example:\n  jitcast worker --socket /run/jitcast.sock --call 'score(21)'"
    )]
    Worker(WorkerArgs),
    /// Show what is published and who runs it.
    #[command(after_help = "Example:\n  jitcast status --socket /run/jitcast.sock --json")]
    Status(StatusArgs),
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
                      Example:\n  jitcast why score --socket /run/jitcast.sock"
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

/// The files of a unit and how they are compiled.
#[derive(Debug, Clone, ClapArgs)]
pub(super) struct UnitArgs {
    /// CLIF (.clif), C (.c), ELF objects (.o) and archives (.a): one unit together.
    #[arg(required = true)]
    pub(super) files: Vec<PathBuf>,
    /// The unit's name; publishing the same name again replaces it [default: the first file's stem].
    #[arg(long)]
    pub(super) unit: Option<String>,
    /// A signature to record, as `score(long) -> long`, where debugging information says none; may be repeated.
    #[arg(long = "sig", value_name = "SIGNATURE")]
    pub(super) signatures: Vec<NamedSignature>,
    /// The C compiler.
    #[arg(long, default_value = front::cc::DEFAULT_CC)]
    pub(super) cc: String,
    /// Its flags, in place of `-O2 -g -fno-var-tracking -fPIC -fno-plt`. Without `-g`, signatures are unknown.
    #[arg(long, value_name = "FLAGS", allow_hyphen_values = true)]
    pub(super) cflags: Option<String>,
    /// Reuse the unit's memory once it is replaced or removed; `no`: never, for code that hands its static functions
    /// (callbacks that the host keeps) or static data to the host [default: CLIF yes, C and objects no, since
    /// these may have done so].
    #[arg(long, value_name = "yes|no", num_args = 0..=1, default_missing_value = "yes", require_equals = true)]
    pub(super) reclaim: Option<YesNo>,
    /// Take every member of every archive, wanted or not.
    #[arg(long)]
    pub(super) whole_archive: bool,
    /// Drop the sections that no root reaches; roots are the functions and data given by --root.
    #[arg(long, requires = "roots")]
    pub(super) gc_sections: bool,
    /// A function or datum that --gc-sections keeps, with all that it reaches; may be repeated.
    #[arg(long = "root", value_name = "SYMBOL", requires = "gc_sections")]
    pub(super) roots: Vec<String>,
    /// Give the unit a copy of this datum of the host, for code that reaches it directly and is not compiled with
    /// -fPIC; what the host stores later is not seen. Its length, bytes, unless it is that of an address.
    #[arg(long, value_name = "SYMBOL[:BYTES]")]
    pub(super) copy_data: Vec<CopyData>,
}

/// A datum of the host to copy.
#[derive(Debug, Clone)]
pub(super) struct CopyData {
    name: String,
    len_bytes: u64,
}

impl std::str::FromStr for CopyData {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, len_bytes) = match text.split_once(':') {
            None => (text, 8),
            Some((name, len_bytes)) => {
                let wrong = |_| format!("`{len_bytes}` is no number of bytes");
                (name, len_bytes.parse().map_err(wrong)?)
            }
        };
        if name.is_empty() || len_bytes == 0 {
            return Err("expected `SYMBOL` or `SYMBOL:BYTES`".to_owned());
        }
        Ok(Self {
            name: name.to_owned(),
            len_bytes,
        })
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum YesNo {
    Yes,
    No,
}

impl UnitArgs {
    /// The unit's name.
    pub(super) fn name(&self) -> String {
        self.unit
            .clone()
            .unwrap_or_else(|| front::unit_name(&self.files[0]))
    }

    /// What happens to its memory.
    pub(super) fn reclaim(&self) -> Reclaim {
        match self.reclaim {
            None => Reclaim::Auto,
            Some(YesNo::Yes) => Reclaim::Yes,
            Some(YesNo::No) => Reclaim::No,
        }
    }

    /// How it is linked.
    pub(super) fn link(&self) -> LinkOptions {
        let copies = self.copy_data.iter();
        LinkOptions {
            whole_archive: self.whole_archive,
            roots: self.gc_sections.then(|| self.roots.clone()),
            copies: copies
                .map(|copy| (copy.name.clone(), copy.len_bytes))
                .collect(),
        }
    }

    /// How it is compiled.
    pub(super) fn options(&self, cpu: Cpu) -> front::Options {
        let mut options = front::Options {
            cc: self.cc.clone(),
            cpu: cpu.into(),
            ..front::Options::default()
        };
        if let Some(flags) = &self.cflags {
            options.cflags = flags.split_whitespace().map(str::to_owned).collect();
        }
        options
    }
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(super) enum Cpu {
    /// This machine's processor.
    #[default]
    Host,
    /// Any x86-64.
    Baseline,
}

impl From<Cpu> for front::Cpu {
    fn from(cpu: Cpu) -> Self {
        match cpu {
            Cpu::Host => Self::Host,
            Cpu::Baseline => Self::Baseline,
        }
    }
}

/// How the segment is to be.
#[derive(Debug, Clone, ClapArgs)]
pub(super) struct SegmentArgs {
    /// Length of the window, MiB of address space (not memory): 8 to 2047 [default: what the journal says, else 1024].
    #[arg(long, value_name = "MIB")]
    pub(super) window: Option<u64>,
    /// Use a named segment in /dev/shm instead of a sealed one.
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
    /// The processor that CLIF is compiled for.
    #[arg(long, value_enum, default_value_t)]
    pub(super) cpu: Cpu,
}

#[derive(Debug, ClapArgs)]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) unit: UnitArgs,
    #[command(flatten)]
    pub(super) segment: SegmentArgs,
    /// A call, as `score(21)` or `norm(1.5, 2.0) -> f64`; may be repeated.
    #[arg(long = "call", value_name = "CALL", required = true)]
    pub(super) calls: Vec<CallExpr>,
    /// How many worker processes.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(super) workers: u32,
    /// A shared library that each worker loads, as `libstdc++.so.6`; may be repeated.
    #[arg(long = "lib", value_name = "LIBRARY")]
    pub(super) libs: Vec<String>,
    /// Go on calling; recompile and replace the unit whenever a file is saved.
    #[arg(long)]
    pub(super) watch: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct ServeArgs {
    /// Where to listen: a path, or, after an `@`, a name in the abstract name space [default: the socket that a service
    /// manager hands over].
    #[arg(long)]
    pub(super) socket: Option<String>,
    /// Publish these files before anybody is served: CLIF, C, objects and archives; a `+` between them begins another unit.
    /// Units that the journal brings are left as they are.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(super) preload: Vec<PathBuf>,
    /// A signature to record of what is preloaded, as `score(long) -> long`; may be repeated.
    #[arg(long = "sig", value_name = "SIGNATURE", requires = "preload")]
    pub(super) signatures: Vec<NamedSignature>,
    #[command(flatten)]
    pub(super) segment: SegmentArgs,
    /// Write publications down in this folder, and begin with those that are written there.
    #[arg(long, value_name = "DIR")]
    pub(super) journal: Option<PathBuf>,
    /// Make a publication durable before workers see it, not only before it is acknowledged.
    #[arg(long, requires = "journal")]
    pub(super) durable: bool,
    /// Who else may attach: `uid:N` or `gid:N`; may be repeated [default: the same user].
    #[arg(long, value_name = "WHO")]
    pub(super) allow_attach: Vec<Who>,
    /// Who else may publish: `uid:N` or `gid:N`; may be repeated [default: the same user].
    #[arg(long, value_name = "WHO")]
    pub(super) allow_publish: Vec<Who>,
    /// Whose workers may also ask for CLIF to be compiled for them alone: `uid:N` or `gid:N`; may be repeated [default: the
    /// same user].
    #[arg(long, value_name = "WHO")]
    pub(super) allow_request: Vec<Who>,
    #[command(flatten)]
    pub(super) requests: RequestArgs,
    /// How many threads compile and read the files of a batch at once [default: as many as there are processors].
    #[arg(long, value_name = "COUNT")]
    pub(super) threads: Option<usize>,
    /// How long the requests of publishers may be together that are under way, MiB; more are told "busy".
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub(super) publish_mib: u64,
    /// Refuse publications while threads that stay inside hold back more retired memory than this, MiB.
    #[arg(long, value_name = "MIB")]
    pub(super) max_held: Option<u64>,
    /// How many publications can be rolled back: their sources are retained in memory.
    #[arg(long, value_name = "COUNT", default_value_t = DEFAULT_RETAIN)]
    pub(super) retain: usize,
    /// Remove a named segment at the end even while workers are attached.
    #[arg(long, requires = "name")]
    pub(super) remove_on_exit: bool,
}

/// What workers may ask for.
#[derive(Debug, Clone, ClapArgs)]
#[command(next_help_heading = "Limits of workers' requests")]
pub(super) struct RequestArgs {
    /// The longest text, bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 256 << 10)]
    pub(super) request_bytes: u32,
    /// How many texts wait to be compiled before workers are told "busy".
    #[arg(long, value_name = "COUNT", default_value_t = 64)]
    pub(super) request_queue: usize,
    /// How many texts are compiled at once, each in a process of its own.
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    pub(super) request_children: usize,
    /// How many asked-for units one worker may have.
    #[arg(long, value_name = "COUNT", default_value_t = 1024)]
    pub(super) request_units: usize,
    /// What these may take together, MiB.
    #[arg(long, value_name = "MIB", default_value_t = 16)]
    pub(super) request_unit_mib: u64,
    /// What those of all workers may take together, MiB.
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    pub(super) request_total: u64,
    /// The memory of a process that compiles, MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub(super) request_memory: u64,
    /// Its processor time, seconds; it may run three times as long.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(super) request_seconds: u64,
}

/// A user or a group.
#[derive(Debug, Clone, Copy)]
pub(super) enum Who {
    Uid(u32),
    Gid(u32),
}

impl std::str::FromStr for Who {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |number: &str| {
            number
                .parse()
                .map_err(|_| format!("`{number}` is no number"))
        };
        match text.split_once(':') {
            Some(("uid", uid)) => Ok(Self::Uid(number(uid)?)),
            Some(("gid", gid)) => Ok(Self::Gid(number(gid)?)),
            None if text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(Self::Uid(number(text)?)),
            _ => Err("expected `uid:N` or `gid:N`".to_owned()),
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(super) struct PublishArgs {
    /// The compiler process's socket.
    #[arg(long)]
    pub(super) socket: String,
    #[command(flatten)]
    pub(super) unit: UnitArgs,
    /// Remove this unit in the same publication; may be repeated.
    #[arg(long = "remove", value_name = "UNIT")]
    pub(super) removals: Vec<String>,
    /// Quarantine this function in the same publication; may be repeated.
    #[arg(long, value_name = "SYMBOL")]
    pub(super) quarantine: Vec<String>,
    /// Restore this function in the same publication; may be repeated.
    #[arg(long, value_name = "SYMBOL")]
    pub(super) restore: Vec<String>,
    /// Do nothing if the unit is published with these very contents already. Otherwise it is linked again, and its data
    /// start afresh.
    #[arg(long, conflicts_with_all = ["canary", "canary_label"])]
    pub(super) if_changed: bool,
    /// Only so many workers run it, until it is promoted or aborted. When one of them ends, the next that attaches takes its
    /// place.
    #[arg(long, value_name = "WORKERS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) canary: Option<u32>,
    /// Only workers that attached with this label run it, until it is promoted or aborted.
    #[arg(long, value_name = "LABEL", conflicts_with = "canary")]
    pub(super) canary_label: Option<String>,
    /// Variables that the replaced version defines alike keep their contents, and their places for others: global ones.
    /// Static ones start afresh, as all do without this option.
    #[arg(long)]
    pub(super) keep_data: bool,
    #[command(flatten)]
    pub(super) force: ForceArgs,
}

/// What would be refused, and is done all the same.
#[derive(Debug, Clone, Copy, ClapArgs)]
pub(super) struct ForceArgs {
    /// Functions that others still use may go: calls of them end the calling process, until the name is published
    /// again.
    #[arg(long)]
    leave_traps: bool,
    /// A function may get another signature: all of its callers are ready for it.
    #[arg(long)]
    change_signature: bool,
}

impl From<ForceArgs> for PublishOptions {
    fn from(force: ForceArgs) -> Self {
        Self {
            leave_traps: force.leave_traps,
            change_signatures: force.change_signature,
            ..Self::default()
        }
    }
}

impl PublishArgs {
    /// Who is to run it; `None`: every worker.
    pub(super) fn audience(&self) -> Option<Audience> {
        let label = self.canary_label.clone().map(Audience::Label);
        self.canary.map(Audience::Workers).or(label)
    }
}

#[derive(Debug, ClapArgs)]
pub(super) struct DecideArgs {
    /// The compiler process's socket.
    #[arg(long)]
    pub(super) socket: String,
    /// The canary: the name of a unit of it, or its number, which is that of the generation that began it.
    #[arg(value_name = "UNIT|NUMBER")]
    pub(super) canary: String,
}

#[derive(Debug, ClapArgs)]
pub(super) struct RemoveArgs {
    /// The compiler process's socket.
    #[arg(long)]
    pub(super) socket: String,
    /// The units: all of them go as one.
    #[arg(required = true, value_name = "UNIT")]
    pub(super) units: Vec<String>,
    #[command(flatten)]
    pub(super) force: ForceArgs,
}

#[derive(Debug, ClapArgs)]
pub(super) struct RestoreArgs {
    /// The compiler process's socket.
    #[arg(long)]
    pub(super) socket: String,
    /// The functions: all of them as one.
    #[arg(required = true, value_name = "SYMBOL")]
    pub(super) symbols: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct QuarantineArgs {
    #[command(flatten)]
    pub(super) what: RestoreArgs,
    /// Also functions that other units use, whose calls then end the calling process.
    #[arg(long)]
    pub(super) leave_traps: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct RenewArgs {
    /// The compiler process's socket.
    #[arg(long)]
    pub(super) socket: String,
}

#[derive(Debug, ClapArgs)]
pub(super) struct RollbackArgs {
    /// The compiler process's socket.
    #[arg(long)]
    pub(super) socket: String,
    /// The generation whose units are wanted [default: that before the latest publication of units].
    pub(super) generation: Option<u64>,
    /// Global variables keep their contents, as with `publish --keep-data`.
    #[arg(long)]
    pub(super) keep_data: bool,
    #[command(flatten)]
    pub(super) force: ForceArgs,
}

#[derive(Debug, ClapArgs)]
pub(super) struct LinkArgs {
    #[command(flatten)]
    pub(super) unit: UnitArgs,
    /// For every relocation of what is loaded (`.eh_frame` aside, which is put together anew): its site, kind and
    /// formula, where its target lies, when it is resolved, and what was done.
    #[arg(long)]
    pub(super) explain: bool,
    /// Where each section and symbol goes.
    #[arg(long)]
    pub(super) map: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct WorkerArgs {
    /// The compiler process's socket.
    #[arg(long, required_unless_present = "name", conflicts_with = "name")]
    pub(super) socket: Option<String>,
    /// A named segment, whose header says where the socket is.
    #[arg(long)]
    pub(super) name: Option<String>,
    /// A call, as `score(21)` or `norm(1.5, 2.0) -> f64`; may be repeated.
    #[arg(long = "call", value_name = "CALL", required = true)]
    pub(super) calls: Vec<CallExpr>,
    /// A shared library to load, as `libstdc++.so.6`; may be repeated.
    #[arg(long = "lib", value_name = "LIBRARY")]
    pub(super) libs: Vec<String>,
    /// The label that `status` shows, and that canaries may be for.
    #[arg(long, default_value = "")]
    pub(super) label: String,
    /// How long to wait for functions that are not published yet, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(super) wait: u64,
    /// Call in a loop, and report whenever another generation runs.
    #[arg(long)]
    pub(super) watch: bool,
    /// Report in JSON, a line for each event.
    #[arg(long)]
    pub(super) json: bool,
    /// End when the parent process ends.
    #[arg(long, hide = true)]
    pub(super) with_parent: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct StatusArgs {
    /// The compiler process's socket.
    #[arg(long)]
    pub(super) socket: String,
    /// As JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// A segment to look at.
#[derive(Debug, Clone, ClapArgs)]
#[group(required = true, multiple = true)]
pub(super) struct ObserveArgs {
    /// The compiler process's socket.
    #[arg(long)]
    pub(super) socket: Option<String>,
    /// A named segment, whose compiler process need not be there.
    #[arg(long, value_name = "NAME", conflicts_with = "socket")]
    pub(super) name: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct DisArgs {
    /// The function.
    pub(super) symbol: String,
    /// The unit whose function it is, by its name or its number: for functions that are not published themselves, static ones
    /// and those of units that workers asked for. The newest one of that name.
    #[arg(long, value_name = "UNIT|NUMBER")]
    pub(super) unit: Option<String>,
    #[command(flatten)]
    pub(super) segment: ObserveArgs,
    /// Show the version that this worker runs, at its addresses there, and what its cells hold.
    #[arg(long, value_name = "PID")]
    pub(super) worker: Option<i32>,
    /// How instructions are written.
    #[arg(long, value_enum, default_value_t)]
    pub(super) syntax: Syntax,
    /// As JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct DebugArgs {
    /// The compiler process's socket.
    #[arg(long)]
    pub(super) socket: String,
    /// Only the worker of this process [default: all that are attached].
    #[arg(long, value_name = "PID")]
    pub(super) worker: Option<i32>,
    /// Functions for gdb: names in backtraces, breakpoints by name. The default, unless files are asked for.
    #[arg(long)]
    pub(super) gdb: bool,
    /// Lines and arguments besides, where debugging information says them: for gdb, and lines in a jitdump.
    #[arg(long)]
    pub(super) lines: bool,
    /// A jitdump for perf: `jit-PID.dump`, in /tmp or where the worker was told.
    #[arg(long)]
    pub(super) jitdump: bool,
    /// A list of functions: `perf-PID.map`, likewise.
    #[arg(long)]
    pub(super) perf_map: bool,
    /// Nothing any more, whatever the worker was started with.
    #[arg(long, conflicts_with_all = ["gdb", "lines", "jitdump", "perf_map"])]
    pub(super) off: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct PerfResolveArgs {
    #[command(flatten)]
    pub(super) segment: ObserveArgs,
    /// Take names from this list, as `perf-PID.map`, for addresses of that process.
    #[arg(long, value_name = "FILE", group = "ObserveArgs", conflicts_with_all = ["socket", "name"])]
    pub(super) map: Option<PathBuf>,
    /// What `perf script` or `perf report` printed [default: standard input].
    pub(super) file: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct WhyArgs {
    /// The name.
    pub(super) symbol: String,
    #[command(flatten)]
    pub(super) segment: ObserveArgs,
    /// As JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// How instructions are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Syntax {
    /// Intel's, as in its manuals.
    #[default]
    Intel,
    /// AT&T's, as GNU tools have it.
    #[value(alias = "gnu")]
    Att,
}

#[derive(Debug, ClapArgs)]
pub(super) struct FuzzArgs {
    /// What the objects are made from: the same seed gives the same objects [default: the time].
    #[arg(long)]
    pub(super) seed: Option<u64>,
    /// How long, in seconds, or as `90s`, `5m`, `2h`.
    #[arg(long, value_name = "TIME", default_value = "10", value_parser = duration)]
    pub(super) time: Duration,
    /// Where failing objects are kept, each in a folder of its own.
    #[arg(long, value_name = "DIR")]
    pub(super) save: Option<PathBuf>,
    /// Only this one, whatever the time: as a failure names it.
    #[arg(long, value_name = "NUMBER")]
    pub(super) case: Option<u64>,
}

/// Reads a duration: seconds, or a number with its unit.
fn duration(text: &str) -> Result<Duration, String> {
    let units = [("s", 1), ("m", 60), ("h", 3600)];
    let with_unit = units
        .into_iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)));
    let (number, seconds) = with_unit.unwrap_or((text, 1));
    let number: u64 = number
        .parse()
        .map_err(|_| "expected seconds, or a number with `s`, `m` or `h`".to_owned())?;
    let total = number.checked_mul(seconds);
    total
        .map(Duration::from_secs)
        .ok_or_else(|| "too long".to_owned())
}

#[derive(Debug, ClapArgs)]
pub(super) struct OracleArgs {
    /// An object that was linked, as it was named to the linker; may be repeated, in the linker's order.
    #[arg(long = "object", value_name = "FILE", required = true)]
    pub(super) objects: Vec<PathBuf>,
    /// What was made of them: an executable or a shared library, not stripped.
    #[arg(long, value_name = "FILE")]
    pub(super) image: PathBuf,
    /// The linker's map (`-Map`): where the sections are, for those that symbols and contents do not tell.
    #[arg(long, value_name = "FILE")]
    pub(super) map: Option<PathBuf>,
}
