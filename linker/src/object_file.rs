//! One relocatable object: its headers checked, its sections told apart by what they become.
//!
//! Invariant: what is kept here was checked against the file's length; sizes, alignments and the links
//! between sections are sound. Symbols and relocations are borrowed and checked where they are used.

use jitcast_runtime::memory::prefetch;
use object::LittleEndian as LE;
use object::elf::{self, FileHeader64, Rela64, SectionHeader64, Sym64};
use object::read::elf::{FileHeader as _, SectionHeader as _, SectionTable, Sym as _, SymbolTable};
use object::{SectionIndex, SymbolIndex};

use crate::budget::Budget;
use crate::error::{LinkError, Problem, SectionRefusal, Site};
use crate::input::Dialect;
use crate::name::{Key, Name, len_of_first};
use crate::section::{Content, Role, Section, alignment, is_shared, refuse, role, tells};
use crate::startup::Startup;

type Elf = FileHeader64<LE>;

/// A COMDAT group.
#[derive(Debug)]
pub(crate) struct Group<'a> {
    pub(crate) signature: &'a [u8],
    members: &'a [object::U32<LE>],
}

/// The relocations of one section.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Relocations<'a> {
    pub(crate) section: usize,
    pub(crate) entries: &'a [Rela64<LE>],
}

/// One object.
#[derive(Debug)]
pub(crate) struct ObjectFile<'a> {
    pub(crate) name: String,
    pub(crate) dialect: Dialect,
    pub(crate) sections: Vec<Section<'a>>,
    pub(crate) symbols: SymbolTable<'a, Elf>,
    /// The names of the symbols, if all of them are UTF-8; else nothing.
    names: &'a str,
    /// The same, if none of them says more than what something is called; else nothing.
    plain: &'a [u8],
    /// Some name may have a `@`.
    pub(crate) has_versions: bool,
    /// The file and its sections, for what is not loaded.
    pub(crate) bytes: &'a [u8],
    pub(crate) table: SectionTable<'a, Elf>,
    pub(crate) groups: Vec<Group<'a>>,
    pub(crate) relocations: Vec<Relocations<'a>>,
    /// How many sections are placed, unless they are discarded.
    pub(crate) placed: usize,
    /// How many relocations its sections have.
    pub(crate) relocation_count: usize,
    /// Some section says how to unwind.
    pub(crate) has_frames: bool,
    /// Some data have relocations.
    pub(crate) relocates_data: bool,
    /// What the names of its symbols may still cost.
    pub(crate) budget: Budget,
}

/// Headers and the file, while they are read.
struct Reader<'a> {
    bytes: &'a [u8],
    /// The names of the sections, if all of them are UTF-8; else nothing.
    names: &'a str,
    table: SectionTable<'a, Elf>,
    symbols: SymbolTable<'a, Elf>,
    placed: usize,
    relocation_count: usize,
    has_frames: bool,
    relocates_data: bool,
    budget: Budget,
}

fn corrupt(error: object::Error) -> Problem {
    Problem::Corrupt(error.to_string())
}

/// How many objects ahead the processor is told what will be read.
const AHEAD: usize = 3;

