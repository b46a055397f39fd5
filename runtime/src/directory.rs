//! Writing the directory: the changes of one publication, from which come a new root and its ring record.
//!
//! Invariant: nothing that an older root reaches is changed; a publication that fails leaves no trace.

use core::sync::atomic::AtomicU64;
use std::collections::BTreeMap;

use zerocopy::IntoBytes;

use crate::addr::SegmentOffset;
use crate::geometry::{Area, Region, SLOT_BYTES};
use crate::heap::{SegmentFull, Txn};
use crate::index;
use crate::memory::{Corrupt, SharedRecord, View};
use crate::records::{
    AskedRecord, CELL_PAGE_BYTES, CELLS_PER_PAGE, CanaryRecord, CellPage, CellValue, ImportRecord, Root, StoredRegion,
    SymbolRecord, TextRecord, UNIT_KEPT, UnitRecord, trailing_text,
};
use crate::ring::{RECORD_WORDS, Record};

/// Cell stores that fit a ring record.
pub const INLINE_OPS: usize = RECORD_WORDS - 2;

/// Flags of a ring record's second word. Its low eight bits count the cell stores, its high half is the
/// root's offset.
pub mod record_flags {
    /// The record does not say everything: read the directory.
    pub const RESYNC: u64 = 1 << 8;
    /// Text was put where other text had been: serialise before entering it.
    pub const SERIALISE: u64 = 1 << 9;
    /// Areas have grown: look at the extents first.
    pub const EXTENTS: u64 = 1 << 10;
    /// Names were added or removed: handles that found nothing look again.
    pub const NAMES: u64 = 1 << 11;
    /// The last record of this object: what follows is in another one, which workers are offered.
    pub const RENEWED: u64 = 1 << 12;
    /// Asked-for units are gone: who has bound some looks whether theirs are among them.
    pub const ASKED: u64 = 1 << 13;
}

/// The root that a record's publication committed.
pub fn record_root(record: &Record) -> SegmentOffset {
    SegmentOffset::new((record[1] >> 32) as u32)
}

/// One cell store, as a word of a ring record: the cell's index, then its value.
pub fn pack_op(cell: SegmentOffset, value: CellValue) -> u64 {
    u64::from(cell.get() / SLOT_BYTES) << CellValue::BITS | value.bits()
}

/// The cell and the value of a packed store.
pub fn unpack_op(op: u64) -> (SegmentOffset, CellValue) {
    let index = (op >> CellValue::BITS) as u32;
    (SegmentOffset::new(index.wrapping_mul(SLOT_BYTES)), CellValue::from_bits(op))
}

const _: () = assert!(crate::geometry::MAX_WINDOW_BYTES / SLOT_BYTES < 1 << (64 - CellValue::BITS));

/// The changes of one publication.
#[derive(Debug)]
pub struct Edit {
    root: Root,
    replaced_root: SegmentOffset,
    cells: BTreeMap<u32, CellValue>,
    flags: u64,
}

impl Edit {
    /// Starts from `root` at `root_at` (none for a fresh segment).
    pub fn new(root: Root, root_at: SegmentOffset) -> Self {
        Self { root, replaced_root: root_at, cells: BTreeMap::new(), flags: 0 }
    }

    /// Raises [`record_flags`].
    pub fn flag(&mut self, flags: u64) {
        self.flags |= flags;
    }

    /// Sets a cell.
    pub fn set_cell(&mut self, cell: SegmentOffset, value: CellValue) {
        self.cells.insert(cell.get() / SLOT_BYTES, value);
    }

    /// Adds a unit, whose key must be new.
    ///
    /// # Errors
    /// [`SegmentFull`].
    pub fn put_unit(&mut self, txn: &mut Txn<'_>, record: &UnitRecord, name: &str) -> Result<(), SegmentFull> {
        let at = write(txn, record, &[name])?;
        self.root.units = index::insert(txn, self.root.units, at)?;
        self.root.unit_count += 1;
        Ok(())
    }

