//! What was published lately, and from which sources, so that it can be published again.
//!
//! Plain data, which can be serialised as it is: contents of files lie elsewhere, under their hashes. Invariant: what
//! the state after any generation from [`History::oldest`] on was made of is said here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use jitcast_linker::Dialect;
use jitcast_runtime::signature::Signature;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::PublishError;
use crate::publish::{LinkOptions, Reclaim, UnitFile, UnitSource};

/// The SHA-256 of a file's contents: equal ones are held once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A file of a unit, its contents by hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetainedFile {
    /// The name that messages use.
    pub name: String,
    /// What is in it: an object or an archive.
    pub content: ContentHash,
    /// Whether our own Cranelift front end made it.
    pub cranelift: bool,
}

/// A [`UnitSource`], its files by their hashes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetainedUnit {
    /// Its name.
    pub name: String,
    /// Its files.
    pub files: Vec<RetainedFile>,
    /// Recorded signatures, in their canonical text.
    pub signatures: Vec<(String, String)>,
    /// Functions that no host can call, with what is recorded instead.
    pub uncallable: Vec<(String, String)>,
    /// The signatures by which it calls functions of others, likewise.
    pub imports: Vec<(String, String)>,
    /// Whether its memory is reused.
    pub reclaim: Reclaim,
    /// How it is linked.
    pub link: LinkOptions,
}

impl RetainedUnit {
    /// What is retained of `source`.
    pub fn new(source: &UnitSource) -> Self {
        let files = source.files.iter();
        Self::with(source, files.map(|file| ContentHash::of(&file.bytes)))
    }

    /// The same, of which the hashes of the files' contents are known.
    pub(crate) fn with(source: &UnitSource, hashes: impl Iterator<Item = ContentHash>) -> Self {
        let files = source.files.iter().zip(hashes);
        let files = files.map(|(file, content)| RetainedFile {
            name: file.name.clone(),
            content,
            cranelift: file.dialect == Dialect::Cranelift,
        });
        let texts = |signatures: &[(String, Signature)]| {
            let texts = signatures.iter();
            let texts = texts.map(|(name, signature)| (name.clone(), signature.to_string()));
            texts.collect()
        };
        Self {
            name: source.name.clone(),
            files: files.collect(),
            signatures: texts(&source.signatures),
            uncallable: source.uncallable.clone(),
            imports: texts(&source.imports),
            reclaim: source.reclaim,
            link: source.link.clone(),
        }
    }

    /// Whether both are linked to the same; files may have other names.
    pub fn is_same(&self, other: &Self) -> bool {
        let nameless = |unit: &Self| {
            let mut unit = unit.clone();
            unit.files.iter_mut().for_each(|file| file.name.clear());
            unit
        };
        nameless(self) == nameless(other)
    }

    /// The hashes of its files' contents.
    pub fn contents(&self) -> impl Iterator<Item = ContentHash> {
        self.files.iter().map(|file| file.content)
    }

    /// The unit again, with the contents that `find` finds.
    ///
    /// # Errors
    /// Those of `find`.
    pub fn source<E>(
        &self,
        mut find: impl FnMut(ContentHash) -> Result<Vec<u8>, E>,
    ) -> Result<UnitSource, E> {
        let file = |file: &RetainedFile| {
            Ok(UnitFile {
                name: file.name.clone(),
                bytes: find(file.content)?,
                dialect: if file.cranelift {
                    Dialect::Cranelift
                } else {
                    Dialect::Elf
                },
            })
        };
        let parsed = |texts: &[(String, String)]| {
            let texts = texts.iter();
            let parsed = texts.filter_map(|(name, text)| Some((name.clone(), text.parse().ok()?)));
            parsed.collect()
        };
        Ok(UnitSource {
            name: self.name.clone(),
            files: self.files.iter().map(file).collect::<Result<_, _>>()?,
            signatures: parsed(&self.signatures),
            uncallable: self.uncallable.clone(),
            imports: parsed(&self.imports),
            reclaim: self.reclaim,
            link: self.link.clone(),
        })
    }
}

/// A unit as it is published, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedUnit {
    /// What it was made of.
    pub unit: RetainedUnit,
    /// The generation that published it.
    pub generation: u64,
    /// `CLOCK_MONOTONIC` at that, ns.
    pub published_ns: u64,
}

/// A publication that can be undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Its generation.
    pub generation: u64,
    /// The units that it published or removed, with what they were before; `None`: not there.
    pub before: BTreeMap<String, Option<RetainedUnit>>,
    /// Those that it removed.
    pub removed: BTreeSet<String>,
}

/// The sources of what is published, and of what the last publications replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// An option of the process, and so no part of what is stored.
    #[serde(skip)]
    retain: usize,
    oldest: u64,
    published: BTreeMap<String, PublishedUnit>,
    entries: VecDeque<HistoryEntry>,
}

/// What leads back to an earlier state.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Undo {
    pub(crate) units: Vec<RetainedUnit>,
    pub(crate) removals: Vec<String>,
}

impl History {
    /// The history of an empty segment at `generation`, which retains the last `retain` publications of units.
    pub fn new(retain: usize, generation: u64) -> Self {
        Self {
            retain,
            oldest: generation,
            published: BTreeMap::new(),
            entries: VecDeque::new(),
        }
    }

