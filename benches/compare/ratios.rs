//! Two runs compared: what became faster or slower, and by how much more than the noise of both.

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};

use crate::measure::Series;
use crate::report::{Report, name, shown};

/// A line for each series that both runs have.
pub(crate) fn table(old: &Report, new: &Report) -> String {
    let mut table = Table::new();
    table
        .load_preset(UTF8_BORDERS_ONLY)
        .set_header(["what", "who", "old", "new", "new/old", "noise", ""]);
    for column in 2..6 {
        let column = table.column_mut(column).expect("it has seven columns");
        column.set_cell_alignment(CellAlignment::Right);
    }
    let drift = drift(old, new);
    for (before, series) in pairs(old, new) {
        let ratio = series.summary.p50 / before.summary.p50;
        let noise = before
            .summary
            .noise()
            .max(series.summary.noise())
            .max(drift);
        table.add_row([
            format!("{}: {}", series.row.group, series.row.name),
            name(series),
            shown(before.summary.p50, &series.row.unit),
            shown(series.summary.p50, &series.row.unit),
            format!("{ratio:.2}"),
            format!("±{:.0} %", noise * 100.0),
            verdict(ratio, noise).to_owned(),
        ]);
    }
    let mut text = table.to_string();
    let percent = drift * 100.0;
    text += &format!(
        "\nwhat does not change between runs differs by up to {percent:.0} %: that is noise, too"
    );
    if old.quick || new.quick {
        text += "\none of them is a quick run: for a look only";
    }
    let machine = |report: &Report| {
        let facts = &report.environment.facts;
        let machine = facts
            .iter()
            .filter(|(what, _)| what == "processor" || what == "kernel");
        machine.map(|(_, is)| is.clone()).collect::<Vec<_>>()
    };
    if machine(old) != machine(new) {
        text += "\nthe machines differ: only ratios inside one run mean something";
    }
    text
}

/// What both runs have.
fn pairs<'a>(old: &'a Report, new: &'a Report) -> impl Iterator<Item = (&'a Series, &'a Series)> {
    new.series.iter().filter_map(|series| {
        let before = old.series.iter().find(|before| before.is_of(series));
        before.map(|before| (before, series))
    })
}

/// How far the machine itself differs: by the rows that measure nothing of anybody's.
fn drift(old: &Report, new: &Report) -> f64 {
    pairs(old, new)
        .filter(|(_, series)| series.row.group == "noise")
        .map(|(before, series)| (series.summary.p50 / before.summary.p50 - 1.0).abs())
        .fold(0.0, f64::max)
}

/// What is more than the noise of the rounds.
fn verdict(ratio: f64, noise: f64) -> &'static str {
    let is_less = if ratio > 1.0 { "more" } else { "less" };
    if (ratio - 1.0).abs() <= noise.max(0.02) {
        "within the noise"
    } else {
        is_less
    }
}
