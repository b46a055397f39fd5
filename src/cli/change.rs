//! Publications that link nothing: `jitcast remove`.

use std::process::ExitCode;

use jitcast::compiler::request::{self, PublishRequest};

use super::Failure;
use super::args::RemoveArgs;
use super::publish::{connect, tell_removed};

pub(super) fn remove(args: &RemoveArgs) -> Result<ExitCode, Failure> {
    let request = PublishRequest {
        removals: args.units.clone(),
        options: args.force.into(),
        ..PublishRequest::default()
    };
    tell_removed(&request::publish(connect(&args.socket)?, &request)?);
    Ok(ExitCode::SUCCESS)
}
