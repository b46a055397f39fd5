//! Hot swap under load: every call gives the version of the generation that it is guarded at.
//!
//! Versions return increasing numbers, one for each generation, so a result tells exactly which version
//! ran. Workers are processes of their own: this test binary, started again.

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use common::host::Host;
use common::process::{PATIENCE, Process, await_some};
use common::role::{self, next_report, report};
use jitcast::compiler::front::{Options, compile_bytes};
use jitcast::compiler::{CompilerOptions, Reclaim, UnitFile, UnitSource};
use jitcast::linker::Dialect;
use jitcast::runtime::signature::Signature;
use jitcast::worker::{Endpoint, Worker, WorkerOptions};

/// Stands for the number that a version returns.
const MARK: u32 = 0x5a17_c0de;

/// An object whose `version` returns a number that can be exchanged: no compiler needs to run for each swap.
struct Template {
    object: Vec<u8>,
    places: Vec<usize>,
    signatures: Vec<(String, Signature)>,
    dialect: Dialect,
}

impl Template {
    fn new(name: &str, text: &str) -> Self {
        let options = Options::default();
        let compiled = compile_bytes(name, text.as_bytes().to_vec(), &options).unwrap();
        let mark = MARK.to_le_bytes();
        let places = (0..compiled.bytes.len() - 3)
            .filter(|at| compiled.bytes[*at..at + 4] == mark)
            .collect::<Vec<_>>();
        assert!(!places.is_empty(), "the number is an immediate");
        let signatures = match compiled.signatures {
            known if known.is_empty() => vec![("version".into(), "() -> i64".parse().unwrap())],
            known => known,
        };
        Self {
            object: compiled.bytes,
            places,
            signatures,
            dialect: compiled.dialect,
        }
    }

    fn clif() -> Self {
        let mark = MARK;
        let text = format!(
            "function %version() -> i64 system_v {{\nblock0:\n    v0 = iconst.i64 {mark}\n    return v0\n}}\n"
        );
        Self::new("version.clif", &text)
    }

    fn c() -> Self {
        Self::new(
            "version.c",
            &format!("long version(void) {{ return {MARK}; }}\n"),
        )
    }

    fn unit(&self, number: u32, reclaim: Reclaim) -> UnitSource {
        let mut bytes = self.object.clone();
        for at in &self.places {
            bytes[*at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        let file = UnitFile {
            name: "version.o".into(),
            bytes,
            dialect: self.dialect,
        };
        let signatures = self.signatures.clone();
        UnitSource {
            name: "version".into(),
            files: vec![file],
            signatures,
            uncallable: Vec::new(),
            imports: Vec::new(),
            reclaim,
            link: jitcast::compiler::LinkOptions::default(),
        }
    }
}

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[("caller", caller), ("idler", idler)]);
}

fn attach(socket: &str) -> Worker {
    let endpoint = Endpoint::Path(Path::new(socket));
    Worker::attach(endpoint, WorkerOptions::default()).unwrap()
}

/// A worker: calls as fast as it can until it has seen the number 0, and reports what it saw.
fn caller(socket: &str) {
    let worker = attach(socket);
    let guard = worker.enter().unwrap();
    let first = guard.generation();
    let version = worker
        .function::<extern "C" fn() -> i64>(&guard, "version")
        .unwrap();
    let first_number = version.call(&guard);
    drop(guard);
    let (mut seen, mut newest) = (BTreeSet::new(), first_number);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let guard = worker.enter().unwrap();
        let expected = first_number + (guard.generation() - first).cast_signed();
        // Long enough for the publisher to overtake us while we are inside.
        for _ in 0..200 {
            let number = version.call(&guard);
            if number == 0 {
                report(format!("{} {newest}", seen.len()));
                return;
            }
            assert_eq!(number, expected, "at generation {}", guard.generation());
        }
        assert!(expected >= newest, "{expected} after {newest}");
        newest = expected;
        seen.insert(expected);
        assert!(Instant::now() < deadline, "the last version never came");
    }
}

/// A worker that never enters again after its first look.
fn idler(socket: &str) {
    let worker = attach(socket);
    worker.poll().unwrap();
    role::next_line();
}

/// Waits until all of `count` workers have applied what is published, or one of them has ended.
fn everybody_catches_up(host: &Host, count: usize) {
    let generation = host.compiler.status().generation;
    await_some("every worker at the newest generation", || {
        let workers = host.compiler.status().workers;
        let applied = workers.iter().filter(|worker| worker.applied >= generation);
        (applied.count() >= count || workers.len() < count).then_some(())
    });
}

