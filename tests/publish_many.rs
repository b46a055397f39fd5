//! Many publishers at the same time: each batch is whole, commits are ordered, equal batches are linked once, and nobody is
//! delayed or harmed by somebody else.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::os::unix::net::UnixStream;

use common::host::{Host, WINDOW_BYTES};
use common::noise::Noise;
use common::object::{Maker, PLUS_ONE};
use common::process::{Process, await_some, jitcast};
use common::remote::{self, Remote};
use common::role;
use common::scratch::adds;
use common::serve::Serve;
use jitcast::compiler::front::{self, compile_bytes};
use jitcast::compiler::request::{
    PublishRequest, RequestError, RequestFile, RequestUnit, await_published, begin_publish, publish,
};
use jitcast::compiler::{
    CompilerOptions, LinkOptions, Publication, Reclaim, Threads, UnitFile, UnitSource,
};
use jitcast::linker::Dialect;
use jitcast::runtime::geometry::{Area, Geometry};
use rustix::process::Signal;
use units::adders;

/// Publishes batches over one connection without waiting.
const PUBLISHER: &str = "publishes batches";

/// Looks whether batches are whole.
const WATCHER: &str = "watches batches";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[
        (remote::ROLE, remote::play),
        (PUBLISHER, publish_batches),
        (WATCHER, watch_batches),
    ]);
}

/// A unit of these files.
fn unit(name: &str, files: Vec<(String, Vec<u8>)>) -> RequestUnit {
    let files = files.into_iter();
    RequestUnit {
        name: name.to_owned(),
        files: files
            .map(|(name, bytes)| RequestFile { name, bytes })
            .collect(),
        signatures: Vec::new(),
        reclaim: Reclaim::Yes,
        link: LinkOptions::default(),
    }
}

/// A unit whose function of the same name adds `bonus`.
fn adding(name: &str, bonus: i64) -> RequestUnit {
    let text = adds(name, bonus).into_bytes();
    unit(name, vec![(format!("{name}.clif"), text)])
}

fn request(units: impl Into<Vec<RequestUnit>>) -> PublishRequest {
    PublishRequest {
        units: units.into(),
        ..PublishRequest::default()
    }
}

fn connect(socket: &str) -> UnixStream {
    UnixStream::connect(socket).unwrap_or_else(|error| panic!("{socket}: {error}"))
}

/// Sends a request over a connection of its own, and does not wait.
#[cfg(feature = "seeded-faults")]
fn send(socket: &str, request: &PublishRequest) -> UnixStream {
    let connection = connect(socket);
    begin_publish(&connection, request).unwrap();
    connection
}

fn refusal(answer: Result<Publication, RequestError>) -> String {
    match answer {
        Err(RequestError::Refused(text)) => text,
        other => panic!("{other:?}"),
    }
}

/// The story: a connection was looked at as soon as it was accepted, and what had been said over it went before what others had
/// said earlier.
#[test]
fn who_connects_does_not_go_before_an_earlier_request() {
    use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

    let serve = Serve::start(&[]);
    let known = connect(&serve.socket);
    publish(&known, &request([adding("f", 0)])).unwrap();
    serve.process.signal(Signal::STOP);
    let process = WaitId::Pid(Pid::from_raw(serve.process.pid()).unwrap());
    // All its threads.
    waitid(process, WaitIdOptions::STOPPED).unwrap();
    // It will find that somebody connects, and that the first has said something, in this order.
    let new = connect(&serve.socket);
    begin_publish(&known, &request([adding("f", 1)])).unwrap();
    begin_publish(&new, &request([adding("f", 2)])).unwrap();
    serve.process.signal(Signal::CONT);
    let [earlier, later] = [known, new].map(|connection| await_published(connection).unwrap());
    assert!(
        earlier.generation < later.generation,
        "{earlier:?} {later:?}"
    );
    assert_eq!(serve.call("f(0)"), "2");
}

const PUBLISHERS: usize = 6;

/// Batches of each publisher, which are under way together.
const BATCHES: i64 = 8;

/// Version `version` of two units, whose functions say the same.
fn pair(publisher: usize, version: i64) -> PublishRequest {
    request(["a", "b"].map(|half| adding(&format!("{half}{publisher}"), version)))
}

