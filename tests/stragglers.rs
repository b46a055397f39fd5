//! Threads that stay inside are named, with what they hold back; publishing goes on within limits.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::time::{Duration, Instant};

use common::host::{Host, WINDOW_BYTES};
use common::process::PATIENCE;
use common::{remote, role};
use jitcast::compiler::{CompilerOptions, PublishError, Straggler};
use rustix::process::Signal;
use units::{attach, call, publish_generation};

const STAYS: &str = "stays inside";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(STAYS, stay_inside)]);
}

/// Two threads stay inside until the test says so; each says which it is.
fn stay_inside(socket: &str) {
    let worker = remote::attach(socket);
    let guard = worker.enter().unwrap();
    role::report(rustix::thread::gettid().as_raw_nonzero());
    role::next_line().unwrap();
    drop(guard);
    role::report(worker.poll().unwrap().generation());
    role::next_line();
}

/// The stragglers, once there are `count`.
fn stragglers(host: &Host, count: usize) -> Vec<Straggler> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = host.compiler.status().stragglers;
        if found.len() == count {
            return found;
        }
        assert!(Instant::now() < deadline, "{found:?} instead of {count}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_thread_that_stays_is_named_with_what_it_holds_and_since_when() {
    let host = Host::sealed();
    let old = publish_generation(&host);
    let mut process = role::start(STAYS, &host.socket);
    let thread: u64 = role::next_report(&mut process).parse().unwrap();
    assert_eq!(
        host.compiler.status().stragglers,
        [],
        "it holds nothing back yet"
    );
    publish_generation(&host);
    let [first] = &stragglers(&host, 1)[..] else {
        panic!()
    };
    assert_eq!(
        (first.pid, first.thread, first.generation),
        (process.pid(), thread, old)
    );
    assert_eq!(first.units, ["f", "g"]);
    assert!(first.held_bytes > 0);
    std::thread::sleep(Duration::from_millis(30));
    publish_generation(&host);
    let [later] = &stragglers(&host, 1)[..] else {
        panic!()
    };
    assert!(
        later.since_ms >= first.since_ms + 30,
        "{first:?} and {later:?}"
    );
    assert!(later.held_bytes > first.held_bytes);
    // Stopped or not, all the same; killed, it holds nothing.
    process.signal(Signal::STOP);
    publish_generation(&host);
    assert_eq!(stragglers(&host, 1)[0].generation, old);
    process.signal(Signal::CONT);
    process.send("leave");
    role::next_report(&mut process);
    stragglers(&host, 0);
    process.finish().succeeded();
}

#[test]
fn publishing_goes_on_until_more_is_held_back_than_is_allowed() {
    const LIMIT: u64 = 64 << 10;
    let host = Host::with(CompilerOptions {
        max_held_bytes: Some(LIMIT),
        reclaim_above_bytes: 0,
        ..CompilerOptions::with_window(WINDOW_BYTES).unwrap()
    });
    publish_generation(&host);
    let other = attach(&host);
    let mut process = role::start(STAYS, &host.socket);
    role::next_report(&mut process);
    let batch = || {
        let number = (host.compiler.status().generation + 1) as i32;
        [
            units::adders("f", &[("f", number)]),
            units::adders("g", &[("g", number)]),
        ]
    };
    let mut published = 0;
    let refusal = loop {
        match host.compiler.publish(&batch()) {
            Ok(generation) => {
                published += 1;
                // Others go on all the time.
                assert_eq!(call(&other, "f", 0), generation.generation.cast_signed());
            }
            Err(error) => break error,
        }
        assert!(published < 10_000, "the limit is never met");
    };
    assert!(published > 10, "{published}");
    let text = refusal.to_string();
    let PublishError::HeldBack { stragglers, .. } = refusal else {
        panic!("{text}")
    };
    assert_eq!(stragglers.len(), 1);
    assert!(stragglers[0].held_bytes > LIMIT);
    for part in [
        "held back",
        "--max-held",
        &format!("pid {}", process.pid()),
        "of f, g",
        "help:",
    ] {
        assert!(text.contains(part), "`{part}` in {text}");
    }
    process.send("leave");
    role::next_report(&mut process);
    publish_generation(&host);
    process.finish().succeeded();
}

#[test]
fn what_fills_the_segment_is_named() {
    let host = Host::with(CompilerOptions {
        max_held_bytes: Some(2_400_000),
        ..CompilerOptions::with_window(WINDOW_BYTES).unwrap()
    });
    publish_generation(&host);
    let mut process = role::start(STAYS, &host.socket);
    role::next_report(&mut process);
    let big = |number: u8| {
        use common::host::object_unit;
        use common::object::Maker;
        let code = [vec![0xb8, number, 0, 0, 0, 0xc3], vec![0xcc; 200_000]].concat();
        let object = Maker::new().function("big", &code).finish();
        jitcast::compiler::UnitSource {
            reclaim: jitcast::compiler::Reclaim::Yes,
            ..object_unit("big", object)
        }
    };
    let refusal = (0..100).find_map(|number| host.compiler.publish(&[big(number)]).err());
    let text = refusal
        .expect("a window of 8 MiB holds twenty megabytes")
        .to_string();
    for part in ["segment full", "text", "held back by worker", "of big"] {
        assert!(text.contains(part), "`{part}` in {text}");
    }
    process.send("leave");
    role::next_report(&mut process);
    host.compiler.publish(&[big(0)]).unwrap();
    process.finish().succeeded();
}

/// A limit that is none, fails the test above.
#[test]
#[cfg(feature = "seeded-faults")]
fn a_limit_that_is_none_is_noticed() {
    common::fault::is_noticed(
        ("JITCAST_FAULT", "held-unlimited"),
        "publishing_goes_on_until_more_is_held_back_than_is_allowed",
    );
}
