//! Object files made without a compiler.

use object::write::{Object, Relocation, StandardSection, Symbol, SymbolId, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, RelocationFlags, SymbolFlags, SymbolKind, SymbolScope,
};

/// `lea 1(%rdi), %rax; ret`.
pub(crate) const PLUS_ONE: [u8; 5] = [0x48, 0x8d, 0x47, 0x01, 0xc3];

/// `lea x(%rip), %rax; ret`, with the field at byte 3.
pub(crate) const ADDRESS_OF: [u8; 8] = [0x48, 0x8d, 0x05, 0, 0, 0, 0, 0xc3];

/// An object in the making.
pub(crate) struct Maker(Object<'static>);

impl Maker {
    pub(crate) fn new() -> Self {
        let (format, machine) = (BinaryFormat::Elf, Architecture::X86_64);
        Self(Object::new(format, machine, Endianness::Little))
    }

    /// Adds the global function `name`.
    pub(crate) fn function(mut self, name: &str, code: &[u8]) -> Self {
        self.define(name, StandardSection::Text, SymbolKind::Text, code);
        self
    }

    /// Adds the global read-only datum `name`.
    pub(crate) fn read_only(mut self, name: &str, bytes: &[u8]) -> Self {
        self.define(name, StandardSection::ReadOnlyData, SymbolKind::Data, bytes);
        self
    }

    /// Adds a function whose `field` refers to `target`, which is undefined unless it was added before.
    pub(crate) fn referring(
        mut self,
        name: &str,
        code: &[u8],
        (field, target, r_type, addend): (u64, &str, u32, i64),
    ) -> Self {
        let start = self.define(name, StandardSection::Text, SymbolKind::Text, code);
        let symbol = self.symbol(target);
        let section = self.0.section_id(StandardSection::Text);
        let relocation = Relocation {
            offset: start + field,
            symbol,
            addend,
            flags: RelocationFlags::Elf { r_type },
        };
        self.0.add_relocation(section, relocation).unwrap();
        self
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0.write().unwrap()
    }

    fn define(&mut self, name: &str, at: StandardSection, kind: SymbolKind, bytes: &[u8]) -> u64 {
        let section = self.0.section_id(at);
        let symbol = self.0.add_symbol(symbol(name, kind));
        self.0.add_symbol_data(symbol, section, bytes, 16)
    }

    fn symbol(&mut self, name: &str) -> SymbolId {
        match self.0.symbol_id(name.as_bytes()) {
            Some(known) => known,
            None => self.0.add_symbol(symbol(name, SymbolKind::Unknown)),
        }
    }
}

fn symbol(name: &str, kind: SymbolKind) -> Symbol {
    Symbol {
        name: name.as_bytes().to_vec(),
        value: 0,
        size: 0,
        kind,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Undefined,
        flags: SymbolFlags::None,
    }
}
