//! What a hostile worker tries on memory that it may only read. Each attempt stores as soon as it can.

use std::ffi::c_void;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::ptr;

use jitcast::runtime::Area;
use jitcast::runtime::header::FORMAT_VERSION;
use jitcast::runtime::wire::{self, AttachRequest, FrameKind};
use jitcast::worker::Worker;
use rustix::fs::{FallocateFlags, Mode};
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};
use zerocopy::IntoBytes;

/// What is stored: traps.
const TRAPS: [u8; 16] = [0xcc; 16];

const PAGE_BYTES: usize = 4096;

/// An attempt, and how far it came.
#[derive(Debug)]
pub(crate) struct Attempt {
    what: String,
    result: io::Result<()>,
}

impl Attempt {
    fn new(what: impl Into<String>, result: io::Result<()>) -> Self {
        let what = what.into();
        Self { what, result }
    }

    /// Whether the system let it happen.
    pub(crate) fn was_let(&self) -> bool {
        self.result.is_ok()
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.result {
            Ok(()) => write!(f, "let: {}", self.what),
            Err(error) => write!(f, "refused: {}: {error}", self.what),
        }
    }
}

/// The descriptor that a worker is given, asked for as a worker does.
pub(crate) fn segment_of(socket: &Path) -> OwnedFd {
    let socket = std::os::unix::net::UnixStream::connect(socket).unwrap();
    let request = AttachRequest {
        format_version: FORMAT_VERSION,
        fenced: 0,
        label: [0; 64],
    };
    wire::send(&socket, FrameKind::Attach, request.as_bytes(), &[]).unwrap();
    let frame = wire::receive(&socket, wire::MAX_WORKER_PAYLOAD).unwrap();
    assert_eq!(frame.kind, FrameKind::Attached);
    frame.fds.into_iter().next().unwrap()
}

/// Opens the object behind `fd` anew, for writing; its owner may make that possible first.
pub(crate) fn reopen(fd: BorrowedFd<'_>) -> io::Result<File> {
    // Whether it was needed, and whether it worked, the opening tells.
    let _ = rustix::fs::fchmod(fd, Mode::from_raw_mode(0o666));
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    OpenOptions::new().read(true).write(true).open(path)
}

/// Everything that can be tried through a descriptor, at the byte `at` of its object.
pub(crate) fn through(fd: BorrowedFd<'_>, at: u64) -> Vec<Attempt> {
    let page = at / PAGE_BYTES as u64 * PAGE_BYTES as u64;
    let file = File::from(fd.try_clone_to_owned().unwrap());
    let truncate = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_TRUNC)
        .open(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let len = file.metadata().unwrap().len();
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let punched = rustix::fs::fallocate(fd, mode, page, PAGE_BYTES as u64);
    let read = ProtFlags::READ;
    vec![
        Attempt::new("pwrite", file.write_all_at(&TRAPS, at)),
        Attempt::new(
            "a shared writable mapping",
            map(fd, page, read | ProtFlags::WRITE).and_then(|page| page.store()),
        ),
        Attempt::new(
            "a shared readable mapping made writable",
            map(fd, page, read).and_then(|page| page.make_writable_and_store()),
        ),
        Attempt::new(
            "a shared readable mapping stored to through /proc/self/mem",
            map(fd, page, read).and_then(|page| poke(page.0)),
        ),
        Attempt::new(
            "MADV_REMOVE",
            map(fd, page, read).and_then(|page| remove(page.0)),
        ),
        Attempt::new("a hole punched", punched.map_err(io::Error::from)),
        Attempt::new("ftruncate to nothing", file.set_len(0)),
        Attempt::new("ftruncate to more", file.set_len(len + PAGE_BYTES as u64)),
        Attempt::new("O_TRUNC", truncate.map(drop)),
    ]
}

