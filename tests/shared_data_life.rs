//! What becomes of shared data when their unit is replaced, tried out, or their compiler process goes on, or ends.

#[path = "publish/canaries.rs"]
mod canaries;
mod common;
#[path = "publish/units.rs"]
mod units;

use std::time::Instant;

use canaries::{abort, begin, promote, workers};
use common::host::Host;
use common::process::{PATIENCE, Process};
use common::remote::{self, Remote};
use common::scratch::Scratch;
use common::serve::Serve;
use common::{require, role};
use jitcast::compiler::{Changeset, PublishError, PublishOptions, Reclaim, UnitSource};
use jitcast::worker::Worker;
use rustix::process::Signal;
use units::{adders, attach, c, call, change_refused, handle, publish, signed};

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(remote::ROLE, remote::play), (COUNTS, count)]);
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

/// A `serve` with a journal, in a scratch folder.
fn serve(scratch: Scratch, options: &[&str]) -> Serve {
    let (socket, journal) = (scratch.path("socket"), scratch.path("journal"));
    let all = [&["--journal", &journal][..], options].concat();
    Serve {
        process: Serve::start_at(&socket, &all),
        socket,
        scratch,
    }
}

/// Kills it and, once it is gone, starts another one.
fn kill_and_restart(killed: Serve, options: &[&str]) -> Serve {
    killed.process.signal(Signal::KILL);
    assert_eq!(killed.process.finish().signal, Some(libc::SIGKILL));
    serve(killed.scratch, options)
}

/// Publishes a file of C.
#[track_caller]
fn publish_file(serve: &Serve, name: &str, source: &str, options: &[&str]) {
    let file = serve.scratch.write(&format!("{name}.c"), source);
    serve
        .publish(&[&[file.as_str()], options].concat())
        .succeeded();
}

const COUNTS: &str = "counts";

/// The role: calls, and looks for its compiler process, as it is told.
fn count(socket: &str) {
    let worker = remote::attach(socket);
    role::report("attached");
    while let Some(line) = role::next_line() {
        match line.split_once(' ') {
            Some((name, argument)) => {
                role::report(call(&worker, name, argument.parse().unwrap()));
            }
            None => {
                worker.tend();
                role::report(worker.is_connected());
            }
        }
    }
}

/// The test's end of it.
struct Counts(Process);

impl Counts {
    fn start(serve: &Serve) -> Self {
        let mut process = role::start(COUNTS, &serve.socket);
        role::next_report(&mut process);
        Self(process)
    }

    #[track_caller]
    fn ask(&mut self, line: &str) -> String {
        self.0.send(line);
        role::next_report(&mut self.0)
    }

    #[track_caller]
    fn await_next_compiler(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        // First it has to notice that the one before is gone.
        for wanted in ["false", "true"] {
            while self.ask("tend") != wanted {
                assert!(Instant::now() < deadline);
            }
        }
    }
}

/// After a restart all workers have one and the same data, from the beginning; one whose thread is inside has the old ones until
/// that has left.
fn start_afresh(options: &[&str]) {
    if !require::cc() {
        return;
    }
    let serve = serve(Scratch::open_to_all(), options);
    publish_file(&serve, "counter", &counter_source(100), &[]);
    let (worker, mut far) = (remote::attach(&serve.socket), Counts::start(&serve));
    let add = handle(&worker, "add");
    assert_eq!(
        [call(&worker, "add", 1), call(&worker, "add", 1)],
        [101, 102]
    );
    assert_eq!(far.ask("add 1"), "103");
    let guard = worker.enter().unwrap();
    let serve = kill_and_restart(serve, options);
    assert_eq!(add.call(&guard, 1), 104);
    far.await_next_compiler();
    assert_eq!(far.ask("add 1"), "101");
    let mut late = Counts::start(&serve);
    assert_eq!(late.ask("add 1"), "102");
    // The thread is inside: what it uses does not change under it.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..1000 {
                worker.tend();
                std::thread::yield_now();
            }
        });
    });
    assert_eq!(add.call(&guard, 1), 105);
    drop(guard);
    let deadline = Instant::now() + PATIENCE;
    while !worker.is_connected() {
        assert!(Instant::now() < deadline);
        worker.tend();
    }
    assert_eq!(call(&worker, "add", 1), 103);
    assert_eq!([far.ask("add 1"), late.ask("add 1")], ["104", "105"]);
    // And so on: kept ones start with what their present version does.
    publish_file(&serve, "counter", &counter_source(2000), &["--keep-data"]);
    assert_eq!(
        [call(&worker, "add", 1), call(&worker, "zero", 2)],
        [106, 6]
    );
    let serve = kill_and_restart(serve, options);
    for counts in [&mut far, &mut late] {
        counts.await_next_compiler();
    }
    assert_eq!([far.ask("add 1"), late.ask("add 1")], ["2001", "2002"]);
    let newest = remote::attach(&serve.socket);
    assert_eq!(
        [call(&newest, "add", 1), call(&newest, "zero", 2)],
        [2003, 3]
    );
    publish_file(&serve, "counter", &counter_source(7), &[]);
    assert_eq!(far.ask("add 1"), "8");
}

#[test]
fn a_restart_starts_them_afresh_for_all_sealed() {
    start_afresh(&[]);
}

#[test]
fn a_restart_starts_them_afresh_for_all_named() {
    let name = format!("shared-life-{}", std::process::id());
    start_afresh(&["--name", &name]);
}
