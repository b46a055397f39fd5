//! What debugging information says of an object's functions: the signatures of those that it exports, and those by which it
//! calls others.
//!
//! Invariant: objects are hostile. The work has a budget; whatever is not understood (structures by value, variable arguments,
//! functions without a prototype, compressed sections) is unknown, and no error.

use std::collections::BTreeSet;

use gimli::{
    Abbreviations, AttributeValue, DebugAbbrev, DebugInfo, DebugInfoUnitHeadersIter, DebugLineStr,
    DebugStr, DebugStrOffsets, DebugStrOffsetsBase, DwTag, Encoding, EndianSlice, LittleEndian,
    UnitHeader, constants,
};
use jitcast_runtime::records::MAX_NAME_BYTES;
use jitcast_runtime::signature::{MAX_PARAMS, Signature, Type};
use object::read::elf::ElfFile64;
use object::{
    LittleEndian as Little, Object, ObjectSection, ObjectSymbol, RelocationKind, RelocationTarget,
};

/// How many attributes are read of one object's at most.
const BUDGET: usize = 1 << 25;

/// How long a section may be, bytes: abbreviations, which one byte of the others can stand for, and others.
const MAX_ABBREVIATION_BYTES: usize = 1 << 20;
const MAX_SECTION_BYTES: usize = 64 << 20;

/// How many types may lead to one another (`const`, `typedef`).
const MAX_CHAIN: usize = 32;

type Slice<'a> = EndianSlice<'a, LittleEndian>;
type Entry<'a> = gimli::DebuggingInformationEntry<Slice<'a>>;

/// Functions and their signatures.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Described {
    /// Those that are defined.
    pub(super) signatures: Vec<(String, Signature)>,
    /// Those that are declared, and so, as compilers go, called.
    pub(super) imports: Vec<(String, Signature)>,
}

/// What the debugging information in `object` says, as far as it goes.
pub(super) fn describe(object: &[u8]) -> Described {
    let mut found = Described::default();
    // What was found before something that is not understood counts.
    let _ = describe_to(&mut found, object);
    found
}

fn describe_to(found: &mut Described, object: &[u8]) -> Option<()> {
    let file = ElfFile64::<Little>::parse(object).ok()?;
    let section = |name| relocated(&file, name, MAX_SECTION_BYTES);
    let info = section(".debug_info")?;
    let abbreviations = relocated(&file, ".debug_abbrev", MAX_ABBREVIATION_BYTES)?;
    let [strings, line_strings, offsets] = [".debug_str", ".debug_line_str", ".debug_str_offsets"]
        .map(|name| section(name).unwrap_or_default());
    let texts = Texts {
        strings: DebugStr::new(&strings, LittleEndian),
        line_strings: DebugLineStr::new(&line_strings, LittleEndian),
        offsets: DebugStrOffsets::from(EndianSlice::new(&offsets, LittleEndian)),
    };
    let debug_abbrev = DebugAbbrev::new(&abbreviations, LittleEndian);
    let mut units: DebugInfoUnitHeadersIter<Slice<'_>> =
        DebugInfo::new(&info, LittleEndian).units();
    let mut budget = Budget(BUDGET);
    let mut known = BTreeSet::new();
    while let Some(header) = units.next().ok()? {
        budget.take(abbreviations.len())?;
        let abbreviations = header.abbreviations(&debug_abbrev).ok()?;
        let mut unit = Unit {
            header,
            abbreviations: &abbreviations,
            texts: &texts,
            base: DebugStrOffsetsBase(0),
            is_c: false,
            budget: &mut budget,
        };
        for (name, signature, is_declared) in unit.functions()? {
            // The first counts.
            if known.insert((name.clone(), is_declared)) {
                let list = if is_declared {
                    &mut found.imports
                } else {
                    &mut found.signatures
                };
                list.push((name, signature));
            }
        }
    }
    Some(())
}

/// The bytes of a section, with its relocations done: each section begins at 0.
fn relocated(file: &ElfFile64<'_, Little>, name: &str, max_bytes: usize) -> Option<Vec<u8>> {
    let section = file.section_by_name(name)?;
    let data = section.data().ok()?;
    if data.len() > max_bytes {
        return None;
    }
    let mut data = data.to_vec();
    for (offset, relocation) in section.relocations() {
        let RelocationTarget::Symbol(symbol) = relocation.target() else {
            continue;
        };
        let len_bytes = match (relocation.kind(), relocation.size()) {
            (RelocationKind::Absolute, 32) => 4,
            (RelocationKind::Absolute, 64) => 8,
            _ => continue,
        };
        let address = file.symbol_by_index(symbol).ok()?.address();
        let value = address
            .wrapping_add_signed(relocation.addend())
            .to_le_bytes();
        let start = usize::try_from(offset).ok()?;
        let field = data.get_mut(start..start.checked_add(len_bytes)?)?;
        field.copy_from_slice(&value[..len_bytes]);
    }
    Some(data)
}

