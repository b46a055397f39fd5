//! The Python wrapper and the service of examples/gunicorn, in the gunicorn that is installed: its kernel is replaced under load, in all
//! kinds of workers, without a reload.

mod common;
#[path = "servers/http.rs"]
mod http;
#[path = "servers/versioned.rs"]
mod versioned;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use common::host::Host;
use common::process::{PATIENCE, Process, Stream, Watched, await_some, finish, jitcast};
use common::require;
use common::scratch::{Scratch, example};
use common::serve::Serve;
use http::{Asking, Versions, Wrk, agent, free_port};
use rustix::process::Signal;
use versioned::Versioned;

/// Debian's, which has gunicorn.
const PYTHON: &str = "/usr/bin/python3";

/// What is installed once for all tests.
struct Installed {
    scratch: Scratch,
    kernel: Versioned,
}

/// `None`: something that it takes is not there, which is said.
fn installed() -> Option<&'static Installed> {
    static INSTALLED: OnceLock<Installed> = OnceLock::new();
    if !(require::cc() && require::make() && require::gunicorn()) {
        return None;
    }
    Some(INSTALLED.get_or_init(|| {
        let scratch = Scratch::new();
        common::library::install("", &scratch.path("prefix"));
        // A copy, since pip builds where the sources are.
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("worker/python");
        let copy = scratch.path("python");
        finish(Command::new("cp").arg("-r").arg(sources).arg(&copy)).succeeded();
        let mut pip = Command::new(PYTHON);
        pip.args(["-m", "pip", "install", "--no-index", "--no-build-isolation"])
            .args(["--target", &scratch.path("site"), &copy]);
        finish(&mut pip).succeeded();
        let kernel = Versioned::kernel();
        Installed { scratch, kernel }
    }))
}

