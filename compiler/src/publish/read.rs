//! What of a publication depends neither on what is published nor on where it will lie: in several threads, and while others commit.
//!
//! Invariant: what comes out does not depend on how many threads there are.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::convert::Infallible;

use jitcast_linker::{File, Input, Prepared};

use super::{UnitFile, UnitSource, check_name};
use crate::changeset::Changeset;
use crate::error::PublishError;
use crate::history::{ContentHash, RetainedUnit};
use crate::threads::Threads;

/// How many bytes of objects make up for starting a thread that reads them: several times as long as that takes.
const BYTES_FOR_A_THREAD: usize = 64 << 10;

/// So many bytes are hashed in some ten microseconds.
const HASHED_AT_ONCE_BYTES: usize = 16 << 10;

/// How many threads it is worth while to have for `bytes` of objects.
fn worth(bytes: impl Iterator<Item = usize>) -> usize {
    bytes.sum::<usize>() / BYTES_FOR_A_THREAD
}

/// Reads every unit of the batch: all of the link that depends neither on what is published nor on where it will be.
pub(crate) fn read<'a>(
    changes: &Changeset<'a>,
    inputs: &'a [Vec<Input<'a>>],
    threads: &Threads,
) -> Result<Vec<Prepared<'a>>, PublishError> {
    let sources = changes.units;
    if changes.is_empty() || sources.iter().any(|source| source.files.is_empty()) {
        return Err(PublishError::Empty);
    }
    let mut names = HashSet::new();
    let published = sources.iter().map(|source| &source.name);
    let several = sources.len() + changes.removals.len() > 1;
    for name in published.chain(changes.removals) {
        check_name(name)?;
        if several && !names.insert(name) {
            return Err(PublishError::SameUnit { unit: name.clone() });
        }
    }
    let all: Vec<&Input<'a>> = inputs.iter().flatten().collect();
    let worth = worth(all.iter().map(|input| input.bytes.len()));
    let mut files = threads
        .map(worth, all, |_, input| File::read(input))?
        .into_iter();
    let units = sources.iter().zip(inputs);
    let units = units.map(|(source, inputs)| (source, files.by_ref().take(inputs.len()).collect()));
    threads.map(
        worth,
        units.collect(),
        |_, (source, files): (&'a UnitSource, _)| {
            Ok(Prepared::of(&source.name, files, &source.options())?)
        },
    )
}

/// What is retained of the units of a publication, and what they are made of.
#[derive(Debug)]
pub(crate) struct Retaining<'a> {
    pub(crate) sources: &'a [UnitSource],
    threads: Option<&'a Threads>,
    units: OnceCell<Vec<RetainedUnit>>,
}

impl<'a> Retaining<'a> {
    /// Of a publication without units.
    pub(crate) fn nothing() -> Self {
        Self {
            sources: &[],
            threads: None,
            units: OnceCell::new(),
        }
    }

    /// Of units that were published before; `sources` again, or none if nobody has let go of them.
    pub(crate) fn known(units: Vec<RetainedUnit>, sources: &'a [UnitSource]) -> Self {
        Self {
            sources,
            units: units.into(),
            ..Self::nothing()
        }
    }

    /// Of `sources`, whose contents are hashed by whoever asks first. Where that takes a while, it is done here, since who asks may keep
    /// others waiting.
    pub(crate) fn of(sources: &'a [UnitSource], threads: &'a Threads) -> Self {
        let retaining = Self {
            sources,
            threads: Some(threads),
            ..Self::nothing()
        };
        let files = sources.iter().flat_map(|source| &source.files);
        if files.map(|file| file.bytes.len()).sum::<usize>() > HASHED_AT_ONCE_BYTES {
            retaining.units();
        }
        retaining
    }

    /// What is retained of each unit.
    pub(crate) fn units(&self) -> &[RetainedUnit] {
        self.units.get_or_init(|| match self.threads {
            Some(threads) => retained(self.sources, threads),
            None => Vec::new(),
        })
    }
}

/// The contents are hashed at once.
fn retained(sources: &[UnitSource], threads: &Threads) -> Vec<RetainedUnit> {
    let files: Vec<_> = sources.iter().flat_map(|source| &source.files).collect();
    let worth = worth(files.iter().map(|file| file.bytes.len()));
    let hash = |_, file: &UnitFile| Ok::<_, Infallible>(ContentHash::of(&file.bytes));
    let Ok(hashes) = threads.map(worth, files, hash);
    let mut hashes = hashes.into_iter();
    let units = sources.iter();
    units
        .map(|source| RetainedUnit::with(source, hashes.by_ref().take(source.files.len())))
        .collect()
}

/// The linker's view of the files.
pub(crate) fn inputs(sources: &[UnitSource]) -> Vec<Vec<Input<'_>>> {
    sources.iter().map(UnitSource::inputs).collect()
}