/// What may still be done.
struct Budget(usize);

impl Budget {
    /// `None`: too much has been done.
    fn take(&mut self, steps: usize) -> Option<()> {
        self.0 = self.0.checked_sub(steps)?;
        Some(())
    }
}

/// Where names are.
struct Texts<'a> {
    strings: DebugStr<Slice<'a>>,
    line_strings: DebugLineStr<Slice<'a>>,
    offsets: DebugStrOffsets<Slice<'a>>,
}

struct Unit<'a, 'u> {
    header: UnitHeader<Slice<'a>>,
    abbreviations: &'u Abbreviations,
    texts: &'u Texts<'a>,
    base: DebugStrOffsetsBase,
    /// Whether a function without a prototype takes anything.
    is_c: bool,
    budget: &'u mut Budget,
}

/// A function while its parameters are read.
struct Function {
    name: String,
    is_declared: bool,
    depth: isize,
    returns: Option<Type>,
    /// `None`: what it takes is unknown.
    params: Option<Vec<Type>>,
}

/// What a type is to a call.
enum Shape {
    Void,
    Value(Type),
}

impl<'a> Unit<'a, '_> {
    /// The functions that other units can see: names, signatures, and whether they are only declared.
    fn functions(&mut self) -> Option<Vec<(String, Signature, bool)>> {
        let mut found = Vec::new();
        let mut open: Option<Function> = None;
        let mut cursor = self.header.entries(self.abbreviations);
        while let Some(entry) = cursor.next_dfs().ok()? {
            self.budget.take(entry.attrs().len() + 1)?;
            if let Some(function) = &mut open {
                if entry.depth() > function.depth {
                    self.parameter(function, entry);
                    continue;
                }
                found.extend(open.take().and_then(finished));
            }
            match entry.tag() {
                constants::DW_TAG_compile_unit => self.begin(entry),
                constants::DW_TAG_subprogram => open = self.function(entry),
                _ => {}
            }
        }
        found.extend(open.and_then(finished));
        Some(found)
    }

    fn begin(&mut self, entry: &Entry<'a>) {
        if let Some(AttributeValue::DebugStrOffsetsBase(base)) =
            entry.attr_value(constants::DW_AT_str_offsets_base)
        {
            self.base = base;
        }
        let language = match entry.attr_value(constants::DW_AT_language) {
            Some(AttributeValue::Language(language)) => Some(language),
            _ => None,
        };
        self.is_c = [
            constants::DW_LANG_C89,
            constants::DW_LANG_C,
            constants::DW_LANG_C99,
            constants::DW_LANG_C11,
            constants::DW_LANG_C17,
        ]
        .map(Some)
        .contains(&language);
    }

    fn function(&mut self, entry: &Entry<'a>) -> Option<Function> {
        let is = |name| matches!(entry.attr_value(name), Some(AttributeValue::Flag(true)));
        if !is(constants::DW_AT_external) {
            return None;
        }
        let name = entry
            .attr_value(constants::DW_AT_linkage_name)
            .or_else(|| entry.attr_value(constants::DW_AT_name))?;
        let name = self.text(name)?;
        let normal = match entry.attr_value(constants::DW_AT_calling_convention) {
            None => true,
            Some(value) => value == AttributeValue::CallingConvention(constants::DW_CC_normal),
        };
        let returns = self.type_of(entry);
        let knows = normal && (is(constants::DW_AT_prototyped) || !self.is_c);
        Some(Function {
            name,
            is_declared: is(constants::DW_AT_declaration),
            depth: entry.depth(),
            params: (knows && returns.is_some()).then(Vec::new),
            returns: match returns {
                Some(Shape::Value(value)) => Some(value),
                _ => None,
            },
        })
    }

    fn parameter(&mut self, function: &mut Function, entry: &Entry<'a>) {
        if entry.depth() != function.depth + 1 {
            return;
        }
        let param = match entry.tag() {
            constants::DW_TAG_formal_parameter => self.type_of(entry),
            constants::DW_TAG_unspecified_parameters => None,
            _ => return,
        };
        function.params = match (function.params.take(), param) {
            (Some(mut params), Some(Shape::Value(param))) if params.len() < MAX_PARAMS => {
                params.push(param);
                Some(params)
            }
            _ => None,
        };
    }

    /// What the type of an entry is to a call; `None`: unknown.
    fn type_of(&mut self, entry: &Entry<'a>) -> Option<Shape> {
        let mut next = match entry.attr_value(constants::DW_AT_type) {
            None => return Some(Shape::Void),
            Some(AttributeValue::UnitRef(at)) => at,
            Some(_) => return None,
        };
        for _ in 0..MAX_CHAIN {
            let entry = self.header.entry(self.abbreviations, next).ok()?;
            self.budget.take(entry.attrs().len() + 1)?;
            if let Some(value) = self.value(entry.tag(), &entry) {
                return Some(Shape::Value(value));
            }
            if !leads_on(entry.tag()) {
                return None;
            }
            next = match entry.attr_value(constants::DW_AT_type) {
                None => return Some(Shape::Void),
                Some(AttributeValue::UnitRef(at)) => at,
                Some(_) => return None,
            };
        }
        None
    }

    /// The type that values of an entry's travel as; `None`: none that is known.
    fn value(&self, tag: DwTag, entry: &Entry<'a>) -> Option<Type> {
        let number = |name| {
            entry
                .attr(name)
                .and_then(|attribute| attribute.udata_value())
        };
        let size = number(constants::DW_AT_byte_size);
        match tag {
            constants::DW_TAG_pointer_type
            | constants::DW_TAG_reference_type
            | constants::DW_TAG_rvalue_reference_type => {
                let Encoding { address_size, .. } = self.header.encoding();
                (size.unwrap_or(address_size.into()) == 8).then_some(Type::Ptr)
            }
            constants::DW_TAG_enumeration_type if !entry.has_attr(constants::DW_AT_type) => {
                integer(false, size?)
            }
            constants::DW_TAG_base_type => {
                let encoding = match entry.attr_value(constants::DW_AT_encoding)? {
                    AttributeValue::Encoding(encoding) => encoding,
                    _ => return None,
                };
                match (encoding, size?) {
                    (constants::DW_ATE_signed | constants::DW_ATE_signed_char, size) => {
                        integer(true, size)
                    }
                    (
                        constants::DW_ATE_unsigned
                        | constants::DW_ATE_unsigned_char
                        | constants::DW_ATE_boolean
                        | constants::DW_ATE_UTF,
                        size,
                    ) => integer(false, size),
                    (constants::DW_ATE_float, 4) => Some(Type::F32),
                    (constants::DW_ATE_float, 8) => Some(Type::F64),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    fn text(&mut self, value: AttributeValue<Slice<'a>>) -> Option<String> {
        let text = match value {
            AttributeValue::String(text) => text,
            AttributeValue::DebugStrRef(at) => self.texts.strings.get_str(at).ok()?,
            AttributeValue::DebugLineStrRef(at) => self.texts.line_strings.get_str(at).ok()?,
            AttributeValue::DebugStrOffsetsIndex(index) => {
                let offsets = &self.texts.offsets;
                let at = offsets
                    .get_str_offset(self.header.format(), self.base, index)
                    .ok()?;
                self.texts.strings.get_str(at).ok()?
            }
            _ => return None,
        };
        self.budget.take(text.len())?;
        let text = core::str::from_utf8(text.slice()).ok()?;
        (text.len() <= MAX_NAME_BYTES).then(|| text.to_owned())
    }
}

fn finished(function: Function) -> Option<(String, Signature, bool)> {
    let signature = Signature::new(function.params?, function.returns);
    Some((function.name, signature, function.is_declared))
}

fn integer(is_signed: bool, size_bytes: u64) -> Option<Type> {
    Some(match (is_signed, size_bytes) {
        (true, 1) => Type::I8,
        (true, 2) => Type::I16,
        (true, 4) => Type::I32,
        (true, 8) => Type::I64,
        (false, 1) => Type::U8,
        (false, 2) => Type::U16,
        (false, 4) => Type::U32,
        (false, 8) => Type::U64,
        _ => return None,
    })
}

/// Whether a type of this tag is, to a call, the type that it names.
fn leads_on(tag: DwTag) -> bool {
    matches!(
        tag,
        constants::DW_TAG_typedef
            | constants::DW_TAG_const_type
            | constants::DW_TAG_volatile_type
            | constants::DW_TAG_restrict_type
            | constants::DW_TAG_atomic_type
            | constants::DW_TAG_enumeration_type
    )
}

#[cfg(test)]
mod tests;
