//! Shared data: one copy for all workers, at the same distance everywhere, which all of them write.

mod common;
#[path = "publish/units.rs"]
mod units;

use common::host::{Host, clif_unit};
use common::remote::{self, Remote};
use common::serve::{Serve, table};
use common::{require, role, smaps};
use jitcast::compiler::{
    CompilerOptions, Policy, PublishError, Reclaim, RequestLimits, RequestOptions, UnitSource,
};
use jitcast::runtime::Area;
use units::{attach, c, c_with, call, publish, refused, signed};

const WORKERS: usize = 4;

/// How often each worker counts.
const ROUNDS: i64 = 200_000;

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(remote::ROLE, remote::play)]);
}

/// A counter by atomics of C, one under a lock that spins, and one under a lock that waits in the kernel.
const COUNTERS: &str = r#"
    #include <stdatomic.h>
    #include <linux/futex.h>
    #include <stddef.h>
    #include <sys/syscall.h>
    #include <sched.h>
    long syscall(long, ...);
    #define SHARED __attribute__((section(".jitcast.shared")))
    SHARED _Atomic long counter = 1000;
    SHARED atomic_int spin, waits;
    SHARED long under_spin, under_waits = 5;
    static long own;
    long count(long n) { for (long i = 0; i < n; i++) { counter++; own++; } return 0; }
    long counter_is(long x) { return counter + x; }
    long own_is(long x) { return own + x; }
    long place(long x) { return (long)&counter + x; }
    long spinning(long n) {
        for (long i = 0; i < n; i++) {
            while (atomic_exchange_explicit(&spin, 1, memory_order_acquire)) sched_yield();
            under_spin++;
            atomic_store_explicit(&spin, 0, memory_order_release);
        }
        return under_spin;
    }
    long waiting(long n) {
        for (long i = 0; i < n; i++) {
            int seen = 0;
            if (!atomic_compare_exchange_strong(&waits, &seen, 1)) {
                if (seen != 2) seen = atomic_exchange(&waits, 2);
                while (seen) {
                    syscall(SYS_futex, &waits, FUTEX_WAIT, 2, NULL, NULL, 0);
                    seen = atomic_exchange(&waits, 2);
                }
            }
            under_waits++;
            if (atomic_exchange(&waits, 0) == 2) syscall(SYS_futex, &waits, FUTEX_WAKE, 1, NULL, NULL, 0);
        }
        return under_waits;
    }
    long totals(long which) { return which ? under_waits : under_spin; }
"#;

/// The functions of it.
const FUNCTIONS: [&str; 7] = [
    "count",
    "counter_is",
    "own_is",
    "place",
    "spinning",
    "waiting",
    "totals",
];

/// CLIF that adds to the counter, and returns what it was.
const BUMP: &str = "function %bump(i64) -> i64 {
    gv0 = symbol %counter
block0(v0: i64):
    v1 = symbol_value.i64 gv0
    v2 = atomic_rmw.i64 add v1, v0
    return v2
}";

fn counters() -> UnitSource {
    signed(c("counters", COUNTERS), &FUNCTIONS)
}

/// Has all workers call `function(argument)` at the same time.
fn at_once(workers: &mut [Remote], function: &str, argument: i64) {
    std::thread::scope(|scope| {
        for worker in workers {
            scope.spawn(|| worker.call(function, argument).parse::<i64>().unwrap());
        }
    });
}

#[test]
fn counts_of_workers_at_different_bases_add_up() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    publish(&host, &[counters()]);
    let mut workers: Vec<_> = (0..WORKERS).map(|_| Remote::start(&host.socket)).collect();
    at_once(&mut workers, "count", ROUNDS);
    let bases: std::collections::BTreeSet<_> = workers.iter().map(Remote::base).collect();
    assert_eq!(bases.len(), WORKERS);
    let total = 1000 + WORKERS as i64 * ROUNDS;
    for worker in &mut workers {
        assert_eq!(worker.call("counter_is", 0), total.to_string());
        // What is not shared is each worker's own.
        assert_eq!(worker.call("own_is", 0), ROUNDS.to_string());
        let place: i64 = worker.call("place", 0).parse().unwrap();
        let data = host.compiler.segment().geometry().region(Area::SharedData);
        let offset = place.cast_unsigned() - worker.base();
        assert!(data.contains(jitcast::runtime::SegmentOffset::new(offset as u32), 8));
    }
    // One that comes later finds what there is, and not what it began with.
    let mut late = Remote::start(&host.socket);
    assert_eq!(late.call("counter_is", 0), total.to_string());
    // So does one that was forked, and what it counts the others see.
    let worker = attach(&host);
    let child = common::child::fork(|| {
        assert_eq!(call(&worker, "count", 5), 0);
    });
    common::child::succeeded(child);
    assert_eq!(late.call("counter_is", 0), (total + 5).to_string());
}

