//! Workers are killed and stopped at random moments while everything is published and called all the time.
//!
//! Functions of one batch return its number. A guard that calls them all must see one number: that of its generation. The
//! environment variable JITCAST_KILL_SECONDS says for how long; what was done is printed.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::host::{Host, WINDOW_BYTES, clif_unit};
use common::process::{PATIENCE, Process, await_some};
use common::{remote, role};
use jitcast::compiler::{CompilerOptions, PublishError, UnitSource};
use jitcast::worker::{Function, Worker};
use rustix::process::Signal;
use units::{Code, adders, handle, held_bytes, publish};

const CALLER: &str = "calls batches";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(CALLER, call_batches)]);
}

/// Workers at a time.
const WORKERS: usize = 8;

/// Functions of a batch.
const FUNCTIONS: usize = 8;

/// How many generations each worker has to have seen.
const GENERATIONS: u64 = 100;

fn name(function: usize) -> String {
    format!("b{function}")
}

/// The functions of batch `number`, in four units.
fn batch(number: u64) -> Vec<UnitSource> {
    let unit = |unit: usize| {
        let names = [name(unit * 2), name(unit * 2 + 1)];
        let functions = names.each_ref().map(|name| (name.as_str(), number as i32));
        adders(&format!("unit{unit}"), &functions)
    };
    (0..FUNCTIONS / 2).map(unit).collect()
}

/// `sum(x)`: what all functions of the batch return, added, by calls from one unit to the others.
fn sum() -> UnitSource {
    use std::fmt::Write;
    let mut text = "function %sum(i64) -> i64 {\n".to_owned();
    for function in 0..FUNCTIONS {
        writeln!(text, "    fn{function} = %b{function}(i64) -> i64").unwrap();
    }
    text.push_str("block0(v0: i64):\n    v1 = iconst.i64 0\n");
    for function in 0..FUNCTIONS {
        let (result, sum) = (2 * function + 2, 2 * function + 3);
        writeln!(text, "    v{result} = call fn{function}(v0)").unwrap();
        writeln!(text, "    v{sum} = iadd v{result}, v{}", sum - 2).unwrap();
    }
    writeln!(text, "    return v{}\n}}", 2 * FUNCTIONS + 1).unwrap();
    clif_unit("sum", &text)
}

/// Numbers that differ from run to run, and can be had again (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

struct Handles {
    functions: Vec<Function<Code>>,
    sum: Function<Code>,
}

impl Handles {
    fn new(worker: &Worker) -> Self {
        let functions = (0..FUNCTIONS).map(|function| handle(worker, &name(function)));
        Self {
            functions: functions.collect(),
            sum: handle(worker, "sum"),
        }
    }

    /// Calls everything under one guard; returns its generation.
    fn call_all(&self, worker: &Worker, stay: Duration) -> u64 {
        let guard = worker.enter().unwrap();
        let number = guard.generation().cast_signed();
        for round in 0..3 {
            for function in &self.functions {
                assert_eq!(function.call(&guard, 0), number, "{}", function.name());
            }
            let nested = worker.enter().unwrap();
            assert_eq!(self.sum.call(&nested, 0), FUNCTIONS as i64 * number);
            if round == 0 && !stay.is_zero() {
                std::thread::sleep(stay);
            }
        }
        guard.generation()
    }
}

/// The role: some threads call until the test names the last generation, and that was seen; now and then one forks.
fn call_batches(target: &str) {
    let (socket, threads) = target.rsplit_once(' ').unwrap();
    let worker = remote::attach(socket);
    let handles = Handles::new(&worker);
    let last = AtomicU64::new(u64::MAX);
    role::report("calls");
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.parse::<u64>().unwrap())
            .map(|thread| {
                let (worker, handles, last) = (&worker, &handles, &last);
                scope.spawn(move || {
                    let mut random = Random(u64::from(std::process::id()) << 8 | (thread + 1));
                    let mut seen = BTreeSet::new();
                    while seen
                        .last()
                        .is_none_or(|newest| *newest < last.load(Ordering::Relaxed))
                    {
                        let stays = random.below(50) == 0;
                        let stay = if stays { random.below(3000) } else { 0 };
                        seen.insert(handles.call_all(worker, Duration::from_micros(stay)));
                        if random.below(2000) == 0 {
                            fork_a_caller(worker, handles);
                        }
                    }
                    seen
                })
            })
            .collect();
        let line = role::next_line().unwrap();
        last.store(line.parse().unwrap(), Ordering::Relaxed);
        let seen: BTreeSet<u64> = threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect();
        role::report(format_args!("{} {}", seen.len(), seen.last().unwrap()));
    });
}

/// A child calls for a while; its parent waits for it.
fn fork_a_caller(worker: &Worker, handles: &Handles) {
    // SAFETY: what the child does needs no lock that another thread could hold.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let called = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..20 {
                handles.call_all(worker, Duration::ZERO);
            }
        }));
        // SAFETY: ends the process without running anything of its parent's.
        unsafe { libc::_exit(i32::from(called.is_err())) };
    }
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let (_, status) = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())
        .unwrap()
        .unwrap();
    assert_eq!(status.exit_status(), Some(0));
}

/// The environment variable that gives workers, and only them, a seeded fault.
const FAULT: &str = "JITCAST_KILL_FAULT";

