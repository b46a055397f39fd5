//! How calls end: a number, and a text.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use ::jitcast_worker::{AttachError, EnterError, LibraryError, LookupError, RequestError};

/// How a call ended. Numbers keep their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum jitcast_status {
    /// As it should.
    Ok = 0,
    /// An argument is none that the function takes: NULL, not UTF-8, a wrong size.
    InvalidArgument = 1,
    /// The time is over, and nothing has come.
    TimedOut = 2,
    /// A mistake of the library. It is to be reported; the worker should not be used any more.
    Internal = 3,
    /// There is no compiler process to talk to.
    Connect = 10,
    /// It does not answer as it should.
    Protocol = 11,
    /// It said no.
    Refused = 12,
    /// It is somebody else's.
    ForeignCompiler = 13,
    /// The segment can be written by others.
    NotSealed = 14,
    /// The segment is not one that this process can use, or cannot be mapped.
    Segment = 15,
    /// A step of the system failed.
    System = 16,
    /// A library cannot be loaded.
    Library = 17,
    /// This process was forked from a worker, and could not be made one.
    Forked = 20,
    /// All thread records of the worker are in use.
    TooManyThreads = 21,
    /// The thread is ending.
    ThreadEnds = 22,
    /// The thread runs destructors of published code.
    WhileEnding = 23,
    /// What is published cannot be applied in this worker.
    Update = 24,
    /// The worker was detached.
    Detached = 25,
    /// The thread holds no guard.
    NotInside = 26,
    /// The thread holds a guard.
    Inside = 27,
    /// The worker has not attached yet.
    NotAttached = 28,
    /// Nothing is published under the name.
    NotFound = 30,
    /// What is, is not a function.
    NotAFunction = 31,
    /// It has another signature.
    Signature = 32,
    /// Its signature was not recorded.
    UnknownSignature = 33,
    /// It needs a host symbol that this process lacks.
    MissingImport = 34,
    /// Its unit failed in this worker.
    UnitFailed = 35,
    /// It is quarantined.
    Quarantined = 36,
    /// Constructors of published code run.
    WhileStarting = 37,
    /// The thread is inside at an old generation, for which there is no handle.
    Outdated = 38,
    /// The unit that had it is gone.
    Gone = 39,
    /// The segment says something impossible.
    Corrupt = 40,
    /// There is no compiler process to ask.
    NotConnected = 50,
    /// It has too much to do, or has not read what was asked for before.
    Busy = 51,
    /// No answer has come yet.
    NotReady = 52,
    /// The compiler process ended before it answered.
    Lost = 53,
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// The text of the calling thread's last error, with a line that says what to do where there is something; "" if there
/// was none. Valid until the thread's next call that fails. Calls that succeed leave it as it is; JITCAST_STATUS_TIMED_OUT has no
/// text. Never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn jitcast_last_error() -> *const c_char {
    const GONE: &CStr = c"this thread is ending, and what it was told is gone";
    let text = LAST.try_with(|last| last.borrow().as_ptr());
    text.unwrap_or(GONE.as_ptr())
}

/// Why a call fails.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: jitcast_status,
    text: String,
}

impl Failure {
    pub(crate) fn new(status: jitcast_status, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { status, text }
    }

    /// An argument that is refused.
    pub(crate) fn argument(text: impl Into<String>) -> Self {
        Self::new(jitcast_status::InvalidArgument, text)
    }

    fn tell(self) -> jitcast_status {
        // A zero would end it for C.
        let text = self.text.replace('\0', "?");
        let text = CString::new(text).unwrap_or_default();
        // A thread that is ending is told by the status alone.
        let _ = LAST.try_with(|last| last.replace(text));
        self.status
    }
}

/// Does `work` at the boundary, which no panic crosses.
pub(crate) fn bounded(work: impl FnOnce() -> Result<(), Failure>) -> jitcast_status {
    // Whatever a panic left is not used any more, or is behind locks that say so.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => jitcast_status::Ok,
        Ok(Err(failure)) => failure.tell(),
        Err(panic) => internal(panic.as_ref()).tell(),
    }
}

/// The same, for functions that return something else than a status.
pub(crate) fn bounded_or<T>(otherwise: T, work: impl FnOnce() -> Result<T, Failure>) -> T {
    let mut result = otherwise;
    bounded(|| {
        result = work()?;
        Ok(())
    });
    result
}

