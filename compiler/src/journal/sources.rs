//! What each published unit was made from, by reference to the journal's objects.

use std::collections::{BTreeMap, HashSet, VecDeque};

use jitcast_linker::Dialect;
use serde::{Deserialize, Serialize};

use super::objects::ContentHash;
use crate::publish::{LinkOptions, Reclaim, UnitFile, UnitSource};

/// Of how many publications all sources are remembered; of older ones, those of units that are still published.
const REMEMBERED: usize = 3;

/// A [`UnitSource`] without the contents of its files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredUnit {
    pub(super) name: String,
    pub(super) files: Vec<StoredFile>,
    /// Names and signatures, these as text.
    signatures: Vec<(String, String)>,
    uncallable: Vec<(String, String)>,
    reclaim: Reclaim,
    link: LinkOptions,
}

/// A file of a unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredFile {
    name: String,
    /// Whether it is of our own Cranelift front end.
    cranelift: bool,
    pub(super) content: ContentHash,
}

impl StoredUnit {
    /// What is stored of `source`, whose files have these contents, in order.
    pub(super) fn new(
        source: &UnitSource,
        contents: &mut impl Iterator<Item = ContentHash>,
    ) -> Self {
        let files = source.files.iter().zip(contents);
        let signatures = source.signatures.iter();
        Self {
            name: source.name.clone(),
            files: files
                .map(|(file, content)| StoredFile {
                    name: file.name.clone(),
                    cranelift: file.dialect == Dialect::Cranelift,
                    content,
                })
                .collect(),
            signatures: signatures
                .map(|(name, signature)| (name.clone(), signature.to_string()))
                .collect(),
            uncallable: source.uncallable.clone(),
            reclaim: source.reclaim,
            link: source.link.clone(),
        }
    }

    /// The unit again, with the contents of its files in order; `None` if a signature is none of this version's.
    pub(super) fn source(&self, contents: Vec<Vec<u8>>) -> Option<UnitSource> {
        let signatures = self.signatures.iter();
        let signatures = signatures.map(|(name, text)| Some((name.clone(), text.parse().ok()?)));
        let files = self
            .files
            .iter()
            .zip(contents)
            .map(|(file, bytes)| UnitFile {
                name: file.name.clone(),
                bytes,
                dialect: if file.cranelift {
                    Dialect::Cranelift
                } else {
                    Dialect::Elf
                },
            });
        Some(UnitSource {
            name: self.name.clone(),
            files: files.collect(),
            signatures: signatures.collect::<Option<_>>()?,
            uncallable: self.uncallable.clone(),
            reclaim: self.reclaim,
            link: self.link.clone(),
        })
    }
}

/// The sources that are remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sources {
    /// Of each unit that is published, those of its latest publication.
    live: BTreeMap<String, (u64, StoredUnit)>,
    /// Of the last few publications, the oldest first.
    recent: VecDeque<(u64, Vec<StoredUnit>)>,
}

impl Sources {
    /// Remembers those of publication `generation`.
    pub(super) fn record(&mut self, generation: u64, units: Vec<StoredUnit>) {
        for unit in &units {
            self.live
                .insert(unit.name.clone(), (generation, unit.clone()));
        }
        self.recent.push_back((generation, units));
        if self.recent.len() > REMEMBERED {
            self.recent.pop_front();
        }
    }

    /// Forgets units that are not published any more.
    pub(super) fn retain(&mut self, is_published: impl Fn(&str) -> bool) {
        self.live.retain(|name, _| is_published(name));
    }

    /// The unit `name` of publication `generation`, if it is remembered.
    pub(super) fn get(&self, generation: u64, name: &str) -> Option<&StoredUnit> {
        let live = self.live.get(name).filter(|(at, _)| *at == generation);
        let recent = self.recent.iter().filter(|(at, _)| *at == generation);
        let recent = recent
            .flat_map(|(_, units)| units)
            .find(|unit| unit.name == name);
        live.map(|(_, unit)| unit).or(recent)
    }

    /// Every content that is referred to.
    pub(super) fn contents(&self) -> HashSet<ContentHash> {
        let live = self.live.values().map(|(_, unit)| unit);
        let recent = self.recent.iter().flat_map(|(_, units)| units);
        let files = live.chain(recent).flat_map(|unit| &unit.files);
        files.map(|file| file.content).collect()
    }
}
