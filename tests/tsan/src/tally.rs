//! What the driver did, so that a run in which little happened does not pass for a good one.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is counted, and how much of it there has to be, however slow the machine.
const KINDS: [(Kind, u64); Kind::COUNT] = [
    (Kind::Handed, 100),
    (Kind::Reused, 100),
    (Kind::Swaps, 100),
    (Kind::Guards, 1000),
    (Kind::Data, 1000),
    (Kind::Versions, 100),
    (Kind::Lookups, 100),
    (Kind::Stays, 10),
    (Kind::Comers, 10),
    (Kind::Canaries, 5),
    (Kind::Removals, 5),
    (Kind::Renewals, 2),
    (Kind::Attached, 2),
    (Kind::Children, 2),
    (Kind::Started, 2),
    (Kind::Requests, 1),
];

/// Something that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Pins handed over, in mailboxes alone.
    Handed,
    /// Memory reused once no pin held it, in mailboxes alone.
    Reused,
    /// Publications of the functions that everybody calls.
    Swaps,
    /// Outermost guards.
    Guards,
    /// Private data read.
    Data,
    /// Versions that a thread saw for the first time.
    Versions,
    /// Names looked up.
    Lookups,
    /// Guards held while others applied something newer.
    Stays,
    /// Threads that came and went.
    Comers,
    /// Canaries that ended.
    Canaries,
    /// Units removed.
    Removals,
    /// Objects that a worker went on to.
    Renewals,
    /// Workers that attached, and detached.
    Attached,
    /// Forked children that called.
    Children,
    /// Threads that published code started.
    Started,
    /// Units that were asked for, and called.
    Requests,
}

impl Kind {
    const COUNT: usize = Self::Requests as usize + 1;
}

/// The counts.
#[derive(Debug, Default)]
pub(crate) struct Tally([AtomicU64; Kind::COUNT]);

impl Tally {
    /// Counts one.
    pub(crate) fn count(&self, kind: Kind) {
        self.add(kind, 1);
    }

    /// Counts so many. Relaxed: nothing may be ordered by being counted.
    pub(crate) fn add(&self, kind: Kind, count: u64) {
        self.0[kind as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// Says what there was, and fails if that was too little.
    pub(crate) fn report(&self) -> ExitCode {
        let mut enough = true;
        for (kind, least) in KINDS {
            let count = self.0[kind as usize].load(Ordering::Relaxed);
            println!("{kind:?}: {count}");
            if count < least {
                eprintln!(
                    "{kind:?}: {count} are too few to show anything; there should be {least}"
                );
                enough = false;
            }
        }
        if enough {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}
