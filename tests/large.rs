//! Large publications: applied as a whole by the first who polls, which a host lets happen in an idle moment.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::time::{Duration, Instant};

use common::host::Host;
use jitcast::compiler::{CompilerOptions, UnitSource};
use jitcast::worker::{Polled, Worker};
use units::{adders, attach, call, publish};

jitcast::worker::embed!(); // else unwind records are registered, which takes longer

/// A unit of so many functions.
fn one_unit(functions: usize, bonus: i32) -> Vec<UnitSource> {
    let names: Vec<String> = (0..functions).map(|index| format!("one_{index}")).collect();
    let functions: Vec<_> = names.iter().map(|name| (name.as_str(), bonus)).collect();
    vec![adders("one", &functions)]
}

/// So many units of a function each.
fn many_units(units: usize, bonus: i32) -> Vec<UnitSource> {
    let names = (0..units).map(|index| format!("many_{index}"));
    names.map(|name| adders(&name, &[(&name, bonus)])).collect()
}

#[test]
fn a_poll_in_an_idle_moment_leaves_nothing_to_do_for_who_enters() {
    let host = Host::with(CompilerOptions::with_window(256 << 20).unwrap());
    let worker = attach(&host);
    for bonus in 1..=2 {
        let batch = [one_unit(1000, bonus), many_units(1000, bonus)].concat();
        let generation = publish(&host, &batch).generation;
        assert_eq!(worker.poll().unwrap(), Polled::Applied { generation });
        let idle = worker.stats();
        for name in ["one_0", "one_999", "many_0", "many_999"] {
            assert_eq!(call(&worker, name, 1), 1 + i64::from(bonus));
        }
        assert_eq!(worker.stats(), idle, "nothing was applied by a call");
    }
}

/// How long whoever enters first after a publication of `units` takes to get in, if the host has polled in an `idle` moment or not.
fn pause(worker: &Worker, host: &Host, units: &[UnitSource], idle: bool) -> Duration {
    publish(host, units);
    if idle {
        worker.poll().unwrap();
    }
    let start = Instant::now();
    let guard = worker.enter().unwrap();
    let took = start.elapsed();
    drop(guard);
    took
}

/// The figures in README.
#[test]
#[ignore = "a measurement"]
fn the_pause_of_ten_thousand_functions() {
    type Batch = fn(usize, i32) -> Vec<UnitSource>;
    let batches: [(&str, Batch); 2] = [("one unit", one_unit), ("10,000 units", many_units)];
    for (what, batch) in batches {
        let host = Host::with(CompilerOptions::with_window(1 << 30).unwrap());
        let worker = attach(&host);
        for (idle, after) in [(false, "it"), (true, "a poll in an idle moment")] {
            let version = |version| pause(&worker, &host, &batch(10_000, version), idle);
            let mut pauses: Vec<_> = (1..=10).map(version).collect();
            pauses.sort();
            let (least, most) = (pauses[0], pauses[pauses.len() - 1]);
            println!(
                "10,000 functions in {what}: who enters after {after} waits {least:.1?} to {most:.1?}"
            );
        }
    }
}
