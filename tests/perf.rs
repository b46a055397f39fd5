//! perf, and what it reads: jitdumps, lists of functions, and names for what it shows as numbers.

mod common;
#[path = "perf/jitdump.rs"]
mod jitdump;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use common::host::{Host, WINDOW_BYTES};
use common::process::{Finished, Process, Stream, Watched, await_some, finish, jitcast};
use common::require;
use common::role;
use common::scratch::Scratch;
use common::serve::Serve;
use jitcast::compiler::CompilerOptions;
use jitcast::worker::{DebugOptions, Endpoint, Worker, WorkerOptions};
use jitdump::{Dump, Record};

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(FORKS, fork)]);
}

/// What takes time; `bonus` tells versions apart.
fn source(bonus: i64) -> String {
    format!(
        "__attribute__((noinline)) static long jc_inner(long x) {{
    long sum = {bonus};
    for (long i = 0; i < 20000; i++)
        sum += x ^ i * sum;
    return sum;
}}
long jc_hot(long x) {{
    return jc_inner(x) + 1;
}}
"
    )
}

/// Publishes that, with debugging information.
fn publish(serve: &Serve, bonus: i64) {
    let source = serve.scratch.write("hot.c", source(bonus));
    let arguments = ["--reclaim", "--cflags", "-O1 -g -fPIC", &source];
    serve.publish(&arguments).succeeded();
}

/// A worker that calls it again and again, and shows what `debug` says.
fn worker(serve: &Serve, debug: &str) -> Process {
    let arguments = [
        "worker",
        "--socket",
        &serve.socket,
        "--watch",
        "--call",
        "jc_hot(21)",
    ];
    let debug = format!("{debug},dir={}", serve.scratch.path(""));
    let mut worker = Process::start(jitcast(&arguments).env("JITCAST_DEBUG", debug));
    worker.await_line(Stream::Out, "a result", |line| line.starts_with('└'));
    worker
}

fn dump_of(serve: &Serve, pid: i32) -> String {
    serve.scratch.path(&format!("jit-{pid}.dump"))
}

/// What is in the memory of process `pid`.
fn memory(pid: i32, address: u64, len: usize) -> Vec<u8> {
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut bytes = vec![0; len];
    memory.read_exact_at(&mut bytes, address).unwrap();
    bytes
}

#[test]
fn a_jitdump_has_names_code_and_lines_of_every_version_in_its_time() {
    if !require::cc() {
        return;
    }
    let serve = Serve::start(&[]);
    publish(&serve, 2);
    let worker = worker(&serve, "jitdump,lines");
    let path = dump_of(&serve, worker.pid());
    let first = Dump::read(&path);
    assert_eq!(first.pid, worker.pid().cast_unsigned());
    let hot = first.last("jc_hot");
    // At the address, and with the length, that it has there.
    let pid = worker.pid().to_string();
    let shown = serve
        .command("dis", &["jc_hot", "--json", "--worker", &pid])
        .succeeded();
    let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(shown["instructions"][0]["address"], hot.address);
    assert_eq!(shown["len_bytes"], hot.code.len());
    for name in ["jc_hot", "jc_inner", "jitcast stubs"] {
        let load = first.last(name);
        assert_eq!(
            memory(worker.pid(), load.address, load.code.len()),
            load.code,
            "{name}"
        );
    }
    // Its lines, which come before it.
    let lines = first.lines_of(hot);
    assert!(
        lines.iter().all(
            |(address, ..)| (hot.address..hot.address + hot.code.len() as u64).contains(address)
        )
    );
    let numbers: Vec<u32> = lines.iter().map(|(_, line, _)| *line).collect();
    assert!(numbers.contains(&8) && numbers.contains(&9), "{lines:?}");
    assert!(
        lines.iter().all(|(.., file)| file.ends_with("hot.c")),
        "{lines:?}"
    );
    // perf looks for this.
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let marker = maps.lines().find(|line| line.ends_with(&path));
    assert!(
        marker.is_some_and(|marker| marker.contains(" r-xp ")),
        "{maps}"
    );
    publish(&serve, 3);
    serve.await_applied(&worker);
    let second = Dump::read(&path);
    assert_ne!(
        second.last("jc_inner").address,
        first.last("jc_inner").address
    );
    assert!(second.last("jc_hot").time > hot.time);
    assert!(second.last("jc_hot").time < jitcast::runtime::sys::monotonic_ns());
    // It is ended, and goes on anew, when that is asked for.
    serve.command("debug", &["--off"]).succeeded();
    serve.await_applied(&worker);
    let ended = Dump::read(&path);
    assert!(
        matches!(ended.records.last(), Some(Record::Close)),
        "{ended:?}"
    );
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    assert!(!maps.contains(&path), "{maps}");
    serve
        .command("debug", &["--worker", &pid, "--jitdump"])
        .succeeded();
    serve.await_applied(&worker);
    let again = Dump::read(&path);
    assert!(
        again.lines_of(again.last("jc_hot")).is_empty(),
        "lines were not asked for"
    );
}

