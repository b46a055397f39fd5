//! Workers that lie, and clients that speak nonsense, at full speed: the compiler process stays up, others do not notice, and
//! nothing is left behind.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::host::{Host, WINDOW_BYTES, compiles};
use common::noise::Noise;
use common::process::{NOBODY, PATIENCE, at_rest, await_some};
use common::remote::{self, Remote};
use common::{require, role};
use jitcast::compiler::{CompilerOptions, RequestLimits};
use jitcast::runtime::mailbox::MAILBOX_BYTES;
use jitcast::runtime::sys::{self, Mapping};
use jitcast::runtime::wire::{self, AttachRequest, FrameHeader, FrameKind, ResumeRequest};
use rustix::fs::SealFlags;
use rustix::process::{Signal, WaitId, WaitIdOptions};
use units::{attach, call, handle, publish_generation};
use zerocopy::IntoBytes;

const LIAR: &str = "lies";
const INTRUDER: &str = "reaches for other processes";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[
        (LIAR, lie),
        (INTRUDER, reach_for_others),
        (remote::ROLE, remote::play),
    ]);
}

/// One test at a time: they count the descriptors of this process, and liars take a processor each.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn connect(socket: &str) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream
        .set_write_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    stream
}

/// What the compiler process answers, however busy the machine is.
fn answer(stream: &UnixStream) -> wire::Frame {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let frame = wire::receive(stream, wire::MAX_WORKER_PAYLOAD).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    frame
}

fn attach_request() -> AttachRequest {
    AttachRequest {
        format_version: jitcast::runtime::header::FORMAT_VERSION,
        fenced: 0,
        label: [b'x'; 64],
    }
}

/// Attaches by hand: the connection, and the descriptor of the mailbox.
fn attach_by_hand(socket: &str) -> (UnixStream, OwnedFd) {
    let stream = connect(socket);
    wire::send(&stream, FrameKind::Attach, attach_request().as_bytes(), &[]).unwrap();
    let frame = answer(&stream);
    let [_segment, _shared, mailbox] = <[OwnedFd; 3]>::try_from(frame.fds).unwrap();
    (stream, mailbox)
}

