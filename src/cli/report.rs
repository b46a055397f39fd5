//! What a worker reports, a line of JSON for each event, and how it is shown.

use std::time::Duration;

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};
use serde::{Deserialize, Serialize};

/// An event in a worker's life.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub(super) enum Event {
    /// Attached, nothing called yet.
    Ready {
        /// The worker's process.
        pid: u32,
    },
    /// Called everything once.
    Called(Report),
}

/// What the calls of one generation gave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Report {
    /// The worker's process.
    pub(super) pid: u32,
    /// The base of its window.
    pub(super) base: u64,
    /// The generation that ran.
    pub(super) generation: u64,
    /// What each call gave: its result, or why there is none.
    pub(super) results: Vec<Result<String, String>>,
    /// From the publication to the first result, ns; 0: there was none.
    pub(super) latency_ns: u64,
    /// Resident bytes of the window that all workers share.
    pub(super) shared_bytes: u64,
    /// Resident bytes of the window that are the worker's own.
    pub(super) private_bytes: u64,
}

/// A line of the table.
#[derive(Debug)]
pub(super) enum Row {
    /// The worker did what it should.
    Done(Report),
    /// It ended without a report.
    Lost {
        /// Its process.
        pid: u32,
        /// How it ended.
        how: String,
    },
}

impl Row {
    /// Whether every call gave a result.
    pub(super) fn succeeded(&self) -> bool {
        matches!(self, Self::Done(report) if report.results.iter().all(Result::is_ok))
    }
}

/// The table of `run`.
pub(super) fn table(calls: &[String], rows: &[Row]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(UTF8_BORDERS_ONLY)
        .set_content_arrangement(ContentArrangement::Disabled);
    let mut header = vec!["worker".to_owned(), "pid".into(), "window base".into()];
    header.extend(calls.iter().cloned());
    header.extend(["published to result", "shared", "private"].map(str::to_owned));
    table.set_header(header);
    for (index, row) in rows.iter().enumerate() {
        let mut cells = vec![(index + 1).to_string()];
        match row {
            Row::Done(report) => {
                cells.extend([report.pid.to_string(), format!("{:#x}", report.base)]);
                cells.extend(report.results.iter().map(|result| match result {
                    Ok(value) => value.clone(),
                    Err(_) => "failed".to_owned(),
                }));
                cells.push(match report.latency_ns {
                    0 => "-".to_owned(),
                    ns => format!("{:.1?}", Duration::from_nanos(ns)),
                });
                cells.extend([kib(report.shared_bytes), kib(report.private_bytes)]);
            }
            Row::Lost { pid, how } => {
                cells.extend([pid.to_string(), "-".to_owned()]);
                cells.extend(calls.iter().map(|_| how.clone()));
                cells.extend(["-", "-", "-"].map(str::to_owned));
            }
        }
        table.add_row(
            cells
                .into_iter()
                .map(|cell| Cell::new(cell).set_alignment(CellAlignment::Right)),
        );
    }
    table
}

/// Bytes as KiB.
pub(super) fn kib(bytes: u64) -> String {
    format!("{} KiB", bytes.div_ceil(1024))
}
