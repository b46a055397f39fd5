//! What happens in a process whose exceptions meet published code: played by the test's own binary.

use std::cell::RefCell;
use std::ffi::{CString, c_int, c_void};
use std::sync::OnceLock;

use jitcast::compiler::CompilerOptions;
use jitcast::runtime::WorkerAddr;
use jitcast::worker::{Endpoint, HostTable, Unwinding, Worker, WorkerOptions};

use crate::common::host::{Host, WINDOW_BYTES, clif_unit, object_unit};
use crate::common::object::Maker;
use crate::common::process::Finished;
use crate::common::role;
use crate::common::scratch::{Scratch, adds};
use crate::units::publish;
use crate::{sources, units};

/// The name of the role.
pub(crate) const SCENE: &str = "exceptions";

/// What compilers are asked for.
pub(crate) const FLAGS: [&str; 2] = ["-O2", "-fPIC"];

thread_local! {
    static NOTES: RefCell<Vec<i64>> = const { RefCell::new(Vec::new()) };
    static SEEN: RefCell<Vec<Vec<u64>>> = const { RefCell::new(Vec::new()) };
}

static WORKER: OnceLock<Worker> = OnceLock::new();

pub(crate) fn worker() -> &'static Worker {
    WORKER.get().expect("set when the scene began")
}

/// Published code's destructors.
extern "C" fn note(value: i64) {
    // At the end of the process nobody asks any more.
    let _ = NOTES.try_with(|notes| notes.borrow_mut().push(value));
}

/// Looks at the stack from below published code, as the C library and the unwinder see it.
extern "C-unwind" fn look(x: i64) -> i64 {
    let mut frames = [core::ptr::null_mut::<c_void>(); 64];
    // SAFETY: memory for as many addresses.
    let count = unsafe { libc::backtrace(frames.as_mut_ptr(), frames.len() as c_int) };
    let addresses = frames[..count as usize]
        .iter()
        .map(|frame| frame.addr() as u64);
    SEEN.with_borrow_mut(|seen| seen.push(addresses.collect()));
    x
}

fn notes() -> Vec<i64> {
    NOTES.take()
}

/// A function of the host's library.
fn host_function<F>(name: &str) -> F {
    let name = CString::new(name).unwrap();
    // SAFETY: a C string.
    let found = unsafe { libc::dlsym(DRIVER.get().unwrap().0, name.as_ptr()) };
    assert!(!found.is_null());
    // SAFETY: the scenes ask for the functions by their types.
    unsafe { core::mem::transmute_copy(&found) }
}

struct Library(*mut c_void);

// SAFETY: a handle of dlopen(3), which any thread may use.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

static DRIVER: OnceLock<Library> = OnceLock::new();

type Code = extern "C-unwind" fn(i64) -> i64;
type Drive = extern "C" fn(Code, i64) -> i64;

/// Calls `name` from the host's C++, which catches.
pub(crate) fn drive(name: &str, x: i64) -> i64 {
    let guard = worker().enter().unwrap();
    let stub = worker().symbol(&guard, name).unwrap().stub;
    let pointer = core::ptr::with_exposed_provenance::<()>(stub.get() as usize);
    // SAFETY: a published function of this type; the guard is held.
    let code: Code = unsafe { core::mem::transmute(pointer) };
    host_function::<Drive>("drive")(code, x)
}

/// Calls `name`, which lets nothing out.
fn call(name: &str, x: i64) -> i64 {
    let guard = worker().enter().unwrap();
    units::function(worker(), &guard, name)
        .unwrap()
        .call(&guard, x)
}

/// A part of the host in Rust, between its C++ and published code.
extern "C-unwind" fn between(x: i64) -> i64 {
    let guard = worker().enter().unwrap();
    // SAFETY: every function of these tests takes and returns a long.
    let function = unsafe { worker().function_unchecked::<Code>(&guard, "throws") };
    function.unwrap().call(&guard, x)
}

/// The same with a handle that lets no exception out.
extern "C-unwind" fn containing(x: i64) -> i64 {
    call("throws", x)
}