/// The role: one kind of lie, until it is killed.
fn lie(target: &str) {
    let (socket, kind) = target.rsplit_once(' ').unwrap();
    let mut noise = Noise(u64::from(std::process::id()));
    let mut spoken = false;
    let mut go_on = |said: &str| {
        if !std::mem::replace(&mut spoken, true) {
            role::report(said);
        }
    };
    match kind {
        "mailbox" => {
            let (_stream, mailbox) = attach_by_hand(socket);
            let mapping = Mapping::shared(mailbox.as_fd(), MAILBOX_BYTES as usize, true).unwrap();
            let words = mapping.base().cast::<u64>();
            loop {
                let at = noise.next() as usize % (MAILBOX_BYTES as usize / 8);
                // SAFETY: inside the mapping.
                let word = unsafe { words.add(at) };
                // SAFETY: mapped, aligned, accessed atomically.
                let word = unsafe { std::sync::atomic::AtomicU64::from_ptr(word.as_ptr()) };
                word.store(
                    noise.next() >> (noise.next() % 64),
                    std::sync::atomic::Ordering::Relaxed,
                );
                go_on("lies");
            }
        }
        // Holds whatever object there is from the beginning of time.
        "pins" => {
            use jitcast::runtime::mailbox::{Mailbox, ThreadWord, Word};
            use std::sync::atomic::Ordering;
            let (stream, mailbox) = attach_by_hand(socket);
            let mapping = Mapping::shared(mailbox.as_fd(), MAILBOX_BYTES as usize, true).unwrap();
            let mailbox = Mailbox::new(mapping).unwrap();
            mailbox.claim(1).unwrap();
            loop {
                mailbox
                    .thread(0, ThreadWord::Pin)
                    .store(1, Ordering::Relaxed);
                go_on("lies");
                let Ok(frame) = wire::receive(&stream, wire::MAX_WORKER_PAYLOAD) else {
                    continue;
                };
                let mut object = [0; 8];
                let at = std::mem::offset_of!(jitcast::runtime::header::Header, object);
                rustix::io::pread(&frame.fds[0], &mut object, at as u64).unwrap();
                let object = u64::from_le_bytes(object);
                mailbox.word(Word::Object).store(object, Ordering::Relaxed);
            }
        }
        "frames" => loop {
            let mut stream = connect(socket);
            for _ in 0..noise.next() % 8 {
                // Not what this user may well ask for.
                let kind = (noise.next() % 24) as u32;
                if kind == FrameKind::Renew as u32 {
                    continue;
                }
                let len = noise.next() as usize % 300;
                let stated = if noise.next().is_multiple_of(4) {
                    noise.next() as u32
                } else {
                    len as u32
                };
                let header = FrameHeader {
                    kind,
                    ..FrameHeader::new(FrameKind::Attach, stated)
                };
                let sent = stream.write_all(header.as_bytes());
                if sent
                    .and_then(|()| stream.write_all(&noise.bytes(len)))
                    .is_err()
                {
                    break;
                }
            }
            go_on("lies");
        },
        "descriptors" => loop {
            let stream = connect(socket);
            let file = std::fs::File::open("/proc/self/exe").unwrap();
            let fds = [file.as_fd(); wire::MAX_FDS];
            let kinds = [
                FrameKind::Attach,
                FrameKind::Status,
                FrameKind::Publish,
                FrameKind::Resume,
                FrameKind::Spare,
            ];
            for kind in kinds {
                let payload = noise.bytes(noise.0 as usize % 200);
                if wire::send(&stream, kind, &payload, &fds).is_err() {
                    break;
                }
            }
            go_on("lies");
        },
        "mailboxes" => loop {
            for fd in false_mailboxes() {
                let stream = connect(socket);
                let request = ResumeRequest {
                    attach: attach_request(),
                    instance: instance_of(socket),
                };
                wire::send(
                    &stream,
                    FrameKind::Resume,
                    request.as_bytes(),
                    &[fd.as_fd()],
                )
                .unwrap();
                let frame = answer(&stream);
                assert_eq!(
                    frame.kind,
                    FrameKind::Refused,
                    "{:?}",
                    String::from_utf8_lossy(&frame.payload)
                );
            }
            go_on("lies");
        },
        "spares" => loop {
            let (stream, _mailbox) = attach_by_hand(socket);
            let header = FrameHeader::new(FrameKind::Spare, 0);
            // More than are given, and none of the answers is read.
            for _ in 0..2000 {
                if (&stream).write_all(header.as_bytes()).is_err() {
                    break;
                }
            }
            go_on("lies");
        },
        "requests" => loop {
            let (stream, _mailbox) = attach_by_hand(socket);
            // None of the answers is read.
            for _ in 0..300 {
                let number = noise.next();
                let mut payload = number.to_le_bytes().to_vec();
                let kind = match number % 8 {
                    0 | 1 => FrameKind::Release,
                    2 => FrameKind::Hold,
                    _ => FrameKind::Ask,
                };
                match noise.next() % 6 {
                    0 => payload.truncate(number as usize % 9),
                    1 => payload.extend(noise.bytes(number as usize % 300)),
                    // More than may be asked for.
                    2 => payload.resize(300 << 10, b' '),
                    3 => payload.extend(number.to_le_bytes()),
                    _ => {
                        let bonus = i64::from(noise.next() as u8);
                        payload.extend(common::scratch::adds("f", bonus).bytes());
                    }
                }
                if wire::send(&stream, kind, &payload, &[]).is_err() {
                    break;
                }
            }
            go_on("lies");
        },
        "slow" => {
            let mut streams: Vec<UnixStream> = (0..100).map(|_| connect(socket)).collect();
            let header = FrameHeader::new(FrameKind::Publish, 1 << 20);
            loop {
                for stream in &mut streams {
                    let at = noise.next() as usize % 16;
                    if stream.write_all(&header.as_bytes()[at..=at]).is_err() {
                        *stream = connect(socket);
                    }
                }
                go_on("lies");
            }
        }
        _ => panic!("{kind}"),
    }
}

