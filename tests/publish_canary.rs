//! Canaries: what a part of the workers runs, until it is promoted or aborted; and what is not to be touched meanwhile.

#[path = "publish/canaries.rs"]
mod canaries;
mod common;
#[path = "publish/units.rs"]
mod units;

use std::ffi::c_void;

use canaries::{abort, attach_labelled, begin, canary, labelled, promote, refused, workers};
use common::host::{Host, clif_unit, object_unit};
use common::scratch::{Scratch, adds};
use common::serve::{Serve, table};
use common::{remote, require, role};
use jitcast::compiler::{Changeset, PublishError, PublishOptions, SymbolUpdate, UnitSource};
use jitcast::worker::{HostTable, LookupError, Worker};
use units::{
    adders, attach, attach_with, c, call, calls, change_refused, handle, publish, try_call,
};

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(remote::ROLE, remote::play)]);
}

fn f(bonus: i32) -> UnitSource {
    adders("f", &[("f", bonus)])
}

/// What each worker gets from `f`, by name, by a handle that it had before, and through another unit.
fn seen(workers: &[&Worker], handles: &[jitcast::worker::Function<units::Code>]) -> Vec<i64> {
    let one = |(worker, handle): (&&Worker, &jitcast::worker::Function<units::Code>)| {
        let named = call(worker, "f", 0);
        let guard = worker.enter().unwrap();
        assert_eq!(handle.call(&guard, 0), named);
        drop(guard);
        assert_eq!(call(worker, "user", 0), named + 1000);
        named
    };
    workers.iter().zip(handles).map(one).collect()
}

#[test]
fn an_audience_is_a_number_of_workers_or_those_with_a_label() {
    let host = Host::sealed();
    publish(&host, &[f(1), clif_unit("user", &calls("user", "f", 1000))]);
    let (first, blue) = (attach(&host), attach_labelled(&host, "blue"));
    let third = attach_labelled(&host, "bluish");
    let all = [&first, &blue, &third];
    let handles = all.map(|worker| handle(worker, "f"));
    let see = || seen(&all, &handles);
    assert_eq!(see(), [1, 1, 1]);
    begin(&host, &[f(2)], &workers(2));
    assert_eq!(see(), [2, 2, 1]);
    abort(&host, "f");
    assert_eq!(see(), [1, 1, 1]);
    let id = begin(&host, &[f(3)], &labelled("blue"));
    assert_eq!(see(), [1, 3, 1]);
    let status = host.compiler.status();
    let [running] = &status.canaries[..] else {
        panic!("one canary: {:?}", status.canaries);
    };
    assert_eq!((running.id, &running.audience), (id, &labelled("blue")));
    assert_eq!(running.units[0].name, "f");
    assert_eq!(running.workers, [blue.stats().number]);
    let inside = |worker: &jitcast::compiler::WorkerStatus| worker.canaries.clone();
    let inside: Vec<_> = status.workers.iter().map(inside).collect();
    assert_eq!(inside, [vec![], vec![id], vec![]]);
    promote(&host, &id.to_string());
    assert_eq!(see(), [3, 3, 3]);
    assert_eq!(host.compiler.status().canaries, []);
    // One that attaches meanwhile asks, too; whoever has gone makes room.
    begin(&host, &[f(4)], &workers(2));
    let late = attach(&host);
    assert_eq!((see(), call(&late, "f", 0)), (vec![4, 4, 3], 3));
    assert_eq!(call(&late, "user", 0), 1003);
}

/// A unit whose functions count its calls, and what its constructors and destructors did.
fn counter(version: i64) -> UnitSource {
    c(
        "counter",
        &format!(
            "extern long begun[], ended[]; static long calls;
            __attribute__((constructor)) static void begin(void) {{ begun[{version}]++; calls = 100; }}
            __attribute__((destructor)) static void end(void) {{ ended[{version}]++; }}
            long counter(long x) {{ return {version} * 1000 + (calls += x); }}"
        ),
    )
}

/// A worker, and what its units count.
struct Counting {
    worker: Worker,
    begun: &'static [i64; 8],
    ended: &'static [i64; 8],
}

