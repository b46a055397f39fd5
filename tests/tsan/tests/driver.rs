//! The driver does what it is to do without ThreadSanitizer too, so that it is fit for that when it is built for it (`.ci/tsan`).

use std::process::Command;

#[test]
fn the_driver_does_enough_of_everything() {
    let status = Command::new(env!("CARGO_BIN_EXE_jitcast-tsan"))
        .arg("5")
        .status();
    let status = status.unwrap();
    assert!(status.success(), "{status}");
}
