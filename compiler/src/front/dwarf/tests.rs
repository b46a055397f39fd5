//! What compilers say of functions, and what damaged objects are taken for.

use super::*;
use crate::front::{Options, compile_bytes};

const SOURCE: &str = "
typedef unsigned long size; enum color { RED, GREEN }; struct pair { long a, b; }; struct unknown;
typedef const struct pair *view; typedef void nothing; typedef _Bool truth;
extern long hook(const volatile int, view); extern int printf(const char *, ...); extern size odd();
size plain(char a, short b, int c, long long d, unsigned char e, unsigned short f, unsigned g, size h) { return a + b + c + d + e + f + g + h; }
double floats(float a, double b) { return a + b; }
nothing pointers(view a, void *b, struct unknown *c, int (*d)(int), char e[4]) { printf(\"%p\", b); odd(); }
enum color enums(enum color a, truth b) { return b ? a : RED; }
nothing nobody(void) {}
struct pair by_value(long a) { return (struct pair) { a, a }; }
long takes_by_value(struct pair a) { return a.a; }
long double wide(long double a) { return a; }
__int128 wider(void) { return 1; }
long variable(long a, ...) { return a; }
long old() { return 1; }
static __attribute__((noinline)) long hidden(long a) { return hook(a, 0); }
long calls(long a) { return hidden(a); }
long renamed(long a) __asm__(\"other\");
long renamed(long a) { return a; }
";

fn compiled(flags: &[&str]) -> Option<Vec<u8>> {
    compiled_by("cc", flags)
}

fn compiled_by(cc: &str, flags: &[&str]) -> Option<Vec<u8>> {
    let mut options = Options {
        cc: cc.to_owned(),
        ..Options::default()
    };
    options
        .cflags
        .extend(flags.iter().map(|flag| (*flag).to_owned()));
    match compile_bytes("functions.c", SOURCE.into(), &options) {
        Ok(compiled) => Some(compiled.bytes),
        Err(error) if std::env::var_os("JITCAST_REQUIRE").is_none() => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn shown(functions: &[(String, Signature)]) -> Vec<String> {
    let mut shown: Vec<_> = functions
        .iter()
        .map(|(name, signature)| format!("{name}{signature}"))
        .collect();
    shown.sort();
    shown
}

#[test]
fn signatures_are_what_the_compiler_says() {
    for (cc, flags) in [
        ("cc", &["-g"][..]),
        ("cc", &["-g", "-O0"]),
        ("cc", &["-gdwarf-4"]),
        ("cc", &["-g", "-ffunction-sections"]),
        // Whose strings are found by way of a table.
        ("clang", &["-gdwarf-5"]),
    ] {
        let Some(object) = compiled_by(cc, flags) else {
            continue;
        };
        let found = describe(&object);
        assert_eq!(
            shown(&found.signatures),
            [
                "calls(i64) -> i64",
                "enums(u32, u8) -> u32",
                "floats(f32, f64) -> f64",
                "nobody() -> void",
                "other(i64) -> i64",
                "plain(i8, i16, i32, i64, u8, u16, u32, u64) -> u64",
                "pointers(ptr, ptr, ptr, ptr, ptr) -> void",
            ],
            "{cc} {flags:?}"
        );
    }
}

#[test]
fn what_is_called_is_known_where_the_compiler_declares_it() {
    let Some(object) = compiled(&["-gdwarf-5"]) else {
        return;
    };
    assert_eq!(shown(&describe(&object).imports), ["hook(i32, ptr) -> i64"]);
}

#[test]
fn without_debugging_information_nothing_is_known() {
    let Some(object) = compiled(&["-g0"]) else {
        return;
    };
    assert_eq!(describe(&object), Described::default());
    assert_eq!(describe(b"\x7fELF"), Described::default());
}

#[test]
fn damaged_objects_are_read_to_an_end() {
    let Some(object) = compiled(&["-g"]) else {
        return;
    };
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..3000 {
        let mut damaged = object.clone();
        for _ in 0..draw() % 8 + 1 {
            let at = draw() as usize % damaged.len();
            damaged[at] = draw() as u8;
        }
        if draw() % 4 == 0 {
            damaged.truncate(draw() as usize % damaged.len());
        }
        describe(&damaged);
    }
}

#[test]
fn entries_that_stand_for_much_more_than_their_bytes_end_the_reading() {
    use object::write::Object as Writer;
    use object::{Architecture, BinaryFormat, Endianness, SectionKind};
    let mut writer = Writer::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let mut add = |name: &str, bytes: Vec<u8>| {
        let section = writer.add_section(Vec::new(), name.into(), SectionKind::Debug);
        writer.set_section_data(section, bytes, 1);
    };
    // Abbreviation 1: an entry without children and with a hundred thousand flags, which take no bytes.
    let flag = [
        constants::DW_AT_external.0 as u8,
        constants::DW_FORM_flag_present.0 as u8,
    ];
    let mut abbreviations = vec![1, constants::DW_TAG_subprogram.0 as u8, 0];
    abbreviations.extend((0..100_000).flat_map(|_| flag));
    abbreviations.extend([0, 0, 0]);
    add(".debug_abbrev", abbreviations);
    // A unit of ten million such entries.
    let entries = 10_000_000_u32;
    let mut info = (entries + 7).to_le_bytes().to_vec();
    info.extend([4, 0, 0, 0, 0, 0, 8]);
    info.resize(info.len() + entries as usize, 1);
    add(".debug_info", info);
    assert_eq!(describe(&writer.write().unwrap()), Described::default());
}
