//! The shared-memory substrate of jitcast: what lies in the segment, who may touch it, and how.
//!
//! Knows neither objects nor compilers. `runtime/FORMAT.md` draws the bytes.
//!
//! Under `cfg(loom)` only the protocols are built ([`ring`], [`pin`], [`gate`]): loom's atomics cannot lie in shared
//! memory.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!(
    "jitcast runs on Linux on x86-64 only: published code, the sealed segment and the barriers of guards are made for it"
);

pub mod atomic;
pub mod gate;
pub mod pin;
pub mod ring;
#[cfg(tsan)]
mod tsan;

/// Elsewhere the message above is to be the only one.
macro_rules! unless_modelled {
    ($($item:item)*) => { $(#[cfg(all(not(loom), target_os = "linux", target_arch = "x86_64"))] $item)* };
}

unless_modelled! {
    pub mod addr;
    pub mod cpu;
    pub mod debug;
    pub mod directory;
    pub mod eh_frame;
    pub mod frames;
    pub mod geometry;
    pub mod header;
    pub mod heap;
    pub mod host_name;
    pub mod index;
    pub mod mailbox;
    pub mod memory;
    pub mod module;
    pub mod needs;
    pub mod observer;
    pub mod patch;
    pub mod records;
    pub mod segment;
    pub mod selector;
    pub mod signature;
    pub mod space;
    pub mod symbol_file;
    pub mod sys;
    pub mod tally;
    pub mod window;
    pub mod wire;

    pub use {
        addr::{SegmentDelta, SegmentOffset, WorkerAddr},
        geometry::{Area, Geometry, Region},
        memory::Corrupt,
        patch::{ImportId, Patch, PatchKind, PatchTarget},
    };
}
