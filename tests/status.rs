//! What `jitcast status` says: of the compiler process, and, when that is dead, of the segment alone.

mod common;

use common::name::Name;
use common::process::{Process, await_some, finish, jitcast};
use common::remote::{self, Remote};
use common::role;
use common::scratch::Scratch;
use common::serve::Serve;
use rustix::process::Signal;
use serde_json::Value;

/// The role of a worker with a thread that stays inside.
const INSIDE: &str = "inside";

/// The role of a process that claims to be a worker, with whatever objects.
const LIAR: &str = "liar";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[
        (remote::ROLE, remote::play),
        (INSIDE, stay_inside),
        (LIAR, lie),
    ]);
}

fn stay_inside(target: &str) {
    let worker = remote::attach(target);
    let guard = worker.enter().unwrap();
    role::report(worker.stats().base.get());
    while role::next_line().is_some() {}
    drop(guard);
}

/// Has memfds of the names that segments and mailboxes have, and a file that is none of both.
fn lie(_: &str) {
    let objects = ["jitcast", "jitcast-mailbox"].map(|name| {
        let fd = jitcast::runtime::sys::memfd(name, 1 << 20).unwrap();
        rustix::io::pwrite(&fd, &[0x5a; 4096], 0).unwrap();
        fd
    });
    role::report(0);
    while role::next_line().is_some() {}
    drop(objects);
}

fn json(args: &[&str]) -> Value {
    let shown = finish(jitcast(&["status", "--json"]).args(args)).succeeded();
    serde_json::from_str(&shown.stdout).unwrap()
}

fn names(list: &Value) -> Vec<&str> {
    let list = list.as_array().unwrap().iter();
    list.map(|it| it["name"].as_str().unwrap()).collect()
}

#[test]
fn it_tells_how_full_areas_are_and_what_workers_have() {
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 1);
    let file = serve.scratch.write(
        "lacking.clif",
        "function %lacking(i64) -> i64 {\n    fn0 = %nobody_has_this(i64) -> i64\nblock0(v0: i64):\n    v1 = call fn0(v0)\n    return v1\n}\n",
    );
    serve.publish(&[&file]).succeeded();
    let mut worker = Remote::start(&serve.socket);
    worker.ask("generation");
    let status = json(&["--socket", &serve.socket]);
    assert_eq!(status["source"], "compiler-process");
    for area in status["areas"].as_array().unwrap() {
        let bytes = |member: &str| area[member].as_u64().unwrap();
        assert_eq!(
            bytes("used_bytes") + bytes("free_bytes"),
            bytes("area_bytes"),
            "{area}"
        );
        assert!(bytes("largest_free_bytes") <= bytes("free_bytes"), "{area}");
        assert!(
            bytes("free_runs") > 0 && bytes("largest_free_bytes") > 0,
            "{area}"
        );
    }
    let of = &status["workers"][0];
    assert_eq!((&of["lag"], &of["straggling"]), (&0.into(), &false.into()));
    assert_eq!(
        of["lacks"],
        serde_json::json!(["nobody_has_this(i64) -> i64"])
    );
    assert!(of["private_bytes"].as_u64().unwrap() >= 4096, "{of}");
    let shown = serve.command("status", &[]).succeeded().stdout;
    let lacks = format!(
        "worker {} lacks the host's nobody_has_this(i64) -> i64",
        worker.pid()
    );
    assert!(shown.contains(&lacks), "{shown}");
    serve.publish_adds("f", 2);
    assert_eq!(
        serve.status().workers[0].lag,
        1,
        "it has not entered a guard since"
    );
}

#[test]
fn it_tells_who_holds_which_unit_back() {
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 1);
    let inside = Remote::start_as(&mut role::command(INSIDE, &serve.socket));
    serve.publish_adds("f", 2);
    let status = serve.status();
    let held = status.held.iter().find(|held| held.unit == "f").unwrap();
    assert_eq!(held.retired_by, 4);
    let holders: Vec<_> = held
        .holders
        .iter()
        .map(|it| (it.pid, it.generation))
        .collect();
    assert_eq!(holders, [(inside.pid(), 3)]);
    let of = &status.workers[0];
    assert_eq!((of.straggling, of.pinned, of.lag), (true, Some(3), 1));
    let shown = serve.command("status", &[]).succeeded().stdout;
    assert!(
        shown.contains("held back: f, which generation 4 replaced or removed"),
        "{shown}"
    );
}

