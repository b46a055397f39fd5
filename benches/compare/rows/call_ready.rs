//! Linked code is ready: from its publication until another process has called it.
//!
//! The limit is a bare slot and a head in shared memory: what the hardware takes to get a word across. The peer is a prebuilt
//! library, which the worker opens when a word tells it to.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use jitcast::compiler::{CompilerOptions, Reclaim};
use jitcast::runtime::sys;

use super::publisher::{Publisher, versions};
use super::race::{Race, tell};
use crate::common::{adds, clif};
use crate::follow::{Means, Others, bare_text};
use crate::library::{Libraries, bonus};
use crate::measure::{Contestant, Recorder, Taken};
use crate::process::Pinned;

const POLLING: &str = "linked code published to called, polling worker";
const ASLEEP: &str = "linked code published to called, sleeping workers";

/// How many libraries take turns; each is closed before it is opened again.
const LIBRARIES: u64 = 64;

pub(crate) fn run(recorder: &mut Recorder) {
    let _pinned = Pinned::to(0);
    let libraries = Libraries::make(LIBRARIES);
    if let Err(why) = &libraries {
        recorder.skip("dlopen of prebuilt libraries", why);
    }
    polling(recorder, libraries.as_ref().ok());
    asleep(recorder, libraries.as_ref().ok());
}

fn library_race(libraries: &Libraries, asleep: bool, followers: usize) -> Race<'_> {
    let means = Means::Library {
        folder: libraries.folder().to_owned(),
        count: LIBRARIES,
    };
    Race::new(&means, asleep, followers, move |board, event| {
        tell(board, event, asleep);
    })
}

fn bare_race(asleep: bool, followers: usize) -> Race<'static> {
    let text = sys::memfd("bench-text", 4096).unwrap();
    let mut file = std::fs::File::from(text);
    file.write_all(&bare_text()).unwrap();
    let means = Means::Bare {
        text: format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()),
    };
    Race::new(&means, asleep, followers, move |board, event| {
        // It stays open as long as followers may map it.
        let _ = &file;
        board.slot().store(event % 2 * 16, Ordering::Relaxed);
        tell(board, event, asleep);
    })
}

fn polling(recorder: &mut Recorder, libraries: Option<&Libraries>) {
    let count = recorder.plan.pick(300, 1500);
    let reused = Publisher::new(
        &CompilerOptions {
            reclaim_above_bytes: 0,
            ..CompilerOptions::default()
        },
        versions(Reclaim::Yes, 0),
    );
    let plain = || Publisher::new(&CompilerOptions::default(), versions(Reclaim::No, 0));
    let (fresh, idle, inside) = (plain(), plain(), plain());
    let pages = Publisher::new(&CompilerOptions::default(), versions(Reclaim::No, 4096));
    let from_clif = Publisher::new(
        &CompilerOptions::default(),
        [0, 1].map(|number| clif("adds", &adds("adds", bonus(number).into()))),
    );
    let mut bare = bare_race(false, 1);
    let mut contestants: Vec<Contestant<'_>> = vec![Box::new(move || {
        bare.round("limit: bare slot and head", count)
    })];
    let mut race = fresh.race(Others::None, true, false, 1);
    contestants.push(Box::new(move || {
        let events = race.run(count);
        vec![
            Taken::warm(
                "jitcast, from when the worker sees the head",
                events.from_notice,
            ),
            Taken::warm(
                "jitcast, from the call of publish until the worker sees the head",
                events.until_notice,
            ),
            Taken::warm(
                "jitcast, from the return of publish (below 0: called before)",
                events.from_return,
            ),
            Taken::warm(
                "jitcast, from the call of publish, which links",
                events.from_call,
            ),
        ]
    }));
    for (who, publisher, others) in [
        ("jitcast, the same by guards alone", &fresh, Others::None),
        ("jitcast, text that is used again", &reused, Others::None),
        (
            "jitcast, generated code, used again now and then",
            &from_clif,
            Others::None,
        ),
        ("jitcast, worker of 4 threads", &idle, Others::Idle),
        (
            "jitcast, worker of 4 threads, one inside",
            &inside,
            Others::Inside,
        ),
    ] {
        let mut race = publisher.race(others, false, false, 1);
        contestants.push(Box::new(move || race.round(who, count)));
    }
    let mut race = pages.race(Others::None, false, false, 1);
    contestants.push(Box::new(move || {
        let events = race.run(count.min(500));
        vec![Taken::cold(
            "jitcast, text on a page never touched",
            events.from_call,
        )]
    }));
    if let Some(libraries) = libraries {
        let mut race = library_race(libraries, false, 1);
        contestants.push(Box::new(move || {
            race.round("dlopen of a prebuilt library", count)
        }));
    }
    recorder.row("ready", POLLING, "ns", contestants);
}

fn asleep(recorder: &mut Recorder, libraries: Option<&Libraries>) {
    let count = recorder.plan.pick(60, 250);
    let counts = [1, 4, 8];
    let publishers =
        counts.map(|_| Publisher::new(&CompilerOptions::default(), versions(Reclaim::No, 0)));
    let mut contestants: Vec<Contestant<'_>> = Vec::new();
    for (workers, publisher) in counts.into_iter().zip(&publishers) {
        let mut races = vec![
            ("limit: bare slot and futex", bare_race(true, workers)),
            (
                "jitcast, from the call of publish, which links",
                publisher.race(Others::None, false, true, workers),
            ),
        ];
        let library = libraries.map(|libraries| library_race(libraries, true, workers));
        races.extend(library.map(|race| ("dlopen after a futex", race)));
        for (who, mut race) in races {
            contestants.push(Box::new(move || {
                let events = race.run(count);
                let mut taken = vec![Taken::warm(who, events.from_call).at(workers)];
                if who.starts_with("jitcast") {
                    let who = "jitcast, from when it was published";
                    taken.insert(0, Taken::warm(who, events.from_publication).at(workers));
                    let who = "jitcast, from when the last worker is awake";
                    taken.push(Taken::warm(who, events.from_notice).at(workers));
                }
                taken
            }));
        }
    }
    recorder.row("ready", ASLEEP, "ns", contestants);
}
