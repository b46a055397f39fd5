//! Signatures: a published function keeps its own, since units and handles rely on it.

mod common;
#[path = "publish/units.rs"]
mod units;

use common::host::{Host, clif_unit};
use common::scratch::adds;
use common::serve::Serve;
use common::{require, role};
use jitcast::compiler::{Changeset, PublishError, PublishOptions, UnitSource};
use units::{HOLDER, Holder, adders, attach, c_with, call, calls, hold, publish, refused};

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(HOLDER, hold)]);
}

/// `f` of other types.
const WIDER: &str = "function %f(i64, i64) -> i64 {\nblock0(v0: i64, v1: i64):\n    v2 = iadd v0, v1\n    return v2\n}\n";

const FORCED: PublishOptions = PublishOptions {
    leave_traps: false,
    change_signatures: true,
    if_changed: false,
    keep_data: false,
};

#[track_caller]
fn changes(error: &PublishError) -> (&str, &str, &[String]) {
    let PublishError::SignatureChanges {
        was,
        becomes,
        users,
        ..
    } = error
    else {
        panic!("{error}");
    };
    (was, becomes, users)
}

#[test]
fn another_signature_is_refused_and_both_are_shown() {
    let host = Host::sealed();
    host.publish_adds("f", 1);
    let wider = [clif_unit("f", WIDER)];
    let error = refused(&host, &wider);
    let expected = ("(i64) -> i64", "(i64, i64) -> i64", &[][..]);
    assert_eq!(changes(&error), expected, "handles may exist");
    publish(&host, &[clif_unit("user", &calls("user", "f", 100))]);
    let error = refused(&host, &wider);
    assert_eq!(changes(&error).2, ["user"]);
    assert_eq!(
        error.to_string(),
        "`f` of the unit `f` would have the signature (i64, i64) -> i64, but was published as (i64) -> i64, and `user` \
         and maybe hosts use it\n  help: give it another name, or say that its callers are ready for it (publish \
         --change-signature)"
    );
    // In another unit of the batch it is the same function.
    let moved = [clif_unit("g", WIDER), clif_unit("f", &adds("h", 1))];
    assert_eq!(changes(&refused(&host, &moved)).2, ["user"]);
    assert_eq!(call(&attach(&host), "user", 0), 101);
}

#[test]
fn a_forced_change_is_what_lookups_go_by() {
    let host = Host::sealed();
    host.publish_adds("f", 1);
    let worker = attach(&host);
    let guard = worker.enter().unwrap();
    assert!(
        worker
            .function::<extern "C" fn(i64) -> i64>(&guard, "f")
            .is_ok()
    );
    drop(guard);
    let wider = [clif_unit("f", WIDER)];
    let changes = Changeset {
        units: &wider,
        options: FORCED,
        ..Changeset::default()
    };
    host.compiler.change(&changes).unwrap();
    let guard = worker.enter().unwrap();
    let wide = worker
        .function::<extern "C" fn(i64, i64) -> i64>(&guard, "f")
        .unwrap();
    assert_eq!(wide.call(&guard, 40, 2), 42);
    assert!(
        worker
            .function::<extern "C" fn(i64) -> i64>(&guard, "f")
            .is_err()
    );
}

#[test]
fn what_agrees_or_is_unknown_is_no_change() {
    let host = Host::sealed();
    let with = |signature: Option<&str>| {
        let known = signature.map(|text| ("f".to_owned(), text.parse().unwrap()));
        UnitSource {
            signatures: known.into_iter().collect(),
            ..adders("f", &[("f", 1)])
        }
    };
    let versions = [
        Some("(i64) -> i64"),
        Some("(u64) -> i64"),
        Some("(ptr) -> u64"),
        None,
        Some("(i64) -> i64"),
    ];
    for signature in versions {
        publish(&host, &[with(signature)]);
    }
    refused(&host, &[with(Some("(i32) -> i64"))]);
    refused(&host, &[with(Some("(f64) -> i64"))]);
    refused(&host, &[with(Some("(i64) -> void"))]);
}

/// Whoever was linked against a function that went relies on its signature as before.
#[test]
fn an_orphan_comes_back_with_its_signature() {
    let host = Host::sealed();
    publish(
        &host,
        &[
            clif_unit("a", &adds("f", 1)),
            clif_unit("user", &calls("user", "f", 0)),
        ],
    );
    let changes = Changeset {
        removals: &["a".to_owned()],
        options: PublishOptions {
            leave_traps: true,
            ..PublishOptions::default()
        },
        ..Changeset::default()
    };
    host.compiler.change(&changes).unwrap();
    assert_eq!(
        self::changes(&refused(&host, &[clif_unit("b", WIDER)])).2,
        ["user"]
    );
    Holder::start(&host, "user").aborts("handle", &["not published any more"]);
    publish(&host, &[clif_unit("b", &adds("f", 7))]);
    assert_eq!(Holder::start(&host, "user").call("stub"), "8");
}

#[test]
fn the_command_refuses_and_obeys() {
    if !require::cc() {
        return;
    }
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 1);
    let file = serve
        .scratch
        .write("f.c", "long f(long x, long y) { return x * y; }\n");
    serve
        .publish(&[&file])
        .refused(&["`f` of the unit `f` would have", "--change-signature"]);
    serve
        .publish(&[&file, "--change-signature", "--reclaim=no"])
        .succeeded();
    assert_eq!(serve.call("f(6, 7)"), "42");
    let shown = serve.command("status", &[]).succeeded().stdout;
    assert!(shown.contains("kept, as asked"), "{shown}");
    // One that says nothing is taken at its word.
    let plain = c_with("f", "long f(long x) { return x; }", &["-O2", "-fPIC"]);
    serve
        .publish(&[&serve.scratch.write("f.o", &plain.files[0].bytes)])
        .succeeded();
}