    /// Adds an asked-for unit, whose key must be new. Nobody has to do anything.
    ///
    /// # Errors
    /// [`SegmentFull`].
    pub fn put_asked(&mut self, txn: &mut Txn<'_>, record: &AskedRecord, name: &str) -> Result<(), SegmentFull> {
        let at = write(txn, record, &[name])?;
        self.root.asked = index::insert(txn, self.root.asked, at)?;
        self.root.asked_count += 1;
        Ok(())
    }

    /// Removes an asked-for unit, with its memory.
    ///
    /// # Errors
    /// [`SegmentFull`].
    pub fn remove_asked(&mut self, txn: &mut Txn<'_>, key: u64) -> Result<(), SegmentFull> {
        if let Some(at) = own(index::get(txn.memory(), self.root.asked, key)) {
            let record: AskedRecord = own(txn.memory().read(at));
            self.remove_text(txn, SegmentOffset::new(record.text.start))?;
            let len_bytes = size_of::<AskedRecord>() as u32 + record.name_len;
            let head = StoredRegion { start: at.get(), len_bytes };
            for (area, stored) in [
                (Area::Control, head),
                (Area::Control, record.template),
                (Area::Control, record.patches),
                (Area::Control, record.needs),
                (Area::Control, record.imports),
                (Area::Control, record.functions),
                (Area::Text, record.text),
                (Area::ReadOnly, record.read_only),
                (Area::Private, record.private),
            ] {
                txn.retire(area, Region { start: stored.start, len_bytes: stored.len_bytes });
            }
            self.root.asked = index::remove(txn, self.root.asked, key)?;
            self.root.asked_count -= 1;
            self.flags |= record_flags::ASKED;
        }
        Ok(())
    }

    /// Adds what is known of the text of a unit that is put too.
    ///
    /// # Errors
    /// [`SegmentFull`].
    pub fn put_text(&mut self, txn: &mut Txn<'_>, record: &TextRecord, name: &str) -> Result<(), SegmentFull> {
        let at = write(txn, record, &[name])?;
        self.root.texts = index::insert(txn, self.root.texts, at)?;
        Ok(())
    }

    /// Removes what is known of the text at `text`, with its tables.
    fn remove_text(&mut self, txn: &mut Txn<'_>, text: SegmentOffset) -> Result<(), SegmentFull> {
        let key = index::by_place(text);
        if let Some(at) = own(index::get(txn.memory(), self.root.texts, key)) {
            let record: TextRecord = own(txn.memory().read(at));
            let len_bytes = size_of::<TextRecord>() as u32 + record.name_len;
            for region in [StoredRegion { start: at.get(), len_bytes }, record.frames, record.names] {
                txn.retire(Area::Control, Region { start: region.start, len_bytes: region.len_bytes });
            }
            self.root.texts = index::remove(txn, self.root.texts, key)?;
        }
        Ok(())
    }

    /// Removes a unit. Its memory is not reused if it was published so, or if `keep`.
    ///
    /// # Errors
    /// [`SegmentFull`].
    pub fn remove_unit(
        &mut self,
        txn: &mut Txn<'_>,
        key: u64,
        keep: bool,
    ) -> Result<(), SegmentFull> {
        if let Some(at) = own(index::get(txn.memory(), self.root.units, key)) {
            let record: UnitRecord = own(txn.memory().read(at));
            // Code that is kept may still run, and be unwound through.
            if !keep && record.flags & UNIT_KEPT == 0 {
                self.remove_text(txn, SegmentOffset::new(record.text.start))?;
            }
            retire_unit(txn, at, keep);
            self.root.units = index::remove(txn, self.root.units, key)?;
            self.root.unit_count -= 1;
        }
        Ok(())
    }

    /// Writes the record of a unit again, as of this generation: for those who have left it out so far.
    ///
    /// # Errors
    /// [`SegmentFull`].
    pub fn renew_unit(&mut self, txn: &mut Txn<'_>, key: u64) -> Result<(), SegmentFull> {
        if let Some(at) = own(index::get(txn.memory(), self.root.units, key)) {
            let old: UnitRecord = own(txn.memory().read(at));
            let name = own(trailing_text::<UnitRecord>(txn.memory(), at, 0, old.name_len));
            let record = UnitRecord { generation: txn.generation(), ..old };
            let renewed = write(txn, &record, &[&name])?;
            self.root.units = index::insert(txn, self.root.units, renewed)?;
            let len_bytes = size_of::<UnitRecord>() as u32 + old.name_len;
            txn.retire(Area::Control, Region { start: at.get(), len_bytes });
            self.flags |= record_flags::RESYNC;
        }
        Ok(())
    }

