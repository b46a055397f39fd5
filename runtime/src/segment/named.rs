//! The named back end: an object in /dev/shm that outlives its compiler process.
//!
//! The `shared_memory` crate creates, maps and removes it. Who owns a name is told by an open file
//! description lock of the object's first byte, never by a pid: the kernel drops it when its owner dies. The same user can
//! reopen the object for writing; that is the price of a name.
//!
//! The next compiler process can go on in the very object ([`Segment::adopt`](super::Segment::adopt)). It has to know whether
//! workers map it of which it does not know, since they may be inside. So each worker is given an open file description of its own,
//! which holds a lock of another byte, that of its compiler process's *era*; it is gone when the worker's last mapping from it is.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use shared_memory::{Shmem, ShmemConf, ShmemError};

use super::{DEV_SHM, NameError, SegmentError, object_path};
use crate::header::{HeaderError, MAGIC};
use crate::sys::{self, try_lock};

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
    name: String,
    path: String,
    lock: OwnedFd,
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
    Ok(Leftover::Dead(DeadSegment { name: name.to_owned(), path, lock: object }))
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
    /// The byte that workers' descriptions lock, of those that this process lets in: those of others are before it.
    era: u64,
    /// Whether there is nobody of an earlier era any more; nobody can come back.
    alone: AtomicBool,
}

/// The era of a process that has made the object.
const FIRST_ERA: u64 = 1;

/// Where eras end: whoever locks bytes from there on is no worker of ours.
const ERAS_END: u64 = 1 << 62;

/// An era above all those of workers that map the object still.
fn next_era(object: &OwnedFd) -> io::Result<u64> {
    let mut era = FIRST_ERA + 1;
    while let Some(lock) = sys::lock_of_another(object, era..ERAS_END)? {
        era = lock.end;
        if era >= ERAS_END {
            return Err(io::Error::other("somebody has locked all of it"));
        }
    }
    Ok(era)
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

    /// Gets its name, which nobody has.
    pub(super) fn claim(&self) -> Result<(), NameError> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let path = object_path(&self.name)?;
        renameat_with(CWD, staged(&path), CWD, &path, RenameFlags::NOREPLACE).map_err(|cause| match cause {
            rustix::io::Errno::EXIST => NameError::InUse { name: self.name.clone() },
            cause => NameError::System { step: "give a new object the name", path, cause: cause.into() },
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
        // Whether the name is this object's is looked at when it is removed.
        shmem.set_owner(false);
        let writable = rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let writable = writable.map_err(io::Error::from).map_err(system("open"))?;
        // Before we had the lock, another compiler process may have taken the object for a dead one's.
        let ours = try_lock(&writable).map_err(system("lock"))?
            && is_at(&writable, &path).map_err(io::Error::from).map_err(system("stat"))?;
        if !ours {
            return Err(NameError::InUse { name: name.to_owned() }.into());
        }
        Ok(Self::of(shmem, name.to_owned(), writable, FIRST_ERA).map_err(system("advise"))?)
    }

    /// The object of a dead compiler process, as its owner from now on.
    pub(super) fn adopt(dead: DeadSegment) -> Result<Self, NameError> {
        let DeadSegment { name, path, lock } = dead;
        let system = |step| {
            let path = path.clone();
            move |cause: io::Error| NameError::System { step, path, cause }
        };
        let shmem = ShmemConf::new().os_id(path.replacen(DEV_SHM, "", 1)).open();
        let mut shmem = shmem.map_err(|error| system("map")(io::Error::other(error.to_string())))?;
        shmem.set_owner(false);
        // Whoever has the lock is the only one that may put another object there.
        if !is_at(&lock, &path).map_err(io::Error::from).map_err(system("stat"))? {
            return Err(NameError::InUse { name });
        }
        let era = next_era(&lock).map_err(system("look at the locks of"))?;
        Self::of(shmem, name, lock, era).map_err(system("advise"))
    }

    fn of(shmem: Shmem, name: String, writable: OwnedFd, era: u64) -> io::Result<Self> {
        // SAFETY: the range is the mapping that `shmem` has made; the advice leaves its contents alone.
        unsafe { rustix::mm::madvise(shmem.as_ptr().cast(), shmem.len(), rustix::mm::Advice::LinuxDontFork) }?;
        let alone = AtomicBool::new(era == FIRST_ERA);
        Ok(Self { shmem, name, kept: AtomicBool::new(false), writable, era, alone })
    }

    /// The length of the mapping, bytes.
    pub(super) fn len_bytes(&self) -> usize {
        self.shmem.len()
    }

    /// Whether somebody maps the object whom an earlier compiler process let in, and who has not come back. If that cannot be found
    /// out: yes.
    pub(super) fn has_strangers(&self) -> bool {
        // Acquire: pairs with the release below, so that whoever goes by it sees what the one saw who looked.
        if self.alone.load(Ordering::Acquire) {
            return false;
        }
        let lock = sys::lock_of_another(&self.writable, FIRST_ERA..self.era);
        let there = lock.map_or(true, |lock| lock.is_some());
        if !there {
            self.alone.store(true, Ordering::Release);
        }
        there
    }

    /// A description for one worker.
    pub(super) fn for_worker(&self) -> io::Result<OwnedFd> {
        let theirs = sys::reopen_read_only(&self.writable)?;
        sys::share_lock(&theirs, self.era)?;
        Ok(theirs)
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
