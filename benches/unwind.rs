//! What published units cost those who throw: the host, past no published code, and through it.
//!
//! Throws are Rust's, by `resume_unwind`: libgcc's unwinder, as for C++, without a message.
#![allow(
    missing_docs,
    reason = "criterion's macros write undocumented functions"
)]

mod common;

use std::ffi::c_void;
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use common::{Serving, adds, clif};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use jitcast::worker::{Endpoint, HostTable, Unwinding, Worker, WorkerOptions};

jitcast::worker::embed!();

/// How many units are published where there are many.
const MANY: usize = 10_000;

/// Throws and catches in the host.
#[inline(never)]
fn throw_in_host() {
    let caught = catch_unwind(|| resume_unwind(black_box(Box::new(()))));
    assert!(caught.is_err());
}

/// A host symbol that throws.
extern "C-unwind" fn complain(_: i64) -> i64 {
    resume_unwind(Box::new(()))
}

/// CLIF of a function `f` of unit number `number` that calls the next one, the last of `depth` the host's.
fn chain(number: usize, depth: usize) -> String {
    let next = if number + 1 == depth {
        "complain".to_owned()
    } else {
        format!("link{}", number + 1)
    };
    format!(
        "function %link{number}(i64) -> i64 {{\n    fn0 = %{next}(i64) -> i64\nblock0(v0: i64):\n    \
         v1 = call fn0(v0)\n    v2 = iconst.i64 1\n    v3 = iadd v1, v2\n    return v3\n}}\n"
    )
}

fn attach(serving: &Serving, unwinding: Unwinding) -> Worker {
    let mut host = HostTable::default();
    // SAFETY: published code calls it as what it is.
    unsafe { host.define_address("complain", complain as *const c_void) };
    let options = WorkerOptions {
        host,
        unwinding,
        ..WorkerOptions::default()
    };
    Worker::attach(Endpoint::Path(Path::new(&serving.socket)), options)
        .unwrap_or_else(|error| panic!("{error}"))
}

fn publish_many(serving: &Serving) {
    let units: Vec<_> = (0..MANY)
        .map(|number| {
            let name = format!("many{number}");
            clif(&name, &adds(&name, 1))
        })
        .collect();
    let published = serving.compiler.publish(&units);
    published.unwrap_or_else(|error| panic!("{error}"));
}

fn hosts_own(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("throw_in_host");
    group.bench_function("no_worker", |bencher| bencher.iter(throw_in_host));
    let serving = Serving::start();
    for (units, unwinding, name) in [
        (0, Unwinding::Off, "hook_0_units"),
        (MANY, Unwinding::Off, "hook_10000_units"),
        (MANY, Unwinding::Register, "registered_10000_units"),
    ] {
        if units > 0 && serving.compiler.status().units.is_empty() {
            publish_many(&serving);
        }
        let worker = attach(&serving, unwinding);
        drop(worker.enter().unwrap());
        group.bench_function(name, |bencher| bencher.iter(throw_in_host));
    }
    group.finish();
}

/// The first throw after everything was bound: an unwinder sorts then what was registered.
fn first_throws(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("first_throw_in_host");
    group.sample_size(10);
    let serving = Serving::start();
    publish_many(&serving);
    for (unwinding, name) in [
        (Unwinding::Off, "hook_10000_units"),
        (Unwinding::Register, "registered_10000_units"),
    ] {
        let attached = || attach(&serving, unwinding);
        let throw = |worker: Worker| {
            throw_in_host();
            worker
        };
        group.bench_function(name, |bencher| {
            bencher.iter_batched(attached, throw, BatchSize::PerIteration);
        });
    }
    group.finish();
}

fn through_published_code(criterion: &mut Criterion) {
    const DEPTH: usize = 10;
    let mut group = criterion.benchmark_group("throw_through_10_published_frames");
    let serving = Serving::start();
    for number in (0..DEPTH).rev() {
        serving.publish(&clif(&format!("link{number}"), &chain(number, DEPTH)));
    }
    for name in ["10_units", "10010_units"] {
        let worker = attach(&serving, Unwinding::Auto);
        let guard = worker.enter().unwrap();
        let link = worker
            .function::<extern "C-unwind" fn(i64) -> i64>(&guard, "link0")
            .unwrap();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let caught = catch_unwind(AssertUnwindSafe(|| link.call(&guard, 1)));
                assert!(caught.is_err());
            });
        });
        drop(guard);
        if serving.compiler.status().units.len() == DEPTH {
            publish_many(&serving);
        }
    }
    group.finish();
}

criterion_group!(benches, hosts_own, first_throws, through_published_code);
criterion_main!(benches);
