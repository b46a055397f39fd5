//! The journal: what makes publications outlive the compiler process and the machine's running.
//!
//! A publication is written down before it is visible, and made durable before it is acknowledged. What is
//! written are the bytes that it stores in the segment and what it changes in the allocator and the catalog, so a
//! restart needs no linker: it stores the same bytes at the same offsets.
//!
//! ```text
//! DIR/log          opening, image, base; then reservations and publications
//! DIR/objects/…    what units were made from, each content once, under its SHA-256
//! DIR/lock         held by the compiler process that has the journal
//! DIR/shared       which object the shared data are in, while the machine runs
//! ```
//!
//! Invariants: the log ends with at most one record that is not durable. Every generation that was ever used is
//! below a reservation that was durable before. There is one file that says everything at any time: compaction
//! writes a new log beside it and moves that over it.

mod compaction;
mod error;
mod image;
mod log;
mod objects;
mod record;
mod restore;
mod shared;
mod storage;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jitcast_runtime::geometry::Geometry;
use jitcast_runtime::heap::Txn;
use jitcast_runtime::segment::{ObjectIdentity, Segment};
use serde::Serialize;

use crate::fault::{CrashPoint, Fault, crash_at, seeded};
use crate::history::RetainedUnit;
use crate::publish::{Changes, UnitSource};
use crate::state::{Commit, State};
use crate::status::JournalStatus;
use compaction::{base, write_log};
use image::piece;
pub(crate) use image::written;
use log::{AppendError, Kind, Log};
use objects::Objects;
use record::Publication;
use storage::{Folder, TOP};

pub use error::JournalError;
pub(crate) use restore::Past;
pub(crate) use shared::noted;
pub(crate) use storage::Storage;

/// How many generations are reserved at once.
const CHUNK: u64 = 1024;

const LOG: &str = "log";
const NEW_LOG: &str = "log.new";

/// Where the journal is, and how it is kept.
///
/// ```
/// use jitcast_compiler::{Compiler, CompilerOptions, JournalOptions};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// let options = CompilerOptions {
///     journal: Some(JournalOptions { durable: true, ..JournalOptions::new(folder.path()) }),
///     ..CompilerOptions::default()
/// };
/// drop(Compiler::create(&options)?);
/// let next = Compiler::create(&options)?; // has what was published
/// assert_eq!(next.status().units.len(), 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalOptions {
    /// Its folder, which is made if it is not there.
    pub folder: PathBuf,
    /// Whether a publication is durable before it is visible, not only before it is acknowledged: then not even
    /// a loss of power takes back what workers have run.
    pub durable: bool,
    /// The log is written anew once it has grown by more than this, and by more than twice what it began with,
    /// bytes.
    pub compact_above_bytes: u64,
    /// How far a journal that is read has come, for who waits for it.
    pub progress: Arc<ReplayProgress>,
}

/// How far a journal that is read has come.
#[derive(Debug, Default)]
pub struct ReplayProgress {
    done: AtomicU64,
    total: AtomicU64,
}

/// Two journals are as alike, however far they have come.
impl PartialEq for ReplayProgress {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for ReplayProgress {}

impl ReplayProgress {
    /// What of the log has been done again, and how long it is, bytes.
    pub fn so_far(&self) -> (u64, u64) {
        let load = |bytes: &AtomicU64| bytes.load(Ordering::Relaxed);
        (load(&self.done), load(&self.total))
    }

    fn note(&self, done: u64, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.done.store(done, Ordering::Relaxed);
    }
}

impl JournalOptions {
    /// A journal in `folder`, with the defaults.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            durable: false,
            compact_above_bytes: 8 << 20,
            progress: Arc::default(),
        }
    }

    fn path(&self) -> String {
        self.folder.display().to_string()
    }

    fn system(&self, step: &'static str) -> impl FnOnce(std::io::Error) -> JournalError {
        let path = self.path();
        move |cause| JournalError::System { step, path, cause }
    }
}

