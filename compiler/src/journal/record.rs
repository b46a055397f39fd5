//! What the journal's records say.

use jitcast_runtime::SegmentOffset;
use jitcast_runtime::geometry::Area;
use jitcast_runtime::heap::{Effects, HeapImage};
use jitcast_runtime::ring::Record;
use serde::{Deserialize, Serialize};

use crate::catalog::Catalog;
use crate::history::{History, RetainedUnit};
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

/// The state of a segment beside its memory. `C` and `H` are the catalog and the history, borrowed to write and owned once
/// read.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Base<C = Catalog, H = History> {
    /// The latest ring record, whose word 0 is the generation.
    pub(crate) ring: Record,
    pub(crate) root_at: SegmentOffset,
    pub(crate) heap: HeapImage,
    pub(crate) catalog: C,
    pub(crate) history: H,
    /// The first generation that must not be used without a reservation.
    pub(crate) reserved: u64,
}

/// One publication: the bytes that it wrote, and what it changed in the compiler process's own memory. `C` and
/// `U` are its changes of the catalog and the units that it published, borrowed to write and owned once read.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Publication<C = Changes, U = Vec<RetainedUnit>> {
    /// Its ring record, whose word 0 is the generation.
    pub(crate) ring: Record,
    pub(crate) root_at: SegmentOffset,
    pub(crate) extents: [u32; Area::COUNT],
    pub(crate) effects: Effects,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) changes: C,
    pub(crate) units: U,
}
