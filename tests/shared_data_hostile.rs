//! What a worker can do to shared data, which every one may write: garble them. Nobody ends by it, no other worker and not the
//! compiler process, and nobody waits for it.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use common::noise::Noise;
use common::process::{NOBODY, await_some};
use common::serve::Serve;
use common::{remote, require, role};
use jitcast::runtime::header::{FORMAT_VERSION, Header};
use jitcast::runtime::wire::{self, AttachRequest, FrameKind, ResumeRequest};
use rustix::fs::{FallocateFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use rustix::process::{Signal, WaitId, WaitIdOptions};
use units::call;
use zerocopy::{FromBytes, IntoBytes};

/// The role of a worker that tries everything once, and says what it was let do.
const TRIES: &str = "tries";
/// The role of one that spoils as much as it can, until it is killed.
const SPOILS: &str = "spoils";
/// The role of one that holds the lock of the object's inode.
const LOCKS: &str = "locks";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(TRIES, try_all), (SPOILS, spoil), (LOCKS, lock)]);
}

const PAGE_BYTES: usize = 4096;

fn request() -> AttachRequest {
    AttachRequest {
        format_version: FORMAT_VERSION,
        fenced: 0,
        label: [0; 64],
    }
}

/// Attaches by hand: the connection, and the descriptors of the shared data and the mailbox.
fn attach_with_mailbox(socket: &str) -> (UnixStream, File, File) {
    let stream = UnixStream::connect(socket).unwrap();
    wire::send(&stream, FrameKind::Attach, request().as_bytes(), &[]).unwrap();
    let frame = wire::receive(&stream, wire::MAX_WORKER_PAYLOAD).unwrap();
    let [_segment, shared, mailbox] = <[OwnedFd; 3]>::try_from(frame.fds).unwrap();
    (stream, shared.into(), mailbox.into())
}

/// Attaches by hand: the connection, and the descriptor of the shared data.
fn attach_by_hand(socket: &str) -> (UnixStream, File) {
    let (stream, shared, _mailbox) = attach_with_mailbox(socket);
    (stream, shared)
}

/// A mapping of a page, as a hostile process may have it.
fn map(object: &File, page: u64, prot: ProtFlags) -> rustix::io::Result<*mut c_void> {
    let null = std::ptr::null_mut();
    // SAFETY: a mapping at an address of the kernel's choice touches no memory that is in use.
    unsafe { rustix::mm::mmap(null, PAGE_BYTES, prot, MapFlags::SHARED, object, page) }
}

fn punch(object: &File, start: u64, len_bytes: u64) -> rustix::io::Result<()> {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(object, mode, start, len_bytes)
}

/// The role: reports what it is let do.
fn try_all(socket: &str) {
    let (_stream, object) = attach_by_hand(socket);
    let len_bytes = object.metadata().unwrap().len();
    let path = format!("/proc/self/fd/{}", object.as_raw_fd());
    let mut open = OpenOptions::new();
    let (write, execute) = (ProtFlags::READ | ProtFlags::WRITE, ProtFlags::EXEC);
    let attempts = [
        ("cuts it short", object.set_len(0).is_ok()),
        ("makes it longer", object.set_len(len_bytes + 4096).is_ok()),
        (
            "cuts it short by opening",
            open.write(true).truncate(true).open(path).is_ok(),
        ),
        (
            "allocates past its end",
            rustix::fs::fallocate(&object, FallocateFlags::empty(), len_bytes, 4096).is_ok(),
        ),
        (
            "seals it against writing",
            rustix::fs::fcntl_add_seals(&object, SealFlags::WRITE).is_ok(),
        ),
        ("writes", object.write_all_at(&[7], len_bytes - 1).is_ok()),
        ("punches a hole", punch(&object, 0, 4096).is_ok()),
        (
            "maps it executable for itself",
            map(&object, 0, write | execute).is_ok(),
        ),
    ];
    for (what, _) in attempts.iter().filter(|(_, was_let)| *was_let) {
        role::report(what);
    }
    role::report("that is all");
}

