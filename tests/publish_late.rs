//! Workers that come late, or sleep: whatever they missed, they see exactly what is published now.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::collections::BTreeMap;

use common::host::{Host, clif_unit};
use common::remote::{self, Remote};
use common::role;
use jitcast::worker::{Function, LookupError, Worker};
use units::{Code, adders, attach, call, calls, function, publish, try_call};

/// How many publications the ring remembers.
const RING: u64 = jitcast::runtime::header::RING_PLACES as u64;

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(remote::ROLE, remote::play)]);
}

/// What the published functions add, by their names, as far as the test knows.
#[derive(Default)]
struct Known {
    added: BTreeMap<String, i32>,
    gone: Vec<String>,
    steps: i32,
}

impl Known {
    /// A publication that replaces, adds or removes functions of one of a few units. Each unit has one function
    /// that stays and one that comes and goes; others call the former.
    fn step(&mut self, host: &Host) {
        self.steps += 1;
        let unit = format!("u{}", self.steps * 7 % 10);
        let (stays, visits) = (format!("{unit}_stays"), format!("{unit}_visits"));
        let mut functions = vec![(stays, self.steps)];
        if self.steps * 7 / 10 % 3 == 0 {
            functions.push((visits, -self.steps));
        } else if self.added.remove(&visits).is_some() {
            self.gone.push(visits);
        }
        let borrowed: Vec<_> = functions
            .iter()
            .map(|(name, added)| (name.as_str(), *added))
            .collect();
        publish(host, &[adders(&unit, &borrowed)]);
        self.gone
            .retain(|name| functions.iter().all(|(known, _)| known != name));
        self.added.extend(functions);
    }

    fn steps(&mut self, host: &Host, count: u64) {
        (0..count).for_each(|_| self.step(host));
    }

    /// Asserts that `worker` sees this, and nothing else.
    #[track_caller]
    fn is_what(&self, worker: &Worker, host: &Host) {
        let guard = worker.enter().unwrap();
        assert_eq!(guard.generation(), host.compiler.status().generation);
        drop(guard);
        for (name, added) in &self.added {
            assert_eq!(call(worker, name, 1000), 1000 + i64::from(*added), "{name}");
        }
        for name in &self.gone {
            let result = try_call(worker, name, 0);
            assert!(
                matches!(result, Err(LookupError::NotFound { .. })),
                "{name}"
            );
        }
        let first = self.added.get("u0_stays");
        if let (Some(first), true) = (first, try_call(worker, "user", 0).is_ok()) {
            assert_eq!(call(worker, "user", 0), i64::from(*first) + 1);
        }
    }
}

#[test]
fn a_late_worker_sees_exactly_what_is_published() {
    let host = Host::sealed();
    let mut known = Known::default();
    attach(&host).poll().unwrap();
    known.steps(&host, 10);
    publish(&host, &[clif_unit("user", &calls("user", "u0_stays", 1))]);
    for count in [0, 1, 50, RING + 200] {
        known.steps(&host, count);
        known.is_what(&attach(&host), &host);
    }
    assert!(!known.gone.is_empty() && known.added.len() > 10);
}

/// The handles of a worker, and how often it has read the directory.
fn handles(worker: &Worker, known: &Known) -> (BTreeMap<String, Function<Code>>, u64) {
    let guard = worker.enter().unwrap();
    let handle = |name: &String| (name.clone(), function(worker, &guard, name).unwrap());
    let handles = known.added.keys().map(handle).collect();
    drop(guard);
    (handles, worker.stats().resyncs)
}

#[test]
fn a_worker_that_slept_catches_up_however_far_it_is_behind() {
    let host = Host::sealed();
    let mut known = Known::default();
    known.steps(&host, 10);
    publish(&host, &[clif_unit("user", &calls("user", "u0_stays", 1))]);
    for behind in [1, 10, 63, 64, 65, 100, RING - 1, RING, RING + 1, 3 * RING] {
        let worker = attach(&host);
        let (handles, _) = handles(&worker, &known);
        known.steps(&host, behind);
        known.is_what(&worker, &host);
        let guard = worker.enter().unwrap();
        for (name, added) in &known.added {
            if let Some(handle) = handles.get(name) {
                assert_eq!(
                    handle.call(&guard, 0),
                    i64::from(*added),
                    "{name}, {behind} behind"
                );
            }
        }
    }
}

#[test]
fn replacements_alone_are_read_from_the_ring_and_long_absences_from_the_directory() {
    let host = Host::sealed();
    let unit = |number| adders("f", &[("f", number)]);
    let once = |number| adders("once", &[("once", number)]);
    publish(&host, &[unit(0), once(0)]);
    let worker = attach(&host);
    let (handle, first) = {
        let guard = worker.enter().unwrap();
        let handle = |name| function(&worker, &guard, name).unwrap();
        (handle("f"), handle("once"))
    };
    let mut resyncs = worker.stats().resyncs;
    for (behind, reads_directory) in [(1, false), (10, false), (100, true), (RING + 10, true)] {
        publish(&host, &[once(behind as i32)]);
        (1..behind).for_each(|number| drop(publish(&host, &[unit(number as i32)])));
        let guard = worker.enter().unwrap();
        assert_eq!(first.call(&guard, 0), behind as i64);
        assert_eq!(handle.call(&guard, 0), behind as i64 - 1);
        let now = worker.stats().resyncs;
        assert_eq!(now > resyncs, reads_directory, "{behind} behind");
        resyncs = now;
    }
}

#[test]
fn sleeping_processes_wake_up_to_the_present() {
    let host = Host::sealed();
    let mut workers = [(); 3].map(|()| Remote::start(&host.socket));
    for (round, count) in [10, 100, RING + 100].into_iter().enumerate() {
        // One of them never sleeps.
        for number in 0..count {
            let mut unit = adders("f", &[("f", number as i32)]);
            unit.signatures = vec![("f".into(), "(i64) -> i64".parse().unwrap())];
            publish(&host, &[unit]);
            if number % 50 == 0 {
                assert_eq!(workers[0].call("f", 0), number.to_string());
            }
        }
        let generation = host.compiler.status().generation.to_string();
        for worker in &mut workers[..=round] {
            assert_eq!(worker.call("f", 0), (count - 1).to_string());
            assert_eq!(worker.ask("generation"), generation);
        }
    }
}

#[test]
fn a_worker_that_waits_is_told_of_what_is_new() {
    let host = Host::sealed();
    let worker = attach(&host);
    let seen = worker.poll().unwrap().generation();
    assert!(!worker.wait(seen, Some(std::time::Duration::from_millis(1))));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let mut seen = seen;
            while seen < 100 {
                assert!(worker.wait(seen, Some(common::process::PATIENCE)));
                let now = worker.poll().unwrap().generation();
                assert!(now > seen);
                seen = now;
            }
            seen
        });
        while host.publish_adds("f", 1) < 100 {}
        assert_eq!(waiting.join().unwrap(), 100);
    });
}

/// A worker that passes over what was overwritten, fails the test above.
#[test]
#[cfg(feature = "seeded-faults")]
fn a_worker_that_misses_publications_is_noticed() {
    common::fault::is_noticed(
        ("JITCAST_FAULT", "lap-unnoticed"),
        "replacements_alone_are_read_from_the_ring_and_long_absences_from_the_directory",
    );
}
