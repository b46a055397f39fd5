//! nginx with the module: built as its Makefile says, started, and ended with the test.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use rustix::process::Signal;

use crate::common::process::{PATIENCE, Watched, await_some, finish};
use crate::common::require;
use crate::common::scratch::{Scratch, example};
use crate::http::free_port;

/// The module; `None`: something that it takes is not there, which is said.
pub(crate) fn module() -> Option<&'static str> {
    static MODULE: OnceLock<String> = OnceLock::new();
    if !(require::cc() && require::make() && require::nginx()) {
        return None;
    }
    Some(MODULE.get_or_init(|| {
        let target = std::env::current_exe().unwrap();
        let target: PathBuf = target.ancestors().nth(3).unwrap().into();
        let build = target.join("nginx-example");
        let mut make = Command::new("make");
        make.args(["-C", &example("nginx"), "PROFILE=dev"])
            .arg(format!("BUILD={}", build.display()))
            .env("CARGO_TARGET_DIR", &target)
            .env_remove("PKG_CONFIG_PATH");
        if cfg!(feature = "seeded-faults") {
            make.arg("CARGO_FLAGS=--features seeded-faults");
        }
        finish(&mut make).succeeded();
        let module = build.join("ngx_http_jitcast_module.so");
        module.to_str().unwrap().to_owned()
    }))
}

/// A master and what it starts.
pub(crate) struct Nginx {
    master: Watched,
    pid: i32,
    scratch: Scratch,
    port: u16,
}

impl Nginx {
    /// Starts one whose workers attach at `socket`.
    pub(crate) fn start(module: &str, socket: &str) -> Self {
        let scratch = Scratch::open_to_all();
        let port = free_port();
        std::fs::create_dir(scratch.path("temp")).unwrap();
        let text = std::fs::read_to_string(example("nginx/nginx.conf")).unwrap();
        let text = text
            .replace("@BUILD@/ngx_http_jitcast_module.so", module)
            .replace("@BUILD@/jitcast.sock", socket)
            .replace("@BUILD@", &scratch.path("."))
            .replace("@PORT@", &port.to_string());
        let conf = scratch.write("nginx.conf", text);
        // By its path, since that is what an upgrade executes.
        let mut command = Command::new("/usr/sbin/nginx");
        command.args(["-p", &scratch.path("."), "-c", &conf]);
        // A daemon from the beginning: others cannot be upgraded.
        finish(&mut command).succeeded();
        let pid = await_some("a master", || pid_in(&scratch.path("nginx.pid")));
        let nginx = Self {
            master: Watched::new(pid),
            pid,
            scratch,
            port,
        };
        await_some("a connection", || {
            std::net::TcpStream::connect(nginx.address()).ok()
        });
        await_some("four workers", || {
            (nginx.workers().len() == 4).then_some(())
        });
        nginx
    }

    pub(crate) fn address(&self) -> (&'static str, u16) {
        ("127.0.0.1", self.port)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/page", self.port)
    }

    /// The process ids of the first master's workers.
    pub(crate) fn workers(&self) -> Vec<i32> {
        let pid = self.pid;
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
        // Another master is a child too.
        let is_worker = |pid: &i32| {
            let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
            command.is_ok_and(|command| command.contains("worker process"))
        };
        children.filter(is_worker).collect()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.master.signal(signal);
    }

    /// The master of the upgraded binary.
    pub(crate) fn await_new_master(&self) -> Watched {
        let pid = await_some("another master", || {
            let pid = pid_in(&self.scratch.path("nginx.pid"))?;
            (pid != self.pid).then_some(pid)
        });
        Watched::new(pid)
    }

    pub(crate) fn error_log(&self) -> String {
        std::fs::read_to_string(self.scratch.path("error.log")).unwrap()
    }

    /// Ends it as an operator would; nothing may be wrong by then.
    pub(crate) fn quit(self) {
        self.master.signal(Signal::QUIT);
        self.master.await_end();
        assert_eq!(complaints(&self.error_log()), Vec::<String>::new());
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Nobody's children, and who is killed leaves its workers behind.
        let upgraded = pid_in(&self.scratch.path("nginx.pid")).and_then(Watched::find);
        for master in [Some(&self.master), upgraded.as_ref()]
            .into_iter()
            .flatten()
        {
            if master.lives() {
                master.signal(Signal::TERM);
                master.ends_within(PATIENCE);
            }
        }
    }
}

/// What a file of nginx's says, which it removes when it ends.
fn pid_in(path: &str) -> Option<i32> {
    let text = std::fs::read_to_string(path).ok()?;
    text.trim().parse().ok()
}

/// What nginx has to complain about, but for a compiler process that is not there and workers that this test kills.
pub(crate) fn complaints(log: &str) -> Vec<String> {
    let levels = ["[error]", "[crit]", "[alert]", "[emerg]"];
    let lines = log
        .lines()
        .filter(|line| levels.iter().any(|level| line.contains(level)));
    let killed = |line: &&str| !line.contains("exited on signal 9");
    lines.filter(killed).map(str::to_owned).collect()
}
