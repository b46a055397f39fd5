//! Threads of workers.

use std::time::Duration;
use std::{ptr, thread};

use jitcast_worker::{EnterError, Unwinding};

use super::{Whole, attach, call_raw, comes, handle};
use crate::tally::Kind;
use crate::units::Code;

/// Calls `f` and `g`, which are always of one version, and reads the number of that version where it lies, as published code does: so
/// that what a guard orders is seen by ThreadSanitizer, which does not see published code.
pub(super) fn call(whole: &Whole<'_>) {
    let (f, g, shared) = (whole.handle("f"), whole.handle("g"), whole.handle("shared"));
    let datum = {
        let guard = whole.worker.enter().expect("nobody forks this thread");
        let found = whole.worker.symbol(&guard, "f_datum");
        found.expect("it is published").stub.get()
    };
    while whole.goes_on() {
        let guard = whole.worker.enter().expect("nobody forks this thread");
        let at = call_raw(&guard, datum, 0);
        let at: *const i64 = ptr::with_exposed_provenance(at as usize);
        // SAFETY: private data of the version that this thread is inside at.
        let number = unsafe { at.read() };
        assert_eq!(f.call(&guard, 0), number);
        assert_eq!(g.call(&guard, 0), number);
        let nested = whole.worker.enter().expect("nobody forks this thread");
        assert_eq!(nested.generation(), guard.generation());
        assert_eq!(f.call(&nested, 1), number + 1);
        drop(nested);
        assert!(shared.call(&guard, 0) > 0);
        drop(guard);
        whole.tally.count(Kind::Guards);
        whole.tally.count(Kind::Data);
    }
}

/// Stays inside while others go on.
pub(super) fn stay(whole: &Whole<'_>) {
    let f = whole.handle("f");
    while whole.goes_on() {
        let guard = whole.worker.enter().expect("nobody forks this thread");
        let (number, generation) = (f.call(&guard, 0), guard.generation());
        let applied = || whole.worker.stats().applied > generation + 2;
        if comes(whole, Duration::from_millis(20), applied) {
            whole.tally.count(Kind::Stays);
        }
        assert_eq!(f.call(&guard, 0), number);
        assert_eq!(guard.generation(), generation);
        drop(guard);
        // Renewals wait for a moment at which nobody is inside from before.
        thread::sleep(Duration::from_millis(5));
    }
}

extern "C" fn instead(x: i64) -> i64 {
    -x
}

/// Looks names up, polls, and waits.
pub(super) fn look_up(whole: &Whole<'_>) {
    let worker = whole.worker;
    let removed = {
        let guard = worker.enter().expect("nobody forks this thread");
        worker.function_or::<Code>(&guard, "removed", instead)
    };
    let removed = removed.expect("whether it is there or not");
    while whole.goes_on() {
        let guard = worker.enter().expect("nobody forks this thread");
        let f = worker
            .function::<Code>(&guard, "f")
            .expect("it is published");
        let canary = worker
            .function::<Code>(&guard, "canary")
            .expect("it is published");
        assert!(f.call(&guard, 0) >= 0 && canary.call(&guard, 0) >= 0);
        let number = removed.call(&guard, 1);
        assert!(number == -1 || number > 1, "{number}");
        let seen = guard.generation();
        drop(guard);
        worker.wait(seen, Some(Duration::from_millis(2)));
        worker.poll().expect("nobody forks this thread");
        worker.tend();
        assert!(worker.failed_units().is_empty());
        whole.tally.count(Kind::Lookups);
    }
}

/// Threads that live for one guard.
pub(super) fn come_and_go(whole: &Whole<'_>) {
    let f = whole.handle("f");
    while whole.goes_on() {
        thread::scope(|scope| {
            let threads = [(); 2].map(|()| {
                scope.spawn(|| {
                    let guard = whole.worker.enter().expect("a free record");
                    assert!(f.call(&guard, 0) >= 0);
                })
            });
            for thread in threads {
                thread.join().expect("a caller does not panic");
            }
        });
        whole.tally.add(Kind::Comers, 2);
        thread::sleep(Duration::from_millis(1));
    }
}

/// Workers that live for a few guards, and register with the unwinder what they bind.
pub(super) fn attach_and_detach(whole: &Whole<'_>) {
    while whole.goes_on() {
        let worker = attach(whole.socket, "", Unwinding::Register);
        let f = handle(&worker, "f");
        thread::scope(|scope| {
            let other = scope.spawn(|| assert!(f.call(&worker.enter().expect("attached"), 0) >= 0));
            for _ in 0..3 {
                let guard = worker.enter().expect("attached");
                assert!(f.call(&guard, 0) >= 0);
                let seen = guard.generation();
                drop(guard);
                worker.wait(seen, Some(Duration::from_millis(20)));
            }
            other.join().expect("a caller does not panic");
        });
        whole.tally.count(Kind::Attached);
    }
}

/// Forks children, which call.
pub(super) fn fork(whole: &Whole<'_>) {
    const NOT_READY: i32 = 3;
    let f = whole.handle("f");
    while whole.goes_on() {
        // SAFETY: the child calls what is safe in one, and ends without running anything of its parent's.
        match unsafe { libc::fork() } {
            0 => {
                // SAFETY: of its own process. One that hangs is ended by it.
                unsafe { libc::alarm(60) };
                let status = match whole.worker.enter() {
                    Ok(guard) if f.call(&guard, 0) >= 0 => 0,
                    // Nothing was ready for it.
                    Err(EnterError::Forked) => NOT_READY,
                    other => {
                        eprintln!("a child: {other:?}");
                        1
                    }
                };
                // SAFETY: as above.
                unsafe { libc::_exit(status) };
            }
            child => {
                assert!(child > 0, "fork: {}", std::io::Error::last_os_error());
                let mut status = 0;
                // SAFETY: stores into `status`.
                let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
                assert_eq!(ended, child);
                match libc::WEXITSTATUS(status) {
                    0 if libc::WIFEXITED(status) => whole.tally.count(Kind::Children),
                    NOT_READY => {}
                    _ => panic!("a child ended with {status:#x}"),
                }
            }
        }
        thread::sleep(Duration::from_millis(30));
    }
}

/// Calls a function that starts a thread.
pub(super) fn start_threads(whole: &Whole<'_>) {
    let starts = whole.handle("starts");
    while whole.goes_on() {
        let guard = whole.worker.enter().expect("nobody forks this thread");
        assert_eq!(starts.call(&guard, 5), 6);
        drop(guard);
        whole.tally.count(Kind::Started);
        thread::sleep(Duration::from_millis(5));
    }
}

/// Asks for units of its own.
pub(super) fn ask(whole: &Whole<'_>) {
    for number in 0.. {
        if !whole.goes_on() {
            return;
        }
        let text = format!(
            "function %own(i64) -> i64 {{\n fn0 = %f(i64) -> i64\nblock0(v0: i64):\n v1 = iconst.i64 {number}\n \
             v2 = iadd v0, v1\n v3 = call fn0(v2)\n return v3\n}}\n"
        );
        let Ok(mut pending) = whole.worker.request(&text) else {
            // The connection to a renewed segment is just being taken up.
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        if !comes(whole, Duration::from_secs(60), || pending.is_ready()) {
            continue;
        }
        let guard = whole.worker.enter().expect("nobody forks this thread");
        let Ok(unit) = pending.unit(&guard) else {
            continue;
        };
        if let Ok(own) = unit.function::<Code>(&guard, "own") {
            assert!(own.call(&guard, 1) > number);
            whole.tally.count(Kind::Requests);
        }
    }
}