/// The instance of the segment, from the header that every worker sees.
fn instance_of(socket: &str) -> [u8; 16] {
    let stream = connect(socket);
    wire::send(&stream, FrameKind::Attach, attach_request().as_bytes(), &[]).unwrap();
    let frame = answer(&stream);
    let mut header = [0; 48];
    rustix::io::pread(&frame.fds[0], &mut header, 0).unwrap();
    header[32..48].try_into().unwrap()
}

/// What is no mailbox: too short, too long, not sealed, sealed against writing, a file, a pipe.
fn false_mailboxes() -> Vec<OwnedFd> {
    let len = u64::from(MAILBOX_BYTES);
    let sized = SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    let memfd = |len: u64, seals: Option<SealFlags>| {
        let fd = sys::memfd("false", len).unwrap();
        if let Some(seals) = seals {
            sys::seal(&fd, seals).unwrap();
        }
        fd
    };
    let (read, write) = std::io::pipe().unwrap();
    vec![
        memfd(len, None),
        memfd(len - 8, Some(sized)),
        memfd(len + 4096, Some(sized)),
        memfd(len, Some(sized.difference(SealFlags::SHRINK))),
        memfd(len, Some(sized | SealFlags::WRITE)),
        memfd(len, Some(sized | SealFlags::FUTURE_WRITE)),
        // Of zeros: without the first word.
        memfd(len, Some(sized)),
        std::fs::File::open("/proc/self/exe").unwrap().into(),
        read.into(),
        write.into(),
    ]
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Publishes and calls while somebody lies; each worker sees every generation in time.
fn survives(kind: &str) {
    let _turn = alone();
    let options = CompilerOptions {
        reclaim_above_bytes: 64 << 10,
        ..CompilerOptions::with_window(WINDOW_BYTES * 8).unwrap()
    };
    let host = Host::with_policy(options, compiles(RequestLimits::default()));
    // Who asks for units publishes too, in a way.
    let publish = |number: i32| {
        let batch = ["f", "g"].map(|name| units::adders(name, &[(name, number)]));
        units::publish(&host, &batch).generation
    };
    publish(0);
    let worker = attach(&host);
    let f = handle(&worker, "f");
    // What the server makes ahead of need is there.
    let before = at_rest(descriptors);
    let liars: Vec<_> = (0..2)
        .map(|_| {
            let mut liar = role::start(LIAR, &format!("{} {kind}", host.socket));
            assert_eq!(role::next_report(&mut liar), "lies");
            liar
        })
        .collect();
    let end = Instant::now() + Duration::from_secs(1);
    let mut published = 0;
    while Instant::now() < end || published < 100 {
        published += 1;
        let generation = publish(published);
        let guard = worker.enter().unwrap();
        assert!(guard.generation() >= generation);
        assert_eq!(f.call(&guard, 0), i64::from(published));
    }
    // New workers are let in meanwhile.
    assert_eq!(call(&attach(&host), "g", 0), i64::from(published));
    for liar in liars {
        // Nobody else may have ended it.
        let pid = rustix::process::Pid::from_raw(liar.pid()).unwrap();
        let id = WaitId::Pid(pid);
        let ended = rustix::process::waitid(
            id,
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT,
        );
        assert!(ended.unwrap().is_none(), "a liar ended by itself");
        liar.signal(Signal::KILL);
        drop(liar);
    }
    await_some("the end of all liars", || {
        let status = host.compiler.status();
        let alone = status.workers.len() == 1 && host.compiler.worker_count() == 1;
        (alone && status.asked.is_empty()).then_some(())
    });
    await_some("as few descriptors as before", || {
        (descriptors() <= before + 2).then_some(())
    });
    for number in 0..300 {
        publish(number);
    }
    assert!(
        host.compiler.status().retired_bytes < 256 << 10,
        "nothing is held by the dead"
    );
}

/// Whoever pins everything, in each object that it is offered, gets what it holds: others go on in the next one.
#[test]
fn what_a_liar_pins_is_left_to_it() {
    use common::host::object_unit;
    use common::object::Maker;
    use jitcast::compiler::{Reclaim, UnitSource};
    let _turn = alone();
    let host = Host::sealed();
    publish_generation(&host);
    let worker = attach(&host);
    let mut liar = role::start(LIAR, &format!("{} pins", host.socket));
    assert_eq!(role::next_report(&mut liar), "lies");
    for number in 0..100u8 {
        let code = [vec![0xb8, number, 0, 0, 0, 0xc3], vec![0xcc; 400_000]].concat();
        let object = Maker::new().function("big", &code).finish();
        let unit = UnitSource {
            reclaim: Reclaim::Yes,
            signatures: vec![("big".into(), "(i64) -> i64".parse().unwrap())],
            ..object_unit("big", object)
        };
        units::publish(&host, &[unit]);
        // In another object at times, which a server that gets no processor may offer later than it is published.
        await_some("the latest version", || {
            (call(&worker, "big", 0) == i64::from(number)).then_some(())
        });
    }
    let mut stragglers = host.compiler.status().stragglers;
    // Children of this test were its workers before they became other programs.
    stragglers.retain(|straggler| straggler.thread != 0);
    assert!(!stragglers.is_empty());
    assert!(
        stragglers
            .iter()
            .all(|straggler| straggler.pid == liar.pid()),
        "{stragglers:?}"
    );
    liar.signal(Signal::KILL);
    drop(liar);
    await_some("what it held is given back", || {
        let status = host.compiler.status();
        (status.stragglers.is_empty() && status.older_bytes == 0).then_some(())
    });
}

/// What the segment says was reused stays said: else a worker that lags would let its threads stay where memory is somebody
/// else's. Whoever attaches pins everything too, for a moment.
#[test]
fn no_pin_lets_the_floor_sink() {
    use jitcast::runtime::header::FLOOR;
    use jitcast::runtime::mailbox::{Mailbox, ThreadWord};
    use std::sync::atomic::Ordering;
    let _turn = alone();
    let host = Host::with(CompilerOptions {
        reclaim_above_bytes: 0,
        ..CompilerOptions::with_window(WINDOW_BYTES).unwrap()
    });
    let floor = || {
        let mut word = [0; 8];
        rustix::io::pread(
            host.compiler.segment().worker_fd().unwrap(),
            &mut word,
            FLOOR.into(),
        )
        .unwrap();
        u64::from_le_bytes(word)
    };
    for _ in 0..10 {
        publish_generation(&host);
    }
    let before = floor();
    assert!(before > 5, "{before}");
    let (_stream, mailbox) = attach_by_hand(&host.socket);
    let mapping = Mapping::shared(mailbox.as_fd(), MAILBOX_BYTES as usize, true).unwrap();
    let mailbox = Mailbox::new(mapping).unwrap();
    mailbox.claim(1).unwrap();
    mailbox
        .thread(0, ThreadWord::Pin)
        .store(1, Ordering::Release);
    let mut latest = before;
    for _ in 0..10 {
        publish_generation(&host);
        assert!(floor() >= latest, "{} after {latest}", floor());
        latest = floor();
    }
    assert!(host.compiler.status().retired_bytes > 0, "the pin counts");
    mailbox
        .thread(0, ThreadWord::Pin)
        .store(0, Ordering::Release);
    publish_generation(&host);
    assert!(floor() > latest);
}

macro_rules! lies {
    ($($test:ident: $kind:literal;)*) => { $(
        #[test]
        fn $test() {
            survives($kind);
        }
    )* };
}

lies! {
    garbage_in_a_mailbox_costs_only_its_worker: "mailbox";
    frames_of_garbage_cost_only_who_sends_them: "frames";
    descriptors_where_none_belong_are_closed: "descriptors";
    what_is_no_mailbox_is_refused: "mailboxes";
    who_asks_for_more_than_it_reads_is_dropped: "spares";
    who_asks_for_units_at_full_speed_takes_nothing_from_others: "requests";
    who_sends_byte_by_byte_keeps_nobody: "slow";
}

/// The role: a worker of another user tries to get at the memory and the descriptors of processes; reports what it was let do.
fn reach_for_others(target: &str) {
    let words: Vec<_> = target.split(' ').collect();
    let worker = remote::attach(words[0]);
    assert!(remote::call(&worker, "f", 1).is_ok());
    let mut tried = 0;
    for pid in &words[1..] {
        let raw: i32 = pid.parse().unwrap();
        let process = rustix::process::Pid::from_raw(raw).unwrap();
        let mut attempts: Vec<(&str, bool)> = Vec::new();
        for file in ["mem", "maps", "fd", "environ", "map_files"] {
            let path = format!("/proc/{pid}/{file}");
            let opened = std::fs::File::options()
                .read(true)
                .write(file == "mem")
                .open(&path);
            let was_opened = file == "mem" && opened.is_ok();
            // Whoever may not look gets an empty list, or nothing.
            let read = opened.and_then(|mut file| std::io::Read::read(&mut file, &mut [0; 1]));
            let listed = std::fs::read_dir(&path).map(|mut entries| entries.next().is_some());
            let was_let = was_opened || matches!(read, Ok(1..)) || matches!(listed, Ok(true));
            attempts.push((file, was_let));
        }
        let pidfd =
            rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty()).unwrap();
        for descriptor in 0..64 {
            let flags = rustix::process::PidfdGetfdFlags::empty();
            let got = rustix::process::pidfd_getfd(&pidfd, descriptor, flags);
            attempts.push(("pidfd_getfd", got.is_ok()));
        }
        // SAFETY: asks to trace another process; nothing of this one's memory is named.
        let traced = unsafe { libc::ptrace(libc::PTRACE_SEIZE, raw, 0, 0) };
        attempts.push(("ptrace", traced == 0));
        let part = libc::iovec {
            iov_base: worker.window().base().get() as *mut libc::c_void,
            iov_len: 8,
        };
        // SAFETY: the parts live across the call; what would be written are bytes of this process that can be read or not.
        let written =
            unsafe { libc::process_vm_writev(raw, &raw const part, 1, &raw const part, 1, 0) };
        // Who may write is told that nothing is there.
        let is_absent = std::io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT);
        attempts.push(("process_vm_writev", written >= 0 || is_absent));
        let killed = rustix::process::kill_process(process, Signal::KILL);
        attempts.push(("kill", killed.is_ok()));
        tried += attempts.len();
        for (what, _) in attempts.into_iter().filter(|(_, was_let)| *was_let) {
            role::report(format_args!("let: {what} of {pid}"));
        }
    }
    role::report(format_args!("{tried} attempts"));
}

