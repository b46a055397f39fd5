//! Lua 5.4 from its own sources, published once and run by several workers at once; and what C code of all
//! kinds may rely on: the host's data and functions, and addresses that stay.
//!
//! The oracle is the same objects, linked into an executable by the system's own linker.

mod common;
#[path = "lua/archive.rs"]
mod lua_archive;

use std::ffi::{CString, c_char};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::host::Host;
use common::process::{Process, Stream, finish};
use common::remote::attach;
use common::scratch::Scratch;
use common::{require, role, smaps};
use jitcast::compiler::front::{self, compile_file};
use jitcast::compiler::{Reclaim, UnitFile, UnitSource};
use jitcast::worker::{Guard, Worker};

const WORKERS: usize = 4;

const SCRIPTS: [&str; 8] = [
    "tables.lua",
    "strings.lua",
    "math.lua",
    "errors.lua",
    "coroutines.lua",
    "sorting.lua",
    "loop.lua",
    "host.lua",
];

/// The role of a worker that runs the scripts.
const LUA: &str = "runs Lua";

/// The role of a worker that asks published code about the host.
const HOST_DATA: &str = "looks at the host's data";

/// The role of a worker that collects the addresses of a function.
const ADDRESSES: &str = "collects addresses";

/// The role of a process that compiles Lua into a folder: flags come to its compiler by the environment.
const COMPILER: &str = "compiles Lua";

/// What C is compiled with for an executable.
const PIE: [&str; 1] = ["-O2"];

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[
        (LUA, run_scripts),
        (HOST_DATA, look_at_the_host),
        (ADDRESSES, collect_addresses),
        (COMPILER, lua_archive::compile),
    ]);
}

/// A file of `tests/lua`.
fn source(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "lua", name]
        .iter()
        .collect()
}

fn options(cflags: &[&str]) -> front::Options {
    front::Options {
        cflags: cflags.iter().map(|flag| (*flag).to_owned()).collect(),
        ..front::Options::default()
    }
}

fn unit_file(path: &Path, options: &front::Options) -> UnitFile {
    let compiled = compile_file(path, options).unwrap_or_else(|error| panic!("{error}"));
    UnitFile {
        name: compiled.name,
        bytes: compiled.bytes,
        dialect: compiled.dialect,
    }
}

fn unit(name: &str, files: Vec<UnitFile>, signatures: &[(&str, &str)]) -> UnitSource {
    let signatures = signatures
        .iter()
        .map(|(name, text)| ((*name).to_owned(), text.parse().unwrap()))
        .collect();
    UnitSource {
        name: name.to_owned(),
        files,
        signatures,
        uncallable: Vec::new(),
        imports: Vec::new(),
        link: jitcast::compiler::LinkOptions::default(),
        reclaim: Reclaim::Auto,
    }
}

fn publish(host: &Host, unit: UnitSource) {
    let published = host.compiler.publish(&[unit]);
    published.unwrap_or_else(|error| panic!("{error}"));
}

/// Links `main` and the files of a unit into an executable.
fn executable(scratch: &Scratch, main: &str, files: &[UnitFile]) -> String {
    let path = scratch.path("native");
    let mut cc = Command::new("cc");
    cc.arg("-O2").arg("-o").arg(&path).arg(source(main));
    for (number, file) in files.iter().enumerate() {
        let kind = if file.bytes.starts_with(b"!<arch>") {
            "a"
        } else {
            "o"
        };
        cc.arg(scratch.write(&format!("{number}.{kind}"), &file.bytes));
    }
    finish(cc.args(["-lm", "-ldl"])).succeeded();
    path
}

/// The driver, compiled with `cflags`, and Lua, compiled with `flags` besides its usual ones.
fn lua_files(cflags: &[&str], flags: &[&str]) -> Vec<UnitFile> {
    let lua = lua_archive::lua(flags, |folder| {
        let mut compiler = role::command(COMPILER, folder);
        finish(compiler.env("CFLAGS", flags.join(" "))).succeeded();
    });
    let mut options = options(cflags);
    options
        .cflags
        .push(format!("-I{}", lua.join("include").display()));
    vec![
        unit_file(&source("driver.c"), &options),
        unit_file(&lua_archive::archive(&lua), &options),
    ]
}

/// The role: runs every script once the test says so, and reports what each printed, as JSON.
fn run_scripts(socket: &str) {
    type RunScript = extern "C" fn(*const c_char, *mut c_char, i64) -> i64;
    let worker = attach(socket);
    let guard = worker.enter().unwrap();
    let run = worker
        .function::<RunScript>(&guard, "run_script")
        .unwrap_or_else(|error| panic!("{error}"));
    role::report("ready");
    role::next_line().expect("the test says when");
    for script in SCRIPTS {
        let text = CString::new(std::fs::read(source(script)).unwrap()).unwrap();
        let mut out = vec![0u8; 1 << 16];
        let len = run.call(
            &guard,
            text.as_ptr(),
            out.as_mut_ptr().cast(),
            out.len().cast_signed() as i64,
        );
        out.truncate(usize::try_from(len).expect("there is memory"));
        let printed = String::from_utf8(out).unwrap();
        role::report(serde_json::to_string(&printed).unwrap());
    }
    role::report(smaps::faults(&worker).join("; "));
}