    /// Adds a canary.
    ///
    /// # Errors
    /// [`SegmentFull`].
    pub fn put_canary(&mut self, txn: &mut Txn<'_>, record: &CanaryRecord, label: &str) -> Result<(), SegmentFull> {
        let at = write(txn, record, &[label])?;
        self.root.canaries = index::insert(txn, self.root.canaries, at)?;
        self.flags |= record_flags::RESYNC;
        Ok(())
    }

    /// Removes a canary. Its units and symbols are the caller's to deal with.
    ///
    /// # Errors
    /// [`SegmentFull`].
    pub fn remove_canary(&mut self, txn: &mut Txn<'_>, key: u64) -> Result<(), SegmentFull> {
        if let Some(at) = own(index::get(txn.memory(), self.root.canaries, key)) {
            let record: CanaryRecord = own(txn.memory().read(at));
            let len_bytes = size_of::<CanaryRecord>() as u32 + record.label_len;
            txn.retire(Area::Control, Region { start: at.get(), len_bytes });
            self.root.canaries = index::remove(txn, self.root.canaries, key)?;
            self.flags |= record_flags::RESYNC;
        }
        Ok(())
    }

    /// Adds a symbol of a canary, or replaces the one of the same name.
    ///
    /// # Errors
    /// [`SegmentFull`].
    pub fn put_overlay(
        &mut self,
        txn: &mut Txn<'_>,
        record: &SymbolRecord,
        name: &str,
        signature: &str,
    ) -> Result<(), SegmentFull> {
        if let Some(old) = own(index::get(txn.memory(), self.root.overlay, record.key)) {
            retire_symbol(txn, old);
        }
        let at = write(txn, record, &[name, signature])?;
        self.root.overlay = index::insert(txn, self.root.overlay, at)?;
        self.flags |= record_flags::RESYNC;
        Ok(())
    }

    /// The record of a canary's symbol.
    pub fn overlay(&self, txn: &Txn<'_>, key: u64) -> Option<SymbolRecord> {
        let at = own(index::get(txn.memory(), self.root.overlay, key))?;
        Some(own(txn.memory().read(at)))
    }

    /// Removes a symbol of a canary.
    ///
    /// # Errors
    /// [`SegmentFull`].
    pub fn remove_overlay(&mut self, txn: &mut Txn<'_>, key: u64) -> Result<(), SegmentFull> {
        if let Some(old) = own(index::get(txn.memory(), self.root.overlay, key)) {
            retire_symbol(txn, old);
            self.root.overlay = index::remove(txn, self.root.overlay, key)?;
            self.flags |= record_flags::RESYNC;
        }
        Ok(())
    }

    /// Adds a symbol, or replaces the one of the same name.
    ///
    /// # Errors
    /// [`SegmentFull`].
    pub fn put_symbol(
        &mut self,
        txn: &mut Txn<'_>,
        record: &SymbolRecord,
        name: &str,
        signature: &str,
    ) -> Result<(), SegmentFull> {
        match own(index::get(txn.memory(), self.root.symbols, record.key)) {
            Some(old) => retire_symbol(txn, old),
            None => {
                self.root.symbol_count += 1;
                self.flags |= record_flags::NAMES;
            }
        }
        let at = write(txn, record, &[name, signature])?;
        self.root.symbols = index::insert(txn, self.root.symbols, at)?;
        Ok(())
    }

    /// The record of a published symbol.
    pub fn symbol(&self, txn: &Txn<'_>, key: u64) -> Option<SymbolRecord> {
        let at = own(index::get(txn.memory(), self.root.symbols, key))?;
        Some(own(txn.memory().read(at)))
    }