impl Counting {
    fn attach(host: &Host) -> Self {
        let [begun, ended]: [&'static mut [i64; 8]; 2] =
            [(); 2].map(|()| Box::leak(Box::new([0; 8])));
        let mut table = HostTable::default();
        let (first, second): (*mut c_void, *mut c_void) =
            ((&raw mut *begun).cast(), (&raw mut *ended).cast());
        for (name, array) in [("begun", first), ("ended", second)] {
            // SAFETY: an array of longs, there for ever, and of the length that the unit takes it for.
            unsafe { table.define_address(name, array) };
        }
        Self {
            worker: attach_with(host, table),
            begun,
            ended,
        }
    }

    fn call(&self, x: i64) -> i64 {
        call(&self.worker, "counter", x)
    }

    /// How often version `version` has begun and ended here.
    fn runs(&self, version: usize) -> (i64, i64) {
        let read = |array: &'static [i64; 8]| {
            // SAFETY: in bounds, and of a live array; what published code of this process stores is seen.
            unsafe { (&raw const array[version]).read_volatile() }
        };
        (read(self.begun), read(self.ended))
    }
}

#[test]
fn promoted_units_go_on_and_aborted_ones_leave_the_base_as_it_was() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    publish(&host, &[counter(1)]);
    let (inside, outside) = (Counting::attach(&host), Counting::attach(&host));
    assert_eq!((inside.call(1), outside.call(2)), (1101, 1102));
    begin(&host, &[counter(2)], &workers(1));
    assert_eq!((inside.call(5), outside.call(5)), (2105, 1107));
    assert_eq!((inside.runs(2), outside.runs(2)), ((1, 0), (0, 0)));
    abort(&host, "counter");
    // What the base had is there; the candidate has ended, where it began.
    assert_eq!((inside.call(1), outside.call(1)), (1102, 1108));
    assert_eq!((inside.runs(2), outside.runs(2)), ((1, 1), (0, 0)));
    assert_eq!((inside.runs(1), outside.runs(1)), ((1, 0), (1, 0)));
    begin(&host, &[counter(3)], &workers(1));
    assert_eq!(inside.call(7), 3107);
    promote(&host, "counter");
    assert_eq!((inside.call(1), outside.call(1)), (3108, 3101));
    for worker in [&inside, &outside] {
        assert_eq!((worker.runs(1), worker.runs(3)), ((1, 1), (1, 0)));
    }
    // And so it goes on: like what was published for all at once.
    publish(&host, &[counter(4)]);
    assert_eq!((inside.call(1), outside.call(1)), (4101, 4101));
    assert_eq!((inside.runs(3), outside.runs(3)), ((1, 1), (1, 1)));
}

#[test]
fn what_a_canary_is_about_is_refused_and_the_rest_goes_on() {
    let host = Host::sealed();
    publish(&host, &[f(1), adders("g", &[("g", 1)])]);
    let inside = attach(&host);
    let outside = attach(&host);
    let id = begin(&host, &[adders("f", &[("f", 2), ("new", 9)])], &workers(1));
    let runs = |error: PublishError| {
        let text = error.to_string();
        assert!(
            matches!(error, PublishError::CanaryRuns { canary, .. } if canary == id),
            "{text}"
        );
        assert!(
            text.contains(&format!("jitcast abort {id}")) && text.contains("`f`"),
            "{text}"
        );
    };
    runs(units::refused(&host, &[f(3)]));
    runs(units::refused(&host, &[adders("other", &[("new", 3)])]));
    runs(refused(&host, &[f(3)], &workers(1)));
    let names = ["f".to_owned()];
    let removal = Changeset {
        removals: &names,
        ..Changeset::default()
    };
    runs(change_refused(&host, &removal));
    let updates = [SymbolUpdate::Quarantine("f".to_owned())];
    runs(change_refused(
        &host,
        &Changeset {
            updates: &updates,
            ..Changeset::default()
        },
    ));
    // Others go on, and refer to it: each worker to what it runs.
    publish(
        &host,
        &[
            adders("g", &[("g", 5)]),
            clif_unit("user", &calls("user", "f", 100)),
        ],
    );
    for (worker, expected) in [(&inside, 102), (&outside, 101)] {
        assert_eq!(
            (call(worker, "user", 0), call(worker, "g", 0)),
            (expected, 5)
        );
    }
    assert_eq!(call(&inside, "new", 0), 9);
    let missing = try_call(&outside, "new", 0).unwrap_err();
    assert!(matches!(missing, LookupError::NotFound { .. }), "{missing}");
    // Two at once, for others.
    let other = begin(&host, &[adders("g", &[("g", 6)])], &workers(2));
    assert_eq!((call(&inside, "g", 0), call(&outside, "g", 0)), (6, 6));
    assert_eq!((call(&inside, "f", 0), call(&outside, "f", 0)), (2, 1));
    promote(&host, &other.to_string());
    abort(&host, &id.to_string());
    assert_eq!((call(&inside, "g", 0), call(&inside, "user", 0)), (6, 101));
    let missing = try_call(&inside, "new", 0).unwrap_err();
    assert!(matches!(missing, LookupError::NotFound { .. }), "{missing}");
    for end in [
        host.compiler.promote("f"),
        host.compiler.abort(&id.to_string()),
    ] {
        assert!(
            matches!(end, Err(PublishError::NoSuchCanary { .. })),
            "{end:?}"
        );
    }
}

