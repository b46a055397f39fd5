//! The workers that are attached, and the oldest generation that any of their threads is inside.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use jitcast_runtime::mailbox::{Mailbox, Word};
use jitcast_runtime::pin;
use jitcast_runtime::segment::{self, BlankMailbox, Presence, Segment};
use jitcast_runtime::tally::Tally;
use rustix::thread::{MembarrierCommand, membarrier};
use std::sync::atomic::Ordering;

use crate::catalog::Canary;
use crate::compiler::Compiler;
use crate::status::WorkerStatus;
use crate::stragglers::{Inside, Seen};

/// A worker, as the compiler process knows it.
#[derive(Debug)]
pub(crate) struct WorkerEntry {
    pub(crate) number: u64,
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    pub(crate) label: String,
    pub(crate) mailbox: Mailbox,
    presence: Presence,
    /// It is there for a child that has not been forked yet, as far as is known.
    pub(crate) spare: bool,
    /// Its place in the order of the workers, which it goes by when it is asked whether it runs a canary. A spare has none.
    pub(crate) seat: Option<u32>,
}

impl WorkerEntry {
    /// The object that its pins hold.
    pub(crate) fn object(&self) -> u64 {
        self.mailbox.word(Word::Object).load(Ordering::Acquire)
    }
}

/// Every worker that may have a thread inside.
#[derive(Debug, Default)]
pub(crate) struct Workers {
    pub(crate) entries: Vec<WorkerEntry>,
    next_number: u64,
    seen: Seen,
}

impl Workers {
    /// The threads that are inside at generations before `newest`, and those that keep their workers at one of the objects
    /// `older`. To be asked often, since it is seen here how long they stay.
    pub(crate) fn stragglers(&mut self, newest: u64, older: &[u64]) -> Vec<Inside> {
        self.seen.look(&self.entries, newest, older)
    }

    /// Whether a worker maps `object`, as far as it says.
    pub(crate) fn is_at(&self, object: u64) -> bool {
        let mut entries = self.entries.iter();
        entries.any(|entry| !entry.spare && entry.object() == object)
    }

    /// Adds a worker before it is told that it may attach, at the lowest seat that is free; returns its number.
    pub(crate) fn add(
        &mut self,
        process: (i32, u32),
        label: String,
        mailbox: (Mailbox, Presence),
    ) -> u64 {
        let seat = self.free_seat();
        mailbox.0.set_seat(seat);
        self.insert(process, label, mailbox, Some(seat))
    }

    /// Adds one that another compiler process let in. It stays at the seat that its mailbox says: that is where it has been.
    /// Somebody may be there by now, who attached first, or who lies: then they share it.
    pub(crate) fn add_again(
        &mut self,
        process: (i32, u32),
        label: String,
        mailbox: (Mailbox, Presence),
    ) -> u64 {
        match mailbox.0.seat() {
            Some(seat) => self.insert(process, label, mailbox, Some(seat)),
            None => self.add(process, label, mailbox),
        }
    }

    /// The lowest seat at which nobody is, as far as this process knows.
    fn free_seat(&self) -> u32 {
        let taken = self.entries.iter().filter_map(|entry| entry.seat);
        let taken: BTreeSet<_> = taken.collect();
        let free = (0..).zip(&taken).find(|(seat, taken)| seat != *taken);
        free.map_or(taken.len() as u32, |(seat, _)| seat)
    }

    fn insert(
        &mut self,
        (pid, uid): (i32, u32),
        label: String,
        (mailbox, presence): (Mailbox, Presence),
        seat: Option<u32>,
    ) -> u64 {
        self.next_number += 1;
        let number = self.next_number;
        self.entries.push(WorkerEntry {
            number,
            pid,
            uid,
            label,
            mailbox,
            presence,
            spare: false,
            seat,
        });
        number
    }

    /// Adds what a child of worker `parent` takes over when it is forked.
    pub(crate) fn add_spare(&mut self, parent: u64, mailbox: (Mailbox, Presence)) -> Option<u64> {
        let parent = self.entries.iter().find(|entry| entry.number == parent)?;
        let (pid, uid, label) = (parent.pid, parent.uid, parent.label.clone());
        let number = self.insert((pid, uid), label, mailbox, None);
        let entry = self
            .entries
            .iter_mut()
            .find(|entry| entry.number == number)?;
        entry.spare = true;
        Some(number)
    }

