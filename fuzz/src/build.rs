//! From a plan to objects: names for the symbols, targets for the sites, bytes for everything.
//!
//! Invariant: what is built is valid, and our linker takes it. A site whose target the plan does not have is given
//! another one, so that every plan, however it was shrunk, can be built.

use std::collections::{HashMap, HashSet};

use object::elf;
use object::write::{Comdat, Object, Relocation, SectionId, Symbol, SymbolId, SymbolSection};
use object::{
    Architecture, BinaryFormat, ComdatKind, Endianness, RelocationFlags, SectionFlags, SectionKind,
    SymbolFlags, SymbolKind, SymbolScope,
};

use crate::case::{
    Case, Item, ObjectPlan, Placement, SectionPlan, Sight, Style, SymbolPlan, UnitPlan,
};
use crate::form::{Class, Form, narrow};

/// What each object begins the names of its sections' starts with. They let a test find the sections again.
pub const START: &str = "at_";

/// Functions of the host.
pub const HOST_FUNCTIONS: [&str; 3] = ["host_f0", "host_f1", "host_f2"];
/// Data of the host.
pub const HOST_DATA: [&str; 2] = ["host_d0", "host_d1"];
/// Referred to weakly: the host has the first two.
pub const WEAK: [(&str, Class); 4] = [
    ("maybe_f", Class::Function),
    ("maybe_d", Class::Datum),
    ("absent_f", Class::Function),
    ("absent_d", Class::Datum),
];
/// Referred to weakly and hidden, and defined by nobody.
pub const GHOST: &str = "ghost";
const TABLE: &str = "_GLOBAL_OFFSET_TABLE_";

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
    fn takes(self, form: Form, name: &Name) -> bool {
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
        !unknown.contains(&form.kind()) && (counts || usual)
    }
}

/// Builds the objects of each unit.
pub fn build(case: &Case) -> Vec<Vec<Built>> {
    build_for(case, Audience::Ours)
}

/// Builds the objects of each unit for whoever is to link them.
pub fn build_for(case: &Case, audience: Audience) -> Vec<Vec<Built>> {
    let units: Vec<UnitDraft<'_>> = case
        .units
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

/// A symbol that a site may refer to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    name: String,
    class: Class,
    /// The object, if the symbol is local to it.
    local: Option<usize>,
    /// Where it is: section of an object, offset. Left out where several objects may have it.
    place: Option<(usize, usize, u64)>,
    published: bool,
}

/// A definition in a section.
#[derive(Clone, Debug)]
struct Definition {
    name: String,
    offset: u64,
    size: u64,
    info: u8,
    visibility: u8,
}

/// A section with everything at its place.
struct Draft<'p> {
    plan: &'p SectionPlan,
    style: Style,
    len_bytes: u64,
    definitions: Vec<Definition>,
    /// Offsets of the items.
    offsets: Vec<u64>,
}

struct ObjectDraft<'p> {
    audience: Audience,
    number: usize,
    unit: usize,
    plan: &'p ObjectPlan,
    sections: Vec<Draft<'p>>,
}

struct UnitDraft<'p> {
    number: usize,
    objects: Vec<ObjectDraft<'p>>,
    names: Vec<Name>,
}

impl Placement {
    fn letter(self) -> char {
        match self {
            Self::Text => 't',
            Self::ReadOnly => 'r',
            Self::Relocated => 'p',
            Self::Data => 'd',
            Self::Zero => 'b',
            Self::LargeData => 'l',
        }
    }

    fn stem(self) -> &'static str {
        match self {
            Self::Text => ".text",
            Self::ReadOnly => ".rodata",
            Self::Relocated => ".data.rel.ro",
            Self::Data => ".data",
            Self::Zero => ".bss",
            Self::LargeData => ".ldata",
        }
    }

    fn kind(self) -> SectionKind {
        match self {
            Self::Text => SectionKind::Text,
            Self::ReadOnly => SectionKind::ReadOnlyData,
            Self::Relocated => SectionKind::ReadOnlyDataWithRel,
            Self::Data | Self::LargeData => SectionKind::Data,
            Self::Zero => SectionKind::UninitializedData,
        }
    }

    fn flags(self) -> u64 {
        let flags = match self {
            Self::Text => elf::SHF_ALLOC | elf::SHF_EXECINSTR,
            Self::ReadOnly => elf::SHF_ALLOC,
            _ => elf::SHF_ALLOC | elf::SHF_WRITE,
        };
        let large = if self == Self::LargeData {
            0x1000_0000
        } else {
            0
        };
        u64::from(flags) | large
    }

    fn is_text(self) -> bool {
        self == Self::Text
    }
}

