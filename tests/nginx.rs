//! The module for nginx (examples/nginx), in the nginx that is installed: what answers is replaced under load, while nginx reloads, is
//! upgraded, or loses a worker, and while the compiler process is replaced or missing. No request may fail or be answered by
//! anything but a version that was current while it was under way.

mod common;
#[path = "servers/http.rs"]
mod http;
#[path = "nginx/load.rs"]
mod load;
#[path = "nginx/server.rs"]
mod server;
#[path = "servers/versioned.rs"]
mod versioned;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::host::Host;
use common::process::{NOBODY, Process, Watched, await_some, finish, jitcast};
use common::scratch::Scratch;
use common::serve::Serve;
use http::{Versions, status_of};
use jitcast::compiler::{CompilerOptions, Policy};
use load::{Load, get, get_if_any, keep_connection};
use rustix::process::Signal;
use server::{Nginx, complaints};
use versioned::Versioned;

/// A compiler process, in this one, to which nginx's workers may attach whoever they are.
fn host() -> Host {
    let mut policy = Policy::default();
    policy.attach.allow_uid(NOBODY);
    let options = CompilerOptions::with_window(common::host::WINDOW_BYTES).unwrap();
    Host::with_policy(options, policy)
}

/// A thousand replacements: no request fails, every answer is of a version that was current meanwhile, the workers are the same
/// ones, a connection that was open before is open afterwards, and idle workers hold nothing back.
#[test]
fn what_answers_is_replaced_a_thousand_times_under_load() {
    let Some(module) = server::module() else {
        return;
    };
    let pages = Versioned::page();
    let host = host();
    let versions = Versions::default();
    pages.publish_next(&host, &versions);
    let nginx = Nginx::start(module, &host.socket);
    let workers = nginx.workers();
    assert_eq!(workers.len(), 4);
    let load = Load::start(&nginx, &versions);
    let held_open = keep_connection(&nginx, &versions);
    for _ in 0..1000 {
        pages.publish_next(&host, &versions);
        std::thread::sleep(Duration::from_millis(2));
    }
    let requests = load.finish();
    let over_one_connection = held_open.finish();
    assert!(
        requests > 1000 && over_one_connection > 1000,
        "{requests}, {over_one_connection}"
    );
    assert_eq!(nginx.workers(), workers);
    assert_eq!(host.compiler.status().workers.len(), 4);
    // Nobody asks any more, and no worker has a timer of the module's. What was replaced is reused all the same.
    await_some("the end of what was replaced", || {
        pages.publish_next(&host, &versions);
        (host.compiler.status().retired_bytes < 64 << 10).then_some(())
    });
    assert_eq!(get(&nginx.url()).version, versions.current());
    nginx.quit();
}