    /// Process `pid` has taken a spare over. It gets a seat of its own: until it looks there, it goes by its parent's.
    pub(crate) fn adopt(&mut self, number: u64, pid: i32) {
        let seat = self.free_seat();
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.number == number) {
            (entry.spare, entry.pid, entry.seat) = (false, pid, Some(seat));
            entry.mailbox.set_seat(seat);
        }
    }

    /// A worker's process has ended: whatever it pinned, it runs no more.
    pub(crate) fn remove(&mut self, number: u64) -> Option<WorkerEntry> {
        let mut entries = self.entries.iter();
        let index = entries.position(|entry| entry.number == number)?;
        Some(self.entries.remove(index))
    }

    /// What all of them have counted, and how far the last of them is behind `newest`.
    pub(crate) fn tally(&self, newest: u64) -> (Tally, u64) {
        let (mut tally, mut lag) = (Tally::default(), 0);
        for entry in self.entries.iter().filter(|entry| !entry.spare) {
            tally.add(&entry.mailbox.tally());
            let applied = entry.mailbox.word(Word::Applied).load(Ordering::Relaxed);
            lag = lag.max(newest.saturating_sub(applied));
        }
        (tally, lag)
    }

    /// What they say about themselves, and which of `canaries` they run.
    pub(crate) fn status(&self, canaries: &BTreeMap<u64, Canary>) -> Vec<WorkerStatus> {
        let status = |entry: &WorkerEntry| {
            let word = |word| entry.mailbox.word(word).load(Ordering::Relaxed);
            let runs = |canary: &&Canary| {
                word(Word::Applied) >= canary.id && canary.is_for(entry.seat, &entry.label)
            };
            let running = canaries.values().filter(runs);
            WorkerStatus {
                number: entry.number,
                pid: entry.pid,
                uid: entry.uid,
                label: entry.label.clone(),
                base: word(Word::Base),
                applied: word(Word::Applied),
                updates: word(Word::Updates),
                missing: word(Word::Missing),
                failed: word(Word::Failed),
                pinned: entry.mailbox.oldest_pin(),
                seat: entry.seat,
                canaries: running.map(|canary| canary.id).collect(),
                lag: 0,
                resyncs: word(Word::Resyncs),
                entered: entry.mailbox.tally().entered,
                straggling: false,
                crashes: entry.mailbox.crashes().0,
                private_bytes: None,
                lacks: None,
            }
        };
        let entries = self.entries.iter().filter(|entry| !entry.spare);
        entries.map(status).collect()
    }

    /// Whether a worker has said that it is done: no thread of it will enter again.
    pub(crate) fn is_detached(&self, number: u64) -> bool {
        let mut entries = self.entries.iter();
        let entry = entries.find(|entry| entry.number == number);
        entry.is_none_or(|entry| entry.mailbox.word(Word::Detached).load(Ordering::Acquire) != 0)
    }

    /// Whether somebody has a worker's mailbox: its process, or, until it is another program, a child of that.
    pub(crate) fn is_there(&self, number: u64) -> bool {
        let mut entries = self.entries.iter();
        let entry = entries.find(|entry| entry.number == number);
        entry.is_some_and(|entry| entry.presence.is_there())
    }

    /// The oldest pin of all threads that hold memory of `object`, after a barrier on every processor that runs one;
    /// `u64::MAX` if nobody is inside. 0, so that nothing is reused, if the barrier cannot be had and somebody relies on it.
    ///
    /// A worker that goes on to an object says so, executes a full barrier, and only then looks at that one's floor. So
    /// either it is seen here, or it sees what was announced before.
    pub(crate) fn oldest_pin(&mut self, object: u64) -> u64 {
        self.oldest(|entry| entry.object() == object)
    }

    /// The oldest generation at which somebody uses shared data, or may use them again, whichever object he is at. A worker that
    /// is at another one than `object` enters at what it has applied, at any time, whatever is announced here.
    pub(crate) fn oldest_user(&mut self, object: u64) -> u64 {
        let word = |entry: &WorkerEntry, word| entry.mailbox.word(word).load(Ordering::Acquire);
        let older = self.entries.iter();
        let older = older.filter(|entry| word(entry, Word::Mapped) != object);
        let applied = older.filter_map(|entry| {
            let applied = word(entry, Word::Applied);
            // Nobody has taken that one over.
            (!entry.spare || applied != 0).then_some(applied)
        });
        let applied = applied.min().unwrap_or(u64::MAX);
        // Looked at second: whoever entered at an older one did so before the worker said what it has applied.
        self.oldest(|_| true).min(applied)
    }

    fn oldest(&mut self, counts: impl Fn(&WorkerEntry) -> bool) -> u64 {
        let relies =
            |entry: &WorkerEntry| entry.mailbox.word(Word::Fenced).load(Ordering::Acquire) != 1;
        let reached = membarrier(MembarrierCommand::GlobalExpedited).is_ok();
        if !reached {
            // The workers' fences pair with this one.
            std::sync::atomic::fence(Ordering::SeqCst);
            if self.entries.iter().any(relies) {
                return 0;
            }
        }
        // A fork hands a pin over from one mailbox to another, like the start of a thread inside one.
        const TRIES: u32 = 8;
        let handed_over = || {
            let counts = self.entries.iter().map(|entry| entry.mailbox.handed_over());
            counts.fold(0, u64::wrapping_add)
        };
        let look = || {
            let entries = self.entries.iter().filter(|entry| counts(entry));
            entries.filter_map(|entry| entry.mailbox.oldest_pin()).min()
        };
        let oldest = pin::settled(handed_over, TRIES, look);
        oldest.map_or(0, |oldest| oldest.unwrap_or(u64::MAX))
    }
}

