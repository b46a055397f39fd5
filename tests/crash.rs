//! A worker that crashes in published code says where, and the signal goes on to who had it before.

mod common;

use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::child::fork;
use common::process::{Finished, Process, await_some};
use common::scratch::Scratch;
use common::serve::Serve;
use common::{remote, require, role};
use jitcast::worker::{CrashReports, Endpoint, HostTable, Worker, WorkerOptions};

/// Functions that crash, each by its own signal; `peek` at where it is told to look.
const CRASHES: &str = "
    static __attribute__((noinline)) long deep(volatile long *at) { return *at; }
    long peek(long at) { return deep((volatile long *)at) + 1; }
    long bad(long x) { __builtin_trap(); return x; }
    long divide(long x) { volatile int zero = 0; return (int)x / zero; }
";

const SIGNALS: [(&str, &str, i32); 4] = [
    ("peek", "SIGSEGV", libc::SIGSEGV),
    ("bus", "SIGBUS", libc::SIGBUS),
    ("bad", "SIGILL", libc::SIGILL),
    ("divide", "SIGFPE", libc::SIGFPE),
];

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[
        ("crash", crash),
        ("handled", crash_handled),
        ("recovers", recover),
        ("elsewhere", crash_elsewhere),
        ("child", crash_in_a_child),
        ("thread", crash_in_a_thread),
        ("environment", crash_by_the_environment),
        ("again", crash_in_the_report),
    ]);
}

/// What a role is told: the socket, the folder for reports, and the function that crashes.
fn told(target: &str) -> [&str; 3] {
    let mut words = target.split(' ');
    std::array::from_fn(|_| words.next().unwrap())
}

fn attach(socket: &str, folder: &str) -> Worker {
    // Nobody wants a core of it.
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: a limit, which lives through the call.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
    let options = WorkerOptions {
        label: "doomed".to_owned(),
        host: HostTable::default(),
        crash_reports: CrashReports {
            to_stderr: true,
            directory: Some(folder.into()),
        },
        ..WorkerOptions::default()
    };
    Worker::attach(Endpoint::Path(Path::new(socket)), options).unwrap()
}

/// Memory behind which there is no file any more.
fn past_the_end() -> i64 {
    let file = jitcast::runtime::sys::memfd("bus", 4096).unwrap();
    // SAFETY: a fresh mapping.
    let at = unsafe {
        let flags = libc::MAP_SHARED;
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ,
            flags,
            file.as_raw_fd(),
            0,
        )
    };
    rustix::fs::ftruncate(&file, 0).unwrap();
    at.addr() as i64
}

fn call_crashing(worker: &Worker, function: &str) -> Result<i64, String> {
    match function {
        "peek" => remote::call(worker, "peek", 16),
        "bus" => remote::call(worker, "peek", past_the_end()),
        other => remote::call(worker, other, 1),
    }
}

fn crash(target: &str) {
    let [socket, folder, function] = told(target);
    let worker = attach(socket, folder);
    let _ = call_crashing(&worker, function);
}

/// The host's own handler, with its own stack: it writes, and ends the process with a status of its own.
extern "C" fn own_handler(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel's.
    let info = unsafe { &*info };
    // SAFETY: these signals have one.
    let address = unsafe { info.si_addr() }.addr();
    let said: &[u8] = if address == 16 {
        b"own handler: at 16\n"
    } else {
        b"own handler: elsewhere\n"
    };
    // SAFETY: bytes that are there.
    unsafe { libc::write(2, said.as_ptr().cast(), said.len()) };
    // SAFETY: the end of the process.
    unsafe { libc::_exit(50 + signal) };
}

fn handle(signals: &[i32], handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void)) {
    for signal in signals {
        // SAFETY: all zeros are a valid `sigaction`.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: a handler of the type that its flags say.
        unsafe { libc::sigaction(*signal, &raw const action, std::ptr::null_mut()) };
    }
}

fn crash_handled(target: &str) {
    let [socket, folder, function] = told(target);
    handle(&SIGNALS.map(|(.., signal)| signal), own_handler);
    let worker = attach(socket, folder);
    let _ = call_crashing(&worker, function);
}