#[test]
fn what_cannot_be_a_canary_is_refused() {
    let host = Host::sealed();
    publish(&host, &[f(1), adders("lib", &[("lib", 1), ("helper", 7)])]);
    publish(&host, &[clif_unit("user", &calls("user", "helper", 0))]);
    let no = |error: PublishError, phrase: &str| {
        let text = error.to_string();
        assert!(text.contains(phrase), "`{phrase}` in {text}");
    };
    no(
        refused(&host, &[f(2)], &workers(0)),
        "its audience is empty",
    );
    no(
        refused(&host, &[f(2)], &labelled("")),
        "its audience is empty",
    );
    no(
        refused(&host, &[f(2)], &labelled(&"x".repeat(64))),
        "no worker has such a label",
    );
    no(
        refused(&host, &[adders("lib", &[("lib", 2)])], &workers(1)),
        "`helper`",
    );
    let units = [adders("lib", &[("lib", 2)])];
    let audience = workers(1);
    let with = |options| Changeset {
        options,
        ..canary(&units, &audience)
    };
    let traps = PublishOptions {
        leave_traps: true,
        ..PublishOptions::default()
    };
    no(change_refused(&host, &with(traps)), "--leave-traps");
    let changed = PublishOptions {
        if_changed: true,
        ..PublishOptions::default()
    };
    no(change_refused(&host, &with(changed)), "--if-changed");
    let removals = ["f".to_owned()];
    let removes = Changeset {
        removals: &removals,
        ..canary(&units, &audience)
    };
    no(change_refused(&host, &removes), "nothing else");
    // What was removed under its users is a trap for all.
    let gone = Changeset {
        removals: &["lib".to_owned()],
        options: traps,
        ..Changeset::default()
    };
    host.compiler.change(&gone).unwrap();
    no(
        refused(&host, &[adders("lib", &[("helper", 2)])], &workers(1)),
        "is a trap for them all",
    );
    if require::gxx() {
        let source = "inline long unique = 1; extern \"C\" long f(long x) { return unique += x; }";
        let object = Scratch::new().cplusplus(source, "g++", &["-O2", "-fPIC"]);
        no(
            refused(&host, &[object_unit("f", object)], &workers(1)),
            "one in each process",
        );
    }
}

