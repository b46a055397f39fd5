//! Requests from workers: who asks gets what it asked for, once for all that ask the same; nobody else has anything of it.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::time::{Duration, Instant};

use common::host::{Host, compiles};
use common::process::{PATIENCE, Process, await_some};
use common::scratch::adds;
use common::serve::Serve;
use common::{remote, role, smaps};
use jitcast::compiler::{
    AskedStatus, Audience, Changeset, CompilerOptions, Policy, RequestLimits, RequestOptions,
};
use jitcast::runtime::Area;
use jitcast::worker::{AskedUnit, Function, LookupError, RequestError, Worker};
use rustix::process::Signal;
use units::{Code, c, call, publish};

const ASKS: &str = "asks";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(ASKS, asks), (remote::ROLE, remote::play)]);
}

fn host() -> Host {
    Host::compiling(RequestLimits::default())
}

/// Asks, and waits for the unit.
fn request(worker: &Worker, clif: &str) -> Result<AskedUnit, RequestError> {
    let mut pending = worker.request(clif)?;
    assert!(pending.wait(Some(PATIENCE)), "no answer came");
    let guard = worker.enter().unwrap();
    pending.unit(&guard)
}

#[track_caller]
fn ask(worker: &Worker, clif: &str) -> AskedUnit {
    request(worker, clif).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn function(worker: &Worker, unit: &AskedUnit, name: &str) -> Function<Code> {
    let guard = worker.enter().unwrap();
    let function = unit.function(&guard, name);
    function.unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn result(worker: &Worker, function: &Function<Code>, argument: i64) -> i64 {
    function.call(&worker.enter().unwrap(), argument)
}

/// The reason of a refusal.
#[track_caller]
fn refused(result: Result<AskedUnit, RequestError>) -> String {
    match result {
        Err(RequestError::Refused { reason }) => reason,
        other => panic!("{other:?}"),
    }
}

fn asked(host: &Host) -> Vec<AskedStatus> {
    host.compiler.status().asked
}

#[track_caller]
fn await_asked(host: &Host, count: usize) {
    await_some("another number of asked-for units", || {
        (asked(host).len() == count).then_some(())
    });
}

/// The role: asks for what the test says, and does with it what the test says.
fn asks(target: &str) {
    let worker = remote::attach(target);
    role::report("there");
    let mut unit = None;
    let mut function: Option<Function<Code>> = None;
    while let Some(line) = role::next_line() {
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["ask", name, bonus] => {
                let asked = request(&worker, &adds(name, bonus.parse().unwrap()));
                role::report(
                    asked
                        .as_ref()
                        .map_or_else(ToString::to_string, |unit| unit.name().to_owned()),
                );
                unit = asked.ok();
                function = unit
                    .as_ref()
                    .map(|unit| self::function(&worker, unit, name));
            }
            ["call", argument] => {
                let argument = argument.parse().unwrap();
                role::report(result(&worker, function.as_ref().unwrap(), argument));
            }
            ["drop"] => {
                (unit, function) = (None, None);
                role::report("dropped");
            }
            _ => panic!("unknown command `{line}`"),
        }
    }
    drop((unit, function));
}

fn asker(socket: &str) -> Process {
    let mut process = role::start(ASKS, socket);
    assert_eq!(role::next_report(&mut process), "there");
    process
}

fn say(process: &mut Process, line: &str) -> String {
    process.send(line);
    role::next_report(process)
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
        assert_eq!(host.publish_adds("f", 1), worker.poll().unwrap());
    }
    // What it inherits: three files, no environment, no way to gain rights.
    let script = "ls /proc/self/fd | wc -l >&2; env >&2; grep NoNewPrivs /proc/self/status >&2; ulimit -c >&2; exit 1";
    let host = scripted(&format!("PATH=/bin:/usr/bin; {script}"), limits);
    let reason = refused(request(&units::attach(&host), &adds("f", 1)));
    // `ls` has the folder open too.
    assert!(
        reason.contains(": 4\nPWD=/") && reason.contains("NoNewPrivs:\t1\n0"),
        "{reason}"
    );
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

/// CLIF of a function of so many blocks.
fn huge(blocks: usize) -> String {
    let mut text =
        "function %f(i64) -> i64 {\nblock0(v0: i64):\n    brif v0, block1(v0), block1(v0)\n"
            .to_owned();
    for block in 1..=blocks {
        let next = if block == blocks { 1 } else { block + 1 };
        text += &format!(
            "block{block}(v{block}0: i64):\n    v{block}2 = iconst.i64 {block}\n    v{block}1 = imul v{block}0, v{block}2\n    brif v{block}1, block{next}(v{block}1), block{blocks}(v{block}0)\n"
        );
    }
    text + "}\n"
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
    assert_eq!(host.publish_adds("f", 1), worker.poll().unwrap());
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
        await_asked(&host, 0);
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
    await_asked(&host, 1);
    await_some("its end", || {
        worker.tend();
        asked(&host).is_empty().then_some(())
    });
    // Nor does a worker that detaches, whatever its host still holds.
    let f = function(&other, &ask(&other, &adds("f", 1)), "f");
    assert_eq!(asked(&host).len(), 1);
    drop(other);
    await_asked(&host, 0);
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
        await_asked(&host, 0);
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
    await_asked(&host, 0);
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
    worker.tend();
    await_asked(&host, 1);
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
