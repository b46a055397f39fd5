//! A compiler process with a journal that is killed: at any time, and at every point that the code names.

#[path = "publish/canaries.rs"]
mod canaries;
mod common;
#[path = "publish/units.rs"]
mod units;

use std::path::Path;
use std::sync::Arc;

use canaries::{Schedule, workers};
use common::host::Host;
use common::name::Name;
use common::process::{Finished, Process};
use common::remote::{self, Remote};
use common::role;
use common::scratch::Scratch;
use jitcast::compiler::{
    Compiler, CompilerOptions, JournalOptions, Policy, Server, UnitSource, front,
};
#[cfg(feature = "seeded-faults")]
use jitcast::runtime::mailbox::FIRST_GENERATION;
use jitcast::runtime::segment::BackEnd;
use rustix::process::Signal;
use units::{adders, publish};

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[
        (remote::ROLE, remote::play),
        (COMPILER, compile),
        (CANARIES, cycle),
    ]);
}

/// The role of a compiler process that publishes by itself.
const COMPILER: &str = "publishes";

/// The role of one that begins and ends canaries.
const CANARIES: &str = "begins and ends canaries";

/// How many versions that role publishes.
const VERSIONS: i32 = 60;

/// The role: keeps a journal that is compacted often, serves, and, once told, publishes versions of `f` that each
/// add their number, reports each that is acknowledged, and renews the segment after some.
fn compile(target: &str) {
    let compiler = serve(target);
    if role::next_line().is_none() {
        return;
    }
    for version in 1..=VERSIONS {
        compiler.publish(&[adder("f", version)]).unwrap();
        role::report(version);
        if version % 4 == 0 {
            compiler.renew().unwrap();
        }
    }
    role::next_line();
}

/// The role: the same with canaries, one generation after the other by a schedule; reports those that are acknowledged.
fn cycle(target: &str) {
    let compiler = serve(target);
    if role::next_line().is_none() {
        return;
    }
    let schedule = Schedule {
        start: compiler.status().generation + 1,
        template: None,
    };
    let mut generation = schedule.start - 1;
    for _ in 0..VERSIONS {
        generation = schedule.step(&compiler, generation, &workers(1));
        role::report(generation);
    }
    role::next_line();
}

/// The name of no segment.
const SEALED: &str = "-";

/// Keeps a journal that is compacted often, and serves.
fn serve(target: &str) -> Arc<Compiler> {
    let words: Vec<_> = target.split(' ').collect();
    let [folder, socket, durable, name] = words[..] else {
        panic!("a folder, a socket, how durable it is, and a name")
    };
    let back_end = match name {
        SEALED => BackEnd::Sealed,
        name => BackEnd::Named(name.to_owned()),
    };
    let compiler = Compiler::create(&CompilerOptions {
        back_end,
        socket: socket.to_owned(),
        journal: Some(JournalOptions {
            durable: durable == "durable",
            compact_above_bytes: 1,
            ..JournalOptions::new(folder)
        }),
        ..CompilerOptions::default()
    });
    let compiler = Arc::new(compiler.unwrap_or_else(|error| panic!("{error}")));
    let server = Server::bind(socket, Policy::default(), front::Options::default()).unwrap();
    let shared = Arc::clone(&compiler);
    std::thread::spawn(move || server.run(shared));
    role::report("serves");
    compiler
}

/// A unit whose function of the same name adds `bonus`.
fn adder(name: &str, bonus: i32) -> UnitSource {
    UnitSource {
        signatures: vec![(name.to_owned(), "(i64) -> i64".parse().unwrap())],
        ..adders(name, &[(name, bonus)])
    }
}

/// A folder and a socket for that role.
struct Place {
    scratch: Scratch,
    socket: String,
    durable: bool,
    name: Option<Name>,
}

impl Place {
    fn new(durable: bool) -> Self {
        let scratch = Scratch::in_memory();
        let socket = scratch.path("socket");
        Self {
            scratch,
            socket,
            durable,
            name: None,
        }
    }

    /// One of a named segment.
    #[cfg(feature = "seeded-faults")]
    fn named(name: &str) -> Self {
        Self {
            name: Some(Name::new(name)),
            ..Self::new(false)
        }
    }

    /// Which object has the name.
    #[cfg(feature = "seeded-faults")]
    fn object(&self) -> Option<u64> {
        use std::os::unix::fs::MetadataExt;
        let name = self.name.as_ref()?;
        Some(std::fs::metadata(name.path()).unwrap().ino())
    }

    /// Starts the role here, and waits until it serves.
    fn start(&self, environment: &[(&str, &str)]) -> Process {
        self.start_as(COMPILER, environment)
    }

    /// What the roles are told.
    fn target(&self) -> String {
        let durable = if self.durable {
            "durable"
        } else {
            "acknowledged"
        };
        let name = self.name.as_ref().map_or(SEALED, |name| &name.0);
        let journal = self.scratch.path("journal");
        format!("{journal} {} {durable} {name}", self.socket)
    }

