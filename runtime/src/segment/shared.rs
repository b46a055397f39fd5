//! The object behind shared data, which every worker maps for writing: the one exception to "no worker can harm another".
//!
//! Invariants: it cannot be resized once a descriptor of it leaves the compiler process, so no access to it can fail. The
//! compiler process neither loads from it nor stores to it: it has the kernel copy into its mapping, which gives an error
//! where an access would end the process. Nor does it write(2) to it, or fallocate(2) it: both take the lock of the inode, and
//! a worker can hold that for ever, by a write(2) of its own from memory whose pages do not come.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags};
use shared_memory::{ShmemConf, ShmemError};

use super::named::is_at;
use super::{NameError, ObjectIdentity, SHARED_SEALS, SegmentError, is_fit_for_sharing, object_path};
use crate::geometry::Region;
use crate::sys::{self, Mapping, MappingAdvice};

/// What is behind the shared data of a segment, whichever object that is in.
#[derive(Debug)]
pub(super) struct SharedObject {
    mapping: Mapping,
    object: OwnedFd,
    /// What workers are given: whoever has it, or a mapping of it, holds a lock of the byte at `mark`, which no other compiler
    /// process lets its workers hold.
    theirs: OwnedFd,
    mark: u64,
    /// As long, and never written: what zeros are read from.
    zeros: OwnedFd,
    region: Region,
    name: Option<Name>,
}

/// Where a named one lies.
#[derive(Debug)]
struct Name {
    path: String,
    /// Whether it outlives this value.
    kept: AtomicBool,
}

/// What of the segment's object shared data start with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Template<'a> {
    pub(super) object: BorrowedFd<'a>,
    /// Where in the object, bytes.
    pub(super) at: u64,
    pub(super) len_bytes: u32,
}

impl SharedObject {
    /// An anonymous one, sealed against resizing.
    pub(super) fn sealed(region: Region, mark: u64) -> Result<Self, SegmentError> {
        let step = |step, help| move |cause: io::Error| SegmentError::System { step, help, cause };
        let object = sys::memfd("jitcast-shared", region.len_bytes.into())
            .map_err(step("memfd_create for shared data", "see vm.memfd_noexec"))?;
        rustix::fs::fchmod(&object, Mode::from_raw_mode(0o600))
            .map_err(io::Error::from)
            .map_err(step("fchmod of shared data", "report this"))?;
        sys::seal(&object, SHARED_SEALS).map_err(step("sealing shared data against resizing", "Linux is needed"))?;
        Self::map(object, region, mark, None)
    }

    /// The one that a compiler process before this one had, which a worker brings: `None` if it is another one, or not fit.
    pub(super) fn brought(
        fd: BorrowedFd<'_>,
        identity: ObjectIdentity,
        region: Region,
        mark: u64,
    ) -> Option<Self> {
        // Only objects of memory have seals, so nothing is asked of anything else that might not answer.
        let seals = rustix::fs::fcntl_get_seals(fd).ok()?;
        let is_it = is_fit_for_sharing(seals) && has_identity(fd, identity, region);
        // Another description: what the worker has holds the mark of the process before.
        let own = is_it.then(|| sys::reopen(fd)).transpose().ok()??;
        Self::map(own, region, mark, None).ok()
    }

    /// The one that a compiler process before this one left beside the segment called `name`.
    pub(super) fn left(name: &str, identity: ObjectIdentity, region: Region, mark: u64) -> Option<Self> {
        let path = path_of(name).ok()?;
        let object = open(&path).ok()?;
        if !has_identity(object.as_fd(), identity, region) {
            return None;
        }
        let name = Name { path, kept: AtomicBool::new(false) };
        Self::map(object, region, mark, Some(name)).ok()
    }

    /// One beside the object of the segment called `name`, which is this process's: whatever lies there is a dead one's.
    pub(super) fn named(name: &str, region: Region, mark: u64) -> Result<Self, SegmentError> {
        let path = path_of(name)?;
        let system = |step| {
            let path = path.clone();
            move |cause: io::Error| NameError::System { step, path, cause }
        };
        unlink(&path).map_err(system("unlink"))?;
        let id = path.replacen(super::DEV_SHM, "", 1);
        let conf = ShmemConf::new().size(region.len_bytes as usize).os_id(&id);
        let mut shmem = conf.create().map_err(|error| match error {
            ShmemError::MappingIdExists => system("create")(io::ErrorKind::AlreadyExists.into()),
            ShmemError::MapCreateFailed(code) | ShmemError::UnknownOsError(code) => {
                system("create")(io::Error::from_raw_os_error(code.cast_signed()))
            }
            other => system("create")(io::Error::other(other.to_string())),
        })?;
        // Whether the name is this object's is looked at when it is removed.
        shmem.set_owner(false);
        let object = open(&path).map_err(system("open"))?;
        Self::map(object, region, mark, Some(Name { path, kept: AtomicBool::new(false) }))
    }

