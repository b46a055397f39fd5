//! The text of a call, `norm(1.5, 2.0) -> f64`, and what it becomes with a signature or without.
//!
//! Invariant: what [`CallExpr::resolve`] returns fits together: as many values as parameters, each of its
//! parameter's type, and few enough for registers.

use core::fmt;
use core::str::FromStr;

use super::text::{Cursor, SignatureError, SignatureFault, shown};
use super::value::{Number, number};
use super::{Class, MAX_PARAMS, MAX_REGISTER_ARGS, Signature, Type, Value, ValueError};

/// An argument as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Literal {
    /// The number, without its suffix.
    pub text: String,
    /// How it is written.
    pub number: Number,
    /// The type that was written behind it, `21i32`.
    pub suffix: Option<Type>,
}

impl Literal {
    /// The type that it has by itself: its suffix, else `f64` for a fraction, else `i64` (`u64` if it needs
    /// the 64th bit).
    pub fn own_type(&self) -> Type {
        match (self.suffix, self.number) {
            (Some(ty), _) => ty,
            (None, Number::Float) => Type::F64,
            (None, Number::Integer) if self.text.parse::<i64>().is_ok() => Type::I64,
            (None, Number::Integer) => match Value::parse(&self.text, Type::I64) {
                Ok(Value::I64(value)) if value >= 0 || self.text.starts_with('-') => Type::I64,
                _ => Type::U64,
            },
        }
    }

    /// Whether it can be an argument for a parameter of type `ty`: its suffix has the same class and width,
    /// or it has none and is no fraction for an integer.
    fn suits(&self, ty: Type) -> bool {
        match self.suffix {
            Some(suffix) => suffix.compatible(ty),
            None => self.number == Number::Integer || ty.class() == Class::Float,
        }
    }
}

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.text, self.suffix.map_or("", Type::name))
    }
}

/// A call as it was written: `score(21)`, `norm(1.5, 2.0) -> f64`, `f() -> void`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallExpr {
    /// The function's name.
    pub name: String,
    /// The arguments.
    pub args: Vec<Literal>,
    /// What was written behind the `->`, if it was: `Some(None)` is `void`.
    pub returns: Option<Option<Type>>,
}

impl fmt::Display for CallExpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.name)?;
        for (index, arg) in self.args.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{arg}")?;
        }
        f.write_str(")")?;
        match self.returns {
            Some(returns) => write!(f, " -> {}", returns.map_or("void", Type::name)),
            None => Ok(()),
        }
    }
}

impl FromStr for CallExpr {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, SignatureError> {
        let mut cursor = Cursor::new(text)?;
        let Some(name) = cursor.word() else {
            return Err(cursor.expected("a function's name"));
        };
        if !cursor.take("(") {
            return Err(cursor.expected("`(`"));
        }
        let mut args = Vec::new();
        if !cursor.take(")") {
            loop {
                let at = cursor.at();
                args.push(literal(&mut cursor)?);
                if args.len() > MAX_PARAMS {
                    return Err(cursor.fail(at, SignatureFault::TooManyParams));
                }
                if cursor.take(")") {
                    break;
                }
                if !cursor.take(",") {
                    return Err(cursor.expected("`,` or `)`"));
                }
            }
        }
        let returns = cursor.arrow_type()?;
        cursor.semicolon();
        cursor.end()?;
        Ok(Self {
            name: name.to_owned(),
            args,
            returns,
        })
    }
}

/// The next argument.
fn literal(cursor: &mut Cursor<'_>) -> Result<Literal, SignatureError> {
    let at = cursor.at();
    let text = cursor.take_while(|c| !matches!(c, ',' | ')' | '(') && !c.is_whitespace());
    if text.is_empty() {
        return Err(cursor.expected("a number"));
    }
    let plain = |text: &str, suffix: Option<Type>| {
        let number = number(text)?;
        Some(Literal {
            text: text.to_owned(),
            number,
            suffix,
        })
    };
    if let Some(literal) = plain(text, None) {
        return Ok(literal);
    }
    // Longest names first: `0x1u16` ends in `u16`.
    for ty in Type::ALL {
        if let Some(text) = text.strip_suffix(ty.name())
            && let Some(literal) = plain(text.strip_suffix('_').unwrap_or(text), Some(ty))
        {
            return Ok(literal);
        }
    }
    let digits = text
        .trim_start_matches(['-', '+'])
        .starts_with(|c: char| c.is_ascii_digit());
    let fault = if digits {
        SignatureFault::BadSuffix
    } else {
        SignatureFault::NotANumber
    };
    Err(cursor.fail(at, fault(shown(text))))
}

/// A call that does not fit what is called.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("`{call}`: {}", .fault.describe(.call))]
pub struct CallError {
    /// The call.
    pub call: Box<CallExpr>,
    /// What is wrong with it.
    #[source]
    pub fault: CallFault,
}

