//! The segment goes on in another object, under running workers: asked for, to make room, to give memory back.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::host::{Host, WINDOW_BYTES, object_unit};
use common::object::Maker;
use common::process::{PATIENCE, Process, await_some};
use common::scratch::Scratch;
use common::{remote, role};
use jitcast::compiler::{CompilerOptions, JournalOptions, PublishError, Reclaim, UnitSource};
use jitcast::runtime::segment::BackEnd;
use jitcast::worker::Function;
use units::{Code, c, publish};

const WORKER: &str = "worker that tells where it is";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(WORKER, obey)]);
}

/// The inodes of all objects of segments that this process maps.
fn inodes() -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let found: BTreeSet<_> = maps
        .lines()
        .filter(|line| line.contains("/memfd:jitcast (") || line.contains("/dev/shm/jitcast-"))
        // Shared data stay where they are.
        .filter(|line| !line.contains("+shared"))
        .map(|line| line.split_whitespace().nth(4).unwrap().to_owned())
        .collect();
    found.into_iter().collect::<Vec<_>>().join(" ")
}

/// A thread that stays inside, and calls the same function all the time.
struct Stays {
    end: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u64>,
}

/// The role: `count` is private data, `f` is called through a handle that was had at the beginning.
fn obey(socket: &str) {
    let worker = remote::attach(socket);
    let guard = worker.enter().unwrap();
    let handle = |name: &str| -> Function<Code> { worker.function(&guard, name).unwrap() };
    let (f, count) = (handle("f"), handle("count"));
    let pointer = worker.symbol(&guard, "count").unwrap().stub;
    drop(guard);
    role::report(worker.stats().base.get());
    let mut stays: Option<Stays> = None;
    while let Some(line) = role::next_line() {
        match line.as_str() {
            "inodes" => {
                drop(worker.poll());
                role::report(inodes());
            }
            "f" => role::report(f.call(&worker.enter().unwrap(), 0)),
            "count" => role::report(count.call(&worker.enter().unwrap(), 1)),
            "places" => {
                let guard = worker.enter().unwrap();
                let now = worker.symbol(&guard, "count").unwrap().stub;
                assert_eq!(now, pointer);
                role::report(format!("{:?} {pointer:?}", worker.stats().base));
            }
            "stay" => {
                let end = Arc::new(AtomicBool::new(false));
                let (worker, f, until) = (worker.clone(), f.clone(), Arc::clone(&end));
                let (entered, has_entered) = std::sync::mpsc::channel();
                let thread = std::thread::spawn(move || {
                    let guard = worker.enter().unwrap();
                    let expected = f.call(&guard, 0);
                    entered.send(expected).unwrap();
                    let mut calls = 0;
                    while !until.load(Ordering::Relaxed) {
                        assert_eq!(f.call(&guard, 0), expected);
                        calls += 1;
                    }
                    calls
                });
                role::report(has_entered.recv().unwrap());
                stays = Some(Stays { end, thread });
            }
            "leave" => {
                let Stays { end, thread } = stays.take().unwrap();
                end.store(true, Ordering::Relaxed);
                role::report(thread.join().map_or(0, |calls| calls.min(1)));
            }
            _ => panic!("unknown command `{line}`"),
        }
    }
}

/// The test's end of it.
struct Remote(Process);

impl Remote {
    fn start(host: &Host) -> Self {
        let mut process = role::start(WORKER, &host.socket);
        role::next_report(&mut process);
        Self(process)
    }

    #[track_caller]
    fn ask(&mut self, line: &str) -> String {
        self.0.send(line);
        role::next_report(&mut self.0)
    }

