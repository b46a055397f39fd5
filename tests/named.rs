//! Both back ends by one suite, and what only a named segment has: a name.

mod common;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

use common::attack;
use common::host::{Host, clif_unit, object_unit};
use common::mount;
use common::name::Name;
use common::object::Maker;
use common::process::{Finished, Process, finish, jitcast};
use common::remote::{self, Remote};
use common::require;
use common::role;
use common::scratch::{Scratch, adds};
use common::serve::{Serve, results};
use jitcast::compiler::Reclaim;
use jitcast::runtime::Area;
use jitcast::runtime::segment::BackEnd;
use rustix::process::Signal;

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(remote::ROLE, remote::play)]);
}

/// Makes a test of each function of the suite for each back end.
macro_rules! on_both_back_ends {
    ($($test:ident)*) => {
        mod sealed {
            $(#[test] fn $test() { super::$test(super::BackEnd::Sealed); })*
        }
        mod named {
            $(#[test] fn $test() {
                let name = super::Name::new(stringify!($test));
                super::$test(super::BackEnd::Named(name.0.clone()));
                assert!(!name.exists(), "the name goes with the compiler");
            })*
        }
    };
}

on_both_back_ends! {
    workers_that_came_before_and_after_run_what_is_published
    a_replacement_reaches_every_worker
    a_refused_publication_changes_nothing
    many_replacements_reuse_memory
    workers_outlive_their_compiler
    the_descriptor_of_workers_is_open_for_reading_only
}

fn workers_that_came_before_and_after_run_what_is_published(back_end: BackEnd) {
    let host = Host::start(back_end);
    let mut early = Remote::start(&host.socket);
    assert!(early.call("f", 1).starts_with("`f` is not published"));
    host.publish_adds("f", 1);
    let mut late = Remote::start(&host.socket);
    assert_eq!([early.call("f", 1), late.call("f", 1)], ["2", "2"]);
    assert_ne!(early.base(), late.base());
}

fn a_replacement_reaches_every_worker(back_end: BackEnd) {
    let host = Host::start(back_end);
    let mut workers = [(); 3].map(|()| Remote::start(&host.socket));
    for bonus in 1..20 {
        let generation = host.publish_adds("f", bonus).to_string();
        for worker in &mut workers {
            assert_eq!(worker.call("f", 100), (100 + bonus).to_string());
            assert_eq!(worker.ask("generation"), generation);
        }
    }
}

fn a_refused_publication_changes_nothing(back_end: BackEnd) {
    let host = Host::start(back_end);
    let mut worker = Remote::start(&host.socket);
    let generation = host.publish_adds("f", 1).to_string();
    let refused = host.publish("rival", &adds("f", 2)).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("`f` is defined by the unit `rival`")
    );
    let batch = ["a", "b"].map(|unit| clif_unit(unit, &adds("g", 1)));
    let refused = host.compiler.publish(&batch).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("`g` is defined by the unit `b` and by the unit `a`")
    );
    assert!(worker.call("g", 1).starts_with("`g` is not published"));
    assert_eq!(worker.call("f", 1), "2");
    assert_eq!(worker.ask("generation"), generation);
}

fn many_replacements_reuse_memory(back_end: BackEnd) {
    /// More than all of them fit, and more than is retired before anything is reused.
    const CODE_BYTES: usize = 64 << 10;
    let host = Host::start(back_end);
    let mut worker = Remote::start(&host.socket);
    for round in 0..200u8 {
        // mov $round, %eax; ret
        let mut code = vec![0xb8, round, 0, 0, 0, 0xc3];
        code.resize(CODE_BYTES, 0xcc);
        let mut unit = object_unit("f", Maker::new().function("f", &code).finish());
        unit.signatures = vec![("f".into(), "(i64) -> i64".parse().unwrap())];
        unit.reclaim = Reclaim::Yes;
        host.compiler
            .publish(&[unit])
            .unwrap_or_else(|error| panic!("{round}: {error}"));
        if round % 10 == 9 {
            assert_eq!(worker.call("f", 0), round.to_string());
        }
    }
    let status = host.compiler.status();
    let text = &status.areas[Area::Text.index()];
    assert!(
        200 * CODE_BYTES as u64 > text.area_bytes,
        "memory was reused: {text:?}"
    );
}

fn workers_outlive_their_compiler(back_end: BackEnd) {
    let host = Host::start(back_end);
    host.publish_adds("f", 1);
    let mut worker = Remote::start(&host.socket);
    drop(host);
    assert_eq!(worker.call("f", 1), "2");
}

