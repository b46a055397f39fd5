//! Linking: the same objects for every linker.
//!
//! In memory, jitcast's linker is a library; LLVM's JIT linker tells its own times, without those of its process. As whole
//! processes all of them read files; `ld -shared` and `ld.lld` write one too, which is what they are for. A bare linker ([`bare`]) does
//! what none can do without.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::bare;
use crate::common::linking::link;
use crate::measure::{Contestant, Recorder, Taken, time_ns};
use crate::peers::{self, JITLINK_HELP, Jitlink};
use crate::shapes::{self, Shape};

const SIZES: &str = "link, whole process or in memory, by relocations";
const SECTIONS: &str = "link a section for each function, by relocations";
const OBJECTS: &str = "link many objects, by relocations";

const JITCAST: &str = "jitcast in memory";
const BARE: &str = "a bare linker in memory";

/// How many files LLVM 19's llvm-jitlink takes.
const JITLINK_FILES: usize = 5_000;

/// Linkers that are there.
#[derive(Clone)]
struct Present {
    ld: bool,
    lld: bool,
    jitlinks: Vec<&'static Jitlink>,
}

impl Present {
    /// Those that end with `shape` while somebody waits.
    fn linking(&self, shape: &Shape, recorder: &mut Recorder) -> Self {
        let mut present = self.clone();
        present.jitlinks.retain(|linker| {
            let why = if shape.objects > JITLINK_FILES {
                "LLVM 19's ends by SIGSEGV"
            } else if shape.sections && !linker.takes_many {
                "LLVM 22's takes over ten minutes for 5,000"
            } else {
                return true;
            };
            let what = if shape.sections {
                "sections"
            } else {
                "objects"
            };
            let count = shape.objects.max(shape.functions_each);
            recorder.skip(&format!("{} of {count} {what}", linker.name), why);
            false
        });
        present
    }
}

pub(crate) fn run(recorder: &mut Recorder) {
    let present = Present {
        ld: peers::has("ld"),
        lld: peers::has("ld.lld"),
        jitlinks: peers::jitlinks().iter().collect(),
    };
    for (is_there, what, why) in [
        (present.ld, "ld -shared", "no ld; install GNU binutils"),
        (present.lld, "ld.lld", "no ld.lld; install lld"),
        (!present.jitlinks.is_empty(), "llvm-jitlink", JITLINK_HELP),
    ] {
        if !is_there {
            recorder.skip(what, why);
        }
    }
    let shape = |objects, functions_each, relocations_each, sections| Shape {
        objects,
        functions_each,
        relocations_each,
        sections,
    };
    for (name, shape) in [
        (
            "link one tiny object (4 relocations)",
            shape(1, 1, 1, false),
        ),
        (
            "link 1,001 objects (7,003 relocations)",
            shape(1000, 1, 7, false),
        ),
        (
            "link 5,000 functions (40,003 relocations)",
            shape(1, 5000, 8, false),
        ),
        (
            "link 5,000 sections (40,003 relocations)",
            shape(1, 5000, 8, true),
        ),
    ] {
        let inputs = Inputs::of(&shape);
        let few = shape.relocations() < 100;
        let samples = if few { 200 } else { 3 };
        let present = present.linking(&shape, recorder);
        let contestants = inputs.contestants(&present, samples);
        recorder.row("link", name, "ns", contestants);
    }
    sizes(recorder, &present);
}

/// The inputs of a link, in memory and as files.
struct Inputs {
    folder: TempDir,
    files: Vec<(String, Vec<u8>)>,
}

impl Inputs {
    /// In memory only.
    fn unstored(files: Vec<(String, Vec<u8>)>) -> Self {
        // In memory too, if there is such a file system: what disks do is nobody's merit here.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Self {
            folder: folder.unwrap(),
            files,
        }
    }

    fn of(shape: &Shape) -> Self {
        let inputs = Self::unstored(shape.files());
        shapes::store(inputs.path(), &inputs.files);
        std::fs::write(inputs.path().join("list"), inputs.names().join("\n")).unwrap();
        inputs
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn names(&self) -> Vec<&str> {
        self.files.iter().map(|(name, _)| name.as_str()).collect()
    }

    fn in_memory<T>(&self, link: impl FnOnce(&[(&str, &[u8])]) -> T) {
        let files: Vec<(&str, &[u8])> = self
            .files
            .iter()
            .map(|(name, bytes)| (name.as_str(), &bytes[..]))
            .collect();
        std::hint::black_box(link(&files));
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).current_dir(self.path());
        command
    }

    fn jitcast(&self) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_jitcast"), &["link"]);
        command.args(self.names());
        command
    }

    fn jitlink(&self, linker: &Jitlink) -> Command {
        let mut command = linker.command();
        command.args(["-noexec", "-show-times", "@list"]);
        command.current_dir(self.path());
        command
    }

    /// Everybody, `samples` times a round in memory and at most thrice as a process.
    fn contestants(&self, present: &Present, samples: usize) -> Vec<Contestant<'_>> {
        let processes = samples.min(3);
        let mut all = vec![
            timed("jitcast, in memory", samples, || self.in_memory(link)),
            timed(BARE, samples, || self.in_memory(bare::link)),
            timed("jitcast link", processes, || {
                peers::run(&mut self.jitcast()).unwrap();
            }),
        ];
        all.extend(self.peers(present, processes));
        all
    }

    /// All others, as processes.
    fn peers(&self, present: &Present, processes: usize) -> Vec<Contestant<'_>> {
        let mut all: Vec<Contestant<'_>> = Vec::new();
        let process = |who, program: &'static str, args: &'static [&str]| {
            let run = || peers::run(&mut self.command(program, args)).unwrap();
            timed(who, processes, run)
        };
        if present.ld {
            let args = &["-shared", "-o", "ld.so", "@list"];
            all.push(process("ld -shared", "ld", args));
        }
        if present.lld {
            let args = &["-shared", "--threads=1", "-o", "lld.so", "@list"];
            all.push(process("ld.lld -shared --threads=1", "ld.lld", args));
        }
        for &linker in &present.jitlinks {
            all.push(Box::new(move || {
                let mut own = Vec::new();
                let once = |_| {
                    let start = std::time::Instant::now();
                    let told = peers::output(&mut self.jitlink(linker)).unwrap();
                    let taken = start.elapsed();
                    own.extend(peers::jitlink_own_ns(&told));
                    taken.as_nanos() as f64
                };
                let whole = (0..processes).map(once).collect();
                vec![
                    Taken::warm(format!("{}, its own phases", linker.name), own),
                    Taken::warm(linker.name.as_str(), whole),
                ]
            }));
        }
        all
    }
}

