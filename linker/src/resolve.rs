//! Symbol resolution inside a unit: which definition each global name means.
//!
//! Strong beats common beats weak; of equals the first wins, except that two strong ones are an error. Of
//! COMDAT groups with one signature the first is kept. Visibility is the most constraining of all that
//! the files say (gABI, chapter 4, symbol visibility).
//!
//! `f@V` and `f@@V` mean `f`: the unit's own, another unit's, or the host's, for which the version is kept.

use std::collections::HashMap;

use object::LittleEndian as LE;
use object::elf::{self, Sym64};
use object::read::elf::Sym as _;

use crate::error::{LinkError, Problem, SymbolRefusal};
use crate::input::{Dialect, Options};
use crate::label::{Labels, is_labelled};
use crate::lists::Lists;
use crate::mutant::{Mutant, makes};
use crate::name::{Name, Names};
use crate::object_file::ObjectFile;
use crate::section::{Role, alignment};

/// The suffix by which our Cranelift front end asks for an address instead of a callee.
const ADDRESS_SUFFIX: &[u8] = b"@addr";

/// What a symbol of an object's table means.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SymbolUse {
    /// The local symbol of this index.
    Local(u32),
    /// A name of the unit.
    Global {
        /// The index into [`Globals::list`].
        global: u32,
        /// Named `f@addr`, in the Cranelift dialect.
        address: bool,
    },
}

/// How strongly a definition binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Strength {
    Undefined,
    Weak,
    Common,
    Strong,
}

/// What a definition says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Nothing,
    InSection {
        object: u32,
        section: u32,
        value: u64,
    },
    Absolute(u64),
    Common {
        align_bytes: u64,
    },
}

/// A global name.
#[derive(Debug)]
pub(crate) struct Global<'a> {
    pub(crate) name: &'a str,
    pub(crate) strength: Strength,
    pub(crate) value: Value,
    pub(crate) size: u64,
    /// `STT_*` of the definition.
    pub(crate) kind: u8,
    /// One in the process, whoever defines it too: `STB_GNU_UNIQUE`, and data of COMDAT groups.
    pub(crate) unique: bool,
    /// Default or protected: seen by other units.
    pub(crate) exported: bool,
    /// Somebody needs it, other than weakly.
    pub(crate) wanted: bool,
    /// Defined in a group that was discarded.
    discarded: bool,
    definer: u32,
}

/// What a symbol is called whose name says more than that.
struct Spelling<'a> {
    stem: &'a [u8],
    /// The version that is asked for.
    version: Option<&'a str>,
    /// Named `f@addr`, in the Cranelift dialect.
    address: bool,
}

/// All global names of a unit.
#[derive(Debug, Default)]
pub(crate) struct Globals<'a> {
    /// The index of each name in `list`.
    names: Names<'a>,
    pub(crate) list: Vec<Global<'a>>,
    /// The versions that those who refer to some of them ask for.
    versions: HashMap<u32, &'a str>,
    groups: HashMap<&'a [u8], ()>,
    /// Indirect functions are taken.
    takes_indirect: bool,
    /// What is unique is taken.
    takes_unique: bool,
    /// Some object has an indirect function.
    pub(crate) has_indirect: bool,
    /// Some object has a common symbol.
    pub(crate) has_common: bool,
    /// Names wanted and not defined when they were first wanted, for the archives to supply.
    pub(crate) pending: Vec<u32>,
}

