//! A compiler process that goes on in the very object that a dead one left under a name.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use common::name::Name;
use common::process::{Process, await_some, jitcast};
use common::remote::{self, Remote};
use common::role;
use common::scratch::{Scratch, adds};
use common::serve::Serve;
use jitcast::compiler::{
    Compiler, CompilerOptions, JournalOptions, Policy, Server, Status, UnitSource, front,
};
use jitcast::runtime::geometry::{Area, Geometry};
use jitcast::runtime::segment::BackEnd;
use jitcast::worker::Function;
use rustix::process::Signal;
use units::{Code, adders};

const COMPILER: &str = "publishes as told";
const STAYS: &str = "stays inside";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[
        (remote::ROLE, remote::play),
        (COMPILER, publish_as_told),
        (STAYS, stay_inside),
    ]);
}

/// A place for `jitcast serve` with a name and a journal.
struct Place {
    name: Name,
    scratch: Scratch,
}

impl Place {
    fn new(test: &str) -> Self {
        Self {
            name: Name::new(test),
            scratch: Scratch::new(),
        }
    }

    fn socket(&self) -> String {
        self.scratch.path("socket")
    }

    fn serve(&self) -> Process {
        self.serve_at(&self.socket())
    }

    fn serve_at(&self, socket: &str) -> Process {
        let journal = self.scratch.path("journal");
        let options = ["--name", &self.name.0, "--journal", &journal];
        Serve::start_at(socket, &options)
    }

    fn publish(&self, name: &str, bonus: i64) {
        let file = self
            .scratch
            .write(&format!("{name}.clif"), adds(name, bonus));
        let publish = ["publish", "--socket", &self.socket(), &file];
        common::process::finish(&mut jitcast(&publish)).succeeded();
    }

    fn status(&self) -> Status {
        let mut status = jitcast(&["status", "--json", "--socket", &self.socket()]);
        let status = common::process::finish(&mut status).succeeded();
        serde_json::from_str(&status.stdout).unwrap()
    }

    /// Which object has the name.
    fn object(&self) -> (u64, u64) {
        let object = std::fs::metadata(self.name.path()).unwrap();
        (object.dev(), object.ino())
    }
}

/// Kills it, and gives what it said.
fn kill(process: Process) -> String {
    process.signal(Signal::KILL);
    process.finish().stderr
}

/// The inodes of the objects of that name which a process maps.
fn mapped(pid: i32, name: &Name) -> Vec<u64> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    // What lies beside it has a name that begins likewise.
    let is_it = |line: &&str| line.trim_end_matches(" (deleted)").ends_with(&name.path());
    let lines = maps.lines().filter(is_it);
    let inode = |line: &str| {
        line.split_ascii_whitespace()
            .nth(4)
            .unwrap()
            .parse()
            .unwrap()
    };
    let mut inodes: Vec<u64> = lines.map(inode).collect();
    inodes.dedup();
    inodes
}

fn tend_until_connected(worker: &mut Remote) {
    await_some("a worker's way back", || {
        (worker.ask("tend") == "true").then_some(())
    });
}

#[test]
fn workers_and_their_object_outlive_compiler_processes() {
    let place = Place::new("outlive");
    let mut serving = place.serve();
    place.publish("f", 1);
    let object = place.object();
    let by_name = format!("name:{}", place.name.0);
    let mut workers = [Remote::start(&place.socket()), Remote::start(&by_name)];
    for round in 2..8 {
        let place_of_f = workers[0].ask("place f");
        kill(serving);
        for worker in &mut workers {
            assert_eq!(worker.call("f", 1), round.to_string());
        }
        serving = place.serve();
        assert_eq!(place.object(), object);
        // Those who have not come back yet see what is published, too: it is the same memory.
        place.publish("f", round);
        for worker in &mut workers {
            assert_eq!(worker.call("f", 1), (round + 1).to_string());
            tend_until_connected(worker);
            assert_eq!(mapped(worker.pid(), &place.name), [object.1]);
        }
        assert_ne!(
            workers[0].ask("place f"),
            place_of_f,
            "it was published anew"
        );
        let mut late = Remote::start(&by_name);
        assert_eq!(late.call("f", 1), (round + 1).to_string());
        let known = place.status().workers;
        for worker in &workers {
            assert!(
                known.iter().any(|known| known.pid == worker.pid()),
                "{known:?}"
            );
        }
        // Nothing keeps memory from being reused any more.
        assert_eq!(place.status().stragglers, []);
    }
    let said = kill(serving);
    assert!(!said.contains("another object"), "{said}");
    assert!(said.contains("going on in /dev/shm/"), "{said}");
}

