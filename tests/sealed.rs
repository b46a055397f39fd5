//! The sealed segment against a hostile worker, and a worker against what a hostile compiler gives it.

mod common;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use common::attack;
use common::host::Host;
use common::process::Finished;
use common::remote::{self, Remote};
use common::role;
use jitcast::runtime::cpu::CpuFeatures;
use jitcast::runtime::geometry::Geometry;
use jitcast::runtime::header::{Header, HeaderError};
use jitcast::runtime::segment::{BackEnd, SEALS, SHARED_SEALS, create_mailbox};
use jitcast::runtime::wire::{self, AttachReply, FrameKind};
use jitcast::runtime::{Area, sys};
use jitcast::worker::{AttachError, Endpoint, Worker, WorkerOptions};
use rustix::fs::SealFlags;
use zerocopy::IntoBytes;

/// The role of a hostile worker that attacks through the descriptor that it is given.
const BY_DESCRIPTOR: &str = "attacker by descriptor";

/// The role of one that attacks the views that it has mapped.
const BY_VIEWS: &str = "attacker by views";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[
        (remote::ROLE, remote::play),
        (BY_DESCRIPTOR, attack_by_descriptor),
        (BY_VIEWS, attack_by_views),
    ]);
}

/// Where an attack on the code of `f` aims: its offset in the shared object.
fn code_of_f(worker: &Worker) -> u64 {
    let guard = worker.enter().unwrap();
    let code = worker.symbol(&guard, "f").unwrap().code;
    let offset = worker.window().offset_of(code).unwrap();
    u64::from(offset.get() - worker.geometry().shared().start)
}

fn attack_by_descriptor(socket: &str) {
    let worker = remote::attach(socket);
    let segment = attack::segment_of(Path::new(socket));
    let code = code_of_f(&worker);
    assert_eq!(remote::call(&worker, "f", 1), Ok(2));
    for at in [0, code] {
        for attempt in attack::through_both(segment.as_fd(), at) {
            role::report(attempt);
        }
        attack::private_copy(segment.as_fd(), at).unwrap();
    }
    let result = remote::call(&worker, "f", 1);
    role::report(format_args!("result: {result:?}"));
}

fn attack_by_views(socket: &str) {
    let worker = remote::attach(socket);
    assert_eq!(remote::call(&worker, "f", 1), Ok(2));
    for attempt in attack::on_views(&worker) {
        role::report(attempt);
    }
    let result = remote::call(&worker, "f", 1);
    role::report(format_args!("result: {result:?}"));
}

/// The reports of an attacker.
fn attacks(role: &str, host: &Host) -> Vec<String> {
    let done: Finished = role::start(role, &host.socket).finish().succeeded();
    let reports = done.stdout.lines();
    let reports = reports.filter_map(|line| Some(line.split_once("report: ")?.1.to_owned()));
    reports.collect()
}

/// Asserts that `role` reaches no shared byte of a host and disturbs nobody; its reports.
fn withstands(role: &str, back_end: BackEnd) -> Vec<String> {
    let host = Host::start(back_end);
    host.publish_adds("f", 1);
    host.fill_every_area();
    let mut bystander = Remote::start(&host.socket);
    assert_eq!(bystander.call("f", 1), "2");
    let before = host.shared_bytes();
    let mut reports = attacks(role, &host);
    assert!(
        before == host.shared_bytes(),
        "shared bytes changed: {reports:#?}"
    );
    assert_eq!(bystander.call("f", 1), "2");
    assert_eq!(
        reports.pop().as_deref(),
        Some("result: Ok(2)"),
        "{reports:#?}"
    );
    host.publish_adds("f", 2);
    assert_eq!(bystander.call("f", 1), "3");
    let let_through: Vec<_> = reports
        .iter()
        .filter(|report| !report.starts_with("refused: "))
        .collect();
    assert!(let_through.is_empty(), "{let_through:#?}");
    reports
}

#[test]
fn nothing_that_a_worker_tries_through_its_descriptor_reaches_the_shared_bytes() {
    let reports = withstands(BY_DESCRIPTOR, BackEnd::Sealed);
    assert_eq!(reports.len(), 36, "{reports:#?}");
}

#[test]
fn nothing_that_a_worker_tries_on_its_views_reaches_the_shared_bytes() {
    let reports = withstands(BY_VIEWS, BackEnd::Sealed);
    assert_eq!(reports.len(), 16, "{reports:#?}");
}

#[test]
fn the_views_of_a_named_segment_are_as_closed() {
    let name = format!("test-views-{}", std::process::id());
    let reports = withstands(BY_VIEWS, BackEnd::Named(name));
    assert_eq!(reports.len(), 16, "{reports:#?}");
}