fn internal(panic: &(dyn Any + Send)) -> Failure {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    let why = text.unwrap_or("a panic without words");
    let help = "help: report it; do not use the worker any more";
    Failure::new(
        jitcast_status::Internal,
        format!("a mistake of jitcast: {why}\n  {help}"),
    )
}

impl From<AttachError> for Failure {
    fn from(error: AttachError) -> Self {
        let status = match &error {
            AttachError::Connect { .. } => jitcast_status::Connect,
            AttachError::Protocol { .. } => jitcast_status::Protocol,
            AttachError::Refused { .. } => jitcast_status::Refused,
            AttachError::ForeignCompiler { .. } => jitcast_status::ForeignCompiler,
            AttachError::NotSealed { .. }
            | AttachError::Writable
            | AttachError::SharedData { .. } => jitcast_status::NotSealed,
            AttachError::Header(_) | AttachError::Window(_) => jitcast_status::Segment,
            AttachError::System { .. } => jitcast_status::System,
            AttachError::Update(_) => jitcast_status::Update,
        };
        Self::new(status, error.to_string())
    }
}

impl From<EnterError> for Failure {
    fn from(error: EnterError) -> Self {
        let status = match &error {
            EnterError::Forked => jitcast_status::Forked,
            EnterError::TooManyThreads { .. } => jitcast_status::TooManyThreads,
            EnterError::ThreadEnds => jitcast_status::ThreadEnds,
            EnterError::WhileEnding => jitcast_status::WhileEnding,
            EnterError::Detached => jitcast_status::Detached,
            EnterError::Update(_) => jitcast_status::Update,
        };
        Self::new(status, error.to_string())
    }
}

impl From<LookupError> for Failure {
    fn from(error: LookupError) -> Self {
        let status = match &error {
            LookupError::NotFound { .. } => jitcast_status::NotFound,
            LookupError::NotAFunction { .. } => jitcast_status::NotAFunction,
            LookupError::Signature { .. } => jitcast_status::Signature,
            LookupError::UnknownSignature { .. } => jitcast_status::UnknownSignature,
            LookupError::MissingImport { .. } | LookupError::ImportSignature { .. } => {
                jitcast_status::MissingImport
            }
            LookupError::UnitFailed { .. } => jitcast_status::UnitFailed,
            LookupError::Quarantined { .. } => jitcast_status::Quarantined,
            LookupError::WhileStarting => jitcast_status::WhileStarting,
            LookupError::Outdated { .. } => jitcast_status::Outdated,
            LookupError::Gone { .. } => jitcast_status::Gone,
            LookupError::Corrupt(_) => jitcast_status::Corrupt,
        };
        Self::new(status, error.to_string())
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        let status = match &error {
            RequestError::NotConnected => jitcast_status::NotConnected,
            RequestError::Unread | RequestError::Busy { .. } => jitcast_status::Busy,
            RequestError::NotReady => jitcast_status::NotReady,
            RequestError::Lost => jitcast_status::Lost,
            RequestError::Forked => jitcast_status::Forked,
            RequestError::Refused { .. } => jitcast_status::Refused,
            RequestError::Outdated { .. } => jitcast_status::Outdated,
            RequestError::Gone => jitcast_status::Gone,
            RequestError::WhileStarting => jitcast_status::WhileStarting,
            RequestError::Update(_) => jitcast_status::Update,
        };
        Self::new(status, error.to_string())
    }
}

impl From<LibraryError> for Failure {
    fn from(error: LibraryError) -> Self {
        Self::new(jitcast_status::Library, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last() -> String {
        LAST.with_borrow(|text| text.to_string_lossy().into_owned())
    }

    #[test]
    fn a_panic_becomes_a_status_with_its_words() {
        assert_eq!(
            bounded(|| panic!("one {}", "two")),
            jitcast_status::Internal
        );
        assert!(
            last().contains("one two") && last().contains("help:"),
            "{}",
            last()
        );
        assert_eq!(bounded_or(7, || panic!("three")), 7);
        assert!(last().contains("three"), "{}", last());
    }

    #[test]
    fn success_leaves_the_text_and_zeroes_do_not_end_it() {
        let refused = || Err(Failure::argument("a\0b"));
        assert_eq!(bounded(refused), jitcast_status::InvalidArgument);
        assert_eq!(bounded(|| Ok(())), jitcast_status::Ok);
        assert_eq!(last(), "a?b");
    }
}
