//! `jitcast dis`: the code of published functions, in the segment and in workers.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::host::Host;
use common::name::Name;
use common::process::{Finished, NOBODY, finish, jitcast, jitcast_as};
use common::remote::{self, Remote};
use common::require;
use common::role;
use common::scratch::adds;
use common::serve::Serve;
use jitcast::compiler::RequestLimits;
use jitcast::worker::{Endpoint, Worker, WorkerOptions};
use serde_json::Value;

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(remote::ROLE, remote::play)]);
}

const SOURCE: &str = "#include <stdio.h>
    long counter, (*hook)(long); long other(long);
    static const int table[4] = { 1, 2, 3, 4 };
    __attribute__((noinline)) static long inner(long x) { return x * table[x & 3]; }
    long f(long x) {
        counter++;
        if (x < 0) puts(\"negative\");
        hook = other;
        return inner(x) + other(x);
    }";

/// A compiler process that has published `f`, and `other`, which that calls.
fn with_f() -> Serve {
    let serve = Serve::start(&[]);
    serve.publish_adds("other", 1);
    let source = serve.scratch.write("f.c", SOURCE);
    serve.publish(&[&source]).succeeded();
    serve
}

/// The instructions that were shown, each with its comment.
fn rows(shown: &Finished) -> Vec<(String, String)> {
    let rows = shown.stdout.lines().filter(|line| line.contains("  +0x"));
    let row = |line: &str| {
        let (_, line) = line.split_once("  +0x").expect("just looked for");
        let (instruction, comment) = line.split_once("  ; ").unwrap_or((line, ""));
        // After the distance and the bytes.
        let instruction = instruction.trim().split("  ").map(str::trim);
        let instruction = instruction.filter(|part| !part.is_empty()).nth(2);
        (
            instruction.unwrap_or_default().to_owned(),
            comment.to_owned(),
        )
    };
    rows.map(row).collect()
}

#[track_caller]
fn assert_row(shown: &Finished, instruction: &str, comment: &str) {
    let row = (instruction.to_owned(), comment.to_owned());
    assert!(rows(shown).contains(&row), "{row:?} in {}", shown.stdout);
}

fn json(shown: Finished) -> Value {
    serde_json::from_str(&shown.succeeded().stdout).unwrap()
}

#[test]
fn names_stand_in_place_of_displacements() {
    if !require::cc() {
        return;
    }
    let serve = with_f();
    let shown = serve.command("dis", &["f"]).succeeded();
    let header = shown.stdout.lines().next().unwrap();
    assert!(
        header.starts_with("f(i64) -> i64: unit f, generation 4, w+0x"),
        "{header}"
    );
    let other = "call cell of other(i64) -> i64, unit other";
    assert_row(&shown, "call qword ptr [rip+other@call]", other);
    let puts = "call cell of the host's puts(ptr) -> i32";
    assert_row(&shown, "call qword ptr [rip+puts@call]", puts);
    assert_row(&shown, "call inner", "code of unit f");
    let has = |part: &str, comment: &str| {
        let rows = rows(&shown);
        let mut found = rows.iter().filter(|row| row.0.contains(part));
        let found = found.find(|row| row.1.starts_with(comment));
        assert!(found.is_some(), "{part} {comment} in {}", shown.stdout);
    };
    has("[rip+other@addr]", "address cell of other(i64) -> i64");
    has("[rip+counter]", "private data of unit f");
    has("[rip+f.rodata", "read-only data of unit f");
    // Where it goes in itself needs no comment.
    has("f+0x", "");
    let shown = serve.command("dis", &["f", "--syntax", "att"]).succeeded();
    assert_row(&shown, "callq *other@call(%rip)", other);
    let plt = "long other(long); long g(long x) { return other(x) + 1; }";
    let object = serve.scratch.object("g.o", plt);
    serve.publish(&[&object]).succeeded();
    let shown = serve.command("dis", &["g"]).succeeded();
    assert!(
        shown
            .stdout
            .starts_with("g, of an unknown signature: unit g")
    );
    assert_row(
        &shown,
        "call other",
        "stub of other(i64) -> i64, unit other",
    );
}

#[test]
fn of_a_worker_all_is_as_it_is_there() {
    if !require::cc() {
        return;
    }
    let serve = with_f();
    let worker = Remote::start(&serve.socket);
    let pid = worker.pid().to_string();
    let listing = json(serve.command("dis", &["f", "--json", "--worker", &pid]));
    assert_eq!(listing["worker"]["base"], worker.base());
    assert_eq!(listing["worker"]["unreadable"], Value::Null);
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let read = |address: u64, len: usize| {
        let mut bytes = vec![0; len];
        memory.read_exact_at(&mut bytes, address).unwrap();
        bytes
    };
    let (mut end, mut cells) = (worker.base() + listing["offset"].as_u64().unwrap(), 0);
    for line in listing["instructions"].as_array().unwrap() {
        let address = line["address"].as_u64().unwrap();
        assert_eq!(address, end, "no gaps: {line}");
        let bytes = line["bytes"].as_str().unwrap();
        let there = read(address, bytes.len() / 2);
        let there: String = there.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(bytes, there);
        end += bytes.len() as u64 / 2;
        if let Some(holds) = line["holds"].as_u64() {
            let cell = worker.base() + line["target"]["offset"].as_u64().unwrap();
            assert_eq!(read(cell, 8), holds.to_le_bytes());
            cells += 1;
        }
    }
    assert_eq!(
        cells, 3,
        "calls of `other` and `puts`, the address of `other`: {listing:#}"
    );
    let refused = serve.command("dis", &["f", "--worker", "1"]);
    refused.refused(&["process 1 is no worker of this segment", "jitcast status"]);
}

#[test]
fn a_worker_that_runs_a_canary_shows_its_version() {
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 1);
    let workers = [Remote::start(&serve.socket), Remote::start(&serve.socket)];
    let new = serve.scratch.write("f.clif", adds("f", 1000));
    serve.publish(&[&new, "--canary", "1"]).succeeded();
    let [first, second] = workers.map(|mut worker| {
        worker.ask("generation");
        let pid = worker.pid().to_string();
        json(serve.command("dis", &["f", "--json", "--worker", &pid]))
    });
    assert_eq!(
        (&first["canary"], &first["generation"]),
        (&4.into(), &4.into())
    );
    assert_eq!(
        (&second["canary"], &second["generation"]),
        (&Value::Null, &3.into())
    );
    let adds = |listing: &Value, text: &str| listing.to_string().contains(text);
    assert!(adds(&first, "1000") || adds(&first, "0x3e8"), "{first}");
    let published = json(serve.command("dis", &["f", "--json"]));
    assert_eq!(
        published["instructions"][2]["text"],
        second["instructions"][2]["text"]
    );
}

