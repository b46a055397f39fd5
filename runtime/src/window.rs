//! The window of a worker: one reservation at an address of its own, in it the views of the segment's object, the shared
//! data, and the private area.
//!
//! Invariant: pages become accessible area by area, from the start up to the extents that the segment's
//! header states; the number of mappings does not depend on what is published; nothing is ever writable and
//! executable.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::addr::{SegmentOffset, WorkerAddr};
use crate::geometry::{Area, GRANULE_BYTES, Geometry, Region, SLOT_BYTES};
use crate::header::CONTROL_FIXED_BYTES;
use crate::memory::{Corrupt, View};
use crate::selector::{BLOCK_BYTES, MAX_BLOCKS, SELECTOR_BYTES, SELECTORS_PER_BLOCK, SelectorWord};
use crate::sys::{self, Mapping, MappingAdvice, Protection};

/// Where windows are drawn from: the part of the user's half that is far from what programs, the heap, the
/// stack and the kernel's own choices use. ThreadSanitizer has a shadow of the last part only.
const FIRST_BASE: u64 = if cfg!(tsan) { 0x7c00_0000_0000 } else { 0x1000_0000_0000 };
const LAST_BASE: u64 = if cfg!(tsan) { 0x7e00_0000_0000 } else { 0x6000_0000_0000 };

/// Bases are multiples of 2 MiB, so that huge pages fit.
const BASE_ALIGN: u64 = 2 << 20;

