//! What happens while the preparation of a unit called `slow` waits for the test.

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;

use super::*;
use crate::common::process::{NOBODY, finish, jitcast_as};
use crate::common::{fault, require};

/// A compiler process in which somebody prepares `slow` and `base`. What comes over that connection waits too, and so does what
/// is about `base`.
struct Held {
    serve: Serve,
    slow: UnixStream,
    /// Ends the waiting.
    held: File,
}

impl Held {
    fn start(options: &[&str]) -> Self {
        let (serve, gate) = Serve::holding("slow", options);
        let units = [adding("slow", 1), adding("base", 1)];
        let slow = send(&serve.socket, &request(units));
        let held = gate.await_held();
        Self { serve, slow, held }
    }

    /// Sends a request, and waits until it has been read.
    fn send(&self, request: &PublishRequest) -> UnixStream {
        self.count_one_more(|| send(&self.serve.socket, request))
    }

    fn count_one_more<T>(&self, send: impl FnOnce() -> T) -> T {
        let before = self.serve.status().publishing;
        let sent = send();
        await_some("a publication under way", || {
            (self.serve.status().publishing > before).then_some(())
        });
        sent
    }

    /// Sends a request after `slow`, and waits until it has been read.
    fn send_after_slow(&self, request: &PublishRequest) {
        self.count_one_more(|| begin_publish(&self.slow, request).unwrap());
    }

    /// Lets `slow` go on; its answer.
    fn release(self) -> (Serve, UnixStream, Publication) {
        drop(self.held);
        let published = await_published(&self.slow).unwrap();
        (self.serve, self.slow, published)
    }
}

fn generation(connection: &UnixStream) -> u64 {
    await_published(connection).unwrap().generation
}

/// The later version has to be what counts, and the answers have to come in order.
#[test]
fn commits_of_a_connection_and_of_a_unit_are_ordered() {
    let held = Held::start(&[]);
    begin_publish(&held.slow, &request([adding("f", 1), adding("after", 1)])).unwrap();
    begin_publish(&held.slow, &request([adding("f", 2)])).unwrap();
    // Ordered with what is ordered with the slow one.
    let other = send(
        &held.serve.socket,
        &request([adding("f", 3), adding("g", 1)]),
    );
    // Somebody who is not, and was later, is served: so the others could have been.
    let free = publish(connect(&held.serve.socket), &request([adding("free", 1)])).unwrap();
    assert_eq!(free.functions, ["free"]);
    let (serve, connection, slow) = held.release();
    assert_eq!(slow.functions, ["base", "slow"]);
    let second = await_published(&connection).unwrap();
    assert_eq!(second.functions, ["after", "f"]);
    let third = await_published(&connection).unwrap();
    let fourth = await_published(&other).unwrap();
    assert_eq!(fourth.functions, ["f", "g"]);
    let generations = [&free, &slow, &second, &third].map(|done| done.generation);
    assert!(generations.is_sorted(), "{generations:?}");
    let is_later = fourth.generation > second.generation;
    assert!(is_later, "what names the same unit is ordered too");
    // Nothing orders these two.
    let last = if fourth.generation > third.generation {
        "3"
    } else {
        "2"
    };
    assert_eq!(serve.call("f(0)"), last);
}

#[test]
fn commits_as_they_get_ready_are_noticed() {
    fault::is_noticed(
        ("JITCAST_FAULT", "commit-as-ready"),
        "held::commits_of_a_connection_and_of_a_unit_are_ordered",
    );
}

/// One whose preparation takes long, one that fails and one that makes the compiler process panic: each is the business of who
/// asked.
#[test]
fn one_that_takes_long_or_panics_delays_and_harms_nobody_else() {
    let held = Held::start(&[]);
    let socket = held.serve.socket.clone();
    let wrong = request([unit("f", vec![("f.clif".to_owned(), b"function".to_vec())])]);
    let text = refusal(publish(connect(&socket), &wrong));
    assert!(text.starts_with("f.clif:"), "{text}");
    held.serve.publish_adds("f", 1);
    // Those that wait for the slow one in line take nothing away from those that do not.
    let waiting: Vec<_> = (2..30)
        .map(|bonus| send(&socket, &request([adding("base", bonus)])))
        .collect();
    held.serve.publish_adds("f", 2);
    assert_eq!(held.serve.call("f(0)"), "2");
    let mut panics = held.held.try_clone().unwrap();
    panics.write_all(b"panic").unwrap();
    drop((panics, held.held));
    let text = refusal(await_published(&held.slow));
    assert!(
        text.starts_with("the compiler process has a fault: it panicked"),
        "{text}"
    );
    let generations: Vec<_> = waiting.iter().map(generation).collect();
    assert!(generations.is_sorted(), "{generations:?}");
    assert_eq!(held.serve.call("base(0)"), "29");
    assert_eq!(held.serve.status().publishing, 0);
}

