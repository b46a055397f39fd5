//! The worker side of jitcast: attach, poll, bind, call.
//!
//! Exceptions and backtraces pass published code; [`embed!`] says how an executable helps them.
//!
//! Small: no linker, no compiler, no threads, no signal handlers. Nothing here allocates or locks while
//! nothing is new.

mod apply;
mod asked;
mod attach;
mod barrier;
mod bind;
mod canary;
mod cells;
mod crash;
mod debug;
mod error;
mod fault;
mod foreign;
mod fork;
mod function_type;
mod guard;
mod handle;
mod handles;
mod host;
mod imports;
mod inbox;
pub mod invoke;
mod late;
mod life;
mod link;
mod log;
mod lookup;
mod pin_slot;
mod polled;
mod renew;
mod request;
mod spawn;
mod startup;
mod thread_local;
mod thread_record;
mod thread_words;
mod transition;
mod trap;
mod unwind;
mod watched;
mod worker;

/// What [`embed!`] expands to.
#[doc(hidden)]
pub mod unwinder {
    pub use crate::unwind::hook::{Bases, find_fde};
}

pub use asked::AskedUnit;
pub use attach::Endpoint;
pub use crash::CrashReports;
pub use debug::DebugOptions;
pub use error::{AttachError, EnterError, LookupError, RequestError, UpdateError};
pub use foreign::Code;
pub use function_type::{AbiType, FunctionType};
pub use guard::{Guard, Thread};
pub use handle::Function;
pub use host::{HostTable, LibraryError};
pub use jitcast_runtime::WorkerAddr;
pub use jitcast_runtime::signature::Signature;
pub use late::{LateFunction, LateWorker};
pub use log::{Event, Log};
pub use lookup::Symbol;
pub use polled::Polled;
pub use request::Pending;
pub use startup::FailedUnit;
pub use thread_words::{THREAD_ALIVE, THREAD_TO_PIN, ThreadWords, Token};
pub use unwind::Unwinding;
pub use unwind::symbolize::Location;
pub use worker::{Worker, WorkerOptions, WorkerStats};