    fn start_as(&self, role: &str, environment: &[(&str, &str)]) -> Process {
        let mut command = role::command(role, &self.target());
        let mut process = Process::start_listening(command.envs(environment.iter().copied()));
        assert_eq!(role::next_report(&mut process), "serves");
        process
    }
}

/// The last version that was acknowledged before the process ended; 0 if none was.
fn last_acknowledged(finished: &Finished) -> i32 {
    let reports = finished.stdout.lines();
    let reports = reports.filter_map(|line| line.split_once("report: ")?.1.parse().ok());
    reports.max().unwrap_or(0)
}

/// What a worker gets for `f(0)`; 0 if it is not published.
fn version_of(worker: &mut Remote) -> i32 {
    worker.call("f", 0).parse().unwrap_or(0)
}

#[test]
fn what_was_acknowledged_outlives_a_kill_at_any_time() {
    for kill_at in [1, 2, 7, 20, 41] {
        let place = Place::new(false);
        let mut process = place.start(&[]);
        process.send("go");
        while role::next_report(&mut process) != kill_at.to_string() {}
        process.signal(Signal::KILL);
        let acknowledged = last_acknowledged(&process.finish());
        assert!(acknowledged >= kill_at);
        let _restarted = place.start(&[]);
        let found = version_of(&mut Remote::start(&place.socket));
        assert!(
            found == acknowledged || found == acknowledged + 1,
            "{found} is there, {acknowledged} was acknowledged"
        );
    }
}

/// At every point, what a worker has run, and what was acknowledged, is there after a restart, at the same places.
#[test]
#[cfg(feature = "seeded-faults")]
fn a_kill_at_every_crash_point_loses_nothing() {
    let points = jitcast::compiler::CRASH_POINTS.iter();
    // These are for what follows.
    let points = points.filter(|point| !point.starts_with("adoption"));
    for (point, durable) in points.flat_map(|point| [(point, false), (point, true)]) {
        kill_at(&Place::new(durable), point, None);
    }
}

/// The same with a named segment, also where the next compiler process is killed at a point of going on in its object. Unless
/// it was just being renewed, it has the same object after that.
#[test]
#[cfg(feature = "seeded-faults")]
fn a_kill_at_every_crash_point_loses_nothing_of_a_named_segment() {
    let points = jitcast::compiler::CRASH_POINTS.iter();
    let (of_adoption, others): (Vec<_>, Vec<_>) =
        points.partition(|point| point.starts_with("adoption"));
    assert_eq!(of_adoption.len(), 2);
    for (index, point) in others.into_iter().enumerate() {
        let then = of_adoption[index % of_adoption.len()];
        kill_at(&Place::named(&format!("crash-{index}")), point, Some(then));
    }
    // Of a publication that the first one has not completed, too.
    for (then, point) in of_adoption.iter().zip(["after-log", "after-root"]) {
        kill_at(&Place::named(&format!("crash-{then}")), point, Some(then));
    }
}