/// Instructions without relocations. The second ends with what could be a prefix of the next.
const FILLERS: [&[u8]; 6] = [
    &[0x90],
    &[0x8b, 0x47, 0x48],
    &[0xc3],
    &[0x0f, 0x1f, 0x40, 0x00],
    &[0x48, 0x01, 0xf8],
    &[0x83, 0xc0, 0x4c],
];

fn filler(count: u8, is_text: bool) -> Vec<u8> {
    if is_text {
        let fillers = (0..usize::from(count))
            .map(|index| FILLERS[(index + usize::from(count)) % FILLERS.len()]);
        fillers.flatten().copied().collect()
    } else {
        (1..=count).collect()
    }
}

impl<'p> Draft<'p> {
    fn new(
        plan: &'p SectionPlan,
        style: Style,
        name: impl Fn(usize, Sight) -> (String, u8),
    ) -> Self {
        let is_text = plan.placement.is_text();
        let mut draft = Self {
            plan,
            style,
            len_bytes: 0,
            definitions: Vec::new(),
            offsets: Vec::new(),
        };
        for (index, item) in plan.items.iter().enumerate() {
            draft.offsets.push(draft.len_bytes);
            draft.len_bytes += match *item {
                Item::Fill(count) => filler(count, is_text).len() as u64,
                Item::Site(_) if plan.placement == Placement::Zero => 8,
                Item::Site(site) => effective(site.form, is_text)
                    .encode(Class::Code, is_text)
                    .bytes
                    .len() as u64,
                Item::Symbol(symbol) => {
                    // What lies in a group has the group's name only.
                    if !matches!(style, Style::Group(_)) {
                        let (name, binding) = name(index, symbol.sight);
                        draft.definitions.push(definition(
                            name,
                            binding,
                            symbol,
                            draft.len_bytes,
                            is_text,
                        ));
                    }
                    0
                }
            };
        }
        draft.len_bytes = draft.len_bytes.max(1);
        draft.sizes(is_text);
        draft
    }

    /// A function, and a table in text, ends where the next symbol begins.
    fn sizes(&mut self, is_text: bool) {
        let mut offsets: Vec<u64> = self
            .definitions
            .iter()
            .map(|definition| definition.offset)
            .collect();
        offsets.push(self.len_bytes);
        for definition in self
            .definitions
            .iter_mut()
            .filter(|definition| is_text && definition.info & 15 != 0)
        {
            let next = offsets.iter().find(|&&offset| offset > definition.offset);
            definition.size = next.unwrap_or(&self.len_bytes) - definition.offset;
        }
    }
}

fn is_shared(sight: Sight) -> bool {
    matches!(sight, Sight::Shared(_) | Sight::SharedStrong(_))
}

fn definition(
    name: String,
    binding: u8,
    symbol: SymbolPlan,
    offset: u64,
    is_text: bool,
) -> Definition {
    let kind = match (symbol.typed, is_text) {
        (false, _) => elf::STT_NOTYPE,
        (_, true) if symbol.size % 8 != 7 || is_shared(symbol.sight) => elf::STT_FUNC,
        _ => elf::STT_OBJECT,
    };
    let visibility = match symbol.sight {
        Sight::Protected => elf::STV_PROTECTED,
        Sight::Hidden => elf::STV_HIDDEN,
        Sight::Internal => elf::STV_INTERNAL,
        _ => elf::STV_DEFAULT,
    };
    let size = if is_text { 0 } else { symbol.size.into() };
    Definition {
        name,
        offset,
        size,
        info: binding << 4 | kind,
        visibility,
    }
}

