//! Seeded faults: a promise's test has to fail under each of its own.

use std::process::{Command, Stdio};

/// Asserts that `test` of this binary fails in a process that is told of a fault by the environment variable `variable`.
#[track_caller]
pub(crate) fn is_noticed((variable, fault): (&str, &str), test: &str) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(variable, fault)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(!status.success(), "`{fault}` goes unnoticed by {test}");
}
