//! How long what workers asked for is there: as long as somebody has it, whatever is published, forked, killed or renewed.

#[path = "requests/asking.rs"]
mod asking;
mod common;
#[path = "publish/units.rs"]
mod units;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::host::{Host, compiles};
use common::process::{PATIENCE, await_some};
use common::scratch::adds;
use common::serve::Serve;
use common::{child, remote, role};
use jitcast::compiler::{Audience, Changeset, CompilerOptions, RequestLimits};
use jitcast::worker::{Function, LookupError, RequestError, Worker};
use rustix::process::{
    Signal, WaitOptions, kill_process, set_parent_process_death_signal, waitpid,
};
use units::{Code, c, call, publish};

use asking::*;

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(ASKS, asks), (remote::ROLE, remote::play)]);
}

#[test]
fn units_go_with_the_last_function_of_the_last_worker_and_their_memory_is_reused() {
    let host = host();
    let (worker, other) = (units::attach(&host), units::attach(&host));
    host.publish_adds("g", 1);
    let mut used = Vec::new();
    for round in 0..120 {
        let text = units::calls("f", "g", round);
        let f = function(&worker, &ask(&worker, &text), "f");
        let same = function(&other, &ask(&other, &text), "f");
        assert_eq!(result(&worker, &f, 1), 2 + round);
        drop(f);
        assert_eq!(result(&other, &same, 1), 2 + round);
        assert_eq!(asked(&host).len(), 1);
        drop(same);
        await_asked(&host, &[&worker, &other], 0);
        // Publishing looks for what can be reused.
        host.publish_adds("g", 1);
        let status = host.compiler.status();
        used.push(units::held_bytes(&status));
    }
    // But for what lies between things that are aligned.
    assert!(
        used.iter().all(|bytes| bytes.abs_diff(used[0]) < 64),
        "{used:?}"
    );
    let extents = |host: &Host| {
        host.compiler
            .status()
            .areas
            .iter()
            .map(|area| area.used_bytes)
            .sum::<u64>()
    };
    assert!(extents(&host) < 2 << 20);
    // A request that nobody waits for any more leaves nothing behind either.
    drop(worker.request(&adds("f", 1)).unwrap());
    await_asked(&host, &[], 1);
    await_some("its end", || {
        worker.tend();
        asked(&host).is_empty().then_some(())
    });
    // Nor does a worker that detaches, whatever its host still holds.
    let f = function(&other, &ask(&other, &adds("f", 1)), "f");
    assert_eq!(asked(&host).len(), 1);
    drop(other);
    await_asked(&host, &[], 0);
    drop(f);
}

#[test]
fn units_of_a_killed_worker_go() {
    let host = host();
    let worker = units::attach(&host);
    for round in 0..30 {
        let mut asker = asker(&host.socket);
        say(&mut asker, &format!("ask f {round}"));
        assert_eq!(asked(&host).len(), 1);
        // One that is on its way, too.
        asker.send(&format!("ask h {round}"));
        asker.signal(Signal::KILL);
        asker.finish();
        await_asked(&host, &[], 0);
        host.publish_adds("g", 1);
        assert_eq!(call(&worker, "g", 1), 2);
    }
    let status = host.compiler.status();
    assert!(units::held_bytes(&status) < 1 << 20, "{status:?}");
}