impl<'p> UnitDraft<'p> {
    fn new(number: usize, plan: &'p UnitPlan, audience: Audience) -> Self {
        let mut unit = Self {
            number,
            objects: Vec::new(),
            names: Vec::new(),
        };
        let mut strong = HashSet::new();
        for (object, plan) in plan.objects.iter().enumerate() {
            let mut groups = HashSet::new();
            let mut sections = Vec::new();
            for (section, plan) in plan.sections.iter().enumerate() {
                let style = match plan.style {
                    Style::Group(group) if !groups.insert((group, plan.placement.letter())) => {
                        Style::Own
                    }
                    Style::Plain if audience != Audience::Ours => Style::Own,
                    style => style,
                };
                let letter = if plan.placement.is_text() { 't' } else { 'd' };
                let strong = std::cell::RefCell::new(&mut strong);
                sections.push(Draft::new(plan, style, |index, sight| match sight {
                    Sight::Local => (format!("l{section}_{index}"), elf::STB_LOCAL),
                    Sight::Shared(shared) => {
                        (format!("u{number}_shared{shared}{letter}"), elf::STB_WEAK)
                    }
                    Sight::SharedStrong(shared) => {
                        let name = format!("u{number}_shared{shared}{letter}");
                        let first = strong.borrow_mut().insert(name.clone());
                        (
                            name,
                            if first {
                                elf::STB_GLOBAL
                            } else {
                                elf::STB_WEAK
                            },
                        )
                    }
                    Sight::Weak => (
                        format!("u{number}o{object}_{section}_{index}"),
                        elf::STB_WEAK,
                    ),
                    _ => (
                        format!("u{number}o{object}_{section}_{index}"),
                        elf::STB_GLOBAL,
                    ),
                }));
            }
            let mut draft = ObjectDraft {
                audience,
                number: object,
                unit: number,
                plan,
                sections,
            };
            draft.without_twins();
            unit.objects.push(draft);
        }
        unit.names = unit.all_names();
        unit
    }

    /// Everything that the unit defines, in the order of its objects.
    fn all_names(&self) -> Vec<Name> {
        let mut names = Vec::new();
        let mut seen = HashSet::new();
        for object in &self.objects {
            for (section, draft) in object.sections.iter().enumerate() {
                let class_of = |info: u8| match draft.plan.placement {
                    Placement::Text if info & 15 != elf::STT_OBJECT => Class::Code,
                    _ => Class::Data,
                };
                if let Style::Group(group) = draft.style {
                    let name = object.group_name(group, draft.plan.placement);
                    if seen.insert(name.clone()) {
                        names.push(Name {
                            name,
                            class: class_of(0),
                            local: None,
                            place: None,
                            published: true,
                        });
                    }
                    continue;
                }
                for definition in &draft.definitions {
                    let shared = definition.name.contains("shared");
                    if shared && !seen.insert(definition.name.clone()) {
                        continue;
                    }
                    let local = (definition.info >> 4 == elf::STB_LOCAL).then_some(object.number);
                    names.push(Name {
                        name: definition.name.clone(),
                        class: class_of(definition.info),
                        local,
                        place: (!shared).then_some((object.number, section, definition.offset)),
                        published: local.is_none()
                            && !shared
                            && matches!(
                                definition.visibility,
                                elf::STV_DEFAULT | elf::STV_PROTECTED
                            ),
                    });
                }
            }
            for name in object.commons() {
                if seen.insert(name.clone()) {
                    names.push(Name {
                        name,
                        class: Class::Data,
                        local: None,
                        place: None,
                        published: true,
                    });
                }
            }
        }
        names
    }

    /// What other units may refer to.
    fn published(&self) -> impl Iterator<Item = Name> {
        self.names
            .iter()
            .filter(|name| name.published)
            .map(|name| Name {
                class: if name.class == Class::Code {
                    Class::Function
                } else {
                    Class::Datum
                },
                place: None,
                ..name.clone()
            })
    }
}