/// Asks for the symbols of the objects that come after object `number`: there may be more of them than caches hold.
pub(crate) fn ask_ahead(objects: &[Box<ObjectFile<'_>>], number: usize) {
    if let Some(next) = objects.get(number + 2 * AHEAD) {
        prefetch(core::ptr::from_ref(&next.symbols).addr());
    }
    if let Some(next) = objects.get(number + AHEAD) {
        ask_for(next.symbols.symbols());
    }
}

/// Asks for the beginning of `list`.
pub(crate) fn ask_for<T>(list: &[T]) {
    /// A cache line, bytes.
    const LINE: usize = 64;
    /// What comes later, the processor sees coming.
    const MOST: usize = 16 * LINE;
    let start = list.as_ptr().addr();
    let end = start + size_of_val(list).min(MOST);
    (start..end).step_by(LINE).for_each(prefetch);
}

impl<'a> ObjectFile<'a> {
    /// Reads the object's headers.
    pub(crate) fn read(name: String, bytes: &'a [u8], dialect: Dialect) -> Result<Self, LinkError> {
        match Self::parse(bytes) {
            Ok((sections, groups, relocations, reader)) => {
                let Reader {
                    bytes,
                    table,
                    symbols,
                    placed,
                    relocation_count,
                    has_frames,
                    relocates_data,
                    budget,
                    ..
                } = reader;
                let strings = strings(bytes, &table, symbols.string_section());
                // Without strings no name is found; one that were, would be looked at.
                let has_versions = strings.is_none_or(|strings| strings.contains(&b'@'));
                let is_plain = dialect == Dialect::Elf && !has_versions;
                Ok(Self {
                    name,
                    dialect,
                    names: all_text(strings),
                    plain: strings.filter(|_| is_plain).unwrap_or_default(),
                    has_versions,
                    placed,
                    relocation_count,
                    has_frames,
                    relocates_data,
                    sections,
                    symbols,
                    bytes,
                    table,
                    groups,
                    relocations,
                    budget,
                })
            }
            Err(problem) => Err(LinkError::new(name, problem)),
        }
    }

    #[expect(
        clippy::type_complexity,
        reason = "the parts of an object, taken apart by the one caller"
    )]
    fn parse(
        bytes: &'a [u8],
    ) -> Result<
        (
            Vec<Section<'a>>,
            Vec<Group<'a>>,
            Vec<Relocations<'a>>,
            Reader<'a>,
        ),
        Problem,
    > {
        let header = check_header(bytes)?;
        let table = header.sections(LE, bytes).map_err(corrupt)?;
        let symbols = table.symbols(LE, bytes, elf::SHT_SYMTAB).map_err(corrupt)?;
        let names = SectionIndex(header.shstrndx(LE, bytes).map_err(corrupt)? as usize);
        let mut reader = Reader {
            bytes,
            names: all_text(strings(bytes, &table, names)),
            table,
            symbols,
            placed: 0,
            relocation_count: 0,
            has_frames: false,
            relocates_data: false,
            budget: Budget::new(bytes.len()),
        };
        reader
            .budget
            .contents(size_of_val(symbols.symbols()) as u64)?;
        let mut sections = Vec::with_capacity(table.len());
        // What says something of other sections, which may come after it.
        let mut tables = Vec::new();
        for header in table.iter() {
            reader.section(header, &mut sections)?;
            if matches!(
                header.sh_type(LE),
                elf::SHT_GROUP | elf::SHT_RELA | elf::SHT_REL | elf::SHT_RELR | elf::SHT_CREL
            ) {
                tables.push(header);
            }
        }
        let mut groups = Vec::new();
        let mut relocations = Vec::with_capacity(tables.len());
        for header in tables {
            match header.sh_type(LE) {
                elf::SHT_GROUP => groups.extend(reader.group(header)?),
                elf::SHT_RELA => {
                    if let Some(table) = reader.relocations(header, &sections)? {
                        relocations.push(table);
                    }
                }
                elf::SHT_REL => reader.refuse_table("SHT_REL", header, &sections)?,
                elf::SHT_RELR => reader.refuse_table("SHT_RELR", header, &sections)?,
                _ => reader.refuse_table("SHT_CREL", header, &sections)?,
            }
        }
        for member in groups.iter().flat_map(|group: &Group<'_>| group.members) {
            if let Some(section) = sections.get_mut(member.get(LE) as usize) {
                section.comdat = true;
            }
        }
        Ok((sections, groups, relocations, reader))
    }

    /// The sections of `group`, as far as they exist.
    pub(crate) fn discard(&mut self, group: usize) {
        let members = self
            .groups
            .get(group)
            .map_or(&[][..], |group| group.members);
        for member in members {
            if let Some(section) = self.sections.get_mut(member.get(LE) as usize)
                && section.role.is_relocated()
            {
                section.role = Role::Discarded;
            }
        }
    }

    /// Symbol `index`.
    pub(crate) fn symbol(&self, index: u32) -> Option<&'a Sym64<LE>> {
        self.symbols.symbols().get(index as usize)
    }

    /// The section that symbol `index` is defined in; `None` if it is undefined, absolute or common.
    #[inline]
    pub(crate) fn symbol_section(
        &self,
        index: u32,
        symbol: &Sym64<LE>,
    ) -> Result<Option<usize>, LinkError> {
        let section = usize::from(symbol.st_shndx(LE));
        let plain = 1..self.sections.len().min(elf::SHN_LORESERVE.into());
        match plain.contains(&section) {
            true => Ok(Some(section)),
            false => self.reserved_section(index, symbol),
        }
    }

    /// The same, of a symbol that says it in another way.
    fn reserved_section(&self, index: u32, symbol: &Sym64<LE>) -> Result<Option<usize>, LinkError> {
        let section = self
            .symbols
            .symbol_section(LE, symbol, SymbolIndex(index as usize));
        match section.map_err(|error| self.error(corrupt(error)))? {
            None => Ok(None),
            Some(SectionIndex(section)) if section < self.sections.len() => Ok(Some(section)),
            Some(_) => Err(self.error(Problem::Corrupt(
                "symbol in a section that does not exist".into(),
            ))),
        }
    }

    /// The name of a global symbol.
    pub(crate) fn global_name(&mut self, symbol: &Sym64<LE>) -> Result<&'a [u8], LinkError> {
        let name = self
            .symbols
            .symbol_name(LE, symbol)
            .map_err(|error| self.error(corrupt(error)))?;
        self.budget
            .name(name)
            .map_err(|problem| LinkError::new(&self.name, problem))?;
        Ok(name)
    }

    /// The same as a key, if it says no more than what the symbol is called.
    #[inline]
    pub(crate) fn plain_name(
        &mut self,
        symbol: &Sym64<LE>,
        key: Key,
    ) -> Result<Option<Name<'a>>, LinkError> {
        let strings = self.plain.get(symbol.st_name(LE) as usize..);
        let name = strings.and_then(|strings| key.first_of(strings));
        if let Some(name) = &name {
            let counted = self.budget.name(name.bytes());
            counted.map_err(|problem| LinkError::new(&self.name, problem))?;
        }
        Ok(name)
    }

    /// `name` as text: what a global symbol is called, or the beginning of that.
    pub(crate) fn text(&self, symbol: &Sym64<LE>, name: &'a [u8]) -> Result<&'a str, LinkError> {
        let text = text(self.names, symbol.st_name(LE), name);
        text.ok_or_else(|| self.error(Problem::Corrupt("symbol name is not UTF-8".into())))
    }

    /// What messages call symbol `index`.
    pub(crate) fn symbol_label(&self, index: u32) -> String {
        let Some(symbol) = self.symbol(index).filter(|_| index != 0) else {
            return "no symbol".into();
        };
        if symbol.st_type() == elf::STT_SECTION
            && let Ok(Some(section)) = self.symbol_section(index, symbol)
        {
            return self.sections[section].name.into();
        }
        let name = self.symbols.symbol_name(LE, symbol).unwrap_or_default();
        String::from_utf8_lossy(name).into_owned()
    }

    /// An error of the object.
    pub(crate) fn error(&self, problem: Problem) -> LinkError {
        LinkError::new(&self.name, problem)
    }

    /// An error at a place in the object.
    pub(crate) fn error_at(&self, section: usize, offset: u64, problem: Problem) -> LinkError {
        let name = self
            .sections
            .get(section)
            .map_or("", |section| section.name);
        let site = Site {
            section: name.into(),
            offset,
            function: self.function_at(section, offset),
        };
        LinkError::at(&self.name, site, problem)
    }

    /// The function or object at a place; looked for only when there is an error to report.
    fn function_at(&self, section: usize, offset: u64) -> Option<String> {
        let (index, _) = self.symbols.enumerate().find(|(index, symbol)| {
            matches!(symbol.st_type(), elf::STT_FUNC | elf::STT_OBJECT)
                && offset
                    .checked_sub(symbol.st_value(LE))
                    .is_some_and(|into| into < symbol.st_size(LE))
                && self.symbols.symbol_section(LE, symbol, *index)
                    == Ok(Some(SectionIndex(section)))
        })?;
        Some(self.symbol_label(u32::try_from(index.0).ok()?))
    }
}

