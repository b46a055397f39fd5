//! What can go wrong in a worker, as data.

use std::io;

use jitcast_runtime::header::HeaderError;
use jitcast_runtime::memory::Corrupt;
use jitcast_runtime::window::WindowError;

use crate::startup::FailedUnit;

/// Why a worker cannot attach.
///
/// ```
/// # use std::path::Path;
/// use jitcast_worker::{AttachError, Endpoint, Worker, WorkerOptions};
///
/// let endpoint = Endpoint::Path(Path::new("/run/nobody-listens-here.sock"));
/// let error = Worker::attach(endpoint, WorkerOptions::default()).unwrap_err();
/// assert!(matches!(error, AttachError::Connect { .. }));
/// assert!(error.to_string().contains("help: start it with `jitcast serve"));
/// ```
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no compiler process to talk to.
    #[error(
        "cannot reach the compiler process at {path}: {cause}\n  help: start it with `jitcast serve --socket {path}`, or check the path and its permissions"
    )]
    Connect {
        /// The socket's path.
        path: String,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The conversation broke off.
    #[error(
        "the compiler process does not answer as it should: {cause}\n  help: check that the socket is jitcast's, and of the same version"
    )]
    Protocol {
        /// What went wrong.
        #[source]
        cause: io::Error,
    },
    /// The compiler process said no.
    #[error("the compiler process refused: {reason}")]
    Refused {
        /// Its words.
        reason: String,
    },
    /// The compiler process is somebody else's.
    #[error(
        "the compiler process runs as uid {found}, and code of uid {found} would be executed here as uid {own}\n  help: run the compiler process as uid {own} or root, or allow uid {found} explicitly"
    )]
    ForeignCompiler {
        /// Its uid.
        found: u32,
        /// This process's uid.
        own: u32,
    },
    /// The object is not sealed, though it should be.
    #[error(
        "the segment is not sealed against writing: its seals are {found:#x}, needed are {needed:#x}\n  help: do not use it; check who runs the compiler process"
    )]
    NotSealed {
        /// The seals found.
        found: u32,
        /// The seals needed.
        needed: u32,
    },
    /// The descriptor could be written through.
    #[error(
        "the segment's descriptor is open for writing\n  help: do not use it; check who runs the compiler process"
    )]
    Writable,
    /// The shared data could be cut short under this process, or have been.
    #[error(
        "the shared data cannot be mapped safely: {why}\n  help: do not use them; check who runs the compiler process"
    )]
    SharedData {
        /// What is wrong.
        why: String,
    },
    /// The segment is not one that this process can use.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// It cannot be mapped.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// A step of the system failed.
    #[error("cannot attach: {step}: {cause}")]
    System {
        /// Which step.
        step: &'static str,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// What was published cannot be bound.
    #[error("cannot bind what is published: {0}")]
    Update(#[from] UpdateError),
}

/// Why a publication cannot be applied in this worker.
///
/// ```
/// # use jitcast_worker::{EnterError, Worker};
/// fn is_damaged(worker: &Worker) -> bool {
///     matches!(worker.poll(), Err(EnterError::Update(_)))
/// }
/// ```
#[derive(Clone, Debug, thiserror::Error)]
pub enum UpdateError {
    /// The segment says something impossible.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// More of the window cannot be made accessible.
    #[error("{0}")]
    Window(String),
}

impl From<WindowError> for UpdateError {
    fn from(error: WindowError) -> Self {
        match error {
            WindowError::Corrupt(corrupt) => Self::Corrupt(corrupt),
            other => Self::Window(other.to_string()),
        }
    }
}

/// Why a guard cannot be entered. The host goes on without published code.
///
/// ```
/// # use jitcast_worker::{EnterError, Worker};
/// fn serves(worker: &Worker) -> bool {
///     match worker.enter() {
///         Ok(_guard) => true,
///         Err(EnterError::Forked) => false, // attach in this process, too
///         Err(error) => {
///             eprintln!("without published code: {error}");
///             false
///         }
///     }
/// }
/// ```
#[derive(Clone, Debug, thiserror::Error)]
pub enum EnterError {
    /// This process was forked from the worker.
    #[error(
        "this process was forked from an attached worker, and could not be made one itself (by clone(2) without fork's handlers, without the compiler process, or after its descriptors were closed)\n  help: attach in the child, after the fork"
    )]
    Forked,
    /// Too many threads are inside.
    #[error(
        "all {max} thread records of this worker are in use\n  help: let threads end, or use fewer of them for published code"
    )]
    TooManyThreads {
        /// How many there are.
        max: u32,
    },
    /// The thread is past the end of its life: its thread-local data are gone.
    #[error(
        "this thread is ending, and its records are gone\n  help: do not call published code from destructors of thread-local data"
    )]
    ThreadEnds,
    /// This thread runs destructors of published code, at the end of the worker or the process.
    #[error(
        "this thread runs destructors of published code, and holds the worker meanwhile\n  help: enter before, or do without published code at the end"
    )]
    WhileEnding,
    /// The worker is gone.
    #[error(
        "the worker that this thread's record belongs to was detached\n  help: fetch the thread's record again from a worker that is attached"
    )]
    Detached,
    /// What was published cannot be applied, and what was before may be gone.
    #[error("cannot apply what was published: {0}")]
    Update(#[from] UpdateError),
}

