//! What the directory's tables hold: units, symbols, imports, pages of cells, and the root over them.
//!
//! FORMAT.md draws these bytes. Invariant: records are immutable once a root that reaches them is
//! committed; what replaces one is a new record, and the old one is retired like text. All but the root begin
//! with their key and the generation that wrote them ([`index`](crate::index) relies on it).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::SegmentOffset;
use crate::geometry::Region;
use crate::memory::{Corrupt, SharedRecord, View};
use crate::patch::{ImportId, PatchTarget};

/// The longest name of a symbol or unit, bytes.
pub const MAX_NAME_BYTES: usize = 64 << 10;

/// Cells in a page of cells.
pub const CELLS_PER_PAGE: u32 = 64;

/// The directory: everything that is published, at one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Root {
    /// The generation of the publication that wrote it.
    pub generation: u64,
    /// `CLOCK_MONOTONIC` at its commit, ns.
    pub published_ns: u64,
    /// The newest generation that put text where other text had been.
    pub reused_text: u64,
    /// Index of [`SymbolRecord`]s by the hash of their names.
    pub symbols: SegmentOffset,
    /// Index of [`UnitRecord`]s by number.
    pub units: SegmentOffset,
    /// Index of [`CellPage`]s by number.
    pub cells: SegmentOffset,
    /// Index of [`ImportRecord`]s by number.
    pub imports: SegmentOffset,
    /// How many units there are.
    pub unit_count: u32,
    /// How many symbols there are.
    pub symbol_count: u32,
    /// How many imports there are.
    pub import_count: u32,
    /// Index of [`TextRecord`]s by the places that they begin at ([`index::floor`](crate::index::floor)).
    pub texts: SegmentOffset,
    /// Index of the [`SymbolRecord`]s of canaries, by the hash of their names: each counts in place of the one in `symbols`
    /// for workers that are in the audience of its unit's canary.
    pub overlay: SegmentOffset,
    /// Index of [`CanaryRecord`]s by number.
    pub canaries: SegmentOffset,
    /// Index of [`AskedRecord`]s by number.
    pub asked: SegmentOffset,
    /// How many asked-for units there are.
    pub asked_count: u32,
}

/// A range of window offsets, as it lies in the segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[cfg_attr(feature = "create", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct StoredRegion {
    /// First offset, bytes.
    pub start: u32,
    /// Length, bytes.
    pub len_bytes: u32,
}

impl From<Region> for StoredRegion {
    fn from(region: Region) -> Self {
        Self { start: region.start, len_bytes: region.len_bytes }
    }
}

impl StoredRegion {
    /// The range, if it does not wrap.
    pub fn region(self) -> Option<Region> {
        Region::new(self.start, self.len_bytes)
    }
}

/// A unit. Its name follows the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UnitRecord {
    /// The unit's number; a new version has a new one.
    pub key: u64,
    /// The generation that published it.
    pub generation: u64,
    /// Its text.
    pub text: StoredRegion,
    /// Its read-only data.
    pub read_only: StoredRegion,
    /// Its private data.
    pub private: StoredRegion,
    /// The initial bytes of its private data (in control); the rest is zero.
    pub template: StoredRegion,
    /// Its [`Patch`](crate::Patch)es (in control).
    pub patches: StoredRegion,
    /// Its [`Needs`](crate::needs) (in control).
    pub needs: StoredRegion,
    /// Its constructors (in control): 32-bit offsets of slots of its private data, in the order in which they run.
    pub init: StoredRegion,
    /// Its destructors, likewise.
    pub fini: StoredRegion,
    /// Its shared data.
    pub shared: StoredRegion,
    /// The initial bytes of its shared data (in control); the rest is zero. For the compiler process, which fills them.
    pub shared_template: StoredRegion,
    /// Length of the name, bytes.
    pub name_len: u32,
    /// [`UNIT_KEPT`].
    pub flags: u32,
    /// Its [module](crate::module) (in private data), which is also what it is to `__cxa_finalize`; none if it
    /// has neither thread-local storage nor exit handlers.
    pub module: SegmentOffset,
    /// Zero.
    pub reserved: u32,
}

/// [`UnitRecord::flags`]: the memory is not reused after the unit is replaced, since addresses of its
/// locals may have been handed out.
pub const UNIT_KEPT: u32 = 1;

