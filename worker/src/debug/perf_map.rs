//! `perf-PID.map`: a line for each function, its address, its length and its name.
//!
//! Source: `tools/perf/Documentation/jit-interface.txt` of Linux. Lines are added as code is published; once more lines are of what
//! is gone than of what is there, the file is written anew, under another name, and moved over the old one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::file::Named;
use super::text::Text;

/// The list, as long as it is kept up to date. It stays when this is dropped: profilers read it afterwards.
#[derive(Debug)]
pub(super) struct Map {
    file: Named,
    path: PathBuf,
    lines: usize,
    dead: usize,
}

impl Map {
    pub(super) fn begin(folder: &Path) -> Result<Self, String> {
        let path = folder.join(format!("perf-{}.map", std::process::id()));
        Ok(Self {
            file: Named::create(path.clone(), &[])?.0,
            path,
            lines: 0,
            dead: 0,
        })
    }

    /// What these texts say is of no use any more.
    pub(super) fn remove(&mut self, texts: &[Arc<Text>]) {
        self.dead += texts.iter().map(|text| text.functions.len()).sum::<usize>();
    }

    /// Adds what is `new`, in a window that begins at `base`; `all` is that and everything else.
    pub(super) fn add(
        &mut self,
        base: u64,
        new: &[Arc<Text>],
        all: &BTreeMap<u32, Arc<Text>>,
    ) -> Result<(), String> {
        // A little file is not written anew for each swap.
        const SLACK: usize = 64;
        let added: usize = new.iter().map(|text| text.functions.len()).sum();
        if self.dead > self.lines / 2 + SLACK {
            let path = self.path.with_extension("map.new");
            let (mut file, _) = Named::create(path, lines(base, all.values()).as_bytes())?;
            file.move_to(self.path.clone())?;
            (self.file, self.dead) = (file, 0);
            self.lines = all.values().map(|text| text.functions.len()).sum();
            return Ok(());
        }
        self.lines += added;
        self.file.append(lines(base, new.iter()).as_bytes())
    }
}

fn lines<'a>(base: u64, texts: impl Iterator<Item = &'a Arc<Text>>) -> String {
    let mut lines = String::new();
    for function in texts.flat_map(|text| &text.functions) {
        let address = base.wrapping_add(function.start.into());
        // A line ends a name.
        let name = function.name.replace('\n', "?");
        let _ = writeln!(lines, "{address:x} {:x} {name}", function.len_bytes);
    }
    lines
}
