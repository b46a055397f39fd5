//! Linking without publishing: what a publisher does with the linker, in memory.

use jitcast::linker::{Binding, Dialect, Input, Linked, Options, Placement, Prepared};
use jitcast::runtime::{ImportId, PatchTarget, SegmentOffset};

/// The areas of the window, further apart than any unit here is long.
const AREA_BYTES: u32 = 64 << 20;

/// Links `files` as a publisher does, with cells for every reference.
pub(crate) fn link(files: &[(&str, &[u8])]) -> Linked {
    let input = |&(name, bytes)| Input {
        name,
        bytes,
        dialect: Dialect::Elf,
    };
    let inputs: Vec<_> = files.iter().map(input).collect();
    let prepared = Prepared::read("bench", &inputs, &Options::default()).unwrap();
    let bindings: Vec<_> = (0..)
        .zip(prepared.references())
        .map(|(index, reference)| binding(index, reference.own.is_some()))
        .collect();
    let placement = Placement {
        private: SegmentOffset::new(AREA_BYTES),
        text: SegmentOffset::new(3 * AREA_BYTES),
        read_only: SegmentOffset::new(4 * AREA_BYTES),
        shared: SegmentOffset::new(5 * AREA_BYTES),
        number: 1,
    };
    prepared.link(&placement, &bindings).unwrap()
}

fn binding(index: u32, own: bool) -> Binding {
    let stub = SegmentOffset::new(2 * AREA_BYTES + index * 16);
    let target = if own {
        PatchTarget::Window(stub)
    } else {
        PatchTarget::Host(ImportId::new(index))
    };
    Binding {
        block_offset: None,
        target,
        call_cell: Some(SegmentOffset::new(index * 16)),
        address_cell: Some(SegmentOffset::new(index * 16 + 8)),
        stub: Some(stub),
    }
}
