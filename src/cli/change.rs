//! Publications without files: `jitcast remove`, `quarantine`, `restore`, `rollback`, `promote`, `abort` and `renew`.

use std::process::ExitCode;

use jitcast::compiler::request::{self, DecideRequest, Decision, PublishRequest, RollbackRequest};
use jitcast::compiler::{PublishOptions, SymbolUpdate};

use super::Failure;
use super::args::{DecideArgs, QuarantineArgs, RemoveArgs, RenewArgs, RestoreArgs, RollbackArgs};
use super::publish::{connect, tell};
use super::report::kib;

pub(super) fn remove(args: &RemoveArgs) -> Result<ExitCode, Failure> {
    let request = PublishRequest {
        removals: args.units.clone(),
        options: args.force.into(),
        ..PublishRequest::default()
    };
    let done = request::publish(connect(&args.socket)?, &request)?;
    tell(&done, false);
    Ok(ExitCode::SUCCESS)
}

pub(super) fn quarantine(args: &QuarantineArgs) -> Result<ExitCode, Failure> {
    let options = PublishOptions {
        leave_traps: args.leave_traps,
        ..PublishOptions::default()
    };
    update(&args.what, SymbolUpdate::Quarantine, options, "quarantined")
}

pub(super) fn restore(args: &RestoreArgs) -> Result<ExitCode, Failure> {
    let options = PublishOptions::default();
    update(args, SymbolUpdate::Restore, options, "restored")
}

fn update(
    args: &RestoreArgs,
    update: fn(String) -> SymbolUpdate,
    options: PublishOptions,
    what: &str,
) -> Result<ExitCode, Failure> {
    let request = PublishRequest {
        updates: args.symbols.iter().cloned().map(update).collect(),
        options,
        ..PublishRequest::default()
    };
    let done = request::publish(connect(&args.socket)?, &request)?;
    println!(
        "generation {}: {what} {}",
        done.generation,
        args.symbols.join(", ")
    );
    Ok(ExitCode::SUCCESS)
}

pub(super) fn decide(args: &DecideArgs, decision: Decision) -> Result<ExitCode, Failure> {
    let request = DecideRequest {
        canary: args.canary.clone(),
        decision,
    };
    let done = request::decide(connect(&args.socket)?, &request)?;
    let (generation, functions) = (done.generation, done.functions.join(", "));
    match decision {
        Decision::Promote => println!("generation {generation}: promoted {functions}"),
        Decision::Abort => println!(
            "generation {generation}: aborted {}",
            done.removed.join(", ")
        ),
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn rollback(args: &RollbackArgs) -> Result<ExitCode, Failure> {
    let request = RollbackRequest {
        generation: args.generation,
        options: PublishOptions {
            keep_data: args.keep_data,
            ..args.force.into()
        },
    };
    let done = request::rollback(connect(&args.socket)?, &request)?;
    tell(&done, true);
    Ok(ExitCode::SUCCESS)
}

pub(super) fn renew(args: &RenewArgs) -> Result<ExitCode, Failure> {
    let before = request::status(connect(&args.socket)?)?;
    let done = request::renew(connect(&args.socket)?)?;
    let after = request::status(connect(&args.socket)?)?;
    println!(
        "generation {}: {} of shared memory instead of {}",
        done.generation,
        kib(after.backed_bytes),
        kib(before.backed_bytes)
    );
    if after.older_bytes > 0 {
        println!(
            "{} more until every worker has gone on",
            kib(after.older_bytes)
        );
    }
    Ok(ExitCode::SUCCESS)
}
