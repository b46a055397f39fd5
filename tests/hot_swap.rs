//! Hot swap under load: every call gives the version of the generation that it is guarded at.
//!
//! Versions return increasing numbers, one for each generation, so a result tells exactly which version
//! ran. Workers are processes of their own: this test binary, started again.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jitcast::compiler::front::{Options, compile_bytes};
use jitcast::compiler::{
    Compiler, CompilerOptions, Policy, Reclaim, Server, Stop, UnitFile, UnitSource,
};
use jitcast::linker::Dialect;
use jitcast::runtime::signature::Signature;
use jitcast::worker::{Endpoint, Worker, WorkerOptions};

/// Where a started worker finds the compiler.
const SOCKET: &str = "JITCAST_TEST_SOCKET";

/// How long anything may take before the test gives up on it.
const WATCHDOG: Duration = Duration::from_secs(120);

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
            reclaim,
        }
    }
}

/// A compiler with its server in threads of this process.
struct Serving {
    compiler: Arc<Compiler>,
    socket: String,
    stop: Stop,
}

impl Serving {
    fn start(options: &CompilerOptions) -> Self {
        let random = u64::from_le_bytes(jitcast::runtime::sys::random().unwrap());
        let socket = format!("@jitcast-test-{random:016x}");
        let compiler = Arc::new(Compiler::create(options).unwrap());
        let server = Server::bind(&socket, Policy::default(), Options::default()).unwrap();
        let stop = server.stopper().unwrap();
        let shared = Arc::clone(&compiler);
        std::thread::spawn(move || server.run(shared).unwrap());
        Self {
            compiler,
            socket,
            stop,
        }
    }

    /// Starts a worker process: this binary, running only `test`.
    fn worker(&self, test: &str) -> WorkerProcess {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(SOCKET, &self.socket)
            // Kept open until the worker is to end.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        WorkerProcess(Some(child))
    }

