//! File systems of a process's own, for tests of full or peculiar ones.

use std::ffi::CStr;
use std::io;

/// Mounts an empty tmpfs at `target` in a mount namespace of this process's own; as an ordinary user, inside a user
/// namespace. Async-signal-safe: it makes system calls, and allocates nothing.
pub(crate) fn tmpfs(target: &CStr, flags: libc::c_ulong, data: Option<&CStr>) -> io::Result<()> {
    let done = |result: i32| match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: takes flags only.
    let unshare = |flags| done(unsafe { libc::unshare(flags) });
    unshare(libc::CLONE_NEWNS).or_else(|_| unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS))?;
    let (none, root, tmpfs) = (std::ptr::null(), c"/", c"tmpfs");
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: the target is a C string; the rest is ignored for a change of propagation.
    done(unsafe { libc::mount(none, root.as_ptr(), none, private, none.cast()) })?;
    let tmpfs = tmpfs.as_ptr();
    let data = data.map_or(std::ptr::null(), |data| data.as_ptr().cast());
    // SAFETY: source, target, type and data are C strings (or null for no data).
    done(unsafe { libc::mount(tmpfs, target.as_ptr(), tmpfs, flags, data) })
}