#[test]
fn a_place_that_is_used_again_is_in_a_jitdump_again() {
    let options = CompilerOptions {
        reclaim_above_bytes: 0,
        ..CompilerOptions::with_window(WINDOW_BYTES).unwrap()
    };
    let host = Host::with(options);
    host.publish_adds("jc_adds", 0);
    let scratch = Scratch::new();
    let arguments = [
        "worker",
        "--socket",
        &host.socket,
        "--watch",
        "--call",
        "jc_adds(21)",
    ];
    let debug = format!("jitdump,dir={}", scratch.path(""));
    let mut worker = Process::start(jitcast(&arguments).env("JITCAST_DEBUG", debug));
    worker.await_line(Stream::Out, "a result", |line| line.starts_with('└'));
    for bonus in 1..6 {
        host.publish_adds("jc_adds", bonus);
        await_some("everything applied", || {
            let status = host.compiler.status();
            (status.workers[0].applied == status.generation).then_some(())
        });
    }
    let dump = Dump::read(&scratch.path(&format!("jit-{}.dump", worker.pid())));
    let versions: Vec<_> = dump.loads().filter(|load| load.name == "jc_adds").collect();
    assert_eq!(versions.len(), 6);
    assert!(versions.is_sorted_by(|earlier, later| earlier.time < later.time && earlier.index < later.index));
    let again = versions
        .iter()
        .filter(|version| version.address == versions[0].address);
    let again: Vec<_> = again.collect();
    assert!(again.len() > 1, "no place is used again: {versions:x?}");
    assert_ne!(again[0].code, again[1].code);
}

#[test]
fn a_list_of_functions_is_kept_up_to_date() {
    if !require::cc() {
        return;
    }
    let serve = Serve::start(&[]);
    publish(&serve, 2);
    let worker = worker(&serve, "perf-map");
    let path = serve.scratch.path(&format!("perf-{}.map", worker.pid()));
    let read = || std::fs::read_to_string(&path).unwrap();
    let lines = read().lines().count();
    assert_eq!(lines, 2, "{}", read());
    let pid = worker.pid().to_string();
    let address = |name: &str| {
        let shown = serve
            .command("dis", &[name, "--json", "--worker", &pid])
            .succeeded();
        let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
        let at = shown["instructions"][0]["address"].as_u64().unwrap();
        format!("{at:x} {:x} {name}", shown["len_bytes"].as_u64().unwrap())
    };
    assert!(
        read().lines().any(|line| line == address("jc_hot")),
        "{}",
        read()
    );
    // What is gone does not pile up.
    for version in 0..200 {
        serve.publish_adds("jc_adds", version);
        serve.await_applied(&worker);
    }
    assert!(
        read().lines().any(|line| line == address("jc_adds")),
        "{}",
        read()
    );
    assert!(
        read().lines().any(|line| line == address("jc_hot")),
        "{}",
        read()
    );
    assert!(read().lines().count() < 150, "{}", read());
    // Names by that list.
    let hot = address("jc_hot");
    let hot = hot.split(' ').next().unwrap();
    let text = format!("w 1 0.1: 1 cpu-clock: {hot} [unknown] (/memfd:jitcast (deleted))\n");
    let text = serve.scratch.write("script", text);
    let named = finish(&mut jitcast(&["perf-resolve", "--map", &path, &text])).succeeded();
    assert!(
        named.stdout.contains(" jc_hot+0x0 (/memfd:"),
        "{}",
        named.stdout
    );
}

