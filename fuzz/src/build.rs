//! From a plan to objects: names for the symbols, targets for the sites, bytes for everything.
//!
//! Invariant: what is built is valid, and our linker takes it. A site whose target the plan does not have is given
//! another one, so that every plan, however it was shrunk, can be built.

use object::elf;

use crate::case::{Case, Placement};
use crate::draft::{Name, UnitDraft};
use crate::form::{Class, Form, narrow};

/// What each object begins the names of its sections' starts with. They let a test find the sections again.
pub const START: &str = "at_";

/// Functions of the host.
pub const HOST_FUNCTIONS: [&str; 3] = ["host_f0", "host_f1", "host_f2"];
/// Data of the host.
pub const HOST_DATA: [&str; 2] = ["host_d0", "host_d1"];
/// Thread-local data of the host.
pub const HOST_THREADS: [&str; 2] = ["host_t0", "host_t1"];
/// Referred to weakly: the host has the first two.
pub const WEAK: [(&str, Class); 4] = [
    ("maybe_f", Class::Function),
    ("maybe_d", Class::Datum),
    ("absent_f", Class::Function),
    ("absent_d", Class::Datum),
];
/// Referred to weakly and hidden, and defined by nobody.
pub const GHOST: &str = "ghost";
/// The start of the cells.
pub(crate) const TABLE: &str = "_GLOBAL_OFFSET_TABLE_";

/// An object, built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// Its name.
    pub name: String,
    /// The file.
    pub bytes: Vec<u8>,
    /// What it holds, for people: a line for each section, symbol and site.
    pub text: Vec<String>,
}

/// Who is to link the objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Jitcast: everything that its linker takes.
    Ours,
    /// GNU ld and lld too, into an executable at fixed addresses: no absolute symbol near, nothing missing, no common
    /// symbol, whose place nobody can ask for, no two sections of one name in an object, and none of these kinds.
    Everybody(&'static [u32]),
}

impl Audience {
    pub(crate) fn takes(self, form: Form, name: &Name) -> bool {
        let absent = name.name == GHOST || name.name.starts_with("absent");
        let value = matches!(
            form.kind(),
            elf::R_X86_64_8
                | elf::R_X86_64_16
                | elf::R_X86_64_32
                | elf::R_X86_64_32S
                | elf::R_X86_64_64
        );
        let counts = matches!(form.kind(), elf::R_X86_64_GOTPC32 | elf::R_X86_64_GOTPC64);
        let Self::Everybody(unknown) = self else {
            return true;
        };
        let usual = !absent && name.class != Class::Table && (value || name.class != Class::Number);
        !name.class.is_thread() && !unknown.contains(&form.kind()) && (counts || usual)
    }
}

/// Builds the objects of each unit.
pub fn build(case: &Case) -> Vec<Vec<Built>> {
    build_for(case, Audience::Ours)
}

/// Builds the objects of each unit for whoever is to link them.
pub fn build_for(case: &Case, audience: Audience) -> Vec<Vec<Built>> {
    let mut plans = case.units.clone();
    if audience != Audience::Ours {
        // Executables count from the thread pointer, ours from a unit's block.
        let objects = plans.iter_mut().flat_map(|unit| &mut unit.objects);
        for section in objects.flat_map(|object| &mut object.sections) {
            section.placement = match section.placement {
                Placement::ThreadData | Placement::SharedData => Placement::Data,
                Placement::ThreadZero => Placement::Zero,
                placement => placement,
            };
        }
    }
    let units: Vec<UnitDraft<'_>> = plans
        .iter()
        .enumerate()
        .map(|(number, unit)| UnitDraft::new(number, unit, audience))
        .collect();
    let mut built = Vec::new();
    for unit in &units {
        let others: Vec<Name> = units
            .iter()
            .filter(|other| other.number != unit.number)
            .flat_map(UnitDraft::published)
            .collect();
        let objects = unit.objects.iter();
        built.push(objects.map(|object| object.write(unit, &others)).collect());
    }
    built
}
/// Whether a site in `here` (object, section) can refer to `name` in this form.
pub(crate) fn is_usable(form: Form, name: &Name, is_text: bool, here: (usize, usize)) -> bool {
    let near = match narrow(form.kind()) {
        Some((_, _, true)) => name
            .place
            .is_some_and(|(object, section, _)| (object, section) == here),
        _ => true,
    };
    near && form.goes_with(name.class, is_text)
}
