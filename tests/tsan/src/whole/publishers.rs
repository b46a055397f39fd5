//! Threads that publish.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use jitcast_compiler::request::{self, PublishRequest, RequestFile, RequestUnit};
use jitcast_compiler::{
    Audience, Changeset, Compiler, LinkOptions, Publication, PublishError, Reclaim,
};

use super::{LABEL, Templates, Whole, comes};
use crate::tally::Kind;
use crate::units::Template;

fn done(result: Result<Publication, PublishError>) -> u64 {
    result.unwrap_or_else(|error| panic!("{error}")).generation
}

/// What there is before anybody attaches.
pub(super) fn begin(compiler: &Compiler, templates: &Templates) {
    let shared = Template::new(
        "shared",
        "__attribute__((section(\".jitcast.shared\"))) _Atomic long count;
         long shared(long x) { return x + ++count; }",
        &["shared"],
    );
    let starts = Template::new(
        "starts",
        "#include <pthread.h>
         static void *body(void *at) { ++*(long *)at; return 0; }
         long starts(long x) { pthread_t thread; long n = x;
             if (pthread_create(&thread, 0, body, &n)) return -1;
             pthread_join(thread, 0); return n; }",
        &["starts"],
    );
    let all = [
        &templates.f,
        &templates.g,
        &templates.canary,
        &shared,
        &starts,
    ];
    done(compiler.publish(&all.map(|template| template.version(0))));
}

/// Publishes versions of `f` and `g`, one after the other; mostly without waiting for anybody.
pub(super) fn swap(whole: &Whole<'_>) {
    while whole.goes_on() {
        let number = whole.number.load(Ordering::Relaxed) + 1;
        let batch =
            [&whole.templates.f, &whole.templates.g].map(|template| template.version(number));
        let generation = done(whole.compiler.publish(&batch));
        whole.number.store(number, Ordering::Relaxed);
        whole.tally.count(Kind::Swaps);
        if number % 4 == 0 {
            comes(whole, Duration::from_secs(1), || {
                whole.worker.stats().applied >= generation
            });
        }
    }
}

/// Everything else that publishers ask for, one after the other.
pub(super) fn change(whole: &Whole<'_>) {
    let audience = Audience::Label(LABEL.to_owned());
    for number in 1.. {
        if !whole.goes_on() {
            return;
        }
        let (canary, removed) = (&whole.templates.canary, &whole.templates.removed);
        done(
            whole
                .compiler
                .publish(&[canary.version(number), removed.version(number)]),
        );
        done(whole.compiler.change(&Changeset {
            units: &[canary.version(number + 1)],
            canary: Some(&audience),
            ..Changeset::default()
        }));
        thread::sleep(Duration::from_millis(2));
        done(match number % 2 {
            0 => whole.compiler.promote("canary"),
            _ => whole.compiler.abort("canary"),
        });
        whole.tally.count(Kind::Canaries);
        done(whole.compiler.quarantine(&["removed".to_owned()]));
        done(whole.compiler.restore(&["removed".to_owned()]));
        done(whole.compiler.remove(&["removed".to_owned()]));
        whole.tally.count(Kind::Removals);
        if number % 8 == 0 {
            renew(whole);
        }
    }
}

/// Lets the segment go on in another object, and waits for the worker to go on too.
fn renew(whole: &Whole<'_>) {
    let before = object_of(whole);
    done(whole.compiler.renew());
    if comes(whole, Duration::from_secs(20), || {
        object_of(whole) != before
    }) {
        whole.tally.count(Kind::Renewals);
    }
}

/// The inode of the object that the worker maps.
fn object_of(whole: &Whole<'_>) -> String {
    let window = whole.worker.geometry().window();
    let base = whole.worker.stats().base.get();
    let inside = base..base + u64::from(window.len_bytes);
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
    let found = maps.lines().find(|line| {
        let start = line
            .split('-')
            .next()
            .and_then(|start| u64::from_str_radix(start, 16).ok());
        start.is_some_and(|start| inside.contains(&start)) && line.contains("/memfd:jitcast (")
    });
    found
        .and_then(|line| line.split_whitespace().nth(4))
        .unwrap_or_default()
        .to_owned()
}

/// Publishes over a connection.
pub(super) fn publish_by_socket(whole: &Whole<'_>) {
    let name = whole.socket.trim_start_matches('@');
    let address = SocketAddr::from_abstract_name(name).expect("a short name");
    let connection = UnixStream::connect_addr(&address).expect("the server listens");
    while whole.goes_on() {
        let unit = |name: &str| RequestUnit {
            name: name.to_owned(),
            files: vec![RequestFile {
                name: format!("{name}.clif"),
                bytes: format!(
                    "function %{name}(i64) -> i64 {{\nblock0(v0: i64):\n return v0\n}}\n"
                )
                .into(),
            }],
            signatures: Vec::new(),
            reclaim: Reclaim::Auto,
            link: LinkOptions::default(),
        };
        let request = PublishRequest {
            units: vec![unit("by_socket"), unit("by_socket_too")],
            ..PublishRequest::default()
        };
        let published = request::publish(&connection, &request);
        published.unwrap_or_else(|error| panic!("{error}"));
        let status = request::status(&connection).unwrap_or_else(|error| panic!("{error}"));
        assert!(status.generation > 0);
        thread::sleep(Duration::from_millis(20));
    }
}