/// What a worker is given.
#[derive(Debug)]
pub(crate) struct Admission {
    pub(crate) number: u64,
    pub(crate) mailbox: OwnedFd,
    /// Which it maps, in the object that its mailbox says.
    pub(crate) segment: Arc<Segment>,
}

impl Compiler {
    /// Lets a worker in, with this mailbox, which is known here before the worker is.
    pub(crate) fn admit(
        &self,
        process: (i32, u32),
        label: String,
        mailbox: BlankMailbox,
    ) -> Admission {
        let segment = self.segment();
        let (mailbox, fd, presence) = mailbox.for_object(segment.header().object);
        let mailbox = (mailbox, presence);
        let number = self.workers.lock().add(process, label, mailbox);
        Admission {
            number,
            mailbox: fd,
            segment,
        }
    }

    /// Lets a worker in again that was attached to another compiler process, with the mailbox that it has.
    pub(crate) fn admit_again(
        &self,
        process: (i32, u32),
        label: String,
        mailbox: &std::os::fd::OwnedFd,
    ) -> io::Result<u64> {
        let mailbox = segment::adopt_mailbox(mailbox)?;
        Ok(self.workers.lock().add_again(process, label, mailbox))
    }

    /// Which segment it is.
    pub(crate) fn instance(&self) -> [u8; 16] {
        self.segment().header().instance
    }

    /// What a child of worker `parent` takes over when it is forked; `None`: there is no such worker.
    pub(crate) fn admit_child(&self, parent: u64) -> io::Result<Option<Admission>> {
        let segment = self.segment();
        let (mailbox, fd, presence) = segment::create_mailbox(segment.header().object)?;
        let number = self.workers.lock().add_spare(parent, (mailbox, presence));
        if let Some(number) = number {
            self.holds.lock().spare_given(parent, number);
        }
        Ok(number.map(|number| Admission {
            number,
            mailbox: fd,
            segment,
        }))
    }

    /// The child is there: process `pid`.
    pub(crate) fn child_arrived(&self, number: u64, pid: i32) {
        self.workers.lock().adopt(number, pid);
        self.holds.lock().child_arrived(number);
    }

    /// A worker's process has ended.
    pub(crate) fn worker_died(&self, number: u64) {
        let ended = self.workers.lock().remove(number);
        if let Some(ended) = ended.filter(|ended| !ended.spare) {
            self.note_end((ended.pid, &ended.label), &ended.mailbox);
        }
        self.holds.lock().worker_gone(number);
    }

    /// Whether somebody has a worker's mailbox still.
    pub(crate) fn worker_is_there(&self, number: u64) -> bool {
        self.workers.lock().is_there(number)
    }

    /// Whether a worker has said that it is done.
    pub(crate) fn worker_detached(&self, number: u64) -> bool {
        self.workers.lock().is_detached(number)
    }
}
