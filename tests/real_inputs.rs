//! Real libraries, from the sources that crates carry, linked once and run in several workers: their results are
//! those of the same objects in an executable.

mod common;

use std::ffi::{CStr, c_char};
use std::process::Command;

use common::host::Host;
use common::process::{finish, jitcast};
use common::remote::attach;
use common::scratch::Scratch;
use common::serve::table;
use common::{require, role, smaps};
use jitcast::compiler::UnitSource;
use jitcast::compiler::front::{Options, compile_file};
use jitcast::worker::{Endpoint, HostTable, Worker, WorkerOptions};
use jitcast_natives::{Native, SQLITE, ZSTD};

/// The role of a worker that takes megabytes through Zstandard.
const ROUND_TRIP: &str = "round trips";
/// The role of a worker that has a session with SQLite.
const SESSION: &str = "has a session";

/// The role of a worker that runs a program of C++.
const PROGRAM: &str = "runs a program";

/// Megabytes of a round trip.
const MEGABYTES: i64 = 100;

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[
        (ROUND_TRIP, round_trip),
        (SESSION, have_session),
        (PROGRAM, run_program),
    ]);
}

fn round_trip(socket: &str) {
    let worker = attach(socket);
    let guard = worker.enter().unwrap();
    let round_trip = worker.function::<extern "C" fn(i64) -> i64>(&guard, "round_trip");
    let result = round_trip
        .unwrap_or_else(|error| panic!("{error}"))
        .call(&guard, MEGABYTES);
    role::report(result);
    role::report(smaps::faults(&worker).join("; "));
}

fn have_session(socket: &str) {
    let worker = attach(socket);
    let guard = worker.enter().unwrap();
    let session = worker.function::<extern "C" fn() -> *const c_char>(&guard, "session");
    let session = session.unwrap_or_else(|error| panic!("{error}"));
    for _ in 0..2 {
        let answers = session.call(&guard);
        // SAFETY: a C string in the unit's own data, which stays as it is until the next call.
        role::report(unsafe { CStr::from_ptr(answers) }.to_str().unwrap());
    }
    role::report(smaps::faults(&worker).join("; "));
}

fn run_program(socket: &str) {
    let mut host = HostTable::default();
    host.load("libstdc++.so.6").unwrap();
    let options = WorkerOptions {
        host,
        ..WorkerOptions::default()
    };
    let worker = Worker::attach(Endpoint::Path(socket.as_ref()), options).unwrap();
    let guard = worker.enter().unwrap();
    let program = worker.function::<extern "C" fn() -> *const c_char>(&guard, "program");
    let program = program.unwrap_or_else(|error| panic!("{error}"));
    for _ in 0..2 {
        let said = program.call(&guard);
        // SAFETY: a C string in the unit's own data, which stays as it is until the next call.
        role::report(unsafe { CStr::from_ptr(said) }.to_str().unwrap());
    }
    role::report(smaps::faults(&worker).join("; "));
}