/// Why a name leads to nothing callable.
///
/// ```
/// # use jitcast_worker::{Guard, LookupError, Worker};
/// fn is_published(worker: &Worker, guard: &Guard<'_>) -> Result<bool, LookupError> {
///     match worker.function::<extern "C" fn(i64) -> i64>(guard, "score") {
///         Ok(_) => Ok(true),
///         Err(LookupError::NotFound { .. } | LookupError::Quarantined { .. }) => Ok(false),
///         Err(error) => Err(error), // of another signature, among others
///     }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// Nobody published it.
    #[error(
        "`{name}` is not published\n  help: publish a unit that defines it; `jitcast status` lists what there is"
    )]
    NotFound {
        /// The name.
        name: String,
    },
    /// It is something else.
    #[error("`{name}` is {found}, not a function")]
    NotAFunction {
        /// The name.
        name: String,
        /// What it is.
        found: &'static str,
    },
    /// It was published with another signature.
    #[error("`{name}` has the signature {recorded}, not {asked}")]
    Signature {
        /// The name.
        name: String,
        /// The signature recorded at publication.
        recorded: String,
        /// The signature asked for.
        asked: String,
    },
    /// Nobody said what its signature is.
    #[error(
        "the signature of `{name}` was not recorded\n  help: publish it with debugging information (-g) or --sig, or use the unsafe lookup"
    )]
    UnknownSignature {
        /// The name.
        name: String,
    },
    /// It needs a host symbol that this process does not have.
    #[error(
        "`{name}` needs the host symbol `{import}`, which is missing in this worker (pid {pid})\n  help: load a library that has it (--lib), define it in the worker's host table, or publish a unit that defines it together with `{name}`"
    )]
    MissingImport {
        /// The name.
        name: String,
        /// The host symbol.
        import: String,
        /// This process.
        pid: u32,
    },
    /// It calls a host symbol by another signature than that by which this process defined it.
    #[error(
        "`{name}` calls the host symbol `{import}` as {called}, and this worker (pid {pid}) defines it as {defined}\n  help: declare it in the unit as the host defines it, or define it in the worker's host table as it is called"
    )]
    ImportSignature {
        /// The name.
        name: String,
        /// The host symbol.
        import: String,
        /// How published code calls it.
        called: String,
        /// How the host defines it.
        defined: String,
        /// This process.
        pid: u32,
    },
    /// Its unit failed in this worker.
    #[error(
        "`{name}` cannot be called: {failed}\n  help: mend the unit's constructors and publish it again"
    )]
    UnitFailed {
        /// The name.
        name: String,
        /// Its unit, and why.
        failed: FailedUnit,
    },
    /// It is not to be reached.
    #[error(
        "`{name}` is quarantined\n  help: `jitcast restore {name}` puts it back; a handle with a fallback (`Worker::function_or`) serves meanwhile"
    )]
    Quarantined {
        /// The name.
        name: String,
    },
    /// It is looked up by a constructor or destructor of published code, or by a thread that published code started while one
    /// runs: the lookup would have to wait for it, and it may wait for the lookup.
    #[error(
        "constructors and destructors of published code, and threads that it starts, cannot look functions up while one of them runs\n  help: look them up before, or when it has returned"
    )]
    WhileStarting,
    /// The thread is inside at a generation that others have left, and handles cannot tell it from them.
    #[error(
        "this thread is inside at generation {generation}, which is not the newest, and there is no memory to make a handle for both\n  help: leave the guard, and look again"
    )]
    Outdated {
        /// The thread's generation.
        generation: u64,
    },
    /// It belongs to an asked-for unit that is not there any more.
    #[error(
        "`{name}` belongs to a unit that was asked for and is gone: what it refers to is published no longer, or the compiler process did without it\n  help: ask for it again (`Worker::request`)"
    )]
    Gone {
        /// The name.
        name: String,
    },
    /// The directory cannot be read.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
}

