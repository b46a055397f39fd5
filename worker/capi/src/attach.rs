//! Attaching and detaching.

use core::mem::size_of;
use core::slice;
use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use ::jitcast_worker::{Endpoint, HostTable, Worker, WorkerOptions};

use crate::function::jitcast_code;
use crate::status::{Failure, bounded, jitcast_status};

/// A process's attachment to a segment.
#[derive(Debug)]
pub struct jitcast_worker(Worker);

/// In jitcast_options: published code may import what `imports` names, and nothing else.
pub const JITCAST_STRICT: u32 = 1;

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
}

/// How to attach. The caller fills `size`, and the rest with zeros where it has nothing to say; members may be added at
/// the end. Nothing of it is used after the call, but what imports lead to.
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
    /// JITCAST_STRICT or 0.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<jitcast_import>() == 32 && size_of::<jitcast_options>() == 72);

/// Attaches to the compiler process at the socket `path`, or, after an `@`, of that name in the abstract name space: maps the
/// segment, binds what is published, and runs its constructors. `options` may be NULL.
///
/// Errors: JITCAST_STATUS_INVALID_ARGUMENT; JITCAST_STATUS_CONNECT; JITCAST_STATUS_PROTOCOL; JITCAST_STATUS_REFUSED;
/// JITCAST_STATUS_FOREIGN_COMPILER, if it is not this user's, root's or a trusted one's; JITCAST_STATUS_NOT_SEALED; JITCAST_STATUS_SEGMENT;
/// JITCAST_STATUS_SYSTEM; JITCAST_STATUS_LIBRARY; JITCAST_STATUS_UPDATE. Nothing is left behind then, but libraries that were loaded.
///
/// # Safety
/// `path` is null or a C string; `options` is null or as its description says; `worker` is null or can be stored to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_attach_path(
    path: *const c_char,
    options: *const jitcast_options,
    worker: *mut *mut jitcast_worker,
) -> jitcast_status {
    bounded(|| {
        // SAFETY: the caller's promise.
        let path = unsafe { bytes(path, "path") }?;
        let endpoint = Endpoint::Path(OsStr::from_bytes(path).as_ref());
        // SAFETY: the caller's promise.
        unsafe { attach(endpoint, options, worker) }
    })
}

/// The same, over a socket that is connected: inherited or handed over. It is the library's from then on if this succeeds, and else the
/// caller's. Such a worker does not look for another compiler process when this one is gone.
///
/// Errors: those of jitcast_attach_path, but for JITCAST_STATUS_CONNECT.
///
/// # Safety
/// As for jitcast_attach_path; nobody else uses `fd`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_attach_fd(
    fd: c_int,
    options: *const jitcast_options,
    worker: *mut *mut jitcast_worker,
) -> jitcast_status {
    bounded(|| {
        if fd < 0 || std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_err() {
            return Err(Failure::argument(format!(
                "`fd`: {fd} is no open descriptor"
            )));
        }
        // SAFETY: open (just looked), and the caller's while this runs.
        let given = unsafe { BorrowedFd::borrow_raw(fd) };
        let own = given.try_clone_to_owned();
        let own = own.map_err(|why| {
            Failure::new(
                jitcast_status::System,
                format!("F_DUPFD_CLOEXEC of {fd}: {why}"),
            )
        })?;
        // SAFETY: the caller's promise.
        unsafe { attach(Endpoint::Fd(own), options, worker) }?;
        // SAFETY: the caller gives it away with this call.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
        Ok(())
    })
}

/// The same, by the name of a named segment, whose header says where the socket is.
///
/// Errors: those of jitcast_attach_path.
///
/// # Safety
/// As for jitcast_attach_path.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_attach_name(
    name: *const c_char,
    options: *const jitcast_options,
    worker: *mut *mut jitcast_worker,
) -> jitcast_status {
    bounded(|| {
        // SAFETY: the caller's promise.
        let name = unsafe { text(name, "name") }?;
        // SAFETY: the caller's promise.
        unsafe { attach(Endpoint::Name(name), options, worker) }
    })
}

/// Detaches: runs destructors of published code, and unmaps the segment. No thread is inside or enters any more, and every
/// jitcast_thread of the worker is void. Handles are still to be freed. NULL is let pass.
///
/// Errors: JITCAST_STATUS_INSIDE, if the calling thread holds a guard; then nothing has happened.
///
/// # Safety
/// `worker` is null, or attached and used by nobody else.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_detach(worker: *mut jitcast_worker) -> jitcast_status {
    bounded(|| {
        if worker.is_null() {
            return Ok(());
        }
        // SAFETY: the caller's promise, and not null.
        let depth = unsafe { of(worker) }?.token().depth();
        if depth > 0 {
            return Err(Failure::new(
                jitcast_status::Inside,
                format!(
                    "this thread holds guards of the worker ({depth})\n  help: leave them first, or jitcast_unwind"
                ),
            ));
        }
        // SAFETY: `attach` made it of a box, and nobody else uses it.
        drop(unsafe { Box::from_raw(worker) });
        Ok(())
    })
}

