//! ELF files byte by byte: shapes that no assembler makes.

use object::elf;

/// A section header and, in most cases, the bytes that go with it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Section {
    pub(crate) name: u32,
    pub(crate) kind: u32,
    pub(crate) flags: u64,
    pub(crate) bytes: Vec<u8>,
    /// In place of the bytes' own: where in the file, how long.
    pub(crate) claims: Option<(u64, u64)>,
    pub(crate) link: u32,
    pub(crate) info: u32,
    pub(crate) align: u64,
    pub(crate) entry: u64,
}

impl Section {
    pub(crate) fn of(kind: u32, flags: u32, bytes: Vec<u8>) -> Self {
        Self {
            kind,
            flags: flags.into(),
            bytes,
            align: 1,
            ..Self::default()
        }
    }

    pub(crate) fn linked(self, link: u32, info: u32, entry: u64) -> Self {
        Self {
            link,
            info,
            entry,
            ..self
        }
    }
}

/// An object of these sections, counted from 1; number `names` holds their names.
pub(crate) fn object(sections: &[Section], names: u16) -> Vec<u8> {
    let mut file = vec![0; 64];
    let mut headers = vec![0; 64];
    for section in sections {
        let (offset, len) = section
            .claims
            .unwrap_or((file.len() as u64, section.bytes.len() as u64));
        file.extend(&section.bytes);
        file.resize(file.len().next_multiple_of(8), 0);
        let Section {
            name, kind, flags, ..
        } = section;
        headers.extend([name.to_le_bytes(), kind.to_le_bytes()].concat());
        headers.extend([*flags, 0, offset, len].map(u64::to_le_bytes).concat());
        headers.extend([section.link, section.info].map(u32::to_le_bytes).concat());
        headers.extend(
            [section.align, section.entry]
                .map(u64::to_le_bytes)
                .concat(),
        );
    }
    let start = file.len() as u64;
    file.extend(headers);
    file[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file[16..20].copy_from_slice(&[1, 0, 62, 0]);
    file[20] = 1;
    file[40..48].copy_from_slice(&start.to_le_bytes());
    file[52..54].copy_from_slice(&64_u16.to_le_bytes());
    file[58..60].copy_from_slice(&64_u16.to_le_bytes());
    let count = u16::try_from(sections.len() + 1).unwrap();
    file[60..62].copy_from_slice(&count.to_le_bytes());
    file[62..64].copy_from_slice(&names.to_le_bytes());
    file
}

/// A symbol table's entry.
pub(crate) fn symbol(name: u32, info: u8, section: u16, value: u64, size: u64) -> Vec<u8> {
    let mut bytes = name.to_le_bytes().to_vec();
    bytes.extend([info, 0]);
    bytes.extend(section.to_le_bytes());
    bytes.extend([value, size].map(u64::to_le_bytes).concat());
    bytes
}

/// A relocation with an addend.
pub(crate) fn rela(offset: u64, symbol: u32, kind: u32, addend: i64) -> Vec<u8> {
    let info = u64::from(symbol) << 32 | u64::from(kind);
    [offset, info, addend.cast_unsigned()]
        .map(u64::to_le_bytes)
        .concat()
}

/// A table of `symbols` behind the null one, whose names are in section `strings`; they are all global.
pub(crate) fn symbols(entries: &[Vec<u8>], strings: u32) -> Section {
    let mut bytes = symbol(0, 0, 0, 0, 0);
    bytes.extend(entries.concat());
    Section::of(elf::SHT_SYMTAB, 0, bytes).linked(strings, 1, 24)
}
