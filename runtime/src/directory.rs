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
    units: Changes,
    asked: Changes,
    texts: Changes,
    canaries: Changes,
    overlay: Changes,
    symbols: Changes,
    imports: Changes,
    flags: u64,
}

/// What becomes of the records of one index: under each key that changes the new one, or none. They are put into the index all at
/// once, so that each of its nodes is written once.
#[derive(Debug, Default)]
struct Changes(BTreeMap<u64, SegmentOffset>);

impl Changes {
    /// The record under `key`, of the index at `root` with the changes so far.
    fn get(&self, txn: &Txn<'_>, root: SegmentOffset, key: u64) -> Option<SegmentOffset> {
        match self.0.get(&key) {
            Some(record) => Some(*record).filter(|record| !record.is_none()),
            None => own(index::get(txn.memory(), root, key)),
        }
    }

    fn put(&mut self, key: u64, record: SegmentOffset) {
        self.0.insert(key, record);
    }

    fn remove(&mut self, key: u64) {
        self.0.insert(key, SegmentOffset::NONE);
    }

    /// Makes the index at `root` what it becomes.
    fn apply(self, txn: &mut Txn<'_>, root: &mut SegmentOffset) -> Result<(), SegmentFull> {
        let mut changes: Vec<_> = self.0.into_iter().collect();
        *root = index::change(txn, *root, &mut changes)?;
        Ok(())
    }
}

impl Edit {
    /// Starts from `root` at `root_at` (none for a fresh segment).
    pub fn new(root: Root, root_at: SegmentOffset) -> Self {
        Self {
            root,
            replaced_root: root_at,
            cells: BTreeMap::new(),
            units: Changes::default(),
            asked: Changes::default(),
            texts: Changes::default(),
            canaries: Changes::default(),
            overlay: Changes::default(),
            symbols: Changes::default(),
            imports: Changes::default(),
            flags: 0,
        }
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
        self.units.put(record.key, at);
        self.root.unit_count += 1;
        Ok(())
    }

    /// Adds an asked-for unit, whose key must be new. Nobody has to do anything.
    ///
    /// # Errors
    /// [`SegmentFull`].
    pub fn put_asked(&mut self, txn: &mut Txn<'_>, record: &AskedRecord, name: &str) -> Result<(), SegmentFull> {
        let at = write(txn, record, &[name])?;
        self.asked.put(record.key, at);
        self.root.asked_count += 1;
        Ok(())
    }

    /// Removes an asked-for unit, with its memory.
    pub fn remove_asked(&mut self, txn: &mut Txn<'_>, key: u64) {
        if let Some(at) = self.asked.get(txn, self.root.asked, key) {
            let record: AskedRecord = own(txn.memory().read(at));
            self.remove_text(txn, SegmentOffset::new(record.text.start));
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
            self.asked.remove(key);
            self.root.asked_count -= 1;
            self.flags |= record_flags::ASKED;
        }
    }

    /// Adds what is known of the text of a unit that is put too.
    ///
    /// # Errors
    /// [`SegmentFull`].
    pub fn put_text(&mut self, txn: &mut Txn<'_>, record: &TextRecord, name: &str) -> Result<(), SegmentFull> {
        let at = write(txn, record, &[name])?;
        self.texts.put(record.key, at);
        Ok(())
    }

    /// Removes what is known of the text at `text`, with its tables.
    fn remove_text(&mut self, txn: &mut Txn<'_>, text: SegmentOffset) {
        let key = index::by_place(text);
        if let Some(at) = self.texts.get(txn, self.root.texts, key) {
            let record: TextRecord = own(txn.memory().read(at));
            let len_bytes = size_of::<TextRecord>() as u32 + record.name_len;
            for region in [StoredRegion { start: at.get(), len_bytes }, record.frames, record.names] {
                txn.retire(Area::Control, Region { start: region.start, len_bytes: region.len_bytes });
            }
            self.texts.remove(key);
        }
    }

