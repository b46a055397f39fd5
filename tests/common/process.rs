//! Processes under guard: started, listened to, waited for with patience that ends, killed when dropped.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How long a test waits for what has to come. No statement about speed: only a hang exceeds it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Written to by who starts a process.
static FORKS: RwLock<()> = RwLock::new(());

/// Keeps the tests beside this one from starting processes while it is held. Starting one forks, and while that is under way the
/// workers of this process stay as they are, and are pinned: a guard does not find what was published just before, which is as it
/// should be. For tests that take it for given. They start none themselves meanwhile.
pub(crate) fn no_forks() -> RwLockReadGuard<'static, ()> {
    FORKS.read().unwrap()
}

/// A user that owns nothing.
pub(crate) const NOBODY: u32 = 65534;

/// The `jitcast` command with `args`.
pub(crate) fn jitcast<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_jitcast"));
    command.args(args);
    command
}

/// The `jitcast` command as another user, who need not be able to reach the folder that it lies in.
pub(crate) fn jitcast_as<S: AsRef<std::ffi::OsStr>>(uid: u32, args: &[S]) -> Command {
    static BINARY: OnceLock<File> = OnceLock::new();
    let binary = BINARY.get_or_init(|| File::open(env!("CARGO_BIN_EXE_jitcast")).unwrap());
    let mut command = Command::new(format!("/proc/self/fd/{}", binary.as_raw_fd()));
    command
        .args(args)
        .arg0("jitcast")
        .uid(uid)
        .gid(uid)
        .current_dir("/");
    command
}

/// Runs `command` to its end.
pub(crate) fn finish(command: &mut Command) -> Finished {
    Process::start(command).finish()
}

/// How a process ended, and what it wrote.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// Asserts success.
    #[track_caller]
    pub(crate) fn succeeded(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    /// Asserts that it failed with one error of all these phrases, and left standard output alone.
    #[track_caller]
    pub(crate) fn refused(self, phrases: &[&str]) -> Self {
        assert_eq!(self.stdout, "", "errors go to standard error: {self:#?}");
        self.failed(phrases)
    }

    /// Asserts that it failed with one error of all these phrases.
    #[track_caller]
    pub(crate) fn failed(self, phrases: &[&str]) -> Self {
        assert_eq!(self.code, Some(1), "{self:#?}");
        let errors = self
            .stderr
            .lines()
            .filter(|line| line.starts_with("error: "))
            .count();
        assert_eq!(errors, 1, "one error is shown: {self:#?}");
        for phrase in phrases {
            assert!(self.stderr.contains(phrase), "`{phrase}` in {self:#?}");
        }
        self
    }
}

/// An output of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Out,
    Err,
}

#[derive(Debug, Default)]
struct Output {
    lines: Vec<(Stream, String)>,
    closed: usize,
}

/// A running process, killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    what: String,
    output: Arc<(Mutex<Output>, Condvar)>,
    /// Lines looked at by `await_line`, for each stream.
    seen: [usize; 2],
}