/// Kills a compiler process at `point`, and then, if asked, the next one at another.
#[cfg(feature = "seeded-faults")]
fn kill_at(place: &Place, point: &str, then: Option<&str>) {
    let crash_at = format!("{point}:3");
    let mut process = place.start(&[("JITCAST_CRASH_AT", &crash_at)]);
    let mut worker = Remote::start(&place.socket);
    process.send("go");
    let finished = process.finish();
    assert_eq!(
        finished.signal,
        Some(libc::SIGKILL),
        "{point} is not reached: {finished:#?}"
    );
    let acknowledged = last_acknowledged(&finished);
    let visible = version_of(&mut worker);
    assert!(visible >= acknowledged, "{point}");
    let object = place.object();
    if let Some(then) = then {
        let mut command = role::command(COMPILER, &place.target());
        let next = Process::start_listening(command.env("JITCAST_CRASH_AT", then));
        assert_eq!(next.finish().signal, Some(libc::SIGKILL), "{point}, {then}");
    }
    let mut restarted = place.start(&[]);
    if !point.starts_with("renewal") {
        assert_eq!(place.object(), object, "{point}");
    }
    let mut fresh = Remote::start(&place.socket);
    let found = version_of(&mut fresh);
    assert!(
        (visible..=acknowledged + 1).contains(&found),
        "{point}: {found} is there, {acknowledged} was acknowledged, {visible} visible"
    );
    if found == visible {
        assert_eq!(fresh.ask("place f"), worker.ask("place f"), "{point}");
    }
    // The worker that was there goes on, from whatever object it was at.
    restarted.send("go");
    let deadline = std::time::Instant::now() + common::process::PATIENCE;
    while version_of(&mut worker) != VERSIONS {
        assert!(std::time::Instant::now() < deadline, "{point}");
        worker.ask("tend");
        // The disk may be busy with what others wrote: no reason to keep a processor busy too.
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    // The log may be written anew after the last version, which the worker sees before.
    restarted.send("end");
    restarted.finish().succeeded();
    let log = std::fs::metadata(place.scratch.path("journal/log")).unwrap();
    assert!(log.len() > 0, "{point}");
    assert!(
        !Path::new(&place.scratch.path("journal/log.new")).exists(),
        "{point}"
    );
}

/// The same with canaries: whichever of its publications is cut short, each worker runs what it is to run at the generation that
/// is there after a restart, and that is the last one that was acknowledged, or the one that was under way.
#[test]
#[cfg(feature = "seeded-faults")]
fn a_kill_at_every_crash_point_of_a_canary_leaves_one_of_two_generations() {
    let points = jitcast::compiler::CRASH_POINTS.iter();
    let others = ["renewal", "adoption"];
    let points = points.filter(|point| !others.iter().any(|other| point.starts_with(other)));
    let counts = |point: &str| match point.starts_with("compaction") {
        // The log is written anew once in many publications.
        true => &[2, 3][..],
        // A canary, an abort and a promotion.
        false => &[8, 9, 12],
    };
    let each = |point| counts(point).iter().map(move |count| (point, count));
    for (point, count) in points.flat_map(|point| each(point)) {
        let place = Place::new(false);
        let crash_at = format!("{point}:{count}");
        let mut process = place.start_as(CANARIES, &[("JITCAST_CRASH_AT", &crash_at)]);
        process.send("go");
        let finished = process.finish();
        assert_eq!(finished.signal, Some(libc::SIGKILL), "{crash_at}");
        let acknowledged = (last_acknowledged(&finished) as u64).max(FIRST_GENERATION);
        let _restarted = place.start_as(CANARIES, &[]);
        let workers = [true, false].map(|inside| (inside, Remote::start(&place.socket)));
        for (inside, mut worker) in workers {
            let generation: u64 = worker.ask("generation").parse().unwrap();
            let maybe = acknowledged..=acknowledged + 1;
            assert!(
                maybe.contains(&generation),
                "{crash_at}: {generation} of {maybe:?}"
            );
            let schedule = Schedule {
                start: FIRST_GENERATION + 1,
                template: None,
            };
            let expected = schedule.expected(generation, inside).to_string();
            let found = ["f", "g"].map(|name| worker.call(name, 0));
            assert_eq!(
                found,
                [expected.clone(), expected],
                "{crash_at} at {generation}"
            );
        }
    }
}

/// The story: a publisher that is told before the record is written loses its publication to a kill. With that
/// fault seeded, the test above must notice.
#[test]
#[cfg(feature = "seeded-faults")]
fn acknowledging_before_writing_is_noticed() {
    common::fault::is_noticed(
        ("JITCAST_FAULT", "journal-after-ack"),
        "what_was_acknowledged_outlives_a_kill_at_any_time",
    );
}

/// How long all files of a folder are together, bytes.
fn size_of(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap();
    let sizes = entries.map(|entry| {
        let entry = entry.unwrap();
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size_of(&entry.path()),
            Ok(metadata) => metadata.len(),
            // Removed meanwhile.
            Err(_) => 0,
        }
    });
    sizes.sum()
}

#[test]
fn the_folder_stays_bounded_while_publications_go_on() {
    const ROUNDS: i32 = 600;
    const ABOVE: u64 = 64 << 10;
    let scratch = Scratch::new();
    let folder = scratch.path("journal");
    let host = |back_end| {
        Host::with(CompilerOptions {
            back_end,
            reclaim_above_bytes: 0,
            journal: Some(JournalOptions {
                compact_above_bytes: ABOVE,
                ..JournalOptions::new(&folder)
            }),
            ..CompilerOptions::default()
        })
    };
    let first = host(BackEnd::Sealed);
    let mut worker = Remote::start(&first.socket);
    let mut longest = 0;
    for round in 1..=ROUNDS {
        // Each object is another one.
        publish(&first, &[adder("f", round), adder("g", -round)]);
        if round % 20 == 0 {
            assert_eq!(worker.call("f", 0), round.to_string());
        }
        longest = longest.max(size_of(folder.as_ref()));
    }
    // A base of a few KiB, the growth that is allowed, and one publication more.
    assert!(longest < 3 * ABOVE, "{longest} bytes");
    let places = ["f", "g"].map(|name| worker.ask(&format!("place {name}")));
    let state = units::published(&first);
    drop(first);
    let second = host(BackEnd::Sealed);
    assert_eq!(units::published(&second).symbols, state.symbols);
    let mut worker = Remote::start(&second.socket);
    assert_eq!(
        [worker.call("f", 0), worker.call("g", 0)],
        [ROUNDS.to_string(), (-ROUNDS).to_string()]
    );
    assert_eq!(
        ["f", "g"].map(|name| worker.ask(&format!("place {name}"))),
        places
    );
}
