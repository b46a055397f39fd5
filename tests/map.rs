//! The picture of the window: all of it is there, at any size, and names are nothing but text in it.

mod common;

use std::process::Command;

use common::host::{Host, object_unit};
use common::object::{Maker, PLUS_ONE};
use common::process::{Finished, finish, jitcast};
use common::remote::{self, Remote};
use common::require;
use common::role;
use common::scratch::{Scratch, adds};
use common::serve::Serve;
use jitcast::compiler::CompilerOptions;
use serde_json::Value;

/// The role of a worker with a thread that stays inside.
const INSIDE: &str = "inside";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(remote::ROLE, remote::play), (INSIDE, stay_inside)]);
}

fn stay_inside(target: &str) {
    let worker = remote::attach(target);
    let guard = worker.enter().unwrap();
    role::report(worker.stats().base.get());
    while role::next_line().is_some() {}
    drop(guard);
}

/// A name that would be markup, and end the data, if it were let.
const HOSTILE: &str = "</script><img src=x onerror=document.title='owned'>&\"'";

/// A page, and the data in it.
fn page(args: &[&str], scratch: &Scratch) -> (String, String, Value) {
    let path = scratch.path("map.html");
    finish(jitcast(&["map", "-o", &path]).args(args)).succeeded();
    let text = std::fs::read_to_string(&path).unwrap();
    let (_, data) = text
        .split_once("<script id=\"data\" type=\"application/json\">")
        .unwrap();
    let (data, _) = data.split_once("</script>").unwrap();
    let data = serde_json::from_str(data).unwrap();
    (path, text, data)
}

fn area<'a>(data: &'a Value, name: &str) -> &'a Value {
    let mut areas = data["areas"].as_array().unwrap().iter();
    areas.find(|area| area["name"] == name).unwrap()
}

/// The ranges of an area: offset, length, kind, unit, generation.
fn items(area: &Value) -> Vec<[i64; 5]> {
    serde_json::from_value(area["items"].clone()).unwrap()
}

const FREE: i64 = 7;
const HELD: i64 = 4;

/// With a hostile name, a canary, a kept unit, and one that is held back.
fn scene(serve: &Serve) -> Remote {
    serve.publish_adds("f", 1);
    let inside = Remote::start_as(&mut role::command(INSIDE, &serve.socket));
    serve.publish_adds("f", 2);
    let hostile = serve.scratch.write("hostile.clif", adds("hostile", 1));
    serve.publish(&[&hostile, "--unit", HOSTILE]).succeeded();
    let candidate = serve.scratch.write("f.clif", adds("f", 3));
    serve.publish(&[&candidate, "--canary", "1"]).succeeded();
    inside
}

#[test]
fn everything_lies_somewhere_and_nothing_twice() {
    let serve = Serve::start(&[]);
    let _inside = scene(&serve);
    let (_, text, data) = page(&["--socket", &serve.socket], &serve.scratch);
    let status = serve.status();
    assert_eq!(data["generation"], status.generation);
    for told in &status.areas {
        let area = area(&data, &told.name);
        let mut at = area["start"].as_i64().unwrap();
        let mut free = 0;
        for [start, len, kind, ..] in items(area) {
            assert!(start >= at && len > 0, "{}: {start} after {at}", told.name);
            at = start + len;
            free += if kind == FREE { len } else { 0 };
        }
        if told.name != "stubs" {
            assert_eq!(free as u64, told.free_bytes, "{}", told.name);
        }
    }
    let held = items(area(&data, "text"))
        .iter()
        .filter(|item| item[2] == HELD)
        .count();
    assert_eq!(held, 1, "the version that a thread is inside of");
    assert!(
        data["holders"][0]
            .as_str()
            .unwrap()
            .contains("inside at generation 3")
    );
    let units = data["units"].as_array().unwrap();
    let kinds: Vec<_> = units
        .iter()
        .map(|unit| (&unit["name"], &unit["kind"]))
        .collect();
    assert!(
        kinds.contains(&(&HOSTILE.into(), &"published".into())),
        "{kinds:?}"
    );
    assert!(
        kinds.contains(&(&"f".into(), &"canary".into())),
        "{kinds:?}"
    );
    assert!(!text.contains("<img"), "markup of a name");
    assert!(
        text.contains("&lt;/script&gt;&lt;img src=x"),
        "the name in the table"
    );
    for network in ["http://", "https://", "src=\"", "url("] {
        assert!(!text.contains(network), "{network}");
    }
}