/// The role: a compiler process at `name folder socket` that reclaims all the time and publishes what it is told.
fn publish_as_told(target: &str) {
    let words: Vec<_> = target.split(' ').collect();
    let [name, folder, socket] = words[..] else {
        panic!("a name, a folder, and a socket")
    };
    let compiler = Compiler::create(&CompilerOptions {
        back_end: BackEnd::Named(name.to_owned()),
        socket: socket.to_owned(),
        journal: Some(JournalOptions::new(folder)),
        reclaim_above_bytes: 0,
        ..CompilerOptions::default()
    });
    let compiler = Arc::new(compiler.unwrap_or_else(|error| panic!("{error}")));
    let server = Server::bind(socket, Policy::default(), front::Options::default()).unwrap();
    let shared = Arc::clone(&compiler);
    std::thread::spawn(move || server.run(shared));
    role::report("serves");
    while let Some(line) = role::next_line() {
        let bonus = line.parse().unwrap();
        let units = [UnitSource {
            signatures: vec![("f".to_owned(), "(i64) -> i64".parse().unwrap())],
            ..adders("f", &[("f", bonus)])
        }];
        let published = compiler.publish(&units);
        role::report(published.map_or_else(|error| error.to_string(), |_| line));
    }
}

/// The role: a worker that stays inside until it is told to leave, and calls `f` before and after.
fn stay_inside(socket: &str) {
    let worker = remote::attach(socket);
    {
        let guard = worker.enter().unwrap();
        let f: Function<Code> = worker.function(&guard, "f").unwrap();
        role::report(f.call(&guard, 0));
        while role::next_line().as_deref() == Some("call") {
            role::report(f.call(&guard, 0));
        }
    }
    await_some("the way back", || {
        worker.tend();
        worker.is_connected().then_some(())
    });
    role::report(remote::call(&worker, "f", 0).unwrap());
    role::next_line();
}

/// The story: the memory of a replaced function is free when no pin is older. The pins of a worker that has not come back are in
/// a mailbox that the compiler process has never seen.
#[test]
fn nothing_is_reused_under_a_worker_that_has_not_come_back() {
    let place = Place::new("strangers");
    let socket = place.socket();
    let target = format!(
        "{} {} {socket}",
        place.name.0,
        place.scratch.path("journal")
    );
    let start = || {
        let mut process = role::start(COMPILER, &target);
        assert_eq!(role::next_report(&mut process), "serves");
        process
    };
    let say = |process: &mut Process, line: &str| {
        process.send(line);
        role::next_report(process)
    };
    let mut compiler = start();
    assert_eq!(say(&mut compiler, "7"), "7");
    let mut worker = role::start(STAYS, &socket);
    assert_eq!(role::next_report(&mut worker), "7");
    kill(compiler);
    let mut compiler = start();
    for version in 100..200 {
        let version = version.to_string();
        assert_eq!(say(&mut compiler, &version), version);
        assert_eq!(say(&mut worker, "call"), "7");
    }
    let status = place.status();
    let stranger = &status.stragglers[0];
    assert_eq!(
        (stranger.worker, stranger.held_bytes),
        (0, status.retired_bytes)
    );
    assert!(
        stranger.to_string().contains("have not come back"),
        "{stranger}"
    );
    assert_eq!(stranger.units, ["f"]);
    // It leaves, and comes back: everything is reused.
    assert_eq!(say(&mut worker, "leave"), "199");
    assert_eq!(say(&mut compiler, "3"), "3");
    let after = place.status();
    assert_eq!(after.stragglers, []);
    assert!(after.retired_bytes < status.retired_bytes / 10, "{after:?}");
    assert_eq!(place.object().1, mapped(worker.pid(), &place.name)[0]);
}

/// With that fault seeded, the test above must notice.
#[test]
#[cfg(feature = "seeded-faults")]
fn reuse_under_strangers_is_noticed() {
    common::fault::is_noticed(
        ("JITCAST_FAULT", "strangers-ignored"),
        "nothing_is_reused_under_a_worker_that_has_not_come_back",
    );
}

#[test]
fn what_is_not_as_the_journal_says_is_replaced_and_workers_follow() {
    let place = Place::new("different");
    let serving = place.serve();
    place.publish("unused", 1);
    place.publish("f", 1);
    let mut worker = Remote::start(&place.socket());
    assert_eq!(worker.call("f", 1), "2");
    kill(serving);
    // The first unit's code, which nobody calls.
    let object = place.object();
    let file = File::options()
        .read(true)
        .write(true)
        .open(place.name.path())
        .unwrap();
    let geometry = Geometry::new(1 << 30).unwrap();
    let text = geometry.allocated(Area::Text).start - geometry.shared().start;
    file.write_all_at(&[0xcc; 4], text.into()).unwrap();
    let serving = place.serve();
    assert_ne!(place.object(), object);
    place.publish("f", 2);
    tend_until_connected(&mut worker);
    assert_eq!(worker.call("f", 1), "3");
    assert_eq!(mapped(worker.pid(), &place.name), [place.object().1]);
    // At another socket it is another segment, too: the header says where workers find it.
    let said = kill(serving);
    assert!(said.contains("text at w+0x"), "{said}");
    let object = place.object();
    let other = place.scratch.path("other");
    let serving = place.serve_at(&other);
    assert_ne!(place.object(), object);
    assert_eq!(
        Remote::start(&format!("name:{}", place.name.0)).call("f", 1),
        "3"
    );
    let said = kill(serving);
    assert!(said.contains("its socket is another one"), "{said}");
}
