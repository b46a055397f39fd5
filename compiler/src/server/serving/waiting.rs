//! Workers that want to attach while it is not known which object the shared data are in: one that was attached to the compiler
//! process before may bring it.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::{Incoming, Loop, RETRY};

/// How long after the start workers that are new wait for one that brings them.
pub(super) const SHARED_PATIENCE: Duration = Duration::from_secs(2);

/// What nobody is told.
pub(super) const UNKNOWN: &str = "it is not known yet which the shared data are";

impl Loop<'_> {
    /// Lets whoever wants to attach wait while it is not known which object the shared data are in; one that was attached before
    /// may bring it. What its child takes over has been asked for in the same breath, and comes after that.
    pub(super) fn wait(&mut self, token: u64, incoming: Incoming) -> Option<Incoming> {
        if matches!(incoming, Incoming::Spare) {
            return match self
                .waiting
                .iter()
                .filter(|(waiting, _)| *waiting == token)
                .count()
            {
                0 => Some(incoming),
                1 => {
                    self.waiting.push((token, incoming));
                    None
                }
                _ => Some(Incoming::Refused(
                    "this connection waits already".to_owned(),
                )),
            };
        }
        let attaches = matches!(incoming, Incoming::Attach(_) | Incoming::Resume(..));
        let segment = self.compiler.segment();
        if !attaches || segment.shared_fd().is_some() {
            return Some(incoming);
        }
        if let Incoming::Resume(_, fds) = &incoming
            && let Some(shared) = fds.get(1)
            && let Err(error) = segment.adopt_shared_data(shared.as_fd())
        {
            tracing::warn!(%error, "the shared data that a worker has cannot be taken");
        }
        if segment.shared_fd().is_some() {
            return Some(incoming);
        }
        if self.waiting.iter().any(|(waiting, _)| *waiting == token) {
            return Some(Incoming::Refused(
                "this connection waits already".to_owned(),
            ));
        }
        self.waiting.push((token, incoming));
        None
    }

    /// Lets those attach that have waited, if the shared data have come, or long enough.
    pub(super) fn let_wait_no_longer(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let segment = self.compiler.segment();
        if segment.shared_fd().is_none() {
            if Instant::now() < self.patience {
                return;
            }
            tracing::info!(
                "no worker has brought the shared data of the compiler process before: they start afresh"
            );
            if let Err(error) = segment.begin_shared_data() {
                tracing::warn!(%error, "shared data cannot be had for now");
                self.patience = Instant::now() + RETRY;
                return;
            }
        }
        for (token, incoming) in std::mem::take(&mut self.waiting) {
            self.handle(token, incoming);
        }
    }
}
