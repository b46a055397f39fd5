//! Publications without files: `jitcast remove` and `rollback`.

use std::process::ExitCode;

use jitcast::compiler::request::{self, PublishRequest, RollbackRequest};

use super::Failure;
use super::args::{RemoveArgs, RollbackArgs};
use super::publish::{connect, tell};

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

pub(super) fn rollback(args: &RollbackArgs) -> Result<ExitCode, Failure> {
    let request = RollbackRequest {
        generation: args.generation,
        options: args.force.into(),
    };
    let done = request::rollback(connect(&args.socket)?, &request)?;
    tell(&done, true);
    Ok(ExitCode::SUCCESS)
}