/// The role: `scene`, the socket, the host's library.
pub(crate) fn play(target: &str) {
    let [scene, unwinding, socket, driver] = target.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{target}");
    };
    let driver = CString::new(driver).unwrap();
    // SAFETY: a C string; the library is the test's own.
    let library = unsafe { libc::dlopen(driver.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    assert!(!library.is_null());
    assert!(DRIVER.set(Library(library)).is_ok());
    let mut host = HostTable::default();
    // SAFETY: functions of the types that the sources declare.
    unsafe { host.define_address("note", note as *const c_void) };
    // SAFETY: as above.
    unsafe { host.define_address("look", look as *const c_void) };
    let options = WorkerOptions {
        host,
        unwinding: match unwinding {
            "auto" => Unwinding::Auto,
            "register" => Unwinding::Register,
            _ => Unwinding::Off,
        },
        ..WorkerOptions::default()
    };
    let attached = Worker::attach(Endpoint::Path(socket.as_ref()), options);
    assert!(
        WORKER
            .set(attached.unwrap_or_else(|error| panic!("{error}")))
            .is_ok()
    );
    assert_eq!(worker().stats().missing, 0);
    match scene {
        "everything" => everything(),
        "terminates" => drop(drive("passes", 2)),
        "contained" => drop(host_function::<Drive>("drive")(containing, 2)),
        "replaced" => replaced(),
        "idle" => idle(),
        "stepped" => crate::stepping::everywhere(),
        _ => panic!("no scene `{scene}`"),
    }
    role::report("done");
}

/// All ways that exceptions go.
fn everything() {
    // A constructor's, while the worker attached.
    assert_eq!((call("start", 0), notes()), (51, vec![50]));
    // Within published code, through CLIF; destructors run on the way.
    assert_eq!(
        (call("catches", 1), notes()),
        (1001, vec![101, 201, 301, 401])
    );
    assert_eq!(
        (call("catches", 2), notes()),
        (2007, vec![102, 202, 302, 402])
    );
    assert_eq!((call("catches", 5), notes()), (9, vec![105, 205, 305, 405]));
    // To the host, after a rethrow too.
    assert_eq!(
        (drive("passes", 1), notes()),
        (1001, vec![101, 201, 301, 601])
    );
    assert_eq!(drive("again", 2), 2007);
    assert_eq!(notes(), [102, 202, 302, 402, 102, 202, 302, 500]);
    // The library's own.
    assert_eq!((call("library", 1), notes()), (7, vec![1]));
    assert_eq!((call("library", 2), notes()), (-1, vec![1]));
    assert_eq!(call("number", 3), 4);
    assert_eq!((drive("leaves", 9), notes()), (3001, vec![2]));
    // The host's own, through published code and beside it.
    let complains = host_function::<Code>("complains");
    assert_eq!(call("host", complains as usize as i64), 77);
    let quarrel = host_function::<extern "C" fn(i64) -> i64>("quarrel");
    assert_eq!(quarrel(100), 100);
    assert!(std::panic::catch_unwind(|| panic!("as usual")).is_err());
    // Through Rust, whose guard is left on the way.
    assert_eq!(
        (host_function::<Drive>("drive")(between, 2), notes()),
        (2007, vec![102, 202, 302])
    );
    backtraces();
    let code = || {
        let guard = worker().enter().unwrap();
        worker().symbol(&guard, "throws").unwrap().code
    };
    let old = code();
    // A new version of everything.
    role::report("again");
    role::next_line().unwrap();
    let before = worker().stats().applied;
    assert!(
        worker().poll().unwrap().generation() > before,
        "no guard is left behind"
    );
    // The old version's destructor ran too.
    assert_eq!((call("start", 0), notes()), (51, vec![50, 60]));
    assert_eq!(
        (call("catches", 1), notes()),
        (1001, vec![101, 201, 301, 401])
    );
    backtraces();
    // What is kept has its names, since it may still run.
    assert_ne!(code(), old);
    let kept = worker().symbolize(old).map(|found| found.to_string());
    assert_eq!(kept.as_deref(), Some("throws+0x0 (thrower)"));
    role::report("ends");
    role::next_line().unwrap();
}

/// A host symbol that panics.
extern "C-unwind" fn panics(x: i64) -> i64 {
    std::panic::resume_unwind(Box::new(x))
}

/// A panic of the host's passes published code of CLIF, on to the host.
pub(crate) fn panics_pass() {
    let host = Host::sealed();
    let units = ["first", "second"].map(|name| {
        let callee = if name == "first" { "second" } else { "panics" };
        clif_unit(name, &units::calls(name, callee, 1))
    });
    publish(&host, &units);
    let mut table = HostTable::default();
    // SAFETY: a function of the type that the units declare.
    unsafe { table.define_address("panics", panics as *const c_void) };
    let worker = units::attach_with(&host, table);
    for x in 0..3 {
        let guard = worker.enter().unwrap();
        let first = worker.function::<Code>(&guard, "first").unwrap();
        let caught =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| first.call(&guard, x)));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&x));
    }
}

