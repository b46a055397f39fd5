//! From a draft to the bytes of an object, and to its description.

use std::collections::HashMap;

use object::write::{Comdat, Object, Relocation, SectionId, Symbol, SymbolId, SymbolSection};
use object::{
    Architecture, BinaryFormat, ComdatKind, Endianness, RelocationFlags, SectionFlags, SymbolFlags,
    SymbolKind, SymbolScope, elf,
};

use crate::build::{Built, GHOST, START, WEAK, is_usable};
use crate::case::{Item, Style};
use crate::draft::{
    Definition, Draft, Name, ObjectDraft, Section, UNIT_NUMBER, UnitDraft, effective, filler,
};
use crate::form::{Class, Form, narrow};

impl ObjectDraft<'_> {
    pub(crate) fn write(&self, unit: &UnitDraft<'_>, others: &[Name]) -> Built {
        let mut writer = Writer {
            object: empty(),
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
}

/// An empty object for x86-64.
pub(crate) fn empty() -> Object<'static> {
    Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little)
}

/// A symbol at the start of its section, or undefined.
pub(crate) fn symbol(name: &str, size: u64, scope: SymbolScope, section: SymbolSection) -> Symbol {
    let kind = match section {
        SymbolSection::Undefined => SymbolKind::Unknown,
        _ => SymbolKind::Data,
    };
    Symbol {
        name: name.into(),
        value: 0,
        size,
        kind,
        scope,
        weak: false,
        section,
        flags: SymbolFlags::None,
    }
}

/// A relocation of kind `r_type`.
pub(crate) fn relocation(offset: u64, symbol: SymbolId, r_type: u32, addend: i64) -> Relocation {
    Relocation {
        offset,
        symbol,
        addend,
        flags: RelocationFlags::Elf { r_type },
    }
}

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
        let kind = if placement.is_thread() {
            elf::STT_TLS
        } else {
            elf::STT_NOTYPE
        };
        let global = elf::STB_GLOBAL << 4 | kind;
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
            binding << 4
                | if name.class.is_thread() {
                    elf::STT_TLS
                } else {
                    elf::STT_NOTYPE
                },
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
        if placement.is_zero() {
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
                Item::Site(_) if placement.is_zero() => {}
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
        if !placement.is_zero() {
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