/// A unit that workers have asked for. It publishes no names, and only those bind it that asked. Cells and stubs for what it
/// refers to are its own: at the ends of its private data and its text. Its name follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AskedRecord {
    /// The unit's number, of the same sequence as those of published units.
    pub key: u64,
    /// The generation that wrote the record.
    pub generation: u64,
    /// Its text.
    pub text: StoredRegion,
    /// Its read-only data.
    pub read_only: StoredRegion,
    /// Its private data.
    pub private: StoredRegion,
    /// The private data's initial bytes (in control); the rest is zero.
    pub template: StoredRegion,
    /// Its patches (in control).
    pub patches: StoredRegion,
    /// Its [`Needs`](crate::needs) (in control).
    pub needs: StoredRegion,
    /// The host symbols that are bound for it alone (in control): [`AskedImport`]s.
    pub imports: StoredRegion,
    /// Its functions (in control): [`AskedFunction`]s.
    pub functions: StoredRegion,
    /// Length of the name, bytes.
    pub name_len: u32,
    /// Zero.
    pub reserved: u32,
}

/// A host symbol of an asked-for unit. Its name follows, filled up to a multiple of eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AskedImport {
    /// The import's number, of the same sequence as those of published units' imports.
    pub number: u32,
    /// Code that reports it as missing.
    pub trap: SegmentOffset,
    /// 1: weak, and so 0 where it is missing.
    pub weak: u32,
    /// Length of the name, bytes.
    pub name_len: u32,
}

/// A function of an asked-for unit. Its name and the text of its signature follow, filled up to a multiple of eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AskedFunction {
    /// Where it begins.
    pub place: SegmentOffset,
    /// The node of its code in the unit's needs.
    pub node: u32,
    /// Length of the name, bytes.
    pub name_len: u32,
    /// Length of the signature's text, bytes; 0: unknown.
    pub signature_len: u32,
}

/// A record that is followed by texts, in a table of such.
pub trait Texts: SharedRecord {
    /// The lengths of its texts, bytes.
    fn lens(&self) -> [u32; 2];
}

impl Texts for AskedImport {
    fn lens(&self) -> [u32; 2] {
        [self.name_len, 0]
    }
}

impl Texts for AskedFunction {
    fn lens(&self) -> [u32; 2] {
        [self.name_len, self.signature_len]
    }
}

/// Adds a record and its texts to a table.
pub fn push_texts<R: Texts>(table: &mut Vec<u8>, record: &R, texts: &[&str]) {
    table.extend_from_slice(record.as_bytes());
    texts.iter().for_each(|text| table.extend_from_slice(text.as_bytes()));
    table.resize(table.len().next_multiple_of(8), 0);
}

/// Gives every record of a table, with its texts, to `visit`, in order.
///
/// # Errors
/// [`Corrupt`] if it is no such table; what `visit` says.
pub fn walk_texts<R: Texts, E: From<Corrupt>>(
    view: &View,
    table: StoredRegion,
    visit: &mut impl FnMut(R, [String; 2]) -> Result<(), E>,
) -> Result<(), E> {
    let corrupt = || Corrupt { what: "table of an asked-for unit", at: SegmentOffset::new(table.start) };
    let region = table.region().ok_or_else(corrupt)?;
    let mut at = region.start;
    while at < region.end() {
        let record_at = SegmentOffset::new(at);
        let record: R = view.read(record_at)?;
        let [first, second] = record.lens();
        let texts = [
            trailing_text::<R>(view, record_at, 0, first)?,
            trailing_text::<R>(view, record_at, first, second)?,
        ];
        // Both are within the limit of a name, so nothing wraps here.
        let len_bytes = (size_of::<R>() as u32 + first + second).next_multiple_of(8);
        at = at.checked_add(len_bytes).filter(|at| *at <= region.end()).ok_or_else(corrupt)?;
        visit(record, texts)?;
    }
    Ok(())
}

/// What is known of a unit's text while anybody may run it: longer than the unit is published, if it is kept.
/// The unit's name follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TextRecord {
    /// Where the text begins ([`index::by_place`](crate::index::by_place)).
    pub key: u64,
    /// The generation that published it.
    pub generation: u64,
    /// The text.
    pub text: StoredRegion,
    /// Its unwind records, an `.eh_frame` section; empty if it has none.
    pub eh_frame: StoredRegion,
    /// Table of the functions that can be unwound through ([`frames`](crate::frames), in control).
    pub frames: StoredRegion,
    /// Table of the functions' names ([`frames`](crate::frames), in control).
    pub names: StoredRegion,
    /// The unit's number.
    pub unit: u32,
    /// Length of the unit's name, bytes.
    pub name_len: u32,
}