/// Why a window cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum WindowError {
    /// No address space.
    #[error("cannot reserve {len_bytes} bytes of address space: {cause}\n  help: raise `ulimit -v`, or start the compiler process with a smaller --window")]
    Reserve {
        /// The window's length, bytes.
        len_bytes: u32,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// A view cannot be mapped or opened up.
    #[error("cannot map {area} of the segment: {cause}\n  help: {help}")]
    Map {
        /// Which area.
        area: &'static str,
        /// What to do.
        help: &'static str,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The object is shorter than its header says.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
}

/// A window, mapped.
#[derive(Debug)]
pub struct Window {
    // Declared, and so dropped, before the mapping that it looks at.
    control: View,
    geometry: Geometry,
    /// First offset of each area that is not accessible yet.
    ends: [AtomicU32; Area::COUNT],
    /// Blocks of selectors that are mapped.
    blocks: AtomicU32,
    mapping: Mapping,
}

impl Window {
    /// Reserves a window at a random base and maps into it the views of the segment's `object`, and the shared data, whose
    /// object is open for writing.
    ///
    /// # Errors
    /// [`WindowError`].
    pub fn map(geometry: &Geometry, object: impl AsFd, shared_data: impl AsFd) -> Result<Self, WindowError> {
        let len_bytes = geometry.window().len_bytes;
        // Behind the window there is room for selectors. A process that is short of address space does without.
        let mapping = reserve(len_bytes as usize + SELECTOR_SPACE)
            .or_else(|_| reserve(len_bytes as usize))
            .map_err(|cause| WindowError::Reserve { len_bytes, cause })?;
        let shared = geometry.shared();
        let map_error = |cause| WindowError::Map {
            area: "the views",
            help: "see `ulimit -v`, the memory cgroup and the security policy of this process",
            cause,
        };
        let data = geometry.region(Area::SharedData);
        for (region, object) in [(shared, object.as_fd()), (data, shared_data.as_fd())] {
            mapping.overlay(region.start as usize, region.len_bytes as usize, object).map_err(map_error)?;
        }
        // What the compiler holds need not be in a worker's core dump too.
        mapping.advise(MappingAdvice::LinuxDontDump).map_err(map_error)?;
        let control = geometry.region(Area::Control);
        let base = mapping.base();
        // SAFETY: a base is 2 MiB aligned or the kernel's page-aligned choice, and areas are multiples of
        // 64 KiB; the span is inside the mapping.
        let start = unsafe { base.add(control.start as usize) };
        #[cfg(tsan)]
        let start = Self::seen_first(geometry, object.as_fd()).unwrap_or(start);
        // SAFETY: the span stays mapped while `mapping` lives, which is dropped after the view. Nothing of it
        // is readable yet.
        let view = unsafe { View::new(start, control, control.start) };
        let ends = Area::ALL.map(|area| AtomicU32::new(geometry.region(area).start));
        let window = Self { control: view, geometry: *geometry, ends, blocks: AtomicU32::new(0), mapping };
        window.open(Area::Control, control.start + CONTROL_FIXED_BYTES.next_multiple_of(GRANULE_BYTES), || None)?;
        Ok(window)
    }

    /// The layout.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The base: the address of offset 0.
    #[inline]
    pub fn base(&self) -> WorkerAddr {
        WorkerAddr::new(self.mapping.base().as_ptr().addr() as u64)
    }

    /// The control area, readable as far as it is open.
    #[inline]
    pub fn control(&self) -> &View {
        &self.control
    }

    /// The address of `offset` in this process: the one bridge from offsets to addresses.
    #[inline]
    pub fn addr_of(&self, offset: SegmentOffset) -> WorkerAddr {
        WorkerAddr::new(self.base().get() + u64::from(offset.get()))
    }

    /// The offset of `addr`, if it lies in the window.
    pub fn offset_of(&self, addr: WorkerAddr) -> Option<SegmentOffset> {
        let distance = addr.get().checked_sub(self.base().get())?;
        (distance < self.geometry.window().len_bytes.into()).then(|| SegmentOffset::new(distance as u32))
    }

    /// First offset of `area` that is not accessible.
    #[inline]
    pub fn end(&self, area: Area) -> u32 {
        self.ends[area.index()].load(Ordering::Acquire)
    }

    /// Makes `area` accessible up to `end`, if it is not already. For one thread at a time. `object` says what is mapped: where no
    /// mapping may become executable (`PR_SET_MDWE`, or systemd's filter), code is mapped from it anew.
    ///
    /// # Errors
    /// [`WindowError::Map`]; [`WindowError::Corrupt`] if `end` is outside the area.
    pub fn open<'fd>(
        &self,
        area: Area,
        end: u32,
        object: impl FnOnce() -> Option<BorrowedFd<'fd>>,
    ) -> Result<(), WindowError> {
        let region = self.geometry.region(area);
        let start = self.end(area);
        if end <= start {
            return Ok(());
        }
        if end > region.end() || !end.is_multiple_of(GRANULE_BYTES) {
            return Err(Corrupt { what: "extent outside its area", at: SegmentOffset::new(end) }.into());
        }
        let (protection, help) = match area {
            Area::CallCells | Area::AddressCells | Area::Private => {
                (Protection::ReadWrite, "the system is out of memory to commit (see vm.overcommit_memory, `ulimit -v`)")
            }
            Area::SharedData => (Protection::ReadWrite, "see the security policy of this process"),
            Area::Control | Area::ReadOnly => (Protection::Read, "see the security policy of this process"),
            Area::Stubs | Area::Text => (
                Protection::ReadExecute,
                "the segment lies on a noexec file system, or a policy such as SELinux execmem forbids code there",
            ),
        };
        let part = (start as usize, (end - start) as usize);
        let opened = self.mapping.protect(part.0, part.1, protection).or_else(|cause| {
            let is_code = protection == Protection::ReadExecute;
            let is_forbidden = is_code && cause.kind() == io::ErrorKind::PermissionDenied;
            let Some(object) = is_forbidden.then(object).flatten() else {
                return Err(cause);
            };
            let offset = u64::from(start - self.geometry.shared().start);
            // SAFETY: nobody uses this part yet: it was inaccessible.
            unsafe { self.mapping.remap(part, object, offset, Some(protection)) }?;
            self.mapping.advise(MappingAdvice::LinuxDontDump)
        });
        opened.map_err(|cause| WindowError::Map { area: area.name(), help, cause })?;
        if area == Area::Control {
            // SAFETY: just made readable.
            unsafe { self.control.grow(end) };
        }
        self.ends[area.index()].store(end, Ordering::Release);
        Ok(())
    }

    /// Whether `len_bytes` at `at` lie in the accessible part of `area`.
    #[inline]
    pub fn is_open(&self, area: Area, at: SegmentOffset, len_bytes: u64) -> bool {
        let start = self.geometry.region(area).start;
        Region { start, len_bytes: self.end(area) - start }.contains(at, len_bytes)
    }

    /// The eight bytes at `at` in the private area, as an atomic word of this process; `None` unless they are
    /// aligned and accessible.
    #[inline]
    pub fn private_word(&self, area: Area, at: SegmentOffset) -> Option<&core::sync::atomic::AtomicU64> {
        if !area.is_private() || !at.get().is_multiple_of(8) || !self.is_open(area, at, 8) {
            return None;
        }
        // SAFETY: inside the mapping, checked just above.
        let word = unsafe { self.mapping.base().add(at.get() as usize) };
        // SAFETY: the word is mapped read-write (the area is private and open there), aligned, and lives as
        // long as the window. Published code reads slots by plain loads of a word, which on x86-64 are
        // what a relaxed atomic load is.
        Some(unsafe { core::sync::atomic::AtomicU64::from_ptr(word.as_ptr().cast()) })
    }

    /// The word of a slot, whichever area it is in; `None` if there is none at `at`.
    #[inline]
    pub fn slot(&self, at: SegmentOffset) -> Option<&core::sync::atomic::AtomicU64> {
        self.private_word(Area::CallCells, at).or_else(|| self.private_word(Area::AddressCells, at))
    }

    /// The words of up to `count` consecutive slots from `at` on, as far as they lie in one area and are accessible.
    pub fn slots(&self, at: SegmentOffset, count: u32) -> &[core::sync::atomic::AtomicU64] {
        let areas = [Area::CallCells, Area::AddressCells];
        let Some(area) = areas.into_iter().find(|area| self.is_open(*area, at, 8) && at.get().is_multiple_of(8)) else {
            return &[];
        };
        let open = (self.geometry.region(area).start + self.end(area) - at.get()) / 8;
        // SAFETY: inside the mapping, checked just above.
        let first = unsafe { self.mapping.base().add(at.get() as usize) };
        // SAFETY: the words are mapped read-write (the area is private and open from here to there), aligned, and live as
        // long as the window. As in `private_word`, nobody accesses them otherwise than by loads and stores of words.
        unsafe { core::slice::from_raw_parts(first.as_ptr().cast(), open.min(count) as usize) }
    }

    /// Has the kernel give memory to the slots from `first` to `last`, as far as they are accessible: all of these are going to be
    /// stored to. Where it cannot, or not in this way, the stores find out.
    pub fn populate_slots(&self, first: SegmentOffset, last: SegmentOffset) {
        for area in [Area::CallCells, Area::AddressCells] {
            let start = self.geometry.region(area).start.max(first.get());
            let end = self.end(area).min(last.get().saturating_add(SLOT_BYTES));
            if start < end {
                // Linux before 5.14 does not know it.
                let _ = self.mapping.populate(start as usize, (end - start) as usize);
            }
        }
    }

    /// A copy of the bytes of `region` in `area`, whoever may write there meanwhile.
    ///
    /// # Errors
    /// [`Corrupt`] unless the region is accessible.
    pub fn copy(&self, area: Area, region: Region) -> Result<Vec<u8>, Corrupt> {
        if !self.is_open(area, region.offset(), region.len_bytes.into()) {
            return Err(Corrupt { what: "reference outside the mapped part", at: region.offset() });
        }
        let byte = |offset: u32| {
            // SAFETY: inside the mapping, checked just above.
            let at = unsafe { self.mapping.base().add(offset as usize) };
            // SAFETY: mapped readable while the window lives, and read atomically, as everything that another process
            // may write.
            unsafe { core::sync::atomic::AtomicU8::from_ptr(at.as_ptr()) }.load(Ordering::Relaxed)
        };
        Ok((region.start..region.end()).map(byte).collect())
    }

    /// Fills `region` of the private data with `template` and zeros after it.
    ///
    /// # Errors
    /// [`Corrupt`] unless the region is accessible and no shorter than the template.
    ///
    /// # Safety
    /// No code runs that uses the region: it belongs to a unit that is not bound yet.
    pub unsafe fn fill_private(&self, region: Region, template: &[u8]) -> Result<(), Corrupt> {
        let len = region.len_bytes as usize;
        if !self.is_open(Area::Private, region.offset(), region.len_bytes.into()) || template.len() > len {
            return Err(Corrupt { what: "private data of a unit", at: region.offset() });
        }
        // SAFETY: inside the mapping, checked just above.
        let start = unsafe { self.mapping.base().add(region.start as usize) };
        // SAFETY: `len` bytes from `start` are mapped read-write, and nobody else uses them (the caller's
        // promise).
        let bytes = unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len) };
        let (head, rest) = bytes.split_at_mut(template.len());
        head.copy_from_slice(template);
        rest.fill(0);
        Ok(())
    }

    /// Stores `value`, eight bytes at any alignment, at `site` in private data.
    ///
    /// # Errors
    /// [`Corrupt`] unless the site is accessible.
    ///
    /// # Safety
    /// As [`Window::fill_private`].
    pub unsafe fn patch_private(&self, site: SegmentOffset, value: WorkerAddr) -> Result<(), Corrupt> {
        if !self.is_open(Area::Private, site, 8) {
            return Err(Corrupt { what: "site of a patch", at: site });
        }
        // SAFETY: inside the mapping, checked just above.
        let at = unsafe { self.mapping.base().add(site.get() as usize) };
        // SAFETY: eight bytes from `at` are mapped read-write, and nobody else uses them.
        unsafe { at.as_ptr().cast::<u64>().write_unaligned(value.get()) };
        Ok(())
    }
}