/// A `movabs` where an address would be stored in text.
fn effective(form: Form, is_text: bool) -> Form {
    match form {
        Form::Field {
            kind: elf::R_X86_64_64,
            register,
            addend,
        } if is_text => Form::Movabs {
            register,
            addend: (addend % (1 << 29)) as i32,
        },
        form => form,
    }
}

impl ObjectDraft<'_> {
    /// One object defines a name once.
    fn without_twins(&mut self) {
        let mut seen = HashSet::new();
        for section in &mut self.sections {
            section
                .definitions
                .retain(|definition| seen.insert(definition.name.clone()));
        }
    }

    fn group_name(&self, group: u8, placement: Placement) -> String {
        format!("u{}_group{group}{}", self.unit, placement.letter())
    }

    fn commons(&self) -> impl Iterator<Item = String> {
        let defined = |name: &String| {
            let mut all = self
                .sections
                .iter()
                .flat_map(|section| &section.definitions);
            all.all(|definition| definition.name != *name)
        };
        let ours = self.audience == Audience::Ours;
        let names = (0..3).filter(|bit| ours && self.plan.commons >> bit & 1 != 0);
        let unit = self.unit;
        let names: Vec<String> = names.map(|bit| format!("u{unit}_shared{bit}d")).collect();
        names
            .into_iter()
            .filter(defined)
            .collect::<Vec<_>>()
            .into_iter()
    }

    fn write(&self, unit: &UnitDraft<'_>, others: &[Name]) -> Built {
        let mut writer = Writer {
            object: Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little),
            sections: Vec::new(),
            symbols: HashMap::new(),
            text: Vec::new(),
        };
        for (index, section) in self.sections.iter().enumerate() {
            writer.section(self, index, section);
        }
        writer.numbers(self);
        for (bit, name) in self.commons().enumerate() {
            let (align, size) = (
                1 << (self.plan.number >> (8 * bit) & 7).min(6),
                8 + (self.plan.number >> bit & 63),
            );
            let info = elf::STB_GLOBAL << 4 | elf::STT_OBJECT;
            writer
                .text
                .push(format!("  common {name}, {size} bytes, align {align}"));
            writer.symbol(&name, align, size, info, 0, SymbolSection::Common);
        }
        let targets = self.targets(unit, others);
        for (index, section) in self.sections.iter().enumerate() {
            writer.contents(self, index, section, &targets);
        }
        let bytes = writer.object.write().unwrap_or_default();
        Built {
            name: format!("u{}o{}.o", self.unit, self.number),
            bytes,
            text: writer.text,
        }
    }

    /// What the sites of this object may refer to.
    fn targets(&self, unit: &UnitDraft<'_>, others: &[Name]) -> Vec<Name> {
        let plain = |name: &str, class| Name {
            name: name.to_owned(),
            class,
            local: None,
            place: None,
            published: false,
        };
        let mut targets: Vec<Name> = Vec::new();
        for (index, section) in self.sections.iter().enumerate() {
            // Symbols of sections in groups are for the group itself only.
            if !matches!(section.style, Style::Group(_)) {
                targets.push(Name {
                    name: format!("{}", Section(index)),
                    class: if section.plan.placement.is_text() {
                        Class::Code
                    } else {
                        Class::Data
                    },
                    local: Some(self.number),
                    place: Some((self.number, index, 0)),
                    published: false,
                });
            }
        }
        let seen = unit
            .names
            .iter()
            .filter(|name| name.local.is_none_or(|object| object == self.number));
        targets.extend(seen.cloned());
        targets.extend_from_slice(others);
        targets.extend(HOST_FUNCTIONS.map(|name| plain(name, Class::Function)));
        targets.extend(HOST_DATA.map(|name| plain(name, Class::Datum)));
        targets.extend(WEAK.map(|(name, class)| plain(name, class)));
        targets.push(plain(GHOST, Class::Number));
        targets.push(plain(&self.local_number(), Class::Number));
        targets.push(plain(&format!("u{}_number", self.unit), Class::Number));
        targets.push(plain(TABLE, Class::Table));
        targets
    }

    fn local_number(&self) -> String {
        format!("number{}", self.number)
    }

    /// The value of an absolute symbol.
    fn value(&self, unit_number: u64, name: &str) -> u64 {
        match name {
            GHOST => 0,
            _ if name == self.local_number() => self.plan.number,
            _ => unit_number,
        }
    }
}

