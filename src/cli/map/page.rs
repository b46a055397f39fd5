//! The page. Names are anybody's: they are escaped wherever they stand, and nothing in the page can reach a network.

use std::fmt::Write;

use super::model::Model;
use crate::cli::Failure;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The most units that the table lists; the picture has all.
const LISTED: usize = 1000;

/// The whole page.
pub(super) fn page(model: &Model) -> Result<String, Failure> {
    // Inside a script nothing may look like its end, or like markup.
    let data = serde_json::to_string(model)?;
    let data = data
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026");
    let mut page = String::new();
    write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>jitcast: generation {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
        model.generation
    )?;
    write!(
        page,
        "<header>\n<h1>The window at generation {}</h1>\n<p id=\"summary\">{} of address space, {} units in {} areas.{}</p>\n\
         <div class=\"controls\"><label>Find a unit <input id=\"find\" type=\"search\" autocomplete=\"off\"></label>\n\
         <button id=\"theme\" type=\"button\">Light or dark</button></div>\n</header>\n",
        model.generation,
        size(model.window_bytes),
        model.units.len(),
        model.areas.len(),
        if model.asked {
            ""
        } else {
            " The compiler process was not asked: what is free or retired, nobody knows."
        }
    )?;
    page.push_str("<main>\n<ul id=\"legend\" aria-hidden=\"true\"></ul>\n<div id=\"picture\" aria-hidden=\"true\"></div>\n");
    page.push_str("<p id=\"tip\" role=\"status\" hidden></p>\n");
    holders(&mut page, model)?;
    areas(&mut page, model)?;
    units(&mut page, model)?;
    write!(
        page,
        "</main>\n<script id=\"data\" type=\"application/json\">{data}</script>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    )?;
    Ok(page)
}

fn holders(page: &mut String, model: &Model) -> Result<(), Failure> {
    if model.holders.is_empty() {
        return Ok(());
    }
    page.push_str("<h2>Who holds retired memory back</h2>\n<ul id=\"holders\">\n");
    for holder in &model.holders {
        writeln!(page, "<li>{}</li>", escaped(holder))?;
    }
    page.push_str("</ul>\n");
    Ok(())
}

fn areas(page: &mut String, model: &Model) -> Result<(), Failure> {
    page.push_str(
        "<h2>Areas</h2>\n<table id=\"areas\">\n<thead><tr><th>area<th>begins at<th>size<th>had memory<th>used<th>retired<th>longest free\
         </tr></thead>\n<tbody>\n",
    );
    for area in &model.areas {
        let known = |bytes: Option<u64>| bytes.map_or_else(|| "?".to_owned(), size);
        writeln!(
            page,
            "<tr><td>{}<td>w+{:#x}<td>{}<td>{}<td>{}<td>{}<td>{}</tr>",
            escaped(area.name),
            area.start,
            size(area.len_bytes.into()),
            size(area.backed_bytes.into()),
            known(area.used_bytes),
            size(area.retired_bytes),
            known(area.largest_free_bytes),
        )?;
    }
    page.push_str("</tbody>\n</table>\n");
    Ok(())
}

fn units(page: &mut String, model: &Model) -> Result<(), Failure> {
    let mut units: Vec<_> = model.units.iter().collect();
    units.sort_by(|a, b| {
        b.len_bytes()
            .cmp(&a.len_bytes())
            .then_with(|| a.name.cmp(&b.name))
    });
    page.push_str(
        "<h2>Units</h2>\n<table id=\"units\">\n<thead><tr><th>unit<th>generation<th>what<th>text<th>read-only<th>private<th>shared<th>cells\
         </tr></thead>\n<tbody>\n",
    );
    for unit in units.iter().take(LISTED) {
        writeln!(
            page,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}</tr>",
            escaped(&unit.name),
            unit.generation,
            unit.kind,
            unit.text_bytes,
            unit.read_only_bytes,
            unit.private_bytes,
            unit.shared_bytes,
            unit.cells
        )?;
    }
    page.push_str("</tbody>\n</table>\n");
    let more = units.len().saturating_sub(LISTED);
    if more > 0 {
        let bytes = units[LISTED..].iter().map(|unit| unit.len_bytes()).sum();
        writeln!(page, "<p>And {more} more, of {} together.</p>", size(bytes))?;
    }
    Ok(())
}

/// Bytes, for people.
fn size(bytes: u64) -> String {
    let scaled = |unit: f64| {
        let number = format!("{:.1}", bytes as f64 / unit);
        number.strip_suffix(".0").unwrap_or(&number).to_owned()
    };
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{} KiB", scaled(1024.0)),
        _ => format!("{} MiB", scaled(1_048_576.0)),
    }
}

/// Text that is nothing but text in HTML.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            char => escaped.push(char),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_names_is_text() {
        assert_eq!(escaped("<b a='\"&"), "&lt;b a=&#39;&quot;&amp;");
    }
}
