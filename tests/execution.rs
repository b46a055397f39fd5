//! Random C programs under every compiler, code model and flag that relocations depend on: linked natively and by
//! jitcast, executed natively and in two worker processes, they print the same.
//!
//! `JITCAST_EXECUTION_PROGRAMS` says how many (default: 6, with fixed seeds); `JITCAST_EXECUTION_SEED` where to begin.

mod common;

use std::process::Command;

use common::process::{finish, jitcast};
use common::require;
use common::scratch::Scratch;
use common::serve::table;
use jitcast_fuzz::program::{ENTRY, Features, Program, main_file};

/// What each file of a program is compiled with. The next program starts where this one ended, so that six programs of
/// six runs each meet all of them with both compilers.
const FLAGS: [&str; 18] = [
    "-O0 -fPIC",
    "-O1 -fPIE",
    "-O2 -fPIC -fno-plt",
    "-O3 -fPIC -ffunction-sections -fdata-sections",
    "-O2 -fPIE -fcf-protection",
    "-O1 -fPIC -mcmodel=medium",
    "-O2 -fPIC -mcmodel=large",
    "-O2 -fPIC -mno-red-zone -g -gz",
    "-O0 -fPIE -g",
    "-O3 -fPIC -fno-plt -fcf-protection",
    "-O0 -fPIC -mcmodel=large",
    "-O2 -fPIC -mcmodel=medium -fno-plt",
    "-Os -fPIC -ffunction-sections",
    "-O1 -fPIC -fno-plt -fdata-sections",
    "-O2 -fPIE -mno-red-zone",
    "-O3 -fPIE",
    "-O0 -fPIC -mcmodel=medium -fno-plt",
    "-O1 -fPIC -mcmodel=large -ffunction-sections",
];

/// How often each program is built.
const RUNS: usize = 6;

const ARGUMENTS: [i64; 3] = [1, -77, 0x1234_5678_9abc];

fn variable(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else {
        return default;
    };
    text.parse()
        .unwrap_or_else(|_| panic!("{name} is no number: {text}"))
}

struct Build<'b> {
    scratch: &'b Scratch,
    program: &'b Program,
    features: Features,
    what: String,
}

impl Build<'_> {
    /// Compiles each file: with the compiler and the flags numbered `first`, or each with the next ones.
    fn objects(&mut self, first: usize, mixed: bool) -> Vec<String> {
        let mut objects = Vec::new();
        for (index, (name, text)) in self.program.files.iter().enumerate() {
            let number = first + if mixed { index } else { 0 };
            let compiler = ["gcc", "clang"][number % 2];
            let mut flags = FLAGS[number / 2 % FLAGS.len()].to_owned();
            if self.features.thread_local {
                // Code for executables counts from the thread pointer, where no unit's block can be.
                flags = flags.replace("-fPIE", "-fPIC");
            }
            self.what += &format!("\n  {name}: {compiler} {flags}");
            let (source, object) = (
                self.scratch.write(name, text),
                self.scratch.path(&format!("{name}.o")),
            );
            let mut command = Command::new(compiler);
            command
                .args(flags.split(' '))
                .args(["-w", "-c", &source, "-o", &object]);
            finish(&mut command).succeeded();
            objects.push(object);
        }
        objects
    }

    /// What the program prints when the system's linker has linked it: lines, and the results among them.
    fn native(&self, objects: &[String]) -> (Vec<String>, Vec<String>) {
        let main = self.scratch.write("main.c", main_file(&ARGUMENTS));
        let program = self.scratch.path("native");
        let mut command = Command::new("gcc");
        finish(
            command
                .args(["-O1", "-no-pie", "-o", &program, &main])
                .args(objects),
        )
        .succeeded();
        let printed = finish(&mut Command::new(&program)).succeeded().stdout;
        let is_result = |line: &&str| line.parse::<i64>().is_ok();
        let lines = |of_results: bool| {
            let lines = printed.lines().filter(|line| is_result(line) == of_results);
            lines.map(str::to_owned).collect()
        };
        (lines(false), lines(true))
    }

    fn agrees(&self, objects: &[String]) {
        let (lines, results) = self.native(objects);
        let mut command = jitcast(&["run", "--workers", "2"]);
        for argument in ARGUMENTS {
            command.arg(format!("--call={ENTRY}({argument}) -> i64"));
        }
        let done = finish(command.args(objects));
        assert_eq!(done.code, Some(0), "{}\n{done:#?}", self.what);
        for worker in ["worker 1: ", "worker 2: "] {
            let printed: Vec<&str> = done
                .stdout
                .lines()
                .filter_map(|line| line.strip_prefix(worker))
                .collect();
            assert_eq!(printed, lines, "{}\n{worker}", self.what);
        }
        let rows = table(&done.stdout);
        assert_eq!(rows.len(), 3, "{}\n{}", self.what, done.stdout);
        for row in &rows[1..] {
            assert_eq!(row[3..row.len() - 3], results, "{}", self.what);
        }
    }
}

#[test]
fn programs_print_what_they_print_natively() {
    if !(require::cc() && require::clang()) {
        return;
    }
    let first = variable("JITCAST_EXECUTION_SEED", 1);
    let scratch = Scratch::new();
    for number in 0..variable("JITCAST_EXECUTION_PROGRAMS", 6) {
        let seed = first + number;
        let features = Features {
            thread_local: number % 2 == 1,
        };
        let program = Program::new(seed, features);
        for run in 0..RUNS {
            let mut build = Build {
                scratch: &scratch,
                program: &program,
                features,
                what: format!("program {seed}"),
            };
            let flags = number as usize * RUNS + run;
            // Every third build mixes compilers and models in one unit.
            let objects = build.objects(flags, run % 3 == 2);
            build.agrees(&objects);
        }
    }
}
