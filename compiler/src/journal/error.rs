//! What can go wrong with a journal, as data.

use std::io;

use jitcast_runtime::header::HeaderError;

use super::log::VERSION;

/// Why a journal cannot be used, or a publication not be written down. What was published goes on.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The system refused.
    #[error(
        "cannot {step} {path}: {cause}\n  help: the journal is a folder of the compiler process's own user, on a file system with room"
    )]
    System {
        /// Which step.
        step: &'static str,
        /// The journal's path.
        path: String,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// Another compiler process has it.
    #[error(
        "the journal {path} belongs to a running compiler process\n  help: end that one, or choose another --journal"
    )]
    InUse {
        /// The journal's path.
        path: String,
    },
    /// Others could change what this compiler process publishes.
    #[error(
        "the journal {path} belongs to uid {uid}, with mode {mode:o}: others than the compiler process's own user (uid {own_uid}) can write to it\n  help: `chown {own_uid}` it and `chmod go-w` it, if you trust what is in it"
    )]
    WritableByOthers {
        /// The journal's path.
        path: String,
        /// Its owner.
        uid: u32,
        /// Its permissions.
        mode: u32,
        /// The compiler process's user.
        own_uid: u32,
    },
    /// Something else lies there.
    #[error("{path}/log is no journal's log\n  help: choose another --journal, or remove it")]
    Foreign {
        /// The journal's path.
        path: String,
    },
    /// Another version wrote it.
    #[error(
        "the journal {path} has version {found}, this program reads {VERSION}\n  help: use the version of jitcast that wrote it"
    )]
    Version {
        /// The journal's path.
        path: String,
        /// Its version.
        found: u32,
    },
    /// It was damaged after it was written.
    #[error(
        "the journal {path} is damaged: {path}/log, byte {at}, after generation {generation}: {what}\n  help: put a copy of the folder in its place, or move it away to begin with nothing published"
    )]
    Damaged {
        /// The journal's path.
        path: String,
        /// Where in the log, bytes.
        at: u64,
        /// The last generation that can be read.
        generation: u64,
        /// What is wrong.
        what: String,
    },
    /// Its code may use what this processor lacks.
    #[error(
        "the journal {path} holds code that may use processor features that this machine lacks: {}\n  help: start it on a machine that has them, or choose another --journal and publish with --cpu baseline",
        missing.join(", ")
    )]
    Cpu {
        /// The journal's path.
        path: String,
        /// Names of the features.
        missing: Vec<String>,
    },
    /// Its segment is not for this program.
    #[error("the segment that the journal {path} describes cannot be made here: {cause}")]
    Header {
        /// The journal's path.
        path: String,
        /// Why not.
        #[source]
        cause: HeaderError,
    },
    /// Another window was asked for.
    #[error(
        "a window of {asked_bytes} bytes was asked for, but the journal {path} describes one of {journal_bytes}\n  help: leave --window out, or choose another --journal"
    )]
    Window {
        /// The journal's path.
        path: String,
        /// What was asked for, bytes.
        asked_bytes: u64,
        /// What the journal says, bytes.
        journal_bytes: u64,
    },
    /// A publication cannot be written down, so it is not visible either.
    #[error(
        "the publication cannot be written to the journal {path}: {cause}\n  nothing of it is visible\n  help: make room on its file system and publish again; what was published goes on"
    )]
    NotWritten {
        /// The journal's path.
        path: String,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// A publication is visible, but may be lost.
    #[error(
        "generation {generation} is visible to workers, but not durable: the system cannot sync the journal {path}: {cause}\n  no further publication is taken, since what was not written may be lost silently\n  help: look after the disk, restart the compiler process, and publish it again"
    )]
    NotDurable {
        /// The journal's path.
        path: String,
        /// The publication.
        generation: u64,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// It failed before.
    #[error(
        "the journal {path} takes no more publications: {why}\n  help: look after the disk, then restart the compiler process; what was published goes on"
    )]
    Failed {
        /// The journal's path.
        path: String,
        /// What happened.
        why: String,
    },
    /// What a unit was made from is not there any more, or is something else now.
    #[error(
        "{path}/{object}, from which the unit `{unit}` was made, is missing or damaged\n  help: publish that version of the unit again from its sources; what is published goes on"
    )]
    Object {
        /// The journal's path.
        path: String,
        /// The object.
        object: String,
        /// The unit.
        unit: String,
    },
}