/// The private data, as a unit's own code would see it.
impl Window {
    /// The eight bytes at `at`, at any alignment.
    ///
    /// # Errors
    /// [`Corrupt`] unless they are accessible.
    ///
    /// # Safety
    /// No code that stores there runs meanwhile.
    pub unsafe fn private_value(&self, at: SegmentOffset) -> Result<u64, Corrupt> {
        if !self.is_open(Area::Private, at, 8) {
            return Err(Corrupt { what: "slot in private data", at });
        }
        // SAFETY: inside the mapping, checked just above.
        let place = unsafe { self.mapping.base().add(at.get() as usize) };
        // SAFETY: eight bytes from `place` are mapped, and nobody stores there (the caller's promise).
        Ok(unsafe { place.as_ptr().cast::<u64>().read_unaligned() })
    }

    /// Copies `len_bytes` from an address of this process to `site`.
    ///
    /// # Errors
    /// [`Corrupt`] unless the site is accessible.
    ///
    /// # Safety
    /// As [`Window::fill_private`]; `from` can be read, and what is read does not overlap the site.
    pub unsafe fn copy_private(
        &self,
        site: SegmentOffset,
        from: WorkerAddr,
        len_bytes: u32,
    ) -> Result<(), Corrupt> {
        if !self.is_open(Area::Private, site, len_bytes.into()) {
            return Err(Corrupt { what: "copy of a host datum", at: site });
        }
        // SAFETY: inside the mapping, checked just above.
        let place = unsafe { self.mapping.base().add(site.get() as usize) };
        let from = core::ptr::with_exposed_provenance::<u8>(from.get() as usize);
        // SAFETY: the caller's promise for `from`; `len_bytes` from `place` are mapped read-write and unused, and do
        // not overlap what is read (its promise too).
        unsafe { core::ptr::copy_nonoverlapping(from, place.as_ptr(), len_bytes as usize) };
        Ok(())
    }
}

