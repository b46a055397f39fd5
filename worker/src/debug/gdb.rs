//! gdb's JIT interface: symbol files in this process's memory, which are listed where gdb looks.
//!
//! Source: gdb's documentation, "JIT Compilation Interface". gdb walks the whole list when it attaches, so functions of many units
//! share a file; a unit with debugging information has one of its own. Invariant: the list is changed by who holds [`LIST`] only, and
//! a file that is listed is not touched until it is taken out.

use core::ptr::{NonNull, null_mut};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jitcast_runtime::symbol_file::{self, Parts, Symbol};

use super::text::Text;

/// How many texts share a file: it is written anew for each that comes or goes.
const SHARED: usize = 64;

/// `struct jit_code_entry`.
#[derive(Debug)]
#[repr(C)]
struct Entry {
    next: *mut Entry,
    prev: *mut Entry,
    address: *const u8,
    len_bytes: u64,
}

/// `struct jit_descriptor`.
#[repr(C)]
struct Descriptor {
    version: u32,
    action: u32,
    relevant: *mut Entry,
    first: *mut Entry,
}

const REGISTER: u32 = 1;
const UNREGISTER: u32 = 2;

// Weak: another compiler in the process may bring them too, and then both use one list. gdb puts a breakpoint on the function.
core::arch::global_asm!(
    ".weak __jit_debug_register_code",
    ".type __jit_debug_register_code, @function",
    ".pushsection .text.__jit_debug_register_code, \"ax\", @progbits",
    "__jit_debug_register_code:",
    "endbr64",
    "ret",
    ".size __jit_debug_register_code, . - __jit_debug_register_code",
    ".popsection",
    ".weak __jit_debug_descriptor",
    ".type __jit_debug_descriptor, @object",
    ".pushsection .data.__jit_debug_descriptor, \"aw\", @progbits",
    ".balign 8",
    "__jit_debug_descriptor:",
    ".long 1, 0",
    ".quad 0, 0",
    ".size __jit_debug_descriptor, . - __jit_debug_descriptor",
    ".popsection",
);

unsafe extern "C" {
    static mut __jit_debug_descriptor: Descriptor;
    fn __jit_debug_register_code();
}

/// Who changes the list, of all workers of this process. Other compilers know nothing of it: one that changes the list at the same
/// moment has to be kept from it by the host.
static LIST: Mutex<()> = Mutex::new(());

/// The list, as it is.
pub(crate) type Listed = MutexGuard<'static, ()>;