/// Runs the scripts in workers, all at once, and compares with the executable.
fn lua_runs_as_natively(cflags: &[&str], flags: &[&str], count: usize) {
    let scratch = Scratch::new();
    let files = lua_files(cflags, flags);
    let native = executable(&scratch, "main.c", &files);
    let host = Host::sealed();
    publish(
        &host,
        unit("lua", files, &[("run_script", "(ptr, ptr, i64) -> i64")]),
    );
    let mut workers: Vec<_> = (0..count).map(|_| role::start(LUA, &host.socket)).collect();
    for worker in &mut workers {
        assert_eq!(role::next_report(worker), "ready");
    }
    for worker in &mut workers {
        worker.send("go");
    }
    for script in SCRIPTS {
        let expected = finish(Command::new(&native).arg(source(script))).succeeded();
        assert_ne!(expected.stdout, "", "{script} prints something");
        for worker in &mut workers {
            let printed: String = serde_json::from_str(&role::next_report(worker)).unwrap();
            assert_eq!(printed, expected.stdout, "{script}");
        }
    }
    for worker in &mut workers {
        assert_eq!(role::next_report(worker), "", "its mappings are shared");
    }
}

#[test]
fn four_workers_run_lua_at_once_and_print_what_it_prints_natively() {
    if require::cc() {
        lua_runs_as_natively(&front::cc::DEFAULT_CFLAGS, &[], WORKERS);
    }
}

#[test]
fn lua_under_a_driver_that_was_compiled_for_an_executable_prints_the_same() {
    if require::cc() {
        lua_runs_as_natively(&PIE, &[], 1);
    }
}

#[test]
fn lua_of_other_code_models_and_sections_prints_the_same() {
    if !require::cc() {
        return;
    }
    for flags in [
        &["-fno-plt"][..],
        &["-mcmodel=large"],
        &["-ffunction-sections", "-fdata-sections"],
    ] {
        let cflags = [&["-O2", "-fPIC"], flags].concat();
        lua_runs_as_natively(&cflags, flags, 2);
    }
}

/// Calls the published function `name` of no arguments.
fn ask(worker: &Worker, guard: &Guard<'_>, name: &str) -> i64 {
    worker
        .function::<extern "C" fn() -> i64>(guard, name)
        .unwrap_or_else(|error| panic!("{error}"))
        .call(guard)
}

/// The questions about the host, in the order in which they are answered.
const QUESTIONS: [&str; 4] = [
    "same_addresses",
    "same_in_table",
    "sees_environment",
    "sorts",
];

/// The role: lets published code greet, and reports its answers.
fn look_at_the_host(socket: &str) {
    let worker = attach(socket);
    let guard = worker.enter().unwrap();
    let greet = worker
        .function::<extern "C" fn(*const c_char) -> i64>(&guard, "greet")
        .unwrap_or_else(|error| panic!("{error}"));
    let mut answers = greet.call(&guard, c"greetings\n".as_ptr()).to_string();
    for question in QUESTIONS {
        write!(answers, " {}", ask(&worker, &guard, question)).unwrap();
    }
    role::report(answers);
    role::report(ask(&worker, &guard, "same_by_lea"));
}

/// The story: objects for executables refer to `stdout` without a GOT, for which the system's linker copies the
/// datum into the executable; a copy in the segment would silently diverge from the host's.
#[test]
fn code_for_executables_uses_the_hosts_own_data_and_functions() {
    if !require::cc() {
        return;
    }
    const MARK: (&str, &str) = ("JITCAST_LUA_TEST", "found");
    let scratch = Scratch::new();
    let files = vec![unit_file(&source("host_data.c"), &options(&PIE))];
    let native = executable(&scratch, "host_main.c", &files);
    let native = finish(Command::new(native).env(MARK.0, MARK.1)).succeeded();
    let expected: Vec<_> = native.stdout.lines().collect();
    assert_eq!(expected, ["greetings", "0 4 4 1 1"]);
    assert_eq!(native.stderr, "greetings\n");

    let host = Host::sealed();
    let mut signatures = vec![("greet", "(ptr) -> i64")];
    signatures.extend(QUESTIONS.map(|question| (question, "() -> i64")));
    publish(&host, unit("host_data", files, &signatures));
    let by_lea = unit_file(&source("by_lea.c"), &options(&PIE));
    publish(
        &host,
        unit("by_lea", vec![by_lea], &[("same_by_lea", "() -> i64")]),
    );
    let mut worker =
        Process::start_listening(role::command(HOST_DATA, &host.socket).env(MARK.0, MARK.1));
    let is_greeting = |line: &str| line == expected[0];
    worker.await_line(Stream::Err, "the greeting", is_greeting);
    worker.await_line(Stream::Out, "the greeting", |line| {
        line.ends_with(expected[0])
    });
    assert_eq!(role::next_report(&mut worker), expected[1]);
    assert_eq!(role::next_report(&mut worker), "1", "by lea");
}

