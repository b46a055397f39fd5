//! The linker from outside: objects in, what a worker would see out.
#![forbid(unsafe_code)]

mod archives;
mod common;
mod data;
mod forms;
mod hostile;
mod indirect;
mod instructions;
mod machine;
mod models;
mod random;
mod ranges;
mod raw;
mod refusals;
mod resolution;
mod shapes;
mod shared;
mod startup;
mod thread_local;
mod unwind;
