//! The status that a segment itself tells, when its compiler process cannot be asked.
//!
//! It knows what is published, and of workers what they say. It knows nothing of what the compiler process alone has: what is
//! retired, kept or free, the journal, the history, errors.

use jitcast::compiler::{
    AreaStatus, Audience, CanaryStatus, Reclaim, Status, SymbolStatus, UnitStatus, WorkerStatus,
};
use jitcast::runtime::geometry::Area;
use jitcast::runtime::mailbox::Word;
use jitcast::runtime::observer::{Look, Observer};
use jitcast::runtime::records::{
    CanaryRecord, SYMBOL_ABSOLUTE, SYMBOL_DATA, SYMBOL_FUNCTION, SYMBOL_QUARANTINED, UNIT_KEPT,
    trailing_text,
};
use jitcast::runtime::tally::Snapshot;
use jitcast::runtime::{Corrupt, index};

use crate::cli::Failure;
use crate::cli::directory::{Directory, Symbol, Unit};

/// What the segment says, and these workers, by their pids.
pub(super) fn status(
    observer: &Observer,
    name: Option<&str>,
    workers: &[(i32, Snapshot)],
) -> Result<Status, Failure> {
    let mut status = observer.look(|look| published(look, name))?;
    let workers = workers.iter();
    status.workers = workers
        .map(|(pid, mailbox)| worker(*pid, mailbox, status.generation))
        .collect();
    Ok(status)
}

fn published(look: &Look<'_>, name: Option<&str>) -> Result<Status, Failure> {
    let directory = Directory::read(look)?;
    let canaries = canaries(look, &directory)?;
    let units = directory.units.values();
    let mut units: Vec<_> = units
        .filter(|unit| {
            canaries
                .iter()
                .all(|(record, _)| !record.has_unit(unit.record.key as u32))
        })
        .map(unit_status)
        .collect();
    units.sort_by(|a, b| a.name.cmp(&b.name));
    let symbols = directory.symbols.iter();
    let symbols = symbols.filter(|symbol| symbol.canary.is_none());
    let mut symbols: Vec<_> = symbols
        .map(|symbol| symbol_status(&directory, symbol))
        .collect();
    symbols.sort_by(|a, b| a.name.cmp(&b.name));
    let quarantined = symbols.iter().filter(|symbol| symbol.quarantined);
    let quarantined = quarantined.map(|symbol| symbol.name.clone()).collect();
    let areas: Vec<_> = Area::ALL
        .into_iter()
        .map(|area| area_status(look, area))
        .collect();
    let backed = Area::ALL.into_iter().zip(&areas);
    let backed = backed.filter(|(area, _)| area.is_in_segment());
    Ok(Status {
        generation: look.root.generation,
        segment: name.map(str::to_owned),
        window_bytes: look.observer().geometry().window().len_bytes.into(),
        backed_bytes: backed.map(|(_, status)| status.used_bytes).sum(),
        areas,
        units,
        symbols,
        quarantined,
        canaries: canaries.into_iter().map(|(_, canary)| canary).collect(),
        ..unknown()
    })
}

/// What is in use up to where memory was ever given; nobody knows of holes.
fn area_status(look: &Look<'_>, area: Area) -> AreaStatus {
    let region = look.observer().geometry().allocated(area);
    let used = look.extent(area).clamp(region.start, region.end()) - region.start;
    let free = u64::from(region.len_bytes - used);
    AreaStatus {
        name: area.name().to_owned(),
        used_bytes: used.into(),
        area_bytes: region.len_bytes.into(),
        free_bytes: free,
        largest_free_bytes: free,
        free_runs: (free > 0).into(),
    }
}

fn unit_status(unit: &Unit) -> UnitStatus {
    let record = &unit.record;
    let keeps = record.flags & UNIT_KEPT != 0;
    UnitStatus {
        name: unit.name.clone(),
        generation: record.generation,
        text_bytes: record.text.len_bytes.into(),
        read_only_bytes: record.read_only.len_bytes.into(),
        private_bytes: record.private.len_bytes.into(),
        shared_bytes: record.shared.len_bytes.into(),
        keeps,
        reclaim: Reclaim::Auto,
        imports: Vec::new(),
    }
}

