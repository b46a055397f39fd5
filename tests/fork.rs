//! A child is a worker of its own from before its first instruction, whatever its parent was doing.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::child::{finish_fork, fork, succeeded};
use common::host::{Host, clif_unit};
use common::process::{PATIENCE, Process, await_some};
use common::scratch::Scratch;
use common::{remote, require, role};
use jitcast::worker::{EnterError, Worker};
use rustix::process::Pid;
use units::{c, call, handle, publish, publish_generation};

const INSIDE: &str = "forks inside a guard";
const STORM: &str = "forks while threads call";
const STARTED: &str = "forks after constructors";
const CLOSED: &str = "closes all descriptors";
const DAEMON: &str = "becomes a daemon";
const EXEC: &str = "becomes another program";
const COUNTED: &str = "forks before its thread has entered a guard";
const RAW: &str = "clones without handlers";
const SUPERVISOR: &str = "hands its connection on and ends";
const HANDED: &str = "attaches over a connection that it was handed";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[
        (INSIDE, fork_inside_a_guard),
        (STORM, fork_while_threads_call),
        (STARTED, fork_after_constructors),
        (CLOSED, close_all_descriptors),
        (DAEMON, become_a_daemon),
        (EXEC, become_another_program),
        (COUNTED, fork_before_guards),
        (RAW, clone_without_handlers),
        (SUPERVISOR, hand_on),
        (HANDED, attach_handed),
    ]);
}

/// What the compiler process says of the workers: pid and pin.
fn pins(host: &Host) -> Vec<(i32, Option<u64>)> {
    let workers = host.compiler.status().workers.into_iter();
    workers.map(|worker| (worker.pid, worker.pinned)).collect()
}

#[track_caller]
fn await_pins(host: &Host, mut expected: Vec<(i32, Option<u64>)>) {
    expected.sort_unstable();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut found = pins(host);
        found.sort_unstable();
        if found == expected {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{found:?} instead of {expected:?}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn own_pid() -> i32 {
    std::process::id().cast_signed()
}

/// Forks under a guard. The child reports first, and ends when it is told to; then its parent goes on.
fn fork_inside_a_guard(socket: &str) {
    let worker = remote::attach(socket);
    let f = handle(&worker, "f");
    let mut guard = Some(worker.enter().unwrap());
    let old = guard.as_ref().unwrap().generation();
    let (number, base) = (worker.stats().number, worker.stats().base);
    let child = fork(|| {
        role::report(own_pid());
        role::next_line().unwrap();
        let inside = guard.take().unwrap();
        assert_eq!(
            (inside.generation(), worker.poll().unwrap().generation()),
            (old, old)
        );
        assert_eq!(f.call(&inside, 0), old.cast_signed());
        let stats = worker.stats();
        assert!(stats.number != number && stats.base == base, "{stats:?}");
        drop(inside);
        let inside = worker.enter().unwrap();
        assert!(inside.generation() > old);
        assert_eq!(f.call(&inside, 0), inside.generation().cast_signed());
        drop(inside);
        // A child has children.
        let inside = worker.enter().unwrap();
        succeeded(fork(|| {
            assert_eq!(f.call(&inside, 0), inside.generation().cast_signed());
            drop(inside);
            assert_eq!(
                call(&worker, "f", 0),
                worker.poll().unwrap().generation().cast_signed()
            );
        }));
        role::report("left");
        role::next_line().unwrap();
    });
    succeeded(child);
    let inside = guard.take().unwrap();
    assert_eq!(f.call(&inside, 0), old.cast_signed());
    role::report("parent");
    role::next_line().unwrap();
    drop(inside);
    assert_eq!(
        call(&worker, "f", 0),
        worker.poll().unwrap().generation().cast_signed()
    );
}

fn next(process: &mut Process) -> String {
    role::next_report(process)
}

#[test]
fn a_child_goes_on_under_its_copy_of_the_guard_and_holds_its_generation_itself() {
    let host = Host::sealed();
    let old = publish_generation(&host);
    let mut parent = role::start(INSIDE, &host.socket);
    let child: i32 = next(&mut parent).parse().unwrap();
    await_some("the child", || {
        pins(&host)
            .iter()
            .any(|(pid, _)| *pid == child)
            .then_some(())
    });
    // From its first instruction on.
    assert!(
        pins(&host).contains(&(child, Some(old))),
        "{:?}",
        pins(&host)
    );
    await_pins(&host, vec![(parent.pid(), Some(old)), (child, Some(old))]);
    for _ in 0..300 {
        publish_generation(&host);
    }
    parent.send("go on");
    assert_eq!(next(&mut parent), "left");
    await_pins(&host, vec![(parent.pid(), Some(old)), (child, None)]);
    parent.send("end");
    assert_eq!(next(&mut parent), "parent");
    await_pins(&host, vec![(parent.pid(), Some(old))]);
    parent.send("end");
    parent.finish().succeeded();
}

/// How many children are forked while threads call.
const CHILDREN: usize = 60;

/// `both(x)`: 2^32 times what `g` adds, and what `f` adds.
const BOTH: &str = "function %both(i64) -> i64 {
    fn0 = %f(i64) -> i64
    fn1 = %g(i64) -> i64
block0(v0: i64):
    v1 = call fn0(v0)
    v2 = call fn1(v0)
    v3 = iconst.i64 32
    v4 = ishl v2, v3
    v5 = iadd v1, v4
    return v5
}
";

fn call_consistently(
    worker: &Worker,
    f: &jitcast::worker::Function<units::Code>,
    both: &jitcast::worker::Function<units::Code>,
) {
    let guard = worker.enter().unwrap();
    let number = guard.generation().cast_signed();
    for _ in 0..10 {
        assert_eq!(f.call(&guard, 0), number);
        assert_eq!(both.call(&guard, 0), number + (number << 32));
    }
}

fn fork_while_threads_call(socket: &str) {
    let worker = remote::attach(socket);
    let (f, both) = (handle(&worker, "f"), handle(&worker, "both"));
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    call_consistently(&worker, &f, &both);
                }
            });
        }
        let mut generations = 0;
        for number in 0..CHILDREN {
            let guard = (number % 2 == 0).then(|| worker.enter().unwrap());
            let child = fork(|| {
                for _ in 0..20 {
                    call_consistently(&worker, &f, &both);
                }
                drop(guard);
                let before = worker.poll().unwrap().generation();
                let deadline = Instant::now() + PATIENCE;
                while worker.poll().unwrap().generation() < before + 3 {
                    assert!(Instant::now() < deadline, "nothing new after {before}");
                    call_consistently(&worker, &f, &both);
                }
            });
            succeeded(child);
            generations = worker.poll().unwrap().generation();
        }
        end.store(true, Ordering::Relaxed);
        role::report(generations);
    });
}