#[test]
fn data_and_names_that_differ_are_linked_against_by_nobody() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let lib = |text: &str| {
        c(
            "lib",
            &format!("{text} long get(long x) {{ return datum += x; }}"),
        )
    };
    publish(
        &host,
        &[lib("long datum = 1; long gone(long x) { return x + 7; }")],
    );
    let (inside, outside) = (attach(&host), attach(&host));
    assert_eq!((call(&inside, "get", 1), call(&outside, "get", 1)), (2, 2));
    begin(&host, &[lib("long datum = 50;")], &workers(1));
    assert_eq!((call(&inside, "get", 1), call(&outside, "get", 1)), (51, 3));
    let missing = try_call(&inside, "gone", 0).unwrap_err();
    assert!(matches!(missing, LookupError::NotFound { .. }), "{missing}");
    assert_eq!(call(&outside, "gone", 0), 7);
    let reads = c(
        "reads",
        "extern long datum; long reads(long x) { return datum + x; }",
    );
    let calls_gone = clif_unit("calls_gone", &calls("calls_gone", "gone", 0));
    for unit in [reads.clone(), calls_gone] {
        let error = units::refused(&host, &[unit]);
        assert!(
            matches!(error, PublishError::CanaryDiffers { .. }),
            "{error}"
        );
    }
    abort(&host, "lib");
    assert_eq!((call(&inside, "get", 0), call(&inside, "gone", 0)), (2, 7));
    begin(&host, &[lib("long datum = 60;")], &workers(1));
    assert_eq!(call(&inside, "get", 1), 61);
    promote(&host, "lib");
    assert_eq!(
        (call(&inside, "get", 1), call(&outside, "get", 1)),
        (62, 61)
    );
    let missing = try_call(&outside, "gone", 0).unwrap_err();
    assert!(matches!(missing, LookupError::NotFound { .. }), "{missing}");
    publish(&host, &[reads]);
    assert_eq!(
        (call(&inside, "reads", 0), call(&outside, "reads", 0)),
        (62, 61)
    );
}

/// With `--keep-data` both versions have one variable, which others may use all the time; one that attaches late too.
#[test]
fn a_variable_that_is_kept_is_the_same_for_both_versions() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let lib = |step: i64| {
        let text = format!("long datum = 1; long get(long x) {{ return datum += {step} * x; }}");
        c("lib", &text)
    };
    publish(&host, &[lib(1)]);
    publish(
        &host,
        &[c(
            "reads",
            "extern long datum; long reads(long x) { return datum + x; }",
        )],
    );
    let (inside, outside) = (attach(&host), attach(&host));
    let see = |worker: &Worker| (call(worker, "get", 1), call(worker, "reads", 0));
    assert_eq!((see(&inside), see(&outside)), ((2, 2), (2, 2)));
    let moves = refused(&host, &[lib(10)], &workers(1));
    assert!(matches!(moves, PublishError::DataMoves { .. }), "{moves}");
    let (first, audience, keep_data) = (workers(1), labelled("late"), true);
    let options = PublishOptions {
        keep_data,
        ..PublishOptions::default()
    };
    let kept = |units: &[UnitSource], audience| {
        let changes = Changeset {
            options,
            ..canary(units, audience)
        };
        host.compiler
            .change(&changes)
            .unwrap_or_else(|error| panic!("{error}"))
    };
    kept(&[lib(10)], &first);
    assert_eq!((see(&inside), see(&outside)), ((12, 12), (3, 3)));
    // A user that takes its address, while there are two versions.
    publish(
        &host,
        &[c(
            "more",
            "extern long datum; long *at = &datum; long more(long x) { return *at + x; }",
        )],
    );
    assert_eq!(
        (call(&inside, "more", 0), call(&outside, "more", 0)),
        (12, 3)
    );
    abort(&host, "lib");
    assert_eq!((see(&inside), see(&outside)), ((13, 13), (4, 4)));
    kept(&[lib(100)], &audience);
    let late = attach_labelled(&host, "late");
    assert_eq!(see(&late), (101, 101));
    promote(&host, "lib");
    assert_eq!(
        (see(&inside), see(&outside), see(&late)),
        ((113, 113), (104, 104), (201, 201))
    );
    // Those that left the canary out have the variable all the same when the next version takes it over.
    let next = [lib(1000)];
    let changes = Changeset {
        units: &next,
        options,
        ..Changeset::default()
    };
    host.compiler
        .change(&changes)
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((see(&outside), call(&late, "more", 0)), ((1104, 1104), 201));
}