#[test]
fn a_named_segment_needs_no_compiler_process() {
    let name = Name::new("dis");
    let serve = Serve::start(&["--name", &name.0]);
    serve.publish_adds("f", 1);
    serve.process.signal(rustix::process::Signal::KILL);
    let shown = finish(&mut jitcast(&["dis", "f", "--name", &name.0])).succeeded();
    assert!(
        shown
            .stdout
            .starts_with("f(i64) -> i64: unit f, generation 3")
    );
    let none = finish(&mut jitcast(&["dis", "f", "--name", "test-dis-none"]));
    none.refused(&[
        "cannot open /dev/shm/jitcast-test-dis-none",
        "help: check the name",
    ]);
}

#[test]
fn what_is_no_published_function_is_refused() {
    let serve = Serve::start(&[]);
    let refused = serve.command("dis", &["f"]);
    refused.refused(&["`f` is not published", "jitcast why f"]);
    let object = common::object::Maker::new().read_only("datum", &[7; 64]);
    let object = serve.scratch.write("datum.o", object.finish());
    serve.publish(&[&object]).succeeded();
    let refused = serve.command("dis", &["datum"]);
    refused.refused(&["`datum` is no function"]);
    assert_eq!(serve.status().workers, [], "who looks is no worker");
    if !require::root() {
        return;
    }
    let serve = Serve::start(&["--allow-attach", "uid:1"]);
    let mut nobody = jitcast_as(NOBODY, &["dis", "datum", "--socket", &serve.socket]);
    finish(&mut nobody).refused(&["uid 65534 gid 65534 may not attach", "--allow-attach 65534"]);
}

