//! C libraries that tests link as units, compiled from the sources that their crates carry.

/// A library.
#[derive(Clone, Copy, Debug)]
pub struct Native {
    /// The folder of its archive.
    pub folder: &'static str,
    /// The archive's name.
    pub archive: &'static str,
    /// The folder of its headers.
    pub include: &'static str,
}

/// SQLite, one object of 200,000 lines.
pub const SQLITE: Native = Native {
    folder: env!("SQLITE_FOLDER"),
    archive: "libsqlite3.a",
    include: env!("SQLITE_INCLUDE"),
};

/// Zstandard. Its crate hides its symbols, so they can be used in their own unit only.
pub const ZSTD: Native = Native {
    folder: env!("ZSTD_FOLDER"),
    archive: "libzstd.a",
    include: env!("ZSTD_INCLUDE"),
};