/// # Safety
/// As for [`jitcast_attach_path`].
unsafe fn attach(
    endpoint: Endpoint<'_>,
    options: *const jitcast_options,
    worker: *mut *mut jitcast_worker,
) -> Result<(), Failure> {
    if worker.is_null() {
        return Err(Failure::argument("`worker` is NULL"));
    }
    let options = if options.is_null() {
        WorkerOptions::default()
    } else {
        // SAFETY: the caller's promise, and not null.
        unsafe { read_options(options) }?
    };
    let attached = jitcast_worker(Worker::attach(endpoint, options)?);
    // SAFETY: the caller's promise, and not null.
    unsafe { worker.write(Box::into_raw(Box::new(attached))) };
    Ok(())
}

/// # Safety
/// `options` leads to what its description says.
unsafe fn read_options(options: *const jitcast_options) -> Result<WorkerOptions, Failure> {
    // SAFETY: the caller's promise.
    let options: jitcast_options = unsafe { sized(options, "options") }?;
    if options.flags & !JITCAST_STRICT != 0 || options.reserved != 0 {
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
    Ok(WorkerOptions {
        label: label.to_owned(),
        host,
        trusted_uids: uids.to_vec(),
        ..WorkerOptions::default()
    })
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
        let import: jitcast_import = unsafe { sized(at, "imports[]") }?;
        // SAFETY: the caller's promise.
        let name = unsafe { text(import.name, "imports[].name") }?;
        let address = match (import.function, import.datum.is_null()) {
            (Some(function), true) => function as *const c_void,
            (None, false) => import.datum,
            _ => {
                return Err(Failure::argument(format!(
                    "`imports[{index}]` ({name}) needs a function or a datum, one of both"
                )));
            }
        };
        // SAFETY: the caller's promise.
        unsafe { host.define_address(name, address) };
        at = at.wrapping_byte_add(import.size);
    }
    Ok(())
}

/// What begins with its own size, as this version knows it.
///
/// # Safety
/// `from` is null or leads to as many bytes as it says, and to the size at least. `T` begins with a `usize`, and is valid whatever
/// bytes it has.
unsafe fn sized<T: Copy>(from: *const T, what: &str) -> Result<T, Failure> {
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
    let known = size_of::<T>();
    if size < known || size > 4096 || !size.is_multiple_of(align_of::<T>()) {
        return Err(Failure::argument(format!(
            "`{what}.size` is {size}, and this version knows {known} bytes\n  help: store sizeof of the struct there first"
        )));
    }
    // SAFETY: the caller's promise: `size` bytes, which are more.
    let rest =
        unsafe { slice::from_raw_parts(from.cast::<u8>().wrapping_add(known), size - known) };
    if rest.iter().any(|byte| *byte != 0) {
        return Err(Failure::argument(format!(
            "`{what}` asks for something that this version does not know\n  help: use the library that the header belongs to"
        )));
    }
    // SAFETY: the caller's promise: `known` bytes at least, and aligned (looked above).
    Ok(unsafe { from.read() })
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

/// # Safety
/// `from` is null or a C string, which stays as long as `'a`.
unsafe fn bytes<'a>(from: *const c_char, what: &str) -> Result<&'a [u8], Failure> {
    if from.is_null() {
        return Err(Failure::argument(format!("`{what}` is NULL")));
    }
    // SAFETY: the caller's promise, and not null.
    Ok(unsafe { CStr::from_ptr(from) }.to_bytes())
}

/// # Safety
/// As for [`bytes`].
pub(crate) unsafe fn text<'a>(from: *const c_char, what: &str) -> Result<&'a str, Failure> {
    // SAFETY: the caller's promise.
    let bytes = unsafe { bytes(from, what) }?;
    let text = core::str::from_utf8(bytes);
    text.map_err(|why| Failure::argument(format!("`{what}` is no UTF-8: {why}")))
}

/// # Safety
/// `worker` is null, or attached as long as `'a`.
pub(crate) unsafe fn of<'a>(worker: *const jitcast_worker) -> Result<&'a Worker, Failure> {
    // SAFETY: the caller's promise.
    let worker = unsafe { worker.as_ref() };
    let worker = worker.ok_or_else(|| Failure::argument("`worker` is NULL"))?;
    Ok(&worker.0)
}

/// Stores `value` where the caller wants it.
///
/// # Safety
/// `to` is null or can be stored to.
pub(crate) unsafe fn put<T>(to: *mut T, value: T, what: &str) -> Result<(), Failure> {
    if to.is_null() {
        return Err(Failure::argument(format!("`{what}` is NULL")));
    }
    // SAFETY: the caller's promise, and not null.
    unsafe { to.write(value) };
    Ok(())
}
