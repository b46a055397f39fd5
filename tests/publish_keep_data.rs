//! Variables that keep their places and contents when their unit is replaced.

mod common;
#[path = "publish/units.rs"]
mod units;

use common::host::Host;
use common::remote::{self, Remote};
use common::serve::Serve;
use common::{require, role};
use jitcast::compiler::{Changeset, PublishError, PublishOptions, Reclaim, UnitSource};
use units::{adders, attach, c, c_with, call, change_refused, publish};

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

/// A unit of every kind of datum, each reached in every way that the compiler has; `step` tells versions apart.
fn counters(flags: &[&str], step: i64) -> UnitSource {
    let source = format!(
        "long before[3] = {{ 5, 5, 5 }};
        long count = {};
        static long own = 7;
        long zeros[4];
        long *where = &count;
        long f(long x);
        long (*callback)(long) = f;
        static long *pointer = &count;
        long f(long x) {{ return x; }}
        long add(long x) {{ count += {step}; zeros[2] += {step}; own += {step}; before[1]++; return count + x; }}
        long by_pointer(long x) {{ return *pointer + x; }}
        long by_kept_pointer(long x) {{ return *where + x; }}
        long zero(long x) {{ return zeros[x]; }}
        long of_own(long x) {{ return own + x; }}
        long of_before(long x) {{ return before[x]; }}
        long place(long x) {{ return (long)&count + x; }}
        long called(long x) {{ return callback(x); }}",
        100 * step
    );
    let mut unit = c_with("counters", &source, flags);
    unit.signatures = vec![("add".into(), "(i64) -> i64".parse().unwrap())];
    unit
}

const FLAGS: [&[&str]; 4] = [
    &["-O2", "-fPIC", "-fno-plt"],
    &["-O2", "-fPIE"],
    &["-O0", "-fPIC", "-fdata-sections"],
    &["-O2", "-fPIC", "-mcmodel=large"],
];

#[test]
fn variables_keep_places_and_contents_whatever_refers_to_them() {
    if !require::cc() {
        return;
    }
    for flags in FLAGS {
        let host = Host::sealed();
        publish(&host, &[counters(flags, 1)]);
        let reader = "extern long count; long read_it(long x) { return count + x; }
            long *taken = &count; long read_taken(long x) { return *taken + x; }";
        publish(&host, &[c("reader", reader)]);
        let worker = attach(&host);
        let mut remote = Remote::start(&host.socket);
        let place = call(&worker, "place", 0);
        assert_eq!(
            [call(&worker, "add", 0), call(&worker, "add", 0)],
            [101, 102]
        );
        assert_eq!(remote.call("add", 0), "101");
        // Without being asked for, its new place would be refused, since it has a user.
        let moves = units::refused(&host, &[counters(flags, 10)]);
        assert!(matches!(&moves, PublishError::DataMoves { users, .. } if users == &["reader"]));
        assert!(moves.to_string().contains("--keep-data"), "{moves}");
        for (step, total) in [(10, 112), (20, 132), (30, 162)] {
            publish_keeping(&host, &[counters(flags, step)]);
            assert_eq!(call(&worker, "add", 0), total, "{flags:?}");
            assert_eq!(call(&worker, "place", 0), place);
            for other in ["by_pointer", "by_kept_pointer", "read_it", "read_taken"] {
                assert_eq!(call(&worker, other, 0), total, "{other} {flags:?}");
            }
            assert_eq!(
                call(&worker, "of_own", 0),
                7 + step,
                "static data start afresh"
            );
            assert_eq!(call(&worker, "called", 9), 9);
            // Others take what is free.
            publish(&host, &[adders("other", &[("other", step as i32)])]);
        }
        assert_eq!(call(&worker, "zero", 2), 62);
        assert_eq!(call(&worker, "of_before", 1), 10);
        // One that was away for all of that, and one that comes only now.
        assert_eq!(remote.call("add", 0), "131");
        let late = attach(&host);
        assert_eq!(
            call(&late, "read_it", 0),
            3000,
            "what the present version starts with"
        );
        assert_eq!(call(&late, "by_kept_pointer", 0), 3000);
        assert_eq!(call(&late, "add", 0), 3030);
        assert_eq!(
            [call(&late, "of_before", 0), call(&late, "of_before", 1)],
            [5, 6]
        );
        // And again, for those who have had it from a later version.
        publish_keeping(&host, &[counters(flags, 1)]);
        assert_eq!(
            [call(&late, "add", 0), call(&worker, "add", 0)],
            [3031, 163]
        );
        // Only by itself can it start afresh.
        publish(&host, &[counters(flags, 2), c("reader", reader)]);
        assert_eq!(
            [call(&worker, "add", 0), call(&worker, "read_it", 0)],
            [202, 202]
        );
        assert_ne!(call(&worker, "place", 0), place);
    }
}