    /// Waits until it maps one object, which is another one than `before`.
    #[track_caller]
    fn moves_from(&mut self, before: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.ask("inodes");
            if now != before && !now.contains(' ') {
                return now;
            }
            assert!(Instant::now() < deadline, "still at {now}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A unit of `f` that returns `number`, in so many bytes of text.
fn big(number: i32, len_bytes: usize) -> UnitSource {
    let mut code = vec![0xb8];
    code.extend(number.to_le_bytes());
    code.push(0xc3);
    code.resize(len_bytes, 0xcc);
    UnitSource {
        signatures: vec![("f".into(), "(i64) -> i64".parse().unwrap())],
        reclaim: Reclaim::Yes,
        ..object_unit("f", Maker::new().function("f", &code).finish())
    }
}

fn counter() -> UnitSource {
    UnitSource {
        signatures: vec![("count".into(), "(i64) -> i64".parse().unwrap())],
        ..c(
            "count",
            "static long n; long count(long by) { return n += by; }",
        )
    }
}

fn start(options: CompilerOptions) -> Host {
    let host = Host::with(options);
    publish(&host, &[big(1, 100), counter()]);
    host
}

fn options() -> CompilerOptions {
    CompilerOptions::with_window(WINDOW_BYTES).unwrap()
}

/// Every worker goes on in the other object, by itself, and finds everything where it was.
fn everybody_moves(back_end: BackEnd) {
    let host = start(CompilerOptions {
        back_end,
        ..options()
    });
    let mut workers = [(); 3].map(|()| Remote::start(&host));
    let mut places = Vec::new();
    for worker in &mut workers {
        assert_eq!(worker.ask("count"), "1");
        places.push((worker.ask("inodes"), worker.ask("places")));
    }
    for round in 2..6 {
        let generation = host.compiler.renew().unwrap().generation;
        assert_eq!(host.compiler.status().generation, generation);
        for (worker, (inode, place)) in workers.iter_mut().zip(&mut places) {
            *inode = worker.moves_from(inode);
            assert_eq!(&worker.ask("places"), place);
            assert_eq!(worker.ask("count"), round.to_string());
        }
        let inode = &places[0].0;
        assert!(places.iter().all(|(other, _)| other == inode), "{places:?}");
        let mut late = Remote::start(&host);
        assert_eq!(&late.ask("inodes"), inode);
        publish(&host, &[big(round, 100)]);
        for worker in workers.iter_mut().chain([&mut late]) {
            assert_eq!(worker.ask("f"), round.to_string());
        }
        late.0.finish().succeeded();
        let status = host.compiler.status();
        assert_eq!((status.older_bytes, status.stragglers), (0, Vec::new()));
    }
}

#[test]
fn everybody_moves_to_another_sealed_object() {
    everybody_moves(BackEnd::Sealed);
}

#[test]
fn everybody_moves_to_another_named_object() {
    let name = format!("test-renewal-{}", std::process::id());
    everybody_moves(BackEnd::Named(name.clone()));
    for path in [
        format!("/dev/shm/jitcast-{name}"),
        format!("/dev/shm/jitcast-{name}~"),
    ] {
        assert!(!std::path::Path::new(&path).exists(), "{path}");
    }
}

/// What somebody who stays inside holds back is left to him when it is needed: others go on, and he too once he has left.
#[test]
fn publishing_goes_on_under_a_thread_that_stays() {
    let host = start(options());
    let mut stays = Remote::start(&host);
    let mut other = Remote::start(&host);
    let (first, place) = (stays.ask("inodes"), stays.ask("places"));
    assert_eq!(stays.ask("stay"), "1");
    // Each is a sixth of what there is room for.
    for round in 2..60 {
        publish(&host, &[big(round, 400_000)]);
        assert_eq!(other.ask("f"), round.to_string());
        // The rest of that process goes on with what was published before.
        assert!(stays.ask("f").parse::<i32>().unwrap() <= round);
    }
    // The thread that answers is inside for as long as it answers.
    let status = await_some("a status in which one thread is inside", || {
        Some(host.compiler.status()).filter(|status| status.stragglers.len() <= 1)
    });
    assert!(status.older_bytes > 0);
    let [straggler] = &status.stragglers[..] else {
        panic!("{:?}", status.stragglers)
    };
    assert!(straggler.older && straggler.held_bytes == status.older_bytes && straggler.thread != 0);
    assert_eq!(straggler.pid, stays.0.pid());
    assert!(
        straggler
            .to_string()
            .contains("before the segment was renewed"),
        "{straggler}"
    );
    assert!(stays.ask("f").parse::<i32>().unwrap() < 10);
    assert_eq!(
        stays.ask("leave"),
        "1",
        "what it called has changed under it"
    );
    stays.moves_from(&first);
    assert_eq!(
        (stays.ask("f"), stays.ask("places")),
        ("59".to_owned(), place)
    );
    other.moves_from(&first);
    let status = host.compiler.status();
    assert_eq!((status.older_bytes, status.stragglers), (0, Vec::new()));
}

/// With that fault seeded, the test above must notice.
#[test]
#[cfg(feature = "seeded-faults")]
fn renewing_under_pins_is_noticed() {
    common::fault::is_noticed(
        ("JITCAST_FAULT", "renew-under-pins"),
        "publishing_goes_on_under_a_thread_that_stays",
    );
}

#[test]
fn not_more_is_left_to_those_who_stay_than_is_allowed() {
    let host = start(CompilerOptions {
        max_held_bytes: Some(2 << 20),
        ..options()
    });
    let mut stays = Remote::start(&host);
    stays.ask("stay");
    let refused = (2..60).find_map(|round| host.compiler.publish(&[big(round, 400_000)]).err());
    let refused = refused.expect("the limit is met");
    assert!(
        matches!(refused, PublishError::HeldBack { .. }),
        "{refused}"
    );
    let text = refused.to_string();
    assert!(text.contains(&format!("pid {}", stays.0.pid())), "{text}");
    stays.ask("leave");
    publish(&host, &[big(60, 400_000)]);
    assert_eq!(stays.ask("f"), "60");
}

/// What the shared object takes of the system's memory, bytes.
fn taken(host: &Host) -> u64 {
    let segment = host.compiler.segment();
    let stat = rustix::fs::fstat(segment.worker_fd().unwrap()).unwrap();
    stat.st_blocks.cast_unsigned() * 512
}

/// What is not needed any more goes back to the system, and can be had again; a journal keeps nothing of it either.
#[test]
fn a_renewal_gives_memory_back() {
    let scratch = Scratch::new();
    let journal = || CompilerOptions {
        journal: Some(JournalOptions {
            compact_above_bytes: 1,
            ..JournalOptions::new(scratch.path("journal"))
        }),
        ..options()
    };
    let host = start(journal());
    let mut worker = Remote::start(&host);
    let lean = taken(&host);
    let many: Vec<_> = (0..8)
        .map(|number| UnitSource {
            name: format!("many{number}"),
            ..object_unit(
                "",
                Maker::new()
                    .function(&format!("g{number}"), &[0xc3; 250_000])
                    .finish(),
            )
        })
        .map(|unit| UnitSource {
            reclaim: Reclaim::Yes,
            ..unit
        })
        .collect();
    publish(&host, &many);
    let full = taken(&host);
    assert!(full > lean + (3 << 19), "{full} after {lean}");
    let names: Vec<_> = many.iter().map(|unit| unit.name.clone()).collect();
    host.compiler.remove(&names[1..]).unwrap();
    assert_eq!(taken(&host), full);
    let before = worker.ask("inodes");
    host.compiler.renew().unwrap();
    worker.moves_from(&before);
    let given_back = taken(&host);
    assert!(given_back < lean + (1 << 20), "{given_back} of {full}");
    assert_eq!(host.compiler.status().backed_bytes, given_back);
    // The log is written anew with each of these; holes stay holes.
    publish(&host, &[big(2, 100)]);
    assert!(taken(&host) < lean + (1 << 20));
    publish(&host, &many[1..]);
    assert_eq!(taken(&host), full);
    assert_eq!(
        (worker.ask("f"), worker.ask("count")),
        ("2".to_owned(), "1".to_owned())
    );
    worker.0.finish().succeeded();
    let state = units::published(&host);
    drop(host);
    let again = Host::with(journal());
    assert_eq!(units::published(&again).symbols, state.symbols);
    let mut worker = Remote::start(&again);
    assert_eq!(worker.ask("f"), "2");
}

/// Nobody who calls, polls, waits or stays is disturbed by renewals, however many; who forks, in `tests/kill.rs`.
#[test]
fn renewals_and_publications_at_the_same_time_are_seen_whole() {
    const ROUNDS: u64 = 300;
    let host = Host::with(options());
    let batch = |number: u64| ["f", "g"].map(|name| units::adders(name, &[(name, number as i32)]));
    publish(&host, &batch(2));
    let worker = remote::attach(&host.socket);
    let [f, g] = ["f", "g"].map(|name| units::handle(&worker, name));
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let call = |holds: bool| {
            let (mut seen, mut different) = (0, 0);
            while !end.load(Ordering::Relaxed) {
                let guard = worker.enter().unwrap();
                for _ in 0..if holds { 300 } else { 1 } {
                    let (a, b) = (f.call(&guard, 0), g.call(&guard, 0));
                    assert!(a == b && a >= seen, "{a} and {b} after {seen}");
                    different += u64::from(a > seen);
                    seen = a;
                }
            }
            different
        };
        let threads = [false, false, true].map(|holds| scope.spawn(move || call(holds)));
        let waits = scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                let seen = worker.poll().unwrap().generation();
                worker.wait(seen, Some(Duration::from_millis(20)));
            }
        });
        for round in 0..ROUNDS {
            let next = host.compiler.status().generation + 1;
            publish(&host, &batch(next));
            if round % 3 == 0 {
                host.compiler.renew().unwrap();
            }
            if round % 16 == 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let last = host.compiler.status();
        let last = last.generation;
        let deadline = Instant::now() + PATIENCE;
        while worker.poll().unwrap().generation() < last {
            assert!(Instant::now() < deadline);
            worker.tend();
        }
        end.store(true, Ordering::Relaxed);
        waits.join().unwrap();
        for thread in threads {
            assert!(thread.join().unwrap() > 10);
        }
    });
    let deadline = Instant::now() + PATIENCE;
    while host.compiler.status().older_bytes > 0 {
        assert!(Instant::now() < deadline);
        worker.tend();
        drop(worker.poll());
    }
}