fn backtraces() {
    SEEN.take();
    assert_eq!((call("catches", 0), notes()), (4, vec![100, 200, 300, 400]));
    let seen = SEEN.take();
    let [frames] = &seen[..] else {
        panic!("{seen:?}")
    };
    let named: Vec<_> = frames
        .iter()
        .map(|frame| worker().symbolize(WorkerAddr::new(frame - 1)))
        .collect();
    let first = named
        .iter()
        .position(Option::is_some)
        .expect("a published frame");
    let names: Vec<_> = named[first..].iter().map_while(Option::as_ref).collect();
    let shown: Vec<String> = names.iter().map(ToString::to_string).collect();
    let functions: Vec<_> = names
        .iter()
        .filter_map(|name| name.function.as_deref())
        .collect();
    assert_eq!(
        functions,
        ["_ZL5locall", "_Z6hiddenl", "throws", "middle", "catches"],
        "{shown:?}"
    );
    let owners: Vec<_> = names
        .iter()
        .filter_map(|name| name.unit.as_deref())
        .collect();
    assert_eq!(
        owners,
        ["thrower", "thrower", "thrower", "middle", "catcher"],
        "{shown:?}"
    );
    // Beyond published code the host's frames go on, to the start of the thread.
    let beyond = named.len() - first - names.len();
    assert!(beyond > 3, "{beyond}");
    assert!(named[first + names.len()..].iter().all(Option::is_none));
    let guard = worker().enter().unwrap();
    let symbol = worker().symbol(&guard, "throws").unwrap();
    let at = |address: u64| {
        worker()
            .symbolize(WorkerAddr::new(address))
            .map(|found| found.to_string())
    };
    assert_eq!(
        at(symbol.stub.get() + 4).as_deref(),
        Some("throws+0x4 (thrower)")
    );
    assert_eq!(
        at(symbol.code.get()).as_deref(),
        Some("throws+0x0 (thrower)")
    );
    assert_eq!(at(worker().stats().base.get()), None);
    assert_eq!(at(note as *const () as u64), None);
}

/// The host throws while units come and go, and so do threads inside published code.
fn replaced() {
    let quarrel = host_function::<extern "C" fn(i64) -> i64>("quarrel");
    role::report("throws");
    let threads = [false, true].map(|inside| {
        std::thread::spawn(move || {
            let mut rounds = 0;
            while !STOP.load(std::sync::atomic::Ordering::Relaxed) {
                assert_eq!(quarrel(10), 10);
                if inside {
                    assert_eq!((drive("passes", 2), call("catches", 1)), (2007, 1001));
                } else {
                    let _ = worker().poll().unwrap();
                }
                rounds += 1;
            }
            rounds
        })
    });
    role::next_line().unwrap();
    STOP.store(true, std::sync::atomic::Ordering::Relaxed);
    let rounds: u64 = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .sum();
    role::report(rounds);
}

/// The host throws without having looked at what is published for long.
fn idle() {
    role::report("idle");
    role::next_line().unwrap();
    let quarrel = host_function::<extern "C" fn(i64) -> i64>("quarrel");
    assert_eq!(quarrel(10), 10);
    assert_eq!(call("catches", 1), 1001);
    assert_eq!(quarrel(10), 10);
}

static STOP: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// A compiler, and the host's library.
pub(crate) struct Stage {
    pub(crate) host: Host,
    scratch: Scratch,
    driver: String,
}