#[cfg(feature = "seeded-faults")]
#[test]
fn shared_data_of_each_workers_own_are_noticed() {
    if !require::cc() {
        return;
    }
    let fault = ("JITCAST_FAULT", "shared-data-apart");
    common::fault::is_noticed(fault, "counts_of_workers_at_different_bases_add_up");
}

#[test]
fn locks_in_shared_data_work_across_workers() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    publish(&host, &[counters()]);
    let mut workers: Vec<_> = (0..WORKERS).map(|_| Remote::start(&host.socket)).collect();
    at_once(&mut workers, "spinning", 20_000);
    at_once(&mut workers, "waiting", 20_000);
    for worker in &mut workers {
        assert_eq!(worker.call("totals", 0), (WORKERS * 20_000).to_string());
        assert_eq!(worker.call("totals", 1), (WORKERS * 20_000 + 5).to_string());
    }
}

#[test]
fn they_are_mapped_shared_and_writable_and_never_executable() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    host.fill_every_area();
    // Before there are any, too.
    let mut early = Remote::start(&host.socket);
    assert_eq!(early.ask("smaps"), "");
    publish(&host, &[counters()]);
    let mut late = Remote::start(&host.socket);
    for worker in [&mut early, &mut late] {
        assert_eq!(worker.call("count", 1), "0");
        assert_eq!(worker.ask("smaps"), "");
    }
    let worker = attach(&host);
    assert_eq!(call(&worker, "count", 1), 0);
    assert_eq!(
        smaps::of_area(&worker, Area::SharedData).permissions,
        "rw-s"
    );
    // The compiler process is this one: none of its mappings is executable either.
    assert_eq!(smaps::faults(&worker), Vec::<String>::new());
}

#[test]
fn units_of_c_and_clif_share_one_datum() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let reader = "extern _Atomic long counter; long read_it(long x) { return counter + x; }
        _Atomic long *where = &counter; long read_there(long x) { return *where + x; }";
    publish(&host, &[counters(), clif_unit("bump", BUMP)]);
    publish(
        &host,
        &[signed(c("reader", reader), &["read_it", "read_there"])],
    );
    let (worker, mut remote) = (attach(&host), Remote::start(&host.socket));
    assert_eq!(call(&worker, "bump", 7), 1000);
    assert_eq!(remote.call("bump", 3), "1007");
    for name in ["counter_is", "read_it", "read_there", "bump"] {
        assert_eq!(call(&worker, name, 0), 1010, "{name}");
        assert_eq!(remote.call(name, 0), "1010", "{name}");
    }
}

#[test]
fn what_lies_there_starts_as_it_is_written_also_where_others_lay() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let version = |byte: u8, len: usize| {
        UnitSource {
        reclaim: Reclaim::Yes,
        ..signed(c(
            "u",
            &format!(
                "__attribute__((section(\".jitcast.shared\"))) char bytes[{len}] = {{ {byte}, [{len} - 1] = {byte} }};
                long sum(long x) {{ for (long i = 0; i < {len}; i++) x += bytes[i]; return x; }}
                long spoil(long x) {{ for (long i = 0; i < {len}; i++) bytes[i] = 1; return x; }}"
            ),
        ), &["sum", "spoil"])
    }
    };
    let (worker, mut remote) = (attach(&host), Remote::start(&host.socket));
    let area = || host.compiler.status().areas[Area::SharedData.index()].clone();
    let mut most = 0;
    // Together they are many times what there is.
    for round in 0..60_u8 {
        let len = 30_000 + usize::from(round % 7) * 1000;
        publish(&host, &[version(round, len)]);
        assert_eq!(call(&worker, "sum", 0), 2 * i64::from(round));
        assert_eq!(remote.call("spoil", 0), "0");
        assert_eq!(call(&worker, "sum", 0), len as i64);
        most = most.max(area().used_bytes);
    }
    assert!(most <= area().area_bytes, "{most}");
    host.compiler.remove(&["u".to_owned()]).unwrap();
    assert!(worker.poll().is_ok() && !remote.ask("generation").is_empty());
    // Whoever needs room gets it back.
    publish(&host, &[version(3, 200_000)]);
    assert_eq!(call(&worker, "sum", 0), 6);
    let more = "__attribute__((section(\".jitcast.shared\"))) char more[100000] = { 1 };
        long g(long x) { return more[x]; }";
    let full = refused(&host, &[c("v", more)]);
    assert!(
        full.to_string()
            .starts_with("segment full: 100000 bytes of shared data are needed"),
        "{full}"
    );
}

