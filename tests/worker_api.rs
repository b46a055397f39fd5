//! What a host in Rust says to a worker, and is told by it: calls without a guard in sight, host functions with their signatures,
//! events.

#[path = "requests/asking.rs"]
mod asking;
mod common;
#[path = "publish/units.rs"]
mod units;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use common::host::{Host, clif_unit, object_unit};
use common::object::Maker;
use common::process::await_some;
use common::require;
use common::scratch::adds;
use jitcast::compiler::PublishOptions;
use jitcast::worker::{
    Endpoint, Event, HostTable, Log, LookupError, Polled, Worker, WorkerOptions,
};
use units::{Code, attach, attach_with, c, c_with, calls, function, publish, try_call};

jitcast::worker::embed!();

extern "C" fn add_seven(x: i64) -> i64 {
    x + 7
}

extern "C" fn double(x: f64) -> f64 {
    x * 2.0
}

extern "C-unwind" fn panics(x: i64) -> i64 {
    resume_unwind(Box::new(x))
}

#[test]
fn a_call_is_made_without_a_guard_in_sight_and_follows_updates() {
    let host = Host::sealed();
    host.publish_adds("score", 1);
    let worker = attach(&host);
    let guard = worker.enter().unwrap();
    let score = function(&worker, &guard, "score").unwrap();
    drop(guard);
    assert_eq!(worker.call(&score, (21,)).unwrap(), 22);
    let generation = host.publish_adds("score", 2);
    assert_eq!(worker.call(&score, (21,)).unwrap(), 23);
    // No guard is left behind.
    assert_eq!(worker.poll().unwrap(), Polled::Current { generation });
    // Inside another guard it is of that one's generation.
    let guard = worker.enter().unwrap();
    host.publish_adds("score", 3);
    assert_eq!(worker.call(&score, (21,)).unwrap(), 23);
    drop(guard);
    assert_eq!(worker.call(&score, (21,)).unwrap(), 24);
}

#[test]
fn an_exception_that_passes_a_call_leaves_its_guard() {
    let host = Host::sealed();
    publish(&host, &[clif_unit("u", &calls("f", "panics", 0))]);
    let mut table = HostTable::strict();
    table.define("panics", panics as extern "C-unwind" fn(i64) -> i64);
    let worker = attach_with(&host, table);
    let guard = worker.enter().unwrap();
    let passes = worker.function::<extern "C-unwind" fn(i64) -> i64>(&guard, "f");
    let passes = passes.unwrap();
    drop(guard);
    let caught = catch_unwind(AssertUnwindSafe(|| worker.call(&passes, (5,))));
    assert_eq!(caught.unwrap_err().downcast_ref(), Some(&5_i64));
    assert!(matches!(worker.poll().unwrap(), Polled::Current { .. }));
}

