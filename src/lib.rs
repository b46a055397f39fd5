//! jitcast: compile once, link once, run in every worker.
//!
//! A facade over the crates of the workspace. [`worker`] is what a server embeds; [`compiler`] is the other
//! side, which links machine code into the shared segment; [`linker`] and [`runtime`] are what both rest on.

pub use jitcast_compiler as compiler;
pub use jitcast_linker as linker;
pub use jitcast_runtime as runtime;
pub use jitcast_worker as worker;