/// That the attacks above fail says something only if they succeed where nothing stops them.
#[test]
fn the_same_attempts_succeed_on_an_object_without_seals() {
    let object = sys::memfd("test", 3 * 4096).unwrap();
    let through = attack::through(object.as_fd(), 4096);
    // Through /proc/self/mem only private pages can be stored to against their protection.
    let mut refused = through.iter().filter(|attempt| !attempt.was_let());
    let refused: Vec<_> = refused.by_ref().map(ToString::to_string).collect();
    assert!(
        refused
            .iter()
            .all(|report| report.contains("/proc/self/mem")),
        "{refused:#?}"
    );
    let reopened = sys::reopen_read_only(&object).unwrap();
    let again = attack::reopen(reopened.as_fd()).unwrap();
    again.write_all_at(&[1], 0).unwrap();
}

/// What a fake compiler offers.
struct Offer {
    header: Header,
    len_bytes: u64,
    seals: SealFlags,
    writable: bool,
    sealed: u32,
    /// Length and seals of the shared data.
    shared: (u64, SealFlags),
}

impl Offer {
    /// A segment without a directory: good as far as the checks before mapping go.
    fn good() -> Self {
        let geometry = Geometry::new(8 << 20).unwrap();
        Self {
            header: Header::new(&geometry, CpuFeatures::host(), ([7; 16], 1), 1, [0; 108]),
            len_bytes: geometry.shared().len_bytes.into(),
            seals: SEALS,
            writable: false,
            sealed: 1,
            shared: (
                geometry.region(Area::SharedData).len_bytes.into(),
                SHARED_SEALS,
            ),
        }
    }

    fn with_header(change: impl FnOnce(&mut Header)) -> Self {
        let mut offer = Self::good();
        change(&mut offer.header);
        offer
    }

    /// The descriptor that is offered.
    fn segment(&self) -> OwnedFd {
        let object = File::from(sys::memfd("test", self.len_bytes).unwrap());
        let header = self.header.as_bytes();
        let len = header.len().min(self.len_bytes.try_into().unwrap());
        object.write_all_at(&header[..len], 0).unwrap();
        sys::seal(&object, self.seals).unwrap();
        match self.writable {
            true => object.into(),
            false => sys::reopen_read_only(&object).unwrap(),
        }
    }

    /// How a worker's attach to it fails.
    fn refusal(&self) -> AttachError {
        let (_, mailbox, _) = create_mailbox(1).unwrap();
        let reply = AttachReply {
            worker: 1,
            sealed: self.sealed,
            fenced: 0,
        };
        let segment = self.segment();
        let shared = sys::memfd("test", self.shared.0).unwrap();
        sys::seal(&shared, self.shared.1).unwrap();
        refusal_of(move |socket| {
            let fds = [segment.as_fd(), shared.as_fd(), mailbox.as_fd()];
            wire::send(socket, FrameKind::Attached, reply.as_bytes(), &fds).unwrap();
        })
    }
}

/// How a worker's attach fails to a compiler that answers by `answer`.
fn refusal_of(answer: impl FnOnce(&UnixStream) + Send) -> AttachError {
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let request = wire::receive(&ours, wire::MAX_WORKER_PAYLOAD).unwrap();
            assert_eq!(request.kind, FrameKind::Attach);
            answer(&ours);
        });
        Worker::attach(Endpoint::Fd(theirs.into()), WorkerOptions::default()).unwrap_err()
    })
}

#[track_caller]
fn assert_header(offer: &Offer, wanted: &HeaderError) {
    match offer.refusal() {
        AttachError::Header(found) => assert_eq!(found, *wanted),
        other => panic!("{other}"),
    }
}

#[test]
fn the_checks_before_mapping_let_a_good_offer_pass() {
    let refusal = Offer::good().refusal();
    assert!(
        matches!(refusal, AttachError::Update(_)),
        "no directory: {refusal}"
    );
}

#[test]
fn a_segment_without_all_the_seals_is_refused() {
    for missing in [SealFlags::FUTURE_WRITE, SealFlags::GROW, SealFlags::SHRINK] {
        let offer = Offer {
            seals: SEALS - missing,
            ..Offer::good()
        };
        let refusal = offer.refusal();
        assert!(
            matches!(refusal, AttachError::NotSealed { found, .. } if found & missing.bits() == 0),
            "{missing:?}: {refusal}"
        );
    }
    let open = Offer {
        seals: SealFlags::empty(),
        ..Offer::good()
    };
    let refusal = open.refusal();
    assert!(
        matches!(refusal, AttachError::NotSealed { .. }),
        "{refusal}"
    );
}