/// The role: publishes versions from 1 on, eight at a time, until the test says that it is enough; tells how many.
fn publish_batches(target: &str) {
    let (publisher, socket) = target.split_once(' ').unwrap();
    let publisher = publisher.parse().unwrap();
    let connection = connect(socket);
    let (mut version, mut generation) = (0, 0);
    role::report("ready");
    while role::next_line().is_some() {
        for offset in 1..=BATCHES {
            begin_publish(&connection, &pair(publisher, version + offset)).unwrap();
        }
        for _ in 0..BATCHES {
            let published = await_published(&connection).unwrap();
            assert!(published.generation > generation, "answers are in order");
            generation = published.generation;
        }
        version += BATCHES;
        role::report(version);
    }
}

/// The role: looks at all pairs under one guard, again and again, until each of them has reached what the test asks for.
fn watch_batches(socket: &str) {
    let worker = remote::attach(socket);
    role::report("ready");
    let wanted: i64 = role::next_line().unwrap().parse().unwrap();
    let mut seen = [0; PUBLISHERS];
    while seen.iter().any(|&version| version < wanted) {
        let guard = worker.enter().unwrap();
        for (publisher, seen) in seen.iter_mut().enumerate() {
            let [a, b] = ["a", "b"].map(|half| {
                remote::call(&worker, &format!("{half}{publisher}"), 0).unwrap_or_default()
            });
            assert_eq!(a, b, "a batch of publisher {publisher} is not whole");
            assert!(
                a >= *seen,
                "publisher {publisher} went back from {seen} to {a}"
            );
            *seen = a;
        }
        drop(guard);
        let _ = worker.wait(
            worker.poll().unwrap().generation(),
            Some(std::time::Duration::from_millis(1)),
        );
    }
    role::report("done");
}

fn start_publisher(publisher: usize, serve: &Serve) -> Process {
    let mut process = role::start(PUBLISHER, &format!("{publisher} {}", serve.socket));
    assert_eq!(role::next_report(&mut process), "ready");
    process
}

/// Publishers with many batches under way each, some of which are killed in the middle of it: what anybody sees is whole, and goes
/// forward.
#[test]
fn batches_of_many_publishers_are_whole_though_some_are_killed() {
    let serve = Serve::start(&[]);
    let mut watcher = role::start(WATCHER, &serve.socket);
    assert_eq!(role::next_report(&mut watcher), "ready");
    let rounds = 5;
    watcher.send(&(rounds * BATCHES).to_string());
    let mut noise = Noise(11);
    let mut publishers: Vec<_> = (0..PUBLISHERS)
        .map(|publisher| start_publisher(publisher, &serve))
        .collect();
    let mut killed = 0;
    for round in 0..rounds {
        for process in &mut publishers {
            process.send("go");
        }
        for process in &mut publishers {
            role::next_report(process);
        }
        // Others are under way while these die, between their requests and in the middle of one.
        let doomed: Vec<_> = (0..4)
            .map(|doomed| {
                let number = PUBLISHERS + doomed;
                let mut process = start_publisher(number, &serve);
                process.send("go");
                process
            })
            .collect();
        for process in doomed {
            std::thread::yield_now();
            for _ in 0..noise.below(3) {
                serve.publish_adds("between", round);
            }
            process.signal(Signal::KILL);
            process.finish();
            killed += 1;
        }
    }
    assert_eq!(killed, rounds * 4);
    assert_eq!(role::next_report(&mut watcher), "done");
    // What the dead ones sent as a whole is published as a whole; the rest is not.
    let settled = || (serve.status().publishing == 0).then_some(());
    await_some("the end of what the dead ones sent", settled);
    let mut worker = Remote::start(&serve.socket);
    for doomed in PUBLISHERS..PUBLISHERS + 4 {
        let [a, b] = ["a", "b"].map(|half| worker.call(&format!("{half}{doomed}"), 0));
        let numbers = [&a, &b].map(|result| result.parse::<i64>().ok());
        assert_eq!(numbers[0], numbers[1], "{a} and {b}");
    }
}

