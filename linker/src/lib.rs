//! The linker of jitcast: relocatable ELF objects and archives in, a linked unit and its patch table out.
//!
//! Pure: no processes, no threads, no system calls, no shared memory. First each file is read by itself ([`File`]), then everything
//! that a unit asks for is found ([`Prepared::read`]); then, once it has a place, arithmetic ([`Prepared::link`]).
//!
//! Invariant: shared output (text, read-only data) is the same bytes in every process; whatever depends
//! on a process is a [`Patch`](jitcast_runtime::Patch) whose site lies in the private area.
//!
//! # The way through
//!
//! | step | where |
//! | --- | --- |
//! | headers, sections, groups of one object | `object_file`, `section`, `budget` |
//! | which definition a name means; members by need | `resolve`, `archive`, `unit` |
//! | what the instruction around a field does | `classify`, `instruction` |
//! | what the field will hold, which cells that takes | `request`, `plan`, `answer`, `fixup`, `dynamic`, `thunk` |
//! | what is not reached, if it is to go; what is added | `reach`, `additions` |
//! | how to unwind through it, what its functions are called | `unwind`, `label`, `names` |
//! | who needs what | `label`, `atoms`, `needs`, `local_calls` |
//! | where each piece goes, what runs when | `layout`, `bounds`, `startup` |
//! | what was done, for people | `explain` |
//! | what debugging information says of it, once it is placed | `debug` |
//! | the values | [`relocation`] (refused kinds in `refusal`, indices in `row`), `apply`, `fields` |
//!
//! Inputs are hostile: nothing that they hold may panic, loop, or cost more than a fixed multiple of
//! their length. What is not supported is refused by name.
#![forbid(unsafe_code)]

mod additions;
mod answer;
mod apply;
mod archive;
mod atoms;
mod bounds;
mod budget;
mod carry;
mod classify;
mod debug;
mod dynamic;
mod error;
mod explain;
mod fields;
mod fixup;
mod input;
mod instruction;
mod label;
mod layout;
mod lists;
mod local_calls;
#[cfg(feature = "mutants")]
pub mod mutant;
#[cfg(not(feature = "mutants"))]
mod mutant;
mod name;
mod names;
mod needs;
mod object_file;
mod order;
mod plan;
mod prepared;
mod reach;
mod refusal;
pub mod relocation;
mod request;
mod resolve;
mod rewrite;
mod row;
mod section;
mod startup;
mod thunk;
mod unit;
mod unwind;

pub use error::{Failure, LinkError, Misuse, Problem, SectionRefusal, Site, SymbolRefusal};
pub use explain::{Counts, Done, Explanation, Piece};
pub use input::{
    Area, Binding, Carried, Definition, Dialect, Extent, Extents, Input, Linked, Needs, Options,
    Place, PlacedSymbol, Placement, Reference, SymbolKind,
};
pub use prepared::{File, Prepared};
pub use unwind::Unwinding;
