//! `jitcast run` as a user sees it: the table, the kinds of files, the exit status.

mod common;

use std::collections::BTreeSet;

use common::object::{Maker, PLUS_ONE};
use common::process::{Finished, Process, Watched, await_some, finish, jitcast};
use common::require;
use common::scratch::{Scratch, adds, example};
use common::serve::table;
use rustix::process::Signal;

/// Runs `files`, then `args`, in one worker; the results of its calls, in their order.
#[track_caller]
fn results(files: &[&str], args: &[&str]) -> Vec<String> {
    let mut command = jitcast(&["run", "--workers", "1"]);
    let done = finish(command.args(files).args(args)).succeeded();
    let table = table(&done.stdout);
    table[1][3..table[1].len() - 3].to_vec()
}

fn run(args: &[&str]) -> Finished {
    finish(jitcast(&["run"]).args(args))
}

#[test]
fn every_worker_of_the_table_has_a_base_of_its_own() {
    let score = example("score.clif");
    let done = run(&[
        &score,
        "--call",
        "score(21)",
        "--call",
        "score(-4)",
        "--workers",
        "4",
    ])
    .succeeded();
    assert_eq!(done.stderr, "");
    let table = table(&done.stdout);
    let columns = [
        "worker",
        "pid",
        "window base",
        "score(21)",
        "score(-4)",
        "published to result",
        "shared",
        "private",
    ];
    assert_eq!(table[0], columns);
    assert_eq!(table.len(), 5, "{table:#?}");
    for (index, row) in table[1..].iter().enumerate() {
        assert_eq!(row[0], (index + 1).to_string());
        assert_eq!(row[3..5], ["42", "-8"]);
        assert!(
            row[5].ends_with('s') && row[6].ends_with(" KiB") && row[7].ends_with(" KiB"),
            "{row:?}"
        );
    }
    for column in [1, 2] {
        let different: BTreeSet<_> = table[1..].iter().map(|row| &row[column]).collect();
        assert_eq!(different.len(), 4, "{table:#?}");
    }
}

#[test]
fn results_of_clif_are_printed_by_their_declared_types() {
    let scratch = Scratch::new();
    let types = scratch.write(
        "types.clif",
        "function %wide(i64) -> i64 { block0(v0: i64): v1 = ineg v0 return v1 }\n\
         function %half(f64) -> f64 { block0(v0: f64): v1 = fadd v0, v0 return v1 }\n\
         function %single(f32) -> f32 { block0(v0: f32): v1 = fadd v0, v0 return v1 }\n\
         function %byte(i8) -> i8 { block0(v0: i8): return v0 }\n\
         function %nothing() { block0: return }\n",
    );
    let calls = [
        ("wide(7)", "-7"),
        ("half(0.25)", "0.5"),
        ("single(1.5)", "3.0"),
        ("byte(200)", "-56"),
        ("byte(200) -> u8", "200"),
        ("nothing()", "()"),
    ];
    let args: Vec<_> = calls
        .iter()
        .flat_map(|(call, _)| ["--call", call])
        .collect();
    assert_eq!(
        results(&[&types], &args),
        calls.map(|(_, result)| result.to_owned())
    );
}

#[test]
fn results_of_c_are_printed_by_the_types_of_the_call_or_of_a_recorded_signature() {
    if !require::cc() {
        return;
    }
    let scratch = Scratch::new();
    let types = scratch.write(
        "types.c",
        "float half(float x) { return x / 2; }\n\
         double fifth(double x) { return x / 5; }\n\
         unsigned char low(long x) { return x; }\n\
         int negative(int x) { return -x; }\n\
         void nothing(void) {}\n",
    );
    let args = [
        "--sig=float half(float)",
        "--sig=negative(i32) -> i32",
        "--call=half(3)",
        "--call=fifth(1.0) -> f64",
        "--call=low(511) -> u8",
        "--call=negative(5)",
        "--call=nothing() -> void",
    ];
    assert_eq!(results(&[&types], &args), ["1.5", "0.2", "255", "-5", "()"]);
}

#[test]
fn six_integers_and_six_floating_point_numbers_are_passed() {
    if !require::cc() {
        return;
    }
    let scratch = Scratch::new();
    let twelve = scratch.write(
        "twelve.c",
        "double twelve(long a, double s, long b, double t, long c, double u,\n\
                       long d, double v, long e, double w, long f, double x)\n\
         { return a + 2*b + 3*c + 4*d + 5*e + 6*f + 7*s + 8*t + 9*u + 10*v + 11*w + 12*x; }\n",
    );
    let call = "--call=twelve(1, 0.5, 2, 1.5, 3, 2.5, 4, 3.5, 5, 4.5, 6, 5.5) -> f64";
    assert_eq!(results(&[&twelve], &[call]), ["279.5"]);
}

#[test]
fn an_object_that_no_compiler_made_runs() {
    let scratch = Scratch::new();
    let object = Maker::new().function("plus_one", &PLUS_ONE).finish();
    let file = scratch.write("plus_one.o", object);
    assert_eq!(results(&[&file], &["--call=plus_one(41) -> i64"]), ["42"]);
}

