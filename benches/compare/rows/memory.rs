//! Memory that code takes in each worker: jitcast's, a shared library's, and that of a JIT in each process.
//!
//! Of what several processes have in common each counts its share. The compiler process has one of the segment, so the sum
//! over workers comes near all of it as they get more.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::common::{Serving, attach, clif, mixes};
use crate::jit::{self, Jit};
use crate::library::{self, Libraries, Library};
use crate::measure::{Contestant, Recorder, Taken};
use crate::peers;
use crate::process::Player;
use crate::role::Role;

const FUNCTIONS: usize = 1000;

/// Whose code a process has.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Resident {
    /// Nobody's.
    Bare,
    Jitcast {
        socket: String,
    },
    Library {
        folder: PathBuf,
    },
    CraneliftJit,
}

/// Gets the first `functions` functions and reads their code, says so, and stays.
pub(crate) fn play(resident: &Resident, functions: usize) {
    let kept: Box<dyn std::any::Any> = match resident {
        Resident::Bare => Box::new(()),
        Resident::Jitcast { socket } => {
            let worker = attach(socket);
            let guard = worker.enter().unwrap();
            for number in 0..functions {
                let symbol = worker.symbol(&guard, &name(number)).unwrap();
                touch(std::ptr::with_exposed_provenance(symbol.code.get() as usize));
            }
            drop(guard);
            Box::new(worker)
        }
        Resident::Library { folder } => {
            let library = Library::open(&library::c_path(folder, functions as u64));
            for number in 0..functions {
                let name = std::ffi::CString::new(name(number)).unwrap();
                touch(library.address(&name));
            }
            Box::new(library)
        }
        Resident::CraneliftJit => {
            let jit = Jit::compile(&jit::isa(), &text(functions));
            (0..functions).for_each(|number| touch(jit.address(&name(number))));
            Box::new(jit)
        }
    };
    println!("ready");
    // Until the pipe is closed.
    let _ = std::io::stdin().read_line(&mut String::new());
    drop(kept);
}

fn name(number: usize) -> String {
    format!("mix_{number}")
}

fn text(functions: usize) -> String {
    (0..functions)
        .map(|number| mixes(number, functions))
        .collect()
}

/// As calling it would: its page is there then.
fn touch(code: *const ()) {
    // SAFETY: the address is that of a function, whose bytes can be read.
    std::hint::black_box(unsafe { code.cast::<u8>().read_volatile() });
}

/// What the kernel says of a process, bytes; and how many mappings it has.
#[derive(Clone, Copy, Debug, Default)]
struct Sizes {
    /// Its own pages, written to: those of files would be shared by more workers than one.
    private: f64,
    proportional: f64,
    mappings: f64,
}

/// All but the program itself, of which every process has the same: of code that it never runs nothing is there.
fn sizes(id: u32) -> Sizes {
    let text = std::fs::read_to_string(format!("/proc/{id}/smaps")).unwrap();
    let program = std::fs::read_link(format!("/proc/{id}/exe")).unwrap();
    let program = program.to_str().expect("cargo's paths are text");
    let mut sizes = Sizes::default();
    let mut is_program = false;
    for line in text.lines() {
        let kib = |rest: &str| -> f64 {
            let kib = rest.trim().strip_suffix(" kB").expect("sizes are in kB");
            kib.parse::<f64>().expect("a number") * 1024.0
        };
        match line.split_once(':') {
            Some(("Private_Dirty", rest)) if !is_program => sizes.private += kib(rest),
            Some(("Pss", rest)) if !is_program => sizes.proportional += kib(rest),
            // `7f0000000000-7f0000001000 r--p 00000000 fe:00 1234   /path`
            _ if line
                .split(' ')
                .next()
                .is_some_and(|first| first.contains('-')) =>
            {
                is_program = line.ends_with(program);
                sizes.mappings += 1.0;
            }
            _ => {}
        }
    }
    sizes
}

/// Sizes of `workers` processes that are there at once.
fn measure(resident: &Resident, functions: usize, workers: usize) -> Vec<Sizes> {
    let role = Role::Resident {
        resident: resident.clone(),
        functions,
    };
    let mut players: Vec<Player> = (0..workers).map(|_| Player::start(&role)).collect();
    for player in &mut players {
        assert_eq!(player.listen(), "ready");
    }
    players.iter().map(|player| sizes(player.id())).collect()
}

