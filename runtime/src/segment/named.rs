//! The named back end: an object in /dev/shm that outlives its compiler process.
//!
//! The `shared_memory` crate creates, maps and removes it. Who owns a name is told by an open file
//! description lock on the object, never by a pid: the kernel drops it when its owner dies. The same user can
//! reopen the object for writing; that is the price of a name.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use shared_memory::{Shmem, ShmemConf, ShmemError};

use super::{DEV_SHM, NameError, SegmentError, object_path};
use crate::header::{HeaderError, MAGIC};
use crate::sys::try_lock;

/// What lies under a name already.
#[derive(Debug)]
pub enum Leftover {
    /// Nothing.
    None,
    /// A segment whose compiler process is dead. Unlinking it takes nothing from workers that map it.
    Dead(DeadSegment),
}

/// A segment without an owner, locked by us so that nobody else decides about it at the same time.
#[derive(Debug)]
pub struct DeadSegment {
    path: String,
    _lock: OwnedFd,
}

impl DeadSegment {
    /// Its path.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Removes the name. Workers that live keep their mappings.
    ///
    /// # Errors
    /// [`NameError::System`].
    pub fn unlink(self) -> Result<(), NameError> {
        rustix::fs::unlink(&self.path).map_err(|cause| NameError::System {
            step: "unlink",
            path: self.path.clone(),
            cause: cause.into(),
        })
    }
}

/// Looks at what lies under `name`: nothing, a dead compiler's segment, or (an error) somebody else's.
///
/// # Errors
/// [`NameError::InUse`], [`NameError::Foreign`], [`NameError::System`].
pub fn examine(name: &str) -> Result<Leftover, NameError> {
    let path = object_path(name)?;
    let system = |step| {
        let path = path.clone();
        move |cause: rustix::io::Errno| NameError::System { step, path, cause: cause.into() }
    };
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let object = match rustix::fs::open(&path, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(Leftover::None),
        other => other.map_err(system("open"))?,
    };
    if !try_lock(&object).map_err(|cause| NameError::System {
        step: "lock",
        path: path.clone(),
        cause,
    })? {
        return Err(NameError::InUse { name: name.to_owned() });
    }
    if !is_at(&object, &path).map_err(system("stat"))? {
        // Somebody else removed it before we had the lock, and may have put a live segment in its place.
        return Err(NameError::InUse { name: name.to_owned() });
    }
    let mut found = [0; MAGIC.len()];
    let len = rustix::io::pread(&object, &mut found, 0).map_err(system("read"))?;
    // A header of zeros, or none yet, is one whose compiler died before it had written it.
    let unborn = found.iter().all(|byte| *byte == 0);
    if !unborn && found[..len] != MAGIC {
        return Err(NameError::Foreign { path, why: HeaderError::Foreign { found } });
    }
    Ok(Leftover::Dead(DeadSegment { path, _lock: object }))
}

/// Whether `path` still leads to `object`. Whoever holds the object's lock is the only one that may remove it.
fn is_at(object: &OwnedFd, path: &str) -> rustix::io::Result<bool> {
    let own = rustix::fs::fstat(object)?;
    match rustix::fs::stat(path) {
        Ok(there) => Ok((there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A named object that this process owns.
pub(super) struct NamedObject {
    shmem: Shmem,
    name: String,
    /// Holds the lock.
    writable: OwnedFd,
    read_only: OwnedFd,
}

// SAFETY: `Shmem` is a pointer, a descriptor and strings; it is not `Send` for the pointer's sake, and all
// access to the memory goes through `Memory`, which is atomic.
unsafe impl Send for NamedObject {}
// SAFETY: as for `Send`; no method takes `&self` and touches the memory.
unsafe impl Sync for NamedObject {}

impl std::fmt::Debug for NamedObject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NamedObject").field("name", &self.name).finish_non_exhaustive()
    }
}

impl NamedObject {
    pub(super) fn create(name: &str, len_bytes: u32) -> Result<Self, SegmentError> {
        let path = object_path(name)?;
        let system = |step| {
            let path = path.clone();
            move |cause: io::Error| NameError::System { step, path, cause }
        };
        let mount = rustix::fs::statvfs(DEV_SHM).map_err(io::Error::from).map_err(system("stat the file system of"))?;
        if mount.f_flag.contains(StatVfsMountFlags::NOEXEC) {
            return Err(NameError::NoExec.into());
        }
        let id = format!("/jitcast-{name}");
        let mut shmem = ShmemConf::new().size(len_bytes as usize).os_id(&id).create().map_err(|error| match error {
            ShmemError::MappingIdExists => NameError::InUse { name: name.to_owned() },
            ShmemError::MapCreateFailed(code) | ShmemError::UnknownOsError(code) => {
                system("create")(io::Error::from_raw_os_error(code.cast_signed()))
            }
            other => system("create")(io::Error::other(other.to_string())),
        })?;
        // SAFETY: the range is the mapping that `shmem` just made; the advice leaves its contents alone.
        unsafe { rustix::mm::madvise(shmem.as_ptr().cast(), shmem.len(), rustix::mm::Advice::LinuxDontFork) }
            .map_err(io::Error::from)
            .map_err(system("advise"))?;
        let open = |access| rustix::fs::open(&path, access | OFlags::CLOEXEC, Mode::empty()).map_err(io::Error::from);
        let writable = open(OFlags::RDWR).map_err(system("open"))?;
        let read_only = open(OFlags::RDONLY).map_err(system("open"))?;
        // Before we had the lock, another compiler process may have taken the object for a dead one's.
        let ours = try_lock(&writable).map_err(system("lock"))?
            && is_at(&writable, &path).map_err(io::Error::from).map_err(system("stat"))?;
        if !ours {
            shmem.set_owner(false);
            return Err(NameError::InUse { name: name.to_owned() }.into());
        }
        Ok(Self { shmem, name: name.to_owned(), writable, read_only })
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        NonNull::new(self.shmem.as_ptr()).expect("a mapping is not null")
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn keep(&mut self) {
        self.shmem.set_owner(false);
    }

    pub(super) fn writable(&self) -> BorrowedFd<'_> {
        self.writable.as_fd()
    }

    pub(super) fn read_only(&self) -> BorrowedFd<'_> {
        self.read_only.as_fd()
    }
}
