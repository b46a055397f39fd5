//! The sealed back end: a memfd that only the mapping made before sealing can write.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::Mode;

use super::{SEALS, SegmentError};
use crate::sys::{self, Mapping, MappingAdvice};

/// The memfd, its one writable mapping, and the descriptor for workers.
#[derive(Debug)]
pub(super) struct SealedMemfd {
    mapping: Mapping,
    writable: OwnedFd,
    read_only: OwnedFd,
}

impl SealedMemfd {
    pub(super) fn create(len_bytes: u32) -> Result<Self, SegmentError> {
        let step = |step, help| move |cause: io::Error| SegmentError::System { step, help, cause };
        let writable = sys::memfd("jitcast", len_bytes.into())
            .map_err(step("memfd_create", "Linux 5.1 or newer is needed; see also vm.memfd_noexec"))?;
        let mapping = Mapping::shared(writable.as_fd(), len_bytes as usize, true)
            .map_err(step("mmap", "address space is short: raise `ulimit -v` or use a smaller --window"))?;
        // No child of the compiler inherits the one mapping that can write.
        mapping
            .advise(MappingAdvice::LinuxDontFork)
            .map_err(step("madvise(MADV_DONTFORK)", "Linux is needed"))?;
        mapping
            .advise(MappingAdvice::LinuxDontDump)
            .map_err(step("madvise(MADV_DONTDUMP)", "Linux is needed"))?;
        rustix::fs::fchmod(&writable, Mode::from_raw_mode(0o444))
            .map_err(io::Error::from)
            .map_err(step("fchmod", "report this"))?;
        sys::seal(&writable, SEALS)
            .map_err(step("sealing against writes", "Linux 5.1 or newer is needed (F_SEAL_FUTURE_WRITE)"))?;
        let read_only = sys::reopen_read_only(&writable)
            .map_err(step("reopening through /proc/self/fd", "mount /proc"))?;
        Ok(Self { mapping, writable, read_only })
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.mapping.base()
    }

    pub(super) fn writable(&self) -> BorrowedFd<'_> {
        self.writable.as_fd()
    }

    /// A descriptor for one worker.
    pub(super) fn for_worker(&self) -> io::Result<OwnedFd> {
        self.read_only.try_clone()
    }
}