#[test]
fn lines_stand_above_the_code_that_comes_from_them() {
    if !require::cc() {
        return;
    }
    let folder = common::scratch::Scratch::new();
    let journal = folder.path("journal");
    let serve = Serve::start(&["--journal", &journal]);
    serve.publish_adds("other", 1);
    let source = serve.scratch.write("f.c", SOURCE);
    serve.publish(&[&source]).succeeded();
    let line_of = |listing: &Value, text: &str| {
        let instructions = listing["instructions"].as_array().unwrap();
        let mut found = instructions.iter();
        let found = found.find(|line| line["text"].as_str().unwrap().contains(text));
        found.map(|line| {
            (
                line["source"]["line"].clone(),
                line["source"]["file"].clone(),
            )
        })
    };
    let expected = Some((Value::from(9), Value::from(source.clone())));
    let listing = json(serve.command("dis", &["f", "--json"]));
    assert_eq!(line_of(&listing, "call inner"), expected);
    let shown = serve.command("dis", &["f"]).succeeded();
    assert!(
        shown.stdout.contains(&format!("\n{source}:9\n")),
        "{}",
        shown.stdout
    );
    // What is compiled without debugging information, and CLIF, have none.
    let other = json(serve.command("dis", &["other", "--json"]));
    assert_eq!(other["instructions"][0]["source"], Value::Null);
    // A static function, by its unit.
    let inner = json(serve.command("dis", &["inner", "--unit", "f", "--json"]));
    assert_eq!(line_of(&inner, "ret").map(|(line, _)| line), Some(4.into()));
    serve
        .command("dis", &["none", "--unit", "f"])
        .refused(&["the unit `f` has no function `none`", "help: "]);
    serve
        .command("dis", &["f", "--unit", "none"])
        .refused(&["there is no unit `none`", "jitcast status"]);
    // They outlive the compiler process, with the sources in its journal.
    let Serve {
        process,
        socket,
        scratch,
    } = serve;
    process.signal(rustix::process::Signal::KILL);
    process.finish();
    let process = Serve::start_at(&socket, &["--journal", &journal]);
    let serve = Serve::adopt_running(process, socket, scratch);
    let listing = json(serve.command("dis", &["f", "--json"]));
    assert_eq!(line_of(&listing, "call inner"), expected);
    // What was kept of its sources alone tells what has been replaced; nothing tells it where sources are not retained.
    let bare = Serve::start(&["--retain", "0"]);
    bare.publish_adds("other", 1);
    let source = bare.scratch.write("f.c", SOURCE);
    bare.publish(&[&source]).succeeded();
    let listing = json(bare.command("dis", &["f", "--json"]));
    assert_eq!(
        line_of(&listing, "call inner"),
        Some((Value::Null, Value::Null))
    );
}

#[test]
fn units_that_workers_asked_for_are_shown_by_their_names() {
    let host = Host::compiling(RequestLimits::default());
    let worker = Worker::attach(
        Endpoint::Path(Path::new(&host.socket)),
        WorkerOptions::default(),
    )
    .unwrap();
    let mut pending = worker.request(&adds("jc_asked", 77)).unwrap();
    assert!(pending.wait(None));
    let guard = worker.enter().unwrap();
    let unit = pending.unit(&guard).unwrap();
    let name = host.compiler.status().asked[0].name.clone();
    let shown = finish(&mut jitcast(&[
        "dis",
        "jc_asked",
        "--unit",
        &name,
        "--socket",
        &host.socket,
        "--json",
    ]));
    let listing = json(shown);
    assert_eq!(listing["unit"], Value::from(name));
    let text = listing["instructions"].to_string();
    assert!(text.contains("77") || text.contains("0x4d"), "{text}");
    drop(unit);
}

/// Two files that share an inline function; each has a function that nobody reaches.
const INLINE: &str = "#pragma once
inline __attribute__((noinline)) long jc_shared(long x) {
    return x * 3;
}
";

#[test]
fn lines_are_those_of_the_copy_that_is_there() {
    if !require::cxx() {
        return;
    }
    let serve = Serve::start(&[]);
    serve.scratch.write("shared.h", INLINE);
    let object = |name: &str| {
        let source = format!(
            "#include \"shared.h\"\nextern \"C\" long {name}_unreached(long x) {{ return jc_shared(x) + 1; }}\nextern \"C\" long {name}(long x) {{\n    return jc_shared(x) + 2;\n}}\n"
        );
        let path = serve.scratch.path(&format!("{name}.o"));
        let flags = ["-c", "-g", "-O0", "-fPIC", "-ffunction-sections"];
        serve.scratch.cplusplus_to(&path, &source, "g++", &flags);
        path
    };
    let (first, second) = (object("jc_first"), object("jc_second"));
    let arguments = [
        "--unit",
        "both",
        &first,
        &second,
        "--gc-sections",
        "--root",
        "jc_first",
        "--root",
        "jc_second",
    ];
    serve.publish(&arguments).succeeded();
    let lines = |symbol: &str| {
        let listing = json(serve.command("dis", &[symbol, "--unit", "both", "--json"]));
        let instructions = listing["instructions"].as_array().unwrap().clone();
        let source = |line: &Value| {
            let file = line["source"]["file"]
                .as_str()
                .unwrap()
                .rsplit('/')
                .next()
                .unwrap()
                .to_owned();
            (file, line["source"]["line"].as_u64().unwrap())
        };
        let mut lines: Vec<_> = instructions.iter().map(source).collect();
        lines.dedup();
        lines
    };
    let of =
        |file: &str, numbers: [u64; 3]| numbers.map(|number| (file.to_owned(), number)).to_vec();
    assert_eq!(lines("_Z9jc_sharedl"), of("shared.h", [2, 3, 4]));
    for name in ["jc_first", "jc_second"] {
        let found = lines(name);
        let numbers: Vec<u64> = found.iter().map(|(_, number)| *number).collect();
        assert_eq!(numbers, [3, 4, 5], "{found:?}");
    }
}