#[test]
fn a_worker_shows_the_segment_of_a_dead_compiler_process() {
    let serve = Serve::start(&[]);
    let worker = scene(&serve);
    let pid = worker.pid().to_string();
    serve.process.signal(rustix::process::Signal::KILL);
    let (_, text, data) = page(&["--pid", &pid], &serve.scratch);
    assert_eq!(
        (&data["asked"], &data["areas"][0]["used_bytes"]),
        (&false.into(), &Value::Null)
    );
    assert!(text.contains("The compiler process was not asked"));
    assert!(items(area(&data, "text")).len() >= 3);
}

#[test]
fn a_file_that_cannot_be_written_is_refused() {
    let serve = Serve::start(&[]);
    let refused = serve.command("map", &["-o", "/nowhere/map.html"]);
    refused.refused(&["cannot write /nowhere/map.html", "help: "]);
}

/// Opens a page without a screen and without a network.
fn chromium(scratch: &Scratch, args: &[&str], page: &str) -> Finished {
    let mut command = Command::new("chromium");
    let profile = format!("--user-data-dir={}", scratch.path("profile"));
    let common = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--virtual-time-budget=3000",
        "--window-size=1240,1000",
        &profile,
    ];
    finish(command.args(common).args(args).arg(page))
}

/// How wide and high a PNG is.
fn size_of_png(path: &str) -> (u32, u32) {
    let bytes = std::fs::read(path).unwrap();
    assert!(bytes.starts_with(b"\x89PNG\r\n\x1a\n"), "{path} is no PNG");
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    (number(16), number(20))
}

#[test]
fn a_browser_draws_it_light_and_dark() {
    if !require::chromium() {
        return;
    }
    let serve = Serve::start(&[]);
    let _inside = scene(&serve);
    let (path, _, data) = page(&["--socket", &serve.socket], &serve.scratch);
    let url = format!("file://{path}");
    let dom = chromium(&serve.scratch, &["--dump-dom"], &url)
        .succeeded()
        .stdout;
    let areas = data["areas"].as_array().unwrap().iter().map(items);
    let areas = areas.filter(|items| items.iter().any(|item| item[2] != FREE));
    let drawn: usize = areas.map(|items| items.len()).sum();
    assert!(
        dom.contains(&format!("data-drawn=\"{drawn}\"")),
        "{}",
        &dom[..500]
    );
    assert!(dom.contains("<canvas"), "{dom}");
    assert!(!dom.contains("<title>owned"), "a name was run");
    assert!(!dom.contains("<img"), "a name was taken for markup");
    let shots = ["light", "dark"].map(|theme| {
        let shot = serve.scratch.path(&format!("{theme}.png"));
        let arg = format!("--screenshot={shot}");
        let themed = format!("{url}?theme={theme}");
        chromium(&serve.scratch, &[&arg], &themed).succeeded();
        assert_eq!(size_of_png(&shot), (1240, 1000));
        std::fs::read(&shot).unwrap()
    });
    assert_ne!(shots[0], shots[1], "the themes look alike");
}

#[test]
fn ten_thousand_units_are_drawn() {
    let host = Host::with(CompilerOptions::with_window(256 << 20).unwrap());
    let units = |versions: std::ops::Range<usize>| {
        let unit = |index: usize| {
            let name = format!("unit{index}");
            object_unit(&name, Maker::new().function(&name, &PLUS_ONE).finish())
        };
        versions.map(unit).collect::<Vec<_>>()
    };
    host.compiler.publish(&units(0..10_000)).unwrap();
    let scratch = Scratch::new();
    let (path, text, data) = page(&["--socket", &host.socket], &scratch);
    assert_eq!(data["units"].as_array().unwrap().len(), 10_000);
    assert!(text.len() < 8 << 20, "{} bytes", text.len());
    assert!(text.contains("And 9000 more"), "the table is cut");
    if !require::chromium() {
        return;
    }
    let dom = chromium(&scratch, &["--dump-dom"], &format!("file://{path}"));
    assert!(dom.succeeded().stdout.contains("data-drawn="));
}
