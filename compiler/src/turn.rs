//! When a publication may be committed, among others that are under way.

use crate::error::PublishError;

/// What says when one that is prepared may be committed.
pub(crate) trait Turn {
    /// Waits until everything is committed that goes first.
    fn wait(&mut self) -> Result<(), PublishError>;

    /// It is about to be committed. The state is locked.
    fn begin(&mut self);
}

/// At once.
impl Turn for () {
    fn wait(&mut self) -> Result<(), PublishError> {
        Ok(())
    }

    fn begin(&mut self) {}
}
