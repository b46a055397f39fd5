//! Access to memory that several processes map: relaxed atomic words, checked against bounds.
//!
//! Invariant: no reference to plain bytes of shared memory leaves this file. Readers load words that may
//! change under them and validate the copy; only a writer stores, and only where nobody reads yet or in
//! words that the protocols order.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::SegmentOffset;
use crate::geometry::Region;

/// The longest record that [`View::read`] copies, in words.
const MAX_RECORD_WORDS: usize = 32;

/// What may lie in shared memory.
///
/// # Safety
/// Implementors hold nothing that is local to a process: no address, descriptor, pid that is trusted, or
/// index into private tables. The bounds prove the rest: no padding, every bit pattern valid. The size is a
/// multiple of eight, at most 256 bytes (asserted by [`View::read`] at compile time).
pub unsafe trait SharedRecord: FromBytes + IntoBytes + Immutable + KnownLayout + Copy {}

/// Something in the segment is not what this version writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the segment is corrupt: {what} at {at}\n  \
     help: stop its workers and restart the compiler process; report this if it comes back"
)]
pub struct Corrupt {
    /// What was being read.
    pub what: &'static str,
    /// Where.
    pub at: SegmentOffset,
}

/// The value of a word. Whoever loads one acquired it before, or validates the copy after a fence.
///
/// For ThreadSanitizer it is a plain load, as [`store`] is a plain store: it reports what the protocols do not order.
#[inline(always)]
pub(crate) fn load(word: &AtomicU64) -> u64 {
    #[cfg(tsan)]
    // SAFETY: the word of a reference.
    return unsafe { word.as_ptr().read() };
    #[cfg(not(tsan))]
    word.load(Ordering::Relaxed)
}

/// Stores a word that is shown later.
#[inline(always)]
fn store(word: &AtomicU64, value: u64) {
    #[cfg(tsan)]
    // SAFETY: the word of a reference, in memory that is mapped writable: only `Memory` stores.
    return unsafe { word.as_ptr().write(value) };
    #[cfg(not(tsan))]
    word.store(value, Ordering::Relaxed);
}

/// A span of the window that this process can read.
#[derive(Debug)]
pub struct View {
    #[cfg(not(tsan))]
    base: NonNull<u8>,
    #[cfg(tsan)]
    base: core::sync::atomic::AtomicPtr<u8>,
    span: Region,
    /// First offset that may not be read (yet); only grows.
    end: AtomicU32,
}

// SAFETY: a view gives access to its memory through atomics only (`words`); the pointer itself never
// changes, and the mapping outlives the view by the contract of `View::new`.
unsafe impl Send for View {}
// SAFETY: as for `Send`: all shared access is atomic.
unsafe impl Sync for View {}

impl View {
    /// The view of `span`, mapped at `base`, readable up to the offset `end`.
    ///
    /// # Safety
    /// `base` is 8-aligned, and `span.len_bytes` bytes from it stay mapped while the view lives; those below
    /// `end` are readable, and so is what later [`View::grow`] calls name. Nobody in this process accesses
    /// the memory other than atomically.
    pub unsafe fn new(base: NonNull<u8>, span: Region, end: u32) -> Self {
        #[cfg(tsan)]
        let base = core::sync::atomic::AtomicPtr::new(base.as_ptr());
        Self { base, span, end: AtomicU32::new(end.clamp(span.start, span.end())) }
    }

    #[cfg(not(tsan))]
    #[inline(always)]
    fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    #[cfg(tsan)]
    fn base(&self) -> *mut u8 {
        self.base.load(Ordering::Relaxed)
    }

    /// Goes on with other memory of the same span, where the view's own address would be mapped anew.
    ///
    /// # Safety
    /// As [`View::new`]; what was there before stays too.
    #[cfg(tsan)]
    pub(crate) unsafe fn go_on_at(&self, base: NonNull<u8>) {
        self.base.store(base.as_ptr(), Ordering::Relaxed);
    }

    /// The span of offsets that the view maps, readable or not.
    pub fn span(&self) -> Region {
        self.span
    }

    /// Lets everything below `end` be read.
    ///
    /// # Safety
    /// The memory below `end` has been made readable.
    pub unsafe fn grow(&self, end: u32) {
        // Relaxed: it is an upper bound for this process; whoever uses a larger one got the offset that
        // needs it through a later synchronisation with the thread that grew the mapping.
        self.end.fetch_max(end.min(self.span.end()), Ordering::Relaxed);
    }

