//! What was published lately, and from which sources, so that it can be published again.
//!
//! Plain data: all but the contents of files can be serialised as it is, and those lie under their hashes. Invariant: what
//! the state after any generation from [`History::oldest`] on was made of is here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use jitcast_linker::Dialect;
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
    /// Whether its memory is reused.
    pub reclaim: Reclaim,
    /// How it is linked.
    pub link: LinkOptions,
}

impl RetainedUnit {
    /// What is retained of `source`.
    pub fn new(source: &UnitSource) -> Self {
        let files = source.files.iter().map(|file| RetainedFile {
            name: file.name.clone(),
            content: ContentHash::of(&file.bytes),
            cranelift: file.dialect == Dialect::Cranelift,
        });
        let signatures = source.signatures.iter();
        Self {
            name: source.name.clone(),
            files: files.collect(),
            signatures: signatures
                .map(|(name, signature)| (name.clone(), signature.to_string()))
                .collect(),
            uncallable: source.uncallable.clone(),
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

/// The contents of a file, and how many of the retained files have them.
#[derive(Clone, Debug)]
struct Content {
    bytes: Arc<[u8]>,
    users: u64,
}

/// The sources of what is published, and of what the last publications replaced.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct History {
    retain: usize,
    oldest: u64,
    published: BTreeMap<String, PublishedUnit>,
    entries: VecDeque<HistoryEntry>,
    #[serde(skip)]
    contents: BTreeMap<ContentHash, Content>,
}

/// What leads back to an earlier state.
#[derive(Debug, Default)]
pub(crate) struct Undo {
    pub(crate) units: Vec<UnitSource>,
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
            contents: BTreeMap::new(),
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

    /// The contents of the retained files: what has to be stored beside this value.
    pub fn contents(&self) -> impl Iterator<Item = (ContentHash, &Arc<[u8]>)> {
        self.contents
            .iter()
            .map(|(hash, content)| (*hash, &content.bytes))
    }

    /// Finds the contents again of a history that was serialised.
    ///
    /// # Errors
    /// The hash of contents that `find` does not give.
    pub fn find_contents(
        &mut self,
        mut find: impl FnMut(ContentHash) -> Option<Arc<[u8]>>,
    ) -> Result<(), ContentHash> {
        let published = self.published.values().map(|published| &published.unit);
        let before = self.entries.iter().flat_map(|entry| entry.before.values());
        let mut contents = BTreeMap::<_, Content>::new();
        for file in published
            .chain(before.flatten())
            .flat_map(|unit| &unit.files)
        {
            if let Some(known) = contents.get_mut(&file.content) {
                known.users += 1;
                continue;
            }
            let bytes = find(file.content).ok_or(file.content)?;
            contents.insert(file.content, Content { bytes, users: 1 });
        }
        self.contents = contents;
        Ok(())
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

    /// Records a publication of `units`, made of `sources`, that removed `removed`.
    pub(crate) fn record(
        &mut self,
        (generation, published_ns): (u64, u64),
        units: &[RetainedUnit],
        sources: &[UnitSource],
        removed: &[String],
    ) {
        if units.is_empty() && removed.is_empty() {
            return;
        }
        let mut before = BTreeMap::new();
        for (unit, source) in units.iter().zip(sources) {
            self.hold(unit, source);
            let published = PublishedUnit {
                unit: unit.clone(),
                generation,
                published_ns,
            };
            let old = self.published.insert(unit.name.clone(), published);
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
        while self.entries.len() > self.retain {
            let Some(entry) = self.entries.pop_front() else {
                return;
            };
            self.oldest = entry.generation;
            entry
                .before
                .into_values()
                .flatten()
                .for_each(|unit| self.release(&unit));
        }
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
                (_, Some(unit)) => undo.units.push(self.source(unit)),
                (Some(_), None) => undo.removals.push(name.clone()),
                (None, None) => {}
            }
        }
        if undo.units.is_empty() && undo.removals.is_empty() {
            return Err(PublishError::NothingToRollBack);
        }
        Ok(undo)
    }

    fn source(&self, unit: &RetainedUnit) -> UnitSource {
        let files = unit.files.iter().map(|file| UnitFile {
            name: file.name.clone(),
            bytes: self.contents[&file.content].bytes.to_vec(),
            dialect: if file.cranelift {
                Dialect::Cranelift
            } else {
                Dialect::Elf
            },
        });
        let signatures = unit.signatures.iter();
        UnitSource {
            name: unit.name.clone(),
            files: files.collect(),
            signatures: signatures
                .filter_map(|(name, text)| Some((name.clone(), text.parse().ok()?)))
                .collect(),
            uncallable: unit.uncallable.clone(),
            reclaim: unit.reclaim,
            link: unit.link.clone(),
        }
    }

    fn hold(&mut self, unit: &RetainedUnit, source: &UnitSource) {
        // What can never be undone needs no contents.
        if self.retain == 0 {
            return;
        }
        for (file, source) in unit.files.iter().zip(&source.files) {
            let content = self.contents.entry(file.content);
            let content = content.or_insert_with(|| Content {
                bytes: source.bytes.as_slice().into(),
                users: 0,
            });
            content.users += 1;
        }
    }

    fn release(&mut self, unit: &RetainedUnit) {
        for file in &unit.files {
            if let Some(content) = self.contents.get_mut(&file.content) {
                content.users -= 1;
                if content.users == 0 {
                    self.contents.remove(&file.content);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
