//! Helpers of the tests that start processes. Invariant: whatever a test starts is ended when its guard is
//! dropped, also while it panics.

#![allow(
    dead_code,
    reason = "each test file is a crate of its own and uses some of the helpers"
)]

pub(crate) mod attack;
pub(crate) mod child;
pub(crate) mod fault;
pub(crate) mod host;
pub(crate) mod library;
pub(crate) mod mount;
pub(crate) mod name;
pub(crate) mod noise;
pub(crate) mod object;
pub(crate) mod process;
pub(crate) mod remote;
pub(crate) mod require;
pub(crate) mod role;
pub(crate) mod scratch;
pub(crate) mod serve;
pub(crate) mod smaps;
