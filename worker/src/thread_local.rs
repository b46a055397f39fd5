//! Thread-local storage of published code: `__tls_get_addr`, and where the host's thread-local data are.
//!
//! A unit's [module](jitcast_runtime::module) lies in private data, and its address is what stands where the
//! dynamic linker would have put a module's number. A thread gets its block of a unit's storage when it first asks for
//! it, so threads that are older than the unit have one too, and gives it back when it ends.
//!
//! Invariant: a block is found by its module's address *and* number, so one that lay there before is never
//! taken for it.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use jitcast_runtime::module::Word;
use jitcast_runtime::{ImportId, WorkerAddr};

use crate::trap;

/// What `__tls_get_addr` is given (psABI x86-64 1.0; "ELF Handling For Thread-Local Storage", section 3.4.6).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Index {
    module: u64,
    offset: u64,
}

/// The least that a module's address is; what is below is a number of the dynamic linker's.
const FIRST_ADDRESS: u64 = 1 << 16;

/// What stands for the module of a host symbol that is missing, with the import's number.
const MISSING: u64 = 1 << 63;

/// The module of the missing import `import`.
pub(crate) fn missing_module(import: ImportId) -> u64 {
    MISSING | u64::from(import.get())
}

/// A block of this thread's.
#[derive(Clone, Copy, Debug)]
struct Block {
    start: *mut u8,
    layout: Layout,
}

/// A module's address and number.
type Key = (u64, u64);

thread_local! {
    /// The block asked for last.
    static LAST: Cell<(Key, *mut u8)> = const { Cell::new(((0, 0), core::ptr::null_mut())) };
    /// All of them; null before the first. Freed by the key's destructor, which runs after those of C++.
    static BLOCKS: Cell<*mut Blocks> = const { Cell::new(core::ptr::null_mut()) };
    /// How often this thread's end has come to the blocks.
    static ROUNDS: Cell<c_int> = const { Cell::new(0) };
}

/// The blocks of a thread.
#[derive(Debug, Default)]
struct Blocks {
    list: HashMap<Key, Block>,
    /// How many there are when those are looked for whose units are gone.
    prune_at: usize,
}

/// How often the C library calls the destructors of a thread's keys (`PTHREAD_DESTRUCTOR_ITERATIONS`).
const DESTRUCTOR_ROUNDS: c_int = 4;

unsafe extern "C" {
    fn __tls_get_addr(index: *const Index) -> *mut c_void;
}

/// What published code calls as `__tls_get_addr`: its own blocks, and whatever else the host's knows.
pub(crate) extern "C" fn get_addr(index: *const Index) -> *mut u8 {
    // SAFETY: the caller is code that a compiler emitted, and passes the pair that its relocation made.
    let Index { module, offset } = unsafe { *index };
    if module < FIRST_ADDRESS {
        // SAFETY: a pair of the dynamic linker's, found by `Variable::at`.
        return unsafe { __tls_get_addr(index) }.cast();
    }
    if module & MISSING != 0 {
        trap::missing_import(module as u32, index.addr() as u64);
    }
    let key = (module, word(module, Word::Number));
    let (last, block) = LAST.get();
    let start = if last == key { block } else { block_of(key) };
    start.wrapping_add(offset as usize)
}

/// A word of the module at an address.
fn word(module: u64, word: Word) -> u64 {
    let at = module as usize + word as usize * 8;
    let at = core::ptr::with_exposed_provenance::<u64>(at);
    // SAFETY: one of five words of private data, which stay while code runs that has the pair, and were written
    // before any did.
    unsafe { at.read() }
}

#[cold]
fn block_of(key: Key) -> *mut u8 {
    let mut blocks = BLOCKS.get();
    if blocks.is_null() {
        blocks = Box::into_raw(Box::default());
        BLOCKS.set(blocks);
        // SAFETY: a key that was created; the value is what its destructor takes.
        unsafe { libc::pthread_setspecific(key_of_threads(), blocks.cast()) };
    }
    // SAFETY: not null, so this thread's own map, borrowed by nobody else.
    let blocks = unsafe { &mut *blocks };
    let known = blocks.list.get(&key).map(|block| block.start);
    let start = known.unwrap_or_else(|| {
        blocks.prune();
        let block = new_block(key.0);
        blocks.list.insert(key, block);
        block.start
    });
    LAST.set((key, start));
    start
}

