//! The shared data of a segment, whose object may not be known yet: a compiler process that goes on where another one ended
//! waits for a worker to bring the object.
//!
//! Invariant: nobody is given any object before it is known which; so nobody can see that what is filled until then is owed.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::shared::SharedObject;
use super::{ObjectIdentity, SegmentError};
use crate::geometry::Region;

/// The data.
#[derive(Debug)]
pub(super) struct SharedData {
    object: OnceLock<SharedObject>,
    owed: Mutex<Owed>,
    /// Where they lie in the window.
    region: Region,
    /// What this compiler process's workers hold a lock of.
    mark: u64,
    /// What is waited for.
    awaited: Option<ObjectIdentity>,
    /// Whether they were a compiler process's before this one.
    adopted: bool,
}

/// What is to be filled once the object is known.
#[derive(Debug, Default)]
struct Owed {
    /// Where, and with what of control.
    fills: Vec<(Region, Region)>,
    /// How many of them, the first ones, only an object that is fresh lacks.
    of_fresh: usize,
}

impl SharedData {
    pub(super) fn known(object: SharedObject, region: Region, mark: u64, adopted: bool) -> Self {
        Self { object: OnceLock::from(object), adopted, ..Self::new(region, mark, None) }
    }

    pub(super) fn awaited(identity: ObjectIdentity, region: Region, mark: u64) -> Self {
        Self::new(region, mark, Some(identity))
    }

    fn new(region: Region, mark: u64, awaited: Option<ObjectIdentity>) -> Self {
        let (object, owed) = (OnceLock::new(), Mutex::default());
        Self { object, owed, region, mark, awaited, adopted: false }
    }

    pub(super) fn object(&self) -> Option<&SharedObject> {
        self.object.get()
    }

    /// Whether what units brought before is there already.
    pub(super) fn is_adopted(&self) -> bool {
        self.adopted
    }

    /// What has been filled so far, only an object that is fresh lacks.
    pub(super) fn end_of_fresh(&self) {
        let mut owed = self.owed();
        owed.of_fresh = owed.fills.len();
    }

    /// Fills a range by `fill`, now or once the object is known.
    pub(super) fn fill(
        &self,
        range: Region,
        template: Region,
        fill: impl FnOnce(&SharedObject) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut owed = self.owed();
        match self.object.get() {
            Some(object) => {
                drop(owed);
                fill(object)
            }
            None => {
                owed.fills.push((range, template));
                Ok(())
            }
        }
    }

    /// Takes the object that a worker brings, if it is the one that is waited for; `fill` does what is owed.
    pub(super) fn adopt(
        &self,
        fd: BorrowedFd<'_>,
        fill: impl Fn(&SharedObject, Region, Region) -> io::Result<()>,
    ) -> io::Result<()> {
        let brought = self.awaited.and_then(|awaited| SharedObject::brought(fd, awaited, self.region, self.mark));
        match brought {
            Some(object) => self.decide(object, false, fill),
            None => Ok(()),
        }
    }

    /// Waits no longer: the object is a fresh one.
    pub(super) fn begin(
        &self,
        fill: impl Fn(&SharedObject, Region, Region) -> io::Result<()>,
    ) -> Result<(), SegmentError> {
        let object = SharedObject::sealed(self.region, self.mark)?;
        self.decide(object, true, fill).map_err(|cause| SegmentError::System {
            step: "filling shared data",
            help: "there is no memory for them: enlarge the memory cgroup",
            cause,
        })
    }

    fn decide(
        &self,
        object: SharedObject,
        is_fresh: bool,
        fill: impl Fn(&SharedObject, Region, Region) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut owed = self.owed();
        if self.object.get().is_some() {
            return Ok(());
        }
        let first = if is_fresh { 0 } else { owed.of_fresh };
        for &(range, template) in &owed.fills[first..] {
            fill(&object, range, template)?;
        }
        // Nobody else sets it: the lock is held.
        let _ = self.object.set(object);
        owed.fills = Vec::new();
        Ok(())
    }

    fn owed(&self) -> MutexGuard<'_, Owed> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
