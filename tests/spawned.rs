//! Threads that published code starts: they are inside for their life, at the generation of their creator.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::time::{Duration, Instant};

use common::host::Host;
use common::process::PATIENCE;
use common::require;
use jitcast::compiler::CompilerOptions;
use jitcast::worker::Worker;
use units::{adders, attach, c, call, publish};

/// A unit whose function starts a thread that calls another unit's function until it is told to end. `other`
/// is what it calls, by its cell.
const STARTS: &str = "
    long version(long); static volatile long go_on = 1, latest = -1, rounds;
    static long loops(void) { while (go_on) { latest = version(0); rounds++; } return latest; }";

fn with_pthreads() -> String {
    format!(
        "#include <pthread.h>\n{STARTS} static pthread_t thread;
        static void *run(void *argument) {{ return (void *)(loops() + (long)argument); }}
        long starts(long x) {{ return pthread_create(&thread, 0, run, (void *)x); }}
        long ends(long x) {{ void *result; go_on = 0; pthread_join(thread, &result); go_on = 1; return (long)result; }}
        long seen(long x) {{ return latest; }} long count(long x) {{ return rounds; }}"
    )
}

fn with_c11_threads() -> String {
    format!(
        "#include <threads.h>\n{STARTS} static thrd_t thread;
        static int run(void *argument) {{ return (int)(loops() + (long)argument); }}
        long starts(long x) {{ return thrd_create(&thread, run, (void *)x); }}
        long ends(long x) {{ int result; go_on = 0; thrd_join(thread, &result); go_on = 1; return result; }}
        long seen(long x) {{ return latest; }} long count(long x) {{ return rounds; }}"
    )
}

fn await_seen(worker: &Worker) {
    let deadline = Instant::now() + PATIENCE;
    while call(worker, "seen", 0) < 0 {
        assert!(Instant::now() < deadline, "the thread runs");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_published_thread_holds_its_generation_until_it_ends() {
    if !require::cc() {
        return;
    }
    for source in [with_pthreads(), with_c11_threads()] {
        // All of this is held back.
        let host = Host::with(CompilerOptions::with_window(64 << 20).unwrap());
        publish(
            &host,
            &[adders("version", &[("version", 1)]), c("starts", &source)],
        );
        let worker = attach(&host);
        assert_eq!(call(&worker, "starts", 100), 0);
        await_seen(&worker);
        let pinned = host.compiler.status().workers[0].pinned;
        assert!(pinned.is_some(), "though nobody of the host is inside");
        // Replaced again and again, with enough text to make the compiler process want memory back: what the
        // thread runs is never reused.
        for number in 2..200 {
            let names: Vec<String> = (0..40).map(|filler| format!("filler{filler}")).collect();
            let mut functions: Vec<(&str, i32)> =
                names.iter().map(|name| (name.as_str(), 7)).collect();
            functions.push(("version", number));
            publish(&host, &[adders("version", &functions)]);
        }
        let rounds = call(&worker, "count", 0);
        let deadline = Instant::now() + PATIENCE;
        while call(&worker, "count", 0) < rounds + 1000 {
            assert!(Instant::now() < deadline, "the thread goes on");
        }
        assert_eq!(call(&worker, "seen", 0), 1);
        assert_eq!(host.compiler.status().workers[0].pinned, pinned);
        assert_eq!(call(&worker, "ends", 0), 101);
        // Now nobody holds the old one.
        let deadline = Instant::now() + PATIENCE;
        while call(&worker, "version", 0) != 199 {
            assert!(Instant::now() < deadline, "the new version");
        }
        assert_eq!(host.compiler.status().workers[0].pinned, None);
        assert_eq!(call(&worker, "starts", 100), 0);
        let deadline = Instant::now() + PATIENCE;
        while call(&worker, "seen", 0) != 199 {
            assert!(
                Instant::now() < deadline,
                "a new thread runs the new version"
            );
        }
        assert_eq!(call(&worker, "ends", 0), 299);
    }
}

/// The story: a worker that was let go of unmapped its window under the thread that it had started.
#[test]
fn a_published_thread_keeps_its_window() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let source = "#include <pthread.h>\n#include <unistd.h>\n
        static void *run(void *pipe) { char byte; while (read((int)(long)pipe, &byte, 1) > 0) {} return 0; }
        long starts(long x) { pthread_t thread; return pthread_create(&thread, 0, run, (void *)x) + pthread_detach(thread); }";
    publish(&host, &[c("u", source)]);
    let worker = attach(&host);
    let (reader, writer) = std::io::pipe().unwrap();
    use std::os::fd::AsRawFd;
    assert_eq!(call(&worker, "starts", reader.as_raw_fd().into()), 0);
    drop(worker);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(
        host.compiler.status().workers.len(),
        1,
        "it is there for its thread"
    );
    drop(writer);
    let deadline = Instant::now() + PATIENCE;
    while !host.compiler.status().workers.is_empty() {
        assert!(Instant::now() < deadline, "it goes with its thread");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn published_threads_that_end_make_room_for_others() {
    if !require::cc() {
        return;
    }
    const COUNT: i64 = 2 * jitcast::runtime::mailbox::MAX_THREADS as i64;
    let host = Host::sealed();
    let source = "#include <pthread.h>\n
        static void *run(void *nothing) { return nothing; }
        long starts(long count) {
            long started;
            for (started = 0; started < count; started++) {
                pthread_t thread;
                if (pthread_create(&thread, 0, run, 0) || pthread_join(thread, 0))
                    break;
            }
            return started;
        }";
    publish(&host, &[c("u", source)]);
    let worker = attach(&host);
    assert_eq!(call(&worker, "starts", COUNT), COUNT);
    assert_eq!(host.compiler.status().workers[0].pinned, None);
}

#[test]
fn a_constructors_thread_is_inside_too() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let source = with_pthreads().replace("long starts(long x)", "__attribute__((constructor)) static void begins(void) { pthread_create(&thread, 0, run, (void *)5); }
        long starts(long x)");
    publish(
        &host,
        &[adders("version", &[("version", 1)]), c("starts", &source)],
    );
    let worker = attach(&host);
    await_seen(&worker);
    let generation = host.compiler.status().generation;
    assert_eq!(host.compiler.status().workers[0].pinned, Some(generation));
    assert_eq!(call(&worker, "ends", 0), 6);
}
