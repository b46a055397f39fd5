//! A reader of 64-bit ELF files, objects and linked ones, of its own: the `object` crate is what the linker
//! stands on, and a judge must not share its mistakes.
//!
//! Source: System V gABI 4.1, chapters 4 and 5. Every offset is checked; a file that contradicts itself is an
//! error, never a panic.

use core::fmt;

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "is no well-formed ELF file for x86-64: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// `e_type` of an object.
pub const RELOCATABLE: u16 = 1;
/// `e_type` of an executable at fixed addresses.
pub const EXECUTABLE: u16 = 2;
/// `e_type` of a shared library or a position-independent executable.
pub const DYNAMIC: u16 = 3;

/// `SHF_WRITE`, `SHF_ALLOC`, `SHF_EXECINSTR`, `SHF_EXCLUDE`.
pub(crate) const WRITE: u64 = 1;
pub(crate) const ALLOC: u64 = 2;
pub(crate) const EXECUTE: u64 = 4;
pub(crate) const EXCLUDE: u64 = 0x8000_0000;

const SYMTAB: u32 = 2;
const DYNSYM: u32 = 11;
const RELA: u32 = 4;
const NOBITS: u32 = 8;
const GROUP: u32 = 17;

/// A file.
#[derive(Clone, Debug)]
pub struct Elf<'a> {
    /// `e_type`.
    pub kind: u16,
    /// The sections; number 0 is none.
    pub sections: Vec<Section<'a>>,
    /// The symbols of the (static) symbol table; number 0 is none.
    pub symbols: Vec<Symbol<'a>>,
    /// The symbols that the dynamic linker knows.
    pub dynamic_symbols: Vec<Symbol<'a>>,
    /// All relocations, in the order of their tables. Of a linked file, the offsets are addresses.
    pub relocations: Vec<Relocation>,
    /// The COMDAT groups.
    pub groups: Vec<Group<'a>>,
}

/// A section.
#[derive(Clone, Debug)]
pub struct Section<'a> {
    /// Its name.
    pub name: &'a str,
    /// `sh_type`.
    pub kind: u32,
    /// `sh_flags`.
    pub flags: u64,
    /// `sh_addr`.
    pub address: u64,
    /// `sh_size`, bytes.
    pub len_bytes: u64,
    /// `sh_addralign`.
    pub align_bytes: u64,
    /// Its bytes; empty if it has none in the file.
    pub bytes: &'a [u8],
    link: u32,
    info: u32,
}

impl Section<'_> {
    /// Whether it is in memory while a program runs.
    pub fn is_loaded(&self) -> bool {
        self.flags & ALLOC != 0 && self.flags & EXCLUDE == 0
    }

    /// Whether it is code.
    pub fn is_text(&self) -> bool {
        self.flags & EXECUTE != 0
    }

    /// Whether it is zeros without bytes in the file.
    pub fn is_zero(&self) -> bool {
        self.kind == NOBITS
    }
}

/// Where a symbol is defined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// Nowhere in this file.
    Undefined,
    /// It is a number.
    Absolute,
    /// Wherever the linker puts it; its value is its alignment.
    Common,
    /// In this section.
    Section(usize),
}

/// A symbol.
#[derive(Clone, Copy, Debug)]
pub struct Symbol<'a> {
    /// Its name.
    pub name: &'a str,
    /// `STB_*`: 0 local, 1 global, 2 weak, 10 unique.
    pub binding: u8,
    /// `STT_*`: 1 object, 2 function, 3 section, 4 file, 6 thread-local, 10 indirect function.
    pub kind: u8,
    /// `STV_*`: 0 default, 1 internal, 2 hidden, 3 protected.
    pub visibility: u8,
    /// Where it is defined.
    pub home: Home,
    /// Its value.
    pub value: u64,
    /// Its size.
    pub size: u64,
}

/// A relocation with an addend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocation {
    /// The section that is relocated; 0 in tables of linked files that name none.
    pub section: usize,
    /// Where in it; in linked files, the address.
    pub offset: u64,
    /// `r_type`.
    pub kind: u32,
    /// The symbol's number. In `.rela.dyn` and `.rela.plt` it counts in another table.
    pub symbol: u32,
    /// The addend.
    pub addend: i64,
    /// Whether its symbols are those of the static table.
    pub of_symbols: bool,
}

