//! What a static link would have brought along from the C library (`libc_nonshared.a`): functions that tell it
//! which unit an exit handler belongs to.
//!
//! Each is a member of an archive of ours, pulled by a unit that needs it and defines it not, and hidden in
//! there: so the handle that it passes is the unit's own, and what was registered by a unit runs when that
//! unit is retired (`__cxa_finalize`), or when the process ends.

use std::sync::OnceLock;

use object::write::{Object, Relocation, StandardSection, Symbol, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, RelocationFlags, SymbolFlags, SymbolKind, SymbolScope,
    elf,
};

use crate::front::ar;

/// The name that messages use for it.
pub(crate) const NAME: &str = "jitcast's own support.a";

/// A function, what it calls, and the ModRM byte of the register that takes the handle there.
const FUNCTIONS: [(&str, &str, u8, bool); 3] = [
    // int __cxa_atexit(void (*)(void *), void *, void *handle)
    ("atexit", "__cxa_atexit", 0x15, true),
    // int __cxa_at_quick_exit(void (*)(void *), void *handle)
    ("at_quick_exit", "__cxa_at_quick_exit", 0x35, false),
    // int __register_atfork(void (*)(void), void (*)(void), void (*)(void), void *handle)
    ("pthread_atfork", "__register_atfork", 0x0d, false),
];

/// The archive.
pub(crate) fn archive() -> &'static [u8] {
    static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        let members = FUNCTIONS
            .map(|(name, callee, register, clears)| (name, object(name, callee, register, clears)));
        ar::archive(members.iter().map(|(name, bytes)| (*name, &bytes[..])))
    })
}

/// `endbr64; lea __dso_handle(%rip), %reg; [xor %esi, %esi]; jmp *callee@GOTPCREL(%rip)`.
fn object(name: &str, callee: &str, register: u8, clears: bool) -> Vec<u8> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let mut symbol = |name: &str, kind, scope| {
        object.add_symbol(Symbol {
            name: name.as_bytes().to_vec(),
            value: 0,
            size: 0,
            kind,
            scope,
            weak: false,
            section: SymbolSection::Undefined,
            flags: SymbolFlags::None,
        })
    };
    let function = symbol(name, SymbolKind::Text, SymbolScope::Linkage);
    let handle = symbol("__dso_handle", SymbolKind::Unknown, SymbolScope::Dynamic);
    let callee = symbol(callee, SymbolKind::Unknown, SymbolScope::Dynamic);
    let mut code = vec![0xf3, 0x0f, 0x1e, 0xfa, 0x48, 0x8d, register, 0, 0, 0, 0];
    if clears {
        code.extend_from_slice(&[0x31, 0xf6]);
    }
    code.extend_from_slice(&[0xff, 0x25, 0, 0, 0, 0]);
    let field = code.len() as u64 - 4;
    let section = object.section_id(StandardSection::Text);
    let start = object.add_symbol_data(function, section, &code, 16);
    for (offset, symbol, r_type) in [
        (7, handle, elf::R_X86_64_PC32),
        (field, callee, elf::R_X86_64_GOTPCRELX),
    ] {
        let flags = RelocationFlags::Elf { r_type };
        let relocation = Relocation {
            offset: start + offset,
            symbol,
            addend: -4,
            flags,
        };
        object
            .add_relocation(section, relocation)
            .expect("a relocation of ELF");
    }
    object
        .write()
        .expect("three symbols and a section fit an object")
}

#[cfg(test)]
mod tests {
    use jitcast_linker::{Dialect, Input, Options, Prepared};

    use super::*;

    #[test]
    fn each_is_pulled_by_need_and_passes_the_units_own_handle() {
        for (name, callee, ..) in FUNCTIONS {
            let mut user = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
            let section = user.section_id(StandardSection::Text);
            user.append_section_data(section, &[0xe8, 0, 0, 0, 0], 1);
            let symbol = user.add_symbol(Symbol {
                name: name.into(),
                value: 0,
                size: 0,
                kind: SymbolKind::Unknown,
                scope: SymbolScope::Dynamic,
                weak: false,
                section: SymbolSection::Undefined,
                flags: SymbolFlags::None,
            });
            let flags = RelocationFlags::Elf {
                r_type: elf::R_X86_64_PLT32,
            };
            let relocation = Relocation {
                offset: 1,
                symbol,
                addend: -4,
                flags,
            };
            user.add_relocation(section, relocation).unwrap();
            let user = user.write().unwrap();
            let input = |name, bytes| Input {
                name,
                bytes,
                dialect: Dialect::Elf,
            };
            let inputs = [input("user.o", &user), input(NAME, archive())];
            let prepared = Prepared::read("unit", &inputs, &Options::default()).unwrap();
            let names: Vec<_> = prepared
                .references()
                .iter()
                .map(|found| found.name)
                .collect();
            assert_eq!(names, [callee]);
            assert!(prepared.definitions().is_empty(), "hidden");
        }
    }
}
