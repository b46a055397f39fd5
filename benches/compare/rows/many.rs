//! The k-th library in a process, and the k-th unit: whether loading gets slower with what is loaded already.

use std::path::{Path, PathBuf};

use jitcast::compiler::UnitSource;
use serde::{Deserialize, Serialize};

use crate::common::{Serving, object_unit};
use crate::library::{self, Adds, Libraries, Library};
use crate::measure::{Contestant, Recorder, Taken, time_ns};
use crate::process::ask;
use crate::role::Role;
use crate::shapes;

/// How many before and after the k-th count for it.
const AROUND: u64 = 10;

/// What is loaded again and again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Loads {
    Libraries {
        folder: PathBuf,
    },
    /// With a handle of each that stays, or without.
    Units {
        kept: bool,
    },
}

/// Loads as many as the last of `places` says: answers with times of those around each place, ns.
pub(crate) fn play(loads: &Loads, places: &[u64]) {
    let count = places.last().expect("there are places") + AROUND;
    let times = match loads {
        Loads::Libraries { folder } => libraries(folder, count),
        Loads::Units { kept } => units(count, *kept),
    };
    let around = |place: &u64| {
        let from = place.saturating_sub(AROUND).max(1) as usize;
        let to = (place + AROUND) as usize;
        times[from..to].to_vec()
    };
    let around: Vec<Vec<f64>> = places.iter().map(around).collect();
    println!("{}", serde_json::to_string(&around).unwrap());
}

fn libraries(folder: &Path, count: u64) -> Vec<f64> {
    let mut open = Vec::new();
    let once = |number| {
        let path = library::c_path(folder, number);
        time_ns(|| {
            let library = Library::open(&path);
            let result = library.adds(c"adds")(0);
            open.push(library);
            result
        })
    };
    (0..count).map(once).collect()
}

/// In one process: what is measured is the worker's part.
fn units(count: u64, kept: bool) -> Vec<f64> {
    let serving = Serving::start();
    let worker = serving.attach();
    let mut handles = Vec::new();
    let once = |number| {
        let name = format!("adds_{number}");
        let unit = UnitSource {
            signatures: vec![(name.clone(), "(i64) -> i64".parse().unwrap())],
            ..object_unit(&name, shapes::adds_named(&name, 1, 0))
        };
        serving.publish(&unit);
        time_ns(|| {
            let guard = worker.enter().unwrap();
            let handle = worker.function::<Adds>(&guard, &name).unwrap();
            let result = handle.call(&guard, 0);
            handles.extend(kept.then_some(handle));
            result
        })
    };
    (0..count).map(once).collect()
}

pub(crate) fn run(recorder: &mut Recorder) {
    let places: &[u64] = recorder.plan.pick(&[10, 1000], &[10, 1000, 5000]);
    let last = places.last().expect("there are places");
    let mut contestants: Vec<Contestant<'_>> = Vec::new();
    let libraries = Libraries::make(last + AROUND);
    let mut add = |who: &'static str, loads: Loads| {
        contestants.push(Box::new(move || {
            let role = Role::Load {
                loads: loads.clone(),
                places: places.to_vec(),
            };
            let around: Vec<Vec<f64>> = ask(&role);
            let taken = places.iter().zip(around);
            let at = |(place, times): (&u64, _)| Taken::warm(who, times).at(*place as usize);
            taken.map(at).collect()
        }));
    };
    add(
        "jitcast, unit applied and called",
        Loads::Units { kept: false },
    );
    add(
        "jitcast, with a handle kept of each",
        Loads::Units { kept: true },
    );
    match &libraries {
        Ok(libraries) => {
            let folder = libraries.folder().to_owned();
            add("dlopen, dlsym and call", Loads::Libraries { folder });
        }
        Err(why) => recorder.skip("the k-th library", why),
    }
    let rounds = recorder.plan.pick(1, 3);
    let row = "the k-th unit, or library, of a process";
    recorder.row_of(rounds, ("many", row, "ns"), contestants);
}
