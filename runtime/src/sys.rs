//! The system calls that the substrate rests on, each wrapped once.

use std::ffi::c_void;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};

/// `MADV_DONTDUMP`, `MADV_DONTFORK`, `MADV_WIPEONFORK` and `MADV_POPULATE_WRITE` through one door.
pub use rustix::mm::Advice as MappingAdvice;

/// A mapping that unmaps itself.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: a mapping is a range of addresses; what its users may do with the memory is their own contract.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len_bytes` of `fd` from its start, shared, readable and, if `writable`, writable.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn shared(fd: BorrowedFd<'_>, len_bytes: usize, writable: bool) -> io::Result<Self> {
        #[cfg(tsan)]
        if let Some(base) = crate::tsan::first(fd, len_bytes) {
            return Ok(Self { base, len_bytes });
        }
        let prot = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a mapping at an address of the kernel's choice touches no memory that is in use.
        let base = unsafe { rustix::mm::mmap(ptr::null_mut(), len_bytes, prot, MapFlags::SHARED, fd, 0) }?;
        #[cfg(tsan)]
        crate::tsan::note(fd, base.cast(), len_bytes);
        Ok(Self::own(base, len_bytes))
    }

    /// Maps `len_bytes` of `fd` from its start, privately, readable and executable.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn executable(fd: BorrowedFd<'_>, len_bytes: usize) -> io::Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::EXEC;
        // SAFETY: as in `shared`.
        let base = unsafe { rustix::mm::mmap(ptr::null_mut(), len_bytes, prot, MapFlags::PRIVATE, fd, 0) }?;
        Ok(Self::own(base, len_bytes))
    }

    /// Maps `len_bytes` of private anonymous memory.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn anonymous(len_bytes: usize) -> io::Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: as in `shared`.
        let base = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), len_bytes, prot, MapFlags::PRIVATE) }?;
        #[cfg(tsan)]
        crate::tsan::keep(base.cast(), len_bytes);
        Ok(Self::own(base, len_bytes))
    }

    /// The part from `at` on, which becomes a mapping of its own; this one ends there.
    ///
    /// # Panics
    /// If `at` is not on a page's edge inside.
    pub fn split_off(&mut self, at: usize) -> Self {
        assert!(at.is_multiple_of(4096) && 0 < at && at < self.len_bytes);
        // SAFETY: inside the mapping (checked).
        let base = unsafe { self.base.add(at) };
        let len_bytes = self.len_bytes - at;
        self.len_bytes = at;
        Self { base, len_bytes }
    }

    /// Maps `fd` from its start over this mapping, shared, readable and writable.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn share(self, fd: BorrowedFd<'_>) -> io::Result<Self> {
        #[cfg(tsan)]
        if let Some(base) = crate::tsan::first(fd, self.len_bytes) {
            return Ok(Self { base, len_bytes: self.len_bytes });
        }
        // SAFETY: nobody has a view of it, since its owner gives it away.
        unsafe { self.replace(fd) }?;
        #[cfg(tsan)]
        crate::tsan::note(fd, self.base.as_ptr(), self.len_bytes);
        Ok(self)
    }

    /// Reserves `len_bytes` of address space, inaccessible, at `hint` if nothing is there.
    ///
    /// # Errors
    /// As mmap(2) with `MAP_FIXED_NOREPLACE`: EEXIST if something is there.
    pub fn reserve(hint: Option<usize>, len_bytes: usize) -> io::Result<Self> {
        let mut flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        if hint.is_some() {
            flags |= MapFlags::FIXED_NOREPLACE;
        }
        let hint = ptr::without_provenance_mut::<c_void>(hint.unwrap_or(0));
        // SAFETY: with NOREPLACE, or without an address, no existing mapping is touched.
        let base = unsafe { rustix::mm::mmap_anonymous(hint, len_bytes, ProtFlags::empty(), flags) }?;
        let mapping = Self::own(base, len_bytes);
        if !hint.is_null() && base != hint {
            // A kernel before 4.17 takes the address for a hint.
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Ok(mapping)
    }

    fn own(base: *mut c_void, len_bytes: usize) -> Self {
        let base = NonNull::new(base.cast()).expect("mmap returned null without an error");
        Self { base, len_bytes }
    }

    /// The first byte.
    #[inline]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Its length, bytes.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Replaces the part `start..start + len_bytes` by an inaccessible shared mapping of `fd` from its start: what it can be made
    /// accessible as later, `fd` says.
    ///
    /// # Errors
    /// As mmap(2).
    ///
    /// # Panics
    /// If the part is not inside.
    pub fn overlay(&self, start: usize, len_bytes: usize, fd: BorrowedFd<'_>) -> io::Result<()> {
        let at = self.part(start, len_bytes);
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: the range lies in this mapping (checked by `part`), which nobody has a reference into: it
        // is a reservation until its owner hands out views.
        unsafe { rustix::mm::mmap(at, len_bytes, ProtFlags::empty(), flags, fd, 0) }?;
        Ok(())
    }

    /// Maps the shared memory behind the part `from..from + len_bytes` a second time, at `to`, where nothing is used.
    ///
    /// # Errors
    /// As mremap(2) with an old size of 0.
    ///
    /// # Panics
    /// If either part is not inside.
    pub fn repeat(&self, from: usize, len_bytes: usize, to: usize) -> io::Result<()> {
        use rustix::mm::MremapFlags;
        let (from, to) = (self.part(from, len_bytes), self.part(to, len_bytes));
        // SAFETY: `to` lies in this mapping, and nobody uses it (as `overlay`); `from` stays as it is.
        unsafe { rustix::mm::mremap_fixed(from, 0, len_bytes, MremapFlags::MAYMOVE, to) }?;
        Ok(())
    }

    /// Puts a shared, writable mapping of `fd` in place of all of this one, which was such a one too.
    ///
    /// # Errors
    /// As mmap(2); then it is what it was.
    ///
    /// # Safety
    /// Nobody relies on what was stored before.
    pub unsafe fn replace(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the range is this mapping, which stays readable and writable; what it holds changes, as the caller knows.
        unsafe { rustix::mm::mmap(self.base.as_ptr().cast(), self.len_bytes, prot, flags, fd, 0) }?;
        Ok(())
    }

    /// Puts private memory of zeros in the place of all of this one, which was readable and writable.
    ///
    /// # Errors
    /// As mmap(2); then it is what it was.
    ///
    /// # Safety
    /// Nobody relies on what was stored before.
    pub unsafe fn forget(&self) -> io::Result<()> {
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: as in `replace`.
        unsafe { rustix::mm::mmap_anonymous(self.base.as_ptr().cast(), self.len_bytes, prot, flags) }?;
        Ok(())
    }

    /// Puts a shared mapping of `fd` from `offset` in the place of a part, accessible as `protection` says, or not at all.
    ///
    /// # Errors
    /// As mmap(2); then the part is what it was.
    ///
    /// # Panics
    /// If the part is not inside.
    ///
    /// # Safety
    /// Whoever uses the part finds in `fd` what it relies on.
    pub unsafe fn remap(
        &self,
        (start, len_bytes): (usize, usize),
        fd: BorrowedFd<'_>,
        offset: u64,
        protection: Option<Protection>,
    ) -> io::Result<()> {
        let at = self.part(start, len_bytes);
        if len_bytes == 0 {
            return Ok(());
        }
        let prot = match protection {
            None => ProtFlags::empty(),
            Some(Protection::Read) => ProtFlags::READ,
            Some(Protection::ReadWrite) => ProtFlags::READ | ProtFlags::WRITE,
            Some(Protection::ReadExecute) => ProtFlags::READ | ProtFlags::EXEC,
        };
        // SAFETY: the range lies in this mapping, and stays mapped, at each moment, to the one or to the other; the caller
        // answers for what is there.
        unsafe { rustix::mm::mmap(at, len_bytes, prot, MapFlags::SHARED | MapFlags::FIXED, fd, offset) }?;
        Ok(())
    }

    /// Has the kernel copy from `fd`, beginning at `offset`, into a part of this mapping, which others may write: whatever it
    /// cannot have of the one or the other is an error, where an access would end the process.
    ///
    /// # Errors
    /// As pread(2): EFAULT if the part has no memory; `UnexpectedEof` if `fd` is too short.
    ///
    /// # Panics
    /// If the part is not inside.
    pub fn read_from(&self, fd: BorrowedFd<'_>, offset: u64, (start, len_bytes): (usize, usize)) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        let at = self.part(start, len_bytes);
        let mut done = 0;
        while done < len_bytes {
            let from = (offset + done as u64).cast_signed();
            let to = at.wrapping_byte_add(done);
            // SAFETY: the kernel stores into this mapping only (checked by `part`), of which no Rust value is made.
            let count = unsafe { libc::pread(fd.as_raw_fd(), to, len_bytes - done, from) };
            match count {
                1.. => done += count.cast_unsigned(),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    /// Sets the protection of a part.
    ///
    /// # Errors
    /// As mprotect(2).
    ///
    /// # Panics
    /// If the part is not inside.
    pub fn protect(&self, start: usize, len_bytes: usize, protection: Protection) -> io::Result<()> {
        let flags = match protection {
            Protection::Read => MprotectFlags::READ,
            Protection::ReadWrite => MprotectFlags::READ | MprotectFlags::WRITE,
            Protection::ReadExecute => MprotectFlags::READ | MprotectFlags::EXEC,
        };
        let at = self.part(start, len_bytes);
        // SAFETY: the range lies in this mapping; access is only ever widened, so nothing that could be
        // accessed before stops being so.
        unsafe { rustix::mm::mprotect(at, len_bytes, flags) }?;
        Ok(())
    }

    /// Advises the kernel about the whole mapping. Not for advice that discards contents.
    ///
    /// # Errors
    /// As madvise(2).
    pub fn advise(&self, advice: Advice) -> io::Result<()> {
        // The worker of a build for ThreadSanitizer looks at this memory, and its child goes on to.
        #[cfg(tsan)]
        if advice == Advice::LinuxDontFork {
            return Ok(());
        }
        // SAFETY: the range is this mapping, and the advice used in this crate changes what a fork or a
        // core dump does with it, or gives it memory; not its contents here.
        unsafe { rustix::mm::madvise(self.base.as_ptr().cast(), self.len_bytes, advice) }?;
        Ok(())
    }

    /// Gives memory of its own to each page of a part that is readable and writable, as if it were stored to.
    ///
    /// # Errors
    /// As madvise(2), `MADV_POPULATE_WRITE`.
    ///
    /// # Panics
    /// If the part is not inside.
    pub fn populate(&self, start: usize, len_bytes: usize) -> io::Result<()> {
        const PAGE_BYTES: usize = 4096;
        let before = start % PAGE_BYTES;
        let at = self.part(start - before, len_bytes + before);
        // SAFETY: the range is in this mapping (checked by `part`), whose start is a page's; what it holds stays.
        unsafe { rustix::mm::madvise(at, len_bytes + before, Advice::LinuxPopulateWrite) }?;
        Ok(())
    }

    fn part(&self, start: usize, len_bytes: usize) -> *mut c_void {
        assert!(start <= self.len_bytes && len_bytes <= self.len_bytes - start);
        self.base.as_ptr().wrapping_add(start).cast()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        #[cfg(tsan)]
        if crate::tsan::stays(self.base) {
            return;
        }
        // SAFETY: the mapping is ours; by the contracts of those who made views of it, none is left.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len_bytes) };
        debug_assert!(unmapped.is_ok());
    }
}

/// What may be done with a page. Write and execute never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// R--.
    Read,
    /// RW-.
    ReadWrite,
    /// R-X.
    ReadExecute,
}

/// Whether this program runs with more rights than whoever started it has, so that it is not to believe its environment.
pub fn runs_with_more_rights() -> bool {
    // SAFETY: it reads what the kernel has told this process when it began.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// A memfd of `len_bytes`, sparse, not sealed yet.
///
/// # Errors
/// As memfd_create(2) and ftruncate(2).
pub fn memfd(name: &str, len_bytes: u64) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Linux before 6.3 does not know the flag.
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create(name, flags)?,
        other => other?,
    };
    rustix::fs::ftruncate(&fd, len_bytes)?;
    Ok(fd)
}

/// Adds `seals` to a memfd.
///
/// # Errors
/// As fcntl(2), `F_ADD_SEALS`.
pub fn seal(fd: impl AsFd, seals: SealFlags) -> io::Result<()> {
    Ok(rustix::fs::fcntl_add_seals(fd, seals)?)
}

/// A new, read-only description of the object behind `fd`.
///
/// # Errors
/// As open(2) on `/proc/self/fd`; ENOENT where /proc is not mounted.
pub fn reopen_read_only(fd: impl AsFd) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Another open file description of the file behind `fd`, for reading and writing.
///
/// # Errors
/// As open(2) of `/proc/self/fd/…`.
pub fn reopen(fd: impl AsFd) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    Ok(rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

/// Lets the descriptor `at` lead to what `other` leads to, close-on-exec.
///
/// # Errors
/// As dup3(2).
///
/// # Safety
/// `at` is the caller's own, and nobody relies on where it led.
pub unsafe fn replace_descriptor(at: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: two open descriptors; the caller's promise for the one that is replaced.
    let result = unsafe { libc::dup3(other.as_raw_fd(), at.as_raw_fd(), libc::O_CLOEXEC) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Random bytes.
///
/// # Errors
/// As getrandom(2).
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(&mut bytes[filled..], flags)?;
    }
    Ok(bytes)
}

/// `CLOCK_MONOTONIC`, ns: the same clock in every process of a machine.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // By the C library, which does without the kernel's page where that is hidden, as by valgrind.
    // SAFETY: `time` lives through the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// Who is at the other end of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its process, in this process's pid namespace; 0 if it has no number there.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// The credentials that the peer of a Unix socket had when it connected (`SO_PEERCRED`, unix(7)).
///
/// # Errors
/// As getsockopt(2).
pub fn peer(socket: impl AsFd) -> io::Result<Peer> {
    use std::os::fd::AsRawFd;
    let mut peer = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    let (level, name) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
    let value = (&raw mut peer).cast();
    // SAFETY: the option writes one `ucred` into `peer` and its size into `len`; both live across the call.
    let result = unsafe { libc::getsockopt(fd, level, name, value, &raw mut len) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let libc::ucred { pid, uid, gid } = peer;
    Ok(Peer { pid, uid, gid })
}

/// Takes the lock of byte 0 of the file behind `fd` for its open file description: whether it was free. The kernel
/// drops it with the last descriptor of that description, however its owner ends.
///
/// # Errors
/// As fcntl(2), `F_OFD_SETLK`.
pub fn try_lock(fd: impl AsFd) -> io::Result<bool> {
    match set_lock(fd.as_fd(), libc::F_WRLCK, 0) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Lets the open file description behind `fd` hold a lock of byte `at`, which need not be there, that others may hold too. A
/// mapping that was made from it holds the description, and so the lock, like a descriptor.
///
/// # Errors
/// As fcntl(2), `F_OFD_SETLK`.
pub fn share_lock(fd: impl AsFd, at: u64) -> io::Result<()> {
    set_lock(fd.as_fd(), libc::F_RDLCK, at)
}

/// A lock that another open file description of the file behind `fd` holds of some of the bytes `range`, which is not empty: which
/// bytes that one is of.
///
/// # Errors
/// As fcntl(2), `F_OFD_GETLK`.
pub fn lock_of_another(fd: impl AsFd, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
    use std::os::fd::AsRawFd;
    let mut request = lock_of(libc::F_WRLCK, range)?;
    // SAFETY: F_OFD_GETLK reads and writes one `flock`, which lives across the call; the descriptor is borrowed.
    let result = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_OFD_GETLK, &raw mut request) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let start = request.l_start.cast_unsigned();
    // A length of 0 is one up to the last byte that a file can have.
    let end = if request.l_len == 0 { i64::MAX.cast_unsigned() } else { start.saturating_add(request.l_len.cast_unsigned()) };
    Ok((request.l_type != libc::F_UNLCK as i16).then_some(start..end))
}

/// Gives back what [`try_lock`] took, at once: a child that another thread has just forked may hold a descriptor
/// of the same description until it executes something else.
///
/// # Errors
/// As fcntl(2), `F_OFD_SETLK`.
pub fn unlock(fd: impl AsFd) -> io::Result<()> {
    set_lock(fd.as_fd(), libc::F_UNLCK, 0)
}

fn lock_of(kind: libc::c_int, range: Range<u64>) -> io::Result<libc::flock> {
    let offset = |at: u64| i64::try_from(at).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let (start, end) = (offset(range.start)?, offset(range.end)?);
    Ok(libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: end - start,
        l_pid: 0,
    })
}

fn set_lock(fd: BorrowedFd<'_>, kind: libc::c_int, at: u64) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let request = lock_of(kind, at..at.saturating_add(1))?;
    // SAFETY: F_OFD_SETLK reads one `flock`, which lives across the call; the descriptor is borrowed.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const request) };
    if result == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// Receives some bytes from a socket that passes credentials (`SO_PASSCRED`, unix(7)), and which process sent them, as the
/// kernel says: 0 if it has no number in this process's pid namespace.
///
/// # Errors
/// As recvmsg(2).
pub fn receive_with_sender(socket: impl AsFd, buffer: &mut [u8]) -> rustix::io::Result<(usize, Option<i32>)> {
    use std::os::fd::AsRawFd;
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // Words, so that headers of control messages are aligned. Descriptors that come along do not fit, and are closed.
    let mut control = [0u64; 4];
    // SAFETY: a `msghdr` of zeros is one without parts.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control));
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the message, its one part and its control buffer live across the call.
    let received = unsafe { libc::recvmsg(fd, &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let count = usize::try_from(received).map_err(|_| {
        let error = io::Error::last_os_error();
        rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO)
    })?;
    // SAFETY: the kernel has filled the control buffer in as far as it says.
    let first = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: null, or a header in that buffer.
    let Some(header) = (unsafe { first.as_ref() }) else {
        return Ok((count, None));
    };
    let wanted = size_of::<libc::cmsghdr>() + size_of::<libc::ucred>();
    let is_sender = (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_CREDENTIALS);
    if !is_sender || header.cmsg_len < wanted {
        return Ok((count, None));
    }
    // SAFETY: the header's data follow it.
    let data = unsafe { libc::CMSG_DATA(first) };
    // SAFETY: as long as credentials are, as its length says.
    let credentials = unsafe { data.cast::<libc::ucred>().read_unaligned() };
    Ok((count, Some(credentials.pid)))
}

/// Has every descriptor of this process from number `first` on closed when it executes something else. Async-signal-safe.
///
/// # Errors
/// As close_range(2), which is there since Linux 5.11 with this flag.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    match close_range_on_exec(first) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EINVAL)) => {
            // Each number that a descriptor can have.
            let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
            let end = limit.map_or(libc::c_int::MAX, |limit| libc::c_int::try_from(limit).unwrap_or(libc::c_int::MAX));
            for fd in first as libc::c_int..end {
                // SAFETY: touches no memory, and closes nothing yet. Numbers without a descriptor are refused.
                unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
            }
            Ok(())
        }
        other => other,
    }
}

/// Whether close_range(2) can do that.
pub fn close_range_is_there() -> bool {
    // No descriptor has such a number.
    close_range_on_exec(u32::MAX).is_ok()
}

fn close_range_on_exec(first: u32) -> io::Result<()> {
    // SAFETY: touches no memory, and closes nothing yet.
    let result = unsafe { libc::close_range(first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) };
    if result == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}