impl<'a> Globals<'a> {
    /// No names yet.
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            takes_indirect: options.runs_resolvers,
            takes_unique: options.keeps_unique,
            ..Self::default()
        }
    }

    /// Adds an object: settles its COMDAT groups, then its symbols.
    ///
    /// `objects` are those added before; `uses` takes note of what each of its symbols is, `labels` of its functions and objects.
    pub(crate) fn add(
        &mut self,
        object: &mut ObjectFile<'a>,
        objects: &[Box<ObjectFile<'a>>],
        uses: &mut Lists<SymbolUse>,
        labels: &mut Labels,
    ) -> Result<(), LinkError> {
        for group in 0..object.groups.len() {
            if self
                .groups
                .insert(object.groups[group].signature, ())
                .is_some()
                && !makes(Mutant::GroupsKept)
            {
                object.discard(group);
            }
        }
        let number = u32::try_from(objects.len())
            .map_err(|_| object.error(Problem::Corrupt("too many objects".into())))?;
        uses.begin(object.symbols.len());
        // And some more: small objects after a large one do not have all of it moved.
        let room = object.symbols.len() + object.symbols.len() / 8;
        self.names.reserve(room);
        self.list.reserve(room);
        labels.reserve(room);
        let mut locals = HashMap::new();
        for (index, symbol) in (0..).zip(object.symbols.symbols()) {
            self.check_kind(object, index, symbol)?;
            self.has_indirect |= symbol.st_type() == elf::STT_GNU_IFUNC;
            let is_global = index != 0 && symbol.st_bind() != elf::STB_LOCAL;
            let mut section = None;
            if is_global || is_labelled(symbol.st_type()) {
                // Sections are numbered with 32 bits.
                section = (object.symbol_section(index, symbol)?).map(|section| section as u32);
            }
            let mut global = None;
            if is_global {
                let (number, address) = self.add_symbol(object, objects, index, symbol, section)?;
                uses.push(SymbolUse::Global {
                    global: number,
                    address,
                });
                global = Some(number);
            } else {
                uses.push(SymbolUse::Local(index));
            }
            if let Some(section) = section {
                labels.note((number, index), symbol, section, global);
            }
            if !is_global && object.dialect == Dialect::Cranelift {
                locals.insert(object.global_name(symbol)?, index);
            }
        }
        if object.dialect == Dialect::Cranelift {
            self.bind_local_addresses(object, &locals, uses.last())?;
        }
        Ok(())
    }

    /// Refuses the kinds of symbol that are not supported yet.
    fn check_kind(
        &self,
        object: &ObjectFile<'_>,
        index: u32,
        symbol: &Sym64<LE>,
    ) -> Result<(), LinkError> {
        let defined = symbol.st_shndx(LE) != elf::SHN_UNDEF;
        let refuse = |refusal| {
            Err(object.error(Problem::Symbol {
                symbol: object.symbol_label(index),
                refusal,
            }))
        };
        match symbol.st_type() {
            elf::STT_GNU_IFUNC if defined && !self.takes_indirect => {
                return refuse(SymbolRefusal::IndirectFunction);
            }
            _ => {}
        }
        match symbol.st_bind() {
            elf::STB_LOCAL | elf::STB_GLOBAL | elf::STB_WEAK => {}
            elf::STB_GNU_UNIQUE if self.takes_unique => {}
            elf::STB_GNU_UNIQUE => return refuse(SymbolRefusal::Unique),
            _ => return Err(object.error(Problem::Corrupt("symbol of an unknown binding".into()))),
        }
        // What GCC puts into an object that has its intermediate language only.
        let slim =
            defined && symbol.st_bind() != elf::STB_LOCAL && symbol.st_shndx(LE) == elf::SHN_COMMON;
        if slim
            && matches!(
                object.symbol_label(index).as_str(),
                "__gnu_lto_slim" | "__gnu_lto_v1"
            )
        {
            return Err(object.error(Problem::LinkTimeOnly));
        }
        Ok(())
    }

    /// Adds a symbol that others see. Returns its index in the list, and whether only its address is asked for.
    fn add_symbol(
        &mut self,
        object: &mut ObjectFile<'a>,
        objects: &[Box<ObjectFile<'a>>],
        index: u32,
        symbol: &'a Sym64<LE>,
        section: Option<u32>,
    ) -> Result<(u32, bool), LinkError> {
        let key = self.names.key();
        let (name, version, address) = match object.plain_name(symbol, key)? {
            Some(name) => (name, None, false),
            None => {
                let spelling = spelled_out(object, index, symbol)?;
                (key.name(spelling.stem), spelling.version, spelling.address)
            }
        };
        let global = self.intern(object, symbol, name)?;
        if let Some(version) = version {
            let other = self.versions.insert(global, version);
            if other.is_some_and(|other| other != version) {
                return Err(object.error(Problem::Symbol {
                    symbol: object.symbol_label(index),
                    refusal: SymbolRefusal::TwoVersions,
                }));
            }
        }
        let entry = &mut self.list[global as usize];
        entry.exported &= matches!(
            symbol.st_visibility(),
            elf::STV_DEFAULT | elf::STV_PROTECTED
        );
        let found = read_definition(object, objects.len() as u32, symbol, section)?;
        if let Value::InSection { section, .. } = found.1
            && object.sections[section as usize].role == Role::Discarded
        {
            entry.discarded = true;
        } else if found.0 == Strength::Undefined {
            let strong = symbol.st_bind() != elf::STB_WEAK;
            if strong && !entry.wanted && entry.strength == Strength::Undefined {
                self.pending.push(global);
            }
            entry.wanted |= strong;
        } else {
            self.has_common |= found.0 == Strength::Common;
            let takes_unique = self.takes_unique;
            entry.define(found, symbol, object, objects, takes_unique)?;
        }
        Ok((global, address))
    }

    fn intern(
        &mut self,
        object: &ObjectFile<'a>,
        symbol: &Sym64<LE>,
        name: Name<'a>,
    ) -> Result<u32, LinkError> {
        let number = self.names.number(name);
        let (number, is_new) =
            number.ok_or_else(|| object.error(Problem::Corrupt("too many symbols".into())))?;
        if !is_new {
            return Ok(number);
        }
        let text = object.text(symbol, name.bytes())?;
        if text.is_empty() {
            return Err(object.error(Problem::Corrupt("global symbol without a name".into())));
        }
        self.list.push(Global {
            name: text,
            strength: Strength::Undefined,
            value: Value::Nothing,
            size: 0,
            kind: elf::STT_NOTYPE,
            unique: false,
            exported: true,
            wanted: false,
            discarded: false,
            definer: 0,
        });
        Ok(number)
    }

    /// Binds `f@addr` to the object's own local `f`, which no global name leads to.
    fn bind_local_addresses(
        &mut self,
        object: &mut ObjectFile<'a>,
        locals: &HashMap<&'a [u8], u32>,
        uses: &mut [SymbolUse],
    ) -> Result<(), LinkError> {
        for (symbol, usage) in object.symbols.symbols().iter().zip(uses) {
            if let SymbolUse::Global { address: true, .. } = usage
                && let Some(stem) = object.global_name(symbol)?.strip_suffix(ADDRESS_SUFFIX)
                && let Some(&local) = locals.get(stem)
            {
                *usage = SymbolUse::Local(local);
            }
        }
        Ok(())
    }

    /// The global of this name.
    pub(crate) fn find(&self, name: &str) -> Option<&Global<'a>> {
        self.list.get(self.names.find(name.as_bytes())? as usize)
    }

    /// The version of a global that those who refer to it ask for.
    pub(crate) fn version(&self, global: u32) -> Option<&'a str> {
        self.versions.get(&global).copied()
    }

    /// Why `global` cannot be referred to, if nobody defines it.
    pub(crate) fn refuse_undefined(&self, global: &Global<'a>) -> Option<SymbolRefusal> {
        match global.name {
            _ if global.discarded => Some(SymbolRefusal::Discarded),
            _ if !global.exported && global.wanted => Some(SymbolRefusal::Hidden),
            _ => None,
        }
    }
}

