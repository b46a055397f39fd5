//! Shared data when the compiler process is started again, with its journal: workers that live bring them, a named segment has them
//! beside it, and where neither is so they start afresh, for all.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::time::Instant;

use common::name::Name;
use common::process::{PATIENCE, Process};
use common::scratch::Scratch;
use common::serve::Serve;
use common::{remote, require, role};
use rustix::process::Signal;
use units::{call, handle};

/// The role of a worker that calls, and looks for its compiler process, as it is told.
const COUNTS: &str = "counts";
/// The role of one that says it has the shared data, and has others.
const LIES: &str = "lies";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(COUNTS, count), (LIES, lie)]);
}

/// A counter that starts with `start`.
fn counter(start: i64) -> String {
    format!(
        "#include <stdatomic.h>
        __attribute__((section(\".jitcast.shared\"))) _Atomic long count = {start};
        __attribute__((section(\".jitcast.shared\"))) _Atomic long zeros[3];
        long add(long x) {{ zeros[2] += x; return count += x; }}
        long zero(long x) {{ return zeros[x]; }}"
    )
}

/// A unit with much data, and a function that says whether they are what the unit brought.
fn much(name: &str, byte: u32) -> String {
    format!(
        "__attribute__((section(\".jitcast.shared\"))) char {name}_bytes[50000] = {{ [0 ... 49999] = {byte} }};
        long {name}(long x) {{ for (long i = 0; i < 50000; i++) x += {name}_bytes[i] != {byte}; return x; }}"
    )
}

/// A `serve` with a journal, in a scratch folder.
fn serve(scratch: Scratch, options: &[&str]) -> Serve {
    let (socket, journal) = (scratch.path("socket"), scratch.path("journal"));
    let all = [&["--journal", &journal, "--window", "8"][..], options].concat();
    Serve {
        process: Serve::start_at(&socket, &all),
        socket,
        scratch,
    }
}

/// Kills it, and waits for its end.
fn kill(killed: Serve) -> Scratch {
    killed.process.signal(Signal::KILL);
    assert_eq!(killed.process.finish().signal, Some(libc::SIGKILL));
    killed.scratch
}

/// Publishes a file of C.
#[track_caller]
fn publish(serve: &Serve, name: &str, source: &str, options: &[&str]) {
    let file = serve.scratch.write(&format!("{name}.c"), source);
    serve
        .publish(&[&[file.as_str()], options].concat())
        .succeeded();
}

/// The role.
fn count(socket: &str) {
    let worker = remote::attach(socket);
    role::report("attached");
    while let Some(line) = role::next_line() {
        match line.split_once(' ') {
            Some((name, argument)) => {
                role::report(call(&worker, name, argument.parse().unwrap()));
            }
            None => {
                worker.tend();
                role::report(worker.is_connected());
            }
        }
    }
}

/// The test's end of it.
struct Counts(Process);

impl Counts {
    fn start(serve: &Serve) -> Self {
        let mut process = role::start(COUNTS, &serve.socket);
        assert_eq!(role::next_report(&mut process), "attached");
        Self(process)
    }

    #[track_caller]
    fn ask(&mut self, line: &str) -> String {
        self.0.send(line);
        role::next_report(&mut self.0)
    }

    #[track_caller]
    fn await_next_compiler(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        // First it has to notice that the one before is gone.
        for wanted in ["false", "true"] {
            while self.ask("tend") != wanted {
                assert!(Instant::now() < deadline);
            }
        }
    }
}

/// The role: comes back with the mailbox that it has and shared data of its own making.
fn lie(socket: &str) {
    use jitcast::runtime::geometry::{Area, Geometry};
    use jitcast::runtime::header::{FORMAT_VERSION, Header};
    use jitcast::runtime::segment::SHARED_SEALS;
    use jitcast::runtime::sys;
    use jitcast::runtime::wire::{self, AttachRequest, FrameKind, ResumeRequest};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use zerocopy::{FromBytes, IntoBytes};

    let connect = || UnixStream::connect(socket);
    let first = connect().unwrap();
    let attach = AttachRequest {
        format_version: FORMAT_VERSION,
        fenced: 0,
        label: [0; 64],
    };
    wire::send(&first, FrameKind::Attach, attach.as_bytes(), &[]).unwrap();
    let frame = wire::receive(&first, wire::MAX_WORKER_PAYLOAD).unwrap();
    let mut header = [0; size_of::<Header>()];
    rustix::io::pread(&frame.fds[0], &mut header, 0).unwrap();
    let instance = Header::read_from_bytes(&header).unwrap().instance;
    role::report("attached");
    // It is told when there is another compiler process.
    assert!(role::next_line().is_some());
    let len_bytes = Geometry::new(8 << 20)
        .unwrap()
        .region(Area::SharedData)
        .len_bytes;
    let own = sys::memfd("own", len_bytes.into()).unwrap();
    sys::seal(&own, SHARED_SEALS).unwrap();
    let second = connect().unwrap();
    let resume = ResumeRequest { attach, instance };
    let fds = [frame.fds[2].as_fd(), own.as_fd()];
    wire::send(&second, FrameKind::Resume, resume.as_bytes(), &fds).unwrap();
    role::report("has lied");
    let answer = wire::receive(&second, wire::MAX_WORKER_PAYLOAD).unwrap();
    assert_eq!(answer.kind, FrameKind::Attached);
    let inode = |fd: &std::os::fd::OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
    role::report(inode(&answer.fds[1]) == inode(&own));
}

/// Workers that live go on with what there is, threads inside too; new ones find the same.
fn go_on(options: &[&str]) {
    if !require::cc() {
        return;
    }
    let served = serve(Scratch::open_to_all(), options);
    publish(&served, "counter", &counter(100), &[]);
    let (worker, mut far) = (remote::attach(&served.socket), Counts::start(&served));
    let add = handle(&worker, "add");
    assert_eq!(call(&worker, "add", 1), 101);
    assert_eq!(far.ask("add 1"), "102");
    let mut served = served;
    let mut total = 102;
    for round in 0..3 {
        let guard = worker.enter().unwrap();
        let scratch = kill(served);
        // Alone they go on.
        total += 2;
        assert_eq!(add.call(&guard, 1), total - 1);
        assert_eq!(far.ask("add 1"), total.to_string());
        served = serve(scratch, options);
        // Whoever is new waits for one that comes back, where that is needed.
        let new = role::start(COUNTS, &served.socket);
        let deadline = Instant::now() + PATIENCE;
        std::thread::scope(|scope| {
            let far = scope.spawn(|| far.await_next_compiler());
            let tend = scope.spawn(|| {
                for wanted in [false, true] {
                    while worker.is_connected() != wanted {
                        assert!(Instant::now() < deadline);
                        worker.tend();
                    }
                }
            });
            far.join().unwrap();
            tend.join().unwrap();
        });
        let mut new = Counts(new);
        assert_eq!(role::next_report(&mut new.0), "attached");
        assert_eq!(new.ask("add 1"), (total + 1).to_string());
        // The thread that has been inside all the time sees it.
        assert_eq!(add.call(&guard, 1), total + 2);
        drop(guard);
        total += 2;
        if round == 1 {
            publish(&served, "counter", &counter(7000), &["--keep-data"]);
        }
        assert_eq!(call(&worker, "add", 1), total + 1);
        assert_eq!(far.ask("add 1"), (total + 2).to_string());
        assert_eq!(call(&worker, "zero", 2), total + 2 - 100);
        total += 2;
    }
    publish(&served, "counter", &counter(5), &[]);
    assert_eq!([call(&worker, "add", 1), call(&worker, "zero", 2)], [6, 1]);
}

#[test]
fn they_go_on_with_workers_that_live() {
    go_on(&[]);
}

#[test]
fn they_go_on_beside_a_named_segment() {
    let name = Name::new("shared-restart");
    go_on(&["--name", &name.0]);
}

#[test]
fn where_nobody_has_them_they_start_afresh() {
    if !require::cc() {
        return;
    }
    let served = serve(Scratch::open_to_all(), &[]);
    publish(&served, "counter", &counter(100), &[]);
    let mut first = Counts::start(&served);
    assert_eq!(first.ask("add 5"), "105");
    publish(&served, "counter", &counter(200), &["--keep-data"]);
    assert_eq!(first.ask("add 5"), "110");
    drop(first);
    let served = serve(kill(served), &[]);
    // While that is not known yet, publishing goes on.
    publish(&served, "other", &much("f", 3), &[]);
    let (mut one, mut two) = (Counts::start(&served), Counts::start(&served));
    assert_eq!([one.ask("add 1"), two.ask("add 1")], ["201", "202"]);
    assert_eq!([one.ask("zero 2"), two.ask("f 0")], ["2", "0"]);
    // A named one's outlive all workers.
    let name = Name::new("shared-afresh");
    let options = ["--name", name.0.as_str()];
    let served = serve(Scratch::open_to_all(), &options);
    publish(&served, "counter", &counter(100), &[]);
    let mut first = Counts::start(&served);
    assert_eq!(first.ask("add 5"), "105");
    drop(first);
    let served = serve(kill(served), &options);
    assert_eq!(Counts::start(&served).ask("add 5"), "110");
    // But no restart of the machine: then it is another object, or none.
    let scratch = kill(served);
    let noted = scratch.path("journal/shared");
    let text = std::fs::read_to_string(&noted).unwrap();
    std::fs::write(
        &noted,
        text.replacen(|digit: char| digit.is_ascii_hexdigit(), "x", 1),
    )
    .unwrap();
    let served = serve(scratch, &options);
    assert_eq!(Counts::start(&served).ask("add 5"), "105");
}

#[test]
fn data_of_a_workers_own_making_are_not_taken_for_them() {
    if !require::cc() {
        return;
    }
    let served = serve(Scratch::open_to_all(), &[]);
    publish(&served, "counter", &counter(100), &[]);
    let mut liar = role::start(LIES, &served.socket);
    assert_eq!(role::next_report(&mut liar), "attached");
    let mut honest = Counts::start(&served);
    assert_eq!(honest.ask("add 1"), "101");
    let served = serve(kill(served), &[]);
    liar.send("go on");
    assert_eq!(role::next_report(&mut liar), "has lied");
    honest.await_next_compiler();
    assert_eq!(role::next_report(&mut liar), "false");
    assert_eq!(honest.ask("add 1"), "102");
    assert_eq!(Counts::start(&served).ask("add 1"), "103");
}

/// The story: the next compiler process knows nothing of a worker that has not come back, whose code uses what is retired.
#[test]
fn nobody_is_given_what_a_worker_uses_that_has_not_come_back() {
    if !require::cc() {
        return;
    }
    let served = serve(Scratch::open_to_all(), &[]);
    publish(&served, "f", &much("f", 1), &["--reclaim"]);
    let (mut near, mut far) = (Counts::start(&served), Counts::start(&served));
    assert_eq!([near.ask("f 0"), far.ask("f 0")], ["0", "0"]);
    let served = serve(kill(served), &[]);
    near.await_next_compiler();
    publish(&served, "f", &much("f", 2), &["--reclaim"]);
    let mut refused = None;
    for round in 0..20 {
        assert_eq!(near.ask("f 0"), "0");
        let file = served.scratch.write("g.c", much("g", round));
        let done = served.publish(&[&file, "--reclaim"]);
        // It has not been told to look for anybody, so it runs what it has.
        assert_eq!(far.ask("f 0"), "0", "what it was, after {round} more");
        if done.code != Some(0) {
            refused = Some(done.stderr);
            break;
        }
    }
    let refused = refused.expect("there is no more room");
    assert!(refused.contains("shared data are needed"), "{refused}");
    far.await_next_compiler();
    for round in 20..40 {
        publish(&served, "g", &much("g", round), &["--reclaim"]);
        for worker in [&mut near, &mut far] {
            assert_eq!([worker.ask("g 0"), worker.ask("f 0")], ["0", "0"]);
        }
    }
}

#[cfg(feature = "seeded-faults")]
#[test]
fn reuse_under_such_a_worker_is_noticed() {
    if !require::cc() {
        return;
    }
    let fault = ("JITCAST_FAULT", "reuse-early");
    common::fault::is_noticed(
        fault,
        "nobody_is_given_what_a_worker_uses_that_has_not_come_back",
    );
}

/// Wherever a publication is cut off by a kill, what workers have counted is there, and the unit is the old one or the new one.
#[cfg(feature = "seeded-faults")]
#[test]
fn a_kill_at_any_point_of_a_publication_loses_nothing_that_was_counted() {
    if !require::cc() {
        return;
    }
    let points = [
        "before-log",
        "after-objects",
        "after-log",
        "after-root",
        "after-head",
        "before-fsync",
        "after-fsync",
    ];
    for point in points {
        let served = serve(Scratch::open_to_all(), &[]);
        publish(&served, "counter", &counter(100), &[]);
        publish(&served, "f", &much("f", 1), &["--reclaim"]);
        let mut worker = Counts::start(&served);
        assert_eq!([worker.ask("add 1"), worker.ask("f 0")], ["101", "0"]);
        let scratch = kill(served);
        // One that kills itself there, at the first publication.
        let (socket, journal) = (scratch.path("socket"), scratch.path("journal"));
        let mut command = common::process::jitcast(&[
            "serve",
            "--socket",
            &socket,
            "--journal",
            &journal,
            "--window",
            "8",
        ]);
        let process = Process::start(command.env("JITCAST_CRASH_AT", point));
        let served = Serve::adopt(process, socket, scratch);
        worker.await_next_compiler();
        assert_eq!(worker.ask("add 1"), "102");
        let file = served.scratch.write("f.c", much("f", 2));
        assert_ne!(
            served.publish(&[&file, "--reclaim"]).code,
            Some(0),
            "{point}"
        );
        assert_eq!(served.process.finish().signal, Some(libc::SIGKILL));
        assert_eq!([worker.ask("add 1"), worker.ask("f 0")], ["103", "0"]);
        let served = serve(served.scratch, &[]);
        worker.await_next_compiler();
        assert_eq!(
            [worker.ask("add 1"), worker.ask("f 0")],
            ["104", "0"],
            "{point}"
        );
        let mut late = Counts::start(&served);
        assert_eq!(
            [late.ask("add 1"), late.ask("f 0")],
            ["105", "0"],
            "{point}"
        );
    }
}

/// The same of a renewal: whichever step it is cut off at.
#[cfg(feature = "seeded-faults")]
#[test]
fn a_kill_at_any_step_of_a_renewal_loses_nothing_that_was_counted() {
    if !require::cc() {
        return;
    }
    let points = jitcast::compiler::CRASH_POINTS.iter();
    let points: Vec<_> = points
        .filter(|point| point.starts_with("renewal"))
        .collect();
    assert!(points.len() >= 3, "{points:?}");
    for point in points {
        let scratch = Scratch::open_to_all();
        let (socket, journal) = (scratch.path("socket"), scratch.path("journal"));
        let args = [
            "serve",
            "--socket",
            &socket,
            "--journal",
            &journal,
            "--window",
            "8",
        ];
        let mut command = common::process::jitcast(&args);
        let process = Process::start(command.env("JITCAST_CRASH_AT", point));
        let served = Serve::adopt(process, socket, scratch);
        publish(&served, "counter", &counter(100), &[]);
        let mut worker = Counts::start(&served);
        assert_eq!(worker.ask("add 1"), "101");
        assert_ne!(served.command("renew", &[]).code, Some(0), "{point}");
        assert_eq!(
            served.process.finish().signal,
            Some(libc::SIGKILL),
            "{point}"
        );
        assert_eq!(worker.ask("add 1"), "102", "{point}");
        let served = serve(served.scratch, &[]);
        worker.await_next_compiler();
        assert_eq!(worker.ask("add 1"), "103", "{point}");
        let mut late = Counts::start(&served);
        assert_eq!(late.ask("add 1"), "104", "{point}");
        served.command("renew", &[]).succeeded();
        assert_eq!(
            [worker.ask("add 1"), late.ask("add 1")],
            ["105", "106"],
            "{point}"
        );
    }
}

/// Whoever attaches asks for what its first child takes over in the same breath: where the answer takes a while, that comes after it.
#[test]
fn who_waits_to_attach_gets_what_it_has_asked_for_besides() {
    use jitcast::runtime::header::FORMAT_VERSION;
    use jitcast::runtime::wire::{self, AttachRequest, FrameKind};
    use zerocopy::IntoBytes;

    if !require::cc() {
        return;
    }
    let served = serve(Scratch::open_to_all(), &[]);
    publish(&served, "counter", &counter(100), &[]);
    let served = serve(kill(served), &[]);
    let socket = std::os::unix::net::UnixStream::connect(&served.socket).unwrap();
    let attach = AttachRequest {
        format_version: FORMAT_VERSION,
        fenced: 0,
        label: [0; 64],
    };
    let frames = [
        (FrameKind::Attach, attach.as_bytes()),
        (FrameKind::Spare, &[]),
    ];
    wire::send_together(&socket, &frames, &[]).unwrap();
    for (kind, fds) in [(FrameKind::Attached, 3), (FrameKind::SpareReply, 2)] {
        let frame = wire::receive(&socket, wire::MAX_WORKER_PAYLOAD).unwrap();
        assert_eq!((frame.kind, frame.fds.len()), (kind, fds));
    }
}
