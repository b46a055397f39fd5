//! What the next worker is given, made while nobody waits for anything.

use std::io;

use jitcast_runtime::segment::BlankMailbox;

/// A mailbox, if there is one.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    mailbox: Option<BlankMailbox>,
    /// Making one has failed since the last one was asked for: it is not tried again and again.
    failed: bool,
}

impl Ahead {
    /// Whether there is something to be made in an idle moment.
    pub(super) fn is_wanting(&self) -> bool {
        self.mailbox.is_none() && !self.failed
    }

    /// Makes it. If that fails, whoever asks for it tries again, and is told.
    pub(super) fn make(&mut self) {
        match BlankMailbox::create() {
            Ok(mailbox) => self.mailbox = Some(mailbox),
            Err(error) => {
                tracing::debug!(%error, "no mailbox ahead of need");
                self.failed = true;
            }
        }
    }

    /// A mailbox for somebody who waits for it.
    ///
    /// # Errors
    /// As [`BlankMailbox::create`].
    pub(super) fn take(&mut self) -> io::Result<BlankMailbox> {
        self.failed = false;
        match self.mailbox.take() {
            Some(mailbox) => Ok(mailbox),
            None => BlankMailbox::create(),
        }
    }
}
