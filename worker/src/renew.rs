//! Renewal: going on with another object, of the same compiler process, or of the next one when that has ended.
//!
//! The new object is of the same history: what was published lies at the same offsets, and has the same bytes. It is mapped
//! over the shared views; slots, private data, pointers and handles stay as they are. Invariant: whatever a thread that is inside
//! may execute or read is the same in both. Shared data stay the same ones, but for another compiler process: that may have
//! others, and then no thread may be inside, if there are any. The worker says in its mailbox that its pins hold the new object, and then looks at
//! its floor, which says what may have been reused until then: so threads may be inside at generations from the floor on, or
//! none at all.

use std::sync::TryLockError;
use std::sync::atomic::Ordering;

use jitcast_runtime::SegmentOffset;
use jitcast_runtime::directory::record_flags;
use jitcast_runtime::geometry::{Area, Region};
use jitcast_runtime::header::FLOOR;
use jitcast_runtime::index;
use jitcast_runtime::mailbox::{ThreadWord, Word};
use jitcast_runtime::records::{AskedRecord, Root, StoredRegion, UnitRecord};
use jitcast_runtime::ring::Record;
use jitcast_runtime::{Corrupt, pin};

use crate::error::UpdateError;
use crate::fault::{Fault, seeded};
use crate::link::{Offer, Talk};
use crate::worker::{Inner, State, Worker};

/// A renewal that has been announced in the object that is mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Renewal {
    /// Its generation, in which nothing has changed.
    generation: u64,
    /// The directory of that generation in the other object.
    root_at: SegmentOffset,
    pub(crate) stage: Stage,
}

/// How far a renewal has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The other object will be offered.
    Announced,
    /// It is there, but threads are inside that need this one.
    Offered,
    /// The compiler process is gone, or what it offered is of no use: this object is what there is.
    Abandoned,
}

/// What became of an offer.
enum Outcome {
    /// The worker has gone on, under this number.
    Renewed(u64),
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
        if self.inner().is_attached_here() {
            self.look_after();
            self.inner().tell_host();
        }
    }

    fn look_after(&self) {
        let inner = self.inner();
        inner.look_at_seat();
        inner.look_at_wanted();
        let Ok(mut talk) = inner.link().try_talk() else {
            return;
        };
        inner.tend_asked(&mut talk);
        let Some(offer) = inner.link().look(&mut talk) else {
            return;
        };
        // A thread that is inside holds what is mapped.
        let Some(thread) = self.thread_outside() else {
            return;
        };
        let mut state = match inner.state().try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        // What has been published is applied first.
        if inner.enter_held(&mut state, thread).is_err() {
            return;
        }
        let outcome = inner.renew(&mut state, thread, offer);
        pin::leave(inner.mailbox().thread(thread, ThreadWord::Pin), 0);
        inner.conclude(&mut talk, outcome);
    }

    /// Whether the compiler process was there when somebody last looked.
    pub fn is_connected(&self) -> bool {
        self.inner().link().is_attached()
    }
}

/// The renewal that a record announces, and the generation before it.
pub(crate) fn announced(record: Option<&Record>) -> Option<(Renewal, u64)> {
    let record = record?;
    let renewal = Renewal {
        generation: record[0],
        root_at: SegmentOffset::new(record[2] as u32),
        stage: Stage::Announced,
    };
    (record[1] & record_flags::RENEWED != 0).then_some((renewal, record[3]))
}

impl Inner {
    /// Tells the host what it has not been told, unless somebody else is at it.
    fn tell_host(&self) {
        let mut events = Vec::new();
        if let Ok(mut talk) = self.link().try_talk() {
            events = talk.take_events();
        }
        if let Ok(mut state) = self.state().try_lock() {
            events.append(&mut state.events);
        }
        self.log().tell(&events);
    }

    /// Whether the next that there is to apply is a renewal.
    pub(crate) fn is_behind(&self, state: &State) -> bool {
        let head = self.head().load(Ordering::Acquire);
        if head <= state.applied {
            return false;
        }
        let announced = announced(self.control().ring().read(head).as_ref());
        announced.is_some_and(|(_, before)| before <= state.applied)
    }

    /// Goes on to the other object, if it is there and threads let it: whether it has. By a thread that runs nothing
    /// published.
    pub(crate) fn move_on(&self, state: &mut State, thread: u32) -> bool {
        let Ok(mut talk) = self.link().try_talk() else {
            return false;
        };
        let offer = self.link().look(&mut talk);
        let outcome = offer.map(|offer| self.renew(state, thread, offer));
        if let Some(renewal) = &mut state.renewal {
            renewal.stage = match outcome {
                Some(Ok(Outcome::Different)) => Stage::Abandoned,
                Some(_) => Stage::Offered,
                None if self.link().is_lost(&talk) => Stage::Abandoned,
                None => renewal.stage,
            };
        }
        let moved = matches!(outcome, Some(Ok(Outcome::Renewed(_))));
        if let Some(outcome) = outcome {
            self.conclude(&mut talk, outcome);
        }
        self.show_moving(state);
        moved
    }

    fn conclude(&self, talk: &mut Talk, outcome: Result<Outcome, UpdateError>) {
        match outcome {
            Ok(Outcome::Renewed(number)) => {
                self.set_number(number);
                self.link().accept(talk);
            }
            Ok(Outcome::Different) => self.link().decline(talk),
            Ok(Outcome::NotYet) | Err(_) => {}
        }
    }

