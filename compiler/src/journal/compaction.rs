//! Writing the log anew, with nothing but what there is now.
//!
//! The new log is complete and durable before it takes the old one's name, and nothing that the old one needs is
//! removed before that is durable too: so at any instant one of them says everything.

use std::collections::BTreeSet;

use jitcast_runtime::Region;
use jitcast_runtime::geometry::{Area, GRANULE_BYTES};
use jitcast_runtime::heap::Heap;
use jitcast_runtime::segment::Segment;
use serde::Serialize;
use zerocopy::IntoBytes;

use super::image::{image_start, piece};
use super::log::{Kind, Log};
use super::record::{Base, Opening};
use super::storage::{Storage, TOP};
use super::{Journal, JournalError, LOG, NEW_LOG};
use crate::catalog::Catalog;
use crate::fault::{CrashPoint, crash_at};
use crate::history::History;
use crate::state::State;

impl Journal {
    /// Whether the log has grown enough to be written anew.
    pub(crate) fn is_compaction_due(&self) -> bool {
        self.failed.is_none() && self.log.len() + self.objects.added_bytes() > self.compact_at
    }

    /// Writes the log anew, with nothing but what `state` holds, and removes what is needed no more. Whatever
    /// goes wrong before the new log is complete, the old one is there.
    pub(crate) fn compact(&mut self, segment: &Segment, state: &State) -> Result<(), JournalError> {
        let base = base(state, self.reserved);
        let log = match write_log(
            &*self.storage,
            (segment, &state.heap),
            state.latest.extents,
            &base,
        ) {
            Ok(log) => log,
            Err(cause) => {
                // Another attempt is worth it once there is more to gain; what this one left takes up room.
                let _ = self.storage.remove(NEW_LOG);
                self.compact_at = self.log.len() + self.objects.added_bytes();
                self.compact_at += self.options.compact_above_bytes;
                return Err(self.options.system("write a new log in")(cause));
            }
        };
        if let Err(cause) = self.storage.sync_folder(TOP) {
            // Which of the logs a restart finds is not known any more, so neither may be added to.
            self.failed = Some(format!("its new log is not durable: {cause}"));
            return Err(self.options.system("install a new log in")(cause));
        }
        crash_at(CrashPoint::CompactionDurable);
        self.log = log;
        self.objects.forget_added();
        let wanted = state.contents_wanted().collect();
        let swept = self.objects.sweep(&*self.storage, &wanted);
        self.compact_after(self.log.len());
        crash_at(CrashPoint::CompactionSwept);
        swept.map_err(self.options.system("remove objects of"))
    }

    /// Sets how long the log may become that begins with a base of `base_bytes`.
    pub(super) fn compact_after(&mut self, base_bytes: u64) {
        let growth = self.options.compact_above_bytes.max(2 * base_bytes);
        self.compact_at = base_bytes + growth;
    }
}

/// The base of a log that begins with `state`.
pub(super) fn base(state: &State, reserved: u64) -> Base<&Catalog, &History> {
    Base {
        ring: state.latest.ring,
        root_at: state.latest.root_at,
        heap: state.heap.image(),
        catalog: &state.catalog,
        history: &state.history,
        reserved,
    }
}

/// Writes a new log beside the old one, durably, and puts it in its place; that becomes durable with the folder.
pub(super) fn write_log(
    storage: &dyn Storage,
    (segment, heap): (&Segment, &Heap),
    extents: [u32; Area::COUNT],
    base: &impl Serialize,
) -> std::io::Result<Log> {
    let mut log = Log::begin(storage.create(NEW_LOG)?)?;
    let opening = Opening {
        header: segment.header().as_bytes().to_vec(),
        extents,
    };
    log.append(Kind::Opening, &opening)?;
    for area in Area::ALL.into_iter().filter(|area| area.is_in_segment()) {
        let start = image_start(segment.geometry(), area);
        let end = extents[area.index()];
        let holes: BTreeSet<u32> = heap.holes(area).collect();
        let mut next = start;
        while next < end {
            let at = next;
            next = (at / GRANULE_BYTES * GRANULE_BYTES + GRANULE_BYTES).min(end);
            // To read memory that is not there would make it be there.
            if holes.contains(&(at / GRANULE_BYTES * GRANULE_BYTES)) {
                continue;
            }
            let region = Region {
                start: at,
                len_bytes: next - at,
            };
            // Zeros need not be stored: a new segment's memory is.
            let mut piece = piece(segment.memory(), region);
            let last = piece.bytes.iter().rposition(|byte| *byte != 0);
            if let Some(last) = last {
                piece.bytes.truncate(last + 1);
                log.append(Kind::Image, &piece)?;
            }
        }
    }
    log.append(Kind::Base, base)?;
    crash_at(CrashPoint::CompactionWritten);
    log.sync()?;
    crash_at(CrashPoint::CompactionSynced);
    storage.rename(NEW_LOG, LOG)?;
    crash_at(CrashPoint::CompactionRenamed);
    Ok(log)
}
