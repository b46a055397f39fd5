//! Quarantine: functions that are not to be reached, and the hosts' fallbacks in their place.

mod common;
#[path = "publish/units.rs"]
mod units;

use common::host::{Host, clif_unit};
use common::object::{Maker, PLUS_ONE};
use common::process::Process;
use common::scratch::adds;
use common::serve::Serve;
use common::{remote, require, role};
use jitcast::compiler::{Changeset, Compiler, PublishError, PublishOptions, SymbolUpdate};
use jitcast::worker::{Function, LookupError, Worker};
use units::{
    Code, HOLDER, Holder, adders, attach, c, call, calls, change_refused, function, handle, hold,
    publish, try_call,
};

/// The role of a worker whose host has a function of its own to fall back to.
const FALLBACK: &str = "has a fallback";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(HOLDER, hold), (FALLBACK, fall_back)]);
}

extern "C" fn minus(x: i64) -> i64 {
    -x
}

fn function_or(worker: &Worker, name: &str) -> Function<Code> {
    let guard = worker.enter().unwrap();
    worker.function_or::<Code>(&guard, name, minus).unwrap()
}

/// The same whatever signature was recorded.
fn function_or_unchecked(worker: &Worker, name: &str) -> Function<Code> {
    let guard = worker.enter().unwrap();
    // SAFETY: every function of these tests takes and returns a long.
    unsafe { worker.function_or_unchecked::<Code>(&guard, name, minus) }.unwrap()
}

fn call_handle(worker: &Worker, handle: &Function<Code>, argument: i64) -> i64 {
    let guard = worker.enter().unwrap();
    handle.call(&guard, argument)
}

/// The role: calls a handle when told.
fn fall_back(target: &str) {
    let (socket, name) = target.split_once(' ').expect("a socket and a name");
    let worker = remote::attach(socket);
    let handle = function_or(&worker, name);
    role::report("ready");
    while role::next_line().is_some() {
        role::report(call_handle(&worker, &handle, 5));
    }
}

/// The test's end of it.
struct Fallback(Process);

impl Fallback {
    fn start(socket: &str, name: &str) -> Self {
        let mut process = role::start(FALLBACK, &format!("{socket} {name}"));
        assert_eq!(role::next_report(&mut process), "ready");
        Self(process)
    }

