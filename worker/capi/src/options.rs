//! How to attach: what hosts fill, in structs that begin with their own size, so that they can grow.
//!
//! Invariant: a program that was compiled with an older header is read as far as that goes, and the rest is zeros.

use core::mem::{MaybeUninit, align_of, size_of};
use core::slice;
use std::ffi::{c_char, c_void};

use ::jitcast_worker::{CrashReports, DebugOptions, HostTable, WorkerOptions};

use crate::attach::text;
use crate::function::{jitcast_code, signature_of};
use crate::log::{jitcast_log, log};
use crate::status::Failure;

/// In jitcast_options: published code may import what `imports` names, and nothing else.
pub const JITCAST_STRICT: u32 = 1;

/// In jitcast_options: attach, even if there is no compiler process yet, or it does not answer within a second. It is looked for whenever a
/// guard is entered, a thread's record asked for, or the worker tended, less and less often, every five seconds in the end.
/// Until it has attached, jitcast_enter and jitcast_thread_of end with JITCAST_STATUS_NOT_ATTACHED: the host calls its own functions then,
/// outside guards. Handles with a fallback can be made at once, and follow.
pub const JITCAST_LATE: u32 = 2;

/// In jitcast_options: a crash in published code (SIGSEGV, SIGBUS, SIGILL, SIGFPE) is reported on standard error, and in a file in
/// `crash_directory` if that is not NULL, before the signal goes to the handler that was there when the first such worker of the process
/// attached.
pub const JITCAST_CRASH_REPORTS: u32 = 4;

/// A host symbol that published code may import: a function or a datum, one of both. The caller fills `size`; members may be
/// added at the end.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct jitcast_import {
    /// sizeof(jitcast_import), as the caller's header has it, the same in all members of an array.
    pub size: usize,
    /// Its name.
    pub name: *const c_char,
    /// The function, of the type that published code calls it as; NULL: it is a datum.
    pub function: jitcast_code,
    /// The datum, of the type that published code takes it for; NULL: it is a function.
    pub datum: *const c_void,
    /// The function's signature, as "(i64, f64) -> i32": published code that is known to call it by another one cannot be called in this worker
    /// (JITCAST_STATUS_MISSING_IMPORT, with both in its text). NULL: the caller vouches for it.
    pub signature: *const c_char,
}

/// How to attach. The caller fills `size`, and the rest with zeros where it has nothing to say; members may be added at
/// the end. Nothing of it is used after the call, but what imports and `log` lead to.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct jitcast_options {
    /// sizeof(jitcast_options), as the caller's header has it.
    pub size: usize,
    /// What `jitcast status` shows, and canaries may be for; at most 63 bytes. NULL: nothing.
    pub label: *const c_char,
    /// What published code may import, before what the process exports.
    pub imports: *const jitcast_import,
    /// How many these are.
    pub import_count: usize,
    /// Shared libraries to load, whose symbols published code may import.
    pub libraries: *const *const c_char,
    /// How many these are.
    pub library_count: usize,
    /// Users, besides root and the process's own, whose compiler process is trusted.
    pub trusted_uids: *const u32,
    /// How many these are.
    pub trusted_uid_count: usize,
    /// JITCAST_STRICT | JITCAST_LATE | JITCAST_CRASH_REPORTS, some of them or 0.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
    /// Who is told of what no call returns; NULL: nobody.
    pub log: jitcast_log,
    /// What `log` is given.
    pub log_context: *mut c_void,
    /// With JITCAST_CRASH_REPORTS, a folder for them; NULL: none.
    pub crash_directory: *const c_char,
    /// What debuggers and profilers are shown, as "gdb,lines,jitdump,perf-map,dir=/var/tmp": any of these, in any order. NULL: what the
    /// environment says in JITCAST_DEBUG, which asks for more otherwise.
    pub debug: *const c_char,
}

const _: () = assert!(size_of::<jitcast_import>() == 40 && size_of::<jitcast_options>() == 104);

/// What the first versions of the header have. Grow never.
const FIRST_IMPORT: usize = 32;
const FIRST_OPTIONS: usize = 72;

/// The options, and whether to attach late.
///
/// # Safety
/// `options` leads to what its description says.
pub(crate) unsafe fn read_options(
    options: *const jitcast_options,
) -> Result<(WorkerOptions, bool), Failure> {
    // SAFETY: the caller's promise.
    let options: jitcast_options = unsafe { sized(options, FIRST_OPTIONS, "options") }?;
    let known = JITCAST_STRICT | JITCAST_LATE | JITCAST_CRASH_REPORTS;
    if options.flags & !known != 0 || options.reserved != 0 {
        return Err(Failure::argument(format!(
            "`options->flags` is {:#x} and `reserved` {}, which this version does not know",
            options.flags, options.reserved
        )));
    }
    let strict = options.flags & JITCAST_STRICT != 0;
    if strict && options.library_count > 0 {
        return Err(Failure::argument(
            "JITCAST_STRICT binds only what `imports` names, and `libraries` are given\n  help: leave one of both out",
        ));
    }
    let mut host = if strict {
        HostTable::strict()
    } else {
        HostTable::default()
    };
    // SAFETY: the caller's promise.
    let libraries = unsafe { array(options.libraries, options.library_count, "libraries") }?;
    for library in libraries {
        // SAFETY: the caller's promise.
        host.load(unsafe { text(*library, "libraries[]") }?)?;
    }
    // SAFETY: the caller's promise.
    unsafe { define(&mut host, &options) }?;
    // SAFETY: the caller's promise.
    let uids = unsafe {
        array(
            options.trusted_uids,
            options.trusted_uid_count,
            "trusted_uids",
        )
    }?;
    let label = if options.label.is_null() {
        ""
    } else {
        // SAFETY: the caller's promise, and not null.
        unsafe { text(options.label, "label") }?
    };
    let debug = if options.debug.is_null() {
        Ok(DebugOptions::default())
    } else {
        // SAFETY: the caller's promise, and not null.
        unsafe { text(options.debug, "debug") }?.parse()
    };
    let debug = debug.map_err(|error| Failure::argument(format!("`debug`: {error}")))?;
    // SAFETY: the caller's promise.
    let crash_reports = unsafe { crash_reports(&options) }?;
    let read = WorkerOptions {
        crash_reports,
        debug,
        label: label.to_owned(),
        host,
        trusted_uids: uids.to_vec(),
        // SAFETY: the caller's promise.
        log: unsafe { log(options.log, options.log_context) },
        ..WorkerOptions::default()
    };
    Ok((read, options.flags & JITCAST_LATE != 0))
}

