//! The layout of the window: which offsets hold slots, private data, control, text, read-only and shared data.
//!
//! Invariant: the areas follow one another without gaps in the order of [`Area::ALL`], each a multiple of
//! 64 KiB, and their sum is the window. The segment's object backs the areas from control to read-only data, in the same
//! order, so a position in the object is the window offset less [`Geometry::shared`]`.start`. Shared data, which every worker
//! can write, have an object of their own.

use core::fmt;

use crate::SegmentOffset;
use crate::header::CONTROL_FIXED_BYTES;
use crate::selector::BLOCK_BYTES;

/// The unit of area sizes, bytes: the largest page size that x86-64 systems use for base pages, with room.
pub const GRANULE_BYTES: u32 = 64 << 10;

/// The longest window, bytes: every S + A - P inside it fits a signed 32-bit field.
pub const MAX_WINDOW_BYTES: u32 = (2 << 30) - GRANULE_BYTES;

/// The shortest window, bytes.
pub const MIN_WINDOW_BYTES: u32 = 8 << 20;

/// The length of the window unless asked otherwise, bytes (address space, not memory).
pub const DEFAULT_WINDOW_BYTES: u32 = 1 << 30;

/// The distance from one stub to the next, bytes: `endbr64; jmp *cell(%rip)`, padded.
pub const STUB_BYTES: u32 = 16;

/// The size of a slot, bytes.
pub const SLOT_BYTES: u32 = 8;

/// A half-open range of window offsets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "create", derive(serde::Serialize, serde::Deserialize))]
pub struct Region {
    /// First offset, bytes.
    pub start: u32,
    /// Length, bytes; `start + len_bytes` fits 32 bits.
    pub len_bytes: u32,
}

impl Region {
    /// The range of `len_bytes` from `start`, or `None` if its end exceeds 32 bits.
    pub fn new(start: u32, len_bytes: u32) -> Option<Self> {
        start.checked_add(len_bytes)?;
        Some(Self { start, len_bytes })
    }

    /// First offset past the range.
    pub const fn end(self) -> u32 {
        self.start + self.len_bytes
    }

    /// The first offset, as an offset.
    pub const fn offset(self) -> SegmentOffset {
        SegmentOffset::new(self.start)
    }

    /// Whether `len_bytes` bytes from `at` lie inside.
    pub fn contains(self, at: SegmentOffset, len_bytes: u64) -> bool {
        at.get() >= self.start
            && u64::from(at.get()).saturating_add(len_bytes) <= u64::from(self.end())
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "w+{:#x}..{:#x}", self.start, self.end())
    }
}

/// An area of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "create", derive(serde::Serialize, serde::Deserialize))]
pub enum Area {
    /// Slots that calls go through: the current version of each published function.
    CallCells,
    /// Slots that hold addresses: constant while anybody refers to them.
    AddressCells,
    /// Private data of units: filled from templates, then patched.
    Private,
    /// Header, ring, directory, patch tables, templates. The segment's object begins here.
    Control,
    /// One stub for each call cell, at the same index.
    Stubs,
    /// Machine code.
    Text,
    /// Read-only data.
    ReadOnly,
    /// Data that all workers write, in an object of their own.
    SharedData,
}

impl Area {
    /// Every area, in the order of the window.
    pub const ALL: [Self; 8] = [
        Self::CallCells,
        Self::AddressCells,
        Self::Private,
        Self::Control,
        Self::Stubs,
        Self::Text,
        Self::ReadOnly,
        Self::SharedData,
    ];

    /// How many areas there are.
    pub const COUNT: usize = Self::ALL.len();

    /// The area's index in [`Area::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether the area is memory of the worker's own.
    pub const fn is_private(self) -> bool {
        matches!(self, Self::CallCells | Self::AddressCells | Self::Private)
    }

    /// Whether the segment's object backs the area: what only the compiler process writes.
    pub const fn is_in_segment(self) -> bool {
        matches!(self, Self::Control | Self::Stubs | Self::Text | Self::ReadOnly)
    }

