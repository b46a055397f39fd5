//! Which object the shared data are in, for the next compiler process: a file beside the log, `DIR/shared`.
//!
//! It says something as long as the machine runs, so it need not be durable. Whatever is wrong with it, shared data start afresh.

use std::io;
use std::path::Path;

use jitcast_runtime::segment::ObjectIdentity;

const FILE: &str = "shared";
const NEW_FILE: &str = "shared.new";

/// What tells one running of the machine from another.
fn boot() -> io::Result<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(boot.trim().to_owned())
}

/// The object that is noted in the journal's `folder`, if this is the same running of the machine.
pub(crate) fn noted(folder: &Path) -> Option<ObjectIdentity> {
    let text = std::fs::read_to_string(folder.join(FILE)).ok()?;
    let mut words = text.split_whitespace();
    if words.next()? != boot().ok()? {
        return None;
    }
    let (device, inode) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(ObjectIdentity { device, inode })
}

/// Notes an object.
pub(super) fn note(folder: &Path, object: ObjectIdentity) -> io::Result<()> {
    let ObjectIdentity { device, inode } = object;
    let text = format!("{} {device} {inode}\n", boot()?);
    std::fs::write(folder.join(NEW_FILE), text)?;
    std::fs::rename(folder.join(NEW_FILE), folder.join(FILE))
}
