//! The child process that compiles: started, limited, ended.
//!
//! Invariant: it has two files of memory and nothing else of this process, cannot gain rights, and is gone when this returns,
//! whatever it does.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open};

use super::codegen::{CodegenRequest, Generated};
use super::spawn::Confined;
use super::{How, RequestLimits};

/// How much of what it says on standard error is told, bytes.
const TOLD_BYTES: u64 = 512;

/// How often a child is looked at where there are no pidfds.
const LOOK: Duration = Duration::from_millis(5);

/// Compiles `request` in a child process.
pub(super) fn run(how: &How<'_>, request: &CodegenRequest) -> Result<Generated, String> {
    let options = how.options;
    let command = options.command.as_deref().unwrap_or_default();
    if command.is_empty() {
        return Err(super::queue::no_command());
    }
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
    let started = Confined::start(command, [&stdin, &stdout, &stderr], limits);
    let mut child = started.map_err(system("start the command that compiles"))?;
    let status = wait_within(&mut child, limits.time, how.ended);
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

/// How it ended; `None`: it had to be killed.
fn wait_within(
    child: &mut Confined,
    patience: Duration,
    ended: &UnixStream,
) -> io::Result<Option<ExitStatus>> {
    // Where there are none, it is looked at now and then.
    let pidfd: Option<OwnedFd> = pidfd_open(child.pid(), PidfdFlags::empty()).ok();
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(ExitStatus::from_raw(status.as_raw())));
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

/// A file in memory with these contents, to be read from its beginning.
pub(super) fn memory_file(contents: &[u8]) -> io::Result<File> {
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
