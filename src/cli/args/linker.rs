//! The linker by itself: `link`, `fuzz` and `oracle`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args as ClapArgs;

use super::unit::UnitArgs;

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct LinkArgs {
    #[command(flatten)]
    pub(in crate::cli) unit: UnitArgs,
    /// For every relocation of what is loaded (`.eh_frame` aside, which is put together anew): its site, kind and
    /// formula, where its target lies, when it is resolved, and what was done.
    #[arg(long)]
    pub(in crate::cli) explain: bool,
    /// Where each section and symbol goes.
    #[arg(long)]
    pub(in crate::cli) map: bool,
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct FuzzArgs {
    /// What the objects are made from: the same seed gives the same objects [default: the time].
    #[arg(long)]
    pub(in crate::cli) seed: Option<u64>,
    /// How long, in seconds, or as `90s`, `5m`, `2h`.
    #[arg(long, value_name = "TIME", default_value = "10", value_parser = duration)]
    pub(in crate::cli) time: Duration,
    /// Where failing objects are kept, each in a folder of its own.
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) save: Option<PathBuf>,
    /// Only this one, whatever the time: as a failure names it.
    #[arg(long, value_name = "NUMBER")]
    pub(in crate::cli) case: Option<u64>,
}

/// Reads a duration: seconds, or a number with its unit.
fn duration(text: &str) -> Result<Duration, String> {
    let units = [("s", 1), ("m", 60), ("h", 3600)];
    let with_unit = units
        .into_iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)));
    let (number, seconds) = with_unit.unwrap_or((text, 1));
    let number: u64 = number
        .parse()
        .map_err(|_| "expected seconds, or a number with `s`, `m` or `h`".to_owned())?;
    let total = number.checked_mul(seconds);
    total
        .map(Duration::from_secs)
        .ok_or_else(|| "too long".to_owned())
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct OracleArgs {
    /// An object that was linked, as it was named to the linker; may be repeated, in the linker's order.
    #[arg(long = "object", value_name = "FILE", required = true)]
    pub(in crate::cli) objects: Vec<PathBuf>,
    /// What was made of them: an executable or a shared library, not stripped.
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) image: PathBuf,
    /// The linker's map (`-Map`): where the sections are, for those that symbols and contents do not tell.
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) map: Option<PathBuf>,
}
