//! Workers of several threads: each call gives the version of its guard's generation, whoever publishes,
//! starts, ends or panics meanwhile.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::host::{Host, clif_unit};
use common::process::{PATIENCE, no_forks};
use common::{require, role};
use jitcast::worker::{EnterError, Function, Guard, HostTable, Polled, Thread, Worker};
use units::{Code, attach, attach_with, c, call, call_raw, handle, publish, publish_generation};

/// The role of a process without membarrier.
const FENCED: &str = "calls without membarrier";

/// The role of a process that jumps out of published code.
const JUMPS: &str = "jumps";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(FENCED, call_without_membarrier), (JUMPS, jump_out)]);
}

/// Threads that call at once.
const THREADS: usize = 4;

/// `both(x)`: what `f` adds, and, 2^32 times, what `g` adds.
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

/// What a thread saw.
#[derive(Debug, Default)]
struct Seen {
    generations: BTreeSet<u64>,
    newest: u64,
}

/// Calls under guards until told that generation `last` is the last one, and that is seen.
fn call_until(worker: &Worker, [f, both]: [&Function<Code>; 2], last: &AtomicU64) -> Seen {
    let mut seen = Seen::default();
    let deadline = Instant::now() + PATIENCE;
    while seen.newest == 0 || seen.newest != last.load(Ordering::Relaxed) {
        assert!(Instant::now() < deadline, "{last:?} never came: {seen:?}");
        let guard = worker.enter().unwrap();
        let generation = guard.generation();
        assert!(
            generation >= seen.newest,
            "{generation} after {}",
            seen.newest
        );
        seen.newest = generation;
        seen.generations.insert(generation);
        let number = generation.cast_signed();
        for _ in 0..20 {
            assert_eq!(f.call(&guard, 0), number);
            let nested = worker.enter().unwrap();
            assert_eq!(nested.generation(), generation);
            assert_eq!(both.call(&nested, 0), number + (number << 32));
            drop(nested);
            assert_eq!(guard.generation(), generation);
        }
    }
    seen
}

fn every_call_matches() {
    const SWAPS: usize = 3000;
    let host = Host::sealed();
    publish_generation(&host);
    publish(&host, &[clif_unit("both", BOTH)]);
    publish_generation(&host);
    let worker = attach(&host);
    let (f, both) = (handle(&worker, "f"), handle(&worker, "both"));
    let last = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let (worker, both, f, last) = (&worker, &both, &f, &last);
        let call = move || call_until(worker, [f, both], last);
        let threads = [(); THREADS].map(|()| scope.spawn(call));
        let deadline = Instant::now() + PATIENCE;
        for swap in 1..=SWAPS {
            let generation = publish_generation(&host);
            // Now and then it is waited for: without that, nobody is obliged to have seen any but the last.
            while swap % 10 == 0 && worker.stats().applied < generation {
                assert!(
                    Instant::now() < deadline,
                    "{generation}: {:?}",
                    worker.stats()
                );
                assert!(threads.iter().all(|thread| !thread.is_finished()));
                std::thread::yield_now();
            }
        }
        let newest = host.compiler.status().generation;
        last.store(newest, Ordering::Relaxed);
        for thread in threads {
            let seen = thread.join().unwrap();
            assert_eq!(seen.newest, newest);
            assert!(seen.generations.len() > 20, "{}", seen.generations.len());
        }
    });
    assert!(worker.stats().updates >= SWAPS as u64 / 10);
    let _no_forks = no_forks();
    await_unpinned(&host);
}

/// Asserts that no worker has a thread inside.
#[track_caller]
fn await_unpinned(host: &Host) {
    for worker in host.compiler.status().workers {
        assert_eq!(worker.pinned, None, "{worker:?}");
    }
}

#[test]
fn every_call_of_every_thread_gives_the_version_of_its_guard() {
    every_call_matches();
}

/// One of 65,536 outermost guards of a thread tends the worker, and counts them all.
fn guards_are_counted() {
    const STEP: u64 = 1 << 16;
    let host = Host::sealed();
    publish_generation(&host);
    let worker = attach(&host);
    let entered = || host.compiler.status().workers[0].entered;
    let enter = |count| {
        for _ in 0..count {
            let outer = worker.enter().unwrap();
            drop(worker.enter().unwrap());
            drop(outer);
        }
    };
    let before = entered();
    // A thread that has entered none.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            enter(STEP - 1);
            assert_eq!(entered(), before);
            enter(1);
            assert_eq!(entered(), before + STEP);
            enter(STEP - 1);
            assert_eq!(entered(), before + STEP);
            enter(1);
            assert_eq!(entered(), before + 2 * STEP);
        });
    });
}