/// A host that goes on after a crash: it changes where the thread was.
extern "C" fn recovering_handler(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context: *mut libc::ucontext_t = context.cast();
    // SAFETY: the registers that the kernel restores.
    let registers = unsafe { &mut (*context).uc_mcontext.gregs };
    let stack =
        std::ptr::with_exposed_provenance::<i64>(registers[libc::REG_RSP as usize] as usize);
    // SAFETY: the crashing function has nothing on its stack but its return address: it returns at once.
    registers[libc::REG_RIP as usize] = unsafe { stack.read() };
    registers[libc::REG_RSP as usize] += 8;
    registers[libc::REG_RAX as usize] = 7;
    RECOVERED.fetch_add(1, Ordering::Relaxed);
}

static RECOVERED: AtomicUsize = AtomicUsize::new(0);

fn recover(target: &str) {
    let [socket, folder, _] = told(target);
    handle(&[libc::SIGILL], recovering_handler);
    let worker = attach(socket, folder);
    for _ in 0..3 {
        assert_eq!(remote::call(&worker, "bad", 1), Ok(7));
    }
    assert_eq!(RECOVERED.load(Ordering::Relaxed), 3);
    role::report("recovered");
    while role::next_line().is_some() {}
}

/// The host's own code crashes: nothing to do with published code.
fn crash_elsewhere(target: &str) {
    let [socket, folder, handled] = told(target);
    if handled == "handled" {
        handle(&[libc::SIGSEGV], own_handler);
    }
    let worker = attach(socket, folder);
    assert!(worker.enter().is_ok());
    let nowhere = std::hint::black_box(std::ptr::without_provenance_mut::<u64>(16));
    // SAFETY: none: it crashes.
    unsafe { nowhere.write_volatile(1) };
}

fn crash_in_a_child(target: &str) {
    let [socket, folder, function] = told(target);
    let worker = attach(socket, folder);
    assert!(worker.enter().is_ok());
    let child = fork(|| {
        let _ = call_crashing(&worker, function);
    });
    role::report(child.as_raw_nonzero());
    while role::next_line().is_some() {}
}

fn crash_in_a_thread(target: &str) {
    let [socket, folder, function] = told(target);
    let worker = attach(socket, folder);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            role::report(rustix::thread::gettid().as_raw_nonzero());
            let _ = call_crashing(&worker, function);
        });
    });
}

fn crash_by_the_environment(target: &str) {
    let [socket, _, function] = told(target);
    let worker = remote::attach(socket);
    let _ = call_crashing(&worker, function);
}

/// What the report needs is gone: the mailbox. It must not loop.
fn crash_in_the_report(target: &str) {
    let [socket, folder, function] = told(target);
    handle(&SIGNALS.map(|(.., signal)| signal), own_handler);
    let worker = attach(socket, folder);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mailboxes = maps
        .lines()
        .filter(|line| line.contains("/memfd:jitcast-mailbox"));
    let guard = worker.enter().unwrap();
    // Nothing but the code itself may touch the mailbox.
    let code = worker.symbol(&guard, function).unwrap().code.get() as usize;
    let code = std::ptr::without_provenance::<()>(code);
    // SAFETY: a published function of this type.
    let peek: extern "C" fn(i64) -> i64 = unsafe { std::mem::transmute(code) };
    for line in mailboxes {
        let (range, _) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|at| usize::from_str_radix(at, 16).unwrap());
        // SAFETY: none: whoever touches it crashes, which is what this is about.
        unsafe {
            libc::mprotect(
                std::ptr::without_provenance_mut(start),
                end - start,
                libc::PROT_NONE,
            );
        }
    }
    peek(16);
}

struct Scene {
    serve: Serve,
    reports: Scratch,
}

impl Scene {
    fn new() -> Option<Self> {
        if !require::cc() {
            return None;
        }
        let serve = Serve::start(&[]);
        let file = serve.scratch.write("crashes.c", CRASHES);
        serve.publish(&[&file]).succeeded();
        let reports = Scratch::new();
        Some(Self { serve, reports })
    }

