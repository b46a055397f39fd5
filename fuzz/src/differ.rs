//! The same objects, linked by another linker into an executable at the addresses of our window: relocated bytes have to
//! agree, but for differences that are listed here, each with its reason.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

use jitcast_oracle::elf::Elf;
use jitcast_oracle::{Judge, Layout, Linked, Object, Outcome, Verdict, table};
use object::write::SymbolSection;
use object::{SectionKind, SymbolScope, elf};

use crate::build::{Built, HOST_DATA, HOST_FUNCTIONS, WEAK};
use crate::case::Case;
use crate::window::{Window, host_address};
use crate::writer::{empty, relocation, symbol};

/// A way in which two linkers may differ at a site.
#[derive(Debug)]
pub struct Difference {
    /// What reports call it.
    pub name: &'static str,
    /// Why both are right.
    pub reason: &'static str,
    holds: fn(&Verdict, &Verdict) -> bool,
}

/// All differences; the first that holds is taken.
pub const DIFFERENCES: &[Difference] = &[
    Difference {
        name: "rewritten by us",
        reason: "a rule of the oracle's: text without addresses of a process, direct references within the unit",
        holds: |ours, _| matches!(ours.outcome, Outcome::Excused(_)),
    },
    Difference {
        name: "rewritten by them",
        reason: "a rule of the oracle's, as the psABI allows",
        holds: |_, theirs| matches!(theirs.outcome, Outcome::Excused(_)),
    },
    Difference {
        name: "entry",
        reason: "the formula has G: each linker has its own entries, and the oracle has seen what each holds",
        holds: |ours, _| formula(ours).starts_with("G +"),
    },
    Difference {
        name: "table",
        reason: "the formula has GOT: our table starts with the window, theirs where they like",
        holds: |ours, _| formula(ours).contains("GOT"),
    },
    Difference {
        name: "stub",
        reason: "the address of code that others see is its stub's, where theirs is the code's own",
        holds: |ours, _| ours.canonical,
    },
];

fn formula(verdict: &Verdict) -> &'static str {
    table::lookup(verdict.kind).map_or("", |row| row.formula)
}

/// How two linkers agree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Sites with the same bytes, by kind.
    pub same: BTreeMap<u32, u64>,
    /// Sites that differ, by the name of the difference.
    pub differ: BTreeMap<&'static str, u64>,
}

impl Agreement {
    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        for (&kind, count) in &other.same {
            *self.same.entry(kind).or_default() += count;
        }
        for (&name, count) in &other.differ {
            *self.differ.entry(name).or_default() += count;
        }
    }
}

/// The name of the file that refers to the table by its name, without which lld does not tell where it is.
pub const ASKS_FOR_TABLE: &str = "table.o";

/// An object whose `.table` holds the address of `_GLOBAL_OFFSET_TABLE_`.
pub fn asks_for_table() -> Vec<u8> {
    let mut object = empty();
    let section = object.add_section(Vec::new(), b".table".to_vec(), SectionKind::Data);
    object.append_section_data(section, &[0; 8], 8);
    let undefined = SymbolSection::Undefined;
    let table = symbol("_GLOBAL_OFFSET_TABLE_", 0, SymbolScope::Unknown, undefined);
    let table = object.add_symbol(table);
    let relocation = relocation(0, table, elf::R_X86_64_64, 0);
    // The format has room for every addend.
    let _ = object.add_relocation(section, relocation);
    object.write().unwrap_or_default()
}

/// The arguments that give the host's symbols their addresses.
pub fn definitions() -> Vec<String> {
    let weak = WEAK.iter().map(|(name, _)| *name);
    let names = HOST_FUNCTIONS.into_iter().chain(HOST_DATA).chain(weak);
    names
        .filter_map(|name| Some(format!("--defsym={name}={:#x}", host_address(name)?)))
        .collect()
}

