//! The answer to libgcc's unwinder, which asks an executable first that defines `_Unwind_Find_FDE`.
//!
//! Source: libgcc's `unwind-dw2-fde.h`; its unwinder calls the function through the dynamic symbol table.

use core::ffi::{CStr, c_void};
use core::sync::atomic::{AtomicPtr, Ordering};

use jitcast_runtime::WorkerAddr;
use jitcast_runtime::window::Window;

use super::{stub_fde, windows};

/// What the unwinder is told of a function: `struct dwarf_eh_bases`.
#[derive(Debug)]
#[repr(C)]
pub struct Bases {
    /// What text-relative pointers are counted from: nothing has any.
    pub tbase: *mut c_void,
    /// What data-relative pointers are counted from: nothing has any.
    pub dbase: *mut c_void,
    /// The function's start.
    pub func: *mut c_void,
}

/// `_Unwind_Find_FDE`.
type FindFde = unsafe extern "C" fn(*const c_void, *mut Bases) -> *const c_void;

const NAME: &CStr = c"_Unwind_Find_FDE";

/// Makes the unwinder know published code: expands, in an executable, to `_Unwind_Find_FDE`, which libgcc's
/// unwinder then asks first. Everything but published code is passed on to the next definition, libgcc's own.
///
/// To be written once, at the root of the executable's crate; a library cannot have it, since the unwinder would not
/// ask there. It needs libgcc as a shared library (`libgcc_s.so.1`), the default of Rust for Linux.
///
/// ```
/// jitcast_worker::embed!();
/// fn main() {}
/// ```
#[macro_export]
macro_rules! embed {
    () => {
        const _: () = {
            #[unsafe(no_mangle)]
            unsafe extern "C" fn _Unwind_Find_FDE(
                pc: *const ::core::ffi::c_void,
                bases: *mut $crate::unwinder::Bases,
            ) -> *const ::core::ffi::c_void {
                // SAFETY: the unwinder's own arguments.
                unsafe { $crate::unwinder::find_fde(pc, bases) }
            }
        };
    };
}

/// What [`embed!`](crate::embed) expands to.
///
/// # Safety
/// `bases` is valid for writes.
pub unsafe extern "C" fn find_fde(pc: *const c_void, bases: *mut Bases) -> *const c_void {
    let Some((fde, func)) = windows::find(pc.addr() as u64) else {
        // SAFETY: the caller's promise.
        return unsafe { ask_next(pc, bases) };
    };
    let bases_of = Bases {
        tbase: core::ptr::null_mut(),
        dbase: core::ptr::null_mut(),
        func: pointer(func).cast_mut(),
    };
    // SAFETY: the caller's promise.
    unsafe { bases.write(bases_of) };
    pointer(fde)
}

fn pointer(address: WorkerAddr) -> *const c_void {
    core::ptr::with_exposed_provenance(address.get() as usize)
}

/// The next definition: null before it is looked for, [`NONE`] where there is none.
static NEXT: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());

/// No function.
const NONE: *mut c_void = core::ptr::without_provenance_mut(1);

unsafe fn ask_next(pc: *const c_void, bases: *mut Bases) -> *const c_void {
    let mut next = NEXT.load(Ordering::Relaxed);
    if next.is_null() {
        // Threads that look at the same time find the same.
        next = find(libc::RTLD_NEXT).unwrap_or(NONE);
        NEXT.store(next, Ordering::Relaxed);
    }
    if next == NONE {
        return core::ptr::null();
    }
    // SAFETY: the symbol of this name is a function of this type.
    let next = unsafe { core::mem::transmute::<*mut c_void, FindFde>(next) };
    // SAFETY: the caller's promise.
    unsafe { next(pc, bases) }
}

fn find(handle: *mut c_void) -> Option<*mut c_void> {
    // SAFETY: a special handle and a C string.
    let found = unsafe { libc::dlsym(handle, NAME.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// Whether the unwinder asks here, as far as can be seen: whether what it asks knows the stubs of `window`, which
/// is listed.
pub(crate) fn is_active(window: &Window) -> bool {
    let Some(asked) = find(libc::RTLD_DEFAULT) else {
        return false;
    };
    let stubs = window
        .geometry()
        .region(jitcast_runtime::Area::Stubs)
        .offset();
    let mut bases = Bases {
        tbase: core::ptr::null_mut(),
        dbase: core::ptr::null_mut(),
        func: core::ptr::null_mut(),
    };
    // SAFETY: the symbol of this name is a function of this type.
    let asked = unsafe { core::mem::transmute::<*mut c_void, FindFde>(asked) };
    // SAFETY: an address, and memory for the answer.
    let found = unsafe { asked(pointer(window.addr_of(stubs)), &raw mut bases) };
    found == pointer(window.addr_of(stub_fde(window)))
}