#[test]
fn a_host_function_is_called_by_the_signature_that_it_was_registered_with() {
    let host = Host::sealed();
    let units = [
        clif_unit("right", &calls("right", "hook", 1)),
        clif_unit("far", &calls("far", "wrong", 0)),
        clif_unit(
            "wrong",
            "function %wrong(i64) -> i64 {\n fn0 = %hook(f64) -> f64\nblock0(v0: i64):\n v1 = bitcast.f64 v0\n \
             v2 = call fn0(v1)\n v3 = bitcast.i64 v2\n return v3\n}\n",
        ),
    ];
    let published = publish(&host, &units);
    assert_eq!(published.imports, ["hook", "hook"]);
    let mut table = HostTable::strict();
    table.define("hook", add_seven as extern "C" fn(i64) -> i64);
    let worker = attach_with(&host, table);
    assert_eq!(try_call(&worker, "right", 1), Ok(9));
    for name in ["wrong", "far"] {
        let error = try_call(&worker, name, 1).unwrap_err();
        let pid = std::process::id();
        assert_eq!(
            error,
            LookupError::ImportSignature {
                name: name.into(),
                import: "hook".into(),
                called: "(f64) -> f64".into(),
                defined: "(i64) -> i64".into(),
                pid,
            }
        );
        let shown = format!(
            "`{name}` calls the host symbol `hook` as (f64) -> f64, and this worker (pid {pid}) defines it as (i64) -> i64\n  help: "
        );
        assert!(error.to_string().starts_with(&shown), "{error}");
    }
    assert_eq!(worker.stats().missing, 1);
    // Another worker may be another program.
    let mut table = HostTable::strict();
    table.define("hook", double as extern "C" fn(f64) -> f64);
    let other = attach_with(&host, table);
    assert_eq!(
        try_call(&other, "wrong", 1.5_f64.to_bits().cast_signed()),
        Ok(3.0_f64.to_bits().cast_signed())
    );
    assert!(try_call(&other, "right", 1).is_err());
    // What is found in the process, or defined by its address, is nobody's word.
    let mut table = HostTable::strict();
    // SAFETY: called by its own type only.
    unsafe { table.define_address("hook", add_seven as *const std::ffi::c_void) };
    let third = attach_with(&host, table);
    assert_eq!(try_call(&third, "right", 1), Ok(9));
    assert_eq!(third.stats().missing, 0);
}

#[test]
fn what_says_no_signature_or_several_is_not_checked() {
    let host = Host::sealed();
    let both = "function %both(i64) -> i64 {\n fn0 = %hook(i64) -> i64\n fn1 = %hook(i64, i64) -> i64\n\
        block0(v0: i64):\n v1 = call fn0(v0)\n v2 = call fn1(v1, v0)\n return v2\n}\n";
    // sub $8, %rsp; call hook; add $8, %rsp; ret
    let code = [
        0x48, 0x83, 0xec, 8, 0xe8, 0, 0, 0, 0, 0x48, 0x83, 0xc4, 8, 0xc3,
    ];
    let asks = Maker::new().referring("asks", &code, (5, "hook", object::elf::R_X86_64_PLT32, -4));
    publish(
        &host,
        &[clif_unit("both", both), object_unit("asks", asks.finish())],
    );
    let mut table = HostTable::strict();
    table.define("hook", add_seven as extern "C" fn(i64) -> i64);
    let worker = attach_with(&host, table);
    assert_eq!(try_call(&worker, "both", 1), Ok(15));
    assert_eq!(try_call(&worker, "asks", 1), Ok(8));
    assert_eq!(worker.stats().missing, 0);
}

#[test]
fn what_a_worker_asks_for_is_compared_too() {
    let host = asking::host();
    let mut table = HostTable::strict();
    table.define("hook", add_seven as extern "C" fn(i64) -> i64);
    let worker = attach_with(&host, table);
    let right = asking::ask(&worker, &calls("f", "hook", 1));
    let function = asking::function(&worker, &right, "f");
    assert_eq!(worker.call(&function, (1,)).unwrap(), 9);
    let wrong = "function %f(i64) -> i64 {\n fn0 = %hook(i64, i64) -> i64\nblock0(v0: i64):\n \
        v1 = call fn0(v0, v0)\n return v1\n}\n";
    let wrong = asking::ask(&worker, wrong);
    let guard = worker.enter().unwrap();
    let error = wrong.function::<Code>(&guard, "f").unwrap_err();
    assert!(
        matches!(error, LookupError::ImportSignature { .. }),
        "{error}"
    );
}

#[test]
fn what_was_rolled_back_to_is_checked_as_before() {
    let host = Host::sealed();
    let generation = host
        .publish("u", &calls("f", "hook", 1))
        .unwrap_or_else(|error| panic!("{error}"));
    host.publish("u", &adds("f", 5)).unwrap();
    let back = PublishOptions::default();
    host.compiler.rollback(Some(generation), back).unwrap();
    let mut table = HostTable::strict();
    table.define("hook", double as extern "C" fn(f64) -> f64);
    let worker = attach_with(&host, table);
    let error = try_call(&worker, "f", 1).unwrap_err();
    assert!(
        matches!(error, LookupError::ImportSignature { .. }),
        "{error}"
    );
}

