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