#[test]
fn children_forked_while_threads_call_and_apply_follow_every_publication() {
    let host = Host::sealed();
    publish_generation(&host);
    publish(&host, &[clif_unit("both", BOTH)]);
    publish_generation(&host);
    let mut parent = role::start(STORM, &host.socket);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                publish_generation(&host);
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        let reported = next(&mut parent);
        done.store(true, Ordering::Relaxed);
        assert!(reported.parse::<u64>().unwrap() > CHILDREN as u64 * 3);
    });
    parent.finish().succeeded();
    await_pins(&host, Vec::new());
}

fn fork_after_constructors(socket: &str) {
    let worker = remote::attach(socket);
    assert_eq!(call(&worker, "count", 0), 1);
    assert_eq!(call(&worker, "count", 5), 6);
    succeeded(fork(|| {
        assert_eq!(call(&worker, "count", 0), 6, "the parent's data, copied");
        assert_eq!(call(&worker, "count", 10), 16);
    }));
    assert_eq!(call(&worker, "count", 0), 6, "the parent's own");
}

#[test]
fn constructors_do_not_run_again_and_data_is_copied() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let source =
        "static long runs; __attribute__((constructor)) static void begin(void) { runs++; }
        long count(long x) { return runs += x; }";
    publish(&host, &[c("count", source)]);
    role::start(STARTED, &host.socket).finish().succeeded();
}

