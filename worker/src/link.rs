//! The connection to the compiler process, and what it sent ahead for a child that may be forked.
//!
//! Invariant: nothing is done to a descriptor that is not the connection any more: a host may have closed it
//! (closefrom(3)), and its number may be another file's.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jitcast_runtime::mailbox::Mailbox;
use jitcast_runtime::sys;
use jitcast_runtime::wire::{self, AttachReply, FrameKind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::SendFlags;
use zerocopy::{FromBytes, IntoBytes};

use crate::attach;

/// How long a fork waits for what was asked for. It comes in some ten microseconds, if the compiler process is there.
const PATIENCE: Duration = Duration::from_secs(1);

/// A descriptor, and which file it led to when it was this library's.
#[derive(Debug)]
struct Watched {
    /// `None` once it is not ours to close.
    fd: Option<OwnedFd>,
    identity: [AtomicU64; 2],
}

impl Watched {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        let watched = Self {
            identity: identity(&fd)?.map(AtomicU64::new),
            fd: Some(fd),
        };
        Ok(watched)
    }

    /// The descriptor, if it still leads where it led.
    fn get(&self) -> Option<BorrowedFd<'_>> {
        let fd = self.fd.as_ref()?;
        let known = self
            .identity
            .each_ref()
            .map(|word| word.load(Ordering::Relaxed));
        (identity(fd).ok()? == known).then(|| fd.as_fd())
    }

    /// Lets the descriptor lead to what `other` leads to.
    ///
    /// # Errors
    /// Where either was closed; as dup3(2).
    fn replace(&self, other: &Self) -> io::Result<()> {
        let closed = || io::Error::from(io::ErrorKind::NotConnected);
        let (own, other) = (
            self.get().ok_or_else(closed)?,
            other.get().ok_or_else(closed)?,
        );
        // SAFETY: whoever borrowed the descriptor, which is this library's, goes on with what it leads to now.
        unsafe { sys::replace_descriptor(own, other) }?;
        for (word, value) in self.identity.iter().zip(identity(own)?) {
            word.store(value, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if self.get().is_none()
            && let Some(fd) = self.fd.take()
        {
            // Closed already, or somebody else's.
            core::mem::forget(fd);
        }
    }
}

fn identity(fd: impl AsFd) -> io::Result<[u64; 2]> {
    let stat = rustix::fs::fstat(fd)?;
    Ok([stat.st_dev, stat.st_ino])
}

/// What a child takes over.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) number: u64,
    pub(crate) mailbox: Mailbox,
    descriptor: Watched,
    socket: Watched,
}

#[derive(Debug, Default)]
struct Ahead {
    spare: Option<Spare>,
    /// It has been asked for one, and has not answered.
    asked: bool,
}

/// The connection.
#[derive(Debug)]
pub(crate) struct Link {
    socket: Watched,
    ahead: Mutex<Ahead>,
}

impl Link {
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            socket: Watched::new(socket)?,
            ahead: Mutex::default(),
        })
    }

    /// The connection's descriptor, whatever it leads to by now.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        let fd = self.socket.fd.as_ref();
        fd.expect("only taken when it is dropped").as_fd()
    }

    fn ahead(&self) -> MutexGuard<'_, Ahead> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for what the next child takes over. Does not wait. By who holds the worker's state, so that no fork is under way.
    pub(crate) fn ask_ahead(&self) {
        let mut ahead = self.ahead();
        let Some(socket) = self.socket.get() else {
            return;
        };
        if ahead.spare.is_none() && !ahead.asked {
            ahead.asked = send_now(socket, FrameKind::Spare);
        }
    }

    /// What the next child takes over, likewise; waits a little for it, if it has been asked for.
    pub(crate) fn take_ahead(&self) -> Option<Spare> {
        let mut ahead = self.ahead();
        if let Some(spare) = ahead.spare.take() {
            return Some(spare);
        }
        let socket = self.socket.get()?;
        if !ahead.asked {
            ahead.asked = send_now(socket, FrameKind::Spare);
        }
        if !(ahead.asked && readable_within(socket, PATIENCE)) {
            return None;
        }
        ahead.asked = false;
        receive(socket).ok()
    }

    /// In a child: the connection is the spare's from now on, under the same number, and the compiler process is told so.
    ///
    /// # Errors
    /// Where the descriptors were closed, or the system refuses.
    pub(crate) fn take_over(&self, spare: &Spare) -> io::Result<()> {
        self.socket.replace(&spare.socket)?;
        if send_now(self.descriptor(), FrameKind::Adopt) {
            return Ok(());
        }
        Err(io::ErrorKind::NotConnected.into())
    }
}

impl Spare {
    /// The descriptor of its mailbox.
    ///
    /// # Errors
    /// Where it was closed.
    pub(crate) fn descriptor(&self) -> io::Result<BorrowedFd<'_>> {
        self.descriptor
            .get()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

/// Sends a frame without payload, if that does not block: whether it was sent. Fit for a child after a fork.
fn send_now(socket: BorrowedFd<'_>, kind: FrameKind) -> bool {
    let header = wire::FrameHeader::new(kind, 0);
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::send(socket, header.as_bytes(), flags) == Ok(size_of_val(&header))
}

fn readable_within(socket: BorrowedFd<'_>, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return false,
            Ok(_) => return fds[0].revents().contains(PollFlags::IN),
            Err(_) => {}
        }
    }
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Spare> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let frame = wire::receive(socket, wire::MAX_WORKER_PAYLOAD)?;
    if frame.kind != FrameKind::SpareReply {
        return Err(invalid());
    }
    let reply = AttachReply::read_from_bytes(&frame.payload).map_err(|_| invalid())?;
    let [mailbox, socket] = <[OwnedFd; 2]>::try_from(frame.fds).map_err(|_| invalid())?;
    Ok(Spare {
        number: reply.worker,
        mailbox: attach::map_mailbox(&mailbox).map_err(io::Error::other)?,
        descriptor: Watched::new(mailbox)?,
        socket: Watched::new(socket)?,
    })
}
