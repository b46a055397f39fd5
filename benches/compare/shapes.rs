//! Objects of any size and shape, the same for every linker.
//!
//! Invariant: a shape has exactly the relocations that it says, and links by itself: what stands for the host is part of it.

use std::path::Path;

use object::write::{Object, Relocation, StandardSection, Symbol, SymbolId, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, RelocationFlags, SectionKind, SymbolFlags, SymbolKind,
    SymbolScope, elf,
};

/// Functions that stand for the host's.
const HOSTS: usize = 100;

/// What to make.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) objects: usize,
    pub(crate) functions_each: usize,
    pub(crate) relocations_each: usize,
    /// A section for each function, as `-ffunction-sections` makes them.
    pub(crate) sections: bool,
}

impl Shape {
    pub(crate) fn relocations(&self) -> usize {
        self.objects * self.functions_each * self.relocations_each + 3
    }

    /// The names and bytes of its files: `main`'s, which calls three functions, and the host's come last.
    pub(crate) fn files(&self) -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<_> = (0..self.objects)
            .map(|number| (format!("{number}.o"), self.object(number)))
            .collect();
        files.push(("main.o".to_owned(), self.main()));
        files.push(("host.o".to_owned(), hosts()));
        files
    }

    /// The same, all but `main` and the host as members of an archive. ar(1) takes minutes for a hundred thousand.
    pub(crate) fn archived(&self) -> Vec<(String, Vec<u8>)> {
        let mut files = self.files();
        let rest = files.split_off(self.objects);
        let defined = |number: usize| {
            let first = number * self.functions_each;
            (first..first + self.functions_each).map(|index| format!("function_{index}"))
        };
        let names = (0..self.objects).map(|number| defined(number).collect());
        let mut inputs = rest;
        inputs.insert(1, ("all.a".to_owned(), archive(&files, names)));
        inputs
    }

    fn total(&self) -> usize {
        self.objects * self.functions_each
    }

    fn object(&self, number: usize) -> Vec<u8> {
        let mut writer = Writer::new();
        let first = number * self.functions_each;
        let datum_name = format!("datum_{number}");
        let datum = writer.datum(&datum_name);
        for index in first..first + self.functions_each {
            let mut code = Code::default();
            // Half are calls of published functions, a quarter of the host's, the rest are addresses of data.
            for step in 0..self.relocations_each {
                match step * 4 / self.relocations_each {
                    0 | 1 => {
                        let other = (index * 7 + step * 13 + 1) % self.total();
                        let callee = writer.symbol(format!("function_{other}"));
                        code.refer(&[0xe8], elf::R_X86_64_PLT32, callee);
                    }
                    2 => {
                        let host = writer.symbol(format!("host_{}", (index + step) % HOSTS));
                        code.refer(&[0xff, 0x15], elf::R_X86_64_GOTPCRELX, host);
                    }
                    _ => code.refer(&[0x48, 0x8d, 0x05], elf::R_X86_64_PC32, datum),
                }
            }
            code.bytes.push(0xc3);
            writer.function(format!("function_{index}"), code, self.sections);
        }
        writer.finish()
    }

    fn main(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        let mut code = Code::default();
        for step in 0..3 {
            let callee = writer.symbol(format!("function_{}", step * (self.total() - 1) / 2));
            code.refer(&[0xe8], elf::R_X86_64_PLT32, callee);
        }
        code.bytes.push(0xc3);
        writer.function("main".to_owned(), code, false);
        writer.finish()
    }
}

/// An archive as GNU's ar(1) makes it: an index of the names that each member defines, then the members.
fn archive(members: &[(String, Vec<u8>)], defined: impl Iterator<Item = Vec<String>>) -> Vec<u8> {
    let header = |name: &str, len_bytes: usize| {
        format!(
            "{name:<16}{:<12}{:<6}{:<6}{:<8}{len_bytes:<10}`\n",
            0, 0, 0, 644
        )
    };
    let defined: Vec<Vec<String>> = defined.collect();
    let count: usize = defined.iter().map(Vec::len).sum();
    let texts: usize = defined.iter().flatten().map(|name| name.len() + 1).sum();
    let index_bytes = (4 + 4 * count + texts).next_multiple_of(2);
    let mut index = (count as u32).to_be_bytes().to_vec();
    let mut at = b"!<arch>\n".len() + 60 + index_bytes;
    for ((_, bytes), names) in members.iter().zip(&defined) {
        names
            .iter()
            .for_each(|_| index.extend((at as u32).to_be_bytes()));
        at += 60 + bytes.len().next_multiple_of(2);
    }
    for name in defined.iter().flatten() {
        index.extend(name.as_bytes());
        index.push(0);
    }
    index.resize(index_bytes, 0);
    let mut archive = b"!<arch>\n".to_vec();
    archive.extend(header("/", index_bytes).into_bytes());
    archive.extend(index);
    for (name, bytes) in members {
        archive.extend(header(&format!("{name}/"), bytes.len()).into_bytes());
        archive.extend(bytes);
        archive.resize(archive.len().next_multiple_of(2), b'\n');
    }
    archive
}

