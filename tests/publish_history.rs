//! Going back: what an earlier generation had is published again; and what is published already, not twice.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::sync::{Arc, Barrier};

use common::host::{Host, WINDOW_BYTES, clif_unit};
use common::remote::{self, Remote};
use common::scratch::adds;
use common::serve::{Serve, table};
use common::{require, role};
use jitcast::compiler::{Changeset, CompilerOptions, Publication, PublishError, PublishOptions};
use units::{adders, attach, c, call, calls, publish, published, try_call};

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(remote::ROLE, remote::play)]);
}

#[track_caller]
fn roll_back(host: &Host, to: Option<u64>) -> Publication {
    let done = host.compiler.rollback(to, PublishOptions::default());
    done.unwrap_or_else(|error| panic!("{error}"))
}

/// Asks for a rollback that is refused, and changes nothing.
#[track_caller]
fn rollback_refused(host: &Host, to: Option<u64>) -> PublishError {
    let before = published(host);
    let error = host.compiler.rollback(to, PublishOptions::default());
    assert_eq!(published(host), before);
    error.expect_err("a refusal")
}

#[test]
fn the_latest_publication_is_undone_and_that_too() {
    let host = Host::sealed();
    let worker = attach(&host);
    for bonus in 1..=3 {
        host.publish_adds("f", bonus);
    }
    let newest = host.compiler.status().generation;
    let done = roll_back(&host, None);
    assert_eq!(
        (done.generation, &done.functions[..]),
        (newest + 1, &["f".to_owned()][..])
    );
    assert_eq!(call(&worker, "f", 0), 2);
    roll_back(&host, None);
    assert_eq!(
        call(&worker, "f", 0),
        3,
        "a rollback is a publication like any other"
    );
}

/// Each state that was, with what was published, replaced and removed in between, is had again: whatever its
/// units, in workers that saw it all and in those that come late.
#[test]
fn every_retained_state_comes_back() {
    let host = Host::with(CompilerOptions {
        retain: 10,
        ..CompilerOptions::with_window(WINDOW_BYTES).unwrap()
    });
    let worker = attach(&host);
    let start = publish(&host, &[adders("a", &[("a", 1)]), adders("b", &[("b", 1)])]).generation;
    let replaced = publish(&host, &[adders("a", &[("a", 2), ("more", 7)])]).generation;
    let units = [clif_unit("c", &calls("c", "a", 100))];
    let changes = Changeset {
        units: &units,
        removals: &["b".to_owned()],
        ..Changeset::default()
    };
    let removed = host.compiler.change(&changes).unwrap().generation;
    let states = [
        (start, [Some(1), Some(1), None, None]),
        (replaced, [Some(2), Some(1), None, Some(7)]),
        (removed, [Some(2), None, Some(102), Some(7)]),
    ];
    let seen = |worker: &_| ["a", "b", "c", "more"].map(|name| try_call(worker, name, 0).ok());
    for (generation, expected) in [states[0], states[2], states[1], states[0]] {
        roll_back(&host, Some(generation));
        assert_eq!(seen(&worker), expected, "{generation}");
        assert_eq!(seen(&attach(&host)), expected, "{generation}");
    }
    assert_eq!(host.compiler.status().history.len(), 3 + 4);
}

#[test]
fn a_rollback_is_refused_like_any_publication() {
    let host = Host::sealed();
    let error = rollback_refused(&host, None);
    assert!(matches!(error, PublishError::NothingToRollBack));
    let first = host.publish_adds("f", 1);
    publish(&host, &[adders("g", &[("g", 1)])]);
    publish(&host, &[clif_unit("user", &calls("user", "g", 1))]);
    host.publish_adds("f", 2);
    // The user came between: it goes too.
    for to in [0, first - 2, first + 3, u64::MAX] {
        let error = rollback_refused(&host, Some(to));
        assert!(
            matches!(&error, PublishError::CannotRollBack { oldest, .. } if *oldest == first),
            "{error}"
        );
        assert!(
            error
                .to_string()
                .contains(&format!("from {first} to {}", first + 2)),
            "{error}"
        );
    }
    roll_back(&host, Some(first));
    let names: Vec<_> = host
        .compiler
        .status()
        .units
        .into_iter()
        .map(|unit| unit.name)
        .collect();
    assert_eq!(names, ["f"]);
    for bonus in [1, 2, 1] {
        publish(&host, &[adders("h", &[("h", bonus)])]);
    }
    // `h` is what it was.
    let before_h = host.compiler.status().generation - 2;
    assert!(matches!(
        rollback_refused(&host, Some(before_h)),
        PublishError::NothingToRollBack
    ));
}

#[test]
fn what_a_unit_was_linked_with_comes_back_too() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let worker = attach(&host);
    let text = |value: i64| {
        format!("static long state = {value}; long f(long x) {{ return state++ + x; }}")
    };
    let mut first = c("f", &text(10));
    first.signatures = vec![("f".into(), "(i64) -> i64".parse().unwrap())];
    publish(&host, &[first]);
    let status = published(&host);
    assert_eq!([call(&worker, "f", 0), call(&worker, "f", 0)], [10, 11]);
    publish(&host, &[c("f", &text(500))]);
    assert_eq!(call(&worker, "f", 0), 500);
    roll_back(&host, None);
    assert_eq!(call(&worker, "f", 0), 10, "private data start afresh");
    assert_eq!(published(&host).symbols, status.symbols);
}

