//! What a run found out: as a table for people, as JSON for programs.

use std::fmt::Write;
use std::path::Path;

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};
use serde::{Deserialize, Serialize};

use crate::environment::Environment;
use crate::measure::{Series, Skipped, State};

/// Everything that a run found out.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) environment: Environment,
    pub(crate) quick: bool,
    pub(crate) took_s: f64,
    pub(crate) series: Vec<Series>,
    pub(crate) skipped: Vec<Skipped>,
}

/// Reads what [`Report::write`] wrote.
pub(crate) fn read(path: &Path) -> Result<Report, String> {
    let place = path.display();
    let text = std::fs::read(path).map_err(|error| format!("{place}: {error}"))?;
    serde_json::from_slice(&text).map_err(|error| {
        format!("{place}: {error}\n  help: pass a file that this program wrote with --json")
    })
}

impl Report {
    pub(crate) fn write(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_vec(self).map_err(|error| error.to_string())?;
        std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// The series of a row, by its name.
    pub(crate) fn row<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Series> {
        self.series
            .iter()
            .filter(move |series| series.row.name == name)
    }

    /// All rows, and what was left out.
    pub(crate) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(UTF8_BORDERS_ONLY).set_header([
            "what",
            "who",
            "median",
            "p99",
            "p99.9",
            "rounds",
            "jitcast=1",
        ]);
        for column in 2..7 {
            let column = table.column_mut(column).expect("it has seven columns");
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut last = "";
        for series in &self.series {
            let summary = &series.summary;
            let what = if series.row.name == last {
                String::new()
            } else {
                format!("{}: {}", series.row.group, series.row.name)
            };
            last = &series.row.name;
            let shown = |value| shown(value, &series.row.unit);
            // What was taken a few times has no such percentiles.
            let tail = |least, value| {
                if summary.count < least {
                    return String::new();
                }
                shown(value)
            };
            let rounds = format!("{} to {}", shown(summary.low), shown(summary.high));
            table.add_row([
                what,
                name(series),
                shown(summary.p50),
                tail(100, summary.p99),
                tail(1000, summary.p999),
                rounds,
                self.ratio(series),
            ]);
        }
        let mut text = table.to_string();
        for Skipped { what, why } in &self.skipped {
            write!(text, "\nskipped: {what}: {why}").expect("a string takes everything");
        }
        let kind = if self.quick { "quick run" } else { "run" };
        write!(text, "\n{kind} of {:.0} s", self.took_s).expect("as above");
        text
    }

    /// The median as a multiple of jitcast's own in the same row: of the series whose name begins so.
    fn ratio(&self, series: &Series) -> String {
        let own = self.series.iter().find(|other| {
            other.row == series.row
                && (other.x == series.x || series.x.is_none())
                && other.who.starts_with("jitcast")
        });
        match own {
            Some(own) if own.who == series.who && own.state == series.state => "1".to_owned(),
            Some(own) if own.summary.p50 != 0.0 => {
                format!("{:.2}", series.summary.p50 / own.summary.p50)
            }
            _ => String::new(),
        }
    }
}

/// Who a series is of, with its place in the plot.
pub(crate) fn name(series: &Series) -> String {
    let at = series
        .x
        .map(|x| format!(" [{}]", grouped(x)))
        .unwrap_or_default();
    let state = match series.state {
        State::Warm => "",
        State::Cold => " (cold)",
    };
    format!("{}{at}{state}", series.who)
}

/// A figure as people write it.
pub(crate) fn shown(value: f64, unit: &str) -> String {
    let scaled = |steps: &[(f64, &str)]| {
        let fits = steps.iter().find(|(above, _)| value.abs() >= *above);
        let (by, unit) = fits.or(steps.last()).expect("there are steps");
        let value = value / by;
        match value.abs() {
            100.0.. => format!("{value:.0} {unit}"),
            10.0.. => format!("{value:.1} {unit}"),
            _ => format!("{value:.2} {unit}"),
        }
    };
    match unit {
        "" => format!("{value}"),
        "ns" => scaled(&[(1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns")]),
        "bytes" => scaled(&[(1048576.0, "MiB"), (1024.0, "KiB"), (1.0, "B")]),
        unit if unit.ends_with("/s") => scaled(&[
            (1e6, &format!("M{unit}")),
            (1e3, &format!("k{unit}")),
            (1.0, unit),
        ]),
        unit => scaled(&[(1.0, unit)]),
    }
}

/// A count with its thousands apart.
pub(crate) fn grouped(count: f64) -> String {
    let digits = format!("{count:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