fn the_descriptor_of_workers_is_open_for_reading_only(back_end: BackEnd) {
    let host = Host::start(back_end.clone());
    let segment = attack::segment_of(Path::new(&host.socket));
    let flags = rustix::fs::fcntl_getfl(&segment).unwrap();
    assert!(!flags.intersects(rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::RDWR));
    assert_eq!(host.compiler.is_sealed(), back_end == BackEnd::Sealed);
}

/// A worker that attaches by name, and its results.
fn worker_by_name(name: &Name, call: &str) -> Finished {
    finish(&mut jitcast(&[
        "worker", "--name", &name.0, "--json", "--call", call,
    ]))
}

#[test]
fn workers_attach_by_name() {
    let name = Name::new("attach");
    let serve = Serve::start(&["--name", &name.0]);
    serve.publish_adds("f", 1);
    let worker = worker_by_name(&name, "f(1)").succeeded();
    assert_eq!(results(&worker.stdout), ["2"]);
    assert_eq!(serve.status().segment, Some(name.0.clone()));
    let mut remote = Remote::start(&format!("name:{}", name.0));
    assert_eq!(remote.call("f", 2), "3");
}

#[test]
fn a_name_that_nobody_has_is_refused() {
    let name = Name::new("nobody");
    worker_by_name(&name, "f(1)").refused(&["cannot reach the compiler process", &name.path()]);
    let bad = Name("../etc/passwd".into());
    worker_by_name(&bad, "f(1)").refused(&["`../etc/passwd` cannot name a segment"]);
    let scratch = Scratch::new();
    let socket = scratch.path("socket");
    finish(&mut jitcast(&[
        "serve", "--socket", &socket, "--name", &bad.0,
    ]))
    .refused(&["`../etc/passwd` cannot name a segment", "help: "]);
    assert!(
        !Path::new(&socket).exists(),
        "a compiler that does not start leaves no socket"
    );
}

#[test]
fn what_a_killed_compiler_left_is_unlinked_while_its_worker_goes_on() {
    let name = Name::new("killed");
    let options = ["--name", &*name.0];
    let serve = Serve::start(&options);
    serve.publish_adds("f", 1);
    let mut old = Remote::start(&serve.socket);
    serve.process.signal(Signal::KILL);
    serve.process.finish();
    assert!(name.exists(), "the kernel does not remove names");
    worker_by_name(&name, "f(1)").refused(&["cannot reach the compiler process"]);

    let second = Serve::start(&options);
    second.publish_adds("f", 2);
    let mut new = Remote::start(&format!("name:{}", name.0));
    assert_eq!([old.call("f", 1), new.call("f", 1)], ["2", "3"]);
    second.process.signal(Signal::KILL);
    let said = second.process.finish().stderr;
    let note = format!(
        "note: {} was left by a compiler process that is dead",
        name.path()
    );
    assert!(said.contains(&note), "{said}");
    assert_eq!([old.call("f", 1), new.call("f", 1)], ["2", "3"]);
}

#[test]
fn the_name_of_a_running_compiler_is_refused_and_its_owner_goes_on() {
    let name = Name::new("in-use");
    let serve = Serve::start(&["--name", &name.0]);
    serve.publish_adds("f", 1);
    let other = serve.scratch.path("other");
    finish(&mut jitcast(&[
        "serve", "--socket", &other, "--name", &name.0,
    ]))
    .refused(&[
        &format!(
            "the segment `{}` belongs to a running compiler process",
            name.0
        ),
        "help: end that one, or choose another name",
    ]);
    assert!(
        !Path::new(&other).exists(),
        "a compiler that does not start leaves no socket"
    );
    assert_eq!(
        results(&worker_by_name(&name, "f(1)").succeeded().stdout),
        ["2"]
    );
}

#[test]
fn a_foreign_object_under_the_name_is_left_alone() {
    let name = Name::new("foreign");
    let scratch = Scratch::new();
    let socket = scratch.path("socket");
    let foreign: [(&[u8], &str); 3] = [
        (b"short", "the segment is truncated"),
        (
            b"long enough for a magic number",
            "the segment is truncated",
        ),
        (&[b'x'; 8192], "this is no jitcast segment"),
    ];
    for (contents, to_workers) in foreign {
        std::fs::write(name.path(), contents).unwrap();
        finish(&mut jitcast(&[
            "serve", "--socket", &socket, "--name", &name.0,
        ]))
        .refused(&[&name.path(), "exists and is no segment", "help: remove it"]);
        assert!(std::fs::read(name.path()).unwrap() == contents);
        worker_by_name(&name, "f(1)").refused(&[to_workers]);
    }
    assert_eq!(scratch.names(), [""; 0]);
}

