//! Requests from workers: who asks gets what it asked for, once for all that ask the same; nobody else has anything of it, and it
//! takes no more than it may.

#[path = "requests/asking.rs"]
mod asking;
mod common;
#[path = "publish/units.rs"]
mod units;

use std::time::Duration;

use common::host::{Host, compiles};
use common::process::{PATIENCE, await_some};
use common::scratch::adds;
use common::{remote, role, smaps};
use jitcast::compiler::{CompilerOptions, Policy, RequestLimits, RequestOptions};
use jitcast::runtime::Area;
use jitcast::worker::{LookupError, RequestError, Worker};
use units::{Code, call};

use asking::*;

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(ASKS, asks), (remote::ROLE, remote::play)]);
}

#[test]
fn equal_requests_of_many_workers_are_compiled_once() {
    let host = host();
    let mut askers = [(); 3].map(|()| asker(&host.socket));
    askers.iter_mut().for_each(|asker| asker.send("ask f 5"));
    let names = askers.each_mut().map(role::next_report);
    assert!(names[0].starts_with("sha256:"), "{names:?}");
    assert!(names.iter().all(|name| *name == names[0]), "{names:?}");
    for asker in &mut askers {
        assert_eq!(say(asker, "call 1"), "6");
    }
    let status = host.compiler.status();
    assert_eq!(status.compiled_requests, 1);
    let [unit] = &status.asked[..] else {
        panic!("{status:?}");
    };
    assert_eq!((unit.workers.len(), &unit.name), (3, &names[0]));
    assert!(status.units.is_empty() && status.symbols.is_empty());
    // Another text is another unit.
    assert_ne!(say(&mut askers[0], "ask f 6"), names[0]);
    assert_eq!(say(&mut askers[0], "call 1"), "7");
    assert_eq!(say(&mut askers[1], "call 1"), "6");
    assert_eq!(host.compiler.status().compiled_requests, 2);
}

/// CLIF of a function `f` that calls the published `g` and the host's `labs`, and takes `g`'s address.
const REFERS: &str = "function %f(i64) -> i64 {
    sig0 = (i64) -> i64
    fn0 = %g(i64) -> i64
    fn1 = %labs(i64) -> i64
    fn2 = %own(i64) -> i64
block0(v0: i64):
    v1 = call fn0(v0)
    v2 = call fn1(v1)
    v3 = func_addr.i64 fn0
    v4 = call_indirect sig0, v3(v2)
    v5 = call fn2(v4)
    v6 = func_addr.i64 fn2
    v7 = call_indirect sig0, v6(v5)
    return v7
}
function %own(i64) -> i64 {
block0(v0: i64):
    v2 = iconst.i64 1000
    v1 = iadd v0, v2
    return v1
}
";

#[test]
fn what_was_asked_for_calls_what_is_published_and_what_is_the_hosts_and_sees_swaps() {
    let host = host();
    host.publish("g", &adds("g", -10)).unwrap();
    let worker = units::attach(&host);
    let unit = ask(&worker, REFERS);
    let f = function(&worker, &unit, "f");
    // |3 - 10| - 10 + 2000
    assert_eq!(result(&worker, &f, 3), 1997);
    host.publish("g", &adds("g", -100)).unwrap();
    assert_eq!(result(&worker, &f, 3), 97 - 100 + 2000);
    let own = function(&worker, &unit, "own");
    assert_eq!(result(&worker, &own, 1), 1001);
    let guard = worker.enter().unwrap();
    let wrong = unit.function::<extern "C" fn(f64) -> f64>(&guard, "own");
    assert!(
        matches!(wrong, Err(LookupError::Signature { .. })),
        "{wrong:?}"
    );
    let unknown = unit.function::<Code>(&guard, "h");
    assert!(
        matches!(unknown, Err(LookupError::NotFound { .. })),
        "{unknown:?}"
    );
}

