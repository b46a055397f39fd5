//! Canaries, for tests of them.

#![allow(
    dead_code,
    reason = "each test file is a crate of its own and uses some of the helpers"
)]

use jitcast::compiler::{
    Audience, Changeset, Compiler, Publication, PublishError, Reclaim, UnitSource,
};
use jitcast::worker::{Endpoint, Worker, WorkerOptions};

use crate::common::host::Host;
use crate::units::{adders, c, change_refused};

/// The first `count` workers.
pub(crate) const fn workers(count: u32) -> Audience {
    Audience::Workers(count)
}

/// The workers with this label.
pub(crate) fn labelled(label: &str) -> Audience {
    Audience::Label(label.to_owned())
}

/// What asks for a canary.
pub(crate) fn canary<'a>(units: &'a [UnitSource], audience: &'a Audience) -> Changeset<'a> {
    Changeset {
        units,
        canary: Some(audience),
        ..Changeset::default()
    }
}

/// Begins a canary that is to succeed; returns its number.
#[track_caller]
pub(crate) fn begin(host: &Host, units: &[UnitSource], audience: &Audience) -> u64 {
    let published = host.compiler.change(&canary(units, audience));
    let published = published.unwrap_or_else(|error| panic!("{error}"));
    published.generation
}

/// Asks for a canary that is to be refused, and changes nothing.
#[track_caller]
pub(crate) fn refused(host: &Host, units: &[UnitSource], audience: &Audience) -> PublishError {
    change_refused(host, &canary(units, audience))
}

#[track_caller]
pub(crate) fn promote(host: &Host, canary: &str) -> Publication {
    let done = host.compiler.promote(canary);
    done.unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
pub(crate) fn abort(host: &Host, canary: &str) -> Publication {
    let done = host.compiler.abort(canary);
    done.unwrap_or_else(|error| panic!("{error}"))
}

/// A worker in this process with a label.
pub(crate) fn attach_labelled(host: &Host, label: &str) -> Worker {
    let options = WorkerOptions {
        label: label.to_owned(),
        ..WorkerOptions::default()
    };
    let endpoint = Endpoint::Path(host.socket.as_ref());
    Worker::attach(endpoint, options).unwrap_or_else(|error| panic!("{error}"))
}

/// Stands for the number that a version adds.
const MARK: u64 = 0x5a17_c0de_5a17_c0de;

/// A unit `f` with data of its own, the address of one, and a constructor without which it adds nothing; compiled once.
pub(crate) struct Template(UnitSource);

impl Template {
    pub(crate) fn new() -> Self {
        let source = format!(
            "static long mark = {MARK}; static long *volatile at = &mark; static long added;
            __attribute__((constructor)) static void begin(void) {{ added = *at; }}
            long f(long x) {{ return x + added; }}"
        );
        let unit = c("f", &source);
        Self(UnitSource {
            reclaim: Reclaim::Yes,
            ..unit
        })
    }

    fn version(&self, number: u64) -> UnitSource {
        let mut unit = self.0.clone();
        let bytes = &mut unit.files[0].bytes;
        let mut windows = bytes.windows(8);
        let place = windows.position(|window| window == MARK.to_le_bytes());
        let place = place.expect("the number is a datum");
        bytes[place..place + 8].copy_from_slice(&number.to_le_bytes());
        unit
    }
}

/// What the generations after `start` are, three at a time: `f` and `g` published anew, a canary of both, and its end. Each adds the
/// number of the generation that linked it, so a result tells exactly what ran.
pub(crate) struct Schedule {
    pub(crate) start: u64,
    /// What versions of `f` are made of; `None`: code alone.
    pub(crate) template: Option<Template>,
}

impl Schedule {
    /// Publishes the generation after `generation`.
    pub(crate) fn step(&self, compiler: &Compiler, generation: u64, audience: &Audience) -> u64 {
        let next = generation + 1;
        let signed = |name: &str, unit| UnitSource {
            signatures: vec![(name.to_owned(), "(i64) -> i64".parse().unwrap())],
            ..unit
        };
        let code = |name| adders(name, &[(name, next as i32)]);
        let f = match &self.template {
            Some(template) => template.version(next),
            None => code("f"),
        };
        let units = [signed("f", f), signed("g", code("g"))];
        let published = match (next - self.start) % 3 {
            0 => compiler.publish(&units),
            1 => compiler.change(&canary(&units, audience)),
            _ if self.promotes(next) => compiler.promote("f"),
            _ => compiler.abort("g"),
        };
        let published = published.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(published.generation, next, "nobody else publishes");
        next
    }

    fn promotes(&self, generation: u64) -> bool {
        (generation - self.start) / 3 % 2 == 1
    }

    /// What `f` and `g` add in a guard of `generation`.
    pub(crate) fn expected(&self, generation: u64, inside: bool) -> i64 {
        let phase = (generation - self.start) % 3;
        let base = generation - phase;
        let candidate = match phase {
            0 => false,
            1 => inside,
            _ => self.promotes(generation),
        };
        (base + u64::from(candidate)).cast_signed()
    }
}
