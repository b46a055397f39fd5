//! `jitcast perf-resolve`: names for what perf shows of published code as numbers, since it lies in a file that has no symbols.
//!
//! `perf script` shows addresses of a process, `perf report` distances in the file. Names are those of what is published now:
//! samples of what has been replaced since, and whose memory was reused, get the wrong ones.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::process::ExitCode;

use jitcast::runtime::SegmentOffset;
use jitcast::runtime::geometry::{Area, Region};
use jitcast::runtime::observer::Look;
use jitcast::runtime::segment::object_path;

use super::Failure;
use super::args::{ObserveArgs, PerfResolveArgs};
use super::directory::Directory;
use super::observe;
use super::output::lost;
use super::places::{Places, What};

/// What sealed segments are called.
const SEALED: &str = "memfd:jitcast";

/// What the paths of named ones begin with.
const NAMED: &str = "/dev/shm/jitcast-";

/// What perf says where it knows no name.
const UNKNOWN: &str = " [unknown] (";
const NUMBER: &str = "[.] 0x";

/// A place that a line names by a number, and where in the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mention {
    place: Place,
    start: usize,
    end: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// An address in some process.
    Address(u64),
    /// A distance in the segment's file.
    InFile(u64),
}

pub(super) fn resolve(args: &PerfResolveArgs) -> Result<ExitCode, Failure> {
    let mut text = Vec::new();
    match args.file.as_ref().filter(|file| file.as_os_str() != "-") {
        None => std::io::stdin().lock().read_to_end(&mut text)?,
        Some(file) => {
            let mut opened = std::fs::File::open(file).map_err(|cause| {
                let help = "give the output of `perf script`, or `-` for standard input";
                Failure(format!(
                    "cannot open {}: {cause}\n  help: {help}",
                    file.display()
                ))
            })?;
            opened.read_to_end(&mut text)?
        }
    };
    let text = String::from_utf8_lossy(&text);
    let named = args.segment.name.as_deref().map(object_path).transpose()?;
    let file = named.as_deref().unwrap_or(SEALED);
    let mentions = || text.lines().filter_map(|line| mention(line, file));
    let places: Vec<Place> = mentions().map(|mention| mention.place).collect();
    let names = match &args.map {
        Some(map) => from_map(map, &places)?,
        None => from_segment(&args.segment, &text, file, &places)?,
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut unresolved = 0u64;
    for line in text.lines() {
        let found = mention(line, file);
        let written = match found.map(|mention| (mention, names.get(&key(mention.place)))) {
            Some((mention, Some(name))) => {
                let (before, after) = (&line[..mention.start], &line[mention.end..]);
                writeln!(out, "{before}{name}{after}")
            }
            Some((_, None)) => {
                unresolved += 1;
                writeln!(out, "{line}")
            }
            None => writeln!(out, "{line}"),
        };
        written.map_err(lost)?;
    }
    out.flush().map_err(lost)?;
    if unresolved > 0 {
        eprintln!(
            "note: {unresolved} places have no name\n  help: of a process that has ended, `perf script --show-mmap-events` says where its code was; what was replaced since is known by a jitdump only (`jitcast debug --jitdump`)"
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn key(place: Place) -> (bool, u64) {
    match place {
        Place::Address(address) => (true, address),
        Place::InFile(offset) => (false, offset),
    }
}

/// What a line of perf's mentions of the file called `file`.
fn mention(line: &str, file: &str) -> Option<Mention> {
    if !is_about(line, file) {
        return None;
    }
    if let Some(at) = line.find(UNKNOWN) {
        let number = line[..at].rsplit(' ').next()?;
        // Callers of the function may follow, on lines of their own.
        let address = u64::from_str_radix(number, 16).ok()?;
        let start = at + 1;
        let end = start + "[unknown]".len();
        let place = Place::Address(address);
        return Some(Mention { place, start, end });
    }
    let start = line.find(NUMBER)? + "[.] ".len();
    let digits = &line[start + 2..];
    let len = digits.find(|digit: char| !digit.is_ascii_hexdigit());
    let len = len.unwrap_or(digits.len());
    let offset = u64::from_str_radix(&digits[..len], 16).ok()?;
    let (place, end) = (Place::InFile(offset), start + 2 + len);
    Some(Mention { place, start, end })
}

/// Whether a line names the file, and not another one whose name begins alike. Of a segment that was asked for by its socket nobody
/// knows the name, if it has one.
fn is_about(line: &str, file: &str) -> bool {
    if file == SEALED && line.contains(NAMED) {
        return true;
    }
    let mut found = line.match_indices(file);
    found.any(|(at, _)| {
        let next = line[at + file.len()..].chars().next();
        next.is_none_or(|next| !next.is_alphanumeric() && next != '-' && next != '_')
    })
}

type Names = BTreeMap<(bool, u64), String>;

/// Names by a list as `perf-PID.map` is.
fn from_map(path: &std::path::Path, places: &[Place]) -> Result<Names, Failure> {
    let text = std::fs::read(path).map_err(|cause| {
        let help = "`jitcast debug --perf-map` has workers write one";
        Failure(format!(
            "cannot read {}: {cause}\n  help: {help}",
            path.display()
        ))
    })?;
    let text = String::from_utf8_lossy(&text);
    // Of two for one place the later one counts.
    let mut functions = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.splitn(3, ' ');
        let mut number = || u64::from_str_radix(words.next()?, 16).ok();
        if let (Some(start), Some(len_bytes)) = (number(), number()) {
            functions.insert(start, (len_bytes, words.next().unwrap_or("?")));
        }
    }
    let mut names = Names::new();
    for place in places {
        let Place::Address(address) = *place else {
            continue;
        };
        if let Some((start, (len_bytes, name))) = functions.range(..=address).next_back()
            && address - start < *len_bytes
        {
            names.insert(key(*place), with_distance(name, address - start));
        }
    }
    Ok(names)
}

/// Names by what is published, wherever the processes map it.
fn from_segment(
    args: &ObserveArgs,
    text: &str,
    file: &str,
    places: &[Place],
) -> Result<Names, Failure> {
    let observer = observe::observe(args)?;
    let shared = observer.geometry().shared().start;
    let window = u64::from(observer.geometry().window().len_bytes);
    let mut bases = mapped(text, file, shared);
    if let Ok(status) = observe::status(args, &observer) {
        bases.extend(status.workers.iter().map(|worker| worker.base));
    }
    bases.sort_unstable();
    let offset = |place: &Place| {
        let offset = match *place {
            Place::InFile(offset) => offset.checked_add(shared.into())?,
            Place::Address(address) => {
                let after = bases.partition_point(|base| *base <= address);
                address - bases.get(after.checked_sub(1)?)?
            }
        };
        let offset = u32::try_from(offset)
            .ok()
            .filter(|offset| u64::from(*offset) < window);
        offset.map(|offset| (key(*place), SegmentOffset::new(offset)))
    };
    let offsets: BTreeMap<_, _> = places.iter().filter_map(offset).collect();
    observer.look(|look| name(look, &offsets))
}

/// Where windows begin, as perf's own records of mappings say:
/// `PERF_RECORD_MMAP2 344/344: [0x2a4b8c600000(0x20000) @ 0xc000000 00:01 46884 0]: r-xs /memfd:jitcast (deleted)`.
fn mapped(text: &str, file: &str, shared: u32) -> Vec<u64> {
    let hex = |text: &str| u64::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok();
    let base = |line: &str| {
        let (start, rest) = line
            .split_once("[0x")
            .map(|(_, rest)| rest)?
            .split_once('(')?;
        let (_, in_file) = rest.split_once(") @ ")?;
        let in_file = hex(in_file.split(' ').next()?)?;
        let start = u64::from_str_radix(start, 16).ok()?;
        start.checked_sub(in_file)?.checked_sub(shared.into())
    };
    let lines = text.lines();
    let mut bases: Vec<u64> = lines
        .filter(|line| line.contains("PERF_RECORD_MMAP") && is_about(line, file))
        .filter_map(base)
        .collect();
    bases.sort_unstable();
    bases.dedup();
    bases
}

fn name(look: &Look<'_>, offsets: &BTreeMap<(bool, u64), SegmentOffset>) -> Result<Names, Failure> {
    let directory = Directory::read(look)?;
    let places = Places::new(look, &directory);
    let text: Region = look.observer().geometry().region(Area::Text);
    let mut names = Names::new();
    for (key, at) in offsets {
        // Data are not run.
        let is_code = text.contains(*at, 1);
        let Some(target) = places
            .at(*at)?
            .filter(|target| is_code || target.what == What::Stub)
        else {
            continue;
        };
        let Some(called) = &target.name else {
            continue;
        };
        let kind = if target.what == What::Stub {
            "stub of "
        } else {
            ""
        };
        let unit = places
            .text(*at)?
            .map(|(record, unit)| (unit, record.generation));
        let unit = unit.map(|(unit, generation)| format!(" [{unit}, generation {generation}]"));
        let called = with_distance(called, target.distance.into());
        names.insert(*key, format!("{kind}{called}{}", unit.unwrap_or_default()));
    }
    Ok(names)
}

fn with_distance(name: &str, distance: u64) -> String {
    format!("{name}+{distance:#x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_perf_are_understood() {
        let mentioned = |line: &str| {
            let found = mention(line, SEALED)?;
            Some((found.place, &line[found.start..found.end]).1.to_owned())
                .map(|text| (found.place, text))
        };
        let address = |address, text: &str| Some((Place::Address(address), text.to_owned()));
        let in_file = |offset, text: &str| Some((Place::InFile(offset), text.to_owned()));
        for (line, expected) in [
            (
                "         jitcast   344  2279.046072:    1001001 cpu-clock:      2a4b8c610011 [unknown] (/memfd:jitcast (deleted))",
                address(0x2a4b8c610011, "[unknown]"),
            ),
            (
                "\t    2a4b8c610011 [unknown] (/memfd:jitcast (deleted))",
                address(0x2a4b8c610011, "[unknown]"),
            ),
            (
                "    49.50%  jitcast  memfd:jitcast (deleted)  [.] 0x000000000c010011",
                in_file(0xc010011, "0x000000000c010011"),
            ),
            (
                "    49.50%  jitcast  memfd:jitcast (deleted)  [.] 0xc010011  -  -",
                in_file(0xc010011, "0xc010011"),
            ),
            (
                "    2a4b8c610011 [unknown] (/memfd:jitcast-shared (deleted))",
                None,
            ),
            ("    2a4b8c610011 malloc+0x1 (/usr/lib/libc.so.6)", None),
            ("    zzz [unknown] (/memfd:jitcast (deleted))", None),
            ("", None),
        ] {
            assert_eq!(mentioned(line), expected, "{line}");
        }
    }

    #[test]
    fn windows_are_found_by_mappings() {
        let text = "  w 0 0.0: PERF_RECORD_MMAP2 3/3: [0x2a4b8c600000(0x20000) @ 0xc000000 00:01 46884 0]: r-xs /memfd:jitcast (deleted)\n\
                    w 0 0.0: PERF_RECORD_MMAP2 3/3: [0x2a4b88600000(0x10000) @ 0x8000000 00:01 46884 0]: r-xs /memfd:jitcast (deleted)\n\
                    w 0 0.0: PERF_RECORD_MMAP2 3/3: [0x1000(0x10000) @ 0x8000000 00:01 46884 0]: r-xs /memfd:jitcast (deleted)\n\
                    w 0 0.0: PERF_RECORD_MMAP2 3/3: [0x(0x20000) @ nothing]: r-xs /memfd:jitcast (deleted)\n";
        assert_eq!(mapped(text, SEALED, 0x1000), [0x2a4b805ff000]);
    }
}
