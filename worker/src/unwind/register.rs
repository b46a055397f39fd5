//! For hosts without the hook: the records of all texts are registered with the unwinder.
//!
//! The unwinder looks at what is registered whoever throws, also where no thread is inside a guard, when the memory of
//! what was replaced may be another unit's already. So it is given a copy in memory of this process, whose pointers
//! are absolute. It is one section for all texts: of many, libgcc up to 12 makes every throw of the process look at
//! each, and from 13 on sections must not overlap. Invariant: what is registered is what the directory of the applied
//! generation has, kept texts included; and what threads need that are inside at an older one.

use core::ffi::{CStr, c_void};
use std::collections::BTreeMap;

use jitcast_runtime::eh_frame::{self, Cie, Fde, Pointer};
use jitcast_runtime::frames::stub_frames;
use jitcast_runtime::geometry::Area;
use jitcast_runtime::header::stub_frames_at;
use jitcast_runtime::index;
use jitcast_runtime::records::{Root, TextRecord};
use jitcast_runtime::window::Window;
use jitcast_runtime::{Corrupt, Region, SegmentOffset, WorkerAddr};

/// What libgcc notes of a section (`struct object` of its `unwind-dw2-fde.h`, six words), with room.
type Object = [u64; 16];

/// `__register_frame_info`.
type Register = unsafe extern "C" fn(*const c_void, *mut Object);

/// `__deregister_frame_info`.
type Deregister = unsafe extern "C" fn(*const c_void) -> *mut Object;

/// The unwinder's two functions.
#[derive(Clone, Copy, Debug)]
struct Unwinder {
    register: Register,
    deregister: Deregister,
    /// Whether two sections may be about the same code for a moment. libgcc keeps a list up to version 12, and a tree of
    /// ranges from 13 on, which takes none twice.
    lets_overlap: bool,
}

impl Unwinder {
    fn find() -> Option<Self> {
        let register = symbol(c"__register_frame_info")?;
        let deregister = symbol(c"__deregister_frame_info")?;
        Some(Self {
            // SAFETY: libgcc's function of this name has this type.
            register: unsafe { core::mem::transmute::<*mut c_void, Register>(register) },
            // SAFETY: as above.
            deregister: unsafe { core::mem::transmute::<*mut c_void, Deregister>(deregister) },
            // New in libgcc 13.
            lets_overlap: symbol(c"__truncsfbf2").is_none(),
        })
    }
}

fn symbol(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: a special handle and a C string.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// A section that is registered, until it is dropped.
#[derive(Debug)]
struct Section {
    records: Records,
    unwinder: Unwinder,
}

/// The memory of a section. libgcc, having found a record in it, reads on after it has let go of its lock.
#[derive(Debug, Default)]
struct Records {
    words: Box<[u64]>,
    object: Box<Object>,
}

impl Section {
    /// Registers the records of `parts`.
    fn new<'a>(unwinder: Unwinder, parts: impl Iterator<Item = &'a Vec<u64>>) -> Self {
        // A zero word at the end.
        let words = parts.flatten().copied().chain([0]).collect();
        let mut records = Records {
            words,
            object: Box::default(),
        };
        // SAFETY: an `.eh_frame` section that ends with a zero word, and memory for the unwinder's notes; both stay until it is
        // deregistered, and longer while a thread is inside that may be looking at them.
        unsafe { (unwinder.register)(records.words.as_ptr().cast(), &raw mut *records.object) };
        Self { records, unwinder }
    }

    /// Deregisters it: its memory.
    fn end(mut self) -> Records {
        self.deregister();
        core::mem::take(&mut self.records)
    }

    fn deregister(&mut self) {
        // SAFETY: registered when it was made.
        unsafe { (self.unwinder.deregister)(self.records.words.as_ptr().cast()) };
    }
}

impl Drop for Section {
    fn drop(&mut self) {
        if !self.records.words.is_empty() {
            self.deregister();
        }
    }
}

/// How often sections may be replaced while threads are inside: each leaves its records behind.
const MAX_BEFORE: usize = 64;

/// A unit's text that is registered.
#[derive(Debug)]
struct Text {
    unit: u32,
    end: u32,
    records: Vec<u64>,
}