#[test]
fn what_was_refused_is_remembered() {
    let serve = Serve::start(&[]);
    let wrong = serve.scratch.write("wrong.clif", "function %wrong() {\n");
    serve.publish(&[&wrong]).failed(&[]);
    let errors = serve.status().errors;
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert_eq!(errors[0].what, "publish");
    assert!(
        errors[0].text.contains("wrong.clif") && errors[0].seconds > 0,
        "{errors:#?}"
    );
    let shown = serve.command("status", &[]).succeeded().stdout;
    assert!(shown.contains("s ago, publish: "), "{shown}");
}

#[test]
fn the_journal_is_told_of() {
    let scratch = Scratch::new();
    let folder = scratch.path("journal");
    let serve = Serve::start(&["--journal", &folder]);
    let before = serve.status().journal.unwrap();
    serve.publish_adds("f", 1);
    let journal = serve.status().journal.unwrap();
    assert_eq!((journal.folder, journal.failed), (folder, None));
    assert!(journal.log_bytes > before.log_bytes);
}

/// What the segment alone says is what its compiler process said.
#[test]
fn when_the_compiler_process_is_dead_the_segment_tells() {
    let name = Name::new("status-of-the-dead");
    for options in [&[][..], &["--name", &name.0]] {
        let serve = Serve::start(options);
        serve.publish_adds("f", 1);
        serve.publish_adds("g", 2);
        let new = serve.scratch.write("g.clif", common::scratch::adds("g", 3));
        serve.publish(&[&new, "--canary-label", "blue"]).succeeded();
        serve.command("quarantine", &["f"]).succeeded();
        let mut worker = Remote::start(&serve.socket);
        worker.ask("generation");
        let pid = worker.pid().to_string();
        let before = json(&["--socket", &serve.socket]);
        serve.process.signal(Signal::KILL);
        let Serve {
            process, socket, ..
        } = serve;
        process.finish();
        finish(&mut jitcast(&["status", "--socket", &socket])).refused(&["cannot reach"]);
        let mut ways = vec![["--pid", &pid]];
        if !options.is_empty() {
            ways.push(["--name", &name.0]);
        }
        for way in ways {
            let after = json(&way);
            assert_eq!(after["source"], "segment");
            assert_eq!(after["generation"], before["generation"]);
            assert_eq!(names(&after["units"]), ["f", "g"]);
            assert_eq!(after["symbols"], before["symbols"]);
            assert_eq!(after["quarantined"], serde_json::json!(["f"]));
            for member in ["id", "audience", "symbols"] {
                let canaries = [&before, &after].map(|status| &status["canaries"][0][member]);
                assert_eq!(canaries[0], canaries[1], "{member}");
            }
            let units = |status: &Value| status["units"].as_array().unwrap().clone();
            for (then, now) in units(&before).iter().zip(&units(&after)) {
                for member in ["text_bytes", "read_only_bytes", "private_bytes", "keeps"] {
                    assert_eq!(then[member], now[member], "{member}");
                }
            }
            let of = &after["workers"][0];
            for member in ["pid", "base", "applied", "uid", "private_bytes"] {
                assert_eq!(of[member], before["workers"][0][member], "{member}");
            }
            let shown = finish(jitcast(&["status"]).args(way)).succeeded().stdout;
            assert!(
                shown.contains("the compiler process was not asked"),
                "{shown}"
            );
        }
    }
}

#[test]
fn what_a_process_only_pretends_is_refused() {
    let liar = Process::start_listening(&mut role::command(LIAR, ""));
    let pid = liar.pid().to_string();
    await_some("its objects", || {
        let links = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .flatten();
        let links = links.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        let mut links = links.map(|link| link.display().to_string());
        links
            .any(|link| link.contains("jitcast-mailbox"))
            .then_some(())
    });
    let refused = finish(&mut jitcast(&["status", "--pid", &pid]));
    refused.refused(&["has no segment of this version open", "help: "]);
    let nobody = finish(&mut jitcast(&["status", "--pid=-1"]));
    assert_ne!(nobody.code, Some(0));
    drop(liar);
}

#[test]
fn a_name_that_is_not_there_is_said_to_be_none() {
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 1);
    let why = |name: &str| serve.command("why", &[name]);
    why("f").succeeded();
    let nothing = why("nothing");
    assert_eq!((nothing.code, nothing.stderr.as_str()), (Some(1), ""));
    let said = "nothing: nothing is published under this name";
    assert!(nothing.stdout.contains(said), "{nothing:#?}");
    serve.command("remove", &["f"]).succeeded();
    let removed = why("f");
    assert_eq!(removed.code, Some(1));
    assert!(
        removed.stdout.contains("generation 4 removed it"),
        "{removed:#?}"
    );
}
