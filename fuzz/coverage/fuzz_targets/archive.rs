//! Arbitrary bytes as an archive.
#![no_main]

use jitcast_fuzz::hostile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile::archive(bytes));
