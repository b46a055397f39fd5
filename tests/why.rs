//! `jitcast why`: where a name is defined, who runs which version of it, what it needs, and what is in its way.

mod common;

use common::process::{NOBODY, await_some, finish, jitcast_as};
use common::remote::{self, Remote};
use common::require;
use common::role;
use common::scratch::{Scratch, adds};
use common::serve::{Serve, table};
use serde_json::{Value, json};

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(remote::ROLE, remote::play), (INSIDE, stay_inside)]);
}

/// The role of a worker with a thread that stays inside while another one applies what is new.
const INSIDE: &str = "inside";

fn stay_inside(target: &str) {
    let worker = remote::attach(target);
    let guard = worker.enter().unwrap();
    role::report(worker.stats().base.get());
    while role::next_line().is_some() {
        let applied = std::thread::scope(|scope| {
            let other = scope.spawn(|| worker.poll().unwrap().generation());
            other.join().unwrap()
        });
        role::report(applied);
    }
    drop(guard);
}

/// CLIF of a function `name` that calls `callee`.
fn calls(name: &str, callee: &str) -> String {
    format!(
        "function %{name}(i64) -> i64 {{\n    fn0 = %{callee}(i64) -> i64\nblock0(v0: i64):\n    \
         v1 = call fn0(v0)\n    return v1\n}}\n"
    )
}

fn publish_calls(serve: &Serve, name: &str, callee: &str) {
    let file = serve
        .scratch
        .write(&format!("{name}.clif"), calls(name, callee));
    serve.publish(&[&file]).succeeded();
}

fn why(serve: &Serve, name: &str) -> Value {
    let shown = serve.command("why", &[name, "--json"]);
    let why: Value = serde_json::from_str(&shown.stdout).unwrap();
    let is_published = why["versions"] != json!([]);
    assert_eq!(shown.code, Some(i32::from(!is_published)), "{shown:#?}");
    why
}

/// What is said of the worker `of`.
#[track_caller]
fn worker<'a>(why: &'a Value, of: &Remote) -> &'a Value {
    let mut workers = why["workers"].as_array().unwrap().iter();
    let found = workers.find(|worker| worker["pid"] == of.pid());
    found.unwrap_or_else(|| panic!("worker {} in {why:#}", of.pid()))
}

#[test]
fn it_tells_who_runs_which_version() {
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 1);
    publish_calls(&serve, "g", "f");
    publish_calls(&serve, "h", "g");
    let [mut first, second] = [Remote::start(&serve.socket), Remote::start(&serve.socket)];
    let before = why(&serve, "f");
    assert_eq!(before["generation"], 5);
    let version = &before["versions"][0];
    assert_eq!(version["unit"], "f");
    assert_eq!(
        (&version["generation"], &version["signature"]),
        (&3.into(), &"(i64) -> i64".into())
    );
    let symbol = serve.command("dis", &["f", "--json"]).succeeded();
    let listing: Value = serde_json::from_str(&symbol.stdout).unwrap();
    assert_eq!(version["offset"], listing["offset"]);
    assert_eq!(version["len_bytes"], listing["len_bytes"]);
    assert_eq!(
        before["referrers"],
        json!([{ "unit": "g", "functions": ["g"] }])
    );
    assert_eq!(before["obstacles"], json!([]));
    for of in [&first, &second] {
        let worker = worker(&before, of);
        assert_eq!(
            (&worker["state"], &worker["generation"]),
            (&"runs".into(), &3.into())
        );
        assert_eq!(
            (&worker["lag"], &worker["unreadable"]),
            (&0.into(), &Value::Null)
        );
    }
    serve.publish_adds("f", 2);
    first.ask("generation");
    let after = why(&serve, "f");
    let (ahead, behind) = (worker(&after, &first), worker(&after, &second));
    assert_eq!(
        (&ahead["state"], &ahead["generation"]),
        (&"runs".into(), &6.into())
    );
    assert_eq!(
        (&behind["state"], &behind["lag"]),
        (&"older".into(), &1.into())
    );
    let obstacle = after["obstacles"][0].as_str().unwrap();
    assert!(obstacle.contains("at generation 5, 1 behind"), "{obstacle}");
    // What h needs is needed of g too, through which it is.
    let needs = why(&serve, "h")["needs"].clone();
    let through: Vec<_> = needs
        .as_array()
        .unwrap()
        .iter()
        .map(|need| (&need["name"], &need["through"]))
        .collect();
    assert_eq!(
        through,
        [(&"f".into(), &"g".into()), (&"g".into(), &Value::Null)]
    );
    let shown = serve.command("why", &["f"]).succeeded().stdout;
    assert!(
        shown.starts_with("f(i64) -> i64: function of the unit f, generation 6, w+0x"),
        "{shown}"
    );
    assert!(shown.contains("referred to by: unit g: g"), "{shown}");
    let rows = table(&shown);
    let columns = [
        "worker", "pid", "label", "applied", "behind", "canaries", "runs", "lacks",
    ];
    assert_eq!(rows[0], columns);
    assert!(shown.contains("an older version"), "{shown}");
}

