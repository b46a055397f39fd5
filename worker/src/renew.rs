//! Renewal: going on with another compiler process, and its segment, when the one before has ended.
//!
//! The new segment is of the same history: what was published lies at the same offsets, and has the same bytes. It is mapped
//! over the shared views; slots, private data, pointers and handles stay as they are. Invariant: whatever a thread that is inside
//! may execute or read is the same in both. The compiler process knows this worker's pins before it answers, and its floor says
//! what it may have reused until then: so threads may be inside at generations from the floor on, or none at all.

use std::os::fd::AsFd;
use std::sync::TryLockError;

use jitcast_runtime::geometry::{Area, Region};
use jitcast_runtime::header::FLOOR;
use jitcast_runtime::index;
use jitcast_runtime::mailbox::ThreadWord;
use jitcast_runtime::records::{Root, UnitRecord};
use jitcast_runtime::{Corrupt, pin};

use crate::error::UpdateError;
use crate::link::Offer;
use crate::worker::{Inner, State, Worker};

/// What became of an offer.
enum Outcome {
    Renewed,
    /// Threads are inside that need the old segment still.
    NotYet,
    /// It is not what it should be.
    Different,
}

impl Worker {
    /// Looks whether the compiler process is still there; if not, for another one that goes on with its journal, and goes on
    /// with that one's segment. Never waits. To be called now and then, or when [`Worker::connection`] has hung up; guards do it
    /// too, every 65,536th time, and so does [`Worker::wait`]. Also looks whether this worker, a forked child, has been given its
    /// place among the workers that run canaries.
    pub fn tend(&self) {
        let inner = self.inner();
        if !inner.is_attached_here() {
            return;
        }
        inner.look_at_seat();
        let Ok(mut talk) = inner.link().try_talk() else {
            return;
        };
        let Some(offer) = inner.link().look(&mut talk) else {
            return;
        };
        // A thread that is inside holds what is mapped.
        let Some(thread) = self.thread_outside() else {
            return;
        };
        let number = offer.number;
        match inner.renew(thread, offer) {
            Ok(Outcome::Renewed) => {
                inner.set_number(number);
                inner.link().accept(&mut talk);
            }
            Ok(Outcome::Different) => inner.link().decline(&mut talk),
            Ok(Outcome::NotYet) | Err(_) => {}
        }
    }

    /// Whether the compiler process was there when somebody last looked.
    pub fn is_connected(&self) -> bool {
        self.inner().link().is_attached()
    }
}

impl Inner {
    fn renew(&self, thread: u32, offer: &Offer) -> Result<Outcome, UpdateError> {
        let mut state = match self.state().try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(Outcome::NotYet),
        };
        // What the old one has published is applied first.
        self.enter_held(&mut state, thread)?;
        let word = self.mailbox().thread(thread, ThreadWord::Pin);
        let others = self.close(&state, thread);
        let floor = self.floor_of(offer)?;
        let oldest = others.pins().first().copied();
        let outcome = match oldest {
            Some(oldest) if oldest < floor => Outcome::NotYet,
            Some(_) if !self.is_same(&state, offer)? => Outcome::Different,
            _ => {
                // SAFETY: the same geometry (its header has this segment's instance); and either no thread is inside, or what is
                // reachable at their generations has not been reused, and was compared.
                let renewed = unsafe { self.window().renew(&offer.segment) };
                if renewed.is_ok() {
                    Outcome::Renewed
                } else {
                    Outcome::NotYet
                }
            }
        };
        let applied = state.applied;
        self.finish(&mut state, &others, &Ok(applied));
        pin::leave(word, 0);
        Ok(outcome)
    }

    /// The floor of the segment that is offered.
    fn floor_of(&self, offer: &Offer) -> Result<u64, UpdateError> {
        let mut word = [0; 8];
        read_exact(offer, FLOOR.into(), &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    /// Whether the code and the constants of every unit that is applied are the same in what is offered.
    fn is_same(&self, state: &State, offer: &Offer) -> Result<bool, UpdateError> {
        let view = self.window().control();
        let root: Root = view.read(state.root_at)?;
        let mut same = true;
        index::walk(view, root.units, 0, &mut |at| {
            let unit: UnitRecord = view.read(at)?;
            let corrupt = Corrupt {
                what: "range of a unit",
                at,
            };
            for (area, stored) in [(Area::Text, unit.text), (Area::ReadOnly, unit.read_only)] {
                let region = stored.region().ok_or(corrupt)?;
                same = same && self.is_same_region(area, region, offer)?;
            }
            Ok::<_, UpdateError>(())
        })?;
        Ok(same && self.is_same_region(Area::Text, self.window().geometry().selectors(), offer)?)
    }

    fn is_same_region(
        &self,
        area: Area,
        region: Region,
        offer: &Offer,
    ) -> Result<bool, UpdateError> {
        if region.len_bytes == 0 {
            return Ok(true);
        }
        let mut offered = vec![0; region.len_bytes as usize];
        let start = self.window().geometry().shared().start;
        read_exact(offer, u64::from(region.start - start), &mut offered)?;
        Ok(self.window().copy(area, region)? == offered)
    }
}

fn read_exact(offer: &Offer, at: u64, bytes: &mut [u8]) -> Result<(), UpdateError> {
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::io::pread(
            offer.segment.as_fd(),
            &mut bytes[filled..],
            at + filled as u64,
        ) {
            Ok(count @ 1..) => filled += count,
            Ok(_) => {
                return Err(UpdateError::Window(
                    "the segment that was offered is too short".into(),
                ));
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(UpdateError::Window(error.to_string())),
        }
    }
    Ok(())
}
