//! An ELF file of symbols, for debuggers: where functions lie in one process, how to unwind through them, and what debugging
//! information says. It holds no code: that is in the process.
//!
//! Source: gABI, chapters 4 and 5. Invariant: addresses are those of one process, since gdb adds nothing to those of a file that is
//! registered by its JIT interface.

/// A function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Its address.
    pub address: u64,
    /// Its length, bytes.
    pub len_bytes: u64,
    /// Its name.
    pub name: &'a str,
}

/// A stretch of code.
#[derive(Clone, Debug, Default)]
pub struct Text<'a> {
    /// Its address.
    pub address: u64,
    /// Its length, bytes.
    pub len_bytes: u64,
    /// Its functions.
    pub symbols: Vec<Symbol<'a>>,
}

/// What a file is made of.
#[derive(Clone, Debug, Default)]
pub struct Parts<'a> {
    /// The code.
    pub texts: Vec<Text<'a>>,
    /// An `.eh_frame` section with absolute pointers, which is said to lie at this address; it need not lie anywhere.
    pub eh_frame: (u64, &'a [u8]),
    /// Debugging sections: their names and contents.
    pub sections: Vec<(&'a str, &'a [u8])>,
}

const HEADER_BYTES: usize = 64;
const SECTION_BYTES: usize = 64;
const SYMBOL_BYTES: usize = 24;

const SHT_PROGBITS: u32 = 1;
const SHT_SYMTAB: u32 = 2;
const SHT_STRTAB: u32 = 3;
const SHT_NOBITS: u32 = 8;
const SHF_ALLOC: u64 = 2;
const SHF_EXECINSTR: u64 = 4;
/// The section of what lies at an address that no section has: for more sections than a symbol can name.
const SHN_ABS: u16 = 0xfff1;
/// The first number of a section that symbols cannot name.
const SHN_LORESERVE: usize = 0xff00;
/// `STB_GLOBAL` and `STT_FUNC`.
const GLOBAL_FUNCTION: u8 = 1 << 4 | 2;

/// A section header.
#[derive(Clone, Copy, Debug, Default)]
struct Section {
    name: u32,
    kind: u32,
    flags: u64,
    address: u64,
    offset: u64,
    len_bytes: u64,
    link: u32,
    info: u32,
    align_bytes: u64,
    entry_bytes: u64,
}

/// The file.
pub fn write(parts: &Parts<'_>) -> Vec<u8> {
    let mut file = Writer { bytes: vec![0; HEADER_BYTES], sections: vec![Section::default()], names: vec![0] };
    for text in &parts.texts {
        let name = file.name(".text");
        let offset = file.bytes.len() as u64;
        file.sections.push(Section {
            name,
            kind: SHT_NOBITS,
            flags: SHF_ALLOC | SHF_EXECINSTR,
            address: text.address,
            offset,
            len_bytes: text.len_bytes,
            align_bytes: 1,
            ..Section::default()
        });
    }
    let (address, eh_frame) = parts.eh_frame;
    if !eh_frame.is_empty() {
        let section = Section { kind: SHT_PROGBITS, flags: SHF_ALLOC, address, align_bytes: 8, ..Section::default() };
        file.add(".eh_frame", section, eh_frame);
    }
    for (name, bytes) in &parts.sections {
        let section = Section { kind: SHT_PROGBITS, align_bytes: 1, ..Section::default() };
        file.add(name, section, bytes);
    }
    let (mut symbols, mut strings) = (vec![0; SYMBOL_BYTES], vec![0]);
    for (text, section) in parts.texts.iter().zip(1..) {
        let section = if section < SHN_LORESERVE { section as u16 } else { SHN_ABS };
        for symbol in &text.symbols {
            symbols.extend_from_slice(&intern(&mut strings, symbol.name).to_le_bytes());
            symbols.extend_from_slice(&[GLOBAL_FUNCTION, 0]);
            symbols.extend_from_slice(&section.to_le_bytes());
            symbols.extend_from_slice(&symbol.address.to_le_bytes());
            symbols.extend_from_slice(&symbol.len_bytes.to_le_bytes());
        }
    }
    let link = file.sections.len() as u32 + 1;
    let table = Section { kind: SHT_SYMTAB, link, info: 1, align_bytes: 8, entry_bytes: SYMBOL_BYTES as u64, ..Section::default() };
    file.add(".symtab", table, &symbols);
    file.add(".strtab", Section { kind: SHT_STRTAB, align_bytes: 1, ..Section::default() }, &strings);
    file.finish()
}

/// The offset of `text` among `strings`, where it is put.
fn intern(strings: &mut Vec<u8>, text: &str) -> u32 {
    let at = strings.len() as u32;
    // A NUL would end the name.
    strings.extend(text.bytes().take_while(|byte| *byte != 0));
    strings.push(0);
    at
}

struct Writer {
    bytes: Vec<u8>,
    sections: Vec<Section>,
    names: Vec<u8>,
}

impl Writer {
    fn name(&mut self, name: &str) -> u32 {
        intern(&mut self.names, name)
    }

