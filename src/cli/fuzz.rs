//! `jitcast fuzz`: random objects until the time is over, every site judged.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};
use jitcast_fuzz::session::{self, Failed};
use jitcast_fuzz::{keep, summary};
use jitcast_oracle::Report;

use super::Failure;
use super::args::FuzzArgs;
use super::progress::{Counts, Progress};
use super::signals::Ending;

/// So many failures are shrunk and shown; one fault makes many.
const SHOWN: usize = 5;

pub(super) fn fuzz(args: &FuzzArgs) -> Result<ExitCode, Failure> {
    let ending = Ending::listen()?;
    let seed = args.seed.unwrap_or_else(now);
    let start = Instant::now();
    let is_over = || ending.asked() || start.elapsed() >= args.time;
    // The linker's own panics are failures like others: told with their objects, not while they happen.
    std::panic::set_hook(Box::new(|_| {}));
    println!("seed {seed}");
    let mut all = Report::default();
    let mut failures = 0;
    let first = args.case.unwrap_or(0);
    let mut index = first;
    let counts = Arc::new(Counts::default());
    let progress = Progress::count("fuzzing", "cases", &counts);
    loop {
        let done = match args.case {
            Some(_) => index > first || ending.asked(),
            None => is_over(),
        };
        if done || failures >= SHOWN {
            break;
        }
        match session::run(seed, index, || ending.asked()) {
            Ok(report) => all.add(report),
            Err(failed) => {
                failures += 1;
                show(&failed, args)?;
            }
        }
        index += 1;
        counts.done.store(index - first, Ordering::Relaxed);
    }
    drop(progress);
    println!("{}", table(&all));
    for (count, rule, reason) in summary::rules(&all) {
        println!("{count} excused by `{rule}`: {reason}");
    }
    let cases = index - first;
    let (sites, seconds) = (all.looked_at(), start.elapsed().as_secs_f64());
    println!("{cases} cases, {sites} sites looked at, {failures} failures in {seconds:.1} s");
    if failures > 0 {
        return Err(Failure(format!(
            "{failures} of {cases} cases failed, see above"
        )));
    }
    if ending.asked() {
        return Ok(ExitCode::from(130));
    }
    let never = summary::never_compared(&all);
    if args.case.is_none() && !never.is_empty() {
        let never = never.join(", ");
        return Err(Failure(format!(
            "no site was compared of {never}; try more --time"
        )));
    }
    Ok(ExitCode::SUCCESS)
}

/// A seed for those who name none.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |since| since.as_nanos() as u64 % 1_000_000_007)
}

fn show(failed: &Failed, args: &FuzzArgs) -> Result<(), Failure> {
    println!("\n{}", keep::command(failed));
    println!("{}", failed.failure);
    println!("the smallest objects found ({} tries):", failed.steps);
    print!("{}", failed.trial.describe());
    if let Some(folder) = &args.save {
        let kept = keep::keep(folder, failed)
            .map_err(|cause| Failure(format!("{}: {cause}", folder.display())))?;
        println!("kept in {}", kept.display());
    }
    Ok(())
}

fn table(report: &Report) -> Table {
    let mut table = Table::new();
    table
        .load_preset(UTF8_BORDERS_ONLY)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["kind", "sites", "compared", "excused by rule", "discarded"]);
    let number = |number: u64| Cell::new(number).set_alignment(CellAlignment::Right);
    for line in summary::lines(report) {
        let mut cells = vec![Cell::new(line.name)];
        cells.extend([line.sites, line.compared, line.excused, line.discarded].map(number));
        table.add_row(cells);
    }
    table
}
