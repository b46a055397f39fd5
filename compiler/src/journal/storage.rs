//! The file system, as far as the journal needs one: a folder with files that grow at their end.
//!
//! A trait, so that tests can put a file system in its place that forgets whatever was not synced. Names are
//! relative to the journal's folder; a name's folder is what precedes its `/`.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jitcast_runtime::sys;

use super::JournalError;

/// The folder of content-hashed objects.
pub(super) const OBJECTS: &str = "objects";

/// The journal's folder itself.
pub(super) const TOP: &str = "";

/// A folder of files.
pub(crate) trait Storage: fmt::Debug + Send {
    /// The file `name`, if there is one.
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn File>>>;

    /// An empty file `name`, in place of what was there.
    fn create(&self, name: &str) -> io::Result<Box<dyn File>>;

    /// Moves a file, over what was there.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// The names of the files in `folder`.
    fn list(&self, folder: &str) -> io::Result<Vec<String>>;

    /// Makes durable which files are in `folder`.
    fn sync_folder(&self, folder: &str) -> io::Result<()>;
}

/// A file that grows at its end.
pub(crate) trait File: fmt::Debug + Send {
    /// Its length, bytes.
    fn len(&self) -> io::Result<u64>;

    /// Fills `bytes` from `at` on.
    fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()>;

    /// Adds `bytes` at the end: one write(2), unless the system takes less at once. After an error, some of
    /// them may be there.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Cuts it to `len` bytes.
    fn cut(&mut self, len: u64) -> io::Result<()>;

    /// Makes its contents and length durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// A folder of the real file system, locked.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// Its lock is this compiler process's claim to the folder.
    lock: fs::File,
}

impl Folder {
    /// Opens the folder at `path`, made if there is none, and locks it.
    pub(super) fn open(path: &Path) -> Result<Self, JournalError> {
        let system = |step| {
            move |cause| JournalError::System {
                step,
                path: path.display().to_string(),
                cause,
            }
        };
        make(path).map_err(system("make the folder"))?;
        make(&path.join(OBJECTS)).map_err(system("make the folder of objects in"))?;
        check_owner(path)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join("lock"))
            .map_err(system("open the lock in"))?;
        if !sys::try_lock(&lock).map_err(system("lock"))? {
            return Err(JournalError::InUse {
                path: path.display().to_string(),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            lock,
        })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // If it cannot be given back, closing it does the same a little later.
        let _ = sys::unlock(&self.lock);
    }
}

/// Makes a folder for this user alone, durably, if it is not there.
fn make(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => match path.parent() {
            Some(parent) if parent != Path::new("") => sync(parent),
            _ => sync(Path::new(".")),
        },
    }
}

/// Refuses a folder to which others than this process's user can write.
fn check_owner(path: &Path) -> Result<(), JournalError> {
    let shown = || path.display().to_string();
    let metadata = fs::metadata(path).map_err(|cause| JournalError::System {
        step: "look at",
        path: shown(),
        cause,
    })?;
    let own_uid = rustix::process::geteuid().as_raw();
    let (uid, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if uid != own_uid || mode & 0o022 != 0 {
        return Err(JournalError::WritableByOthers {
            path: shown(),
            uid,
            mode,
            own_uid,
        });
    }
    Ok(())
}

fn sync(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

impl Storage for Folder {
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn File>>> {
        let path = self.path.join(name);
        match OpenOptions::new().read(true).append(true).open(path) {
            Ok(file) => Ok(Some(Box::new(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let options = options.create_new(true).read(true).append(true);
        Ok(Box::new(options.mode(0o600).open(path)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.path.join(folder))? {
            // What is not UTF-8 is not of our making.
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        sync(&self.path.join(folder))
    }
}

impl File for fs::File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(bytes, at)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn cut(&mut self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn sync(&mut self) -> io::Result<()> {
        // The length is among what fdatasync(2) makes durable.
        self.sync_data()
    }
}
