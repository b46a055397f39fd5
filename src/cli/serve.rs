//! `jitcast serve`: the compiler process.

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use jitcast::compiler::front;
use jitcast::compiler::{
    Access, Compiler, CompilerOptions, JournalOptions, Policy, RequestLimits, RequestOptions,
    Server, Threads, lacking,
};
use jitcast::runtime::segment::{Leftover, examine};

use super::Failure;
use super::args::{RequestArgs, SegmentArgs, ServeArgs, Who};
use super::memory;
use super::metrics::Endpoint;
use super::preload::preload;
use super::progress::Progress;
use super::run::compiler_options;
use super::service;
use super::signals::Ending;

pub(super) fn serve(args: &ServeArgs) -> Result<ExitCode, Failure> {
    // Before this process starts a thread, or opens any descriptor of its own.
    memory::keep_freed();
    let inherited = service::inherited_socket()?;
    let ending = Ending::listen()?;
    hide_memory()?;
    let threads = args.threads.map_or_else(Threads::default, Threads::new);
    let options = front::Options {
        cpu: args.segment.cpu.into(),
        threads: threads.clone(),
        ..front::Options::default()
    };
    let server = listen(args, inherited, options.clone())?;
    let socket = server.path().to_owned();
    // With a journal it may be what the segment goes on in.
    if args.journal.is_none() {
        clear_leftover(&args.segment)?;
    }
    let journal = args.journal.as_ref().map(|folder| JournalOptions {
        durable: args.durable,
        ..JournalOptions::new(folder)
    });
    let replaying = journal.as_ref().map(|journal| {
        let progress = Arc::clone(&journal.progress);
        Progress::start("replaying the journal", "bytes", move || progress.so_far())
    });
    let compiler = Arc::new(Compiler::create(&CompilerOptions {
        retain: args.retain,
        journal,
        max_held_bytes: args.max_held.map(|mib| mib << 20),
        threads,
        ..compiler_options(&args.segment, &socket)?
    })?);
    drop(replaying);
    if let Some(folder) = &args.journal {
        let (status, folder) = (compiler.status(), folder.display());
        let (generation, units) = (status.generation, status.units.len());
        eprintln!("journal {folder}: generation {generation}, {units} units");
    }
    preload(args, &options, &compiler)?;
    let metrics = args.segment.metrics;
    let metrics = metrics.map(|address| Endpoint::start(address, Arc::clone(&compiler)));
    let metrics = metrics.transpose()?;
    let stop = server.stopper()?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            ending.wait();
            service::notify("STOPPING=1");
            stop.stop();
        })?;
    // Who connects waits from here on.
    say_what_is_served(args, &socket);
    service::notify("READY=1");
    // In this thread: if it fails, the process ends.
    server.run(Arc::clone(&compiler)).map_err(|error| {
        Failure(format!(
            "serving at {socket} has failed: {error}\n  help: workers go on with what they have; start it again"
        ))
    })?;
    // It holds the compiler.
    drop(metrics);
    let workers = compiler.worker_count();
    if let Ok(compiler) = Arc::try_unwrap(compiler).map_err(drop)
        && let Some(name) = args
            .segment
            .name
            .as_ref()
            .filter(|_| workers > 0 && !args.remove_on_exit)
    {
        compiler.keep_name();
        eprintln!(
            "keeping the named segment `{name}`: {workers} workers are attached (--remove-on-exit removes it)"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The socket: one of its own, or the one that was handed over, of which `--socket` may say where it is.
fn listen(
    args: &ServeArgs,
    inherited: Option<OwnedFd>,
    options: front::Options,
) -> Result<Server, Failure> {
    let mut policy = Policy::default();
    grant(&mut policy.attach, &args.allow_attach);
    grant(&mut policy.publish, &args.allow_publish);
    grant(&mut policy.request, &args.allow_request);
    policy.requests = requests(&args.requests);
    policy.publishing.bytes = args.publish_mib.saturating_mul(1 << 20);
    match (inherited, &args.socket) {
        (None, Some(path)) => Ok(Server::bind(path, policy, options)?),
        (None, None) => Err(Failure(
            "nowhere to listen\n  help: say --socket, or have a service manager hand a socket over (LISTEN_FDS)"
                .to_owned(),
        )),
        (Some(socket), asked) => {
            let server = Server::adopt(socket, policy, options)?;
            let there = server.path();
            match asked {
                Some(asked) if asked != there => Err(Failure(format!(
                    "--socket {asked}, but the socket that was handed over listens at {there}\n  help: leave --socket out, or make both the same"
                ))),
                _ => Ok(server),
            }
        }
    }
}

fn say_what_is_served(args: &ServeArgs, socket: &str) {
    let what = match &args.segment.name {
        Some(name) => format!("the named segment `{name}`"),
        None => "a sealed segment".to_owned(),
    };
    eprintln!("serving {what} at {socket}");
    for lacking in lacking() {
        eprintln!("note: {lacking}");
    }
    if args.allow_attach.is_empty() {
        eprintln!(
            "note: workers run as the same user, so they are trusted like the compiler process itself"
        );
    }
}

/// What workers may ask for; this executable compiles it.
fn requests(args: &RequestArgs) -> RequestOptions {
    let cpu = Duration::from_secs(args.request_seconds);
    RequestOptions {
        command: Some(vec!["/proc/self/exe".into(), "codegen".into()]),
        limits: RequestLimits {
            text_bytes: args.request_bytes,
            queue: args.request_queue,
            children: args.request_children,
            units_per_worker: args.request_units,
            unit_bytes_per_worker: args.request_unit_mib.saturating_mul(1 << 20),
            unit_bytes_total: args.request_total.saturating_mul(1 << 20),
            memory_bytes: args.request_memory.saturating_mul(1 << 20),
            cpu,
            time: cpu.saturating_mul(3),
            ..RequestLimits::default()
        },
    }
}

fn grant(access: &mut Access, who: &[Who]) {
    for who in who {
        match who {
            Who::Uid(uid) => access.allow_uid(*uid),
            Who::Gid(gid) => access.allow_gid(*gid),
        };
    }
}

/// Keeps other processes of the same user from reading or writing this one's memory through /proc or ptrace.
pub(super) fn hide_memory() -> Result<(), Failure> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Unlinks what a dead compiler process left under the segment's name.
pub(super) fn clear_leftover(segment: &SegmentArgs) -> Result<(), Failure> {
    let Some(name) = &segment.name else {
        return Ok(());
    };
    if let Leftover::Dead(dead) = examine(name)? {
        eprintln!(
            "note: {} was left by a compiler process that is dead; unlinking it (workers that live keep their mappings)",
            dead.path()
        );
        dead.unlink()?;
    }
    Ok(())
}
