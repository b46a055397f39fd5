//! What the kernel lacks, or a filter of system calls takes away, and what is done without it.
//!
//! The oldest kernel for a sealed segment is Linux 5.1 (`F_SEAL_FUTURE_WRITE`): without that there is none. Everything here has another way.

use std::fmt;

use jitcast_runtime::sys;
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use rustix::thread::{MembarrierCommand, membarrier};

/// Something that is not to be had here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// The system call.
    pub what: &'static str,
    /// Which Linux has it.
    pub since: &'static str,
    /// What that means.
    pub instead: &'static str,
}

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            what,
            since,
            instead,
        } = self;
        write!(
            f,
            "{what} is forbidden here or missing (before Linux {since}): {instead}"
        )
    }
}

/// What this process has to do without.
pub fn lacking() -> Vec<Lacking> {
    let checks = [
        (
            membarrier(MembarrierCommand::GlobalExpedited).is_ok(),
            "membarrier(2)",
            "4.16",
            "every guard of every worker executes a fence",
        ),
        (
            pidfd_open(getpid(), PidfdFlags::empty()).is_ok(),
            "pidfd_open(2)",
            "5.3",
            "the end of a worker is seen by its connection and its mailbox, and what compiles for workers is looked at every few milliseconds",
        ),
        (
            sys::close_range_is_there(),
            "close_range(2)",
            "5.11",
            "starting what compiles for workers takes longer, the more files may be open",
        ),
    ];
    let missing = checks.into_iter().filter(|(is_there, ..)| !is_there);
    missing
        .map(|(_, what, since, instead)| Lacking {
            what,
            since,
            instead,
        })
        .collect()
}
