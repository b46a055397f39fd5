//! Removal: what goes, what keeps it from going, and what others find in its place.

mod common;
#[path = "publish/units.rs"]
mod units;

use common::host::{Host, clif_unit};
use common::scratch::adds;
use common::serve::Serve;
use common::{require, role};
use jitcast::compiler::{Changeset, PublishError, PublishOptions};
use jitcast::worker::LookupError;
use units::{
    HOLDER, Holder, adders, attach, c, call, calls, change_refused, handle, held_bytes, hold,
    publish, published, try_call,
};

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(HOLDER, hold)]);
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

const TRAPS: PublishOptions = PublishOptions {
    leave_traps: true,
    change_signatures: false,
    if_changed: false,
    keep_data: false,
};

#[test]
fn removed_units_go_as_one_and_give_their_memory_back() {
    let host = Host::sealed();
    let worker = attach(&host);
    publish(&host, &[clif_unit("stays", &adds("stays", 1))]);
    let before = published(&host);
    for _ in 0..3 {
        publish(&host, &[adders("a", &[("f", 1)]), adders("b", &[("g", 2)])]);
        assert_eq!([call(&worker, "f", 0), call(&worker, "g", 0)], [1, 2]);
        let removed = host.compiler.remove(&names(&["a", "b"])).unwrap();
        assert_eq!(removed.removed, ["a", "b"]);
        assert_eq!(removed.functions, [""; 0]);
        for name in ["f", "g"] {
            let error = try_call(&worker, name, 0).unwrap_err();
            assert!(matches!(error, LookupError::NotFound { .. }), "{error}");
        }
        let after = published(&host);
        assert_eq!(after.units, before.units);
        assert_eq!(after.symbols, before.symbols);
        // The ends of tables are rounded up; nothing accumulates.
        assert!(held_bytes(&after) <= held_bytes(&before) + 1024);
    }
    assert_eq!(call(&worker, "stays", 0), 1);
}

#[test]
fn what_others_use_is_removed_only_with_them() {
    let host = Host::sealed();
    let worker = attach(&host);
    let two = adds("f", 1) + &adds("g", 2);
    publish(&host, &[clif_unit("a", &two)]);
    publish(
        &host,
        &[clif_unit(
            "zoe",
            &(calls("zoe", "g", 100) + &calls("z", "f", 0)),
        )],
    );
    publish(&host, &[clif_unit("bob", &calls("bob", "g", 200))]);
    let (a, all) = (names(&["a"]), names(&["a", "bob", "zoe"]));
    let asked = Changeset {
        removals: &a,
        ..Changeset::default()
    };
    let error = change_refused(&host, &asked);
    assert_eq!(
        error.to_string(),
        "the unit `a` cannot be removed: `f` is used by `zoe`; `g` is used by `bob`, `zoe`\n  help: remove or \
         replace its users in the same publication, or let calls of its functions end in a trap (--leave-traps)"
    );
    assert_eq!(call(&worker, "bob", 0), 202);
    // A user that is replaced by a version that does without lets go too.
    let batch = [clif_unit("zoe", &adds("zoe", 5))];
    let removals = names(&["a", "bob"]);
    let changes = Changeset {
        units: &batch,
        removals: &removals,
        ..Changeset::default()
    };
    let done = host.compiler.change(&changes).unwrap();
    assert_eq!(
        (done.functions, done.removed),
        (names(&["zoe"]), removals.clone())
    );
    assert_eq!(call(&worker, "zoe", 0), 5);
    publish(
        &host,
        &[
            clif_unit("a", &two),
            clif_unit("bob", &calls("bob", "g", 7)),
        ],
    );
    assert_eq!(call(&worker, "bob", 0), 9);
    host.compiler.remove(&all).unwrap();
    assert!(host.compiler.status().units.is_empty());
}

#[test]
fn what_is_not_there_or_asked_for_twice_is_refused() {
    let host = Host::sealed();
    publish(&host, &[adders("a", &[("f", 1)])]);
    let unit = [adders("a", &[("f", 2)])];
    for (removals, units, unit) in [
        (names(&["b"]), &[][..], "b"),
        (names(&["a", "a"]), &[], "a"),
        (names(&["a"]), &unit, "a"),
    ] {
        let changes = Changeset {
            units,
            removals: &removals,
            ..Changeset::default()
        };
        let error = change_refused(&host, &changes);
        let named = match &error {
            PublishError::NoSuchUnit { unit } | PublishError::SameUnit { unit } => unit,
            _ => panic!("{error}"),
        };
        assert_eq!(named, unit);
        assert!(error.to_string().contains("\n  help: "), "{error}");
    }
    let nothing = change_refused(&host, &Changeset::default());
    assert!(matches!(nothing, PublishError::Empty));
}

