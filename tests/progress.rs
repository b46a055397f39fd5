//! Work that takes a while says how far it is, on standard error; what is done at once says nothing.

mod common;

use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::Stdio;

use common::process::{Process, Stream, finish, jitcast};
use common::scratch::adds;
use common::serve::Serve;

#[test]
fn fuzzing_counts_cases() {
    let run = |time: &str| {
        finish(&mut jitcast(&[
            "fuzz", "--seed", "7", "--case", "1", "--time", time,
        ]))
    };
    let quick = run("1");
    assert!(!quick.stderr.contains("fuzzing"), "{quick:#?}");
    // Too short for some kinds, which it says.
    let long = finish(&mut jitcast(&["fuzz", "--seed", "7", "--time", "3"]));
    let lines: Vec<_> = long
        .stderr
        .lines()
        .filter(|line| line.starts_with("fuzzing: "))
        .collect();
    assert!(!lines.is_empty(), "{long:#?}");
    assert!(lines[0].contains(" cases, "), "{lines:#?}");
    assert!(!long.stdout.contains("fuzzing"), "{long:#?}");
}

#[test]
fn a_terminal_gets_a_line_that_is_drawn_over() {
    let (mut master, mut slave) = (0, 0);
    let null = std::ptr::null_mut();
    // SAFETY: two descriptors are stored where they lie.
    let opened = unsafe {
        libc::openpty(
            &raw mut master,
            &raw mut slave,
            null,
            null.cast(),
            null.cast(),
        )
    };
    assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: fresh descriptors, each owned once.
    let [master, slave] = [master, slave].map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let mut command = jitcast(&["fuzz", "--seed", "7", "--time", "3"]);
    command.env("TERM", "xterm").env_remove("NO_COLOR");
    let mut child = command.stdout(Stdio::null()).stderr(slave).spawn().unwrap();
    drop(command);
    let (mut shown, mut buffer) = (Vec::new(), [0; 4096]);
    let mut master = File::from(master);
    // A terminal that nobody has ends with an error.
    while let Ok(1..) = master
        .read(&mut buffer)
        .inspect(|count| shown.extend_from_slice(&buffer[..*count]))
    {}
    child.wait().unwrap();
    let shown = String::from_utf8_lossy(&shown);
    assert!(
        shown.contains("fuzzing") && shown.contains("cases"),
        "{shown:?}"
    );
    assert!(
        shown.contains('\r') || shown.contains("\u{1b}["),
        "{shown:?}"
    );
}

#[test]
#[cfg(feature = "seeded-faults")]
fn a_publisher_that_waits_says_so_and_a_quick_one_does_not() {
    let (serve, gate) = Serve::holding("slow", &[]);
    serve.publish_adds("f", 1);
    let quick = serve
        .publish(&[&serve.scratch.write("f.clif", adds("f", 2))])
        .succeeded();
    assert_eq!(quick.stderr, "");
    let file = serve.scratch.write("slow.clif", adds("slow", 1));
    let mut command = jitcast(&["publish", "--socket", &serve.socket, &file]);
    let mut publisher = Process::start(&mut command);
    let held = gate.await_held();
    let line = publisher.await_line(Stream::Err, "progress", |line| {
        line.starts_with("publishing ")
    });
    assert!(line.contains("publishing 1 unit"), "{line}");
    drop(held);
    publisher.finish().succeeded();
}
