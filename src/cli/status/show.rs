//! The same for people.

use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use jitcast::compiler::{CanaryStatus, HeldStatus, Reclaim, Status, UnitStatus, WorkerStatus};

use super::Source;
use crate::cli::report::kib;

/// What can be rolled back to.
pub(super) fn history(status: &Status) {
    let mut table = new_table(&["generation", "published", "removed"]);
    for entry in &status.history {
        table.add_row([
            entry.generation.to_string(),
            entry.published.join(", "),
            entry.removed.join(", "),
        ]);
    }
    println!("{table}");
    match status.history.first() {
        Some(newest) => println!(
            "generations {} to {} can be rolled back to",
            status.oldest_retained,
            newest.generation - 1
        ),
        None => println!("nothing can be rolled back"),
    }
}

pub(super) fn show(status: &Status, source: Source) {
    let segment = status
        .segment
        .as_ref()
        .map_or("sealed".to_owned(), |name| format!("named `{name}`"));
    println!(
        "generation {}, {segment} segment, window {}",
        status.generation,
        kib(status.window_bytes)
    );
    if source == Source::Segment {
        println!(
            "the compiler process was not asked: this is what the segment says, and its workers"
        );
    }
    if status.publishing > 0 {
        println!("publications under way: {}", status.publishing);
    }
    let mut units = new_table(&[
        "unit",
        "generation",
        "text",
        "read-only",
        "private",
        "shared",
        "when replaced",
    ]);
    for unit in &status.units {
        units.add_row([
            unit.name.clone(),
            unit.generation.to_string(),
            kib(unit.text_bytes),
            kib(unit.read_only_bytes),
            kib(unit.private_bytes),
            kib(unit.shared_bytes),
            when_replaced(unit).to_owned(),
        ]);
    }
    println!("{units}");
    show_canaries(&status.canaries);
    let mut symbols = new_table(&["symbol", "kind", "unit", "signature"]);
    for symbol in &status.symbols {
        let signature = if symbol.signature.is_empty() {
            "unknown"
        } else {
            &symbol.signature
        };
        let kind = if symbol.quarantined {
            &format!("{}, quarantined", symbol.kind)
        } else {
            &symbol.kind
        };
        symbols.add_row([&symbol.name, kind, &symbol.unit, signature]);
    }
    println!("{symbols}");
    if !status.asked.is_empty() {
        let mut asked = new_table(&["asked for", "generation", "bytes", "workers"]);
        for unit in &status.asked {
            let workers: Vec<_> = unit.workers.iter().map(u64::to_string).collect();
            asked.add_row([
                unit.name.clone(),
                unit.generation.to_string(),
                unit.len_bytes.to_string(),
                workers.join(", "),
            ]);
        }
        println!("{asked}");
    }
    show_workers(&status.workers);
    for straggler in &status.stragglers {
        println!("straggler: {straggler}");
    }
    show_areas(status);
    if !status.quarantined.is_empty() {
        println!("quarantined: {}", status.quarantined.join(", "));
    }
    if !status.traps.is_empty() {
        let mut traps = new_table(&["removed function", "used by"]);
        for trap in &status.traps {
            traps.add_row([&trap.symbol, &trap.users.join(", ")]);
        }
        println!("{traps}");
    }
    show_kept(status);
    show_incidents(status);
}

fn show_workers(workers: &[WorkerStatus]) {
    let mut table = new_table(&[
        "worker",
        "pid",
        "uid",
        "label",
        "base",
        "applied",
        "behind",
        "inside at",
        "guards",
        "private",
        "missing",
        "failed",
        "crashes",
        "canaries",
    ]);
    for worker in workers {
        let straggling = if worker.straggling {
            ", straggling"
        } else {
            ""
        };
        let inside = worker.pinned.map(|pin| format!("{pin}{straggling}"));
        table.add_row([
            worker.number.to_string(),
            worker.pid.to_string(),
            worker.uid.to_string(),
            worker.label.clone(),
            format!("{:#x}", worker.base),
            worker.applied.to_string(),
            worker.lag.to_string(),
            inside.unwrap_or_else(|| "-".to_owned()),
            format!(">= {}", worker.entered),
            worker.private_bytes.map_or_else(|| "?".to_owned(), kib),
            worker.missing.to_string(),
            worker.failed.to_string(),
            worker.crashes.to_string(),
            list(&worker.canaries),
        ]);
    }
    println!("{table}");
    for worker in workers {
        if let Some(lacks) = worker.lacks.as_ref().filter(|lacks| !lacks.is_empty()) {
            println!(
                "worker {} lacks the host's {}",
                worker.pid,
                lacks.join(", ")
            );
        }
    }
}