impl Blocks {
    /// Frees blocks where another unit's module lies by now. Where no worker is any more, nobody can tell.
    fn prune(&mut self) {
        if self.list.len() < self.prune_at {
            return;
        }
        self.list.retain(|&(module, number), block| {
            let there = trap::worker_at(WorkerAddr::new(module)).is_some();
            let stays = !there || word(module, Word::Number) == number;
            if !stays {
                block.free();
            }
            stays
        });
        self.prune_at = (2 * self.list.len()).max(64);
    }
}

impl Block {
    fn free(self) {
        // SAFETY: allocated with this layout; whoever frees it forgets it.
        unsafe { dealloc(self.start, self.layout) };
    }
}

/// A block as a thread first sees it: the image, then zeros.
fn new_block(module: u64) -> Block {
    let (len, align) = (word(module, Word::BlockLen), word(module, Word::Align));
    let layout = Layout::from_size_align(len.max(1) as usize, align.max(16) as usize);
    let Ok(layout) = layout else {
        trap::fatal("a unit's thread-local storage has an impossible length");
    };
    // SAFETY: not of zero length.
    let start = unsafe { alloc_zeroed(layout) };
    if start.is_null() {
        std::alloc::handle_alloc_error(layout);
    }
    let image_len = word(module, Word::ImageLen).min(len) as usize;
    let image = core::ptr::with_exposed_provenance::<u8>(word(module, Word::Image) as usize);
    // SAFETY: the image lies in private data, which nobody writes to after it was patched; the block is as long
    // and is new.
    unsafe { core::ptr::copy_nonoverlapping(image, start, image_len) };
    Block { start, layout }
}

/// The key whose destructor frees a thread's blocks. It runs after the thread's C++ destructors, and again if
/// another key's destructor asked for storage once more.
fn key_of_threads() -> libc::pthread_key_t {
    static KEY: OnceLock<libc::pthread_key_t> = OnceLock::new();
    *KEY.get_or_init(|| {
        let mut key = 0;
        // SAFETY: `key` lives through the call.
        let failed = unsafe { libc::pthread_key_create(&raw mut key, Some(free_blocks)) };
        if failed != 0 {
            trap::fatal("the process has no key left for thread-local storage");
        }
        key
    })
}

unsafe extern "C" fn free_blocks(blocks: *mut c_void) {
    // Destructors of other keys may use what lies there, in this round and in those that follow. The last one is ours
    // to free in.
    let round = ROUNDS.get() + 1;
    ROUNDS.set(round);
    if round < DESTRUCTOR_ROUNDS {
        // SAFETY: the key that this is the destructor of.
        let again = unsafe { libc::pthread_setspecific(key_of_threads(), blocks) };
        if again == 0 {
            return;
        }
    }
    BLOCKS.set(core::ptr::null_mut());
    LAST.set(((0, 0), core::ptr::null_mut()));
    let blocks: *mut Blocks = blocks.cast();
    // SAFETY: what `block_of` made, whose thread ends.
    for block in unsafe { Box::from_raw(blocks) }.list.values() {
        block.free();
    }
}

/// A thread-local datum of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Variable {
    /// The number of its module, as the host's `__tls_get_addr` takes it.
    pub(crate) module: u64,
    /// Its offset in the module's block.
    pub(crate) offset: u64,
    /// Its distance from the thread pointer, if that is the same in every thread.
    pub(crate) from_thread: Option<i64>,
}

/// What the search is told and finds.
struct Search {
    address: u64,
    found: Option<(u64, u64)>,
    /// At most how much static storage the modules of the process have, bytes.
    static_len_bytes: u64,
}