    /// Removes a symbol.
    ///
    /// # Errors
    /// [`SegmentFull`].
    pub fn remove_symbol(&mut self, txn: &mut Txn<'_>, key: u64) -> Result<(), SegmentFull> {
        if let Some(old) = own(index::get(txn.memory(), self.root.symbols, key)) {
            retire_symbol(txn, old);
            self.root.symbols = index::remove(txn, self.root.symbols, key)?;
            self.root.symbol_count -= 1;
            // Handles of the name must let go of its cell, which only a look at the directory tells.
            self.flags |= record_flags::NAMES | record_flags::RESYNC;
        }
        Ok(())
    }

    /// Adds an import, or replaces the record of the same number.
    ///
    /// # Errors
    /// [`SegmentFull`].
    pub fn put_import(&mut self, txn: &mut Txn<'_>, record: &ImportRecord, name: &str) -> Result<(), SegmentFull> {
        match own(index::get(txn.memory(), self.root.imports, record.key)) {
            Some(old) => {
                let len_bytes = size_of::<ImportRecord>() as u32 + own(txn.memory().read::<ImportRecord>(old)).name_len;
                txn.retire(Area::Control, Region { start: old.get(), len_bytes });
            }
            None => self.root.import_count += 1,
        }
        let at = write(txn, record, &[name])?;
        self.root.imports = index::insert(txn, self.root.imports, at)?;
        self.flags |= record_flags::RESYNC;
        Ok(())
    }

    /// Writes the pages of cells and, last, the root, with the time that it is then. What it returns is committed by storing the
    /// root, then publishing the record.
    ///
    /// # Errors
    /// [`SegmentFull`].
    pub fn finish(
        mut self,
        txn: &mut Txn<'_>,
        now_ns: impl FnOnce() -> u64,
    ) -> Result<(Root, SegmentOffset, Record), SegmentFull> {
        self.write_pages(txn)?;
        if !self.replaced_root.is_none() {
            let len_bytes = size_of::<Root>() as u32;
            txn.retire(Area::Control, Region { start: self.replaced_root.get(), len_bytes });
        }
        let at = txn.alloc(Area::Control, size_of::<Root>() as u32, 8)?.offset();
        self.root.generation = txn.generation();
        self.root.published_ns = now_ns();
        if txn.reused_text() {
            self.root.reused_text = txn.generation();
            self.flags |= record_flags::SERIALISE;
        }
        txn.memory().write(at, &self.root);
        Ok((self.root, at, self.record(txn.generation(), at)))
    }

    fn record(&self, generation: u64, root_at: SegmentOffset) -> Record {
        let mut record = [0; RECORD_WORDS];
        record[0] = generation;
        record[1] = u64::from(root_at.get()) << 32 | self.flags;
        if self.cells.len() > INLINE_OPS {
            record[1] |= record_flags::RESYNC;
        } else if self.flags & record_flags::RESYNC == 0 {
            record[1] |= self.cells.len() as u64;
            for (word, (&index, &value)) in record[2..].iter_mut().zip(&self.cells) {
                *word = pack_op(SegmentOffset::new(index * SLOT_BYTES), value);
            }
        }
        record
    }

    fn write_pages(&mut self, txn: &mut Txn<'_>) -> Result<(), SegmentFull> {
        let keys = self.cells.keys().map(|index| index / CELLS_PER_PAGE);
        let mut keys: Vec<_> = keys.collect();
        keys.dedup();
        // Whoever attaches reads all of them.
        let places = txn.alloc_together(&vec![CELL_PAGE_BYTES; keys.len()])?;
        let mut cells = self.cells.iter().peekable();
        for (key, place) in keys.into_iter().zip(&places) {
            let mut page = CellPage { key: key.into(), generation: txn.generation(), values: [0; 64] };
            if let Some(old) = own(index::get(txn.memory(), self.root.cells, page.key)) {
                page.values = own(read_page(txn.memory(), old)).values;
                txn.retire(Area::Control, Region { start: old.get(), len_bytes: CELL_PAGE_BYTES });
            }
            while let Some((index, value)) = cells.next_if(|(index, _)| **index / CELLS_PER_PAGE == key) {
                page.values[(index % CELLS_PER_PAGE) as usize] = value.bits();
            }
            let at = place.offset();
            let head = [page.key, page.generation];
            txn.memory().write_bytes(at, head.as_bytes());
            let values = at.checked_add(16).expect("inside the area");
            txn.memory().write_bytes(values, page.values.as_bytes());
        }
        let pages: Vec<_> = places.iter().map(|place| place.offset()).collect();
        self.root.cells = index::insert_all(txn, self.root.cells, &pages)?;
        Ok(())
    }
}