/// How a section is called in names.
struct Section(usize);

impl std::fmt::Display for Section {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "section {}", self.0)
    }
}

/// The value of a unit's own absolute symbol.
const UNIT_NUMBER: u64 = 0xfeed_0000_1234_5678;

struct Writer {
    object: Object<'static>,
    sections: Vec<SectionId>,
    symbols: HashMap<String, SymbolId>,
    text: Vec<String>,
}

impl Writer {
    fn symbol(
        &mut self,
        name: &str,
        value: u64,
        size: u64,
        info: u8,
        visibility: u8,
        section: SymbolSection,
    ) -> SymbolId {
        let scope = if info >> 4 == elf::STB_LOCAL {
            SymbolScope::Compilation
        } else {
            SymbolScope::Dynamic
        };
        let symbol = Symbol {
            name: name.as_bytes().to_vec(),
            value,
            size,
            kind: SymbolKind::Unknown,
            scope,
            weak: false,
            section,
            flags: SymbolFlags::Elf {
                st_info: info,
                st_other: visibility,
            },
        };
        let id = self.object.add_symbol(symbol);
        self.symbols.insert(name.to_owned(), id);
        id
    }

    fn section(&mut self, object: &ObjectDraft<'_>, index: usize, draft: &Draft<'_>) {
        let placement = draft.plan.placement;
        let suffix = match draft.style {
            Style::Plain => String::new(),
            Style::Own => format!(".s{index}"),
            Style::Group(group) => format!(".{}", object.group_name(group, placement)),
        };
        let name = format!("{}{suffix}", placement.stem()).into_bytes();
        let id = self.object.add_section(Vec::new(), name, placement.kind());
        self.sections.push(id);
        let here = SymbolSection::Section(id);
        let mut flags = placement.flags();
        let global = elf::STB_GLOBAL << 4;
        self.symbol(
            &format!("{START}{}_{}_{index}", object.unit, object.number),
            0,
            0,
            global,
            0,
            here,
        );
        if let Style::Group(group) = draft.style {
            let kind = if placement.is_text() {
                elf::STT_FUNC
            } else {
                elf::STT_OBJECT
            };
            let name = object.group_name(group, placement);
            let symbol = self.symbol(
                &name,
                0,
                draft.len_bytes,
                elf::STB_WEAK << 4 | kind,
                0,
                here,
            );
            self.object.add_comdat(Comdat {
                kind: ComdatKind::Any,
                symbol,
                sections: vec![id],
            });
            flags |= u64::from(elf::SHF_GROUP);
        }
        self.object.section_mut(id).flags = SectionFlags::Elf { sh_flags: flags };
        for definition in &draft.definitions {
            self.symbol(
                &definition.name,
                definition.offset,
                definition.size,
                definition.info,
                definition.visibility,
                here,
            );
        }
    }

    fn numbers(&mut self, object: &ObjectDraft<'_>) {
        let absolute = SymbolSection::Absolute;
        self.symbol(
            &object.local_number(),
            object.plan.number,
            0,
            0,
            0,
            absolute,
        );
        if object.number == 0 {
            let info = elf::STB_GLOBAL << 4;
            self.symbol(
                &format!("u{}_number", object.unit),
                UNIT_NUMBER,
                0,
                info,
                0,
                absolute,
            );
        }
    }

    /// The symbol of a target, declared if the object does not define it.
    fn declare(&mut self, name: &Name) -> SymbolId {
        if let Some((_, section, _)) = name.place
            && name.name == Section(section).to_string()
        {
            return self.object.section_symbol(self.sections[section]);
        }
        if let Some(&known) = self.symbols.get(&name.name) {
            return known;
        }
        let weak = name.name == GHOST || WEAK.iter().any(|(weak, _)| *weak == name.name);
        let binding = if weak { elf::STB_WEAK } else { elf::STB_GLOBAL };
        let visibility = if name.name == GHOST {
            elf::STV_HIDDEN
        } else {
            elf::STV_DEFAULT
        };
        self.symbol(
            &name.name,
            0,
            0,
            binding << 4,
            visibility,
            SymbolSection::Undefined,
        )
    }