#[test]
fn while_a_thread_is_inside_new_calls_reach_the_new_version() {
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 1);
    let mut of = Remote::start_as(&mut role::command(INSIDE, &serve.socket));
    assert_eq!(worker(&why(&serve, "f"), &of)["changing"], false);
    serve.publish_adds("f", 2);
    assert_eq!(of.ask("apply"), "4");
    let why = why(&serve, "f");
    let worker = worker(&why, &of);
    assert_eq!(
        (&worker["state"], &worker["generation"]),
        (&"runs".into(), &4.into())
    );
    assert_eq!(
        (&worker["changing"], &why["obstacles"]),
        (&true.into(), &json!([]))
    );
}

#[test]
fn a_canary_is_another_version() {
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 1);
    let mut workers = [Remote::start(&serve.socket), Remote::start(&serve.socket)];
    let new = serve.scratch.write("f.clif", adds("f", 1000));
    serve.publish(&[&new, "--canary", "1"]).succeeded();
    workers
        .iter_mut()
        .for_each(|worker| drop(worker.ask("generation")));
    let why = why(&serve, "f");
    let versions = why["versions"].as_array().unwrap().iter();
    let versions: Vec<_> = versions
        .map(|version| (&version["generation"], &version["canary"]))
        .collect();
    assert_eq!(
        versions,
        [(&3.into(), &Value::Null), (&4.into(), &4.into())]
    );
    let runs = workers
        .each_ref()
        .map(|of| worker(&why, of)["generation"].clone());
    assert_eq!(runs, [4, 3]);
    assert_eq!(worker(&why, &workers[0])["canaries"], json!([4]));
}

#[test]
fn a_host_symbol_that_is_missing_is_named_with_the_way_to_it() {
    let serve = Serve::start(&[]);
    publish_calls(&serve, "f", "jitcast_no_such_host_function");
    publish_calls(&serve, "g", "f");
    let of = Remote::start(&serve.socket);
    let why = why(&serve, "g");
    let missing = "jitcast_no_such_host_function(i64) -> i64";
    assert_eq!(worker(&why, &of)["lacks"], json!([missing]));
    let needs = why["needs"].as_array().unwrap();
    let host = needs.iter().find(|need| need["host"] == true).unwrap();
    assert_eq!(
        (&host["name"], &host["through"]),
        (&"jitcast_no_such_host_function".into(), &"f".into())
    );
    let obstacle = why["obstacles"][0].as_str().unwrap();
    assert!(
        obstacle.contains(&format!("it lacks the host's {missing}")),
        "{obstacle}"
    );
    // What the host has is no obstacle.
    publish_calls(&serve, "h", "labs");
    let mut of = of;
    of.ask("generation");
    let why = self::why(&serve, "h");
    assert_eq!(
        (&why["obstacles"], &worker(&why, &of)["lacks"]),
        (&json!([]), &json!([]))
    );
}