/// The strings of a section, if all of it is in the file.
fn strings<'a>(
    bytes: &'a [u8],
    table: &SectionTable<'a, Elf>,
    section: SectionIndex,
) -> Option<&'a [u8]> {
    table.section(section).ok()?.data(LE, bytes).ok()
}

/// The same as text, if all of them are UTF-8; else nothing.
fn all_text(strings: Option<&[u8]>) -> &str {
    let text = strings.and_then(|strings| core::str::from_utf8(strings).ok());
    text.unwrap_or_default()
}

/// `name`, the one at `offset` in its section, as text; `strings` are those of that section, if all of them are UTF-8.
fn text<'a>(strings: &'a str, offset: u32, name: &'a [u8]) -> Option<&'a str> {
    let start = offset as usize;
    let known = strings.get(start..start.saturating_add(name.len()));
    known.or_else(|| core::str::from_utf8(name).ok())
}

/// Refuses what is not a relocatable object for x86-64, saying what it is instead.
fn check_header(bytes: &[u8]) -> Result<&Elf, Problem> {
    if matches!(
        bytes,
        [b'B', b'C', 0xc0, 0xde, ..] | [0xde, 0xc0, 0x17, 0x0b, ..]
    ) {
        return Err(Problem::Bitcode);
    }
    if !bytes.starts_with(&elf::ELFMAG) {
        return Err(Problem::NotElf);
    }
    match bytes.get(4..6) {
        Some([elf::ELFCLASS32, _]) => return Err(Problem::Class),
        Some([elf::ELFCLASS64, elf::ELFDATA2MSB]) => return Err(Problem::Endian),
        _ => {}
    }
    let header = Elf::parse(bytes).map_err(corrupt)?;
    if header.e_machine(LE) != elf::EM_X86_64 {
        return Err(Problem::Machine(header.e_machine(LE)));
    }
    match header.e_type(LE) {
        elf::ET_REL => Ok(header),
        elf::ET_EXEC => Err(Problem::Executable),
        elf::ET_DYN => Err(Problem::SharedObject),
        other => Err(Problem::FileType(other)),
    }
}

