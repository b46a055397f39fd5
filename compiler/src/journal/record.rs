//! What the journal's records say.

use jitcast_runtime::SegmentOffset;
use jitcast_runtime::geometry::Area;
use jitcast_runtime::heap::{Effects, HeapImage};
use jitcast_runtime::ring::Record;
use serde::{Deserialize, Serialize};

use super::sources::{Sources, StoredUnit};
use crate::catalog::Catalog;
use crate::publish::Changes;
use crate::request::bytes;

/// What has to be known before memory can be stored: the segment's header, as it lies there, and how far the areas
/// are backed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Opening {
    #[serde(with = "bytes")]
    pub(crate) header: Vec<u8>,
    pub(crate) extents: [u32; Area::COUNT],
}

/// Bytes at a place of the segment's shared part.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Piece {
    pub(crate) at: SegmentOffset,
    #[serde(with = "bytes")]
    pub(crate) bytes: Vec<u8>,
}

/// The state of a segment beside its memory. `C` is the catalog, borrowed to write and owned once read.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Base<C = Catalog, S = Sources> {
    /// The latest ring record, whose word 0 is the generation.
    pub(crate) ring: Record,
    pub(crate) root_at: SegmentOffset,
    pub(crate) heap: HeapImage,
    pub(crate) catalog: C,
    pub(crate) sources: S,
    /// The first generation that must not be used without a reservation.
    pub(crate) reserved: u64,
}

/// One publication: the bytes that it wrote, and what it changed in the compiler process's own memory. `C` is
/// its changes of the catalog, borrowed to write and owned once read.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Publication<C = Changes, S = Vec<StoredUnit>> {
    /// Its ring record, whose word 0 is the generation.
    pub(crate) ring: Record,
    pub(crate) root_at: SegmentOffset,
    pub(crate) extents: [u32; Area::COUNT],
    pub(crate) effects: Effects,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) changes: C,
    pub(crate) sources: S,
}