impl Installed {
    fn python(&self, socket: &str) -> Command {
        let mut command = Command::new(PYTHON);
        command
            .env("PYTHONPATH", self.scratch.path("site"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env(
                "JITCAST_LIBRARY",
                self.scratch.path("prefix/lib/libjitcast_worker.so"),
            )
            .env("JITCAST_SOCKET", socket)
            .current_dir(example("gunicorn"));
        command
    }

    /// A master on `port` with these options, whose workers have attached.
    fn gunicorn(&self, host: &Host, port: u16, options: &[&str]) -> Master {
        let before = workers(host).len();
        let mut command = self.python(&host.socket);
        command
            .args(["-m", "gunicorn", "-c", "gunicorn.conf.py", "--bind"])
            .arg(format!("127.0.0.1:{port}"))
            .args(options)
            .arg("app:app");
        let master = Master(Process::start(&mut command));
        await_some("its workers", || {
            (workers(host).len() == before + 4).then_some(())
        });
        master
    }
}

/// A master, which takes its workers along.
struct Master(Process);

impl Master {
    /// Ends it as an operator would.
    fn end(mut self) {
        self.0.signal(Signal::TERM);
        await_some("gunicorn's end", || self.0.has_ended().then_some(()));
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        if !self.0.has_ended() {
            // Its workers end by themselves when it is killed, but not at once.
            self.0.signal(Signal::TERM);
            Watched::new(self.0.pid()).ends_within(PATIENCE);
        }
    }
}

/// The process ids of what is attached.
fn workers(host: &Host) -> BTreeSet<i32> {
    let workers = host.compiler.status().workers;
    workers.into_iter().map(|worker| worker.pid).collect()
}

/// Asks once: version and process.
fn ask(url: &str) -> (u32, i32) {
    let mut answer = agent(false)
        .get(url)
        .call()
        .unwrap_or_else(|error| panic!("{error}"));
    let body = answer.body_mut().read_to_string().unwrap();
    let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        answer["same"], true,
        "both calls of a guard are of one generation"
    );
    let result = answer["result"].as_f64().unwrap();
    let sum: f64 = (0..1000).map(f64::from).sum();
    let version = result / sum;
    assert_eq!(version.fract(), 0.0, "{answer}");
    (version as u32, answer["process"].as_i64().unwrap() as i32)
}

#[test]
fn a_kernel_is_replaced_in_preloaded_workers_without_a_reload() {
    let Some(installed) = installed() else {
        return;
    };
    let host = Host::sealed();
    let versions = Versions::default();
    installed.kernel.publish_next(&host, &versions);
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}/");
    let master = installed.gunicorn(&host, port, &[]);
    let before = workers(&host);
    let (wrk, to_ask) = (Wrk::start(&url), url.clone());
    let asking = Asking::start(&versions, move || ask(&to_ask).0);
    for _ in 0..300 {
        installed.kernel.publish_next(&host, &versions);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let requests = asking.finish() + wrk.finish();
    assert!(requests > 100, "{requests}");
    assert_eq!(workers(&host), before);
    assert_eq!(ask(&url).0, versions.current());
    master.end();
    await_some("the end of its workers", || {
        workers(&host).is_empty().then_some(())
    });
}

/// Two masters at one port, workers of several threads, which end after some requests and are started anew.
#[test]
fn two_masters_share_what_is_published() {
    let Some(installed) = installed() else {
        return;
    };
    let host = Host::sealed();
    let versions = Versions::default();
    installed.kernel.publish_next(&host, &versions);
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}/");
    let options = [
        "--reuse-port",
        "--worker-class",
        "gthread",
        "--threads",
        "4",
        "--max-requests",
        "40",
    ];
    let masters = [0, 1].map(|_| installed.gunicorn(&host, port, &options));
    await_some("eight workers, each at an address of its own", || {
        let workers = host.compiler.status().workers;
        let bases = workers.iter().map(|worker| worker.base);
        // One that attaches says its base a little later.
        let bases: BTreeSet<_> = bases.filter(|base| *base != 0).collect();
        (bases.len() == 8).then_some(())
    });
    let before = workers(&host);
    let mut seen = BTreeSet::new();
    // A worker that ends at its last request may let go of connections that wait for it; that is gunicorn's, so they are asked one by one.
    await_some("workers that were started anew", || {
        installed.kernel.publish_next(&host, &versions);
        let (version, process) = ask(&url);
        assert_eq!(version, versions.current());
        seen.insert(process);
        (seen.difference(&before).count() >= 4).then_some(())
    });
    masters.into_iter().for_each(Master::end);
    await_some("the end of all workers", || {
        workers(&host).is_empty().then_some(())
    });
}

/// A service that is started first serves by itself, then what is published; and has something compiled for itself.
#[test]
fn the_wrapper_attaches_late_and_asks_for_functions() {
    let Some(installed) = installed() else {
        return;
    };
    let script = r#"
import os, time, jitcast
def refused(call, status):
    try:
        call()
    except jitcast.Error as error:
        assert error.status == status, error
    else:
        raise AssertionError(status)
worker = jitcast.Worker(os.environ["JITCAST_SOCKET"], late=True)
f = worker.function("f", "(i64) -> i64", fallback=lambda x: -x)
refused(lambda: worker.function("f", "(i64) -> i64"), 28)
refused(lambda: worker.ask("of nobody"), 28)
with worker:
    assert not worker.is_attached
    with worker:
        assert f(1) == -1
print("alone", flush=True)
input()
def entered():
    with worker:
        return worker.is_attached and f(1) == 2
while not entered():
    time.sleep(0.01)
assert f(1) == -1, "outside guards"
refused(lambda: worker.__exit__(), 26)
request = worker.ask("""function %twice(i64) -> i64 {
    fn0 = %f(i64) -> i64
block0(v0: i64):
    v1 = call fn0(v0)
    v2 = call fn0(v1)
    return v2
}""")
assert request.wait(60) and request.is_ready
with worker:
    twice = request.function("twice", "(i64) -> i64", fallback=lambda x: 0)
    assert twice(40) == 42
wrong = worker.ask("function %wrong nonsense")
assert wrong.wait(60)
refused(lambda: wrong.function("wrong", "() -> i64"), 12)
del request, twice, wrong
worker.detach()
"#;
    let scratch = Scratch::open_to_all();
    let socket = scratch.path("late");
    let mut python = installed.python(&socket);
    let mut python = Process::start_listening(python.args(["-c", script]));
    python.await_line(Stream::Out, "`alone`", |line| line == "alone");
    let own = format!("uid:{}", rustix::process::getuid().as_raw());
    let serve = ["serve", "--socket", &socket, "--allow-request", &own];
    let process = Process::start(&mut jitcast(&serve));
    let serve = Serve::adopt(process, socket, scratch);
    serve.publish_adds("f", 1);
    python.send("go");
    python.finish().succeeded();
}

