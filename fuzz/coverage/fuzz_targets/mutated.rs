//! An object of the generators, and what the bytes do to it.
#![no_main]

use jitcast_fuzz::hostile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile::mutated(bytes));
