//! The oracle as a command: it agrees with what other linkers make of compiled objects, notices damage, and reads
//! objects as readelf does.

mod common;

use std::collections::BTreeSet;
use std::process::Command;

use common::process::{Finished, finish, jitcast};
use common::require;
use common::scratch::Scratch;
use jitcast_oracle::elf::{Elf, Home};
use jitcast_oracle::table;

const MAIN: &str = r#"
#include <stdio.h>
#include <stdlib.h>
extern long (*const table[])(long);
extern long counter;
long helper(long);
static const char *names[] = {"zero", "one", "two", "three"};
static int order(const void *a, const void *b) { return *(const long *)a < *(const long *)b ? -1 : 1; }
static long pick(long x) {
    switch (x) {
    case 0: return 11; case 1: return 5; case 2: return helper(x); case 3: return 1; case 4: return 90;
    case 5: return -2; case 6: return 17; default: return 0;
    }
}
int main(void) {
    long v[8];
    for (int i = 0; i < 8; i++) v[i] = pick(i) * table[i % 3](i) + counter;
    qsort(v, 8, 8, order);
    for (int i = 0; i < 8; i++) printf("%s %ld\n", names[i & 3], v[i]);
    fprintf(stderr, "%s\n", getenv("HOME") ? names[1] : names[2]);
    return 0;
}
"#;

const HELPER: &str = r#"
#include <stdlib.h>
long counter = 7;
long buffer[100];
static long twice(long x) { return 2 * x + buffer[x]; }
long helper(long x) { return 3 * x; }
long (*const table[])(long) = {twice, helper, labs};
"#;

/// The flags that objects are compiled with, and those that they can be linked with.
const FLAGS: [(&[&str], &[&str]); 5] = [
    (&["-O0", "-fno-pie"], &["-no-pie", "-static"]),
    (
        &["-O2", "-fPIC"],
        &["-no-pie", "-pie", "-static", "-shared"],
    ),
    (&["-O2", "-fPIC", "-fno-plt"], &["-pie", "-shared"]),
    (
        &["-O1", "-fPIE", "-ffunction-sections", "-fdata-sections"],
        &["-pie", "-static"],
    ),
    (&["-O2", "-fPIC", "-mcmodel=large"], &["-pie"]),
];

fn objects(scratch: &Scratch, compiler: &str, flags: &[&str]) -> [String; 2] {
    [("main", MAIN), ("helper", HELPER)].map(|(name, source)| {
        let source = scratch.write(&format!("{name}.c"), source);
        let path = scratch.path(&format!("{name}.o"));
        let mut command = Command::new(compiler);
        finish(command.args(flags).args(["-c", &source, "-o", &path])).succeeded();
        path
    })
}

fn oracle(objects: &[String], image: &str, more: &[&str]) -> Finished {
    let mut command = jitcast(&["oracle", "--image", image]);
    for object in objects {
        command.arg("--object").arg(object);
    }
    finish(command.args(more))
}

#[test]
fn other_linkers_are_right() {
    if !(require::cc() && require::clang() && require::linker("ld.lld")) {
        return;
    }
    let scratch = Scratch::new();
    for compiler in ["gcc", "clang"] {
        for (flags, links) in FLAGS {
            let objects = objects(&scratch, compiler, flags);
            for (linker, link) in ["bfd", "lld"]
                .into_iter()
                .flat_map(|linker| links.iter().map(move |link| (linker, link)))
            {
                let linked = scratch.path("linked.elf");
                let mut command = Command::new("gcc");
                command
                    .arg(format!("-fuse-ld={linker}"))
                    .arg(link)
                    .args(&objects);
                // clang 14 has no medium nor large code of its own that lld would link everywhere.
                let done = finish(command.args(["-Wl,-z,noexecstack", "-o", &linked]));
                if done.code != Some(0) {
                    assert!(done.stderr.contains("recompile with -fPIC"), "{done:#?}");
                    continue;
                }
                let what = format!("{compiler} {flags:?} {linker} {link}");
                let judged = oracle(&objects, &linked, &[]);
                assert!(
                    judged.code == Some(0),
                    "{what}: {}",
                    judged.stdout + &judged.stderr
                );
                let last = judged.stdout.lines().last().unwrap().to_owned();
                let sites: u64 = last.split(' ').next().unwrap().parse().unwrap();
                assert!(sites > 20 && last.ends_with(", 0 wrong"), "{what}: {last}");
            }
        }
    }
}

#[test]
fn a_map_tells_what_symbols_do_not() {
    if !(require::cc() && require::linker("ld.lld")) {
        return;
    }
    let scratch = Scratch::new();
    let objects = objects(&scratch, "cc", &["-O2", "-fPIC"]);
    for linker in ["bfd", "lld"] {
        let (linked, map) = (scratch.path("linked.elf"), scratch.path("map"));
        let mut command = Command::new("cc");
        command.arg(format!("-fuse-ld={linker}")).args(&objects);
        finish(command.args(["-o", &linked, &format!("-Wl,-Map={map}")])).succeeded();
        let judged = oracle(&objects, &linked, &["--map", &map]).succeeded();
        assert!(judged.stdout.contains(", 0 wrong"), "{linker}: {judged:#?}");
        assert!(
            !judged.stderr.contains("not found"),
            "{linker}: {judged:#?}"
        );
    }
}

