//! The parts run apart: `serve`, `publish`, `worker` and `status` as processes of their own.

mod common;

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use common::object::{Maker, PLUS_ONE};
use common::process::{NOBODY, Process, Stream, Watched, await_some, finish, jitcast, jitcast_as};
use common::remote::{self, Remote};
use common::require;
use common::role;
use common::scratch::{Scratch, adds};
use common::serve::{Serve, table};
use rustix::process::Signal;

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(remote::ROLE, remote::play)]);
}

#[test]
fn clif_is_published_and_called_by_processes_of_their_own() {
    let serve = Serve::start(&[]);
    let file = serve.scratch.write("f.clif", adds("f", 1));
    let published = serve.publish(&[&file]).succeeded();
    assert_eq!(published.stdout, "generation 3: f\n");
    assert_eq!(serve.call("f(41)"), "42");
    let worker = serve.command("worker", &["--call", "f(1)", "--call", "f(2)"]);
    let table = table(&worker.succeeded().stdout);
    assert_eq!(table[0][3..5], ["f(1)", "f(2)"]);
    assert_eq!(table[1][3..5], ["2", "3"]);
}

#[test]
fn c_is_compiled_by_the_publisher_and_objects_are_taken_as_they_are() {
    let serve = Serve::start(&[]);
    let object = Maker::new().function("plus_one", &PLUS_ONE).finish();
    let object = serve.scratch.write("plus_one.o", object);
    serve
        .publish(&[&object, "--sig=long plus_one(long)"])
        .succeeded();
    assert_eq!(serve.call("plus_one(6)"), "7");
    if !require::cc() {
        return;
    }
    let c = serve.scratch.write(
        "cube.c",
        "#include \"cube.h\"\nlong cube(long n) { return POWER3(n); }\n",
    );
    serve
        .scratch
        .write("cube.h", "#define POWER3(n) ((n) * (n) * (n))\n");
    serve.publish(&[&c]).succeeded();
    assert_eq!(serve.call("cube(3)"), "27");
    let uses = serve.scratch.object(
        "uses.o",
        "long cube(long); long plus_one(long); long both(long n) { return cube(plus_one(n)); }\n",
    );
    serve.publish(&[&uses]).succeeded();
    assert_eq!(serve.call("both(1) -> i64"), "8");
}

#[test]
fn publishing_a_unit_again_replaces_it_under_a_worker_that_runs() {
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 1);
    let mut worker = Remote::start(&serve.socket);
    assert_eq!(worker.call("f", 10), "11");
    serve.publish_adds("f", 2);
    assert_eq!(worker.call("f", 10), "12");
    let other = serve.scratch.write("other.clif", adds("f", 3));
    serve
        .publish(&[&other])
        .refused(&["`f` is defined by the unit `other` and by the unit `f`"]);
    assert_eq!(worker.call("f", 10), "12");
    serve.publish(&[&other, "--unit", "f"]).succeeded();
    assert_eq!(worker.call("f", 10), "13");
}

#[test]
fn a_worker_waits_for_what_is_not_published_yet() {
    let serve = Serve::start(&[]);
    let args = [
        "worker",
        "--socket",
        &serve.socket,
        "--json",
        "--wait=600",
        "--call=f(1)",
    ];
    let mut worker = Process::start(&mut jitcast(&args));
    worker.await_line(Stream::Out, "`ready`", |line| line.contains("ready"));
    serve.publish_adds("f", 1);
    let done = worker.finish().succeeded();
    assert_eq!(common::serve::results(&done.stdout), ["2"]);
}

#[test]
fn status_tells_what_is_published_and_who_runs_it() {
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 1);
    let worker = Remote::start(&serve.socket);
    let status = serve.status();
    assert_eq!(status.generation, 3);
    assert_eq!(status.segment, None);
    assert_eq!(status.window_bytes, 1 << 30);
    let [unit] = &status.units[..] else {
        panic!("{status:#?}");
    };
    assert_eq!((&*unit.name, unit.generation, unit.keeps), ("f", 3, false));
    let [symbol] = &status.symbols[..] else {
        panic!("{status:#?}");
    };
    assert_eq!(
        (&*symbol.name, &*symbol.kind, &*symbol.unit),
        ("f", "function", "f")
    );
    assert_eq!(symbol.signature, "(i64) -> i64");
    let [attached] = &status.workers[..] else {
        panic!("{status:#?}");
    };
    assert_eq!((attached.pid, attached.base), (worker.pid(), worker.base()));
    assert_eq!((attached.applied, attached.pinned), (3, None));
    let shown = serve.command("status", &[]).succeeded().stdout;
    for phrase in [
        "generation 3, sealed segment",
        "(i64) -> i64",
        &worker.pid().to_string(),
    ] {
        assert!(shown.contains(phrase), "`{phrase}` in {shown}");
    }
    drop(worker);
    await_some("the end of the worker in `status`", || {
        serve.status().workers.is_empty().then_some(())
    });
}

