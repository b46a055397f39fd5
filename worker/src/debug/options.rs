//! What a host, or its environment, wants to be shown.

use std::path::PathBuf;

use jitcast_runtime::debug::Wanted;
use jitcast_runtime::sys;

/// The variable of the environment that says the same.
const VARIABLE: &str = "JITCAST_DEBUG";

/// What debuggers and profilers are shown of published code: nothing, unless it is asked for. It costs time at each publication,
/// and memory; calls cost what they cost without.
///
/// The variable `JITCAST_DEBUG` of the environment asks for more, as `gdb,lines,jitdump,perf-map,dir=/var/tmp`: any of these, in
/// any order. `jitcast debug` asks for it, or ends it, while the worker runs.
///
/// ```
/// use jitcast_worker::{DebugOptions, WorkerOptions};
///
/// let debug: DebugOptions = "gdb,lines".parse()?;
/// assert!(debug.gdb && debug.lines);
/// let options = WorkerOptions { debug, ..WorkerOptions::default() };
/// # Ok::<_, String>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DebugOptions {
    /// Functions are registered with gdb, by its JIT interface: names in backtraces, breakpoints by name.
    pub gdb: bool,
    /// What debugging information says besides, where a unit has some: lines and arguments for gdb, lines in a jitdump. The compiler
    /// process is asked for it, and waited for.
    pub lines: bool,
    /// A jitdump for perf: `jit-PID.dump`.
    pub jitdump: bool,
    /// A list of functions: `perf-PID.map`, rewritten as code is replaced.
    pub perf_map: bool,
    /// Where files are written; `None`: in `/tmp`, where the readers of `perf-PID.map` look for it.
    pub folder: Option<PathBuf>,
}

impl DebugOptions {
    /// Adds what the environment asks for. A program that runs with more rights than who started it does not listen to that.
    pub(crate) fn add_environment(&mut self) -> Result<(), String> {
        if sys::runs_with_more_rights() {
            return Ok(());
        }
        match std::env::var(VARIABLE) {
            Ok(text) => self.add(&text).map_err(|why| format!("{VARIABLE}: {why}")),
            Err(_) => Ok(()),
        }
    }

    fn add(&mut self, text: &str) -> Result<(), String> {
        let words = text.split(',').map(str::trim);
        for word in words.filter(|word| !word.is_empty()) {
            match (word, word.split_once('=')) {
                ("gdb", _) => self.gdb = true,
                ("lines", _) => self.lines = true,
                ("jitdump", _) => self.jitdump = true,
                ("perf-map", _) => self.perf_map = true,
                (_, Some(("dir", folder))) => self.folder = Some(folder.into()),
                _ => {
                    return Err(format!(
                        "`{word}` cannot be shown\n  help: say any of gdb, lines, jitdump, perf-map and dir=FOLDER, with commas between"
                    ));
                }
            }
        }
        Ok(())
    }

    /// The same, but for the folder. Lines are shown to gdb if to nobody else.
    pub(crate) fn wanted(&self) -> Wanted {
        Wanted {
            names: self.gdb || self.lines && !self.jitdump,
            lines: self.lines,
            jitdump: self.jitdump,
            perf_map: self.perf_map,
        }
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.folder.clone().unwrap_or_else(|| "/tmp".into())
    }
}

impl core::str::FromStr for DebugOptions {
    type Err = String;

    /// Reads what `JITCAST_DEBUG` may say.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut options = Self::default();
        options.add(text)?;
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_words_are_read() {
        let all: DebugOptions = "gdb, lines,jitdump,perf-map,dir=/x=y".parse().unwrap();
        assert!(all.gdb && all.lines && all.jitdump && all.perf_map);
        assert_eq!(all.folder(), PathBuf::from("/x=y"));
        assert_eq!("".parse(), Ok(DebugOptions::default()));
        assert!(
            "gdb,line"
                .parse::<DebugOptions>()
                .unwrap_err()
                .contains("`line`")
        );
        let wanted = |text: &str| text.parse::<DebugOptions>().unwrap().wanted();
        assert!(wanted("lines").names && !wanted("lines,jitdump").names);
    }
}
