//! What published units were made from: objects and archives, each content once, under its hash.
//!
//! Invariant: an object's file has its name only once all of its contents are durable, and a record that refers
//! to an object is written only once the name is.

use std::collections::HashSet;
use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::storage::{OBJECTS, Storage};

/// The SHA-256 of a content; as text, the name of its file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct ContentHash([u8; 32]);

impl ContentHash {
    fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The name of its file in the journal's folder.
    pub(super) fn path(self) -> String {
        format!("{OBJECTS}/{self}")
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What an object is written as until it is whole.
const STAGED: &str = "objects/new";

/// The objects that are there.
#[derive(Debug)]
pub(super) struct Objects {
    /// Names of files, without the folder.
    present: HashSet<String>,
    /// What was added since the log was last written anew, bytes.
    added_bytes: u64,
}

impl Objects {
    /// Looks at what is there. A process that was killed may have left names that are not durable yet.
    pub(super) fn open(storage: &dyn Storage) -> io::Result<Self> {
        let present = storage.list(OBJECTS)?.into_iter().collect();
        storage.sync_folder(OBJECTS)?;
        Ok(Self {
            present,
            added_bytes: 0,
        })
    }

    /// Keeps each of `contents`, durably.
    pub(super) fn keep<'a>(
        &mut self,
        storage: &dyn Storage,
        contents: impl Iterator<Item = &'a [u8]>,
    ) -> io::Result<Vec<ContentHash>> {
        let (mut hashes, mut added) = (Vec::new(), Vec::new());
        for bytes in contents {
            let hash = ContentHash::of(bytes);
            hashes.push(hash);
            if self.present.contains(&hash.to_string()) || added.contains(&hash) {
                continue;
            }
            let mut file = storage.create(STAGED)?;
            file.append(bytes)?;
            file.sync()?;
            storage.rename(STAGED, &hash.path())?;
            self.added_bytes += bytes.len() as u64;
            added.push(hash);
        }
        if !added.is_empty() {
            storage.sync_folder(OBJECTS)?;
        }
        self.present.extend(added.iter().map(ToString::to_string));
        Ok(hashes)
    }

    /// What was added since the log was last written anew, bytes.
    pub(super) fn added_bytes(&self) -> u64 {
        self.added_bytes
    }

    /// The content with this hash; `None` if there is none, or it has changed.
    pub(super) fn read(storage: &dyn Storage, hash: ContentHash) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = storage.open(&hash.path())? else {
            return Ok(None);
        };
        let len = usize::try_from(file.len()?).map_err(io::Error::other)?;
        let mut bytes = vec![0; len];
        file.read(0, &mut bytes)?;
        Ok((ContentHash::of(&bytes) == hash).then_some(bytes))
    }

    /// Forgets what was added, since the log was written anew.
    pub(super) fn forget_added(&mut self) {
        self.added_bytes = 0;
    }

    /// Removes everything but `wanted`.
    pub(super) fn sweep(
        &mut self,
        storage: &dyn Storage,
        wanted: &HashSet<ContentHash>,
    ) -> io::Result<()> {
        let wanted: HashSet<String> = wanted.iter().map(ToString::to_string).collect();
        for name in storage.list(OBJECTS)? {
            if !wanted.contains(&name) {
                self.present.remove(&name);
                storage.remove(&format!("{OBJECTS}/{name}"))?;
            }
        }
        Ok(())
    }
}
