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
#[cfg_attr(feature = "create", derive(serde::Serialize, serde::Deserialize))]
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

/// What a worker stores for a patch: the dynamic relocations of the psABI (x86-64 1.0, table 4.9), by their
/// numbers. All store 64 bits, but for copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum PatchKind {
    /// `R_X86_64_64`: S + A.
    #[default]
    Address = 1,
    /// `R_X86_64_COPY`: the A bytes at S. If S is the window's, the low half of A is the length, and its high half the
    /// number of the unit that brought what lies at the site: a worker that has had a unit of this number or a later one
    /// leaves the site alone.
    Copy = 5,
    /// `R_X86_64_DTPMOD64`: the module of the thread-local S, as `__tls_get_addr` wants it.
    TlsModule = 16,
    /// `R_X86_64_DTPOFF64`: the offset of the thread-local S in its module's block, plus A.
    TlsOffset = 17,
    /// `R_X86_64_TPOFF64`: the distance from the thread pointer to the thread-local S, plus A.
    ThreadOffset = 18,
    /// `R_X86_64_IRELATIVE`: what the function at S returns.
    Resolver = 37,
}

impl PatchKind {
    const ALL: [Self; 6] = [
        Self::Address, Self::Copy, Self::TlsModule, Self::TlsOffset, Self::ThreadOffset, Self::Resolver,
    ];

    /// The kind of this number.
    pub fn of(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u32 == number)
    }
}

/// What a worker stores at `site`, in the private area, as it lies in the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Patch {
    /// Where the eight bytes go: in the private area.
    pub site: SegmentOffset,
    /// 0: `target` is a window offset; 1: `target` is an import; anything else is corrupt.
    target_kind: u32,
    /// The offset or the import's number.
    target: u32,
    /// [`PatchKind`].
    kind: u32,
    /// A, the addend.
    pub addend: i64,
}

impl Patch {
    /// The patch that stores S + A at `site`.
    pub fn new(site: SegmentOffset, target: PatchTarget, addend: i64) -> Self {
        Self::of(PatchKind::Address, site, target, addend)
    }

    /// The patch of `kind`.
    pub fn of(kind: PatchKind, site: SegmentOffset, target: PatchTarget, addend: i64) -> Self {
        let (target_kind, target) = match target {
            PatchTarget::Window(offset) => (0, offset.get()),
            PatchTarget::Host(import) => (1, import.get()),
        };
        Self { site, target_kind, target, kind: kind as u32, addend }
    }

    /// The patch's symbol, or `None` if the bytes are no patch that this version writes.
    pub fn target(&self) -> Option<PatchTarget> {
        match self.target_kind {
            0 => Some(PatchTarget::Window(SegmentOffset::new(self.target))),
            1 => Some(PatchTarget::Host(ImportId(self.target))),
            _ => None,
        }
    }

    /// What is stored, or `None` if it is nothing that this version writes.
    pub fn kind(&self) -> Option<PatchKind> {
        PatchKind::of(self.kind)
    }
}

// SAFETY: offsets, the number of an import, an addend.
unsafe impl crate::memory::SharedRecord for Patch {}

const _: () = assert!(size_of::<Patch>() == 24 && align_of::<Patch>() == 8);