/// A log that keeps what it is told, and uses the worker meanwhile.
fn keeping(worker: &Arc<OnceLock<Worker>>) -> (Log, Arc<Mutex<Vec<Event>>>) {
    let events = Arc::<Mutex<Vec<Event>>>::default();
    let (worker, kept) = (Arc::clone(worker), Arc::clone(&events));
    let log = Log::new(move |event| {
        kept.lock().unwrap().push(event.clone());
        if let Some(worker) = worker.get() {
            worker.enter().unwrap().generation();
            worker.failed_units();
            worker.tend();
        }
    });
    (log, events)
}

#[test]
fn a_host_is_told_what_no_call_returns() {
    let host = Host::sealed();
    publish(&host, &[clif_unit("u", &calls("f", "hook", 1))]);
    let known = Arc::<OnceLock<Worker>>::default();
    let (log, events) = keeping(&known);
    let options = WorkerOptions {
        host: HostTable::strict(),
        log,
        ..WorkerOptions::default()
    };
    let worker = Worker::attach(Endpoint::Path(Path::new(&host.socket)), options).unwrap();
    known.set(worker.clone()).unwrap();
    let take = || std::mem::take(&mut *events.lock().unwrap());
    let missing = |import: &str| Event::MissingImport {
        import: import.into(),
    };
    assert_eq!(take(), [missing("hook")]);
    publish(&host, &[clif_unit("v", &calls("g", "other", 1))]);
    worker.poll().unwrap();
    assert_eq!(take(), [missing("other")]);
    if require::cc() {
        let aborts =
            "static __attribute__((constructor)) void start(void) { *(volatile int *)8 = 1; }";
        publish(
            &host,
            &[c("w", &format!("{aborts} long h(long x) {{ return x; }}"))],
        );
        worker.poll().unwrap();
        assert_eq!(worker.stats().failed, 1);
        let failed = take();
        assert!(
            matches!(&failed[..], [Event::UnitFailed(unit)] if unit.unit == "w"),
            "{failed:?}"
        );
    }
    host.compiler.renew().unwrap();
    await_some("a renewal", || {
        worker.poll().unwrap();
        worker.tend();
        take()
            .into_iter()
            .find(|event| matches!(event, Event::Renewed { .. }))
    });
    drop(host);
    await_some("the loss of the compiler process", || {
        worker.tend();
        take()
            .into_iter()
            .find(|event| *event == Event::Disconnected)
    });
    assert!(!worker.is_connected());
    known.get().unwrap().poll().unwrap();
}

#[test]
fn debugging_information_says_the_signatures_of_c() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let flags = ["-O2", "-fPIC", "-fno-plt", "-gdwarf-5"];
    let source =
        "double hook(double); long f(long x) { return x + 1; } long g(long x) { return hook(x); }
        struct pair { long a, b; }; long h(struct pair x) { return x.a; }";
    publish(&host, &[c_with("u", source, &flags)]);
    let mut table = HostTable::strict();
    table.define("hook", add_seven as extern "C" fn(i64) -> i64);
    let worker = attach_with(&host, table);
    let guard = worker.enter().unwrap();
    let f = worker.function::<Code>(&guard, "f").unwrap();
    assert_eq!(f.call(&guard, 1), 2);
    let wrong = worker.function::<extern "C" fn(f64) -> i64>(&guard, "f");
    assert_eq!(
        wrong.unwrap_err().to_string(),
        "`f` has the signature (i64) -> i64, not (f64) -> i64"
    );
    let unknown = worker.function::<Code>(&guard, "h").unwrap_err();
    assert!(matches!(unknown, LookupError::UnknownSignature { .. }));
    let hook = worker.function::<Code>(&guard, "g").unwrap_err();
    assert!(
        matches!(hook, LookupError::ImportSignature { .. }),
        "{hook}"
    );
}