/// Renewal: another object in the place of the one that is mapped.
impl Window {
    /// Maps the segment's views from `object`, where they are, and the shared data from `shared_data`, if those are others;
    /// slots, private data and addresses stay as they are.
    ///
    /// # Errors
    /// As mmap(2) and mremap(2). Some views may be the new object's then, control last: to be tried again.
    ///
    /// # Safety
    /// The objects have the same geometry, and, wherever a thread may be executing or reading, the same bytes.
    pub unsafe fn renew(&self, object: impl AsFd, shared_data: Option<BorrowedFd<'_>>) -> io::Result<()> {
        if let Some(object) = shared_data {
            let region = self.geometry.region(Area::SharedData);
            // SAFETY: the caller's promise.
            unsafe { self.remap_area(Area::SharedData, object, region.start, Protection::ReadWrite) }?;
        }
        let fd = object.as_fd();
        for area in [Area::Text, Area::Stubs, Area::ReadOnly, Area::Control] {
            let protection = match area {
                Area::Text | Area::Stubs => Protection::ReadExecute,
                _ => Protection::Read,
            };
            // SAFETY: the caller's promise.
            unsafe { self.remap_area(area, fd, self.geometry.shared().start, protection) }?;
            if area == Area::Text {
                self.repeat_selectors()?;
            }
        }
        #[cfg(tsan)]
        {
            // SAFETY: inside the mapping, as in `map`.
            let own = unsafe { self.mapping.base().add(self.geometry.region(Area::Control).start as usize) };
            let start = Self::seen_first(&self.geometry, fd).unwrap_or(own);
            // SAFETY: a first mapping stays, readable as a whole; the own one is readable as far as it was.
            unsafe { self.control.go_on_at(start) };
        }
        self.mapping.advise(MappingAdvice::LinuxDontDump)
    }

