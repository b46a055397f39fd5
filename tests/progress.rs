//! Work that takes a while says how far it is, on standard error; what is done at once says nothing.

mod common;

use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::Stdio;

use common::host::clif_unit;
use common::process::{finish, jitcast};
use common::scratch::{Scratch, adds};
use jitcast::compiler::{Compiler, CompilerOptions, JournalOptions};

#[test]
fn fuzzing_counts_cases() {
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
fn a_publisher_that_waits_says_so() {
    use common::process::{Process, Stream};
    use common::serve::Serve;

    let (serve, gate) = Serve::holding("slow", &[]);
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

#[test]
fn a_journal_that_is_read_says_how_far_it_is() {
    let scratch = Scratch::new();
    let start = || {
        let journal = JournalOptions::new(scratch.path("journal"));
        let options = CompilerOptions {
            journal: Some(journal.clone()),
            ..CompilerOptions::with_window(8 << 20).unwrap()
        };
        let compiler = Compiler::create(&options).unwrap();
        (compiler, journal.progress.so_far())
    };
    let (compiler, fresh) = start();
    assert_eq!(fresh, (0, 0));
    compiler.publish(&[clif_unit("f", &adds("f", 1))]).unwrap();
    drop(compiler);
    let (_compiler, (done, total)) = start();
    assert!(done == total && total > 0, "{done} of {total}");
}
