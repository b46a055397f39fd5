//! Forked children of a test's process, which never come back into the test harness.

use rustix::process::{Pid, WaitOptions, waitpid};

/// Runs `child` in a forked child, which ends with it: with 1 if it panics.
pub(crate) fn fork(child: impl FnOnce()) -> Pid {
    // SAFETY: what the child does needs no lock that another thread could hold: malloc's are taken care of by the C library.
    finish_fork(unsafe { libc::fork() }, child)
}

/// The same, after whatever call made the child: `pid` is what it returned.
pub(crate) fn finish_fork(pid: i32, child: impl FnOnce()) -> Pid {
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if let Some(pid) = Pid::from_raw(pid) {
        return pid;
    }
    // Not even a panic may lead the child back.
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
    // SAFETY: ends the process without running anything of its parent's.
    unsafe { libc::_exit(i32::from(done.is_err())) }
}

/// Waits for a child, which has to end well.
#[track_caller]
pub(crate) fn succeeded(child: Pid) {
    let (_, status) = waitpid(Some(child), WaitOptions::empty()).unwrap().unwrap();
    assert_eq!(status.exit_status(), Some(0), "{status:?}");
}
