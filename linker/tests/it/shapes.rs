//! Hostile shapes, each made by hand: what a file claims must cost no more than what it holds. A watchdog turns a
//! runaway into a failure.

use std::sync::mpsc;
use std::time::Duration;

use jitcast_linker::{Options, Prepared};
use object::elf;

use crate::common::{World, inputs, prepare};
use crate::raw::{Section, object, rela, symbol, symbols};

/// How long a file of a few MiB may take. No statement about speed: only what is not linear exceeds it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What becomes of `files`: the message with which they are refused, or how much of the window they take.
fn outcome(files: Vec<(&'static str, Vec<u8>)>) -> Result<u64, String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let borrowed: Vec<(&str, &[u8])> = files
            .iter()
            .map(|(name, bytes)| (*name, &bytes[..]))
            .collect();
        let options = Options {
            whole_archive: true,
            ..Options::default()
        };
        let prepared = Prepared::read("unit", &inputs(&borrowed), &options);
        let extents = prepared.map(|prepared| prepared.extents());
        let len =
            extents.map(|all| all.text.len_bytes + all.read_only.len_bytes + all.private.len_bytes);
        // Nobody waits any more if it took too long.
        let _ = sender.send(len.map_err(|error| error.to_string()));
    });
    receiver
        .recv_timeout(PATIENCE)
        .expect("it is refused or linked in time")
}

fn refused(bytes: Vec<u8>, why: &str) {
    let message = outcome(vec![("x.o", bytes)]).unwrap_err();
    assert!(message.contains(why), "{message}");
}

/// 40,000 names in one string of a megabyte, each the end of the one before: 20 GiB, if each is read.
#[test]
fn symbol_names_that_are_ends_of_one_long_string() {
    let mut strings = vec![b'a'; 1 << 20];
    (strings[0], strings[(1 << 20) - 1]) = (0, 0);
    let entries: Vec<Vec<u8>> = (1..40_000)
        .map(|name| symbol(name, 0x10, 0, 0, 0))
        .collect();
    let file = object(
        &[
            Section::of(elf::SHT_STRTAB, 0, strings),
            symbols(&entries, 1),
        ],
        1,
    );
    refused(file, "the sum of the lengths of its names");
}

#[test]
fn section_names_that_are_ends_of_one_long_string() {
    let mut strings = vec![b'a'; 1 << 20];
    (strings[0], strings[(1 << 20) - 1]) = (0, 0);
    let mut sections = vec![Section::of(elf::SHT_STRTAB, 0, strings)];
    sections.extend((1..40_000).map(|name| Section {
        name,
        ..Section::of(elf::SHT_PROGBITS, elf::SHF_ALLOC, Vec::new())
    }));
    refused(object(&sections, 1), "the sum of the lengths of its names");
}

/// The signatures of groups are names too.
#[test]
fn groups_of_one_long_name() {
    let mut strings = vec![b'a'; 1 << 20];
    (strings[0], strings[(1 << 20) - 1]) = (0, 0);
    let mut sections = vec![
        Section::of(elf::SHT_STRTAB, 0, strings),
        symbols(&[symbol(1, 0x20, 0, 0, 0)], 1),
    ];
    let group = Section::of(elf::SHT_GROUP, 0, vec![1, 0, 0, 0]).linked(2, 1, 4);
    sections.extend(vec![group; 40_000]);
    refused(object(&sections, 1), "the sum of the lengths of its names");
}