fn close_all_descriptors(socket: &str) {
    let worker = remote::attach(socket);
    let f = handle(&worker, "f");
    // SAFETY: what this process has open besides its standard streams is the worker's.
    unsafe { libc::close_range(3, u32::MAX, 0) };
    // It gets a number that was the worker's.
    let path = std::env::temp_dir().join(format!("jitcast-test-{}", std::process::id()));
    let mut files: Vec<File> = (0..8).map(|_| File::create(&path).unwrap()).collect();
    role::report("closed");
    role::next_line().unwrap();
    let guard = worker.enter().unwrap();
    assert_eq!(f.call(&guard, 0), guard.generation().cast_signed());
    role::report(guard.generation());
    drop(guard);
    succeeded(fork(|| {
        assert!(matches!(worker.enter().map(drop), Err(EnterError::Forked)));
    }));
    assert_eq!(
        call(&worker, "f", 0),
        worker.poll().unwrap().generation().cast_signed()
    );
    drop((f, worker));
    for file in &mut files {
        file.write_all(b"mine")
            .expect("the host's own file, not the worker's");
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_host_that_closes_all_descriptors_goes_on_and_keeps_its_own() {
    goes_on_with_its_own(None);
}

/// Profilers' files were written to by their descriptors, whatever these had become.
#[test]
fn what_is_shown_to_profilers_goes_into_no_file_of_the_hosts() {
    let scratch = Scratch::new();
    let shown = format!("jitdump,perf-map,lines,dir={}", scratch.path(""));
    goes_on_with_its_own(Some(&shown));
    let names = scratch.names();
    assert_eq!(names.len(), 2, "{names:?}");
}

fn goes_on_with_its_own(shown: Option<&str>) {
    let host = Host::sealed();
    publish_generation(&host);
    let mut command = role::command(CLOSED, &host.socket);
    command.envs(shown.map(|shown| ("JITCAST_DEBUG", shown)));
    let mut process = Process::start_listening(&mut command);
    assert_eq!(next(&mut process), "closed");
    let new = publish_generation(&host);
    process.send("go on");
    assert_eq!(next(&mut process), new.to_string());
    process.finish().succeeded();
    await_pins(&host, Vec::new());
}

fn become_a_daemon(socket: &str) {
    let worker = remote::attach(socket);
    // What is published once the daemon is heard of is newer.
    let before = worker.poll().unwrap().generation();
    // SAFETY: this process has no other thread that could hold a lock.
    assert_eq!(unsafe { libc::daemon(1, 1) }, 0);
    role::report(own_pid());
    let deadline = Instant::now() + PATIENCE;
    while worker.poll().unwrap().generation() == before {
        assert!(Instant::now() < deadline);
        worker.wait(before, Some(Duration::from_millis(100)));
    }
    role::report(call(&worker, "f", 0));
}

#[test]
fn a_daemon_goes_on_as_a_worker() {
    let host = Host::sealed();
    publish_generation(&host);
    let mut process = role::start(DAEMON, &host.socket);
    let daemon: i32 = next(&mut process).parse().unwrap();
    assert_ne!(daemon, process.pid());
    await_pins(&host, vec![(daemon, None)]);
    let new = publish_generation(&host);
    assert_eq!(next(&mut process), new.to_string());
    await_pins(&host, Vec::new());
}

fn become_another_program(socket: &str) {
    use std::os::unix::process::CommandExt;
    let worker = remote::attach(socket);
    let _guard = worker.enter().unwrap();
    role::next_line().unwrap();
    let error = std::process::Command::new("sleep").arg("1000").exec();
    panic!("{error}");
}

#[test]
fn a_process_that_becomes_another_program_is_no_worker_any_more() {
    let host = Host::sealed();
    let generation = publish_generation(&host);
    let mut process = role::start(EXEC, &host.socket);
    await_pins(&host, vec![(process.pid(), Some(generation))]);
    process.send("exec");
    let deadline = Instant::now() + PATIENCE;
    let program = format!("/proc/{}/comm", process.pid());
    while std::fs::read_to_string(&program).unwrap().trim() != "sleep" {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
    await_pins(&host, Vec::new());
    process.signal(rustix::process::Signal::KILL);
}

fn fork_before_guards(socket: &str) {
    let worker = remote::attach(socket);
    let thread = worker.thread().unwrap();
    // SAFETY: the child only enters guards.
    let child = finish_fork(unsafe { libc::fork() }, || drop(thread.enter().unwrap()));
    succeeded(child);
    // One of so many tends the worker, and counts them.
    for _ in 0..1 << 16 {
        drop(thread.enter().unwrap());
    }
    role::report("counted");
    role::next_line().unwrap();
}

#[test]
fn guards_of_a_thread_that_forked_before_its_first_are_counted() {
    let host = Host::sealed();
    publish_generation(&host);
    let mut process = role::start(COUNTED, &host.socket);
    assert_eq!(next(&mut process), "counted");
    let entered = |pid| {
        let workers = host.compiler.status().workers;
        let worker = workers.into_iter().find(|worker| worker.pid == pid);
        worker.unwrap().entered
    };
    assert_eq!(entered(process.pid()), 1 << 16);
    process.send("end");
    process.finish().succeeded();
}

fn clone_without_handlers(socket: &str) {
    let worker = remote::attach(socket);
    let thread = worker.thread().unwrap();
    let mut guard = Some(worker.enter().unwrap());
    let old = guard.as_ref().unwrap().generation();
    // SAFETY: clone(2) with the flags of a fork; the child does nothing that needs the C library's own handlers.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    let child = finish_fork(pid as i32, || {
        assert!(matches!(worker.enter().map(drop), Err(EnterError::Forked)));
        assert!(matches!(thread.enter().map(drop), Err(EnterError::Forked)));
        drop(guard.take());
        assert!(matches!(thread.enter().map(drop), Err(EnterError::Forked)));
    });
    succeeded(child);
    assert_eq!(guard.as_ref().unwrap().generation(), old);
    let symbol = worker.symbol(guard.as_ref().unwrap(), "f").unwrap();
    assert_eq!(symbol.generation, old);
    role::report(old);
    role::next_line().unwrap();
}

#[test]
fn a_raw_clone_is_told_that_it_is_not_attached() {
    let host = Host::sealed();
    let old = publish_generation(&host);
    let mut process = role::start(RAW, &host.socket);
    assert_eq!(next(&mut process), old.to_string());
    await_pins(&host, vec![(process.pid(), Some(old))]);
    process.send("end");
    process.finish().succeeded();
}

#[expect(clippy::zombie_processes, reason = "this process ends before that one")]
fn hand_on(socket: &str) {
    use std::os::fd::AsRawFd;
    let stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    // Without close-on-exec.
    let handed = rustix::io::dup(&stream).unwrap();
    let target = format!("{}", handed.as_raw_fd());
    let spawned = role::command(HANDED, &target).spawn().unwrap();
    role::report(spawned.id());
}

fn attach_handed(descriptor: &str) {
    use jitcast::worker::{Endpoint, WorkerOptions};
    use std::os::fd::{FromRawFd, OwnedFd};
    // SAFETY: what this process was started with, for it alone.
    let socket = unsafe { OwnedFd::from_raw_fd(descriptor.parse().unwrap()) };
    let worker = Worker::attach(Endpoint::Fd(socket), WorkerOptions::default()).unwrap();
    let f = handle(&worker, "f");
    let guard = worker.enter().unwrap();
    role::report(guard.generation());
    role::next_line().unwrap();
    role::report(f.call(&guard, 0));
    drop(guard);
    role::report(f.call(&worker.enter().unwrap(), 0));
    role::next_line();
}

/// Whoever connected is not who attached: its end says nothing of the worker's.
#[test]
fn a_worker_outlives_whoever_connected_for_it() {
    let host = Host::sealed();
    let old = publish_generation(&host);
    let mut process = role::start(SUPERVISOR, &host.socket);
    let mut reports = [next(&mut process), next(&mut process)];
    // They come from two processes.
    reports.sort_unstable_by_key(|report| report != &old.to_string());
    assert_eq!(reports[0], old.to_string());
    let supervisor = Pid::from_raw(process.pid()).unwrap();
    let options = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
    rustix::process::waitid(rustix::process::WaitId::Pid(supervisor), options).unwrap();
    let mut new = 0;
    for _ in 0..300 {
        new = publish_generation(&host);
    }
    await_pins(&host, vec![(process.pid(), Some(old))]);
    process.send("call");
    assert_eq!(next(&mut process), old.to_string());
    assert_eq!(next(&mut process), new.to_string());
    process.send("end");
    await_pins(&host, Vec::new());
}

/// A child that nothing holds the generation of, which it is inside at, fails the test above.
#[test]
#[cfg(feature = "seeded-faults")]
fn a_child_without_a_pin_is_noticed() {
    common::fault::is_noticed(
        ("JITCAST_FAULT", "child-unpinned"),
        "a_child_goes_on_under_its_copy_of_the_guard_and_holds_its_generation_itself",
    );
}