#[test]
fn a_thread_that_only_enters_guards_tends_its_worker() {
    guards_are_counted();
}

/// The role.
fn call_without_membarrier(_target: &str) {
    guards_are_counted();
    every_call_matches();
    role::report("done");
}

#[test]
fn the_same_holds_where_membarrier_is_forbidden() {
    let mut command = role::command(FENCED, "");
    let finished = common::process::finish(command.env("JITCAST_NO_MEMBARRIER", "1"));
    assert!(finished.succeeded().stdout.contains("report: done"));
}

/// What `stays` sees of the pair (handle, `both`), inside at `generation`.
fn assert_at(guard: &Guard<'_>, [f, both]: [&Function<Code>; 2], generation: u64) {
    let number = generation.cast_signed();
    assert_eq!(guard.generation(), generation);
    assert_eq!(f.call(guard, 0), number);
    assert_eq!(both.call(guard, 0), number + (number << 32));
}

#[test]
fn while_threads_stay_inside_others_go_on() {
    const STAY: usize = 5;
    let _no_forks = no_forks();
    let host = Host::sealed();
    publish_generation(&host);
    publish(&host, &[clif_unit("both", BOTH)]);
    publish_generation(&host);
    let worker = attach(&host);
    let (f, both) = (handle(&worker, "f"), handle(&worker, "both"));
    let (inside, end) = (Barrier::new(2), AtomicBool::new(false));
    let stay = |generation: u64| {
        let guard = worker.enter().unwrap();
        inside.wait();
        let mut calls = 0u64;
        while !end.load(Ordering::Relaxed) {
            assert_at(&guard, [&f, &both], generation);
            assert_at(&worker.enter().unwrap(), [&f, &both], generation);
            let found = handle(&worker, "f");
            assert_eq!(found.call(&guard, 0), generation.cast_signed());
            let symbol = worker.symbol(&guard, "f").unwrap();
            assert_eq!(
                call_raw(&guard, symbol.stub.get(), 0),
                generation.cast_signed()
            );
            calls += 1;
        }
        calls
    };
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for _ in 0..STAY {
            let generation = publish_generation(&host);
            threads.push(scope.spawn(move || stay(generation)));
            inside.wait();
        }
        let deadline = Instant::now() + PATIENCE;
        for _ in 0..500 {
            let new = publish_generation(&host);
            let guard = worker.enter().unwrap();
            assert_at(&guard, [&f, &both], new);
            assert!(Instant::now() < deadline);
            let failed = threads.iter().any(|thread| thread.is_finished());
            assert!(!failed, "a thread saw something else than its generation");
        }
        end.store(true, Ordering::Relaxed);
        for thread in threads {
            assert!(thread.join().unwrap() > 0);
        }
    });
    await_unpinned(&host);
    let new = publish_generation(&host);
    assert_at(&worker.enter().unwrap(), [&f, &both], new);
}

/// What a poll says is what happened: inside a guard nothing is applied, whatever was published.
#[test]
fn a_poll_inside_a_guard_applies_nothing_and_says_so() {
    let _no_forks = no_forks();
    let host = Host::sealed();
    publish_generation(&host);
    let worker = attach(&host);
    let f = handle(&worker, "f");
    let generation = publish_generation(&host);
    assert_eq!(worker.poll().unwrap(), Polled::Applied { generation });
    assert_eq!(worker.poll().unwrap(), Polled::Current { generation });
    let guard = worker.enter().unwrap();
    let newest = generation;
    assert_eq!(
        worker.poll().unwrap(),
        Polled::Inside { generation, newest }
    );
    for newest in [(); 3].map(|()| publish_generation(&host)) {
        assert!(worker.poll().unwrap().generation() < newest);
    }
    let newest = generation + 3;
    let nested = worker.enter().unwrap();
    assert_eq!(
        worker.poll().unwrap(),
        Polled::Inside { generation, newest }
    );
    assert_eq!(worker.stats().applied, generation, "nothing is applied");
    assert_eq!(f.call(&nested, 0), generation.cast_signed());
    // Another thread of the worker is not inside: it applies what is new, and this one stays where it is.
    let other = std::thread::scope(|scope| scope.spawn(|| worker.poll().unwrap()).join().unwrap());
    assert_eq!(other, Polled::Applied { generation: newest });
    assert_eq!(
        worker.poll().unwrap(),
        Polled::Inside { generation, newest }
    );
    assert_eq!(f.call(&nested, 0), generation.cast_signed());
    drop((nested, guard));
    assert_eq!(
        worker.poll().unwrap(),
        Polled::Current { generation: newest }
    );
    assert_eq!(call(&worker, "f", 0), newest.cast_signed());
}