/// Handles, raw addresses and callers of a function that went under them end in a trap, and are bound again when
/// the name is.
#[test]
fn traps_stand_for_a_function_until_its_name_is_published_again() {
    let host = Host::sealed();
    let worker = attach(&host);
    publish(&host, &[clif_unit("a", &adds("f", 1))]);
    publish(&host, &[clif_unit("user", &calls("user", "f", 100))]);
    let stub = {
        let guard = worker.enter().unwrap();
        worker.symbol(&guard, "f").unwrap().stub
    };
    let user = handle(&worker, "user");
    let mut trapped = Holder::start(&host, "user");
    assert_eq!(trapped.call("handle"), "102");
    let a = names(&["a"]);
    let changes = Changeset {
        removals: &a,
        options: TRAPS,
        ..Changeset::default()
    };
    host.compiler.change(&changes).unwrap();
    let [trap] = &host.compiler.status().traps[..] else {
        panic!("one trap");
    };
    assert_eq!(
        (&*trap.symbol, &trap.users[..]),
        ("f", &names(&["user"])[..])
    );
    trapped.aborts(
        "handle",
        &["a function was called that is not published any more"],
    );
    // Others take what is free; the users' cell is not.
    for number in 0..100 {
        host.publish_adds(&format!("other{number}"), 1000);
    }
    // Late workers find the trap too.
    let late = Holder::start(&host, "user");
    late.aborts("stub", &["is not published any more"]);
    publish(&host, &[clif_unit("b", &adds("f", 50))]);
    assert_eq!(host.compiler.status().traps, []);
    let guard = worker.enter().unwrap();
    assert_eq!(user.call(&guard, 0), 150);
    assert_eq!(
        worker.symbol(&guard, "f").unwrap().stub,
        stub,
        "the address stays"
    );
    drop(guard);
    assert_eq!(call(&attach(&host), "user", 0), 150);
    // And the new one cannot go without its user, as before.
    let b = names(&["b"]);
    let error = change_refused(
        &host,
        &Changeset {
            removals: &b,
            ..Changeset::default()
        },
    );
    assert!(matches!(error, PublishError::RemovedInUse { .. }));
}

#[test]
fn a_replacement_may_leave_traps_too_and_the_last_user_takes_them_along() {
    let host = Host::sealed();
    let worker = attach(&host);
    let two = adds("f", 1) + &adds("g", 2);
    publish(
        &host,
        &[
            clif_unit("a", &two),
            clif_unit("user", &calls("user", "g", 100)),
        ],
    );
    let batch = [clif_unit("a", &adds("f", 10))];
    let changes = Changeset {
        units: &batch,
        options: TRAPS,
        ..Changeset::default()
    };
    host.compiler.change(&changes).unwrap();
    assert_eq!(host.compiler.status().traps.len(), 1);
    // As a datum the name would be something else to its user.
    if require::cc() {
        let error = change_refused(
            &host,
            &Changeset {
                units: &[c("d", "long g;")],
                ..Changeset::default()
            },
        );
        assert!(matches!(&error, PublishError::KindChanges { users, .. } if users == &["user"]));
    }
    host.compiler.remove(&names(&["user"])).unwrap();
    assert_eq!(host.compiler.status().traps, []);
    assert_eq!(call(&worker, "f", 0), 10);
    publish(&host, &[adders("g", &[("g", 3)])]);
    assert_eq!(call(&worker, "g", 0), 3);
}

#[test]
fn a_datum_goes_only_with_its_users() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let reader = c(
        "reader",
        "extern long datum; long read_it(long x) { return datum + x; }",
    );
    publish(&host, &[c("data", "long datum = 40;"), reader]);
    let worker = attach(&host);
    assert_eq!(call(&worker, "read_it", 2), 42);
    let data = names(&["data"]);
    let asked = Changeset {
        removals: &data,
        options: TRAPS,
        ..Changeset::default()
    };
    let error = change_refused(&host, &asked);
    assert!(
        error.to_string().contains("`datum` is used by `reader`"),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains("a trap cannot stand for a datum"),
        "{error}"
    );
    host.compiler.remove(&names(&["data", "reader"])).unwrap();
    let status = host.compiler.status();
    assert!(status.units.is_empty() && status.symbols.is_empty());
    let kept: Vec<_> = status.kept.iter().map(|kept| &*kept.unit).collect();
    assert!(
        kept.contains(&"data") && kept.contains(&"reader"),
        "C is kept, as when replaced"
    );
}

#[test]
fn destructors_of_removed_units_run_in_workers_that_had_them() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let source = "extern long marks;
        __attribute__((constructor)) static void up(void) { marks += 1; }
        __attribute__((destructor)) static void down(void) { marks += 100; }
        long f(long x) { return x; }";
    publish(
        &host,
        &[c(
            "marks",
            "long marks; long look(long x) { return marks + x; }",
        )],
    );
    publish(&host, &[c("a", source)]);
    let worker = attach(&host);
    assert_eq!(call(&worker, "look", 0), 1);
    host.compiler.remove(&names(&["a"])).unwrap();
    assert_eq!(call(&worker, "look", 0), 101);
    let late = attach(&host);
    assert_eq!(
        call(&late, "look", 0),
        0,
        "whoever comes later never had it"
    );
}

#[test]
fn the_command_removes_units() {
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 1);
    serve.publish_adds("g", 2);
    let user = serve.scratch.write("user.clif", calls("user", "f", 1));
    serve.publish(&[&user]).succeeded();
    serve.command("remove", &["f"]).refused(&[
        "the unit `f` cannot be removed: `f` is used by `user`",
        "--leave-traps",
    ]);
    let removed = serve
        .command("remove", &["g", "f", "--leave-traps"])
        .succeeded();
    assert_eq!(removed.stdout, "generation 6: removed g, f\n");
    let shown = serve.command("status", &[]).succeeded().stdout;
    assert!(shown.contains("removed function"), "{shown}");
    serve
        .command("remove", &["nobody"])
        .refused(&["no unit is called `nobody`"]);
    let f = serve.scratch.write("f.clif", adds("f", 5));
    let done = serve.publish(&[&f, "--remove", "user"]).succeeded();
    assert_eq!(done.stdout, "generation 7: f\ngeneration 7: removed user\n");
    assert_eq!(serve.call("f(1)"), "6");
}
