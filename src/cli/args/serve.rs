//! The compiler process: `serve`.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use jitcast::compiler::DEFAULT_RETAIN;
use jitcast::runtime::signature::NamedSignature;

use super::unit::SegmentArgs;

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct ServeArgs {
    /// Where to listen: a path, or, after an `@`, a name in the abstract name space [default: the socket that a service
    /// manager hands over].
    #[arg(long)]
    pub(in crate::cli) socket: Option<String>,
    /// Publish these files before anybody is served: CLIF, C, objects and archives; a `+` between them begins another unit.
    /// Units that the journal brings are left as they are.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(in crate::cli) preload: Vec<PathBuf>,
    /// A signature to record of what is preloaded, as `score(long) -> long`; may be repeated.
    #[arg(long = "sig", value_name = "SIGNATURE", requires = "preload")]
    pub(in crate::cli) signatures: Vec<NamedSignature>,
    #[command(flatten)]
    pub(in crate::cli) segment: SegmentArgs,
    /// Write publications down in this folder, and begin with those that are written there.
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) journal: Option<PathBuf>,
    /// Make a publication durable before workers see it, not only before it is acknowledged.
    #[arg(long, requires = "journal")]
    pub(in crate::cli) durable: bool,
    /// Who else may attach: `uid:N` or `gid:N`; may be repeated [default: the same user].
    #[arg(long, value_name = "WHO")]
    pub(in crate::cli) allow_attach: Vec<Who>,
    /// Who else may publish: `uid:N` or `gid:N`; may be repeated [default: the same user].
    #[arg(long, value_name = "WHO")]
    pub(in crate::cli) allow_publish: Vec<Who>,
    /// Whose workers may also ask for CLIF to be compiled for them alone: `uid:N` or `gid:N`; may be repeated [default: the
    /// same user].
    #[arg(long, value_name = "WHO")]
    pub(in crate::cli) allow_request: Vec<Who>,
    #[command(flatten)]
    pub(in crate::cli) requests: RequestArgs,
    /// How many threads compile and read the files of a batch at once [default: as many as there are processors].
    #[arg(long, value_name = "COUNT")]
    pub(in crate::cli) threads: Option<usize>,
    /// How long the requests of publishers may be together that are under way, MiB; more are told "busy".
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub(in crate::cli) publish_mib: u64,
    /// Refuse publications while threads that stay inside hold back more retired memory than this, MiB.
    #[arg(long, value_name = "MIB")]
    pub(in crate::cli) max_held: Option<u64>,
    /// How many publications can be rolled back: their sources are retained in memory.
    #[arg(long, value_name = "COUNT", default_value_t = DEFAULT_RETAIN)]
    pub(in crate::cli) retain: usize,
    /// Remove a named segment at the end even while workers are attached.
    #[arg(long, requires = "name")]
    pub(in crate::cli) remove_on_exit: bool,
}

/// What workers may ask for.
#[derive(Debug, Clone, ClapArgs)]
#[command(next_help_heading = "Limits of workers' requests")]
pub(in crate::cli) struct RequestArgs {
    /// The longest text, bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 256 << 10)]
    pub(in crate::cli) request_bytes: u32,
    /// How many texts wait to be compiled before workers are told "busy".
    #[arg(long, value_name = "COUNT", default_value_t = 64)]
    pub(in crate::cli) request_queue: usize,
    /// How many texts are compiled at once, each in a process of its own.
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    pub(in crate::cli) request_children: usize,
    /// How many asked-for units one worker may have.
    #[arg(long, value_name = "COUNT", default_value_t = 1024)]
    pub(in crate::cli) request_units: usize,
    /// What these may take together, MiB.
    #[arg(long, value_name = "MIB", default_value_t = 16)]
    pub(in crate::cli) request_unit_mib: u64,
    /// What those of all workers may take together, MiB.
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    pub(in crate::cli) request_total: u64,
    /// The memory of a process that compiles, MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub(in crate::cli) request_memory: u64,
    /// Its processor time, seconds; it may run three times as long.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(in crate::cli) request_seconds: u64,
}

/// A user or a group.
#[derive(Debug, Clone, Copy)]
pub(in crate::cli) enum Who {
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