    /// Where control is in the first mapping of `object`: that of the compiler process, if this is it too.
    #[cfg(tsan)]
    fn seen_first(geometry: &Geometry, object: BorrowedFd<'_>) -> Option<core::ptr::NonNull<u8>> {
        let (shared, control) = (geometry.shared(), geometry.region(Area::Control));
        let first = crate::tsan::first(object, shared.len_bytes as usize)?;
        // SAFETY: that mapping is as long as all shared areas.
        Some(unsafe { first.add((control.start - shared.start) as usize) })
    }

    /// Maps an area from `object`, whose first byte is window offset `first`, as far accessible as it is.
    ///
    /// # Safety
    /// As [`Window::renew`].
    unsafe fn remap_area(
        &self,
        area: Area,
        object: BorrowedFd<'_>,
        first: u32,
        protection: Protection,
    ) -> io::Result<()> {
        let (region, end) = (self.geometry.region(area), self.end(area));
        for (start, end, protection) in [(region.start, end, Some(protection)), (end, region.end(), None)] {
            let part = (start as usize, (end - start) as usize);
            // SAFETY: the caller's promise.
            unsafe { self.mapping.remap(part, object, (start - first).into(), protection) }?;
        }
        Ok(())
    }

    /// Maps the code of all selectors again.
    fn repeat_selectors(&self) -> io::Result<()> {
        let (code, len_bytes) = (self.geometry.selectors(), BLOCK_BYTES as usize);
        for index in 0..self.blocks.load(Ordering::Relaxed) {
            self.mapping.repeat(code.start as usize, len_bytes, self.block(index) + len_bytes)?;
        }
        Ok(())
    }
}

/// Selectors, behind the window: blocks of records, each followed by its code.
impl Window {
    /// How many selectors there are.
    pub fn selector_count(&self) -> u32 {
        self.blocks.load(Ordering::Acquire) * SELECTORS_PER_BLOCK
    }

