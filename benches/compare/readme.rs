//! The section of README that a run writes: a line for each row, between two marks.

use std::fmt::Write;
use std::path::Path;

use crate::measure::{Row, Series};
use crate::report::{Report, grouped, shown};

const BEGIN: &str = "<!-- written by `cargo bench --bench compare -- --readme README.md` -->\n";
const END: &str = "<!-- end of what it wrote -->\n";

/// Replaces what is between the marks in the file at `path`.
pub(crate) fn write(report: &Report, path: &Path) -> Result<(), String> {
    let place = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("{place}: {error}"))?;
    let parts = text
        .split_once(BEGIN)
        .and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.ok_or_else(|| {
        format!("{place}: no place for the figures\n  help: put these lines where they are to be:\n{BEGIN}{END}")
    })?;
    let text = format!("{before}{BEGIN}\n{}\n{END}{after}", section(report));
    std::fs::write(path, text).map_err(|error| format!("{place}: {error}"))
}

fn section(report: &Report) -> String {
    let fact = |name: &str| {
        let facts = &report.environment.facts;
        let known = facts.iter().find(|(what, _)| what == name);
        known.map_or("unknown", |(_, is)| is.as_str())
    };
    let mut text = format!(
        "{}; Linux {}; {}. Load average when it began: {}.\n\n| what | jitcast | beside it |\n| --- | --- | --- |\n",
        fact("processor"),
        fact("kernel"),
        fact("date"),
        fact("load average").split(' ').next().unwrap_or("unknown"),
    );
    let mut done: Vec<&Row> = Vec::new();
    for series in &report.series {
        if series.row.group == "noise" || done.contains(&&series.row) {
            continue;
        }
        done.push(&series.row);
        text += &line(report, &series.row);
    }
    text
}

/// A row: of what has several sizes, the greatest.
fn line(report: &Report, row: &Row) -> String {
    let of_row = || report.series.iter().filter(|series| series.row == *row);
    let greatest = of_row().filter_map(|series| series.x).reduce(f64::max);
    let shown_here = |series: &&Series| series.x.is_none_or(|x| Some(x) == greatest);
    let mut own: Vec<&Series> = of_row().filter(shown_here).collect();
    let Some(first) = own
        .iter()
        .position(|series| series.who.starts_with("jitcast"))
    else {
        return String::new();
    };
    let first = own.remove(first);
    let at = greatest.map_or(String::new(), |x| format!(" ({})", grouped(x)));
    let mut text = format!("| {}{at} | {} | ", row.name, cell(first, first));
    for (index, other) in own.into_iter().enumerate() {
        let and = if index == 0 { "" } else { "; " };
        write!(text, "{and}{}", cell(other, first)).expect("a string takes everything");
    }
    text + " |\n"
}

/// Who, how much, and how many times that is `first`'s.
fn cell(series: &Series, first: &Series) -> String {
    let who = series.who.strip_prefix("jitcast, ").unwrap_or(&series.who);
    let figure = shown(series.summary.p50, &series.row.unit);
    if std::ptr::eq(series, first) {
        let who = if who == "jitcast" {
            String::new()
        } else {
            format!(" ({who})")
        };
        return format!("{figure}{who}");
    }
    format!("{who}: {figure}")
}