    /// `count` words from `at`.
    ///
    /// # Errors
    /// [`Corrupt`] if they are misaligned or not all readable.
    #[inline]
    pub fn words(&self, at: SegmentOffset, count: usize) -> Result<&[AtomicU64], Corrupt> {
        let readable = Region {
            start: self.span.start,
            len_bytes: self.end.load(Ordering::Relaxed) - self.span.start,
        };
        let len_bytes = (count as u64).saturating_mul(8);
        if !readable.contains(at, len_bytes) || !at.get().is_multiple_of(8) {
            return Err(Corrupt { what: "reference outside the mapped part", at });
        }
        let distance = (at.get() - self.span.start) as usize;
        // SAFETY: `distance` is inside the mapping, checked just above.
        let first = unsafe { self.base().add(distance) };
        // SAFETY: `count` words from `first` are mapped and readable (checked above, and by the contract of
        // `new`), aligned (base and distance are multiples of eight), and accessed atomically only.
        Ok(unsafe { core::slice::from_raw_parts(first.cast::<AtomicU64>(), count) })
    }

    /// One word, relaxed.
    ///
    /// # Errors
    /// As [`View::words`].
    pub fn load(&self, at: SegmentOffset) -> Result<u64, Corrupt> {
        Ok(load(&self.words(at, 1)?[0]))
    }

    /// A copy of the record at `at`. The caller validates what it says.
    ///
    /// # Errors
    /// As [`View::words`].
    pub fn read<T: SharedRecord>(&self, at: SegmentOffset) -> Result<T, Corrupt> {
        const {
            assert!(size_of::<T>().is_multiple_of(8) && size_of::<T>() <= MAX_RECORD_WORDS * 8);
        }
        let mut copy = [0u64; MAX_RECORD_WORDS];
        let words = self.words(at, size_of::<T>() / 8)?;
        for (to, from) in copy.iter_mut().zip(words) {
            *to = load(from);
        }
        // Orders the copy before whatever validates that it was not overwritten meanwhile.
        fence(Ordering::Acquire);
        T::read_from_bytes(&copy.as_bytes()[..size_of::<T>()])
            .map_err(|_| Corrupt { what: "record", at })
    }

    /// A copy of `len_bytes` bytes from `at` (8-aligned), for names and tables.
    ///
    /// # Errors
    /// As [`View::words`].
    pub fn bytes(&self, at: SegmentOffset, len_bytes: usize) -> Result<Vec<u8>, Corrupt> {
        let words = self.words(at, len_bytes.div_ceil(8))?;
        let mut copy = Vec::with_capacity(words.len() * 8);
        for word in words {
            copy.extend_from_slice(&load(word).to_le_bytes());
        }
        fence(Ordering::Acquire);
        copy.truncate(len_bytes);
        Ok(copy)
    }

    /// Fills `to` with the bytes at `at`, wherever that is. Neither allocates nor locks.
    ///
    /// # Errors
    /// As [`View::words`].
    pub fn copy(&self, at: SegmentOffset, to: &mut [u8]) -> Result<(), Corrupt> {
        let skip = (at.get() % 8) as usize;
        let words = self.words(SegmentOffset::new(at.get() - skip as u32), (skip + to.len()).div_ceil(8))?;
        let bytes = words.iter().flat_map(|word| load(word).to_le_bytes());
        to.iter_mut().zip(bytes.skip(skip)).for_each(|(to, byte)| *to = byte);
        fence(Ordering::Acquire);
        Ok(())
    }
}

/// The compiler process's own mapping of the shared object: readable and writable as a whole.
#[derive(Debug)]
pub struct Memory {
    view: View,
}

impl core::ops::Deref for Memory {
    type Target = View;

    fn deref(&self) -> &View {
        &self.view
    }
}

impl Memory {
    /// The memory of `span`, mapped at `base`.
    ///
    /// # Safety
    /// As [`View::new`], and the whole span is writable.
    pub unsafe fn new(base: NonNull<u8>, span: Region) -> Self {
        // SAFETY: the caller's promise, with all of the span readable.
        Self { view: unsafe { View::new(base, span, span.end()) } }
    }

    /// Stores one word, relaxed.
    ///
    /// # Panics
    /// If `at` is outside: offsets to write to come from our own allocator.
    pub fn store(&self, at: SegmentOffset, value: u64) {
        let words = self.words(at, 1).expect("the allocator hands out offsets inside the segment");
        store(&words[0], value);
    }

    /// Stores a record, relaxed, word by word.
    ///
    /// # Panics
    /// As [`Memory::store`].
    pub fn write<T: SharedRecord>(&self, at: SegmentOffset, record: &T) {
        self.write_bytes(at, record.as_bytes());
    }

