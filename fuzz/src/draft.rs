//! A plan with everything at its place: sections cut, symbols named, targets known. Nothing is written yet.

use std::collections::HashSet;

use object::{SectionKind, elf};

use crate::build::{Audience, GHOST, HOST_DATA, HOST_FUNCTIONS, HOST_THREADS, TABLE, WEAK};
use crate::case::{Item, ObjectPlan, Placement, SectionPlan, Sight, Style, SymbolPlan, UnitPlan};
use crate::form::{Class, Form};

/// A symbol that a site may refer to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) name: String,
    pub(crate) class: Class,
    /// The object, if the symbol is local to it.
    pub(crate) local: Option<usize>,
    /// Where it is: section of an object, offset. Left out where several objects may have it.
    pub(crate) place: Option<(usize, usize, u64)>,
    pub(crate) published: bool,
}

/// A definition in a section.
#[derive(Clone, Debug)]
pub(crate) struct Definition {
    pub(crate) name: String,
    pub(crate) offset: u64,
    pub(crate) size: u64,
    pub(crate) info: u8,
    pub(crate) visibility: u8,
}

/// A section with everything at its place.
pub(crate) struct Draft<'p> {
    pub(crate) plan: &'p SectionPlan,
    pub(crate) style: Style,
    pub(crate) len_bytes: u64,
    pub(crate) definitions: Vec<Definition>,
    /// Offsets of the items.
    pub(crate) offsets: Vec<u64>,
}

pub(crate) struct ObjectDraft<'p> {
    pub(crate) audience: Audience,
    pub(crate) number: usize,
    pub(crate) unit: usize,
    pub(crate) plan: &'p ObjectPlan,
    pub(crate) sections: Vec<Draft<'p>>,
}

pub(crate) struct UnitDraft<'p> {
    pub(crate) number: usize,
    pub(crate) objects: Vec<ObjectDraft<'p>>,
    pub(crate) names: Vec<Name>,
}

impl Placement {
    pub(crate) fn letter(self) -> char {
        match self {
            Self::Text => 't',
            Self::ReadOnly => 'r',
            Self::Relocated => 'p',
            Self::Data => 'd',
            Self::SharedData => 's',
            Self::Zero => 'b',
            Self::LargeData => 'l',
            Self::ThreadData => 'h',
            Self::ThreadZero => 'z',
        }
    }

    pub(crate) fn stem(self) -> &'static str {
        match self {
            Self::Text => ".text",
            Self::ReadOnly => ".rodata",
            Self::Relocated => ".data.rel.ro",
            Self::Data => ".data",
            Self::SharedData => ".jitcast.shared",
            Self::Zero => ".bss",
            Self::LargeData => ".ldata",
            Self::ThreadData => ".tdata",
            Self::ThreadZero => ".tbss",
        }
    }

    pub(crate) fn kind(self) -> SectionKind {
        match self {
            Self::Text => SectionKind::Text,
            Self::ReadOnly => SectionKind::ReadOnlyData,
            Self::Relocated => SectionKind::ReadOnlyDataWithRel,
            Self::Data | Self::SharedData | Self::LargeData => SectionKind::Data,
            Self::Zero => SectionKind::UninitializedData,
            Self::ThreadData => SectionKind::Tls,
            Self::ThreadZero => SectionKind::UninitializedTls,
        }
    }

    pub(crate) fn flags(self) -> u64 {
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
        let thread = if self.is_thread() { elf::SHF_TLS } else { 0 };
        u64::from(flags | thread) | large
    }

    /// Whether it has no bytes.
    pub(crate) fn is_zero(self) -> bool {
        matches!(self, Self::Zero | Self::ThreadZero)
    }

    /// Whether each thread has its own.
    pub(crate) fn is_thread(self) -> bool {
        matches!(self, Self::ThreadData | Self::ThreadZero)
    }

    pub(crate) fn is_text(self) -> bool {
        self == Self::Text
    }
}

/// Instructions without relocations. The second ends with what could be a prefix of the next.
pub(crate) const FILLERS: [&[u8]; 6] = [
    &[0x90],
    &[0x8b, 0x47, 0x48],
    &[0xc3],
    &[0x0f, 0x1f, 0x40, 0x00],
    &[0x48, 0x01, 0xf8],
    &[0x83, 0xc0, 0x4c],
];

pub(crate) fn filler(count: u8, is_text: bool) -> Vec<u8> {
    if is_text {
        let fillers = (0..usize::from(count))
            .map(|index| FILLERS[(index + usize::from(count)) % FILLERS.len()]);
        fillers.flatten().copied().collect()
    } else {
        (1..=count).collect()
    }
}