#[test]
fn sigterm_keeps_the_name_while_workers_are_attached_unless_told_otherwise() {
    let ends = [
        (false, false, false),
        (true, false, true),
        (true, true, false),
    ];
    for (attached, remove_on_exit, stays) in ends {
        let name = Name::new(&format!("sigterm-{attached}-{remove_on_exit}"));
        let mut options = vec!["--name", &*name.0];
        options.extend(remove_on_exit.then_some("--remove-on-exit"));
        let serve = Serve::start(&options);
        serve.publish_adds("f", 1);
        let mut worker = attached.then(|| Remote::start(&serve.socket));
        serve.process.signal(Signal::TERM);
        let done = serve.process.finish().succeeded();
        let case = format!("attached {attached}, --remove-on-exit {remove_on_exit}: {done:?}");
        assert_eq!(name.exists(), stays, "{case}");
        assert_eq!(
            done.stderr.contains("keeping the named segment"),
            stays,
            "{case}"
        );
        assert!(!Path::new(&serve.socket).exists(), "{case}");
        if let Some(worker) = &mut worker {
            assert_eq!(worker.call("f", 1), "2", "{case}");
        }
    }
}

#[test]
fn a_noexec_dev_shm_is_named_with_the_back_end_to_use() {
    let name = Name::new("noexec");
    let scratch = Scratch::new();
    let socket = scratch.path("socket");
    let mut command = jitcast(&["serve", "--socket", &socket, "--name", &name.0]);
    // SAFETY: between fork and exec only async-signal-safe functions may be called: the closure makes system
    // calls with constant arguments, and allocates nothing.
    unsafe { command.pre_exec(|| mount::tmpfs(c"/dev/shm", libc::MS_NOEXEC, None)) };
    match Process::try_start(command.stdin(Stdio::null())) {
        Ok(serve) => drop(serve.finish().refused(&[
            "/dev/shm is mounted noexec",
            "help: use the sealed back end (the default)",
        ])),
        Err(error) => require::skipped(&format!(
            "no mount namespace of its own can be had: {error}"
        )),
    }
    assert!(!name.exists());
}

/// The story: storing to a page for which a tmpfs has no room left is a SIGBUS, so room is asked for first.
#[test]
fn a_full_dev_shm_refuses_the_publication_and_what_ran_goes_on() {
    let name = Name::new("full");
    let scratch = Scratch::open_to_all();
    let socket = scratch.path("socket");
    let mut command = jitcast(&["serve", "--socket", &socket, "--name", &name.0]);
    // SAFETY: as in the test before.
    unsafe { command.pre_exec(|| mount::tmpfs(c"/dev/shm", 0, Some(c"size=1m"))) };
    let process = match Process::try_start(command.stdin(Stdio::null())) {
        Ok(process) => process,
        Err(error) => {
            return require::skipped(&format!(
                "no mount namespace of its own can be had: {error}"
            ));
        }
    };
    let serve = Serve::adopt(process, socket, scratch);
    serve.publish_adds("small", 1);
    let large = Maker::new().read_only("large", &vec![7; 2 << 20]).finish();
    let file = serve.scratch.write("large.o", large);
    serve.publish(&[&file]).refused(&[
        "segment full",
        "the system refused to back them",
        "help: enlarge the tmpfs",
    ]);
    assert_eq!(serve.call("small(1)"), "2");
    serve.publish_adds("small", 2);
    assert_eq!(serve.call("small(1)"), "3");
}

/// A compiler process that dies between creating the object and writing its header leaves zeros.
#[test]
fn an_object_of_zeros_is_taken_for_a_dead_compilers() {
    let name = Name::new("zeros");
    std::fs::write(name.path(), [0; 8192]).unwrap();
    let serve = Serve::start(&["--name", &name.0]);
    serve.publish_adds("f", 1);
    assert_eq!(
        results(&worker_by_name(&name, "f(1)").succeeded().stdout),
        ["2"]
    );
    serve.process.signal(Signal::TERM);
    let said = serve.process.finish().succeeded().stderr;
    assert!(
        said.contains("was left by a compiler process that is dead"),
        "{said}"
    );
}