/// What is registered of a window.
#[derive(Debug)]
pub(crate) struct Registered {
    unwinder: Unwinder,
    section: Option<Section>,
    /// What was registered before, where a thread that is inside may be reading still.
    before: Vec<Records>,
    stubs: Vec<u64>,
    /// Texts of asked-for units that were bound since nobody was inside last.
    late: Vec<SegmentOffset>,
    /// By the text's start.
    texts: BTreeMap<u32, Text>,
    /// The generation that this is in agreement with.
    generation: u64,
}

impl Registered {
    /// Registers the stubs of `window`; `None` if there is no unwinder to register with.
    pub(crate) fn new(window: &Window) -> Option<Self> {
        let at = stub_frames_at(window.geometry());
        let stubs = absolute(&stub_frames(window.geometry(), at), window.addr_of(at))?;
        let mut registered = Self {
            unwinder: Unwinder::find()?,
            section: None,
            before: Vec::new(),
            stubs,
            late: Vec::new(),
            texts: BTreeMap::new(),
            generation: 0,
        };
        registered.register();
        Some(registered)
    }

    fn register(&mut self) {
        // Not both at once: they are about the same code.
        self.section = None;
        self.section = Some(self.section());
    }

    fn section(&self) -> Section {
        let texts = self.texts.values().map(|text| &text.records);
        let parts = core::iter::once(&self.stubs).chain(texts);
        Section::new(self.unwinder, parts)
    }

    /// Brings it into agreement with `root`, whose texts are bound. Nobody else is inside.
    pub(crate) fn update(&mut self, window: &Window, root: &Root) -> Result<(), Corrupt> {
        // That the index lies where it lay says nothing: its memory may have been reused.
        self.before.clear();
        let gone = self.remove(window, root)?;
        let late = self.add_late(window, root)?;
        if self.add(window, root)? || gone || late {
            self.register();
        }
        self.generation = root.generation;
        Ok(())
    }

    /// Adds what is new in `root`. Threads are inside that may need all that was there before, at any moment.
    pub(crate) fn extend(&mut self, window: &Window, root: &Root) -> Result<(), Corrupt> {
        if self.add(window, root)? {
            // What both are about is found all the time, in the one or in the other; nobody runs yet what is new.
            let section = self.section();
            let before = self.section.replace(section);
            self.before.extend(before.map(Section::end));
        }
        self.generation = root.generation;
        Ok(())
    }

    /// Whether [`Registered::extend`] can be used: no text that is registered lies where `root` has another. Nobody needs it any
    /// more, but it cannot be taken out while threads are inside, who may look for others.
    pub(crate) fn can_extend(&self, window: &Window, root: &Root) -> Result<bool, Corrupt> {
        let view = window.control();
        let mut can = self.unwinder.lets_overlap && self.before.len() < MAX_BEFORE;
        index::walk(view, root.texts, self.generation, &mut |at| {
            let text: TextRecord = view.read(at)?;
            let end = text.text.start.saturating_add(text.text.len_bytes);
            let before = self.texts.range(..end).next_back();
            // Registered texts do not overlap each other, so the last one that begins before the end is the only one to ask.
            can &= before
                .is_none_or(|(_, known)| known.unit == text.unit || known.end <= text.text.start);
            Ok::<_, Corrupt>(())
        })?;
        Ok(can)
    }

    /// Takes out the texts that `root` does not have; whether there were any.
    fn remove(&mut self, window: &Window, root: &Root) -> Result<bool, Corrupt> {
        let view = window.control();
        let mut gone = Vec::new();
        for (&start, known) in &self.texts {
            let key = index::by_place(SegmentOffset::new(start));
            let found = index::get(view, root.texts, key)?;
            let found = found.map(|at| view.read::<TextRecord>(at)).transpose()?;
            if found.is_none_or(|text| text.unit != known.unit) {
                gone.push(start);
            }
        }
        self.texts
            .retain(|start, _| gone.binary_search(start).is_err());
        Ok(!gone.is_empty())
    }

    /// Adds the texts that are new in `root`; whether there were any.
    fn add(&mut self, window: &Window, root: &Root) -> Result<bool, Corrupt> {
        let view = window.control();
        let before = self.texts.len();
        index::walk(view, root.texts, self.generation, &mut |at| {
            let text: TextRecord = view.read(at)?;
            // Those of asked-for units are added by those that have asked.
            if index::get(view, root.asked, text.unit.into())?.is_none() {
                self.add_text(window, at, &text)?;
            }
            Ok::<_, Corrupt>(())
        })?;
        Ok(self.texts.len() > before)
    }