/// What is wrong with a call.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CallFault {
    /// Too few or too many arguments.
    #[error("wrong number of arguments")]
    Count {
        /// What was published.
        signature: Signature,
    },
    /// An argument that its parameter cannot take.
    #[error("wrong type of argument")]
    Argument {
        /// What was published.
        signature: Signature,
        /// Which argument, from 0.
        index: usize,
        /// The parameter's type.
        param: Type,
    },
    /// A result that the call reads as something else than the function returns.
    #[error("wrong type of result")]
    Returns {
        /// What was published.
        signature: Signature,
    },
    /// A number that does not fit its type.
    #[error("argument {}: {source}", .index + 1)]
    Value {
        /// Which argument, from 0.
        index: usize,
        /// What is wrong with it.
        source: ValueError,
    },
    /// More arguments than a dynamic call passes.
    #[error("too many arguments")]
    Registers {
        /// How many integers and pointers.
        integers: usize,
        /// How many floating-point numbers.
        floats: usize,
    },
}

impl CallFault {
    /// The whole text: what, why, remedy.
    fn describe(&self, call: &CallExpr) -> String {
        let callee = shown(&call.name);
        match self {
            Self::Count { signature } => format!(
                "`{callee}` takes {}, the call has {}\n  published as {callee}{signature}\n  \
                 help: pass one argument for each parameter",
                arguments(signature.params.len()),
                call.args.len(),
            ),
            Self::Argument {
                signature,
                index,
                param,
            } => {
                let (shown, own) = match call.args.get(*index) {
                    Some(arg) => (arg.to_string(), arg.own_type().name()),
                    None => (String::new(), "missing"),
                };
                let kind = if param.class() == Class::Integer {
                    "an integer"
                } else {
                    "a number"
                };
                format!(
                    "argument {n} is `{shown}`, {own}, but parameter {n} of `{callee}` is {param}\n  \
                     published as {callee}{signature}\n  \
                     help: pass {kind} without a suffix, or with `{param}`",
                    n = index + 1,
                )
            }
            Self::Returns { signature } => format!(
                "the call reads {}, but `{callee}` returns {}\n  \
                 published as {callee}{signature}\n  \
                 help: leave the `->` of the call away",
                name(call.returns.flatten()),
                name(signature.returns),
            ),
            Self::Value { .. } => self.to_string(),
            Self::Registers { integers, floats } => format!(
                "{integers} integer and {floats} floating-point arguments, at most \
                 {MAX_REGISTER_ARGS} of each can be passed\n  \
                 a call by text passes its arguments in registers only\n  \
                 help: call it from a published function, or through a typed handle",
            ),
        }
    }
}

fn arguments(count: usize) -> String {
    format!("{count} argument{}", if count == 1 { "" } else { "s" })
}

fn name(ty: Option<Type>) -> &'static str {
    ty.map_or("void", Type::name)
}

impl CallExpr {
    /// The signature to call with and the arguments' values.
    ///
    /// With a recorded signature the call must fit it; a result type that the call names itself, of the same
    /// class and width, only says how the result is read (`-> u64` for a published `i64`). Without one,
    /// the types are those of the call's own literals ([`Literal::own_type`]) and of its `->`, `i64` if it
    /// has none; nobody can check them then.
    pub fn resolve(
        &self,
        recorded: Option<&Signature>,
    ) -> Result<(Signature, Vec<Value>), CallError> {
        let signature = match recorded {
            Some(signature) => self.fitted(signature)?,
            None => Signature {
                params: self.args.iter().map(Literal::own_type).collect(),
                returns: self.returns.unwrap_or(Some(Type::I64)),
            },
        };
        if !signature.fits_registers() {
            return Err(self.fail(CallFault::Registers {
                integers: signature.count(Class::Integer),
                floats: signature.count(Class::Float),
            }));
        }
        let values = self.args.iter().zip(&signature.params).enumerate();
        let values = values.map(|(index, (arg, param))| {
            Value::parse(&arg.text, *param)
                .map_err(|source| self.fail(CallFault::Value { index, source }))
        });
        let values = values.collect::<Result<_, _>>()?;
        Ok((signature, values))
    }

    fn fail(&self, fault: CallFault) -> CallError {
        CallError {
            call: Box::new(self.clone()),
            fault,
        }
    }

    /// `recorded` with the result as this call reads it.
    fn fitted(&self, recorded: &Signature) -> Result<Signature, CallError> {
        if self.args.len() != recorded.params.len() {
            return Err(self.fail(CallFault::Count {
                signature: recorded.clone(),
            }));
        }
        for (index, (arg, param)) in self.args.iter().zip(&recorded.params).enumerate() {
            if !arg.suits(*param) {
                let signature = recorded.clone();
                return Err(self.fail(CallFault::Argument {
                    signature,
                    index,
                    param: *param,
                }));
            }
        }
        let returns = match (self.returns, recorded.returns) {
            (None, returned) => returned,
            // A result may be ignored.
            (Some(None), _) => None,
            (Some(Some(read)), Some(returned)) if read.compatible(returned) => Some(read),
            _ => {
                return Err(self.fail(CallFault::Returns {
                    signature: recorded.clone(),
                }));
            }
        };
        Ok(Signature {
            params: recorded.params.clone(),
            returns,
        })
    }
}
