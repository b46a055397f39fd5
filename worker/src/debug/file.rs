//! Files for profilers, which have the number of the process in their names.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Makes a file at `path` that this user alone can read. One that an earlier process of this user left there is replaced; what
/// another user put there is not.
pub(super) fn create(path: &Path) -> Result<File, String> {
    let made = make(path).or_else(|cause| match std::fs::symlink_metadata(path) {
        Ok(there) if cause.kind() == io::ErrorKind::AlreadyExists && is_own(&there) => {
            std::fs::remove_file(path).and_then(|()| make(path))
        }
        _ => Err(cause),
    });
    made.map_err(|cause| failed("create", path, &cause))
}

fn is_own(there: &std::fs::Metadata) -> bool {
    there.uid() == rustix::process::geteuid().as_raw()
}

fn make(path: &Path) -> io::Result<File> {
    // It follows no link, and is closed in programs that this one starts.
    let mut options = File::options();
    options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path)
}

/// What a host is told.
pub(super) fn failed(step: &str, path: &Path, cause: &io::Error) -> String {
    format!(
        "cannot {step} {}: {cause}\n  help: choose another folder, by `dir=` in JITCAST_DEBUG or in the worker's options",
        path.display()
    )
}

/// Writes all of `bytes`.
pub(super) fn append(mut file: &File, path: &Path, bytes: &[u8]) -> Result<(), String> {
    file.write_all(bytes)
        .map_err(|cause| failed("write", path, &cause))
}
