//! Descriptors that a host may close (closefrom(3)), and others may get the numbers of.
//!
//! Invariant: nothing is done to a descriptor that is not what it was.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use jitcast_runtime::sys;

/// A descriptor, and which file it led to when it was this library's.
#[derive(Debug)]
pub(crate) struct Watched {
    /// `None` once it is not ours to close.
    fd: Option<OwnedFd>,
    identity: [AtomicU64; 2],
}

impl Watched {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let watched = Self {
            identity: identity(&fd)?.map(AtomicU64::new),
            fd: Some(fd),
        };
        Ok(watched)
    }

    /// The descriptor, if it still leads where it led.
    pub(crate) fn get(&self) -> Option<BorrowedFd<'_>> {
        let fd = self.fd.as_ref()?;
        (identity(fd).ok()? == self.file()).then(|| fd.as_fd())
    }

    /// Which file it led to when it was this library's.
    pub(crate) fn file(&self) -> [u64; 2] {
        let words = self.identity.each_ref();
        words.map(|word| word.load(Ordering::Relaxed))
    }

    /// Lets the descriptor lead to what `other` leads to.
    ///
    /// # Errors
    /// Where either was closed; as dup3(2).
    pub(crate) fn replace(&self, other: &Self) -> io::Result<()> {
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

impl Watched {
    /// The descriptor, whatever it leads to by now.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        let fd = self.fd.as_ref();
        fd.expect("only taken when it is dropped").as_fd()
    }

    /// Closes it before its time, in a process that has only this thread.
    pub(crate) fn close(&self) {
        if let Some(fd) = self.get() {
            // SAFETY: it is this library's (just compared), and whoever looks at it from now on compares again.
            unsafe { rustix::io::close(fd.as_raw_fd()) };
        }
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
