//! gdb, attached to workers: names, arguments and lines of published frames, breakpoints across hot swaps.

mod common;

use std::process::Command;

use common::host::{Host, object_unit};
use common::object::{Maker, PLUS_ONE};
use common::process::{Finished, Process, Stream, finish, jitcast};
use common::require;
use common::serve::Serve;
use jitcast::compiler::{CompilerOptions, UnitSource};

/// A function that others are not called like, and its caller; `bonus` tells versions apart.
fn source(bonus: i64) -> String {
    format!(
        "#include <unistd.h>
__attribute__((noinline)) static long jc_inner(long x, int times) {{
    usleep(1000);
    return x * times;
}}
long jc_score(long x) {{
    long result = jc_inner(x + 1, {bonus});
    return result + 1;
}}
"
    )
}

/// Publishes that, with debugging information.
fn publish(serve: &Serve, bonus: i64) {
    let source = serve.scratch.write("score.c", source(bonus));
    let flags = ["--reclaim", "--cflags", "-O0 -g -fPIC", &source];
    serve.publish(&flags).succeeded();
}

/// A worker that calls `call` again and again, and shows gdb what `debug` says.
fn worker(serve: &Serve, call: &str, debug: &str) -> Process {
    let mut command = jitcast(&[
        "worker",
        "--socket",
        &serve.socket,
        "--watch",
        "--call",
        call,
    ]);
    let mut worker = Process::start(command.env("JITCAST_DEBUG", debug));
    worker.await_line(Stream::Out, "a result", |line| line.starts_with("└"));
    worker
}

/// What gdb says, attached to `worker`, when it is told `commands`.
fn gdb(worker: &Process, commands: &[&str]) -> Finished {
    let mut command = Command::new("gdb");
    command.args([
        "-nx",
        "-batch",
        "-ex",
        "set pagination off",
        "-ex",
        "set breakpoint pending on",
    ]);
    command.args(["-p", &worker.pid().to_string()]);
    for line in commands {
        command.args(["-ex", line]);
    }
    // Nothing else on the network is asked for debugging information.
    finish(command.env("DEBUGINFOD_URLS", ""))
}

/// How many symbol files gdb finds.
fn listed(said: &Finished) -> usize {
    let table = said.stdout.split("jit_code_entry address").nth(1);
    table.map_or(0, |table| {
        let rows = table.lines().skip(1);
        rows.filter(|line| line.starts_with("0x")).count()
    })
}

#[track_caller]
fn assert_says(said: &Finished, what: &str) {
    assert!(
        said.stdout.contains(what),
        "`{what}` is not in:\n{}\n{}",
        said.stdout,
        said.stderr
    );
}

#[test]
fn frames_have_names_arguments_and_lines() {
    if !require::gdb() || !require::cc() {
        return;
    }
    let serve = Serve::start(&[]);
    publish(&serve, 2);
    let worker = worker(&serve, "jc_score(21)", "lines");
    let said = gdb(
        &worker,
        &["hbreak jc_inner", "continue", "bt", "info symbol $pc"],
    );
    assert_says(&said, "jc_inner (x=22, times=2) at ");
    assert_says(&said, "score.c:3");
    assert_says(&said, "in jc_score (x=21) at ");
    assert_says(&said, "score.c:7");
    // The host's frames, below those.
    assert_says(&said, "in main ()");
}

#[test]
fn names_alone_take_no_debugging_information_and_no_compiler_process() {
    if !require::gdb() || !require::cc() {
        return;
    }
    let mut serve = Serve::start(&[]);
    publish(&serve, 2);
    serve.publish_adds("jc_adds", 1);
    let worker = worker(&serve, "jc_score(21)", "gdb");
    serve.process.signal(rustix::process::Signal::KILL);
    while !serve.process.has_ended() {
        std::thread::yield_now();
    }
    let said = gdb(
        &worker,
        &[
            "maint info jit",
            "info line jc_adds",
            "hbreak jc_inner",
            "continue",
            "bt",
        ],
    );
    assert_eq!(
        listed(&said),
        1,
        "both units share a file:\n{}",
        said.stdout
    );
    assert_says(&said, "<jc_adds>");
    assert_says(&said, "in jc_score ()");
    assert_says(&said, "in main ()");
    assert!(!said.stdout.contains("score.c"), "{}", said.stdout);
}