/// Thousands of sections, tables and groups that all lie in the same bytes.
#[test]
fn everything_in_the_same_bytes() {
    let mut strings = Section::of(elf::SHT_STRTAB, 0, vec![0; 16]);
    strings.align = 1;
    let text = Section::of(
        elf::SHT_PROGBITS,
        elf::SHF_ALLOC | elf::SHF_EXECINSTR,
        vec![0x90; 1 << 16],
    );
    let table = rela(0, 0, elf::R_X86_64_NONE, 0).repeat(1 << 14);
    let honest = vec![
        strings,
        symbols(&[], 1),
        text,
        Section::of(elf::SHT_RELA, 0, table).linked(2, 3, 24),
    ];
    let offset = 64 + 16 + 24 + (1 << 16);
    for more in [
        Section {
            claims: Some((64, 1 << 16)),
            ..Section::of(elf::SHT_PROGBITS, elf::SHF_ALLOC, Vec::new())
        },
        Section {
            claims: Some((offset, 24 << 14)),
            ..Section::of(elf::SHT_RELA, 0, Vec::new()).linked(2, 3, 24)
        },
        Section {
            claims: Some((64, 1 << 16)),
            ..Section::of(elf::SHT_GROUP, 0, Vec::new()).linked(2, 0, 4)
        },
    ] {
        let mut sections = honest.clone();
        sections.extend(vec![more; 10_000]);
        let message = outcome(vec![("x.o", object(&sections, 1))]);
        // A group needs flags to be one, which these bytes have only by chance.
        if let Err(message) = message {
            assert!(
                message.contains("the sum of the lengths of its parts"),
                "{message}"
            );
        }
    }
}

/// Sections without bytes may claim any length; a unit is no longer than a window.
#[test]
fn zeros_without_end() {
    let zeros = |len| Section {
        claims: Some((0, len)),
        ..Section::of(elf::SHT_NOBITS, elf::SHF_ALLOC | elf::SHF_WRITE, Vec::new())
    };
    let strings = Section::of(elf::SHT_STRTAB, 0, vec![0]);
    for len in [1 << 32, 1 << 62, u64::MAX, u64::MAX - 4095] {
        refused(
            object(&[strings.clone(), zeros(len)], 1),
            "the length of a section is",
        );
    }
    let mut many = vec![strings.clone()];
    many.extend(vec![zeros(1 << 30); 1000]);
    refused(object(&many, 1), "the length of the unit is");
    // Read-only zeros are private ones, which cost no bytes.
    let read_only = Section {
        flags: elf::SHF_ALLOC.into(),
        ..zeros(1 << 30)
    };
    assert_eq!(
        outcome(vec![("x.o", object(&[strings.clone(), read_only], 1))]),
        Ok(1 << 30)
    );
    let code = Section {
        flags: (elf::SHF_ALLOC | elf::SHF_EXECINSTR).into(),
        ..zeros(1 << 30)
    };
    refused(object(&[strings.clone(), code], 1), "is refused");
    let common = symbol(1, 0x11, elf::SHN_COMMON, 8, u64::MAX);
    let names = Section::of(elf::SHT_STRTAB, 0, b"\0x\0".to_vec());
    refused(
        object(&[names, symbols(&[common], 1)], 1),
        "the length of a section is",
    );
}

/// A header of 24 bytes that says 2^60: it is not inflated, whoever asks.
#[test]
fn compressed_sections_that_would_fill_the_memory() {
    let mut header = 1_u32.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend([1 << 60, 1_u64].map(u64::to_le_bytes).concat());
    header.extend([0x78, 0x9c, 3, 0]);
    let strings = Section::of(elf::SHT_STRTAB, 0, vec![0]);
    let loaded = Section::of(
        elf::SHT_PROGBITS,
        elf::SHF_ALLOC | elf::SHF_COMPRESSED,
        header.clone(),
    );
    refused(object(&[strings.clone(), loaded], 1), "compressed");
    let debug = Section::of(elf::SHT_PROGBITS, elf::SHF_COMPRESSED, header);
    assert_eq!(
        outcome(vec![("x.o", object(&[strings, debug], 1))]),
        Ok(0),
        "debug information is left alone"
    );
}

/// The gABI lets a section have several tables: all count.
#[test]
fn several_tables_for_one_section() {
    let names = Section::of(elf::SHT_STRTAB, 0, b"\0x\0".to_vec());
    let data = Section::of(
        elf::SHT_PROGBITS,
        elf::SHF_ALLOC | elf::SHF_WRITE,
        vec![0; 24],
    );
    let table = |offset, addend| {
        let bytes = rela(offset, 1, elf::R_X86_64_64, addend);
        Section::of(elf::SHT_RELA, 0, bytes).linked(2, 3, 24)
    };
    let file = object(
        &[
            names,
            symbols(&[symbol(1, 0x11, 3, 0, 24)], 1),
            data,
            table(0, 5),
            table(16, 7),
            table(8, 6),
        ],
        1,
    );
    let files = [("x.o", &file[..])];
    let prepared = prepare(&files).unwrap();
    let world = World::new(&prepared);
    let x = world.at("x");
    assert_eq!([0, 8, 16].map(|at| world.read_u64(x + at) - x), [5, 6, 7]);
}

