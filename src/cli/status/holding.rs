//! What a process holds of a segment, found through /proc, for when nobody else can be asked.
//!
//! Invariant: nothing there is believed. A descriptor is opened for reading only, without waiting, and counts if it is a regular file; an
//! object that its owner could shorten under our mapping does not count, unless it has a name, for which the same user is trusted.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use jitcast::runtime::geometry::Area;
use jitcast::runtime::header::Header;
use jitcast::runtime::mailbox::Word;
use jitcast::runtime::observer::Observer;
use jitcast::runtime::segment::{DEV_SHM, SEALS};
use jitcast::runtime::tally::Snapshot;
use rustix::fs::OFlags;

/// The most files of one process that are looked at.
const MAX_FILES: usize = 1 << 16;

/// A file that a process has open or mapped, by what the kernel calls it.
fn files(pid: i32) -> Result<Vec<(String, PathBuf)>, std::io::Error> {
    let mut files = Vec::new();
    let folders = [format!("/proc/{pid}/fd"), format!("/proc/{pid}/map_files")];
    for (index, folder) in folders.iter().enumerate() {
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            // Only some may look there.
            Err(_) if index > 0 => break,
            Err(error) => return Err(error),
        };
        for entry in entries.flatten().take(MAX_FILES) {
            if let Ok(link) = std::fs::read_link(entry.path()) {
                files.push((link.to_string_lossy().into_owned(), entry.path()));
            }
        }
    }
    Ok(files)
}

/// Opens a regular file for reading, whatever else may be there.
fn open(path: &PathBuf) -> Option<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mut options = File::options();
    let options = options.read(true).custom_flags(flags.bits().cast_signed());
    let file = options.open(path).ok()?;
    file.metadata().ok()?.is_file().then_some(file)
}

/// Whether nobody can shorten it under our mapping.
fn is_fixed(file: &File) -> bool {
    rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SEALS))
}

/// The segment that process `pid` is a worker of, and its mailbox, as far as they are found.
pub(super) fn of_worker(pid: i32) -> Result<(Observer, Option<Snapshot>), String> {
    let help = "give the pid of a worker, as this user, or as root";
    let files = files(pid)
        .map_err(|cause| format!("cannot look into process {pid}: {cause}\n  help: {help}"))?;
    let is_named = |link: &str| link.starts_with(&format!("{DEV_SHM}/jitcast-"));
    let is_sealed = |link: &str| link.starts_with("/memfd:jitcast (");
    let mut segments = files.iter().filter_map(|(link, path)| {
        // Only what is called so is opened: a file may be on a disk that does not answer.
        let has_name = is_named(link);
        let file = (has_name || is_sealed(link)).then(|| open(path))??;
        let fits = has_name || is_fixed(&file);
        fits.then(|| Observer::new(file).ok())?
    });
    let segment = segments.next();
    let segment = segment.ok_or_else(|| {
        format!("process {pid} has no segment of this version open\n  help: {help}")
    })?;
    Ok((segment, mailbox(pid, &files)))
}

/// The mailbox of process `pid`, if it maps a segment by one. One that lies ready for a child says of no window.
fn mailbox(pid: i32, files: &[(String, PathBuf)]) -> Option<Snapshot> {
    let files = files.iter();
    let mailboxes = files.filter(|(link, _)| link.starts_with("/memfd:jitcast-mailbox ("));
    let read = |path: &PathBuf| Snapshot::read(open(path)?).ok().flatten();
    let mut snapshots = mailboxes.filter_map(|(_, path)| read(path));
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let bases = maps.lines().filter_map(|line| {
        let (start, _) = line.split_once('-')?;
        u64::from_str_radix(start, 16).ok()
    });
    let bases: HashSet<u64> = bases.collect();
    snapshots.find(|snapshot| {
        let base = snapshot.word(Word::Base);
        base != 0 && bases.contains(&base)
    })
}

/// The processes that have the object of this header open, by its name.
pub(super) fn workers_of(observer: &Observer, name: &str) -> Vec<(i32, Snapshot)> {
    let path = format!("{DEV_SHM}/jitcast-{name}");
    let Ok(object) = std::fs::metadata(&path) else {
        return Vec::new();
    };
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = processes.flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut workers = Vec::new();
    for pid in pids.filter(|pid| u32::try_from(*pid) != Ok(std::process::id())) {
        let Ok(files) = files(pid) else { continue };
        let is_it = |(link, file): &(String, PathBuf)| {
            let is_same = |found: std::fs::Metadata| {
                (found.dev(), found.ino()) == (object.dev(), object.ino())
            };
            link.starts_with(DEV_SHM) && std::fs::metadata(file).is_ok_and(is_same)
        };
        if files.iter().any(is_it)
            && let Some(mailbox) = mailbox(pid, &files)
            && maps(pid, mailbox.word(Word::Base), observer)
        {
            workers.push((pid, mailbox));
        }
    }
    workers.sort_by_key(|(pid, _)| *pid);
    workers
}

/// Whether the process maps the segment where it says; where nobody may look: as it says.
fn maps(pid: i32, base: u64, observer: &Observer) -> bool {
    use std::os::unix::fs::FileExt;
    let Ok(memory) = File::open(format!("/proc/{pid}/mem")) else {
        return true;
    };
    let control = u64::from(observer.geometry().region(Area::Control).start);
    let at = control + std::mem::offset_of!(Header, instance) as u64;
    let mut instance = [0; 16];
    let read = memory.read_exact_at(&mut instance, base.wrapping_add(at));
    read.is_ok() && instance == observer.header().instance
}
