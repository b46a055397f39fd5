//! Who runs a canary: workers under load, late ones, those that take another's seat, children, and those that outlive their
//! compiler process.

#[path = "publish/canaries.rs"]
mod canaries;
mod common;
#[path = "publish/units.rs"]
mod units;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use canaries::{Schedule, Template, abort, begin, promote, workers};
use common::child::{fork, succeeded};
use common::host::{Host, clif_unit};
use common::process::{PATIENCE, await_some};
use common::remote::{self, Remote};
use common::role;
use common::scratch::{Scratch, adds};
use common::serve::Serve;
use jitcast::compiler::{Changeset, CompilerOptions, JournalOptions, PublishOptions};
use jitcast::worker::{Function, Worker};
use rustix::process::Signal;
use units::{adders, attach, call, calls, handle, publish};

/// The role of a worker whose threads call all the time.
const CALLS: &str = "calls all the time";
/// The role of one that forks.
const FORKS: &str = "forks";
/// The role of one that is not in the audience, and whose child is.
const FORKS_INTO: &str = "forks into the audience";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[
        (remote::ROLE, remote::play),
        (CALLS, call_all_the_time),
        (FORKS, fork_children),
        (FORKS_INTO, fork_into_the_audience),
    ]);
}

/// `both(x)`: what `f` adds, and what `g` adds.
const BOTH: &str = "function %both(i64) -> i64 {
    fn0 = %f(i64) -> i64
    fn1 = %g(i64) -> i64
block0(v0: i64):
    v1 = call fn0(v0)
    v2 = call fn1(v1)
    return v2
}
";

/// Calls in guards until it is told to end; each has to give what the schedule says. Some guards take long, so that others apply
/// what is new while this thread is inside.
fn call_by_schedule(
    worker: &Worker,
    handles: &[Function<units::Code>; 3],
    schedule: &Schedule,
    inside: bool,
    end: &AtomicBool,
    lasting: bool,
) -> u64 {
    let [f, g, both] = handles;
    let (mut guards, mut newest) = (0, 0);
    while !end.load(Ordering::Relaxed) {
        let guard = worker.enter().unwrap();
        let generation = guard.generation();
        assert!(generation >= newest, "{generation} after {newest}");
        newest = generation;
        let expected = schedule.expected(generation, inside);
        for round in 0..20 {
            let found = [f.call(&guard, 0), g.call(&guard, 0), both.call(&guard, 0)];
            assert_eq!(found, [expected, expected, 2 * expected], "at {generation}");
            if lasting && round == 10 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        guards += 1;
    }
    guards
}

/// The role: calls in several threads, and looks names up anew, until it is told to end.
fn call_all_the_time(target: &str) {
    let words: Vec<_> = target.split(' ').collect();
    let [socket, start, inside] = words[..] else {
        panic!("a socket, the first generation, and whether it is in the audience")
    };
    let schedule = Schedule {
        start: start.parse().unwrap(),
        template: None,
    };
    let inside = inside == "inside";
    let worker = remote::attach(socket);
    let handles = ["f", "g", "both"].map(|name| handle(&worker, name));
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let call = |lasting| call_by_schedule(&worker, &handles, &schedule, inside, &end, lasting);
        let threads = [false, false, true].map(|lasting| scope.spawn(move || call(lasting)));
        let names = scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                let guard = worker.enter().unwrap();
                let expected = schedule.expected(guard.generation(), inside);
                let f = units::function(&worker, &guard, "f").unwrap();
                assert_eq!(f.call(&guard, 0), expected);
            }
        });
        role::report("calls");
        role::next_line();
        end.store(true, Ordering::Relaxed);
        names.join().unwrap();
        let guards = threads.map(|thread| thread.join().unwrap());
        role::report(guards.iter().min().unwrap());
    });
}

fn host_for_load() -> (Host, Schedule) {
    let host = Host::with(CompilerOptions {
        reclaim_above_bytes: 16 << 10,
        ..CompilerOptions::default()
    });
    let units = ["f", "g"].map(|name| adders(name, &[(name, 0)]));
    publish(&host, &units);
    publish(&host, &[clif_unit("both", BOTH)]);
    let start = host.compiler.status().generation + 1;
    let template = common::require::cc().then(Template::new);
    let schedule = Schedule { start, template };
    assert_eq!(schedule.step(&host.compiler, start - 1, &workers(1)), start);
    (host, schedule)
}

