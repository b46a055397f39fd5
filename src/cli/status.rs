//! `jitcast status`: what is published and who runs it.

use std::process::ExitCode;

use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use jitcast::compiler::{CanaryStatus, Reclaim, Status, UnitStatus, request};

use super::Failure;
use super::args::StatusArgs;
use super::publish::connect;
use super::report::kib;

pub(super) fn status(args: &StatusArgs) -> Result<ExitCode, Failure> {
    let status = request::status(connect(&args.socket)?)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        show(&status);
    }
    Ok(ExitCode::SUCCESS)
}

/// `jitcast history`: what can be rolled back to.
pub(super) fn history(args: &StatusArgs) -> Result<ExitCode, Failure> {
    let status = request::status(connect(&args.socket)?)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status.history)?);
        return Ok(ExitCode::SUCCESS);
    }
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
    Ok(ExitCode::SUCCESS)
}

fn show(status: &Status) {
    let segment = status
        .segment
        .as_ref()
        .map_or("sealed".to_owned(), |name| format!("named `{name}`"));
    println!(
        "generation {}, {segment} segment, window {}",
        status.generation,
        kib(status.window_bytes)
    );
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
    let mut workers = new_table(&[
        "worker",
        "pid",
        "uid",
        "label",
        "base",
        "applied",
        "inside at",
        "missing",
        "failed",
        "canaries",
    ]);
    for worker in &status.workers {
        workers.add_row([
            worker.number.to_string(),
            worker.pid.to_string(),
            worker.uid.to_string(),
            worker.label.clone(),
            format!("{:#x}", worker.base),
            worker.applied.to_string(),
            worker.pinned.map_or("-".to_owned(), |pin| pin.to_string()),
            worker.missing.to_string(),
            worker.failed.to_string(),
            list(&worker.canaries),
        ]);
    }
    println!("{workers}");
    for straggler in &status.stragglers {
        println!("straggler: {straggler}");
    }
    let mut areas = new_table(&["area", "used", "size"]);
    for area in &status.areas {
        areas.add_row([
            area.name.clone(),
            kib(area.used_bytes),
            kib(area.area_bytes),
        ]);
    }
    println!("{areas}");
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
