//! How many instructions linking, publishing, attaching, applying and polling take: what a change costs shows on a noisy machine too, and
//! whether the cost grows linearly.
//!
//! They are counted by valgrind's callgrind, in the build that the tests run, and compared with what is written down in
//! `benches/instructions.json`. More than a tenth more fails. To accept what is counted:
//! `CARGO_INCREMENTAL=0 JITCAST_ACCEPT=1 cargo test --workspace --features seeded-faults --test instructions`.

#[path = "../benches/common/mod.rs"]
mod benches;
mod common;
#[path = "publish/units.rs"]
mod units;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::Path;
use std::process::Command;

use benches::linking::link;
use common::host::Host;
use common::process::Process;
use common::scratch::Scratch;
use common::{require, role};
use jitcast::compiler::{Compiler, CompilerOptions, Threads, UnitSource};
use jitcast::runtime::cpu::CpuFeatures;
use jitcast::worker::Worker;
use units::{adders, publish};

jitcast::worker::embed!();

/// What was counted before.
const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.json");

/// Whether this is a build as it was counted: incremental compilation optimizes less.
const COMPARED: bool = matches!(option_env!("CARGO_INCREMENTAL"), Some(value) if value.len() == 1 && value.as_bytes()[0] == b'0');

/// How much more is taken for chance, parts of a hundred: hash tables are seeded anew in each process.
const TOLERANCE_PERCENT: u64 = 10;

/// How much more ten times the input may take.
const LINEAR: u64 = 11;

/// What a role that is counted reports last.
const DONE: &str = "done";

/// Counts per case, and the compiler that made the code that was counted.
#[derive(Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
struct Record {
    rustc: String,
    instructions: BTreeMap<String, u64>,
}

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[
        ("compiler", compile),
        ("linking", |_| linking()),
        ("publishing", |_| publishing()),
        ("working", working),
    ]);
}

/// Callgrind counts what is executed in here, and writes the sum down at the end of each call.
#[inline(never)]
fn counted(what: &mut dyn FnMut()) {
    what();
}

/// Counts one case, and says its name.
fn count(case: &str, mut what: impl FnMut()) {
    role::report(case);
    counted(&mut what);
}

// What is linked.

type Files = Vec<(String, Vec<u8>)>;

/// A file as the linker takes it.
fn named((name, bytes): &(String, Vec<u8>)) -> (&str, &[u8]) {
    (name, bytes)
}

fn linking() {
    let one = |bytes| vec![("unit.o".to_owned(), bytes)];
    let many = |count| {
        let objects = benches::generated_objects(count).into_iter();
        let named = |(number, bytes)| (format!("{number}.o"), bytes);
        objects.enumerate().map(named).collect::<Files>()
    };
    let shapes: [(&str, &dyn Fn(usize) -> Files); 3] = [
        ("one section", &|functions| {
            one(benches::generated_object(functions))
        }),
        ("a section each", &|functions| {
            one(benches::generated_sections(functions))
        }),
        ("an object each", &many),
    ];
    for (shape, make) in shapes {
        for functions in [500, 5000] {
            let files = make(functions);
            let files: Vec<_> = files.iter().map(named).collect();
            count(&format!("link: {functions} functions, {shape}"), || {
                black_box(link(&files));
            });
        }
    }
    let tiny = one(benches::generated_object(1));
    let tiny: Vec<_> = tiny.iter().map(named).collect();
    count("link: a function", || {
        black_box(link(&tiny));
    });
    role::report(DONE);
}

// What is published.

/// So many functions in one unit.
fn one_unit(name: &str, functions: usize, bonus: i32) -> Vec<UnitSource> {
    let names: Vec<String> = (0..functions)
        .map(|index| format!("{name}_{index}"))
        .collect();
    let functions: Vec<_> = names.iter().map(|name| (name.as_str(), bonus)).collect();
    vec![adders(name, &functions)]
}