    /// The oldest generation whose state is known.
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// The publications that can be undone, the oldest first.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &HistoryEntry> {
        self.entries.iter()
    }

    /// What is published.
    pub fn published(&self) -> &BTreeMap<String, PublishedUnit> {
        &self.published
    }

    /// The hashes of what all units were made of that are published or can be had again.
    pub fn contents(&self) -> impl Iterator<Item = ContentHash> {
        let published = self.published.values().map(|published| &published.unit);
        let before = self.entries.iter().flat_map(|entry| entry.before.values());
        let units = published.chain(before.flatten());
        units.flat_map(RetainedUnit::contents)
    }

    /// Whether anything can be undone: if not, nobody asks for contents.
    pub(crate) fn retains(&self) -> bool {
        self.retain > 0
    }

    /// From now on, the last `retain` publications of units are retained.
    pub(crate) fn set_retain(&mut self, retain: usize) {
        self.retain = retain;
        self.forget();
    }

    /// The publication that made the units what `units` asks for, if that is what they all are.
    pub(crate) fn published_as(&self, units: &[RetainedUnit]) -> Option<&PublishedUnit> {
        let known = |unit: &RetainedUnit| {
            let published = self.published.get(&unit.name)?;
            published.unit.is_same(unit).then_some(published)
        };
        let known: Option<Vec<_>> = units.iter().map(known).collect();
        known?
            .into_iter()
            .max_by_key(|published| published.generation)
    }

    /// Records a publication of `units` that removed `removed`. What it returns cannot be had again from now on.
    pub(crate) fn record(
        &mut self,
        (generation, published_ns): (u64, u64),
        units: &[RetainedUnit],
        removed: &[String],
    ) -> Vec<RetainedUnit> {
        if units.is_empty() && removed.is_empty() {
            return Vec::new();
        }
        let mut before = BTreeMap::new();
        for unit in units {
            let published = PublishedUnit {
                unit: unit.clone(),
                generation,
                published_ns,
            };
            let old = match self.published.get_mut(&unit.name) {
                Some(known) => Some(std::mem::replace(known, published)),
                None => self.published.insert(unit.name.clone(), published),
            };
            before.insert(unit.name.clone(), old.map(|old| old.unit));
        }
        for name in removed {
            let old = self.published.remove(name);
            before.insert(name.clone(), old.map(|old| old.unit));
        }
        self.entries.push_back(HistoryEntry {
            generation,
            before,
            removed: removed.iter().cloned().collect(),
        });
        self.forget()
    }

    /// Forgets what is older than is retained.
    fn forget(&mut self) -> Vec<RetainedUnit> {
        let too_many = self.entries.len().saturating_sub(self.retain);
        let mut forgotten = Vec::new();
        for entry in self.entries.drain(..too_many) {
            self.oldest = entry.generation;
            forgotten.extend(entry.before.into_values().flatten());
        }
        forgotten
    }

    /// Whether one that was read back may be that of a segment at `generation` with `units`, by name, each with the
    /// generation that published it.
    pub(crate) fn fits<'a>(
        &self,
        generation: u64,
        units: impl ExactSizeIterator<Item = (&'a String, u64)>,
    ) -> bool {
        let same_count = units.len() == self.published.len();
        let is_known = |(name, since): (&String, u64)| {
            let published = self.published.get(name);
            published.is_some_and(|published| {
                published.unit.name == *name && published.generation == since
            })
        };
        let mut units = units;
        let mut last = self.oldest;
        let is_entry = |entry: &HistoryEntry| {
            let follows = entry.generation > last && entry.generation <= generation;
            last = entry.generation;
            let mut before = entry.before.iter();
            let named = before.all(|(name, unit)| {
                let unit = unit.as_ref();
                unit.is_none_or(|unit| unit.name == *name)
            });
            follows
                && named
                && entry
                    .removed
                    .iter()
                    .all(|name| entry.before.contains_key(name))
        };
        same_count && units.all(is_known) && self.entries.iter().all(is_entry)
    }

    /// What leads back to the state after generation `to`; `None`: to that before the latest entry.
    pub(crate) fn undo(&self, to: Option<u64>) -> Result<Undo, PublishError> {
        let newest = self.entries.back().map(|entry| entry.generation);
        let newest = newest.ok_or(PublishError::NothingToRollBack)?;
        let to = to.unwrap_or(newest - 1);
        if !(self.oldest..newest).contains(&to) {
            return Err(PublishError::CannotRollBack {
                generation: to,
                oldest: self.oldest,
                newest,
            });
        }
        let mut wanted = BTreeMap::new();
        // The oldest of them says how it was.
        for entry in self
            .entries
            .iter()
            .rev()
            .take_while(|entry| entry.generation > to)
        {
            wanted.extend(
                entry
                    .before
                    .iter()
                    .map(|(name, unit)| (name, unit.as_ref())),
            );
        }
        let mut undo = Undo::default();
        for (name, unit) in wanted {
            let now = self.published.get(name).map(|published| &published.unit);
            match (now, unit) {
                (Some(now), Some(unit)) if now.is_same(unit) => {}
                (_, Some(unit)) => undo.units.push(unit.clone()),
                (Some(_), None) => undo.removals.push(name.clone()),
                (None, None) => {}
            }
        }
        if undo.units.is_empty() && undo.removals.is_empty() {
            return Err(PublishError::NothingToRollBack);
        }
        Ok(undo)
    }
}

#[cfg(test)]
mod tests;