fn source(name: &str) -> String {
    format!("{}/tests/real/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The driver, compiled with `flags`, and the library: as a unit, and as an executable that does the same.
fn driven(
    scratch: &Scratch,
    driver: &str,
    library: Native,
    flags: &[&str],
    signature: (&str, &str),
) -> (UnitSource, String) {
    let driver_path = scratch.path(&format!("{driver}.o"));
    let include = format!("-I{}", library.include);
    let mut cc = Command::new("cc");
    cc.args(flags)
        .arg(&include)
        .arg("-c")
        .arg("-o")
        .arg(&driver_path);
    finish(cc.arg(source(&format!("{driver}.c")))).succeeded();
    let archive = format!("{}/{}", library.folder, library.archive);
    let native = scratch.path("native");
    let mut cc = Command::new("cc");
    cc.arg("-o")
        .arg(&native)
        .arg(source(&format!("{driver}_main.c")))
        .args([&driver_path, &archive]);
    finish(cc.args(["-lm", "-ldl", "-lpthread"])).succeeded();
    let files = [driver_path, archive].map(|path| {
        compile_file(path.as_ref(), &Options::default()).unwrap_or_else(|error| panic!("{error}"))
    });
    let mut unit = UnitSource::new(driver, files);
    unit.signatures
        .push((signature.0.to_owned(), signature.1.parse().unwrap()));
    (unit, native)
}

/// The sets of flags that drivers are compiled with.
const FLAGS: [&[&str]; 3] = [
    &["-O2", "-fPIC", "-fno-plt"],
    &["-O2"],
    &[
        "-O2",
        "-fPIC",
        "-mcmodel=large",
        "-ffunction-sections",
        "-fdata-sections",
    ],
];

fn publish(host: &Host, unit: UnitSource) {
    let published = host.compiler.publish(&[unit]);
    published.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn two_workers_take_a_hundred_megabytes_through_zstandard_and_back() {
    if !require::cc() {
        return;
    }
    let scratch = Scratch::new();
    let signature = ("round_trip", "(i64) -> i64");
    let (unit, native) = driven(&scratch, "zstd", ZSTD, FLAGS[0], signature);
    let expected = finish(Command::new(native).arg(MEGABYTES.to_string()))
        .succeeded()
        .stdout;
    assert!(expected.trim().parse::<i64>().unwrap() > 0, "{expected}");
    let host = Host::sealed();
    publish(&host, unit);
    let mut workers = [(); 2].map(|()| role::start(ROUND_TRIP, &host.socket));
    for worker in &mut workers {
        assert_eq!(role::next_report(worker), expected.trim());
        assert_eq!(role::next_report(worker), "", "its mappings are shared");
    }
}

#[test]
fn a_session_with_sqlite_gives_each_worker_what_the_native_library_gives() {
    if !require::cc() {
        return;
    }
    for flags in FLAGS {
        let scratch = Scratch::new();
        let (unit, native) = driven(&scratch, "sqlite", SQLITE, flags, ("session", "() -> ptr"));
        let expected = finish(&mut Command::new(native)).succeeded().stdout;
        assert!(
            expected.len() > 500 && expected.contains(";ok;"),
            "{expected}"
        );
        let host = Host::sealed();
        publish(&host, unit);
        let mut workers = [(); 2].map(|()| role::start(SESSION, &host.socket));
        for worker in &mut workers {
            for _ in 0..2 {
                assert_eq!(role::next_report(worker), expected.trim(), "{flags:?}");
            }
            assert_eq!(role::next_report(worker), "", "its mappings are shared");
        }
    }
}

/// The story: a static library of Rust brings its whole standard library along, 20 MB of archive whose objects use
/// thread-local storage, unwind tables and hidden symbols of all kinds.
#[test]
fn a_static_library_of_rust_catches_its_own_panics_and_starts_its_own_threads() {
    if !require::cc() {
        return;
    }
    let scratch = Scratch::new();
    let library = scratch.path("libunit.a");
    let mut rustc = Command::new("rustc");
    rustc.args([
        "--edition",
        "2024",
        "--crate-type",
        "staticlib",
        "-C",
        "panic=unwind",
        "-O",
    ]);
    finish(rustc.arg("-o").arg(&library).arg(source("unit.rs"))).succeeded();
    let main = scratch.object(
        "main.o",
        "long catches(long), calls(long), threads(long);
        long c(long x) { return catches(x); } long n(long x) { return calls(x); } long t(long x) { return threads(x); }",
    );
    let calls = [
        "--call", "c(3)", "--call", "c(42)", "--call", "n(0)", "--call", "t(5)",
    ];
    let mut run = jitcast(&["run", &main, &library, "--workers", "2"]);
    let done = finish(run.args(calls)).succeeded();
    let rows = table(&done.stdout);
    for row in &rows[1..=2] {
        // "number 3" has eight characters, "no 42" five; two calls were counted; 0 + 1 + 2 + 3, six times.
        assert_eq!(row[3..7], ["8", "-5", "2", "36"]);
    }
    assert_eq!(done.stderr.matches("no 42").count(), 2, "{}", done.stderr);
}

/// A program of C++, by two compilers, under the flags that people build with.
#[test]
fn a_program_of_cplusplus_says_in_each_worker_what_it_says_natively() {
    let compilers = [("g++", require::gxx()), ("clang++", require::clang())];
    for (compiler, _) in compilers.iter().filter(|(_, there)| *there) {
        for flags in [
            &["-O0", "-g"][..],
            &["-O2", "-fno-plt", "-fcf-protection"],
            &["-O3", "-ffunction-sections", "-fdata-sections", "-g", "-gz"],
            &[
                "-O1",
                "-mno-red-zone",
                "-fvisibility=hidden",
                "-fvisibility-inlines-hidden",
            ],
        ] {
            let scratch = Scratch::new();
            let (object, native) = (scratch.path("program.o"), scratch.path("native"));
            let mut compile = Command::new(compiler);
            compile
                .args(["-std=c++17", "-fPIC", "-c", "-o", &object])
                .args(flags);
            finish(compile.arg(source("program.cc"))).succeeded();
            let mut link = Command::new(compiler);
            finish(link.args(["-o", &native, &source("program_main.cc"), &object])).succeeded();
            let expected = finish(&mut Command::new(native)).succeeded().stdout;
            assert!(expected.contains("stoi stoi at long 42"), "{expected}");
            let file = compile_file(object.as_ref(), &Options::default());
            let mut unit =
                UnitSource::new("program", [file.unwrap_or_else(|error| panic!("{error}"))]);
            unit.signatures
                .push(("program".to_owned(), "() -> ptr".parse().unwrap()));
            let host = Host::sealed();
            publish(&host, unit);
            let mut workers = [(); 2].map(|()| role::start(PROGRAM, &host.socket));
            for worker in &mut workers {
                for _ in 0..2 {
                    assert_eq!(
                        role::next_report(worker),
                        expected.trim_end(),
                        "{compiler} {flags:?}"
                    );
                }
                assert_eq!(role::next_report(worker), "", "its mappings are shared");
            }
        }
    }
}