fn show_areas(status: &Status) {
    let mut areas = new_table(&["area", "used", "size", "free", "in", "longest"]);
    for area in &status.areas {
        areas.add_row([
            area.name.clone(),
            kib(area.used_bytes),
            kib(area.area_bytes),
            kib(area.free_bytes),
            area.free_runs.to_string(),
            kib(area.largest_free_bytes),
        ]);
    }
    println!("{areas}");
}

fn show_kept(status: &Status) {
    /// More are counted.
    const SHOWN: usize = 20;
    let mut kept = new_table(&["kept unit", "of generation", "memory"]);
    for unit in &status.kept {
        kept.add_row([
            unit.unit.clone(),
            unit.generation.to_string(),
            kib(unit.len_bytes),
        ]);
    }
    if !status.kept.is_empty() {
        println!("{kept}");
    }
    let held = status.held.iter().filter(|held| !held.holders.is_empty());
    for held in held.clone().take(SHOWN) {
        println!("{}", held_back(held));
    }
    if held.clone().count() > SHOWN {
        println!("and {} more are held back", held.count() - SHOWN);
    }
    let kept: u64 = status.kept.iter().map(|kept| kept.len_bytes).sum();
    print!("shared memory {}", kib(status.backed_bytes));
    if status.older_bytes > 0 {
        print!(" and {} from before renewals", kib(status.older_bytes));
    }
    println!(
        ": retired {}, kept {} of {} replaced or removed units",
        kib(status.retired_bytes),
        kib(kept),
        status.kept.len()
    );
}

/// Who holds a unit's memory back.
fn held_back(held: &HeldStatus) -> String {
    let holders = held.holders.iter().map(|holder| {
        format!(
            "pid {} thread {} at generation {}",
            holder.pid, holder.thread, holder.generation
        )
    });
    let holders: Vec<_> = holders.collect();
    format!(
        "held back: {}, which generation {} replaced or removed, by {}",
        held.unit,
        held.retired_by,
        holders.join(", ")
    )
}

/// The journal, crashes and errors.
fn show_incidents(status: &Status) {
    if let Some(journal) = &status.journal {
        let how = if journal.durable { ", durable" } else { "" };
        println!(
            "journal {}: log {}{how}",
            journal.folder,
            kib(journal.log_bytes)
        );
        if let Some(failed) = &journal.failed {
            println!("journal: nothing more is written: {failed}");
        }
    }
    for crash in &status.crashes {
        println!("crashes: {}, the latest: {crash}", crash.count);
    }
    for error in &status.errors {
        let text = error.text.lines().next().unwrap_or_default();
        println!("{}, {}: {text}", ago(error.seconds), error.what);
    }
}

/// How long ago that was.
fn ago(seconds: u64) -> String {
    let now = std::time::SystemTime::now();
    let now = now.duration_since(std::time::UNIX_EPOCH);
    let ago = now.map_or(0, |now| now.as_secs().saturating_sub(seconds));
    match ago {
        0..120 => format!("{ago} s ago"),
        120..7200 => format!("{} min ago", ago / 60),
        _ => format!("{} h ago", ago / 3600),
    }
}

fn show_canaries(canaries: &[CanaryStatus]) {
    if canaries.is_empty() {
        return;
    }
    let mut table = new_table(&["canary", "units", "symbols", "for", "workers"]);
    for canary in canaries {
        let units: Vec<_> = canary.units.iter().map(|unit| unit.name.as_str()).collect();
        let symbols = canary.symbols.iter();
        let symbols: Vec<_> = symbols.map(|symbol| symbol.name.as_str()).collect();
        table.add_row([
            canary.id.to_string(),
            units.join(", "),
            symbols.join(", "),
            canary.audience.to_string(),
            list(&canary.workers),
        ]);
    }
    println!("{table}");
}

/// Numbers, or `-` if there are none.
fn list(numbers: &[u64]) -> String {
    let numbers: Vec<_> = numbers.iter().map(u64::to_string).collect();
    if numbers.is_empty() {
        return "-".to_owned();
    }
    numbers.join(", ")
}

/// What happens to a unit's memory when it is replaced or removed.
fn when_replaced(unit: &UnitStatus) -> &'static str {
    match (unit.keeps, unit.reclaim) {
        (true, Reclaim::No) => "kept, as asked",
        (true, Reclaim::Yes) => "kept for what may run later",
        (true, Reclaim::Auto) => "kept",
        (false, _) => "reclaimed",
    }
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_BORDERS_ONLY).set_header(header);
    table
}