impl<'a> Global<'a> {
    /// Whether even the unit itself goes through cells, since its own copy need not be the one that counts.
    pub(crate) fn is_indirect(&self) -> bool {
        self.strength != Strength::Undefined && self.unique && self.exported
    }

    fn define(
        &mut self,
        (strength, value): (Strength, Value),
        symbol: &Sym64<LE>,
        object: &ObjectFile<'a>,
        objects: &[Box<ObjectFile<'a>>],
        takes_unique: bool,
    ) -> Result<(), LinkError> {
        if strength == Strength::Strong && self.strength == Strength::Strong {
            let first = objects
                .get(self.definer as usize)
                .map_or(object, |first| first)
                .name
                .clone();
            return Err(object.error(Problem::Duplicate {
                symbol: self.name.into(),
                first,
            }));
        }
        if let (Value::Common { align_bytes: new }, Value::Common { align_bytes: old }) =
            (value, self.value)
        {
            self.value = Value::Common {
                align_bytes: new.max(old),
            };
            self.size = self.size.max(symbol.st_size(LE));
            return Ok(());
        }
        let late = makes(Mutant::WeakWins) && self.strength == Strength::Weak;
        if strength > self.strength && !late {
            self.strength = strength;
            self.value = value;
            self.size = symbol.st_size(LE);
            self.kind = symbol.st_type();
            let shared = || match value {
                Value::InSection { section, .. } => {
                    object.sections[section as usize].is_shared_datum()
                }
                _ => false,
            };
            let weak = takes_unique && strength == Strength::Weak && shared();
            self.unique = symbol.st_type() != elf::STT_TLS
                && (symbol.st_bind() == elf::STB_GNU_UNIQUE || weak);
            self.definer = u32::try_from(objects.len()).unwrap_or(u32::MAX);
        }
        Ok(())
    }
}

/// What a symbol is called, of an object whose names may say more than that.
fn spelled_out<'a>(
    object: &mut ObjectFile<'a>,
    index: u32,
    symbol: &Sym64<LE>,
) -> Result<Spelling<'a>, LinkError> {
    let mut name = object.global_name(symbol)?;
    let mut address = false;
    if object.dialect == Dialect::Cranelift
        && symbol.st_shndx(LE) == elf::SHN_UNDEF
        && let Some(stem) = name.strip_suffix(ADDRESS_SUFFIX)
    {
        (name, address) = (stem, true);
    }
    let mut version = None;
    if object.has_versions
        && let Some(at) = name.iter().position(|&byte| byte == b'@')
    {
        if object.dialect == Dialect::Cranelift {
            return Err(object.error(Problem::Symbol {
                symbol: object.symbol_label(index),
                refusal: SymbolRefusal::Versioned,
            }));
        }
        let (stem, rest) = (&name[..at], &name[at..]);
        let default = rest.strip_prefix(b"@@");
        // `f@@V` defines `f`; `f@V` defines what only those who ask for that version may have.
        if default.is_none() && symbol.st_shndx(LE) != elf::SHN_UNDEF {
            return Err(object.error(Problem::Symbol {
                symbol: object.symbol_label(index),
                refusal: SymbolRefusal::OldVersion,
            }));
        }
        let named = core::str::from_utf8(default.unwrap_or(&rest[1..]))
            .map_err(|_| object.error(Problem::Corrupt("symbol version is not UTF-8".into())))?;
        version = Some(named).filter(|_| symbol.st_shndx(LE) == elf::SHN_UNDEF);
        name = stem;
    }
    Ok(Spelling {
        stem: name,
        version,
        address,
    })
}

