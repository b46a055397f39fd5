//! Lua 5.4, compiled from its own sources to an archive.

use std::path::{Path, PathBuf};

/// The folder that holds `lib/liblua5.4.a`, compiled with `flags` besides the usual ones, and `include/`; filled
/// by `compile`, for whoever needs it first.
///
/// It stays for later runs. It appears under its name whole or not at all, also if several processes make it.
pub(crate) fn lua(flags: &[&str], compile: impl FnOnce(&str)) -> PathBuf {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR"));
    // Lua's own checks are compiled in or out by the profile.
    let checks = if cfg!(debug_assertions) {
        "-checked"
    } else {
        ""
    };
    let place = kept.join(format!("lua-5.4.7{checks}{}", flags.concat()));
    if !archive(&place).exists() {
        let made = tempfile::tempdir_in(kept).unwrap();
        compile(made.path().to_str().unwrap());
        // Another process may have been faster: then its folder is not empty, and is as good.
        if std::fs::rename(made.path(), &place).is_ok() {
            let _ = made.keep();
        }
    }
    place
}

/// Compiles Lua into `folder`, with the flags that the environment adds (`CFLAGS`).
pub(crate) fn compile(folder: &str) {
    let triple = "x86_64-unknown-linux-gnu";
    lua_src::Build::new()
        .out_dir(folder)
        .target(triple)
        .host(triple)
        .build(lua_src::Version::Lua54);
}

/// The archive in the folder.
pub(crate) fn archive(folder: &Path) -> PathBuf {
    folder.join("lib/liblua5.4.a")
}