#[test]
fn a_breakpoint_by_name_is_hit_in_the_version_that_came_while_gdb_was_there() {
    if !require::gdb() || !require::cc() {
        return;
    }
    for debug in ["gdb", "lines"] {
        let serve = Serve::start(&[]);
        publish(&serve, 2);
        let worker = worker(&serve, "jc_score(21)", debug);
        std::fs::create_dir(serve.scratch.path("second")).unwrap();
        let second = serve.scratch.write("second/score.c", source(3));
        let publish = format!(
            "shell {} publish --socket {} --reclaim --cflags '-O0 -g -fPIC' {second}",
            env!("CARGO_BIN_EXE_jitcast"),
            serve.socket
        );
        let said = gdb(
            &worker,
            &[
                "hbreak jc_inner",
                "continue",
                "info registers rsi",
                "maint info jit",
                &publish,
                "continue",
                "info registers rsi",
                "bt 2",
                "maint info jit",
                "info breakpoints",
            ],
        );
        let hits: Vec<_> = said
            .stdout
            .lines()
            .filter(|line| line.starts_with("rsi "))
            .collect();
        assert!(
            hits[0].ends_with('2') && hits[1].ends_with('3'),
            "{hits:?}\n{}",
            said.stdout
        );
        assert_says(&said, "jc_score");
        let tables: Vec<_> = said
            .stdout
            .match_indices("jit_code_entry address")
            .collect();
        assert_eq!(tables.len(), 2);
        // The file of the one that is gone has been taken out.
        assert_eq!(listed(&said), 1, "{}", said.stdout);
        let last = said.stdout.rsplit("jit_code_entry address").next().unwrap();
        assert_eq!(
            last.lines().filter(|line| line.starts_with("0x")).count(),
            1,
            "{}",
            said.stdout
        );
    }
}

#[test]
fn it_can_be_asked_for_and_ended_while_workers_run() {
    if !require::gdb() {
        return;
    }
    let serve = Serve::start(&[]);
    serve.publish_adds("jc_adds", 1);
    let worker = worker(&serve, "jc_adds(1)", "");
    let look = || gdb(&worker, &["maint info jit", "info line jc_adds"]);
    let before = look();
    assert_eq!(listed(&before), 0);
    assert!(!before.stdout.contains("<jc_adds>"), "{}", before.stdout);
    let pid = worker.pid().to_string();
    let ask = |arguments: &[&str]| {
        let done = serve.command("debug", arguments).succeeded();
        // It applies that at a guard, which says so.
        serve.await_applied(&worker);
        done.stdout
    };
    let said = ask(&["--worker", &pid]);
    assert!(said.contains("shows functions to gdb"), "{said}");
    assert_says(&look(), "<jc_adds>");
    ask(&["--off"]);
    assert_eq!(listed(&look()), 0);
    serve
        .command("debug", &["--worker", "1"])
        .failed(&["process 1 is no worker", "help: "]);
}

#[test]
fn many_units_make_few_files() {
    if !require::gdb() {
        return;
    }
    const UNITS: usize = 10_000;
    let host = Host::with(CompilerOptions::with_window(64 << 20).unwrap());
    let name = |number: usize| format!("jc_unit{number}");
    let unit = |number| {
        object_unit(
            &name(number),
            Maker::new().function(&name(number), &PLUS_ONE).finish(),
        )
    };
    let units: Vec<UnitSource> = (0..UNITS / 2).map(unit).collect();
    host.compiler.publish(&units).unwrap();
    let call = format!("{}(1) -> i64", name(0));
    let mut command = jitcast(&[
        "worker",
        "--socket",
        &host.socket,
        "--watch",
        "--call",
        &call,
    ]);
    let mut worker = Process::start(command.env("JITCAST_DEBUG", "gdb"));
    worker.await_line(Stream::Out, "a result", |line| line.starts_with("└"));
    // One after another, which the worker may see together or not.
    for number in UNITS / 2..UNITS {
        host.compiler.publish(&[unit(number)]).unwrap();
    }
    host.publish_adds("jc_last", 1);
    common::process::await_some("the last publication applied", || {
        let status = host.compiler.status();
        (status.workers[0].applied == status.generation).then_some(())
    });
    let last = format!("info line {}", name(UNITS - 1));
    let said = gdb(&worker, &["maint info jit", &last]);
    assert_says(&said, &format!("<{}>", name(UNITS - 1)));
    let files = listed(&said);
    assert!((UNITS / 64..UNITS / 32).contains(&files), "{files}");
}