#[test]
fn another_size_or_alignment_is_refused_and_both_are_named() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    publish(
        &host,
        &[c(
            "u",
            "char pad = 1; char datum[24] = { 1 }; long f(long x) { return datum[x]; }",
        )],
    );
    let longer = c(
        "u",
        "char datum[32] = { 1 }; long f(long x) { return datum[x]; }",
    );
    let error = change_refused(&host, &keeping(&[longer]));
    let PublishError::KeptDiffers {
        symbol, lengths, ..
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!((&**symbol, *lengths), ("datum", (24, 32)));
    assert!(error.to_string().starts_with(
        "`datum` of the unit `u` cannot keep its contents: it has 24 bytes aligned to"
    ));
    // A place for what needs little is none for what needs more, unless it happens to be.
    let host = Host::sealed();
    let flags = ["-O2", "-fPIC", "-fdata-sections"];
    let version = |align: u32, value: i64| {
        let source = format!(
            "_Alignas(16) char a = 1; _Alignas({align}) char datum[32] = {{ {value} }}; long f(long x) {{ return datum[x] + a; }}"
        );
        c_with("u", &source, &flags)
    };
    publish(&host, &[version(1, 1)]);
    let worker = attach(&host);
    let error = change_refused(&host, &keeping(&[version(32, 2)]));
    assert!(
        matches!(
            &error,
            PublishError::KeptDiffers {
                lengths: (32, 32),
                alignments: (1, 32),
                ..
            }
        ),
        "{error}"
    );
    publish_keeping(&host, &[version(1, 3)]);
    assert_eq!(call(&worker, "f", 0), 2);
}

/// What is not writable is the new version's: tables of its functions above all.
#[test]
fn constants_and_tables_are_those_of_the_new_version() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let version = |value: i64| {
        c("u", &format!(
            "static long one(long x) {{ return x + {value}; }}
            long (*const table[1])(long) = {{ one }}; const long constant = {value};
            long f(long x) {{ return table[0](x); }} long g(long x) {{ return *(volatile const long *)&constant + x; }}"
        ))
    };
    publish(&host, &[version(1)]);
    let worker = attach(&host);
    publish_keeping(&host, &[version(2)]);
    assert_eq!([call(&worker, "f", 0), call(&worker, "g", 0)], [2, 2]);
}

/// The story: a version that may be reclaimed took its data along.
#[test]
fn memory_of_reclaimed_versions_comes_back_but_for_what_is_kept() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let version = |value: i64| UnitSource {
        reclaim: Reclaim::Yes,
        ..c(
            "u",
            &format!("long count = 1; long f(long x) {{ return count += {value} + x; }}"),
        )
    };
    publish(&host, &[version(1)]);
    let worker = attach(&host);
    let mut total = 1;
    for step in 1..50 {
        publish_keeping(&host, &[version(step)]);
        total += step;
        assert_eq!(call(&worker, "f", 0), total);
        publish(&host, &[adders("other", &[("other", step as i32)])]);
    }
    let kept = host.compiler.status().kept;
    assert_eq!(
        kept.len(),
        1,
        "the first version, in whose data it lies: {kept:?}"
    );
}

