//! Processes that take part: this program, started anew for a role, on a processor of its own if there is one.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::de::DeserializeOwned;

use crate::role::Role;

/// Tells a process which processors there are: it inherits the affinity of the thread that starts it.
const CPUS: &str = "JITCAST_BENCH_CPUS";

/// The processors that the first of these processes was given.
pub(crate) fn cpus() -> &'static [usize] {
    static ALL: OnceLock<Vec<usize>> = OnceLock::new();
    ALL.get_or_init(|| {
        if let Ok(told) = std::env::var(CPUS) {
            return serde_json::from_str(&told).expect("told by `Player::start`");
        }
        let set = sched_getaffinity(None).unwrap();
        (0..CpuSet::MAX_CPU)
            .filter(|cpu| set.is_set(*cpu))
            .collect()
    })
}

fn let_run_on(cpus: &[usize]) {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu));
    sched_setaffinity(None, &set).unwrap();
}

/// Has malloc keep what this process frees, as `jitcast serve` does. To be called while there is one thread.
pub(crate) fn keep_freed_memory() {
    // SAFETY: a parameter of mallopt(3), which reads nothing else; no other thread has been started yet.
    unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, 64 << 20) };
    // SAFETY: as above.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20) };
}

/// Lets this thread run on all of them.
pub(crate) fn unpin() {
    let_run_on(cpus());
}

/// Keeps the calling thread, and those that it starts, on one processor until dropped.
#[derive(Debug)]
pub(crate) struct Pinned(CpuSet);

impl Pinned {
    /// On the `number`-th of this machine's, counted around.
    pub(crate) fn to(number: usize) -> Self {
        let before = sched_getaffinity(None).unwrap();
        let cpus = cpus();
        let_run_on(&[cpus[number % cpus.len()]]);
        Self(before)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        sched_setaffinity(None, &self.0).unwrap();
    }
}

/// A process with a role; killed when dropped.
#[derive(Debug)]
pub(crate) struct Player(Child);

impl Player {
    /// Starts it. Where it runs is its own affair.
    pub(crate) fn start(role: &Role) -> Self {
        let role = serde_json::to_string(role).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--role", &role])
            .env(CPUS, serde_json::to_string(cpus()).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        Self(child.unwrap())
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Waits until it has said something, a line or its end.
    pub(crate) fn listen(&mut self) -> String {
        let out = self.0.stdout.as_mut().expect("piped by `start`");
        let mut line = Vec::new();
        let mut byte = [0];
        // Byte by byte: nothing after the line is taken.
        while out.read(&mut byte).unwrap() > 0 && byte != [b'\n'] {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    /// What it answers.
    pub(crate) fn answer<T: DeserializeOwned>(&mut self) -> T {
        let line = self.listen();
        serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("a player said `{line}`: {error}"))
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a process for `role`, and takes its answer.
pub(crate) fn ask<T: DeserializeOwned>(role: &Role) -> T {
    Player::start(role).answer()
}
