//! The rows, by groups.

pub(crate) mod attach;
mod call;
mod call_ready;
pub(crate) mod functions;
mod link;
pub(crate) mod many;
pub(crate) mod memory;
mod object_ready;
pub(crate) mod publish;
mod publisher;
mod race;
mod ring;
pub(crate) mod swaps;

use crate::measure::{Recorder, Taken, per_repetition_ns};
use crate::process::Pinned;

/// Rows that belong together.
#[derive(Clone, Copy)]
pub(crate) struct Group {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) run: fn(&mut Recorder),
}

/// All groups, in the order in which they are measured.
pub(crate) const GROUPS: &[Group] = &[
    Group {
        name: "ready",
        what: "linked code is published, until it is called in another process",
        run: call_ready::run,
    },
    Group {
        name: "object",
        what: "an object is in memory, until it is called in another process",
        run: object_ready::run,
    },
    Group {
        name: "link",
        what: "objects are linked, of several shapes and sizes",
        run: link::run,
    },
    Group {
        name: "many",
        what: "the k-th unit, or library, is loaded",
        run: many::run,
    },
    Group {
        name: "call",
        what: "guards and calls",
        run: call::run,
    },
    Group {
        name: "attach",
        what: "a late worker attaches",
        run: attach::run,
    },
    Group {
        name: "memory",
        what: "what code takes in each worker",
        run: memory::run,
    },
    Group {
        name: "publish",
        what: "what publishing costs, by workers",
        run: publish::run,
    },
    Group {
        name: "functions",
        what: "a thousand functions, compiled once or in each worker",
        run: functions::run,
    },
    Group {
        name: "ring",
        what: "the ring as a queue of messages",
        run: ring::run,
    },
    Group {
        name: "swaps",
        what: "hot swaps, one after the other",
        run: swaps::run,
    },
];

/// The groups that are asked for; all of them if none is.
pub(crate) fn chosen(names: &[String]) -> Result<Vec<Group>, String> {
    if names.is_empty() {
        return Ok(GROUPS.to_vec());
    }
    let find = |name: &String| {
        let known = GROUPS.iter().find(|group| group.name == name);
        known.copied().ok_or_else(|| {
            format!("no group of rows is called `{name}`\n  help: `--list` says which there are")
        })
    };
    names.iter().map(find).collect()
}

/// What differs between two measurements of the same.
pub(crate) fn noise(recorder: &mut Recorder) {
    let _pinned = Pinned::to(0);
    let clock = || {
        let once = |_| {
            let start = jitcast::runtime::sys::monotonic_ns();
            (jitcast::runtime::sys::monotonic_ns() - start) as f64
        };
        vec![Taken::warm(
            "clock read twice",
            (0..5000).map(once).collect(),
        )]
    };
    recorder.row("noise", "the clock", "ns", vec![Box::new(clock)]);
    let empty = |who: &'static str| {
        move || {
            let once = |_| {
                per_repetition_ns(1000, || {
                    std::hint::black_box(0);
                })
            };
            vec![Taken::warm(who, (0..500).map(once).collect())]
        }
    };
    recorder.row(
        "noise",
        "the same empty loop as two contestants",
        "ns",
        vec![Box::new(empty("the one")), Box::new(empty("the other"))],
    );
}