/// Where `target` is defined: its address as its own unit knows it, in code and in data, and a call through a
/// pointer. More comes before it in each version, so that it moves inside its unit too.
fn definer(version: i64) -> String {
    let mut text = String::new();
    for number in 0..version * 10 {
        writeln!(
            text,
            "long filler_{number}(long x) {{ return x / {number}3; }}"
        )
        .unwrap();
    }
    text + &format!(
        "long target(long x) {{ return x * 100 + {version}; }}\n\
         long (*const volatile inside_table[])(long) = {{ 0, target }};\n\
         long inside(void) {{ return (long)target; }}\n\
         long inside_data(void) {{ return (long)inside_table[1]; }}\n\
         long call_inside(long (*f)(long), long x) {{ return f == target ? f(x) : -1; }}\n"
    )
}

const ADDRESSES_OF_TARGET: [&str; 4] = ["inside", "inside_data", "outside", "outside_data"];

const CALLS_OF_TARGET: [&str; 3] = ["call_kept", "call_by_name", "target"];

/// The role: at each line, reports all addresses of `target` that it can get, among them the one kept since the
/// start, and the results of calling it in all ways.
fn collect_addresses(socket: &str) {
    type Call = extern "C" fn(i64) -> i64;
    let worker = attach(socket);
    let guard = worker.enter().unwrap();
    let kept = ask(&worker, &guard, "keep");
    drop(guard);
    while role::next_line().is_some() {
        let guard = worker.enter().unwrap();
        let stub = worker.symbol(&guard, "target").unwrap().stub;
        let mut addresses = vec![kept, stub.get().cast_signed()];
        addresses.extend(ADDRESSES_OF_TARGET.map(|name| ask(&worker, &guard, name)));
        let mut results: Vec<_> = CALLS_OF_TARGET
            .map(|name| {
                worker
                    .function::<Call>(&guard, name)
                    .unwrap()
                    .call(&guard, 7)
            })
            .into();
        let call_inside = worker
            .function::<extern "C" fn(i64, i64) -> i64>(&guard, "call_inside")
            .unwrap();
        results.push(call_inside.call(&guard, kept, 7));
        role::report(format_args!("{addresses:?} {results:?}"));
    }
}

fn addresses_stay(cflags: &[&str]) {
    let scratch = Scratch::new();
    let options = options(cflags);
    let compile =
        |name: &str, text: String| unit_file(Path::new(&scratch.write(name, text)), &options);
    let publish_definer = |host: &Host, version| {
        let file = compile("definer.c", definer(version));
        let mut signatures = vec![
            ("target", "(i64) -> i64"),
            ("call_inside", "(i64, i64) -> i64"),
        ];
        signatures.extend(["inside", "inside_data"].map(|name| (name, "() -> i64")));
        publish(host, unit("definer", vec![file], &signatures));
    };
    let host = Host::sealed();
    publish_definer(&host, 1);
    let mut signatures = vec![
        ("call_kept", "(i64) -> i64"),
        ("call_by_name", "(i64) -> i64"),
    ];
    signatures.extend(["outside", "outside_data", "keep"].map(|name| (name, "() -> i64")));
    let user = unit(
        "user",
        vec![unit_file(&source("user.c"), &options)],
        &signatures,
    );
    publish(&host, user);
    let mut worker = role::start(ADDRESSES, &host.socket);
    let mut first = None;
    for version in 1..=4 {
        if version > 1 {
            publish_definer(&host, version);
        }
        worker.send("look");
        let report = role::next_report(&mut worker);
        let (addresses, results) = report.split_once("] ").unwrap();
        let addresses: Vec<_> = addresses.trim_matches('[').split(", ").collect();
        assert!(
            addresses.iter().all(|address| *address == addresses[0]),
            "version {version}: {report}"
        );
        let first = first.get_or_insert_with(|| addresses[0].to_owned());
        assert_eq!(addresses[0], first, "version {version}");
        let expected = [700 + version; CALLS_OF_TARGET.len() + 1];
        assert_eq!(results, format!("{expected:?}"), "version {version}");
    }
}

#[test]
fn the_address_of_a_function_is_the_same_everywhere_and_for_all_versions() {
    if require::cc() {
        addresses_stay(&front::cc::DEFAULT_CFLAGS);
    }
}

#[test]
fn addresses_stay_also_in_code_for_executables() {
    if require::cc() {
        addresses_stay(&PIE);
    }
}