    fn align(&mut self, align_bytes: u64) {
        let aligned = self.bytes.len().next_multiple_of(align_bytes.max(1) as usize);
        self.bytes.resize(aligned, 0);
    }

    fn add(&mut self, name: &str, section: Section, bytes: &[u8]) {
        let name = self.name(name);
        self.align(section.align_bytes);
        let offset = self.bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        self.sections.push(Section { name, offset, len_bytes: bytes.len() as u64, ..section });
    }

    fn finish(mut self) -> Vec<u8> {
        let name = self.name(".shstrtab");
        let names = std::mem::take(&mut self.names);
        let offset = self.bytes.len() as u64;
        self.bytes.extend_from_slice(&names);
        let len_bytes = names.len() as u64;
        self.sections.push(Section { name, kind: SHT_STRTAB, offset, len_bytes, align_bytes: 1, ..Section::default() });
        self.align(8);
        let (at, count) = (self.bytes.len() as u64, self.sections.len());
        // More sections than a half-word counts: the first header says how many, and where the names are.
        let (mut stated, mut names_in) = (count as u16, count as u16 - 1);
        if count >= SHN_LORESERVE {
            self.sections[0].len_bytes = count as u64;
            self.sections[0].link = count as u32 - 1;
            (stated, names_in) = (0, u16::MAX);
        }
        let sections = std::mem::take(&mut self.sections);
        for section in &sections {
            self.section(section);
        }
        self.header(at, stated, names_in);
        self.bytes
    }

    fn section(&mut self, section: &Section) {
        for word in [section.name, section.kind] {
            self.bytes.extend_from_slice(&word.to_le_bytes());
        }
        for word in [section.flags, section.address, section.offset, section.len_bytes] {
            self.bytes.extend_from_slice(&word.to_le_bytes());
        }
        for word in [section.link, section.info] {
            self.bytes.extend_from_slice(&word.to_le_bytes());
        }
        for word in [section.align_bytes, section.entry_bytes] {
            self.bytes.extend_from_slice(&word.to_le_bytes());
        }
    }

    /// An executable for x86-64 without segments.
    fn header(&mut self, sections_at: u64, count: u16, names_in: u16) {
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        for half in [2u16, 62] {
            header.extend_from_slice(&half.to_le_bytes());
        }
        header.extend_from_slice(&1u32.to_le_bytes());
        for word in [0, 0, sections_at] {
            header.extend_from_slice(&word.to_le_bytes());
        }
        header.extend_from_slice(&0u32.to_le_bytes());
        for half in [HEADER_BYTES as u16, 0, 0, SECTION_BYTES as u16, count, names_in] {
            header.extend_from_slice(&half.to_le_bytes());
        }
        self.bytes[..HEADER_BYTES].copy_from_slice(&header);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn sections_and_symbols_are_where_the_headers_say() {
        let text = |address, name| Text {
            address,
            len_bytes: 32,
            symbols: vec![Symbol { address: address + 4, len_bytes: 8, name }],
        };
        let parts = Parts {
            texts: vec![text(0x7000, "first"), text(0x9000, "sec\0ond")],
            eh_frame: (0x5000, &[1, 2, 3, 4, 0, 0, 0, 0]),
            sections: vec![(".debug_line", &[9, 9, 9])],
        };
        let file = write(&parts);
        let sections = word(&file, 40) as usize;
        let count = u16::from_le_bytes([file[60], file[61]]) as usize;
        assert_eq!(file.len(), sections + count * SECTION_BYTES);
        let header = |index: usize| {
            let at = sections + index * SECTION_BYTES;
            let kind = u32::from_le_bytes(file[at + 4..at + 8].try_into().unwrap());
            (kind, word(&file, at + 16), word(&file, at + 24) as usize, word(&file, at + 32) as usize)
        };
        assert_eq!((header(1).0, header(1).1, header(2).1), (SHT_NOBITS, 0x7000, 0x9000));
        let (kind, address, at, len) = header(3);
        assert_eq!((kind, address, &file[at..at + len]), (SHT_PROGBITS, 0x5000, parts.eh_frame.1));
        let (.., at, len) = header(4);
        assert_eq!(file[at..at + len], [9, 9, 9]);
        let ((kind, _, at, len), (.., strings, _)) = (header(5), header(6));
        assert_eq!((kind, len), (SHT_SYMTAB, 3 * SYMBOL_BYTES));
        let symbol = |index: usize| {
            let at = at + index * SYMBOL_BYTES;
            let name = strings + u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
            let end = name + file[name..].iter().position(|byte| *byte == 0).unwrap();
            let section = u16::from_le_bytes([file[at + 6], file[at + 7]]);
            (core::str::from_utf8(&file[name..end]).unwrap(), section, word(&file, at + 8), word(&file, at + 16))
        };
        assert_eq!(symbol(1), ("first", 1, 0x7004, 8));
        assert_eq!(symbol(2), ("sec", 2, 0x9004, 8), "a NUL ends a name");
    }
}