/// A COMDAT group.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// The name by which copies are told.
    pub signature: &'a str,
    /// Its sections.
    pub members: Vec<usize>,
}

fn array<const N: usize>(bytes: &[u8], at: u64) -> Result<[u8; N], Malformed> {
    let at = usize::try_from(at).ok();
    let rest = at.and_then(|at| bytes.get(at..));
    rest.and_then(|rest| rest.first_chunk().copied())
        .ok_or(Malformed("truncated"))
}

fn u16_at(bytes: &[u8], at: u64) -> Result<u16, Malformed> {
    array(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: u64) -> Result<u32, Malformed> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: u64) -> Result<u64, Malformed> {
    array(bytes, at).map(u64::from_le_bytes)
}

fn text(strings: &[u8], at: u32) -> Result<&str, Malformed> {
    let wrong = Malformed("name outside its table, or not UTF-8");
    let rest = strings.get(at as usize..).ok_or(wrong.clone())?;
    let end = rest
        .iter()
        .position(|&byte| byte == 0)
        .ok_or(wrong.clone())?;
    core::str::from_utf8(&rest[..end]).map_err(|_| wrong)
}

impl<'a> Elf<'a> {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// What is no 64-bit ELF file for x86-64, or contradicts itself.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if !bytes.starts_with(b"\x7fELF\x02\x01\x01") {
            return Err(Malformed("no magic of a 64-bit little-endian file"));
        }
        if u16_at(bytes, 18)? != 62 {
            return Err(Malformed("for another machine"));
        }
        let mut elf = Self {
            kind: u16_at(bytes, 16)?,
            sections: sections(bytes)?,
            symbols: Vec::new(),
            dynamic_symbols: Vec::new(),
            relocations: Vec::new(),
            groups: Vec::new(),
        };
        let tables = || (0..).zip(&elf.sections);
        let table = tables().find(|(_, section)| section.kind == SYMTAB);
        let symbol_table = table.map(|(number, _)| number);
        if let Some((number, table)) = table {
            elf.symbols = symbols(&elf.sections, number, table)?;
        }
        let dynamic = tables().find(|(_, section)| section.kind == DYNSYM);
        if let Some((number, table)) = dynamic {
            elf.dynamic_symbols = symbols(&elf.sections, number, table)?;
        }
        let mut relocations = Vec::new();
        let mut groups = Vec::new();
        for section in &elf.sections {
            match section.kind {
                RELA => {
                    // Tables that are loaded are the dynamic linker's, whatever symbols they claim.
                    let of_symbols =
                        Some(section.link) == symbol_table && section.flags & ALLOC == 0;
                    relocations.extend(entries(section, of_symbols)?);
                }
                GROUP => groups.extend(elf.group(section)?),
                _ => {}
            }
        }
        elf.relocations = relocations;
        elf.groups = groups;
        Ok(elf)
    }

    fn group(&self, section: &Section<'a>) -> Result<Option<Group<'a>>, Malformed> {
        if u32_at(section.bytes, 0)? & 1 == 0 {
            return Ok(None);
        }
        let symbol = self
            .symbols
            .get(section.info as usize)
            .ok_or(Malformed("group without a signature"))?;
        let members = section.bytes[4..].chunks_exact(4);
        let member = |bytes: &[u8]| u32_at(bytes, 0).map(|member| member as usize);
        let signature = match symbol.home {
            Home::Section(home) if symbol.name.is_empty() => {
                self.sections.get(home).map_or("", |section| section.name)
            }
            _ => symbol.name,
        };
        Ok(Some(Group {
            signature,
            members: members.map(member).collect::<Result<_, _>>()?,
        }))
    }

    /// The section number `index`.
    pub fn section(&self, index: usize) -> Option<&Section<'a>> {
        self.sections.get(index)
    }
}