impl<'a> Reader<'a> {
    fn name(&mut self, header: &SectionHeader64<LE>) -> Result<&'a str, Problem> {
        let name = match self.known_name(header.sh_name(LE) as usize) {
            Some(name) => name,
            None => {
                let name = self.table.section_name(LE, header).map_err(corrupt)?;
                let text = core::str::from_utf8(name);
                text.map_err(|_| Problem::Corrupt("section name is not UTF-8".into()))?
            }
        };
        self.budget.name(name.as_bytes())?;
        Ok(name)
    }

    /// The name at `start` among those of the sections.
    fn known_name(&self, start: usize) -> Option<&'a str> {
        let len = len_of_first(self.names.as_bytes().get(start..)?)?;
        self.names.get(start..start + len)
    }

    /// Adds the section that `header` is of.
    #[inline]
    fn section(
        &mut self,
        header: &'a SectionHeader64<LE>,
        sections: &mut Vec<Section<'a>>,
    ) -> Result<(), Problem> {
        let (flags, kind) = (header.sh_flags(LE), header.sh_type(LE));
        let has = |flag: u32| flags & u64::from(flag) != 0;
        // There are as many of relocations as of all else, and nobody asks what they are called.
        if kind == elf::SHT_RELA && !has(elf::SHF_ALLOC) {
            sections.push(Section::NOT_LOADED);
            return Ok(());
        }
        let name = self.name(header)?;
        let (mut content, mut becomes) = (Content::Zero(0), Role::NotLoaded);
        let (mut align_bytes, mut startup) = (1, None);
        if has(elf::SHF_ALLOC) {
            content = self.content(header)?;
            becomes = role(name, header, content.len_bytes())?;
        } else if is_shared(name) {
            // What an assembler makes of the name alone.
            return Err(refuse(name, SectionRefusal::SharedFlags));
        } else if name == ".note.GNU-stack" && has(elf::SHF_EXECINSTR) {
            return Err(refuse(name, SectionRefusal::ExecutableStack));
        }
        self.has_frames |= becomes == Role::Frames;
        if becomes.is_placed() {
            self.placed += 1;
            align_bytes = alignment(header.sh_addralign(LE))?;
            if tells(name) || kind != elf::SHT_PROGBITS {
                startup = Startup::of(name, kind).filter(|_| content.len_bytes() > 0);
            }
        }
        sections.push(Section {
            name,
            role: becomes,
            content,
            align_bytes,
            retained: has(elf::SHF_GNU_RETAIN),
            startup,
            thread_local: has(elf::SHF_TLS),
            comdat: false,
        });
        Ok(())
    }

    fn content(&mut self, header: &SectionHeader64<LE>) -> Result<Content<'a>, Problem> {
        if header.sh_type(LE) == elf::SHT_NOBITS {
            return Ok(Content::Zero(header.sh_size(LE)));
        }
        let bytes = header.data(LE, self.bytes).map_err(corrupt)?;
        self.budget.contents(bytes.len() as u64)?;
        Ok(Content::Bytes(bytes))
    }

    /// The group, if it is a COMDAT group.
    fn group(&mut self, header: &'a SectionHeader64<LE>) -> Result<Option<Group<'a>>, Problem> {
        let Some((flags, members)) = header.group(LE, self.bytes).map_err(corrupt)? else {
            return Ok(None);
        };
        self.budget.contents(size_of_val(members) as u64)?;
        if flags & elf::GRP_COMDAT == 0 {
            return Ok(None);
        }
        let index = SymbolIndex(header.sh_info(LE) as usize);
        if header.link(LE) != self.symbols.section() {
            return Err(Problem::Corrupt(
                "group with a signature in another symbol table".into(),
            ));
        }
        let symbol = self.symbols.symbol(index).map_err(corrupt)?;
        let mut signature = self.symbols.symbol_name(LE, symbol).map_err(corrupt)?;
        if signature.is_empty() && symbol.st_type() == elf::STT_SECTION {
            // Older assemblers sign a group with the symbol of a section, which is named as that.
            let section = self
                .symbols
                .symbol_section(LE, symbol, index)
                .map_err(corrupt)?;
            let section = self
                .table
                .section(section.unwrap_or(SectionIndex(0)))
                .map_err(corrupt)?;
            signature = self.table.section_name(LE, section).map_err(corrupt)?;
        }
        self.budget.name(signature)?;
        Ok(Some(Group { signature, members }))
    }

    /// The relocations of a section that is placed, or that says how to unwind.
    fn relocations(
        &mut self,
        header: &'a SectionHeader64<LE>,
        sections: &[Section<'_>],
    ) -> Result<Option<Relocations<'a>>, Problem> {
        let index = header.info_link(LE).0;
        let Some(section) = sections.get(index) else {
            return Err(Problem::Corrupt(
                "relocations of a section that does not exist".into(),
            ));
        };
        if !section.role.is_relocated() {
            return Ok(None);
        }
        let Some((entries, symbols)) = header.rela(LE, self.bytes).map_err(corrupt)? else {
            return Ok(None);
        };
        self.budget.contents(size_of_val(entries) as u64)?;
        if entries.is_empty() {
            return Ok(None);
        }
        if symbols != self.symbols.section() {
            return Err(Problem::Corrupt(
                "relocations against another symbol table".into(),
            ));
        }
        if matches!(section.content, Content::Zero(_)) {
            return Err(Problem::Corrupt(
                "relocations of a section without bytes".into(),
            ));
        }
        self.relocation_count += entries.len();
        self.relocates_data |= section.role.is_data();
        Ok(Some(Relocations {
            section: index,
            entries,
        }))
    }

    fn refuse_table(
        &self,
        form: &'static str,
        header: &SectionHeader64<LE>,
        sections: &[Section<'_>],
    ) -> Result<(), Problem> {
        match sections.get(header.info_link(LE).0) {
            Some(section) if section.role.is_relocated() && header.sh_size(LE) > 0 => {
                Err(Problem::TableForm {
                    section: section.name.into(),
                    form,
                })
            }
            _ => Ok(()),
        }
    }
}