    fn contents(
        &mut self,
        object: &ObjectDraft<'_>,
        index: usize,
        draft: &Draft<'_>,
        targets: &[Name],
    ) {
        let section = self.sections[index];
        let placement = draft.plan.placement;
        let align = 1 << draft.plan.align.min(6);
        let label = self
            .object
            .section(section)
            .name()
            .unwrap_or_default()
            .to_owned();
        self.text.push(format!(
            "  section {index}: {label}, align {align}, {} bytes",
            draft.len_bytes
        ));
        if placement == Placement::Zero {
            self.object
                .append_section_bss(section, draft.len_bytes, align);
        }
        for Definition {
            name,
            offset,
            size,
            info,
            visibility,
        } in &draft.definitions
        {
            let (binding, kind) = (info >> 4, info & 15);
            self.text.push(format!(
                "    +{offset:#x} {name}: binding {binding}, type {kind}, visibility {visibility}, size {size}"
            ));
        }
        let mut bytes = Vec::new();
        for (item, &offset) in draft.plan.items.iter().zip(&draft.offsets) {
            match *item {
                Item::Fill(count) => bytes.extend(filler(count, placement.is_text())),
                Item::Symbol(_) => {}
                Item::Site(_) if placement == Placement::Zero => {}
                Item::Site(site) => {
                    let form = effective(site.form, placement.is_text());
                    let usable: Vec<&Name> = targets
                        .iter()
                        .filter(|name| {
                            object.audience.takes(form, name)
                                && is_usable(
                                    form,
                                    name,
                                    placement.is_text(),
                                    (object.number, index),
                                )
                        })
                        .collect();
                    let code = match usable.get(usize::from(site.target) % usable.len().max(1)) {
                        Some(name) => {
                            self.site(object, section, form, name, offset, placement.is_text())
                        }
                        None => form.encode(Class::Code, placement.is_text()).bytes,
                    };
                    bytes.extend(code);
                }
            }
        }
        if placement != Placement::Zero {
            bytes.resize(draft.len_bytes as usize, 0x90);
            self.object.append_section_data(section, &bytes, align);
        }
    }

    fn site(
        &mut self,
        object: &ObjectDraft<'_>,
        section: SectionId,
        form: Form,
        name: &Name,
        offset: u64,
        is_text: bool,
    ) -> Vec<u8> {
        let code = form.encode(name.class, is_text);
        let (kind, at) = (form.kind(), offset + code.at as u64);
        let addend = match narrow(kind) {
            Some((min, max, from_field)) => {
                let value = min + code.addend.rem_euclid(max - min + 1);
                let known = match name.place {
                    Some((_, _, symbol)) if from_field => (symbol as i64).wrapping_sub(at as i64),
                    _ => object.value(UNIT_NUMBER, &name.name).cast_signed(),
                };
                value.wrapping_sub(known)
            }
            // A stub has no inside.
            None if kind == elf::R_X86_64_PLTOFF64 && name.class.is_outside() => 0,
            None => code.addend,
        };
        let symbol = self.declare(name);
        self.text.push(format!(
            "    +{offset:#x} {form:?} against {} ({:?}), addend {addend:#x}",
            name.name, name.class
        ));
        let relocation = Relocation {
            offset: at,
            symbol,
            addend,
            flags: RelocationFlags::Elf { r_type: kind },
        };
        // Only addends that the format cannot hold are refused, and this one has room for all.
        let _ = self.object.add_relocation(section, relocation);
        code.bytes
    }
}

/// Whether a site in `here` (object, section) can refer to `name` in this form.
fn is_usable(form: Form, name: &Name, is_text: bool, here: (usize, usize)) -> bool {
    let near = match narrow(form.kind()) {
        Some((_, _, true)) => name
            .place
            .is_some_and(|(object, section, _)| (object, section) == here),
        _ => true,
    };
    near && form.goes_with(name.class, is_text)
}
