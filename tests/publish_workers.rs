//! A process's workers as a whole: attached again and again, to several segments, and gone.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::host::Host;
use common::{remote, role};
use units::{attach, call, handle, publish_generation};

/// The role of a process that attaches again and again.
const AGAIN: &str = "attaches again and again";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(AGAIN, attach_again)]);
}

/// This process's descriptors and mappings.
fn possessions() -> (usize, usize) {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    (descriptors, maps.lines().count())
}

/// The role: a compiler and its worker in one process.
fn attach_again(_target: &str) {
    let host = Host::sealed();
    let mut before = (0, 0);
    for round in 0..220 {
        if round == 20 {
            // What the server makes ahead of need is there.
            before = common::process::at_rest(possessions);
        }
        let generation = publish_generation(&host);
        let worker = attach(&host);
        let f = handle(&worker, "f");
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| call(&worker, "g", 0));
            assert_eq!(thread.join().unwrap(), generation.cast_signed());
        });
        assert_eq!(
            f.call(&worker.enter().unwrap(), 0),
            generation.cast_signed()
        );
        drop(worker);
        common::process::await_some("the worker's end", || {
            (host.compiler.worker_count() == 0).then_some(())
        });
    }
    // What the last worker had for a child goes when its connection is looked at.
    let after = common::process::await_some("as few descriptors as before", || {
        let now = possessions();
        (now.0 <= before.0).then_some(now)
    });
    // The allocator may have taken a few.
    assert!(
        after.1 < before.1 + 20,
        "{} mappings and then {}",
        before.1,
        after.1
    );
    assert_eq!(host.compiler.status().workers, []);
    role::report("done");
}

#[test]
fn attaching_again_and_again_leaves_nothing_behind() {
    let finished = common::process::finish(&mut role::command(AGAIN, ""));
    assert!(finished.succeeded().stdout.contains("report: done"));
}

#[test]
fn a_process_can_be_a_worker_of_two_segments() {
    let hosts = [(); 2].map(|()| Host::sealed());
    publish_generation(&hosts[1]);
    let [first, second] = [0, 1].map(|index| {
        publish_generation(&hosts[index]);
        attach(&hosts[index])
    });
    let handles = [&first, &second].map(|worker| handle(worker, "f"));
    for _ in 0..50 {
        publish_generation(&hosts[0]);
        let guards = [first.enter().unwrap(), second.enter().unwrap()];
        for (host, guard) in hosts.iter().zip(&guards) {
            assert_eq!(guard.generation(), host.compiler.status().generation);
        }
        for (handle, guard) in handles.iter().zip(&guards) {
            assert_eq!(handle.call(guard, 0), guard.generation().cast_signed());
        }
        drop(guards);
        publish_generation(&hosts[1]);
    }
    let guard = second.enter().unwrap();
    let foreign = catch_unwind(AssertUnwindSafe(|| handles[0].call(&guard, 0)));
    assert!(
        foreign.is_err(),
        "a handle is called with a guard of its own worker"
    );
}

/// The story: workers were told apart by where they lie, and a new one may lie where an old one did. Its
/// guards then opened the old one's handles, which lead into memory that is gone.
#[test]
fn a_handle_of_a_worker_that_is_gone_is_no_other_workers() {
    let host = Host::sealed();
    publish_generation(&host);
    let stale: Vec<_> = (0..20)
        .map(|_| {
            let worker = remote::attach(&host.socket);
            handle(&worker, "f")
        })
        .collect();
    let worker = attach(&host);
    let guard = worker.enter().unwrap();
    for handle in stale {
        let called = catch_unwind(AssertUnwindSafe(|| handle.call(&guard, 0)));
        assert!(called.is_err());
    }
    assert_eq!(call(&worker, "f", 0), guard.generation().cast_signed());
}
