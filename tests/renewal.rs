//! Workers whose compiler process has gone go on, find the next one, and go on with its segment.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::process::PATIENCE;
use common::scratch::Scratch;
use common::serve::Serve;
use common::{remote, role};
use jitcast::compiler::front::Options;
use jitcast::compiler::{Compiler, CompilerOptions, Policy, Server, Stop, UnitSource};
use jitcast::runtime::header::Control;
use jitcast::worker::Worker;
use rustix::process::Signal;
use units::{adders, call, handle};

/// The role of a worker that waits, and is woken all the time.
const WAITS: &str = "waits";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(WAITS, wait_disturbed)]);
}

/// A server whose compiler may outlive it.
struct Serving {
    stop: Stop,
    thread: JoinHandle<std::io::Result<()>>,
}

impl Serving {
    fn new(compiler: &Arc<Compiler>, socket: &str) -> Self {
        let server = Server::bind(socket, Policy::default(), Options::default()).unwrap();
        let stop = server.stopper().unwrap();
        let compiler = Arc::clone(compiler);
        Self {
            stop,
            thread: std::thread::spawn(move || server.run(compiler)),
        }
    }

    fn end(self) {
        self.stop.stop();
        self.thread.join().unwrap().unwrap();
    }
}

fn compiler(socket: &str) -> Arc<Compiler> {
    let options = CompilerOptions {
        socket: socket.to_owned(),
        ..CompilerOptions::with_window(8 << 20).unwrap()
    };
    Arc::new(Compiler::create(&options).unwrap())
}

fn batch(number: u64) -> [UnitSource; 2] {
    [
        adders("f", &[("f", number as i32)]),
        adders("g", &[("g", number as i32)]),
    ]
}

/// Publishes functions that return the generation.
fn publish(compiler: &Compiler) -> u64 {
    let next = compiler.status().generation + 1;
    compiler.publish(&batch(next)).unwrap().generation
}

#[track_caller]
fn tend_until(worker: &Worker, connected: bool) {
    let deadline = Instant::now() + PATIENCE;
    while worker.is_connected() != connected {
        assert!(Instant::now() < deadline);
        worker.tend();
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_worker_goes_on_alone_and_finds_the_next_one() {
    let scratch = Scratch::new();
    let socket = scratch.path("socket");
    let compiler = compiler(&socket);
    let serving = Serving::new(&compiler, &socket);
    let generation = publish(&compiler);
    let worker = remote::attach(&socket);
    let f = handle(&worker, "f");
    let (base, descriptor) = {
        use std::os::fd::AsRawFd;
        (worker.stats().base, worker.connection().as_raw_fd())
    };
    serving.end();
    tend_until(&worker, false);
    for _ in 0..100 {
        worker.tend();
        let guard = worker.enter().unwrap();
        assert_eq!(f.call(&guard, 0), generation.cast_signed());
    }
    // While it is alone, a thread calls, another stays inside.
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stays = scope.spawn(|| {
            let guard = worker.enter().unwrap();
            while !end.load(Ordering::Relaxed) {
                assert_eq!(f.call(&guard, 0), generation.cast_signed());
            }
        });
        let serving = Serving::new(&compiler, &socket);
        tend_until(&worker, true);
        use std::os::fd::AsRawFd;
        assert_eq!(
            (worker.stats().base, worker.connection().as_raw_fd()),
            (base, descriptor)
        );
        let new = publish(&compiler);
        assert_eq!(call(&worker, "f", 0), new.cast_signed());
        let known = compiler.status().workers;
        assert!(
            known
                .iter()
                .any(|known| known.number == worker.stats().number && known.applied == new)
        );
        assert!(!stays.is_finished());
        end.store(true, Ordering::Relaxed);
        stays.join().unwrap();
        serving.end();
    });
}

/// The role: a thread waits for what never comes, and is woken each millisecond, by a signal and as by a publication.
fn wait_disturbed(socket: &str) {
    use rustix::thread::futex;
    use std::os::unix::thread::JoinHandleExt;

    signal_hook::flag::register(libc::SIGUSR1, Arc::new(AtomicBool::new(false))).unwrap();
    // As long as the process.
    let worker: &'static Worker = Box::leak(Box::new(remote::attach(socket)));
    let seen = worker.poll().unwrap().generation();
    let head = Control::head_in(worker.window().control()).unwrap();
    // SAFETY: the first four bytes of an aligned eight, little-endian; both are accessed atomically only.
    let low = unsafe { AtomicU32::from_ptr(head.as_ptr().cast()) };
    let waits = std::thread::spawn(move || worker.wait(seen, None));
    let mut wakes = 0;
    while worker.is_connected() {
        futex::wake(low, futex::Flags::empty(), 1).unwrap();
        // SAFETY: nothing is published, so that the thread has not ended.
        let sent = unsafe { libc::pthread_kill(waits.as_pthread_t(), libc::SIGUSR1) };
        assert_eq!(sent, 0);
        std::thread::sleep(Duration::from_millis(1));
        wakes += 1;
        if wakes == 100 {
            // By now it has looked once, as each that begins to wait.
            role::report("waits");
        }
    }
    role::report("alone");
}

#[test]
fn who_is_woken_all_the_time_notices_that_the_compiler_process_is_killed() {
    let serve = Serve::start(&[]);
    let mut worker = role::start(WAITS, &serve.socket);
    assert_eq!(role::next_report(&mut worker), "waits");
    serve.process.signal(Signal::KILL);
    assert_eq!(role::next_report(&mut worker), "alone");
}

#[test]
fn another_segment_is_none_to_go_on_with() {
    let scratch = Scratch::new();
    let socket = scratch.path("socket");
    let first = compiler(&socket);
    let serving = Serving::new(&first, &socket);
    let generation = publish(&first);
    let worker = remote::attach(&socket);
    serving.end();
    tend_until(&worker, false);
    let other = compiler(&socket);
    publish(&other);
    let serving = Serving::new(&other, &socket);
    let end = Instant::now() + Duration::from_millis(300);
    while Instant::now() < end {
        worker.tend();
        assert!(!worker.is_connected());
        assert_eq!(call(&worker, "f", 0), generation.cast_signed());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(other.status().workers, []);
    serving.end();
}

#[test]
fn whoever_waits_notices_by_itself() {
    let scratch = Scratch::new();
    let socket = scratch.path("socket");
    let compiler = compiler(&socket);
    let serving = Serving::new(&compiler, &socket);
    let generation = publish(&compiler);
    let worker = remote::attach(&socket);
    assert_eq!(worker.poll().unwrap().generation(), generation);
    serving.end();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| worker.wait(generation, Some(PATIENCE)));
        let serving = Serving::new(&compiler, &socket);
        let deadline = Instant::now() + PATIENCE;
        while !compiler
            .status()
            .workers
            .iter()
            .any(|known| known.number > 1)
        {
            assert!(Instant::now() < deadline && !waits.is_finished());
            std::thread::sleep(Duration::from_millis(5));
        }
        let new = publish(&compiler);
        assert!(waits.join().unwrap());
        assert_eq!(call(&worker, "f", 0), new.cast_signed());
        serving.end();
    });
}
