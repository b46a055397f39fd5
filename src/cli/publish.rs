//! `jitcast publish`: a unit for a running compiler process.

use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::process::ExitCode;

use jitcast::compiler::front::{self, Kind, compile_file};
use jitcast::compiler::request::{self, PublishRequest, RequestFile, RequestUnit};
use jitcast::compiler::{Publication, PublishOptions};

use super::Failure;
use super::args::{Cpu, PublishArgs};

pub(super) fn publish(args: &PublishArgs) -> Result<ExitCode, Failure> {
    let options = args.unit.options(Cpu::Host);
    let mut files = Vec::new();
    for path in &args.unit.files {
        files.push(request_file(path, &options)?);
    }
    let unit = RequestUnit {
        name: args.unit.name(),
        files,
        signatures: args
            .unit
            .signatures
            .iter()
            .map(ToString::to_string)
            .collect(),
        reclaim: args.unit.reclaim(),
        link: args.unit.link(),
    };
    let socket = connect(&args.socket)?;
    let request = PublishRequest {
        units: vec![unit],
        removals: args.removals.clone(),
        options: PublishOptions {
            if_changed: args.if_changed,
            keep_data: args.keep_data,
            ..args.force.into()
        },
        ..PublishRequest::default()
    };
    let done = request::publish(socket, &request)?;
    tell(&done, true);
    Ok(ExitCode::SUCCESS)
}

/// Says what was published, if units were, and which units went, if any did.
pub(super) fn tell(done: &Publication, units: bool) {
    if units {
        let functions = done.functions.join(", ");
        println!("generation {}: {functions}", done.generation);
    }
    if !done.removed.is_empty() {
        let units = done.removed.join(", ");
        println!("generation {}: removed {units}", done.generation);
    }
}

/// C is compiled here, where its headers are; CLIF is text that the compiler process compiles.
fn request_file(path: &std::path::Path, options: &front::Options) -> Result<RequestFile, Failure> {
    let name = path.display().to_string();
    let text = std::fs::read(path)
        .ok()
        .filter(|bytes| Kind::of(path, bytes) == Some(Kind::Clif));
    if let Some(bytes) = text {
        return Ok(RequestFile { name, bytes });
    }
    let compiled = compile_file(path, options)?;
    eprint!("{}", compiled.messages);
    Ok(RequestFile {
        name,
        bytes: compiled.bytes,
    })
}

/// Connects to a compiler process.
pub(super) fn connect(socket: &str) -> Result<OwnedFd, Failure> {
    let connected = match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)
            .and_then(|address| UnixStream::connect_addr(&address)),
        None => UnixStream::connect(socket),
    };
    let help = "start it with `jitcast serve`, or check the path and its permissions";
    connected.map(OwnedFd::from).map_err(|cause| {
        Failure(format!(
            "cannot reach the compiler process at {socket}: {cause}\n  help: {help}"
        ))
    })
}