/// `nginx -s reload`: new workers answer, and old ones too, while they have requests, by what is current.
#[test]
fn old_workers_follow_while_they_drain() {
    let Some(module) = server::module() else {
        return;
    };
    let pages = Versioned::page();
    let host = host();
    let versions = Versions::default();
    pages.publish_next(&host, &versions);
    let nginx = Nginx::start(module, &host.socket);
    let before = nginx.workers();
    let load = Load::start(&nginx, &versions);
    // A request that has begun keeps its worker.
    let mut slow = TcpStream::connect(nginx.address()).unwrap();
    slow.write_all(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n")
        .unwrap();
    std::thread::sleep(Duration::from_millis(200));
    nginx.signal(Signal::HUP);
    let after = await_some("new workers", || {
        let workers = nginx.workers();
        (workers
            .iter()
            .filter(|worker| !before.contains(worker))
            .count()
            == 4)
            .then_some(workers)
    });
    let draining: Vec<_> = await_some("the end of the other old workers", || {
        pages.publish_next(&host, &versions);
        let left: Vec<_> = nginx
            .workers()
            .into_iter()
            .filter(|worker| before.contains(worker))
            .collect();
        (left.len() == 1).then_some(left)
    });
    assert!(after.contains(&draining[0]));
    for _ in 0..50 {
        pages.publish_next(&host, &versions);
    }
    slow.write_all(b"Connection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    let current = versions.current();
    assert!(
        answer.starts_with("HTTP/1.1 200")
            && answer.ends_with(&format!("version {current} of /slow\n")),
        "{answer}"
    );
    assert!(
        answer.contains(&format!("X-Process: {}\r\n", draining[0])),
        "{answer}"
    );
    await_some("the end of the last old worker", || {
        (!nginx.workers().contains(&draining[0])).then_some(())
    });
    load.finish();
    await_some("the end of old workers in the status", || {
        (host.compiler.status().workers.len() == 4).then_some(())
    });
    nginx.quit();
}

/// USR2: the old and the new master's workers are attached at once, each at an address of its own; then the old ones go.
#[test]
fn two_masters_serve_at_once_while_the_binary_is_upgraded() {
    let Some(module) = server::module() else {
        return;
    };
    let pages = Versioned::page();
    let host = host();
    let versions = Versions::default();
    pages.publish_next(&host, &versions);
    let nginx = Nginx::start(module, &host.socket);
    let load = Load::start(&nginx, &versions);
    let old = nginx.workers();
    nginx.signal(Signal::USR2);
    await_some("eight workers, each at an address of its own", || {
        let workers = host.compiler.status().workers;
        let bases = workers.iter().map(|worker| worker.base);
        // One that attaches says its base a little later.
        let bases: BTreeSet<_> = bases.filter(|base| *base != 0).collect();
        (bases.len() == 8).then_some(())
    });
    let new = nginx.await_new_master();
    let mut seen = BTreeSet::new();
    await_some("answers of both", || {
        pages.publish_next(&host, &versions);
        let page = get(&nginx.url());
        assert!(page.version <= versions.current());
        seen.insert(page.process);
        let both =
            seen.iter().any(|pid| old.contains(pid)) && seen.iter().any(|pid| !old.contains(pid));
        both.then_some(())
    });
    nginx.signal(Signal::QUIT);
    await_some("the old workers' end", || {
        pages.publish_next(&host, &versions);
        (host.compiler.status().workers.len() == 4).then_some(())
    });
    load.finish();
    assert_eq!(get(&nginx.url()).version, versions.current());
    assert_eq!(complaints(&nginx.error_log()), Vec::<String>::new());
    new.signal(Signal::QUIT);
    new.await_end();
}

/// kill -9 of a worker: nginx starts another, which answers by what is current.
#[test]
fn a_worker_that_nginx_starts_anew_serves_what_is_current() {
    let Some(module) = server::module() else {
        return;
    };
    let pages = Versioned::page();
    let host = host();
    let versions = Versions::default();
    pages.publish_next(&host, &versions);
    let nginx = Nginx::start(module, &host.socket);
    for _ in 0..3 {
        let before = nginx.workers();
        pages.publish_next(&host, &versions);
        Watched::new(before[0]).signal(Signal::KILL);
        let fresh = await_some("another worker", || {
            let workers = nginx.workers();
            let fresh = workers
                .iter()
                .copied()
                .find(|worker| !before.contains(worker));
            fresh.filter(|_| workers.len() == 4)
        });
        await_some("its answer", || {
            let page = get(&nginx.url());
            assert_eq!(page.version, versions.current());
            (page.process == fresh).then_some(())
        });
        let pids = || {
            host.compiler
                .status()
                .workers
                .into_iter()
                .map(|worker| worker.pid)
        };
        await_some("the end of the killed one in the status", || {
            (!pids().any(|pid| pid == before[0]) && pids().any(|pid| pid == fresh)).then_some(())
        });
    }
    nginx.quit();
}

/// Workers start without a compiler process, find one when it comes, outlive it, and go on with the next one's publications.
#[test]
fn nginx_serves_before_without_and_after_a_compiler_process() {
    let Some(module) = server::module() else {
        return;
    };
    let scratch = Scratch::open_to_all();
    let socket = scratch.path("socket");
    let journal = scratch.path("journal");
    let nginx = Nginx::start(module, &socket);
    assert_eq!(status_of(&nginx.url()), 503);
    let allow = format!("uid:{NOBODY}");
    let options = ["--journal", &journal, "--allow-attach", &allow];
    let publish = |version: u32| {
        let page = common::scratch::example("nginx/page.c");
        let flags = format!("-O2 -g -fPIC -DVERSION={version}");
        let args = ["publish", "--socket", &socket, "--cflags", &flags, &page];
        finish(&mut jitcast(&args)).succeeded();
    };
    let answered = |version: u32| {
        let mut of = BTreeSet::new();
        await_some("answers of all workers", || {
            let page = get_if_any(&nginx.url());
            if let Some(page) = page.filter(|page| page.version == version) {
                of.insert(page.process);
            }
            (of.len() == 4).then_some(())
        });
    };
    let mut serve: Process = Serve::start_at(&socket, &options);
    publish(1);
    answered(1);
    for version in 2..4 {
        serve.signal(Signal::KILL);
        serve.finish();
        // Whoever has it, goes on with it.
        assert_eq!(get(&nginx.url()).version, version - 1);
        serve = Serve::start_at(&socket, &options);
        publish(version);
        answered(version);
    }
    assert_eq!(complaints(&nginx.error_log()), Vec::<String>::new());
    serve.signal(Signal::TERM);
    serve.finish().succeeded();
    nginx.quit();
}
