//! What publishers do beside publishing outlives the compiler process: removals under users, quarantines, kept variables,
//! and the way back.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use common::host::{Host, clif_unit};
use common::process::PATIENCE;
use common::remote::{self, Remote};
use common::scratch::{Scratch, adds};
use common::serve::Serve;
use common::{require, role};
use jitcast::compiler::{
    Changeset, CompilerOptions, JournalOptions, Publication, PublishOptions, Status,
};
use jitcast::worker::Worker;
use rustix::process::Signal;
use units::{Code, HOLDER, Holder, adders, attach, c, call, calls, handle, hold, publish};

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(remote::ROLE, remote::play), (HOLDER, hold)]);
}

/// A host with a journal in `folder`.
fn host(folder: &Path) -> Host {
    Host::with(CompilerOptions {
        journal: Some(JournalOptions::new(folder)),
        ..CompilerOptions::default()
    })
}

/// Everything that a restart has to bring back.
fn state(host: &Host) -> (Status, u64) {
    let status = units::published(host);
    let held_bytes = units::held_bytes(&status);
    // What is retired is free after a restart.
    let lasting = Status {
        areas: Vec::new(),
        retired_bytes: 0,
        ..status
    };
    (lasting, held_bytes)
}

/// Ends the compiler process, and starts another one that has to have the same state. The folder may be one that was
/// copied, as after a kill.
#[track_caller]
fn restart(host: Host, folder: &Path) -> Host {
    let before = state(&host);
    drop(host);
    let restarted = self::host(folder);
    assert_eq!(state(&restarted), before);
    restarted
}

