//! What a service manager and its service say to each other: sockets that are handed over (sd_listen_fds(3)), and that it is ready
//! (sd_notify(3)).
//!
//! Invariant: without a service manager nothing here does anything.

use std::env::{self, VarError};
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use super::Failure;

/// The first descriptor that is handed over (sd_listen_fds(3), `SD_LISTEN_FDS_START`).
const FIRST: i32 = 3;

/// The socket that was handed over to this process, if one was. To be called once, before any descriptor is opened.
pub(super) fn inherited_socket() -> Result<Option<OwnedFd>, Failure> {
    let variable = |name| match env::var(name) {
        Ok(value) => Ok(Some(value)),
        Err(VarError::NotPresent) => Ok(None),
        Err(error) => Err(Failure(format!("{name}: {error}"))),
    };
    let own = std::process::id().to_string();
    // They may be meant for the process that has started this one.
    if variable("LISTEN_PID")?.is_none_or(|pid| pid != own) {
        return Ok(None);
    }
    match variable("LISTEN_FDS")?.as_deref() {
        None | Some("0") => Ok(None),
        Some("1") => take(FIRST).map(Some),
        Some(count) => Err(Failure(format!(
            "LISTEN_FDS={count}: one socket is served, not {count}\n  help: have one `ListenStream=` in the socket unit"
        ))),
    }
}

fn take(number: i32) -> Result<OwnedFd, Failure> {
    // SAFETY: by sd_listen_fds(3) the descriptor is this process's to take: LISTEN_PID names it, nothing else in it takes
    // descriptors by their numbers, and this runs once, before any is opened. If it is not open, it is let go of just below.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    match rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC) {
        Ok(()) => Ok(fd),
        Err(error) => {
            let _ = fd.into_raw_fd();
            Err(Failure(format!(
                "the socket that LISTEN_FDS tells of is not there: descriptor {number}: {error}\n  help: hand it over as descriptor {number}"
            )))
        }
    }
}

/// Tells the service manager, if there is one that wants to know. A service goes on without.
pub(super) fn notify(state: &str) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let send = || -> io::Result<()> {
        let address = match socket.as_encoded_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&socket)?,
        };
        let sender = UnixDatagram::unbound()?;
        sender.send_to_addr(state.as_bytes(), &address).map(drop)
    };
    if let Err(error) = send() {
        eprintln!(
            "note: the service manager at {} is not told {state}: {error}",
            socket.display()
        );
    }
}