    /// Waits until all of `count` workers have applied `generation`.
    fn wait_for(&self, count: usize, generation: u64) {
        let deadline = Instant::now() + WATCHDOG;
        loop {
            let workers = self.compiler.status().workers;
            let applied = workers
                .iter()
                .filter(|worker| worker.applied >= generation)
                .count();
            if applied >= count {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{count} workers at generation {generation}: {workers:?}"
            );
            std::thread::yield_now();
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

struct WorkerProcess(Option<Child>);

impl WorkerProcess {
    /// What it printed, if it ended well.
    fn finish(mut self) -> Result<String, String> {
        let output = self.0.take().unwrap().wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        if output.status.success() {
            Ok(text)
        } else {
            Err(format!("{}: {text}", output.status))
        }
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn attach() -> Option<Worker> {
    let socket = std::env::var(SOCKET).ok()?;
    Some(Worker::attach(Endpoint::Path(Path::new(&socket)), WorkerOptions::default()).unwrap())
}

/// A worker: calls as fast as it can until it has seen the number 0, and reports what it saw.
#[test]
fn calling_process() {
    let Some(worker) = attach() else { return };
    let guard = worker.enter().unwrap();
    let first = guard.generation();
    let version = worker
        .function::<extern "C" fn() -> i64>(&guard, "version")
        .unwrap();
    let first_number = version.call(&guard);
    drop(guard);
    let (mut seen, mut newest) = (BTreeSet::new(), first_number);
    let deadline = Instant::now() + WATCHDOG;
    loop {
        let guard = worker.enter().unwrap();
        let expected = first_number + (guard.generation() - first).cast_signed();
        // Long enough for the publisher to overtake us while we are inside.
        for _ in 0..200 {
            let number = version.call(&guard);
            if number == 0 {
                println!("\nseen={} last={newest}", seen.len());
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
#[test]
fn idle_process() {
    let Some(worker) = attach() else { return };
    let seen = worker.poll().unwrap();
    let deadline = Instant::now() + WATCHDOG;
    let mut line = String::new();
    println!("\nidle since generation {seen}");
    std::io::stdin().read_line(&mut line).unwrap();
    assert!(Instant::now() < deadline);
}

fn options(reclaim_above_bytes: u64) -> CompilerOptions {
    CompilerOptions {
        reclaim_above_bytes,
        ..CompilerOptions::default()
    }
}

fn swap_under_load(swaps: u32) -> Vec<Result<String, String>> {
    let serving = Serving::start(&options(0));
    let template = Template::clif();
    serving
        .compiler
        .publish(&[template.unit(1, Reclaim::Auto)])
        .unwrap();
    let workers = [
        serving.worker("calling_process"),
        serving.worker("calling_process"),
    ];
    serving.wait_for(2, serving.compiler.status().generation);
    for number in 2..=swaps {
        let done = serving
            .compiler
            .publish(&[template.unit(number, Reclaim::Auto)])
            .unwrap();
        // Now and then everybody catches up, so that each worker sees many versions.
        if number % 8 == 0 && serving.compiler.worker_count() == 2 {
            wait_while_both_live(&serving, done.generation);
        }
    }
    serving
        .compiler
        .publish(&[template.unit(0, Reclaim::Auto)])
        .unwrap();
    workers.into_iter().map(WorkerProcess::finish).collect()
}

/// As `wait_for`, but a worker that has ended (since it noticed a fault) is not waited for.
fn wait_while_both_live(serving: &Serving, generation: u64) {
    let deadline = Instant::now() + WATCHDOG;
    while serving.compiler.worker_count() == 2 {
        let workers = serving.compiler.status().workers;
        if workers.iter().all(|worker| worker.applied >= generation) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "both workers at generation {generation}: {workers:?}"
        );
        std::thread::yield_now();
    }
}

#[test]
fn every_call_gives_the_version_of_its_generation() {
    const SWAPS: u32 = 10_000;
    for report in swap_under_load(SWAPS) {
        let report = report.unwrap();
        let line = report
            .lines()
            .find(|line| line.starts_with("seen="))
            .expect("a report");
        let mut numbers = line
            .split(['=', ' '])
            .filter_map(|word| word.parse::<u32>().ok());
        let (seen, last) = (numbers.next().unwrap(), numbers.next().unwrap());
        assert!(seen >= 1000, "only {seen} distinct versions");
        assert!(
            last + 8 >= SWAPS,
            "the last version seen before the end is {last}"
        );
    }
}

/// The story: text that is reused while a thread is inside runs another version's code under it. With that
/// fault seeded, the workers of the test above must notice.
#[test]
#[cfg(feature = "seeded-faults")]
fn reusing_text_too_early_is_noticed() {
    if std::env::var_os("JITCAST_FAULT").is_some() {
        let reports = swap_under_load(10_000);
        assert!(reports.iter().all(Result::is_ok), "{reports:?}");
        return;
    }
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "reusing_text_too_early_is_noticed"])
        .env("JITCAST_FAULT", "reuse-early")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(!status.success(), "the fault went unnoticed");
}

fn swaps_run_in_bounded_memory(template: &Template, swaps: u32) {
    let serving = Serving::start(&options(64 << 10));
    serving
        .compiler
        .publish(&[template.unit(1, Reclaim::Yes)])
        .unwrap();
    let caller = serving.worker("calling_process");
    let mut idle = serving.worker("idle_process");
    serving.wait_for(2, serving.compiler.status().generation);
    let used = |serving: &Serving| {
        let status = serving.compiler.status();
        status.areas.iter().map(|area| area.used_bytes).sum::<u64>()
    };
    let mut early = 0;
    for number in 2..=swaps {
        serving
            .compiler
            .publish(&[template.unit(number, Reclaim::Yes)])
            .unwrap();
        if number == 1000 {
            early = used(&serving);
        }
    }
    let late = used(&serving);
    serving
        .compiler
        .publish(&[template.unit(0, Reclaim::Yes)])
        .unwrap();
    caller.finish().unwrap();
    // What is retired and not yet looked through may differ by the threshold and what one guard pins.
    assert!(
        late < early + (4 << 20),
        "{early} bytes after 1,000 swaps, {late} after {swaps}"
    );
    assert_eq!(serving.compiler.status().kept, []);
    idle.0.take().unwrap().kill().unwrap();
}

#[test]
fn a_hundred_thousand_swaps_of_clif_run_in_bounded_memory() {
    swaps_run_in_bounded_memory(&Template::clif(), 100_000);
}

#[test]
fn a_hundred_thousand_swaps_of_reclaimed_c_run_in_bounded_memory() {
    swaps_run_in_bounded_memory(&Template::c(), 100_000);
}
