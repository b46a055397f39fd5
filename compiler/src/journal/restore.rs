//! Reading a journal back: what it says, done again in a fresh segment.
//!
//! Invariant: whatever lies on the disk, this ends in a state that the catalog and the directory agree about, or in
//! an error. Checksums find accidents; whoever can write to the folder on purpose is trusted like the compiler
//! process itself, but finds no panic either.

use jitcast_runtime::cpu::CpuFeatures;
use jitcast_runtime::geometry::Geometry;
use jitcast_runtime::header::{Header, HeaderError};
use jitcast_runtime::heap::{Heap, Inconsistent, RedoError, SegmentFull};
use jitcast_runtime::records::Root;
use jitcast_runtime::segment::Segment;
use jitcast_runtime::{Area, Corrupt, Region, SegmentOffset};

use super::image::image_start;
use super::log::{Found, Kind, Log, Unreadable};
use super::objects::Objects;
use super::record::{Base, Opening, Piece, Publication};
use super::storage::{Storage, TOP};
use super::{Journal, JournalError, JournalOptions, LOG, NEW_LOG};
use crate::catalog::Disagreement;
use crate::contents::Contents;
use crate::error::StartError;
use crate::removed::Removed;
use crate::state::{Commit, State};

/// No journal gets that far: at a publication each nanosecond, it takes two years.
const MAX_GENERATION: u64 = 1 << 56;

/// A journal with a history.
#[derive(Debug)]
pub(crate) struct Past {
    options: JournalOptions,
    log: Log,
    /// Where the next record is.
    at: u64,
    header: Header,
    geometry: Geometry,
    extents: [u32; Area::COUNT],
}

