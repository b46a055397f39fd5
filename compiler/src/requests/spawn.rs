//! Starting a process that is confined before it executes anything.
//!
//! Not by `std::process::Command`: what has to be done before the exec makes that wait at a pipe, which any child inherits that
//! another thread of this process forks at the same moment, and hold it open as long as it lives. Here the kernel itself holds the
//! calling thread until the exec (`CLONE_VFORK`; the memory is a copy, as after fork(2)).
//!
//! Invariant: between clone and exec the child makes system calls, and nothing else, not even by the C library's functions, which
//! sanitizers replace: it allocates nothing, takes no lock, and never returns.

use std::convert::Infallible;
use std::ffi::{CString, OsString, c_char};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr;

use jitcast_runtime::sys;
use rustix::io::retry_on_intr;
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitOptions, WaitStatus, chdir, kill_process,
    set_parent_process_death_signal, setrlimit, waitpid,
};

use super::RequestLimits;
use super::child::memory_file;

/// A process that runs, killed when dropped.
pub(super) struct Confined {
    pid: Pid,
    /// How it ended, once it has been waited for: its number may be another's from then on.
    ended: Option<WaitStatus>,
}

impl Drop for Confined {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = kill_process(self.pid, Signal::KILL);
            let _ = retry_on_intr(|| waitpid(Some(self.pid), WaitOptions::empty()));
        }
    }
}

impl Confined {
    /// Executes `command`, a path and arguments, in the folder `/` with `files` as its standard input, output and error, no environment
    /// and no right that it has not now.
    pub(super) fn start(
        command: &[OsString],
        files: [&File; 3],
        limits: &RequestLimits,
    ) -> io::Result<Self> {
        let text = |text: &OsString| CString::new(text.as_bytes()).map_err(io::Error::from);
        let arguments: Vec<_> = command.iter().map(text).collect::<Result<_, _>>()?;
        let mut vector: Vec<_> = arguments.iter().map(|argument| argument.as_ptr()).collect();
        vector.push(ptr::null());
        // Not numbers that are about to be replaced.
        let above = |file: &File| rustix::io::fcntl_dupfd_cloexec(file, 3);
        let [stdin, stdout, stderr] = files.map(above);
        let mut failure = memory_file(&[])?;
        let plan = Plan {
            vector: &vector,
            files: [stdin?, stdout?, stderr?],
            failure: failure.as_fd().try_clone_to_owned()?,
            limits,
        };
        let pid = plan.clone_process()?;
        let mut child = Self { pid, ended: None };
        let mut errno = Vec::new();
        failure.rewind()?;
        failure.read_to_end(&mut errno)?;
        match <[u8; 4]>::try_from(errno.as_slice()) {
            Ok(errno) => {
                let waited = retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()))?;
                child.ended = waited.map(|(_, status)| status);
                Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
            }
            Err(_) => Ok(child),
        }
    }

    /// Its number, which is its own as long as `try_wait` has not said how it ended.
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// How it ended, if it has.
    pub(super) fn try_wait(&mut self) -> io::Result<Option<WaitStatus>> {
        if self.ended.is_none() {
            let waited = waitpid(Some(self.pid), WaitOptions::NOHANG)?;
            self.ended = waited.map(|(_, status)| status);
        }
        Ok(self.ended)
    }
}

/// All that the child needs, made before there is one.
struct Plan<'a> {
    /// The path and the arguments, and a null pointer.
    vector: &'a [*const c_char],
    files: [OwnedFd; 3],
    /// Where the child writes the number of its error.
    failure: OwnedFd,
    limits: &'a RequestLimits,
}

impl Plan<'_> {
    fn clone_process(&self) -> io::Result<Pid> {
        let before = block_signals();
        let pid = clone();
        if pid == 0 {
            let Err(error) = self.become_command();
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            let _ = rustix::io::write(&self.failure, &errno.to_ne_bytes());
            // SAFETY: ends the child without running anything of this process's.
            unsafe { libc::_exit(127) }
        }
        let failed = io::Error::last_os_error();
        set_signal_mask(&before);
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        pid.ok_or(failed)
    }

    /// In the child. No signal is let in before the exec, so no handler of this process runs in it.
    fn become_command(&self) -> io::Result<Infallible> {
        let [stdin, stdout, stderr] = &self.files;
        rustix::stdio::dup2_stdin(stdin)?;
        rustix::stdio::dup2_stdout(stdout)?;
        rustix::stdio::dup2_stderr(stderr)?;
        chdir(c"/")?;
        confine(self.limits)?;
        // Rust ignores this signal, and what is ignored stays so over an exec. All zeros are its default action, and no mask.
        let default = [0_u64; 4];
        let none: *const u64 = ptr::null();
        // SAFETY: reads an action of the kernel's form, whose mask has 8 bytes. No code of this process's runs at it.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                libc::SIGPIPE,
                default.as_ptr(),
                none,
                8,
            )
        };
        // SAFETY: reads a mask of 8 bytes.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                default.as_ptr(),
                none,
                8,
            )
        };
        let environment = [ptr::null::<c_char>()];
        let (arguments, environment) = (self.vector.as_ptr(), environment.as_ptr());
        // SAFETY: the vectors end with null pointers, and what they point to are strings of the caller's, which has its copy here.
        unsafe { libc::syscall(libc::SYS_execve, self.vector[0], arguments, environment) };
        Err(io::Error::last_os_error())
    }
}

fn confine(limits: &RequestLimits) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::thread::set_no_new_privs(true)?;
    let cpu = limits.cpu.as_secs().max(1);
    let set = |resource, current, maximum| {
        let (current, maximum) = (Some(current), Some(maximum));
        setrlimit(resource, Rlimit { current, maximum })
    };
    set(Resource::Cpu, cpu, cpu + 1)?;
    set(Resource::As, limits.memory_bytes, limits.memory_bytes)?;
    set(Resource::Fsize, limits.object_bytes, limits.object_bytes)?;
    set(Resource::Core, 0, 0)?;
    // Nothing but what it was given outlives the exec.
    sys::close_on_exec_from(3)
}

/// As fork(2), but that the calling thread is held until the child has executed something or is gone, and that nothing runs that
/// was registered with pthread_atfork: nothing of this process lives on in the child. -1: it failed.
#[cfg(not(tsan))]
fn clone() -> libc::c_long {
    let flags = libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: without CLONE_VM the child has a copy of all memory, this stack too, and returns from here.
    unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) }
}

/// ThreadSanitizer has locks that a child must not find held, and sees to that in fork(2) alone.
#[cfg(tsan)]
fn clone() -> libc::c_long {
    // SAFETY: the child makes system calls only.
    unsafe { libc::fork() }.into()
}

/// Lets all of this thread's signals wait: which did so before.
fn block_signals() -> libc::sigset_t {
    let mut all = no_signals();
    // SAFETY: the set is initialised.
    unsafe { libc::sigfillset(&raw mut all) };
    set_signal_mask(&all)
}

fn no_signals() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: writes a set there.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: just initialised.
    unsafe { set.assume_init() }
}

/// Lets this thread's signals wait that are in `set`: what it was before.
fn set_signal_mask(set: &libc::sigset_t) -> libc::sigset_t {
    let mut before = no_signals();
    // SAFETY: both are sets. It cannot fail with this operation.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set, &raw mut before) };
    before
}
