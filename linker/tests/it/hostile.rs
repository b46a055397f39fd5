//! Damaged objects and archives: an error or a unit, never a panic, never more than they are worth.

use std::sync::LazyLock;

use proptest::prelude::*;

use crate::common::{Map, World, archive, assemble, compile, prepare};

/// A small object with something of everything.
fn object() -> Vec<u8> {
    compile(
        "c",
        r#"
        extern int printf(const char *, ...), optind;
        static int counter; int common; const char *names[] = { "a", "b" };
        __attribute__((weak)) int weak(int x) { return x; }
        int f(int x) {
            switch (x) { case 0: return 1; case 1: return 7; case 2: return 4; case 3: return 88; case 4: return 5; }
            return printf(names[x & 1], counter++, optind) + weak(x) + common;
        }
        "#,
        &["-O1", "-fcommon", "-ffunction-sections", "-g0"],
    )
}

/// Reads and, where that works, links.
fn attempt(name: &str, bytes: &[u8]) {
    static CALLER: LazyLock<Vec<u8>> =
        LazyLock::new(|| assemble(".text\n.globl start\nstart: call f@PLT\n"));
    let caller = &*CALLER;
    if let Ok(prepared) = prepare(&[("start.o", &caller[..]), (name, bytes)]) {
        let extents = prepared.extents();
        let most = 80 * (bytes.len() + caller.len()) as u64;
        assert!(
            extents.text.len_bytes + extents.read_only.len_bytes <= most,
            "{extents:?}"
        );
        if extents.private.len_bytes < 0x2_0000 {
            let at = jitcast_linker::Placement {
                number: 1,
                text: jitcast_runtime::SegmentOffset::new(0x10_0000),
                read_only: jitcast_runtime::SegmentOffset::new(0x20_0000),
                private: jitcast_runtime::SegmentOffset::new(0x30_0000),
                shared: jitcast_runtime::SegmentOffset::new(0x40_0000),
            };
            // Whatever the outcome: damage may well have made a symbol that is none.
            let _ = prepared.link(&at, &World::bindings(&prepared, Map::default()));
            let sections = prepared.debug_sections(&at, 0x7000_0000_0000, &[]);
            let len_bytes: usize = sections.iter().map(|section| section.bytes.len()).sum();
            assert!(len_bytes <= bytes.len() + caller.len());
        }
    }
}

/// An object's names are looked at as a whole; where the whole is not in the file, none of them is found either.
#[test]
fn names_that_claim_more_than_the_file_are_refused() {
    let source = ".symver old, memcpy@GLIBC_2.2.5\n.text\n.globl f\nf: call old@PLT\n";
    let mut object = assemble(source);
    let read = |bytes: &[u8], at: usize, len: usize| {
        let field = bytes[at..at + len].iter().rev();
        field.fold(0, |number, &byte| number << 8 | usize::from(byte))
    };
    // e_shoff and e_shnum; sh_type, sh_link and sh_size (gABI, chapter 4).
    let header = read(&object, 0x28, 8);
    let headers = (0..read(&object, 0x3c, 2)).map(|index| header + index * 64);
    let symbols = { headers }
        .find(|&at| read(&object, at + 4, 4) == 2)
        .unwrap();
    let names = header + read(&object, symbols + 40, 4) * 64;
    let len_bytes = object.len() as u64;
    object[names + 32..names + 40].copy_from_slice(&len_bytes.to_le_bytes());
    let files = [("x.o", &object[..])];
    let problem = prepare(&files).unwrap_err().to_string();
    assert!(problem.contains("symbol name"), "{problem}");
}

#[test]
fn every_prefix_of_an_object_is_refused_or_linked() {
    let object = object();
    for len in 0..object.len() {
        attempt("x.o", &object[..len]);
    }
}

#[test]
fn every_byte_of_debugging_information_and_of_its_headers_may_be_anything() {
    let source = "static int d; int f(int x) { d += x; return d; }";
    let object = compile("c", source, &["-O1", "-g"]);
    let table = u64::from_le_bytes(object[40..48].try_into().unwrap()) as usize;
    // Every header, and every third of the other bytes.
    for at in (0..table).step_by(3).chain(table..object.len()) {
        for byte in [0, 0x7f, 0xff, object[at] ^ 1] {
            let mut damaged = object.clone();
            damaged[at] = byte;
            attempt("x.o", &damaged);
        }
    }
}

#[test]
fn every_prefix_of_an_archive_is_refused_or_linked() {
    let object = assemble(".text\n.globl f\nf: call g@PLT\n");
    let library = archive("rc", &[("a_rather_long_member_name.o", &object)]);
    for len in 0..library.len() {
        attempt("x.a", &library[..len]);
    }
}

#[test]
fn every_byte_of_the_headers_may_be_anything() {
    let object = object();
    let table = u64::from_le_bytes(object[40..48].try_into().unwrap()) as usize;
    for at in (0..64).chain(table..object.len()) {
        for byte in [0, 1, 0x7f, 0x80, 0xff, object[at] ^ 1] {
            let mut damaged = object.clone();
            damaged[at] = byte;
            attempt("x.o", &damaged);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bytes(flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        thread_local! { static OBJECT: Vec<u8> = object(); }
        OBJECT.with(|object| {
            let mut damaged = object.clone();
            for (at, byte) in flips {
                let at = at.index(damaged.len());
                damaged[at] = byte;
            }
            attempt("x.o", &damaged);
        });
    }

    #[test]
    fn arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        attempt("x.o", &bytes);
        attempt("x.o", &[b"\x7fELF\x02\x01\x01", &bytes[..]].concat());
        attempt("x.a", &[b"!<arch>\n", &bytes[..]].concat());
    }
}

/// A file may not claim the same bytes for many sections: the work would grow with the product.
#[test]
fn sections_that_overlap_are_counted() {
    let source: String = (0..200)
        .map(|n| format!(".section .s{n},\"a\"\n.skip 64\n"))
        .collect();
    let mut object = assemble(&source);
    let table = u64::from_le_bytes(object[40..48].try_into().unwrap()) as usize;
    let len = object.len() as u64;
    for header in object[table..]
        .chunks_exact_mut(64)
        .filter(|header| header[4] == 1)
    {
        header[24..32].copy_from_slice(&0_u64.to_le_bytes());
        header[32..40].copy_from_slice(&(len / 2).to_le_bytes());
    }
    let message = prepare(&[("x.o", &object[..])]).unwrap_err().to_string();
    assert!(
        message.starts_with("x.o: the sum of the lengths of its parts is "),
        "{message}"
    );
}

/// The story: a request could ask for a copy of a megabyte for each of a million undefined symbols, and end the
/// compiler process for want of memory.
#[test]
fn copies_of_host_data_have_one_limit_together() {
    let names: Vec<String> = (0..5000).map(|number| format!("datum_{number}")).collect();
    let source: String = names.iter().map(|name| format!(".quad {name}\n")).collect();
    let object = crate::common::assemble(&format!(".data\n{source}"));
    let files = [("x.o", &object[..])];
    let read = |len_bytes: u64| {
        let options = jitcast_linker::Options {
            copies: names.iter().map(|name| (name.clone(), len_bytes)).collect(),
            ..Default::default()
        };
        jitcast_linker::Prepared::read("unit", &crate::common::inputs(&files), &options).err()
    };
    assert_eq!(read(100), None);
    for len_bytes in [300, 1 << 20, u64::MAX] {
        let problem = read(len_bytes).map(|error| error.problem.clone());
        assert!(
            matches!(problem, Some(jitcast_linker::Problem::Limit { .. })),
            "{problem:?}"
        );
    }
}
