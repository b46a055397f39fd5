//! Hot swaps for as long as one likes: how many a second, and whether memory stays bounded.

use std::time::{Duration, Instant};

use jitcast::compiler::{CompilerOptions, Reclaim};

use super::publisher::{Publisher, versions};
use crate::common::attach;
use crate::library::{Adds, Libraries, Library, c_path};
use crate::measure::{Contestant, Recorder, Taken};
use crate::process::{Pinned, Player};
use crate::role::Role;

const ROW: &str = "hot swaps, one after the other";

/// How many libraries take turns.
const LIBRARIES: u64 = 64;

/// Calls the newest version again and again, as often as its processor lets it.
pub(crate) fn play(socket: &str, cpu: usize) {
    let _pinned = Pinned::to(cpu);
    let worker = attach(socket);
    let guard = worker.enter().unwrap();
    let function = worker.function::<Adds>(&guard, "adds").unwrap();
    drop(guard);
    println!("ready");
    loop {
        let guard = worker.enter().unwrap();
        std::hint::black_box(function.call(&guard, 0));
    }
}

/// How often `swap` can be done in `time`, a second.
fn rate(time: Duration, mut swap: impl FnMut(u64)) -> f64 {
    let begun = Instant::now();
    let mut count = 0;
    while begun.elapsed() < time {
        swap(count);
        count += 1;
    }
    count as f64 / begun.elapsed().as_secs_f64()
}

pub(crate) fn run(recorder: &mut Recorder) {
    let _pinned = Pinned::to(0);
    let time = Duration::from_millis(recorder.plan.pick(200, 700));
    let options = CompilerOptions::default();
    let publishers = [(1_usize, "1 worker"), (8, "8 workers")]
        .map(|workers| (workers, Publisher::new(&options, versions(Reclaim::Yes, 0))));
    let mut held: Vec<Contestant<'_>> = Vec::new();
    let libraries = Libraries::make(LIBRARIES);
    let mut contestants: Vec<Contestant<'_>> = Vec::new();
    for ((workers, name), publisher) in &publishers {
        let socket = &publisher.serving.socket;
        contestants.push(Box::new(move || {
            let start = |number| {
                let socket = socket.clone();
                let mut player = Player::start(&Role::Call {
                    socket,
                    cpu: number + 1,
                });
                assert_eq!(player.listen(), "ready");
                player
            };
            let _players: Vec<Player> = (0..*workers).map(start).collect();
            let rate = rate(time, |number| publisher.publish(number));
            vec![Taken::warm(format!("jitcast, {name} polling"), vec![rate])]
        }));
        held.push(Box::new(move || {
            let used = || -> u64 {
                let status = publisher.serving.compiler.status();
                status.areas.iter().map(|area| area.used_bytes).sum()
            };
            let before = used();
            (0..2000).for_each(|number| publisher.publish(number));
            let grown = used() as f64 - before as f64;
            vec![Taken::warm(
                format!("jitcast, {name} had polled"),
                vec![grown],
            )]
        }));
    }
    match &libraries {
        Ok(libraries) => contestants.push(Box::new(move || {
            let mut last = None;
            let rate = rate(time, |number| {
                let library = Library::open(&c_path(libraries.folder(), number % LIBRARIES));
                std::hint::black_box(library.adds(c"adds")(0));
                last = Some(library);
            });
            drop(last);
            let who = "dlopen and dlclose of prebuilt libraries, in one process";
            vec![Taken::warm(who, vec![rate])]
        })),
        Err(why) => recorder.skip("swaps of libraries", why),
    }
    recorder.row("swaps", ROW, "/s", contestants);
    recorder.row(
        "swaps",
        "growth of the segment by 2,000 more swaps",
        "bytes",
        held,
    );
}
