//! What a build for ThreadSanitizer (`--cfg tsan`, `.ci/tsan`) does otherwise.
//!
//! ThreadSanitizer tells memory by its address, and the driver (`tests/tsan`) is compiler process and worker at once, which map the
//! same objects at two places. So both access an object through the mapping that was first, and that stays. What the protocols
//! order is accessed plainly (`memory.rs`), since atomic accesses are no data races, ordered or not. Invariant: no other build
//! contains any of this.

use core::ptr::{self, NonNull};
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;
use std::sync::atomic::AtomicPtr;

use crate::atomic::{Ordering, Release};

/// An object that is mapped, by device and inode: a mapped one has no other's.
struct Object {
    file: [u64; 2],
    base: usize,
    len_bytes: usize,
    /// What was mapped before it.
    next: *mut Object,
}

/// All that were ever mapped: a list without a lock, which a forked child could find locked for good.
static OBJECTS: AtomicPtr<Object> = AtomicPtr::new(ptr::null_mut());

fn find(matches: impl Fn(&Object) -> bool) -> Option<&'static Object> {
    // Acquire: pairs with the release in `note`.
    let mut at = OBJECTS.load(Ordering::Acquire);
    // SAFETY: null or an object that `note` added, which is never freed.
    while let Some(object) = unsafe { at.as_ref() } {
        if matches(object) {
            return Some(object);
        }
        at = object.next;
    }
    None
}

fn identity(fd: BorrowedFd<'_>) -> Option<[u64; 2]> {
    let stat = rustix::fs::fstat(fd).ok()?;
    Some([stat.st_dev, stat.st_ino])
}

/// The first mapping of what is behind `fd`, if that is no shorter than `len_bytes`.
pub(crate) fn first(fd: BorrowedFd<'_>, len_bytes: usize) -> Option<NonNull<u8>> {
    let file = identity(fd)?;
    let object = find(|object| object.file == file && object.len_bytes >= len_bytes)?;
    NonNull::new(ptr::with_exposed_provenance_mut(object.base))
}

/// Notes a mapping of what is behind `fd`, from its start.
pub(crate) fn note(fd: BorrowedFd<'_>, base: *mut u8, len_bytes: usize) {
    if let Some(file) = identity(fd) {
        add(file, base, len_bytes);
    }
}

/// Has private memory stay: system calls are made without the C library, so that ThreadSanitizer does not see that other memory is at
/// its address later.
pub(crate) fn keep(base: *mut u8, len_bytes: usize) {
    // No file has this number.
    add([u64::MAX; 2], base, len_bytes);
}

fn add(file: [u64; 2], base: *mut u8, len_bytes: usize) {
    let object = Box::leak(Box::new(Object {
        file,
        base: base.expose_provenance(),
        len_bytes,
        next: ptr::null_mut(),
    }));
    let push = |first| {
        object.next = first;
        Some(ptr::from_mut(object))
    };
    let _ = OBJECTS.fetch_update(Ordering::Release, Ordering::Relaxed, push);
}

/// Whether the mapping at `base` has to stay.
pub(crate) fn stays(base: NonNull<u8>) -> bool {
    find(|object| object.base == base.as_ptr().addr()).is_some()
}

impl Release {
    /// How it is stored: relaxed, if the environment variable `JITCAST_RELAXED` has its name.
    pub(crate) fn ordering(self) -> Ordering {
        static LEFT_OUT: OnceLock<Option<Release>> = OnceLock::new();
        let left_out =
            LEFT_OUT.get_or_init(|| match std::env::var("JITCAST_RELAXED").ok()?.as_str() {
                "root" => Some(Self::Root),
                "head" => Some(Self::Head),
                "pin" => Some(Self::Pin),
                "gate" => Some(Self::Gate),
                other => panic!("JITCAST_RELAXED={other} is none of root, head, pin, gate"),
            });
        if *left_out == Some(self) {
            Ordering::Relaxed
        } else {
            Ordering::Release
        }
    }
}