/// # Safety
/// The folder of `options` is NULL or a text.
unsafe fn crash_reports(options: &jitcast_options) -> Result<CrashReports, Failure> {
    let to_stderr = options.flags & JITCAST_CRASH_REPORTS != 0;
    let mut reports = CrashReports {
        to_stderr,
        directory: None,
    };
    if !options.crash_directory.is_null() {
        if !to_stderr {
            return Err(Failure::argument(
                "`crash_directory` is given, and JITCAST_CRASH_REPORTS is not\n  help: add that to `flags`",
            ));
        }
        // SAFETY: the caller's promise, and not null.
        let directory = unsafe { text(options.crash_directory, "crash_directory") }?;
        reports.directory = Some(directory.into());
    }
    Ok(reports)
}

/// # Safety
/// The imports of `options` are what their description says.
unsafe fn define(host: &mut HostTable, options: &jitcast_options) -> Result<(), Failure> {
    if options.import_count > 0 && options.imports.is_null() {
        return Err(Failure::argument("`imports` is NULL, and they are counted"));
    }
    let mut at = options.imports;
    for index in 0..options.import_count {
        // SAFETY: the caller's promise: so many, each as long as it says.
        let import: jitcast_import = unsafe { sized(at, FIRST_IMPORT, "imports[]") }?;
        // SAFETY: the caller's promise.
        let name = unsafe { text(import.name, "imports[].name") }?;
        // SAFETY: the caller's promise.
        let signature = unsafe { signature_of(import.signature) }?;
        match (import.function, import.datum.is_null(), signature) {
            (Some(function), true, Some(signature)) => {
                // SAFETY: the caller's promise.
                unsafe { host.define_by_signature(name, signature, function as *const c_void) }
            }
            (Some(function), true, None) => {
                // SAFETY: the caller's promise.
                unsafe { host.define_address(name, function as *const c_void) }
            }
            (None, false, None) => {
                // SAFETY: the caller's promise.
                unsafe { host.define_address(name, import.datum) }
            }
            _ => {
                return Err(Failure::argument(format!(
                    "`imports[{index}]` ({name}) needs a function or a datum, one of both, and a datum has no signature"
                )));
            }
        };
        at = at.wrapping_byte_add(import.size);
    }
    Ok(())
}

/// What begins with its own size, as this version knows it. What an older header lacks is zeros.
///
/// # Safety
/// `from` is null or leads to as many bytes as it says, and to the size at least. `T` begins with a `usize`, and is valid whatever
/// bytes it has.
unsafe fn sized<T: Copy>(from: *const T, first: usize, what: &str) -> Result<T, Failure> {
    if from.is_null() {
        return Err(Failure::argument(format!("`{what}` is NULL")));
    }
    if !from.is_aligned() {
        return Err(Failure::argument(format!(
            "`{what}` is not aligned as its members are"
        )));
    }
    // SAFETY: the caller's promise, and not null.
    let size = unsafe { from.cast::<usize>().read() };
    if size < first || size > 4096 || !size.is_multiple_of(align_of::<T>()) {
        return Err(Failure::argument(format!(
            "`{what}.size` is {size}, and no header has less than {first} bytes\n  help: store sizeof of the struct there first"
        )));
    }
    let known = size.min(size_of::<T>());
    // SAFETY: the caller's promise: `size` bytes, which are not fewer.
    let rest =
        unsafe { slice::from_raw_parts(from.cast::<u8>().wrapping_add(known), size - known) };
    if rest.iter().any(|byte| *byte != 0) {
        return Err(Failure::argument(format!(
            "`{what}` asks for something that this version does not know\n  help: use the library that the header belongs to"
        )));
    }
    let mut read = MaybeUninit::<T>::zeroed();
    let to = read.as_mut_ptr().cast::<u8>();
    // SAFETY: `known` bytes at least, by the caller's promise, and not more than a `T` has, which is ours.
    unsafe { to.copy_from_nonoverlapping(from.cast(), known) };
    // SAFETY: the caller's promise: valid whatever its bytes, and all of them were written.
    Ok(unsafe { read.assume_init() })
}

/// # Safety
/// `from` leads to `count` of them, or is null.
unsafe fn array<'a, T>(from: *const T, count: usize, what: &str) -> Result<&'a [T], Failure> {
    match (from.is_null(), count) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(Failure::argument(format!(
            "`{what}` is NULL, and they are counted"
        ))),
        // SAFETY: the caller's promise, and not null.
        (false, _) => Ok(unsafe { slice::from_raw_parts(from, count) }),
    }
}
