//! Thread-local storage of published code, in threads old and new, of one unit and of several, and the host's.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::sync::mpsc::channel;

use common::host::Host;
use common::process::Process;
use common::scratch::Scratch;
use common::{remote, require, role};
use jitcast::compiler::{PublishError, UnitSource};
use jitcast::worker::{HostTable, Worker};
use units::{attach, attach_with, c, c_with, call, publish, refused, try_call};

/// The role of a worker that calls functions by name.
const CALLER: &str = "calls by name";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(CALLER, call_by_name)]);
}

fn call_by_name(socket: &str) {
    let worker = remote::attach(socket);
    role::report("attached");
    while let Some(line) = role::next_line() {
        role::report(call(&worker, &line, 1));
    }
}

const COUNTER: &str =
    "static __thread long count = 40; static __thread char zeros[64] __attribute__((aligned(64)));
    long counts(long x) { count += x; zeros[x & 63]++; return count; }
    long zero(long x) { return zeros[x & 63]; }
    long aligned(long x) { return (unsigned long)zeros % 64; }
    static __thread long *pointer = &other; long other = 7;
    long through(long x) { return *pointer += x; }";

fn counter() -> String {
    COUNTER.replace(
        "static __thread long *pointer",
        "extern long other; static __thread long *pointer",
    )
}

/// The sets of flags whose code asks for thread-local storage in different ways.
const FLAGS: [&[&str]; 4] = [
    &["-O2", "-fPIC"],
    &["-O2", "-fPIC", "-fno-plt"],
    &["-O0", "-fPIC"],
    &["-O2", "-fPIC", "-mcmodel=large"],
];

#[test]
fn every_thread_has_its_own_those_that_are_older_than_the_unit_too() {
    if !require::cc() {
        return;
    }
    for flags in FLAGS {
        let host = Host::sealed();
        let worker = attach(&host);
        let (ask, asked) = channel::<()>();
        let (tell, told) = channel::<i64>();
        std::thread::scope(|threads| {
            let old = &worker;
            threads.spawn(move || {
                // Inside once before the unit is there.
                drop(old.enter().unwrap());
                for () in asked {
                    tell.send(call(old, "counts", 2)).unwrap();
                }
            });
            publish(&host, &[c_with("u", &counter(), flags)]);
            assert_eq!(call(&worker, "counts", 1), 41, "{flags:?}");
            ask.send(()).unwrap();
            assert_eq!(told.recv().unwrap(), 42, "{flags:?}");
            assert_eq!(call(&worker, "counts", 1), 42, "{flags:?}");
            ask.send(()).unwrap();
            assert_eq!(told.recv().unwrap(), 44, "{flags:?}");
            drop(ask);
        });
        let new = |worker: &Worker| {
            std::thread::scope(|threads| {
                threads.spawn(|| call(worker, "counts", 5)).join().unwrap()
            })
        };
        assert_eq!([new(&worker), new(&worker)], [45, 45], "{flags:?}");
        assert_eq!(call(&worker, "zero", 1), 2, "{flags:?}");
        assert_eq!(call(&worker, "zero", 9), 0, "{flags:?}");
        assert_eq!(call(&worker, "aligned", 0), 0, "{flags:?}");
        // The image was patched: every thread's pointer leads to the one datum.
        assert_eq!(call(&worker, "through", 1), 8, "{flags:?}");
        let there = std::thread::scope(|threads| {
            threads
                .spawn(|| call(&worker, "through", 1))
                .join()
                .unwrap()
        });
        assert_eq!(there, 9, "{flags:?}");
        // A new version begins anew, in threads that had the old one's.
        publish(
            &host,
            &[c_with("u", &counter().replace("= 40", "= 50"), flags)],
        );
        assert_eq!(call(&worker, "counts", 1), 51, "{flags:?}");
    }
}

#[test]
fn workers_have_nothing_of_it_in_common() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    publish(&host, &[c("u", &counter())]);
    let mut workers = [(); 2].map(|()| role::start(CALLER, &host.socket));
    for worker in &mut workers {
        assert_eq!(role::next_report(worker), "attached");
    }
    for worker in &mut workers {
        for expected in ["41", "42"] {
            worker.send("counts");
            assert_eq!(role::next_report(worker), expected);
        }
    }
}

#[test]
fn units_reach_one_anothers_and_the_hosts() {
    if !require::cc() {
        return;
    }
    let owner = "__thread long pad = 1; __thread long shared = 100; long owns(long x) { return shared += x; }";
    let user = "extern __thread long shared; long uses(long x) { return shared += x; }
        long address(long x) { return (long)&shared; }";
    let errno = "#include <errno.h>\nlong fails(long x) { errno = x; return errno; }
        extern __thread int h_errno_of_ours __attribute__((weak));";
    for flags in FLAGS {
        let host = Host::sealed();
        let units = [
            c_with("owner", owner, flags),
            c_with("user", user, flags),
            c_with("errno", errno, flags),
        ];
        publish(&host, &units);
        let worker = attach(&host);
        assert_eq!(call(&worker, "owns", 1), 101);
        assert_eq!(call(&worker, "uses", 1), 102);
        assert_eq!(call(&worker, "fails", 33), 33);
        // It moves with its users or not at all.
        let error = refused(&host, &[c_with("owner", owner, flags)]);
        assert!(matches!(error, PublishError::DataMoves { .. }), "{error}");
        publish(
            &host,
            &[c_with("owner", owner, flags), c_with("user", user, flags)],
        );
        assert_eq!(call(&worker, "owns", 1), 101);
        assert_eq!(call(&worker, "uses", 1), 102);
    }
}

