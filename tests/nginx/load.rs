//! Requests to nginx, many at a time, each answer of which is looked at.

use crate::http::{Asking, Versions, Wrk, agent};
use crate::server::Nginx;

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

/// The same, of whom nothing published may serve yet.
#[track_caller]
pub(crate) fn get_if_any(url: &str) -> Option<Page> {
    let page = ask_once(&agent(false), url);
    page.map_err(|status| assert_eq!(status, 503)).ok()
}

#[track_caller]
fn ask(agent: &ureq::Agent, url: &str) -> Page {
    ask_once(agent, url).unwrap_or_else(|status| panic!("{url} is answered with {status}"))
}

/// Asks once: the page, or the status.
fn ask_once(agent: &ureq::Agent, url: &str) -> Result<Page, u16> {
    let answer = agent.get(url).call();
    let mut answer = answer.unwrap_or_else(|error| panic!("{error}"));
    if answer.status().as_u16() != 200 {
        return Err(answer.status().as_u16());
    }
    let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
    let (version, process) = (header("X-Version"), header("X-Process"));
    let connection = header("X-Connection");
    let body = answer.body_mut().read_to_string().unwrap();
    assert_eq!(body, format!("version {version} of /page\n"));
    Ok(Page {
        version: version.parse().unwrap(),
        process: process.parse().unwrap(),
        connection,
    })
}

/// `wrk`, and a thread that looks at what it is answered.
pub(crate) struct Load {
    wrk: Wrk,
    asking: Asking,
}

impl Load {
    pub(crate) fn start(nginx: &Nginx, versions: &Versions) -> Self {
        let url = nginx.url();
        Self {
            wrk: Wrk::start(&url),
            asking: Asking::start(versions, move || get(&url).version),
        }
    }

    /// Ends it: no request may have failed. How many there were.
    pub(crate) fn finish(self) -> u64 {
        self.asking.finish() + self.wrk.finish()
    }
}

/// Asks over one connection, which has to stay.
pub(crate) fn keep_connection(nginx: &Nginx, versions: &Versions) -> Asking {
    let (agent, url) = (agent(true), nginx.url());
    let first = ask(&agent, &url);
    Asking::start(versions, move || {
        let page = ask(&agent, &url);
        let same = (&page.process, &page.connection) == (&first.process, &first.connection);
        assert!(same, "the connection has ended: {first:?}, {page:?}");
        page.version
    })
}