/// A linker script that puts each section of a unit where our window has it.
pub fn script(objects: &[Object<'_>], layout: &Layout) -> String {
    let mut places: Vec<(u64, usize, usize)> = layout
        .sections
        .iter()
        .map(|(&(object, section), &address)| (address, object, section))
        .collect();
    places.sort_unstable();
    let mut text = String::from("SECTIONS {\n");
    for (address, object, section) in places {
        let name = objects[object].elf.sections[section].name;
        let file = objects[object].name;
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "  .at{object}_{section} {address:#x} : {{ *{file}({name}) }}"
        );
    }
    // Behind everything of ours. GNU ld 2.40 counts GOT32 and GOT64 wrongly where .got.plt does not start its output
    // section.
    let table = layout.table.unwrap_or_default() + 0x20_0000;
    let _ = writeln!(text, "  .got.plt {table:#x} : {{ *(.got.plt) }}");
    text += "  .got : { *(.got) *(.igot*) }\n";
    text + "  .table : { *(.table) }\n  /DISCARD/ : { *(.comment) *(.note*) *(.eh_frame) }\n}\n"
}

/// Objects and layout of the one unit of a case, as our window has them.
pub struct Ours<'a> {
    /// The objects.
    pub objects: Vec<Object<'a>>,
    /// Where they are.
    pub layout: Layout,
    window: Window,
    base: u64,
}

impl<'a> Ours<'a> {
    /// Links the one unit of `case`, whose objects are `unit`.
    ///
    /// # Errors
    ///
    /// Our linker refuses it, or the oracle cannot read it.
    pub fn link(case: &Case, unit: &'a [Built]) -> Result<Self, String> {
        let base = *case.bases.first().ok_or("no base")?;
        let window =
            Window::link(&[unit.to_vec()], case.window).map_err(|error| error.to_string())?;
        let mut objects = Vec::new();
        for file in unit {
            let elf = Elf::parse(&file.bytes).map_err(|error| error.to_string())?;
            objects.push(Object {
                name: &file.name,
                elf,
            });
        }
        let layout = window.layout(0, &objects, base);
        Ok(Self {
            objects,
            layout,
            window,
            base,
        })
    }

    /// Compares with what another linker made of the objects with [`script`].
    ///
    /// # Errors
    ///
    /// A site that is wrong in itself, or differs for no reason in the list.
    pub fn compare(&self, linked: &[u8]) -> Result<Agreement, String> {
        let elf = Elf::parse(linked).map_err(|error| error.to_string())?;
        let theirs = Linked::locate(&self.objects, &elf, None);
        for (place, &address) in &theirs.layout.sections {
            let ours = self.layout.sections.get(place);
            if ours != Some(&address) {
                let section = self.objects[place.0].elf.sections[place.1].name;
                return Err(format!("{section} is at {address:#x?}, not at {ours:#x?}"));
            }
        }
        let image = self.window.image(self.base)?;
        let our_sites = sites(&Judge::new(&self.objects, &image, &self.layout))?;
        let their_sites = sites(&Judge::new(&self.objects, &theirs.image, &theirs.layout))?;
        let mut agreement = Agreement::default();
        for (key, ours) in &our_sites {
            let Some(other) = their_sites.get(key) else {
                return Err(format!("{ours:?} is missing"));
            };
            let start = self.layout.sections.get(&(ours.object, ours.section));
            let Some(start) = start.filter(|_| !matches!(ours.outcome, Outcome::Apart(_))) else {
                continue;
            };
            let range =
                ours.range.start.min(other.range.start)..ours.range.end.max(other.range.end);
            let address = start + range.start as u64;
            if image.read(address, range.len()) == theirs.image.read(address, range.len()) {
                *agreement.same.entry(ours.kind).or_default() += 1;
                continue;
            }
            let known = DIFFERENCES.iter().find(|known| (known.holds)(ours, other));
            let known = known.ok_or_else(|| format!("{ours:?} differs from {other:?}"))?;
            *agreement.differ.entry(known.name).or_default() += 1;
        }
        Ok(agreement)
    }
}

/// What the judge says of each site: object, section, offset, kind.
type Sites = HashMap<(usize, usize, u64, u32), Verdict>;

fn sites(judge: &Judge<'_>) -> Result<Sites, String> {
    let mut sites = HashMap::new();
    let report = judge.judge_each(&mut |verdict| {
        let key = (
            verdict.object,
            verdict.section,
            verdict.offset,
            verdict.kind,
        );
        sites.insert(key, verdict);
    });
    match report.findings.first() {
        Some(finding) => Err(finding.to_string()),
        None => Ok(sites),
    }
}
