//! The child process that compiles: started, limited, ended.
//!
//! Invariant: it has two files of memory and nothing else of this process, cannot gain rights, and is gone when this returns,
//! whatever it does.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use jitcast_runtime::sys;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, pidfd_open, set_parent_process_death_signal,
    setrlimit,
};

use super::codegen::{CodegenRequest, Generated};
use super::{How, RequestLimits};

/// How much of what it says on standard error is told, bytes.
const TOLD_BYTES: u64 = 512;

/// How often a child is looked at where there are no pidfds.
const LOOK: Duration = Duration::from_millis(5);

/// A child that runs, killed when dropped.
pub(super) struct Child {
    process: std::process::Child,
}

impl Drop for Child {
    fn drop(&mut self) {
        // One that has ended already is only waited for.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Child {
    /// Compiles `request` in a child process.
    pub(super) fn run(how: &How<'_>, request: &CodegenRequest) -> Result<Generated, String> {
        let options = how.options;
        let Some((program, arguments)) = options.command.as_deref().and_then(<[_]>::split_first)
        else {
            return Err(super::queue::no_command());
        };
        let limits = &options.limits;
        let system = |step: &'static str| {
            move |error: io::Error| {
                format!(
                    "the text cannot be compiled: cannot {step}: {error}\n  help: see whether the machine has memory and processes left, and ask again"
                )
            }
        };
        let input = postcard::to_stdvec(request).map_err(|error| error.to_string())?;
        let stdin = memory_file(&input).map_err(system("hand over the text"))?;
        let mut stdout = memory_file(&[]).map_err(system("make a file for the result"))?;
        let mut stderr = memory_file(&[]).map_err(system("make a file for messages"))?;
        let files = [&stdin, &stdout, &stderr].map(File::try_clone);
        let [stdin, out, err] = files;
        let started = stdin.and_then(|stdin| {
            let files = (stdin, out?, err?);
            Self::start(program, arguments, files, *limits)
        });
        let mut child = started.map_err(system("start the command that compiles"))?;
        let status = child.wait_within(limits.time, how.ended);
        let status = status.map_err(system("wait for the command that compiles"))?;
        drop(child);
        let said = read_start(&mut stderr, TOLD_BYTES);
        let said = said.map_err(system("read messages"))?;
        check(status, limits, &String::from_utf8_lossy(&said))?;
        let output = read_start(&mut stdout, limits.object_bytes);
        let output = output.map_err(system("read the result"))?;
        let broken = |_| {
            "the command that compiles gave back nothing that can be read\n  help: start the compiler process with the executable of its own version".to_owned()
        };
        let done: Result<Generated, String> = postcard::from_bytes(&output).map_err(broken)?;
        done
    }

    fn start(
        program: &OsString,
        arguments: &[OsString],
        (stdin, stdout, stderr): (File, File, File),
        limits: RequestLimits,
    ) -> io::Result<Self> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .current_dir("/")
            .stdin(stdin)
            .stdout(stdout)
            .stderr(stderr);
        let confine = move || confine(&limits);
        // SAFETY: between fork and exec only async-signal-safe functions may be called: `confine` makes system calls, and nothing
        // else.
        unsafe { command.pre_exec(confine) };
        let process = command.spawn()?;
        Ok(Self { process })
    }

    /// How it ended; `None`: it had to be killed.
    fn wait_within(
        &mut self,
        patience: Duration,
        ended: &UnixStream,
    ) -> io::Result<Option<ExitStatus>> {
        // It has not been waited for, so its number means no other process.
        let pid = Pid::from_child(&self.process);
        // Where there are none, it is looked at now and then.
        let pidfd: Option<OwnedFd> = pidfd_open(pid, PidfdFlags::empty()).ok();
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.process.try_wait()? {
                return Ok(Some(status));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let patience = if pidfd.is_some() {
                left
            } else {
                left.min(LOOK)
            };
            let timeout = Timespec {
                tv_sec: patience.as_secs().cast_signed(),
                tv_nsec: patience.subsec_nanos().into(),
            };
            let mut fds = vec![PollFd::new(ended, PollFlags::IN)];
            fds.extend(
                pidfd
                    .as_ref()
                    .map(|pidfd| PollFd::new(pidfd, PollFlags::IN)),
            );
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) if !fds[0].revents().is_empty() => {
                    return Err(io::Error::other("the compiler process is ending"));
                }
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Whether it came to its end.
fn check(status: Option<ExitStatus>, limits: &RequestLimits, said: &str) -> Result<(), String> {
    let help = "\n  help: ask for less at once, or start the compiler process with wider limits (--request-*)";
    let Some(status) = status else {
        let seconds = limits.time.as_secs_f32();
        return Err(format!(
            "compiling took more than {seconds} s, and was ended{help}"
        ));
    };
    let said = said.trim();
    let said = if said.is_empty() {
        String::new()
    } else {
        format!(": {said}")
    };
    match status.signal() {
        None if status.success() => Ok(()),
        Some(libc::SIGXCPU) => {
            let seconds = limits.cpu.as_secs();
            Err(format!(
                "compiling took more than {seconds} s of processor time, and was ended{help}"
            ))
        }
        Some(libc::SIGXFSZ) => {
            let bytes = limits.object_bytes;
            Err(format!(
                "what was compiled is longer than {bytes} bytes{help}"
            ))
        }
        _ => Err(format!(
            "compiling did not come to an end ({status}, with {} MiB of memory){said}{help}",
            limits.memory_bytes >> 20
        )),
    }
}

/// In the child, before it becomes another program.
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

/// A file in memory with these contents, to be read from its beginning.
fn memory_file(contents: &[u8]) -> io::Result<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::memfd_create("jitcast-request", flags)?);
    file.write_all(contents)?;
    file.rewind()?;
    Ok(file)
}

/// The first `limit` bytes of a file. The child shared its position.
fn read_start(file: &mut File, limit: u64) -> io::Result<Vec<u8>> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}
