//! For hosts without the hook: each text's records are registered with the unwinder.
//!
//! The unwinder then looks at all that is registered, whoever throws, also where no thread is inside a guard. So what
//! is registered must not be reused: the worker's *keeper*, a record in the mailbox like a thread's, is pinned at
//! the applied generation while it is attached. Invariant: what is registered is what the directory of the applied
//! generation has, kept texts included.

use core::ffi::{CStr, c_void};
use std::collections::BTreeMap;

use jitcast_runtime::header::stub_frames_at;
use jitcast_runtime::index;
use jitcast_runtime::records::{Root, TextRecord};
use jitcast_runtime::window::Window;
use jitcast_runtime::{Corrupt, SegmentOffset, WorkerAddr};

/// `__register_frame` and `__deregister_frame`.
type Register = unsafe extern "C" fn(*const c_void);

/// What is registered of a window.
#[derive(Debug)]
pub(crate) struct Registered {
    register: Register,
    deregister: Register,
    /// The keeper's record in the mailbox.
    keeper: u32,
    /// The stubs' records.
    stubs: WorkerAddr,
    /// By the text's start, the unit's number and the records.
    texts: BTreeMap<u32, (u32, WorkerAddr)>,
    /// The index that this is in agreement with, and its generation.
    index: SegmentOffset,
    generation: u64,
}

fn symbol(name: &CStr) -> Option<Register> {
    // SAFETY: a special handle and a C string.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    // SAFETY: null, or a function of this type: every unwinder has them so.
    unsafe { core::mem::transmute::<*mut c_void, Option<Register>>(found) }
}

impl Registered {
    /// Registers the stubs of `window`; `None` if there is no unwinder to register with. `keeper` is pinned by the
    /// caller.
    pub(crate) fn new(window: &Window, keeper: u32) -> Option<Self> {
        let registered = Self {
            register: symbol(c"__register_frame")?,
            deregister: symbol(c"__deregister_frame")?,
            keeper,
            stubs: window.addr_of(stub_frames_at(window.geometry())),
            texts: BTreeMap::new(),
            index: SegmentOffset::NONE,
            generation: 0,
        };
        call(registered.register, registered.stubs);
        Some(registered)
    }

    /// The keeper's record in the mailbox.
    pub(crate) fn keeper(&self) -> u32 {
        self.keeper
    }

    /// Brings it into agreement with `root`, whose texts are bound. Nobody else is inside.
    pub(crate) fn update(&mut self, window: &Window, root: &Root) -> Result<(), Corrupt> {
        if self.index == root.texts {
            return Ok(());
        }
        let view = window.control();
        let mut gone = Vec::new();
        for (&start, &(unit, records)) in &self.texts {
            let key = index::by_place(SegmentOffset::new(start));
            let found = index::get(view, root.texts, key)?;
            let found: Option<TextRecord> = found.map(|at| view.read(at)).transpose()?;
            if found.is_none_or(|text| text.unit != unit) {
                gone.push((start, records));
            }
        }
        for (start, records) in gone {
            call(self.deregister, records);
            self.texts.remove(&start);
        }
        index::walk(view, root.texts, self.generation, &mut |at| {
            let text: TextRecord = view.read(at)?;
            let corrupt = Corrupt {
                what: "unwind records of a unit",
                at,
            };
            let region = text.eh_frame.region().ok_or(corrupt)?;
            if region.len_bytes == 0 || self.texts.contains_key(&text.text.start) {
                return Ok(());
            }
            let records = window.addr_of(region.offset());
            call(self.register, records);
            self.texts.insert(text.text.start, (text.unit, records));
            Ok::<_, Corrupt>(())
        })?;
        (self.index, self.generation) = (root.texts, root.generation);
        Ok(())
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        for &(_, records) in self.texts.values() {
            call(self.deregister, records);
        }
        call(self.deregister, self.stubs);
    }
}

fn call(function: Register, records: WorkerAddr) {
    let records = core::ptr::with_exposed_provenance(records.get() as usize);
    // SAFETY: the address of an `.eh_frame` section that ends with a zero word, mapped readable, and registered
    // before it is deregistered. The compiler process wrote it, whose code runs here too; the keeper's pin
    // keeps it from being reused.
    unsafe { function(records) };
}
