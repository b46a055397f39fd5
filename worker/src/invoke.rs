//! Calling a function whose signature is known only at run time.
//!
//! Invariant: in the System V calling convention (psABI x86-64 1.0, section 3.2.3) arguments of class INTEGER
//! take `rdi, rsi, rdx, rcx, r8, r9` and those of class SSE `xmm0`-`xmm7`, each in order and independently of
//! the other class. So one call that fills six registers of both kinds is every call of up to six and six:
//! registers that the callee has no parameter for are caller-saved and ignored by it.

use core::mem;

use jitcast_runtime::signature::{Class, MAX_REGISTER_ARGS, Signature, Type, Value};

use crate::trap::containing;

/// A call that cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvokeError {
    /// The function's address is null.
    #[error(
        "call of a function {signature} at address 0\n  \
         nothing is bound to its name\n  \
         help: look it up again, and handle that it is missing"
    )]
    Null {
        /// The signature to call with.
        signature: Signature,
    },
    /// Too few or too many arguments.
    #[error(
        "call of a function {signature} with {given} arguments\n  \
         it takes {}\n  \
         help: pass one argument for each parameter",
        .signature.params.len()
    )]
    Count {
        /// The signature to call with.
        signature: Signature,
        /// How many arguments were given.
        given: usize,
    },
    /// An argument of another type than its parameter.
    #[error(
        "call of a function {signature}: argument {} is {given}, the parameter {wanted}\n  \
         they differ in register or width\n  \
         help: pass a value of type {wanted}",
        .index + 1
    )]
    Argument {
        /// The signature to call with.
        signature: Signature,
        /// Which argument, from 0.
        index: usize,
        /// Its type.
        given: Type,
        /// The parameter's type.
        wanted: Type,
    },
    /// More arguments than registers.
    #[error(
        "call of a function {signature} with {count} arguments of one class\n  \
         at most {MAX_REGISTER_ARGS} integers and {MAX_REGISTER_ARGS} floating-point numbers are \
         passed in registers\n  \
         help: call it from compiled code, through a typed handle"
    )]
    Registers {
        /// The signature to call with.
        signature: Signature,
        /// How many arguments of the class that has too many.
        count: usize,
    },
}

/// Six general and six vector registers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Registers {
    general: [u64; MAX_REGISTER_ARGS],
    vector: [f64; MAX_REGISTER_ARGS],
}

impl Registers {
    /// The registers that pass `args` to a function of this signature.
    ///
    /// Narrow integers are extended to 64 bits by their own sign. The psABI leaves the upper bits
    /// undefined, but clang's callees rely on 32 of them. A `f32` lies in the low half of its register.
    fn load(signature: &Signature, args: &[Value]) -> Result<Self, InvokeError> {
        if args.len() != signature.params.len() {
            return Err(InvokeError::Count {
                signature: signature.clone(),
                given: args.len(),
            });
        }
        let mut registers = Self::default();
        let mut general = registers.general.iter_mut();
        let mut vector = registers.vector.iter_mut();
        for (index, (arg, param)) in args.iter().zip(&signature.params).enumerate() {
            if !arg.ty().compatible(*param) {
                return Err(InvokeError::Argument {
                    signature: signature.clone(),
                    index,
                    given: arg.ty(),
                    wanted: *param,
                });
            }
            // Read as the parameter's type, so that its sign decides the extension.
            let bits = Value::from_bits(*param, arg.to_bits()).to_bits();
            let room = match param.class() {
                Class::Integer => general.next().map(|register| *register = bits),
                Class::Float => vector
                    .next()
                    .map(|register| *register = f64::from_bits(bits)),
            };
            if room.is_none() {
                let count = signature.count(param.class());
                return Err(InvokeError::Registers {
                    signature: signature.clone(),
                    count,
                });
            }
        }
        Ok(registers)
    }
}

/// A function that takes all of `Registers` and leaves its result where the psABI puts an `R`: `rax` for
/// `u64`, `xmm0` for `f32` and `f64`.
type Entry<R> =
    unsafe extern "C-unwind" fn(u64, u64, u64, u64, u64, u64, f64, f64, f64, f64, f64, f64) -> R;

/// Calls `entry` with `registers`.
///
/// # Safety
///
/// As for [`invoke`], for a function that returns an `R`, or anything in `rax` for `u64`.
unsafe fn call<R>(entry: *const (), registers: &Registers) -> R {
    let Registers {
        general: [a, b, c, d, e, f],
        vector: [s, t, u, v, w, x],
    } = *registers;
    // SAFETY: a function pointer and a data pointer have the same size and representation on x86-64, and
    // `entry` is not null and points to code, which our caller promises.
    let function = unsafe { mem::transmute::<*const (), Entry<R>>(entry) };
    // SAFETY: our caller promises a function of the System V convention whose result is an `R`. That its own
    // type is another is sound by this file's invariant: its parameters are among these registers.
    containing(|| unsafe { function(a, b, c, d, e, f, s, t, u, v, w, x) })
}

/// Calls the function at `entry`, of signature `signature`, with `args`; `None` is the result of `void`.
///
/// Takes up to six integers or pointers and up to six floating-point numbers, in any order. `al` is not set:
/// variadic functions are not supported. An exception that leaves it ends the process.
///
/// # Errors
///
/// See [`InvokeError`]; nothing was called then.
///
/// # Safety
///
/// - `entry` is null or the address of a function of this process that follows the System V calling
///   convention, of a signature that is [compatible](Signature::compatible) with `signature`, and it stays
///   there until it returns (of published code: the thread holds a guard).
/// - Calling it with these arguments is sound: pointers among them point to what it expects.
///
/// ```
/// use jitcast_runtime::signature::{Signature, Value};
/// use jitcast_worker::invoke::invoke;
///
/// extern "C" fn add(a: i64, b: i64) -> i64 {
///     a + b
/// }
/// let signature: Signature = "(i64, i64) -> i64".parse().unwrap();
/// let entry = add as extern "C" fn(i64, i64) -> i64 as *const ();
/// // SAFETY: `add` is of that signature.
/// let sum = unsafe { invoke(entry, &signature, &[Value::I64(40), Value::I64(2)]) };
/// assert_eq!(sum, Ok(Some(Value::I64(42))));
/// ```
pub unsafe fn invoke(
    entry: *const (),
    signature: &Signature,
    args: &[Value],
) -> Result<Option<Value>, InvokeError> {
    if entry.is_null() {
        return Err(InvokeError::Null {
            signature: signature.clone(),
        });
    }
    let registers = Registers::load(signature, args)?;
    let bits = match signature.returns {
        Some(Type::F64) => {
            // SAFETY: `entry` is not null (checked above) and our caller promises the rest; its result is an
            // `f64`, or `signature` would not be compatible.
            unsafe { call::<f64>(entry, &registers) }.to_bits()
        }
        Some(Type::F32) => {
            // SAFETY: as above, with an `f32`.
            u64::from(unsafe { call::<f32>(entry, &registers) }.to_bits())
        }
        // A `void` function leaves some value in `rax`, which is then dropped.
        Some(_) | None => {
            // SAFETY: as above, with an integer, a pointer or nothing. Of a narrow integer the upper bits of
            // `rax` are undefined but initialised, and are dropped below.
            unsafe { call::<u64>(entry, &registers) }
        }
    };
    Ok(signature.returns.map(|ty| Value::from_bits(ty, bits)))
}

#[cfg(test)]
mod tests;
