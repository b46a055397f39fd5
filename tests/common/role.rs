//! Roles: other processes of a test, played by the test's own binary.
//!
//! A test file that has roles defines the test [`TEST`], which plays the one that the environment names and is
//! otherwise empty.

use std::fmt::Display;
use std::io::Write;
use std::process::Command;

use super::process::{Process, Stream};

/// The name of the test that plays roles.
pub(crate) const TEST: &str = "this_binary_plays_the_roles_of_its_tests";

const ROLE: &str = "JITCAST_TEST_ROLE";

/// The address of what a role works on.
const TARGET: &str = "JITCAST_TEST_TARGET";

/// What reports begin with: libtest writes to the same output.
const REPORT: &str = "report: ";

/// A role: its name, and what plays it on a target.
pub(crate) type Role = (&'static str, fn(&str));

/// Plays the role that the environment names, and ends the process then.
pub(crate) fn play(roles: &[Role]) {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let (_, play) = roles
        .iter()
        .find(|(name, _)| *name == role)
        .unwrap_or_else(|| panic!("no role `{role}`"));
    play(&std::env::var(TARGET).unwrap_or_default());
    std::process::exit(0);
}

/// The command of a process that plays `role` on `target`.
pub(crate) fn command(role: &str, target: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", TEST, "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(TARGET, target);
    command
}

/// The command of a process of another user that plays `role` on `target`. That user need not be able to reach this binary.
pub(crate) fn command_as(uid: u32, role: &str, target: &str) -> Command {
    use std::os::fd::AsRawFd;
    use std::os::unix::process::CommandExt;
    static BINARY: std::sync::OnceLock<std::fs::File> = std::sync::OnceLock::new();
    let binary =
        BINARY.get_or_init(|| std::fs::File::open(std::env::current_exe().unwrap()).unwrap());
    let mut command = Command::new(format!("/proc/self/fd/{}", binary.as_raw_fd()));
    let own = self::command(role, target);
    let environment = own
        .get_envs()
        .filter_map(|(key, value)| Some((key, value?)));
    command.args(own.get_args()).envs(environment);
    command.uid(uid).gid(uid).current_dir("/");
    command
}

/// Starts a process that plays `role` on `target`.
pub(crate) fn start(role: &str, target: &str) -> Process {
    Process::start_listening(&mut command(role, target))
}

/// Of a role: reports to the test.
pub(crate) fn report(what: impl Display) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{REPORT}{what}").unwrap();
    out.flush().unwrap();
}

/// Of the test: the next report.
#[track_caller]
pub(crate) fn next_report(process: &mut Process) -> String {
    let line = process.await_line(Stream::Out, "a report", |line| line.contains(REPORT));
    let (_, report) = line.split_once(REPORT).expect("just looked for");
    report.to_owned()
}

/// Of a role: the next line that the test sends; `None` when it is done.
pub(crate) fn next_line() -> Option<String> {
    let mut line = String::new();
    let count = std::io::stdin().read_line(&mut line).unwrap();
    (count > 0).then(|| line.trim_end().to_owned())
}
