//! Relocation fuzzing: random ELF objects for x86-64 as [proptest] strategies, and what jitcast's linker makes of
//! them, judged by [`jitcast_oracle`].
//!
//! | step | where |
//! | --- | --- |
//! | a random plan, which shrinks | [`strategy`], [`case`] |
//! | its objects | [`build`], [`form`] |
//! | linked, placed, mapped at a base | [`window`] |
//! | every site and byte compared | [`mod@check`] |
//! | the ends of ranges | [`edge`] |
//! | the same objects, linked by others | [`differ`] |
//! | C programs, to be executed | [`program`] |
//! | bytes that may be anything | [`hostile`] |
//! | many of them from one seed | [`session`], [`summary`], [`keep`] |
#![forbid(unsafe_code)]

pub mod build;
pub mod case;
pub mod check;
pub mod differ;
mod draft;
pub mod edge;
pub mod form;
pub mod hostile;
pub mod keep;
pub mod program;
pub mod session;
pub mod strategy;
pub mod summary;
pub mod window;
mod writer;

pub use check::{Failure, check};

/// The examples of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