#[test]
fn who_has_not_asked_has_nothing_of_it() {
    let host = host();
    // Private data and cells of its own, and a host symbol that nobody looked up before.
    host.publish("g", &adds("g", 1)).unwrap();
    let (asker, other) = (units::attach(&host), units::attach(&host));
    let private = other.geometry().region(Area::Private);
    let words = |worker: &Worker| {
        let end = worker.window().end(Area::Private);
        let all = (private.start..end).step_by(8);
        let word = |at| {
            let at = jitcast::runtime::SegmentOffset::new(at);
            let word = worker.window().private_word(Area::Private, at);
            word.map_or(0, |word| word.load(std::sync::atomic::Ordering::Relaxed))
        };
        all.map(word).filter(|word| *word != 0).count()
    };
    let text = REFERS.replace("%labs", "%no_such_function_anywhere");
    let before = (words(&other), other.stats());
    let unit = ask(&asker, &text);
    host.publish("late", &adds("late", 1)).unwrap();
    assert_eq!(call(&other, "late", 1), 2);
    // Also where it reads the whole directory.
    let late = units::attach(&host);
    assert!(words(&asker) > 0);
    assert_eq!(words(&other), before.0, "something was bound");
    assert_eq!(words(&late), 0, "something was bound");
    assert_eq!((other.stats().missing, late.stats().missing), (0, 0));
    for worker in [&asker, &other, &late] {
        let guard = worker.enter().unwrap();
        for name in ["f", "own", unit.name(), &format!("{}/f", unit.name())] {
            let found = worker.symbol(&guard, name);
            assert!(
                matches!(found, Err(LookupError::NotFound { .. })),
                "{name}: {found:?}"
            );
        }
    }
    // The one that asked is told what it lacks, and may call the rest.
    let guard = asker.enter().unwrap();
    let lacks = unit.function::<Code>(&guard, "f");
    assert!(
        matches!(lacks, Err(LookupError::MissingImport { .. })),
        "{lacks:?}"
    );
    drop(guard);
    assert_eq!(result(&asker, &function(&asker, &unit, "own"), 1), 1001);
    assert_eq!(smaps::faults(&asker), [""; 0]);
}

#[test]
fn asking_and_publishing_are_two_rights() {
    let mut policy = compiles(RequestLimits::default());
    policy.request = nobody();
    let options = || CompilerOptions::with_window(common::host::WINDOW_BYTES).unwrap();
    let host = Host::with_policy(options(), policy);
    let worker = units::attach(&host);
    let reason = refused(request(&worker, &adds("f", 1)));
    assert!(
        reason.contains("may not request") && reason.contains("--allow-request"),
        "{reason}"
    );
    let files = |name: &str| request_of(name);
    let published = jitcast::compiler::request::publish(connect(&host), &files("f"));
    assert!(published.is_ok(), "{published:?}");
    assert_eq!(call(&worker, "f", 1), 2);
    let mut policy = compiles(RequestLimits::default());
    policy.publish = nobody();
    let host = Host::with_policy(options(), policy);
    let worker = units::attach(&host);
    let f = function(&worker, &ask(&worker, &adds("f", 1)), "f");
    assert_eq!(result(&worker, &f, 1), 2);
    let published = jitcast::compiler::request::publish(connect(&host), &files("f"));
    assert!(
        published
            .unwrap_err()
            .to_string()
            .contains("may not publish")
    );
    // Who has no command compiles nothing.
    let host = Host::sealed();
    let reason = refused(request(&units::attach(&host), &adds("f", 1)));
    assert!(reason.contains("RequestOptions::command"), "{reason}");
}

/// A right that this process does not have.
fn nobody() -> jitcast::compiler::Access {
    jitcast::compiler::Access::nobody()
}

fn connect(host: &Host) -> std::os::unix::net::UnixStream {
    std::os::unix::net::UnixStream::connect(&host.socket).unwrap()
}

fn request_of(name: &str) -> jitcast::compiler::request::PublishRequest {
    use jitcast::compiler::request::{PublishRequest, RequestFile, RequestUnit};
    PublishRequest {
        units: vec![RequestUnit {
            name: name.to_owned(),
            files: vec![RequestFile {
                name: format!("{name}.clif"),
                bytes: adds(name, 1).into_bytes(),
            }],
            signatures: Vec::new(),
            reclaim: jitcast::compiler::Reclaim::Auto,
            link: jitcast::compiler::LinkOptions::default(),
        }],
        ..PublishRequest::default()
    }
}