/// Two files of one unit, each with a static variable of the same name, and data of its own.
const FIRST: &str = "#include <unistd.h>
struct jc_pair { int left, right; };
long jc_counter = 40;
static int jc_same = 1;
static struct jc_pair jc_pair = { 3, 4 };
long jc_second(long);
__attribute__((noinline)) long jc_first(long x) {
    usleep(1000);
    jc_counter++;
    jc_same++;
    return jc_second(x) + jc_pair.left;
}
";
const SECOND: &str = "static int jc_same = 100;
__thread int jc_local = 7;
inline static long jc_inlined(long y) {
    jc_same++;
    return y * jc_local;
}
__attribute__((noinline)) long jc_second(long x) {
    long product = jc_inlined(x);
    return product + 1;
}
";

#[test]
fn variables_of_every_file_are_where_this_worker_has_them() {
    if !require::gdb() || !require::cc() {
        return;
    }
    let serve = Serve::start(&[]);
    let compile = |name: &str, source: &str| {
        serve.scratch.compile(
            name,
            source,
            &["-O0", "-g", "-fPIC", "-ffunction-sections", "-c"],
        )
    };
    let (first, second) = (compile("first.o", FIRST), compile("second.o", SECOND));
    let publish = |serve: &Serve| {
        let arguments = [
            "--unit",
            "both",
            "--keep-data",
            "--sig",
            "jc_first(i64) -> i64",
            &first,
            &second,
        ];
        serve.publish(&arguments).succeeded();
    };
    publish(&serve);
    let worker = worker(&serve, "jc_first(2)", "lines");
    let commands = [
        "hbreak jc_second",
        "continue",
        "print jc_counter > 40",
        "print jc_pair",
        // One has been counted up in this call, the other has not.
        "print 'second.o.c'::jc_same - 'first.o.c'::jc_same",
        "up",
        "info locals",
        "info args",
    ];
    let said = gdb(&worker, &commands);
    for what in [
        "$1 = 1",
        "$2 = {left = 3, right = 4}",
        "$3 = 98",
        "jc_first (x=2) at ",
        "x = 2",
    ] {
        assert_says(&said, what);
    }
    // A version that goes on with the data of the one before it.
    publish(&serve);
    serve.await_applied(&worker);
    let said = gdb(
        &worker,
        &[
            "hbreak jc_second",
            "continue",
            "print jc_counter > 42",
            "print jc_counter",
            "bt",
        ],
    );
    assert_says(&said, "$1 = 1");
    assert_says(&said, "second.o.c:8");
}

#[test]
fn breakpoints_work_with_the_settings_that_it_prints() {
    if !require::gdb() || !require::cc() {
        return;
    }
    let serve = Serve::start(&[]);
    publish(&serve, 2);
    let worker = worker(&serve, "jc_score(21)", "");
    let pid = worker.pid().to_string();
    let said = serve.command("debug", &["--worker", &pid, "--lines"]);
    let said = said.succeeded().stdout;
    let line = said.lines().nth(1).unwrap();
    assert!(line.starts_with(&format!("gdb -p {pid} -ex '")), "{line}");
    serve.await_applied(&worker);
    let mut commands: Vec<&str> = line.split('\'').skip(1).step_by(2).collect();
    assert_eq!(commands.len(), 2, "{line}");
    commands.extend(["break jc_inner", "continue", "bt"]);
    let said = gdb(&worker, &commands);
    assert_says(&said, "automatically using hardware breakpoints");
    assert_says(&said, "jc_inner (x=22, times=2) at ");
    assert_says(&said, "in jc_score (x=21) at ");
    assert_says(&said, "in main ()");
}
