//! Hostile CLIF: whatever the text is, compiling ends, in an object or in one error.

use object::read::elf::ElfFile64;
use proptest::prelude::*;

use super::tests::{compiled, example, host, refused};
use super::token::{Kind, Tokens};
use super::*;

#[test]
fn tokens_are_cut_as_cranelift_cuts_them() {
    let text =
        "function %tail->v1:i32x4 -5 - 0x1.8p3 sNaN:0x1 \"tls ; x\" @fn5 #12 a_b;tls\n+NaN:0x2,";
    let tokens: Vec<_> = Tokens::new(text)
        .map(|token| (token.kind, &text[token.at]))
        .collect();
    let of = |kind| {
        tokens
            .iter()
            .filter(move |token| token.0 == kind)
            .map(|token| token.1)
    };
    let words: Vec<_> = of(Kind::Word).collect();
    // `@f` is a source location, as `f` is a hexadecimal digit; a word that begins with `sNaN` is a word.
    assert_eq!(words, ["function", "v1", "i32x4", "sNaN", "n5", "a_b"]);
    let others: Vec<_> = of(Kind::Other).collect();
    let wanted = [
        "->",
        ":",
        "-5",
        "-",
        "0x1.8p3",
        ":",
        "0x1",
        "\"tls ; x\"",
        "@f",
        "#12",
        "+NaN:0x2",
        ",",
    ];
    assert_eq!(others, wanted);
}

#[test]
fn chains_that_take_quadratic_time_are_refused() {
    let chain = |len: u32| {
        let aliases: String = (1..=len).map(|i| format!("v{i} -> v{}\n", i - 1)).collect();
        format!("function %f(i64) -> i64 {{\nblock0(v0: i64):\n{aliases}return v{len}\n}}\n")
    };
    compiled(&(chain(64) + &chain(64).replace("%f", "%g")));
    let error = refused(&chain(65));
    assert!(
        error.starts_with("score.clif:67:1: the value `v65` is an alias of an alias"),
        "{error}"
    );
}

#[test]
fn an_assertion_of_cranelift_becomes_an_error() {
    // Its parser counts a block's parameters in 16 bits.
    let params = "v0: i64, ".repeat(70_000);
    let error = refused(&format!(
        "function %f() {{ block0({params} v0: i64): return }}"
    ));
    assert!(error.starts_with("score.clif"), "{error}");
    let params: String = (0..70_000).map(|i| format!("v{i}: i64,")).collect();
    let error = refused(&format!(
        "function %f() {{ block0({params} v70000: i64): return }}"
    ));
    assert!(
        error.starts_with("score.clif: Cranelift failed while reading: "),
        "{error}"
    );
}

/// Pieces that CLIF is made of.
const PIECES: [&str; 64] = [
    "function",
    "%f",
    "%score",
    "(",
    ")",
    "{",
    "}",
    "->",
    "i64",
    "i32",
    "i8",
    "f64",
    "f32",
    "i128",
    "i8x16",
    "i32x4",
    "block0",
    "block1",
    "block2",
    "v0",
    "v1",
    "v2",
    "v3",
    ":",
    ",",
    "=",
    ".",
    "\n",
    "iadd",
    "isub",
    "iconst",
    "f64const",
    "load",
    "store",
    "call",
    "call_indirect",
    "return",
    "jump",
    "brif",
    "br_table",
    "[",
    "]",
    "fn0",
    "sig0",
    "gv0",
    "ss0",
    "symbol",
    "explicit_slot",
    "func_addr",
    "symbol_value",
    "stack_addr",
    "trap",
    "user1",
    "1",
    "0x10",
    "-5",
    "0x1.8p3",
    "system_v",
    "sext",
    "select",
    "icmp",
    "slt",
    "const0",
    "splat",
];

fn mutated(text: String) -> impl Strategy<Value = String> {
    let len = text.len();
    let edit = (
        0..len,
        0..24_usize,
        prop_oneof![
            prop::sample::select(PIECES.to_vec()).prop_map(|piece| format!(" {piece} ")),
            "[ -~]{0,4}",
            Just(String::new()),
        ],
    );
    prop::collection::vec(edit, 1..4).prop_map(move |edits| {
        let mut text = text.clone();
        for (at, cut, piece) in edits {
            let (at, end) = (at.min(text.len()), (at + cut).min(text.len()));
            text.replace_range(at..end, &piece);
        }
        text
    })
}

/// Compiles text that may be anything: it must end, in an object or in one error with a remedy.
fn survives(text: &str) -> Result<(), TestCaseError> {
    match compile("x.clif", text, &host()) {
        Ok(unit) => prop_assert!(ElfFile64::<object::Endianness>::parse(&*unit.object).is_ok()),
        Err(error) => prop_assert!(error.to_string().contains("\n  help: ")),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_survived(text in "\\PC{0,200}") {
        survives(&text)?;
    }

    #[test]
    fn any_pieces_are_survived(pieces in prop::collection::vec(prop::sample::select(PIECES.to_vec()), 0..60)) {
        survives(&format!("function %f(i64) -> i64 {{ block0(v0: i64): {}", pieces.join(" ")))?;
    }

    #[test]
    fn mutated_examples_are_survived(text in prop_oneof![
        mutated(example("score.clif")), mutated(example("score2.clif")), mutated(example("sort.clif")),
    ]) {
        survives(&text)?;
    }
}
