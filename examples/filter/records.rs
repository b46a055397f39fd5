//! Files of records, of text as logs are: a line each, with the fields in their order.

use std::error::Error;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::expression::Record;

/// Makes a file of `count` records.
pub(crate) fn write(path: &Path, count: usize, seed: u32) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut state = u64::from(seed) + 1;
    for _ in 0..count {
        // Knuth's linear congruential generator.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let status = [200, 200, 200, 301, 404, 500, 503][(state >> 33) as usize % 7];
        let (bytes, ms) = ((state >> 40) % 5000, (state >> 20) % 3000);
        writeln!(file, "{status} {bytes} {ms}")?;
    }
    file.flush()
}

/// Reads one.
pub(crate) fn read(path: &Path) -> Result<Vec<Record>, Box<dyn Error>> {
    let text = std::fs::read_to_string(path)?;
    let record = |line: &str| -> Result<Record, Box<dyn Error>> {
        let fields: Vec<i64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        fields
            .try_into()
            .map_err(|_| format!("{line}: another number of fields").into())
    };
    text.lines().map(record).collect()
}
