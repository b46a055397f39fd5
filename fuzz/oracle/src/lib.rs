//! An independent judge of linkers for x86-64.
//!
//! It reads the objects with a reader of its own, evaluates the formulas of the psABI from their text, and says of
//! each relocated field whether the linked image holds what it must. Where a linker may rewrite an instruction, a
//! [rule](RULES) says so and why, and what stands there now is decoded and followed to where it leads.
//!
//! Invariant: nothing here comes from the linker under test, nor from the libraries that it stands on.
#![forbid(unsafe_code)]

mod answer;
pub mod elf;
mod finder;
pub mod formula;
mod image;
mod judge;
mod layout;
mod linked;
mod map;
mod names;
mod report;
mod rules;
mod site;
pub mod table;
mod usage;

pub use image::Image;
pub use judge::{Judge, Object};
pub use layout::{Layout, Published, Rules, Stored, Window};
pub use linked::Linked;
pub use map::Map;
pub use names::{Global, Names};
pub use report::{Finding, Outcome, Report, Tally, Verdict};
pub use rules::{RULES, Rule};
