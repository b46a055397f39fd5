//! The three kinds of address, as types: only a [`SegmentOffset`] may be stored in shared memory, and
//! only a window's base turns one into a [`WorkerAddr`].

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A position in the window, in bytes from its base; the same in every process.
///
/// Invariant: none beyond being 32 bits wide. A window is shorter than 2 GiB, but an offset read from
/// shared memory may be anything; [`Region::contains`](crate::geometry::Region::contains) is the check.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
    FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[cfg_attr(feature = "create", derive(serde::Serialize, serde::Deserialize))]
#[repr(transparent)]
pub struct SegmentOffset(u32);

impl SegmentOffset {
    /// Offset 0: the first slot, which no published entity occupies, so it doubles as "none".
    pub const NONE: Self = Self(0);

    /// The offset `bytes` bytes from the base of the window.
    pub const fn new(bytes: u32) -> Self {
        Self(bytes)
    }

    /// The distance from the base of the window, in bytes.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Whether this is [`SegmentOffset::NONE`].
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// `self + len_bytes`, or `None` past 4 GiB.
    pub fn checked_add(self, len_bytes: u64) -> Option<Self> {
        u64::from(self.0).checked_add(len_bytes).and_then(|sum| u32::try_from(sum).ok()).map(Self)
    }

    /// The signed distance from `origin` to `self`: S - P where both lie in the window.
    pub fn delta_from(self, origin: Self) -> SegmentDelta {
        SegmentDelta(i64::from(self.0) - i64::from(origin.0))
    }
}

impl fmt::Display for SegmentOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "w+{:#x}", self.0)
    }
}

/// A signed distance between two positions of one window, in bytes; the same in every process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentDelta(i64);

impl SegmentDelta {
    /// The distance in bytes.
    pub const fn get(self) -> i64 {
        self.0
    }
}

/// An absolute address, valid in one process only.
///
/// It implements none of the traits that let a value lie in the segment, so it cannot be stored there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerAddr(u64);

impl WorkerAddr {
    /// The null address: what an undefined weak symbol resolves to.
    pub const NULL: Self = Self(0);

    /// The address `addr` of this process.
    pub const fn new(addr: u64) -> Self {
        Self(addr)
    }

    /// The address as a number, for this process.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Whether this is [`WorkerAddr::NULL`].
    pub const fn is_null(self) -> bool {
        self.0 == 0
    }

    /// S + A, wrapping as the psABI's 64-bit fields do.
    pub const fn wrapping_add_signed(self, addend: i64) -> Self {
        Self(self.0.wrapping_add_signed(addend))
    }
}

impl fmt::Debug for WorkerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_do_not_wrap() {
        let last = SegmentOffset::new(u32::MAX);
        assert_eq!(last.checked_add(0), Some(last));
        assert_eq!(last.checked_add(1), None);
        assert_eq!(last.checked_add(u64::MAX), None);
    }

    #[test]
    fn distances_are_signed() {
        let (low, high) = (SegmentOffset::new(16), SegmentOffset::new(u32::MAX));
        assert_eq!(low.delta_from(high).get(), 16 - i64::from(u32::MAX));
        assert_eq!(high.delta_from(low).get(), i64::from(u32::MAX) - 16);
    }
}
