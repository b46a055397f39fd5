//! Signatures, values and calls against their texts.

use proptest::prelude::*;

use super::*;

fn signature(text: &str) -> Signature {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

fn call(text: &str) -> CallExpr {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn canonical_text() {
    assert_eq!(signature("(i64,f64)->i64").to_string(), "(i64, f64) -> i64");
    assert_eq!(signature("()").to_string(), "() -> void");
    assert_eq!(signature("( ) -> void").to_string(), "() -> void");
    assert_eq!(
        signature("(ptr) -> u8"),
        Signature::new([Type::Ptr], Some(Type::U8))
    );
}

#[test]
fn spellings_of_c() {
    let cases = [
        ("char", Type::I8),
        ("signed char", Type::I8),
        ("unsigned char", Type::U8),
        ("_Bool", Type::U8),
        ("short int", Type::I16),
        ("unsigned short", Type::U16),
        ("int", Type::I32),
        ("signed", Type::I32),
        ("unsigned", Type::U32),
        ("const unsigned int", Type::U32),
        ("enum color", Type::U32),
        ("long", Type::I64),
        ("long long int", Type::I64),
        ("long unsigned int", Type::U64),
        ("unsigned long long", Type::U64),
        ("size_t", Type::U64),
        ("ssize_t", Type::I64),
        ("uint16_t", Type::U16),
        ("float", Type::F32),
        ("double", Type::F64),
        ("void *", Type::Ptr),
        ("const char *const *restrict", Type::Ptr),
        ("struct foo *", Type::Ptr),
        ("FILE*", Type::Ptr),
        ("u32", Type::U32),
    ];
    for (text, ty) in cases {
        assert_eq!(text.parse::<Type>(), Ok(ty), "{text}");
    }
}

#[test]
fn prototypes() {
    let cases = [
        ("score(long) -> long", "score(i64) -> i64"),
        ("score(i64) -> i64", "score(i64) -> i64"),
        ("long score(long)", "score(i64) -> i64"),
        ("extern long score(long n);", "score(i64) -> i64"),
        ("double norm(double x, double y)", "norm(f64, f64) -> f64"),
        ("void reset(void)", "reset(void) -> void"),
        (
            "unsigned long hash(const char *s, size_t n)",
            "hash(ptr, u64) -> u64",
        ),
        (
            "const char *name(int argc, char *argv[])",
            "name(i32, ptr) -> ptr",
        ),
        ("reset() -> void", "reset() -> void"),
    ];
    for (text, canonical) in cases {
        let named: NamedSignature = text.parse().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(
            named.to_string(),
            canonical.replace("(void)", "()"),
            "{text}"
        );
        assert_eq!(named.to_string().parse(), Ok(named));
    }
}

#[track_caller]
fn refused<T: FromStr<Err = SignatureError> + fmt::Debug>(text: &str, column: usize, what: &str) {
    let error = text.parse::<T>().expect_err(text);
    assert_eq!(error.column, column, "{error}");
    let shown = error.to_string();
    assert!(shown.contains(what), "{shown}");
    let lines: Vec<_> = shown.lines().collect();
    assert!(
        lines.len() == 3 && lines[2].starts_with("  help: "),
        "{shown}"
    );
}

#[test]
fn refused_texts() {
    refused::<Signature>("(i64, foo) -> i64", 7, "unknown type `foo`");
    refused::<Signature>("(i64", 5, "expected `,` or `)`, found the end");
    refused::<Signature>("i64", 1, "expected `(`, found `i64`");
    refused::<Signature>("(i64) -> i64 x", 14, "expected the end, found `x`");
    refused::<Signature>("(void, i64)", 2, "`void` is not");
    refused::<Signature>("(long double)", 2, "`long double` are not supported");
    refused::<Signature>("(struct p)", 2, "`struct p` are not supported");
    refused::<Signature>("(ptr, ...)", 7, "variadic");
    refused::<Signature>("(short long)", 2, "unknown type `short long`");
    refused::<Signature>(&format!("({}i8)", "i8,".repeat(64)), 194, "more than 64");
    refused::<Signature>(&" ".repeat(20_000), 1, "20000 bytes");
    refused::<NamedSignature>("score(long)", 12, "result is missing");
    refused::<NamedSignature>("long score(long) -> long", 18, "given twice");
    refused::<NamedSignature>("long (long)", 6, "a function's name");
    refused::<CallExpr>("score", 6, "expected `(`, found the end");
    refused::<CallExpr>("score(21", 9, "`,` or `)`");
    refused::<CallExpr>("score(21,)", 10, "expected a number");
    refused::<CallExpr>("score(\"x\")", 7, "`\"x\"` is not a number");
    refused::<CallExpr>("score(21i33)", 7, "does not end in a type");
    refused::<CallExpr>("score(21) -> nothing", 14, "unknown type `nothing`");
    refused::<CallExpr>("sc\u{f6}re(1)", 3, "expected `(`, found `\u{f6}`");
}

#[test]
fn values() {
    let parse = |text: &str, ty| Value::parse(text, ty).map_err(|error| error.fault);
    assert_eq!(parse("-128", Type::I8), Ok(Value::I8(-128)));
    assert_eq!(parse("255", Type::I8), Ok(Value::I8(-1)));
    assert_eq!(parse("0xff", Type::U8), Ok(Value::U8(255)));
    assert_eq!(parse("256", Type::I8), Err(ValueFault::OutOfRange));
    assert_eq!(parse("-129", Type::I8), Err(ValueFault::OutOfRange));
    assert_eq!(parse("-1", Type::U64), Err(ValueFault::OutOfRange));
    assert_eq!(
        parse("18446744073709551615", Type::U64),
        Ok(Value::U64(u64::MAX))
    );
    assert_eq!(
        parse("18446744073709551616", Type::U64),
        Err(ValueFault::OutOfRange)
    );
    assert_eq!(
        parse("0x10000000000000000", Type::U64),
        Err(ValueFault::OutOfRange)
    );
    assert_eq!(
        parse("-9223372036854775808", Type::I64),
        Ok(Value::I64(i64::MIN))
    );
    assert_eq!(parse("1.5", Type::I64), Err(ValueFault::NotAnInteger));
    assert_eq!(parse("--1", Type::I64), Err(ValueFault::NotANumber));
    assert_eq!(parse("21", Type::F64), Ok(Value::F64(21.0)));
    assert_eq!(parse("0x10", Type::F32), Ok(Value::F32(16.0)));
    assert_eq!(parse("-inf", Type::F64), Ok(Value::F64(f64::NEG_INFINITY)));
    assert!(matches!(parse("nan", Type::F32), Ok(Value::F32(value)) if value.is_nan()));
    assert_eq!(Value::F64(2.0).to_string(), "2.0");
    assert_eq!(Value::F32(0.1).to_string(), "0.1");
    assert_eq!(Value::Ptr(4096).to_string(), "0x1000");
    let error = Value::parse("300", Type::U8).unwrap_err().to_string();
    assert!(
        error.contains("`300` is no u8: out of range\n  u8 goes from 0 to 255\n  help:"),
        "{error}"
    );
}

#[test]
fn calls_without_a_signature() {
    let resolve = |text: &str| call(text).resolve(None).map_err(|error| error.to_string());
    let (signature, values) = resolve("f(21, 1.5, 3u8, 2f32, 0xffffffffffffffff, -1)").unwrap();
    assert_eq!(
        signature.to_string(),
        "(i64, f64, u8, f32, u64, i64) -> i64"
    );
    assert_eq!(values[3], Value::F32(2.0));
    assert_eq!(values[4], Value::U64(u64::MAX));
    assert_eq!(resolve("f() -> void").unwrap().0.to_string(), "() -> void");
    assert_eq!(
        resolve("norm(1.5, 2.0) -> f64").unwrap().0.to_string(),
        "(f64, f64) -> f64"
    );
    assert!(
        resolve("f(300u8)")
            .unwrap_err()
            .contains("argument 1: `300` is no u8")
    );
    let many = resolve("f(1,2,3,4,5,6,7, 1.0)").unwrap_err();
    assert!(
        many.contains("7 integer and 1 floating-point arguments, at most 6"),
        "{many}"
    );
    assert!(resolve("f(1,2,3,4,5,6, 1.,2.,3.,4.,5.,6.)").is_ok());
}

#[test]
fn calls_with_a_signature() {
    let norm = signature("(f64, i32) -> i64");
    let resolve = |text: &str| {
        call(text)
            .resolve(Some(&norm))
            .map_err(|error| error.to_string())
    };
    let (same, values) = resolve("norm(21, -3)").unwrap();
    assert_eq!(
        (&same, values),
        (&norm, vec![Value::F64(21.0), Value::I32(-3)])
    );
    assert_eq!(
        resolve("norm(21f64, 3u32) -> u64").unwrap().0.returns,
        Some(Type::U64)
    );
    assert_eq!(resolve("norm(21, 3) -> void").unwrap().0.returns, None);

    let count = resolve("norm(21)").unwrap_err();
    assert!(
        count.contains("`norm` takes 2 arguments, the call has 1"),
        "{count}"
    );
    assert!(
        count.contains("\n  published as norm(f64, i32) -> i64\n  help: "),
        "{count}"
    );
    let kind = resolve("norm(1.5, 1.5)").unwrap_err();
    assert!(
        kind.contains("argument 2 is `1.5`, f64, but parameter 2 of `norm` is i32"),
        "{kind}"
    );
    assert!(
        resolve("norm(1i64, 1)")
            .unwrap_err()
            .contains("argument 1 is `1i64`")
    );
    assert!(
        resolve("norm(1, 1i64)")
            .unwrap_err()
            .contains("argument 2 is `1i64`")
    );
    assert!(
        resolve("norm(1, 1) -> f64")
            .unwrap_err()
            .contains("reads f64, but `norm` returns i64")
    );
    assert!(
        resolve("norm(1, 0x1ffffffff)")
            .unwrap_err()
            .contains("out of range")
    );
}

#[test]
fn compatibility_ignores_signs_only() {
    let recorded = signature("(i64, i8, f32) -> ptr");
    for same in ["(u64, i8, f32) -> i64", "(ptr, u8, f32) -> u64"] {
        assert!(recorded.compatible(&signature(same)), "{same}");
    }
    for other in [
        "(i64, i8) -> ptr",
        "(i32, i8, f32) -> ptr",
        "(i64, i8, f64) -> ptr",
        "(i64, i8, f32)",
    ] {
        assert!(!recorded.compatible(&signature(other)), "{other}");
    }
}

fn types() -> impl Strategy<Value = Type> {
    prop::sample::select(Type::ALL.to_vec())
}

proptest! {
    #[test]
    fn signatures_survive_their_text(
        params in prop::collection::vec(types(), 0..=MAX_PARAMS),
        returns in prop::option::of(types()),
    ) {
        let signature = Signature::new(params, returns);
        prop_assert_eq!(signature.to_string().parse(), Ok(signature.clone()));
        let named = NamedSignature { name: "f_0.x$".to_owned(), signature };
        prop_assert_eq!(named.to_string().parse(), Ok(named));
    }

    #[test]
    fn values_survive_text_and_bits(ty in types(), bits: u64) {
        let value = Value::from_bits(ty, bits);
        prop_assert_eq!(value.ty(), ty);
        prop_assert_eq!(Value::from_bits(ty, value.to_bits()).to_bits(), value.to_bits());
        let again = Value::parse(&value.to_string(), ty).unwrap();
        let nan = |value| matches!(value, Value::F32(x) if x.is_nan())
            || matches!(value, Value::F64(x) if x.is_nan());
        prop_assert!(again.to_bits() == value.to_bits() || (nan(again) && nan(value)));
        // The same as an argument with its type written behind it.
        let text = format!("f({value}{ty})");
        let (signature, values) = text.parse::<CallExpr>().unwrap().resolve(None).unwrap();
        prop_assert_eq!(signature.params, vec![ty]);
        prop_assert!(values[0].to_bits() == value.to_bits() || nan(value));
    }

    #[test]
    fn no_text_panics(text in ".{0,80}", call in "[a-z]{1,3}\\([-+0-9a-fx.,_ ]{0,40}\\)?( -> [a-z0-9 *]{0,9})?") {
        for text in [&text, &call] {
            let _ = text.parse::<Signature>();
            let _ = text.parse::<NamedSignature>();
            let _ = text.parse::<Type>();
            if let Ok(call) = text.parse::<CallExpr>() {
                let _ = call.resolve(None);
                let _ = call.resolve(Some(&Signature::new([Type::F32], None)));
                prop_assert_eq!(call.to_string().parse(), Ok(call));
            }
        }
    }
}
