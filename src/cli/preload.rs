//! `jitcast serve --preload`: units that are there before anybody attaches.
//!
//! Invariant: what the journal brings was published later than this command line was written, so it stays.

use std::collections::HashSet;

use jitcast::compiler::front::{self, compile_files};
use jitcast::compiler::{Compiler, UnitSource};

use super::Failure;
use super::args::ServeArgs;
use super::publish::{named, split_units};

/// Publishes the units as one. All of them are compiled, so that a file that cannot be is found at any start.
pub(super) fn preload(
    args: &ServeArgs,
    options: &front::Options,
    compiler: &Compiler,
) -> Result<(), Failure> {
    if args.preload.is_empty() {
        return Ok(());
    }
    let mut units = Vec::new();
    for (first, paths) in split_units(&args.preload)? {
        let files = compile_files(paths, options)?;
        files.iter().for_each(|file| eprint!("{}", file.messages));
        let mut unit = UnitSource::new(front::unit_name(first), files);
        let given = args.signatures.iter();
        let given = given.map(|named| (named.name.clone(), named.signature.clone()));
        // The first one counts, and what was said explicitly comes first.
        unit.signatures.splice(0..0, given);
        units.push(unit);
    }
    let status = compiler.status();
    let there: HashSet<_> = status.units.iter().map(|unit| &unit.name).collect();
    let (left, missing): (Vec<_>, Vec<_>) = units
        .into_iter()
        .partition(|unit| there.contains(&unit.name));
    for unit in left {
        eprintln!(
            "preload: `{}` is in the journal, and stays as it is",
            unit.name
        );
    }
    if !missing.is_empty() {
        let done = compiler.publish(&missing)?;
        let functions = named(&done.functions);
        eprintln!("preload: generation {}: {functions}", done.generation);
    }
    Ok(())
}