const FORKS: &str = "forks";

/// The role: a worker that writes a jitdump, and forks a child that goes on as one.
fn fork(target: &str) {
    let [socket, folder] = target.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{target}");
    };
    let mut debug: DebugOptions = "jitdump".parse().unwrap();
    debug.folder = Some(folder.into());
    let options = WorkerOptions {
        debug,
        ..WorkerOptions::default()
    };
    let worker = Worker::attach(Endpoint::Path(Path::new(socket)), options).unwrap();
    drop(worker.enter().unwrap());
    // SAFETY: the child does what a worker may do after a fork.
    match unsafe { libc::fork() } {
        0 => {
            drop(worker.enter().unwrap());
            role::report(std::process::id());
        }
        child => assert!(child > 0),
    }
    let mut seen = worker.enter().unwrap().generation();
    while worker.wait(seen, None) {
        seen = worker.enter().unwrap().generation();
    }
}

/// A process that ends with this, whatever becomes of the test.
struct Ends(Watched);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.signal(rustix::process::Signal::KILL);
    }
}

#[test]
fn a_forked_child_has_a_jitdump_of_its_own() {
    if !require::cc() {
        return;
    }
    let serve = Serve::start(&[]);
    publish(&serve, 2);
    let mut parent = role::start(
        FORKS,
        &format!("{} {}", serve.socket, serve.scratch.path("")),
    );
    let child: i32 = role::next_report(&mut parent).parse().unwrap();
    let _ends = Ends(Watched::new(child));
    let [of_parent, of_child] = [parent.pid(), child].map(|pid| Dump::read(&dump_of(&serve, pid)));
    assert_eq!(of_child.pid, child.cast_unsigned());
    assert_eq!(of_child.last("jc_hot").code, of_parent.last("jc_hot").code);
    publish(&serve, 3);
    let count = |pid| {
        let dump = Dump::read(&dump_of(&serve, pid));
        dump.loads().filter(|load| load.name == "jc_hot").count()
    };
    await_some("the new version in both", || {
        ([parent.pid(), child].map(count) == [2, 2]).then_some(())
    });
}

fn perf(arguments: &[&str]) -> Finished {
    finish(
        Command::new("perf")
            .args(arguments)
            .env("DEBUGINFOD_URLS", "")
            .env("HOME", "/nonexistent"),
    )
}

/// Records `worker` for a second, into a file of this name.
fn record(serve: &Serve, worker: &Process, name: &str) -> String {
    let path = serve.scratch.path(name);
    let pid = worker.pid().to_string();
    perf(&[
        "record",
        "-q",
        "-e",
        "cpu-clock",
        "-k",
        "1",
        "-F",
        "999",
        "-o",
        &path,
        "-p",
        &pid,
        "--",
        "sleep",
        "1",
    ])
    .succeeded();
    path
}