/// The journal of a compiler process.
#[derive(Debug)]
pub(crate) struct Journal {
    options: JournalOptions,
    storage: Box<dyn Storage>,
    log: Log,
    objects: Objects,
    /// The first generation that must not be used without a reservation.
    reserved: u64,
    /// The first generation that this process may use: an earlier one may have used any before it.
    first: u64,
    /// The length of log and new objects from which on the log is written anew, bytes.
    compact_at: u64,
    /// Why nothing more is written.
    failed: Option<String>,
    /// With a fault seeded: what was acknowledged before it was written.
    late: Option<Vec<u8>>,
    /// The object of the shared data, as far as it was noted.
    noted: Option<ObjectIdentity>,
}

/// Opens the folder of `options`: where the journal is kept, and what it says, if it has a history.
pub(crate) fn open(
    options: &JournalOptions,
) -> Result<(Box<dyn Storage>, Option<Past>), JournalError> {
    let storage: Box<dyn Storage> = Box::new(Folder::open(&options.folder)?);
    let past = Past::open(&*storage, options)?;
    Ok((storage, past))
}

impl Journal {
    /// As it is told.
    pub(crate) fn status(&self) -> JournalStatus {
        JournalStatus {
            folder: self.options.folder.display().to_string(),
            log_bytes: self.log.len(),
            durable: self.options.durable,
            failed: self.failed.clone(),
        }
    }

    /// Begins a journal of what `state` holds.
    pub(crate) fn begin(
        storage: Box<dyn Storage>,
        options: &JournalOptions,
        segment: &Segment,
        state: &State,
    ) -> Result<Self, JournalError> {
        let objects = Objects::open(&*storage).map_err(options.system("read the objects of"))?;
        let first = state.generation() + 1;
        let base = base(state, first);
        let log = write_log(
            &*storage,
            (segment, &state.heap),
            state.latest.extents,
            &base,
        )
        .map_err(options.system("begin"))?;
        let installed = storage.sync_folder(TOP);
        installed.map_err(options.system("begin"))?;
        let mut journal = Self {
            options: options.clone(),
            storage,
            log,
            objects,
            reserved: first,
            first,
            compact_at: 0,
            failed: None,
            late: None,
            noted: None,
        };
        journal.compact_after(journal.log.len());
        Ok(journal)
    }

    /// Notes which object the shared data are in, for the next compiler process. Without that, they start afresh there.
    pub(crate) fn note_shared_data(&mut self, object: Option<ObjectIdentity>) {
        let Some(object) = object.filter(|object| self.noted != Some(*object)) else {
            return;
        };
        match shared::note(&self.options.folder, object) {
            Ok(()) => self.noted = Some(object),
            Err(error) => tracing::debug!(%error, "where shared data are is not noted"),
        }
    }

    /// The generation of the publication after `latest`; reserved, durably. Refused if nothing more may be written.
    pub(crate) fn next_generation(&mut self, latest: u64) -> Result<u64, JournalError> {
        if let Some(why) = &self.failed {
            let (path, why) = (self.options.path(), why.clone());
            return Err(JournalError::Failed { path, why });
        }
        let next = (latest + 1).max(self.first);
        if next < self.reserved {
            return Ok(next);
        }
        let reserved = next + CHUNK;
        self.append(Kind::Reservation, &reserved)?;
        if let Err(cause) = self.log.sync() {
            return Err(self.fail_unwritten(cause));
        }
        self.reserved = reserved;
        Ok(next)
    }

