//! The metrics endpoint: what it says is well-formed and moves, and nobody who connects to it is in anybody's way.

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use common::process::{Process, Stream, await_some, finish, jitcast};
use common::remote::{self, Remote};
use common::role;
use common::scratch::Scratch;
use common::serve::Serve;

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(remote::ROLE, remote::play), (CRASHING, crash)]);
}

/// A compiler process, and where its metrics are.
fn start(options: &[&str]) -> (Serve, String) {
    let scratch = Scratch::open_to_all();
    let socket = scratch.path("socket");
    let mut command = jitcast(&["serve", "--socket", &socket, "--metrics", "127.0.0.1:0"]);
    let mut process = Process::start(command.args(options));
    let address = address(&mut process);
    (Serve::adopt(process, socket, scratch), address)
}

fn address(process: &mut Process) -> String {
    let line = process.await_line(Stream::Err, "where metrics are", |line| {
        line.starts_with("metrics at ")
    });
    let address = line.strip_prefix("metrics at http://").unwrap();
    address.strip_suffix("/metrics").unwrap().to_owned()
}

/// What comes back for `request`, until the peer closes.
fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The metrics by names and labels, each line of them parsed.
fn scrape(address: &str) -> BTreeMap<String, f64> {
    let answer = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(
        head.contains(&format!("Content-Length: {}\r\n", body.len())),
        "{head}"
    );
    assert!(
        head.contains("Content-Type: application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    let body = body.strip_suffix("# EOF\n").expect("it ends with its end");
    let (mut found, mut types) = (BTreeMap::new(), BTreeMap::new());
    for line in body.lines() {
        if let Some(described) = line.strip_prefix("# ") {
            let words: Vec<_> = described.splitn(3, ' ').collect();
            match words[..] {
                ["TYPE", name, kind] => drop(types.insert(name.to_owned(), kind.to_owned())),
                ["HELP", _, text] => assert!(!text.is_empty(), "{line}"),
                _ => panic!("{line}"),
            }
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
        let bare = name.split('{').next().unwrap();
        let known = |suffix: &str| {
            bare.strip_suffix(suffix)
                .is_some_and(|it| types.contains_key(it))
        };
        assert!(
            ["", "_total", "_bucket", "_sum", "_count"]
                .into_iter()
                .any(known),
            "no type: {line}"
        );
        assert!(bare.starts_with("jitcast_") && value >= 0.0, "{line}");
        assert!(
            found.insert(name.to_owned(), value).is_none(),
            "twice: {line}"
        );
    }
    found
}

/// Waits until `metric` is `value`.
#[track_caller]
fn await_value(address: &str, metric: &str, value: f64) -> BTreeMap<String, f64> {
    await_some(metric, || {
        let scraped = scrape(address);
        (scraped.get(metric) == Some(&value)).then_some(scraped)
    })
}

#[test]
fn values_move_as_things_happen() {
    let (serve, address) = start(&[]);
    let before = scrape(&address);
    assert_eq!(before["jitcast_units"], 0.0);
    assert_eq!(before["jitcast_publish_seconds_count"], 0.0);
    let mut worker = Remote::start(&serve.socket);
    serve.publish_adds("f", 1);
    worker.ask("generation");
    let one = await_value(&address, "jitcast_publish_to_applied_seconds_count", 1.0);
    assert_eq!(one["jitcast_units"], 1.0);
    assert_eq!(one["jitcast_workers"], 1.0);
    assert_eq!(one["jitcast_publications_total{result=\"done\"}"], 1.0);
    assert_eq!(one["jitcast_link_seconds_count"], 1.0);
    assert!(one["jitcast_publish_to_applied_seconds_sum"] > 0.0);
    assert_eq!(
        one["jitcast_publish_to_applied_seconds_bucket{le=\"+Inf\"}"],
        1.0
    );
    assert_eq!(one["jitcast_worker_lag_generations"], 0.0);
    let text = "jitcast_area_bytes{area=\"text\",state=\"used\"}";
    assert!(one[text] > before[text], "{one:#?}");
    serve.publish_adds("f", 2);
    await_value(&address, "jitcast_worker_lag_generations", 1.0);
    // A candidate that does not fit: `f` is another unit's.
    let other = serve
        .scratch
        .write("other.clif", common::scratch::adds("f", 3));
    serve.publish(&[&other]).failed(&[]);
    await_value(
        &address,
        "jitcast_publications_total{result=\"refused\"}",
        1.0,
    );
    serve.command("renew", &[]).succeeded();
    await_value(&address, "jitcast_renewals_total", 1.0);
    // What the worker had counted is still counted when it is gone.
    worker.ask("generation");
    let counted = "jitcast_publish_to_applied_seconds_count";
    let count = await_some("what it has applied", || {
        Some(scrape(&address)[counted]).filter(|count| *count >= 2.0)
    });
    drop(worker);
    let after = await_value(&address, "jitcast_workers", 0.0);
    assert!(after[counted] >= count, "{after:#?}");
}

#[test]
fn who_asks_for_something_else_is_told() {
    let (_serve, address) = start(&[]);
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        ("\u{1}\u{2}\r\n\r\n", "400 Bad Request"),
        ("HEAD /metrics HTTP/1.0\r\n\r\n", "200 OK"),
        ("GET /metrics?name=x HTTP/1.1\r\n\r\n", "200 OK"),
    ] {
        let answer = ask(&address, request);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}\r\n")),
            "{request:?}: {answer}"
        );
    }
    let endless = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(20_000));
    let mut stream = TcpStream::connect(&address).unwrap();
    // It may close before all of it is written.
    let _ = stream.write_all(endless.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 400"));
}