fn hosts() -> Vec<u8> {
    let mut writer = Writer::new();
    for number in 0..HOSTS {
        let code = Code {
            bytes: vec![0xc3],
            relocations: Vec::new(),
        };
        writer.function(format!("host_{number}"), code, false);
    }
    writer.finish()
}

/// An object whose function `adds` adds `bonus` to its argument, in `len_bytes` of text.
pub(crate) fn adds(bonus: i32, len_bytes: usize) -> Vec<u8> {
    adds_named("adds", bonus, len_bytes)
}

/// The code of [`adds`]: `lea bonus(%rdi), %rax; ret`.
pub(crate) fn adds_code(bonus: i32) -> Vec<u8> {
    [&[0x48, 0x8d, 0x87][..], &bonus.to_le_bytes(), &[0xc3]].concat()
}

/// [`adds`] by another name.
pub(crate) fn adds_named(name: &str, bonus: i32, len_bytes: usize) -> Vec<u8> {
    let mut writer = Writer::new();
    let mut code = Code {
        bytes: adds_code(bonus),
        relocations: Vec::new(),
    };
    code.bytes.resize(len_bytes.max(code.bytes.len()), 0xcc);
    writer.function(name.to_owned(), code, false);
    writer.finish()
}

/// An object whose functions `name_0`.. add 1 to their argument.
pub(crate) fn many_adds(name: &str, count: usize) -> Vec<u8> {
    let mut writer = Writer::new();
    for number in 0..count {
        let code = Code {
            bytes: vec![0x48, 0x8d, 0x47, 1, 0xc3],
            relocations: Vec::new(),
        };
        writer.function(format!("{name}_{number}"), code, false);
    }
    writer.finish()
}

/// An object whose function `sites` calls `name_0`.. each once, through what `r_type` asks for.
pub(crate) fn call_sites(name: &str, count: usize, through_slot: bool) -> Vec<u8> {
    let mut writer = Writer::new();
    // push %rbx; mov %rdi, %rbx, so that the stack is aligned; each callee gets the last one's result
    let mut code = Code {
        bytes: vec![0x53, 0x48, 0x89, 0xf8],
        relocations: Vec::new(),
    };
    for number in 0..count {
        let callee = writer.symbol(format!("{name}_{number}"));
        code.bytes.extend([0x48, 0x89, 0xc7]); // mov %rax, %rdi
        if through_slot {
            code.refer(&[0xff, 0x15], elf::R_X86_64_GOTPCRELX, callee);
        } else {
            code.refer(&[0xe8], elf::R_X86_64_PLT32, callee);
        }
    }
    code.bytes.extend([0x5b, 0xc3]);
    writer.function("sites".to_owned(), code, false);
    writer.finish()
}

/// Stores files in `folder`.
pub(crate) fn store(folder: &Path, files: &[(String, Vec<u8>)]) {
    for (name, bytes) in files {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}

struct Writer {
    object: Object<'static>,
}

impl Writer {
    fn new() -> Self {
        let object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
        Self { object }
    }

    /// A function, defined or not.
    fn symbol(&mut self, name: String) -> SymbolId {
        let known = self.object.symbol_id(name.as_bytes());
        known.unwrap_or_else(|| self.object.add_symbol(undefined(name, SymbolKind::Text)))
    }

    fn datum(&mut self, name: &str) -> SymbolId {
        let section = self.object.section_id(StandardSection::ReadOnlyData);
        // Local, as linkers want what is reached by a displacement to be.
        let datum = self.object.add_symbol(Symbol {
            scope: SymbolScope::Compilation,
            ..undefined(name.to_owned(), SymbolKind::Data)
        });
        self.object.add_symbol_data(datum, section, &[7; 64], 16);
        datum
    }

    fn function(&mut self, name: String, code: Code, own_section: bool) {
        let section = if own_section {
            let text = format!(".text.{name}").into_bytes();
            self.object.add_section(Vec::new(), text, SectionKind::Text)
        } else {
            self.object.section_id(StandardSection::Text)
        };
        let function = self.symbol(name);
        let start = self
            .object
            .add_symbol_data(function, section, &code.bytes, 16);
        for mut relocation in code.relocations {
            relocation.offset += start;
            self.object.add_relocation(section, relocation).unwrap();
        }
    }

    fn finish(self) -> Vec<u8> {
        self.object.write().unwrap()
    }
}

#[derive(Default)]
struct Code {
    bytes: Vec<u8>,
    relocations: Vec<Relocation>,
}

impl Code {
    /// An instruction that ends in a PC-relative field.
    fn refer(&mut self, opcode: &[u8], r_type: u32, symbol: SymbolId) {
        self.bytes.extend(opcode);
        self.relocations.push(Relocation {
            offset: self.bytes.len() as u64,
            symbol,
            addend: -4,
            flags: RelocationFlags::Elf { r_type },
        });
        self.bytes.extend([0; 4]);
    }
}

fn undefined(name: String, kind: SymbolKind) -> Symbol {
    Symbol {
        name: name.into_bytes(),
        value: 0,
        size: 0,
        kind,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Undefined,
        flags: SymbolFlags::None,
    }
}
