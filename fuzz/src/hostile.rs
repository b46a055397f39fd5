//! Hostile inputs: bytes that may be anything. They are refused or linked; they never panic, and cost no more than a
//! fixed multiple of their length. What runs away is for the caller to notice, who sets limits of time and memory.

use jitcast_linker::{Binding, Dialect, Extents, Input, Options, Placement, Prepared, SymbolKind};
use jitcast_oracle::elf::Elf;
use jitcast_oracle::{Judge, Linked, Object};
use jitcast_runtime::{ImportId, PatchTarget, SegmentOffset};
use object::write::SymbolSection;
use object::{SectionKind, SymbolScope, elf};

use crate::session;
use crate::writer::{empty, relocation, symbol};

/// What an input of so many bytes may become at most, bytes of text and read-only data for each: a thunk of 24 bytes,
/// a constant of 8 and alignment up to a page are what a relocation of 24 and a section header of 64 bytes can ask for.
const GROWTH: u64 = 80;

/// Takes `bytes` for an object, and for two of a unit.
pub fn object(bytes: &[u8]) {
    attempt(&[("x.o", bytes)], &Options::default());
    attempt(&[("x.o", bytes), ("y.o", bytes)], &everything());
    oracle(bytes);
}

/// Gives `bytes` to the oracle, as an object and as what was linked from it.
pub fn oracle(bytes: &[u8]) {
    let Ok(elf) = Elf::parse(bytes) else {
        return;
    };
    let objects = [Object {
        name: "x.o",
        elf: elf.clone(),
    }];
    let found = Linked::locate(&objects, &elf, None);
    // Whatever it says.
    let _ = Judge::new(&objects, &found.image, &found.layout).judge();
}

/// Takes `bytes` for an archive whose members are all wanted.
pub fn archive(bytes: &[u8]) {
    attempt(&[("x.a", bytes)], &everything());
    let start = caller();
    attempt(&[("start.o", &start), ("x.a", bytes)], &Options::default());
}

/// Changes an object of the generators as the bytes say, and takes it for one: the first two bytes choose it, then each
/// five are a place and what goes there.
pub fn mutated(bytes: &[u8]) {
    let Some((&[low, high], changes)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let number = u64::from(low) | u64::from(high & 3) << 8;
    let Some(trial) = session::trial(0, number) else {
        return;
    };
    for file in trial.objects().iter().flatten() {
        let mut damaged = file.bytes.clone();
        let len = damaged.len().max(1) as u32;
        for change in changes.chunks_exact(5) {
            let at = u32::from_le_bytes([change[0], change[1], change[2], 0]) % len;
            let (value, how) = (change[3], change[4]);
            if let Some(byte) = damaged.get_mut(at as usize) {
                *byte = match how & 3 {
                    0 => value,
                    1 => byte.wrapping_add(value),
                    2 => *byte ^ 1 << (value & 7),
                    _ => [0, 1, 0x7f, 0x80, 0xff][usize::from(value) % 5],
                };
            }
        }
        object(&damaged);
    }
}

/// An object that calls `f`, for archives to supply.
fn caller() -> Vec<u8> {
    let mut object = empty();
    let section = object.add_section(Vec::new(), b".text".to_vec(), SectionKind::Text);
    object.append_section_data(section, &[0xe8, 0, 0, 0, 0], 1);
    let undefined = SymbolSection::Undefined;
    let callee = object.add_symbol(symbol("f", 0, SymbolScope::Unknown, undefined));
    let relocation = relocation(1, callee, elf::R_X86_64_PLT32, -4);
    // The format has room for every addend.
    let _ = object.add_relocation(section, relocation);
    object.write().unwrap_or_default()
}

/// The caller handles whatever there is.
fn everything() -> Options {
    Options {
        whole_archive: true,
        runs_resolvers: true,
        keeps_unique: true,
        runs_startup: true,
        ..Options::default()
    }
}

/// Reads files as one unit, and links it if it is one.
pub fn attempt(files: &[(&str, &[u8])], options: &Options) {
    let dialect = Dialect::Elf;
    let inputs: Vec<Input<'_>> = files
        .iter()
        .map(|&(name, bytes)| Input {
            name,
            bytes,
            dialect,
        })
        .collect();
    let Ok(prepared) = Prepared::read("unit", &inputs, options) else {
        return;
    };
    let len_bytes: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    let Extents {
        text,
        read_only,
        private,
        shared: _,
    } = prepared.extents();
    let made = text.len_bytes + read_only.len_bytes;
    assert!(
        made <= GROWTH * (len_bytes as u64 + 64),
        "{len_bytes} bytes became {made} of text and read-only data"
    );
    let at = Placement {
        text: SegmentOffset::new(0x1000_0000),
        read_only: SegmentOffset::new(0x2000_0000),
        private: SegmentOffset::new(0x3000_0000),
        shared: SegmentOffset::new(0x6000_0000),
        number: 1,
    };
    let bindings: Vec<Binding> = (0..)
        .zip(prepared.references())
        .map(binding(&prepared))
        .collect();
    // Damage may well have made a value that does not fit.
    if let Ok(linked) = prepared.link(&at, &bindings) {
        let inside = |site: u32| {
            let start = at.private.get();
            site >= start && u64::from(site - start) + 8 <= private.len_bytes
        };
        assert!(
            linked.patches.iter().all(|patch| inside(patch.site.get())),
            "a patch outside private data"
        );
    }
}

/// Cells and a stub for every reference.
fn binding<'p>(
    prepared: &'p Prepared<'_>,
) -> impl Fn((u32, &jitcast_linker::Reference<'p>)) -> Binding {
    |(number, reference)| {
        let at =
            |start: u32, stride: u32| SegmentOffset::new(start + number.min(0xf_ffff) * stride);
        let own = reference
            .own
            .map(|definition| prepared.definitions()[definition].kind);
        let target = match own {
            Some(SymbolKind::Function) => PatchTarget::Window(at(0x400_0000, 8)),
            _ => PatchTarget::Host(ImportId::new(number)),
        };
        Binding {
            target,
            call_cell: Some(at(0x1000, 16)),
            address_cell: Some(at(0x1008, 16)),
            stub: Some(at(0x400_0000, 8)),
            block_offset: None,
        }
    }
}