    fn command(&self, role: &str, function: &str) -> Command {
        let folder = self.reports.path("");
        role::command(role, &format!("{} {folder} {function}", self.serve.socket))
    }

    fn run(&self, role: &str, function: &str) -> Finished {
        Process::start(&mut self.command(role, function)).finish()
    }

    /// The files with reports.
    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.reports.path("")).unwrap().flatten();
        let texts = entries.map(|entry| std::fs::read_to_string(entry.path()).unwrap());
        texts.collect()
    }

    /// Waits until the compiler process has counted so many.
    fn await_crashes(&self, count: u64) -> Vec<jitcast::compiler::CrashStatus> {
        await_some("the crashes", || {
            let crashes = self.serve.status().crashes;
            let counted: u64 = crashes.iter().map(|crash| crash.count).sum();
            (counted == count).then_some(crashes)
        })
    }
}

/// The lines of a report.
#[track_caller]
fn report(text: &str) -> &str {
    let (_, report) = text
        .split_once("jitcast: ")
        .unwrap_or_else(|| panic!("no report: {text}"));
    report
}

#[test]
fn each_signal_is_reported_counted_and_ends_the_process_as_before() {
    let Some(scene) = Scene::new() else { return };
    for (index, (function, name, signal)) in SIGNALS.into_iter().enumerate() {
        let ended = scene.run("crash", function);
        assert_eq!(ended.signal, Some(signal), "{ended:#?}");
        let said = report(&ended.stderr);
        // The function that crashed is a static one, which `peek` calls.
        let symbol = if ["peek", "bus"].contains(&function) {
            "deep"
        } else {
            function
        };
        assert!(
            said.starts_with(&format!("{name} in published code: process ")),
            "{said}"
        );
        for expected in [
            ", label doomed\n".to_owned(),
            format!("  at {symbol}+0x"),
            " of the unit crashes, generation 3\n".to_owned(),
            "  inside at generation 3; the worker has applied generation 3, in ".to_owned(),
            "  rip ".to_owned(),
        ] {
            assert!(said.contains(&expected), "`{expected}`: {said}");
        }
        if function == "peek" {
            assert!(said.contains(", address 0x10\n"), "{said}");
        }
        let crashes = scene.await_crashes(index as u64 + 1);
        let [crash] = &crashes[..] else {
            panic!("{crashes:#?}")
        };
        assert_eq!((crash.unit.as_str(), crash.generation), ("crashes", 3));
        assert_eq!(
            (crash.symbol.as_str(), crash.signal.as_str()),
            (symbol, name)
        );
        assert_eq!((crash.label.as_str(), crash.inside), ("doomed", 3));
        let files = scene.files();
        assert_eq!(files.len(), index + 1);
        assert!(
            files
                .iter()
                .any(|file| ended.stderr.contains(file.as_str())),
            "{files:#?}"
        );
    }
    let status = scene.serve.status();
    assert_eq!(
        status.workers,
        [],
        "their mailboxes are gone, and the counts are not"
    );
    assert_eq!(
        status
            .errors
            .iter()
            .filter(|error| error.what == "crash")
            .count(),
        4
    );
    let shown = scene.serve.command("status", &[]).succeeded().stdout;
    assert!(shown.contains("crashes: 4, the latest: worker "), "{shown}");
}

#[test]
fn the_hosts_own_handler_gets_the_signal() {
    let Some(scene) = Scene::new() else { return };
    for (index, (function, name, signal)) in SIGNALS.into_iter().enumerate() {
        let ended = scene.run("handled", function);
        assert_eq!(
            (ended.code, ended.signal),
            (Some(50 + signal), None),
            "{ended:#?}"
        );
        assert!(report(&ended.stderr).starts_with(name), "{ended:#?}");
        let own = if function == "peek" {
            "own handler: at 16"
        } else {
            "own handler: elsewhere"
        };
        assert!(ended.stderr.contains(own), "{ended:#?}");
        scene.await_crashes(index as u64 + 1);
    }
}

