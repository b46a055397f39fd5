//! What a test needs of its surroundings: looked for, and said loudly if it is not there.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Says that a test, or a part of one, cannot run here: past libtest's capture, since nobody reads the output
/// of tests that pass. With `JITCAST_REQUIRE=all` it fails instead.
pub(crate) fn skipped(why: &str) {
    assert!(
        std::env::var("JITCAST_REQUIRE").as_deref() != Ok("all"),
        "JITCAST_REQUIRE=all, and this test cannot run here: {why}"
    );
    say(why);
}

/// Says that a part of a test cannot run here for want of something that no package brings. It does not fail for that.
pub(crate) fn unavailable(why: &str) {
    say(why);
}

fn say(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test").to_owned();
    // Nothing is lost if standard error is closed.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
}

/// Whether there is a C compiler with its assembler and archiver; says so if not.
pub(crate) fn cc() -> bool {
    tool("cc") && tool("ar")
}

/// Whether there is a linker called `name`; says so if not.
pub(crate) fn linker(name: &str) -> bool {
    tool(name)
}

/// Whether there is clang; says so if not.
pub(crate) fn clang() -> bool {
    tool("clang") && tool("clang++")
}

/// Whether there is readelf; says so if not.
pub(crate) fn readelf() -> bool {
    tool("readelf")
}

/// Whether there is a C++ compiler; says so if not.
pub(crate) fn gxx() -> bool {
    tool("g++")
}

/// Whether there are compilers of C and C++; says so if not.
pub(crate) fn cxx() -> bool {
    cc() && gxx()
}

fn tool(name: &str) -> bool {
    let found = Command::new(name)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    found_or_skipped(name, found)
}

/// As [`tool`], for one that fails where it says its version.
fn starts(name: &str, argument: &str) -> bool {
    let mut command = Command::new(name);
    command
        .arg(argument)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    found_or_skipped(name, command.status().is_ok())
}

fn found_or_skipped(name: &str, found: bool) -> bool {
    if !found {
        skipped(&format!("`{name}` is not there"));
    }
    found
}

/// Whether there is what installs the C library and builds against it; says so if not.
pub(crate) fn make() -> bool {
    tool("make") && tool("pkg-config")
}

/// Whether there is nginx with what modules of it are built from, and a load for it; says so if not.
pub(crate) fn nginx() -> bool {
    let sources = Path::new("/usr/share/nginx/src/configure").exists();
    if !sources {
        skipped("there are no sources of nginx (Debian: nginx-dev)");
    }
    sources && starts("nginx", "-v") && wrk()
}

/// Whether there is a load for HTTP; says so if not.
pub(crate) fn wrk() -> bool {
    starts("wrk", "-v")
}

/// Whether there is Debian's Python with gunicorn and what installs packages, and a load for it; says so if not.
pub(crate) fn gunicorn() -> bool {
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-c", "import setuptools, gunicorn, pip, wheel"]);
    let found = python.stderr(Stdio::null()).status();
    let what = "/usr/bin/python3 with gunicorn, pip, setuptools and wheel";
    found_or_skipped(what, found.is_ok_and(|status| status.success())) && wrk()
}

/// Whether there is bash; says so if not.
pub(crate) fn bash() -> bool {
    tool("bash")
}

/// Whether there is gdb, and may look at a process that it has not started; says so if not.
pub(crate) fn gdb() -> bool {
    if !tool("gdb") {
        return false;
    }
    let mut other = Command::new("sleep").arg("60").spawn().unwrap();
    let looked = Command::new("gdb")
        .args(["-nx", "-batch", "-ex", "info inferiors", "-p"])
        .arg(other.id().to_string())
        .output();
    other.kill().unwrap();
    other.wait().unwrap();
    let may = looked.is_ok_and(|looked| String::from_utf8_lossy(&looked.stdout).contains("sleep"));
    if !may {
        unavailable("gdb may not look at other processes here (kernel.yama.ptrace_scope)");
    }
    may
}

/// Whether there is perf, and the kernel lets it count here; says so if not.
pub(crate) fn perf() -> bool {
    if !tool("perf") {
        return false;
    }
    let counted = Command::new("perf")
        .args(["stat", "-x,", "-e", "cpu-clock", "--", "sleep", "0.01"])
        .output();
    let counts = counted.is_ok_and(|counted| counted.status.success());
    if !counts {
        unavailable("the kernel does not let perf count here (kernel.perf_event_paranoid)");
    }
    counts
}

/// Whether there is Chromium, to draw pages without a screen; says so if not.
pub(crate) fn chromium() -> bool {
    tool("chromium")
}

/// Whether there is valgrind; says so if not.
pub(crate) fn valgrind() -> bool {
    tool("valgrind")
}

/// Whether this process may become another user; says so if not.
pub(crate) fn root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        skipped("only root can start processes of another uid");
    }
    is_root
}
