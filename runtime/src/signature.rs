//! What a published function takes and returns, as far as a call needs to know: types, signatures, typed
//! values, and the text of calls (`score(21) -> i64`) and prototypes (`long score(long)`).
//!
//! Invariant: a signature and its canonical text (`(i64, f64) -> i64`, [`Signature`]'s `Display`) are the
//! same thing: parsing the text gives the signature back. The text is what the segment stores.

mod call;
mod text;
mod value;

#[cfg(test)]
mod tests;

use core::fmt;
use core::str::FromStr;

pub use call::{CallError, CallExpr, CallFault, Literal};
pub use text::{SignatureError, SignatureFault};
pub use value::{Number, Value, ValueError, ValueFault};

use text::Cursor;

/// How many parameters a [`Signature`] can have at most.
pub const MAX_PARAMS: usize = 64;

/// How long the text of a signature, a call or a prototype can be at most, in bytes.
pub const MAX_TEXT_BYTES: usize = 16 * 1024;

/// How many integer and how many floating-point arguments go into registers (psABI x86-64 1.0, section
/// 3.2.3 has eight for floating point; six of each is what a dynamic call supports).
pub const MAX_REGISTER_ARGS: usize = 6;

/// The type of an argument or of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// Signed, 8 bits; C's `char`.
    I8,
    /// Signed, 16 bits; C's `short`.
    I16,
    /// Signed, 32 bits; C's `int`.
    I32,
    /// Signed, 64 bits; C's `long`.
    I64,
    /// Unsigned, 8 bits; C's `unsigned char` and `bool`.
    U8,
    /// Unsigned, 16 bits; C's `unsigned short`.
    U16,
    /// Unsigned, 32 bits; C's `unsigned int`.
    U32,
    /// Unsigned, 64 bits; C's `unsigned long` and `size_t`.
    U64,
    /// IEEE single precision; C's `float`.
    F32,
    /// IEEE double precision; C's `double`.
    F64,
    /// Any data or function pointer.
    Ptr,
}

/// The registers that an argument travels in (the psABI's classes INTEGER and SSE).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// General registers.
    Integer,
    /// Vector registers.
    Float,
}

impl Type {
    /// All types.
    pub const ALL: [Self; 11] = [
        Self::I8,
        Self::I16,
        Self::I32,
        Self::I64,
        Self::U8,
        Self::U16,
        Self::U32,
        Self::U64,
        Self::F32,
        Self::F64,
        Self::Ptr,
    ];

    /// The name in canonical text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::I8 => "i8",
            Self::I16 => "i16",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::U8 => "u8",
            Self::U16 => "u16",
            Self::U32 => "u32",
            Self::U64 => "u64",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::Ptr => "ptr",
        }
    }

    /// The width in bits.
    pub const fn bits(self) -> u32 {
        match self {
            Self::I8 | Self::U8 => 8,
            Self::I16 | Self::U16 => 16,
            Self::I32 | Self::U32 | Self::F32 => 32,
            Self::I64 | Self::U64 | Self::F64 | Self::Ptr => 64,
        }
    }

    /// The registers that it travels in.
    pub const fn class(self) -> Class {
        match self {
            Self::F32 | Self::F64 => Class::Float,
            _ => Class::Integer,
        }
    }

    /// Whether it is an integer with a sign.
    pub const fn is_signed(self) -> bool {
        matches!(self, Self::I8 | Self::I16 | Self::I32 | Self::I64)
    }

    /// Whether a caller that says `other` and a callee that says `self` agree on register and width. Signs,
    /// and pointer or 64-bit integer, make no difference: generated code has no signs.
    pub fn compatible(self, other: Self) -> bool {
        self.class() == other.class() && self.bits() == other.bits()
    }

    /// The type with this canonical name.
    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.name() == name)
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Type {
    type Err = SignatureError;

    /// Parses a canonical name or a C spelling (`unsigned long`, `const char *`).
    fn from_str(text: &str) -> Result<Self, SignatureError> {
        let mut cursor = Cursor::new(text)?;
        let at = cursor.at();
        let ty = cursor
            .c_type()?
            .ok_or_else(|| cursor.fail(at, SignatureFault::VoidParameter))?;
        cursor.end()?;
        Ok(ty)
    }
}

