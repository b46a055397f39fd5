//! The journal, with real processes and real kills: what was acknowledged is there after a restart, at the same
//! offsets.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::path::Path;

use common::host::Host;
use common::object::Maker;
use common::process::{Process, finish, jitcast};
use common::remote::{self, Remote};
use common::scratch::Scratch;
use common::serve::Serve;
use common::{mount, require, role};
use jitcast::compiler::{CompilerOptions, JournalOptions, UnitSource};
use rustix::process::Signal;
use units::{c, call, publish};

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(remote::ROLE, remote::play)]);
}

/// A `serve` with a journal in its scratch folder.
fn serve(options: &[&str]) -> Serve {
    let scratch = Scratch::open_to_all();
    restart(scratch.path("socket"), scratch, options)
}

/// Kills it and, once it is gone, starts another one.
fn kill_and_restart(serve: Serve, options: &[&str]) -> Serve {
    serve.process.signal(Signal::KILL);
    let (process, socket, scratch) = (serve.process, serve.socket, serve.scratch);
    assert_eq!(process.finish().signal, Some(libc::SIGKILL));
    restart(socket, scratch, options)
}

/// Starts one with the journal that is in `scratch`.
fn restart(socket: String, scratch: Scratch, options: &[&str]) -> Serve {
    let journal = scratch.path("journal");
    let options = [&["--journal", &journal], options].concat();
    Serve {
        process: Serve::start_at(&socket, &options),
        socket,
        scratch,
    }
}

#[test]
fn what_was_published_is_there_after_a_kill_at_the_same_places() {
    let named = format!("test-journal-{}", std::process::id());
    for options in [&[][..], &["--durable"], &["--name", &named]] {
        let serve = serve(options);
        serve.publish_adds("f", 1);
        let g = serve.scratch.write("g.clif", units::calls("g", "f", 10));
        serve.publish(&[&g]).succeeded();
        serve.publish_adds("f", 2);
        let mut old = Remote::start(&serve.socket);
        let places = ["f", "g"].map(|name| old.ask(&format!("place {name}")));
        let before = serve.status();
        let serve = kill_and_restart(serve, options);
        let mut new = Remote::start(&serve.socket);
        assert_eq!(
            [new.call("f", 0), new.call("g", 0)],
            ["2", "12"],
            "{options:?}"
        );
        assert_eq!(
            ["f", "g"].map(|name| new.ask(&format!("place {name}"))),
            places
        );
        let after = serve.status();
        assert_eq!(
            (after.generation, &after.units, &after.symbols),
            (before.generation, &before.units, &before.symbols)
        );
        // What is published next has a number that nobody can have used.
        serve.publish_adds("f", 3);
        assert!(serve.status().generation > before.generation + 1);
        assert_eq!(
            [new.call("f", 0), new.call("g", 0)],
            ["3", "13"],
            "{options:?}"
        );
        // Workers of the dead one go on with what they have; a named segment is the same memory.
        let seen = if options.contains(&"--name") {
            "13"
        } else {
            "12"
        };
        assert_eq!(old.call("g", 0), seen, "{options:?}");
    }
    // What the last one left.
    for beside in ["", "+shared"] {
        let _ = std::fs::remove_file(format!("/dev/shm/jitcast-{named}{beside}"));
    }
}

#[test]
fn a_journal_has_one_compiler_process() {
    let serve = serve(&[]);
    serve.publish_adds("f", 1);
    let (socket, journal) = (serve.scratch.path("other"), serve.scratch.path("journal"));
    finish(&mut jitcast(&[
        "serve",
        "--socket",
        &socket,
        "--journal",
        &journal,
    ]))
    .refused(&[&journal, "belongs to a running compiler process", "help: "]);
    assert_eq!(serve.call("f(1)"), "2");
}

#[test]
fn another_window_is_refused_and_the_journals_own_is_used() {
    let serve = serve(&["--window", "64"]);
    serve.publish_adds("f", 1);
    let journal = serve.scratch.path("journal");
    let serve = kill_and_restart(serve, &[]);
    assert_eq!(serve.status().window_bytes, 64 << 20);
    assert_eq!(serve.call("f(1)"), "2");
    let (process, socket, _scratch) = end(serve);
    process.finish().succeeded();
    let command = ["serve", "--socket", &socket, "--journal", &journal];
    finish(jitcast(&command).args(["--window", "128"])).refused(&["help: leave --window out"]);
}

