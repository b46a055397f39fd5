//! Linked code is ready: from its publication until another process has called it.
//!
//! The limit is a head, a record, a slot and text that was just written, in shared memory: what the hardware takes to get new code
//! across. The peer is a prebuilt library, which the worker opens when a word tells it to.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use jitcast::compiler::{CompilerOptions, Reclaim};
use jitcast::runtime::sys::{self, Mapping};

use super::publisher::{Publisher, versions};
use super::race::{Race, tell};
use crate::common::{adds, clif};
use crate::follow::{BARE_VERSION_BYTES, BARE_VERSIONS, Means, Others, bare_code};
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

/// Writes the code of a version where none was lately, then its record, then the head.
fn bare_race(asleep: bool, watched: bool, followers: usize) -> Race<'static> {
    let len_bytes = (BARE_VERSIONS * BARE_VERSION_BYTES) as usize;
    let text = sys::memfd("bench-text", len_bytes as u64).unwrap();
    let mapping = Mapping::shared(text.as_fd(), len_bytes, true).unwrap();
    let write = move |version: u64, code: u64| {
        let at = (version % BARE_VERSIONS * BARE_VERSION_BYTES) as usize;
        // SAFETY: the mapping is that long, and lives as long as this closure.
        let word = unsafe { mapping.base().cast::<AtomicU64>().byte_add(at) };
        // SAFETY: it is aligned, and only used as an atomic here; followers execute it.
        unsafe { word.as_ref() }.store(code, Ordering::Relaxed);
        at as u64
    };
    // Every page is there.
    for version in 0..BARE_VERSIONS {
        write(version, bare_code(0));
    }
    let means = Means::Bare {
        text: format!("/proc/{}/fd/{}", std::process::id(), text.as_raw_fd()),
        watched,
    };
    let mut versions = 0;
    Race::new(&means, asleep, followers, move |board, event| {
        // It stays open as long as followers may map it.
        let _ = &text;
        versions += 1;
        let [number, at] = board.record(event);
        at.store(write(versions, bare_code(event)), Ordering::Relaxed);
        number.store(event, Ordering::Relaxed);
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
    let mut contestants: Vec<Contestant<'_>> = Vec::new();
    for watched in [false, true] {
        let mut bare = bare_race(false, watched, 1);
        contestants.push(Box::new(move || {
            let events = bare.run(count);
            let (who, taken) = if watched {
                (
                    "limit: the same, from when the head is seen",
                    events.from_notice,
                )
            } else {
                (
                    "limit: bare ring, slot and text just written",
                    events.from_call,
                )
            };
            vec![Taken::warm(who, taken)]
        }));
    }
    let mut race = fresh.race(Others::None, true, false, 1);
    contestants.push(Box::new(move || {
        let events = race.run(count);
        vec![
            Taken::warm(
                "jitcast, from when the worker sees the head",
                events.from_notice,
            ),
            Taken::warm(
                "jitcast, from when it was published",
                events.from_publication,
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
            (
                "limit: bare ring and futex",
                bare_race(true, false, workers),
            ),
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