/// A published name. The name and then the canonical text of its signature follow the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SymbolRecord {
    /// The hash of the name ([`hash_name`]).
    pub key: u64,
    /// The generation that wrote the record.
    pub generation: u64,
    /// `st_size`, bytes; the value of an absolute symbol; the offset of a thread-local one in its unit's block.
    pub size: u64,
    /// The number of the unit that defines it.
    pub unit: u32,
    /// [`SYMBOL_FUNCTION`], [`SYMBOL_DATA`], [`SYMBOL_ABSOLUTE`] or [`SYMBOL_THREAD_LOCAL`].
    pub kind: u32,
    /// Where the definition is; the module of a thread-local symbol's unit.
    pub place: SegmentOffset,
    /// The canonical address of a function.
    pub stub: SegmentOffset,
    /// The call cell of a function.
    pub call_cell: SegmentOffset,
    /// The address cell, if somebody asked for one.
    pub address_cell: SegmentOffset,
    /// The node of its code in the unit's needs.
    pub node: u32,
    /// Length of the name, bytes.
    pub name_len: u32,
    /// Length of the signature's text, bytes; 0: unknown.
    pub signature_len: u32,
    /// [`SYMBOL_QUARANTINED`], [`SYMBOL_HIDDEN`].
    pub flags: u32,
}

/// [`SymbolRecord::flags`]: in the overlay: a name that the canary's version does not publish any more.
pub const SYMBOL_HIDDEN: u32 = 2;

/// [`SymbolRecord::flags`]: a function that is not to be reached: handles lead to their hosts' fallbacks.
pub const SYMBOL_QUARANTINED: u32 = 1;

/// [`SymbolRecord::kind`]: code.
pub const SYMBOL_FUNCTION: u32 = 0;
/// [`SymbolRecord::kind`]: a datum.
pub const SYMBOL_DATA: u32 = 1;
/// [`SymbolRecord::kind`]: a number.
pub const SYMBOL_ABSOLUTE: u32 = 2;
/// [`SymbolRecord::kind`]: a datum of each thread's own.
pub const SYMBOL_THREAD_LOCAL: u32 = 3;

/// A host symbol that published code refers to. Its name follows the record ([`HostName`](crate::host_name::HostName)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ImportRecord {
    /// The import's number.
    pub key: u64,
    /// The generation that wrote the record.
    pub generation: u64,
    /// Code that reports the import as missing; what its cells hold in a worker that lacks it.
    pub trap: SegmentOffset,
    /// The call cell, if somebody asked for one.
    pub call_cell: SegmentOffset,
    /// The address cell, if somebody asked for one.
    pub address_cell: SegmentOffset,
    /// 1: weak, and so 0 where it is missing.
    pub weak: u32,
    /// Length of the name, bytes.
    pub name_len: u32,
    /// What it is where the host lacks it: the segment's own copy of what is unique in a process; none for
    /// other imports.
    pub fallback: SegmentOffset,
}

/// A canary: units that only its audience runs, until it is promoted or aborted. The label of the audience follows the record.
///
/// Its units and texts are in the root's indexes like all others; its symbols are in [`Root::overlay`], and what their call cells
/// hold in the audience follows from these: pages of cells say what everybody else's hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CanaryRecord {
    /// Its number: the generation that began it.
    pub key: u64,
    /// The generation that wrote the record.
    pub generation: u64,
    /// The number of its first unit; the others have the next ones.
    pub first_unit: u32,
    /// How many units it has.
    pub unit_count: u32,
    /// The audience: workers whose [seat](crate::mailbox::Word::Seat) is below this; 0: those with the label.
    pub seats: u32,
    /// Length of the label, bytes.
    pub label_len: u32,
}

impl CanaryRecord {
    /// Whether the unit of this number is one of its own.
    pub fn has_unit(&self, number: u32) -> bool {
        number.checked_sub(self.first_unit).is_some_and(|index| index < self.unit_count)
    }

    /// Whether a worker at `seat` (`None`: it has none) is in its audience, whose label, if it has one, is `wanted`.
    pub fn is_for(&self, wanted: &str, seat: Option<u32>, label: &str) -> bool {
        match self.seats {
            0 => wanted == label,
            seats => seat.is_some_and(|seat| seat < seats),
        }
    }
}