/// Ten times as much each time: it should take ten times as long.
fn sizes(recorder: &mut Recorder, present: &Present) {
    let sizes: &[usize] = recorder.plan.pick(
        &[1_000, 10_000, 100_000],
        &[1_000, 10_000, 100_000, 1_000_000],
    );
    let rounds = recorder.plan.pick(1, 3);
    for &relocations in sizes {
        let functions = relocations / 8;
        let shape = |objects, sections| Shape {
            objects,
            functions_each: functions / objects,
            relocations_each: 8,
            sections,
        };
        // Peers take minutes for more, of some shapes.
        let stored = |shape: Shape| match relocations {
            ..=100_000 => Inputs::of(&shape),
            _ => Inputs::unstored(shape.files()),
        };
        let (many, sectioned) = (shape(functions, false), shape(1, true));
        let one = Inputs::of(&shape(1, false));
        let sections = stored(sectioned);
        let objects = stored(many);
        let members = Inputs::unstored(many.archived());
        let mut contestants: Vec<Contestant<'_>> = Vec::new();
        for (name, inputs) in [
            ("one object", &one),
            ("a section for each function", &sections),
            ("many objects", &objects),
            ("an archive of many members", &members),
        ] {
            contestants.push(in_memory(inputs, name, relocations));
        }
        for (name, inputs) in [("one object", &one), ("many objects", &objects)] {
            contestants.push(barely(inputs, name, relocations));
        }
        contestants.extend(peers_at(&one, "one object", present, relocations));
        recorder.row_of(rounds, ("link", SIZES, "ns"), contestants);
        if relocations <= 100_000 {
            for (row, name, shape, inputs) in [
                (
                    SECTIONS,
                    "a section for each function",
                    sectioned,
                    &sections,
                ),
                (OBJECTS, "many objects", many, &objects),
            ] {
                let mut contestants = vec![
                    in_memory(inputs, name, relocations),
                    barely(inputs, name, relocations),
                ];
                let present = present.linking(&shape, recorder);
                contestants.extend(peers_at(inputs, name, &present, relocations));
                recorder.row_of(rounds, ("link", row, "ns"), contestants);
            }
        }
    }
}

fn timed<'a>(who: &'static str, samples: usize, what: impl Fn() + 'a) -> Contestant<'a> {
    Box::new(move || {
        let samples = (0..samples).map(|_| time_ns(&what)).collect();
        vec![Taken::warm(who, samples)]
    })
}

fn in_memory<'a>(inputs: &'a Inputs, name: &'static str, relocations: usize) -> Contestant<'a> {
    let link = timed(JITCAST, samples(relocations), || inputs.in_memory(link));
    at(link, name, relocations)
}

fn barely<'a>(inputs: &'a Inputs, name: &'static str, relocations: usize) -> Contestant<'a> {
    let link = timed(BARE, samples(relocations), || inputs.in_memory(bare::link));
    at(link, name, relocations)
}

/// How often what takes as long as that many relocations is measured in a round.
fn samples(relocations: usize) -> usize {
    (200_000 / relocations).clamp(1, 20)
}

fn peers_at<'a>(
    inputs: &'a Inputs,
    name: &'static str,
    present: &Present,
    relocations: usize,
) -> impl Iterator<Item = Contestant<'a>> {
    let peers = inputs.peers(present, 1).into_iter();
    peers.map(move |peer| at(peer, name, relocations))
}

/// The same contestant with inputs of that name, and as many relocations.
fn at<'a>(
    mut contestant: Contestant<'a>,
    name: &'static str,
    relocations: usize,
) -> Contestant<'a> {
    Box::new(move || {
        let taken = contestant().into_iter();
        let named = taken.map(|one| Taken {
            who: format!("{}, {name}", one.who),
            ..one.at(relocations)
        });
        named.collect()
    })
}
