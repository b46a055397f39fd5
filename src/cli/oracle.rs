//! `jitcast oracle`: whether what a linker made of some objects is right.

use std::path::Path;
use std::process::ExitCode;

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};
use jitcast_oracle::elf::{Elf, RELOCATABLE};
use jitcast_oracle::{Judge, Linked, Map, Object, Report, table};

use super::Failure;
use super::args::OracleArgs;

pub(super) fn oracle(args: &OracleArgs) -> Result<ExitCode, Failure> {
    let files = args.objects.iter().map(|path| read(path));
    let files = files.collect::<Result<Vec<_>, _>>()?;
    let names: Vec<String> = args
        .objects
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let mut objects = Vec::new();
    for (name, bytes) in names.iter().zip(&files) {
        let elf = parse(name, bytes)?;
        if elf.kind != RELOCATABLE {
            return Err(Failure(format!("{name}: is no relocatable object")));
        }
        objects.push(Object { name, elf });
    }
    let label = args.image.display().to_string();
    let bytes = read(&args.image)?;
    let elf = parse(&label, &bytes)?;
    if elf.kind == RELOCATABLE {
        return Err(Failure(format!(
            "{label}: is an object, not what was linked from it"
        )));
    }
    let map = match &args.map {
        Some(path) => Some(Map::parse(&String::from_utf8_lossy(&read(path)?))),
        None => None,
    };
    let linked = Linked::locate(&objects, &elf, map.as_ref());
    let report = Judge::new(&objects, &linked.image, &linked.layout).judge();
    show(&report, &objects, &linked)?;
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|cause| Failure(format!("{}: {cause}", path.display())))
}

fn parse<'a>(name: &str, bytes: &'a [u8]) -> Result<Elf<'a>, Failure> {
    Elf::parse(bytes).map_err(|cause| Failure(format!("{name}: {cause}")))
}

fn show(report: &Report, objects: &[Object<'_>], linked: &Linked) -> Result<(), Failure> {
    for finding in &report.findings {
        println!("{finding}");
    }
    println!("{}", counts(report));
    for &(object, section) in &linked.lost {
        let Object { name, elf } = &objects[object];
        let section = elf.section(section).map_or("", |section| section.name);
        eprintln!("{name}: {section} was not found in the image; a map would tell (--map)");
    }
    let (wrong, looked_at) = (report.findings.len(), report.looked_at());
    println!("{looked_at} sites looked at, {wrong} wrong");
    match (wrong, linked.lost.len(), looked_at) {
        (0, 0, 0) => Err(Failure("no site could be looked at".to_owned())),
        (0, 0, _) => Ok(()),
        (0, lost, _) => Err(Failure(format!(
            "{lost} sections were not found, so nobody knows whether they are right"
        ))),
        _ => Err(Failure(format!(
            "{wrong} places are not what they must be, see above"
        ))),
    }
}

/// Sites by kind; then what was excused or left out, and why.
fn counts(report: &Report) -> Table {
    let mut table = Table::new();
    table
        .load_preset(UTF8_BORDERS_ONLY)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["kind", "sites", "compared", "excused by rule, or apart"]);
    let number = |number: u64| Cell::new(number).set_alignment(CellAlignment::Right);
    for (&kind, tally) in &report.kinds {
        let name = table::lookup(kind).map_or_else(|| kind.to_string(), |row| row.name.to_owned());
        let all = tally.excused.iter().chain(&tally.apart);
        let reasons: Vec<String> = all.map(|(why, count)| format!("{count} {why}")).collect();
        table.add_row([
            Cell::new(name),
            number(tally.sites),
            number(tally.compared),
            Cell::new(reasons.join(", ")),
        ]);
    }
    table
}
