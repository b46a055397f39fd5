//! Units for tests of publishing, and workers that call them. By convention every function in these tests is
//! `long name(long)`.

#![allow(
    dead_code,
    reason = "each test file is a crate of its own and uses some of the helpers"
)]

use jitcast::compiler::front::{self, cc, compile_bytes};
use jitcast::compiler::{Changeset, Publication, PublishError, Reclaim, Status, UnitSource};
use jitcast::worker::{Function, Guard, HostTable, LookupError, Worker, WorkerOptions};

use crate::common::host::{Host, object_unit};
use crate::common::object::Maker;
use crate::common::process::Process;
use crate::common::{remote, role};

/// What every function here is.
pub(crate) type Code = extern "C" fn(i64) -> i64;

/// A unit of one C file, compiled as the command does.
pub(crate) fn c(unit: &str, source: &str) -> UnitSource {
    c_with(unit, source, &cc::DEFAULT_CFLAGS)
}

/// A unit of one C file, compiled with `flags`.
pub(crate) fn c_with(unit: &str, source: &str, flags: &[&str]) -> UnitSource {
    let options = front::Options {
        cflags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        ..front::Options::default()
    };
    let file = compile_bytes(&format!("{unit}.c"), source.into(), &options);
    UnitSource::new(unit, [file.unwrap_or_else(|error| panic!("{error}"))])
}

/// The unit, with what is known of its functions of these names: that they take and return a long.
pub(crate) fn signed(mut unit: UnitSource, names: &[&str]) -> UnitSource {
    let known = names.iter().map(|name| {
        let signature = "(i64) -> i64".parse().unwrap();
        ((*name).to_owned(), signature)
    });
    unit.signatures.extend(known);
    unit
}

/// A reclaimed unit of functions that each add a number: made without a compiler, for tests that need many.
pub(crate) fn adders(unit: &str, functions: &[(&str, i32)]) -> UnitSource {
    let object = functions
        .iter()
        .fold(Maker::new(), |object, (name, bonus)| {
            // lea bonus(%rdi), %rax; ret
            let [a, b, c, d] = bonus.to_le_bytes();
            object.function(name, &[0x48, 0x8d, 0x87, a, b, c, d, 0xc3])
        });
    UnitSource {
        reclaim: Reclaim::Yes,
        ..object_unit(unit, object.finish())
    }
}

/// CLIF of a function `name` that calls `callee` and adds `bonus` to the result.
pub(crate) fn calls(name: &str, callee: &str, bonus: i64) -> String {
    format!(
        "function %{name}(i64) -> i64 {{\n    fn0 = %{callee}(i64) -> i64\nblock0(v0: i64):\n    \
         v1 = call fn0(v0)\n    v2 = iconst.i64 {bonus}\n    v3 = iadd v1, v2\n    return v3\n}}\n"
    )
}

/// Publishes a batch that is to succeed.
#[track_caller]
pub(crate) fn publish(host: &Host, units: &[UnitSource]) -> Publication {
    let published = host.compiler.publish(units);
    published.unwrap_or_else(|error| panic!("{error}"))
}

/// Publishes a batch that is to be refused, and changes nothing.
#[track_caller]
pub(crate) fn refused(host: &Host, units: &[UnitSource]) -> PublishError {
    change_refused(
        host,
        &Changeset {
            units,
            ..Changeset::default()
        },
    )
}

/// Asks for changes that are to be refused, and change nothing.
#[track_caller]
pub(crate) fn change_refused(host: &Host, changes: &Changeset<'_>) -> PublishError {
    let before = published(host);
    let error = host.compiler.change(changes).expect_err("a refusal");
    let mut after = published(host);
    if matches!(error, PublishError::Full(_)) {
        // What was retired may have been freed to make room.
        assert_eq!(held_bytes(&after), held_bytes(&before));
        after.areas.clone_from(&before.areas);
        after.retired_bytes = before.retired_bytes;
    }
    assert_eq!(after, before, "a refusal changes nothing");
    error
}

/// What is published and what it takes, without the workers, who go on meanwhile, and without what the system has given for it:
/// a refused publication may have asked for more, which the next one uses. Nor what has been, which a restart forgets.
pub(crate) fn published(host: &Host) -> Status {
    let mut status = host.compiler.status();
    for canary in &mut status.canaries {
        canary.workers.clear();
    }
    Status {
        workers: Vec::new(),
        stragglers: Vec::new(),
        held: Vec::new(),
        removed: Vec::new(),
        backed_bytes: 0,
        older_bytes: 0,
        ..status
    }
}