/// Connections that say nothing, half of something, or read nothing, many more than are served at once.
#[test]
fn slow_and_silent_clients_are_in_nobodys_way() {
    let (serve, address) = start(&[]);
    let mut clients = Vec::new();
    for index in 0..300 {
        let mut stream = TcpStream::connect(&address).unwrap();
        match index % 3 {
            0 => {}
            1 => stream.write_all(b"GET /met").unwrap(),
            _ => stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap(),
        }
        clients.push(stream);
        if index % 50 == 0 {
            assert!(scrape(&address).contains_key("jitcast_generation"));
        }
    }
    serve.publish_adds("f", 1);
    assert_eq!(serve.call("f(1)"), "2");
    await_value(&address, "jitcast_units", 1.0);
    let files = std::fs::read_dir(format!("/proc/{}/fd", serve.process.pid())).unwrap();
    assert!(files.count() < 200, "connections are limited");
    drop(clients);
}

#[test]
fn run_serves_metrics_and_an_address_in_use_is_refused() {
    let (serve, address) = start(&[]);
    let socket = serve.scratch.path("other");
    let refused = finish(&mut jitcast(&[
        "serve",
        "--socket",
        &socket,
        "--metrics",
        &address,
    ]));
    refused.refused(&["cannot serve metrics at 127.0.0.1:", "help: "]);
    let file = serve.scratch.write("f.clif", common::scratch::adds("f", 1));
    let args = [
        "run",
        &file,
        "--call",
        "f(1)",
        "--workers",
        "1",
        "--watch",
        "--metrics",
        "127.0.0.1:0",
    ];
    let mut run = Process::start(&mut jitcast(&args));
    let address = self::address(&mut run);
    await_value(&address, "jitcast_units", 1.0);
    run.signal(rustix::process::Signal::INT);
    run.finish();
}

#[test]
fn crashes_and_requests_are_counted() {
    let (serve, address) = start(&[]);
    let crashes = "function %bad(i64) -> i64 {\nblock0(v0: i64):\n    trap user1\n}\n";
    let file = serve.scratch.write("bad.clif", crashes);
    serve.publish(&[&file]).succeeded();
    let mut command = role::command(CRASHING, &serve.socket);
    let ended = Process::start(command.env("JITCAST_CRASH", "stderr")).finish();
    assert_eq!(ended.signal, Some(libc::SIGILL), "{ended:#?}");
    let metric = "jitcast_unit_crashes_total{unit=\"bad\",generation=\"3\"}";
    let scraped = await_value(&address, metric, 1.0);
    assert_eq!(scraped["jitcast_worker_crashes_total"], 1.0);
    assert_eq!(scraped["jitcast_requests_total{result=\"ready\"}"], 1.0);
    assert_eq!(scraped["jitcast_requests_total{result=\"refused\"}"], 1.0);
    assert_eq!(scraped["jitcast_request_seconds_count"], 2.0);
}

/// The role of a worker that asks for something, for something wrong, and then crashes.
const CRASHING: &str = "crashing";

fn crash(target: &str) {
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: a limit, which lives through the call. Nobody wants a core.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
    let worker = remote::attach(target);
    for text in [common::scratch::adds("mine", 1), "wrong".to_owned()] {
        let pending = worker.request(&text).unwrap();
        pending.wait(None);
    }
    let _ = remote::call(&worker, "bad", 1);
}

#[test]
fn spans_are_written_down_with_their_times() {
    let scratch = Scratch::open_to_all();
    let socket = scratch.path("socket");
    let mut command = jitcast(&["serve", "--socket", &socket]);
    let process = Process::start(command.env("JITCAST_LOG", "info"));
    let mut serve = Serve::adopt(process, socket, scratch);
    serve.publish_adds("f", 1);
    serve.command("renew", &[]).succeeded();
    for span in ["publish{units=1}:link: ", "publish{units=1}: ", "renewal: "] {
        let is_it = |line: &str| line.contains(span) && line.contains("close time.busy=");
        serve.process.await_line(Stream::Err, span, is_it);
    }
}