    /// Maps what is offered, if threads let it. By a thread that runs nothing published, with its pin for its own use.
    fn renew(&self, state: &mut State, thread: u32, offer: &Offer) -> Result<Outcome, UpdateError> {
        let before = self.object().load(Ordering::Relaxed);
        if offer.object == before {
            return Ok(self.come_back(state, offer));
        }
        let others = self.close(state, thread);
        let held = self.mailbox().word(Word::Object);
        let oldest = others.pins().first().copied();
        // From here on the compiler process counts this worker's pins for the new object, this thread's among them.
        let outcome = pin::hold(held, offer.object, || self.renew_held(state, oldest, offer));
        if let Ok(Outcome::Renewed(_)) = &outcome {
            // Acquire: pairs with the release of the head in that object (Ring::publish), which was stored before it was offered: what
            // was copied into it is there, also for a thread that is inside and does not poll. The offer's way through the kernel
            // orders the same, but nothing in the program shows that.
            self.head().load(Ordering::Acquire);
            self.object().store(offer.object, Ordering::Relaxed);
            let mapped = self.mailbox().word(Word::Mapped);
            mapped.store(offer.object, Ordering::Release);
            self.barriers().serialise_all();
            self.find_root(state);
        } else {
            held.store(before, Ordering::SeqCst);
        }
        let applied = state.applied;
        self.finish(state, &others, &Ok(applied));
        outcome
    }

    /// Goes on in the object that is mapped already, with another compiler process, or another connection to the same. That of a
    /// named segment is mapped from the description that was offered now, in the place of the one before: so the compiler process
    /// sees that this worker, whose mailbox it has, has come. Threads may be inside, whatever their generations: it is the same memory.
    fn come_back(&self, _held: &mut State, offer: &Offer) -> Outcome {
        if self.link().has_other_shared_data(offer) {
            return Outcome::Different;
        }
        if self.link().is_sealed() {
            return Outcome::Renewed(offer.number);
        }
        let (Some(object), Some(shared_data)) = (offer.segment(), offer.shared_data()) else {
            return Outcome::NotYet;
        };
        // SAFETY: the same objects, of the same geometry: the same bytes everywhere.
        let renewed = unsafe { self.window().renew(object, Some(shared_data)) };
        renewed.map_or(Outcome::NotYet, |()| Outcome::Renewed(offer.number))
    }

    fn renew_held(
        &self,
        state: &State,
        oldest: Option<u64>,
        offer: &Offer,
    ) -> Result<Outcome, UpdateError> {
        let floor = self.floor_of(offer)?;
        let segment = offer.segment();
        let data = self.window().geometry().region(Area::SharedData);
        let has_others = self.link().has_other_shared_data(offer);
        let has_data = self.window().end(Area::SharedData) > data.start;
        // Of another compiler process they are mapped anew, also if they are the same: by the description that is had, that one
        // knows who has come.
        let is_mapped = !has_others && !offer.is_anothers();
        let shared_data = offer.shared_data().filter(|_| !is_mapped);
        Ok(match oldest {
            // They would see the data change under them.
            Some(_) if has_others && has_data => Outcome::NotYet,
            Some(oldest) if oldest < floor && !seeded(Fault::RenewUnderPins) => Outcome::NotYet,
            Some(_) if !self.is_same(state, offer)? => Outcome::Different,
            _ => {
                let is_there = is_mapped || shared_data.is_some();
                let renewed = segment.filter(|_| is_there).map(|object| {
                    // SAFETY: the same geometry (its header has this segment's instance); and either no thread is inside, or
                    // what is reachable at their generations has not been reused, and was compared, and there are no shared
                    // data, or the same ones.
                    unsafe { self.window().renew(object, shared_data) }
                });
                if matches!(renewed, Some(Ok(()))) {
                    Outcome::Renewed(offer.number)
                } else {
                    Outcome::NotYet
                }
            }
        })
    }

    /// Finds the directory of what is applied in the object that is mapped now. If something newer is there, the next guard
    /// applies that before anybody looks.
    fn find_root(&self, state: &mut State) {
        state.handles.unsettle();
        if let Some(renewal) = state.renewal.take()
            && renewal.generation == state.applied
        {
            state.root_at = renewal.root_at;
        }
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
        let mut compare = |at, text: StoredRegion, read_only: StoredRegion| {
            for (area, stored) in [(Area::Text, text), (Area::ReadOnly, read_only)] {
                let what = "range of a unit";
                let region = stored.region().ok_or(Corrupt { what, at })?;
                same = same && self.is_same_region(area, region, offer)?;
            }
            Ok::<_, UpdateError>(())
        };
        index::walk(view, root.units, 0, &mut |at| {
            let unit: UnitRecord = view.read(at)?;
            compare(at, unit.text, unit.read_only)
        })?;
        for number in state.asked.keys() {
            if let Some(at) = index::get(view, root.asked, (*number).into())? {
                let unit: AskedRecord = view.read(at)?;
                compare(at, unit.text, unit.read_only)?;
            }
        }
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
    let closed = || UpdateError::Window("the host has closed the segment that was offered".into());
    let segment = offer.segment().ok_or_else(closed)?;
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::io::pread(segment, &mut bytes[filled..], at + filled as u64) {
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