    #[track_caller]
    fn call(&mut self) -> String {
        self.0.send("call");
        role::next_report(&mut self.0)
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn every_worker_falls_back_until_the_function_is_restored() {
    let host = Host::sealed();
    host.publish_adds("f", 100);
    let mut workers = [(); 2].map(|()| Fallback::start(&host.socket, "f"));
    assert_eq!(workers[0].call(), "105");
    host.compiler.quarantine(&names(&["f"])).unwrap();
    let mut late = Fallback::start(&host.socket, "f");
    // The second one has not looked since: it passes over what was before.
    for worker in workers.iter_mut().chain([&mut late]) {
        assert_eq!(worker.call(), "-5");
    }
    // Whatever is published under the name meanwhile stays where it is.
    host.publish_adds("f", 200);
    assert_eq!(workers[0].call(), "-5");
    host.compiler.remove(&names(&["f"])).unwrap();
    assert_eq!(workers[1].call(), "-5");
    host.publish_adds("f", 300);
    let mut latest = Fallback::start(&host.socket, "f");
    for worker in workers.iter_mut().chain([&mut late, &mut latest]) {
        assert_eq!(worker.call(), "-5");
    }
    let status = host.compiler.status();
    assert_eq!(status.quarantined, ["f"]);
    assert!(status.symbols[0].quarantined);
    host.compiler.restore(&names(&["f"])).unwrap();
    for worker in workers.iter_mut().chain([&mut late, &mut latest]) {
        assert_eq!(worker.call(), "305");
    }
    host.publish_adds("f", 400);
    assert_eq!(workers[0].call(), "405");
    assert!(!host.compiler.status().symbols[0].quarantined);
}

#[test]
fn without_a_fallback_a_call_ends_with_a_message() {
    let host = Host::sealed();
    host.publish_adds("f", 1);
    let [mut by_handle, mut by_stub] = [(); 2].map(|()| Holder::start(&host, "f"));
    assert_eq!([by_handle.call("handle"), by_stub.call("stub")], ["2", "2"]);
    host.compiler.quarantine(&names(&["f"])).unwrap();
    let worker = attach(&host);
    let error = try_call(&worker, "f", 1).unwrap_err();
    assert!(matches!(&error, LookupError::Quarantined { name } if name == "f"));
    assert!(
        error.to_string().contains("\n  help: `jitcast restore f`"),
        "{error}"
    );
    let message = ["a function was called that is quarantined; `jitcast restore` puts it back"];
    by_handle.aborts("handle", &message);
    by_stub.aborts("stub", &message);
}

/// The handle of somebody else's function has to notice, too, although nothing was put into its cell.
#[test]
fn handles_of_several_functions_move_apart() {
    let host = Host::sealed();
    publish(&host, &[adders("u", &[("f", 1), ("g", 2)])]);
    let worker = attach(&host);
    let (f, g) = (handle(&worker, "f"), handle(&worker, "g"));
    let other = function_or_unchecked(&worker, "g");
    host.compiler.quarantine(&names(&["g"])).unwrap();
    assert_eq!(
        [&f, &other].map(|handle| call_handle(&worker, handle, 10)),
        [11, -10]
    );
    publish(&host, &[adders("u", &[("f", 3), ("g", 4)])]);
    assert_eq!(
        [&f, &other].map(|handle| call_handle(&worker, handle, 10)),
        [13, -10]
    );
    host.compiler.restore(&names(&["g"])).unwrap();
    assert_eq!(
        [&f, &g, &other].map(|handle| call_handle(&worker, handle, 10)),
        [13, 14, 14]
    );
}

#[test]
fn a_function_that_units_call_is_quarantined_only_by_force() {
    let host = Host::sealed();
    publish(
        &host,
        &[
            clif_unit("f", &adds("f", 1)),
            clif_unit("user", &calls("user", "f", 10)),
        ],
    );
    let updates = [SymbolUpdate::Quarantine("f".into())];
    let asked = Changeset {
        updates: &updates,
        ..Changeset::default()
    };
    let error = change_refused(&host, &asked);
    assert!(matches!(&error, PublishError::QuarantinedInUse { users, .. } if users == &["user"]));
    assert!(
        error.to_string().contains("since `user` uses it"),
        "{error}"
    );
    let mut caller = Holder::start(&host, "user");
    assert_eq!(caller.call("handle"), "12");
    let options = PublishOptions {
        leave_traps: true,
        ..PublishOptions::default()
    };
    host.compiler
        .change(&Changeset { options, ..asked })
        .unwrap();
    caller.aborts("handle", &["that is quarantined"]);
    host.compiler.restore(&names(&["f"])).unwrap();
    assert_eq!(call(&attach(&host), "user", 0), 11);
}

#[test]
fn a_fallback_serves_until_the_name_is_published() {
    let host = Host::sealed();
    let worker = attach(&host);
    let early = function_or(&worker, "f");
    assert_eq!(call_handle(&worker, &early, 5), -5);
    host.publish_adds("f", 1);
    assert_eq!(call_handle(&worker, &early, 5), 6);
    host.compiler.remove(&names(&["f"])).unwrap();
    assert_eq!(call_handle(&worker, &early, 5), -5);
    // A function of another type is none to fall back from, and none to call.
    let wider = "function %f(i64, i64) -> i64 {\nblock0(v0: i64, v1: i64):\n    return v1\n}\n";
    publish(&host, &[clif_unit("f", wider)]);
    assert_eq!(call_handle(&worker, &early, 5), -5);
    let guard = worker.enter().unwrap();
    let error = worker.function_or::<Code>(&guard, "f", minus).unwrap_err();
    assert!(matches!(error, LookupError::Signature { .. }));
}

#[test]
fn a_fallback_serves_where_the_function_cannot_be_called() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let with = |source: &str| {
        let mut unit = c("u", source);
        unit.signatures = vec![("f".into(), "(i64) -> i64".parse().unwrap())];
        unit
    };
    let worker = attach(&host);
    publish(
        &host,
        &[with(
            "long nowhere(long); long f(long x) { return nowhere(x); }",
        )],
    );
    let handle = function_or(&worker, "f");
    assert_eq!(call_handle(&worker, &handle, 5), -5);
    publish(&host, &[with("long f(long x) { return x + 1; }")]);
    assert_eq!(call_handle(&worker, &handle, 5), 6);
    let fails = "__attribute__((constructor)) static void up(void) { __builtin_trap(); }
        long f(long x) { return x + 2; }";
    publish(&host, &[with(fails)]);
    assert_eq!(call_handle(&worker, &handle, 5), -5);
    publish(&host, &[with("long f(long x) { return x + 3; }")]);
    assert_eq!(call_handle(&worker, &handle, 5), 8);
}

#[test]
fn what_cannot_be_quarantined_or_restored_is_refused() {
    let host = Host::sealed();
    let object = Maker::new()
        .function("f", &PLUS_ONE)
        .read_only("datum", &[7; 8]);
    host.publish_object("u", object.finish());
    for name in ["datum", "nobody"] {
        let updates = [SymbolUpdate::Quarantine(name.into())];
        let error = change_refused(
            &host,
            &Changeset {
                updates: &updates,
                ..Changeset::default()
            },
        );
        assert!(matches!(&error, PublishError::NotAFunction { symbol } if symbol == name));
    }
    let updates = [SymbolUpdate::Restore("f".into())];
    let error = change_refused(
        &host,
        &Changeset {
            updates: &updates,
            ..Changeset::default()
        },
    );
    assert!(matches!(&error, PublishError::NotQuarantined { symbol } if symbol == "f"));
}

/// Updates, units and removals are one publication: no worker sees some of them alone.
#[test]
fn a_batch_of_everything_is_one_generation() {
    let host = Host::sealed();
    let worker = attach(&host);
    publish(
        &host,
        &[
            adders("a", &[("a", 1)]),
            adders("b", &[("b", 1)]),
            adders("c", &[("c", 1)]),
        ],
    );
    let c = function_or_unchecked(&worker, "c");
    let units = [adders("a", &[("a", 2)]), adders("d", &[("d", 2)])];
    let updates = [
        SymbolUpdate::Quarantine("c".into()),
        SymbolUpdate::Quarantine("d".into()),
    ];
    let removals = names(&["b"]);
    let changes = Changeset {
        units: &units,
        removals: &removals,
        updates: &updates,
        ..Changeset::default()
    };
    let done = host.compiler.change(&changes).unwrap();
    assert_eq!(
        (done.generation, done.functions.len(), done.removed.len()),
        (4, 2, 1)
    );
    let guard = worker.enter().unwrap();
    assert_eq!(guard.generation(), 4);
    assert_eq!(c.call(&guard, 7), -7);
    assert_eq!(function(&worker, &guard, "a").unwrap().call(&guard, 0), 2);
    assert!(matches!(
        function(&worker, &guard, "b"),
        Err(LookupError::NotFound { .. })
    ));
    assert!(matches!(
        function(&worker, &guard, "d"),
        Err(LookupError::Quarantined { .. })
    ));
}

#[test]
fn the_command_quarantines_and_restores() {
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 1);
    let mut worker = Fallback::start(&serve.socket, "f");
    assert_eq!(worker.call(), "6");
    let done = serve.command("quarantine", &["f"]).succeeded();
    assert_eq!(done.stdout, "generation 4: quarantined f\n");
    assert_eq!(worker.call(), "-5");
    let shown = serve.command("status", &[]).succeeded().stdout;
    assert!(
        shown.contains("function, quarantined") && shown.contains("quarantined: f\n"),
        "{shown}"
    );
    let refused = serve.command("worker", &["--call", "f(1)"]);
    assert!(
        refused.stderr.contains("`f` is quarantined"),
        "{refused:#?}"
    );
    // A rollback is about units.
    serve.publish_adds("f", 2);
    serve.command("rollback", &[]).succeeded();
    assert_eq!(worker.call(), "-5");
    serve.command("restore", &["f"]).succeeded();
    assert_eq!(worker.call(), "6");
    serve
        .command("restore", &["f"])
        .refused(&["`f` is not quarantined"]);
}