#[test]
fn clif_c_objects_and_archives_together_are_one_unit() {
    if !require::cc() {
        return;
    }
    let scratch = Scratch::new();
    let clif = scratch.write(
        "entry.clif",
        "function %entry(i64) -> i64 {\n fn0 = %from_c(i64) -> i64\n\
         block0(v0: i64):\n v1 = call fn0(v0)\n return v1\n}\n",
    );
    let c = scratch.write(
        "middle.c",
        "long from_object(long);\nlong from_archive(long);\n\
         long from_c(long n) { return from_object(n) + from_archive(n); }\n",
    );
    let object = scratch.object("one.o", "long from_object(long n) { return n + 100; }\n");
    let wanted = scratch.object("two.o", "long from_archive(long n) { return n + 1000; }\n");
    let unwanted = scratch.object(
        "three.o",
        "long nowhere(void); long unwanted(void) { return nowhere(); }\n",
    );
    let archive = scratch.archive("lib.a", &[&wanted, &unwanted]);
    let files = [&*clif, &c, &object, &archive];
    assert_eq!(results(&files, &["--call=entry(1)"]), ["1102"]);
}

#[test]
fn the_compiler_and_its_flags_can_be_chosen() {
    if !require::cc() {
        return;
    }
    let scratch = Scratch::new();
    let file = scratch.write("flag.c", "long flag(void) { return FLAG; }\n");
    let args = ["--cc=cc", "--cflags=-fPIC -DFLAG=6", "--call=flag() -> i64"];
    assert_eq!(results(&[&file], &args), ["6"]);
}

#[test]
fn libraries_are_loaded_in_every_worker() {
    if !require::cc() {
        return;
    }
    let scratch = Scratch::new();
    let library = scratch.compile(
        "libanswer.so",
        "long answer(void) { return 42; }\n",
        &["-shared", "-fPIC"],
    );
    let user = scratch.write(
        "user.c",
        "long answer(void);\nlong ask(void) { return answer(); }\n",
    );
    let (call, with_library) = ("--call=ask() -> i64", format!("--lib={library}"));
    assert_eq!(results(&[&user], &[call, &with_library]), ["42"]);
    let alone = "--workers=1";
    run(&[&user, call, alone]).failed(&["`ask` needs the host symbol `answer`", "--lib"]);
    run(&[&user, call, alone, "--lib=libno-such-thing.so"])
        .failed(&["cannot load the library `libno-such-thing.so`", "help: "]);
}

#[test]
fn wrong_usage_exits_with_2() {
    let score = example("score.clif");
    let wrong: [&[&str]; 8] = [
        &[],
        &["run"],
        &["run", &score],
        &["run", &score, "--call", "score("],
        &["run", &score, "--call", "score(1)", "--workers", "0"],
        &["run", &score, "--call", "score(1)", "--no-such-option"],
        &["worker", "--call", "score(1)"],
        &[
            "serve",
            "--socket",
            "/nowhere",
            "--allow-attach",
            "everybody",
        ],
    ];
    for args in wrong {
        let done = finish(&mut jitcast(args));
        assert_eq!(done.code, Some(2), "{args:?}: {done:#?}");
        assert_eq!(done.stdout, "", "{args:?}");
        assert!(
            done.stderr.contains("Usage") || done.stderr.contains("error: "),
            "{done:#?}"
        );
    }
}

#[test]
fn a_call_of_what_the_unit_lacks_is_refused_by_name() {
    let score = example("score.clif");
    run(&[&score, "--call", "scroe(1)"]).refused(&["`scroe`", "score"]);
}

#[test]
fn a_call_that_fails_exits_with_1_and_still_prints_the_table() {
    let scratch = Scratch::new();
    let file = scratch.write("f.clif", adds("f", 1));
    let args = [
        &*file,
        "--call",
        "f(1)",
        "--call",
        "f(1, 2)",
        "--workers",
        "2",
    ];
    let done = run(&args).failed(&["`f` takes 1 argument, the call has 2"]);
    for row in &table(&done.stdout)[1..] {
        assert_eq!(row[3..5], ["2", "failed"], "{}", done.stdout);
    }
}