fn symbol_status(directory: &Directory, symbol: &Symbol) -> SymbolStatus {
    let kind = match symbol.record.kind {
        SYMBOL_FUNCTION => "function",
        SYMBOL_DATA => "data",
        SYMBOL_ABSOLUTE => "absolute",
        _ => "thread-local",
    };
    let unit = directory.units.get(&symbol.record.unit);
    SymbolStatus {
        name: symbol.name.clone(),
        kind: kind.to_owned(),
        unit: unit.map(|unit| unit.name.clone()).unwrap_or_default(),
        signature: symbol.signature.clone().unwrap_or_default(),
        quarantined: symbol.record.flags & SYMBOL_QUARANTINED != 0,
    }
}

fn canaries(
    look: &Look<'_>,
    directory: &Directory,
) -> Result<Vec<(CanaryRecord, CanaryStatus)>, Corrupt> {
    let view = look.view();
    let mut canaries = Vec::new();
    index::walk(view, look.root.canaries, 0, &mut |at| {
        let record: CanaryRecord = view.read(at)?;
        let label = trailing_text::<CanaryRecord>(view, at, 0, record.label_len)?;
        let units = directory.units.values();
        let units = units.filter(|unit| record.has_unit(unit.record.key as u32));
        let symbols = directory.symbols.iter();
        let symbols = symbols.filter(|symbol| symbol.canary == Some(record.key));
        let status = CanaryStatus {
            id: record.key,
            audience: match record.seats {
                0 => Audience::Label(label),
                seats => Audience::Workers(seats),
            },
            units: units.map(unit_status).collect(),
            symbols: symbols
                .map(|symbol| symbol_status(directory, symbol))
                .collect(),
            workers: Vec::new(),
        };
        canaries.push((record, status));
        Ok::<_, Corrupt>(())
    })?;
    Ok(canaries)
}

/// What a worker says of itself. Its label, number and user only its compiler process knows.
fn worker(pid: i32, mailbox: &Snapshot, newest: u64) -> WorkerStatus {
    use std::os::unix::fs::MetadataExt;
    let uid = std::fs::metadata(format!("/proc/{pid}")).map_or(0, |process| process.uid());
    let word = |word| mailbox.word(word);
    let pinned = mailbox.oldest_pin();
    WorkerStatus {
        number: 0,
        pid,
        uid,
        label: String::new(),
        base: word(Word::Base),
        applied: word(Word::Applied),
        updates: word(Word::Updates),
        missing: word(Word::Missing),
        failed: word(Word::Failed),
        pinned,
        seat: u32::try_from(word(Word::Seat))
            .ok()
            .and_then(|seat| seat.checked_sub(1)),
        canaries: Vec::new(),
        lag: newest.saturating_sub(word(Word::Applied)),
        resyncs: word(Word::Resyncs),
        entered: mailbox.tally().entered,
        straggling: pinned.is_some_and(|pin| pin < newest),
        crashes: mailbox.crashes().0,
        private_bytes: None,
        lacks: None,
    }
}

/// A status in which nothing is known.
fn unknown() -> Status {
    Status {
        generation: 0,
        segment: None,
        window_bytes: 0,
        backed_bytes: 0,
        older_bytes: 0,
        retired_bytes: 0,
        areas: Vec::new(),
        units: Vec::new(),
        canaries: Vec::new(),
        symbols: Vec::new(),
        asked: Vec::new(),
        compiled_requests: 0,
        kept: Vec::new(),
        traps: Vec::new(),
        removed: Vec::new(),
        quarantined: Vec::new(),
        history: Vec::new(),
        oldest_retained: 0,
        workers: Vec::new(),
        stragglers: Vec::new(),
        publishing: 0,
        held: Vec::new(),
        journal: None,
        errors: Vec::new(),
        crashes: Vec::new(),
        layout: Vec::new(),
    }
}