fn start(host: &Host, random: &mut Random) -> Process {
    let threads = 1 + random.below(3);
    let mut command = role::command(CALLER, &format!("{} {threads}", host.socket));
    if let Ok(fault) = std::env::var(FAULT) {
        command.env("JITCAST_FAULT", fault);
    }
    Process::start_listening(&mut command)
}

/// What was done.
#[derive(Debug, Default)]
struct Counts {
    publications: u64,
    refused: u64,
    kills: u64,
    stops: u64,
}

struct Driver {
    host: Host,
    random: Random,
    workers: Vec<Process>,
    stopped: Vec<bool>,
    counts: Counts,
}

impl Driver {
    /// Publishes the next batch, unless those who were stopped hold too much.
    fn publish(&mut self) {
        let next = self.host.compiler.status().generation + 1;
        match self.host.compiler.publish(&batch(next)) {
            Ok(published) => {
                assert_eq!(published.generation, next);
                self.counts.publications += 1;
            }
            Err(PublishError::Full(_) | PublishError::HeldBack { .. }) => self.counts.refused += 1,
            Err(error) => panic!("{error}"),
        }
    }

    /// Does something to a worker.
    fn harm(&mut self) {
        let index = self.random.below(WORKERS as u64) as usize;
        match self.random.below(3) {
            0 => {
                self.workers[index].signal(Signal::KILL);
                self.counts.kills += 1;
                self.workers[index] = start(&self.host, &mut self.random);
                self.stopped[index] = false;
            }
            1 if !self.stopped[index] => {
                self.workers[index].signal(Signal::STOP);
                self.counts.stops += 1;
                self.stopped[index] = true;
            }
            _ => self.go_on(index),
        }
    }

    fn go_on(&mut self, index: usize) {
        if std::mem::take(&mut self.stopped[index]) {
            self.workers[index].signal(Signal::CONT);
        }
    }

    /// Whether every worker that was started has applied enough.
    fn all_have_seen_enough(&self) -> bool {
        let applied = self.host.compiler.status().workers;
        let of = |process: &Process| applied.iter().find(|worker| worker.pid == process.pid());
        self.workers
            .iter()
            .all(|process| of(process).is_some_and(|worker| worker.updates > GENERATIONS * 2))
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn whoever_is_killed_or_stopped_the_others_see_whole_generations() {
    let seconds = std::env::var("JITCAST_KILL_SECONDS").map_or(5, |text| text.parse().unwrap());
    let seed = u64::from(std::process::id()) << 20 | 1;
    let host = Host::with(CompilerOptions {
        reclaim_above_bytes: 64 << 10,
        ..CompilerOptions::with_window(WINDOW_BYTES * 4).unwrap()
    });
    publish(&host, &batch(host.compiler.status().generation + 1));
    let mut units = batch(host.compiler.status().generation + 1);
    units.push(sum());
    publish(&host, &units);
    let before = (held_bytes(&host.compiler.status()), descriptors());
    let mut random = Random(seed);
    let workers = (0..WORKERS).map(|_| start(&host, &mut random)).collect();
    let mut driver = Driver {
        host,
        random,
        workers,
        stopped: vec![false; WORKERS],
        counts: Counts::default(),
    };
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        for _ in 0..10 {
            driver.publish();
            std::thread::sleep(Duration::from_micros(driver.random.below(3000)));
        }
        driver.harm();
    }
    (0..WORKERS).for_each(|index| driver.go_on(index));
    let deadline = Instant::now() + PATIENCE * 2;
    while !driver.all_have_seen_enough() {
        assert!(
            Instant::now() < deadline,
            "{:#?}",
            driver.host.compiler.status().workers
        );
        driver.publish();
        std::thread::sleep(Duration::from_millis(1));
    }
    let Driver {
        host,
        workers,
        counts,
        ..
    } = driver;
    let newest = host.compiler.status().generation;
    for mut worker in workers {
        worker.send(&newest.to_string());
        // Its first report said that it calls.
        role::next_report(&mut worker);
        let seen = role::next_report(&mut worker);
        let (distinct, last) = seen.split_once(' ').unwrap();
        assert!(distinct.parse::<u64>().unwrap() >= GENERATIONS, "{seen}");
        assert_eq!(last, newest.to_string());
        worker.finish().succeeded();
    }
    println!("{seconds} s, seed {seed}: {counts:?}, generation {newest}");
    assert!(counts.kills > 0 && counts.publications > GENERATIONS);
    await_some("the end of all workers", || {
        host.compiler.status().workers.is_empty().then_some(())
    });
    // Once it is wanted, all that was retired is there again.
    for _ in 0..400 {
        publish(&host, &batch(host.compiler.status().generation + 1));
    }
    let after = host.compiler.status();
    // The directory's shape depends on the numbers of units.
    let held = held_bytes(&after);
    assert!(
        held < before.0 + 4096,
        "{held} bytes are held instead of {}",
        before.0
    );
    assert!(after.retired_bytes < 128 << 10, "{}", after.retired_bytes);
    await_some("as few descriptors as before", || {
        (descriptors() <= before.1).then_some(())
    });
}

/// A build with a seeded fault must fail the test above.
#[test]
#[cfg(feature = "seeded-faults")]
fn slots_that_are_patched_one_by_one_are_noticed() {
    use std::process::{Command, Stdio};
    let status = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "whoever_is_killed_or_stopped_the_others_see_whole_generations",
        ])
        .env(FAULT, "slot-by-slot")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(!status.success(), "the fault went unnoticed");
}