#[test]
fn renew_gives_memory_back_under_a_running_worker() {
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 1);
    let mut worker = Remote::start(&serve.socket);
    assert_eq!(worker.call("f", 1), "2");
    let big = "char big[3000000] = {1}; const char table[3000000] = {1};\n";
    let big = serve.scratch.write("big.c", big);
    serve.publish(&[&big, "--reclaim"]).succeeded();
    serve.command("remove", &["big"]).succeeded();
    let done = serve.command("renew", &[]).succeeded();
    let words: Vec<_> = done.stdout.split_whitespace().collect();
    let [
        "generation",
        _,
        after,
        "KiB",
        "of",
        "shared",
        "memory",
        "instead",
        "of",
        before,
        "KiB",
        ..,
    ] = words[..]
    else {
        panic!("{}", done.stdout)
    };
    let [after, before] = [after, before].map(|kib| kib.parse::<u64>().unwrap());
    assert!(after + 2900 < before, "{}", done.stdout);
    assert_eq!(worker.call("f", 1), "2");
    serve.publish_adds("f", 2);
    assert_eq!(worker.call("f", 1), "3");
    let shown = serve.command("status", &[]).succeeded().stdout;
    assert!(shown.contains("shared memory "), "{shown}");
}

#[test]
fn a_socket_in_use_is_refused_and_its_owner_goes_on() {
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 1);
    finish(&mut jitcast(&["serve", "--socket", &serve.socket])).refused(&[
        &serve.socket,
        "is in use by a running compiler process",
        "help: ",
    ]);
    assert_eq!(serve.call("f(1)"), "2");
}