/// All who ask for the same while it waits get the same answer.
#[test]
fn equal_batches_that_wait_together_are_linked_once() {
    let held = Held::start(&[]);
    let same = request([adding("f", 1), adding("g", 1)]);
    held.send_after_slow(&same);
    let others: Vec<_> = (0..20).map(|_| held.send(&same)).collect();
    // Not the same: another option.
    let other = PublishRequest {
        options: jitcast::compiler::PublishOptions {
            leave_traps: true,
            ..Default::default()
        },
        ..same.clone()
    };
    let other = held.send(&other);
    let gone = held.send(&same);
    drop(gone);
    let (serve, connection, slow) = held.release();
    let first = await_published(&connection).unwrap();
    assert_eq!(first.generation, slow.generation + 1);
    for connection in others {
        assert_eq!(await_published(&connection).unwrap(), first);
    }
    let other = generation(&other);
    assert_eq!(other, first.generation + 1);
    // The one that is gone came after another one that is ordered with it.
    let again = || (serve.status().generation == other + 1).then_some(());
    await_some("the publication of who is gone", again);
    assert_eq!(serve.status().publishing, 0);
}

/// Another version that came between is ordered with both, so both are linked, and what was asked for last counts.
#[test]
fn equal_batches_with_another_one_between_are_linked_each() {
    let held = Held::start(&[]);
    held.send_after_slow(&request([adding("f", 1)]));
    let between = held.send(&request([adding("f", 2)]));
    let again = held.send(&request([adding("f", 1)]));
    let twin = held.send(&request([adding("f", 1)]));
    let (serve, connection, _) = held.release();
    let first = generation(&connection);
    let [between, again, twin] = [between, again, twin].map(|connection| generation(&connection));
    assert_eq!([between, again, twin], [first + 1, first + 2, first + 2]);
    assert_eq!(serve.call("f(0)"), "1");
}

/// What one is refused for, all are that ask for it.
#[test]
fn equal_batches_that_are_refused_are_refused_to_all() {
    let held = Held::start(&[]);
    let missing = PublishRequest {
        removals: vec!["nobody".to_owned()],
        ..PublishRequest::default()
    };
    held.send_after_slow(&missing);
    let other = held.send(&missing);
    let (serve, connection, slow) = held.release();
    for connection in [connection, other] {
        let text = refusal(await_published(&connection));
        assert!(text.starts_with("no unit is called `nobody`"), "{text}");
    }
    assert_eq!(serve.status().generation, slow.generation);
}

/// To ask for what somebody publishes who may is no right to publish it.
#[test]
fn the_right_of_each_is_looked_at() {
    if !require::root() {
        return;
    }
    let held = Held::start(&["--allow-attach", "uid:65534"]);
    let [f, base] = ["f", "base"].map(|name| {
        let file = format!("{name}.clif");
        held.serve.scratch.write(&file, adds(name, 2))
    });
    let args = ["publish", "--socket", &held.serve.socket, &f, "+", &base];
    let mut first = held.count_one_more(|| Process::start(&mut jitcast(&args)));
    let refused = finish(&mut jitcast_as(NOBODY, &args));
    refused.refused(&["uid 65534 gid 65534 may not publish"]);
    assert!(!first.has_ended());
    let (serve, _, _) = held.release();
    first.finish().succeeded();
    assert_eq!(serve.call("f(0)"), "2");
}

/// More than may be under way is told so at once, and is not kept.
#[test]
fn what_is_under_way_is_bounded() {
    let held = Held::start(&["--publish-mib", "8"]);
    let resident = || {
        let path = format!("/proc/{}/status", held.serve.process.pid());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.unwrap().trim().strip_suffix(" kB").unwrap().trim();
        kib.parse::<u64>().unwrap() << 10
    };
    let before = resident();
    let object = Maker::new().function("f", &PLUS_ONE);
    let object = object.read_only("large", &vec![7; 3 << 20]).finish();
    // Each waits for the one that is held, since it names the same unit.
    let large = |number: usize| {
        let file = (format!("{number}.o"), object.clone());
        request([adding("base", 1), unit("large", vec![file])])
    };
    let sent: Vec<_> = (0..2).map(|number| held.send(&large(number))).collect();
    for number in 0..40 {
        let text = refusal(publish(connect(&held.serve.socket), &large(number)));
        assert!(text.starts_with("busy: requests of "), "{text}");
        assert!(text.contains("--publish-mib"), "{text}");
    }
    let after = resident();
    assert!(
        after < before + (40 << 20),
        "{before} bytes and then {after}: what is refused is not kept"
    );
    // And no more than so many, however short.
    let (mut waiting, mut refused) = (Vec::new(), 0);
    for bonus in 0..80 {
        let connection = connect(&held.serve.socket);
        begin_publish(&connection, &request([adding("base", bonus)])).unwrap();
        waiting.push(connection);
    }
    // Those that are too many are told so at once, while the others wait.
    await_some("answers to those that are too many", || {
        let answered = waiting.iter().filter(|connection| is_answered(connection));
        (answered.count() >= 80 - 64).then_some(())
    });
    drop(sent);
    drop(held.held);
    for connection in waiting {
        match await_published(&connection) {
            Ok(_) => {}
            Err(RequestError::Refused(text)) => {
                assert!(text.starts_with("busy: too many requests wait"), "{text}");
                refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(refused >= 80 - 64, "{refused} of 80 were told so");
}

/// Whether there is something to read.
fn is_answered(connection: &UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(connection, PollFlags::IN)];
    poll(&mut fds, Some(&now)).unwrap() == 1
}
