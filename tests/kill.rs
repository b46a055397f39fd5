//! A compiler process and its workers are killed and stopped at random moments while everything is published, renewed and
//! called all the time.
//!
//! Functions of one batch return its number. A guard that calls them all must see one number, which never goes back. The
//! environment variable JITCAST_KILL_SECONDS says for how long; what was done is printed.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::child;
use common::host::{WINDOW_BYTES, clif_unit};
use common::name::Name;
use common::noise::Noise;
use common::process::{PATIENCE, Process, Watched, await_some};
use common::scratch::Scratch;
use common::{remote, role};
use jitcast::compiler::{
    Compiler, CompilerOptions, JournalOptions, Policy, PublishError, Server, Status, UnitSource,
    front, request,
};
use jitcast::runtime::segment::BackEnd;
use jitcast::worker::{Endpoint, EnterError, Function, Worker, WorkerOptions};
use rustix::process::Signal;
use units::{Code, adders, handle, held_bytes};

const CALLER: &str = "calls batches";
const COMPILER: &str = "publishes batches";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(CALLER, call_batches), (COMPILER, publish_batches)]);
}
/// Workers at a time.
const WORKERS: usize = 8;

/// Functions of a batch.
const FUNCTIONS: usize = 8;

/// How many batches each worker has to have seen.
const BATCHES: u64 = 100;

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

    /// Calls everything under one guard; returns its generation and the number that all say.
    fn call_all(&self, worker: &Worker, stay: Duration) -> (u64, u64) {
        let guard = worker.enter().unwrap();
        let number = self.functions[0].call(&guard, 0);
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
        (guard.generation(), number.cast_unsigned())
    }
}

/// Attaches, as soon as a compiler process is there.
fn attach(socket: &str) -> Worker {
    await_some("a compiler process", || {
        let endpoint = Endpoint::Path(Path::new(socket));
        Worker::attach(endpoint, WorkerOptions::default()).ok()
    })
}

