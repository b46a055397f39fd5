//! Ctrl-C and SIGTERM: noticed, not obeyed at once, so that nothing is left behind.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGPIPE, SIGTERM};

/// Lets the process end when whoever reads what it shows has seen enough (`jitcast status | head`), as other commands do: by SIGPIPE, which
/// Rust's runtime ignores. Sockets are written to without that signal. For commands that nobody depends on.
pub(super) fn end_with_the_reader() -> io::Result<()> {
    let always = Arc::new(AtomicBool::new(true));
    signal_hook::flag::register_conditional_default(SIGPIPE, always).map(drop)
}

/// Becomes readable when the process is asked to end.
#[derive(Debug)]
pub(super) struct Ending(UnixStream);

impl Ending {
    /// Starts to listen.
    pub(super) fn listen() -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        for signal in [SIGINT, SIGTERM] {
            signal_hook::low_level::pipe::register(signal, theirs.try_clone()?)?;
        }
        Ok(Self(ours))
    }

    /// Whether the process was asked to end.
    pub(super) fn asked(&self) -> bool {
        let mut fds = [rustix::event::PollFd::new(
            &self.0,
            rustix::event::PollFlags::IN,
        )];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(1..))
    }

    /// Waits until it is.
    pub(super) fn wait(&self) {
        loop {
            let mut fds = [rustix::event::PollFd::new(
                &self.0,
                rustix::event::PollFlags::IN,
            )];
            match rustix::event::poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => {}
                _ => return,
            }
        }
    }
}

impl AsFd for Ending {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
