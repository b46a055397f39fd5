//! Archives: members by need.

use jitcast_linker::Prepared;

use crate::common::{Effect, World, archive, assemble, prepare, refusal_of};

fn names<'a>(prepared: &Prepared<'a>) -> Vec<&'a str> {
    prepared
        .definitions()
        .iter()
        .map(|found| found.name)
        .collect()
}

fn member(name: &str, calls: &str) -> Vec<u8> {
    let call = if calls.is_empty() {
        String::new()
    } else {
        format!("call {calls}@PLT\n")
    };
    assemble(&format!(
        ".text\n.globl {name}\n.type {name}, @function\n{name}: {call} ret\n"
    ))
}

/// `a` needs `b` of a later member, `b` needs `c` of an earlier one; nobody needs `unused`.
fn chain(flags: &str) -> Vec<u8> {
    let long = "a_member_with_a_name_longer_than_sixteen_bytes.o";
    let (unused, a, b, c) = (
        member("unused", "nobody"),
        member("a", "b"),
        member("b", "c"),
        member("c", ""),
    );
    archive(
        flags,
        &[("unused.o", &unused), ("c.o", &c), ("a.o", &a), (long, &b)],
    )
}

#[test]
fn members_are_pulled_by_need_whatever_the_order() {
    let main = member("main", "a");
    for flags in ["rc", "rcS"] {
        let library = chain(flags);
        for files in [
            [("main.o", &main[..]), ("lib.a", &library)],
            [("lib.a", &library[..]), ("main.o", &main)],
        ] {
            let prepared = prepare(&files).unwrap();
            assert_eq!(names(&prepared), ["main", "a", "b", "c"], "{flags}");
            assert!(prepared.references().is_empty());
            let world = World::new(&prepared);
            assert_eq!(world.effect("main"), Effect::Goes(world.at("a")));
        }
    }
}

#[test]
fn weak_references_and_defined_names_pull_nothing() {
    let library = chain("rc");
    let weak = assemble(".text\n.weak a\ncall a@PLT\n");
    let own = member("a", "");
    assert!(names(&prepare(&[("weak.o", &weak[..]), ("lib.a", &library)]).unwrap()).is_empty());
    let main = member("main", "a");
    let files = [("main.o", &main[..]), ("own.o", &own), ("lib.a", &library)];
    assert_eq!(names(&prepare(&files).unwrap()), ["main", "a"]);
}

#[test]
fn the_first_of_two_archives_is_asked() {
    let main = member("main", "a");
    let (first, second) = (member("a", ""), member("a", "b"));
    let (first, second) = (
        archive("rc", &[("a.o", &first)]),
        archive("rc", &[("a.o", &second)]),
    );
    let files = [
        ("main.o", &main[..]),
        ("first.a", &first),
        ("second.a", &second),
    ];
    assert!(prepare(&files).unwrap().references().is_empty());
}

#[test]
fn members_that_are_no_objects_harm_nobody_who_does_not_need_them() {
    let main = member("main", "a");
    let library = archive(
        "rcS",
        &[("README", b"text".as_slice()), ("a.o", &member("a", ""))],
    );
    let files = [("main.o", &main[..]), ("lib.a", &library)];
    assert_eq!(names(&prepare(&files).unwrap()), ["main", "a"]);
    let empty = archive("rc", &[]);
    assert!(names(&prepare(&[("empty.a", &empty[..])]).unwrap()).is_empty());
}

#[test]
fn messages_name_the_member() {
    let bad = assemble(".text\n.globl a\na: mov $a, %eax\n");
    let library = archive("rc", &[("bad.o", &bad)]);
    let message = refusal_of(&[("main.o", &member("main", "a")), ("lib.a", &library)]);
    assert!(
        message.starts_with("lib.a(bad.o): .text+0x1: R_X86_64_32 against `a` needs"),
        "{message}"
    );
    assert!(
        message.ends_with("help: compile lib.a(bad.o) with -fPIC"),
        "{message}"
    );
}

#[test]
fn thin_archives_are_refused() {
    let library = archive("rcT", &[("a.o", &member("a", ""))]);
    let expected = "lib.a: is a thin archive, which only names the files of its members\n  \
                    help: make lib.a a regular archive: ar without `T` or --thin";
    assert_eq!(refusal_of(&[("lib.a", &library)]), expected);
}

#[test]
fn damaged_archives_are_refused() {
    let main = member("main", "a");
    let library = chain("rc");
    for len in [8, 20, 68, 100] {
        // Whatever is left: an error, or an archive without the member.
        match prepare(&[("main.o", &main[..]), ("lib.a", &library[..len])]) {
            Ok(prepared) => assert_eq!(names(&prepared), ["main"]),
            Err(error) => assert!(
                error
                    .to_string()
                    .starts_with("lib.a: is corrupt or truncated"),
                "{error}"
            ),
        }
    }
}

/// The archive of BSD and macOS: long names lie before the members' bytes, the table of names is a member
/// with another name.
fn bsd(members: &[(&str, &[u8])]) -> Vec<u8> {
    let header = |len: usize, name_len: usize| {
        let name = format!("#1/{name_len}");
        format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{len:<10}`\n", 0, 0, 0, 644).into_bytes()
    };
    let mut archive = b"!<arch>\n".to_vec();
    for (name, bytes) in members {
        let mut padded = name.as_bytes().to_vec();
        padded.resize(name.len().next_multiple_of(8), 0);
        archive.extend(header(padded.len() + bytes.len(), padded.len()));
        archive.extend(&padded);
        archive.extend(*bytes);
        if archive.len() % 2 == 1 {
            archive.push(b'\n');
        }
    }
    archive
}

#[test]
fn names_as_bsd_writes_them() {
    let (main, a, b) = (
        member("main", "a"),
        member("a", "b"),
        member("b", "missing"),
    );
    let library = bsd(&[("a_member_with_a_long_name.o", &a), ("b.o", &b)]);
    let files = [("main.o", &main[..]), ("lib.a", &library)];
    assert_eq!(names(&prepare(&files).unwrap()), ["main", "a", "b"]);
    let bad = assemble(".text\n.globl a\na: mov $a, %eax\n");
    let library = bsd(&[("a_member_with_a_long_name.o", &bad)]);
    let message = refusal_of(&[("main.o", &main), ("lib.a", &library)]);
    assert!(
        message.starts_with("lib.a(a_member_with_a_long_name.o): .text+0x1:"),
        "{message}"
    );
}

#[test]
fn libraries_of_rust() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("score.rs");
    std::fs::write(
        &source,
        "#![no_std]\n#[unsafe(no_mangle)] pub extern \"C\" fn a(x: u32) -> u32 { x.rotate_left(3) }\n",
    )
    .unwrap();
    let library = directory.path().join("libscore.rlib");
    crate::common::run(
        std::process::Command::new("rustc")
            .args([
                "--edition=2024",
                "--crate-type=rlib",
                "-Copt-level=2",
                "-Cpanic=abort",
            ])
            .arg(&source)
            .arg("-o")
            .arg(&library),
    );
    let (main, library) = (member("main", "a"), std::fs::read(library).unwrap());
    let files = [("main.o", &main[..]), ("libscore.rlib", &library)];
    let prepared = prepare(&files).unwrap();
    assert_eq!(names(&prepared), ["main", "a"]);
    let world = World::new(&prepared);
    assert_eq!(world.effect("main"), Effect::Goes(world.at("a")));
}
