//! Seeded faults, and points at which the process kills itself: what tests turn on to see that they notice it, or
//! that nothing is lost. Compiled in by a feature that nothing but tests enables.

/// A fault, chosen by the environment variable `JITCAST_FAULT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Retired memory is reused at once, whoever may be inside.
    ReuseEarly,
    /// A publication is written to the journal after it was acknowledged, before the next one.
    JournalAfterAck,
    /// What workers ask for is compiled in the compiler process itself.
    RequestCompiledInProcess,
    /// Memory is reused without a look at whether workers map the object that have not come back.
    StrangersIgnored,
    /// Publications go on whatever is held back.
    HeldUnlimited,
    /// Publications are committed as they get ready, whatever came first.
    CommitAsReady,
    /// The head is seen before the record and the root that it stands for.
    CommitRelaxed,
    /// The system refuses the serving thread what it cannot go on without.
    ServingFails,
}

/// A point at which the process kills itself, chosen by the environment variable `JITCAST_CRASH_AT`: its name, or
/// `name:count` for the time that it is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CrashPoint {
    BeforeLog,
    AfterObjects,
    AfterLog,
    AfterRoot,
    AfterHead,
    BeforeSync,
    AfterSync,
    CompactionWritten,
    CompactionSynced,
    CompactionRenamed,
    CompactionDurable,
    CompactionSwept,
    RenewalCreated,
    RenewalCopied,
    RenewalNamed,
    RenewalCommitted,
    RenewalShown,
    RenewalOffered,
    RenewalAnnounced,
    AdoptionCompared,
    AdoptionCompleted,
}

#[cfg(feature = "seeded-faults")]
pub use seeding::CRASH_POINTS;
#[cfg(feature = "seeded-faults")]
pub(crate) use seeding::{crash_at, hold_at, seeded};

#[cfg(feature = "seeded-faults")]
mod seeding {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    use super::{CrashPoint, Fault};

    const FAULTS: [(&str, Fault); 8] = [
        ("reuse-early", Fault::ReuseEarly),
        ("journal-after-ack", Fault::JournalAfterAck),
        (
            "request-compiled-in-process",
            Fault::RequestCompiledInProcess,
        ),
        ("strangers-ignored", Fault::StrangersIgnored),
        ("held-unlimited", Fault::HeldUnlimited),
        ("commit-as-ready", Fault::CommitAsReady),
        ("commit-relaxed", Fault::CommitRelaxed),
        ("serving-fails", Fault::ServingFails),
    ];

    const POINTS: [(&str, CrashPoint); 21] = [
        ("before-log", CrashPoint::BeforeLog),
        ("after-objects", CrashPoint::AfterObjects),
        ("after-log", CrashPoint::AfterLog),
        ("after-root", CrashPoint::AfterRoot),
        ("after-head", CrashPoint::AfterHead),
        ("before-fsync", CrashPoint::BeforeSync),
        ("after-fsync", CrashPoint::AfterSync),
        ("compaction-written", CrashPoint::CompactionWritten),
        ("compaction-synced", CrashPoint::CompactionSynced),
        ("compaction-renamed", CrashPoint::CompactionRenamed),
        ("compaction-durable", CrashPoint::CompactionDurable),
        ("compaction-swept", CrashPoint::CompactionSwept),
        ("renewal-created", CrashPoint::RenewalCreated),
        ("renewal-copied", CrashPoint::RenewalCopied),
        ("renewal-named", CrashPoint::RenewalNamed),
        ("renewal-committed", CrashPoint::RenewalCommitted),
        ("renewal-shown", CrashPoint::RenewalShown),
        ("renewal-offered", CrashPoint::RenewalOffered),
        ("renewal-announced", CrashPoint::RenewalAnnounced),
        ("adoption-compared", CrashPoint::AdoptionCompared),
        ("adoption-completed", CrashPoint::AdoptionCompleted),
    ];

    /// The names of all points, for tests that go through them.
    pub const CRASH_POINTS: [&str; POINTS.len()] = {
        let mut names = [""; POINTS.len()];
        let mut index = 0;
        while index < names.len() {
            names[index] = POINTS[index].0;
            index += 1;
        }
        names
    };

    fn find<T: Copy>(chosen: &str, known: &[(&str, T)]) -> Option<T> {
        let found = known.iter().find(|(name, _)| *name == chosen);
        found.map(|(_, found)| *found)
    }

    /// Whether `fault` was asked for.
    pub(crate) fn seeded(fault: Fault) -> bool {
        static CHOSEN: OnceLock<Option<Fault>> = OnceLock::new();
        let chosen = CHOSEN.get_or_init(|| {
            let chosen = std::env::var("JITCAST_FAULT").ok()?;
            // Others are workers'.
            find(&chosen, &FAULTS)
        });
        *chosen == Some(fault)
    }

    /// Kills the process, if it was asked for at this point.
    pub(crate) fn crash_at(point: CrashPoint) {
        static CHOSEN: OnceLock<Option<(CrashPoint, u32)>> = OnceLock::new();
        static PASSED: AtomicU32 = AtomicU32::new(0);
        let chosen = CHOSEN.get_or_init(|| {
            let chosen = std::env::var("JITCAST_CRASH_AT").ok()?;
            let (name, count) = chosen.split_once(':').unwrap_or((&chosen, "1"));
            let count = count.parse().expect("a number of times");
            let point = find(name, &POINTS);
            let names = CRASH_POINTS.join(", ");
            let point =
                point.unwrap_or_else(|| panic!("JITCAST_CRASH_AT={name} is none of {names}"));
            Some((point, count))
        });
        let Some((_, count)) = chosen.filter(|(chosen, _)| *chosen == point) else {
            return;
        };
        if PASSED.fetch_add(1, Ordering::Relaxed) + 1 == count {
            kill_process(getpid(), Signal::KILL).expect("a process may kill itself");
        }
    }

    /// Waits while a unit is prepared, if that was asked for by the environment variable `JITCAST_HOLD`: `unit=path`, more of
    /// them after commas. A path is that of a FIFO, which is read to its end. What is written to it may be `panic`.
    pub(crate) fn hold_at(unit: &str) {
        let Ok(chosen) = std::env::var("JITCAST_HOLD") else {
            return;
        };
        let mut held = chosen.split(',').filter_map(|held| held.split_once('='));
        let Some((_, path)) = held.find(|(name, _)| *name == unit) else {
            return;
        };
        let told = std::fs::read(path).expect("a FIFO that can be read");
        assert_ne!(told, b"panic", "as was asked for");
    }
}

/// Whether `fault` was asked for: never, in a build without them.
#[cfg(not(feature = "seeded-faults"))]
pub(crate) fn seeded(_fault: Fault) -> bool {
    false
}

/// Kills the process, if it was asked for at this point: never, in a build without such points.
#[cfg(not(feature = "seeded-faults"))]
pub(crate) fn crash_at(_point: CrashPoint) {}

/// Waits while a unit is prepared, if that was asked for: never, in a build without such points.
#[cfg(not(feature = "seeded-faults"))]
pub(crate) fn hold_at(_unit: &str) {}
