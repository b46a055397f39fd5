//! Control pages that are not what a compiler process writes: refused, or read without harm, whatever they say.
//!
//! A test back end offers workers copies of a real segment in which some words are others. What is refused names what is wrong.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::host::Host;
use common::noise::Noise;
use common::process::finish;
use common::role;
use common::scratch::Scratch;
use jitcast::runtime::Area;
use jitcast::runtime::header::Header;
use jitcast::runtime::segment::{SEALS, SHARED_SEALS, create_mailbox};
use jitcast::runtime::sys;
use jitcast::runtime::wire::{self, AttachReply, FrameKind};
use jitcast::worker::{Endpoint, Worker, WorkerOptions};
use units::{adders, c, publish};
use zerocopy::{FromBytes, IntoBytes};

const READER: &str = "reads what is offered";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(READER, read)]);
}

/// Segments that are tried.
const TRIES: u64 = 400;

/// Changes some words of the control area: of the part of the header that changes, of the ring, of what is in use behind.
fn corrupt(bytes: &mut [u8], control: std::ops::Range<usize>, noise: &mut Noise) {
    const FIRST: usize = 256;
    let used = bytes[control.clone()]
        .iter()
        .rposition(|byte| *byte != 0)
        .unwrap()
        + 8;
    for _ in 0..=noise.next() % 8 {
        let span = if noise.next().is_multiple_of(3) {
            512
        } else {
            used
        };
        let at = control.start + (FIRST + noise.next() as usize % (span - FIRST)) / 8 * 8;
        let word = &mut bytes[at..at + 8];
        let before = u64::from_le_bytes(word.try_into().unwrap());
        let after = match noise.next() % 5 {
            0 => noise.next(),
            1 => before ^ 1 << (noise.next() % 64),
            2 => before.wrapping_add(noise.next() % 64).wrapping_sub(32),
            3 => before.rotate_left(32),
            // Somewhere in the window.
            _ => noise.next() % (8 << 20) / 8 * 8,
        };
        word.copy_from_slice(&after.to_le_bytes());
    }
}

/// Attaches to what `bytes` says, and looks at everything, but calls nothing: what it was refused for.
fn look(bytes: &[u8]) -> Option<String> {
    let object = File::from(sys::memfd("test", bytes.len() as u64).unwrap());
    object.write_all_at(bytes, 0).unwrap();
    sys::seal(&object, SEALS).unwrap();
    let object = sys::reopen_read_only(&object).unwrap();
    let (header, _) = Header::read_from_prefix(bytes).unwrap();
    let len_bytes = header.areas[Area::SharedData.index()];
    let shared = sys::memfd("test", len_bytes.into()).unwrap();
    sys::seal(&shared, SHARED_SEALS).unwrap();
    let (_, mailbox, _) = create_mailbox(header.object).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let reply = AttachReply {
        worker: 1,
        sealed: 1,
        fenced: 0,
    };
    // A frame fits the socket's buffer, so it is there before it is asked for.
    let fds = [object.as_fd(), shared.as_fd(), mailbox.as_fd()];
    wire::send(&ours, FrameKind::Attached, reply.as_bytes(), &fds).unwrap();
    let worker = match Worker::attach(Endpoint::Fd(theirs.into()), WorkerOptions::default()) {
        Ok(worker) => worker,
        Err(error) => return Some(error.to_string()),
    };
    for name in ["f", "count", "g", "none"] {
        let guard = match worker.enter() {
            Ok(guard) => guard,
            Err(error) => return Some(error.to_string()),
        };
        if let Err(error) = worker.symbol(&guard, name) {
            return Some(error.to_string());
        }
        // SAFETY: it is called by nobody.
        let function =
            unsafe { worker.function_unchecked::<extern "C" fn(i64) -> i64>(&guard, name) };
        if let Err(error) = function {
            return Some(error.to_string());
        }
    }
    worker.wait(u64::MAX, Some(Duration::ZERO));
    None
}

/// The role: all tries from a number on.
fn read(target: &str) {
    let bytes = std::fs::read(target).unwrap();
    let (_, geometry) = Header::check(
        &bytes,
        bytes.len() as u64,
        jitcast::runtime::cpu::CpuFeatures::host(),
    )
    .unwrap();
    let region = geometry.region(Area::Control);
    let start = (region.start - geometry.shared().start) as usize;
    let control = start..start + region.len_bytes as usize;
    assert!(look(&bytes).is_some_and(|why| why.contains("`none` is not published")));
    let mut refusals = std::collections::BTreeMap::<String, u32>::new();
    for seed in 0..TRIES {
        role::report(seed);
        let mut changed = bytes.clone();
        corrupt(&mut changed, control.clone(), &mut Noise(seed));
        let why = look(&changed).unwrap_or_else(|| "nothing".to_owned());
        assert!(!why.is_empty());
        let kind = why
            .split(|c: char| c.is_ascii_digit())
            .next()
            .unwrap_or_default();
        *refusals.entry(kind.chars().take(40).collect()).or_default() += 1;
    }
    role::report(format_args!("{refusals:?}"));
}

#[test]
fn whatever_control_pages_say_no_worker_crashes() {
    if !common::require::cc() {
        return;
    }
    let host = Host::sealed();
    let counter = "static long n; long count(long by) { return n += by; }";
    publish(&host, &[adders("f", &[("f", 1)]), c("count", counter)]);
    for version in 0..20 {
        publish(&host, &[adders("g", &[("g", version)])]);
    }
    let scratch = Scratch::new();
    let image = scratch.path("image");
    std::fs::write(&image, host.shared_bytes()).unwrap();
    let done = finish(&mut role::command(READER, &image));
    let reports: Vec<_> = done
        .stdout
        .lines()
        .filter(|line| line.contains("report: "))
        .collect();
    assert_eq!(
        done.code,
        Some(0),
        "after {:?}: {}",
        reports.last(),
        done.stderr
    );
    println!("{}", reports.last().unwrap());
}
