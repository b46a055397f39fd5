//! `jitcast publish`: units for a running compiler process.

use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::PathBuf;
use std::process::ExitCode;

use jitcast::compiler::front::{self, Kind, compile_file};
use jitcast::compiler::request::{self, PublishRequest, RequestFile, RequestUnit};
use jitcast::compiler::{Publication, PublishOptions, SymbolUpdate};

use super::Failure;
use super::args::{Cpu, PublishArgs, UnitArgs};
use super::progress::Progress;
use super::report::kib;

pub(super) fn publish(args: &PublishArgs) -> Result<ExitCode, Failure> {
    let quarantine = args
        .quarantine
        .iter()
        .cloned()
        .map(SymbolUpdate::Quarantine);
    let restore = args.restore.iter().cloned().map(SymbolUpdate::Restore);
    let compiling = Progress::spin("compiling");
    let units = request_units(&args.unit)?;
    drop(compiling);
    let request = PublishRequest {
        units,
        removals: args.removals.clone(),
        updates: quarantine.chain(restore).collect(),
        options: PublishOptions {
            if_changed: args.if_changed,
            keep_data: args.keep_data,
            ..args.force.into()
        },
        canary: args.audience(),
    };
    let connection = connect(&args.socket)?;
    let publishing = Progress::spin(described(&request));
    let done = request::publish(connection, &request);
    drop(publishing);
    let done = done?;
    tell(&done, true);
    if let Some(audience) = &request.canary {
        println!("canary {}: for {audience}", done.generation);
    }
    Ok(ExitCode::SUCCESS)
}

/// What is being published.
fn described(request: &PublishRequest) -> String {
    let files = request.units.iter().flat_map(|unit| &unit.files);
    let bytes: usize = files.map(|file| file.bytes.len()).sum();
    let (count, size) = (request.units.len(), kib(bytes as u64));
    let plural = if count == 1 { "" } else { "s" };
    format!("publishing {count} unit{plural}, {size}")
}

/// The units that are asked for: one, or several with a `+` between their files.
fn request_units(args: &UnitArgs) -> Result<Vec<RequestUnit>, Failure> {
    let options = args.options(Cpu::Host);
    let groups = split_units(&args.files)?;
    if groups.len() > 1 && args.unit.is_some() {
        let help = "leave it out: units are called after their first files";
        return Err(Failure(format!(
            "--unit names one unit, and there are several\n  help: {help}"
        )));
    }
    let unit = |(first, paths): (&PathBuf, &[PathBuf])| {
        let files = paths.iter().map(|path| request_file(path, &options));
        Ok(RequestUnit {
            name: args.unit.clone().unwrap_or_else(|| front::unit_name(first)),
            files: files.collect::<Result<_, _>>()?,
            signatures: args.signatures.iter().map(ToString::to_string).collect(),
            reclaim: args.reclaim(),
            link: args.link(),
        })
    };
    groups.into_iter().map(unit).collect()
}

/// The files of each unit, the first of them besides: it gives the unit its name. A `+` lies between two units.
pub(super) fn split_units(files: &[PathBuf]) -> Result<Vec<(&PathBuf, &[PathBuf])>, Failure> {
    fn unit(paths: &[PathBuf]) -> Result<(&PathBuf, &[PathBuf]), Failure> {
        let [first, ..] = paths else {
            let help = "put `+` between the files of one unit and those of the next";
            return Err(Failure(format!("a unit without files\n  help: {help}")));
        };
        Ok((first, paths))
    }
    files
        .split(|file| file.as_os_str() == "+")
        .map(unit)
        .collect()
}

/// Names, or the first of them and how many more there are: nobody reads thousands.
pub(super) fn named(names: &[String]) -> String {
    const SHOWN: usize = 20;
    match names.split_at_checked(SHOWN) {
        Some((first, more)) if !more.is_empty() => {
            format!("{} and {} more", first.join(", "), more.len())
        }
        _ => names.join(", "),
    }
}

/// Says what was published, if units were, and which units went, if any did.
pub(super) fn tell(done: &Publication, units: bool) {
    if units {
        let functions = named(&done.functions);
        println!("generation {}: {functions}", done.generation);
    }
    if !done.removed.is_empty() {
        let units = named(&done.removed);
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

#[cfg(test)]
mod tests {
    use super::named;

    #[test]
    fn many_names_are_counted() {
        let names = |count: usize| (0..count).map(|name| name.to_string()).collect::<Vec<_>>();
        assert_eq!(named(&names(2)), "0, 1");
        assert!(named(&names(20)).ends_with(", 19"));
        assert!(named(&names(23)).ends_with(", 19 and 3 more"));
    }
}
