//! Workers that are started before their compiler process: the host's own functions serve, and published ones once they can.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::path::Path;
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use common::host::Host;
use common::process::{PATIENCE, await_some};
use common::scratch::Scratch;
use common::serve::Serve;
use common::{child, remote, role};
use jitcast::worker::{Endpoint, Event, LateWorker, Log, LookupError, WorkerOptions};
use units::Code;

extern "C" fn own(x: i64) -> i64 {
    -x
}

extern "C" fn own_of_two(x: i64, y: i64) -> i64 {
    x * y
}

const OWN: Code = own;

fn late(socket: &str) -> LateWorker {
    LateWorker::attach(Endpoint::Path(Path::new(socket)), WorkerOptions::default())
}

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(remote::ROLE, remote::play)]);
}

#[test]
fn the_hosts_functions_serve_until_the_compiler_process_is_there() {
    let scratch = Scratch::open_to_all();
    let socket = scratch.path("socket");
    let events = Arc::<Mutex<Vec<Event>>>::default();
    let kept = Arc::clone(&events);
    let options = WorkerOptions {
        log: Log::new(move |event| kept.lock().unwrap().push(event.clone())),
        ..WorkerOptions::default()
    };
    let worker = LateWorker::attach(Endpoint::Path(Path::new(&socket)), options);
    let score = worker.function_or("score", OWN);
    assert_eq!(worker.call(&score, (21,)), -21);
    assert!(worker.enter().is_none());
    assert!(worker.worker().is_none());
    let why = worker.why_not().unwrap();
    assert!(
        why.contains("cannot reach the compiler process at"),
        "{why}"
    );
    assert_eq!(events.lock().unwrap()[0], Event::NotAttached { why });
    let process = Serve::start_at(&socket, &[]);
    let serve = Serve::adopt_running(process, socket, scratch);
    // Nobody does more than call.
    await_some("the worker to attach", || {
        assert_eq!(worker.call(&score, (21,)), -21, "nothing is published");
        worker.worker()
    });
    serve.publish_adds("score", 1);
    assert_eq!(worker.call(&score, (21,)), 22);
    let guard = worker.enter();
    assert_eq!(score.call(guard.as_ref(), (21,)), 22);
    drop(guard);
    serve.command("quarantine", &["score"]).succeeded();
    assert_eq!(worker.call(&score, (21,)), -21);
    serve.command("restore", &["score"]).succeeded();
    assert_eq!(worker.call(&score, (21,)), 22);
}

#[test]
fn a_name_that_is_something_else_is_said_and_the_hosts_function_serves() {
    let host = Host::sealed();
    host.publish_adds("score", 1);
    let worker = late(&host.socket);
    let score = worker.function_or("score", own_of_two as extern "C" fn(i64, i64) -> i64);
    worker.join(Some(PATIENCE)).expect("it is there");
    assert_eq!(worker.call(&score, (3, 4)), 12);
    let guard = worker.enter().unwrap();
    let error = score.find(&guard).unwrap_err();
    assert!(matches!(error, LookupError::Signature { .. }), "{error}");
}

#[test]
fn who_is_asked_and_does_not_answer_keeps_nobody_waiting() {
    let scratch = Scratch::new();
    let socket = scratch.path("socket");
    // Takes connections, and says nothing.
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let worker = late(&socket);
    let score = worker.function_or("score", OWN);
    for x in 0..1000 {
        assert_eq!(worker.call(&score, (x,)), -x);
    }
    assert!(worker.join(Some(Duration::from_millis(50))).is_none());
    let (connection, _) = listener.accept().unwrap();
    // Now it is gone, and another one takes its place.
    drop((connection, listener));
    std::fs::remove_file(&socket).unwrap();
    let process = Serve::start_at(&socket, &[]);
    let _serve = Serve::adopt_running(process, socket, scratch);
    worker.join(Some(PATIENCE)).expect("another one is found");
    assert_eq!(worker.call(&score, (21,)), -21);
}

#[test]
fn a_child_that_was_forked_before_attaches_for_itself() {
    let scratch = Scratch::open_to_all();
    let socket = scratch.path("socket");
    let worker = late(&socket);
    let score = worker.function_or("score", OWN);
    // SAFETY: the child uses nothing that other threads of the test may hold, and ends by _exit(2).
    let child = unsafe { libc::fork() };
    if child == 0 {
        let attached = worker.join(Some(PATIENCE)).is_some();
        let mut called = 0;
        for _ in 0..1000 {
            called = worker.call(&score, (21,));
            if called == 22 {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(i32::from(!attached || called != 22)) };
    }
    let process = Serve::start_at(&socket, &[]);
    let serve = Serve::adopt_running(process, socket, scratch);
    serve.publish_adds("score", 1);
    let mut status = 0;
    // SAFETY: a child of this process, and a place for its status.
    unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!(status, 0);
    worker.join(Some(PATIENCE)).expect("so does its parent");
    assert_eq!(worker.call(&score, (21,)), 22);
}

/// The story: a child that was forked while another thread attached never did, since that thread had a lock.
#[test]
fn children_that_are_forked_while_a_thread_attaches_are_attached_too() {
    let host = Host::sealed();
    host.publish_adds("score", 1);
    // Forks are spread over all that attaching does.
    for round in 0..200 {
        let worker = late(&host.socket);
        let score = worker.function_or("score", OWN);
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                worker.join(Some(PATIENCE)).expect("it is there");
            });
            start.wait();
            std::thread::sleep(Duration::from_micros(40 * round));
            child::succeeded(child::fork(|| {
                assert!(worker.join(Some(PATIENCE)).is_some());
                assert_eq!(worker.call(&score, (21,)), 22);
            }));
        });
        assert_eq!(worker.call(&score, (21,)), 22);
    }
}