/// An archive's members may be named by one long string too, and lie in the same bytes.
#[test]
fn archives_that_claim_much() {
    let header = |name: &str, len: usize| {
        format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{len:<10}`\n", 0, 0, 0, 644)
    };
    let names = "a".repeat(1 << 20) + "/\n";
    let mut archive = b"!<arch>\n".to_vec();
    archive.extend(header("//", names.len()).bytes());
    archive.extend(names.bytes());
    for number in 0..20_000 {
        archive.extend(header(&format!("/{number}"), 0).bytes());
    }
    let message = outcome(vec![("x.a", archive)]).unwrap_err();
    assert!(
        message.contains("the sum of the lengths of its names"),
        "{message}"
    );
    // 100,000 symbols, all in one member.
    let count = 100_000_u32;
    let member_at = 8 + 60 + 4 + 4 * count as usize + 2 * count as usize;
    let mut archive = b"!<arch>\n".to_vec();
    archive.extend(header("/", 4 + 6 * count as usize).bytes());
    archive.extend(count.to_be_bytes());
    archive.extend((member_at as u32).to_be_bytes().repeat(count as usize));
    archive.extend(b"f\0".repeat(count as usize));
    archive.extend(header("x.o/", 4).bytes());
    archive.extend(b"none");
    let message = outcome(vec![("x.a", archive)]).unwrap_err();
    assert!(
        message.contains("x.a(x.o): is not an ELF object"),
        "{message}"
    );
    // Thin ones only name files, whatever follows.
    let message = outcome(vec![(
        "x.a",
        b"!<thin>\n/               0           ".to_vec(),
    )])
    .unwrap_err();
    assert!(message.contains("is a thin archive"), "{message}");
}

/// Redirected instructions are found by decoding, each function once, however many there are and in which order.
#[test]
fn many_redirected_instructions_in_one_function() {
    let count = 50_000_u64;
    let names = Section::of(elf::SHT_STRTAB, 0, b"\0host\0f\0".to_vec());
    // mov host(%rip), %eax
    let code = [0x8b, 0x05, 0, 0, 0, 0].repeat(count as usize);
    let text = Section::of(elf::SHT_PROGBITS, elf::SHF_ALLOC | elf::SHF_EXECINSTR, code);
    let entries = (0..count)
        .rev()
        .flat_map(|site| rela(site * 6 + 2, 1, elf::R_X86_64_PC32, -4));
    let table = Section::of(elf::SHT_RELA, 0, entries.collect()).linked(2, 3, 24);
    let entries = [symbol(1, 0x10, 0, 0, 0), symbol(6, 0x12, 3, 0, 6 * count)];
    let file = object(&[names, symbols(&entries, 1), text, table], 1);
    let len = outcome(vec![("x.o", file)]).unwrap();
    assert!(len > 18 * count, "each has a thunk: {len}");
}

/// Functions that all start at one place and end anywhere are one atom.
#[test]
fn many_symbols_at_one_place() {
    let count = 100_000_u32;
    let strings: Vec<u8> = (0..count)
        .flat_map(|number| format!("\0{number:07}").into_bytes())
        .chain([0])
        .collect();
    let names = Section::of(elf::SHT_STRTAB, 0, strings);
    let text = Section::of(
        elf::SHT_PROGBITS,
        elf::SHF_ALLOC | elf::SHF_EXECINSTR,
        vec![0x90; 1 << 16],
    );
    let entries: Vec<Vec<u8>> = (0..count)
        .map(|number| symbol(number * 8 + 1, 0x12, 3, 0, u64::from(number % 65_536)))
        .collect();
    let sites = (0..10_000).flat_map(|site| rela(site * 4, site as u32 + 1, elf::R_X86_64_PC32, 0));
    let table = Section::of(elf::SHT_RELA, 0, sites.collect()).linked(2, 3, 24);
    let file = object(&[names, symbols(&entries, 1), text, table], 1);
    assert!(outcome(vec![("x.o", file)]).is_ok());
}
