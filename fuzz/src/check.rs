//! One case, from plan to verdict.

use std::fmt;

use jitcast_oracle::elf::{Elf, Home};
use jitcast_oracle::{Finding, Image, Judge, Layout, Names, Object, Report, Rules, Stored};

use crate::build::{Built, build};
use crate::case::Case;
use crate::window::{INDIRECT, LinkedUnit, Window, own_address};

/// `SHF_TLS`.
const THREAD_LOCAL: u64 = 0x400;

/// Why a case fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The linker refuses what is valid.
    Refused(String),
    /// The linker takes what does not fit.
    Accepted(String),
    /// The linker panics.
    Panicked(String),
    /// A place is not as the file asks, or not where the linker says.
    Misplaced(String),
    /// Sites that do not hold what they must, in the window at this base.
    Wrong {
        /// The base.
        base: u64,
        /// What the oracle says.
        findings: Vec<Finding>,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(why) => write!(f, "a valid object was refused: {why}"),
            Self::Accepted(what) => write!(f, "not refused: {what}"),
            Self::Panicked(message) => write!(f, "a panic: {message}"),
            Self::Misplaced(why) => f.write_str(why),
            Self::Wrong { base, findings } => {
                write!(f, "in a window at {base:#x}:")?;
                for finding in findings {
                    write!(f, "\n  {finding}")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for Failure {}

/// Builds, links, maps and judges a case.
///
/// # Errors
///
/// The first thing that is wrong with it.
pub fn check(case: &Case) -> Result<Report, Failure> {
    check_built(case, &build(case))
}

/// The same for a case whose objects are there.
///
/// # Errors
///
/// The first thing that is wrong with it.
pub fn check_built(case: &Case, units: &[Vec<Built>]) -> Result<Report, Failure> {
    let window =
        Window::link(units, case.window).map_err(|error| Failure::Refused(error.to_string()))?;
    let mut report = Report::default();
    for (index, unit) in units.iter().enumerate() {
        let objects = read(unit)?;
        for &base in &case.bases {
            let image = window.image(base).map_err(Failure::Misplaced)?;
            let layout = window.layout(index, &objects, base);
            well_placed(&objects, &layout, &window.units[index], &image, base)?;
            let found = Judge::new(&objects, &image, &layout).judge();
            if !found.findings.is_empty() {
                let findings = found.findings;
                return Err(Failure::Wrong { base, findings });
            }
            report.add(found);
        }
    }
    Ok(report)
}

fn read(unit: &[Built]) -> Result<Vec<Object<'_>>, Failure> {
    unit.iter()
        .map(|file| {
            let elf = Elf::parse(&file.bytes);
            let elf = elf.map_err(|error| Failure::Misplaced(format!("{}: {error}", file.name)))?;
            Ok(Object {
                name: &file.name,
                elf,
            })
        })
        .collect()
}

/// Whether sections are aligned and apart, and symbols where their sections are.
fn well_placed(
    objects: &[Object<'_>],
    layout: &Layout,
    unit: &LinkedUnit,
    image: &Image,
    base: u64,
) -> Result<(), Failure> {
    let misplaced = |what| Err(Failure::Misplaced(what));
    let mut ranges = Vec::new();
    for (&(object, section), &start) in &layout.sections {
        let section = &objects[object].elf.sections[section];
        if section.flags & THREAD_LOCAL != 0 {
            let offset = start.wrapping_sub(layout.block.unwrap_or_default());
            if !offset.is_multiple_of(section.align_bytes) {
                return misplaced(format!("{} at +{offset:#x} is not aligned", section.name));
            }
            continue;
        }
        // Bases are aligned to pages only.
        if !start.is_multiple_of(section.align_bytes.min(4096)) {
            return misplaced(format!("{} at {start:#x} is not aligned", section.name));
        }
        ranges.push((start, start + section.len_bytes, section.name));
    }
    ranges.sort_unstable();
    if let Some(pair) = ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        return misplaced(format!("{} and {} overlap", pair[0].2, pair[1].2));
    }
    let names = Names::resolve(objects.iter().map(|object| &object.elf));
    let mut exported = 0;
    for (name, global) in names.all().filter(|(_, global)| global.exported) {
        let expected = match global.definition {
            Some((object, Home::Section(section))) => {
                let start = layout.sections.get(&(object, section));
                start.map(|start| start + global.value)
            }
            Some((_, Home::Absolute)) => Some(global.value),
            Some((_, Home::Common)) => layout.commons.get(name).copied(),
            _ => continue,
        };
        exported += 1;
        let mut definitions = unit.definitions.iter();
        let found = definitions.find(|(other, ..)| other == name);
        let found = found.map(|(_, _, place)| own_address(*place, base, layout.block));
        if global.kind == INDIRECT && global.binding != 0 {
            let leads = found.is_some_and(|found| asks(image, layout, found, expected));
            if !leads {
                return misplaced(format!(
                    "`{name}` does not lead to what its resolver returns"
                ));
            }
            continue;
        }
        if found != expected {
            return misplaced(format!(
                "`{name}` is said to be at {found:#x?}, not {expected:#x?}"
            ));
        }
    }
    if exported != unit.definitions.len() {
        let count = unit.definitions.len();
        return misplaced(format!("{count} names are published, not {exported}"));
    }
    Ok(())
}

/// Whether the code at `place` jumps through a cell that holds what the function at `resolver` returns.
fn asks(image: &Image, layout: &Layout, place: u64, resolver: Option<u64>) -> bool {
    // endbr64; jmp *cell(%rip)
    let Some([0xf3, 0x0f, 0x1e, 0xfa, 0xff, 0x25, field @ ..]) = image.read(place, 10) else {
        return false;
    };
    let Some(&field) = field.first_chunk::<4>() else {
        return false;
    };
    let cell = (place + 10).wrapping_add_signed(i32::from_le_bytes(field).into());
    let Rules::Window(window) = &layout.rules else {
        return false;
    };
    matches!(window.dynamic.get(&cell), Some(Stored::Resolved(found)) if Some(*found) == resolver)
}
