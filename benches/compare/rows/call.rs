//! What a call costs once everything is there: the guard, and the ways from a caller to a function.

use std::ffi::{CStr, CString, c_int};
use std::hint::black_box;
use std::path::Path;
use std::ptr::NonNull;

use jitcast::compiler::UnitSource;
use jitcast::worker::{Guard, ThreadWords, Worker};
use tempfile::TempDir;

use crate::common::{Serving, object_unit};
use crate::library::{Adds, Library, adds_at};
use crate::measure::{Contestant, Recorder, Taken, per_repetition_ns, time_ns};
use crate::peers;
use crate::process::Pinned;
use crate::shapes;

/// Calls in one sample.
const CALLS: u32 = 10_000;

/// Call sites that are gone through in turn.
const SITES: usize = 4096;

/// Functions of `call.c`, whose first argument is a pointer.
type Loop = extern "C" fn(*const (), i64) -> i64;

pub(crate) fn run(recorder: &mut Recorder) {
    let _pinned = Pinned::to(0);
    let folder = tempfile::tempdir().unwrap();
    let made = Made::in_folder(folder);
    if let Err(why) = &made {
        recorder.skip("calls from C, and through shared libraries", why);
    }
    let made = made.ok();
    let serving = Serving::start();
    publish(&serving, made.as_ref());
    let worker = serving.attach();
    guards(recorder, &worker, made.as_ref());
    let guard = worker.enter().unwrap();
    from_the_host(recorder, &worker, &guard, made.as_ref());
    if let Some(made) = &made {
        from_code(recorder, made);
    }
}

/// What is compiled and made for this.
struct Made {
    folder: TempDir,
    /// The host's loops.
    host: Library,
}

impl Made {
    fn in_folder(folder: TempDir) -> Result<Self, String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let source = root.join("benches/compare/rows/call.c");
        let include = format!("-I{}", root.join("worker/capi/include").display());
        let at = |name: &str| folder.path().join(name);
        let cc = |args: &[&str], out| peers::cc(args, &at(out), &source);
        cc(
            &["-O2", "-fPIC", "-shared", "-DBENCH_HOST", &include],
            "host.so",
        )?;
        cc(&["-O2", "-fPIC", "-fno-plt", "-c"], "slot.o")?;
        cc(&["-O2", "-fPIC", "-fplt", "-c"], "stub.o")?;
        let files = [
            ("adds.o", shapes::adds(1, 0)),
            ("site.o", shapes::many_adds("site", SITES)),
            ("sites_slot.o", shapes::call_sites("site", SITES, true)),
            ("sites_stub.o", shapes::call_sites("site", SITES, false)),
        ];
        shapes::store(
            folder.path(),
            &files.map(|(name, bytes)| (name.to_owned(), bytes)),
        );
        for (library, objects) in [
            ("slot.so", ["slot.o", "adds.o"]),
            ("stub.so", ["stub.o", "adds.o"]),
            ("sites_slot.so", ["sites_slot.o", "site.o"]),
            ("sites_stub.so", ["sites_stub.o", "site.o"]),
        ] {
            peers::ld_shared(&at(library), &objects.map(at))?;
        }
        let host = Library::open(&c_path(folder.path(), "host.so"));
        Ok(Self { folder, host })
    }

    fn library(&self, name: &str) -> Library {
        Library::open(&c_path(self.folder.path(), name))
    }

    fn object(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join(name)).unwrap()
    }

    fn host_loop(&self, name: &CStr) -> Loop {
        let address = self.host.address(name);
        // SAFETY: `call.c` defines it so.
        unsafe { std::mem::transmute::<*const (), Loop>(address) }
    }
}

fn c_path(folder: &Path, name: &str) -> CString {
    CString::new(folder.join(name).into_os_string().into_encoded_bytes()).unwrap()
}

/// What is called, each in a unit of its own: calls of it can be redirected.
fn publish(serving: &Serving, made: Option<&Made>) {
    let adds = UnitSource {
        signatures: vec![("adds".to_owned(), "(i64) -> i64".parse().unwrap())],
        ..object_unit("adds", shapes::adds(1, 0))
    };
    serving.publish(&adds);
    if made.is_some() {
        serving.publish(&object_unit("site", shapes::many_adds("site", SITES)));
    }
}

fn samples(plan: crate::measure::Plan) -> usize {
    plan.pick(20, 500)
}

fn guards(recorder: &mut Recorder, worker: &Worker, made: Option<&Made>) {
    let samples = samples(recorder.plan);
    let thread = worker.thread().unwrap();
    let mut contestants: Vec<Contestant<'_>> = vec![
        Box::new(move || {
            let once = |_| per_repetition_ns(CALLS, || drop(thread.enter().unwrap()));
            vec![Taken::warm(
                "jitcast, from Rust, by its thread",
                (0..samples).map(once).collect(),
            )]
        }),
        Box::new(move || {
            let once = |_| per_repetition_ns(CALLS, || drop(worker.enter().unwrap()));
            vec![Taken::warm(
                "jitcast, from Rust",
                (0..samples).map(once).collect(),
            )]
        }),
        Box::new(move || {
            let once = |_| {
                per_repetition_ns(CALLS, || {
                    black_box(0);
                })
            };
            vec![Taken::warm(
                "empty loop, in Rust",
                (0..samples).map(once).collect(),
            )]
        }),
    ];
    if let Some(made) = made {
        // SAFETY: `call.c` defines it so.
        let otherwise = unsafe {
            std::mem::transmute::<*const (), extern "C" fn(Otherwise, Otherwise)>(
                made.host.address(c"otherwise"),
            )
        };
        otherwise(enter_otherwise, leave_otherwise);
        let words: *const () = worker.thread_words().unwrap().as_ptr().cast_const().cast();
        for (who, name) in [
            ("jitcast, from C, inline", c"guards"),
            ("empty loop, in C", c"empty"),
            ("limit: a pin and a look at the head, in C", c"head_alone"),
            ("limit: and by a door, in C", c"head_and_door"),
            (
                "limit: and with guards in guards, in C",
                c"head_door_and_nesting",
            ),
        ] {
            let of_c = made.host_loop(name);
            contestants.push(Box::new(move || {
                let once = |_| {
                    let taken = time_ns(|| assert_eq!(of_c(words, CALLS.into()), 0));
                    taken / f64::from(CALLS)
                };
                vec![Taken::warm(who, (0..samples).map(once).collect())]
            }));
        }
    }
    recorder.row("call", "a guard with nothing new", "ns", contestants);
}

