//! `jitcast link`: what it tells of relocations and places; archives of all kinds.

mod common;

use std::process::Command;

use common::process::{Finished, finish, jitcast};
use common::require;
use common::scratch::Scratch;
use common::serve::table;

fn link(args: &[&str]) -> Finished {
    finish(jitcast(&["link"]).args(args))
}

const SOURCE: &str = "#include <stdio.h>\n
    static __thread long count = 4; long other(long); extern long datum;
    long (*const table[])(long) = { other };
    __attribute__((constructor)) static void starts(void) { count = 5; }
    static long inner(long x) { return x + count; }
    long f(long x) { puts(\"f\"); return inner(x) + other(x) + datum + table[x & 0](x); }";

#[test]
fn every_relocation_is_told_with_what_was_done() {
    if !require::cc() {
        return;
    }
    let scratch = Scratch::new();
    let object = scratch.compile("f.o", SOURCE, &["-c", "-O2", "-fPIC", "-fno-plt", "-g"]);
    let done = link(&["--explain", &object]).succeeded();
    let rows = table(&done.stdout);
    let columns = [
        "site", "kind", "formula", "symbol", "target", "resolved", "done",
    ];
    assert_eq!(rows[0], columns);
    let find = |kind: &str, symbol: &str| {
        let row = rows
            .iter()
            .find(|row| row[1] == kind && row[3].starts_with(symbol));
        row.unwrap_or_else(|| panic!("{kind} {symbol} in {}", done.stdout))
    };
    let row = find("R_X86_64_REX_GOTPCRELX", "datum");
    assert!(row[0].ends_with(&format!("f.o:.text+{}", row[0].rsplit('+').next().unwrap())));
    assert_eq!(
        row[2..],
        [
            "G + GOT + A - P",
            "datum - 0x4",
            "the address cell of `datum`",
            "at link",
            "stored"
        ]
    );
    let row = find("R_X86_64_64", "other");
    assert_eq!(
        row[4..],
        [
            "what `other` is bound to",
            "at attach",
            "patched in each worker"
        ]
    );
    let row = find("R_X86_64_GOTPCRELX", "puts");
    assert_eq!(row[4], "the call cell of `puts`");
    let row = find("R_X86_64_TLSLD", "count");
    assert_eq!(row[4], "the pair of the unit's block");
    // As many as there are, those of debug sections aside.
    let listed = finish(Command::new("readelf").arg("-rW").arg(&object))
        .succeeded()
        .stdout;
    let mut placed = false;
    let count = listed
        .lines()
        .filter(|line| {
            if let Some(section) = line.strip_prefix("Relocation section '.rela") {
                placed = !section.starts_with(".debug") && !section.starts_with(".eh_frame");
            }
            placed && line.contains("R_X86_64_")
        })
        .count();
    let told = rows[1..]
        .iter()
        .filter(|row| row[0].contains("f.o:") && !row[0].contains(".eh_frame"))
        .count();
    assert_eq!(told, count);
    assert!(
        done.stdout
            .contains("asks for __tls_get_addr, datum, other, puts"),
        "{}",
        done.stdout
    );
}

#[test]
fn a_map_shows_every_section_and_symbol() {
    if !require::cc() {
        return;
    }
    let scratch = Scratch::new();
    let object = scratch.compile("f.o", SOURCE, &["-c", "-O2", "-fPIC"]);
    let done = link(&["--map", &object]).succeeded();
    for part in [
        ":.text",
        ":.tdata (what each thread's copy is made of)",
        ":.init_array",
        ":.data.rel.ro",
        "`f`",
        "`table`",
        "module",
    ] {
        assert!(done.stdout.contains(part), "{part} in {}", done.stdout);
    }
    let refused = link(&[&scratch.compile(
        "bad.o",
        "__thread long x; long f(void) { return x; }",
        &["-c", "-O2"],
    )]);
    assert_eq!(refused.code, Some(1), "{refused:#?}");
    assert!(
        refused.stderr.contains("R_X86_64_TPOFF32 against `x`"),
        "{}",
        refused.stderr
    );
    assert!(
        refused.stderr.contains("-ftls-model=global-dynamic"),
        "{}",
        refused.stderr
    );
}

#[test]
fn thin_archives_are_made_whole_where_their_files_are() {
    if !require::cc() {
        return;
    }
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path("lib")).unwrap();
    let one = scratch.object(
        "a_name_longer_than_sixteen_bytes.o",
        "long one(long x) { return x + 1; }",
    );
    let two = scratch.object("two.o", "long two(long x) { return x + 2; }");
    let thin = scratch.path("lib/libthin.a");
    finish(Command::new("ar").arg("rcsT").arg(&thin).args([&one, &two])).succeeded();
    let main = scratch.object(
        "main.o",
        "long one(long); long f(long x) { return one(x); }",
    );
    let done = link(&["--map", &main, &thin]).succeeded();
    assert!(done.stdout.contains("libthin.a("), "{}", done.stdout);
    assert!(!done.stdout.contains("`two`"), "by need: {}", done.stdout);
    std::fs::remove_file(&one).unwrap();
    let lacks = link(&[&main, &thin]);
    assert!(
        lacks
            .stderr
            .contains("a_name_longer_than_sixteen_bytes.o: cannot be read"),
        "{}",
        lacks.stderr
    );
    // What is no file, and what is none at all.
    std::fs::create_dir(&one).unwrap();
    let folder = link(&[&main, &thin]);
    assert!(
        folder.stderr.contains("not a regular file"),
        "{}",
        folder.stderr
    );
    let damaged = scratch.write(
        "damaged.a",
        b"!<thin>\nsome bytes that are no header of a member at all, longer than one",
    );
    let refused = link(&[&main, &damaged]);
    assert!(
        refused
            .stderr
            .contains("is no thin archive, though it begins like one"),
        "{}",
        refused.stderr
    );
}
