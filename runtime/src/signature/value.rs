//! Typed values: arguments and results, their text and their bits in a register.
//!
//! Invariant: `Value::from_bits(value.ty(), value.to_bits())` is `value`, to the bit.

use core::fmt;

use super::text::shown;
use super::{Class, Type};

/// Whether a literal is written as an integer or with a fraction, an exponent, `inf` or `nan`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// `21`, `-3`, `0xff`.
    Integer,
    /// `1.5`, `2e9`, `-inf`, `nan`.
    Float,
}

/// A value and its type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// [`Type::I8`].
    I8(i8),
    /// [`Type::I16`].
    I16(i16),
    /// [`Type::I32`].
    I32(i32),
    /// [`Type::I64`].
    I64(i64),
    /// [`Type::U8`].
    U8(u8),
    /// [`Type::U16`].
    U16(u16),
    /// [`Type::U32`].
    U32(u32),
    /// [`Type::U64`].
    U64(u64),
    /// [`Type::F32`].
    F32(f32),
    /// [`Type::F64`].
    F64(f64),
    /// [`Type::Ptr`]: an address of the process that called.
    Ptr(u64),
}

impl Value {
    /// The value's type.
    pub const fn ty(self) -> Type {
        match self {
            Self::I8(_) => Type::I8,
            Self::I16(_) => Type::I16,
            Self::I32(_) => Type::I32,
            Self::I64(_) => Type::I64,
            Self::U8(_) => Type::U8,
            Self::U16(_) => Type::U16,
            Self::U32(_) => Type::U32,
            Self::U64(_) => Type::U64,
            Self::F32(_) => Type::F32,
            Self::F64(_) => Type::F64,
            Self::Ptr(_) => Type::Ptr,
        }
    }

    /// The value as a 64-bit register holds it: integers sign- or zero-extended, floating point as its
    /// IEEE bits, those of `f32` in the low half.
    pub const fn to_bits(self) -> u64 {
        match self {
            Self::I8(value) => value as i64 as u64,
            Self::I16(value) => value as i64 as u64,
            Self::I32(value) => value as i64 as u64,
            Self::I64(value) => value as u64,
            Self::U8(value) => value as u64,
            Self::U16(value) => value as u64,
            Self::U32(value) => value as u64,
            Self::U64(value) | Self::Ptr(value) => value,
            Self::F32(value) => value.to_bits() as u64,
            Self::F64(value) => value.to_bits(),
        }
    }

    /// The value of type `ty` that a register with these bits holds: the low bits count, the rest is
    /// dropped.
    pub const fn from_bits(ty: Type, bits: u64) -> Self {
        match ty {
            Type::I8 => Self::I8(bits as i8),
            Type::I16 => Self::I16(bits as i16),
            Type::I32 => Self::I32(bits as i32),
            Type::I64 => Self::I64(bits as i64),
            Type::U8 => Self::U8(bits as u8),
            Type::U16 => Self::U16(bits as u16),
            Type::U32 => Self::U32(bits as u32),
            Type::U64 => Self::U64(bits),
            Type::F32 => Self::F32(f32::from_bits(bits as u32)),
            Type::F64 => Self::F64(f64::from_bits(bits)),
            Type::Ptr => Self::Ptr(bits),
        }
    }

