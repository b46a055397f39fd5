//! Compiler process, server and workers, all in this process: threads call, nest, look up, stay, come, go, ask and fork, while others
//! publish, remove, begin and end canaries, and let the segment go on in another object.
//!
//! Nothing here orders anything but what it drives: its own flags and numbers are relaxed.

mod callers;
mod publishers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use jitcast_compiler::front;
use jitcast_compiler::{Compiler, CompilerOptions, Policy, RequestLimits, RequestOptions, Server};
use jitcast_worker::{Endpoint, Function, Guard, Unwinding, Worker, WorkerOptions};

use crate::tally::{Kind, Tally};
use crate::units::{Code, Template};

/// The smallest window, bytes: memory is soon reused.
const WINDOW_BYTES: u64 = 8 << 20;

/// The label of the worker that runs canaries.
const LABEL: &str = "canaries";

/// What all threads have.
struct Whole<'a> {
    compiler: &'a Compiler,
    socket: &'a str,
    worker: &'a Worker,
    stop: AtomicBool,
    /// The newest version of `f` and `g`.
    number: AtomicI64,
    templates: Templates,
    tally: &'a Tally,
}

/// What is published again and again.
struct Templates {
    f: Template,
    g: Template,
    canary: Template,
    removed: Template,
}

impl Templates {
    fn new() -> Self {
        let plain = "static long touch(long x) { return x; }";
        let begins = "static long begun;
            __attribute__((constructor)) static void begin(void) { begun = *at; }
            __attribute__((destructor)) static void end(void) { begun = 0; }
            static long touch(long x) { return begun == *at ? x : -1000; }";
        Self {
            f: Template::adder("f", plain),
            g: Template::adder("g", plain),
            canary: Template::adder("canary", plain),
            removed: Template::adder("removed", begins),
        }
    }
}

impl Whole<'_> {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn handle(&self, name: &str) -> Function<Code> {
        handle(self.worker, name)
    }
}

fn handle(worker: &Worker, name: &str) -> Function<Code> {
    let guard = worker.enter().unwrap_or_else(|error| panic!("{error}"));
    let found = worker.function::<Code>(&guard, name);
    found.unwrap_or_else(|error| panic!("{error}"))
}

/// Calls through a raw address of published code.
fn call_raw(_guard: &Guard<'_>, address: u64, argument: i64) -> i64 {
    let address: *const () = core::ptr::with_exposed_provenance(address as usize);
    // SAFETY: the address of a published function, which takes and returns a long; and the thread is inside.
    let code = unsafe { core::mem::transmute::<*const (), Code>(address) };
    code(argument)
}

fn attach(socket: &str, label: &str, unwinding: Unwinding) -> Worker {
    let options = WorkerOptions {
        label: label.to_owned(),
        unwinding,
        ..WorkerOptions::default()
    };
    Worker::attach(Endpoint::Path(socket.as_ref()), options)
        .unwrap_or_else(|error| panic!("{error}"))
}

/// Waits a moment for what somebody else does: whether it came.
fn comes(whole: &Whole<'_>, patience: Duration, is_there: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while !is_there() {
        if !whole.goes_on() || Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_micros(200));
    }
    true
}

/// This program compiles what workers ask for, with as much address space as ThreadSanitizer takes.
fn policy() -> Policy {
    let own = std::env::current_exe().expect("/proc is mounted");
    let limits = RequestLimits {
        memory_bytes: u64::MAX,
        ..RequestLimits::default()
    };
    let command = Some(vec![own.into(), "codegen".into()]);
    Policy {
        requests: RequestOptions { command, limits },
        ..Policy::default()
    }
}

/// Lets everybody do everything for `duration`.
pub(crate) fn run(tally: &Tally, duration: Duration) {
    let socket = format!("@jitcast-tsan-{}", std::process::id());
    let options = CompilerOptions::with_window(WINDOW_BYTES).expect("within the limits");
    let options = CompilerOptions {
        // So that nearly every publication reuses what another has left.
        reclaim_above_bytes: 4 << 10,
        ..options
    };
    let compiler = Arc::new(Compiler::create(&options).unwrap_or_else(|error| panic!("{error}")));
    let server = Server::bind(&socket, policy(), front::Options::default());
    let server = server.unwrap_or_else(|error| panic!("{error}"));
    let stop = server.stopper().expect("a descriptor");
    let serving = {
        let compiler = Arc::clone(&compiler);
        thread::spawn(move || server.run(compiler))
    };
    let templates = Templates::new();
    publishers::begin(&compiler, &templates);
    let worker = attach(&socket, LABEL, Unwinding::Auto);
    let whole = Whole {
        compiler: &compiler,
        socket: &socket,
        worker: &worker,
        stop: AtomicBool::new(false),
        number: AtomicI64::new(0),
        templates,
        tally,
    };
    thread::scope(|scope| {
        let whole = &whole;
        let roles: [fn(&Whole<'_>); 13] = [
            callers::call,
            callers::call,
            callers::call,
            callers::stay,
            callers::look_up,
            callers::come_and_go,
            callers::attach_and_detach,
            callers::fork,
            callers::start_threads,
            callers::ask,
            publishers::swap,
            publishers::change,
            publishers::publish_by_socket,
        ];
        let threads = roles.map(|role| scope.spawn(move || role(whole)));
        thread::sleep(duration);
        whole.stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().expect("no role panics");
        }
    });
    drop(whole);
    tally.add(Kind::Versions, worker.stats().updates);
    drop(worker);
    stop.stop();
    let served = serving.join().expect("the server does not panic");
    served.expect("the server does not fail");
}
