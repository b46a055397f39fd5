//! What runs code: `run` and `worker`.

use clap::Args as ClapArgs;
use jitcast::runtime::signature::CallExpr;

use super::unit::{SegmentArgs, UnitArgs};

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct RunArgs {
    #[command(flatten)]
    pub(in crate::cli) unit: UnitArgs,
    #[command(flatten)]
    pub(in crate::cli) segment: SegmentArgs,
    /// A call, as `score(21)` or `norm(1.5, 2.0) -> f64`; may be repeated.
    #[arg(long = "call", value_name = "CALL", required = true)]
    pub(in crate::cli) calls: Vec<CallExpr>,
    /// How many worker processes.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(in crate::cli) workers: u32,
    /// A shared library that each worker loads, as `libstdc++.so.6`; may be repeated.
    #[arg(long = "lib", value_name = "LIBRARY")]
    pub(in crate::cli) libs: Vec<String>,
    /// Go on calling; recompile and replace the unit whenever a file is saved.
    #[arg(long)]
    pub(in crate::cli) watch: bool,
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct WorkerArgs {
    /// The compiler process's socket.
    #[arg(long, required_unless_present = "name", conflicts_with = "name")]
    pub(in crate::cli) socket: Option<String>,
    /// A named segment, whose header says where the socket is.
    #[arg(long)]
    pub(in crate::cli) name: Option<String>,
    /// A call, as `score(21)` or `norm(1.5, 2.0) -> f64`; may be repeated.
    #[arg(long = "call", value_name = "CALL", required = true)]
    pub(in crate::cli) calls: Vec<CallExpr>,
    /// A shared library to load, as `libstdc++.so.6`; may be repeated.
    #[arg(long = "lib", value_name = "LIBRARY")]
    pub(in crate::cli) libs: Vec<String>,
    /// The label that `status` shows, and that canaries may be for.
    #[arg(long, default_value = "")]
    pub(in crate::cli) label: String,
    /// How long to wait for functions that are not published yet, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(in crate::cli) wait: u64,
    /// Call in a loop, and report whenever another generation runs.
    #[arg(long)]
    pub(in crate::cli) watch: bool,
    /// Report in JSON, a line for each event.
    #[arg(long)]
    pub(in crate::cli) json: bool,
    /// End when the parent process ends.
    #[arg(long, hide = true)]
    pub(in crate::cli) with_parent: bool,
}