/// More generations than a worker keeps apart: it stays where it is, and goes on when there is room.
#[test]
fn threads_inside_at_too_many_generations_hold_only_their_worker_back() {
    const MANY: usize = 12;
    let _no_forks = no_forks();
    let host = Host::sealed();
    let first = publish_generation(&host);
    let (worker, other) = (attach(&host), attach(&host));
    let f = handle(&worker, "f");
    let [inside, left] = [(); 2].map(|()| Barrier::new(MANY + 1));
    let one_by_one = Barrier::new(2);
    std::thread::scope(|scope| {
        for _ in 0..MANY {
            scope.spawn(|| {
                let guard = worker.enter().unwrap();
                one_by_one.wait();
                inside.wait();
                assert_eq!(f.call(&guard, 0), guard.generation().cast_signed());
                left.wait();
            });
            one_by_one.wait();
            publish_generation(&host);
        }
        inside.wait();
        let newest = first + MANY as u64;
        let guard = worker.enter().unwrap();
        assert!(
            guard.generation() < newest && guard.generation() > first,
            "{guard:?}"
        );
        assert_eq!(f.call(&guard, 0), guard.generation().cast_signed());
        assert_eq!(other.poll().unwrap().generation(), newest);
        drop(guard);
        left.wait();
    });
    let newest = host.compiler.status().generation;
    let guard = worker.enter().unwrap();
    assert_eq!(guard.generation(), newest);
    assert_eq!(f.call(&guard, 0), newest.cast_signed());
}

#[test]
fn threads_that_end_make_room_for_others() {
    const ROUNDS: usize = 400;
    let host = Host::sealed();
    publish_generation(&host);
    let worker = attach(&host);
    let f = handle(&worker, "f");
    for round in 0..ROUNDS {
        if round % 10 == 0 {
            publish_generation(&host);
        }
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let guard = worker.enter().unwrap();
                    assert_eq!(f.call(&guard, 0), guard.generation().cast_signed());
                });
            }
        });
    }
    const { assert!(ROUNDS * 8 > 3 * jitcast::runtime::mailbox::MAX_THREADS as usize) };
    let _no_forks = no_forks();
    await_unpinned(&host);
}

#[test]
fn a_thread_that_is_fetched_once_enters_as_its_worker_does() {
    let _no_forks = no_forks();
    let host = Host::sealed();
    publish_generation(&host);
    let worker = attach(&host);
    let f = handle(&worker, "f");
    let thread = worker.thread().unwrap();
    for _ in 0..3 {
        let new = publish_generation(&host);
        let guard = thread.enter().unwrap();
        assert_eq!(f.call(&guard, 0), new.cast_signed());
        publish_generation(&host);
        // Guards inside of it are of its generation, whichever way they are entered, and left in any order.
        let (by_worker, by_thread) = (worker.enter().unwrap(), thread.enter().unwrap());
        assert_eq!(by_thread.token().depth(), 3);
        drop(guard);
        assert_eq!(f.call(&by_worker, 0), new.cast_signed());
        drop(by_worker);
        assert_eq!(by_thread.generation(), new);
        assert_eq!(by_thread.token().depth(), 1);
    }
    await_unpinned(&host);
}

/// What a thread-local variable does with its guard and its thread when the thread ends.
struct Late {
    thread: Thread<'static>,
    guard: Option<Guard<'static>>,
    found: &'static AtomicU64,
}

impl Drop for Late {
    fn drop(&mut self) {
        let ends = matches!(self.thread.enter(), Err(EnterError::ThreadEnds));
        drop(self.guard.take());
        self.found
            .fetch_add(if ends { 1 } else { 1 << 32 }, Ordering::Relaxed);
    }
}

