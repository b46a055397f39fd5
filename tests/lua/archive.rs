//! Lua 5.4, compiled from its own sources to an archive.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The folder that holds `lib/liblua5.4.a` and `include/`, filled by whoever needs it first.
///
/// It stays for later runs. It appears under its name whole or not at all, also if several processes make it.
pub(crate) fn lua() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(made)
}

fn made() -> PathBuf {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR"));
    // Lua's own checks are compiled in or out by the profile.
    let checks = if cfg!(debug_assertions) {
        "-checked"
    } else {
        ""
    };
    let place = kept.join(format!("lua-5.4.7{checks}"));
    if !archive(&place).exists() {
        let made = tempfile::tempdir_in(kept).unwrap();
        let triple = "x86_64-unknown-linux-gnu";
        lua_src::Build::new()
            .out_dir(made.path())
            .target(triple)
            .host(triple)
            .build(lua_src::Version::Lua54);
        // Another process may have been faster: then its folder is not empty, and is as good.
        if std::fs::rename(made.path(), &place).is_ok() {
            let _ = made.keep();
        }
    }
    place
}

/// The archive in the folder.
pub(crate) fn archive(folder: &Path) -> PathBuf {
    folder.join("lib/liblua5.4.a")
}