#[test]
fn the_same_again_is_linked_again_unless_that_is_not_wanted() {
    let host = Host::sealed();
    let unit = [clif_unit("f", &adds("f", 1)), adders("g", &[("g", 1)])];
    let options = PublishOptions {
        if_changed: true,
        ..PublishOptions::default()
    };
    let changes = Changeset {
        units: &unit,
        options,
        ..Changeset::default()
    };
    let first = host.compiler.change(&changes).unwrap();
    let before = published(&host);
    let again = host.compiler.change(&changes).unwrap();
    assert_eq!(
        (again.generation, &again.functions),
        (first.generation, &first.functions)
    );
    assert_eq!(published(&host), before);
    let mut renamed = unit.clone();
    renamed[0].files[0].name = "other.clif".to_owned();
    let changed = Changeset {
        units: &renamed,
        ..changes
    };
    assert_eq!(
        host.compiler.change(&changed).unwrap().generation,
        first.generation
    );
    assert_eq!(publish(&host, &unit).generation, first.generation + 1);
    // One of two is another: both are linked.
    host.publish_adds("f", 2);
    assert_eq!(
        host.compiler.change(&changes).unwrap().generation,
        first.generation + 3
    );
}

#[test]
fn of_publishers_that_start_together_one_publishes() {
    let host = Host::sealed();
    let compiler = &host.compiler;
    let start = Barrier::new(4);
    let unit = Arc::new([clif_unit("f", &adds("f", 1))]);
    let generations: Vec<u64> = std::thread::scope(|scope| {
        let publisher = || {
            let options = PublishOptions {
                if_changed: true,
                ..PublishOptions::default()
            };
            let changes = Changeset {
                units: &*unit,
                options,
                ..Changeset::default()
            };
            start.wait();
            compiler.change(&changes).unwrap().generation
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(publisher)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let generation = host.compiler.status().generation;
    assert_eq!(generations, [generation; 4]);
    assert_eq!(generation, 3, "the first that units can have");
}

/// A rollback reads its units while others publish, and must not take back what it did not look at.
#[test]
fn rollbacks_and_publications_at_once_are_one_after_the_other() {
    const ROUNDS: u64 = 40;
    let host = Host::with(CompilerOptions {
        retain: 1000,
        ..CompilerOptions::with_window(WINDOW_BYTES).unwrap()
    });
    let base = publish(&host, &[adders("f", &[("f", 0)]), adders("g", &[("g", 0)])]).generation;
    let start = Barrier::new(4);
    std::thread::scope(|scope| {
        for name in ["f", "g"] {
            let (host, start) = (&host, &start);
            scope.spawn(move || {
                start.wait();
                for round in 1..=ROUNDS {
                    publish(host, &[adders(name, &[(name, round as i32)])]);
                }
            });
            scope.spawn(move || {
                start.wait();
                for _ in 0..ROUNDS {
                    roll_back(host, None);
                }
            });
        }
    });
    let status = host.compiler.status();
    assert_eq!(status.generation, base + 4 * ROUNDS);
    // Each of them is an entry of its own that can be undone.
    assert_eq!(status.history.len() as u64, 1 + 4 * ROUNDS);
    roll_back(&host, Some(base));
    let worker = attach(&host);
    assert_eq!([call(&worker, "f", 7), call(&worker, "g", 7)], [7, 7]);
}

#[test]
fn the_command_goes_back_under_a_worker_that_runs() {
    let serve = Serve::start(&["--retain=2"]);
    serve
        .command("rollback", &[])
        .refused(&["nothing is to be rolled back"]);
    for bonus in 1..=4 {
        serve.publish_adds("f", bonus);
    }
    let mut worker = Remote::start(&serve.socket);
    assert_eq!(worker.call("f", 0), "4");
    let history = serve.command("history", &[]).succeeded().stdout;
    let generations: Vec<_> = table(&history)
        .into_iter()
        .skip(1)
        .map(|row| row[0].clone())
        .collect();
    assert_eq!(generations, ["6", "5"]);
    assert!(
        history.contains("generations 4 to 5 can be rolled back to"),
        "{history}"
    );
    serve.command("rollback", &["3"]).refused(&[
        "generation 3 cannot be rolled back to",
        "4 to 5 are retained",
        "--retain",
    ]);
    assert_eq!(
        serve.command("rollback", &["4"]).succeeded().stdout,
        "generation 7: f\n"
    );
    assert_eq!(worker.call("f", 0), "2");
    assert_eq!(
        serve.command("rollback", &[]).succeeded().stdout,
        "generation 8: f\n"
    );
    assert_eq!(worker.call("f", 0), "4");
    let file = serve.scratch.path("f.clif");
    let same = serve.publish(&[&file, "--if-changed"]).succeeded();
    assert_eq!(same.stdout, "generation 8: f\n");
}