#[test]
fn a_host_that_goes_on_is_counted_while_it_lives() {
    let Some(scene) = Scene::new() else { return };
    let mut process = Process::start_listening(&mut scene.command("recovers", "bad"));
    assert_eq!(role::next_report(&mut process), "recovered");
    let status = scene.serve.status();
    assert_eq!((status.workers[0].crashes, status.crashes.len()), (3, 0));
    assert_eq!(scene.files().len(), 3);
    process.finish();
    assert_eq!(scene.await_crashes(1)[0].symbol, "bad");
}

#[test]
fn a_crash_of_the_hosts_own_leaves_no_report() {
    let Some(scene) = Scene::new() else { return };
    let ended = scene.run("elsewhere", "plain");
    assert_eq!(ended.signal, Some(libc::SIGSEGV), "{ended:#?}");
    let handled = scene.run("elsewhere", "handled");
    assert_eq!(handled.code, Some(50 + libc::SIGSEGV), "{handled:#?}");
    assert!(
        handled.stderr.contains("own handler: at 16"),
        "{handled:#?}"
    );
    for ended in [ended, handled] {
        assert!(!ended.stderr.contains("jitcast: "), "{ended:#?}");
    }
    await_some("their ends", || {
        scene.serve.status().workers.is_empty().then_some(())
    });
    let status = scene.serve.status();
    assert_eq!((status.crashes, scene.files().len()), (Vec::new(), 0));
}

#[test]
fn children_and_threads_report_too() {
    let Some(scene) = Scene::new() else { return };
    let mut parent = Process::start_listening(&mut scene.command("child", "peek"));
    let child = role::next_report(&mut parent);
    let crashes = scene.await_crashes(1);
    assert_eq!(crashes[0].pid.to_string(), child);
    let status = scene.serve.status();
    assert_eq!(status.workers.len(), 1, "the parent goes on");
    assert_eq!(status.workers[0].crashes, 0, "it was not its crash");
    assert!(scene.files()[0].contains(&format!("process {child}, thread {child},")));
    parent.finish();
    let mut process = Process::start_listening(&mut scene.command("thread", "bad"));
    let thread = role::next_report(&mut process);
    let ended = process.finish();
    assert_eq!(ended.signal, Some(libc::SIGILL), "{ended:#?}");
    assert!(
        ended.stderr.contains(&format!("thread {thread},")),
        "{ended:#?}"
    );
    scene.await_crashes(2);
}

#[test]
fn the_environment_asks_for_reports_too() {
    let Some(scene) = Scene::new() else { return };
    let run = |said: &str| {
        let mut command = scene.command("environment", "bad");
        Process::start(command.env("JITCAST_CRASH", said)).finish()
    };
    let silent = run("");
    assert_eq!(silent.signal, Some(libc::SIGILL), "{silent:#?}");
    assert!(!silent.stderr.contains("jitcast: "), "{silent:#?}");
    let ended = run("stderr");
    assert!(report(&ended.stderr).starts_with("SIGILL"), "{ended:#?}");
    assert_eq!(scene.files().len(), 0);
    run(&scene.reports.path(""));
    assert_eq!(scene.files().len(), 1);
}

/// Somebody has put links where reports may go, and the folder may not be there at all.
#[test]
fn a_report_that_cannot_be_written_is_left_out() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    std::fs::remove_dir_all(scene.reports.path("")).unwrap();
    let ended = scene.run("crash", "bad");
    assert_eq!(ended.signal, Some(libc::SIGILL), "{ended:#?}");
    assert!(report(&ended.stderr).starts_with("SIGILL"), "{ended:#?}");
    scene.reports = Scratch::new();
}

#[test]
fn a_crash_in_the_report_ends_the_process() {
    let Some(scene) = Scene::new() else { return };
    let ended = scene.run("again", "peek");
    assert_eq!(ended.signal, Some(libc::SIGSEGV), "{ended:#?}");
    assert!(!ended.stderr.contains("jitcast: "), "{ended:#?}");
}