/// What of a guard is not inline: 0 if it went well.
type Otherwise = extern "C" fn(NonNull<ThreadWords>) -> c_int;

extern "C" fn enter_otherwise(words: NonNull<ThreadWords>) -> c_int {
    // SAFETY: the loop passes on the words of this thread.
    unsafe { ThreadWords::enter_otherwise(words) }.map_or(1, |_| 0)
}

extern "C" fn leave_otherwise(words: NonNull<ThreadWords>) -> c_int {
    // SAFETY: as above.
    unsafe { ThreadWords::leave_otherwise(words) }.map_or(1, |_| 0)
}

fn from_the_host(recorder: &mut Recorder, worker: &Worker, guard: &Guard<'_>, made: Option<&Made>) {
    let samples = samples(recorder.plan);
    let function = worker.function::<Adds>(guard, "adds").unwrap();
    let own = function.clone();
    let mut contestants: Vec<Contestant<'_>> = vec![Box::new(move || {
        let mut x = 0;
        let once = |_| per_repetition_ns(CALLS, || x = black_box(&own).call(guard, x));
        vec![Taken::warm(
            "jitcast, a handle, from Rust",
            (0..samples).map(once).collect(),
        )]
    })];
    if let Some(made) = made {
        let slot = made.library("slot.so");
        let native = slot.address(c"adds");
        let symbol = worker.symbol(guard, "adds").unwrap();
        let exposed = |address: u64| std::ptr::with_exposed_provenance::<()>(address as usize);
        // It stays as long as the process, which is not for long.
        let cell = Box::leak(Box::new(exposed(symbol.code.get())));
        for (who, name, argument) in [
            (
                "jitcast, a handle, from C",
                c"handles",
                std::ptr::from_ref(cell).cast(),
            ),
            (
                "jitcast, a pointer to the stub, from C",
                c"pointers",
                exposed(symbol.stub.get()),
            ),
            (
                "limit: a pointer to the same code, from C",
                c"pointers",
                exposed(symbol.code.get()),
            ),
            (
                "a pointer into a shared library, from C",
                c"pointers",
                native,
            ),
        ] {
            let of_c = made.host_loop(name);
            contestants.push(Box::new(move || {
                let once = |_| {
                    time_ns(|| assert_eq!(of_c(argument, CALLS.into()), i64::from(CALLS)))
                        / f64::from(CALLS)
                };
                vec![Taken::warm(who, (0..samples).map(once).collect())]
            }));
        }
        std::mem::forget(slot);
    }
    recorder.row(
        "call",
        "a call from the host, inside a guard",
        "ns",
        contestants,
    );
}

/// From published code to another unit, and from one function of a shared library to another.
fn from_code(recorder: &mut Recorder, made: &Made) {
    let samples = samples(recorder.plan);
    // Each in a compiler of its own, since they define the same names.
    let elsewhere = |object: &str, name: &str| {
        let serving = Serving::start();
        publish(&serving, Some(made));
        serving.publish(&object_unit("caller", made.object(object)));
        let worker = serving.attach();
        let guard = worker.enter().unwrap();
        let address = worker.symbol(&guard, name).unwrap().code.get();
        // It stays, and this thread inside: what is at the address is there.
        std::mem::forget(guard);
        std::mem::forget(worker);
        adds_at(std::ptr::with_exposed_provenance(address as usize))
    };
    let mut libraries = Vec::new();
    for (row, name, ways, calls) in [
        (
            "a call from code to another unit",
            "calls",
            ["slot", "stub"],
            CALLS,
        ),
        (
            "4,096 call sites in turn, each",
            "sites",
            ["sites_slot", "sites_stub"],
            SITES as u32,
        ),
    ] {
        let mut contestants: Vec<Contestant<'_>> = Vec::new();
        let mut add = |who: String, function: Adds| {
            let argument = if name == "calls" { calls.into() } else { 0 };
            contestants.push(Box::new(move || {
                let once = |_| {
                    let taken = time_ns(|| assert_eq!(function(argument), i64::from(calls)));
                    taken / f64::from(calls)
                };
                vec![Taken::warm(who.as_str(), (0..samples).map(once).collect())]
            }));
        };
        for (way, through) in ways.into_iter().zip(["call *slot(%rip)", "call of a stub"]) {
            add(
                format!("jitcast, {through}"),
                elsewhere(&format!("{way}.o"), name),
            );
        }
        for (way, through) in ways.into_iter().zip(["call *GOT(%rip)", "PLT"]) {
            let library = made.library(&format!("{way}.so"));
            let name = CString::new(name).unwrap();
            add(format!("shared library, {through}"), library.adds(&name));
            libraries.push(library);
        }
        recorder.row("call", row, "ns", contestants);
    }
}
