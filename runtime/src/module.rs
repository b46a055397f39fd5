//! A unit's module: what `__tls_get_addr` finds the unit's thread-local storage by, and what the unit is to
//! `__cxa_finalize`.
//!
//! It lies in private data, so an address of it is different in every worker, and tells the units of a process
//! apart: from one another by itself, and from what lay there before by the unit's number, never reused.

/// The length of a module, bytes.
pub const BYTES: u32 = 40;

/// The alignment of a module, bytes.
pub const ALIGN_BYTES: u32 = 8;

/// What a module says, in the order of its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Word {
    /// The address of the initial image.
    Image = 0,
    /// Its length, bytes.
    ImageLen = 1,
    /// The length of each thread's block, bytes: what is past the image is zero.
    BlockLen = 2,
    /// The block's alignment, bytes, a power of two.
    Align = 3,
    /// The unit's number.
    Number = 4,
}

/// Host functions by which a unit has code of its own called when a thread ends or a signal comes, and that nobody
/// can take back: what it registered may be called after the unit was retired, or its worker is gone.
const REGISTER_FOR_GOOD: [&str; 7] = [
    "on_exit",
    "__cxa_thread_atexit",
    "__cxa_thread_atexit_impl",
    "pthread_key_create",
    "tss_create",
    "sigaction",
    "signal",
];

/// Those whose registrations end with the unit (`__cxa_finalize`).
const REGISTER: [&str; 3] = ["__cxa_atexit", "__cxa_at_quick_exit", "__register_atfork"];

/// Whether what is registered by the host function `name` can be called when unit and worker are gone.
pub fn registers_for_good(name: &str) -> bool {
    REGISTER_FOR_GOOD.contains(&stem(name))
}

/// Whether a unit that refers to the host function `name` may be called after it was retired.
pub fn registers(name: &str) -> bool {
    REGISTER.contains(&stem(name)) || registers_for_good(name)
}

/// The name without the version that is asked for.
fn stem(name: &str) -> &str {
    name.split_once('@').map_or(name, |(stem, _)| stem)
}
