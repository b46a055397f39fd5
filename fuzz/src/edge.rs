//! The ends of ranges: a value that just fits, or just does not. What does not fit has to be refused, what fits has to
//! be linked.

use jitcast_linker::Problem;
use jitcast_oracle::Report;
use jitcast_oracle::table::{Field, lookup};
use object::write::SymbolSection;
use object::{SectionKind, SymbolScope, elf};
use proptest::prelude::*;
use proptest::sample::select;

use crate::build::Built;
use crate::case::{Case, Places};
use crate::check::{Failure, check_built};
use crate::window::Window;
use crate::writer::{empty, relocation, symbol};

/// The kinds whose fields have ends.
pub const KINDS: [u32; 14] = [
    elf::R_X86_64_PC32,
    elf::R_X86_64_GOT32,
    elf::R_X86_64_PLT32,
    elf::R_X86_64_GOTPCREL,
    elf::R_X86_64_32,
    elf::R_X86_64_32S,
    elf::R_X86_64_16,
    elf::R_X86_64_PC16,
    elf::R_X86_64_8,
    elf::R_X86_64_PC8,
    elf::R_X86_64_GOTPC32,
    elf::R_X86_64_SIZE32,
    elf::R_X86_64_GOTPCRELX,
    elf::R_X86_64_REX_GOTPCRELX,
];

/// A field, and how far its value is past an end of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// `r_type`.
    pub kind: u32,
    /// Past the last value, else before the first.
    pub high: bool,
    /// How far: what is negative fits.
    pub past: i8,
    /// In data that workers share, else in text.
    pub in_data: bool,
    /// Where the window's parts are.
    pub window: Places,
}

/// Random edges.
pub fn edge() -> impl Strategy<Value = Edge> {
    let past = prop_oneof![2 => Just(0_i8), 2 => Just(1), 1 => -3..=3_i8];
    (
        select(KINDS.to_vec()),
        any::<bool>(),
        past,
        any::<bool>(),
        crate::strategy::places(),
    )
        .prop_map(|(kind, high, past, in_data, window)| Edge {
            kind,
            high,
            past,
            in_data,
            window,
        })
}

/// Where the field is in its section.
const AT: usize = 16;

impl Edge {
    fn field(&self) -> Option<Field> {
        lookup(self.kind).and_then(|row| row.field())
    }

    /// The value that the field is to have.
    fn wanted(&self) -> Option<i128> {
        let (min, max) = self.field()?.range()?;
        let past = i128::from(self.past);
        Some(if self.high { max + past } else { min - past })
    }

    fn case(&self) -> Case {
        Case {
            units: Vec::new(),
            window: self.window,
            bases: vec![0x7f12_3456_7000],
        }
    }

    /// The addend that gives the wanted value; `None` if the object does not link without one.
    pub fn addend(&self) -> Option<i64> {
        let units = [vec![build(self, 0)]];
        let window = Window::link(&units, self.window).ok()?;
        let linked = &window.units.first()?.linked;
        let bytes = if self.in_data {
            &linked.read_only
        } else {
            &linked.text
        };
        let field = self.field()?;
        let value = field.decode(bytes.get(AT..AT + field.width_bytes)?);
        i64::try_from(self.wanted()? - value).ok()
    }
}

/// The object, with `addend` in its one relocation.
pub fn build(edge: &Edge, addend: i64) -> Built {
    let mut object = empty();
    let (name, kind) = if edge.in_data {
        (".rodata", SectionKind::ReadOnlyData)
    } else {
        (".text", SectionKind::Text)
    };
    let section = object.add_section(Vec::new(), name.into(), kind);
    let fill = if edge.in_data { 0 } else { 0x90 };
    let mut contents = vec![fill; AT];
    contents.extend([0; 16]);
    object.append_section_data(section, &contents, 16);
    let here = SymbolSection::Section(section);
    let mut add = |name, scope, section| object.add_symbol(symbol(name, 0, scope, section));
    let (seen, local) = (SymbolScope::Dynamic, SymbolScope::Compilation);
    add("at_0_0_0", seen, here);
    let near = add("near", local, here);
    let number = add("number", local, SymbolSection::Absolute);
    let host = add("host_d0", seen, SymbolSection::Undefined);
    let target = match edge.kind {
        elf::R_X86_64_8 | elf::R_X86_64_16 | elf::R_X86_64_32 | elf::R_X86_64_32S => number,
        elf::R_X86_64_GOT32
        | elf::R_X86_64_GOTPCREL
        | elf::R_X86_64_GOTPCRELX
        | elf::R_X86_64_REX_GOTPCRELX => host,
        _ => near,
    };
    let label = lookup(edge.kind).map_or("", |row| row.name);
    let text = vec![format!("  {name}+{AT:#x}: {label}, addend {addend:#x}")];
    let relocation = relocation(AT as u64, target, edge.kind, addend);
    // The format has room for every addend.
    let _ = object.add_relocation(section, relocation);
    Built {
        name: "edge.o".to_owned(),
        bytes: object.write().unwrap_or_default(),
        text,
    }
}

/// Links the edge: it has to be refused exactly if the value does not fit.
///
/// # Errors
///
/// It is not.
pub fn check(edge: &Edge) -> Result<Report, Failure> {
    let refused = |why: &str| Failure::Refused(format!("{why}: {edge:?}"));
    let addend = edge
        .addend()
        .ok_or_else(|| refused("the middle of a range"))?;
    let units = [vec![build(edge, addend)]];
    let wanted = edge
        .wanted()
        .ok_or_else(|| refused("a field without ends"))?;
    let fits = edge.past <= 0;
    match Window::link(&units, edge.window) {
        Ok(_) if fits => check_built(&edge.case(), &units),
        Ok(_) => Err(Failure::Accepted(format!(
            "{wanted} does not fit: {edge:?}"
        ))),
        Err(error) => match &error.problem {
            Problem::OutOfRange { range, .. } if !fits && range.value == wanted => {
                Ok(Report::default())
            }
            _ => Err(Failure::Refused(error.to_string())),
        },
    }
}