#[test]
fn what_goes_under_a_unit_takes_it_along_and_keeps_no_publisher() {
    let host = host();
    publish(
        &host,
        &[c(
            "data",
            "long shared = 7; long g(long x) { return x + shared; }",
        )],
    );
    let worker = units::attach(&host);
    let reads = "function %f(i64) -> i64 {
    gv0 = symbol %shared
    fn0 = %g(i64) -> i64
block0(v0: i64):
    v1 = symbol_value.i64 gv0
    v2 = load.i64 v1
    v3 = call fn0(v2)
    return v3
}
";
    let unit = ask(&worker, reads);
    let f = function(&worker, &unit, "f");
    extern "C" fn fallback(x: i64) -> i64 {
        -x
    }
    let guard = worker.enter().unwrap();
    let falls: Function<Code> = unit.function_or(&guard, "f", fallback as Code).unwrap();
    drop(guard);
    assert_eq!(result(&worker, &f, 0), 14);
    // Its memory moves: nobody asks whether that suits the one that asked.
    publish(
        &host,
        &[c(
            "data",
            "long more, shared = 9; long g(long x) { return x - shared; }",
        )],
    );
    let guard = worker.enter().unwrap();
    assert!(matches!(unit.check(&guard), Err(LookupError::Gone { .. })));
    assert_eq!(falls.call(&guard, 5), -5);
    assert!(matches!(
        unit.function::<Code>(&guard, "f"),
        Err(LookupError::Gone { .. })
    ));
    drop(guard);
    // Asked for again, it is what is published now.
    let again = ask(&worker, reads);
    assert_eq!(result(&worker, &function(&worker, &again, "f"), 0), 0);
    // A function that is removed, likewise; a thread that is inside goes on with what there was.
    host.publish_adds("h", 1);
    let unit = ask(&worker, &units::calls("f", "h", 1));
    let f = function(&worker, &unit, "f");
    let guard = worker.enter().unwrap();
    host.compiler.remove(&["h".to_owned()]).unwrap();
    std::thread::scope(|scope| {
        let checks = scope.spawn(|| {
            let guard = worker.enter().unwrap();
            unit.check(&guard).unwrap_err()
        });
        assert!(matches!(checks.join().unwrap(), LookupError::Gone { .. }));
    });
    assert_eq!(f.call(&guard, 1), 3);
    unit.check(&guard).unwrap();
    drop(guard);
    assert_eq!(host.compiler.status().traps, []);
}

/// A canary leaves what was asked for alone as long as it runs, and when it is aborted; when it is promoted, what refers to the
/// data that it replaces goes.
#[test]
fn a_canary_that_is_promoted_takes_along_what_refers_to_the_data_that_it_replaces() {
    let host = host();
    let version = |text: &str| {
        c(
            "data",
            &format!("{text} long g(long x) {{ return x + shared; }}"),
        )
    };
    publish(&host, &[version("long shared = 7;")]);
    let worker = units::attach(&host);
    let reads = "function %f(i64) -> i64 {
    gv0 = symbol %shared
block0(v0: i64):
    v1 = symbol_value.i64 gv0
    v2 = load.i64 v1
    return v2
}
";
    let unit = ask(&worker, reads);
    let f = function(&worker, &unit, "f");
    let audience = Audience::Label("nobody".to_owned());
    let next = [version("long more[3], shared = 9;")];
    let begin = || {
        let changes = Changeset {
            units: &next,
            canary: Some(&audience),
            ..Changeset::default()
        };
        let begun = host.compiler.change(&changes);
        begun.unwrap_or_else(|error| panic!("{error}"));
    };
    begin();
    assert_eq!(result(&worker, &f, 0), 7);
    host.compiler.abort("data").unwrap();
    assert_eq!(result(&worker, &f, 0), 7);
    begin();
    host.compiler.promote("data").unwrap();
    let guard = worker.enter().unwrap();
    assert!(matches!(unit.check(&guard), Err(LookupError::Gone { .. })));
    drop(guard);
    let again = ask(&worker, reads);
    assert_eq!(result(&worker, &function(&worker, &again, "f"), 0), 9);
}

#[test]
fn what_is_published_since_is_what_the_next_one_gets() {
    let host = host();
    let (worker, other) = (units::attach(&host), units::attach(&host));
    let text = units::calls("f", "later", 1);
    let unit = ask(&worker, &text);
    let guard = worker.enter().unwrap();
    let lacks = unit.function::<Code>(&guard, "f");
    assert!(
        matches!(lacks, Err(LookupError::MissingImport { .. })),
        "{lacks:?}"
    );
    drop(guard);
    host.publish_adds("later", 1);
    let newer = ask(&other, &text);
    assert_eq!(newer.name(), unit.name());
    assert_eq!(result(&other, &function(&other, &newer, "f"), 1), 3);
}