#[test]
fn thread_local_variables_that_end_after_their_threads_record_are_told_so() {
    use std::cell::RefCell;
    thread_local! {
        static LATE: RefCell<Option<Late>> = const { RefCell::new(None) };
    }
    static FOUND: AtomicU64 = AtomicU64::new(0);
    const ROUNDS: u64 = 2 * jitcast::runtime::mailbox::MAX_THREADS as u64;
    let host = Host::sealed();
    publish_generation(&host);
    // As long as the process.
    let worker: &'static Worker = Box::leak(Box::new(attach(&host)));
    let f = handle(worker, "f");
    for round in 0..ROUNDS {
        let ends = std::thread::spawn(move || {
            LATE.with_borrow_mut(|late| {
                // Registered before the thread's record, and so dropped after it.
                let thread = worker.thread().unwrap();
                let guard = (round % 2 == 0).then(|| thread.enter().unwrap());
                *late = Some(Late {
                    thread,
                    guard,
                    found: &FOUND,
                });
            });
        });
        // Its thread-local data, too, are gone then.
        ends.join().unwrap();
        // The place of that thread is another's.
        let guard = worker.enter().unwrap();
        assert_eq!(f.call(&guard, 0), guard.generation().cast_signed());
    }
    assert_eq!(FOUND.load(Ordering::Relaxed), ROUNDS);
    let _no_forks = no_forks();
    await_unpinned(&host);
}

#[test]
fn a_thread_that_ends_without_leaving_pins_nothing() {
    let _no_forks = no_forks();
    let host = Host::sealed();
    publish_generation(&host);
    let worker = attach(&host);
    let f = handle(&worker, "f");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| std::mem::forget(worker.enter().unwrap()));
        // Its thread-local data, too, are gone then.
        thread.join().unwrap();
    });
    await_unpinned(&host);
    let new = publish_generation(&host);
    assert_eq!(f.call(&worker.enter().unwrap(), 0), new.cast_signed());
}

