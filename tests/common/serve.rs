//! A `jitcast serve` process, and the other commands on its socket.

use std::process::Command;

use jitcast::compiler::Status;

use super::process::{Finished, Process, Stream, finish, jitcast, jitcast_as};
use super::scratch::{Scratch, adds};

/// A compiler process of its own.
#[derive(Debug)]
pub(crate) struct Serve {
    pub(crate) process: Process,
    pub(crate) socket: String,
    pub(crate) scratch: Scratch,
}

impl Serve {
    /// Starts one at a socket in a scratch folder.
    pub(crate) fn start(options: &[&str]) -> Self {
        let scratch = Scratch::open_to_all();
        let socket = scratch.path("socket");
        let process = Self::start_at(&socket, options);
        Self {
            process,
            socket,
            scratch,
        }
    }

    /// Starts one in which whatever prepares the unit waits for the test, see [`Gate`].
    #[cfg(feature = "seeded-faults")]
    pub(crate) fn holding(unit: &str, options: &[&str]) -> (Self, Gate) {
        let scratch = Scratch::open_to_all();
        let socket = scratch.path("socket");
        let gate = Gate::new(scratch.path("gate"));
        let mut command = jitcast(&["serve", "--socket", &socket]);
        command.args(options);
        command.env("JITCAST_HOLD", format!("{unit}={}", gate.0));
        let process = Self::await_service(&mut command);
        let serve = Self {
            process,
            socket,
            scratch,
        };
        (serve, gate)
    }

    /// Starts one as another user, in a folder of that user's; for root only.
    pub(crate) fn start_as(uid: u32, options: &[&str]) -> Self {
        let scratch = Scratch::open_to_all();
        let folder = scratch.path("own");
        std::fs::create_dir(&folder).unwrap();
        std::os::unix::fs::chown(&folder, Some(uid), Some(uid)).unwrap();
        let socket = format!("{folder}/socket");
        let mut command = jitcast_as(uid, &["serve", "--socket", &socket]);
        let process = Self::await_service(command.args(options));
        Self {
            process,
            socket,
            scratch,
        }
    }

    /// One that was started at `socket`; waits until it serves.
    pub(crate) fn adopt(mut process: Process, socket: String, scratch: Scratch) -> Self {
        await_serving(&mut process);
        Self {
            process,
            socket,
            scratch,
        }
    }

    /// One that serves already.
    pub(crate) fn adopt_running(process: Process, socket: String, scratch: Scratch) -> Self {
        Self {
            process,
            socket,
            scratch,
        }
    }

    /// Starts one at `socket`, and waits until it serves.
    pub(crate) fn start_at(socket: &str, options: &[&str]) -> Process {
        Self::await_service(jitcast(&["serve", "--socket", socket]).args(options))
    }

    fn await_service(command: &mut Command) -> Process {
        let mut process = Process::start(command);
        await_serving(&mut process);
        process
    }

    /// Runs another command on the socket.
    pub(crate) fn command(&self, command: &str, args: &[&str]) -> Finished {
        finish(jitcast(&[command, "--socket", &self.socket]).args(args))
    }

    /// Runs `publish`.
    pub(crate) fn publish(&self, args: &[&str]) -> Finished {
        self.command("publish", args)
    }

    /// Publishes a unit whose function of the same name adds `bonus`; it has to succeed.
    #[track_caller]
    pub(crate) fn publish_adds(&self, name: &str, bonus: i64) {
        let file = self
            .scratch
            .write(&format!("{name}.clif"), adds(name, bonus));
        self.publish(&[&file]).succeeded();
    }

    /// What a fresh worker gets for `call`.
    #[track_caller]
    pub(crate) fn call(&self, call: &str) -> String {
        let worker = self.command("worker", &["--json", "--call", call]);
        results(&worker.succeeded().stdout).remove(0)
    }

    /// Waits until `worker` has applied all that is published.
    #[track_caller]
    pub(crate) fn await_applied(&self, worker: &Process) {
        super::process::await_some("everything applied", || {
            let status = self.status();
            let of = |other: &&jitcast::compiler::WorkerStatus| other.pid == worker.pid();
            let found = status.workers.iter().find(of)?;
            (found.applied == status.generation).then_some(())
        });
    }

    /// What `status` says.
    #[track_caller]
    pub(crate) fn status(&self) -> Status {
        let status = self.command("status", &["--json"]).succeeded();
        serde_json::from_str(&status.stdout).unwrap()
    }
}

fn await_serving(process: &mut Process) {
    process.await_line(Stream::Err, "`serving`", |line| line.starts_with("serving"));
}

/// The results in a worker's last line of JSON; errors as they are.
#[track_caller]
pub(crate) fn results(stdout: &str) -> Vec<String> {
    let report = stdout.lines().last().expect("a worker reports");
    let report: serde_json::Value = serde_json::from_str(report).unwrap();
    let results = report["results"].as_array().expect("a worker called");
    let text = |result: &serde_json::Value| {
        let text = result["Ok"].as_str().or_else(|| result["Err"].as_str());
        text.expect("a result or an error").to_owned()
    };
    results.iter().map(text).collect()
}

/// The rows of a table, the header first.
pub(crate) fn table(stdout: &str) -> Vec<Vec<String>> {
    let rows = stdout.lines().filter_map(|line| {
        let line = line.strip_prefix('│')?.strip_suffix('│')?;
        let cells = line.trim().split("  ").map(str::trim);
        Some(
            cells
                .filter(|cell| !cell.is_empty())
                .map(str::to_owned)
                .collect(),
        )
    });
    rows.collect()
}

/// Where a compiler process waits while it prepares a unit: a FIFO.
#[cfg(feature = "seeded-faults")]
#[derive(Debug)]
pub(crate) struct Gate(String);

#[cfg(feature = "seeded-faults")]
impl Gate {
    fn new(path: String) -> Self {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        Self(path)
    }

    /// Waits until somebody waits there: until what this returns is dropped. Bytes that are written to it are what happens then.
    #[track_caller]
    pub(crate) fn await_held(&self) -> std::fs::File {
        use rustix::fs::{Mode, OFlags, open};
        super::process::await_some("somebody at the gate", || {
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            open(&self.0, flags, Mode::empty()).ok().map(Into::into)
        })
    }
}
