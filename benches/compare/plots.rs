//! Plots, as SVG. Their background is white, so that they can be read on pages of any colour.

use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::measure::Series;
use crate::report::{Report, grouped, shown};

const SIZE: (u32, u32) = (760, 440);

/// Far apart for people who see colours otherwise, too (Okabe and Ito).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(0, 0, 0),
    RGBColor(150, 150, 150),
];

/// What a plot is of: its file, its title, the row that it shows, what its axes are.
struct Plot {
    file: &'static str,
    title: &'static str,
    row: &'static str,
    x: &'static str,
    /// Of the logarithms on that axis.
    base: f64,
}

const PLOTS: [Plot; 3] = [
    Plot {
        file: "latency.svg",
        title: "Published until all sleeping workers have called it",
        row: "linked code published to called, sleeping workers",
        x: "workers",
        base: 2.0,
    },
    Plot {
        file: "memory.svg",
        title: "Memory for 1,000 functions in all workers together",
        row: "memory of all workers together, 1,000 functions",
        x: "workers",
        base: 2.0,
    },
    Plot {
        file: "link.svg",
        title: "Time to link, by size",
        row: "link, whole process or in memory, by relocations",
        x: "relocations",
        base: 10.0,
    },
];

/// Draws each plot whose row was measured into `folder`.
pub(crate) fn draw(report: &Report, folder: &Path) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(folder)?;
    for plot in &PLOTS {
        // In the order of the contestants.
        let mut lines: Vec<(&str, Vec<&Series>)> = Vec::new();
        for series in report.row(plot.row).filter(|series| series.x.is_some()) {
            match lines.iter_mut().find(|(who, _)| *who == series.who) {
                Some((_, line)) => line.push(series),
                None => lines.push((&series.who, vec![series])),
            }
        }
        // An axis is logarithmic.
        lines.retain(|(_, line)| line.iter().all(|series| series.summary.low > 0.0));
        if lines.is_empty() {
            continue;
        }
        let path = folder.join(plot.file);
        let area = SVGBackend::new(&path, SIZE).into_drawing_area();
        draw_one(&area, plot, lines)?;
        area.present()?;
    }
    Ok(())
}

/// Both axes are logarithmic; a bar at each point is the range of the rounds' medians.
fn draw_one(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    plot: &Plot,
    lines: Vec<(&str, Vec<&Series>)>,
) -> Result<(), Box<dyn Error>> {
    area.fill(&WHITE)?;
    let all = || lines.iter().flat_map(|(_, line)| line);
    let x = |series: &&&Series| series.x.unwrap_or(1.0);
    let xs = bounds(all().map(|series| x(&series)), 1.15);
    let y = all().flat_map(|series| [series.summary.low, series.summary.high]);
    let mut ys = bounds(y, 1.6);
    // Room for the names of the lines.
    ys.end *= (ys.end / ys.start).powf(0.05 * lines.len() as f64);
    let unit = all().next().map_or("", |series| &series.row.unit);
    let mut chart = ChartBuilder::on(area)
        .caption(plot.title, ("sans-serif", 19))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(74)
        .build_cartesian_2d(xs.log_scale().base(plot.base), ys.log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc(plot.x)
        .y_desc("median")
        .x_label_formatter(&|x| grouped(*x))
        .y_label_formatter(&|y| axis(*y, unit))
        .draw()?;
    for (number, (who, mut line)) in lines.into_iter().enumerate() {
        let colour = &COLOURS[number % COLOURS.len()];
        // A colour that comes again is dashed.
        let dash = if number < COLOURS.len() {
            None
        } else {
            Some((7, 4))
        };
        line.sort_by(|a, b| a.x.unwrap_or(0.0).total_cmp(&b.x.unwrap_or(0.0)));
        let points: Vec<_> = line
            .iter()
            .map(|series| (x(&series), series.summary.p50))
            .collect();
        let bars = line.iter().map(|series| {
            let (low, high) = (series.summary.low, series.summary.high);
            PathElement::new(vec![(x(&series), low), (x(&series), high)], colour)
        });
        chart.draw_series(bars)?;
        let drawn = match dash {
            None => chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?,
            Some((dash, gap)) => chart.draw_series(DashedLineSeries::new(
                points.clone(),
                dash,
                gap,
                colour.stroke_width(2),
            ))?,
        };
        let key = dash.map_or(18, |(dash, _)| dash);
        drawn
            .label(who)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + key, y)], colour.stroke_width(2)));
        let circle = |point| Circle::new(point, 3, colour.filled());
        chart.draw_series(points.into_iter().map(circle))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

/// The least and the greatest, `room` times further apart at both ends.
fn bounds(values: impl Iterator<Item = f64>, room: f64) -> std::ops::Range<f64> {
    let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    low / room..high * room
}

/// A figure on an axis, which has powers of ten.
fn axis(value: f64, unit: &str) -> String {
    if unit == "bytes" {
        return match value {
            1e6.. => format!("{:.0} MB", value / 1e6),
            _ => format!("{:.0} kB", value / 1e3),
        };
    }
    shown(value, unit).replace(".00", "").replace(".0 ", " ")
}
