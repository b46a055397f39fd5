//! The bytes of an object are in memory: from there until another process has called its function.

use jitcast::compiler::{CompilerOptions, JournalOptions, Reclaim};

use super::publisher::{Publisher, versions};
use super::race::{Race, tell};
use crate::follow::{Means, Others};
use crate::jit::{self, Jit};
use crate::library::{self, Libraries, adds_at, bonus};
use crate::measure::{Contestant, Recorder, Taken, time_ns};
use crate::peers::{self, JITLINK_HELP, Jitlink};
use crate::process::Pinned;
use crate::shapes::{self, adds_code};

const ROW: &str = "an object in memory to called, polling worker";

/// How many places for libraries take turns.
const PLACES: u64 = 16;

pub(crate) fn run(recorder: &mut Recorder) {
    let _pinned = Pinned::to(0);
    let count = recorder.plan.pick(200, 1000);
    let few = recorder.plan.pick(5, 20);
    let plain = Publisher::new(&CompilerOptions::default(), versions(Reclaim::Auto, 0));
    let places = Libraries::empty();
    let folder = tempfile::tempdir().unwrap();
    let written = CompilerOptions {
        journal: Some(JournalOptions::new(folder.path())),
        ..CompilerOptions::default()
    };
    let written = Publisher::new(&written, versions(Reclaim::Auto, 0));
    let mut contestants: Vec<Contestant<'_>> = Vec::new();
    for (who, publisher, count) in [
        ("jitcast, without a journal (the default)", &plain, count),
        ("jitcast, with a journal on disk", &written, few * 5),
    ] {
        let mut race = publisher.race(Others::None, false, false, 1);
        contestants.push(Box::new(move || race.round(who, count)));
    }
    let isa = jit::isa();
    contestants.push(Box::new(move || {
        let once = |number| {
            let code = adds_code(bonus(number));
            let mut loaded = None;
            let taken = time_ns(|| {
                let jit = loaded.insert(Jit::load(&isa, "adds", &code));
                adds_at(jit.address("adds"))(0)
            });
            drop(loaded);
            taken
        };
        let who = "Cranelift JIT, compiled code, the same process only";
        vec![Taken::warm(who, (0..count).map(once).collect())]
    }));
    if peers::has("ld") {
        let mut race = ld_race(&places);
        contestants.push(Box::new(move || race.round("ld -shared and dlopen", few)));
    } else {
        recorder.skip("ld -shared and dlopen", "no ld; install GNU binutils");
    }
    if peers::jitlinks().is_empty() {
        recorder.skip("llvm-jitlink of an object", JITLINK_HELP);
    }
    for linker in peers::jitlinks() {
        contestants.push(Box::new(move || jitlink(linker, few)));
    }
    recorder.row("object", ROW, "ns", contestants);
}

/// LLVM's JIT linker as a process, which calls nothing; and its start-up, to be taken off.
fn jitlink(linker: &Jitlink, samples: u64) -> Vec<Taken> {
    let folder = tempfile::tempdir().unwrap();
    let linked = |number| {
        let object = folder.path().join("adds.o");
        let bytes = shapes::adds(bonus(number), 0);
        time_ns(|| {
            std::fs::write(&object, bytes).unwrap();
            let mut command = linker.command();
            peers::run(command.args(["-noexec", "-entry=adds"]).arg(&object)).unwrap();
        })
    };
    let started = |_| time_ns(|| peers::run(linker.command().arg("--version")).unwrap());
    let (linked, started) = ((0..samples).map(linked), (0..samples).map(started));
    vec![
        Taken::warm(
            format!("{}, a process that calls nothing", linker.name),
            linked.collect(),
        ),
        Taken::warm(
            format!("{}, its start-up alone", linker.name),
            started.collect(),
        ),
    ]
}

/// The publisher writes the object, lets ld make a library of it, and tells the follower.
fn ld_race(places: &Libraries) -> Race<'_> {
    let folder = places.folder();
    let means = Means::Library {
        folder: folder.to_owned(),
        count: PLACES,
    };
    let objects = [0, 1].map(|number| shapes::adds(bonus(number), 0));
    Race::new(&means, false, 1, move |board, event| {
        let object = folder.join("adds.o");
        std::fs::write(&object, &objects[(event % 2) as usize]).unwrap();
        peers::ld_shared(&library::path(folder, event % PLACES), &[object]).unwrap();
        tell(board, event, false);
    })
}