/// The role: stores, writes, punches holes and maps, all over the object.
fn spoil(socket: &str) {
    let (_stream, object) = attach_by_hand(socket);
    let len_bytes = object.metadata().unwrap().len();
    let mut noise = Noise(u64::from(std::process::id()));
    let all = ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC;
    for round in 0_u64.. {
        let page = noise.next() % (len_bytes / 4096) * 4096;
        match noise.next() % 4 {
            0 => punch(&object, 0, len_bytes).unwrap(),
            1 => punch(&object, page, 4096).unwrap(),
            2 => object.write_all_at(&[0xcc; 4096], page).unwrap(),
            _ => {
                let page = map(&object, page, all).unwrap();
                // SAFETY: mapped writable just now, bytes of an object that no Rust value lies in.
                unsafe { std::ptr::write_bytes(page.cast::<u8>(), 0xcc, PAGE_BYTES) };
                // SAFETY: this mapping's own, and nobody's else.
                unsafe { rustix::mm::munmap(page, PAGE_BYTES) }.unwrap();
            }
        }
        if round == 100 {
            role::report("spoils");
        }
    }
}

const SHARED: &str = "__attribute__((section(\".jitcast.shared\")))";

/// A unit whose shared data nobody has spoilt if it says 0; what a hostile worker does to them is no crash.
fn source(name: &str, number: u32) -> String {
    format!(
        "{SHARED} volatile long {name}_data[2000] = {{ {number}, [1999] = {number} }};
        long {name}(long x) {{ long wrong = 0;
            for (int i = 0; i < 2000; i++) {{ wrong |= {name}_data[i] != (i % 1999 ? 0 : {number}); {name}_data[i] = {name}_data[i]; }}
            return x + wrong; }}
        long {name}_is(long x) {{ return {number} + x; }}"
    )
}

#[track_caller]
fn publish(serve: &Serve, name: &str, number: u32) {
    let file = serve
        .scratch
        .write(&format!("{name}.c"), source(name, number));
    serve.publish(&[&file, "--reclaim"]).succeeded();
}

#[test]
fn a_worker_of_another_user_can_garble_them_and_nothing_else() {
    if !require::cc() || !require::root() {
        return;
    }
    let serve = Serve::start(&["--allow-attach", &NOBODY.to_string(), "--window", "8"]);
    publish(&serve, "f", 1);
    let worker = remote::attach(&serve.socket);
    assert_eq!(call(&worker, "f", 0), 0);
    let done = common::process::finish(&mut role::command_as(NOBODY, TRIES, &serve.socket));
    let done = done.succeeded();
    let reports = done.stdout.lines();
    let reports = reports.filter_map(|line| line.split_once("report: "));
    let reports: Vec<_> = reports.map(|(_, report)| report).collect();
    assert_eq!(
        reports,
        [
            "writes",
            "punches a hole",
            "maps it executable for itself",
            "that is all"
        ]
    );
    // It has been garbled, but is there.
    assert_eq!(call(&worker, "f", 0), 1);
    publish(&serve, "f", 2);
    assert_eq!(call(&worker, "f", 0), 0);
}

#[test]
fn nobody_ends_by_what_others_do_to_them() {
    if !require::cc() || !require::root() {
        return;
    }
    let serve = Serve::start(&["--allow-attach", &NOBODY.to_string(), "--window", "8"]);
    publish(&serve, "f", 1);
    let worker = remote::attach(&serve.socket);
    let mut spoilers: Vec<_> = (0..2)
        .map(|_| {
            let mut command = role::command_as(NOBODY, SPOILS, &serve.socket);
            let mut spoiler = common::process::Process::start_listening(&mut command);
            assert_eq!(role::next_report(&mut spoiler), "spoils");
            spoiler
        })
        .collect();
    for round in 2..30 {
        publish(&serve, "f", round);
        publish(&serve, "g", round);
        for name in ["f", "g"] {
            // Whatever it reads.
            assert!((0..=1).contains(&call(&worker, name, 0)));
            // Code and what is the worker's own are not theirs.
            assert_eq!(call(&worker, &format!("{name}_is"), 0), i64::from(round));
        }
    }
    // Children of this test are its workers until they become other programs.
    await_some("three workers and no other", || {
        (serve.status().workers.len() == 3).then_some(())
    });
    for spoiler in &mut spoilers {
        let id = WaitId::Pid(rustix::process::Pid::from_raw(spoiler.pid()).unwrap());
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let ended = rustix::process::waitid(id, options).unwrap();
        assert!(ended.is_none(), "a spoiler ended by itself");
        spoiler.signal(Signal::KILL);
    }
    drop(spoilers);
    publish(&serve, "f", 77);
    assert_eq!(call(&worker, "f", 0), 0, "what they left is overwritten");
}