impl<'p> Draft<'p> {
    pub(crate) fn new(
        plan: &'p SectionPlan,
        style: Style,
        audience: Audience,
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
                Item::Site(_) if plan.placement.is_zero() => 8,
                Item::Site(site) => effective(site.form, is_text)
                    .encode(Class::Code, is_text)
                    .bytes
                    .len() as u64,
                Item::Symbol(symbol) => {
                    // What lies in a group has the group's name only.
                    if !matches!(style, Style::Group(_)) {
                        let (name, binding) = name(index, symbol.sight);
                        let indirect = is_text
                            && symbol.sight == Sight::Indirect
                            && audience == Audience::Ours;
                        let at = draft.len_bytes;
                        let mut new = definition(name, binding, symbol, at, is_text, indirect);
                        if plan.placement.is_thread() {
                            new.info = binding << 4 | elf::STT_TLS;
                        }
                        draft.definitions.push(new);
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

pub(crate) fn is_shared(sight: Sight) -> bool {
    matches!(sight, Sight::Shared(_) | Sight::SharedStrong(_))
}

pub(crate) fn definition(
    name: String,
    binding: u8,
    symbol: SymbolPlan,
    offset: u64,
    is_text: bool,
    indirect: bool,
) -> Definition {
    let kind = match (symbol.typed, is_text) {
        _ if indirect => elf::STT_GNU_IFUNC,
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
    pub(crate) fn new(number: usize, plan: &'p UnitPlan, audience: Audience) -> Self {
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
                    Style::Group(_) if plan.placement.is_thread() => Style::Own,
                    Style::Plain if audience != Audience::Ours => Style::Own,
                    style => style,
                };
                let letter = if plan.placement.is_text() { 't' } else { 'd' };
                let strong = std::cell::RefCell::new(&mut strong);
                sections.push(Draft::new(
                    plan,
                    style,
                    audience,
                    |index, sight| match sight {
                        Sight::Local => (format!("l{section}_{index}"), elf::STB_LOCAL),
                        Sight::Weak if plan.placement.is_thread() => (
                            format!("u{number}o{object}_{section}_{index}"),
                            elf::STB_WEAK,
                        ),
                        _ if plan.placement.is_thread() => (
                            format!("u{number}o{object}_{section}_{index}"),
                            elf::STB_GLOBAL,
                        ),
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
                        Sight::Unique(unique) if letter == 'd' && audience == Audience::Ours => {
                            (format!("u{number}_unique{unique}"), elf::STB_GNU_UNIQUE)
                        }
                        Sight::Weak => (
                            format!("u{number}o{object}_{section}_{index}"),
                            elf::STB_WEAK,
                        ),
                        _ => (
                            format!("u{number}o{object}_{section}_{index}"),
                            elf::STB_GLOBAL,
                        ),
                    },
                ));
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
                    placement if placement.is_thread() => Class::Thread,
                    // Even their own unit goes through cells to what others may have instead.
                    _ if info >> 4 == elf::STB_GNU_UNIQUE => Class::Datum,
                    Placement::Text if info & 15 != elf::STT_OBJECT => Class::Code,
                    _ => Class::Data,
                };
                if let Style::Group(group) = draft.style {
                    let name = object.group_name(group, draft.plan.placement);
                    if seen.insert(name.clone()) {
                        names.push(Name {
                            name,
                            class: match draft.plan.placement {
                                // One in the process, as inline variables of C++ are.
                                Placement::Data | Placement::Zero | Placement::LargeData => {
                                    Class::Datum
                                }
                                _ => class_of(0),
                            },
                            local: None,
                            place: None,
                            published: true,
                        });
                    }
                    continue;
                }
                for definition in &draft.definitions {
                    let shared = ["shared", "unique"]
                        .iter()
                        .any(|many| definition.name.contains(many));
                    if shared && !seen.insert(definition.name.clone()) {
                        continue;
                    }
                    let local = (definition.info >> 4 == elf::STB_LOCAL).then_some(object.number);
                    names.push(Name {
                        name: definition.name.clone(),
                        class: class_of(definition.info),
                        local,
                        // An indirect function is not where its resolver is.
                        place: (!shared && definition.info & 15 != elf::STT_GNU_IFUNC).then_some((
                            object.number,
                            section,
                            definition.offset,
                        )),
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
    pub(crate) fn published(&self) -> impl Iterator<Item = Name> {
        self.names
            .iter()
            .filter(|name| name.published)
            .map(|name| Name {
                class: match name.class {
                    Class::Code | Class::Function => Class::Function,
                    Class::Thread => Class::OtherThread,
                    _ => Class::Datum,
                },
                place: None,
                ..name.clone()
            })
    }
}

/// A `movabs` where an address would be stored in text.
pub(crate) fn effective(form: Form, is_text: bool) -> Form {
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

    pub(crate) fn group_name(&self, group: u8, placement: Placement) -> String {
        format!("u{}_group{group}{}", self.unit, placement.letter())
    }

    pub(crate) fn commons(&self) -> impl Iterator<Item = String> {
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

    /// What the sites of this object may refer to.
    pub(crate) fn targets(&self, unit: &UnitDraft<'_>, others: &[Name]) -> Vec<Name> {
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
                    class: match section.plan.placement {
                        Placement::Text => Class::Code,
                        placement if placement.is_thread() => Class::Thread,
                        _ => Class::Data,
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
        targets.extend(HOST_THREADS.map(|name| plain(name, Class::HostThread)));
        targets.extend(WEAK.map(|(name, class)| plain(name, class)));
        targets.push(plain(GHOST, Class::Number));
        targets.push(plain(&self.local_number(), Class::Number));
        targets.push(plain(&format!("u{}_number", self.unit), Class::Number));
        targets.push(plain(TABLE, Class::Table));
        targets
    }

    pub(crate) fn local_number(&self) -> String {
        format!("number{}", self.number)
    }

    /// The value of an absolute symbol.
    pub(crate) fn value(&self, unit_number: u64, name: &str) -> u64 {
        match name {
            GHOST => 0,
            _ if name == self.local_number() => self.plan.number,
            _ => unit_number,
        }
    }
}
/// How a section is called in names.
pub(crate) struct Section(pub(crate) usize);

impl std::fmt::Display for Section {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "section {}", self.0)
    }
}
/// The value of a unit's own absolute symbol.
pub(crate) const UNIT_NUMBER: u64 = 0xfeed_0000_1234_5678;