/// Reads a page of cells.
///
/// # Errors
/// [`Corrupt`] if it is not readable.
pub fn read_page(view: &View, at: SegmentOffset) -> Result<CellPage, Corrupt> {
    let page = PageInPlace::at(view, at)?;
    let mut values = [0; CELLS_PER_PAGE as usize];
    for (value, found) in values.iter_mut().zip(page.values) {
        *value = crate::memory::load(found);
    }
    Ok(CellPage { key: page.key(), generation: crate::memory::load(page.generation), values })
}

/// A page of cells where it lies, for whoever looks at each value once.
#[derive(Clone, Copy, Debug)]
pub struct PageInPlace<'a> {
    key: &'a AtomicU64,
    generation: &'a AtomicU64,
    values: &'a [AtomicU64],
}

impl<'a> PageInPlace<'a> {
    /// The page at `at`.
    ///
    /// # Errors
    /// [`Corrupt`] if it is not readable.
    #[inline]
    pub fn at(view: &'a View, at: SegmentOffset) -> Result<Self, Corrupt> {
        match view.words(at, CELL_PAGE_BYTES as usize / 8)? {
            [key, generation, values @ ..] => Ok(Self { key, generation, values }),
            _ => Err(Corrupt { what: "page of cells", at }),
        }
    }

    /// The number of its first cell / [`CELLS_PER_PAGE`].
    #[inline]
    pub fn key(&self) -> u64 {
        crate::memory::load(self.key)
    }

    /// What its [`CELLS_PER_PAGE`] cells hold.
    #[inline]
    pub fn values(&self) -> impl Iterator<Item = CellValue> + Clone + use<'a> {
        self.values.iter().map(|value| CellValue::from_bits(crate::memory::load(value)))
    }
}

fn write<R: SharedRecord>(txn: &mut Txn<'_>, record: &R, texts: &[&str]) -> Result<SegmentOffset, SegmentFull> {
    let mut bytes = record.as_bytes().to_vec();
    texts.iter().for_each(|text| bytes.extend_from_slice(text.as_bytes()));
    let region = txn.alloc(Area::Control, bytes.len() as u32, 8)?;
    txn.memory().write_bytes(region.offset(), &bytes);
    Ok(region.offset())
}

fn retire_symbol(txn: &mut Txn<'_>, at: SegmentOffset) {
    let record: SymbolRecord = own(txn.memory().read(at));
    let len_bytes = size_of::<SymbolRecord>() as u32 + record.name_len + record.signature_len;
    txn.retire(Area::Control, Region { start: at.get(), len_bytes });
}

fn retire_unit(txn: &mut Txn<'_>, at: SegmentOffset, keep: bool) {
    let record: UnitRecord = own(txn.memory().read(at));
    let len_bytes = size_of::<UnitRecord>() as u32 + record.name_len;
    txn.retire(Area::Control, Region { start: at.get(), len_bytes });
    let tables = [record.template, record.patches, record.needs, record.init, record.fini, record.shared_template];
    for table in tables {
        txn.retire(Area::Control, Region { start: table.start, len_bytes: table.len_bytes });
    }
    if !keep && record.flags & UNIT_KEPT == 0 {
        for (area, stored) in [
            (Area::Text, record.text),
            (Area::ReadOnly, record.read_only),
            (Area::Private, record.private),
            (Area::SharedData, record.shared),
        ] {
            txn.retire(area, Region { start: stored.start, len_bytes: stored.len_bytes });
        }
    }
}

/// The compiler process is the only writer of the directory; what it reads back is what it wrote.
fn own<T>(result: Result<T, Corrupt>) -> T {
    result.expect("the single writer's own directory is intact")
}