    fn add_text(
        &mut self,
        window: &Window,
        at: SegmentOffset,
        text: &TextRecord,
    ) -> Result<(), Corrupt> {
        let corrupt = Corrupt {
            what: "unwind records of a unit",
            at,
        };
        let len_bytes = text.eh_frame.len_bytes;
        if len_bytes > 0 && !self.texts.contains_key(&text.text.start) {
            let records = absolute_records(window, text).ok_or(corrupt)?;
            let (unit, start) = (text.unit, text.text.start);
            let end = start.saturating_add(text.text.len_bytes);
            self.texts.insert(start, Text { unit, end, records });
        }
        Ok(())
    }

    /// The text of an asked-for unit, at `start`, was bound. It is registered when something is applied while nobody is
    /// inside: now others may be looking, and one that looks in between two sections finds nothing.
    pub(crate) fn add_later(&mut self, start: SegmentOffset) {
        self.late.push(start);
    }

    /// Adds those; whether there were any.
    fn add_late(&mut self, window: &Window, root: &Root) -> Result<bool, Corrupt> {
        let view = window.control();
        let late = core::mem::take(&mut self.late);
        for start in &late {
            if let Some(at) = index::get(view, root.texts, index::by_place(*start))? {
                let text: TextRecord = view.read(at)?;
                self.add_text(window, at, &text)?;
            }
        }
        Ok(!late.is_empty())
    }
}

/// The unwind records of a text, with absolute pointers, and without a terminator; `None` if they cannot be read.
pub(crate) fn absolute_records(window: &Window, text: &TextRecord) -> Option<Vec<u64>> {
    let region = text.eh_frame.region()?;
    let bytes = read(window, region).ok()?;
    absolute(&bytes, window.addr_of(region.offset()))
}

fn read(window: &Window, region: Region) -> Result<Vec<u8>, Corrupt> {
    let areas = [Area::ReadOnly, Area::Private];
    let area = areas.into_iter().find(|area| {
        let area = window.geometry().region(*area);
        area.contains(region.offset(), region.len_bytes.into())
    });
    window.copy(area.unwrap_or(Area::ReadOnly), region)
}

/// The records of the section `bytes`, which lies at `base`, with absolute pointers, so that they may lie anywhere, and
/// without a terminator. `None` if it is no section.
fn absolute(bytes: &[u8], base: WorkerAddr) -> Option<Vec<u64>> {
    let (cies, fdes) = eh_frame::read(bytes).ok()?;
    let mut writer = Writer {
        bytes,
        base: base.get(),
        out: Vec::with_capacity(bytes.len() * 2),
    };
    let mut places = Vec::with_capacity(cies.len());
    for cie in &cies {
        places.push(writer.out.len());
        writer.cie(cie)?;
    }
    for fde in &fdes {
        let cie = fde.cie as usize;
        writer.fde(fde, cies.get(cie)?, *places.get(cie)?)?;
    }
    // Each record is a multiple of eight bytes long.
    let (words, _) = writer.out.as_chunks::<8>();
    Some(words.iter().map(|word| u64::from_le_bytes(*word)).collect())
}

struct Writer<'a> {
    bytes: &'a [u8],
    base: u64,
    out: Vec<u8>,
}

