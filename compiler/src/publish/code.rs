//! The code that the publisher writes itself: stubs, and traps for missing host symbols.

use jitcast_runtime::geometry::{Area, STUB_BYTES};
use jitcast_runtime::heap::{SegmentFull, Txn};
use jitcast_runtime::records::TRAP_CELL;
use jitcast_runtime::{Geometry, ImportId, SegmentOffset};

/// `endbr64; jmp *cell(%rip)` and traps up to the next stub. A stub's bytes follow from its cell's index, so
/// writing it again changes nothing.
pub(super) fn write_stub(txn: &Txn<'_>, geometry: &Geometry, cell: SegmentOffset) {
    let stub = geometry.stub_of(cell).expect("a call cell has a stub");
    write_stub_at(txn, stub, cell);
}

/// The same, anywhere.
pub(super) fn write_stub_at(txn: &Txn<'_>, stub: SegmentOffset, cell: SegmentOffset) {
    let mut code = [0xcc; STUB_BYTES as usize];
    code[..6].copy_from_slice(&[0xf3, 0x0f, 0x1e, 0xfa, 0xff, 0x25]);
    code[6..10].copy_from_slice(&rel32(cell, stub, 10).to_le_bytes());
    txn.memory().write_bytes(stub, &code);
}

/// Length of the trap of a host symbol, bytes.
pub(super) const TRAP_BYTES: u32 = 24;

/// Code that reports import number `id` as missing: it hands the number and the base of the window to the
/// worker's handler, which the first call cell leads to.
pub(super) fn write_import_trap(
    txn: &mut Txn<'_>,
    id: ImportId,
) -> Result<SegmentOffset, SegmentFull> {
    let at = txn.alloc(Area::Text, TRAP_BYTES, 16)?.offset();
    write_import_trap_at(txn, at, id);
    Ok(at)
}

/// The same, anywhere.
pub(super) fn write_import_trap_at(txn: &Txn<'_>, at: SegmentOffset, id: ImportId) {
    let mut code = [0xcc; TRAP_BYTES as usize];
    code[..4].copy_from_slice(&[0xf3, 0x0f, 0x1e, 0xfa]); // endbr64
    code[4] = 0xbf; // mov $id, %edi
    code[5..9].copy_from_slice(&id.get().to_le_bytes());
    code[9..12].copy_from_slice(&[0x48, 0x8d, 0x35]); // lea base(%rip), %rsi
    code[12..16].copy_from_slice(&rel32(SegmentOffset::new(0), at, 16).to_le_bytes());
    code[16..18].copy_from_slice(&[0xff, 0x25]); // jmp *trap_cell(%rip)
    code[18..22].copy_from_slice(&rel32(TRAP_CELL, at, 22).to_le_bytes());
    txn.memory().write_bytes(at, &code);
}

/// S - P for an instruction that begins at `at` and whose next begins `len_bytes` further on.
fn rel32(target: SegmentOffset, at: SegmentOffset, len_bytes: i64) -> i32 {
    i32::try_from(target.delta_from(at).get() - len_bytes).expect("a window is shorter than 2 GiB")
}