/// The role: some threads call until the test names the last batch, and that was seen; now and then one forks.
fn call_batches(target: &str) {
    let (socket, threads) = target.rsplit_once(' ').unwrap();
    // A thread that has seen something wrong ends all, so that the driver sees that.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::exit(101);
    }));
    let worker = attach(socket);
    let handles = Handles::new(&worker);
    let last = AtomicU64::new(u64::MAX);
    role::report("calls");
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.parse::<u64>().unwrap())
            .map(|thread| {
                let (worker, handles, last) = (&worker, &handles, &last);
                scope.spawn(move || {
                    let mut random = Noise(u64::from(std::process::id()) << 8 | (thread + 1));
                    let (mut seen, mut latest) = (BTreeSet::new(), (0, 0));
                    while latest.1 < last.load(Ordering::Relaxed) {
                        let stays = random.below(50) == 0;
                        let stay = if stays { random.below(3000) } else { 0 };
                        let now = handles.call_all(worker, Duration::from_micros(stay));
                        assert!(
                            now.0 >= latest.0 && now.1 >= latest.1,
                            "{now:?} after {latest:?}"
                        );
                        assert!(
                            now.0 > latest.0 || now == latest,
                            "{now:?} after {latest:?}"
                        );
                        latest = now;
                        seen.insert(now.1);
                        if stays {
                            worker.tend();
                        }
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
    child::succeeded(child::fork(|| {
        // Nothing was ready for a child if the compiler process was dead.
        if matches!(worker.enter(), Err(EnterError::Forked)) {
            return;
        }
        for _ in 0..20 {
            handles.call_all(worker, Duration::ZERO);
        }
    }));
}

/// The role: publishes one batch after another, and writes the number of each that is acknowledged to a file; renews the
/// segment now and then. Ends when the test says so.
fn publish_batches(target: &str) {
    let words: Vec<_> = target.split(' ').collect();
    let [folder, socket, ref name @ ..] = words[..] else {
        panic!("a folder, a socket, and maybe a name")
    };
    let back_end = match name.first() {
        Some(name) => BackEnd::Named((*name).to_owned()),
        None => BackEnd::Sealed,
    };
    let compiler = Compiler::create(&CompilerOptions {
        back_end,
        reclaim_above_bytes: 64 << 10,
        socket: socket.to_owned(),
        journal: Some(JournalOptions {
            compact_above_bytes: 256 << 10,
            ..JournalOptions::new(format!("{folder}/journal"))
        }),
        ..CompilerOptions::with_window(WINDOW_BYTES * 4).unwrap()
    });
    let compiler = Arc::new(compiler.unwrap_or_else(|error| panic!("{error}")));
    let is_new = compiler.status().units.is_empty();
    if is_new {
        let mut units = batch(1);
        units.push(sum());
        compiler.publish(&units).unwrap();
    }
    let server = Server::bind(socket, Policy::default(), front::Options::default()).unwrap();
    let shared = Arc::clone(&compiler);
    std::thread::spawn(move || server.run(shared));
    let mut number = {
        let worker = remote::attach(socket);
        Handles::new(&worker).call_all(&worker, Duration::ZERO).1
    };
    role::report(number);
    let stop = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&stop);
    std::thread::spawn(move || {
        role::next_line();
        told.store(1, Ordering::Relaxed);
    });
    let acknowledged = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(format!("{folder}/acknowledged"))
        .unwrap();
    let mut random = Noise(u64::from(std::process::id()) << 20 | 1);
    while stop.load(Ordering::Relaxed) == 0 {
        match compiler.publish(&batch(number + 1)) {
            Ok(_) => {
                number += 1;
                acknowledged.write_all_at(&number.to_le_bytes(), 0).unwrap();
            }
            Err(PublishError::Full(_) | PublishError::HeldBack { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        if random.below(40) == 0 {
            // Whoever was stopped in the middle may hold too much.
            let renewed = compiler.renew();
            assert!(
                matches!(renewed, Ok(_) | Err(PublishError::HeldBack { .. })),
                "{renewed:?}"
            );
        }
        std::thread::sleep(Duration::from_micros(random.below(3000)));
    }
    role::report(number);
    role::next_line();
    std::thread::sleep(PATIENCE);
}

/// The environment variable that gives workers, and only them, a seeded fault.
const FAULT: &str = "JITCAST_KILL_FAULT";

/// What was done.
#[derive(Debug, Default)]
struct Counts {
    compilers_killed: u64,
    compilers_stopped: u64,
    compilers_crashed: u64,
    workers_killed: u64,
    workers_stopped: u64,
}

struct Driver {
    scratch: Scratch,
    /// Where the segment lies, if it has a name.
    name: Option<Name>,
    socket: String,
    random: Noise,
    compiler: Process,
    workers: Vec<Process>,
    stopped: Vec<bool>,
    counts: Counts,
}

impl Driver {
    fn new(name: Option<Name>) -> Self {
        let scratch = Scratch::new();
        let socket = scratch.path("socket");
        let mut random = Noise(u64::from(std::process::id()) << 20 | 1);
        let compiler = start_compiler((&scratch, &socket, name.as_ref()), None);
        let workers = (0..WORKERS).map(|_| start_worker(&socket, &mut random));
        Self {
            workers: workers.collect(),
            scratch,
            name,
            socket,
            random,
            compiler,
            stopped: vec![false; WORKERS],
            counts: Counts::default(),
        }
    }

    /// The last batch that was acknowledged.
    fn acknowledged(&self) -> u64 {
        let mut number = [0; 8];
        let read = File::open(self.scratch.path("acknowledged"));
        // None was, if there is no such file.
        let _ = read.and_then(|file| file.read_exact_at(&mut number, 0));
        u64::from_le_bytes(number)
    }

    /// Does something to somebody.
    fn harm(&mut self) {
        let index = self.random.below(WORKERS as u64) as usize;
        match self.random.below(16) {
            0 => {
                self.compiler.signal(Signal::KILL);
                self.counts.compilers_killed += 1;
                self.start_again();
            }
            1 => {
                self.compiler.signal(Signal::STOP);
                std::thread::sleep(Duration::from_millis(self.random.below(100)));
                self.compiler.signal(Signal::CONT);
                self.counts.compilers_stopped += 1;
            }
            2..=4 => {
                self.workers[index].signal(Signal::KILL);
                self.counts.workers_killed += 1;
                self.workers[index] = start_worker(&self.socket, &mut self.random);
                self.stopped[index] = false;
            }
            5..=6 if !self.stopped[index] => {
                self.workers[index].signal(Signal::STOP);
                self.counts.workers_stopped += 1;
                self.stopped[index] = true;
            }
            _ => self.go_on(index),
        }
        if self.compiler.has_ended() {
            self.counts.compilers_crashed += 1;
            self.start_again();
        }
    }

    fn go_on(&mut self, index: usize) {
        if std::mem::take(&mut self.stopped[index]) {
            self.workers[index].signal(Signal::CONT);
        }
    }

    /// Starts a compiler process in the place of one that is dead; now and then one that will kill itself at a named point.
    fn start_again(&mut self) {
        let crash_at = crash_point(&mut self.random);
        self.start_compiler(crash_at.as_deref());
    }

    fn start_compiler(&mut self, crash_at: Option<&str>) {
        await_some("its end", || self.compiler.has_ended().then_some(()));
        // It may kill itself while it starts.
        let place = (&self.scratch, self.socket.as_str(), self.name.as_ref());
        let compiler = start_compiler(place, crash_at);
        let ended = std::mem::replace(&mut self.compiler, compiler).finish();
        assert_eq!(ended.signal, Some(libc::SIGKILL), "{ended:#?}");
    }

    fn status(&mut self) -> Status {
        let compiler = &mut self.compiler;
        await_some("an answer", || {
            assert!(!compiler.has_ended(), "{compiler:#?}");
            request::status(UnixStream::connect(&self.socket).ok()?).ok()
        })
    }

    /// Whether every worker that was started has applied enough.
    fn all_have_seen_enough(&mut self) -> bool {
        let known = self.status().workers;
        let has = |process: &Process| {
            let mut own = known.iter().filter(|worker| worker.pid == process.pid());
            own.any(|worker| worker.updates > BATCHES * 2)
        };
        self.workers.iter().all(has)
    }
}

fn start_worker(socket: &str, random: &mut Noise) -> Process {
    let threads = 1 + random.below(3);
    let mut command = role::command(CALLER, &format!("{socket} {threads}"));
    if let Ok(fault) = std::env::var(FAULT) {
        command.env("JITCAST_FAULT", fault);
    }
    Process::start_listening(&mut command)
}

fn start_compiler(
    (scratch, socket, name): (&Scratch, &str, Option<&Name>),
    crash_at: Option<&str>,
) -> Process {
    let mut target = format!("{} {socket}", scratch.path(""));
    if let Some(name) = name {
        target = format!("{target} {}", name.0);
    }
    let mut command = role::command(COMPILER, &target);
    command.envs(crash_at.map(|point| ("JITCAST_CRASH_AT", point)));
    Process::start_listening(&mut command)
}

/// A named point, and how often it is passed before.
#[cfg(feature = "seeded-faults")]
fn crash_point(random: &mut Noise) -> Option<String> {
    let points = jitcast::compiler::CRASH_POINTS;
    let point = points[random.below(points.len() as u64) as usize];
    (random.below(2) == 0).then(|| format!("{point}:{}", 1 + random.below(20)))
}

/// There are none in this build.
#[cfg(not(feature = "seeded-faults"))]
fn crash_point(_random: &mut Noise) -> Option<String> {
    None
}

#[test]
fn whoever_is_killed_or_stopped_the_others_see_whole_generations() {
    kill_and_stop(Driver::new(None));
}

/// The same where compiler processes go on in one object.
#[test]
fn whoever_is_killed_or_stopped_around_a_named_segment_the_others_see_whole_generations() {
    kill_and_stop(Driver::new(Some(Name::new("kill"))));
}

fn kill_and_stop(mut driver: Driver) {
    let seconds = std::env::var("JITCAST_KILL_SECONDS").map_or(5, |text| text.parse().unwrap());
    // Each has begun.
    role::next_report(&mut driver.compiler);
    let (mut acknowledged, begin) = (1, driver.status());
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(driver.random.below(60)));
        driver.harm();
        let now = driver.acknowledged();
        assert!(
            now == 0 || now >= acknowledged,
            "{now} after {acknowledged}"
        );
        acknowledged = acknowledged.max(now);
    }
    (0..WORKERS).for_each(|index| driver.go_on(index));
    // The last one does not kill itself.
    driver.compiler.signal(Signal::KILL);
    driver.start_compiler(None);
    let acknowledged = driver.acknowledged();
    let found: u64 = role::next_report(&mut driver.compiler).parse().unwrap();
    assert!(
        found == acknowledged || found == acknowledged + 1,
        "{found}, but {acknowledged} was acknowledged"
    );
    let deadline = Instant::now() + PATIENCE;
    while !driver.all_have_seen_enough() {
        for worker in &mut driver.workers {
            assert!(!worker.has_ended(), "{worker:#?}");
        }
        assert!(Instant::now() < deadline, "{:#?}", driver.status());
        std::thread::sleep(Duration::from_millis(10));
    }
    driver.compiler.send("stop");
    let newest = role::next_report(&mut driver.compiler);
    for mut worker in driver.workers.drain(..) {
        worker.send(&newest);
        // Its first report said that it calls.
        role::next_report(&mut worker);
        let seen = role::next_report(&mut worker);
        let (distinct, last) = seen.split_once(' ').unwrap();
        assert!(distinct.parse::<u64>().unwrap() >= BATCHES, "{seen}");
        assert_eq!(last, newest);
        worker.finish().succeeded();
    }
    let generation = driver.status().generation;
    let counts = &driver.counts;
    println!(
        "{seconds} s, {}: {counts:?}, batch {newest}, generation {}",
        driver.name.as_ref().map_or("sealed", |_| "named"),
        generation
    );
    assert!(counts.workers_killed > 0);
    // Nobody holds anything any more, in memory or in descriptors.
    await_some("the end of all workers", || {
        let status = driver.status();
        (status.workers.is_empty() && status.older_bytes == 0).then_some(())
    });
    let after = driver.status();
    // The directory's shape depends on the numbers of units.
    let (held, before) = (held_bytes(&after), held_bytes(&begin));
    assert!(
        held < before + 8192,
        "{held} bytes are held instead of {before}"
    );
    let pid = driver.compiler.pid();
    await_some("few descriptors", || {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .count();
        (open < 40).then_some(())
    });
    assert!(Watched::new(pid).lives());
}

/// A build with a seeded fault must fail the test above.
#[test]
#[cfg(feature = "seeded-faults")]
fn slots_that_are_patched_one_by_one_are_noticed() {
    common::fault::is_noticed(
        (FAULT, "slot-by-slot"),
        "whoever_is_killed_or_stopped_the_others_see_whole_generations",
    );
}