#[test]
fn the_socket_of_a_killed_compiler_is_taken_over() {
    let serve = Serve::start(&[]);
    serve.process.signal(Signal::KILL);
    let killed = serve.process.finish();
    assert_eq!(killed.signal, Some(libc::SIGKILL));
    assert!(Path::new(&serve.socket).exists());
    let _second = Serve::start_at(&serve.socket, &[]);
    finish(&mut jitcast(&["status", "--socket", &serve.socket])).succeeded();
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let scratch = Scratch::new();
    let file = scratch.write("file", "precious");
    finish(&mut jitcast(&["serve", "--socket", &file])).refused(&["exists and is no socket"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}

#[test]
fn sigterm_and_ctrl_c_remove_the_socket_and_leave_the_workers_running() {
    for signal in [Signal::TERM, Signal::INT] {
        let serve = Serve::start(&[]);
        serve.publish_adds("f", 1);
        let mut worker = Remote::start(&serve.socket);
        let watched = Watched::new(worker.pid());
        serve.process.signal(signal);
        serve.process.finish().succeeded();
        let left = serve.scratch.names();
        assert_eq!(left, ["f.clif"], "neither socket nor anything else is left");
        assert_eq!(worker.call("f", 1), "2");
        assert!(watched.lives());
    }
}

/// The story: the process stayed, waited for a signal, and answered nobody.
#[cfg(feature = "seeded-faults")]
#[test]
fn a_compiler_process_that_cannot_serve_any_more_ends_and_says_why() {
    let scratch = Scratch::new();
    let mut serve = jitcast(&["serve", "--socket", &scratch.path("socket")]);
    let ended = finish(serve.env("JITCAST_FAULT", "serving-fails"));
    ended.refused(&["serving at", "has failed: Cannot allocate memory", "help: "]);
    assert!(scratch.names().is_empty(), "nobody is told to come");
}

#[test]
fn nobody_answers_where_no_compiler_listens() {
    let scratch = Scratch::new();
    let socket = scratch.path("nothing");
    let file = scratch.write("f.clif", adds("f", 1));
    for args in [
        &["status"][..],
        &["publish", &file],
        &["worker", "--call=f(1)"],
    ] {
        let mut command = jitcast(args);
        finish(command.args(["--socket", &socket])).refused(&[
            "cannot reach the compiler process",
            &socket,
            "help: start it",
        ]);
    }
}

#[test]
fn the_socket_is_the_users_own_unless_others_are_allowed() {
    let mode = |serve: &Serve| {
        let socket = std::fs::metadata(&serve.socket).unwrap();
        assert!(socket.file_type().is_socket());
        socket.permissions().mode() & 0o777
    };
    assert_eq!(mode(&Serve::start(&[])), 0o600);
    assert_eq!(mode(&Serve::start(&["--allow-attach", "gid:12345"])), 0o666);
}

#[test]
fn attaching_and_publishing_are_rights_of_their_own() {
    if !require::root() {
        return;
    }
    let as_nobody = |serve: &Serve, args: &[&str]| {
        finish(jitcast_as(NOBODY, args).args(["--socket", &serve.socket]))
    };
    let attach = ["worker", "--json", "--call=f(1)"];
    let attacher = Serve::start(&["--allow-attach", "uid:65534"]);
    attacher.publish_adds("f", 1);
    let file = attacher.scratch.path("f.clif");
    let publish = ["publish", &*file];
    as_nobody(&attacher, &attach).succeeded();
    as_nobody(&attacher, &publish).refused(&[
        "uid 65534 gid 65534 may not publish",
        "--allow-publish 65534",
    ]);
    for other in [
        &["remove", "f"][..],
        &["quarantine", "f"],
        &["restore", "f"],
        &["rollback"],
        &["promote", "f"],
        &["abort", "f"],
    ] {
        as_nobody(&attacher, other).refused(&["uid 65534 gid 65534 may not publish"]);
    }
    as_nobody(&attacher, &["history"]).succeeded();

    let publisher = Serve::start(&["--allow-publish", "gid:65534"]);
    as_nobody(&publisher, &publish).succeeded();
    as_nobody(&publisher, &attach)
        .refused(&["uid 65534 gid 65534 may not attach", "--allow-attach 65534"]);
    assert_eq!(publisher.call("f(1)"), "2");

    let private = Serve::start(&[]);
    as_nobody(&private, &attach).refused(&["Permission denied"]);
}

#[test]
fn a_worker_does_not_execute_what_another_user_compiles() {
    if !require::root() {
        return;
    }
    let serve = Serve::start_as(NOBODY, &["--allow-attach", "0"]);
    serve.command("worker", &["--call=f(1)"]).refused(&[
        "the compiler process runs as uid 65534",
        "executed here as uid 0",
        "help: ",
    ]);
}

#[test]
fn the_compilers_memory_is_closed_to_its_own_user() {
    if !require::root() {
        return;
    }
    let serve = Serve::start_as(NOBODY, &[]);
    let memory = format!("if=/proc/{}/mem", serve.process.pid());
    let mut dd = Command::new("dd");
    let opened = finish(dd.args([&*memory, "count=0"]).uid(NOBODY).gid(NOBODY));
    assert!(opened.stderr.contains("Permission denied"), "{opened:#?}");
}

/// The story: a compiler process that ran out of descriptors while nobody was connected let nobody in any more.
#[test]
fn a_compiler_that_ran_out_of_descriptors_lets_workers_in_again() {
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 1);
    let pid = rustix::process::Pid::from_raw(serve.process.pid());
    let limit = |current| {
        let resource = rustix::process::Resource::Nofile;
        let old = rustix::process::getrlimit(resource);
        let new = rustix::process::Rlimit {
            current: Some(current),
            maximum: old.maximum,
        };
        rustix::process::prlimit(pid, resource, new).unwrap()
    };
    let before = limit(3);
    let peer = std::os::unix::net::UnixStream::connect(&serve.socket).unwrap();
    // Long enough for the compiler process to have tried; too short, and the test shows less.
    std::thread::sleep(std::time::Duration::from_millis(300));
    drop(peer);
    limit(before.current.unwrap_or(1024));
    assert_eq!(serve.call("f(1)"), "2");
}