/// The wrapper says what the library says, and what it cannot use.
#[test]
fn the_wrapper_tells_what_is_wrong_and_what_is_there() {
    let Some(installed) = installed() else {
        return;
    };
    let host = Host::sealed();
    host.publish_adds("f", 1);
    let script = r#"
import array, os, jitcast
def refused(call, *phrases):
    try:
        call()
    except (jitcast.Error, ValueError, TypeError, ImportError) as error:
        for phrase in phrases:
            assert phrase in str(error), error
    else:
        raise AssertionError(phrases)
socket = os.environ["JITCAST_SOCKET"]
refused(lambda: jitcast.Worker("/nowhere"), "/nowhere", "help:")
refused(lambda: jitcast.Worker(), "socket")
worker = jitcast.Worker(socket, label="python", imports={"twice": ("(i64) -> i64", lambda x: 2 * x)})
refused(lambda: worker.function("f", "i64 -> i64"), "no signature")
refused(lambda: worker.function("f", "(i128) -> i64"), "i128", "f64")
refused(lambda: worker.function("f", "(f64) -> i64"), "(i64) -> i64")
refused(lambda: worker.function("absent", "(i64) -> i64"), "absent")
f = worker.function("f", "(i64) -> i64")
other = worker.function("absent", "(i64) -> i64", fallback=lambda x: -x)
with worker as guard:
    seen = guard.generation
    with worker:
        assert (f(1), other(1)) == (2, -1)
    assert worker.stats["applied"] == seen
refused(lambda: worker.__exit__(), "guard")
assert worker.is_connected and worker.fileno() >= 0
assert not worker.wait(worker.generation, 0.01)
print("publish", flush=True)
input()
assert worker.wait(seen, 60)
with worker:
    assert (f(1), other(1)) == (3, 2)
if os.fork() == 0:
    with worker:
        assert (f(1), other(1)) == (3, 2)
    os._exit(0)
assert os.wait()[1] == 0
with worker:
    refused(worker.detach, "guard")
worker.tend()
worker.detach()
"#;
    let mut python = installed.python(&host.socket);
    let mut python = Process::start_listening(python.args(["-c", script]));
    python.await_line(Stream::Out, "`publish`", |line| line == "publish");
    let calls = "function %absent(i64) -> i64 {\n    fn0 = %twice(i64) -> i64\nblock0(v0: i64):\n    v1 = call fn0(v0)\n    return v1\n}\n";
    host.publish_adds("f", 2);
    host.publish("absent", calls)
        .unwrap_or_else(|error| panic!("{error}"));
    python.send("go");
    python.finish().succeeded();
    let mut without = installed.python(&host.socket);
    without.env("JITCAST_LIBRARY", "/nowhere.so");
    let said = finish(without.args(["-c", "import jitcast; jitcast.Worker('/nowhere')"])).stderr;
    assert!(
        said.contains("ImportError") && said.contains("JITCAST_LIBRARY"),
        "{said}"
    );
}
