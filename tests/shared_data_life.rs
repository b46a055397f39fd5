//! What becomes of shared data when their unit is replaced or tried out, and when the segment goes on in another object.

#[path = "publish/canaries.rs"]
mod canaries;
mod common;
#[path = "publish/units.rs"]
mod units;

use canaries::{abort, begin, promote, workers};
use common::host::Host;
use common::remote::{self, Remote};
use common::{require, role};
use jitcast::compiler::{Changeset, PublishError, PublishOptions, Reclaim, UnitSource};
use jitcast::worker::Worker;
use units::{adders, attach, c, call, change_refused, handle, publish, signed};

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(remote::ROLE, remote::play)]);
}

const KEEP: PublishOptions = PublishOptions {
    leave_traps: false,
    change_signatures: false,
    if_changed: false,
    keep_data: true,
};

fn keeping<'a>(units: &'a [UnitSource]) -> Changeset<'a> {
    Changeset {
        units,
        options: KEEP,
        ..Changeset::default()
    }
}

#[track_caller]
fn publish_keeping(host: &Host, units: &[UnitSource]) {
    let done = host.compiler.change(&keeping(units));
    done.unwrap_or_else(|error| panic!("{error}"));
}

const SHARED: &str = "__attribute__((section(\".jitcast.shared\")))";

/// A counter that starts with `start`, and one more of each worker's own.
fn counter_source(start: i64) -> String {
    format!(
        "#include <stdatomic.h>
        {SHARED} _Atomic long count = {start}; {SHARED} _Atomic long zeros[3];
        static long own = {start};
        long add(long x) {{ own += x; zeros[2] += x; return count += x; }}
        long place(long x) {{ return (long)&count + x; }}
        long zero(long x) {{ return zeros[x]; }}
        long of_own(long x) {{ return own + x; }}"
    )
}

fn counter(start: i64) -> UnitSource {
    signed(
        c("counter", &counter_source(start)),
        &["add", "place", "zero", "of_own"],
    )
}

/// A user of the counter, in another unit.
fn reader() -> UnitSource {
    let source = "extern _Atomic long count; long read_it(long x) { return count + x; }";
    signed(c("reader", source), &["read_it"])
}

/// Where the counter lies in the window, whatever the worker.
fn place(worker: &Worker) -> u64 {
    call(worker, "place", 0).cast_unsigned() - worker.stats().base.get()
}

#[test]
fn a_new_version_starts_afresh_or_keeps_what_there_is() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    publish(&host, &[counter(100), reader()]);
    let (worker, mut remote) = (attach(&host), Remote::start(&host.socket));
    let kept_at = place(&worker);
    assert_eq!(call(&worker, "add", 1), 101);
    assert_eq!(remote.call("add", 1), "102");
    for (round, start) in [(1, 1000), (2, 2000), (3, 3000)] {
        publish_keeping(&host, &[counter(start)]);
        assert_eq!(call(&worker, "add", 1), 101 + 2 * round);
        assert_eq!(remote.call("add", 1), (102 + 2 * round).to_string());
        assert_eq!(call(&worker, "zero", 2), 2 + 2 * round);
        assert_eq!(call(&worker, "read_it", 0), 102 + 2 * round);
        assert_eq!(place(&worker), kept_at);
        // What is each worker's own and static starts afresh.
        assert_eq!(call(&worker, "of_own", 0), start + 1);
        publish(&host, &[adders("other", &[("other", round as i32)])]);
    }
    // One that comes now finds the same, unlike with a worker's own data.
    let mut late = Remote::start(&host.socket);
    assert_eq!(late.call("add", 1), "109");
    assert_eq!(remote.call("read_it", 0), "109");
    // By default it is another one, with the present version's initial bytes, whatever the old one holds.
    publish(&host, &[counter(500), reader()]);
    assert_eq!(call(&worker, "add", 1), 501);
    assert_eq!(remote.call("add", 1), "502");
    assert_eq!(
        [late.call("read_it", 0), late.call("zero", 2)],
        ["502", "2"]
    );
    assert_ne!(place(&worker), kept_at);
}

#[test]
fn what_does_not_fit_cannot_be_kept_and_is_named() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let version = |declaration: &str| {
        let source = format!("{declaration} long f(long x) {{ return datum[0] + x; }}");
        c("u", &source)
    };
    let shared = version(&format!("{SHARED} char datum[24] = {{ 1 }};"));
    let own = version("char datum[24] = { 1 };");
    publish(&host, std::slice::from_ref(&shared));
    let longer = version(&format!("{SHARED} char datum[32] = {{ 1 }};"));
    let error = change_refused(&host, &keeping(&[longer]));
    assert!(
        matches!(&error, PublishError::KeptDiffers { symbol, lengths: (24, 32), .. } if symbol == "datum"),
        "{error}"
    );
    let error = change_refused(&host, &keeping(std::slice::from_ref(&own)));
    assert_eq!(
        error.to_string(),
        "`datum` of the unit `u` cannot keep its contents: it was shared data, one for all workers, and would be each \
         worker's own\n  help: leave it in the section that it was in, or publish without --keep-data, so that it starts afresh"
    );
    publish(&host, &[own]);
    let error = change_refused(&host, &keeping(std::slice::from_ref(&shared)));
    assert!(
        matches!(&error, PublishError::KeptMoves { symbol, was_shared: false, .. } if symbol == "datum"),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains("it was each worker's own, and would be shared data")
    );
    publish(&host, &[shared]);
    assert_eq!(call(&attach(&host), "f", 0), 1);
}