#[test]
fn damage_is_found_and_named() {
    if !require::cc() {
        return;
    }
    let scratch = Scratch::new();
    let objects = objects(&scratch, "cc", &["-O2", "-fPIC"]);
    let linked = scratch.path("linked.elf");
    let mut command = Command::new("cc");
    let map = scratch.path("map");
    let write_map = format!("-Wl,-Map={map}");
    finish(
        command
            .args(&objects)
            .args(["-no-pie", "-o", &linked, &write_map]),
    )
    .succeeded();
    let bytes = std::fs::read(&linked).unwrap();
    let elf = Elf::parse(&bytes).unwrap();
    let main = elf
        .symbols
        .iter()
        .find(|symbol| symbol.name == "main")
        .unwrap();
    let Home::Section(home) = main.home else {
        panic!("main is defined");
    };
    let file_offset = {
        let section = &elf.sections[home];
        let in_file = section.bytes.as_ptr() as usize - bytes.as_ptr() as usize;
        in_file + (main.value - section.address) as usize
    };
    let object = std::fs::read(&objects[0]).unwrap();
    let object = Elf::parse(&object).unwrap();
    let text = object
        .sections
        .iter()
        .position(|section| section.name == ".text.startup")
        .unwrap();
    let relocation = object
        .relocations
        .iter()
        .find(|relocation| relocation.section == text)
        .unwrap();
    let mut damaged = bytes.clone();
    damaged[file_offset + relocation.offset as usize] ^= 0x10;
    let damaged = scratch.write("damaged.elf", damaged);
    // The one instruction that would tell where the jump table is, is damaged itself.
    oracle(&objects, &damaged, &[]).failed(&["not found"]);
    let judged = oracle(&objects, &damaged, &["--map", &map]).failed(&["2 places"]);
    let place = format!("main.o: .text.startup+{:#x}: R_X86_64_", relocation.offset);
    assert!(judged.stdout.contains(&place), "{place}: {judged:#?}");
}

#[test]
fn wrong_files_are_refused() {
    let scratch = Scratch::new();
    let text = scratch.write("text", "no object");
    let done = oracle(std::slice::from_ref(&text), &text, &[]);
    done.refused(&["text: is no well-formed ELF file"]);
    let missing = scratch.path("missing.o");
    oracle(std::slice::from_ref(&missing), &missing, &[]).refused(&["missing.o: No such file"]);
}

/// The reader is our own, so it is held against another's.
#[test]
fn objects_are_read_as_readelf_reads_them() {
    if !(require::cc() && require::readelf()) {
        return;
    }
    let scratch = Scratch::new();
    let mut kinds = BTreeSet::new();
    for flags in [
        &["-O0", "-fPIC"][..],
        &["-O2", "-fno-pie", "-g"],
        &["-O2", "-fPIC", "-mcmodel=large"],
        &[
            "-O1",
            "-fPIC",
            "-mcmodel=medium",
            "-fno-plt",
            "-ffunction-sections",
            "-fdata-sections",
        ],
    ] {
        for path in objects(&scratch, "cc", flags) {
            let bytes = std::fs::read(&path).unwrap();
            let elf = Elf::parse(&bytes).unwrap();
            let ours: Vec<String> = elf
                .relocations
                .iter()
                .map(|relocation| line(&elf, relocation))
                .collect();
            let printed = finish(Command::new("readelf").args(["-rW", &path]))
                .succeeded()
                .stdout;
            let theirs: Vec<String> = printed.lines().filter_map(of_readelf).collect();
            assert_eq!(ours, theirs, "{flags:?}");
            kinds.extend(elf.relocations.iter().map(|relocation| relocation.kind));
        }
    }
    assert!(kinds.len() > 8, "many kinds were read: {kinds:?}");
}

fn line(elf: &Elf<'_>, relocation: &jitcast_oracle::elf::Relocation) -> String {
    let symbol = &elf.symbols[relocation.symbol as usize];
    let name = match symbol.home {
        Home::Section(home) if symbol.kind == 3 => elf.sections[home].name,
        _ => symbol.name,
    };
    let kind = table::lookup(relocation.kind).unwrap().name;
    format!(
        "{:x} {kind} {:x} {name} {:x}",
        relocation.offset, symbol.value, relocation.addend
    )
}

/// `000000000012  000500000002 R_X86_64_PC32 0000000000000000 .LC0 - 4`.
fn of_readelf(line: &str) -> Option<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [offset, _, kind, value, name, sign, addend] = words[..] else {
        return None;
    };
    let number = |text| u64::from_str_radix(text, 16).ok();
    let addend = number(addend)? as i64;
    let addend = if sign == "-" {
        addend.wrapping_neg()
    } else {
        addend
    };
    Some(format!(
        "{:x} {kind} {:x} {name} {addend:x}",
        number(offset)?,
        number(value)?
    ))
}