/// Assemblers name what is local by its section and an addend. In a section of its own that is clear; else it could as
/// well mean the end of what lies before.
#[test]
fn what_is_reached_by_its_section_is_refused_unless_it_is_alone_there() {
    if !require::cc() {
        return;
    }
    let version = |step: i64, before: &str| {
        c("u", &format!(
            "__asm__(\".data\\n{before}.globl count\\n.type count, @object\\n.size count, 8\\ncount: .Lalias: .quad 5\\n\"
                \".text\\n.globl f\\n.type f, @function\\nf: add ${step}, .Lalias(%rip)\\nmov .Lalias(%rip), %rax\\nret\\n\");"
        ))
    };
    let host = Host::sealed();
    publish(&host, &[version(1, "")]);
    let worker = attach(&host);
    assert_eq!(call(&worker, "f", 0), 6);
    publish_keeping(&host, &[version(10, "")]);
    assert_eq!(call(&worker, "f", 0), 16);
    let error = change_refused(&host, &keeping(&[version(100, ".quad 0\\n")]));
    let text = error.to_string();
    assert!(
        text.contains("count") && text.contains("by its section"),
        "{text}"
    );
    assert!(text.contains("-fdata-sections"), "{text}");
    assert_eq!(call(&worker, "f", 0), 26);
}

#[test]
fn a_variable_moves_to_another_unit_of_the_batch_with_its_contents() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    publish(
        &host,
        &[c(
            "a",
            "long count = 1; long f(long x) { return count += x; }",
        )],
    );
    let worker = attach(&host);
    assert_eq!(call(&worker, "f", 4), 5);
    let user = c(
        "a",
        "extern long count; long f(long x) { return count += x; }",
    );
    publish_keeping(
        &host,
        &[
            user,
            c("b", "long count = 1; long g(long x) { return count += x; }"),
        ],
    );
    assert_eq!([call(&worker, "f", 10), call(&worker, "g", 100)], [15, 115]);
}

/// The story: a worker that attached after the unit was replaced which had brought a datum of the pool found zeros there.
#[test]
fn late_workers_find_what_is_unique_as_it_starts() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    // What C++ makes of an inline variable.
    let version = |step: i64| {
        c("u", &format!(
            "__asm__(\".section .data.count,\\\"awG\\\",@progbits,count,comdat\\n.weak count\\n.type count, @object\\n\"
                \".size count, 8\\ncount: .quad 5\\n.text\\n\");
            extern long count; long f(long x) {{ return count += {step} + x; }}"
        ))
    };
    publish(&host, &[version(1)]);
    let worker = attach(&host);
    assert_eq!(call(&worker, "f", 0), 6);
    publish(&host, &[version(10)]);
    assert_eq!(call(&worker, "f", 0), 16);
    assert_eq!(call(&attach(&host), "f", 0), 15);
    assert_eq!(call(&worker, "f", 0), 26);
}

#[test]
fn constructors_run_before_and_destructors_after_and_find_what_is_kept() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let version = |number: i64| {
        c("u", &format!(
            "long log = 0; static long seen;
            __attribute__((constructor)) static void up(void) {{ seen = log; log = log * 10 + {number}; }}
            __attribute__((destructor)) static void down(void) {{ log = log * 10 + 9; }}
            long look(long x) {{ return log + x; }} long start(long x) {{ return seen + x; }}"
        ))
    };
    publish(&host, &[version(1)]);
    let worker = attach(&host);
    assert_eq!(call(&worker, "look", 0), 1);
    publish_keeping(&host, &[version(2)]);
    assert_eq!(
        [call(&worker, "look", 0), call(&worker, "start", 0)],
        [129, 1]
    );
}

#[test]
fn the_command_keeps_data_also_when_it_rolls_back() {
    if !require::cc() {
        return;
    }
    let serve = Serve::start(&[]);
    let write = |step: i64| {
        let source = format!("long count = 0; long f(long x) {{ return count += {step} + x; }}\n");
        serve.scratch.write("u.c", source)
    };
    let signature = "--sig=f(long) -> long";
    serve.publish(&[&write(1), signature]).succeeded();
    let mut worker = Remote::start(&serve.socket);
    assert_eq!(worker.call("f", 0), "1");
    serve
        .publish(&[&write(10), signature, "--keep-data"])
        .succeeded();
    assert_eq!(worker.call("f", 0), "11");
    serve.command("rollback", &["--keep-data"]).succeeded();
    assert_eq!(worker.call("f", 0), "12");
    serve.command("rollback", &[]).succeeded();
    assert_eq!(worker.call("f", 0), "10");
    let other = serve
        .scratch
        .write("u.c", "int count; long f(long x) { return count += x; }\n");
    serve.publish(&[&other, "--keep-data"]).refused(&[
        "`count` of the unit `u` cannot keep its contents: it has 8 bytes",
        "the new version 4",
    ]);
}
