//! Failing objects on disk: the files, what their fields should hold and do hold, and how to see it again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::session::Failed;

/// The command that shows a failure again.
pub fn command(failed: &Failed) -> String {
    format!(
        "jitcast fuzz --seed {} --case {}",
        failed.seed, failed.index
    )
}

/// Writes the objects of a failure, and `failure.txt`, into a folder of their own in `folder`; returns it.
///
/// # Errors
///
/// The file system's.
pub fn keep(folder: &Path, failed: &Failed) -> io::Result<PathBuf> {
    let own = folder.join(format!("seed-{}-case-{}", failed.seed, failed.index));
    fs::create_dir_all(&own)?;
    for object in failed.trial.objects().iter().flatten() {
        fs::write(own.join(&object.name), &object.bytes)?;
    }
    let text = format!(
        "{}\n\n{}\n{}",
        command(failed),
        failed.failure,
        failed.trial.describe()
    );
    fs::write(own.join("failure.txt"), text)?;
    Ok(own)
}
