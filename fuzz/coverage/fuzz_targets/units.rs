//! Units that the bytes choose, every site judged.
#![no_main]

use jitcast_fuzz::hostile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile::units(bytes));
