//! The types of functions that handles can have, and calling them.
//!
//! Invariant: calls rely on what these traits say of a type, so nobody else says it.

use jitcast_runtime::WorkerAddr;
use jitcast_runtime::signature::{Signature, Type};

use crate::guard::Guard;
use crate::handle::Function;
use crate::trap::{containing, letting_out};

use sealed::Sealed;

/// A type that published functions take or return.
///
/// ```
/// use jitcast_worker::AbiType;
///
/// assert_eq!(<*const u8>::TYPE.unwrap().name(), "ptr");
/// assert_eq!(<()>::TYPE, None);
/// ```
pub trait AbiType: Copy + Sealed {
    /// Its type in signatures; `None`: nothing is returned.
    const TYPE: Option<Type>;
}

macro_rules! abi_types {
    ($($rust:ty => $abi:ident),* $(,)?) => {
        $(
            impl Sealed for $rust {}
            impl AbiType for $rust { const TYPE: Option<Type> = Some(Type::$abi); }
        )*
    };
}

abi_types! {
    i8 => I8, i16 => I16, i32 => I32, i64 => I64, u8 => U8, u16 => U16, u32 => U32, u64 => U64,
    isize => I64, usize => U64, f32 => F32, f64 => F64,
}

impl Sealed for () {}
impl<T> Sealed for *const T {}
impl<T> Sealed for *mut T {}

impl AbiType for () {
    const TYPE: Option<Type> = None;
}

impl<T> AbiType for *const T {
    const TYPE: Option<Type> = Some(Type::Ptr);
}

impl<T> AbiType for *mut T {
    const TYPE: Option<Type> = Some(Type::Ptr);
}

/// A function type that a handle can have: `extern "C" fn`, which no exception may leave (the process ends then), or
/// `extern "C-unwind" fn`, through which one passes to the host.
///
/// ```
/// use jitcast_worker::FunctionType;
///
/// type Hash = extern "C" fn(*const u8, usize) -> f64;
/// assert_eq!(Hash::signature().to_string(), "(ptr, u64) -> f64");
/// ```
pub trait FunctionType: Copy + Sealed {
    /// What it takes, as a tuple.
    type Args;

    /// What it returns.
    type Output;

    /// Its signature.
    fn signature() -> Signature;

    /// The address of this one.
    fn address(self) -> WorkerAddr;

    /// Calls this one, the host's own.
    fn call(self, args: Self::Args) -> Self::Output;

    /// [`Function::call`], with a tuple.
    #[doc(hidden)]
    fn call_published(
        function: &Function<Self>,
        guard: &Guard<'_>,
        args: Self::Args,
    ) -> Self::Output;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! function_types {
    ($($($param:ident $arg:ident),* ;)*) => { $(
        function_types!(@one "C", containing, $($param $arg),*);
        function_types!(@one "C-unwind", letting_out, $($param $arg),*);
    )* };
    (@one $abi:literal, $run:ident, $($param:ident $arg:ident),*) => {
        impl<$($param: AbiType,)* R: AbiType> Sealed for extern $abi fn($($param),*) -> R {}

        impl<$($param: AbiType,)* R: AbiType> FunctionType for extern $abi fn($($param),*) -> R {
            type Args = ($($param,)*);
            type Output = R;

            fn signature() -> Signature {
                let params: &[Option<Type>] = &[$($param::TYPE),*];
                Signature { params: params.iter().copied().flatten().collect(), returns: R::TYPE }
            }

            fn address(self) -> WorkerAddr {
                WorkerAddr::new((self as *const ()).expose_provenance() as u64)
            }

            #[inline(always)]
            fn call(self, ($($arg,)*): Self::Args) -> R {
                self($($arg),*)
            }

            #[inline(always)]
            fn call_published(function: &Function<Self>, guard: &Guard<'_>, ($($arg,)*): Self::Args) -> R {
                function.call(guard, $($arg),*)
            }
        }

        impl<$($param: AbiType,)* R: AbiType> Function<extern $abi fn($($param),*) -> R> {
            /// Calls the current version. If it is not published any more, is quarantined, is gone with an asked-for unit, or needs a host symbol
            /// that this worker lacks, the fallback serves; without one the process ends with a message.
            #[inline(always)]
            #[allow(clippy::too_many_arguments, reason = "as many as the function takes")]
            pub fn call(&self, guard: &Guard<'_>, $($arg: $param),*) -> R {
                let target = self.target(guard);
                // SAFETY: the cell leads to a published function of this signature (checked when the handle was
                // made and whenever its name was republished, or vouched for by `function_unchecked`), to a
                // fallback of this very type, or to a trap; the guard keeps the code from being reused. An exception may leave it.
                let function: extern "C-unwind" fn($($param),*) -> R = unsafe { core::mem::transmute(target) };
                $run(|| function($($arg),*))
            }
        }
    };
}

function_types! {
    ;
    A a;
    A a, B b;
    A a, B b, C c;
    A a, B b, C c, D d;
    A a, B b, C c, D d, E e;
    A a, B b, C c, D d, E e, G g;
    A a, B b, C c, D d, E e, G g, H h;
    A a, B b, C c, D d, E e, G g, H h, I i;
}
