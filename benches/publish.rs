//! From an object to code that can be called.

mod common;

use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Serving, adds, attach, clif, mixes};
use criterion::Criterion;
use jitcast::compiler::front::{self, compile_bytes};
use jitcast::compiler::{Compiler, CompilerOptions, Reclaim, Threads, UnitFile, UnitSource};
use jitcast::linker::Dialect;
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

/// A batch is published in one thread and in as many as the machine has processors; says how many times faster that is.
fn in_threads(criterion: &mut Criterion, name: &str, publish: impl Fn(&Compiler, &Threads)) {
    let mut means_ns = Vec::new();
    let all = Threads::default();
    for threads in [Threads::new(1), all.clone()] {
        let options = CompilerOptions {
            threads: threads.clone(),
            ..CompilerOptions::default()
        };
        let compiler = Compiler::create(&options).unwrap();
        let total = Cell::new((Duration::ZERO, 0));
        let id = format!("publish/{name}/{}_threads", threads.limit());
        criterion.bench_function(&id, |bencher| {
            bencher.iter_custom(|rounds| {
                let start = Instant::now();
                (0..rounds).for_each(|_| publish(&compiler, &threads));
                let taken = start.elapsed();
                let (before, count) = total.get();
                total.set((before + taken, count + rounds));
                taken
            });
        });
        let (taken, count) = total.get();
        means_ns.push(taken.as_nanos() as f64 / count.max(1) as f64);
    }
    if let [one, many] = means_ns[..]
        && many > 0.0
    {
        let (ratio, limit) = (one / many, all.limit());
        println!("publish/{name}: {limit} threads are {ratio:.2} times as fast as one");
    }
}

/// One file of CLIF with a thousand functions.
fn thousand_functions(criterion: &mut Criterion) {
    let text: String = (0..1000).map(|number| mixes(number, 1000)).collect();
    in_threads(criterion, "1000_clif_functions", |compiler, threads| {
        let options = front::Options {
            threads: threads.clone(),
            ..front::Options::default()
        };
        let compiled = compile_bytes("mixes.clif", text.clone().into(), &options).unwrap();
        let unit = UnitSource::new("mixes", [compiled]);
        compiler.publish(&[unit]).unwrap();
    });
}

/// One unit of many small objects.
fn thousand_objects(criterion: &mut Criterion) {
    let objects = common::generated_objects(1001);
    let file = |(number, bytes)| UnitFile {
        name: format!("{number}.o"),
        bytes,
        dialect: Dialect::Elf,
    };
    let unit = UnitSource {
        files: objects.into_iter().enumerate().map(file).collect(),
        // Each version's memory is used again.
        reclaim: Reclaim::Yes,
        ..UnitSource::new("objects", [])
    };
    in_threads(criterion, "1001_objects", |compiler, _| {
        compiler.publish(std::slice::from_ref(&unit)).unwrap();
    });
}

fn main() {
    if let Ok(socket) = std::env::var(SOCKET) {
        return call_in_a_loop(&socket);
    }
    let mut criterion = Criterion::default().configure_from_args();
    republish(&mut criterion);
    to_called_in_another_process(&mut criterion);
    thousand_functions(&mut criterion);
    thousand_objects(&mut criterion);
    criterion.final_summary();
}
