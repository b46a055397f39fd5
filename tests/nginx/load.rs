//! Requests, many at a time, each answer of which is looked at.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;

use rustix::process::Signal;

use crate::common::process::Process;
use crate::server::Nginx;

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

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) version: u32,
    pub(crate) process: i32,
    connection: String,
}

/// Asks once; body and header have to be of one version.
#[track_caller]
pub(crate) fn get(url: &str) -> Page {
    ask(&agent(false), url)
}

/// The status of an answer.
pub(crate) fn status_of(url: &str) -> u16 {
    agent(false).get(url).call().unwrap().status().as_u16()
}

fn agent(keep: bool) -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    let kept = usize::from(keep);
    let config = config
        .max_idle_connections(kept)
        .max_idle_connections_per_host(kept);
    config.build().into()
}

fn ask(agent: &ureq::Agent, url: &str) -> Page {
    let mut answer = agent
        .get(url)
        .call()
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(answer.status().as_u16(), 200);
    let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
    let (version, process) = (header("X-Version"), header("X-Process"));
    let connection = header("X-Connection");
    let body = answer.body_mut().read_to_string().unwrap();
    assert_eq!(body, format!("version {version} of /page\n"));
    Page {
        version: version.parse().unwrap(),
        process: process.parse().unwrap(),
        connection,
    }
}

/// A thread that asks over and over; every answer has to be of a version that was current meanwhile.
pub(crate) struct Asking {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Asking {
    /// `keep`: over one connection, which has to stay.
    fn start(url: String, versions: Versions, keep: bool) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let agent = agent(keep);
            let first = keep.then(|| ask(&agent, &url));
            let mut asked = 0;
            while !stopped.load(Ordering::Relaxed) {
                let least = versions.current();
                let page = ask(&agent, &url);
                assert!(
                    (least..=versions.newest()).contains(&page.version),
                    "{page:?}, {least} was published"
                );
                if let Some(first) = &first {
                    let same =
                        (&page.process, &page.connection) == (&first.process, &first.connection);
                    assert!(same, "the connection has ended: {first:?}, {page:?}");
                }
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

/// `wrk`, and threads that look at what they are answered.
pub(crate) struct Load {
    wrk: Process,
    asking: Asking,
    url: String,
    versions: Versions,
}

impl Load {
    pub(crate) fn start(nginx: &Nginx, versions: &Versions) -> Self {
        let mut wrk = Command::new("wrk");
        // It is interrupted long before. With a connection for each request, since a server that reloads may close idle ones at any time.
        wrk.args([
            "-t1",
            "-c8",
            "-d600",
            "-H",
            "Connection: close",
            &nginx.url(),
        ]);
        Self {
            wrk: Process::start(&mut wrk),
            asking: Asking::start(nginx.url(), versions.clone(), false),
            url: nginx.url(),
            versions: versions.clone(),
        }
    }

    /// Asks over one connection besides.
    pub(crate) fn keep_connection(&self) -> Asking {
        Asking::start(self.url.clone(), self.versions.clone(), true)
    }

    /// Ends it: no request may have failed. How many there were.
    pub(crate) fn finish(self) -> u64 {
        let looked_at = self.asking.finish();
        self.wrk.signal(Signal::INT);
        let wrk = self.wrk.finish().succeeded();
        for wrong in ["Non-2xx", "Socket errors"] {
            assert!(!wrk.stdout.contains(wrong), "{}", wrk.stdout);
        }
        let requests = wrk
            .stdout
            .lines()
            .find_map(|line| line.trim().split_once(" requests in"));
        let requests: u64 = requests.expect("wrk says").0.parse().unwrap();
        requests + looked_at
    }
}