/// What is wrong with a record.
#[derive(Debug, thiserror::Error)]
enum Wrong {
    #[error("{0}")]
    Record(&'static str),
    #[error("a record cannot be read: {0}")]
    Form(#[from] postcard::Error),
    #[error(transparent)]
    Heap(#[from] Inconsistent),
    #[error("{} at {}", .0.what, .0.at)]
    Memory(Corrupt),
    #[error(transparent)]
    Catalog(#[from] Disagreement),
    /// Nothing, but the system has no memory for what it says.
    #[error(transparent)]
    Full(#[from] SegmentFull),
}

impl From<RedoError> for Wrong {
    fn from(error: RedoError) -> Self {
        match error {
            RedoError::Inconsistent(inconsistent) => inconsistent.into(),
            RedoError::Full(full) => full.into(),
        }
    }
}

impl From<Corrupt> for Wrong {
    fn from(corrupt: Corrupt) -> Self {
        Self::Memory(corrupt)
    }
}

/// What has been read so far.
struct Reading {
    state: State,
    reserved: u64,
}

impl Past {
    /// The history in `storage`, if there is any.
    pub(super) fn open(
        storage: &dyn Storage,
        options: &JournalOptions,
    ) -> Result<Option<Self>, JournalError> {
        // One that was not completed.
        if storage.open(NEW_LOG).is_ok_and(|file| file.is_some()) {
            let removed = storage.remove(NEW_LOG);
            removed.map_err(options.system("remove an incomplete log in"))?;
        }
        let file = storage.open(LOG);
        let Some(file) = file.map_err(options.system("open the log in"))? else {
            return Ok(None);
        };
        let path = || options.path();
        let log = Log::open(file).map_err(|why| match why {
            Unreadable::System(cause) => options.system("read the log in")(cause),
            Unreadable::Foreign => JournalError::Foreign { path: path() },
            Unreadable::Version(found) => JournalError::Version {
                path: path(),
                found,
            },
        })?;
        let damaged = || JournalError::Damaged {
            path: path(),
            at: Log::start(),
            generation: 0,
            what: "it does not begin with a header".to_owned(),
        };
        let first = log.read(Log::start());
        let first = first.map_err(options.system("read the log in"))?;
        let Found::Record(Kind::Opening, payload, at) = first else {
            return Err(damaged());
        };
        let opening: Opening = postcard::from_bytes(&payload).map_err(|_| damaged())?;
        let checked = Header::check(&opening.header, u64::MAX, CpuFeatures::host());
        let (header, geometry) = checked.map_err(|cause| match cause {
            HeaderError::Cpu { missing } => JournalError::Cpu {
                path: path(),
                missing,
            },
            cause => JournalError::Header {
                path: path(),
                cause,
            },
        })?;
        Ok(Some(Self {
            options: options.clone(),
            log,
            at,
            header,
            geometry,
            extents: opening.extents,
        }))
    }

    /// The header of the segment that it describes.
    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// The layout of that segment's window; refused if `asked` is another one.
    pub(crate) fn geometry(&self, asked: Option<Geometry>) -> Result<Geometry, JournalError> {
        match asked {
            Some(asked) if asked != self.geometry => Err(JournalError::Window {
                path: self.options.path(),
                asked_bytes: asked.window().len_bytes.into(),
                journal_bytes: self.geometry.window().len_bytes.into(),
            }),
            _ => Ok(self.geometry),
        }
    }

    /// Does it all again in `segment`, which is fresh and has the same header but for processor features and
    /// socket, and shows the result. The last `retain` publications of units can be undone from then on.
    pub(crate) fn replay(
        mut self,
        storage: Box<dyn Storage>,
        segment: &Segment,
        retain: usize,
    ) -> Result<(State, Journal), StartError> {
        let options = self.options.clone();
        let mut reading = self.base(segment, retain)?;
        let base_bytes = self.at;
        while let Some((kind, payload)) = self.next(reading.state.generation())? {
            let at = self.at;
            let generation = reading.state.generation();
            options.progress.note(at, self.log.len());
            reading
                .apply(segment, kind, &payload)
                .map_err(|wrong| self.damaged(at, generation, wrong))?;
        }
        options.progress.note(self.log.len(), self.log.len());
        let Reading {
            mut state,
            reserved,
        } = reading;
        state.heap.end_redo();
        let agree = state.check(segment);
        agree.map_err(|wrong| self.damaged(self.at, state.generation(), wrong))?;
        // What a process that was killed had written, or moved to its place, need not be durable.
        let synced = self.log.sync().and_then(|()| storage.sync_folder(TOP));
        synced.map_err(options.system("sync"))?;
        let objects = Objects::open(&*storage).map_err(options.system("read the objects of"))?;
        state.restore_shared_data(segment)?;
        state.show(segment);
        let same_processor = self.header.cpu_features == segment.header().cpu_features;
        let mut journal = Journal {
            options,
            storage,
            log: self.log,
            objects,
            reserved,
            first: reserved,
            compact_at: 0,
            failed: None,
            late: None,
            noted: None,
        };
        journal.compact_after(base_bytes);
        if !same_processor {
            // Only the log's first record says what its code may use.
            journal.compact(segment, &state)?;
        }
        Ok((state, journal))
    }

    /// Reads what the log begins with.
    fn base(&mut self, segment: &Segment, retain: usize) -> Result<Reading, StartError> {
        let mut heap = Heap::new(segment.geometry());
        let backed = heap.back_up_to(&self.extents, segment);
        backed.map_err(|wrong| self.damaged(Log::start(), 0, wrong.into()))?;
        loop {
            let at = self.at;
            let payload = match self.read()? {
                Found::Record(Kind::Image, payload, next) => {
                    self.at = next;
                    payload
                }
                Found::Record(Kind::Base, payload, next) => {
                    self.at = next;
                    let reading = Reading::begin(segment, heap, self.extents, &payload);
                    let mut reading = reading.map_err(|wrong| self.damaged(at, 0, wrong))?;
                    reading.state.history.set_retain(retain);
                    return Ok(reading);
                }
                // It was complete before it had its name.
                _ => {
                    let wrong = Wrong::Record("what it begins with is not whole");
                    return Err(self.damaged(at, 0, wrong));
                }
            };
            let piece = postcard::from_bytes(&payload).map_err(Wrong::from);
            let stored = piece.and_then(|piece| store(segment, &heap, &piece));
            stored.map_err(|wrong| self.damaged(at, 0, wrong))?;
        }
    }

    /// The next record. A last one that is not whole is cut off.
    fn next(&mut self, generation: u64) -> Result<Option<(Kind, Vec<u8>)>, StartError> {
        match self.read()? {
            Found::Record(kind, payload, next) => {
                self.at = next;
                Ok(Some((kind, payload)))
            }
            Found::End => Ok(None),
            Found::Damage => {
                let followed = self.log.has_record_after(self.at);
                if followed.map_err(self.options.system("read the log in"))? {
                    let what = Wrong::Record("a record is not what was written, but others follow");
                    return Err(self.damaged(self.at, generation, what));
                }
                let cut_bytes = self.log.len() - self.at;
                tracing::warn!(
                    "the last record of {}/log is incomplete, as after a loss of power: {cut_bytes} bytes after generation {generation} are cut off",
                    self.options.path()
                );
                let cut = self.log.cut(self.at);
                cut.map_err(self.options.system("cut the log in"))?;
                Ok(None)
            }
        }
    }

    fn read(&self) -> Result<Found, JournalError> {
        let found = self.log.read(self.at);
        found.map_err(self.options.system("read the log in"))
    }

    fn damaged(&self, at: u64, generation: u64, wrong: Wrong) -> StartError {
        match wrong {
            Wrong::Full(full) => full.into(),
            wrong => StartError::Journal(JournalError::Damaged {
                path: self.options.path(),
                at,
                generation,
                what: wrong.to_string(),
            }),
        }
    }
}

impl Reading {
    /// The state that a log begins with.
    fn begin(
        segment: &Segment,
        mut heap: Heap,
        extents: [u32; Area::COUNT],
        payload: &[u8],
    ) -> Result<Self, Wrong> {
        let base: Base = postcard::from_bytes(payload)?;
        heap.restore(&base.heap)?;
        let latest = commit_of(segment, &heap, base.ring, base.root_at, extents)?;
        check_reservation(base.reserved, latest.root.generation)?;
        Ok(Self {
            state: State {
                heap,
                catalog: base.catalog,
                history: base.history,
                contents: Contents::default(),
                latest,
                retired_units: Vec::new(),
                removed: Removed::default(),
                older: Vec::new(),
            },
            reserved: base.reserved,
        })
    }

    /// Does a record again.
    fn apply(&mut self, segment: &Segment, kind: Kind, payload: &[u8]) -> Result<(), Wrong> {
        match kind {
            Kind::Reservation => {
                let reserved = postcard::from_bytes(payload)?;
                check_reservation(reserved, self.reserved)?;
                self.reserved = reserved;
            }
            Kind::Publication => {
                let publication: Publication = postcard::from_bytes(payload)?;
                let generation = publication.ring[0];
                if generation <= self.state.generation() || generation >= self.reserved {
                    return Err(Wrong::Record("a generation is out of order"));
                }
                self.state.redo(segment, publication)?;
            }
            Kind::Opening | Kind::Image | Kind::Base => {
                return Err(Wrong::Record("a record of the base is out of place"));
            }
        }
        Ok(())
    }
}

impl State {
    /// Does a publication again.
    fn redo(&mut self, segment: &Segment, publication: Publication) -> Result<(), Wrong> {
        let Publication {
            ring,
            root_at,
            extents,
            effects,
            ..
        } = &publication;
        self.heap.back_up_to(extents, segment)?;
        self.heap.redo(ring[0], effects)?;
        for piece in &publication.pieces {
            store(segment, &self.heap, piece)?;
        }
        self.latest = commit_of(segment, &self.heap, *ring, *root_at, *extents)?;
        self.take_over(publication.changes, &publication.units);
        Ok(())
    }

    /// Whether what was read agrees with itself.
    fn check(&self, segment: &Segment) -> Result<(), Wrong> {
        let root_at = self.latest.root_at;
        self.catalog.check(root_at, segment, &self.heap)?;
        let units = self.catalog.units.iter();
        let units = units.map(|(name, unit)| (name, unit.generation));
        if !self.history.fits(self.generation(), units) {
            return Err(Wrong::Record(
                "the history is not that of what is published",
            ));
        }
        Ok(())
    }
}

/// Whether generations below `reserved` are a reservation of more than those below `before`.
fn check_reservation(reserved: u64, before: u64) -> Result<(), Wrong> {
    if reserved <= before || reserved > MAX_GENERATION {
        return Err(Wrong::Record("a reservation of generations is impossible"));
    }
    Ok(())
}

/// Stores a piece of memory, if it lies in one shared area, where that is backed.
fn store(segment: &Segment, heap: &Heap, piece: &Piece) -> Result<(), Wrong> {
    let len_bytes = piece.bytes.len().next_multiple_of(8) as u64;
    let is_inside = |area: &Area| {
        let start = image_start(segment.geometry(), *area);
        let len_bytes_of_area = heap.extent(*area).saturating_sub(start);
        let stored = Region {
            start,
            len_bytes: len_bytes_of_area,
        };
        area.is_in_segment() && stored.contains(piece.at, len_bytes)
    };
    if !Area::ALL.iter().any(is_inside) || !piece.at.get().is_multiple_of(8) {
        return Err(Wrong::Record("a piece of memory lies outside the segment"));
    }
    segment.memory().write_bytes(piece.at, &piece.bytes);
    Ok(())
}

/// The commit that a record speaks of.
fn commit_of(
    segment: &Segment,
    heap: &Heap,
    ring: jitcast_runtime::ring::Record,
    root_at: SegmentOffset,
    extents: [u32; Area::COUNT],
) -> Result<Commit, Wrong> {
    let root: Root = segment.memory().read(root_at)?;
    let region = Region::new(root_at.get(), size_of::<Root>() as u32);
    let in_use = region.is_some_and(|region| heap.is_used(Area::Control, region));
    if !in_use || root.generation != ring[0] {
        return Err(Wrong::Record("its root is not where it says"));
    }
    Ok(Commit {
        root,
        root_at,
        extents,
        ring,
    })
}