    /// The name that messages use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CallCells => "call cells",
            Self::AddressCells => "address cells",
            Self::Private => "private data",
            Self::Control => "control",
            Self::Stubs => "stubs",
            Self::Text => "text",
            Self::ReadOnly => "read-only data",
            Self::SharedData => "shared data",
        }
    }

    /// The area's share of the window, in 32nds. Stubs are twice the call cells, being 16 bytes to 8.
    const fn share(self) -> u32 {
        match self {
            Self::CallCells | Self::AddressCells | Self::SharedData => 1,
            Self::Stubs => 2,
            Self::Control => 4,
            Self::Private => 6,
            Self::ReadOnly => 7,
            Self::Text => 10,
        }
    }
}

/// The sizes of the areas, from which all positions follow.
///
/// ```
/// use jitcast_runtime::{Area, Geometry};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let geometry = Geometry::new(64 << 20)?;
/// let text = geometry.region(Area::Text);
/// assert!(text.end() <= geometry.window().end());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    lens: [u32; Area::COUNT],
}

/// Why a geometry cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// The length asked for is outside the limits.
    #[error(
        "a window of {asked_bytes} bytes is outside {MIN_WINDOW_BYTES}..={MAX_WINDOW_BYTES}\n  \
         help: choose a length between 8 MiB and 2 GiB - 64 KiB (the default is 1 GiB)"
    )]
    WindowLength {
        /// Bytes asked for.
        asked_bytes: u64,
    },
    /// The areas do not fit together.
    #[error("the segment's areas are inconsistent: {area} has {len_bytes} bytes")]
    Area {
        /// The first area that is wrong.
        area: &'static str,
        /// Its length, bytes.
        len_bytes: u32,
    },
}

impl Geometry {
    /// Divides a window of `window_bytes`, rounded down to 2 MiB.
    ///
    /// # Errors
    /// [`GeometryError::WindowLength`] outside [`MIN_WINDOW_BYTES`]`..=`[`MAX_WINDOW_BYTES`].
    pub fn new(window_bytes: u64) -> Result<Self, GeometryError> {
        let length_error = GeometryError::WindowLength { asked_bytes: window_bytes };
        let window = u32::try_from(window_bytes).map_err(|_| length_error)?;
        if !(MIN_WINDOW_BYTES..=MAX_WINDOW_BYTES).contains(&window) {
            return Err(length_error);
        }
        let unit = window / 32 / GRANULE_BYTES * GRANULE_BYTES;
        Ok(Self { lens: Area::ALL.map(|area| area.share() * unit) })
    }

    /// The geometry with these area lengths, as a header states them. Hostile input.
    ///
    /// # Errors
    /// [`GeometryError`] if they break the invariant of this module.
    pub fn from_lens(lens: [u32; Area::COUNT]) -> Result<Self, GeometryError> {
        let mut total = 0u64;
        for area in Area::ALL {
            let len_bytes = lens[area.index()];
            if len_bytes == 0 || !len_bytes.is_multiple_of(GRANULE_BYTES) {
                return Err(GeometryError::Area { area: area.name(), len_bytes });
            }
            total += u64::from(len_bytes);
        }
        if total > u64::from(MAX_WINDOW_BYTES) {
            return Err(GeometryError::WindowLength { asked_bytes: total });
        }
        let stubs = lens[Area::Stubs.index()];
        if u64::from(lens[Area::CallCells.index()]) * u64::from(STUB_BYTES / SLOT_BYTES) != u64::from(stubs) {
            return Err(GeometryError::Area { area: Area::Stubs.name(), len_bytes: stubs });
        }
        Ok(Self { lens })
    }

    /// The areas' lengths in the order of [`Area::ALL`], bytes.
    pub const fn lens(&self) -> [u32; Area::COUNT] {
        self.lens
    }

    /// Where `area` lies.
    pub fn region(&self, area: Area) -> Region {
        let start = self.lens[..area.index()].iter().sum();
        Region { start, len_bytes: self.lens[area.index()] }
    }