#[test]
fn a_symbol_is_thread_local_in_all_units_or_in_none() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    publish(&host, &[c("owner", "__thread long one; long two;")]);
    for source in [
        "extern long one; long uses(long x) { return one += x; }",
        "extern __thread long two; long uses(long x) { return two += x; }",
    ] {
        let error = refused(&host, &[c("user", source)]);
        assert!(matches!(error, PublishError::ThreadLocal { .. }), "{error}");
        assert!(
            error.to_string().contains("declare it alike in both"),
            "{error}"
        );
    }
}

/// A library with thread-local data, and a unit that reaches them in the ways that executables do.
fn with_library(model: &str) -> (Scratch, String, UnitSource) {
    let scratch = Scratch::new();
    let source = "__thread long of_library = 5; long of_library_again(void) { return of_library; }";
    let path = scratch.compile("libthreads.so", source, &["-shared", "-fPIC", "-O2"]);
    let flags = ["-O2", "-fPIC", "-fno-plt", model];
    let source = "extern __thread long of_library; long of_library_again(void);
        long uses(long x) { of_library += x; return of_library_again(); }
        long other(long x) { return x; }";
    (scratch, path, c_with("u", source, &flags))
}

#[test]
fn storage_of_a_library_is_reached_by_its_module() {
    if !require::cc() {
        return;
    }
    let (_scratch, path, unit) = with_library("-ftls-model=global-dynamic");
    let host = Host::sealed();
    publish(&host, &[unit]);
    let mut table = HostTable::default();
    table.load(&path).unwrap();
    let worker = attach_with(&host, table);
    assert_eq!(call(&worker, "uses", 2), 7);
    assert_eq!(
        std::thread::scope(|threads| {
            threads.spawn(|| call(&worker, "uses", 2)).join().unwrap()
        }),
        7
    );
}

#[test]
fn storage_of_a_library_that_is_there_from_the_start_is_reached_from_the_thread_pointer() {
    if !require::cc() {
        return;
    }
    let (_scratch, path, unit) = with_library("-ftls-model=initial-exec");
    let host = Host::sealed();
    publish(&host, &[unit]);
    let mut preloaded = role::command(CALLER, &host.socket);
    let mut process = Process::start_listening(preloaded.env("LD_PRELOAD", &path));
    assert_eq!(role::next_report(&mut process), "attached");
    for expected in ["6", "7"] {
        process.send("uses");
        assert_eq!(role::next_report(&mut process), expected);
    }
}

#[test]
fn storage_that_has_no_fixed_distance_is_missing_and_says_so() {
    if !require::cc() {
        return;
    }
    // A library loaded later than the program, whose storage is too large for what is held in reserve.
    let scratch = Scratch::new();
    let source = "__thread long of_library[100000] = {5};";
    let path = scratch.compile("liblarge.so", source, &["-shared", "-fPIC", "-O2"]);
    let source = "extern __thread long of_library[] __attribute__((tls_model(\"initial-exec\")));
        long uses(long x) { return of_library[0] += x; } long other(long x) { return x; }";
    let host = Host::sealed();
    publish(&host, &[c("u", source)]);
    let mut table = HostTable::default();
    table.load(&path).unwrap();
    let worker = attach_with(&host, table);
    let error = try_call(&worker, "uses", 1).unwrap_err().to_string();
    assert!(
        error.contains("no fixed distance from the thread pointer"),
        "{error}"
    );
    assert_eq!(call(&worker, "other", 3), 3);
    assert_eq!(worker.stats().missing, 1);
}

/// The story: a thread's blocks were freed before the destructors of later keys ran, which still used them.
#[test]
fn storage_lasts_as_long_as_the_destructors_of_a_thread() {
    if !require::cc() {
        return;
    }
    let source = "#include <pthread.h>\n
        static __thread long own[64] = {5}; static pthread_key_t key; static volatile long seen, by_name;
        static void gone(void *storage) { seen = *(long *)storage; by_name = own[0]; }
        long f(long x) { if (!key) pthread_key_create(&key, gone);
            own[0] += x; return pthread_setspecific(key, own); }
        long saw(long x) { return seen * 100 + by_name; }";
    let host = Host::sealed();
    publish(&host, &[c("first", &counter()), c("u", source)]);
    let worker = attach(&host);
    // Our own key comes before the unit's.
    assert_eq!(call(&worker, "counts", 1), 41);
    std::thread::scope(|threads| {
        threads
            .spawn(|| assert_eq!(call(&worker, "f", 2), 0))
            .join()
            .unwrap();
    });
    // Its destructors have run when it is joined by the C library, not by the scope.
    let deadline = std::time::Instant::now() + common::process::PATIENCE;
    while call(&worker, "saw", 0) != 707 {
        assert!(
            std::time::Instant::now() < deadline,
            "{}",
            call(&worker, "saw", 0)
        );
        std::thread::yield_now();
    }
}
