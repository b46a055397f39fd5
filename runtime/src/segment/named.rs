//! The named back end: an object in /dev/shm that outlives its compiler process.
//!
//! The `shared_memory` crate creates, maps and removes it. Who owns a name is told by an open file
//! description lock on the object, never by a pid: the kernel drops it when its owner dies. The same user can
//! reopen the object for writing; that is the price of a name.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

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

    /// Removes the name. Workers that live keep their mappings. Shared data stay beside it for who creates the segment next.
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
pub(super) fn is_at(object: &OwnedFd, path: &str) -> rustix::io::Result<bool> {
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
    /// Whether the name outlives this value.
    kept: AtomicBool,
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
        // What a compiler process left that died while it renewed the segment.
        let _ = rustix::fs::unlink(staged(&path));
        Self::create_at(name, path, len_bytes)
    }

    /// One that gets the name later, from another object of this process.
    pub(super) fn create_beside(name: &str, len_bytes: u32) -> Result<Self, SegmentError> {
        let path = staged(&object_path(name)?);
        let _ = rustix::fs::unlink(&path);
        Self::create_at(name, path, len_bytes)
    }

    /// Exchanges places with the object that has the name; once more, and it has it again.
    pub(super) fn install(&self) -> Result<(), NameError> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let path = object_path(&self.name)?;
        renameat_with(CWD, staged(&path), CWD, &path, RenameFlags::EXCHANGE).map_err(|cause| {
            NameError::System { step: "give the name to the object that renews", path, cause: cause.into() }
        })
    }

    fn create_at(name: &str, path: String, len_bytes: u32) -> Result<Self, SegmentError> {
        let system = |step| {
            let path = path.clone();
            move |cause: io::Error| NameError::System { step, path, cause }
        };
        let mount = rustix::fs::statvfs(DEV_SHM).map_err(io::Error::from).map_err(system("stat the file system of"))?;
        if mount.f_flag.contains(StatVfsMountFlags::NOEXEC) {
            return Err(NameError::NoExec.into());
        }
        let id = path.replacen(DEV_SHM, "", 1);
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
        // Whether the name is this object's is looked at when it is removed.
        shmem.set_owner(false);
        if !ours {
            return Err(NameError::InUse { name: name.to_owned() }.into());
        }
        let kept = AtomicBool::new(false);
        Ok(Self { shmem, name: name.to_owned(), kept, writable, read_only })
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        NonNull::new(self.shmem.as_ptr()).expect("a mapping is not null")
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }

    pub(super) fn writable(&self) -> BorrowedFd<'_> {
        self.writable.as_fd()
    }

    pub(super) fn read_only(&self) -> BorrowedFd<'_> {
        self.read_only.as_fd()
    }
}

impl Drop for NamedObject {
    /// Removes the name, if it is this object's: a renewed one may have it by now.
    fn drop(&mut self) {
        if self.kept.load(Ordering::Relaxed) {
            return;
        }
        let path = object_path(&self.name).unwrap_or_default();
        for path in [staged(&path), path] {
            if is_at(&self.writable, &path).unwrap_or(false) {
                // Whoever removed it before has done what is to be done.
                let _ = rustix::fs::unlink(&path);
            }
        }
    }
}

/// Where an object lies that has not got its name yet: no segment's own name has this character.
fn staged(path: &str) -> String {
    format!("{path}~")
}
