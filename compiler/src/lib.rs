//! The compiler process of jitcast: front ends, publisher, sockets.

mod catalog;
mod compiler;
mod error;
mod fault;
pub mod front;
mod journal;
mod preview;
mod publish;
pub mod request;
mod server;
mod state;
mod status;
mod support;
mod workers;

pub use compiler::{Compiler, CompilerOptions};
pub use error::{PublishError, StartError};
#[cfg(feature = "seeded-faults")]
pub use fault::CRASH_POINTS;
pub use journal::{JournalError, JournalOptions};
pub use preview::Preview;
pub use publish::{LinkOptions, Publication, Reclaim, UnitFile, UnitSource};
pub use server::{Access, Policy, ServeError, Server, Stop};
pub use status::{AreaStatus, KeptStatus, Status, SymbolStatus, UnitStatus, WorkerStatus};