#[test]
fn a_child_has_what_its_parent_had_and_not_what_it_waits_for() {
    let host = host();
    let worker = units::attach(&host);
    let unit = ask(&worker, &adds("f", 1));
    let f = function(&worker, &unit, "f");
    let mut pending = worker.request(&adds("h", 2)).unwrap();
    let (mut read, mut write) = std::io::pipe().unwrap();
    // SAFETY: what the child does needs no lock that another thread could hold.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let child = || {
            use std::io::Read;
            drop(write);
            // Until the parent has given it up.
            let mut all = Vec::new();
            read.read_to_end(&mut all).unwrap();
            for _ in 0..50 {
                assert_eq!(result(&worker, &f, 1), 2);
                worker.tend();
            }
            let guard = worker.enter().unwrap();
            assert!(matches!(pending.unit(&guard), Err(RequestError::Forked)));
            drop(guard);
            let own = ask(&worker, &adds("h", 3));
            assert_eq!(result(&worker, &function(&worker, &own, "h"), 1), 4);
            assert_eq!(result(&worker, &f, 1), 2);
        };
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
        // SAFETY: ends the process without running anything of its parent's.
        unsafe { libc::_exit(i32::from(done.is_err())) }
    }
    drop((f, unit));
    assert!(pending.wait(Some(PATIENCE)));
    let h = {
        let guard = worker.enter().unwrap();
        pending.unit(&guard).unwrap()
    };
    assert_eq!(result(&worker, &function(&worker, &h, "h"), 1), 3);
    drop((pending, h));
    // Many publications later the child's is still there.
    for bonus in 0..20 {
        host.publish_adds("g", bonus);
        drop(ask(&worker, &adds("h", 100 + bonus)));
    }
    use std::io::Write;
    write.write_all(b"go").unwrap();
    drop((read, write));
    let mut status = 0;
    // SAFETY: waits for the child that was forked above.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0);
    await_some("the end of all units", || {
        worker.tend();
        asked(&host).is_empty().then_some(())
    });
}

/// A compiler process may be part of a server that forks, at any moment, children that live on.
#[test]
fn children_that_live_on_keep_nobody_from_an_answer() {
    let host = host();
    let worker = units::attach(&host);
    let done = AtomicBool::new(false);
    let children = std::thread::scope(|scope| {
        let forking = scope.spawn(|| {
            let mut children = Vec::new();
            while !done.load(Ordering::Relaxed) && children.len() < 500 {
                children.push(child::fork(|| {
                    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
                    std::thread::sleep(Duration::MAX);
                }));
                std::thread::sleep(Duration::from_millis(1));
            }
            children
        });
        for bonus in 0..20 {
            let f = function(&worker, &ask(&worker, &adds("f", bonus)), "f");
            assert_eq!(result(&worker, &f, 1), 1 + bonus);
        }
        done.store(true, Ordering::Relaxed);
        forking.join().unwrap()
    });
    assert!(children.len() > 20, "{}", children.len());
    for child in children {
        kill_process(child, Signal::KILL).unwrap();
        waitpid(Some(child), WaitOptions::empty()).unwrap();
    }
}

/// Tends a worker until it is connected, or is not.
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
fn a_compiler_process_that_dies_before_it_answers_is_told_of() {
    let serve = Serve::start(&["--request-seconds", "60", "--request-bytes", "16000000"]);
    let worker = remote::attach(&serve.socket);
    let unit = ask(&worker, &adds("f", 1));
    let f = function(&worker, &unit, "f");
    let mut pending = worker.request(&huge(30_000)).unwrap();
    serve.process.signal(Signal::KILL);
    assert!(pending.wait(Some(PATIENCE)));
    let lost = pending.unit(&worker.enter().unwrap());
    assert!(matches!(lost, Err(RequestError::Lost)), "{lost:?}");
    assert!(matches!(
        worker.request(&adds("f", 1)),
        Err(RequestError::NotConnected)
    ));
    assert_eq!(result(&worker, &f, 1), 2);
}

#[test]
fn units_outlive_a_restart_with_a_journal() {
    let scratch = common::scratch::Scratch::open_to_all();
    let (socket, journal) = (scratch.path("socket"), scratch.path("journal"));
    let options = ["--journal", journal.as_str()];
    let process = Serve::start_at(&socket, &options);
    let (worker, other) = (remote::attach(&socket), remote::attach(&socket));
    let unit = ask(&worker, &adds("f", 1));
    let f = function(&worker, &unit, "f");
    let gone = ask(&other, &adds("f", 2));
    process.signal(Signal::KILL);
    process.finish();
    tend_until(&worker, false);
    assert_eq!(result(&worker, &f, 1), 2);
    drop(gone);
    let process = Serve::start_at(&socket, &options);
    tend_until(&worker, true);
    tend_until(&other, true);
    let serve = Serve::adopt_running(process, socket, scratch);
    assert_eq!(result(&worker, &f, 1), 2);
    // The same again is the one that is there.
    let same = ask(&worker, &adds("f", 1));
    assert_eq!(same.name(), unit.name());
    assert_eq!(serve.status().compiled_requests, 0);
    for bonus in 0..20 {
        serve.publish_adds("g", bonus);
    }
    assert_eq!(result(&worker, &f, 1), 2);
    worker.tend();
    assert_eq!(result(&worker, &f, 1), 2);
    let status = serve.status();
    let held = status.asked.iter().filter(|unit| !unit.workers.is_empty());
    assert_eq!(held.count(), 1, "{status:?}");
    drop((f, unit, same));
    await_some("the end of what nobody has", || {
        worker.tend();
        let status = serve.status();
        let none = status.asked.iter().all(|unit| unit.workers.is_empty());
        none.then_some(())
    });
}