/// Keeps the list as it is, for a fork.
pub(crate) fn lock_list() -> Listed {
    LIST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A symbol file that gdb knows, until it is dropped.
#[derive(Debug)]
struct Listing {
    /// An [`Entry`] on the heap.
    entry: NonNull<Entry>,
    _image: Image,
}

// SAFETY: the entry is this value's own, and what gdb does with it, it does while the process stands still.
unsafe impl Send for Listing {}

impl Listing {
    fn new(image: Image) -> Self {
        let _list = lock_list();
        let descriptor = &raw mut __jit_debug_descriptor;
        // SAFETY: the descriptor is always there, and only changed by who holds the lock.
        let first = unsafe { (*descriptor).first };
        let entry = Box::leak(Box::new(Entry {
            next: first,
            prev: null_mut(),
            address: image.file.as_ptr(),
            len_bytes: image.file.len() as u64,
        }));
        let entry = NonNull::from(entry);
        if let Some(first) = NonNull::new(first) {
            // SAFETY: an entry of the list, which lives while it is in it.
            unsafe { (*first.as_ptr()).prev = entry.as_ptr() };
        }
        // SAFETY: as above.
        unsafe { (*descriptor).first = entry.as_ptr() };
        tell(REGISTER, entry);
        Self {
            entry,
            _image: image,
        }
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        let _list = lock_list();
        // SAFETY: it was made on the heap when this was, and is freed nowhere else.
        let entry = unsafe { Box::from_raw(self.entry.as_ptr()) };
        if let Some(next) = NonNull::new(entry.next) {
            // SAFETY: an entry of the list, which lives while it is in it.
            unsafe { (*next.as_ptr()).prev = entry.prev };
        }
        match NonNull::new(entry.prev) {
            // SAFETY: as above.
            Some(prev) => unsafe { (*prev.as_ptr()).next = entry.next },
            None => {
                let descriptor = &raw mut __jit_debug_descriptor;
                // SAFETY: the descriptor is always there, and only changed by who holds the lock.
                unsafe { (*descriptor).first = entry.next };
            }
        }
        // gdb reads the entry that it is told of.
        tell(UNREGISTER, NonNull::from(&*entry));
        drop(entry);
    }
}

/// Tells gdb what was done with `entry`, if it is there. The lock is held.
fn tell(action: u32, entry: NonNull<Entry>) {
    let descriptor = &raw mut __jit_debug_descriptor;
    // SAFETY: the descriptor is always there, and only changed by who holds the lock.
    unsafe { (*descriptor).action = action };
    // SAFETY: as above.
    unsafe { (*descriptor).relevant = entry.as_ptr() };
    // SAFETY: a function without arguments that does nothing; where another compiler brought it, it does nothing either.
    unsafe { __jit_debug_register_code() };
}

/// A symbol file.
#[derive(Debug)]
struct Image {
    file: Vec<u8>,
    /// What the file says how to unwind by, at the address that it says: gdb is to find nothing else there.
    _frames: Vec<u8>,
}

/// Texts that share a file.
#[derive(Debug)]
struct File {
    texts: Vec<Arc<Text>>,
    listing: Option<Listing>,
}

impl File {
    /// Lists it as it is now.
    fn list(&mut self, base: u64) {
        // Not both at once: they are about the same code.
        self.listing = None;
        self.listing = Some(Listing::new(image(base, &self.texts)));
    }
}

/// The symbol files of a worker.
#[derive(Debug, Default)]
pub(super) struct Files {
    base: u64,
    files: BTreeMap<u64, File>,
    /// Which file a text is in, by its start.
    places: BTreeMap<u32, u64>,
    next: u64,
    /// The file that has room.
    open: Option<u64>,
}

impl Files {
    /// Adds texts of a window that begins at `base`.
    pub(super) fn add(&mut self, base: u64, texts: &[Arc<Text>]) {
        self.base = base;
        let (alone, shared): (Vec<_>, Vec<_>) =
            texts.iter().partition(|text| !text.sections.is_empty());
        for text in alone {
            self.begin(vec![Arc::clone(text)]);
        }
        let mut shared = shared.into_iter().map(Arc::clone);
        let open = self
            .open
            .and_then(|number| Some((number, self.files.get_mut(&number)?)));
        if let Some((number, file)) = open {
            let room = SHARED.saturating_sub(file.texts.len());
            let added: Vec<_> = shared.by_ref().take(room).collect();
            if !added.is_empty() {
                self.places
                    .extend(added.iter().map(|text| (text.start, number)));
                file.texts.extend(added);
                file.list(base);
            }
        }
        loop {
            let texts: Vec<_> = shared.by_ref().take(SHARED).collect();
            if texts.is_empty() {
                return;
            }
            self.open = Some(self.begin(texts));
        }
    }

    fn begin(&mut self, texts: Vec<Arc<Text>>) -> u64 {
        self.next += 1;
        let number = self.next;
        self.places
            .extend(texts.iter().map(|text| (text.start, number)));
        let mut file = File {
            texts,
            listing: None,
        };
        file.list(self.base);
        self.files.insert(number, file);
        number
    }

    /// Takes out the texts that begin at `starts`.
    pub(super) fn remove(&mut self, starts: &[u32]) {
        let mut changed: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for start in starts {
            if let Some(number) = self.places.remove(start) {
                changed.entry(number).or_default().push(*start);
            }
        }
        for (number, gone) in changed {
            let Some(file) = self.files.get_mut(&number) else {
                continue;
            };
            file.texts.retain(|text| !gone.contains(&text.start));
            if file.texts.is_empty() {
                self.files.remove(&number);
            } else {
                file.list(self.base);
            }
        }
    }
}

fn image(base: u64, texts: &[Arc<Text>]) -> Image {
    let address = |start: u32| base.wrapping_add(start.into());
    let shown = texts.iter().map(|text| symbol_file::Text {
        address: address(text.start),
        len_bytes: text.len_bytes.into(),
        symbols: {
            let functions = text.functions.iter();
            let symbols = functions.map(|function| Symbol {
                address: address(function.start),
                len_bytes: function.len_bytes.into(),
                name: &function.name,
            });
            symbols.collect()
        },
    });
    // A zero word ends the section.
    let frames = texts.iter().flat_map(|text| &text.frames);
    let frames: Vec<u8> = frames
        .chain([&0])
        .flat_map(|word| word.to_le_bytes())
        .collect();
    let sections = texts.iter().flat_map(|text| &text.sections);
    let file = symbol_file::write(&Parts {
        texts: shown.collect(),
        eh_frame: (frames.as_ptr().addr() as u64, &frames),
        sections: sections
            .map(|section| (&*section.name, &*section.bytes))
            .collect(),
    });
    Image {
        file,
        _frames: frames,
    }
}
