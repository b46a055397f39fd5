//! Dynamic calls of real functions, of every type and of mixes of them.

use std::cell::RefCell;
use std::hash::{DefaultHasher, Hash, Hasher};

use proptest::prelude::*;

use super::*;

/// Calls `entry`, which the tests know to have the signature `text`.
fn call(entry: *const (), text: &str, args: &[Value]) -> Result<Option<Value>, InvokeError> {
    let signature: Signature = text.parse().expect(text);
    // SAFETY: every test passes the address of a function of this file and its own signature; none of them
    // reads memory through its arguments or unwinds.
    unsafe { invoke(entry, &signature, args) }
}

/// A type of Rust's that is one of ours.
trait Native: Copy + 'static {
    const TYPE: Type;
    fn value(self) -> Value;
}

macro_rules! native {
    ($($native:ty => $variant:ident),* $(,)?) => {$(
        impl Native for $native {
            const TYPE: Type = Type::$variant;
            fn value(self) -> Value {
                Value::$variant(self)
            }
        }
    )*};
}

native!(
    i8 => I8, i16 => I16, i32 => I32, i64 => I64, u8 => U8, u16 => U16, u32 => U32, u64 => U64,
    f32 => F32, f64 => F64,
);

impl Native for *const () {
    const TYPE: Type = Type::Ptr;
    fn value(self) -> Value {
        Value::Ptr(self.addr() as u64)
    }
}

extern "C" fn first<A: Native, B: Native>(a: A, _: B) -> A {
    a
}

extern "C" fn second<A: Native, B: Native>(_: A, b: B) -> B {
    b
}

fn pair<A: Native, B: Native>(a: A, b: B) {
    let args = [a.value(), b.value()];
    for (entry, result) in [
        (
            first::<A, B> as extern "C" fn(A, B) -> A as *const (),
            a.value(),
        ),
        (
            second::<A, B> as extern "C" fn(A, B) -> B as *const (),
            b.value(),
        ),
    ] {
        let text = format!("({}, {}) -> {}", A::TYPE, B::TYPE, result.ty());
        assert_eq!(call(entry, &text, &args), Ok(Some(result)), "{text}");
    }
}

macro_rules! pairs {
    ([$($a:expr),*], $b:tt) => { $(pairs!(@row $a, $b);)* };
    (@row $a:expr, [$($b:expr),*]) => { $(pair($a, $b);)* };
}

#[test]
fn every_pair_of_types() {
    let pointer = core::ptr::without_provenance::<()>(0xdead_beef_0000);
    pairs!(
        [
            -1_i8,
            i16::MIN,
            -7_i32,
            i64::MIN,
            200_u8,
            40_000_u16,
            u32::MAX,
            u64::MAX,
            -0.0_f32,
            1e300,
            pointer
        ],
        [
            i8::MIN,
            -2_i16,
            i32::MAX,
            -3_i64,
            u8::MAX,
            1_u16,
            3_000_000_000_u32,
            1_u64,
            1.5_f32,
            -2.5,
            pointer
        ]
    );
}

thread_local! {
    static SEEN: RefCell<Vec<Value>> = const { RefCell::new(Vec::new()) };
}

fn see(values: &[Value]) -> u64 {
    SEEN.with_borrow_mut(|seen| seen.extend_from_slice(values));
    let mut hasher = DefaultHasher::new();
    values
        .iter()
        .for_each(|value| value.to_bits().hash(&mut hasher));
    hasher.finish()
}

macro_rules! mixes {
    ($($name:ident($($arg:ident: $native:ty),*) -> $returns:ident;)*) => {
        $(
            #[allow(clippy::too_many_arguments, reason = "twelve arguments are what is tested")]
            extern "C" fn $name($($arg: $native),*) -> $returns {
                see(&[$($arg.value()),*]) as $returns
            }
        )*
        /// The functions, with their types.
        fn mixes() -> Vec<(*const (), Signature)> {
            vec![$((
                $name as extern "C" fn($($native),*) -> $returns as *const (),
                Signature::new([$(<$native>::TYPE),*], Some(<$returns>::TYPE)),
            )),*]
        }
    };
}

