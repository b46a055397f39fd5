//! Ctrl-C, SIGTERM and SIGKILL: what `jitcast run` leaves behind, which is nothing.

mod common;

use std::path::Path;

use common::process::{Process, Stream, Watched, jitcast};
use common::scratch::{STUCK, Scratch};
use rustix::process::Signal;

/// A `jitcast run` all of whose workers are inside a call that does not return.
struct Stuck {
    run: Process,
    workers: Vec<Watched>,
    /// The abstract name of its socket.
    socket: String,
    _scratch: Scratch,
}

impl Stuck {
    fn start(workers: usize, options: &[&str]) -> Self {
        let scratch = Scratch::new();
        let file = scratch.write("stuck.clif", STUCK);
        let count = workers.to_string();
        let mut command = jitcast(&["run", &file, "--call=stuck()", "--workers", &count]);
        let mut run = Process::start(command.args(options));
        for _ in 0..workers {
            run.await_line(Stream::Out, "the letter", |line| line.ends_with(": X"));
        }
        let pids = children(run.pid());
        assert_eq!(pids.len(), workers);
        let arguments = std::fs::read_to_string(format!("/proc/{}/cmdline", pids[0])).unwrap();
        let socket = arguments
            .split('\0')
            .find_map(|argument| argument.strip_prefix("--socket="))
            .unwrap();
        Self {
            socket: socket.to_owned(),
            workers: pids.into_iter().map(Watched::new).collect(),
            run,
            _scratch: scratch,
        }
    }

    /// Ends `run` by `signal`, and asserts that nobody and no socket is left. Returns its exit status.
    fn end_by(self, signal: Signal) -> (Option<i32>, Option<i32>) {
        assert!(
            socket_exists(&self.socket),
            "{} is listened at",
            self.socket
        );
        self.run.signal(signal);
        let done = self.run.finish();
        self.workers.iter().for_each(Watched::await_end);
        assert!(!socket_exists(&self.socket), "{} is gone", self.socket);
        (done.code, done.signal)
    }
}

/// The processes whose parent is `pid`.
fn children(pid: i32) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").unwrap();
    let numbers = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers
        .filter(|child| status(*child, 1) == Some(pid.to_string()))
        .collect()
}

/// Word number `index` behind the command's name in `/proc/PID/stat`.
fn status(pid: i32, index: usize) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, words) = text.rsplit_once(") ")?;
    words.split(' ').nth(index).map(str::to_owned)
}

fn socket_exists(name: &str) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    sockets.lines().any(|line| line.ends_with(name))
}

#[test]
fn ctrl_c_and_sigterm_end_a_run_and_leave_no_process_and_no_socket() {
    for signal in [Signal::INT, Signal::TERM] {
        let end = Stuck::start(3, &[]).end_by(signal);
        assert_eq!(end, (Some(130), None), "{signal:?}");
    }
}

#[test]
fn ctrl_c_and_sigterm_end_a_run_and_leave_no_named_segment() {
    for signal in [Signal::INT, Signal::TERM] {
        let name = format!("test-run-{}-{}", std::process::id(), signal.as_raw());
        let object = format!("/dev/shm/jitcast-{name}");
        let stuck = Stuck::start(2, &["--name", &name]);
        assert!(Path::new(&object).exists());
        assert_eq!(stuck.end_by(signal), (Some(130), None), "{signal:?}");
        assert!(!Path::new(&object).exists(), "{object} is gone");
    }
}

#[test]
fn workers_end_with_a_run_that_is_killed() {
    let end = Stuck::start(3, &[]).end_by(Signal::KILL);
    assert_eq!(end, (None, Some(libc::SIGKILL)));
}