/// Everybody whose code is here, for that many functions.
fn residents(serving: &Serving, libraries: Option<&Path>) -> Vec<(&'static str, Resident)> {
    let mut all = vec![(
        "jitcast",
        Resident::Jitcast {
            socket: serving.socket.clone(),
        },
    )];
    all.extend(libraries.map(|folder| {
        let folder = folder.to_owned();
        ("dlopen of one library", Resident::Library { folder })
    }));
    all.push(("Cranelift JIT in each process", Resident::CraneliftJit));
    all
}

/// Code of `functions` functions, published and as a library.
fn prepare(libraries: &Libraries, functions: usize) -> (Serving, Result<(), String>) {
    let serving = Serving::start();
    let unit = clif("mixes", &text(functions));
    serving.publish(&unit);
    let object = libraries.folder().join(format!("{functions}.o"));
    std::fs::write(&object, &unit.files[0].bytes).unwrap();
    let library = library::path(libraries.folder(), functions as u64);
    let made = peers::ld_symbolic(&library, &[object]);
    (serving, made)
}

pub(crate) fn run(recorder: &mut Recorder) {
    let libraries = Libraries::empty();
    let rounds = recorder.plan.pick(2, 3);
    let (few, _) = prepare(&libraries, 1);
    let (many, made) = prepare(&libraries, FUNCTIONS);
    let folder = made.is_ok().then(|| libraries.folder());
    if let Err(why) = made {
        recorder.skip("memory of a shared library", why);
    }
    // Of a page, which is what the kernel counts, little is left for each.
    let count = recorder.plan.pick(FUNCTIONS, 5 * FUNCTIONS);
    let (more, _) = prepare(&libraries, count);
    one_worker(recorder, rounds, [(1, &few), (count, &more)], folder);
    let counts: &[usize] = recorder.plan.pick(&[1, 4], &[1, 2, 4, 8, 16]);
    let mut contestants: Vec<Contestant<'_>> = Vec::new();
    for &workers in counts {
        for (who, resident) in residents(&many, folder) {
            contestants.push(Box::new(move || {
                let all = |resident: &Resident| -> f64 {
                    let all = measure(resident, FUNCTIONS, workers);
                    all.iter().map(|sizes| sizes.proportional).sum()
                };
                // What such processes take without any code.
                let own = all(&resident) - all(&Resident::Bare);
                vec![Taken::warm(who, vec![own]).at(workers)]
            }));
        }
    }
    let row = "memory of all workers together, 1,000 functions";
    recorder.row_of(rounds, ("memory", row, "bytes"), contestants);
}

/// What one worker has for itself: whatever there is of functions, and for each.
fn one_worker(
    recorder: &mut Recorder,
    rounds: usize,
    amounts: [(usize, &Serving); 2],
    folder: Option<&Path>,
) {
    let [(few, with_few), (many, with_many)] = amounts;
    let mut contestants: [Vec<Contestant<'_>>; 3] = Default::default();
    let pairs = residents(with_few, folder)
        .into_iter()
        .zip(residents(with_many, folder));
    for ((who, of_few), (_, of_many)) in pairs {
        let private =
            move |resident: &Resident, functions: usize| measure(resident, functions, 1)[0];
        let fixed = of_few.clone();
        contestants[0].push(Box::new(move || {
            let own = private(&fixed, few).private - private(&Resident::Bare, 0).private;
            vec![Taken::warm(who, vec![own])]
        }));
        let of_all = of_many.clone();
        contestants[1].push(Box::new(move || {
            let more = private(&of_all, many).private - private(&of_few, few).private;
            vec![Taken::warm(who, vec![more / (many - few) as f64])]
        }));
        contestants[2].push(Box::new(move || {
            let own = private(&of_many, many).mappings - private(&Resident::Bare, 0).mappings;
            vec![Taken::warm(who, vec![own])]
        }));
    }
    let [fixed, each, mappings] = contestants;
    let row = |name, unit| ("memory", name, unit);
    recorder.row_of(
        rounds,
        row("private memory of a worker, one function", "bytes"),
        fixed,
    );
    recorder.row_of(
        rounds,
        row(
            "private memory of a worker, for each function more",
            "bytes",
        ),
        each,
    );
    recorder.row_of(rounds, row("mappings of a worker", ""), mappings);
}