impl Process {
    /// Starts `command` without standard input. It is killed with this test's thread.
    pub(crate) fn start(command: &mut Command) -> Self {
        let started = Self::try_start(command.stdin(Stdio::null()));
        started.unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// As [`Process::start`], with a pipe as standard input.
    pub(crate) fn start_listening(command: &mut Command) -> Self {
        let started = Self::try_start(command.stdin(Stdio::piped()));
        started.unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// As [`Process::start`], for commands that may not start; standard input is what the command says.
    pub(crate) fn try_start(command: &mut Command) -> io::Result<Self> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let die_with_us = || {
            let signal = rustix::process::Signal::KILL;
            Ok(rustix::process::set_parent_process_death_signal(Some(
                signal,
            ))?)
        };
        // SAFETY: between fork and exec only async-signal-safe functions may be called: prctl(2) is one, and
        // the closure does nothing else.
        unsafe { command.pre_exec(die_with_us) };
        let what = format!("{command:?}");
        let mut child = {
            let _forks = FORKS.write().unwrap();
            command.spawn()?
        };
        let output = Arc::default();
        let streams: [(Stream, Option<Box<dyn Read + Send>>); 2] = [
            (
                Stream::Out,
                child.stdout.take().map(|out| Box::new(out) as _),
            ),
            (
                Stream::Err,
                child.stderr.take().map(|err| Box::new(err) as _),
            ),
        ];
        let read = |(stream, from): (Stream, Option<Box<dyn Read + Send>>)| {
            let output = Arc::clone(&output);
            let from = from.expect("piped just above");
            std::thread::spawn(move || collect(stream, from, &output));
        };
        streams.into_iter().for_each(read);
        Ok(Self {
            child,
            what,
            output,
            seen: [0; 2],
        })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Writes a line to its standard input.
    pub(crate) fn send(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().expect("started listening");
        if let Err(error) = writeln!(input, "{line}") {
            let written = &self.output.0.lock().unwrap().lines;
            let status = self.child.try_wait();
            panic!("{}: {error}; {status:?}; it wrote {written:#?}", self.what);
        }
    }

    /// Sends it a signal. It has not been waited for, so its number means no other process.
    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(id(self.pid()), signal).unwrap();
    }

    /// The next line of `stream` that `wanted` picks; lines before it are passed over.
    #[track_caller]
    pub(crate) fn await_line(
        &mut self,
        stream: Stream,
        awaited: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> String {
        let deadline = Instant::now() + PATIENCE;
        let seen = &mut self.seen[stream as usize];
        let (output, changed) = &*self.output;
        let mut output = output.lock().unwrap();
        loop {
            while *seen < output.lines.len() {
                let (from, line) = &output.lines[*seen];
                *seen += 1;
                if *from == stream && wanted(line) {
                    return line.clone();
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero() && output.closed < 2,
                "{}: {awaited} never came; it wrote {:#?}",
                self.what,
                output.lines
            );
            output = changed.wait_timeout(output, left).unwrap().0;
        }
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end, and for that of everybody who has inherited its outputs.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Finished {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None => {
                    let written = self.output.0.lock().unwrap().lines.clone();
                    let hangs = Instant::now() > deadline;
                    assert!(!hangs, "{} does not end; it wrote {written:#?}", self.what);
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        };
        let (output, changed) = &*self.output;
        let mut output = output.lock().unwrap();
        while output.closed < 2 {
            let left = deadline.saturating_duration_since(Instant::now());
            let (what, lines) = (&self.what, &output.lines);
            assert!(
                !left.is_zero(),
                "{what} has ended, but somebody holds its outputs; it wrote {lines:#?}"
            );
            output = changed.wait_timeout(output, left).unwrap().0;
        }
        let text = |stream| {
            let of = output.lines.iter().filter(|(from, _)| *from == stream);
            of.map(|(_, line)| format!("{line}\n")).collect()
        };
        Finished {
            code: status.code(),
            signal: status.signal(),
            stdout: text(Stream::Out),
            stderr: text(Stream::Err),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already is only waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(stream: Stream, from: impl Read, output: &(Mutex<Output>, Condvar)) {
    for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        output.0.lock().unwrap().lines.push((stream, line));
        output.1.notify_all();
    }
    output.0.lock().unwrap().closed += 1;
    output.1.notify_all();
}

fn id(pid: i32) -> Pid {
    Pid::from_raw(pid).expect("a process has a number")
}

/// A process that somebody else started, watched by a descriptor that cannot come to mean another one.
#[derive(Debug)]
pub(crate) struct Watched {
    pid: i32,
    pidfd: OwnedFd,
}

impl Watched {
    /// Watches the process `pid`, which lives.
    pub(crate) fn new(pid: i32) -> Self {
        Self::find(pid).unwrap_or_else(|| panic!("there is no process {pid}"))
    }

    /// Watches the process `pid`, if there is one.
    pub(crate) fn find(pid: i32) -> Option<Self> {
        let pidfd = pidfd_open(id(pid), PidfdFlags::empty()).ok()?;
        Some(Self { pid, pidfd })
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        pidfd_send_signal(&self.pidfd, signal).unwrap();
    }

    /// Whether it has not ended.
    pub(crate) fn lives(&self) -> bool {
        !self.ends_within(Duration::ZERO)
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn await_end(&self) {
        assert!(
            self.ends_within(PATIENCE),
            "process {} does not end",
            self.pid
        );
    }

    /// Whether it ends by then.
    pub(crate) fn ends_within(&self, timeout: Duration) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let timeout = Timespec {
            tv_sec: timeout.as_secs().cast_signed(),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        poll(
            &mut [PollFd::new(&self.pidfd, PollFlags::IN)],
            Some(&timeout),
        )
        .unwrap()
            > 0
    }
}

/// What `measure` says once that has not changed for a tenth of a second.
pub(crate) fn at_rest<T: PartialEq>(measure: impl Fn() -> T) -> T {
    const LOOKS: u32 = 10;
    let (mut last, mut same) = (measure(), 0);
    while same < LOOKS {
        std::thread::sleep(Duration::from_millis(10));
        let now = measure();
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    last
}

/// Looks again and again until `found` gives something.
#[track_caller]
pub(crate) fn await_some<T>(awaited: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "{awaited} never came");
        std::thread::sleep(Duration::from_millis(5));
    }
}