/// What a symbol that is not local says, in the object that will have number `number`, where it is defined in `section`.
fn read_definition(
    object: &ObjectFile<'_>,
    number: u32,
    symbol: &Sym64<LE>,
    section: Option<u32>,
) -> Result<(Strength, Value), LinkError> {
    // Of what is unique, every copy is as good as another.
    let strength = if matches!(symbol.st_bind(), elf::STB_WEAK | elf::STB_GNU_UNIQUE) {
        Strength::Weak
    } else {
        Strength::Strong
    };
    let corrupt = |what: &str| object.error(Problem::Corrupt(what.into()));
    if let Some(section) = section {
        let value = symbol.st_value(LE);
        let home = &object.sections[section as usize];
        if home.role.is_placed() && value > home.len_bytes() {
            return Err(corrupt("symbol past the end of its section"));
        }
        let object = number;
        return Ok((
            strength,
            Value::InSection {
                object,
                section,
                value,
            },
        ));
    }
    match symbol.st_shndx(LE) {
        elf::SHN_UNDEF => Ok((Strength::Undefined, Value::Nothing)),
        elf::SHN_ABS => Ok((strength, Value::Absolute(symbol.st_value(LE)))),
        elf::SHN_COMMON => {
            let align_bytes = alignment(symbol.st_value(LE))
                .map_err(|problem| object.error(problem))?
                .into();
            Ok((Strength::Common, Value::Common { align_bytes }))
        }
        _ => Err(corrupt("symbol in a reserved section")),
    }
}