#[test]
fn what_is_wrong_is_told_to_who_asked_and_to_nobody_else() {
    let limits = RequestLimits {
        text_bytes: 10_000,
        ..RequestLimits::default()
    };
    let host = Host::compiling(limits);
    let (worker, other) = (units::attach(&host), units::attach(&host));
    let f = function(&other, &ask(&other, &adds("f", 1)), "f");
    let names = || asked(&host).into_iter().map(|unit| unit.name);
    let (before, known) = (host.compiler.status(), names().collect::<Vec<_>>());
    let oversized = format!("{}{}", adds("f", 1), " ".repeat(3_000_000));
    let unverified = "function %f(i64) -> i64 {\nblock0(v0: i64):\n    return\n}\n";
    let dup = adds("f", 1).repeat(2);
    let registers = "function %f() -> i32 {\n    fn0 = %atexit(i64) -> i32\nblock0:\n    v0 = iconst.i64 0\n    v1 = call fn0(v0)\n    return v1\n}\n";
    for (text, phrase) in [
        ("", "no function"),
        ("function", "request.clif"),
        ("\u{1F600}", "request.clif"),
        (unverified, "request.clif"),
        (&dup, "`f`"),
        (&oversized, "the limit is 10000"),
        (registers, "registers no handlers"),
    ] {
        let reason = refused(request(&worker, text));
        assert!(reason.contains(phrase), "{phrase}: {reason}");
    }
    let after = host.compiler.status();
    assert_eq!(
        (after.generation, names().collect::<Vec<_>>(), &after.areas),
        (before.generation, known, &before.areas)
    );
    assert_eq!(result(&other, &f, 1), 2);
    // The one that was refused goes on too.
    assert_eq!(
        result(
            &worker,
            &function(&worker, &ask(&worker, &adds("f", 1)), "f"),
            1
        ),
        2
    );
}

/// A server whose command is a shell script.
fn scripted(script: &str, limits: RequestLimits) -> Host {
    let command = ["/bin/sh", "-c", script].map(Into::into).to_vec();
    let policy = Policy {
        requests: RequestOptions {
            command: Some(command),
            limits,
        },
        ..Policy::default()
    };
    Host::with_policy(
        CompilerOptions::with_window(common::host::WINDOW_BYTES).unwrap(),
        policy,
    )
}

#[test]
fn a_command_that_misbehaves_is_ended_and_told_of() {
    let limits = RequestLimits {
        time: PATIENCE,
        cpu: Duration::from_secs(1),
        object_bytes: 100_000,
        ..RequestLimits::default()
    };
    for (script, phrase) in [
        ("sleep 1000", "more than 1 s,"),
        ("while :; do :; done", "1 s of processor time"),
        (
            "while :; do echo 0123456789; done",
            "longer than 100000 bytes",
        ),
        ("kill -9 $$", "did not come to an end"),
        ("echo lost my way >&2; exit 3", "lost my way"),
        ("exit 0", "nothing that can be read"),
        ("echo nonsense", "nothing that can be read"),
        ("true", "nothing that can be read"),
    ] {
        let time = if script.starts_with("sleep") {
            Duration::from_secs(1)
        } else {
            limits.time
        };
        let host = scripted(script, RequestLimits { time, ..limits });
        let worker = units::attach(&host);
        let reason = refused(request(&worker, &adds("f", 1)));
        assert!(reason.contains(phrase), "{script}: {reason}");
        assert_eq!(
            host.publish_adds("f", 1),
            worker.poll().unwrap().generation()
        );
    }
    // What it inherits: three files, no environment, no way to gain rights.
    let script = "ls /proc/self/fd | wc -l >&2; env >&2; grep -E 'NoNewPrivs|SigBlk|SigIgn' /proc/self/status >&2; ulimit -c >&2; exit 1";
    let host = scripted(&format!("PATH=/bin:/usr/bin; {script}"), limits);
    let reason = refused(request(&units::attach(&host), &adds("f", 1)));
    // `ls` has the folder open too.
    for phrase in [
        ": 4\nPWD=/",
        "SigBlk:\t0000000000000000\n",
        "NoNewPrivs:\t1\n0",
    ] {
        assert!(reason.contains(phrase), "{phrase}: {reason}");
    }
    // What whoever started this ignores stays so, but for what Rust does.
    let ignored = reason.split_once("SigIgn:\t").unwrap().1;
    let ignored = u64::from_str_radix(&ignored[..16], 16).unwrap();
    assert_eq!(ignored >> (libc::SIGPIPE - 1) & 1, 0, "{reason}");
}

#[test]
fn a_command_that_cannot_be_started_is_told_of() {
    let folder = common::scratch::Scratch::new();
    let file = folder.write("no program", "");
    for (command, phrase) in [
        (vec!["/nowhere/codegen".into()], "No such file"),
        (vec![file.into()], "Permission denied"),
        (vec!["/bin/\0sh".into()], "nul byte"),
        (Vec::new(), "compiles nothing"),
    ] {
        let policy = Policy {
            requests: RequestOptions {
                command: Some(command),
                ..RequestOptions::default()
            },
            ..Policy::default()
        };
        let options = CompilerOptions::with_window(common::host::WINDOW_BYTES).unwrap();
        let host = Host::with_policy(options, policy);
        let worker = units::attach(&host);
        for _ in 0..3 {
            let reason = refused(request(&worker, &adds("f", 1)));
            assert!(reason.contains(phrase), "{phrase}: {reason}");
        }
        assert_eq!(
            host.publish_adds("f", 1),
            worker.poll().unwrap().generation()
        );
    }
}