#[test]
fn what_a_journal_brought_back_and_nobody_has_goes_after_a_while() {
    let scratch = common::scratch::Scratch::new();
    let options = || CompilerOptions {
        journal: Some(jitcast::compiler::JournalOptions::new(
            scratch.path("journal"),
        )),
        ..CompilerOptions::with_window(common::host::WINDOW_BYTES).unwrap()
    };
    let limits = RequestLimits {
        linger: Duration::from_millis(500),
        ..RequestLimits::default()
    };
    let host = Host::with_policy(options(), compiles(limits));
    let (worker, late) = (units::attach(&host), units::attach(&host));
    let f = function(&worker, &ask(&worker, &adds("f", 1)), "f");
    let g = function(&late, &ask(&late, &adds("f", 2)), "f");
    drop(host);
    tend_until(&worker, false);
    let host = Host::with_policy(options(), compiles(limits));
    assert_eq!(asked(&host).len(), 2);
    await_asked(&host, &[], 0);
    // Nobody could come back: the socket is another. Who is alone goes on.
    assert_eq!((result(&worker, &f, 1), result(&late, &g, 1)), (2, 3));
}

#[test]
fn what_a_worker_has_is_its_own_also_with_another_server() {
    use std::sync::Arc;
    let scratch = common::scratch::Scratch::new();
    let socket = scratch.path("socket");
    let options = CompilerOptions {
        socket: socket.clone(),
        ..CompilerOptions::with_window(common::host::WINDOW_BYTES).unwrap()
    };
    let compiler = Arc::new(jitcast::compiler::Compiler::create(&options).unwrap());
    let limits = RequestLimits {
        linger: Duration::from_secs(2),
        ..RequestLimits::default()
    };
    let serve = || {
        let front = jitcast::compiler::front::Options::default();
        let server = jitcast::compiler::Server::bind(&socket, compiles(limits), front).unwrap();
        let (stop, compiler) = (server.stopper().unwrap(), Arc::clone(&compiler));
        (stop, std::thread::spawn(move || server.run(compiler)))
    };
    let (stop, thread) = serve();
    let (worker, other) = (remote::attach(&socket), remote::attach(&socket));
    let f = function(&worker, &ask(&worker, &adds("f", 1)), "f");
    let late = ask(&other, &adds("g", 1));
    stop.stop();
    thread.join().unwrap().unwrap();
    tend_until(&worker, false);
    let (stop, thread) = serve();
    tend_until(&worker, true);
    worker.tend();
    // The other one does not come: what it alone had is given up.
    await_some("the end of what nobody has", || {
        worker.tend();
        (compiler.status().asked.len() == 1).then_some(())
    });
    assert_eq!(result(&worker, &f, 1), 2);
    // It notices when it comes late.
    tend_until(&other, false);
    tend_until(&other, true);
    let gone = late.check(&other.enter().unwrap());
    assert!(matches!(gone, Err(LookupError::Gone { .. })), "{gone:?}");
    drop(f);
    await_some("the end of all", || {
        worker.tend();
        compiler.status().asked.is_empty().then_some(())
    });
    stop.stop();
    thread.join().unwrap().unwrap();
}

#[test]
fn units_are_there_when_the_segment_goes_on_in_another_object() {
    let host = host();
    host.publish_adds("g", 1);
    let worker = units::attach(&host);
    let f = function(&worker, &ask(&worker, &units::calls("f", "g", 5)), "f");
    for bonus in 1..20 {
        host.compiler.renew().unwrap();
        assert_eq!(result(&worker, &f, 1), 6 + bonus);
        host.publish_adds("g", bonus + 1);
        let other = function(&worker, &ask(&worker, &units::calls("f", "g", bonus)), "f");
        assert_eq!(result(&worker, &other, 1), 2 + 2 * bonus);
        assert_eq!(result(&worker, &f, 1), 7 + bonus);
    }
    await_asked(&host, &[&worker], 1);
}
