//! The workers that are attached, and the oldest generation that any of their threads is inside.

use std::os::fd::OwnedFd;

use jitcast_runtime::mailbox::{Mailbox, Word};
use rustix::thread::{MembarrierCommand, membarrier};
use std::sync::atomic::Ordering;

use crate::status::WorkerStatus;

/// A worker, as the compiler process knows it.
#[derive(Debug)]
pub(crate) struct WorkerEntry {
    pub(crate) number: u64,
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    pub(crate) label: String,
    pub(crate) mailbox: Mailbox,
    /// The connection has ended, but a thread may still be inside.
    pub(crate) gone: bool,
}

/// Every worker that may have a thread inside.
#[derive(Debug, Default)]
pub(crate) struct Workers {
    pub(crate) entries: Vec<WorkerEntry>,
    next_number: u64,
}

impl Workers {
    /// Adds a worker before it is told that it may attach; returns its number.
    pub(crate) fn add(&mut self, pid: i32, uid: u32, label: String, mailbox: Mailbox) -> u64 {
        self.next_number += 1;
        let number = self.next_number;
        self.entries.push(WorkerEntry {
            number,
            pid,
            uid,
            label,
            mailbox,
            gone: false,
        });
        number
    }

    /// A worker's process has ended: whatever it pinned, it runs no more.
    pub(crate) fn remove(&mut self, number: u64) {
        self.entries.retain(|entry| entry.number != number);
    }

    /// What they say about themselves.
    pub(crate) fn status(&self) -> Vec<WorkerStatus> {
        let status = |entry: &WorkerEntry| {
            let word = |word| entry.mailbox.word(word).load(Ordering::Relaxed);
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
            }
        };
        self.entries.iter().map(status).collect()
    }

    /// Whether a worker has said that it is done: no thread of it will enter again.
    pub(crate) fn is_detached(&self, number: u64) -> bool {
        let mut entries = self.entries.iter();
        let entry = entries.find(|entry| entry.number == number);
        entry.is_none_or(|entry| entry.mailbox.word(Word::Detached).load(Ordering::Acquire) != 0)
    }

    /// A worker's connection has ended, and nobody can tell whether its process has.
    pub(crate) fn hang_up(&mut self, number: u64) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.number == number) {
            entry.gone = true;
        }
    }

    fn drop_gone(&mut self) {
        self.entries
            .retain(|entry| !entry.gone || entry.mailbox.oldest_pin().is_some());
    }

    /// The oldest pin of all threads, after a barrier on every processor that runs one; `u64::MAX` if nobody
    /// is inside. 0, so that nothing is reused, if the barrier cannot be had and somebody relies on it.
    pub(crate) fn oldest_pin(&mut self) -> u64 {
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
        self.drop_gone();
        self.entries
            .iter()
            .filter_map(|entry| entry.mailbox.oldest_pin())
            .min()
            .unwrap_or(u64::MAX)
    }
}

/// What a worker is given.
#[derive(Debug)]
pub(crate) struct Admission {
    pub(crate) number: u64,
    pub(crate) mailbox: OwnedFd,
}