impl Writer<'_> {
    fn cie(&mut self, cie: &Cie) -> Option<()> {
        let start = self.begin();
        self.out.extend([0; 4]);
        // A register of the return address is one byte in version 1, LEB128 in version 3.
        self.out.push(*self.bytes.get(cie.start as usize + 8)?);
        let letters = self
            .bytes
            .get(cie.letters.start as usize..cie.letters.end as usize)?;
        self.out.extend_from_slice(letters);
        self.out.push(0);
        self.copy(cie.units.start, cie.units.end)?;
        if !letters.is_empty() {
            let mut data = Vec::new();
            for letter in letters {
                match letter {
                    b'L' => data.push(
                        cie.lsda
                            .map_or(OMIT, |encoding| absolute_as(encoding.indirect)),
                    ),
                    b'P' => match cie.personality {
                        Some(pointer) => {
                            data.push(absolute_as(pointer.encoding.indirect));
                            data.extend(self.value(pointer)?.to_le_bytes());
                        }
                        None => data.push(OMIT),
                    },
                    b'R' => data.push(absolute_as(false)),
                    _ => {}
                }
            }
            // Fewer than 128 bytes, so one of LEB128.
            self.out
                .push(u8::try_from(data.len()).ok().filter(|len| *len < 0x80)?);
            self.out.extend(data);
        }
        self.copy(cie.instructions, cie.end)?;
        self.end(start)
    }

    fn fde(&mut self, fde: &Fde, cie: &Cie, cie_at: usize) -> Option<()> {
        let start = self.begin();
        let back = u32::try_from(self.out.len() - cie_at).ok()?;
        self.out.extend(back.to_le_bytes());
        let function = self.value(fde.function)?;
        self.out.extend(function.to_le_bytes());
        self.out.extend(fde.len_bytes.to_le_bytes());
        if !cie.letters.is_empty() {
            self.out.push(if fde.lsda.is_some() { 8 } else { 0 });
            if let Some(pointer) = fde.lsda {
                let value = self.value(pointer)?;
                self.out.extend(value.to_le_bytes());
            }
        }
        self.copy(fde.instructions, fde.end)?;
        self.end(start)
    }

    /// Begins a record.
    fn begin(&mut self) -> usize {
        let start = self.out.len();
        self.out.extend([0; 4]);
        start
    }

    /// Fills the record that begins at `start` up, and states its length.
    fn end(&mut self, start: usize) -> Option<()> {
        // DW_CFA_nop is 0.
        self.out.resize(self.out.len().next_multiple_of(8), 0);
        let len = u32::try_from(self.out.len() - start - 4).ok()?;
        self.out
            .get_mut(start..start + 4)?
            .copy_from_slice(&len.to_le_bytes());
        Some(())
    }

    fn copy(&mut self, start: u32, end: u32) -> Option<()> {
        let bytes = self.bytes.get(start as usize..end as usize)?;
        self.out.extend_from_slice(bytes);
        Some(())
    }

    /// The address that a pointer holds; null stays null.
    fn value(&self, pointer: Pointer) -> Option<u64> {
        let field = self.bytes.get(pointer.offset as usize..)?;
        let value = match pointer.encoding.width_bytes {
            4 => {
                let value = u32::from_le_bytes(*field.first_chunk()?);
                let signed = i64::from(value.cast_signed()).cast_unsigned();
                if pointer.encoding.signed {
                    signed
                } else {
                    value.into()
                }
            }
            _ => u64::from_le_bytes(*field.first_chunk()?),
        };
        let origin = if pointer.encoding.relative && value != 0 {
            self.base + u64::from(pointer.offset)
        } else {
            0
        };
        Some(origin.wrapping_add(value))
    }
}

/// `DW_EH_PE_omit`.
const OMIT: u8 = 0xff;

/// `DW_EH_PE_absptr`, through a cell or not.
fn absolute_as(indirect: bool) -> u8 {
    if indirect { 0x80 } else { 0 }
}

#[cfg(test)]
mod tests {
    use jitcast_runtime::Geometry;

    use super::*;

    #[test]
    fn copies_say_the_same_from_another_place() {
        let geometry = Geometry::new(8 << 20).unwrap();
        let at = stub_frames_at(&geometry);
        let base = WorkerAddr::new(0x1234_5600_0000 + u64::from(at.get()));
        let copy = absolute(&stub_frames(&geometry, at), base).unwrap();
        let copy: Vec<u8> = copy.iter().flat_map(|word| word.to_le_bytes()).collect();
        let (cies, fdes) = eh_frame::read(&copy).unwrap();
        let reader = Writer {
            bytes: &copy,
            base: 0x7777_0000,
            out: Vec::new(),
        };
        let stubs = geometry.region(Area::Stubs);
        assert_eq!((cies.len(), fdes.len()), (1, 1));
        assert_eq!(
            reader.value(fdes[0].function),
            Some(0x1234_5600_0000 + u64::from(stubs.start))
        );
        assert_eq!(fdes[0].len_bytes, stubs.len_bytes.into());
        let again = absolute(&copy, WorkerAddr::new(0x5555)).unwrap();
        let again: Vec<u8> = again.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(again, copy, "absolute already");
    }

    #[test]
    fn what_is_no_section_is_refused() {
        let geometry = Geometry::new(8 << 20).unwrap();
        let bytes = stub_frames(&geometry, SegmentOffset::new(4096));
        for at in 0..bytes.len() {
            for byte in [0, 0x7f, 0x80, 0xff] {
                let mut bytes = bytes;
                bytes[at] = byte;
                let _ = absolute(&bytes, WorkerAddr::new(u64::MAX / 2));
            }
        }
    }
}