/// So many units of a function each.
fn many_units(name: &str, units: usize, bonus: i32) -> Vec<UnitSource> {
    let names = (0..units).map(|index| format!("{name}_{index}"));
    names.map(|name| adders(&name, &[(&name, bonus)])).collect()
}

fn publishing() {
    let compiler = Compiler::create(&CompilerOptions {
        // One thread does it all, and is counted; what is replaced is freed now and then.
        threads: Threads::new(1),
        reclaim_above_bytes: 64 << 10,
        ..CompilerOptions::with_window(1 << 30).unwrap()
    });
    let compiler = compiler.unwrap();
    let publish = |batch: &[UnitSource]| drop(compiler.publish(batch).unwrap());
    // What the first publication of a process finds out is not to be counted.
    publish(&one_unit("other", 10, 0));
    let versions = [1, 2].map(|bonus| one_unit("tiny", 1, bonus));
    publish(&versions[0]);
    count("publish: a function, replaced, 100 times", || {
        for number in 1..=100 {
            publish(black_box(&versions[number % 2]));
        }
    });
    for (what, bonus) in [("new", 1), ("replaced", 2)] {
        let batch = one_unit("many", 1000, bonus);
        let case = format!("publish: 1000 functions in one unit, {what}");
        count(&case, || publish(black_box(&batch)));
    }
    role::report(DONE);
}

// What workers do.

/// The compiler process, which is not counted. It publishes what it is told to.
fn compile(_: &str) {
    let host = Host::with(CompilerOptions {
        // Callgrind's processor lacks some of this one's features.
        cpu: CpuFeatures::from_bits(0),
        ..CompilerOptions::with_window(1 << 30).unwrap()
    });
    role::report(&host.socket);
    let mut version = 0;
    while let Some(line) = role::next_line() {
        version += 1;
        let (count, shape) = line.split_once(' ').unwrap();
        let count = count.parse().unwrap();
        let batch = match shape {
            "in one unit" => one_unit("one", count, version),
            "in as many units" => many_units("many", count, version),
            _ => panic!("unknown shape `{shape}`"),
        };
        publish(&host, &batch);
        role::report("published");
    }
}

fn working(socket: &str) {
    let attach = || common::remote::attach(socket);
    let publish = |what: &str| {
        role::report(format!("publish {what}"));
        assert_eq!(role::next_line().as_deref(), Some("published"));
    };
    // A process attaches once; what later ones find already made is not to be missed here.
    drop(attach());
    let mut attached = None;
    publish("10 in one unit");
    count("attach: 10 functions", || attached = Some(attach()));
    let worker: Worker = attached.take().unwrap();
    count("poll: nothing new, 1,000 times", || {
        for _ in 0..1000 {
            black_box(&worker).poll().unwrap();
        }
    });
    for shape in ["in one unit", "in as many units"] {
        for functions in [1, 100, 1000] {
            for what in ["new", "replaced"] {
                publish(&format!("{functions} {shape}"));
                let case = format!("apply: {functions} functions {shape}, {what}");
                count(&case, || drop(worker.enter().unwrap()));
            }
        }
    }
    drop(worker);
    for functions in [1000, 10_000] {
        publish(&format!("{functions} in one unit"));
        count(
            &format!("attach: {functions} functions and 1,000 units"),
            || {
                attached = Some(attach());
            },
        );
        attached = None;
    }
    role::report(DONE);
}

// The counting.

