//! A patch: one store that every worker makes for itself, because its value is an address.
//!
//! Invariant: a patch's site lies in the private area, never in shared memory.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::SegmentOffset;

/// What the symbol of a patch is: how a worker finds S.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchTarget {
    /// S is the window's base plus this offset.
    Window(SegmentOffset),
    /// S is the host symbol of this import.
    Host(ImportId),
}

/// The number of a host symbol in the directory's table of imports.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
    FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct ImportId(u32);

impl ImportId {
    /// Import number `index`.
    pub const fn new(index: u32) -> Self {
        Self(index)
    }

    /// The import's number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// One per-worker store of S + A, 64 bits, at `site` (`R_X86_64_64`, psABI x86-64 1.0 section 4.4.1), as it
/// lies in the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Patch {
    /// Where the eight bytes go: in the private area.
    pub site: SegmentOffset,
    /// 0: `target` is a window offset; 1: `target` is an import; anything else is corrupt.
    kind: u32,
    /// The offset or the import's number.
    target: u32,
    /// Zero.
    reserved: u32,
    /// A, the addend.
    pub addend: i64,
}

impl Patch {
    /// The patch that stores S + A at `site`.
    pub fn new(site: SegmentOffset, target: PatchTarget, addend: i64) -> Self {
        let (kind, target) = match target {
            PatchTarget::Window(offset) => (0, offset.get()),
            PatchTarget::Host(import) => (1, import.get()),
        };
        Self { site, kind, target, reserved: 0, addend }
    }

    /// The patch's symbol, or `None` if the bytes are no patch that this version writes.
    pub fn target(&self) -> Option<PatchTarget> {
        match self.kind {
            0 => Some(PatchTarget::Window(SegmentOffset::new(self.target))),
            1 => Some(PatchTarget::Host(ImportId(self.target))),
            _ => None,
        }
    }
}

// SAFETY: offsets, the number of an import, an addend.
unsafe impl crate::memory::SharedRecord for Patch {}

const _: () = assert!(size_of::<Patch>() == 24 && align_of::<Patch>() == 8);
