//! Requests to servers whose answers are of some version, and which of these may be seen.

#![allow(
    dead_code,
    reason = "each test file is a crate of its own and uses some of the helpers"
)]

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;

use rustix::process::Signal;

use crate::common::process::Process;

/// Which versions are current: those of a publication that is under way, and what was before.
#[derive(Clone, Default)]
pub(crate) struct Versions(Arc<(AtomicU32, AtomicU32)>);

impl Versions {
    /// The next one, which may be seen from now on.
    pub(crate) fn begin(&self) -> u32 {
        self.0.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// It has been acknowledged: nothing older may be seen.
    pub(crate) fn end(&self, version: u32) {
        self.0.1.store(version, Ordering::SeqCst);
    }

    /// The newest that was acknowledged.
    pub(crate) fn current(&self) -> u32 {
        self.0.1.load(Ordering::SeqCst)
    }

    fn newest(&self) -> u32 {
        self.0.0.load(Ordering::SeqCst)
    }
}

/// Asks over a connection for each request, or over one, as long as it stays.
pub(crate) fn agent(keep: bool) -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    let kept = usize::from(keep);
    let config = config
        .max_idle_connections(kept)
        .max_idle_connections_per_host(kept);
    config.build().into()
}

/// The status of an answer.
pub(crate) fn status_of(url: &str) -> u16 {
    agent(false).get(url).call().unwrap().status().as_u16()
}

/// A thread that asks over and over; every answer has to be of a version that was current meanwhile.
pub(crate) struct Asking {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Asking {
    /// `ask` asks once: the version.
    pub(crate) fn start(
        versions: &Versions,
        mut ask: impl FnMut() -> u32 + Send + 'static,
    ) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let (stopped, versions) = (Arc::clone(&stop), versions.clone());
        let thread = std::thread::spawn(move || {
            let mut asked = 0;
            while !stopped.load(Ordering::Relaxed) {
                let least = versions.current();
                let version = ask();
                assert!(
                    (least..=versions.newest()).contains(&version),
                    "an answer of version {version}, and {least} was published before"
                );
                asked += 1;
            }
            asked
        });
        Self { stop, thread }
    }

    /// How often it has asked.
    pub(crate) fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("every answer was right")
    }
}

/// `wrk`, with a connection for each request: a server that reloads may close idle ones at any time.
pub(crate) struct Wrk(Process);

impl Wrk {
    pub(crate) fn start(url: &str) -> Self {
        let mut wrk = Command::new("wrk");
        // It is interrupted long before.
        wrk.args(["-t1", "-c8", "-d600", "-H", "Connection: close", url]);
        Self(Process::start(&mut wrk))
    }

    /// Ends it: no request may have failed. How many there were.
    pub(crate) fn finish(self) -> u64 {
        self.0.signal(Signal::INT);
        let wrk = self.0.finish().succeeded();
        for wrong in ["Non-2xx", "Socket errors"] {
            assert!(!wrk.stdout.contains(wrong), "{}", wrk.stdout);
        }
        let requests = wrk.stdout.lines();
        let mut requests = requests.filter_map(|line| line.trim().split_once(" requests in"));
        requests.next().expect("wrk says").0.parse().unwrap()
    }
}

/// A port that nobody listens at.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
