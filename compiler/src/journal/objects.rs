//! What published units were made from: objects and archives, each content once, under its hash.
//!
//! Invariant: an object's file has its name only once all of its contents are durable, and a record that refers
//! to an object is written only once the name is.

use std::collections::HashSet;
use std::io;

use super::storage::{OBJECTS, Storage};
use crate::history::ContentHash;

/// The name of an object's file in the journal's folder.
pub(super) fn path(hash: ContentHash) -> String {
    format!("{OBJECTS}/{hash}")
}

/// What an object is written as until it is whole.
const STAGED: &str = "objects/new";

/// The objects that are there.
#[derive(Debug)]
pub(super) struct Objects {
    /// Names of files, without the folder.
    present: HashSet<String>,
    /// Of these, what the latest publication brought, and of how many bytes.
    brought: Vec<(ContentHash, u64)>,
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
            brought: Vec::new(),
            added_bytes: 0,
        })
    }

    /// Keeps each of `contents`, durably.
    pub(super) fn keep<'a>(
        &mut self,
        storage: &dyn Storage,
        contents: impl Iterator<Item = (ContentHash, &'a [u8])>,
    ) -> io::Result<()> {
        self.brought.clear();
        for (hash, bytes) in contents {
            if self.present.contains(&hash.to_string()) {
                continue;
            }
            let mut file = storage.create(STAGED)?;
            file.append(bytes)?;
            file.sync()?;
            storage.rename(STAGED, &path(hash))?;
            self.present.insert(hash.to_string());
            self.brought.push((hash, bytes.len() as u64));
            self.added_bytes += bytes.len() as u64;
        }
        if !self.brought.is_empty() {
            storage.sync_folder(OBJECTS)?;
        }
        Ok(())
    }

    /// Removes what the latest publication brought, or was about to.
    pub(super) fn take_back(&mut self, storage: &dyn Storage) -> io::Result<()> {
        for (hash, len_bytes) in self.brought.drain(..) {
            self.present.remove(&hash.to_string());
            self.added_bytes -= len_bytes;
            storage.remove(&path(hash))?;
        }
        match storage.open(STAGED)? {
            Some(_) => storage.remove(STAGED),
            None => Ok(()),
        }
    }

    /// What was added since the log was last written anew, bytes.
    pub(super) fn added_bytes(&self) -> u64 {
        self.added_bytes
    }

    /// The content with this hash; `None` if there is none, or it has changed: then it is kept anew when it comes again.
    pub(super) fn read(
        &mut self,
        storage: &dyn Storage,
        hash: ContentHash,
    ) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        let file = storage.open(&path(hash))?;
        if let Some(file) = &file {
            bytes.resize(usize::try_from(file.len()?).map_err(io::Error::other)?, 0);
            file.read(0, &mut bytes)?;
        }
        if file.is_some() && ContentHash::of(&bytes) == hash {
            return Ok(Some(bytes));
        }
        self.present.remove(&hash.to_string());
        Ok(None)
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
