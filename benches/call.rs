//! What a call costs: the guard (which is the poll), and the ways from a caller to published code.
#![allow(
    missing_docs,
    reason = "criterion's macros write undocumented functions"
)]

mod common;

use std::hint::black_box;
use std::process::Command;

use common::{Serving, adds, clif};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use jitcast::runtime::WorkerAddr;
use jitcast::worker::HostTable;

type Adds = extern "C" fn(i64) -> i64;

/// How many calls published code makes in a loop.
const ROUNDS: i64 = 1000;

/// CLIF of a function `name` that calls `callee` again and again.
fn calls(name: &str, callee: &str) -> String {
    format!(
        "function %{name}(i64) -> i64 {{
    fn0 = %{callee}(i64) -> i64
block0(v0: i64):
    v1 = iconst.i64 0
    v6 = iconst.i64 1
    jump block1(v0, v1)
block1(v2: i64, v3: i64):
    v4 = call fn0(v3)
    v5 = isub v2, v6
    brif v5, block1(v5, v4), block2
block2:
    return v4
}}
"
    )
}

/// The function at `address`, which is there as long as it is called.
fn function_at(address: WorkerAddr) -> Adds {
    let pointer = core::ptr::with_exposed_provenance::<()>(address.get() as usize);
    // SAFETY: the benches pass addresses of functions of this type, published or of a library that stays, and hold a
    // guard while they call them.
    unsafe { core::mem::transmute::<*const (), Adds>(pointer) }
}

extern "C" fn adds_natively(x: i64) -> i64 {
    black_box(x) + 1
}

fn polls(criterion: &mut Criterion) {
    let serving = Serving::start();
    serving.publish(&clif("adds", &adds("adds", 1)));
    let worker = serving.attach();
    let mut group = criterion.benchmark_group("poll");
    group.bench_function("empty_loop", |bencher| bencher.iter(|| black_box(0)));
    group.bench_function("nothing_new", |bencher| {
        bencher.iter(|| drop(black_box(&worker).enter().unwrap()));
    });
    let guard = worker.enter().unwrap();
    group.bench_function("nested", |bencher| {
        bencher.iter(|| drop(black_box(&worker).enter().unwrap()));
    });
    drop(guard);
    group.finish();
}

fn calls_from_the_host(criterion: &mut Criterion) {
    let serving = Serving::start();
    serving.publish(&clif("adds", &adds("adds", 1)));
    let worker = serving.attach();
    let guard = worker.enter().unwrap();
    let handle = worker.function::<Adds>(&guard, "adds").unwrap();
    let symbol = worker.symbol(&guard, "adds").unwrap();
    let mut group = criterion.benchmark_group("call");
    let pointers = [
        ("native_pointer", adds_natively as Adds),
        ("pointer_to_code", function_at(symbol.code)),
        ("pointer_to_stub", function_at(symbol.stub)),
    ];
    for (name, pointer) in pointers {
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(pointer)(black_box(1)));
        });
    }
    group.bench_function("handle", |bencher| {
        bencher.iter(|| black_box(&handle).call(&guard, black_box(1)));
    });
    drop(guard);
    group.bench_function("guard_and_handle", |bencher| {
        bencher.iter(|| {
            let guard = black_box(&worker).enter().unwrap();
            handle.call(&guard, black_box(1))
        });
    });
    group.finish();
}

fn calls_from_published_code(criterion: &mut Criterion) {
    let serving = Serving::start();
    let own = adds("own_adds", 1) + &calls("within_unit", "own_adds");
    for (unit, text) in [
        ("adds", adds("adds", 1)),
        ("within", own),
        ("across", calls("through_slot", "adds")),
    ] {
        serving.publish(&clif(unit, &text));
    }
    let worker = serving.attach();
    let guard = worker.enter().unwrap();
    let mut group = criterion.benchmark_group("call_in_loop");
    group.throughput(Throughput::Elements(ROUNDS.unsigned_abs()));
    for name in ["within_unit", "through_slot"] {
        let handle = worker.function::<Adds>(&guard, name).unwrap();
        assert_eq!(handle.call(&guard, ROUNDS), ROUNDS);
        group.bench_function(name, |bencher| {
            bencher.iter(|| handle.call(&guard, black_box(ROUNDS)));
        });
    }
    group.finish();
}

/// Thread-local storage, asked for anew each time: published, and in a shared library that the process loads.
fn thread_local_storage(criterion: &mut Criterion) {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).display().to_string();
    let source =
        "static __thread long count; __attribute__((noinline)) static void bump(void) { count++; }
        long bumps(long x) { for (long i = 0; i < x; i++) bump(); return count; }";
    std::fs::write(path("bumps.c"), source).unwrap();
    let cc = |flags: &[&str], out: &str| {
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-fPIC", "-fno-plt"]).args(flags);
        cc.args(["-o", &path(out), &path("bumps.c")])
            .status()
            .is_ok_and(|status| status.success())
    };
    if !cc(&["-c"], "bumps.o") || !cc(&["-shared"], "libbumps.so") {
        eprintln!("SKIPPED: thread_local: no C compiler");
        return;
    }
    let serving = Serving::start();
    serving.publish(&common::object_unit(
        "bumps",
        std::fs::read(path("bumps.o")).unwrap(),
    ));
    let worker = serving.attach();
    let guard = worker.enter().unwrap();
    let mut table = HostTable::default();
    table.load(&path("libbumps.so")).unwrap();
    let published = worker.symbol(&guard, "bumps").unwrap().code;
    let loaded = table.resolve("bumps").unwrap();
    let mut group = criterion.benchmark_group("thread_local");
    group.throughput(Throughput::Elements(ROUNDS.unsigned_abs()));
    for (name, address) in [("published", published), ("shared_library", loaded)] {
        let bumps = function_at(address);
        group.bench_function(name, |bencher| bencher.iter(|| bumps(black_box(ROUNDS))));
    }
    group.finish();
}

criterion_group!(
    benches,
    polls,
    calls_from_the_host,
    calls_from_published_code,
    thread_local_storage
);
criterion_main!(benches);
