//! Thin archives, which name the files of their members instead of holding them: made whole, where the files are.
//!
//! Invariant: what is read are regular files, and no more than [`MAX_FILE_BYTES`] together, however often the archive
//! names one. A thin archive that arrives without its files is refused by the linker.

use std::path::{Path, PathBuf};

use object::read::archive::ArchiveFile;

use super::{FrontError, MAX_FILE_BYTES, ar, read_file};

/// Whether these are the first bytes of a thin archive.
pub(super) fn is_thin(bytes: &[u8]) -> bool {
    bytes.starts_with(&object::archive::THIN_MAGIC)
}

/// The archive at `path`, whose bytes are `thin`, with its members in it.
pub(super) fn made_whole(path: &Path, thin: &[u8]) -> Result<Vec<u8>, FrontError> {
    let damaged = |error: object::Error| FrontError::ThinArchive {
        path: path.to_owned(),
        why: error.to_string(),
    };
    let archive = ArchiveFile::parse(thin).map_err(damaged)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut members: Vec<(String, Vec<u8>)> = Vec::new();
    let mut left = MAX_FILE_BYTES;
    for member in archive.members() {
        let member = member.map_err(damaged)?;
        let name = String::from_utf8_lossy(member.name()).into_owned();
        // Relative to the archive, as `ar` writes it.
        let place: PathBuf = folder.join(&name);
        let bytes = read_file(&place, left)?;
        left -= bytes.len() as u64;
        members.push((name, bytes));
    }
    Ok(ar::archive(
        members
            .iter()
            .map(|(name, bytes)| (name.as_str(), &bytes[..])),
    ))
}