/// Commands that start at the same time, as a build system would start them.
#[test]
fn commands_that_start_together_all_publish() {
    let serve = Serve::start(&[]);
    let names: Vec<_> = (0..24).map(|number| format!("f{number}")).collect();
    let start = |name: &String| {
        let file = serve.scratch.write(&format!("{name}.clif"), adds(name, 7));
        Process::start(&mut jitcast(&["publish", "--socket", &serve.socket, &file]))
    };
    let commands: Vec<_> = names.iter().map(start).collect();
    let outputs = commands
        .into_iter()
        .map(|command| command.finish().succeeded().stdout);
    let mut generations: Vec<_> = outputs
        .map(|output| output.split([' ', ':']).nth(1).unwrap().to_owned())
        .collect();
    generations.sort();
    generations.dedup();
    assert_eq!(generations.len(), names.len());
    let status = serve.status();
    assert_eq!((status.units.len(), status.publishing), (24, 0));
    assert_eq!(serve.call("f23(1)"), "8");
}

/// Whoever publishes again what is published links again: twins are only such as wait together.
#[test]
fn a_publication_that_is_repeated_later_is_linked_again() {
    let serve = Serve::start(&[]);
    let same = request([adding("f", 1)]);
    let [first, second] = [0, 1].map(|_| publish(connect(&serve.socket), &same).unwrap());
    assert_eq!(second.generation, first.generation + 1);
}

/// CLIF of many functions that call one another.
fn many_functions(count: usize) -> String {
    let function = |number: usize| {
        let callee = (number * 7 + 1) % count;
        units::calls(&format!("c{number}"), &format!("c{callee}"), number as i64)
    };
    (0..count).map(function).collect()
}

/// What is compiled, and what lies in the shared areas after a batch, does not depend on how many threads have made it.
#[test]
fn the_number_of_threads_changes_no_byte() {
    let made = [1, 2, 5].map(|limit| {
        let threads = Threads::new(limit);
        let options = front::Options {
            threads: threads.clone(),
            ..front::Options::default()
        };
        let text = many_functions(300);
        let compiled = compile_bytes("many.clif", text.into(), &options).unwrap();
        let host = Host::with(CompilerOptions {
            threads,
            ..CompilerOptions::with_window(WINDOW_BYTES).unwrap()
        });
        let object = |number: usize| {
            let object = Maker::new().function(&format!("o{number}"), &PLUS_ONE);
            let data = vec![number as u8; 2000];
            UnitFile {
                name: format!("{number}.o"),
                bytes: object.read_only(&format!("d{number}"), &data).finish(),
                dialect: Dialect::Elf,
            }
        };
        let objects = UnitSource {
            files: (0..100).map(object).collect(),
            ..UnitSource::new("objects", [])
        };
        let small =
            (0..50).map(|number| adders(&format!("u{number}"), &[(&format!("f{number}"), 1)]));
        let units: Vec<_> = [UnitSource::new("many", [compiled.clone()]), objects]
            .into_iter()
            .chain(small)
            .collect();
        let published = host.compiler.publish(&units).unwrap();
        let geometry = Geometry::new(WINDOW_BYTES).unwrap();
        let shared = host.shared_bytes();
        let base = geometry.region(Area::Control).start;
        let areas = [Area::Text, Area::ReadOnly].map(|area| {
            let region = geometry.region(area);
            let start = (region.start - base) as usize;
            shared[start..start + region.len_bytes as usize].to_vec()
        });
        assert!(areas.iter().all(|area| area.iter().any(|&byte| byte != 0)));
        (compiled, published.functions, areas)
    });
    let [one, others @ ..] = &made;
    for other in others {
        assert!(one == other, "the same bytes");
    }
}

/// Of several things that are wrong the first one is told, however many threads have found any.
#[test]
fn the_first_error_is_told() {
    let serve = Serve::start(&["--threads", "4"]);
    let mut functions: Vec<_> = (0..200)
        .map(|number| adds(&format!("f{number}"), 1))
        .collect();
    for bad in [33, 34, 150] {
        functions[bad] = functions[bad].replace("return v2", "return v0, v2");
    }
    let text = functions.concat().into_bytes();
    let wrong = request([
        adding("g", 1),
        unit("bad", vec![("bad.clif".to_owned(), text)]),
        unit("worse", vec![("worse.o".to_owned(), b"\x7fELF".to_vec())]),
    ]);
    let text = refusal(publish(connect(&serve.socket), &wrong));
    assert!(
        text.starts_with("bad.clif:") && text.contains("f33"),
        "{text}"
    );
    assert_eq!(serve.status().units, []);
    let file = serve.scratch.write("f.clif", adds("f", 1));
    serve.publish(&[&file]).succeeded();
}

#[cfg(feature = "seeded-faults")]
#[path = "publish/held.rs"]
mod held;