/// Neither the compiler process nor a worker is within reach of a worker of another user.
#[test]
fn a_worker_of_another_user_reaches_no_other_process() {
    use common::serve::Serve;
    let _turn = alone();
    if !require::root() {
        return;
    }
    let serve = Serve::start(&["--allow-attach", &NOBODY.to_string()]);
    serve.publish_adds("f", 1);
    let mut bystander = Remote::start(&serve.socket);
    assert_eq!(bystander.call("f", 1), "2");
    let target = format!(
        "{} {} {}",
        serve.socket,
        serve.process.pid(),
        bystander.pid()
    );
    let mut intruder = role::command_as(NOBODY, INTRUDER, &target);
    let done = common::process::finish(&mut intruder).succeeded();
    let reports = done
        .stdout
        .lines()
        .filter_map(|line| line.split_once("report: "));
    let reports: Vec<_> = reports.map(|(_, report)| report).collect();
    assert_eq!(reports, ["144 attempts"], "{reports:#?}");
    // All of that is let to whoever may.
    let victim = Remote::start(&serve.socket);
    let target = format!("{} {}", serve.socket, victim.pid());
    let done = role::start(INTRUDER, &target).finish().succeeded();
    for what in [
        "mem",
        "fd",
        "pidfd_getfd",
        "ptrace",
        "process_vm_writev",
        "kill",
    ] {
        let report = format!("let: {what} of {}", victim.pid());
        assert!(done.stdout.contains(&report), "{report}: {done:#?}");
    }
    serve.publish_adds("f", 2);
    assert_eq!(bystander.call("f", 1), "3");
}