/// The values of [`CELLS_PER_PAGE`] consecutive cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellPage {
    /// The number of its first cell / [`CELLS_PER_PAGE`].
    pub key: u64,
    /// The generation that wrote it.
    pub generation: u64,
    /// [`CellValue`]s.
    pub values: [u64; CELLS_PER_PAGE as usize],
}

/// Size of a [`CellPage`] in the segment, bytes.
pub const CELL_PAGE_BYTES: u32 = 16 + CELLS_PER_PAGE * 8;

// SAFETY: numbers and offsets.
unsafe impl SharedRecord for Root {}
// SAFETY: numbers and offsets.
unsafe impl SharedRecord for UnitRecord {}
// SAFETY: numbers and offsets.
unsafe impl SharedRecord for TextRecord {}
// SAFETY: numbers and offsets.
unsafe impl SharedRecord for SymbolRecord {}
// SAFETY: numbers and offsets.
unsafe impl SharedRecord for ImportRecord {}
// SAFETY: numbers and offsets.
unsafe impl SharedRecord for AskedRecord {}
// SAFETY: numbers and an offset.
unsafe impl SharedRecord for AskedImport {}
// SAFETY: numbers and an offset.
unsafe impl SharedRecord for AskedFunction {}
// SAFETY: numbers.
unsafe impl SharedRecord for CanaryRecord {}

const _: () = assert!(size_of::<Root>() == 72);
const _: () = assert!(size_of::<UnitRecord>() == 112);
const _: () = assert!(size_of::<TextRecord>() == 56);
const _: () = assert!(size_of::<SymbolRecord>() == 56 + 8);
const _: () = assert!(size_of::<ImportRecord>() == 40);
const _: () = assert!(size_of::<AskedRecord>() == 88);
const _: () = assert!(size_of::<AskedImport>() == 16);
const _: () = assert!(size_of::<AskedFunction>() == 16);
const _: () = assert!(size_of::<CanaryRecord>() == 32);

/// The call cell that the segment's traps jump through: each worker stores its handler there when it attaches.
pub const TRAP_CELL: SegmentOffset = SegmentOffset::new(0);

/// What a cell holds: a place in the window or a host symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellValue(u64);

impl CellValue {
    /// The bits that one value takes.
    pub const BITS: u32 = 36;
    /// Nothing: the worker stores the address of its trap.
    pub const UNBOUND: Self = Self(0);
    /// A function that is not to be reached: the worker stores the address of another trap.
    pub const QUARANTINED: Self = Self(3 << 32);

    /// The value that leads to `target`.
    pub fn new(target: PatchTarget) -> Self {
        match target {
            PatchTarget::Window(offset) => Self(1 << 32 | u64::from(offset.get())),
            PatchTarget::Host(import) => Self(2 << 32 | u64::from(import.get())),
        }
    }

    /// The value with these bits; anything beyond [`CellValue::BITS`] is cut off.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits & ((1 << Self::BITS) - 1))
    }

    /// The value as bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Where it leads; `None`: unbound or quarantined (or a kind that this version does not write).
    #[inline]
    pub fn target(self) -> Option<PatchTarget> {
        let payload = self.0 as u32;
        match self.0 >> 32 {
            1 => Some(PatchTarget::Window(SegmentOffset::new(payload))),
            2 => Some(PatchTarget::Host(ImportId::new(payload))),
            _ => None,
        }
    }
}

/// The hash under which a name is found: xxh3-64, seeded per segment.
pub fn hash_name(name: &[u8], seed: u64) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(name, seed)
}

/// Reads the text of `len_bytes` that follows the record `R` at `at`, `skip` bytes further on.
///
/// # Errors
/// [`Corrupt`] if it is too long, not readable or not UTF-8.
pub fn trailing_text<R>(
    view: &View,
    at: SegmentOffset,
    skip: u32,
    len_bytes: u32,
) -> Result<String, Corrupt> {
    let corrupt = Corrupt { what: "name", at };
    let (skip, len) = (skip as usize, len_bytes as usize);
    if len > MAX_NAME_BYTES || skip > MAX_NAME_BYTES {
        return Err(corrupt);
    }
    let start = at.checked_add(size_of::<R>() as u64).ok_or(corrupt)?;
    let mut bytes = view.bytes(start, skip + len)?;
    String::from_utf8(bytes.split_off(skip)).map_err(|_| corrupt)
}