fn everybody_attaches(host: &Host, count: usize) {
    await_some("every worker attached", || {
        (host.compiler.worker_count() == count).then_some(())
    });
}

fn options(reclaim_above_bytes: u64) -> CompilerOptions {
    CompilerOptions {
        reclaim_above_bytes,
        ..CompilerOptions::default()
    }
}

fn publish(host: &Host, unit: UnitSource) {
    host.compiler
        .publish(&[unit])
        .unwrap_or_else(|error| panic!("{error}"));
}

/// Replaces the function under two callers; what each of them saw, if it ended well.
fn swap_under_load(swaps: u32) -> Vec<Option<String>> {
    let host = Host::with(options(0));
    let template = Template::clif();
    publish(&host, template.unit(1, Reclaim::Auto));
    let start = || role::start("caller", &host.socket);
    let mut callers: [Process; 2] = [start(), start()];
    everybody_attaches(&host, 2);
    for number in 2..=swaps {
        publish(&host, template.unit(number, Reclaim::Auto));
        // Now and then everybody catches up, so that each worker sees many versions.
        if number % 8 == 0 {
            everybody_catches_up(&host, 2);
        }
    }
    // Before the last version: whoever has seen that may have ended well.
    let survived = host.compiler.worker_count() == 2;
    publish(&host, template.unit(0, Reclaim::Auto));
    let reports = callers
        .iter_mut()
        .map(|caller| survived.then(|| next_report(caller)));
    reports.collect()
}

#[test]
fn every_call_gives_the_version_of_its_generation() {
    const SWAPS: u32 = 10_000;
    for report in swap_under_load(SWAPS) {
        let report = report.expect("the worker has ended before its time");
        let mut numbers = report.split(' ').map(|word| word.parse::<u32>().unwrap());
        let (seen, last) = (numbers.next().unwrap(), numbers.next().unwrap());
        assert!(seen >= 1000, "only {seen} distinct versions");
        assert_eq!(last, SWAPS, "the last version was not seen");
    }
}

/// The story: text that is reused while a thread is inside runs another version's code under it. With that
/// fault seeded, the workers of the test above must notice.
#[test]
#[cfg(feature = "seeded-faults")]
fn reusing_text_too_early_is_noticed() {
    if std::env::var_os("JITCAST_FAULT").is_some() {
        let reports = swap_under_load(10_000);
        assert!(reports.iter().all(Option::is_some), "{reports:?}");
        return;
    }
    common::fault::is_noticed(
        ("JITCAST_FAULT", "reuse-early"),
        "reusing_text_too_early_is_noticed",
    );
}

/// The story: a head that is seen before the record that it stands for lets a worker apply another publication's record.
#[test]
#[cfg(feature = "seeded-faults")]
fn commits_without_their_order_are_noticed() {
    common::fault::is_noticed(
        ("JITCAST_FAULT", "commit-relaxed"),
        "every_call_gives_the_version_of_its_generation",
    );
}

fn swaps_run_in_bounded_memory(template: &Template, swaps: u32) {
    let host = Host::with(options(64 << 10));
    publish(&host, template.unit(1, Reclaim::Yes));
    let mut caller = role::start("caller", &host.socket);
    let _idler = role::start("idler", &host.socket);
    everybody_attaches(&host, 2);
    let used = || -> u64 {
        let areas = host.compiler.status().areas;
        areas.iter().map(|area| area.used_bytes).sum()
    };
    let mut early = 0;
    for number in 2..=swaps {
        publish(&host, template.unit(number, Reclaim::Yes));
        if number == 1000 {
            early = used();
        }
    }
    let late = used();
    publish(&host, template.unit(0, Reclaim::Yes));
    next_report(&mut caller);
    // What is retired and not yet looked through may differ by the threshold and what one guard pins.
    assert!(
        late < early + (4 << 20),
        "{early} bytes after 1,000 swaps, {late} after {swaps}"
    );
    assert_eq!(host.compiler.status().kept, []);
}

#[test]
fn ten_thousand_swaps_of_clif_run_in_bounded_memory() {
    swaps_run_in_bounded_memory(&Template::clif(), 10_000);
}

#[test]
fn ten_thousand_swaps_of_reclaimed_c_run_in_bounded_memory() {
    if common::require::cc() {
        swaps_run_in_bounded_memory(&Template::c(), 10_000);
    }
}