/// Everything that can be tried on the views that a worker has mapped.
pub(crate) fn on_views(worker: &Worker) -> Vec<Attempt> {
    let shared = Area::ALL.into_iter().filter(|area| area.is_in_segment());
    let mut attempts = Vec::new();
    for area in shared {
        let start = worker.geometry().region(area).offset();
        let view: *mut c_void =
            ptr::with_exposed_provenance_mut(worker.window().addr_of(start).get() as usize);
        let mut attempt = |what: &str, result| {
            attempts.push(Attempt::new(format!("{what} of {}", area.name()), result));
        };
        attempt("a store through /proc/self/mem to the view", poke(view));
        attempt("MADV_REMOVE", remove(view));
        for (what, extra) in [
            ("mprotect(PROT_WRITE)", MprotectFlags::empty()),
            ("mprotect(PROT_WRITE | PROT_EXEC)", MprotectFlags::EXEC),
        ] {
            let flags = MprotectFlags::READ | MprotectFlags::WRITE | extra;
            // SAFETY: the page is the worker's view, which nobody stores to; that this makes stores possible is
            // what is tried, and expected to fail.
            let made = unsafe { rustix::mm::mprotect(view, PAGE_BYTES, flags) };
            attempt(what, made.map_err(io::Error::from));
        }
    }
    attempts
}

/// A private mapping of the page around `at`: it may be had and stored to, since it is a copy.
pub(crate) fn private_copy(fd: BorrowedFd<'_>, at: u64) -> io::Result<()> {
    let page = at / PAGE_BYTES as u64 * PAGE_BYTES as u64;
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a mapping at an address of the kernel's choice touches no memory that is in use.
    let mapped = unsafe {
        rustix::mm::mmap(
            ptr::null_mut(),
            PAGE_BYTES,
            prot,
            MapFlags::PRIVATE,
            fd,
            page,
        )
    }?;
    Page(mapped).store()
}

/// A mapped page.
struct Page(*mut c_void);

impl Page {
    fn store(&self) -> io::Result<()> {
        // SAFETY: the page is mapped writable, and as bytes of an object that no Rust value lies in.
        unsafe { ptr::write_bytes(self.0.cast::<u8>(), TRAPS[0], TRAPS.len()) };
        Ok(())
    }

    fn make_writable_and_store(&self) -> io::Result<()> {
        let flags = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: the page is this value's own mapping.
        unsafe { rustix::mm::mprotect(self.0, PAGE_BYTES, flags) }?;
        self.store()
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the page is this value's own mapping, and goes with it.
        let _ = unsafe { rustix::mm::munmap(self.0, PAGE_BYTES) };
    }
}

fn map(fd: BorrowedFd<'_>, page: u64, prot: ProtFlags) -> io::Result<Page> {
    // SAFETY: a mapping at an address of the kernel's choice touches no memory that is in use.
    let mapped = unsafe {
        rustix::mm::mmap(
            ptr::null_mut(),
            PAGE_BYTES,
            prot,
            MapFlags::SHARED,
            fd,
            page,
        )
    }?;
    Ok(Page(mapped))
}

/// Stores through /proc/self/mem, which overrides the protection of pages that are this process's own.
fn poke(at: *mut c_void) -> io::Result<()> {
    let memory = OpenOptions::new().write(true).open("/proc/self/mem")?;
    memory.write_all_at(&TRAPS, at.expose_provenance() as u64)
}

fn remove(at: *mut c_void) -> io::Result<()> {
    // SAFETY: the page is mapped; that its contents go is what is tried.
    unsafe { rustix::mm::madvise(at, PAGE_BYTES, Advice::LinuxRemove) }?;
    Ok(())
}

/// Tells the two descriptors apart in reports.
pub(crate) fn through_both(fd: BorrowedFd<'_>, at: u64) -> Vec<Attempt> {
    let mut attempts = through(fd, at);
    match reopen(fd) {
        Ok(file) => {
            let mut again = through(file.as_fd(), at);
            for attempt in &mut again {
                attempt.what.push_str(", through a reopened descriptor");
            }
            attempts.append(&mut again);
        }
        Err(error) => attempts.push(Attempt::new("reopening for writing", Err(error))),
    }
    attempts
}