/// Plays `role` on `target` under callgrind. `obey` is told what the role reports that is no case.
fn count_role(
    role: &str,
    target: &str,
    mut obey: impl FnMut(&str) -> String,
) -> Vec<(String, u64)> {
    let scratch = Scratch::open_to_all();
    let out = scratch.path("counts");
    let own = role::command(role, target);
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args([
            "--tool=callgrind",
            "--collect-atstart=no",
            "--toggle-collect=*instructions::counted",
        ])
        .arg("--dump-after=*instructions::counted")
        .arg(format!("--callgrind-out-file={out}"))
        .arg(own.get_program())
        .args(own.get_args());
    for (key, value) in own.get_envs() {
        valgrind.env(key, value.unwrap_or_default());
    }
    let mut process = Process::start_listening(&mut valgrind);
    let mut cases = Vec::new();
    loop {
        let report = role::next_report(&mut process);
        match report.strip_prefix("publish ") {
            _ if report == DONE => break,
            Some(what) => process.send(&obey(what)),
            None => cases.push(report),
        }
    }
    process.finish().succeeded();
    let counts = (1..).zip(cases).map(|(number, case)| {
        let dump = std::fs::read_to_string(format!("{out}.{number}")).unwrap();
        (case, total(&dump))
    });
    counts.collect()
}

/// How many instructions a dump of callgrind counts.
fn total(dump: &str) -> u64 {
    let line = dump.lines().find_map(|line| line.strip_prefix("totals: "));
    line.expect("a dump has totals").trim().parse().unwrap()
}

fn rustc() -> String {
    let version = Command::new("rustc").arg("-V").output().unwrap().stdout;
    String::from_utf8(version).unwrap().trim().to_owned()
}

#[test]
fn a_change_that_costs_a_tenth_is_seen() {
    if !require::valgrind() {
        return;
    }
    let mut counts = count_role("linking", "", |what| panic!("{what}?"));
    counts.extend(count_role("publishing", "", |what| panic!("{what}?")));
    let mut compiler = role::start("compiler", "");
    let socket = role::next_report(&mut compiler);
    counts.extend(count_role("working", &socket, |what| {
        compiler.send(what);
        role::next_report(&mut compiler)
    }));
    let counted = Record {
        rustc: rustc(),
        instructions: counts.into_iter().collect(),
    };
    for (case, count) in &counted.instructions {
        println!("{count:>12}  {case}");
    }
    let ratio = |case: &str, other: &str| {
        let (one, other) = (counted.instructions[case], counted.instructions[other]);
        assert!(
            one <= LINEAR * other,
            "ten times as much is not linear: {case}: {one}, {other}"
        );
    };
    for shape in ["one section", "a section each", "an object each"] {
        let case = |functions| format!("link: {functions} functions, {shape}");
        ratio(&case(5000), &case(500));
    }
    for shape in ["in one unit", "in as many units"] {
        let case = |functions| format!("apply: {functions} functions {shape}, replaced");
        ratio(&case(1000), &case(100));
    }
    let known = std::fs::read_to_string(RECORD).ok();
    let known: Record =
        known.map_or_else(Record::default, |text| serde_json::from_str(&text).unwrap());
    if COMPARED && std::env::var_os("JITCAST_ACCEPT").is_some() {
        let text = serde_json::to_string_pretty(&counted).unwrap();
        std::fs::write(
            RECORD,
            text + "
",
        )
        .unwrap();
        return;
    }
    if !COMPARED {
        require::unavailable(
            "counts are compared in a build without incremental compilation: CARGO_INCREMENTAL=0",
        );
        return;
    }
    if known.rustc != counted.rustc {
        let (then, now) = (known.rustc, counted.rustc);
        require::unavailable(&format!(
            "the counts written down are of {then}, this is {now}"
        ));
        return;
    }
    let cases = |record: &Record| record.instructions.keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        cases(&counted),
        cases(&known),
        "JITCAST_ACCEPT=1 writes other cases down"
    );
    let grown: Vec<_> = (counted.instructions.iter())
        .filter_map(|(case, &now)| {
            let then = known.instructions[case];
            let grown = now * 100 > then * (100 + TOLERANCE_PERCENT);
            grown.then(|| format!("{case}: {then} instructions before, {now} now"))
        })
        .collect();
    assert!(
        grown.is_empty(),
        "{}\nIf that is what it takes, JITCAST_ACCEPT=1 writes it down in {}.",
        grown.join("\n"),
        Path::new(RECORD).display()
    );
}