fn sections(bytes: &[u8]) -> Result<Vec<Section<'_>>, Malformed> {
    let start = u64_at(bytes, 40)?;
    if start == 0 {
        return Ok(Vec::new());
    }
    let header = |number: u64| {
        let at = start.checked_add(number * 64);
        let inside = |at: &u64| {
            at.checked_add(64)
                .is_some_and(|end| end <= bytes.len() as u64)
        };
        at.filter(inside).ok_or(Malformed("truncated"))
    };
    // With many sections the counts move into header 0.
    let count = match u16_at(bytes, 60)? {
        0 => u64_at(bytes, start.saturating_add(32))?,
        count => count.into(),
    };
    let names = match u16_at(bytes, 62)? {
        0xffff => u32_at(bytes, start.saturating_add(40))?,
        names => names.into(),
    };
    if count > bytes.len() as u64 / 64 {
        return Err(Malformed("more sections than the file has room for"));
    }
    let raw = |number: u64| -> Result<(Section<'_>, u32), Malformed> {
        let at = header(number)?;
        let kind = u32_at(bytes, at + 4)?;
        let (offset, len_bytes) = (u64_at(bytes, at + 24)?, u64_at(bytes, at + 32)?);
        let contents = if kind == NOBITS || kind == 0 {
            Some(&[][..])
        } else {
            let end = offset.saturating_add(len_bytes);
            usize::try_from(offset)
                .ok()
                .zip(usize::try_from(end).ok())
                .and_then(|(start, end)| bytes.get(start..end))
        };
        let section = Section {
            name: "",
            kind,
            flags: u64_at(bytes, at + 8)?,
            address: u64_at(bytes, at + 16)?,
            len_bytes,
            align_bytes: u64_at(bytes, at + 48)?.max(1),
            bytes: contents.ok_or(Malformed("section outside the file"))?,
            link: u32_at(bytes, at + 40)?,
            info: u32_at(bytes, at + 44)?,
        };
        Ok((section, u32_at(bytes, at)?))
    };
    let strings = raw(names.into())?.0.bytes;
    let named = |number| {
        let (section, name) = raw(number)?;
        let name = if strings.is_empty() {
            ""
        } else {
            text(strings, name)?
        };
        Ok(Section { name, ..section })
    };
    (0..count).map(named).collect()
}

fn symbols<'a>(
    sections: &[Section<'a>],
    number: u32,
    table: &Section<'a>,
) -> Result<Vec<Symbol<'a>>, Malformed> {
    let strings = sections
        .get(table.link as usize)
        .ok_or(Malformed("symbols without names"))?
        .bytes;
    // SHT_SYMTAB_SHNDX: section numbers that 16 bits do not hold.
    let wide = sections
        .iter()
        .find(|section| section.kind == 18 && section.link == number)
        .map_or(&[][..], |section| section.bytes);
    let read = |(index, entry): (u64, &[u8])| -> Result<Symbol<'a>, Malformed> {
        let (info, home) = (entry[4], u16_at(entry, 6)?);
        let home = match home {
            0 => Home::Undefined,
            0xfff1 => Home::Absolute,
            0xfff2 => Home::Common,
            0xffff => Home::Section(u32_at(wide, 4 * index)? as usize),
            0xff00.. => return Err(Malformed("symbol in a reserved section")),
            section => Home::Section(section.into()),
        };
        Ok(Symbol {
            name: text(strings, u32_at(entry, 0)?)?,
            binding: info >> 4,
            kind: info & 15,
            visibility: entry[5] & 3,
            home,
            value: u64_at(entry, 8)?,
            size: u64_at(entry, 16)?,
        })
    };
    (0..).zip(table.bytes.chunks_exact(24)).map(read).collect()
}

fn entries(table: &Section<'_>, of_symbols: bool) -> Result<Vec<Relocation>, Malformed> {
    let read = |entry: &[u8]| {
        let info = u64_at(entry, 8)?;
        Ok(Relocation {
            section: table.info as usize,
            offset: u64_at(entry, 0)?,
            kind: info as u32,
            symbol: (info >> 32) as u32,
            addend: u64_at(entry, 16)?.cast_signed(),
            of_symbols,
        })
    };
    table.bytes.chunks_exact(24).map(read).collect()
}