impl Variable {
    /// The variable whose copy in the calling thread lies at `address`.
    pub(crate) fn at(address: u64) -> Option<Self> {
        let mut search = Search {
            address,
            found: None,
            // What the C library holds in reserve for modules that are loaded later: at most this much.
            static_len_bytes: 16 << 10,
        };
        // SAFETY: the callback gets the pointer to `search` back, and only while the call lasts.
        unsafe { libc::dl_iterate_phdr(Some(look_at), (&raw mut search).cast()) };
        let (module, offset) = search.found?;
        // Static storage lies right below the thread pointer, in every thread at the same distance (variant II).
        // Below it is the thread's stack, or what the dynamic linker itself allocated: never a block of malloc's.
        let distance = thread_pointer().wrapping_sub(address);
        let is_static = distance <= search.static_len_bytes;
        Some(Self {
            module,
            offset,
            from_thread: is_static.then(|| distance.wrapping_neg().cast_signed()),
        })
    }
}

unsafe extern "C" fn look_at(
    module: *mut libc::dl_phdr_info,
    _size: usize,
    search: *mut c_void,
) -> c_int {
    // SAFETY: what `dl_iterate_phdr` gives, for the time of this call.
    let module = unsafe { &*module };
    // SAFETY: what `dl_iterate_phdr` was given.
    let search = unsafe { &mut *search.cast::<Search>() };
    // SAFETY: the module's program headers, as many as it says.
    let headers =
        unsafe { core::slice::from_raw_parts(module.dlpi_phdr, module.dlpi_phnum.into()) };
    for header in headers
        .iter()
        .filter(|header| header.p_type == libc::PT_TLS)
    {
        search.static_len_bytes += header.p_memsz + header.p_align;
        let start = module.dlpi_tls_data.addr() as u64;
        let offset = search.address.wrapping_sub(start);
        if start != 0 && offset < header.p_memsz.max(1) {
            search.found = Some((module.dlpi_tls_modid as u64, offset));
        }
    }
    0
}

/// What initial-exec code counts from: `%fs:0` (psABI x86-64 1.0, section 3.4.2).
fn thread_pointer() -> u64 {
    let pointer;
    // SAFETY: reads the first word of the thread's control block, which holds its own address.
    unsafe {
        core::arch::asm!("mov {}, qword ptr fs:[0]", out(reg) pointer, options(nostack, readonly, preserves_flags));
    }
    pointer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_variables_are_found_alike_in_every_thread() {
        let look = || {
            // SAFETY: `errno` of this thread.
            let errno = unsafe { libc::__errno_location() }.addr() as u64;
            Variable::at(errno).expect("errno is thread-local")
        };
        let here = look();
        assert!(
            here.from_thread.is_some_and(|distance| distance < 0),
            "{here:?}"
        );
        let there = std::thread::spawn(look).join().unwrap();
        assert_eq!(here, there);
        let local = 0_u8;
        assert_eq!(Variable::at((&raw const local).addr() as u64), None);
    }

    #[test]
    fn a_block_is_its_image_and_zeros_in_each_thread_and_new_for_a_new_unit() {
        let image = [7_u8, 8, 9];
        let mut module = [(&raw const image).expose_provenance() as u64, 3, 64, 32, 1];
        let index = |module: &[u64; 5]| Index {
            module: (&raw const *module).expose_provenance() as u64,
            offset: 1,
        };
        let bytes = |index: Index| {
            let at = get_addr(&raw const index);
            // SAFETY: the block is 64 bytes long.
            (at, unsafe { core::slice::from_raw_parts(at, 63) }.to_vec())
        };
        let (first, contents) = bytes(index(&module));
        assert_eq!(contents[..4], [8, 9, 0, 0]);
        assert_eq!((first.addr() - 1) % 32, 0);
        // SAFETY: as above.
        unsafe { first.write(42) };
        assert_eq!(bytes(index(&module)).1[0], 42);
        let copy = module;
        std::thread::spawn(move || assert_eq!(bytes(index(&copy)).1[0], 8))
            .join()
            .unwrap();
        module[4] = 2;
        assert_eq!(bytes(index(&module)).1[0], 8, "another unit where one was");
    }
}
