//! What can go wrong in the compiler process, as data.

use std::fmt;

use jitcast_linker::LinkError;
use jitcast_runtime::heap::SegmentFull;
use jitcast_runtime::segment::SegmentError;

use crate::journal::JournalError;
use crate::stragglers::Straggler;

/// Why a publication was refused. Nothing of it is visible, and everything published before goes on.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A unit does not link.
    #[error(transparent)]
    Link(#[from] Box<LinkError>),
    /// There is no room.
    #[error(transparent)]
    Full(#[from] SegmentFull),
    /// It cannot be written to the journal; or, of [`JournalError::NotDurable`], it is visible all the same.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Threads that stay inside hold back what is needed, or more than is allowed.
    #[error(
        "{why}\n{}  help: see what those threads wait for; what was published goes on, and so does publishing once they have left",
        stragglers.iter().map(|straggler| format!("  held back by {straggler}\n")).collect::<String>()
    )]
    HeldBack {
        /// What cannot be had.
        why: String,
        /// Who holds it back, those who hold most first.
        stragglers: Vec<Straggler>,
    },
    /// The segment cannot go on in another object.
    #[error("the segment is not renewed: {0}")]
    Renewal(#[from] SegmentError),
    /// The server that it came through is being stopped.
    #[error("the compiler process is ending\n  help: publish again once it has been started again")]
    Ending,
    /// Nothing to publish.
    #[error("nothing to publish\n  help: give at least one file")]
    Empty,
    /// Two units of the batch have one name, or one is published and removed.
    #[error(
        "the unit `{unit}` is published or removed twice in this publication\n  help: give one of them another name with --unit, or ask for one of both"
    )]
    SameUnit {
        /// The name.
        unit: String,
    },
    /// A symbol has two definitions.
    #[error("`{symbol}` is defined by the unit `{unit}` and by the unit `{other}`{}\n  help: rename one of them, make it static, or publish both in one unit if one replaces the other",
        if *.published { ", which is published" } else { "" })]
    Duplicate {
        /// The symbol.
        symbol: String,
        /// The unit that is being published.
        unit: String,
        /// The unit that has it already.
        other: String,
        /// Whether that unit is published, and not of the same batch.
        published: bool,
    },
    /// A replacement lacks what others use.
    #[error("the new version of the unit `{unit}` does not define `{symbol}`, which {} used by {}\n  help: keep the symbol, or publish its users again in the same publication{}",
        if *.is_data { "is a datum" } else { "is" }, Names(.users),
        if *.is_data { "" } else { ", or let their calls end in a trap (--leave-traps)" })]
    StillUsed {
        /// The symbol.
        symbol: String,
        /// The unit that defined it.
        unit: String,
        /// The units that use it.
        users: Vec<String>,
        /// Whether it is a datum.
        is_data: bool,
    },
    /// A unit is to be removed that is not there.
    #[error(
        "no unit is called `{unit}`, so it cannot be removed\n  help: `jitcast status` lists the units"
    )]
    NoSuchUnit {
        /// The name.
        unit: String,
    },
    /// Others use what would go with a unit.
    #[error("the unit `{unit}` cannot be removed: {}\n  help: remove or replace its users in the same publication{}",
        Uses(.used), if *.traps_asked { "; a trap cannot stand for a datum" }
            else { ", or let calls of its functions end in a trap (--leave-traps)" })]
    RemovedInUse {
        /// The unit.
        unit: String,
        /// Its symbols that others use, and these.
        used: Vec<(String, Vec<String>)>,
        /// Whether the publisher asked for traps in place of functions.
        traps_asked: bool,
    },
    /// An earlier state is not known any more, or is no earlier one.
    #[error("generation {generation} cannot be rolled back to: the states from {oldest} to {} are retained\n  help: `jitcast history` lists them; a compiler process that is started with a larger --retain knows more", .newest - 1)]
    CannotRollBack {
        /// What was asked for.
        generation: u64,
        /// The oldest generation whose state is known.
        oldest: u64,
        /// The newest generation that changed units.
        newest: u64,
    },
    /// There is nothing to undo.
    #[error(
        "nothing is to be rolled back: no unit has changed since, or nothing is retained\n  help: `jitcast history` lists what can be undone; `serve --retain` says how much is retained"
    )]
    NothingToRollBack,
    /// A variable is to keep its place, where the new version does not fit.
    #[error(
        "`{symbol}` of the unit `{unit}` cannot keep its contents: it has {} bytes aligned to {}, and the new version {} aligned to {}\n  help: declare it as before, give the new one another name, or publish without --keep-data",
        .lengths.0, .alignments.0, .lengths.1, .alignments.1
    )]
    KeptDiffers {
        /// The variable.
        symbol: String,
        /// The unit that is being published.
        unit: String,
        /// Its lengths, bytes, the published one first.
        lengths: (u64, u64),
        /// The alignments of its places, bytes.
        alignments: (u64, u64),
    },
    /// A variable that is to keep its contents would have to become one for all workers, or one for each.
    #[error(
        "`{symbol}` of the unit `{unit}` cannot keep its contents: it {}\n  help: leave it in the section that it was in, or publish without --keep-data, so that it starts afresh",
        if *was_shared {
            "was shared data, one for all workers, and would be each worker's own"
        } else {
            "was each worker's own, and would be shared data, one for all workers"
        }
    )]
    KeptMoves {
        /// The variable.
        symbol: String,
        /// The unit that is being published.
        unit: String,
        /// Whether the published one is shared data.
        was_shared: bool,
    },
    /// Only functions can be quarantined.
    #[error(
        "`{symbol}` is no published function, so it cannot be quarantined\n  help: `jitcast status` lists the symbols"
    )]
    NotAFunction {
        /// The symbol.
        symbol: String,
    },
    /// A function cannot be restored that is not quarantined.
    #[error("`{symbol}` is not quarantined\n  help: `jitcast status` lists what is")]
    NotQuarantined {
        /// The symbol.
        symbol: String,
    },
    /// Others call what is to be quarantined.
    #[error("`{symbol}` cannot be quarantined, since {} it, and only handles have fallbacks\n  help: quarantine what they offer to hosts instead, or let their calls end in a trap (--leave-traps)", Use(.users))]
    QuarantinedInUse {
        /// The symbol.
        symbol: String,
        /// The units that use it.
        users: Vec<String>,
    },
    /// A datum would move under its users.
    #[error("replacing the unit `{unit}` would give its datum `{symbol}` a new place, but {} linked against the old one\n  help: publish {} again in the same publication, or keep the datum where it is (--keep-data)",
        Are(.users), Names(.users))]
    DataMoves {
        /// The datum.
        symbol: String,
        /// The unit that defines it.
        unit: String,
        /// The units that use it.
        users: Vec<String>,
    },
    /// A symbol changes what it is.
    #[error("`{symbol}` was published as {was} and would become {becomes}, but {} it\n  help: use another name, or publish its users again in the same publication",
        Use(.users))]
    KindChanges {
        /// The symbol.
        symbol: String,
        /// What it was.
        was: &'static str,
        /// What it would be.
        becomes: &'static str,
        /// The units that use it.
        users: Vec<String>,
    },
    /// A function's callers expect another signature.
    #[error("`{symbol}` of the unit `{unit}` would have the signature {becomes}, but was published as {was}, and {} use it\n  help: give it another name, or say that its callers are ready for it (publish --change-signature)",
        Callers(.users))]
    SignatureChanges {
        /// The function.
        symbol: String,
        /// The unit that is being published.
        unit: String,
        /// The recorded signature.
        was: String,
        /// The new one.
        becomes: String,
        /// The units that use it, besides hosts that may.
        users: Vec<String>,
    },
    /// A number of another unit is taken for a place.
    #[error(
        "the unit `{unit}` refers to `{symbol}`, which is an absolute symbol of the unit `{other}`: only its own unit can use it\n  help: define it in each unit that uses it, or publish them as one unit"
    )]
    Absolute {
        /// The symbol.
        symbol: String,
        /// The unit that refers to it.
        unit: String,
        /// The unit that defines it.
        other: String,
    },
    /// A thread-local symbol for some, and none for others.
    #[error(
        "`{symbol}` is thread-local in one of the units `{unit}` and `{other}`, and not in the other\n  help: declare it alike in both, with or without `__thread`"
    )]
    ThreadLocal {
        /// The symbol.
        symbol: String,
        /// The unit that refers to it.
        unit: String,
        /// The unit that defines it.
        other: String,
    },
    /// Two units bring different data of one name that is to be unique.
    #[error(
        "`{symbol}` is to be one in each process, but has {} bytes aligned to {} in the unit `{unit}`, and {} aligned to {} in the unit `{other}`, which brought it first\n  help: build both from the same sources, or compile one with -fno-gnu-unique and hidden visibility",
        .lengths.0, .alignments.0, .lengths.1, .alignments.1
    )]
    UniqueDiffers {
        /// The symbol.
        symbol: String,
        /// The unit that is being published.
        unit: String,
        /// The unit that has it already.
        other: String,
        /// Their lengths, bytes, the new one first.
        lengths: (u64, u64),
        /// Their alignments, bytes.
        alignments: (u64, u64),
    },
    /// A window has fewer cells than a unit has references.
    #[error(
        "the unit refers to {count} names, for which a window has too few cells\n  help: divide it"
    )]
    Cells {
        /// How many.
        count: usize,
    },
    /// What is asked for is a running canary's matter.
    #[error("{what} cannot be changed while the canary {canary} of {} is running\n  help: promote or abort it first (`jitcast promote {canary}`, `jitcast abort {canary}`)", Names(.units))]
    CanaryRuns {
        /// What.
        what: String,
        /// The canary's number.
        canary: u64,
        /// Its units.
        units: Vec<String>,
    },
    /// A unit is linked against something that a running canary gives another place, or has no more.
    #[error("the unit `{unit}` refers to `{symbol}`, which is not the same in the audience of the canary {canary} of {}\n  help: promote or abort it first (`jitcast promote {canary}`, `jitcast abort {canary}`)", Names(.units))]
    CanaryDiffers {
        /// The unit that is being published.
        unit: String,
        /// The symbol.
        symbol: String,
        /// The canary's number.
        canary: u64,
        /// Its units.
        units: Vec<String>,
    },
    /// Something that a canary cannot be.
    #[error("that cannot be a canary: {why}\n  help: {help}")]
    NoCanary {
        /// Why not.
        why: String,
        /// What to do.
        help: &'static str,
    },
    /// A canary is to be promoted or aborted that is not there.
    #[error(
        "no canary is called `{canary}`\n  help: `jitcast status` lists those that are running, by their numbers and units"
    )]
    NoSuchCanary {
        /// Its number, or the name of a unit of it.
        canary: String,
    },
    /// Two names have one hash.
    #[error(
        "`{symbol}` cannot be published: its 64-bit hash is that of `{other}`\n  help: rename it"
    )]
    HashCollision {
        /// The new name.
        symbol: String,
        /// The published name.
        other: String,
    },
    /// A unit that was asked for wants to be run before or after it is called.
    #[error(
        "a unit that a worker asks for has no {what}\n  help: leave them out, or have the unit published"
    )]
    AskedStarts {
        /// What it has.
        what: &'static str,
    },
    /// A unit that was asked for would be called after it is gone.
    #[error(
        "a unit that a worker asks for registers no handlers, as `{symbol}` does: it may be gone when they run\n  help: have a unit published that does it"
    )]
    AskedRegisters {
        /// The function that registers them.
        symbol: String,
    },
    /// A unit that was asked for has nothing to call.
    #[error("the text defines no function\n  help: ask for at least one")]
    AskedEmpty,
    /// Workers have asked for as much as they may.
    #[error(
        "busy: what workers have asked for takes {bytes} bytes, and may take {limit} together\n  help: ask again when some of them have dropped what they do not need, or start the compiler process with a wider limit (--request-total)"
    )]
    AskedFull {
        /// What it takes, bytes.
        bytes: u64,
        /// What it may take, bytes.
        limit: u64,
    },
    /// No unit can be had any more.
    #[error(
        "the numbers of units or host symbols are used up\n  help: start the compiler process and its workers anew, without the journal"
    )]
    NumbersUsedUp,
    /// A name is too long.
    #[error("a name of {len_bytes} bytes exceeds the limit of {limit_bytes}: `{start}...`")]
    NameTooLong {
        /// Its length, bytes.
        len_bytes: usize,
        /// The limit, bytes.
        limit_bytes: usize,
        /// How it begins.
        start: String,
    },
}

