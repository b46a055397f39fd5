//! The same random objects, linked by GNU ld and by lld at the addresses of our window: the bytes agree, but for the
//! differences that `jitcast_fuzz::differ` lists with their reasons.

mod common;

use std::process::Command;

use common::process::finish;
use common::require;
use common::scratch::Scratch;
use jitcast_fuzz::build::{Audience, Built, build_for};
use jitcast_fuzz::differ::{self, ASKS_FOR_TABLE, Agreement, DIFFERENCES, Ours};
use jitcast_fuzz::session;
use jitcast_oracle::table;
use object::elf;

/// How many units.
const CASES: u64 = 60;

/// How a linker is called, and the kinds that it does not know.
struct Linker {
    program: &'static str,
    arguments: &'static [&'static str],
    unknown: &'static [u32],
}

const GNU_LD: Linker = Linker {
    program: "ld",
    arguments: &["-z", "noexecstack", "--no-warn-rwx-segments"],
    unknown: &[],
};

const LLD: Linker = Linker {
    program: "ld.lld",
    arguments: &["-z", "noexecstack"],
    unknown: &[elf::R_X86_64_GOTPCREL64, elf::R_X86_64_GOTPLT64],
};

/// What linkers say where a relaxed operand is out of range.
const REFUSALS: [&str; 2] = ["relink with --no-relax", "GOTPCRELX out of range"];

impl Linker {
    fn link(
        &self,
        scratch: &Scratch,
        unit: &[Built],
        script: &str,
        relax: &str,
    ) -> Option<Vec<u8>> {
        let mut command = Command::new(self.program);
        command.args([relax, "-O0", "-e", "0", "-static"]);
        command.args(self.arguments).args(differ::definitions());
        command.arg("-T").arg(scratch.write("script", script));
        for file in unit {
            command.arg(scratch.write(&file.name, &file.bytes));
        }
        command.arg(scratch.write(ASKS_FOR_TABLE, differ::asks_for_table()));
        let linked = scratch.path("linked.elf");
        let done = finish(command.arg("-o").arg(&linked));
        // An operand that becomes an immediate has no room for addresses as high as ours.
        let high = relax == "--relax" && done.code == Some(1);
        if high && REFUSALS.iter().any(|why| done.stderr.contains(why)) {
            return None;
        }
        done.succeeded();
        Some(std::fs::read(linked).unwrap())
    }

    fn agrees(&self) {
        if !require::linker(self.program) {
            return;
        }
        let scratch = Scratch::new();
        let mut all = Agreement::default();
        for index in 0..CASES {
            let case = session::single(4, index).unwrap();
            let [unit] = &build_for(&case, Audience::Everybody(self.unknown))[..] else {
                panic!("one unit");
            };
            let ours =
                Ours::link(&case, unit).unwrap_or_else(|error| panic!("case {index}: {error}"));
            let script = differ::script(&ours.objects, &ours.layout);
            // Relaxed, what they rewrite is a difference too; it must not hide another.
            let relax = if index % 4 == 3 {
                "--relax"
            } else {
                "--no-relax"
            };
            let Some(linked) = self.link(&scratch, unit, &script, relax) else {
                continue;
            };
            let agreement = ours.compare(&linked);
            all.add(&agreement.unwrap_or_else(|error| panic!("case {index}: {error}")));
        }
        for difference in DIFFERENCES {
            let seen = all.differ.contains_key(difference.name);
            assert!(seen, "{} never occurs: {all:?}", difference.name);
        }
        // What differs by its nature cannot be the same; everything else has to be, many times.
        for row in table::TABLE.iter().filter(|row| !row.is_thread_local()) {
            let by_nature = row.formula.contains('G') || self.unknown.contains(&row.number);
            let same = all.same.get(&row.number).copied().unwrap_or(0);
            assert!(by_nature || same > 10, "{}: {same} sites agree", row.name);
        }
    }
}

#[test]
fn gnu_ld_links_the_same_bytes() {
    GNU_LD.agrees();
}

#[test]
fn lld_links_the_same_bytes() {
    LLD.agrees();
}