#[test]
fn a_constructor_that_failed_is_told_of_the_worker_in_which_it_did() {
    if !require::cc() {
        return;
    }
    let serve = Serve::start(&[]);
    let source = "#include <stdlib.h>\n
        __attribute__((constructor)) static void starts(void) { if (getenv(\"JITCAST_TEST_FAILS\")) __builtin_trap(); }
        long f(long x) { return x + 1; }";
    let source = serve.scratch.write("f.c", source);
    serve.publish(&[&source]).succeeded();
    let mut command = role::command(remote::ROLE, &serve.socket);
    let failing = Remote::start_as(command.env("JITCAST_TEST_FAILS", "1"));
    let whole = Remote::start(&serve.socket);
    let why = why(&serve, "f");
    let states = [&failing, &whole].map(|of| worker(&why, of)["state"].clone());
    assert_eq!(states, ["failed", "runs"]);
    let obstacles = why["obstacles"].as_array().unwrap();
    assert_eq!(obstacles.len(), 1, "{why:#}");
    let told = format!(
        "worker {}: a constructor of the unit f failed there",
        failing.pid()
    );
    assert!(obstacles[0].as_str().unwrap().starts_with(&told), "{why:#}");
}

#[test]
fn what_is_not_published_is_told_why() {
    let journal = Scratch::new();
    let options = ["--journal", &*journal.path("journal")];
    let mut serve = Serve::start(&options);
    serve.publish_adds("f", 1);
    publish_calls(&serve, "g", "f");
    serve.command("remove", &["f", "--leave-traps"]).succeeded();
    serve.command("quarantine", &["g"]).succeeded();
    let mut of = Remote::start(&serve.socket);
    of.ask("generation");
    let check = |serve: &Serve| {
        let f = why(serve, "f");
        assert_eq!(f["versions"], json!([]));
        assert_eq!(f["removed"], json!({ "unit": "f", "generation": 5 }));
        assert_eq!(
            f["obstacles"],
            json!(["not published: generation 5 removed it; it was of the unit f"])
        );
        assert_eq!(f["referrers"][0]["unit"], "g");
        let mut workers = f["workers"].as_array().unwrap().iter();
        assert!(workers.all(|worker| worker["state"] == "nothing"), "{f:#}");
    };
    check(&serve);
    let g = why(&serve, "g");
    assert_eq!(
        (&g["quarantined"], &worker(&g, &of)["state"]),
        (&true.into(), &"quarantined".into())
    );
    let obstacle = g["obstacles"][0].as_str().unwrap();
    assert!(obstacle.contains("jitcast restore g"), "{obstacle}");
    let never = why(&serve, "never");
    let obstacle = never["obstacles"][0].as_str().unwrap();
    assert!(obstacle.starts_with("not published: never"), "{obstacle}");
    // The next compiler process reads of it in the journal.
    drop(of);
    serve.process.signal(rustix::process::Signal::KILL);
    await_some("its end", || serve.process.has_ended().then_some(()));
    serve.process = Serve::start_at(&serve.socket, &options);
    check(&serve);
    serve.publish_adds("f", 2);
    assert_eq!(why(&serve, "f")["removed"], Value::Null);
}

#[test]
fn without_a_look_into_workers_it_tells_what_they_say() {
    if !require::root() {
        return;
    }
    let serve = Serve::start(&["--allow-attach", "uid:65534"]);
    serve.publish_adds("f", 1);
    let of = Remote::start(&serve.socket);
    let mut nobody = jitcast_as(NOBODY, &["why", "f", "--json", "--socket", &serve.socket]);
    let shown = finish(&mut nobody).succeeded();
    let why: Value = serde_json::from_str(&shown.stdout).unwrap();
    let worker = worker(&why, &of);
    assert_eq!(
        (&worker["state"], &worker["generation"]),
        (&"runs".into(), &3.into())
    );
    let unreadable = worker["unreadable"].as_str().unwrap();
    assert!(unreadable.contains("Permission denied"), "{unreadable}");
    let mut nobody = jitcast_as(NOBODY, &["why", "f", "--socket", &serve.socket]);
    let shown = finish(&mut nobody).succeeded().stdout;
    assert!(shown.contains("generation 3 of f, as it says"), "{shown}");
}
