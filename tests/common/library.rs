//! The C library as `make install` lays it out.

use std::process::Command;

use super::process::finish;

/// Installs it under `prefix`, in the folder `root`.
pub(crate) fn install(root: &str, prefix: &str) {
    let target = std::env::current_exe().unwrap();
    let target = target.ancestors().nth(3).unwrap();
    let mut make = Command::new("make");
    make.args(["-C", "worker/capi", "install", "PROFILE=dev"])
        .arg(format!("PREFIX={prefix}"))
        .arg(format!("DESTDIR={root}"))
        .env("CARGO_TARGET_DIR", target)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if cfg!(feature = "seeded-faults") {
        make.arg("CARGO_FLAGS=--features seeded-faults");
    }
    finish(&mut make).succeeded();
}
