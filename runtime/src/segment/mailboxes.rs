//! Mailboxes from the compiler process's side: made, checked, and whether anybody has them still.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::SealFlags;

use crate::atomic::Ordering;
use crate::mailbox::{MAILBOX_BYTES, MAILBOX_MAGIC, Mailbox, ThreadWord, Word};
use crate::sys::{self, Mapping, MappingAdvice};

/// Whether a worker is there, as the kernel knows it, wherever its process is and however it ends: the open file description
/// that it was given holds a lock as long as somebody maps the mailbox from it, or has a descriptor of it.
#[derive(Debug)]
pub struct Presence(OwnedFd);

/// The byte of a mailbox whose lock says so.
const PRESENT: u64 = 0;

impl Presence {
    /// Whether somebody has the mailbox. If that cannot be found out: yes.
    pub fn is_there(&self) -> bool {
        sys::lock_of_another(&self.0, PRESENT..PRESENT + 1).map_or(true, |lock| lock.is_some())
    }
}

const SIZED: SealFlags = SealFlags::GROW.union(SealFlags::SHRINK).union(SealFlags::SEAL);

/// The mailbox that a worker says it has, checked: sealed against resizing, and of the right length, so that no access to it can
/// fail.
///
/// # Errors
/// `InvalidInput` if it is none; what the system said.
pub fn adopt_mailbox(fd: &OwnedFd) -> io::Result<(Mailbox, Presence)> {
    let seals = rustix::fs::fcntl_get_seals(fd)?;
    let stat = rustix::fs::fstat(fd)?;
    let forbidden = SealFlags::WRITE | SealFlags::FUTURE_WRITE;
    let is_long = stat.st_size == i64::from(MAILBOX_BYTES);
    if !seals.contains(SIZED) || seals.intersects(forbidden) || !is_long {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let own = sys::reopen(fd)?;
    let mapping = mapped(&own)?;
    // Memory for all of it, now: not when a pin is looked at. Not by fallocate(2), which would wait for whoever holds the
    // inode's lock: the worker, for as long as it likes, by a write(2) of its own from memory whose pages do not come.
    match mapping.advise(MappingAdvice::LinuxPopulateWrite) {
        // Linux before 5.14 does not know it.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
        other => other?,
    }
    let mailbox = Mailbox::new(mapping).map_err(io::Error::other)?;
    if mailbox.word(Word::Magic).load(Ordering::Relaxed) != MAILBOX_MAGIC {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok((mailbox, Presence(own)))
}

/// A mailbox that is nobody's yet.
#[derive(Debug)]
pub struct BlankMailbox {
    mailbox: Mailbox,
    theirs: OwnedFd,
    presence: Presence,
}

impl BlankMailbox {
    /// Makes one: an object that is sealed against resizing.
    ///
    /// # Errors
    /// What the system said.
    pub fn create() -> io::Result<Self> {
        let own = sys::memfd("jitcast-mailbox", MAILBOX_BYTES.into())?;
        let mailbox = map(&own)?;
        sys::seal(&own, SIZED)?;
        mailbox.word(Word::Magic).store(MAILBOX_MAGIC, Ordering::Relaxed);
        // Every worker has a thread: its page is there with the header's, and mapped by the same fault.
        mailbox.thread(0, ThreadWord::Tid).store(0, Ordering::Relaxed);
        let theirs = sys::reopen(&own)?;
        sys::share_lock(&theirs, PRESENT)?;
        Ok(Self { mailbox, theirs, presence: Presence(own) })
    }

    /// For a worker that will map the segment's `object`, with the descriptor that it is given.
    pub fn for_object(self, object: u64) -> (Mailbox, OwnedFd, Presence) {
        self.mailbox.word(Word::Object).store(object, Ordering::Relaxed);
        self.mailbox.word(Word::Mapped).store(object, Ordering::Relaxed);
        (self.mailbox, self.theirs, self.presence)
    }
}

/// A mailbox for one worker, which will map the segment's `object`, and its descriptor for the worker.
///
/// # Errors
/// As [`BlankMailbox::create`].
pub fn create_mailbox(object: u64) -> io::Result<(Mailbox, OwnedFd, Presence)> {
    Ok(BlankMailbox::create()?.for_object(object))
}

fn map(fd: &OwnedFd) -> io::Result<Mailbox> {
    Mailbox::new(mapped(fd)?).map_err(io::Error::other)
}

fn mapped(fd: &OwnedFd) -> io::Result<Mapping> {
    let mapping = Mapping::shared(fd.as_fd(), MAILBOX_BYTES as usize, true)?;
    mapping.advise(MappingAdvice::LinuxDontFork)?;
    Ok(mapping)
}
