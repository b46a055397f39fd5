//! `jitcast link`: what the linker does with a unit, and why.

use std::collections::BTreeMap;
use std::process::ExitCode;

use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use jitcast::compiler::Preview;
use jitcast::linker::relocation::Resolved;
use jitcast::linker::{Counts, Explanation, Place};
use jitcast::runtime::geometry::{DEFAULT_WINDOW_BYTES, Geometry};

use super::Failure;
use super::args::{Cpu, LinkArgs};
use super::progress::Progress;
use super::run;

pub(super) fn link(args: &LinkArgs) -> Result<ExitCode, Failure> {
    let compiling = Progress::spin("compiling");
    let unit = run::compile(&args.unit, &args.unit.options(Cpu::Host));
    drop(compiling);
    let unit = unit?;
    let inputs = unit.inputs();
    let geometry = Geometry::new(DEFAULT_WINDOW_BYTES.into())?;
    let linking = Progress::spin("linking");
    let preview = Preview::new(&unit, &inputs, &geometry);
    drop(linking);
    let preview = preview?;
    if args.map {
        println!("{}", map(&preview));
    }
    if args.explain {
        println!("{}", explain(&preview.prepared.explain()));
    }
    println!("{}", summary(&preview)?);
    Ok(ExitCode::SUCCESS)
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_BORDERS_ONLY).set_header(header);
    table
}

/// Pieces and symbols, by their places.
fn map(preview: &Preview<'_>) -> Table {
    let mut rows = BTreeMap::new();
    for (number, piece) in preview
        .prepared
        .map(&preview.placement)
        .into_iter()
        .enumerate()
    {
        let row = [
            piece.area.name().to_owned(),
            piece.at.to_string(),
            format!("{:#x}", piece.len_bytes),
            piece.align_bytes.to_string(),
            piece.what,
        ];
        rows.insert((piece.area.name(), piece.at, 0, number), row);
    }
    for (number, symbol) in preview.linked.symbols.iter().enumerate() {
        let definition = &preview.prepared.definitions()[symbol.definition];
        let (area, at, place) = match symbol.place {
            Place::At(area, at) => (area.name(), at, at.to_string()),
            Place::Absolute(value) => ("absolute", preview.placement.text, format!("{value:#x}")),
            Place::ThreadLocal { module, offset } => {
                ("thread-local", module, format!("block+{offset:#x}"))
            }
        };
        let size = format!("{:#x}", definition.size);
        let name = format!("  `{}`", definition.name);
        rows.insert(
            (area, at, 1, number),
            [area.to_owned(), place, size, String::new(), name],
        );
    }
    let mut table = new_table(&["area", "window offset", "length", "alignment", "what"]);
    for row in rows.into_values() {
        table.add_row(row);
    }
    table
}

fn explain(explanations: &[Explanation]) -> Table {
    let mut table = new_table(&[
        "site", "kind", "formula", "symbol", "target", "resolved", "done",
    ]);
    for told in explanations {
        let symbol = match told.addend {
            0 => told.symbol.clone(),
            addend => format!(
                "{} {} {:#x}",
                told.symbol,
                if addend < 0 { '-' } else { '+' },
                addend.unsigned_abs()
            ),
        };
        table.add_row([
            format!("{}:{}+{:#x}", told.file, told.section, told.offset),
            told.relocation.name.to_owned(),
            told.relocation.formula.to_owned(),
            symbol,
            told.target.clone(),
            resolved(told.resolved).to_owned(),
            told.done.to_string(),
        ]);
    }
    table
}

fn resolved(when: Resolved) -> &'static str {
    match when {
        Resolved::Never => "never",
        Resolved::AtLink => "at link",
        Resolved::AtAttach => "at attach",
    }
}

fn summary(preview: &Preview<'_>) -> Result<String, Failure> {
    let extents = preview.prepared.extents();
    let Counts {
        relocations,
        patched,
        changed,
    } = preview.prepared.counts();
    let mut host: Vec<&str> = preview
        .prepared
        .references()
        .iter()
        .filter(|reference| reference.own.is_none())
        .map(|reference| reference.name)
        .collect();
    host.sort_unstable();
    Ok(format!(
        "{relocations} relocations: {patched} patched in each worker, {changed} instructions changed\n\
         text {} bytes, read-only data {}, private data {} of each worker, shared data {} of all, {} patches\n\
         defines {} names; {} functions can be unwound through; asks for {}",
        extents.text.len_bytes,
        extents.read_only.len_bytes,
        extents.private.len_bytes,
        extents.shared.len_bytes,
        preview.linked.patches.len(),
        preview.prepared.definitions().len(),
        preview.prepared.unwinding(&preview.placement)?.frames.len(),
        if host.is_empty() {
            "nothing".to_owned()
        } else {
            host.join(", ")
        }
    ))
}