    fn map(object: OwnedFd, region: Region, mark: u64, name: Option<Name>) -> Result<Self, SegmentError> {
        let step = |step, help| move |cause: io::Error| SegmentError::System { step, help, cause };
        let theirs = sys::reopen(&object).map_err(step("reopening through /proc/self/fd", "mount /proc"))?;
        sys::share_lock(&theirs, mark).map_err(step("marking shared data", "a worker may have locked them"))?;
        let zeros = sys::memfd("jitcast-zeros", region.len_bytes.into())
            .map_err(step("memfd_create for zeros", "see vm.memfd_noexec"))?;
        let help = "address space is short: raise `ulimit -v` or use a smaller --window";
        let mapping = Mapping::shared(object.as_fd(), region.len_bytes as usize, true)
            .map_err(step("mmap of shared data", help))?;
        for advice in [MappingAdvice::LinuxDontFork, MappingAdvice::LinuxDontDump] {
            mapping.advise(advice).map_err(step("madvise of shared data", "Linux is needed"))?;
        }
        Ok(Self { mapping, object, theirs, mark, zeros, region, name })
    }

    /// The descriptor for workers, open for reading and writing.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.theirs.as_fd()
    }

    /// What it is known by while the machine runs.
    pub(super) fn identity(&self) -> Option<ObjectIdentity> {
        let stat = rustix::fs::fstat(&self.object).ok()?;
        Some(ObjectIdentity { device: stat.st_dev, inode: stat.st_ino })
    }

    /// Whether anybody has it from a compiler process before this one; yes, if that cannot be found out.
    pub(super) fn has_earlier_users(&self) -> bool {
        let others = [0..self.mark, self.mark + 1..i64::MAX.cast_unsigned()];
        others.into_iter().any(|range| sys::lock_of_another(&self.object, range).map_or(true, |lock| lock.is_some()))
    }

    /// Fills `range`, an offset in the window and a length: the template, then zeros.
    pub(super) fn fill(&self, range: Region, template: Template<'_>) -> io::Result<()> {
        if !self.region.contains(range.offset(), range.len_bytes.into()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let start = (range.start - self.region.start) as usize;
        let first = template.len_bytes.min(range.len_bytes) as usize;
        let rest = range.len_bytes as usize - first;
        let copied = self
            .mapping
            .read_from(template.object, template.at, (start, first))
            .and_then(|()| self.mapping.read_from(self.zeros.as_fd(), 0, (start + first, rest)));
        copied.map_err(|error| match error.raw_os_error() {
            Some(libc::EFAULT) => io::Error::other("there is no memory for shared data"),
            _ => error,
        })
    }

    /// Keeps the name in the file system when this value is dropped.
    pub(super) fn keep(&self) {
        if let Some(name) = &self.name {
            name.kept.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for SharedObject {
    fn drop(&mut self) {
        let name = self.name.as_ref().filter(|name| !name.kept.load(Ordering::Relaxed));
        if let Some(name) = name
            && is_at(&self.object, &name.path).unwrap_or(false)
        {
            // Whoever removed it before has done what is to be done.
            let _ = unlink(&name.path);
        }
    }
}

fn open(path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn has_identity(fd: BorrowedFd<'_>, identity: ObjectIdentity, region: Region) -> bool {
    let stat = rustix::fs::fstat(fd);
    stat.is_ok_and(|stat| {
        let found = ObjectIdentity { device: stat.st_dev, inode: stat.st_ino };
        found == identity && stat.st_size == i64::from(region.len_bytes)
    })
}

fn unlink(path: &str) -> io::Result<()> {
    match rustix::fs::unlink(path) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Where the shared data of the segment called `name` lie: no segment's own name has this character.
fn path_of(name: &str) -> Result<String, NameError> {
    Ok(format!("{}+shared", object_path(name)?))
}