/// Why nothing came of a request for a unit.
///
/// ```
/// use jitcast_worker::RequestError;
///
/// fn is_worth_asking_again(error: &RequestError) -> bool {
///     matches!(error, RequestError::Busy { .. } | RequestError::Lost | RequestError::Gone)
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// There is no compiler process to ask.
    #[error(
        "there is no compiler process to ask\n  help: ask again when there is one (`Worker::tend`, `Worker::is_connected`)"
    )]
    NotConnected,
    /// Too much has been asked for that the compiler process has not read yet.
    #[error(
        "the compiler process has not read what was asked for before\n  help: wait for that, and ask again"
    )]
    Unread,
    /// No answer has come yet.
    #[error("no answer has come yet\n  help: look whether it is ready, or wait for it")]
    NotReady,
    /// The compiler process ended before it answered.
    #[error(
        "the compiler process ended before it answered\n  help: ask again when the worker is connected (`Worker::tend`, `Worker::is_connected`)"
    )]
    Lost,
    /// It is another process's request.
    #[error(
        "the request was made before this process was forked, and is its parent's\n  help: ask in the child"
    )]
    Forked,
    /// The compiler process has too much to do, or this worker asks for too much at once.
    #[error("{reason}")]
    Busy {
        /// Its words.
        reason: String,
    },
    /// It said no, and would again.
    #[error("{reason}")]
    Refused {
        /// Its words.
        reason: String,
    },
    /// The guard is of a generation that does not have the unit yet.
    #[error(
        "this thread is inside at generation {generation}, and the unit is there from {needed} on\n  help: leave all guards, and enter again"
    )]
    Outdated {
        /// The thread's generation.
        generation: u64,
        /// The first that has the unit.
        needed: u64,
    },
    /// The unit was there, and is not any more.
    #[error(
        "the unit is gone: what it refers to is published no longer, or the compiler process did without it\n  help: ask for it again"
    )]
    Gone,
    /// A constructor or destructor of published code asks, or a thread that published code started while one runs.
    #[error(
        "constructors and destructors of published code, and threads that it starts, cannot have units bound while one of them runs\n  help: do it before, or when it has returned"
    )]
    WhileStarting,
    /// It cannot be bound in this worker.
    #[error("the unit cannot be bound: {0}")]
    Update(String),
}

impl LookupError {
    /// Whether it may be otherwise after another publication, so that a fallback serves meanwhile; else the name is
    /// something else than the host takes it for, or this is no time to look.
    pub(crate) fn is_for_now(&self) -> bool {
        matches!(
            self,
            Self::NotFound { .. }
                | Self::MissingImport { .. }
                | Self::ImportSignature { .. }
                | Self::UnitFailed { .. }
                | Self::Quarantined { .. }
                | Self::Gone { .. }
        )
    }
}
