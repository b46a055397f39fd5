//! What changes what is published: `publish`, `promote`, `abort`, `remove`, `quarantine`, `restore`, `renew` and `rollback`.

use clap::Args as ClapArgs;
use jitcast::compiler::{Audience, PublishOptions};

use super::unit::UnitArgs;

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct PublishArgs {
    /// The compiler process's socket.
    #[arg(long)]
    pub(in crate::cli) socket: String,
    #[command(flatten)]
    pub(in crate::cli) unit: UnitArgs,
    /// Remove this unit in the same publication; may be repeated.
    #[arg(long = "remove", value_name = "UNIT")]
    pub(in crate::cli) removals: Vec<String>,
    /// Quarantine this function in the same publication; may be repeated.
    #[arg(long, value_name = "SYMBOL")]
    pub(in crate::cli) quarantine: Vec<String>,
    /// Restore this function in the same publication; may be repeated.
    #[arg(long, value_name = "SYMBOL")]
    pub(in crate::cli) restore: Vec<String>,
    /// Do nothing if the unit is published with these very contents already. Otherwise it is linked again, and its data
    /// start afresh.
    #[arg(long, conflicts_with_all = ["canary", "canary_label"])]
    pub(in crate::cli) if_changed: bool,
    /// Only so many workers run it, until it is promoted or aborted. When one of them ends, the next that attaches takes its
    /// place.
    #[arg(long, value_name = "WORKERS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(in crate::cli) canary: Option<u32>,
    /// Only workers that attached with this label run it, until it is promoted or aborted.
    #[arg(long, value_name = "LABEL", conflicts_with = "canary")]
    pub(in crate::cli) canary_label: Option<String>,
    /// Variables that the replaced version defines alike keep their contents, and their places for others: global ones.
    /// Static ones start afresh, as all do without this option.
    #[arg(long)]
    pub(in crate::cli) keep_data: bool,
    #[command(flatten)]
    pub(in crate::cli) force: ForceArgs,
}

/// What would be refused, and is done all the same.
#[derive(Debug, Clone, Copy, ClapArgs)]
pub(in crate::cli) struct ForceArgs {
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
    pub(in crate::cli) fn audience(&self) -> Option<Audience> {
        let label = self.canary_label.clone().map(Audience::Label);
        self.canary.map(Audience::Workers).or(label)
    }
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct DecideArgs {
    /// The compiler process's socket.
    #[arg(long)]
    pub(in crate::cli) socket: String,
    /// The canary: the name of a unit of it, or its number, which is that of the generation that began it.
    #[arg(value_name = "UNIT|NUMBER")]
    pub(in crate::cli) canary: String,
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct RemoveArgs {
    /// The compiler process's socket.
    #[arg(long)]
    pub(in crate::cli) socket: String,
    /// The units: all of them go as one.
    #[arg(required = true, value_name = "UNIT")]
    pub(in crate::cli) units: Vec<String>,
    #[command(flatten)]
    pub(in crate::cli) force: ForceArgs,
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct RestoreArgs {
    /// The compiler process's socket.
    #[arg(long)]
    pub(in crate::cli) socket: String,
    /// The functions: all of them as one.
    #[arg(required = true, value_name = "SYMBOL")]
    pub(in crate::cli) symbols: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct QuarantineArgs {
    #[command(flatten)]
    pub(in crate::cli) what: RestoreArgs,
    /// Also functions that other units use, whose calls then end the calling process.
    #[arg(long)]
    pub(in crate::cli) leave_traps: bool,
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct RenewArgs {
    /// The compiler process's socket.
    #[arg(long)]
    pub(in crate::cli) socket: String,
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct RollbackArgs {
    /// The compiler process's socket.
    #[arg(long)]
    pub(in crate::cli) socket: String,
    /// The generation whose units are wanted [default: that before the latest publication of units].
    pub(in crate::cli) generation: Option<u64>,
    /// Global variables keep their contents, as with `publish --keep-data`.
    #[arg(long)]
    pub(in crate::cli) keep_data: bool,
    #[command(flatten)]
    pub(in crate::cli) force: ForceArgs,
}
