//! Objects, names, signatures and error texts of CLIF.

use std::path::Path;

use super::*;
use object::read::elf::ElfFile64;
use object::{Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget, elf};

pub(super) fn host() -> Target {
    Target::host().unwrap()
}

pub(super) fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[track_caller]
pub(super) fn compiled(text: &str) -> ClifObject {
    compile("score.clif", text, &host()).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
pub(super) fn refused(text: &str) -> String {
    let error = compile("score.clif", text, &host())
        .map(|_| ())
        .expect_err(text)
        .to_string();
    let mut last = error.lines().rev();
    assert!(
        last.next().is_some_and(|line| line.starts_with("  help: ")),
        "{error}"
    );
    assert!(last.all(|line| !line.contains("help: ")), "{error}");
    error
}

/// The relocations of an object's text, as `TYPE symbol`.
fn relocations(object: &[u8]) -> Vec<String> {
    let file: ElfFile64<'_> = ElfFile64::parse(object).unwrap();
    let text = file.section_by_name(".text").unwrap();
    let mut relocations: Vec<_> = text.relocations().collect();
    relocations.sort_by_key(|(offset, _)| *offset);
    let named = relocations.into_iter().map(|(_, relocation)| {
        let RelocationTarget::Symbol(symbol) = relocation.target() else {
            panic!("no symbol")
        };
        let RelocationFlags::Elf { r_type } = relocation.flags() else {
            panic!("not ELF")
        };
        let kind = match r_type {
            elf::R_X86_64_GOTPCREL => "GOTPCREL",
            elf::R_X86_64_PLT32 => "PLT32",
            elf::R_X86_64_PC32 => "PC32",
            other => panic!("relocation {other}"),
        };
        format!(
            "{kind} {}",
            file.symbol_by_index(symbol).unwrap().name().unwrap()
        )
    });
    named.collect()
}

fn defined_and_undefined(object: &[u8]) -> (Vec<String>, Vec<String>) {
    let file: ElfFile64<'_> = ElfFile64::parse(object).unwrap();
    let globals: Vec<_> = file.symbols().filter(|symbol| symbol.is_global()).collect();
    let names = |undefined| {
        let globals = globals
            .iter()
            .filter(|symbol| symbol.is_undefined() == undefined);
        globals
            .map(|symbol| symbol.name().unwrap().to_owned())
            .collect()
    };
    (names(false), names(true))
}

#[test]
fn examples_have_exact_signatures() {
    let signatures = |name: &str| -> Vec<String> {
        let unit = compiled(&example(name));
        unit.signatures
            .iter()
            .map(|(name, signature)| format!("{name}{signature}"))
            .collect()
    };
    assert_eq!(signatures("score.clif"), ["score(i64) -> i64"]);
    assert_eq!(
        signatures("score2.clif"),
        ["score(i64) -> i64", "bonus(i64) -> i64"]
    );
    let sort = [
        "largest(i64, i64, i64) -> i64",
        "descending(i64, i64) -> i32",
    ];
    assert_eq!(signatures("sort.clif"), sort);
}

#[test]
fn own_functions_are_called_directly_and_known_by_one_address() {
    let unit = compiled(&example("score2.clif"));
    assert_eq!(relocations(&unit.object), ["PLT32 bonus"]);
    let (defined, undefined) = defined_and_undefined(&unit.object);
    assert_eq!(
        (defined, undefined.len()),
        (vec!["score".to_owned(), "bonus".to_owned()], 0)
    );

    let unit = compiled(&example("sort.clif"));
    let mut found = relocations(&unit.object);
    found.sort();
    assert_eq!(found, ["GOTPCREL descending@addr", "GOTPCREL qsort"]);
    let imports: Vec<_> = unit
        .imports
        .iter()
        .map(|(name, sig)| format!("{name}{sig}"))
        .collect();
    assert_eq!(imports, ["qsort(i64, i64, i64, i64) -> void"]);
}

#[test]
fn every_function_says_how_to_unwind_through_it() {
    let text = "function %first(i64) -> i64 {\nblock0(v0: i64):\n return v0\n}\n\
                function %second(i64) -> i64 {\n fn0 = %third(i64) -> i64\nblock0(v0: i64):\n v1 = call fn0(v0)\n \
                return v1\n}\n";
    let object = compiled(text).object;
    let file: ElfFile64<'_> = ElfFile64::parse(&object[..]).unwrap();
    let frames = file.section_by_name(".eh_frame").unwrap();
    let functions: Vec<_> = frames
        .relocations()
        .map(|(_, relocation)| {
            let RelocationTarget::Symbol(symbol) = relocation.target() else {
                panic!("no symbol")
            };
            let flags = RelocationFlags::Elf {
                r_type: elf::R_X86_64_PC32,
            };
            assert_eq!(relocation.flags(), flags, "the same in every process");
            let symbol = file.symbol_by_index(symbol).unwrap();
            symbol.name().unwrap().to_owned()
        })
        .collect();
    assert_eq!(functions, ["first", "second"]);
}

#[test]
fn a_call_and_an_address_of_one_reference_get_two_names() {
    let text = "
        function %f(i64) -> i64 {
            fn0 = colocated %g(i64) -> i64
            fn1 = %h(i64) -> i64
            fn2 = %unused(i64)
            gv0 = symbol colocated %table+16
            gv1 = symbol %unused_too
        block0(v0: i64):
            v1 = call fn0(v0)
            v2 = func_addr.i64 fn0
            v3 = call fn1(v1)
            v4 = func_addr.i64 fn1
            v5 = symbol_value.i64 gv0
            v6 = iadd v2, v3
            v7 = iadd v4, v5
            v8 = iadd v6, v7
            return v8
        }
        function %h(i64) -> i64 {
            fn0 = %f(i64) -> i64
        block0(v0: i64):
            v1 = call fn0(v0)
            return v1
        }";
    let unit = compiled(text);
    let mut found = relocations(&unit.object);
    found.sort();
    let wanted = [
        "GOTPCREL g",
        "GOTPCREL g@addr",
        "GOTPCREL h@addr",
        "GOTPCREL table@addr",
        "PLT32 f",
        "PLT32 h",
    ];
    assert_eq!(found, wanted);
    let (defined, mut undefined) = defined_and_undefined(&unit.object);
    undefined.sort();
    assert_eq!(defined, ["f", "h"]);
    assert_eq!(undefined, ["g", "g@addr", "h@addr", "table@addr"]);
    let imports: Vec<_> = unit.imports.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(imports, ["g"]);
}

#[test]
fn library_calls_become_plain_names() {
    let text = "
        function %f(f64) -> f64 {
            fn0 = %FloorF64(f64) -> f64
        block0(v0: f64):
            v1 = call fn0(v0)
            v2 = ceil v1
            return v2
        }";
    let unit = compile("f.clif", text, &Target::baseline().unwrap()).unwrap();
    let mut found = relocations(&unit.object);
    found.sort();
    assert_eq!(found, ["GOTPCREL ceil", "GOTPCREL floor"]);
    // A function of the file goes before a library call of that name.
    let own = text.to_owned() + "function %FloorF64(f64) -> f64 { block0(v0: f64): return v0 }";
    assert!(relocations(&compiled(&own).object).contains(&"PLT32 FloorF64".to_owned()));
}

#[test]
fn signatures_that_hosts_cannot_call_are_unlisted() {
    let unit = compiled(
        "function %two(i64) -> i64, i64 { block0(v0: i64): return v0, v0 }
         function %wide(i8x16) { block0(v0: i8x16): return }
         function %narrow(i8 uext, i16 sext, f32) -> i32 uext {
         block0(v0: i8, v1: i16, v2: f32):
             v3 = uextend.i32 v0
             return v3
         }",
    );
    assert_eq!(unit.signatures.len(), 1);
    assert_eq!(unit.signatures[0].1.to_string(), "(u8, i16, f32) -> u32");
    let unlisted: Vec<_> = unit
        .unlisted
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(unlisted, ["two", "wide"]);
    assert!(
        unit.unlisted[0].1.contains("(i64) -> i64, i64"),
        "{:?}",
        unit.unlisted
    );
}

#[test]
fn the_code_computes() {
    let unit = compiled(&example("score.clif"));
    let file: ElfFile64<'_> = ElfFile64::parse(&*unit.object).unwrap();
    let code = file.section_by_name(".text").unwrap().data().unwrap();
    assert!(relocations(&unit.object).is_empty() && code.len() <= 4096);
    let mut page = region::alloc(4096, region::Protection::READ_WRITE).unwrap();
    // SAFETY: the page is 4096 bytes, writable and ours alone; the code is not longer and lies elsewhere.
    unsafe {
        page.as_mut_ptr::<u8>()
            .copy_from_nonoverlapping(code.as_ptr(), code.len())
    };
    // SAFETY: the page is ours alone and holds no Rust value; nothing writes to it any more.
    unsafe { region::protect(page.as_ptr::<u8>(), 4096, region::Protection::READ_EXECUTE) }
        .unwrap();
    // SAFETY: the page starts with the only function of the object, `score(i64) -> i64` of the System V
    // convention, without relocations, and can be executed now.
    let score =
        unsafe { std::mem::transmute::<*const u8, extern "C" fn(i64) -> i64>(page.as_ptr::<u8>()) };
    assert_eq!((score(21), score(-4)), (42, -8));
}

#[test]
fn headers_of_filetests_are_skipped() {
    let text = "test run ; anything\nset opt_level=none\ntarget x86_64 has_avx2\n; comment\n";
    compiled(&format!("{text}{}", example("score.clif")));
    compiled(&format!(
        "target aarch64\ntarget x86_64\n{}",
        example("score.clif")
    ));
    let error = refused(&format!(
        "test compile\ntarget aarch64\n{}",
        example("score.clif")
    ));
    assert!(
        error.starts_with("score.clif:2:1: the file is for the target `aarch64`\n"),
        "{error}"
    );
    refused(&format!(
        "target x86_64-pc-windows-msvc\n{}",
        example("score.clif")
    ));
}

#[test]
fn an_error_shows_where_what_why_and_the_remedy() {
    let error = refused("function %f(i64) -> i64 {\nblock0(v0: i64):\n    v1 = iaddd v0, v0\n}\n");
    let wanted = "\
score.clif:3:10: Unknown opcode: 'iaddd'
  3 |     v1 = iaddd v0, v0
    |          ^
  this is not CLIF as Cranelift 0.135 reads it
  help: the opcodes are the methods of Cranelift's `InstBuilder`";
    assert_eq!(error.to_lowercase(), wanted.to_lowercase());
}

#[test]
fn refused_texts() {
    let body = "(i64) -> i64 { block0(v0: i64): return v0 }";
    let inside = |decls: &str, code: &str| {
        format!(
            "function %f(i64) -> i64 {{\n    {decls}\nblock0(v0: i64):\n    {code}\n    return v0\n}}"
        )
    };
    let cases = [
        (String::new(), "score.clif: no function in this file"),
        ("; nothing\n".into(), "score.clif: no function in this file"),
        (
            format!("function u0:7{body}"),
            "score.clif:1:10: `u0` is a number",
        ),
        (
            format!("function %{body}"),
            "score.clif:1:10: a name is empty",
        ),
        (
            format!("function %f{body}\nfunction %f{body}"),
            "score.clif:2:10: `f` is defined twice",
        ),
        (
            inside("fn0 = u0:1(i64)", ""),
            "score.clif:2:11: `u0` is a number",
        ),
        (
            inside("fn0 = %g(i64) fast", ""),
            "score.clif:2:19: `fast` is not supported",
        ),
        (
            inside("gv0 = symbol tls %x", ""),
            "score.clif:2:18: `tls` is not supported",
        ),
        (
            inside("dt0 = i32 * gv0", ""),
            "score.clif:2:5: `dt0` is not supported",
        ),
        (
            inside("ss4294967290 = explicit_slot 8", ""),
            "score.clif:2:5: the number of `ss4294967290`",
        ),
        (
            inside("fn0 = %f(i32) -> i64", "v1 = func_addr.i64 fn0"),
            "score.clif:2:5: `f` is declared as (i32) -> i64",
        ),
        (
            inside("\n    fn0 = %g(i128)\n", ""),
            "score.clif:3:5: `(i128) system_v` is not supported",
        ),
        (
            "\nfunction %f() -> i128 {}".into(),
            "score.clif:2:10: in `f`: the function has no block",
        ),
        (
            "function %f(i128) { block0(v0: i128): return }".into(),
            "score.clif:1:10: `(i128) system_v` is not supported",
        ),
        (
            inside("fn0 = %g(i64 sret)", ""),
            "score.clif:2:18: `sret` is not supported",
        ),
        (
            inside("fn0 = %g(i32x2)", ""),
            "score.clif:2:14: `i32x2` is not supported",
        ),
        (
            inside("fn0 = %g(f16)", ""),
            "score.clif:2:14: `f16` is not supported",
        ),
        (
            inside("gv0 = symbol %x+4294967296", ""),
            "score.clif:2:5: the offset 4294967296 from",
        ),
        (
            inside("", "v1 = iadd v0, v9"),
            "score.clif:4:10: undefined operand value v9",
        ),
        (inside("", "v1 = iconst.i64 1, 2"), "score.clif:4:24: "),
        (
            inside("", "v1 = fadd v0, v0"),
            "score.clif:4:19: i64 is not a valid typevar",
        ),
        (
            inside("", "call fn3(v0)"),
            "score.clif:4:10: undefined function fn3",
        ),
        (
            inside("", "v1 = uextend.i32 v0"),
            "score.clif:4:10: in `f`: ",
        ),
        (inside("", "return"), "score.clif:4:5: in `f`: "),
        (
            inside("\u{3b1}", ""),
            "score.clif:2:5: invalid character `\u{3b1}`",
        ),
        ("function %f(i64".into(), "score.clif:1:"),
        (
            inside("ss0 = explicit_slot 9000000", ""),
            "score.clif:2:5: `explicit_slot 9000000` is not supported",
        ),
        (
            inside("ss0 = explicit_slot 8, align = 64", ""),
            "score.clif:2:5: `align = 64` is not supported",
        ),
        (
            inside("ss0 = explicit_slot 8", "v1 = stack_addr.i64 ss0-5"),
            "score.clif:4:10: `stack_addr` is not supported",
        ),
        (
            inside("", "v1 = bitcast.f64 v0\n v2 = fcvt_to_sint.i8 v1"),
            "score.clif:5:7: `fcvt_to_sint` is not supported",
        ),
        (
            inside(
                "gv0 = symbol %x\n gv1 = iadd_imm.i64 gv0, 8",
                "v1 = symbol_value.i64 gv1\n store v0, v1",
            ),
            "score.clif:1:10: in `f`: Unsupported feature",
        ),
        ("garbage".into(), "score.clif:1:1: expected 'function'"),
    ];
    let cases = cases
        .into_iter()
        .map(|(text, start)| (refused(&text), text, start));
    let wrong: Vec<_> = cases
        .filter(|(error, _, start)| !error.starts_with(start))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let long = compile_limited(
        "long.clif",
        &"; ".repeat(600),
        &host(),
        1000,
        &Threads::default(),
    )
    .unwrap_err();
    assert!(
        long.to_string()
            .starts_with("long.clif: 1200 bytes of text, the limit is 1000\n")
    );
}

#[test]
fn words_are_refused_as_words_only() {
    compiled(
        "function %tail(i64) -> i64 { ; fast tls u0:0 dt0
             region0 = 1 \"stack_limit v4294967290\"
             fn0 = %fast(i64)
         block0(v0: i64):
             call fn0(v0)
             return v0
         }",
    );
}

#[test]
fn threads_compile_at_once() {
    let target = host();
    let alone = compiled(&example("sort.clif"));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let unit = compile("score.clif", &example("sort.clif"), &target).unwrap();
                    assert_eq!(unit, alone);
                }
            });
        }
    });
}