impl From<LinkError> for PublishError {
    fn from(error: LinkError) -> Self {
        Self::Link(Box::new(error))
    }
}

/// Why there is no compiler process.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No segment.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// The segment cannot hold even an empty directory.
    #[error(transparent)]
    Full(#[from] SegmentFull),
    /// The journal cannot be read or begun.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// How many names a message lists.
const SHOWN: usize = 5;

struct Uses<'a>(&'a [(String, Vec<String>)]);

impl fmt::Display for Uses<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (symbol, users)) in self.0.iter().take(SHOWN).enumerate() {
            let comma = if index == 0 { "" } else { "; " };
            write!(f, "{comma}`{symbol}` is used by {}", Names(users))?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "; {more} more of its symbols are used"),
        }
    }
}

struct Names<'a>(&'a [String]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.0.iter().take(SHOWN).enumerate() {
            write!(f, "{}`{name}`", if index == 0 { "" } else { ", " })?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Units, and whoever has a handle.
struct Callers<'a>(&'a [String]);

impl fmt::Display for Callers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("hosts may"),
            users => write!(f, "{} and maybe hosts", Names(users)),
        }
    }
}

struct Are<'a>(&'a [String]);

impl fmt::Display for Are<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}",
            Names(self.0),
            if self.0.len() == 1 { "is" } else { "are" }
        )
    }
}

struct Use<'a>(&'a [String]);

impl fmt::Display for Use<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}",
            Names(self.0),
            if self.0.len() == 1 { "uses" } else { "use" }
        )
    }
}