#[test]
fn a_torn_end_is_said_and_a_damaged_middle_refused() {
    let serve = serve(&[]);
    serve.publish_adds("f", 1);
    serve.publish_adds("f", 2);
    let (process, socket, scratch) = end(serve);
    process.finish().succeeded();
    let journal = scratch.path("journal");
    let log = format!("{journal}/log");
    let whole = std::fs::read(&log).unwrap();
    std::fs::write(&log, [&whole[..], &[7; 100]].concat()).unwrap();
    let serve = restart(socket, scratch, &[]);
    assert_eq!(serve.call("f(1)"), "3");
    let (process, socket, _scratch) = end(serve);
    let said = process.finish().succeeded().stderr;
    assert!(
        said.contains("100 bytes after generation 4 are cut off"),
        "{said}"
    );
    let mut damaged = whole.clone();
    damaged[200] ^= 1;
    std::fs::write(&log, &damaged).unwrap();
    let command = ["serve", "--socket", &socket, "--journal", &journal];
    finish(&mut jitcast(&command)).refused(&[&log, "is damaged", "help: put a copy"]);
    assert_eq!(std::fs::read(&log).unwrap(), damaged, "it is left as it is");
}

/// Asks it to end.
fn end(serve: Serve) -> (Process, String, Scratch) {
    serve.process.signal(Signal::TERM);
    (serve.process, serve.socket, serve.scratch)
}

/// The story: a journal that fills its file system must not take the compiler process, or its workers, with it.
#[test]
fn a_full_file_system_refuses_the_publication_and_what_ran_goes_on() {
    let scratch = Scratch::open_to_all();
    let (socket, journal) = (scratch.path("socket"), scratch.path("journal"));
    std::fs::create_dir(&journal).unwrap();
    let target = std::ffi::CString::new(journal.clone()).unwrap();
    let mut command = jitcast(&["serve", "--socket", &socket, "--journal", &journal]);
    // SAFETY: between fork and exec only async-signal-safe functions may be called: the closure makes system
    // calls with strings that live already, and allocates nothing.
    unsafe {
        use std::os::unix::process::CommandExt;
        command.pre_exec(move || mount::tmpfs(&target, 0, Some(c"size=1m,mode=700")));
    }
    let process = match Process::try_start(command.stdin(std::process::Stdio::null())) {
        Ok(process) => process,
        Err(error) => {
            return require::skipped(&format!(
                "no mount namespace of its own can be had: {error}"
            ));
        }
    };
    let serve = Serve::adopt(process, socket, scratch);
    serve.publish_adds("small", 1);
    let mut worker = Remote::start(&serve.socket);
    let generation = serve.status().generation;
    // Of the second one, the object fits, and the record does not.
    for len_bytes in [2 << 20, 600 << 10] {
        let large = Maker::new()
            .read_only("large", &vec![7; len_bytes])
            .finish();
        let file = serve.scratch.write("large.o", large);
        serve.publish(&[&file]).refused(&[
            "cannot be written to the journal",
            "No space left on device",
            "nothing of it is visible",
            "help: make room",
        ]);
        assert_eq!(serve.status().generation, generation);
        assert_eq!(worker.call("small", 1), "2");
    }
    serve.publish_adds("small", 2);
    assert_eq!(worker.call("small", 1), "3");
}