/// Canaries begin and end under two workers, one of them in the audience; the bytes in use early and late.
fn cycle_under_load(cycles: u64) -> (u64, u64) {
    let (host, schedule) = host_for_load();
    let mut callers = ["inside", "outside"].map(|inside| {
        let target = format!("{} {} {inside}", host.socket, schedule.start);
        let mut caller = role::start(CALLS, &target);
        assert_eq!(role::next_report(&mut caller), "calls");
        caller
    });
    let used = || {
        host.compiler
            .status()
            .areas
            .iter()
            .map(|area| area.used_bytes)
            .sum()
    };
    let (mut generation, mut early) = (schedule.start, 0);
    for step in 0..3 * cycles {
        generation = schedule.step(&host.compiler, generation, &workers(1));
        if step % 7 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        if step == cycles {
            early = used();
        }
        assert_eq!(
            host.compiler.worker_count(),
            2,
            "a worker has ended before its time"
        );
    }
    let late = used();
    for caller in &mut callers {
        caller.send("end");
        let guards: u64 = role::next_report(caller).parse().unwrap();
        assert!(guards > 100, "only {guards} guards");
    }
    (early, late)
}

#[test]
fn every_guard_runs_what_its_generation_says_for_its_worker() {
    let (early, late) = cycle_under_load(400);
    assert!(
        late < early + (2 << 20),
        "{early} bytes after a third of the cycles, {late} after all"
    );
}

/// The story: a worker that runs every canary is not noticed by those who only look at what it is told. With that fault seeded,
/// the test above must notice.
#[test]
#[cfg(feature = "seeded-faults")]
fn ignoring_audiences_is_noticed() {
    common::fault::is_noticed(
        ("JITCAST_FAULT", "audience-ignored"),
        "every_guard_runs_what_its_generation_says_for_its_worker",
    );
}

#[test]
fn a_worker_that_starts_again_takes_the_seat_of_the_one_that_ended() {
    let host = Host::sealed();
    host.publish_adds("f", 1);
    let (mut first, mut second) = (Remote::start(&host.socket), Remote::start(&host.socket));
    begin(&host, &[clif_unit("f", &adds("f", 2))], &workers(1));
    let mut late = Remote::start(&host.socket);
    let mut see = |first: &mut Remote| [first.call("f", 0), second.call("f", 0), late.call("f", 0)];
    assert_eq!(see(&mut first), ["2", "1", "1"]);
    first.signal(Signal::KILL);
    await_some("the end of the first worker", || {
        (host.compiler.worker_count() == 2).then_some(())
    });
    let mut again = Remote::start(&host.socket);
    assert_eq!(see(&mut again), ["2", "1", "1"]);
    let seats: Vec<_> = host
        .compiler
        .status()
        .workers
        .iter()
        .map(|worker| worker.seat)
        .collect();
    assert_eq!(seats, [Some(1), Some(2), Some(0)]);
    promote(&host, "f");
    assert_eq!(see(&mut again), ["2", "2", "2"]);
}

/// A thread that is inside when a canary begins, is promoted or aborted does not see it.
#[test]
fn who_is_inside_does_not_see_a_canary_come_and_go() {
    let host = Host::sealed();
    publish(
        &host,
        &[
            adders("f", &[("f", 1)]),
            clif_unit("user", &calls("user", "f", 100)),
        ],
    );
    let worker = attach(&host);
    let (f, user) = (handle(&worker, "f"), handle(&worker, "user"));
    let changes: [&dyn Fn(); 4] = [
        &|| {
            begin(&host, &[adders("f", &[("f", 2)])], &workers(1));
        },
        &|| drop(abort(&host, "f")),
        &|| {
            begin(&host, &[adders("f", &[("f", 3)])], &workers(1));
        },
        &|| drop(promote(&host, "f")),
    ];
    for (change, (before, after)) in changes.iter().zip([(1, 2), (2, 1), (1, 3), (3, 3)]) {
        let (inside, applied) = (Barrier::new(2), Barrier::new(2));
        std::thread::scope(|scope| {
            let stays = scope.spawn(|| {
                let guard = worker.enter().unwrap();
                inside.wait();
                applied.wait();
                let code = units::function(&worker, &guard, "f").unwrap();
                [
                    f.call(&guard, 0),
                    code.call(&guard, 0),
                    user.call(&guard, 0),
                ]
            });
            inside.wait();
            change();
            assert_eq!(
                [call(&worker, "f", 0), call(&worker, "user", 0)],
                [after, 100 + after]
            );
            applied.wait();
            assert_eq!(stays.join().unwrap(), [before, before, 100 + before]);
        });
        assert_eq!(
            [call(&worker, "f", 0), call(&worker, "user", 0)],
            [after, 100 + after]
        );
    }
}

