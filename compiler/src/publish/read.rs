//! What of a publication depends neither on what is published nor on where it will lie: in several threads, and while others commit.
//!
//! Invariant: what comes out does not depend on how many threads there are.

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
    for name in published.chain(changes.removals) {
        check_name(name)?;
        if !names.insert(name) {
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

/// What is retained of each unit. The contents are hashed at once.
pub(crate) fn retained(sources: &[UnitSource], threads: &Threads) -> Vec<RetainedUnit> {
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
