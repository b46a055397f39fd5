//! A worker that comes late: it attaches to everything that is published already.
//!
//! The limit is touching as many slots as it has functions, and storing to each.

use jitcast::runtime::sys::Mapping;
use jitcast::worker::{Endpoint, HostTable, Worker, WorkerOptions};
use serde::{Deserialize, Serialize};

use crate::common::{Serving, generated_object, object_unit};
use crate::measure::{Contestant, Recorder, Taken, time_ns};
use crate::process::{Pinned, ask};
use crate::report::grouped;
use crate::role::Role;

/// Host symbols that the published functions import.
const IMPORTS: usize = 100;

/// What a late worker does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Late {
    Attach { socket: String },
    Slots { count: usize },
}

/// How often a process does it again.
const AGAIN: usize = 5;

/// Does it for the first time, and some times more: answers with all times, ns.
pub(crate) fn play(late: &Late) {
    let _pinned = Pinned::to(1);
    let once = |_| match late {
        Late::Attach { socket } => {
            let options = options();
            let mut worker = None;
            // Detaching is not part of it.
            time_ns(|| {
                let endpoint = Endpoint::Path(socket.as_ref());
                worker = Some(Worker::attach(endpoint, options).unwrap());
            })
        }
        Late::Slots { count } => {
            let mut slots = None;
            time_ns(|| {
                let slots = slots.insert(Mapping::anonymous(count * 8).unwrap());
                let first = slots.base().cast::<u64>();
                // SAFETY: the mapping has that many words, aligned and zero, and nobody else has it.
                let words = unsafe { std::slice::from_raw_parts_mut(first.as_ptr(), *count) };
                for (index, word) in words.iter_mut().enumerate() {
                    *word = index as u64;
                }
                std::hint::black_box(words);
            })
        }
    };
    let times: Vec<f64> = (0..=AGAIN).map(once).collect();
    println!("{}", serde_json::to_string(&times).unwrap());
}

extern "C" fn imported() {}

fn options() -> WorkerOptions {
    let mut host = HostTable::default();
    for number in 0..IMPORTS {
        let address = imported as extern "C" fn();
        // SAFETY: nobody calls it.
        unsafe { host.define_address(&format!("host_{number}"), address as *const _) };
    }
    WorkerOptions {
        host,
        ..WorkerOptions::default()
    }
}

pub(crate) fn run(recorder: &mut Recorder) {
    let rounds = recorder.plan.pick(3, 7);
    for functions in [10, recorder.plan.pick(10_000, 100_000)] {
        let serving = Serving::start();
        serving.publish(&object_unit("many", generated_object(functions)));
        let socket = serving.socket.clone();
        let contestant = |who: &'static str, late: Late| -> Contestant<'_> {
            Box::new(move || {
                let mut times: Vec<f64> = ask(&Role::Late(late.clone()));
                let again = times.split_off(1);
                let first = Taken::cold(format!("{who}, first of a process"), times);
                vec![first, Taken::warm(format!("{who}, again"), again)]
            })
        };
        let contestants = vec![
            contestant("jitcast", Late::Attach { socket }),
            contestant(
                "limit: as many slots touched and stored to",
                Late::Slots { count: functions },
            ),
        ];
        let row = format!(
            "attach to {} functions with {IMPORTS} imports",
            grouped(functions as f64)
        );
        recorder.row_of(rounds, ("attach", &row, "ns"), contestants);
    }
}
