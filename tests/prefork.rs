//! The prefork server of examples/prefork.rs: its pages are replaced under load, by one process first, and it serves before there is a
//! compiler process.

mod common;
#[path = "servers/http.rs"]
mod http;
#[path = "servers/versioned.rs"]
mod versioned;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use common::host::Host;
use common::process::{Process, Stream, Watched, await_some, finish, jitcast};
use common::require;
use common::scratch::{Scratch, example};
use common::serve::Serve;
use http::{Asking, Versions, Wrk, agent, free_port, status_of};
use jitcast::compiler::{Audience, Changeset};
use rustix::process::Signal;
use versioned::Versioned;

/// The program, which cargo builds along with all tests, and with this one alone if it is asked to.
fn program() -> PathBuf {
    let target = std::env::current_exe().unwrap();
    let program = target.ancestors().nth(2).unwrap().join("examples/prefork");
    let command = "cargo build --example prefork";
    assert!(program.exists(), "there is no {program:?}: `{command}`");
    program
}

/// The server with four processes, which end with it.
fn start(socket: &str) -> (Process, String) {
    let port = free_port();
    let mut command = Command::new(program());
    command.args([socket, &port.to_string(), "4"]);
    let mut server = Process::start(&mut command);
    server.await_line(Stream::Out, "`serving`", |line| line.starts_with("serving"));
    let url = format!("http://127.0.0.1:{port}/page");
    await_some("an answer", || agent(false).get(&url).call().ok());
    (server, url)
}

/// Asks once: version and process.
fn ask(url: &str) -> (u32, i32) {
    let answer = agent(false).get(url).call();
    let mut answer = answer.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(answer.status().as_u16(), 200);
    let process = answer.headers()["x-process"].to_str().unwrap();
    let process = process.parse().unwrap();
    let body = answer.body_mut().read_to_string().unwrap();
    let version = body
        .strip_prefix("version ")
        .and_then(|body| body.strip_suffix(" of /page\n"));
    (version.expect(&body).parse().unwrap(), process)
}

/// What each of the four processes answers now.
fn ask_all(url: &str) -> BTreeMap<i32, u32> {
    let mut answers = BTreeMap::new();
    await_some("answers of all processes", || {
        let (version, process) = ask(url);
        answers.insert(process, version);
        (answers.len() == 4).then_some(())
    });
    answers
}

fn attached(host: &Host) -> BTreeSet<i32> {
    let workers = host.compiler.status().workers;
    workers.into_iter().map(|worker| worker.pid).collect()
}

#[test]
fn pages_are_replaced_a_thousand_times_under_load() {
    if !(require::cc() && require::wrk()) {
        return;
    }
    let (host, versions, pages) = (Host::sealed(), Versions::default(), Versioned::page());
    pages.publish_next(&host, &versions);
    let (_server, url) = start(&host.socket);
    let processes = await_some("four workers", || {
        Some(attached(&host)).filter(|all| all.len() == 4)
    });
    let (wrk, to_ask) = (Wrk::start(&url), url.clone());
    let asking = Asking::start(&versions, move || ask(&to_ask).0);
    for _ in 0..1000 {
        pages.publish_next(&host, &versions);
        std::thread::sleep(Duration::from_millis(2));
    }
    let requests = asking.finish() + wrk.finish();
    assert!(requests > 1000, "{requests}");
    assert_eq!(attached(&host), processes);
    let answers = ask_all(&url);
    assert!(answers.keys().eq(&processes), "{answers:?}");
    assert!(
        answers
            .values()
            .all(|version| *version == versions.current())
    );
}

/// A canary is seen in the answers of one process, until all run it.
#[test]
fn one_process_goes_first() {
    if !require::cc() {
        return;
    }
    let (host, pages) = (Host::sealed(), Versioned::page());
    host.compiler.publish(&[pages.unit(1)]).unwrap();
    let (_server, url) = start(&host.socket);
    await_some("four workers", || {
        (attached(&host).len() == 4).then_some(())
    });
    let next = [pages.unit(2)];
    let audience = Audience::Workers(1);
    let begin = || {
        let changes = Changeset {
            units: &next,
            canary: Some(&audience),
            ..Changeset::default()
        };
        host.compiler
            .change(&changes)
            .unwrap_or_else(|error| panic!("{error}"));
        let mut answers: Vec<_> = ask_all(&url).into_values().collect();
        answers.sort_unstable();
        assert_eq!(answers, [1, 1, 1, 2]);
    };
    begin();
    host.compiler.abort("page").unwrap();
    assert!(ask_all(&url).values().all(|version| *version == 1));
    begin();
    host.compiler.promote("page").unwrap();
    assert!(ask_all(&url).values().all(|version| *version == 2));
}

/// Processes serve by themselves until there is a compiler process, and those that are started anew what is current.
#[test]
fn the_server_starts_first_and_replaces_who_dies() {
    if !require::cc() {
        return;
    }
    let scratch = Scratch::new();
    let socket = scratch.path("socket");
    let (_server, url) = start(&socket);
    assert_eq!(status_of(&url), 503);
    let (serve, page) = (Serve::start_at(&socket, &[]), example("nginx/page.c"));
    let publish = [
        "publish",
        "--socket",
        &socket,
        "--cflags",
        "-O2 -g -fPIC",
        &page,
    ];
    finish(&mut jitcast(&publish)).succeeded();
    await_some("a page", || (status_of(&url) == 200).then_some(()));
    // Others join by themselves a little later.
    let processes = await_some("pages of all", || {
        let all: Vec<_> = (0..64).map(|_| status_of(&url)).collect();
        all.iter()
            .all(|status| *status == 200)
            .then(|| ask_all(&url))
    });
    let killed = *processes.keys().next().unwrap();
    Watched::new(killed).signal(Signal::KILL);
    await_some("another process", || {
        // Connections that waited at the killed one's socket are reset: each process has its own.
        let answer = agent(false).get(&url).call().ok()?;
        let is_new = |process: i32| !processes.contains_key(&process);
        let process = answer.headers()["x-process"].to_str().unwrap();
        (answer.status() == 200 && is_new(process.parse().unwrap())).then_some(())
    });
    serve.signal(Signal::TERM);
}
