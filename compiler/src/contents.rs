//! What retained files contain, in the memory of a compiler process without a journal, which has them in its folder.
//!
//! Invariant: what any unit of the history was made of is here, once, as long as one of its units was made of it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use crate::history::{ContentHash, RetainedUnit};
use crate::publish::UnitSource;

/// The contents of a file, and how many of the retained files have them.
#[derive(Clone, Debug)]
struct Content {
    bytes: Arc<[u8]>,
    users: u64,
}

/// The contents of the retained files.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contents(BTreeMap<ContentHash, Content>);

impl Contents {
    /// Keeps what `unit` is made of, for as often as it is released.
    pub(crate) fn hold(&mut self, unit: &RetainedUnit, source: &UnitSource) {
        for (hash, file) in unit.contents().zip(&source.files) {
            let content = self.0.entry(hash).or_insert_with(|| Content {
                bytes: file.bytes.as_slice().into(),
                users: 0,
            });
            content.users += 1;
        }
    }

    /// Lets go of what `unit` is made of.
    pub(crate) fn release(&mut self, unit: &RetainedUnit) {
        for hash in unit.contents() {
            if let Some(content) = self.0.get_mut(&hash) {
                content.users -= 1;
                if content.users == 0 {
                    self.0.remove(&hash);
                }
            }
        }
    }

    /// What the unit was made of, which is held.
    pub(crate) fn source(&self, unit: &RetainedUnit) -> UnitSource {
        let found = unit.source(|hash| Ok::<_, Infallible>(self.0[&hash].bytes.to_vec()));
        let Ok(source) = found;
        source
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}
