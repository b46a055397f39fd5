//! The part of the segment's memory that the journal stores: what its object backs. What shared data hold is the workers'
//! matter; what they start with lies in control.

use jitcast_runtime::Region;
use jitcast_runtime::geometry::{Area, Geometry, SLOT_BYTES, STUB_BYTES};
use jitcast_runtime::memory::Memory;

use super::record::Piece;

/// First offset of an area that publications store to: what precedes it, header and selectors, is a new segment's
/// already.
pub(super) fn image_start(geometry: &Geometry, area: Area) -> u32 {
    geometry.allocated(area).start
}

/// What lies in `region`, which is the segment's shared part's.
pub(super) fn piece(memory: &Memory, region: Region) -> Piece {
    let bytes = memory.bytes(region.offset(), region.len_bytes as usize);
    Piece {
        at: region.offset(),
        bytes: bytes.expect("the allocator hands out offsets inside the segment"),
    }
}

/// The part of the shared memory that is written when `region` of `area` is taken; none for areas that the
/// segment's object does not back, but call cells, which have stubs.
pub(crate) fn written(geometry: &Geometry, area: Area, region: Region) -> Option<Region> {
    match area {
        Area::CallCells => Some(Region {
            start: geometry.stub_of(region.offset())?.get(),
            len_bytes: region.len_bytes / SLOT_BYTES * STUB_BYTES,
        }),
        _ => area.is_in_segment().then_some(region),
    }
}
