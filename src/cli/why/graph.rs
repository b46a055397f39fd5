//! Who refers to a name, and what it refers to, by the graphs of needs that units have.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use jitcast::runtime::needs::{EDGE_TO_REFERENCE, Needs, Reference};
use jitcast::runtime::observer::Look;
use jitcast::runtime::patch::{PatchKind, PatchTarget};
use jitcast::runtime::{Corrupt, Patch, SegmentOffset};
use serde::Serialize;

use crate::cli::directory::{Directory, Symbol, Unit};

/// A unit that refers to the name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Referrer {
    pub(super) unit: String,
    /// Those of its published functions that reach a reference to it.
    pub(super) functions: Vec<String>,
}

/// What the name needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Need {
    pub(super) name: String,
    pub(super) signature: Option<String>,
    /// Whether it is a host symbol.
    pub(super) host: bool,
    /// Whether it may be missing: it is 0 then.
    pub(super) weak: bool,
    /// The unit that defines it; `null`: the host's, or nobody's.
    pub(super) unit: Option<String>,
    /// The function through which it is needed; `null`: its own code refers to it.
    pub(super) through: Option<String>,
}

/// The same, with where workers keep what they have found.
#[derive(Clone, Debug)]
pub(super) struct Located {
    pub(super) need: Need,
    /// For each host symbol: a slot and what is added to its address there, and its trap.
    pub(super) bound: Option<(SegmentOffset, i64, SegmentOffset)>,
}

/// What the code of the versions of a name reaches, in its own unit and in those of what it calls.
pub(super) fn needs(
    look: &Look<'_>,
    directory: &Directory,
    versions: &[&Symbol],
) -> Result<Vec<Located>, Corrupt> {
    let mut graphs: BTreeMap<u32, Needs> = BTreeMap::new();
    let (mut seen, mut found) = (BTreeSet::new(), Vec::<Located>::new());
    let mut pending: Vec<(&Symbol, Option<String>)> = Vec::new();
    pending.extend(versions.iter().map(|symbol| (*symbol, None)));
    while let Some((symbol, through)) = pending.pop() {
        let (unit, node) = (symbol.record.unit, symbol.record.node);
        if !seen.insert((unit, node)) {
            continue;
        }
        let graph = match graphs.entry(unit) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(directory.needs(look, unit)?),
        };
        for reference in graph.reachable(node) {
            let located = match reference {
                Reference::Import(import) => import_need(look, directory, import.get())?,
                Reference::Symbol(hash) => {
                    let other =
                        directory.meant(hash, &symbol.canary.into_iter().collect::<Vec<_>>());
                    let Some(other) = other else { continue };
                    if versions.iter().any(|version| version.name == other.name) {
                        continue;
                    }
                    pending.push((
                        other,
                        Some(through.clone().unwrap_or_else(|| other.name.clone())),
                    ));
                    let unit = directory.units.get(&other.record.unit);
                    let need = Need {
                        name: other.name.clone(),
                        signature: other.signature.clone(),
                        host: false,
                        weak: false,
                        unit: unit.map(|unit| unit.name.clone()),
                        through: None,
                    };
                    Some(Located { need, bound: None })
                }
            };
            let Some(mut located) = located else { continue };
            located.need.through.clone_from(&through);
            let same = |known: &Located| {
                (known.need.host, &known.need.name, &known.need.signature)
                    == (
                        located.need.host,
                        &located.need.name,
                        &located.need.signature,
                    )
            };
            // What is found first is nearest, but for what comes by other ways.
            match found.iter_mut().find(|known| same(known)) {
                Some(known) if located.need.through.is_none() => *known = located,
                Some(_) => {}
                None => found.push(located),
            }
        }
    }
    found.sort_by(|a, b| (a.need.host, &a.need.name).cmp(&(b.need.host, &b.need.name)));
    Ok(found)
}

fn import_need(
    look: &Look<'_>,
    directory: &Directory,
    number: u32,
) -> Result<Option<Located>, Corrupt> {
    let Some(import) = directory.imports.get(&number) else {
        return Ok(None);
    };
    let record = import.record;
    let cells = [record.call_cell, record.address_cell];
    let cell = cells.into_iter().find(|cell| !cell.is_none());
    let slot = match cell {
        Some(cell) => Some((cell, 0)),
        None => patched(look, directory, number)?,
    };
    // One that is unique in a process is the segment's own where the host lacks it.
    let can_lack = record.weak == 0 && record.fallback.is_none();
    let bound = slot.filter(|_| can_lack);
    Ok(Some(Located {
        need: Need {
            name: import.name.clone(),
            signature: import.signature.clone(),
            host: true,
            weak: record.weak != 0,
            unit: None,
            through: None,
        },
        bound: bound.map(|(slot, addend)| (slot, addend, record.trap)),
    }))
}

/// A slot of some unit's data that holds the address of a host symbol which has no cell.
fn patched(
    look: &Look<'_>,
    directory: &Directory,
    number: u32,
) -> Result<Option<(SegmentOffset, i64)>, Corrupt> {
    for unit in directory.units.values() {
        let table = unit.record.patches;
        for index in 0..table.len_bytes / size_of::<Patch>() as u32 {
            let at = u64::from(index) * size_of::<Patch>() as u64;
            let Some(at) = SegmentOffset::new(table.start).checked_add(at) else {
                break;
            };
            let patch: Patch = look.view().read(at)?;
            let is_its =
                matches!(patch.target(), Some(PatchTarget::Host(import)) if import.get() == number);
            if is_its && patch.kind() == Some(PatchKind::Address) {
                return Ok(Some((patch.site, patch.addend)));
            }
        }
    }
    Ok(None)
}

/// The units that refer to `name`, but for those that define it.
pub(super) fn referrers(
    look: &Look<'_>,
    directory: &Directory,
    name: &str,
) -> Result<Vec<Referrer>, Corrupt> {
    let hash = Directory::hash(look, name);
    let versions = directory.versions(name);
    let defines = |number: u32| versions.iter().any(|version| version.record.unit == number);
    let mut referrers = Vec::new();
    for (number, Unit { name: unit, .. }) in &directory.units {
        let graph = directory.needs(look, *number)?;
        let wanted = Reference::Symbol(hash);
        let is_used = |edge: &u32| {
            edge & EDGE_TO_REFERENCE != 0
                && graph.references.get((edge & !EDGE_TO_REFERENCE) as usize) == Some(&wanted)
        };
        if defines(*number) || !graph.edges.iter().any(is_used) {
            continue;
        }
        let own = directory.symbols.iter();
        let own = own.filter(|symbol| symbol.record.unit == *number);
        let reaches = |symbol: &&Symbol| graph.reachable(symbol.record.node).contains(&wanted);
        let mut functions: Vec<_> = own
            .filter(reaches)
            .map(|symbol| symbol.name.clone())
            .collect();
        functions.sort();
        let unit = unit.clone();
        referrers.push(Referrer { unit, functions });
    }
    referrers.sort_by(|a, b| a.unit.cmp(&b.unit));
    Ok(referrers)
}