impl Stage {
    pub(crate) fn new(flags: &[&str]) -> Self {
        // What is replaced is reused as soon as nobody can be inside.
        let options = CompilerOptions {
            reclaim_above_bytes: 0,
            ..CompilerOptions::with_window(WINDOW_BYTES).unwrap()
        };
        let (host, scratch) = (Host::with(options), Scratch::new());
        publish(&host, &sources::units(flags));
        let driver = sources::driver(&scratch);
        Self {
            host,
            scratch,
            driver,
        }
    }

    pub(crate) fn start(&self, scene: &str, unwinding: &str) -> crate::common::process::Process {
        let _ = &self.scratch;
        role::start(
            SCENE,
            &format!("{scene} {unwinding} {} {}", self.host.socket, self.driver),
        )
    }

    /// Everything, and everything again after it was replaced.
    pub(crate) fn everything(&self, flags: &[&str], unwinding: &str) {
        let mut process = self.start("everything", unwinding);
        assert_eq!(role::next_report(&mut process), "again");
        publish(&self.host, &sources::units(flags));
        process.send("go on");
        assert_eq!(role::next_report(&mut process), "ends");
        // What the worker has applied may be reused: it is not inside.
        self.want_memory();
        process.send("end");
        assert_eq!(role::next_report(&mut process), "done");
        let finished = process.finish().succeeded();
        let ended = finished.stderr.matches("caught at the end").count();
        assert_eq!(ended, 2, "both versions' destructors: {finished:#?}");
    }

    /// Takes memory that was given back.
    fn want_memory(&self) {
        for round in 0..2 {
            for number in 0..40 {
                let name = format!("garbage{number}");
                let object = Maker::new().read_only(&name, &[0xff; 40]);
                let object = object.function(&format!("{name}_{round}"), &[0xc3; 40]);
                publish(&self.host, &[object_unit(&name, object.finish())]);
            }
        }
    }

    /// Units are replaced while others throw.
    ///
    /// The story: a worker that registers took an index of texts for unchanged that lay where the last one had lain, and
    /// an exception found no way through what had been published meanwhile.
    pub(crate) fn replace(&self, unwinding: &str) {
        let mut process = self.start("replaced", unwinding);
        assert_eq!(role::next_report(&mut process), "throws");
        let versions =
            [["-O2", "-fPIC"], ["-O1", "-fPIC"]].map(|flags| sources::passing_thrower(&flags));
        for round in 0..200 {
            publish(&self.host, &versions[round % 2..][..1]);
            let other = format!("other{}", round % 7);
            publish(&self.host, &[clif_unit(&other, &adds(&other, 1))]);
        }
        process.send("enough");
        assert_ne!(role::next_report(&mut process), "0");
        assert_eq!(role::next_report(&mut process), "done");
        process.finish().succeeded();
    }

    /// Units are replaced, and their memory is wanted for others, while a worker does not look.
    pub(crate) fn idle(&self, unwinding: &str) {
        let adders = |bonus| {
            let many = (0..20).map(|number| format!("other{number}"));
            let units = many.map(|name| clif_unit(&name, &adds(&name, bonus)));
            units.collect::<Vec<_>>()
        };
        publish(&self.host, &adders(1));
        let mut process = self.start("idle", unwinding);
        assert_eq!(role::next_report(&mut process), "idle");
        publish(&self.host, &adders(2));
        self.want_memory();
        process.send("go on");
        assert_eq!(role::next_report(&mut process), "done");
        process.finish().succeeded();
    }

    /// A scene that needs nothing of the test.
    pub(crate) fn finishes(&self, scene: &str, unwinding: &str) {
        let mut process = self.start(scene, unwinding);
        assert_eq!(role::next_report(&mut process), "done");
        process.finish().succeeded();
    }

    /// A scene that ends with SIGABRT and a message.
    pub(crate) fn aborts(&self, scene: &str, unwinding: &str, message: &str) {
        let finished: Finished = self.start(scene, unwinding).finish();
        assert_eq!(finished.signal, Some(libc::SIGABRT), "{finished:#?}");
        assert!(finished.stderr.contains(message), "{finished:#?}");
    }
}