    /// Parses a value of type `ty`: decimal or `0x` hexadecimal for integers and pointers; decimal, `inf`
    /// or `nan` for floating point.
    ///
    /// A signed type takes what fits its width with or without the sign (`0xff` and `255` are -1 for
    /// `i8`): generated code has no signs, so its signatures say `i8` for both.
    pub fn parse(text: &str, ty: Type) -> Result<Self, ValueError> {
        let error = |fault| ValueError {
            text: shown(text),
            ty,
            fault,
        };
        match ty.class() {
            Class::Float => {
                let bits = if ty == Type::F32 {
                    text.parse::<f32>().map(|value| u64::from(value.to_bits()))
                } else {
                    text.parse::<f64>().map(f64::to_bits)
                };
                let bits = match bits {
                    Ok(bits) => bits,
                    // A hexadecimal integer is a number too.
                    Err(_) => match integer(text) {
                        Some(value) if ty == Type::F32 => u64::from((value as f32).to_bits()),
                        Some(value) => (value as f64).to_bits(),
                        None => return Err(error(ValueFault::NotANumber)),
                    },
                };
                Ok(Self::from_bits(ty, bits))
            }
            Class::Integer => {
                let value = integer(text).ok_or_else(|| {
                    error(match number(text) {
                        Some(Number::Integer) => ValueFault::OutOfRange,
                        Some(Number::Float) => ValueFault::NotAnInteger,
                        None => ValueFault::NotANumber,
                    })
                })?;
                let max = i128::from(u64::MAX >> (64 - ty.bits()));
                let min = if ty.is_signed() { -(max / 2) - 1 } else { 0 };
                if !(min..=max).contains(&value) {
                    return Err(error(ValueFault::OutOfRange));
                }
                Ok(Self::from_bits(ty, value as u64))
            }
        }
    }
}

/// How `text` is written, if it is a number.
pub(super) fn number(text: &str) -> Option<Number> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let hexadecimal = digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"));
    let integer = match hexadecimal {
        Some(digits) => !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit()),
        None => !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()),
    };
    if integer {
        return Some(Number::Integer);
    }
    text.parse::<f64>().is_ok().then_some(Number::Float)
}

/// A decimal or hexadecimal integer with an optional sign, of at most 64 bits.
fn integer(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let hexadecimal = digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"));
    let (digits, radix) = hexadecimal.map_or((digits, 10), |digits| (digits, 16));
    // `from_str_radix` would take a second sign.
    if !digits.starts_with(|c: char| c.is_ascii_hexdigit()) {
        return None;
    }
    let magnitude = i128::from(u64::from_str_radix(digits, radix).ok()?);
    Some(if negative { -magnitude } else { magnitude })
}

impl fmt::Display for Value {
    /// Integers in decimal, pointers in hexadecimal, floating point with the fewest digits that give
    /// the same value back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match *self {
            Self::I8(value) => value.to_string(),
            Self::I16(value) => value.to_string(),
            Self::I32(value) => value.to_string(),
            Self::I64(value) => value.to_string(),
            Self::U8(value) => value.to_string(),
            Self::U16(value) => value.to_string(),
            Self::U32(value) => value.to_string(),
            Self::U64(value) => value.to_string(),
            Self::F32(value) => format!("{value:?}"),
            Self::F64(value) => format!("{value:?}"),
            Self::Ptr(value) => format!("{value:#x}"),
        };
        f.pad(&text)
    }
}

/// Text that is no value of a type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no {ty}: {fault}\n  {}\n  help: {}", range(*.ty), .fault.help())]
pub struct ValueError {
    /// The text, shortened if it is long.
    pub text: String,
    /// The type that was asked for.
    pub ty: Type,
    /// What is wrong.
    pub fault: ValueFault,
}

/// Why text is no value of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ValueFault {
    /// It is no number at all.
    #[error("not a number")]
    NotANumber,
    /// It has a fraction or an exponent, or is infinite or NaN.
    #[error("not an integer")]
    NotAnInteger,
    /// It is too large or too small.
    #[error("out of range")]
    OutOfRange,
}

impl ValueFault {
    fn help(self) -> &'static str {
        match self {
            Self::NotANumber => "write a number: `21`, `-3`, `0xff`, `1.5`, `2e9`, `inf`, `nan`",
            Self::NotAnInteger => "write an integer, in decimal or as `0x` and hexadecimal digits",
            Self::OutOfRange => "write a number in range",
        }
    }
}

/// What a type's values are, for messages.
fn range(ty: Type) -> String {
    let max = u64::MAX >> (64 - ty.bits());
    match ty.class() {
        Class::Float => format!("{ty} is a floating-point number of {} bits", ty.bits()),
        Class::Integer if ty.is_signed() => {
            format!(
                "{ty} goes from -{} to {} (to {max} if read as unsigned)",
                max / 2 + 1,
                max / 2
            )
        }
        Class::Integer => format!("{ty} goes from 0 to {max}"),
    }
}
