//! What a publication costs the compiler process, by the workers that are attached.

use std::time::Duration;

use jitcast::compiler::{CompilerOptions, Reclaim};

use super::publisher::{Publisher, versions};
use crate::common::attach;
use crate::measure::{Contestant, Recorder, Taken, time_ns};
use crate::process::{Pinned, Player};
use crate::role::Role;

/// Attaches, and sleeps: until there is something new, again and again, or for good.
pub(crate) fn play(socket: &str, waits: bool) {
    let _pinned = Pinned::to(1);
    let worker = attach(socket);
    let mut seen = worker.enter().unwrap().generation();
    println!("ready");
    if !waits {
        // Until the pipe is closed.
        let _ = std::io::stdin().read_line(&mut String::new());
        return;
    }
    loop {
        worker.wait(seen, None);
        seen = worker.enter().unwrap().generation();
    }
}

pub(crate) fn run(recorder: &mut Recorder) {
    let _pinned = Pinned::to(0);
    let count = recorder.plan.pick(50, 300);
    let mut contestants: Vec<Contestant<'_>> = Vec::new();
    for (who, workers, waits) in [
        ("jitcast, no worker", 0, false),
        ("jitcast, 1 worker, busy elsewhere", 1, false),
        ("jitcast, 32 workers, busy elsewhere", 32, false),
        ("jitcast, 1 worker to wake", 1, true),
        ("jitcast, 32 workers to wake", 32, true),
    ] {
        let publisher = Publisher::new(&CompilerOptions::default(), versions(Reclaim::Auto, 0));
        let start = |_| {
            let mut player = Player::start(&Role::Sleep {
                socket: publisher.serving.socket.clone(),
                waits,
            });
            assert_eq!(player.listen(), "ready");
            player
        };
        let players: Vec<Player> = (0..workers).map(start).collect();
        contestants.push(Box::new(move || {
            let _ = &players;
            let once = |number| {
                // Who was woken is asleep again.
                let pause = if waits { 40 * workers + 200 } else { 50 };
                std::thread::sleep(Duration::from_micros(pause));
                time_ns(|| publisher.publish(number))
            };
            vec![Taken::warm(who, (1..=count).map(once).collect())]
        }));
    }
    recorder.row(
        "publish",
        "one publication, in the compiler process",
        "ns",
        contestants,
    );
}