#[test]
fn one_thread_too_many_is_told_so() {
    const MAX: usize = jitcast::runtime::mailbox::MAX_THREADS as usize;
    let _no_forks = no_forks();
    let host = Host::sealed();
    publish_generation(&host);
    let worker = attach(&host);
    let (inside, end) = (AtomicU64::new(0), AtomicBool::new(false));
    let call_inside = || {
        let guard = worker.enter().unwrap();
        inside.fetch_add(1, Ordering::Relaxed);
        while !end.load(Ordering::Relaxed) {
            std::thread::park_timeout(Duration::from_millis(100));
        }
        call_raw(&guard, worker.symbol(&guard, "f").unwrap().stub.get(), 0)
    };
    let threads: Vec<i64> = std::thread::scope(|scope| {
        let spawn = |_| {
            let builder = std::thread::Builder::new().stack_size(128 << 10);
            builder.spawn_scoped(scope, call_inside).unwrap()
        };
        let threads: Vec<_> = (0..MAX).map(spawn).collect();
        let deadline = Instant::now() + PATIENCE;
        while inside.load(Ordering::Relaxed) < MAX as u64 {
            assert!(Instant::now() < deadline, "{inside:?} inside");
            std::thread::yield_now();
        }
        let refused = worker.enter().map(|guard| guard.generation());
        // Before anything that can panic, or the others would wait for ever.
        end.store(true, Ordering::Relaxed);
        threads.iter().for_each(|thread| thread.thread().unpark());
        assert!(
            matches!(refused, Err(EnterError::TooManyThreads { max }) if max as usize == MAX),
            "{refused:?}"
        );
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let generation = worker.poll().unwrap().generation().cast_signed();
    assert!(threads.iter().all(|number| *number == generation));
}

/// The story: the outer of two guards, dropped first, took the pin along, and nothing held the code under the
/// other.
#[test]
fn guards_left_in_any_order_hold_their_generation_to_the_last() {
    let _no_forks = no_forks();
    let host = Host::sealed();
    let generation = publish_generation(&host);
    let worker = attach(&host);
    let f = handle(&worker, "f");
    for first in 0..3 {
        let mut guards = [(); 3].map(|()| worker.enter().unwrap()).map(Some);
        let generation = guards[0].as_ref().unwrap().generation();
        publish_generation(&host);
        for left in [first, (first + 2) % 3, (first + 1) % 3] {
            for guard in guards.iter().flatten() {
                assert_eq!(guard.generation(), generation);
                assert_eq!(f.call(guard, 0), generation.cast_signed());
            }
            assert_eq!(host.compiler.status().workers[0].pinned, Some(generation));
            guards[left] = None;
        }
        await_unpinned(&host);
    }
    assert_eq!(worker.poll().unwrap().generation(), generation + 3);
}

#[test]
fn a_panic_leaves_the_guards_that_it_passes() {
    let _no_forks = no_forks();
    let host = Host::sealed();
    let generation = publish_generation(&host);
    let worker = attach(&host);
    let panics = || {
        let outer = worker.enter().unwrap();
        let _nested = worker.enter().unwrap();
        std::panic::resume_unwind(Box::new(outer.generation()));
    };
    let thrown = catch_unwind(AssertUnwindSafe(panics)).unwrap_err();
    assert_eq!(thrown.downcast_ref(), Some(&generation));
    await_unpinned(&host);
    let new = publish_generation(&host);
    let guard = worker.enter().unwrap();
    assert_eq!(guard.generation(), new);
    publish_generation(&host);
    catch_unwind(AssertUnwindSafe(panics)).unwrap_err();
    assert_eq!(
        guard.generation(),
        new,
        "what was entered before is still held"
    );
    assert_eq!(call(&worker, "f", 0), new.cast_signed());
}

static CALLBACK_WORKER: std::sync::OnceLock<(Worker, Host)> = std::sync::OnceLock::new();

/// A host's function that enters, publishes, panics, and keeps that to itself.
extern "C" fn callback(x: i64) -> i64 {
    let (worker, host) = CALLBACK_WORKER.get().unwrap();
    let inside = || {
        let nested = worker.enter().unwrap();
        publish_generation(host);
        std::panic::resume_unwind(Box::new(nested.generation()));
    };
    let thrown = catch_unwind(AssertUnwindSafe(inside)).unwrap_err();
    let generation = thrown.downcast::<u64>().unwrap().cast_signed();
    x + generation
}

#[test]
fn a_panic_inside_a_callback_leaves_the_callers_guard_alone() {
    if !require::cc() {
        return;
    }
    let _no_forks = no_forks();
    let host = Host::sealed();
    publish_generation(&host);
    let source = "long jitcast_test_callback(long); long f(long);
        long calls_back(long x) { long before = f(0), got = jitcast_test_callback(x);
            return got == before && f(0) == before ? before : -1; }";
    publish(&host, &[c("calls_back", source)]);
    let generation = publish_generation(&host);
    let mut table = HostTable::default();
    let callback = callback as extern "C" fn(i64) -> i64 as *const std::ffi::c_void;
    // SAFETY: the unit above takes the name for a function of a long that returns a long.
    unsafe { table.define_address("jitcast_test_callback", callback) };
    let worker = attach_with(&host, table);
    let (worker, _) = CALLBACK_WORKER.get_or_init(|| (worker, host));
    let guard = worker.enter().unwrap();
    assert_eq!(call(worker, "calls_back", 0), generation.cast_signed());
    assert_eq!(guard.generation(), generation);
    drop(guard);
    assert_eq!(call(worker, "f", 0), generation.cast_signed() + 1);
}

/// Raised when a constructor has begun, when it may end, and when a destructor has run.
static BEGUN: AtomicBool = AtomicBool::new(false);
static MAY_END: AtomicBool = AtomicBool::new(false);
static DESTROYED: AtomicBool = AtomicBool::new(false);

extern "C" fn takes_its_time() {
    BEGUN.store(true, Ordering::Release);
    let deadline = Instant::now() + PATIENCE;
    while !MAY_END.load(Ordering::Acquire) && Instant::now() < deadline {
        std::thread::yield_now();
    }
}

extern "C" fn destroyed() {
    DESTROYED.store(true, Ordering::Release);
}

#[test]
fn a_constructor_that_takes_its_time_keeps_nobody() {
    if !require::cc() {
        return;
    }
    let _no_forks = no_forks();
    let host = Host::sealed();
    let old = publish_generation(&host);
    let mut table = HostTable::default();
    for (name, function) in [
        (
            "jitcast_test_takes_its_time",
            takes_its_time as extern "C" fn(),
        ),
        ("jitcast_test_destroyed", destroyed),
    ] {
        // SAFETY: the unit below takes the names for functions without arguments and results.
        unsafe { table.define_address(name, function as *const std::ffi::c_void) };
    }
    let worker = attach_with(&host, table);
    let f = handle(&worker, "f");
    let source = "void jitcast_test_takes_its_time(void), jitcast_test_destroyed(void);
        __attribute__((constructor)) static void begin(void) { jitcast_test_takes_its_time(); }
        __attribute__((destructor)) static void end(void) { jitcast_test_destroyed(); }
        long slow(long x) { return x; }";
    let replaced = c("slow", "long slow(long x) { return x + 1; }");
    std::thread::scope(|scope| {
        publish(&host, &[c("slow", source)]);
        let starts = scope.spawn(|| worker.poll().unwrap().generation());
        let deadline = Instant::now() + PATIENCE;
        while !BEGUN.load(Ordering::Acquire) {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        // Threads that are known, and one that is not yet.
        for thread in 0..3 {
            let call = || {
                let guard = worker.enter().unwrap();
                assert_eq!(guard.generation(), old);
                assert_eq!(f.call(&guard, 0), old.cast_signed());
            };
            match thread {
                0 => drop(scope.spawn(call).join()),
                _ => call(),
            }
        }
        let stays = worker.enter().unwrap();
        MAY_END.store(true, Ordering::Release);
        let new = starts.join().unwrap();
        assert_eq!(new, old + 1);
        assert_eq!(f.call(&stays, 0), old.cast_signed());
        drop(stays);
    });
    // Retired while a thread is inside: the destructor runs when that has left.
    let stays = worker.enter().unwrap();
    std::thread::scope(|scope| {
        publish(&host, &[replaced]);
        let newest = scope.spawn(|| call(&worker, "slow", 0)).join().unwrap();
        assert_eq!(newest, 1);
        assert!(
            !DESTROYED.load(Ordering::Acquire),
            "under a thread that may be inside it"
        );
        assert_eq!(call(&worker, "slow", 0), 0);
    });
    drop(stays);
    assert!(DESTROYED.load(Ordering::Acquire));
    assert_eq!(call(&worker, "slow", 0), 1);
}

static JUMPING_WORKER: std::sync::OnceLock<Worker> = std::sync::OnceLock::new();

/// A host's function that enters, and calls what jumps over it.
extern "C" fn enter_again() {
    let worker = JUMPING_WORKER.get().unwrap();
    let guard = worker.enter().unwrap();
    let stub = worker.symbol(&guard, "leaves").unwrap().stub.get();
    // Nothing of this frame is left to be dropped: it is jumped over.
    std::mem::forget(guard);
    let function = core::ptr::with_exposed_provenance::<()>(stub as usize);
    // SAFETY: a published function of this type, and the thread is inside.
    let leaves: Code = unsafe { std::mem::transmute(function) };
    leaves(0);
}

/// The role: published code jumps over a host's function that holds a guard.
fn jump_out(socket: &str) {
    let mut table = HostTable::default();
    let enter_again = enter_again as extern "C" fn() as *const std::ffi::c_void;
    // SAFETY: the unit takes the name for a function without arguments and results.
    unsafe { table.define_address("jitcast_test_enter_again", enter_again) };
    let options = jitcast::worker::WorkerOptions {
        host: table,
        ..Default::default()
    };
    let endpoint = jitcast::worker::Endpoint::Path(socket.as_ref());
    let worker = JUMPING_WORKER.get_or_init(|| Worker::attach(endpoint, options).unwrap());
    for round in 0..3 {
        let outer = worker.enter().unwrap();
        let token = outer.token();
        assert_eq!(call(worker, "jumps", round), round + 1);
        // SAFETY: the guard that was jumped over is never used again.
        unsafe { worker.unwind(token) };
        assert_eq!(call(worker, "jumps", round), round + 1, "still inside");
        // SAFETY: as above.
        unsafe { worker.unwind(token) };
        drop(outer);
        role::report("left");
        role::next_line().unwrap();
    }
}

#[test]
fn a_jump_over_guards_leaves_them() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let source = "#include <setjmp.h>
        static jmp_buf place; void jitcast_test_enter_again(void);
        long jumps(long x) { if (setjmp(place)) return x + 1; jitcast_test_enter_again(); return -1; }
        long leaves(long x) { longjmp(place, 1); }";
    publish(&host, &[c("jumps", source)]);
    let mut worker = role::start(JUMPS, &host.socket);
    for _ in 0..3 {
        assert_eq!(role::next_report(&mut worker), "left");
        await_unpinned(&host);
        publish_generation(&host);
        worker.send("go on");
    }
    worker.finish().succeeded();
}

/// A build with a seeded fault must fail the test above: guards are counted there, not restored.
#[test]
#[cfg(feature = "seeded-faults")]
fn guards_that_are_only_counted_are_noticed() {
    common::fault::is_noticed(
        ("JITCAST_FAULT", "pin-counted"),
        "a_jump_over_guards_leaves_them",
    );
}
