//! Units that the driver publishes: compiled once each, then made into versions by putting a number into their data.

use jitcast_compiler::front::{self, compile_bytes};
use jitcast_compiler::{Reclaim, UnitSource};

/// What every published function here is.
pub(crate) type Code = extern "C" fn(i64) -> i64;

/// Stands for the number of a version.
const MARK: u64 = 0x5a17_c0de_5a17_c0de;

/// A unit of C, for versions of it.
#[derive(Debug)]
pub(crate) struct Template(UnitSource);

impl Template {
    /// Compiles `source`. Every function of these names takes and returns a long.
    pub(crate) fn new(unit: &str, source: &str, functions: &[&str]) -> Self {
        let source = source.replace("MARK", &MARK.to_string());
        let file = compile_bytes(
            &format!("{unit}.c"),
            source.into_bytes(),
            &front::Options::default(),
        );
        let file = file.unwrap_or_else(|error| panic!("{error}"));
        let mut unit = UnitSource::new(unit, [file]);
        unit.reclaim = Reclaim::Yes;
        let signature = || "(i64) -> i64".parse().expect("a signature");
        unit.signatures = functions
            .iter()
            .map(|name| ((*name).to_owned(), signature()))
            .collect();
        Self(unit)
    }

    /// A unit `name` whose function of that name adds the number of its version, and whose function `name_datum` says where in
    /// this worker's memory that number lies. `more` is C that `touch(x)`, which is x, is defined by.
    pub(crate) fn adder(name: &str, more: &str) -> Self {
        let source = format!(
            "static long number = MARK; static long *volatile at = &number;
             {more}
             long {name}(long x) {{ return touch(x) + *at; }}
             long {name}_datum(long x) {{ return x + (long)at; }}"
        );
        Self::new(name, &source, &[name, &format!("{name}_datum")])
    }

    /// The version of this number.
    pub(crate) fn version(&self, number: i64) -> UnitSource {
        let mut unit = self.0.clone();
        let bytes = &mut unit.files[0].bytes;
        let place = bytes
            .windows(8)
            .position(|window| window == MARK.to_le_bytes());
        if let Some(place) = place {
            bytes[place..place + 8].copy_from_slice(&number.to_le_bytes());
        }
        unit
    }
}