#[test]
fn perf_names_published_code_by_a_jitdump() {
    if !require::perf() || !require::cc() {
        return;
    }
    let serve = Serve::start(&[]);
    publish(&serve, 2);
    let worker = worker(&serve, "jitdump,lines");
    let swaps = std::thread::scope(|scope| {
        let recorded = scope.spawn(|| record(&serve, &worker, "perf.data"));
        // A version that comes while it records.
        await_some("half of the time", || {
            std::fs::exists(serve.scratch.path("perf.data"))
                .unwrap()
                .then_some(())
        });
        publish(&serve, 3);
        recorded.join().unwrap()
    });
    let injected = serve.scratch.path("injected.data");
    perf(&["inject", "--jit", "-i", &swaps, "-o", &injected]).succeeded();
    let report = perf(&["report", "--stdio", "-i", &injected, "-s", "sym"]).succeeded();
    assert!(report.stdout.contains("jc_inner"), "{}", report.stdout);
    let script = perf(&["script", "-i", &injected, "-F", "ip,sym,dso,srcline"]).succeeded();
    assert!(
        script.stdout.contains(" jc_inner (") && script.stdout.contains("hot.c:4"),
        "{}",
        script.stdout
    );
    assert!(
        !script.stdout.contains("memfd:jitcast "),
        "{}",
        script.stdout
    );
}

#[test]
fn numbers_that_perf_shows_get_names() {
    if !require::perf() || !require::cc() {
        return;
    }
    let serve = Serve::start(&[]);
    publish(&serve, 2);
    let worker = worker(&serve, "");
    let path = record(&serve, &worker, "perf.data");
    let resolved = |arguments: &[&str]| {
        let shown = perf(arguments).succeeded();
        assert!(!shown.stdout.contains("jc_inner"), "{}", shown.stdout);
        let shown = serve.scratch.write("shown", shown.stdout);
        serve.command("perf-resolve", &[&shown]).succeeded()
    };
    let script = ["script", "-i", &path];
    let report = ["report", "--stdio", "-i", &path];
    for arguments in [&script[..], &report] {
        let named = resolved(arguments);
        assert!(named.stdout.contains(" jc_inner+0x"), "{}", named.stdout);
        assert!(
            named.stdout.contains(" [hot, generation 3]"),
            "{}",
            named.stdout
        );
        assert!(
            !named.stdout.contains("[unknown] (/memfd:jitcast "),
            "{}",
            named.stdout
        );
        assert_eq!(named.stderr, "");
    }
    // Of a process that has ended, its mappings tell.
    drop(worker);
    await_some("nobody attached", || {
        serve.status().workers.is_empty().then_some(())
    });
    let named = resolved(&script);
    assert!(
        !named.stdout.contains(" jc_inner+0x") && named.stderr.contains("places have no name"),
        "{}",
        named.stderr
    );
    let named = resolved(&["script", "--show-mmap-events", "-i", &path]);
    assert!(named.stdout.contains(" jc_inner+0x"), "{}", named.stdout);
}

#[test]
fn recorded_lines_get_names_where_perf_cannot_count() {
    let serve = Serve::start(&[]);
    serve.publish_adds("jc_adds", 1);
    let shown = serve.command("dis", &["jc_adds", "--json"]).succeeded();
    let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
    let observer = jitcast::runtime::observer::Observer::new(
        jitcast::compiler::request::observe(
            std::os::unix::net::UnixStream::connect(&serve.socket).unwrap(),
        )
        .unwrap(),
    )
    .unwrap();
    let in_file =
        shown["offset"].as_u64().unwrap() + 1 - u64::from(observer.geometry().shared().start);
    let line = format!(
        "    49.50%  w  memfd:jitcast (deleted)  [.] {in_file:#018x}\n    1.00%  w  libc.so.6  [.] 0x0000000000000001\n"
    );
    let file = serve.scratch.write("report", line);
    let named = serve.command("perf-resolve", &[&file]).succeeded();
    let expected = "    49.50%  w  memfd:jitcast (deleted)  [.] jc_adds+0x1 [jc_adds, generation 3]\n    1.00%  w  libc.so.6  [.] 0x0000000000000001\n";
    assert_eq!(named.stdout, expected);
    serve
        .command("perf-resolve", &["/nonexistent"])
        .failed(&["cannot open /nonexistent", "help: "]);
}