/// The story: a worker that leaves a canary's unit out binds later ones, with higher numbers. When the canary's has become the
/// base, and the next version takes its variable over before the worker looks again, the variable is new to it.
#[test]
fn a_variable_of_a_canary_that_was_left_out_is_not_taken_for_had() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let outside = attach(&host);
    let lib = |step: i64| {
        let text = format!("long datum = 5; long get(long x) {{ return datum += {step} * x; }}");
        c("lib", &text)
    };
    begin(&host, &[lib(1)], &labelled("nobody"));
    publish(
        &host,
        &[c(
            "later",
            "static long n = 1; long later(long x) { return n += x; }",
        )],
    );
    assert_eq!(call(&outside, "later", 1), 2);
    promote(&host, "lib");
    let next = [lib(10)];
    let options = PublishOptions {
        keep_data: true,
        ..PublishOptions::default()
    };
    let changes = Changeset {
        units: &next,
        options,
        ..Changeset::default()
    };
    host.compiler
        .change(&changes)
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(call(&outside, "get", 1), 15);
}

#[test]
fn what_was_promoted_can_be_rolled_back() {
    let host = Host::sealed();
    publish(&host, &[f(1)]);
    let base = host.compiler.status();
    let (inside, outside) = (attach(&host), attach(&host));
    begin(&host, &[f(2)], &workers(1));
    assert_eq!(
        host.compiler.status().history,
        base.history,
        "it is not what is published"
    );
    promote(&host, "f");
    assert_eq!((call(&inside, "f", 0), call(&outside, "f", 0)), (2, 2));
    begin(&host, &[f(3)], &workers(1));
    let refused = host.compiler.rollback(None, PublishOptions::default());
    assert!(
        matches!(refused, Err(PublishError::CanaryRuns { .. })),
        "{refused:?}"
    );
    abort(&host, "f");
    host.compiler
        .rollback(None, PublishOptions::default())
        .unwrap();
    assert_eq!((call(&inside, "f", 0), call(&outside, "f", 0)), (1, 1));
    host.compiler
        .rollback(None, PublishOptions::default())
        .unwrap();
    assert_eq!((call(&inside, "f", 0), call(&outside, "f", 0)), (2, 2));
}

#[test]
fn the_command_begins_shows_and_ends_canaries() {
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 1);
    let file = serve.scratch.write("f.clif", adds("f", 2));
    let begun = serve
        .publish(&[&file, "--canary-label", "blue"])
        .succeeded();
    let id = serve.status().canaries[0].id;
    let said = format!("generation {id}: f\ncanary {id}: for workers labelled `blue`\n");
    assert_eq!(begun.stdout, said);
    let worker = |label: &str| {
        let args = ["--json", "--call", "f(0)", "--label", label];
        let done = serve.command("worker", &args).succeeded();
        common::serve::results(&done.stdout).remove(0)
    };
    assert_eq!((worker("blue"), worker("")), ("2".into(), "1".into()));
    let shown = table(&serve.command("status", &[]).succeeded().stdout);
    let row = [&id.to_string(), "f", "f", "workers labelled `blue`", "-"].map(str::to_owned);
    assert!(shown.contains(&row.to_vec()), "{shown:#?}");
    serve.publish(&[&file]).refused(&[
        "the unit `f` cannot be changed",
        "promote or abort it first",
    ]);
    serve
        .command("promote", &["g"])
        .refused(&["no canary is called `g`"]);
    let done = serve.command("abort", &["f"]).succeeded();
    assert_eq!(done.stdout, format!("generation {}: aborted f\n", id + 1));
    assert_eq!(worker("blue"), "1");
    serve.publish(&[&file, "--canary", "2"]).succeeded();
    let done = serve
        .command("promote", &[&(id + 2).to_string()])
        .succeeded();
    assert_eq!(done.stdout, format!("generation {}: promoted f\n", id + 3));
    assert_eq!(worker(""), "2");
    for wrong in [
        &["--canary", "0"][..],
        &["--canary", "1", "--canary-label", "x"],
        &["--canary", "1", "--if-changed"],
    ] {
        let args: Vec<&str> = [&*file].iter().chain(wrong).copied().collect();
        assert_eq!(serve.publish(&args).code, Some(2), "{wrong:?}");
    }
}