/// Calls until `f` gives `expected`.
fn call_until(worker: &Worker, expected: i64) {
    let deadline = Instant::now() + PATIENCE;
    while call(worker, "f", 0) != expected {
        assert!(Instant::now() < deadline, "{expected} never came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The role: in the audience itself, forks children that are not; then ends, so that the next child may be.
fn fork_children(socket: &str) {
    let worker = remote::attach(socket);
    assert_eq!(call(&worker, "f", 0), 2);
    let f = handle(&worker, "f");
    let guard = worker.enter().unwrap();
    let inside = fork(|| {
        // Its guard goes on as it was.
        for _ in 0..100 {
            assert_eq!(f.call(&guard, 0), 2);
        }
        drop(guard);
        // Nothing is published meanwhile: it is given a seat of its own, and moves.
        call_until(&worker, 1);
        for _ in 0..100 {
            assert_eq!(call(&worker, "f", 0), 1);
            let guard = worker.enter().unwrap();
            assert_eq!(f.call(&guard, 0), 1);
        }
        role::report("child");
        role::next_line();
        // By now it is promoted.
        assert_eq!(call(&worker, "f", 0), 2);
    });
    assert_eq!(call(&worker, "f", 0), 2);
    succeeded(inside);
    assert_eq!(call(&worker, "f", 0), 2);
    role::report("parent");
}

#[test]
fn a_child_asks_for_itself_whether_it_runs_a_canary() {
    let host = Host::sealed();
    host.publish_adds("f", 1);
    begin(&host, &[clif_unit("f", &adds("f", 2))], &workers(1));
    let mut parent = role::start(FORKS, &host.socket);
    assert_eq!(role::next_report(&mut parent), "child");
    let status = host.compiler.status();
    let inside: Vec<_> = status
        .workers
        .iter()
        .map(|worker| !worker.canaries.is_empty())
        .collect();
    assert_eq!(inside, [true, false]);
    promote(&host, "f");
    parent.send("go on");
    assert_eq!(role::next_report(&mut parent), "parent");
    parent.finish().succeeded();
}

/// The role: outside itself, forks a child once told, which gets the seat that has become free.
fn fork_into_the_audience(socket: &str) {
    let worker = remote::attach(socket);
    assert_eq!(call(&worker, "f", 1), 1);
    let f = handle(&worker, "f");
    role::report("outside");
    role::next_line();
    succeeded(fork(|| {
        // It moves without a new generation, while its constructor takes long: nobody is inside before and after.
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let others = [(); 2].map(|()| {
                scope.spawn(|| {
                    while !end.load(Ordering::Relaxed) {
                        let guard = worker.enter().unwrap();
                        let is_canary = f.call(&guard, 0) >= 1000;
                        for _ in 0..10 {
                            std::thread::sleep(Duration::from_millis(1));
                            assert_eq!(f.call(&guard, 0) >= 1000, is_canary);
                        }
                        drop(guard);
                        std::thread::sleep(Duration::from_millis(3));
                    }
                })
            });
            call_until(&worker, 1000);
            std::thread::sleep(Duration::from_millis(50));
            end.store(true, Ordering::Relaxed);
            let [first, second] = others;
            first.join().unwrap();
            second.join().unwrap();
        });
        let guard = worker.enter().unwrap();
        assert_eq!(f.call(&guard, 5), 1005, "its own data, constructed here");
        drop(guard);
        role::report("inside");
        role::next_line();
        assert_eq!(call(&worker, "f", 1), 2, "its copy of its parent's");
    }));
    assert_eq!(call(&worker, "f", 1), 2);
    role::report("parent");
}

#[test]
fn a_child_gets_the_seat_that_is_free_and_binds_the_canary() {
    if !common::require::cc() {
        return;
    }
    let host = Host::sealed();
    let version = |start: i64| {
        units::c(
            "f",
            &format!(
                "#include <unistd.h>\nstatic long n;
                __attribute__((constructor)) static void begin(void) {{ usleep({start} * 40); n = {start}; }}
                long f(long x) {{ return n += x; }}"
            ),
        )
    };
    publish(&host, &[version(0)]);
    let mut first = Remote::start(&host.socket);
    first.ask("generation");
    let mut parent = role::start(FORKS_INTO, &host.socket);
    assert_eq!(role::next_report(&mut parent), "outside");
    begin(&host, &[version(1000)], &workers(1));
    drop(first);
    await_some("the end of the first worker", || {
        (host.compiler.worker_count() == 1).then_some(())
    });
    parent.send("fork");
    assert_eq!(role::next_report(&mut parent), "inside");
    abort(&host, "f");
    parent.send("go on");
    assert_eq!(role::next_report(&mut parent), "parent");
    parent.finish().succeeded();
}

/// Going on in another object changes nothing of it.
#[test]
fn canaries_go_on_in_another_object() {
    let host = Host::sealed();
    host.publish_adds("f", 1);
    let (first, second) = (attach(&host), attach(&host));
    let see = || [call(&first, "f", 0), call(&second, "f", 0)];
    begin(&host, &[clif_unit("f", &adds("f", 2))], &workers(1));
    assert_eq!(see(), [2, 1]);
    for _ in 0..3 {
        host.compiler.renew().unwrap();
        assert_eq!(see(), [2, 1]);
        let late = attach(&host);
        assert_eq!(call(&late, "f", 0), 1);
    }
    let id = host.compiler.status().canaries[0].id;
    promote(&host, &id.to_string());
    assert_eq!(see(), [2, 2]);
    begin(&host, &[clif_unit("f", &adds("f", 3))], &workers(1));
    host.compiler.renew().unwrap();
    abort(&host, "f");
    assert_eq!(see(), [2, 2]);
}

/// A `serve` with a journal, in a scratch folder.
fn serve(scratch: Scratch) -> Serve {
    let (socket, journal) = (scratch.path("socket"), scratch.path("journal"));
    Serve {
        process: Serve::start_at(&socket, &["--journal", &journal]),
        socket,
        scratch,
    }
}

/// Kills it and, once it is gone, starts another one.
fn kill_and_restart(killed: Serve) -> Serve {
    killed.process.signal(Signal::KILL);
    assert_eq!(killed.process.finish().signal, Some(libc::SIGKILL));
    serve(killed.scratch)
}

fn tend_until_connected(workers: &[&Worker]) {
    let deadline = Instant::now() + PATIENCE;
    for connected in [false, true] {
        for worker in workers {
            while worker.is_connected() != connected {
                assert!(Instant::now() < deadline);
                worker.tend();
                std::thread::yield_now();
            }
        }
    }
}

#[test]
fn canaries_outlive_a_kill_and_workers_stay_in_them() {
    let serve = serve(Scratch::open_to_all());
    serve.publish_adds("f", 1);
    serve.publish_adds("g", 1);
    let [first, second] = [(); 2].map(|()| remote::attach(&serve.socket));
    let see = |name: &str| [call(&first, name, 0), call(&second, name, 0)];
    let file = |name: &str, bonus| {
        serve
            .scratch
            .write(&format!("{name}.clif"), adds(name, bonus))
    };
    let (f, g) = (file("f", 2), file("g", 2));
    serve.publish(&[&f, "--canary", "1"]).succeeded();
    serve.publish(&[&g, "--canary-label", "blue"]).succeeded();
    assert_eq!((see("f"), see("g")), ([2, 1], [1, 1]));
    let before = serve.status();
    let serve = kill_and_restart(serve);
    // Both resume: the second one first.
    tend_until_connected(&[&second, &first]);
    let after = serve.status();
    let lasting = |status: &jitcast::compiler::Status| {
        let canaries = status.canaries.iter();
        canaries
            .map(|canary| (canary.id, canary.audience.clone(), canary.units.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(lasting(&after), lasting(&before));
    assert_eq!((see("f"), see("g")), ([2, 1], [1, 1]));
    let mut seats: Vec<_> = after
        .workers
        .iter()
        // Commands that this process starts are children of its workers for a while.
        .filter(|worker| worker.pid == std::process::id().cast_signed())
        .map(|worker| (worker.seat, worker.canaries.len()))
        .collect();
    seats.sort_unstable();
    assert_eq!(seats, [(Some(0), 1), (Some(1), 0)]);
    let blue = serve
        .command("worker", &["--json", "--call", "g(0)", "--label", "blue"])
        .succeeded();
    assert_eq!(common::serve::results(&blue.stdout), ["2"]);
    serve.command("promote", &["f"]).succeeded();
    serve.command("abort", &["g"]).succeeded();
    assert_eq!((see("f"), see("g")), ([2, 2], [1, 1]));
    // Ends are written down, too; and what was promoted can be undone.
    let serve = kill_and_restart(serve);
    tend_until_connected(&[&first, &second]);
    assert_eq!(serve.status().canaries, []);
    assert_eq!((see("f"), see("g")), ([2, 2], [1, 1]));
    serve.command("rollback", &[]).succeeded();
    assert_eq!((see("f"), see("g")), ([1, 1], [1, 1]));
}

/// All that a canary has, data and names that go among it, is as it was after a restart, and ends as it would have.
#[test]
fn what_a_canary_has_is_read_back() {
    if !common::require::cc() {
        return;
    }
    let scratch = Scratch::new();
    let folder = scratch.path("journal");
    let start = || {
        Host::with(CompilerOptions {
            journal: Some(JournalOptions::new(&folder)),
            ..CompilerOptions::default()
        })
    };
    let lib = |text: &str| units::c("lib", text);
    let users = [
        units::c(
            "kept",
            "long kept = 1; long more(long x) { return kept += x; }",
        ),
        units::c(
            "reads",
            "extern long kept; long reads(long x) { return kept + x; }",
        ),
    ];
    let first = start();
    publish(
        &first,
        &[lib(
            "long datum = 1; long f(long x) { return datum += x; } long gone(long x) { return x; }",
        )],
    );
    publish(&first, &users);
    let new = lib(
        "long datum = 10; long own = 5; static long (*at)(long); long g(long); \
                   long f(long x) { at = g; return datum += at(x) - own; } long g(long x) { return x + own; }",
    );
    let audience = workers(1);
    first
        .compiler
        .change(&canaries::canary(&[new], &audience))
        .unwrap();
    let kept = [units::c(
        "kept",
        "long kept = 1; long more(long x) { return kept += 2 * x; }",
    )];
    let keep_data = PublishOptions {
        keep_data: true,
        ..PublishOptions::default()
    };
    let changes = Changeset {
        options: keep_data,
        ..canaries::canary(&kept, &audience)
    };
    first.compiler.change(&changes).unwrap();
    // Base units that take addresses while there are two versions.
    publish(
        &first,
        &[units::c(
            "takes",
            "extern long f(long); long (*taken)(long) = f; long takes(long x) { return taken(x); }",
        )],
    );
    let see = |host: &Host| {
        let (inside, outside) = (attach(host), attach(host));
        let names = ["f", "takes", "more", "reads"];
        [&inside, &outside].map(|worker| names.map(|name| call(worker, name, 1)))
    };
    let expected = [[11, 12, 3, 4], [2, 3, 2, 3]];
    assert_eq!(see(&first), expected);
    let state = |host: &Host| {
        let status = units::published(host);
        let held_bytes = units::held_bytes(&status);
        (
            status.canaries,
            status.units,
            status.symbols,
            status.kept,
            held_bytes,
        )
    };
    let before = state(&first);
    drop(first);
    let second = start();
    // Nobody is attached, so the audience's workers are not the same.
    assert_eq!(state(&second), before);
    assert_eq!(see(&second), expected);
    promote(&second, "lib");
    abort(&second, "kept");
    let ended = [[11, 12, 2, 3]; 2];
    assert_eq!(see(&second), ended);
    let before = state(&second);
    drop(second);
    let third = start();
    assert_eq!(state(&third), before);
    assert_eq!(see(&third), ended);
}