    /// The whole window.
    pub fn window(&self) -> Region {
        Region { start: 0, len_bytes: self.lens.iter().sum() }
    }

    /// What is memory of the worker's own.
    pub fn private(&self) -> Region {
        Region { start: 0, len_bytes: self.region(Area::Control).start }
    }

    /// What the segment's object backs: control, stubs, text, read-only data.
    pub fn shared(&self) -> Region {
        let start = self.region(Area::Control).start;
        Region { start, len_bytes: self.region(Area::SharedData).start - start }
    }

    /// Where the code of selectors lies: the first of the text.
    pub fn selectors(&self) -> Region {
        Region { len_bytes: BLOCK_BYTES, ..self.region(Area::Text) }
    }

    /// The part of `area` that is allocated from: all of it but what has its place from the beginning.
    pub fn allocated(&self, area: Area) -> Region {
        let region = self.region(area);
        let fixed = match area {
            Area::Control => CONTROL_FIXED_BYTES,
            Area::Text => BLOCK_BYTES,
            _ => 0,
        };
        Region { start: region.start + fixed, len_bytes: region.len_bytes - fixed }
    }

    /// The stub that jumps through the call cell at `cell`, or `None` if there is no call cell there.
    pub fn stub_of(&self, cell: SegmentOffset) -> Option<SegmentOffset> {
        let cells = self.region(Area::CallCells);
        if !cells.contains(cell, u64::from(SLOT_BYTES)) || !cell.get().is_multiple_of(SLOT_BYTES) {
            return None;
        }
        let index = (cell.get() - cells.start) / SLOT_BYTES;
        Some(SegmentOffset::new(self.region(Area::Stubs).start + index * STUB_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_fill_the_window_without_gaps() {
        for window in [MIN_WINDOW_BYTES, DEFAULT_WINDOW_BYTES, MAX_WINDOW_BYTES] {
            let geometry = Geometry::new(window.into()).unwrap();
            let mut end = 0;
            for area in Area::ALL {
                assert_eq!(geometry.region(area).start, end, "{area:?}");
                end = geometry.region(area).end();
            }
            assert!(end <= window);
            assert_eq!(geometry.window().end(), end);
            let in_segment = Area::ALL.into_iter().filter(|area| area.is_in_segment());
            let len_bytes: u32 = in_segment.map(|area| geometry.region(area).len_bytes).sum();
            assert_eq!(geometry.shared().len_bytes, len_bytes);
            assert_eq!(geometry.shared().end(), geometry.region(Area::SharedData).start);
            assert_eq!(Geometry::from_lens(geometry.lens()), Ok(geometry));
        }
    }

    #[test]
    fn lengths_outside_the_limits_are_refused() {
        for bytes in [0, u64::from(MIN_WINDOW_BYTES) - 1, u64::from(MAX_WINDOW_BYTES) + 1, u64::MAX] {
            assert_eq!(Geometry::new(bytes), Err(GeometryError::WindowLength { asked_bytes: bytes }));
        }
    }

    #[test]
    fn hostile_lengths_are_refused() {
        let good = Geometry::new(DEFAULT_WINDOW_BYTES.into()).unwrap().lens();
        for index in 0..Area::COUNT {
            for bad in [0, 1, u32::MAX, u32::MAX / GRANULE_BYTES * GRANULE_BYTES] {
                let mut lens = good;
                lens[index] = bad;
                assert!(Geometry::from_lens(lens).is_err(), "{lens:?}");
            }
        }
    }

    #[test]
    fn every_call_cell_has_a_stub() {
        let geometry = Geometry::new(MIN_WINDOW_BYTES.into()).unwrap();
        let cells = geometry.region(Area::CallCells);
        let last = SegmentOffset::new(cells.end() - SLOT_BYTES);
        let stub = geometry.stub_of(last).unwrap();
        assert!(geometry.region(Area::Stubs).contains(stub, STUB_BYTES.into()));
        assert_eq!(geometry.stub_of(SegmentOffset::new(cells.end())), None);
        assert_eq!(geometry.stub_of(SegmentOffset::new(4)), None);
    }
}
