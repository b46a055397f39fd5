//! Files for profilers, which have the number of the process in their names.
//!
//! Invariant: no descriptor of them stays open, since a host may close any, and have others under their numbers.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file of this process's.
#[derive(Debug)]
pub(super) struct Named {
    path: PathBuf,
    /// Which it is: its device and inode.
    identity: (u64, u64),
}

impl Named {
    /// Makes a file at `path` that begins with `bytes`, and that this user alone can read. One that an earlier process of this user
    /// left there is replaced; what another user put there is not. Also what is open of it.
    pub(super) fn create(path: PathBuf, bytes: &[u8]) -> Result<(Self, File), String> {
        let made = make(&path).or_else(|cause| match std::fs::symlink_metadata(&path) {
            Ok(there) if cause.kind() == io::ErrorKind::AlreadyExists && is_own(&there) => {
                std::fs::remove_file(&path).and_then(|()| make(&path))
            }
            _ => Err(cause),
        });
        let begun = made.and_then(|mut file| {
            file.write_all(bytes)?;
            let identity = identity(&file)?;
            Ok((identity, file))
        });
        let (identity, file) = begun.map_err(|cause| failed("create", &path, &cause))?;
        Ok((Self { path, identity }, file))
    }

    /// Adds `bytes` at its end, by one write(2).
    pub(super) fn append(&self, bytes: &[u8]) -> Result<(), String> {
        let added = self.open().and_then(|mut file| file.write_all(bytes));
        added.map_err(|cause| failed("write", &self.path, &cause))
    }

    /// Lies at `path` from now on, in the place of what lay there.
    pub(super) fn move_to(&mut self, path: PathBuf) -> Result<(), String> {
        let moved = std::fs::rename(&self.path, &path);
        moved.map_err(|cause| failed("rename", &self.path, &cause))?;
        self.path = path;
        Ok(())
    }

    /// What to do about `cause`, which kept `step` from being done with it.
    pub(super) fn failed(&self, step: &str, cause: &io::Error) -> String {
        failed(step, &self.path, cause)
    }

    fn open(&self) -> io::Result<File> {
        let mut options = File::options();
        options.append(true).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(&self.path)?;
        if identity(&file)? == self.identity {
            return Ok(file);
        }
        Err(io::Error::other("another file lies there"))
    }
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    let there = file.metadata()?;
    Ok((there.dev(), there.ino()))
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
fn failed(step: &str, path: &Path, cause: &io::Error) -> String {
    format!(
        "cannot {step} {}: {cause}\n  help: choose another folder, by `dir=` in JITCAST_DEBUG or in the worker's options",
        path.display()
    )
}