    /// Stores `bytes` from `at` (8-aligned), the last word filled up with zeros.
    ///
    /// # Panics
    /// As [`Memory::store`].
    pub fn write_bytes(&self, at: SegmentOffset, bytes: &[u8]) {
        let words = self
            .words(at, bytes.len().div_ceil(8))
            .expect("the allocator hands out offsets inside the segment");
        let chunks = bytes.chunks_exact(8);
        let rest = chunks.remainder();
        for (word, chunk) in words.iter().zip(chunks) {
            store(word, u64::from_le_bytes(chunk.try_into().expect("eight bytes")));
        }
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            store(&words[words.len() - 1], u64::from_le_bytes(last));
        }
    }
}

/// Shared memory without a mapping: a heap block, for tests and models of what needs no mmap.
#[derive(Debug)]
pub struct HeapMemory {
    memory: Memory,
    block: *mut [u64],
}

impl HeapMemory {
    /// A zeroed block that stands for `span`.
    pub fn new(span: Region) -> Self {
        let block = Box::into_raw(vec![0u64; span.len_bytes as usize / 8].into_boxed_slice());
        let base = NonNull::new(block.cast::<u8>()).expect("a box is not null");
        // SAFETY: the block lives until `drop`, is 8-aligned, and only `memory` accesses it.
        Self { memory: unsafe { Memory::new(base, span) }, block }
    }

    /// Gives access to the block.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }
}

impl Drop for HeapMemory {
    fn drop(&mut self) {
        // SAFETY: `block` came from `Box::into_raw`, is freed once, and no borrow of `memory` outlives self.
        drop(unsafe { Box::from_raw(self.block) });
    }
}

/// A hint to the processor: what is at `address` is going to be read, or executed. Any address may be given.
#[inline(always)]
pub fn prefetch(address: usize) {
    // SAFETY: SSE is part of x86-64; and to prefetch from whatever address raises no exception and changes nothing that a
    // program sees (AMD64 Architecture Programmer's Manual, volume 3, PREFETCHlevel).
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(core::ptr::without_provenance(address));
    }
}

/// The same: something is going to be stored in its cache line.
#[inline(always)]
pub fn prefetch_to_store(address: usize) {
    // SAFETY: as for `prefetch`; a processor without the instruction does nothing (Intel SDM, volume 2, PREFETCHW).
    unsafe { core::arch::asm!("prefetchw byte ptr [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
    #[repr(C)]
    struct Pair {
        left: u64,
        right: u64,
    }
    // SAFETY: two numbers.
    unsafe impl SharedRecord for Pair {}

    const SPAN: Region = Region { start: 4096, len_bytes: 64 };

    #[test]
    fn records_and_bytes_come_back() {
        let heap = HeapMemory::new(SPAN);
        let (memory, at) = (heap.memory(), SegmentOffset::new(4096 + 16));
        memory.write(at, &Pair { left: 7, right: u64::MAX });
        assert_eq!(memory.read::<Pair>(at), Ok(Pair { left: 7, right: u64::MAX }));
        memory.write_bytes(at, b"hello, world");
        assert_eq!(memory.bytes(at, 12).unwrap(), b"hello, world");
        assert_eq!(memory.load(SegmentOffset::new(4096 + 24)), Ok(u64::from_le_bytes(*b"orld\0\0\0\0")));
    }

    #[test]
    fn what_is_outside_is_refused() {
        let heap = HeapMemory::new(SPAN);
        for at in [0, 4088, 4096 + 56, 4096 + 64, 4097, u32::MAX - 7, u32::MAX] {
            assert!(heap.memory().read::<Pair>(SegmentOffset::new(at)).is_err(), "{at}");
        }
        assert!(heap.memory().words(SegmentOffset::new(4096), usize::MAX).is_err());
    }

    #[test]
    fn what_is_not_mapped_yet_is_refused() {
        let heap = HeapMemory::new(SPAN);
        // SAFETY: the block outlives the view, and all of it is readable.
        let view = unsafe { View::new(NonNull::new(heap.memory().base()).unwrap(), SPAN, SPAN.start + 8) };
        assert!(view.load(SegmentOffset::new(4096)).is_ok());
        assert!(view.load(SegmentOffset::new(4104)).is_err());
        // SAFETY: as above.
        unsafe { view.grow(u32::MAX) };
        assert!(view.load(SegmentOffset::new(4096 + 56)).is_ok());
        assert!(view.load(SegmentOffset::new(4096 + 64)).is_err());
    }
}