/// Who maps what others can cut short ends with the first access to what is gone.
#[test]
fn shared_data_that_can_be_resized_or_are_too_short_are_refused() {
    let offered = |shared| Offer {
        shared,
        ..Offer::good()
    };
    let refused = |offer: Offer, part: &str| {
        let refusal = offer.refusal();
        let message = refusal.to_string();
        assert!(
            matches!(refusal, AttachError::SharedData { .. }),
            "{message}"
        );
        assert!(message.contains(part), "{message}");
    };
    let (len_bytes, seals) = Offer::good().shared;
    for missing in [SealFlags::GROW, SealFlags::SHRINK] {
        refused(offered((len_bytes, seals - missing)), "their seals are");
    }
    // What nobody can write is none either.
    refused(
        offered((len_bytes, seals | SealFlags::WRITE)),
        "their seals are",
    );
    for sealed in [0, 1] {
        let short = Offer {
            sealed,
            ..offered((len_bytes - 1, seals))
        };
        refused(
            short,
            &format!("they have {} bytes of {len_bytes}", len_bytes - 1),
        );
    }
}

#[test]
fn a_descriptor_that_is_open_for_writing_is_refused() {
    for sealed in [0, 1] {
        let offer = Offer {
            writable: true,
            sealed,
            ..Offer::good()
        };
        let refusal = offer.refusal();
        assert!(matches!(refusal, AttachError::Writable), "{refusal}");
    }
}

#[test]
fn foreign_magic_is_refused() {
    let foreign = Offer::with_header(|header| header.magic = *b"\x7fELF\x02\x01\x01\0");
    let found = *b"\x7fELF\x02\x01\x01\0";
    assert_header(&foreign, &HeaderError::Foreign { found });
}

#[test]
fn a_newer_format_or_one_with_unknown_features_is_refused() {
    let newer = Offer::with_header(|header| header.format_version += 1);
    let found = newer.header.format_version;
    assert_header(&newer, &HeaderError::Version { found });
    let unknown = Offer::with_header(|header| header.features = 4);
    assert_header(&unknown, &HeaderError::Features { unknown: 4 });
}

#[test]
fn a_truncated_segment_is_refused() {
    let needed_bytes = Offer::good().len_bytes;
    let len_bytes = needed_bytes - 4096;
    let shorter = Offer {
        len_bytes,
        ..Offer::good()
    };
    assert_header(
        &shorter,
        &HeaderError::Truncated {
            len_bytes,
            needed_bytes,
        },
    );
    let stump = Offer {
        len_bytes: 100,
        ..Offer::good()
    };
    let (len_bytes, needed_bytes) = (100, size_of::<Header>() as u64);
    assert_header(
        &stump,
        &HeaderError::Truncated {
            len_bytes,
            needed_bytes,
        },
    );
}

#[test]
fn code_for_another_processor_is_refused() {
    let greedy = Offer::with_header(|header| header.cpu_features |= 1 << 63);
    let missing = vec!["feature bit 63".to_owned()];
    assert_header(&greedy, &HeaderError::Cpu { missing });
    let arm = Offer::with_header(|header| header.machine = 183);
    assert_header(&arm, &HeaderError::Machine { found: 183 });
}

#[test]
fn an_impossible_layout_is_refused() {
    for area in Area::ALL {
        let odd = Offer::with_header(|header| header.areas[area.index()] += 4096);
        let refusal = odd.refusal();
        assert!(
            matches!(refusal, AttachError::Header(HeaderError::Geometry(_))),
            "{area:?}: {refusal}"
        );
    }
}

#[test]
fn compilers_that_do_not_keep_to_the_protocol_are_refused() {
    let hung_up = refusal_of(|_| ());
    assert!(matches!(hung_up, AttachError::Protocol { .. }), "{hung_up}");
    let other = refusal_of(|socket| {
        std::io::Write::write_all(&mut &*socket, b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    });
    assert!(other.to_string().contains("another protocol"), "{other}");
    let reply = AttachReply {
        worker: 1,
        sealed: 1,
        fenced: 0,
    };
    let bare = refusal_of(move |socket| {
        wire::send(socket, FrameKind::Attached, reply.as_bytes(), &[]).unwrap();
    });
    assert!(
        bare.to_string()
            .contains("other descriptors than belong there"),
        "{bare}"
    );
    let no =
        refusal_of(|socket| wire::send(socket, FrameKind::Refused, b"not today", &[]).unwrap());
    assert_eq!(no.to_string(), "the compiler process refused: not today");
}

/// A worker that takes what anybody may write, fails the test above.
#[test]
#[cfg(feature = "seeded-faults")]
fn a_worker_that_looks_at_no_seals_is_noticed() {
    common::fault::is_noticed(
        ("JITCAST_FAULT", "seals-unchecked"),
        "a_segment_without_all_the_seals_is_refused",
    );
}
