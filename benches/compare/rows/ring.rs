//! The ring as a queue of messages of 64 bytes, with one reader, beside a channel between threads.
//!
//! The ring is lossy, a channel is not: here its writer waits for the reader, so that none is lost.

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::channel;
use jitcast::runtime::ring::{RECORD_WORDS, Record, Ring};

use crate::measure::{Recorder, Taken, time_ns};
use crate::process::{Pinned, cpus};

const PLACES: usize = 1024;

/// Messages of a sample.
const CHUNK: u64 = 1000;

/// A ring in memory of this process.
struct Words {
    head: Line,
    intent: Line,
    words: Vec<AtomicU64>,
}

/// Alone in its cache lines.
#[derive(Default)]
#[repr(align(128))]
struct Line(AtomicU64);

impl Words {
    fn new() -> Self {
        Self {
            head: Line::default(),
            intent: Line::default(),
            words: (0..PLACES * RECORD_WORDS)
                .map(|_| AtomicU64::new(0))
                .collect(),
        }
    }

    fn ring(&self) -> Ring<'_> {
        Ring::new(&self.head.0, &self.intent.0, &self.words)
    }
}

/// Runs `writer` beside `reader`, which is on another processor: what the reader answers.
fn beside<R: Send>(writer: impl FnOnce(), reader: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let _pinned = Pinned::to(1);
            reader()
        });
        writer();
        reading.join().unwrap()
    })
}

/// How long each [`CHUNK`] of what `once` does takes, ns each.
fn in_chunks(count: u64, mut once: impl FnMut(u64)) -> Vec<f64> {
    let chunk = |first: u64| {
        let taken = time_ns(|| (first..first + CHUNK).for_each(&mut once));
        taken / CHUNK as f64
    };
    (0..count / CHUNK)
        .map(|number| number * CHUNK + 1)
        .map(chunk)
        .collect()
}

/// The same as a rate, a second.
fn rates(times: Vec<f64>) -> Vec<f64> {
    times.into_iter().map(|ns| 1e9 / ns).collect()
}

fn await_record(ring: Ring<'_>, generation: u64) -> Record {
    while ring.head() < generation {
        spin_loop();
    }
    ring.read(generation).expect("the writer waits")
}

fn ring_throughput(count: u64) -> Vec<f64> {
    let words = Words::new();
    let done = Line::default();
    let writer = || {
        let mut seen = 0;
        for generation in 1..=count {
            while generation - seen > PLACES as u64 / 2 {
                seen = done.0.load(Ordering::Acquire);
                spin_loop();
            }
            words.ring().publish(&[generation; RECORD_WORDS]);
        }
    };
    let reader = || {
        in_chunks(count, |generation| {
            black_box(await_record(words.ring(), generation));
            if generation % 64 == 0 || generation == count {
                done.0.store(generation, Ordering::Release);
            }
        })
    };
    rates(beside(writer, reader))
}

fn channel_throughput(count: u64) -> Vec<f64> {
    let (sender, receiver) = channel::bounded::<Record>(PLACES);
    let writer = || (1..=count).for_each(|number| sender.send([number; RECORD_WORDS]).unwrap());
    let reader = move || {
        in_chunks(count, |_| {
            black_box(receiver.recv().unwrap());
        })
    };
    rates(beside(writer, reader))
}

/// Of two messages, there and back.
fn halves(times: Vec<f64>) -> Vec<f64> {
    times.into_iter().map(|ns| ns / 2.0).collect()
}

fn ring_half_trip(count: u64) -> Vec<f64> {
    let (there, back) = (Words::new(), Words::new());
    let writer = || {
        for generation in 1..=count {
            let record = await_record(there.ring(), generation);
            back.ring().publish(&record);
        }
    };
    let reader = || {
        in_chunks(count, |generation| {
            there.ring().publish(&[generation; RECORD_WORDS]);
            black_box(await_record(back.ring(), generation));
        })
    };
    halves(beside(writer, reader))
}

fn channel_half_trip(count: u64) -> Vec<f64> {
    let (there, at_writer) = channel::bounded::<Record>(PLACES);
    let (back, at_reader) = channel::bounded::<Record>(PLACES);
    let writer = || (0..count).for_each(|_| back.send(at_writer.recv().unwrap()).unwrap());
    let reader = move || {
        in_chunks(count, |number| {
            there.send([number; RECORD_WORDS]).unwrap();
            black_box(at_reader.recv().unwrap());
        })
    };
    halves(beside(writer, reader))
}

pub(crate) fn run(recorder: &mut Recorder) {
    let _pinned = Pinned::to(0);
    if cpus().len() < 2 {
        return recorder.skip("ring", "its two threads need two processors");
    }
    let many = recorder.plan.pick(50, 300) * CHUNK;
    let trips = recorder.plan.pick(10, 50) * CHUNK;
    let ring = "jitcast, the ring";
    let theirs = "crossbeam, a bounded channel";
    recorder.row(
        "ring",
        "messages of 64 bytes, one reader",
        "/s",
        vec![
            Box::new(|| vec![Taken::warm(ring, ring_throughput(many))]),
            Box::new(|| vec![Taken::warm(theirs, channel_throughput(many))]),
        ],
    );
    recorder.row(
        "ring",
        "half a round trip of 64 bytes",
        "ns",
        vec![
            Box::new(|| vec![Taken::warm(ring, ring_half_trip(trips))]),
            Box::new(|| vec![Taken::warm(theirs, channel_half_trip(trips))]),
        ],
    );
}
