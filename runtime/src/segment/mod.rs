//! The objects behind a segment: what only the compiler process writes, and shared data.
//!
//! Two back ends, one interface (`Segment`, the compiler process's side). Invariant of both: workers get a
//! descriptor of the segment's object that is open for reading only; of the sealed one: nobody but the mapping that the
//! compiler process made first can ever store to it.

#[cfg(feature = "create")]
mod cgroup;
#[cfg(feature = "create")]
mod create;
#[cfg(feature = "create")]
mod mailboxes;
#[cfg(feature = "create")]
mod memfd;
#[cfg(feature = "create")]
mod named;
#[cfg(feature = "create")]
mod shared;
#[cfg(feature = "create")]
mod sharing;

use std::io;

use rustix::fs::SealFlags;

use crate::header::HeaderError;

#[cfg(feature = "create")]
pub use {
    cgroup::check_transient,
    create::{AdoptError, BackEnd, Segment, SegmentError, SegmentOptions, SharedOrigin},
    mailboxes::{BlankMailbox, Presence, adopt_mailbox, create_mailbox},
    named::{DeadSegment, Leftover, examine},
};

/// What a worker insists on before it executes what it was given.
pub const SEALS: SealFlags = SealFlags::FUTURE_WRITE
    .union(SealFlags::GROW)
    .union(SealFlags::SHRINK)
    .union(SealFlags::SEAL);

/// What a worker insists on before it maps shared data, so that no access to them can fail: nobody can resize the object.
pub const SHARED_SEALS: SealFlags = SealFlags::GROW.union(SealFlags::SHRINK).union(SealFlags::SEAL);

/// Whether an object with these seals is fit for shared data: it cannot be resized, and can be written for good.
pub fn is_fit_for_sharing(seals: SealFlags) -> bool {
    seals.contains(SHARED_SEALS) && !seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE)
}

/// What an object is known by while the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectIdentity {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

/// Where the C library puts POSIX shared memory objects.
pub const DEV_SHM: &str = "/dev/shm";

/// Why a name cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// Not a name.
    #[error("`{name}` cannot name a segment\n  help: use 1 to 200 letters, digits, `-`, `_` or `.`, not beginning with `.`")]
    Invalid {
        /// What was given.
        name: String,
    },
    /// A live compiler process has it.
    #[error("the segment `{name}` belongs to a running compiler process\n  help: end that one, or choose another name")]
    InUse {
        /// The name.
        name: String,
    },
    /// Something else has it.
    #[error("{path} exists and is no segment: {why}\n  help: remove it, or choose another name")]
    Foreign {
        /// The object's path.
        path: String,
        /// Why not.
        why: HeaderError,
    },
    /// Code cannot be executed from there.
    #[error("{DEV_SHM} is mounted noexec, so no worker can execute code from a named segment\n  help: use the sealed back end (the default), or remount {DEV_SHM} with exec")]
    NoExec,
    /// The system refused.
    #[error("cannot {step} {path}: {cause}\n  help: check that {DEV_SHM} is a tmpfs and writable")]
    System {
        /// Which step.
        step: &'static str,
        /// The object's path.
        path: String,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
}

/// The path of the object called `name`.
///
/// # Errors
/// [`NameError::Invalid`].
pub fn object_path(name: &str) -> Result<String, NameError> {
    let valid = (1..=200).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if !valid {
        return Err(NameError::Invalid { name: name.to_owned() });
    }
    Ok(format!("{DEV_SHM}/jitcast-{name}"))
}