/// What a function takes and returns.
///
/// ```
/// use jitcast_runtime::signature::Signature;
///
/// let signature: Signature = "(const char *, unsigned long) -> double".parse().unwrap();
/// assert_eq!(signature.to_string(), "(ptr, u64) -> f64");
/// // What travels alike can be called alike.
/// assert!(signature.compatible(&"(ptr, i64) -> f64".parse().unwrap()));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Signature {
    /// The parameters, in order. Text holds at most [`MAX_PARAMS`].
    pub params: Vec<Type>,
    /// The result, `None` for `void`.
    pub returns: Option<Type>,
}

impl Signature {
    /// A signature of these parameters and this result.
    pub fn new(params: impl Into<Vec<Type>>, returns: Option<Type>) -> Self {
        Self {
            params: params.into(),
            returns,
        }
    }

    /// Whether a caller that says `other` can call a function that says `self`: the same number of
    /// parameters, each of the same class and width ([`Type::compatible`]), and the same of the result.
    pub fn compatible(&self, other: &Self) -> bool {
        let params = self.params.len() == other.params.len()
            && self
                .params
                .iter()
                .zip(&other.params)
                .all(|(a, b)| a.compatible(*b));
        let returns = match (self.returns, other.returns) {
            (Some(a), Some(b)) => a.compatible(b),
            (None, None) => true,
            _ => false,
        };
        params && returns
    }

    /// How many parameters travel in registers of `class`.
    pub fn count(&self, class: Class) -> usize {
        self.params.iter().filter(|ty| ty.class() == class).count()
    }

    /// Whether a dynamic call can be made: at most [`MAX_REGISTER_ARGS`] parameters of each class.
    pub fn fits_registers(&self) -> bool {
        self.count(Class::Integer) <= MAX_REGISTER_ARGS
            && self.count(Class::Float) <= MAX_REGISTER_ARGS
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(")?;
        for (index, param) in self.params.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { ", " })?;
            f.write_str(param.name())?;
        }
        f.write_str(") -> ")?;
        f.write_str(self.returns.map_or("void", Type::name))
    }
}

impl FromStr for Signature {
    type Err = SignatureError;

    /// Parses canonical text. C's spellings of types are understood, and a missing `->` means `void`.
    fn from_str(text: &str) -> Result<Self, SignatureError> {
        let mut cursor = Cursor::new(text)?;
        let params = cursor.params()?;
        let returns = cursor.arrow_type()?.unwrap_or(None);
        cursor.end()?;
        Ok(Self { params, returns })
    }
}

/// A function's name and signature: what `--sig` declares.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NamedSignature {
    /// The symbol's name.
    pub name: String,
    /// Its signature.
    pub signature: Signature,
}

impl fmt::Display for NamedSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.name, self.signature)
    }
}

impl FromStr for NamedSignature {
    type Err = SignatureError;

    /// Parses `score(long) -> long`, `score(i64) -> i64` or a C prototype, `long score(long n);`.
    fn from_str(text: &str) -> Result<Self, SignatureError> {
        let mut cursor = Cursor::new(text)?;
        let (name, before) = cursor.declarator()?;
        let params = cursor.params()?;
        let at = cursor.at();
        let returns = match (before, cursor.arrow_type()?) {
            (Some(returns), None) | (None, Some(returns)) => returns,
            (None, None) => return Err(cursor.fail(at, SignatureFault::NoResult)),
            (Some(_), Some(_)) => return Err(cursor.fail(at, SignatureFault::TwoResults)),
        };
        cursor.semicolon();
        cursor.end()?;
        Ok(Self {
            name,
            signature: Signature { params, returns },
        })
    }
}