/// What the published state takes: all that is used but not retired, bytes.
pub(crate) fn held_bytes(status: &Status) -> u64 {
    let used = status.areas.iter().map(|area| area.used_bytes).sum::<u64>();
    used - status.retired_bytes
}

/// A worker in this process.
pub(crate) fn attach(host: &Host) -> Worker {
    remote::attach(&host.socket)
}

/// A worker in this process with a host table of its own.
pub(crate) fn attach_with(host: &Host, table: HostTable) -> Worker {
    let options = WorkerOptions {
        host: table,
        ..WorkerOptions::default()
    };
    let endpoint = jitcast::worker::Endpoint::Path(host.socket.as_ref());
    Worker::attach(endpoint, options).unwrap_or_else(|error| panic!("{error}"))
}

/// The function `name`, whatever signature was recorded.
pub(crate) fn function(
    worker: &Worker,
    guard: &Guard<'_>,
    name: &str,
) -> Result<Function<Code>, LookupError> {
    // SAFETY: every function of these tests takes and returns a long.
    unsafe { worker.function_unchecked::<Code>(guard, name) }
}

/// Publishes two units whose functions return the publication's generation; returns it.
pub(crate) fn publish_generation(host: &Host) -> u64 {
    let next = host.compiler.status().generation + 1;
    let number = next as i32;
    let batch = [adders("f", &[("f", number)]), adders("g", &[("g", number)])];
    let generation = publish(host, &batch).generation;
    assert_eq!(generation, next, "nobody else publishes");
    generation
}

/// A handle of the function `name`, which is there.
pub(crate) fn handle(worker: &Worker, name: &str) -> Function<Code> {
    let guard = worker.enter().unwrap();
    function(worker, &guard, name).unwrap()
}

/// Calls the function `name` in a guard of its own.
pub(crate) fn try_call(worker: &Worker, name: &str, argument: i64) -> Result<i64, LookupError> {
    let guard = worker.enter().unwrap();
    let code = function(worker, &guard, name)?;
    Ok(code.call(&guard, argument))
}

/// Calls the function `name`, which is there.
#[track_caller]
pub(crate) fn call(worker: &Worker, name: &str, argument: i64) -> i64 {
    try_call(worker, name, argument).unwrap_or_else(|error| panic!("{error}"))
}

/// Calls through a raw address of published code.
pub(crate) fn call_raw(_guard: &Guard<'_>, address: u64, argument: i64) -> i64 {
    let address: *const () = std::ptr::with_exposed_provenance(address as usize);
    // SAFETY: the address is one of a published function, which takes and returns a long, or of a trap.
    let code = unsafe { std::mem::transmute::<*const (), Code>(address) };
    code(argument)
}

/// The name of the role of a worker that holds on to a function.
pub(crate) const HOLDER: &str = "holds on to a function";

/// The role: holds a handle and a raw address, and calls through them when told.
pub(crate) fn hold(target: &str) {
    let (socket, name) = target.split_once(' ').expect("a socket and a name");
    let worker = remote::attach(socket);
    let (handle, stub) = {
        let guard = worker.enter().unwrap();
        let handle = function(&worker, &guard, name).unwrap();
        (handle, worker.symbol(&guard, name).unwrap().stub.get())
    };
    role::report("holds");
    while let Some(line) = role::next_line() {
        let guard = worker.enter().unwrap();
        let result = match line.as_str() {
            "handle" => handle.call(&guard, 1),
            "stub" => call_raw(&guard, stub, 1),
            _ => panic!("unknown command `{line}`"),
        };
        role::report(result);
    }
}

/// The test's end of it.
pub(crate) struct Holder(Process);

impl Holder {
    pub(crate) fn start(host: &Host, name: &str) -> Self {
        let mut process = role::start(HOLDER, &format!("{} {name}", host.socket));
        assert_eq!(role::next_report(&mut process), "holds");
        Self(process)
    }

    /// What a call gives, through the "handle" or the "stub".
    #[track_caller]
    pub(crate) fn call(&mut self, through: &str) -> String {
        self.0.send(through);
        role::next_report(&mut self.0)
    }

    /// Has it call what ends it with SIGABRT and a message of all these phrases.
    #[track_caller]
    pub(crate) fn aborts(mut self, through: &str, phrases: &[&str]) {
        self.0.send(through);
        let pid = self.0.pid();
        let finished = self.0.finish();
        assert_eq!(finished.signal, Some(libc::SIGABRT), "{finished:#?}");
        let pid = format!("(pid {pid})");
        for phrase in phrases.iter().copied().chain([pid.as_str()]) {
            assert!(
                finished.stderr.contains(phrase),
                "`{phrase}` in {finished:#?}"
            );
        }
    }
}