    /// Makes more selectors, a block of them: records of this process, and the shared code once more. For one thread at a
    /// time.
    ///
    /// # Errors
    /// As mprotect(2) and mremap(2), or that there is no room behind the window; then there are as many as before.
    pub fn add_selectors(&self) -> io::Result<()> {
        let index = self.blocks.load(Ordering::Relaxed);
        let code = self.geometry.selectors();
        let records = self.block(index);
        let len_bytes = BLOCK_BYTES as usize;
        if records + 2 * len_bytes > self.mapping.len_bytes() || self.end(Area::Text) < code.end() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.mapping.protect(records, len_bytes, Protection::ReadWrite)?;
        self.mapping.repeat(code.start as usize, len_bytes, records + len_bytes)?;
        self.blocks.store(index + 1, Ordering::Release);
        Ok(())
    }

    fn block(&self, index: u32) -> usize {
        self.geometry.window().len_bytes as usize + index as usize * 2 * BLOCK_BYTES as usize
    }

    /// A word of the record of selector `index`.
    ///
    /// # Panics
    /// If there is none.
    pub fn selector_word(&self, index: u32, word: SelectorWord) -> &core::sync::atomic::AtomicU64 {
        assert!(index < self.selector_count());
        let inside = index % SELECTORS_PER_BLOCK * SELECTOR_BYTES;
        let distance = self.block(index / SELECTORS_PER_BLOCK) + inside as usize + word as usize * 8;
        // SAFETY: inside the mapping: the block was mapped before it was counted.
        let word = unsafe { self.mapping.base().add(distance) };
        // SAFETY: mapped read-write while the window lives, aligned, accessed atomically only; selectors load whole words.
        unsafe { core::sync::atomic::AtomicU64::from_ptr(word.as_ptr().cast()) }
    }

    /// Where selector `index` is entered.
    pub fn selector(&self, index: u32) -> WorkerAddr {
        let (block, inside) = (index / SELECTORS_PER_BLOCK, index % SELECTORS_PER_BLOCK);
        let distance = self.block(block) + (BLOCK_BYTES + inside * SELECTOR_BYTES) as usize;
        WorkerAddr::new(self.base().get() + distance as u64)
    }

    /// The distance from the base to the end of all that may be executed, selectors included, bytes.
    pub fn reach_bytes(&self) -> u64 {
        self.mapping.len_bytes() as u64
    }

    /// The start of the block of selectors that `addr` lies in.
    pub fn selectors_at(&self, addr: WorkerAddr) -> Option<WorkerAddr> {
        let behind = addr.get().checked_sub(self.base().get() + u64::from(self.geometry.window().len_bytes))?;
        let block = u32::try_from(behind / u64::from(2 * BLOCK_BYTES)).ok()?;
        let is_code = behind % u64::from(2 * BLOCK_BYTES) >= BLOCK_BYTES.into();
        (is_code && block < self.blocks.load(Ordering::Acquire)).then(|| self.selector(block * SELECTORS_PER_BLOCK))
    }
}

/// What selectors take, bytes of address space.
const SELECTOR_SPACE: usize = MAX_BLOCKS as usize * 2 * BLOCK_BYTES as usize;

/// Reserves address space at a base drawn at random: siblings forked from one parent would otherwise all
/// be given the same one.
fn reserve(len_bytes: usize) -> io::Result<Mapping> {
    let places = (LAST_BASE - FIRST_BASE) / BASE_ALIGN;
    for _ in 0..64 {
        let draw = u64::from_le_bytes(sys::random()?);
        let hint = FIRST_BASE + draw % places * BASE_ALIGN;
        match Mapping::reserve(Some(hint as usize), len_bytes) {
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {}
            other => return other,
        }
    }
    Mapping::reserve(None, len_bytes)
}