/// A buffer whose page never comes: whoever copies from it waits for this process.
fn endless_page() -> (OwnedFd, *mut c_void) {
    const API: u64 = 0xaa;
    const UFFDIO_API: u64 = 0xc018_aa3f;
    const UFFDIO_REGISTER: u64 = 0xc020_aa00;
    const MISSING: u64 = 1;
    // SAFETY: makes a descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the kernel just made it for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut api = [API, 0, 0];
    // SAFETY: reads and writes the three words.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: at an address of the kernel's choice.
    let page = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), PAGE_BYTES, prot, flags) };
    let page = page.unwrap();
    let mut register = [page as u64, PAGE_BYTES as u64, MISSING, 0];
    // SAFETY: reads and writes the four words; the page is nobody's.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER, register.as_mut_ptr()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    (fd, page)
}

/// A write to the object that does not end, and has the lock of the inode as long.
fn write_for_ever(object: File) {
    let (faults, page) = endless_page();
    let page = page.expose_provenance();
    std::thread::spawn(move || {
        let page = std::ptr::with_exposed_provenance::<c_void>(page);
        // SAFETY: the kernel reads from the page, which is mapped.
        let written = unsafe { libc::pwrite(object.as_raw_fd(), page, PAGE_BYTES, 0) };
        panic!("the write has ended: {written}");
    });
    // What the kernel says when somebody waits for the page: it is in the write.
    let mut event = [0; 32];
    assert_eq!(rustix::io::read(faults.as_fd(), &mut event).unwrap(), 32);
    std::mem::forget(faults);
}

/// The role: holds the lock of the shared data, and of a mailbox with which it comes back.
fn lock(socket: &str) {
    let (_stream, object, mailbox) = attach_with_mailbox(socket);
    let instance = {
        let segment = common::attack::segment_of(socket.as_ref());
        let mut header = [0; size_of::<Header>()];
        rustix::io::pread(&segment, &mut header, 0).unwrap();
        Header::read_from_bytes(&header).unwrap().instance
    };
    write_for_ever(object);
    let own = mailbox.try_clone().unwrap();
    write_for_ever(mailbox);
    let second = UnixStream::connect(socket).unwrap();
    let request = ResumeRequest {
        attach: request(),
        instance,
    };
    wire::send(
        &second,
        FrameKind::Resume,
        request.as_bytes(),
        &[own.as_fd()],
    )
    .unwrap();
    role::report("locks");
    while role::next_line().is_some() {}
}

/// The story: write(2) and fallocate(2) take the inode's lock, and a worker that can write to the object can keep it. So it can
/// that of its mailbox, which the compiler process looks at when it comes back.
#[test]
fn nobody_waits_for_a_worker_that_holds_an_inodes_lock() {
    if !require::cc() || !require::root() {
        return;
    }
    let serve = Serve::start(&["--window", "8"]);
    publish(&serve, "f", 1);
    let worker = remote::attach(&serve.socket);
    let mut locker = role::start(LOCKS, &serve.socket);
    assert_eq!(role::next_report(&mut locker), "locks");
    for round in 2..10 {
        publish(&serve, "f", round);
        publish(&serve, "g", round);
        assert_eq!([call(&worker, "f", 0), call(&worker, "g", 0)], [0, 0]);
        assert_eq!(call(&remote::attach(&serve.socket), "f", 0), 0);
    }
    serve.command("renew", &[]).succeeded();
    publish(&serve, "f", 20);
    assert_eq!(call(&worker, "f", 0), 0);
    locker.signal(Signal::KILL);
}