    /// Removes a unit. Its memory is not reused if it was published so, or if `keep`.
    pub fn remove_unit(&mut self, txn: &mut Txn<'_>, key: u64, keep: bool) {
        if let Some(at) = self.units.get(txn, self.root.units, key) {
            let record: UnitRecord = own(txn.memory().read(at));
            // Code that is kept may still run, and be unwound through.
            if !keep && record.flags & UNIT_KEPT == 0 {
                self.remove_text(txn, SegmentOffset::new(record.text.start));
            }
            retire_unit(txn, at, keep);
            self.units.remove(key);
            self.root.unit_count -= 1;
        }
    }

    /// Writes the record of a unit again, as of this generation: for those who have left it out so far.
    ///
    /// # Errors
    /// [`SegmentFull`].
    pub fn renew_unit(&mut self, txn: &mut Txn<'_>, key: u64) -> Result<(), SegmentFull> {
        if let Some(at) = self.units.get(txn, self.root.units, key) {
            let old: UnitRecord = own(txn.memory().read(at));
            let name = own(trailing_text::<UnitRecord>(txn.memory(), at, 0, old.name_len));
            let record = UnitRecord { generation: txn.generation(), ..old };
            let renewed = write(txn, &record, &[&name])?;
            self.units.put(record.key, renewed);
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
        self.canaries.put(record.key, at);
        self.flags |= record_flags::RESYNC;
        Ok(())
    }

    /// Removes a canary. Its units and symbols are the caller's to deal with.
    pub fn remove_canary(&mut self, txn: &mut Txn<'_>, key: u64) {
        if let Some(at) = self.canaries.get(txn, self.root.canaries, key) {
            let record: CanaryRecord = own(txn.memory().read(at));
            let len_bytes = size_of::<CanaryRecord>() as u32 + record.label_len;
            txn.retire(Area::Control, Region { start: at.get(), len_bytes });
            self.canaries.remove(key);
            self.flags |= record_flags::RESYNC;
        }
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
        if let Some(old) = self.overlay.get(txn, self.root.overlay, record.key) {
            retire_symbol(txn, old);
        }
        let at = write(txn, record, &[name, signature])?;
        self.overlay.put(record.key, at);
        self.flags |= record_flags::RESYNC;
        Ok(())
    }

    /// The record of a canary's symbol.
    pub fn overlay(&self, txn: &Txn<'_>, key: u64) -> Option<SymbolRecord> {
        let at = self.overlay.get(txn, self.root.overlay, key)?;
        Some(own(txn.memory().read(at)))
    }

    /// Removes a symbol of a canary.
    pub fn remove_overlay(&mut self, txn: &mut Txn<'_>, key: u64) {
        if let Some(old) = self.overlay.get(txn, self.root.overlay, key) {
            retire_symbol(txn, old);
            self.overlay.remove(key);
            self.flags |= record_flags::RESYNC;
        }
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
        match self.symbols.get(txn, self.root.symbols, record.key) {
            Some(old) => retire_symbol(txn, old),
            None => {
                self.root.symbol_count += 1;
                self.flags |= record_flags::NAMES;
            }
        }
        let at = write(txn, record, &[name, signature])?;
        self.symbols.put(record.key, at);
        Ok(())
    }

    /// The record of a published symbol.
    pub fn symbol(&self, txn: &Txn<'_>, key: u64) -> Option<SymbolRecord> {
        let at = self.symbols.get(txn, self.root.symbols, key)?;
        Some(own(txn.memory().read(at)))
    }

    /// Removes a symbol.
    pub fn remove_symbol(&mut self, txn: &mut Txn<'_>, key: u64) {
        if let Some(old) = self.symbols.get(txn, self.root.symbols, key) {
            retire_symbol(txn, old);
            self.symbols.remove(key);
            self.root.symbol_count -= 1;
            // Handles of the name must let go of its cell, which only a look at the directory tells.
            self.flags |= record_flags::NAMES | record_flags::RESYNC;
        }
    }

    /// Adds an import, or replaces the record of the same number.
    ///
    /// # Errors
    /// [`SegmentFull`].
    pub fn put_import(&mut self, txn: &mut Txn<'_>, record: &ImportRecord, name: &str) -> Result<(), SegmentFull> {
        match self.imports.get(txn, self.root.imports, record.key) {
            Some(old) => {
                let len_bytes = size_of::<ImportRecord>() as u32 + own(txn.memory().read::<ImportRecord>(old)).name_len;
                txn.retire(Area::Control, Region { start: old.get(), len_bytes });
            }
            None => self.root.import_count += 1,
        }
        let at = write(txn, record, &[name])?;
        self.imports.put(record.key, at);
        self.flags |= record_flags::RESYNC;
        Ok(())
    }

    /// Writes the indexes, the pages of cells and, last, the root, with the time that it is then. What it returns is committed by
    /// storing the root, then publishing the record.
    ///
    /// # Errors
    /// [`SegmentFull`].
    pub fn finish(
        mut self,
        txn: &mut Txn<'_>,
        now_ns: impl FnOnce() -> u64,
    ) -> Result<(Root, SegmentOffset, Record), SegmentFull> {
        let mut root = self.root;
        for (changes, root) in [
            (&mut self.units, &mut root.units),
            (&mut self.asked, &mut root.asked),
            (&mut self.texts, &mut root.texts),
            (&mut self.canaries, &mut root.canaries),
            (&mut self.overlay, &mut root.overlay),
            (&mut self.symbols, &mut root.symbols),
            (&mut self.imports, &mut root.imports),
        ] {
            std::mem::take(changes).apply(txn, root)?;
        }
        root.cells = self.write_pages(txn)?;
        if !self.replaced_root.is_none() {
            let len_bytes = size_of::<Root>() as u32;
            txn.retire(Area::Control, Region { start: self.replaced_root.get(), len_bytes });
        }
        let at = txn.alloc(Area::Control, size_of::<Root>() as u32, 8)?.offset();
        root.generation = txn.generation();
        root.published_ns = now_ns();
        if txn.reused_text() {
            root.reused_text = txn.generation();
            self.flags |= record_flags::SERIALISE;
        }
        txn.memory().write(at, &root);
        Ok((root, at, self.record(txn.generation(), at)))
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

    /// Writes the pages with changed cells; returns the root of their index.
    fn write_pages(&self, txn: &mut Txn<'_>) -> Result<SegmentOffset, SegmentFull> {
        /// What a page takes of the nodes of the index, about, bytes.
        const NODES_BYTES: u32 = 16;
        let mut pages: Vec<(u64, SegmentOffset)> = Vec::new();
        for index in self.cells.keys() {
            let key = u64::from(index / CELLS_PER_PAGE);
            if pages.last().is_none_or(|(last, _)| *last != key) {
                pages.push((key, SegmentOffset::NONE));
            }
        }
        // Whoever attaches reads all of them.
        txn.gather(pages.len() as u32 * (CELL_PAGE_BYTES + NODES_BYTES));
        let mut cells = self.cells.iter().peekable();
        for (key, place) in &mut pages {
            let mut page = CellPage { key: *key, generation: txn.generation(), values: [0; 64] };
            if let Some(old) = own(index::get(txn.memory(), self.root.cells, page.key)) {
                page.values = own(read_page(txn.memory(), old)).values;
                txn.retire(Area::Control, Region { start: old.get(), len_bytes: CELL_PAGE_BYTES });
            }
            while let Some((index, value)) = cells.next_if(|(index, _)| u64::from(**index / CELLS_PER_PAGE) == *key) {
                page.values[(index % CELLS_PER_PAGE) as usize] = value.bits();
            }
            let at = txn.alloc(Area::Control, CELL_PAGE_BYTES, 8)?.offset();
            let head = [page.key, page.generation];
            txn.memory().write_bytes(at, head.as_bytes());
            let values = at.checked_add(16).expect("inside the area");
            txn.memory().write_bytes(values, page.values.as_bytes());
            *place = at;
        }
        index::change(txn, self.root.cells, &mut pages)
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
    let texts_len: usize = texts.iter().map(|text| text.len()).sum();
    let mut bytes = Vec::with_capacity(size_of::<R>() + texts_len);
    bytes.extend_from_slice(record.as_bytes());
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