/// The story: a machine without memory for the image is no damage of the journal.
#[test]
fn an_image_that_finds_no_memory_is_not_taken_for_damage() {
    let serve = serve(&[]);
    serve.publish_adds("small", 1);
    let large = Maker::new().read_only("large", &vec![7; 2 << 20]).finish();
    let file = serve.scratch.write("large.o", large);
    serve.publish(&[&file]).succeeded();
    let (process, socket, scratch) = end(serve);
    process.finish().succeeded();
    let journal = scratch.path("journal");
    let name = format!("test-memory-{}", std::process::id());
    let command = [
        "serve",
        "--socket",
        &socket,
        "--journal",
        &journal,
        "--name",
        &name,
    ];
    let mut command = jitcast(&command);
    // SAFETY: as in the test before.
    unsafe {
        use std::os::unix::process::CommandExt;
        command.pre_exec(|| mount::tmpfs(c"/dev/shm", 0, Some(c"size=1m")));
    }
    match Process::try_start(command.stdin(std::process::Stdio::null())) {
        Ok(process) => drop(process.finish().refused(&[
            "segment full",
            "the system refused to back them",
            "help: enlarge the tmpfs",
        ])),
        Err(error) => require::skipped(&format!(
            "no mount namespace of its own can be had: {error}"
        )),
    }
    assert_eq!(restart(socket, scratch, &[]).call("small(1)"), "2");
}

#[test]
fn a_folder_that_others_can_write_to_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    let (socket, journal) = (scratch.path("socket"), scratch.path("journal"));
    std::fs::create_dir(&journal).unwrap();
    std::fs::set_permissions(&journal, std::fs::Permissions::from_mode(0o777)).unwrap();
    let command = ["serve", "--socket", &socket, "--journal", &journal];
    finish(&mut jitcast(&command)).refused(&["can write to it", "mode 777", "help: `chown"]);
    assert!(!Path::new(&format!("{journal}/log")).exists());
}

/// A host with a journal in `folder`.
fn host(folder: &Path) -> Host {
    Host::with(CompilerOptions {
        journal: Some(JournalOptions::new(folder)),
        ..CompilerOptions::default()
    })
}

/// What a catalog has beside units and symbols comes back too: what is kept, what is unique, what is held.
#[test]
fn publications_after_a_restart_use_what_was_published_before() {
    if !require::cxx() {
        return;
    }
    let scratch = Scratch::new();
    let folder = scratch.path("journal");
    let unique = |name: &str, factor: i64| {
        let source = format!(
            "inline long variable = 1000;
             extern \"C\" long {name}(long x) {{ variable += x; return variable * {factor}; }}"
        );
        let object = Scratch::new().cplusplus(&source, "g++", &["-O2", "-fPIC"]);
        common::host::object_unit(name, object)
    };
    let counter = |start: i64| {
        c(
            "counter",
            &format!("static long n = {start}; long counter(long x) {{ return n += x; }}"),
        )
    };
    let uses = |bonus: i64| {
        c(
            "uses",
            &format!(
                "extern long counter(long); long (*taken)(long) = counter; long uses(long x) {{ return taken(x) + {bonus}; }}"
            ),
        )
    };
    let before = host(folder.as_ref());
    publish(&before, &[counter(10), uses(0)]);
    publish(&before, &[counter(20)]);
    publish(&before, &[unique("one", 1)]);
    let old = units::published(&before);
    assert_eq!(old.kept.len(), 1, "{:?}", old.kept);
    drop(before);
    let after = host(folder.as_ref());
    let found = units::published(&after);
    assert_eq!(
        (&found.kept, &found.units, &found.symbols),
        (&old.kept, &old.units, &old.symbols)
    );
    assert_eq!(units::held_bytes(&found), units::held_bytes(&old));
    let worker = units::attach(&after);
    assert_eq!(call(&worker, "uses", 1), 21);
    // New units of the same unique datum, and new versions of units that are kept.
    publish(&after, &[unique("two", 1)]);
    assert_eq!(call(&worker, "two", 1), 1001);
    assert_eq!(call(&worker, "one", 1), 1002, "one datum for both");
    publish(&after, &[unique("one", 2)]);
    assert_eq!(call(&worker, "one", 1), 2 * 1003, "still the first one's");
    publish(&after, &[counter(30), uses(100)]);
    assert_eq!(call(&worker, "uses", 1), 131);
    assert_eq!(units::published(&after).kept.len(), 4);
    let other = UnitSource {
        name: "other".into(),
        ..counter(0)
    };
    let refused = after.compiler.publish(&[other]).unwrap_err().to_string();
    assert!(
        refused.contains("`counter` is defined by the unit `other`"),
        "{refused}"
    );
}
