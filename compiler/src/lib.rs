//! The compiler process of jitcast: front ends, publisher, sockets.

mod adoption;
mod canaries;
mod catalog;
mod changeset;
mod compiler;
mod contents;
mod debug;
mod error;
mod fault;
pub mod front;
pub mod history;
mod incidents;
mod journal;
mod kernel;
mod layout;
mod metrics;
mod options;
mod preview;
mod publish;
mod removed;
mod renewal;
pub mod request;
mod requests;
mod server;
mod shared_data;
mod state;
mod status;
mod stragglers;
mod support;
mod threads;
mod turn;
mod workers;

pub use changeset::{Audience, Changeset, PublishOptions, SymbolUpdate};
pub use compiler::Compiler;
pub use error::{PublishError, StartError};
#[cfg(feature = "seeded-faults")]
pub use fault::CRASH_POINTS;
pub use incidents::{CrashStatus, ErrorStatus};
pub use journal::{JournalError, JournalOptions, ReplayProgress};
pub use kernel::{Lacking, lacking};
pub use layout::RangeStatus;
pub use metrics::Metrics;
pub use options::{CompilerOptions, DEFAULT_RETAIN};
pub use preview::Preview;
pub use publish::{LinkOptions, Publication, Reclaim, UnitFile, UnitSource};
pub use requests::{RequestLimits, RequestOptions, codegen};
pub use server::{Access, Policy, PublishLimits, ServeError, Server, Stop};
pub use status::{
    AreaStatus, AskedStatus, CanaryStatus, HeldStatus, HistoryStatus, HolderStatus, JournalStatus,
    KeptStatus, RemovedStatus, Status, SymbolStatus, TrapStatus, UnitStatus, WorkerStatus,
};
pub use stragglers::Straggler;
pub use threads::Threads;