#[test]
fn a_text_that_takes_too_much_is_ended_and_others_go_on() {
    let limits = RequestLimits {
        text_bytes: 16 << 20,
        cpu: Duration::from_secs(1),
        children: 2,
        ..RequestLimits::default()
    };
    let host = Host::compiling(limits);
    let (worker, other) = (units::attach(&host), units::attach(&host));
    let mut slow = worker.request(&huge(60_000)).unwrap();
    let f = function(&other, &ask(&other, &adds("f", 1)), "f");
    assert_eq!(result(&other, &f, 1), 2);
    assert!(slow.wait(Some(PATIENCE)));
    let reason = refused(slow.unit(&worker.enter().unwrap()));
    assert!(reason.contains("processor time"), "{reason}");
    let limits = RequestLimits {
        text_bytes: 16 << 20,
        memory_bytes: 96 << 20,
        ..RequestLimits::default()
    };
    let host = Host::compiling(limits);
    let worker = units::attach(&host);
    let reason = refused(request(&worker, &huge(60_000)));
    assert!(reason.contains("with 96 MiB of memory"), "{reason}");
    let f = function(&worker, &ask(&worker, &adds("f", 1)), "f");
    assert_eq!(result(&worker, &f, 1), 2);
}

#[test]
fn overload_is_told_at_once() {
    let limits = RequestLimits {
        queue: 2,
        children: 1,
        in_flight_per_worker: 3,
        ..RequestLimits::default()
    };
    let host = scripted("sleep 1000", limits);
    let (worker, other) = (units::attach(&host), units::attach(&host));
    let mut pending: Vec<_> = (0..4)
        .map(|bonus| {
            let pending = worker.request(&adds("f", bonus)).unwrap();
            if bonus == 0 {
                // It is with the child, so that the queue is empty.
                await_some("a child", || {
                    (host.compiler.status().compiled_requests == 1).then_some(())
                });
            }
            pending
        })
        .collect();
    let mut last = pending.pop().unwrap();
    assert!(last.wait(Some(PATIENCE)));
    let busy = |result| match result {
        Err(RequestError::Busy { reason }) => reason,
        other => panic!("{other:?}"),
    };
    let reason = busy(last.unit(&worker.enter().unwrap()));
    assert!(reason.contains("of this worker"), "{reason}");
    // The same as somebody waits for costs no place in the queue; another does.
    let same = other.request(&adds("f", 2)).unwrap();
    let reason = busy(request(&other, &adds("f", 7)));
    assert!(reason.contains("too many texts"), "{reason}");
    assert!(!same.is_ready() && pending.iter().all(|pending| !pending.is_ready()));
    assert_eq!(
        host.publish_adds("f", 1),
        worker.poll().unwrap().generation()
    );
}

#[test]
fn limits_of_units_hold_for_each_worker() {
    let limits = RequestLimits {
        units_per_worker: 2,
        ..RequestLimits::default()
    };
    let host = Host::compiling(limits);
    let (worker, other) = (units::attach(&host), units::attach(&host));
    let first = ask(&worker, &adds("f", 1));
    let second = ask(&worker, &adds("f", 2));
    let reason = refused(request(&worker, &adds("f", 3)));
    assert!(reason.contains("--request-units"), "{reason}");
    ask(&other, &adds("f", 3));
    drop(first);
    // What was given back leaves room.
    let third = await_some("room", || request(&worker, &adds("f", 4)).ok());
    assert_eq!(result(&worker, &function(&worker, &third, "f"), 1), 5);
    assert_eq!(result(&worker, &function(&worker, &second, "f"), 1), 3);
}

#[cfg(feature = "seeded-faults")]
#[test]
fn requests_compiled_in_the_compiler_process_are_noticed() {
    common::fault::is_noticed(
        ("JITCAST_FAULT", "request-compiled-in-process"),
        "a_command_that_misbehaves_is_ended_and_told_of",
    );
}

#[cfg(feature = "seeded-faults")]
#[test]
fn units_bound_everywhere_are_noticed() {
    common::fault::is_noticed(
        ("JITCAST_FAULT", "bound-everywhere"),
        "who_has_not_asked_has_nothing_of_it",
    );
}