#[test]
fn a_canary_has_its_own_and_keeps_them_when_it_is_promoted() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    publish(&host, &[counter(100)]);
    let mut remotes: Vec<_> = (0..3).map(|_| Remote::start(&host.socket)).collect();
    remotes
        .iter_mut()
        .for_each(|remote| drop(remote.call("add", 1)));
    begin(&host, &[counter(5000)], &workers(2));
    let mut add = |at: usize| remotes[at].call("add", 1);
    assert_eq!([add(0), add(1), add(2)], ["5001", "5002", "104"]);
    promote(&host, "counter");
    assert_eq!([add(2), add(0)], ["5003", "5004"]);
    begin(&host, &[counter(9000)], &workers(1));
    assert_eq!([add(0), add(1)], ["9001", "5005"]);
    abort(&host, "counter");
    assert_eq!([add(0), add(1)], ["5006", "5007"]);
    // Both versions have it together, and so it stays.
    let units = [counter(1)];
    let audience = workers(1);
    let changes = Changeset {
        canary: Some(&audience),
        ..keeping(&units)
    };
    host.compiler.change(&changes).unwrap();
    assert_eq!([add(0), add(1)], ["5008", "5009"]);
    abort(&host, "counter");
    assert_eq!([add(0), add(1)], ["5010", "5011"]);
}

#[test]
fn they_stay_where_they_are_when_the_segment_goes_on_in_another_object() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    publish(&host, &[counter(100)]);
    let (worker, mut remote) = (attach(&host), Remote::start(&host.socket));
    // Somebody who stays inside does not keep his worker from them, nor them from the others.
    let add = handle(&worker, "add");
    let guard = worker.enter().unwrap();
    assert_eq!(add.call(&guard, 1), 101);
    for round in 0..5 {
        host.compiler.renew().unwrap();
        assert_eq!(remote.call("add", 1), (102 + 2 * round).to_string());
        assert_eq!(add.call(&guard, 1), 103 + 2 * round);
    }
    drop(guard);
    assert_eq!(call(&worker, "add", 1), 112);
    publish_keeping(&host, &[counter(7)]);
    assert_eq!(remote.call("add", 1), "113");
    assert_eq!(remote.ask("smaps"), "");
}

/// Going back is a new version like any other: it starts afresh, or, where that is asked for, goes on with what there is.
#[test]
fn a_rollback_starts_afresh_or_goes_on() {
    if !require::cc() {
        return;
    }
    for (options, first) in [(PublishOptions::default(), 101), (KEEP, 14)] {
        let host = Host::sealed();
        let oldest = publish(&host, &[counter(100)]).generation;
        let (worker, mut remote) = (attach(&host), Remote::start(&host.socket));
        assert_eq!(call(&worker, "add", 1), 101);
        publish(&host, &[counter(10)]);
        assert_eq!(remote.call("add", 1), "11");
        publish_keeping(&host, &[counter(7)]);
        assert_eq!([call(&worker, "add", 1), call(&worker, "add", 1)], [12, 13]);
        let done = host.compiler.rollback(Some(oldest), options);
        done.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(remote.call("add", 1), first.to_string());
        assert_eq!(call(&worker, "add", 1), first + 1);
    }
}

/// The story: a renewal frees what was retired, since whoever is inside has the old object; but shared data are in both.
#[test]
fn nobody_is_given_what_a_thread_at_an_older_object_uses() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let version = |name: &str, byte: u8| {
        UnitSource {
        reclaim: Reclaim::Yes,
        ..c(
            name,
            &format!(
                "{SHARED} char {name}_bytes[50000] = {{ [0 ... 49999] = {byte} }};
                long {name}(long x) {{ for (long i = 0; i < 50000; i++) x += {name}_bytes[i] != {byte}; return x; }}"
            ),
        )
    }
    };
    publish(&host, &[version("f", 1)]);
    let worker = attach(&host);
    let f = handle(&worker, "f");
    let guard = worker.enter().unwrap();
    assert_eq!(f.call(&guard, 0), 0);
    publish(&host, &[version("f", 2)]);
    host.compiler.renew().unwrap();
    let refused = (0..100_u8).find_map(|round| {
        let published = host.compiler.publish(&[version("g", round)]);
        assert_eq!(f.call(&guard, 0), 0, "what it was, after {round} more");
        published.err()
    });
    let refused = refused.expect("there is no more room").to_string();
    for part in ["shared data are needed", "worker 1 (pid"] {
        assert!(refused.contains(part), "{refused}");
    }
    drop(guard);
    // A worker that is at an older object holds them too, until it has gone on.
    assert_eq!(call(&worker, "f", 0), 0);
    for round in 0..20 {
        publish(&host, &[version("g", round)]);
        assert_eq!(call(&worker, "g", 0), 0);
        assert_eq!(call(&worker, "f", 0), 0);
    }
}

#[cfg(feature = "seeded-faults")]
#[test]
fn reuse_under_such_a_thread_is_noticed() {
    if !require::cc() {
        return;
    }
    let fault = ("JITCAST_FAULT", "reuse-early");
    common::fault::is_noticed(
        fault,
        "nobody_is_given_what_a_thread_at_an_older_object_uses",
    );
}