#[test]
fn the_command_publishes_a_batch_as_one() {
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 1);
    serve.publish_adds("old", 1);
    serve.command("quarantine", &["f"]).succeeded();
    let mut worker = Fallback::start(&serve.socket, "f");
    assert_eq!(worker.call(), "-5");
    let write = |name: &str, text: &str| serve.scratch.write(&format!("{name}.clif"), text);
    let [f, g, user] = [
        write("f", &adds("f", 100)),
        write("g", &adds("g", 1)),
        write("user", &calls("user", "g", 7)),
    ];
    let batch = [
        &f,
        "+",
        &g,
        "+",
        &user,
        "--remove=old",
        "--restore=f",
        "--quarantine=user",
    ];
    let done = serve.publish(&batch).succeeded();
    assert_eq!(
        done.stdout,
        "generation 6: f, g, user\ngeneration 6: removed old\n"
    );
    assert_eq!(worker.call(), "105");
    let status = serve.status();
    assert_eq!(status.quarantined, ["user"]);
    assert_eq!(status.units.len(), 3);
    serve
        .publish(&[&f, "+", &g, "--unit=x"])
        .refused(&["--unit names one unit"]);
    serve.publish(&[&f, "+"]).refused(&["a unit without files"]);
}

/// Whoever is inside goes on at its generation; who enters meanwhile falls back.
#[test]
fn a_thread_that_is_inside_finishes_with_what_it_began() {
    let host = Host::sealed();
    host.publish_adds("f", 100);
    let worker = attach(&host);
    let handle = function_or(&worker, "f");
    let guard = worker.enter().unwrap();
    assert_eq!(handle.call(&guard, 5), 105);
    for update in [
        Compiler::quarantine,
        Compiler::restore,
        Compiler::quarantine,
    ] {
        update(&host.compiler, &names(&["f"])).unwrap();
        let quarantined = !host.compiler.status().quarantined.is_empty();
        let expected = if quarantined { -5 } else { 105 };
        let entered = || call_handle(&worker, &handle, 5);
        let other = std::thread::scope(|scope| scope.spawn(entered).join().unwrap());
        assert_eq!(other, expected);
        assert_eq!(handle.call(&guard, 5), 105);
    }
    drop(guard);
    assert_eq!(call_handle(&worker, &handle, 5), -5);
}