#[test]
fn an_address_there_is_refused_and_leaves_no_trace() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let source =
        "static long there; __attribute__((section(\".jitcast.shared\"))) long *to = &there;
        long f(long x) { return *to + x; }";
    let error = refused(&host, &[c("u", source)]);
    let message = error.to_string();
    assert!(matches!(error, PublishError::Link(_)), "{message}");
    for part in [
        ".jitcast.shared+0x0 in `to`: R_X86_64_64 against",
        "stores an absolute address in shared data",
        "help: keep the address of",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_named_segment_has_them_beside_it_and_takes_them_along() {
    if !require::cc() {
        return;
    }
    let name = format!("shared-data-{}", std::process::id());
    let beside = format!("/dev/shm/jitcast-{name}+shared");
    let host = Host::start(jitcast::runtime::segment::BackEnd::Named(name.clone()));
    publish(&host, &[counters()]);
    let mut workers: Vec<_> = (0..2)
        .map(|_| Remote::start(&format!("name:{name}")))
        .collect();
    at_once(&mut workers, "count", 1000);
    assert_eq!(workers[0].call("counter_is", 0), "3000");
    assert!(std::fs::exists(&beside).unwrap());
    host.compiler.renew().unwrap();
    assert_eq!(workers[1].call("count", 1), "0");
    assert_eq!(workers[0].call("counter_is", 0), "3001");
    assert!(std::fs::exists(&beside).unwrap());
    drop(host);
    assert!(
        !std::fs::exists(&beside).unwrap(),
        "it goes with its segment"
    );
    // Whoever has it goes on.
    assert_eq!(workers[0].call("count", 1), "0");
    assert_eq!(workers[1].call("counter_is", 0), "3002");
}

#[test]
fn status_and_link_show_what_they_take() {
    if !require::cc() {
        return;
    }
    let serve = Serve::start(&[]);
    let file = serve.scratch.write("counters.c", COUNTERS);
    serve.publish(&[&file]).succeeded();
    let status = serve.status();
    assert!(status.units[0].shared_bytes == 32, "{status:?}");
    let area = &status.areas[Area::SharedData.index()];
    assert_eq!(area.name, "shared data");
    assert!(area.used_bytes == 32);
    let shown = serve.command("status", &[]).succeeded().stdout;
    assert!(table(&shown).iter().any(|row| row[0] == "shared data"));
    let mut link = common::process::jitcast(&["link", "--map", "--explain", &file]);
    let linked = common::process::finish(&mut link).succeeded().stdout;
    assert!(linked.contains("counters.c:.jitcast.shared"), "{linked}");
    assert!(linked.contains("in shared data"), "{linked}");
    assert!(!linked.contains("shared data 0 of all"), "{linked}");
    // What the old compiler models make of it is the same.
    let large = c_with("large", COUNTERS, &["-O2", "-fPIC", "-mcmodel=large"]);
    let host = Host::sealed();
    publish(&host, &[large]);
    assert_eq!(call(&attach(&host), "counter_is", 0), 1000);
}

/// What a worker has compiled for itself may use what is published, and has none to share with others, whatever the child that
/// compiles gives back.
#[test]
fn units_that_workers_ask_for_have_none_of_their_own() {
    if !require::cc() {
        return;
    }
    let object = c(
        "u",
        "__attribute__((section(\".jitcast.shared\"))) long own; long f(long x) { return own += x; }",
    );
    let object = &object.files[0].bytes;
    // What a child writes: that it went well, the object and its length, and no signatures, of imports neither.
    let mut generated = vec![0];
    let mut len = object.len();
    while len >= 0x80 {
        generated.push(len as u8 | 0x80);
        len >>= 7;
    }
    generated.push(len as u8);
    generated.extend(object);
    generated.extend([0, 0, 0]);
    let scratch = common::scratch::Scratch::new();
    let file = scratch.path("generated");
    std::fs::write(&file, generated).unwrap();
    let command = ["/bin/cat".into(), file.into()].to_vec();
    let policy = Policy {
        requests: RequestOptions {
            command: Some(command),
            ..RequestOptions::default()
        },
        ..Policy::default()
    };
    let options = CompilerOptions::with_window(common::host::WINDOW_BYTES).unwrap();
    let host = Host::with_policy(options, policy);
    let worker = attach(&host);
    let mut pending = worker.request("anything").unwrap();
    assert!(pending.wait(Some(common::process::PATIENCE)));
    let refused = pending.unit(&worker.enter().unwrap()).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "a unit that a worker asks for has no shared data\n  \
         help: leave them out, or have the unit published"
    );
    // Published ones are reached through a cell of the unit's own.
    let host = Host::compiling(RequestLimits::default());
    publish(&host, &[counters()]);
    let (worker, mut remote) = (attach(&host), Remote::start(&host.socket));
    let mut pending = worker.request(BUMP).unwrap();
    assert!(pending.wait(Some(common::process::PATIENCE)));
    let guard = worker.enter().unwrap();
    let bump = pending.unit(&guard).unwrap();
    let bump = bump.function::<units::Code>(&guard, "bump").unwrap();
    assert_eq!(bump.call(&guard, 9), 1000);
    assert_eq!(remote.call("counter_is", 0), "1009");
}
