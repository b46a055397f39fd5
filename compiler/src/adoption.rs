//! Going on in the very object that a dead compiler process left under a name.
//!
//! A sealed object can be written by nobody any more when its compiler process is gone. A named one can: so workers keep what they
//! map, and no memory is taken twice but for a moment. What the journal says is made again beside it, and compared.
//!
//! Invariants: an object is gone on in only if everything in use in it is what the journal says, so that it takes no more than
//! root and head to complete a publication at which the process died. Nothing retired is reused while a worker may map the object
//! that has not come back: its pins are not known ([`Segment::has_strangers`]).

use std::sync::atomic::Ordering;

use jitcast_runtime::header::Control;
use jitcast_runtime::heap::Backing;
use jitcast_runtime::memory::Memory;
use jitcast_runtime::segment::{
    self, AdoptError, BackEnd, DeadSegment, Leftover, Segment, SegmentError, SegmentOptions,
};
use jitcast_runtime::{Area, Region};

use crate::compiler::wake_all;
use crate::error::StartError;
use crate::fault::{CrashPoint, crash_at};
use crate::journal::written;
use crate::state::State;

/// How much is compared at once, bytes.
const CHUNK_BYTES: u32 = 1 << 20;

/// Why the object is not gone on in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unlike {
    #[error(transparent)]
    Object(#[from] AdoptError),
    #[error("generation {found} is in it, and {known} is the last one in the journal")]
    Newer { found: u64, known: u64 },
    #[error("{area} at {at} holds something else than the journal says")]
    Bytes { area: &'static str, at: Region },
    #[error("the system has no memory for it: {0}")]
    Memory(std::io::Error),
}

/// What a dead compiler process left under the name that a segment is to have.
pub(crate) fn left_under(back_end: &BackEnd) -> Result<Option<DeadSegment>, StartError> {
    let BackEnd::Named(name) = back_end else {
        return Ok(None);
    };
    match segment::examine(name).map_err(SegmentError::from)? {
        Leftover::None => Ok(None),
        Leftover::Dead(dead) => Ok(Some(dead)),
    }
}

/// The segment that `state` is the state of, and that was `made` beside what `dead` is: that very object, or, if it is another one
/// than the journal says, the one that was made, which has its name then.
pub(crate) fn adopt_or_replace(
    (made, state): (Segment, &mut State),
    dead: DeadSegment,
    options: &SegmentOptions,
) -> Result<Segment, StartError> {
    let path = dead.path().to_owned();
    let header = made.header();
    let numbers = (header.instance, header.hash_seed);
    let left = Segment::adopt(dead, &made, options, numbers).map_err(Unlike::from);
    let left = left.and_then(|left| {
        adopt(state, &made, &left)?;
        Ok(left)
    });
    match left {
        Ok(left) => {
            tracing::warn!("going on in {path}, which a compiler process left that is dead");
            Ok(left)
        }
        Err(why) => {
            tracing::warn!(
                "{path}, which a compiler process left that is dead, is not gone on in: {why}. Another object gets its name; workers that live go on there"
            );
            if let Some(dead) = left_under(&options.back_end)? {
                dead.unlink().map_err(SegmentError::from)?;
            }
            made.claim()?;
            Ok(made)
        }
    }
}

/// Compares `left` with `made`, completes what was published last in it, and goes by what has been reused in it.
fn adopt(state: &mut State, made: &Segment, left: &Segment) -> Result<(), Unlike> {
    let control = Control::new(left.memory()).expect("a segment has a header");
    let (known, ring) = (state.generation(), control.ring());
    // Whatever was announced had been written down.
    for found in [ring.head(), ring.announced()] {
        if found > known {
            return Err(Unlike::Newer { found, known });
        }
    }
    let floor = control.floor().load(Ordering::Acquire);
    if floor > known {
        return Err(Unlike::Newer {
            found: floor,
            known,
        });
    }
    let extents = state.latest.extents;
    for area in Area::ALL.into_iter().filter(|area| area.is_in_segment()) {
        let start = left.geometry().region(area).start;
        let len_bytes = extents[area.index()].saturating_sub(start);
        if len_bytes > 0 {
            // What had been given back, too: it is not known which parts that were.
            let backed = left.reserve(Region { start, len_bytes });
            backed.map_err(Unlike::Memory)?;
        }
    }
    compare(state, floor, made, left)?;
    crash_at(CrashPoint::AdoptionCompared);
    // The process that is gone knew that nobody can be inside at what it freed; what it put there was not published.
    state
        .retired_units
        .retain(|(generation, _)| *generation > floor);
    state.heap.reclaim(floor);
    for area in Area::ALL {
        control.set_extent(area, extents[area.index()]);
    }
    control
        .floor()
        .fetch_max(state.heap.floor(), Ordering::Release);
    if control.root() != state.latest.root_at {
        control.commit(state.latest.root_at);
    }
    if ring.head() < known {
        ring.publish(&state.latest.ring);
        wake_all(left);
    }
    crash_at(CrashPoint::AdoptionCompleted);
    Ok(())
}

/// Whether everything in use, and everything retired that has not been reused since, is in `left` as it is in `made`.
fn compare(state: &State, floor: u64, made: &Segment, left: &Segment) -> Result<(), Unlike> {
    let image = state.heap.image();
    let retired = image
        .retired
        .into_iter()
        .filter(|(generation, ..)| *generation > floor);
    let used = image
        .live
        .into_iter()
        .chain(retired.map(|(_, area, region)| (area, region)));
    for (area, region) in used {
        let Some(stored) = written(left.geometry(), area, region) else {
            continue;
        };
        let mut start = stored.start;
        while start < stored.end() {
            let len_bytes = CHUNK_BYTES.min(stored.end() - start);
            let at = Region { start, len_bytes };
            if bytes(made.memory(), at) != bytes(left.memory(), at) {
                return Err(Unlike::Bytes {
                    area: area.name(),
                    at,
                });
            }
            start += len_bytes;
        }
    }
    Ok(())
}

fn bytes(memory: &Memory, at: Region) -> Vec<u8> {
    let bytes = memory.bytes(at.offset(), at.len_bytes as usize);
    bytes.expect("the heap hands out offsets inside the segment")
}