#[track_caller]
fn change(host: &Host, changes: &Changeset<'_>) -> Publication {
    let done = host.compiler.change(changes);
    done.unwrap_or_else(|error| panic!("{error}"))
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

const LEAVE_TRAPS: PublishOptions = PublishOptions {
    leave_traps: true,
    change_signatures: false,
    keep_data: false,
    if_changed: false,
};

/// A `serve` with a journal, in a scratch folder.
fn serve(scratch: Scratch) -> Serve {
    let (socket, journal) = (scratch.path("socket"), scratch.path("journal"));
    Serve {
        process: Serve::start_at(&socket, &["--journal", &journal, "--retain", "4"]),
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

#[test]
fn the_way_back_outlives_a_kill() {
    let serve = serve(Scratch::open_to_all());
    for (name, bonus) in [("f", 1), ("f", 2), ("g", 3)] {
        serve.publish_adds(name, bonus);
    }
    let at_both = serve.status().generation;
    serve.command("remove", &["f"]).succeeded();
    serve.publish_adds("g", 4);
    let (history, before) = (serve.command("history", &[]).stdout, serve.status());
    let serve = kill_and_restart(serve);
    assert_eq!(serve.command("history", &[]).succeeded().stdout, history);
    let after = serve.status();
    assert_eq!(
        (&after.units, &after.symbols, &after.history),
        (&before.units, &before.symbols, &before.history)
    );
    assert_eq!(after.oldest_retained, before.oldest_retained);
    // What is published already is not published again.
    let g = serve.scratch.write("g.clif", adds("g", 4));
    let same = serve.publish(&[&g, "--if-changed"]).succeeded();
    assert_eq!(same.stdout, format!("generation {}: g\n", after.generation));
    let mut worker = Remote::start(&serve.socket);
    assert_eq!(worker.call("g", 0), "4");
    serve.command("rollback", &[]).succeeded();
    assert_eq!(worker.call("g", 0), "3");
    let to = at_both.to_string();
    serve.command("rollback", &[&to]).succeeded();
    let mut late = Remote::start(&serve.socket);
    for worker in [&mut worker, &mut late] {
        assert_eq!([worker.call("f", 0), worker.call("g", 0)], ["2", "3"]);
    }
    // And the rollbacks themselves are part of the way.
    let serve = kill_and_restart(serve);
    assert_eq!(serve.call("f(0)"), "2");
    serve.command("rollback", &[]).succeeded();
    let mut late = Remote::start(&serve.socket);
    assert_eq!(late.call("g", 0), "3");
    let missing = late.call("f", 0);
    assert!(missing.contains("`f`"), "{missing}");
}

#[test]
fn traps_stand_until_the_name_is_published_again() {
    let scratch = Scratch::new();
    let folder = scratch.path("journal");
    let folder = Path::new(&folder);
    let first = host(folder);
    first.publish_adds("f", 1);
    publish(&first, &[clif_unit("user", &calls("user", "f", 100))]);
    change(
        &first,
        &Changeset {
            removals: &names(&["f"]),
            options: LEAVE_TRAPS,
            ..Changeset::default()
        },
    );
    let second = restart(first, folder);
    let [trap] = &second.compiler.status().traps[..] else {
        panic!("one trap");
    };
    assert_eq!(
        (&*trap.symbol, &trap.users[..]),
        ("f", &names(&["user"])[..])
    );
    Holder::start(&second, "user").aborts("stub", &["is not published any more"]);
    let worker = attach(&second);
    second.publish_adds("f", 5);
    assert_eq!(call(&worker, "user", 0), 105);
    assert_eq!(second.compiler.status().traps, []);
    // And where nobody publishes it again, the last user takes the trap along.
    change(
        &second,
        &Changeset {
            removals: &names(&["f"]),
            options: LEAVE_TRAPS,
            ..Changeset::default()
        },
    );
    let third = restart(second, folder);
    third.compiler.remove(&names(&["user"])).unwrap();
    assert_eq!(third.compiler.status().traps, []);
    let fourth = restart(third, folder);
    fourth.publish_adds("f", 6);
    assert_eq!(call(&attach(&fourth), "f", 0), 6);
}

extern "C" fn minus(x: i64) -> i64 {
    -x
}

/// What a handle of `f` gives for 5, whose host has a fallback.
fn call_or_fall_back(worker: &Worker) -> i64 {
    let guard = worker.enter().unwrap();
    let handle = worker.function_or::<Code>(&guard, "f", minus).unwrap();
    handle.call(&guard, 5)
}

#[test]
fn quarantines_stay_until_they_are_lifted() {
    let scratch = Scratch::new();
    let folder = scratch.path("journal");
    let folder = Path::new(&folder);
    let first = host(folder);
    first.publish_adds("f", 100);
    publish(&first, &[clif_unit("user", &calls("user", "f", 1000))]);
    change(
        &first,
        &Changeset {
            updates: &[jitcast::compiler::SymbolUpdate::Quarantine("f".to_owned())],
            options: LEAVE_TRAPS,
            ..Changeset::default()
        },
    );
    let second = restart(first, folder);
    assert_eq!(second.compiler.status().quarantined, ["f"]);
    let worker = attach(&second);
    assert_eq!(call_or_fall_back(&worker), -5);
    Holder::start(&second, "user").aborts("stub", &["is quarantined"]);
    // Published anew, it stays quarantined, over another restart; and removed, and published again.
    second.publish_adds("f", 200);
    assert_eq!(call_or_fall_back(&worker), -5);
    let third = restart(second, folder);
    change(
        &third,
        &Changeset {
            removals: &names(&["f"]),
            options: LEAVE_TRAPS,
            ..Changeset::default()
        },
    );
    let fourth = restart(third, folder);
    fourth.publish_adds("f", 300);
    let worker = attach(&fourth);
    assert_eq!(call_or_fall_back(&worker), -5);
    fourth.compiler.restore(&names(&["f"])).unwrap();
    assert_eq!(call_or_fall_back(&worker), 305);
    assert_eq!(call(&worker, "user", 0), 1300);
    let fifth = restart(fourth, folder);
    assert_eq!(call_or_fall_back(&attach(&fifth)), 305);
}

#[test]
fn kept_variables_keep_their_places() {
    if !require::cc() {
        return;
    }
    let counters = |step: i64| {
        let start = 1000 * step;
        c(
            "counters",
            &format!(
                "long count = {start}; static long *pointer = &count;
                 long add(long x) {{ count += {step}; return *pointer + x; }}
                 long place(long x) {{ return (long)&count + x; }}"
            ),
        )
    };
    let reader = c(
        "reader",
        "extern long count; long read_it(long x) { return count + x; }",
    );
    let keep = |host: &Host, step| {
        let units = [counters(step)];
        let options = PublishOptions {
            keep_data: true,
            ..PublishOptions::default()
        };
        change(
            host,
            &Changeset {
                units: &units,
                options,
                ..Changeset::default()
            },
        );
    };
    // Where the variable lies in the window, whatever the worker.
    let place = |worker: &Worker| {
        let address = call(worker, "place", 0).cast_unsigned();
        address - worker.stats().base.get()
    };
    let scratch = Scratch::new();
    let folder = scratch.path("journal");
    let folder = Path::new(&folder);
    let first = host(folder);
    publish(&first, &[counters(1), reader]);
    keep(&first, 10);
    let worker = attach(&first);
    let kept_at = place(&worker);
    drop(worker);
    let second = restart(first, folder);
    let worker = attach(&second);
    assert_eq!(place(&worker), kept_at);
    assert_eq!(
        [call(&worker, "add", 0), call(&worker, "read_it", 0)],
        [10_010, 10_010]
    );
    // Others take what is free, but not that.
    publish(&second, &[adders("other", &[("other", 1)])]);
    keep(&second, 20);
    assert_eq!(
        [call(&worker, "add", 0), call(&worker, "read_it", 0)],
        [10_030, 10_030]
    );
    let third = restart(second, folder);
    let late = attach(&third);
    assert_eq!(place(&late), kept_at);
    keep(&third, 30);
    assert_eq!(
        [call(&late, "add", 0), call(&late, "read_it", 0)],
        [20_030, 20_030]
    );
    assert_eq!(place(&late), kept_at);
    // Whoever uses it by its place holds on to it, also after all that.
    let refused = third.compiler.publish(&[counters(1)]).unwrap_err();
    assert!(refused.to_string().contains("--keep-data"), "{refused}");
}

/// Selectors are not in the journal: they are the new segment's own.
#[test]
fn workers_apply_while_threads_stay_inside() {
    let scratch = Scratch::new();
    let folder = scratch.path("journal");
    let folder = Path::new(&folder);
    let version = |host: &Host, number: i32| {
        let batch = [adders("f", &[("f", number)]), adders("g", &[("g", number)])];
        publish(host, &batch)
    };
    let first = host(folder);
    version(&first, 1);
    publish(&first, &[clif_unit("user", &calls("user", "g", 1000))]);
    let second = restart(first, folder);
    let worker = attach(&second);
    let (f, user) = (handle(&worker, "f"), handle(&worker, "user"));
    let (inside, end) = (Barrier::new(2), AtomicBool::new(false));
    let deadline = Instant::now() + PATIENCE;
    std::thread::scope(|scope| {
        let stay = || {
            let guard = worker.enter().unwrap();
            inside.wait();
            let mut calls = 0u64;
            // Its own deadline: when the test fails, nobody tells it.
            while !end.load(Ordering::Relaxed) && Instant::now() < deadline {
                assert_eq!([f.call(&guard, 0), user.call(&guard, 0)], [1, 1001]);
                calls += 1;
            }
            calls
        };
        let thread = scope.spawn(stay);
        inside.wait();
        for number in 2..60 {
            let generation = version(&second, number).generation;
            // While a test beside this one forks, workers stay as they are.
            let guard = loop {
                let guard = worker.enter().unwrap();
                if guard.generation() == generation {
                    break guard;
                }
                assert!(Instant::now() < deadline && !thread.is_finished());
            };
            let number = i64::from(number);
            assert_eq!(
                [f.call(&guard, 0), user.call(&guard, 0)],
                [number, 1000 + number]
            );
            assert!(Instant::now() < deadline && !thread.is_finished());
        }
        end.store(true, Ordering::Relaxed);
        assert!(thread.join().unwrap() > 0);
    });
    assert_eq!(call(&attach(&restart(second, folder)), "user", 0), 1059);
}

/// The image of the next process is what its workers have mapped: they go on with it while threads are inside.
#[test]
fn workers_of_a_killed_process_go_on_with_the_next_one() {
    let serve = serve(Scratch::open_to_all());
    serve.publish_adds("f", 1);
    let user = serve.scratch.write("user.clif", calls("user", "f", 100));
    serve.publish(&[&user]).succeeded();
    serve.publish_adds("f", 2);
    let worker = remote::attach(&serve.socket);
    let (f, user) = (handle(&worker, "f"), handle(&worker, "user"));
    let base = worker.stats().base;
    let (inside, end) = (Barrier::new(2), AtomicBool::new(false));
    let deadline = Instant::now() + PATIENCE;
    std::thread::scope(|scope| {
        let stays = scope.spawn(|| {
            let guard = worker.enter().unwrap();
            inside.wait();
            // Its own deadline: when the test fails, nobody tells it.
            while !end.load(Ordering::Relaxed) && Instant::now() < deadline {
                assert_eq!([f.call(&guard, 0), user.call(&guard, 0)], [2, 102]);
            }
        });
        inside.wait();
        let serve = kill_and_restart(serve);
        let tend_until = |connected: bool| {
            while worker.is_connected() != connected {
                assert!(Instant::now() < deadline && !stays.is_finished());
                worker.tend();
                std::thread::yield_now();
            }
        };
        tend_until(false);
        tend_until(true);
        assert_eq!(worker.stats().base, base);
        for bonus in 3..20 {
            serve.publish_adds("f", bonus);
            let guard = worker.enter().unwrap();
            assert_eq!(
                [f.call(&guard, 0), user.call(&guard, 0)],
                [bonus, 100 + bonus]
            );
        }
        serve.command("rollback", &[]).succeeded();
        assert_eq!(call(&worker, "user", 0), 118);
        let status = serve.status();
        let mut known = status.workers.iter();
        assert!(known.any(|known| known.applied == status.generation));
        end.store(true, Ordering::Relaxed);
        stays.join().unwrap();
    });
}