mixes! {
    none() -> u64;
    integers(a: i8, b: u8, c: i16, d: u16, e: i32, f: u32) -> i64;
    floats(a: f32, b: f64, c: f32, d: f64, e: f64, f: f32) -> f64;
    turns(a: i8, b: f32, c: u64, d: f64, e: i16, f: f32, g: u32, h: f64, i: i64, j: f32, k: u8, l: f64) -> f32;
    floats_first(a: f64, b: f64, c: f32, d: f32, e: f64, f: f64, g: i64, h: i32, i: i16, j: i8, k: u16, l: u8) -> u8;
    integers_first(a: u64, b: u8, c: i32, d: i8, e: i16, f: u32, g: f32, h: f32, i: f64, j: f32, k: f64, l: f64) -> i8;
    one_last(a: f64, b: f32, c: f64, d: f32, e: f64, f: f32, g: i8) -> u16;
    short(a: f32, b: i16, c: f32) -> i32;
}

proptest! {
    #[test]
    fn mixes_arrive_in_order(which in 0..mixes().len(), bits: [u64; 12]) {
        let (entry, signature) = mixes().swap_remove(which);
        let args: Vec<_> =
            signature.params.iter().zip(bits).map(|(ty, bits)| Value::from_bits(*ty, bits)).collect();
        SEEN.take();
        // SAFETY: the address and the signature are of the same function of this file.
        let result = unsafe { invoke(entry, &signature, &args) }.unwrap().unwrap();
        let seen: Vec<_> = SEEN.take().iter().map(|value| (value.ty(), value.to_bits())).collect();
        let passed: Vec<_> = args.iter().map(|value| (value.ty(), value.to_bits())).collect();
        prop_assert_eq!(seen, passed);
        let hash = see(&args);
        let wanted = match signature.returns.unwrap() {
            Type::F32 => Value::F32(hash as f32),
            Type::F64 => Value::F64(hash as f64),
            ty => Value::from_bits(ty, hash),
        };
        prop_assert_eq!(result, wanted);
    }
}

#[test]
fn narrow_arguments_are_extended_and_results_cut() {
    extern "C" fn wide(a: i64, b: u64) -> i64 {
        a.wrapping_add(b as i64)
    }
    let wide = wide as extern "C" fn(i64, u64) -> i64 as *const ();
    let sum = call(
        wide,
        "(i8, u16) -> i64",
        &[Value::I8(-1), Value::U16(u16::MAX)],
    );
    assert_eq!(sum, Ok(Some(Value::I64(0xfffe))));
    // What was given as unsigned is extended as its parameter says.
    let sum = call(
        wide,
        "(i32, u64) -> i64",
        &[Value::U32(u32::MAX), Value::I64(0)],
    );
    assert_eq!(sum, Ok(Some(Value::I64(-1))));
    let cut = call(
        wide,
        "(i64, u64) -> u8",
        &[Value::I64(0x1ff), Value::U64(0)],
    );
    assert_eq!(cut, Ok(Some(Value::U8(0xff))));
    let none = call(wide, "(i64, u64) -> void", &[Value::I64(1), Value::U64(1)]);
    assert_eq!(none, Ok(None));
}

#[test]
fn refused_calls() {
    let entry = none as extern "C" fn() -> u64 as *const ();
    let error =
        |entry, text: &str, args: &[Value]| call(entry, text, args).unwrap_err().to_string();
    assert!(error(core::ptr::null(), "() -> u64", &[]).contains("() -> u64 at address 0\n"));
    assert!(error(entry, "(i64) -> u64", &[]).contains("with 0 arguments\n  it takes 1\n  help:"));
    let kind = error(entry, "(i64) -> u64", &[Value::F64(1.0)]);
    assert!(
        kind.contains("argument 1 is f64, the parameter i64"),
        "{kind}"
    );
    let many = error(
        entry,
        "(ptr, i8, i8, i8, i8, i8, i8) -> u64",
        &[Value::I8(1); 7],
    );
    assert!(
        many.contains("argument 1 is i8, the parameter ptr"),
        "{many}"
    );
    let many = error(
        entry,
        "(f32, f32, f32, f32, f32, f32, f32) -> u64",
        &[Value::F32(1.0); 7],
    );
    assert!(
        many.contains("with 7 arguments of one class\n  at most 6 integers"),
        "{many}"
    );
}