#[test]
fn the_others_go_on_when_a_worker_is_killed_in_the_middle_of_a_call() {
    if !require::cc() {
        return;
    }
    let scratch = Scratch::new();
    let mark = scratch.path("mark");
    // Whoever makes the file stays in the call for ever.
    let source = format!(
        "#include <fcntl.h>\n#include <stdio.h>\n#include <unistd.h>\n\
         long stuck(void) {{\n\
             int file = open(\"{mark}\", O_CREAT | O_EXCL | O_WRONLY, 0600);\n\
             if (file < 0) return 7;\n\
             dprintf(file, \"%d\\n\", getpid());\n\
             for (;;) pause();\n\
         }}\n"
    );
    let file = scratch.write("stuck.c", source);
    let call = "--call=stuck() -> i64";
    let running = Process::start(&mut jitcast(&["run", &file, call, "--workers", "4"]));
    let pid = await_some("a worker inside the call", || {
        let text = std::fs::read_to_string(&mark).ok()?;
        text.strip_suffix('\n')?.parse().ok()
    });
    Watched::new(pid).signal(Signal::KILL);
    let done = running.finish();
    assert_eq!(done.code, Some(1), "{done:#?}");
    let table = table(&done.stdout);
    let (killed, others): (Vec<_>, Vec<_>) =
        table[1..].iter().partition(|row| row[1] == pid.to_string());
    assert_eq!(killed[0][3], "signal 9", "{table:#?}");
    assert_eq!(others.len(), 3, "{table:#?}");
    assert!(others.iter().all(|row| row[3] == "7"), "{table:#?}");
}

#[test]
fn what_no_host_can_call_is_refused() {
    let scratch = Scratch::new();
    let two = "function %two(i64) -> i64, i64 { block0(v0: i64): return v0, v0 }";
    let file = scratch.write("two.clif", two);
    run(&[&file, "--call", "two(1)"]).failed(&[
        "`two(1)`: `two` has the signature (i64) -> i64, i64",
        "by which no host can call",
        "help: publish a function that wraps it",
    ]);
}

/// An executable's way to the host's data: by its distance, in an instruction that cannot go through a cell.
#[test]
fn host_data_is_copied_where_that_is_asked_for() {
    if !require::cc() {
        return;
    }
    let scratch = Scratch::new();
    let source = "extern char **environ; extern int optind;
        long same(long x) { return environ == 0 ? -1 : x; } long index_of(long x) { return optind == 1 ? x : -1; }";
    let object = scratch.compile("u.o", source, &["-c", "-O2", "-fPIE"]);
    let call = [
        "--call",
        "same(5)",
        "--call",
        "index_of(6)",
        "--workers",
        "1",
    ];
    let refused = run(&[&[object.as_str()], &call[..]].concat());
    assert!(refused.stderr.contains("-fPIC"), "{refused:#?}");
    let copies = ["--copy-data", "environ", "--copy-data", "optind:4"];
    assert_eq!(
        results(&[&object], &[&copies[..], &call[..4]].concat()),
        ["5", "6"]
    );
    let wrong = run(&[&[object.as_str(), "--copy-data", "environ:many"], &call[..]].concat());
    assert!(
        wrong.stderr.contains("`many` is no number of bytes"),
        "{wrong:#?}"
    );
}

#[test]
fn what_no_root_reaches_is_dropped_and_whole_archives_are_taken() {
    if !require::cc() {
        return;
    }
    let scratch = Scratch::new();
    let source = "long missing_anywhere(long); long wanted(long x) { return x + 1; }
        long unwanted(long x) { return missing_anywhere(x); }";
    let object = scratch.compile(
        "u.o",
        source,
        &["-c", "-O2", "-fPIC", "-ffunction-sections"],
    );
    let roots = ["--gc-sections", "--root", "wanted", "--call", "wanted(1)"];
    assert_eq!(results(&[&object], &roots), ["2"]);
    let dropped = run(&[
        &object,
        "--gc-sections",
        "--root",
        "wanted",
        "--call",
        "unwanted(1)",
    ]);
    assert!(dropped.stderr.contains("`unwanted`"), "{dropped:#?}");
    let nobody = run(&[
        &object,
        "--gc-sections",
        "--root",
        "nobody",
        "--call",
        "wanted(1)",
    ]);
    assert!(
        nobody.stderr.contains("nobody: is to be kept"),
        "{nobody:#?}"
    );
    let one = scratch.object("one.o", "long one(long x) { return x; }");
    let two = scratch.object("two.o", "long two(long x) { return x * 2; }");
    let archive = scratch.archive("lib.a", &[&one, &two]);
    let main = scratch.object(
        "main.o",
        "long one(long); long f(long x) { return one(x); }",
    );
    let lacks = run(&[&main, &archive, "--call", "two(4)"]);
    assert!(lacks.stderr.contains("`two`"), "{lacks:#?}");
    let whole = ["--whole-archive", "--call", "f(3)", "--call", "two(4)"];
    assert_eq!(results(&[&main, &archive], &whole), ["3", "8"]);
}

/// The story: a copy of a published datum was refused by every worker, one after another, and a copy of a weak one that
/// the host lacks read address 0.
#[test]
fn only_what_the_host_has_is_copied() {
    if !require::cc() {
        return;
    }
    let scratch = Scratch::new();
    let source = "extern int jitcast_test_lacked __attribute__((weak)); long f(long x) { return jitcast_test_lacked + x; }";
    let object = scratch.compile("u.o", source, &["-c", "-O2", "-fPIE"]);
    let args = ["--copy-data", "jitcast_test_lacked:4", "--call", "f(5)"];
    assert_eq!(results(&[&object], &args), ["5"]);
}
