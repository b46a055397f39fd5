//! Renewal: going on in another object, with the same image at the same offsets.
//!
//! It makes room where threads that stay inside hold memory back, and gives memory back to the system: of a sealed object
//! nobody can do that otherwise, its writer neither. Nobody is waited for. A worker goes on to the new object when its
//! threads' generations allow it; until then it has the old one, in which nothing changes any more, for itself.
//!
//! Invariants: a renewal is a publication of its own, without changes, so a worker that has applied it knows all that the old
//! object will ever hold. It was, or it never was: before the old object says so, workers have the old one, and so has the
//! journal, if there is one, or it has both.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jitcast_runtime::directory::record_flags;
use jitcast_runtime::geometry::Area;
use jitcast_runtime::header::Control;
use jitcast_runtime::heap::SegmentFull;
use jitcast_runtime::ring::{RECORD_WORDS, Record};
use jitcast_runtime::segment::Segment;
use parking_lot::{Condvar, Mutex};
use rustix::net::SendFlags;

use crate::changeset::Changeset;
use crate::compiler::{Compiler, wake_all, write_and_commit};
use crate::error::PublishError;
use crate::fault::{CrashPoint, crash_at};
use crate::publish::{Batch, Publication, Retaining};
use crate::state::{Commit, Older, State};

impl Compiler {
    /// Goes on in another object, which has memory only for what is published. Workers follow by themselves; what threads
    /// that stay inside hold of the old object is theirs until they leave.
    ///
    /// # Errors
    /// [`PublishError`]; everything is as before then.
    pub fn renew(&self) -> Result<Publication, PublishError> {
        let mut state = self.state.lock();
        self.check_held(&mut state)?;
        let generation = self.renew_locked(&mut state)?;
        self.settle(generation)?;
        Ok(Publication {
            generation,
            published_ns: state.latest.root.published_ns,
            ..state.catalog.describe(&[])
        })
    }

    /// Makes room for what `full` says lacks, if threads that stay inside are the reason and a renewal is allowed.
    pub(crate) fn renew_for(
        &self,
        state: &mut State,
        full: &SegmentFull,
    ) -> Result<bool, PublishError> {
        // Shared data stay as they are, retired ones too.
        let is_shared = full.area == Area::SharedData.name();
        let reached = full.free_bytes + full.retired_bytes >= full.asked_bytes;
        if full.cause.is_some() || is_shared || full.retired_bytes == 0 || !reached {
            return Ok(false);
        }
        let held = self.older_bytes(state) + state.heap.backed_bytes();
        if self.max_held_bytes.is_some_and(|limit| held > limit) {
            return Ok(false);
        }
        self.renew_locked(state)?;
        Ok(true)
    }

    pub(crate) fn renew_locked(&self, state: &mut State) -> Result<u64, PublishError> {
        let _span = tracing::info_span!("renewal").entered();
        let old = self.segment();
        let mut journal = self.journal.lock();
        let segment = old.renewed()?;
        crash_at(CrashPoint::RenewalCreated);
        let (mut heap, live) = state.heap.renewed(&segment)?;
        for (_, region) in live {
            let bytes = old
                .memory()
                .bytes(region.offset(), region.len_bytes as usize);
            let bytes = bytes.expect("what is in use lies in the segment");
            segment.memory().write_bytes(region.offset(), &bytes);
        }
        crash_at(CrashPoint::RenewalCopied);
        let control = Control::new(segment.memory()).expect("our own segment has a header");
        // What was retired until now may be reused.
        control.floor().store(state.generation(), Ordering::Release);
        let (latest, nothing) = (state.latest, Changeset::default());
        let mut is_named = false;
        let committed = write_and_commit(
            &mut journal,
            (&segment, &mut heap),
            (latest, &state.catalog),
            &Retaining::nothing(),
            |site, txn, edit| {
                let changes = Batch::new(site, &nothing, &[])?.write(txn, edit)?;
                segment.install()?;
                is_named = true;
                crash_at(CrashPoint::RenewalNamed);
                Ok(changes)
            },
        );
        let (committed, changes) = committed.inspect_err(|_| {
            if is_named {
                // A name that is lost all the same is needed by those who attach by it only.
                let _ = segment.install();
            }
        })?;
        crash_at(CrashPoint::RenewalCommitted);
        let older = Older {
            object: old.header().object,
            bytes: state.heap.backed_bytes(),
        };
        (state.heap, state.latest) = (heap, committed);
        state.take_over(changes, &[]);
        state.retired_units.clear();
        state.older.push(older);
        let object = segment.header().object;
        self.go_on_in(segment);
        self.metrics.renewed();
        crash_at(CrashPoint::RenewalShown);
        // Whoever sees the announcement finds the offer there already, unless a server is slow.
        self.tell_servers(object);
        crash_at(CrashPoint::RenewalOffered);
        announce(&old, latest.root.generation, &latest, &committed);
        crash_at(CrashPoint::RenewalAnnounced);
        Ok(committed.root.generation)
    }

    /// What objects from before take that some worker maps still, bytes.
    pub(crate) fn older_bytes(&self, state: &mut State) -> u64 {
        let workers = self.workers.lock();
        state.older.retain(|older| workers.is_at(older.object));
        state.older.iter().map(|older| older.bytes).sum()
    }

    /// Has a server told whenever the segment is renewed.
    pub(crate) fn tell_of_renewals(&self, server: Arc<Offering>) {
        self.servers.lock().push(server);
    }

    /// Has servers offer `object`, and gives them a little time for it.
    fn tell_servers(&self, object: u64) {
        let mut servers = self.servers.lock();
        servers.retain(|server| server.wake());
        let deadline = Instant::now() + PATIENCE;
        for server in &*servers {
            let mut offered = server.offered.lock();
            while *offered != object {
                if server.told.wait_until(&mut offered, deadline).timed_out() {
                    break;
                }
            }
        }
    }
}

/// How long a renewal waits for its own process's servers, which take some ten microseconds, unless the machine is overloaded. Workers
/// that have not been offered it by then are later.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a server and the compiler tell each other about renewals.
#[derive(Debug)]
pub(crate) struct Offering {
    /// Wakes the server by a byte.
    wake: UnixStream,
    offered: Mutex<u64>,
    told: Condvar,
}

impl Offering {
    pub(crate) fn new(wake: UnixStream) -> Self {
        Self {
            wake,
            offered: Mutex::new(0),
            told: Condvar::new(),
        }
    }

    /// Wakes the server: whether it is there.
    fn wake(&self) -> bool {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = rustix::net::send(&self.wake, &[0], flags);
        // A full pipe has a wake-up in it already.
        sent.is_ok() || sent == Err(rustix::io::Errno::AGAIN)
    }

    /// The server has offered `object` to everybody who reads.
    pub(crate) fn done(&self, object: u64) {
        *self.offered.lock() = object;
        self.told.notify_all();
    }
}

/// Says in the object `old` that generation `committed` is the last one in it, and in another one: where its root is there, and
/// which generation was before.
fn announce(old: &Arc<Segment>, before: u64, latest: &Commit, committed: &Commit) {
    let mut record: Record = [0; RECORD_WORDS];
    record[0] = committed.root.generation;
    record[1] = u64::from(latest.root_at.get()) << 32 | record_flags::RENEWED;
    record[2] = committed.root_at.get().into();
    record[3] = before;
    let control = Control::new(old.memory()).expect("our own segment has a header");
    control.ring().publish(&record);
    wake_all(old);
}
