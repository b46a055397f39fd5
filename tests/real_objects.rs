//! Objects of real compilers in our window, every site judged: Lua's and random programs', under every code model.
//!
//! Only compilers make some things: jump tables, strings by section and addend, vtables of functions, unwind tables
//! beside them.

mod common;
#[path = "lua/archive.rs"]
mod lua_archive;

use std::collections::BTreeSet;
use std::process::Command;

use common::process::finish;
use common::require;
use common::scratch::Scratch;
use jitcast_fuzz::build::{Built, START};
use jitcast_fuzz::case::{Case, Places};
use jitcast_fuzz::check::check_built;
use jitcast_fuzz::program::{Features, Program};
use jitcast_oracle::Report;
use jitcast_oracle::elf::Elf;

const FLAGS: [&str; 8] = [
    "-O2 -fPIC",
    "-O1 -fPIC -fno-plt -ffunction-sections -fdata-sections",
    "-O0 -fPIE",
    "-O3 -fPIE -fcf-protection",
    "-O2 -fPIC -mcmodel=medium",
    "-O2 -fPIC -mcmodel=large",
    "-O0 -fPIC -mcmodel=large",
    "-O1 -fno-pie -mcmodel=large",
];

/// Gives each section that is placed a name for its start, so that it is found again.
fn named(scratch: &Scratch, path: &str, number: usize) -> Built {
    let bytes = std::fs::read(path).unwrap();
    let elf = Elf::parse(&bytes).unwrap();
    let marked = scratch.path("marked.o");
    let mut objcopy = Command::new("objcopy");
    let mut seen = BTreeSet::new();
    for section in elf.sections.iter().filter(|section| section.is_loaded()) {
        // What is not placed has no start; of two of one name objcopy knows one.
        let dropped = section.name == ".eh_frame" || section.name.starts_with(".note");
        if !dropped && seen.insert(section.name) {
            let name = format!("{START}{number}_{}", seen.len());
            objcopy.args(["--add-symbol", &format!("{name}={}:0,global", section.name)]);
        }
    }
    finish(objcopy.args([path, &marked])).succeeded();
    let name = path.rsplit('/').next().unwrap_or(path).to_owned();
    Built {
        name,
        bytes: std::fs::read(marked).unwrap(),
        text: Vec::new(),
    }
}

/// Links the objects as one unit in a window, and judges every site.
fn judged(scratch: &Scratch, paths: &[String], what: &str) -> Report {
    let case = Case {
        units: Vec::new(),
        window: Places {
            slots: 0x1000,
            stubs: 0x40_0000,
            text: 0x80_0000,
            read_only: 0x400_0000,
            private: 0x800_0000,
            shared: 0xc00_0000,
        },
        bases: vec![0x7f12_3456_7000, 0x1000_0000],
    };
    let unit = paths
        .iter()
        .enumerate()
        .map(|(number, path)| named(scratch, path, number));
    let report = check_built(&case, &[unit.collect()]);
    report.unwrap_or_else(|failure| panic!("{what}: {failure}"))
}

fn sums(report: &Report) -> (u64, u64) {
    let excused = report
        .kinds
        .values()
        .flat_map(|tally| tally.excused.values());
    (report.looked_at(), excused.sum())
}

#[test]
fn every_site_of_lua() {
    if !require::cc() {
        return;
    }
    let scratch = Scratch::new();
    let lua = lua_archive::lua(&[], lua_archive::compile);
    let archive = lua_archive::archive(&lua).display().to_string();
    let listed = finish(Command::new("ar").args(["t", &archive]))
        .succeeded()
        .stdout;
    let folder = scratch.path("");
    finish(
        Command::new("ar")
            .current_dir(&folder)
            .args(["x", &archive]),
    )
    .succeeded();
    let members: Vec<String> = listed.lines().map(|member| scratch.path(member)).collect();
    let (sites, excused) = sums(&judged(&scratch, &members, "liblua"));
    assert!(
        sites > 10_000 && excused > 0,
        "{sites} sites, {excused} excused"
    );
}

#[test]
fn random_programs_in_every_code_model() {
    if !(require::cc() && require::clang()) {
        return;
    }
    let scratch = Scratch::new();
    let mut all = Report::default();
    for (seed, flags) in (0_u64..).zip(FLAGS) {
        for compiler in ["gcc", "clang"] {
            let program = Program::new(1000 + seed, Features::default());
            let mut objects = Vec::new();
            for (name, text) in &program.files {
                let (source, object) = (
                    scratch.write(name, text),
                    scratch.path(&format!("{name}.o")),
                );
                let mut command = Command::new(compiler);
                command
                    .args(flags.split(' '))
                    .args(["-w", "-c", &source, "-o", &object]);
                finish(&mut command).succeeded();
                objects.push(object);
            }
            all.add(judged(
                &scratch,
                &objects,
                &format!("program {seed}, {compiler} {flags}"),
            ));
        }
    }
    let (sites, excused) = sums(&all);
    assert!(
        sites > 5_000 && excused > 500,
        "{sites} sites, {excused} excused"
    );
}
