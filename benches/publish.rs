//! From an object to code that can be called.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use common::{Serving, adds, attach, clif};
use criterion::Criterion;
use jitcast::compiler::UnitSource;
use jitcast::runtime::sys;

/// Where the other process finds the compiler.
const SOCKET: &str = "JITCAST_BENCH_SOCKET";

type Adds = extern "C" fn(i64) -> i64;

/// Two versions of the same unit, so that every publication changes something.
fn versions() -> [UnitSource; 2] {
    [1, 2].map(|bonus| clif("adds", &adds("adds", bonus)))
}

/// The other process: calls in a loop, and says when it first got another result.
fn call_in_a_loop(socket: &str) {
    let signal = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(signal).unwrap();
    let worker = attach(socket);
    let guard = worker.enter().unwrap();
    let function = worker.function::<Adds>(&guard, "adds").unwrap();
    let mut last = function.call(&guard, 0);
    drop(guard);
    let mut out = std::io::stdout();
    writeln!(out, "{}", sys::monotonic_ns()).unwrap();
    loop {
        let guard = worker.enter().unwrap();
        let result = function.call(&guard, 0);
        drop(guard);
        if result != last {
            let now_ns = sys::monotonic_ns();
            // The bench has ended if it does not listen.
            if writeln!(out, "{now_ns}").is_err() {
                return;
            }
            last = result;
        }
    }
}

/// The other process, as the bench sees it.
struct Caller {
    process: Child,
    out: BufReader<ChildStdout>,
}

impl Caller {
    fn start(socket: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .env(SOCKET, socket)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(process.stdout.take().expect("piped just above"));
        let mut caller = Self { process, out };
        caller.next_ns();
        caller
    }

    /// When it next said something, `CLOCK_MONOTONIC`, ns.
    fn next_ns(&mut self) -> u64 {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim().parse().expect("the other process lives")
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn republish(criterion: &mut Criterion) {
    let serving = Serving::start();
    let versions = versions();
    let mut next = versions.iter().cycle();
    criterion.bench_function("publish/republish", |bencher| {
        bencher.iter(|| serving.publish(next.next().expect("a cycle has no end")));
    });
}

/// From the call of `publish` until another process, which polls, has called the new version.
fn to_called_in_another_process(criterion: &mut Criterion) {
    let serving = Serving::start();
    let versions = versions();
    serving.publish(&versions[1]);
    let mut next = versions.iter().cycle();
    let mut caller = None;
    criterion.bench_function("publish/to_called_in_another_process", |bencher| {
        // Only if this bench is asked for.
        let caller = caller.get_or_insert_with(|| Caller::start(&serving.socket));
        bencher.iter_custom(|rounds| {
            let mut total_ns = 0;
            for _ in 0..rounds {
                let start_ns = sys::monotonic_ns();
                serving.publish(next.next().expect("a cycle has no end"));
                total_ns += caller.next_ns() - start_ns;
            }
            Duration::from_nanos(total_ns)
        });
    });
}

fn main() {
    if let Ok(socket) = std::env::var(SOCKET) {
        return call_in_a_loop(&socket);
    }
    let mut criterion = Criterion::default().configure_from_args();
    republish(&mut criterion);
    to_called_in_another_process(&mut criterion);
    criterion.final_summary();
}
