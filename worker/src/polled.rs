//! What a look for something new found.

/// What [`Worker::poll`](crate::Worker::poll) found.
///
/// ```
/// # use jitcast_worker::{EnterError, Polled, Worker};
/// fn in_an_idle_moment(worker: &Worker) -> Result<(), EnterError> {
///     if let Polled::Applied { generation } = worker.poll()? {
///         eprintln!("runs generation {generation} from here on");
///     }
///     Ok(())
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polled {
    /// Nothing is newer than this generation, which had been applied before.
    Current {
        /// The generation.
        generation: u64,
    },
    /// This generation has been applied just now, by this thread or, at the same time, by another one.
    Applied {
        /// The generation.
        generation: u64,
    },
    /// This thread is inside a guard, so nothing was applied: what it calls stays of its generation until it has left.
    Inside {
        /// The generation that the thread is inside at.
        generation: u64,
        /// The newest generation that was published; at the least what the thread is inside at.
        newest: u64,
    },
}

impl Polled {
    /// The generation that the calling thread runs at, or would enter at now.
    pub fn generation(self) -> u64 {
        match self {
            Self::Current { generation }
            | Self::Applied { generation }
            | Self::Inside { generation, .. } => generation,
        }
    }
}
