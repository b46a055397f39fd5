//! `jitcast serve` under a service manager, which the tests play: sockets that are handed over, readiness, what is preloaded.

mod common;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use common::object::{Maker, PLUS_ONE};
use common::process::{Finished, PATIENCE, Process, Stream, finish, jitcast};
use common::remote::{self, Remote};
use common::require;
use common::role;
use common::scratch::{Scratch, adds};
use common::serve::Serve;
use rustix::process::Signal;

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(remote::ROLE, remote::play)]);
}

/// `serve` with `socket` as descriptor 3, which its environment tells it of. The shell keeps the number of the process.
fn activated(socket: &impl AsRawFd, options: &[&str]) -> Command {
    let inner = jitcast(&["serve"]);
    let mut command = Command::new("sh");
    command.args(["-c", "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\""]);
    command.arg(inner.get_program()).args(inner.get_args());
    command.args(options);
    let socket = socket.as_raw_fd();
    let hand_over = move || {
        // SAFETY: takes numbers only; what was open as descriptor 3 is the child's own.
        if unsafe { libc::dup2(socket, 3) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: takes numbers only. The two may have been the same, and then nothing was copied.
        unsafe { libc::fcntl(3, libc::F_SETFD, 0) };
        Ok(())
    };
    // SAFETY: the closure makes two system calls, and allocates nothing.
    unsafe { command.pre_exec(hand_over) };
    command
}

/// A unit file `name` whose function of the same name adds `bonus`.
fn unit(scratch: &Scratch, name: &str, bonus: i64) -> String {
    scratch.write(&format!("{name}.clif"), adds(name, bonus))
}

/// What a worker gets that finds `f` published or fails.
fn call_now(socket: &str, name: &str) -> Result<i64, String> {
    remote::call(&remote::attach(socket), name, 1)
}

#[test]
fn what_is_preloaded_is_there_for_whoever_attaches() {
    let scratch = Scratch::open_to_all();
    let [f, g] = ["f", "g"].map(|name| unit(&scratch, name, 1));
    let socket = scratch.path("socket");
    // It is connected to before anything is compiled, and answered after.
    let listener = UnixListener::bind(&socket).unwrap();
    let early = UnixStream::connect(&socket).unwrap();
    let options = ["--preload", &f, "+", &g];
    let _serve = Process::start(&mut activated(&listener, &options));
    let endpoint = jitcast::worker::Endpoint::Fd(OwnedFd::from(early));
    let worker = jitcast::worker::Worker::attach(endpoint, Default::default()).unwrap();
    assert_eq!(remote::call(&worker, "f", 1), Ok(2));
    assert_eq!(remote::call(&worker, "g", 1), Ok(2));
    let guard = worker.enter().unwrap();
    assert_eq!(guard.generation(), 3, "both are one publication");
}

#[test]
fn c_is_preloaded_with_its_signatures() {
    if !require::cc() {
        return;
    }
    let scratch = Scratch::open_to_all();
    let c = scratch.write("cube.c", "long cube(long n) { return n * n * n; }\n");
    let object = Maker::new().function("plus_one", &PLUS_ONE).finish();
    let object = scratch.write("plus_one.o", object);
    let socket = scratch.path("socket");
    let stated = ["--sig", "plus_one(long) -> long"];
    let options = [&["--preload", &c, "+", &object][..], &stated].concat();
    let _serve = Serve::start_at(&socket, &options);
    let worker = remote::attach(&socket);
    assert_eq!(remote::call(&worker, "cube", 3), Ok(27));
    assert_eq!(remote::call(&worker, "plus_one", 3), Ok(4));
}

#[test]
fn what_cannot_be_preloaded_ends_the_start() {
    let scratch = Scratch::open_to_all();
    let f = unit(&scratch, "f", 1);
    let bad = scratch.write(
        "bad.clif",
        "function %bad(i64) -> i64 {\nblock0(v0: i64):\n    v1 = nonsense v0\n}\n",
    );
    let other = scratch.write("other.clif", adds("f", 2));
    let missing = scratch.path("missing.clif");
    let socket = scratch.path("socket");
    let preload = |files: &[&str]| -> Finished {
        finish(jitcast(&["serve", "--socket", &socket, "--preload"]).args(files))
    };
    preload(&[&f, "+", &bad]).refused(&["bad.clif", "nonsense"]);
    preload(&[&f, "+", &other])
        .refused(&["`f` is defined by the unit `other` and by the unit `f`"]);
    preload(&[&missing]).refused(&["missing.clif: cannot be read", "help: "]);
    preload(&[&f, "+"]).refused(&["a unit without files", "help: "]);
    assert!(!Path::new(&socket).exists(), "nobody is told to come");
}

/// The story: a hot fix must not be undone by a crash.
#[test]
fn what_the_journal_brings_is_not_preloaded_again() {
    let scratch = Scratch::open_to_all();
    let (f, socket) = (unit(&scratch, "f", 1), scratch.path("socket"));
    let journal = scratch.path("journal");
    let options = ["--journal", &journal, "--preload", &f];
    let first = Serve::start_at(&socket, &options);
    let fix = scratch.write("fix.clif", adds("f", 7));
    let publish = ["publish", "--socket", &socket, "--unit", "f", &fix];
    finish(&mut jitcast(&publish)).succeeded();
    first.signal(Signal::KILL);
    first.finish();
    let g = unit(&scratch, "g", 2);
    let mut again = Process::start(
        jitcast(&["serve", "--socket", &socket])
            .args(options)
            .args(["+", &g]),
    );
    let said = "preload: `f` is in the journal, and stays as it is";
    again.await_line(Stream::Err, said, |line| line == said);
    again.await_line(Stream::Err, "`serving`", |line| line.starts_with("serving"));
    assert_eq!(call_now(&socket, "f"), Ok(8));
    assert_eq!(call_now(&socket, "g"), Ok(3));
}

#[test]
fn the_service_manager_is_told_when_workers_are_served_and_when_that_ends() {
    let scratch = Scratch::open_to_all();
    let (f, socket) = (unit(&scratch, "f", 1), scratch.path("socket"));
    let path = scratch.path("notify");
    let name = format!("jitcast-test-{}", std::process::id());
    let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
    let managers = [
        (UnixDatagram::bind(&path).unwrap(), path.clone()),
        (
            UnixDatagram::bind_addr(&abstract_name).unwrap(),
            format!("@{name}"),
        ),
    ];
    for (manager, address) in managers {
        manager.set_read_timeout(Some(PATIENCE)).unwrap();
        let next = || {
            let mut text = [0; 64];
            let count = manager.recv(&mut text).unwrap();
            String::from_utf8(text[..count].to_vec()).unwrap()
        };
        let mut command = jitcast(&["serve", "--socket", &socket, "--preload", &f]);
        let serve = Process::start(command.env("NOTIFY_SOCKET", &address));
        assert_eq!(next(), "READY=1");
        assert_eq!(call_now(&socket, "f"), Ok(2));
        serve.signal(Signal::TERM);
        assert_eq!(next(), "STOPPING=1");
        serve.finish().succeeded();
        // One that cannot serve is not ready.
        let mut command = jitcast(&["serve", "--socket", &socket, "--preload", "/missing.clif"]);
        finish(command.env("NOTIFY_SOCKET", &address)).refused(&["/missing.clif"]);
        manager.set_nonblocking(true).unwrap();
        assert!(manager.recv(&mut [0; 64]).is_err(), "nothing more is said");
    }
    let mut command = jitcast(&["serve", "--socket", &socket]);
    let mut serve = Process::start(command.env("NOTIFY_SOCKET", scratch.path("nobody")));
    serve.await_line(Stream::Err, "a note", |line| {
        line.contains("is not told READY=1")
    });
}

#[test]
fn a_socket_that_is_handed_over_is_served_and_left_where_it_is() {
    let scratch = Scratch::open_to_all();
    let (f, socket) = (unit(&scratch, "f", 1), scratch.path("socket"));
    let listener = UnixListener::bind(&socket).unwrap();
    let process = Process::start(&mut activated(&listener, &["--preload", &f]));
    let mut serve = Serve::adopt(process, socket.clone(), scratch);
    let mut worker = Remote::start(&socket);
    assert_eq!(worker.call("f", 1), "2");
    serve.publish_adds("f", 2);
    assert_eq!(worker.call("f", 1), "3");
    serve.process.signal(Signal::TERM);
    serve.process.finish().succeeded();
    assert!(Path::new(&socket).exists(), "it is the service manager's");
    // Who connects meanwhile waits for the next one.
    let early = std::thread::spawn({
        let socket = socket.clone();
        move || call_now(&socket, "f")
    });
    serve.process = Process::start(&mut activated(
        &listener,
        &["--socket", &socket, "--preload", &f],
    ));
    assert_eq!(early.join().unwrap(), Ok(3));
}

#[test]
fn a_socket_in_the_abstract_name_space_is_handed_over() {
    let scratch = Scratch::open_to_all();
    let f = unit(&scratch, "f", 1);
    let name = format!("jitcast-test-handed-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    let _serve = Process::start(&mut activated(&listener, &["--preload", &f]));
    assert_eq!(call_now(&format!("@{name}"), "f"), Ok(2));
}

#[test]
fn what_is_handed_over_is_looked_at() {
    let scratch = Scratch::open_to_all();
    let socket = scratch.path("socket");
    let refused = |handed: &dyn AsRawFd, options: &[&str], phrases: &[&str]| {
        let handed = handed.as_raw_fd();
        finish(&mut activated(&handed, options)).refused(phrases);
    };
    let listener = UnixListener::bind(&socket).unwrap();
    refused(
        &listener,
        &["--socket", "/elsewhere"],
        &["--socket /elsewhere", &socket, "help: "],
    );
    let file = std::fs::File::open("/dev/null").unwrap();
    refused(&file, &[], &["is no stream socket", "help: "]);
    let internet = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    refused(&internet, &[], &["is no stream socket"]);
    let (pair, _other) = UnixStream::pair().unwrap();
    refused(&pair, &[], &["does not listen", "help: "]);
    let mut command = activated(&listener, &[]);
    let said = |environment: &str, command: &Command| {
        let script = format!("{environment} exec \"$0\" \"$@\" 3<&-");
        let mut other = Command::new("sh");
        other.args(["-c", &script]);
        other.args(command.get_args().skip(2));
        finish(&mut other)
    };
    command.arg("--retain=1");
    said("LISTEN_PID=$$ LISTEN_FDS=1", &command).refused(&["descriptor 3", "help: "]);
    said("LISTEN_PID=$$ LISTEN_FDS=2", &command).refused(&["LISTEN_FDS=2", "help: "]);
    // Meant for somebody else.
    said("LISTEN_PID=1 LISTEN_FDS=1", &command).refused(&["nowhere to listen", "help: "]);
    assert!(Path::new(&socket).exists());
}

/// The unit files of the examples, with the command that was built in place of the installed one.
#[test]
fn the_unit_files_are_right() {
    let analyze = Command::new("systemd-analyze").arg("--version").output();
    if !analyze.is_ok_and(|done| done.status.success()) {
        return require::skipped("`systemd-analyze` is not there");
    }
    let scratch = Scratch::new();
    let folder = common::scratch::example("systemd");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.ends_with(".service") || name.ends_with(".socket") {
            let text = std::fs::read_to_string(&path).unwrap();
            let text = text.replace("/usr/bin/jitcast", env!("CARGO_BIN_EXE_jitcast"));
            files.push(scratch.write(&name, text));
        }
    }
    assert_eq!(files.len(), 3, "{files:?}");
    let verified = finish(
        Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .args(files),
    );
    let complaints = verified
        .stderr
        .lines()
        .filter(|line| line.contains("jitcast"));
    let complaints: Vec<_> = complaints.collect();
    assert!(
        verified.code == Some(0) && complaints.is_empty(),
        "{verified:#?}"
    );
}
