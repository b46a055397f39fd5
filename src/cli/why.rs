//! `jitcast why`: what becomes of a name: where it is defined, who runs which version, what it needs, and what is in its way.
//!
//! Invariant: what is said of the segment belongs to one generation. Workers go on meanwhile: of each it is said what was seen in
//! its memory, or else, as it is marked, what follows from what it says itself.

mod graph;
mod show;
mod workers;

use std::process::ExitCode;

use jitcast::compiler::{RemovedStatus, Status};
use jitcast::runtime::SegmentOffset;
use jitcast::runtime::frames::find_extent;
use jitcast::runtime::observer::{Look, Observer};
use jitcast::runtime::records::{
    SYMBOL_ABSOLUTE, SYMBOL_DATA, SYMBOL_FUNCTION, SYMBOL_QUARANTINED,
};
use serde::Serialize;

use super::Failure;
use super::args::WhyArgs;
use super::directory::{Directory, Symbol};
use super::observe;
use super::places::Places;
use graph::{Need, Referrer};
use workers::Runner;

/// What becomes of a name. docs/json.md describes it.
#[derive(Debug, Serialize)]
struct Why {
    symbol: String,
    /// The newest generation.
    generation: u64,
    /// The versions: the published one first, then those of canaries.
    versions: Vec<Version>,
    /// Whether the name is quarantined, published or not.
    quarantined: bool,
    /// Since when it is published no longer.
    removed: Option<Removed>,
    workers: Vec<Runner>,
    referrers: Vec<Referrer>,
    needs: Vec<Need>,
    /// What is in its way; nothing: it can be called everywhere.
    obstacles: Vec<String>,
}

/// A version of a symbol.
#[derive(Debug, Serialize)]
struct Version {
    unit: String,
    /// The generation that published its unit.
    generation: u64,
    canary: Option<u64>,
    kind: &'static str,
    /// `null`: unknown.
    signature: Option<String>,
    /// Where it begins: an offset in the window, bytes.
    offset: u32,
    /// `null`: unknown.
    len_bytes: Option<u64>,
}

/// Since when a name is published no longer.
#[derive(Debug, Serialize)]
struct Removed {
    unit: String,
    generation: u64,
}

pub(super) fn why(args: &WhyArgs) -> Result<ExitCode, Failure> {
    let observer = observe::observe(&args.segment)?;
    let status = observe::status(&args.segment, &observer)?;
    let why = observer.look(|look| explain(look, &observer, &status, &args.symbol))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&why)?);
    } else {
        show::show(&why);
    }
    // As grep: what is said is as true, but it was not found.
    Ok(match why.versions.is_empty() {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

fn explain(
    look: &Look<'_>,
    observer: &Observer,
    status: &Status,
    name: &str,
) -> Result<Why, Failure> {
    let directory = Directory::read(look)?;
    let places = Places::new(look, &directory);
    let known = directory.versions(name);
    let versions = known.iter().map(|symbol| version(look, &places, symbol));
    let needs = graph::needs(look, &directory, &known)?;
    let workers = status.workers.iter();
    let workers = workers.map(|worker| {
        let hash = Directory::hash(look, name);
        let meant = directory.meant(hash, &worker.canaries);
        workers::runner(
            worker,
            (observer, look.root.generation),
            &places,
            meant,
            &needs,
        )
    });
    let mut why = Why {
        symbol: name.to_owned(),
        generation: look.root.generation,
        versions: versions.collect::<Result<_, Failure>>()?,
        quarantined: status
            .quarantined
            .iter()
            .any(|quarantined| quarantined == name),
        removed: removed(status, name),
        workers: workers.collect::<Result<_, Failure>>()?,
        referrers: graph::referrers(look, &directory, name)?,
        needs: needs.into_iter().map(|need| need.need).collect(),
        obstacles: Vec::new(),
    };
    for trap in status.traps.iter().filter(|trap| trap.symbol == name) {
        for unit in &trap.users {
            if !why.referrers.iter().any(|known| known.unit == *unit) {
                let functions = Vec::new();
                let unit = unit.clone();
                why.referrers.push(Referrer { unit, functions });
            }
        }
    }
    why.obstacles = obstacles(&why);
    Ok(why)
}

fn version(look: &Look<'_>, places: &Places<'_>, symbol: &Symbol) -> Result<Version, Failure> {
    let record = symbol.record;
    let (unit, generation) = places.unit(symbol);
    let kind = match record.kind {
        SYMBOL_FUNCTION if record.flags & SYMBOL_QUARANTINED != 0 => "quarantined function",
        SYMBOL_FUNCTION => "function",
        SYMBOL_DATA => "datum",
        SYMBOL_ABSOLUTE => "absolute symbol",
        _ => "thread-local datum",
    };
    let is_sized = [SYMBOL_FUNCTION, SYMBOL_DATA].contains(&record.kind) && record.size > 0;
    let len_bytes = match record.kind {
        _ if is_sized => Some(record.size),
        SYMBOL_FUNCTION => extent_bytes(look, places, record.place)?,
        _ => None,
    };
    Ok(Version {
        unit,
        generation,
        canary: symbol.canary,
        kind,
        signature: symbol.signature.clone(),
        offset: record.place.get(),
        len_bytes,
    })
}

/// The length of the function at `place`, as the names of its text say.
fn extent_bytes(
    look: &Look<'_>,
    places: &Places<'_>,
    place: SegmentOffset,
) -> Result<Option<u64>, Failure> {
    let Some((text, _)) = places.text(place)? else {
        return Ok(None);
    };
    let names = text.names.region();
    let extent = names.map(|names| find_extent(look.view(), names, text.unit, place));
    let extent = extent.transpose()?.flatten();
    let own = extent.filter(|extent| extent.start == place.get());
    Ok(own.map(|extent| extent.len_bytes.into()))
}

fn removed(status: &Status, name: &str) -> Option<Removed> {
    let mut removed = status.removed.iter();
    let found = removed.find(|removed| removed.symbol == name);
    found.map(
        |RemovedStatus {
             unit, generation, ..
         }| Removed {
            unit: unit.clone(),
            generation: *generation,
        },
    )
}

/// What is in the way of a call, and what to do.
fn obstacles(why: &Why) -> Vec<String> {
    let (name, mut found) = (&why.symbol, Vec::new());
    let is_for_all = why.versions.iter().any(|version| version.canary.is_none());
    match (&why.removed, why.versions.first()) {
        (Some(Removed { unit, generation }), _) if !is_for_all => found.push(format!(
            "not published: generation {generation} removed it; it was of the unit {unit}"
        )),
        (None, None) => found.push(
            "not published: never, as far as the compiler process and its journal know".to_owned(),
        ),
        (_, Some(version)) if !is_for_all => found.push(format!(
            "published for a canary only: {}",
            version.canary.unwrap_or_default()
        )),
        _ => {}
    }
    if why.quarantined {
        found.push(format!(
            "quarantined: handles lead to their hosts' fallbacks until `jitcast restore {name}`"
        ));
    }
    for worker in &why.workers {
        found.extend(worker.obstacle());
    }
    found
}