    /// Writes a publication down that is about to be committed, of `units`, each beside what it was made of.
    pub(crate) fn write_ahead(
        &mut self,
        geometry: &Geometry,
        txn: &Txn<'_>,
        commit: &Commit,
        changes: &Changes,
        (units, sources): (&[RetainedUnit], &[UnitSource]),
    ) -> Result<(), JournalError> {
        crash_at(CrashPoint::BeforeLog);
        self.keep(units, sources)?;
        crash_at(CrashPoint::AfterObjects);
        let effects = txn.effects();
        let taken = effects.taken.iter();
        let pieces = taken.filter_map(|(area, region)| written(geometry, *area, *region));
        let pieces = pieces.map(|region| piece(txn.memory(), region)).collect();
        let publication = Publication {
            ring: commit.ring,
            root_at: commit.root_at,
            extents: commit.extents,
            pieces,
            effects,
            changes,
            units,
        };
        let before = self.log.len();
        if let Err(error) = self.append(Kind::Publication, &publication) {
            self.take_back();
            return Err(error);
        }
        if self.options.durable
            && let Err(cause) = self.log.sync()
        {
            // If this fails too, it may come back at a restart, though nobody has seen it; its number does not.
            let _ = self.log.cut(before).and_then(|()| self.log.sync());
            return Err(self.fail_unwritten(cause));
        }
        crash_at(CrashPoint::AfterLog);
        Ok(())
    }

    /// Makes the publication `generation`, which is visible, durable.
    pub(crate) fn settle(&mut self, generation: u64) -> Result<(), JournalError> {
        crash_at(CrashPoint::BeforeSync);
        // The durable ones are synced already.
        if !self.options.durable
            && let Err(cause) = self.log.sync()
        {
            self.failed = Some(format!("generation {generation} is not durable: {cause}"));
            let path = self.options.path();
            return Err(JournalError::NotDurable {
                path,
                generation,
                cause,
            });
        }
        crash_at(CrashPoint::AfterSync);
        Ok(())
    }

    /// What a unit was made of that is published or can be had again.
    pub(crate) fn source(&mut self, unit: &RetainedUnit) -> Result<UnitSource, JournalError> {
        unit.source(|hash| {
            let bytes = self.objects.read(&*self.storage, hash);
            let bytes = bytes.map_err(self.options.system("read an object of"))?;
            bytes.ok_or_else(|| JournalError::Object {
                path: self.options.path(),
                object: objects::path(hash),
                unit: unit.name.clone(),
            })
        })
    }

    /// Keeps what `units` were made of.
    fn keep(&mut self, units: &[RetainedUnit], sources: &[UnitSource]) -> Result<(), JournalError> {
        let files = sources.iter().flat_map(|source| &source.files);
        let bytes = files.map(|file| file.bytes.as_slice());
        let contents = units.iter().flat_map(RetainedUnit::contents).zip(bytes);
        let kept = self.objects.keep(&*self.storage, contents);
        kept.map_err(|cause| {
            self.take_back();
            let path = self.options.path();
            JournalError::NotWritten { path, cause }
        })
    }

    /// Removes what a refused publication has brought, so that the next one finds room.
    fn take_back(&mut self) {
        if self.failed.is_some() {
            // Whether a restart finds its record is not known.
            return;
        }
        if let Err(error) = self.objects.take_back(&*self.storage) {
            tracing::warn!(%error, "objects of a refused publication stay in the journal");
        }
    }

    fn append(&mut self, kind: Kind, value: &impl Serialize) -> Result<(), JournalError> {
        let path = self.options.path();
        let mut record = match Log::encode(value) {
            Ok(record) => record,
            Err(cause) => return Err(JournalError::NotWritten { path, cause }),
        };
        if kind == Kind::Publication && seeded(Fault::JournalAfterAck) {
            match self.late.replace(record) {
                None => return Ok(()),
                Some(late) => record = late,
            }
        }
        self.log.add(kind, record).map_err(|error| match error {
            AppendError::Refused(cause) => JournalError::NotWritten { path, cause },
            AppendError::Torn(cause) => self.fail_unwritten(cause),
        })
    }

    /// Nothing more may be written after what `cause` says.
    fn fail_unwritten(&mut self, cause: std::io::Error) -> JournalError {
        self.failed = Some(format!("a publication could not be written: {cause}"));
        let path = self.options.path();
        JournalError::NotWritten { path, cause }
    }
}
