//! Crashes in published code: a short report of where, before whatever happens at such a signal otherwise.
//!
//! It is for hosts that ask for it. The handler looks whether the thread was in a window, finds the function in the directory, as
//! unwinders do, writes a few lines, leaves word in the mailbox, and hands the signal on to who handled it before. Invariant: it
//! neither allocates nor locks, and makes system calls only; what it reads is bounded and checked, since it may be anything; the
//! text is put together in static memory, for signal stacks are small. A crash in it ends the process at once: the signals are blocked
//! meanwhile, and a second frame might not fit the stack.
//!
//! Source: sigaction(2), signal-safety(7), sigaltstack(2).

use std::cell::UnsafeCell;
use std::ffi::{CString, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Once, OnceLock};

use jitcast_runtime::frames::find_name_place;
use jitcast_runtime::mailbox::{Mailbox, Word};
use jitcast_runtime::records::TextRecord;
use jitcast_runtime::tally::{CRASH_NAME_BYTES, Crash};
use jitcast_runtime::{SegmentOffset, WorkerAddr, sys};
use rustix::fs::{CWD, Mode, OFlags};

use crate::startup::protect::{self, SIGNALS, hand_on};
use crate::unwind::windows::Scene;

/// Where a worker reports its crashes in published code (SIGSEGV, SIGBUS, SIGILL, SIGFPE). The signal is handed on to who handled it
/// when the first such worker of the process attached; handlers that are installed later come first.
///
/// ```
/// use jitcast_worker::{CrashReports, WorkerOptions};
///
/// let crash_reports = CrashReports { to_stderr: true, directory: Some("/var/crash".into()) };
/// let options = WorkerOptions { crash_reports, ..WorkerOptions::default() };
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CrashReports {
    /// Whether standard error is written to.
    pub to_stderr: bool,
    /// The folder in which each report becomes a file, `jitcast-crash-PID-THREAD-TIME.txt`. It may be one that everybody can write
    /// to: nothing that is there is followed or written to.
    pub directory: Option<PathBuf>,
}

/// The environment variable that says it for hosts which do not: `stderr`, a folder, or both with a comma in between.
const VARIABLE: &str = "JITCAST_CRASH";

impl CrashReports {
    /// What the environment says, where the host says nothing. A program that runs with more rights than who started it does not
    /// listen to that.
    pub(crate) fn or_as_the_environment_says(self) -> Self {
        if sys::runs_with_more_rights() {
            return self;
        }
        match std::env::var_os(VARIABLE) {
            Some(said) if self == Self::default() => Self::parse(said.as_bytes()),
            _ => self,
        }
    }

    fn parse(said: &[u8]) -> Self {
        let mut reports = Self::default();
        for word in said.split(|byte| *byte == b',') {
            match word {
                b"" => {}
                b"stderr" => reports.to_stderr = true,
                folder => reports.directory = Some(std::ffi::OsStr::from_bytes(folder).into()),
            }
        }
        reports
    }

    /// Who reports the crashes of the worker of `mailbox`; `None`: nobody.
    pub(crate) fn reporter(&self, mailbox: &Mailbox, label: &str) -> Option<Reporter> {
        // The host may go to another folder.
        let folder = self.directory.as_ref();
        let folder = folder.and_then(|folder| std::path::absolute(folder).ok());
        let folder = folder.and_then(|folder| CString::new(folder.as_os_str().as_bytes()).ok());
        (self.to_stderr || folder.is_some()).then(|| Reporter {
            mailbox: NonNull::from(mailbox),
            label: label.to_owned(),
            to_stderr: self.to_stderr,
            folder,
        })
    }
}

/// Where the crashes of a worker go.
#[derive(Debug)]
pub(crate) struct Reporter {
    /// The worker's, which outlives this.
    mailbox: NonNull<Mailbox>,
    label: String,
    to_stderr: bool,
    folder: Option<CString>,
}

/// What happened at the signals before.
static BEFORE: [OnceLock<libc::sigaction>; 4] = [const { OnceLock::new() }; 4];

/// Installs the handler, once for the process. It stays.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: all zeros are a valid `sigaction`: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = crashed;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for signal in SIGNALS {
            // SAFETY: a set of signals, and one of them.
            unsafe { libc::sigaddset(&raw mut action.sa_mask, signal) };
        }
        for (signal, before) in SIGNALS.into_iter().zip(&BEFORE) {
            protect::beneath(signal, &action, |old| {
                let _ = before.set(old);
            });
        }
    });
}

/// How many threads can report at once; what others crash in is handed on only.
const PLACES: usize = 8;

/// The longest report, bytes.
const REPORT_BYTES: usize = 4096;

/// The longest path of a report, bytes.
const PATH_BYTES: usize = 1024;

/// Where a thread puts its report together.
struct Place {
    is_taken: AtomicBool,
    text: UnsafeCell<[u8; REPORT_BYTES]>,
    path: UnsafeCell<[u8; PATH_BYTES]>,
}

// SAFETY: text and path are touched by the thread only that has taken the place.
unsafe impl Sync for Place {}

static TAKEN: [Place; PLACES] = [const {
    Place {
        is_taken: AtomicBool::new(false),
        text: UnsafeCell::new([0; REPORT_BYTES]),
        path: UnsafeCell::new([0; PATH_BYTES]),
    }
}; PLACES];

extern "C" fn crashed(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's, as SA_SIGINFO says.
    let by_processor = unsafe { (*info).si_code } > 0;
    let take = |place: &&Place| !place.is_taken.swap(true, Ordering::Acquire);
    if by_processor && let Some(place) = TAKEN.iter().find(take) {
        report(place, signal, info, context.cast());
        // Free before anybody else's handler, which may never return.
        place.is_taken.store(false, Ordering::Release);
    }
    pass_on(signal, info, context, by_processor);
}

/// Does what was done at `signal` before, with the signals blocked that would have been.
fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void, by_processor: bool) {
    let index = SIGNALS.iter().position(|known| *known == signal);
    let before = index.and_then(|index| BEFORE[index].get());
    let Some(before) = before else {
        return hand_on((libc::SIG_DFL, 0), signal, (info, context), by_processor);
    };
    if before.sa_sigaction != libc::SIG_DFL && before.sa_sigaction != libc::SIG_IGN {
        // SAFETY: what the kernel saved. It puts this mask back when the handler returns.
        let mut mask = unsafe { (*context.cast::<libc::ucontext_t>()).uc_sigmask };
        for blocked in 1..=64 {
            // SAFETY: a set of signals.
            let also = unsafe { libc::sigismember(&raw const before.sa_mask, blocked) } == 1;
            if also || blocked == signal && before.sa_flags & libc::SA_NODEFER == 0 {
                // SAFETY: a set of signals, and the number of one.
                unsafe { libc::sigaddset(&raw mut mask, blocked) };
            }
        }
        // SAFETY: a set of signals.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, core::ptr::null_mut()) };
    }
    let handler = (before.sa_sigaction, before.sa_flags);
    hand_on(handler, signal, (info, context), by_processor);
}

/// Reports a crash, if it was in published code of a worker that wants it.
#[inline(never)]
fn report(
    place: &Place,
    signal: c_int,
    info: *const libc::siginfo_t,
    context: *const libc::ucontext_t,
) {
    // SAFETY: what the kernel saved, there as long as the handler runs.
    let registers = unsafe { &(*context).uc_mcontext.gregs };
    let register = |index: c_int| registers[index as usize].cast_unsigned();
    let pc = register(libc::REG_RIP);
    let Some(scene) = Scene::at(pc) else {
        return;
    };
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` lives through the call, which signal handlers may make.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now) };
    let (crash, mut lens) = examine(&scene, signal, pc);
    let crash = Crash {
        seconds: now.tv_sec.cast_unsigned(),
        ..crash
    };
    let reporter = scene.reporter;
    // SAFETY: the worker's own, which outlives its reporter.
    let mailbox = unsafe { reporter.mailbox.as_ref() };
    mailbox.leave_crash(&crash);
    // SAFETY: this thread has taken the place.
    let text = unsafe { &mut *place.text.get() };
    let mut text = Text { to: text, len: 0 };
    // SAFETY: the kernel's, as SA_SIGINFO says.
    let info = unsafe { &*info };
    // SAFETY: these signals have an address.
    let address = unsafe { info.si_addr() }.addr() as u64;
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    lens.pid = pid;
    describe(&mut text, &crash, &lens, (pc, address), reporter, mailbox);
    for (index, (name, number)) in REGISTERS.into_iter().enumerate() {
        text.add(if index % 4 == 0 { "\n  " } else { "  " });
        text.add(name).add(" ").hex_padded(register(number));
    }
    text.add("\n");
    let bytes = &text.to[..text.len];
    if reporter.to_stderr {
        write_all(rustix::stdio::stderr(), bytes);
    }
    if let Some(folder) = &reporter.folder {
        // SAFETY: this thread has taken the place.
        let path = unsafe { &mut *place.path.get() };
        path.fill(0);
        let mut path = Text { to: path, len: 0 };
        path.bytes(folder.as_bytes())
            .add("/jitcast-crash-")
            .decimal(pid.unsigned_abs().into());
        path.add("-")
            .decimal(crash.thread.into())
            .add("-")
            .decimal(crash.seconds);
        path.add("-")
            .decimal(now.tv_nsec.cast_unsigned())
            .add(".txt");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = Mode::RUSR | Mode::WUSR;
        // A path that does not fit was cut, and has no end.
        if path.len < path.to.len() - 1
            && let Ok(path) = core::ffi::CStr::from_bytes_until_nul(path.to)
            && let Ok(file) = rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC, mode)
        {
            write_all(&file, bytes);
        }
    }
}

const REGISTERS: [(&str, c_int); 18] = [
    ("rax", libc::REG_RAX),
    ("rbx", libc::REG_RBX),
    ("rcx", libc::REG_RCX),
    ("rdx", libc::REG_RDX),
    ("rsi", libc::REG_RSI),
    ("rdi", libc::REG_RDI),
    ("rbp", libc::REG_RBP),
    ("rsp", libc::REG_RSP),
    ("r8 ", libc::REG_R8),
    ("r9 ", libc::REG_R9),
    ("r10", libc::REG_R10),
    ("r11", libc::REG_R11),
    ("r12", libc::REG_R12),
    ("r13", libc::REG_R13),
    ("r14", libc::REG_R14),
    ("r15", libc::REG_R15),
    ("rip", libc::REG_RIP),
    ("efl", libc::REG_EFL),
];

/// How long the names of a crash are, and whose it is.
#[derive(Default)]
struct Lengths {
    symbol: usize,
    unit: usize,
    pid: i32,
}

/// What is known of the place `pc`.
fn examine(scene: &Scene, signal: c_int, pc: u64) -> (Crash, Lengths) {
    let mut lens = Lengths::default();
    let mut crash = Crash {
        signal,
        thread: rustix::thread::gettid()
            .as_raw_nonzero()
            .get()
            .unsigned_abs(),
        inside: scene.inside,
        ..Crash::NONE
    };
    let Some(at) = scene.window.offset_of(WorkerAddr::new(pc)) else {
        return (crash, lens);
    };
    crash.place = at.get();
    let Some((record_at, text)) = scene.text(at) else {
        return (crash, lens);
    };
    crash.generation = text.generation;
    crash.unit_number = text.unit;
    crash.distance = at.get().wrapping_sub(text.text.start).into();
    let view = scene.window.control();
    let name = |at: Option<SegmentOffset>, len: u32, to: &mut [u8; CRASH_NAME_BYTES]| {
        let len = (len as usize).min(CRASH_NAME_BYTES);
        let copied = at.map(|at| view.copy(at, &mut to[..len]).is_ok());
        if copied == Some(true) { len } else { 0 }
    };
    let unit_at = record_at.checked_add(size_of::<TextRecord>() as u64);
    lens.unit = name(unit_at, text.name_len, &mut crash.unit);
    let names = text.names.region();
    let found = names.and_then(|names| find_name_place(view, names, text.unit, at).ok().flatten());
    if let Some((start, region)) = found {
        lens.symbol = name(Some(region.offset()), region.len_bytes, &mut crash.symbol);
        crash.distance = at.get().wrapping_sub(start.get()).into();
    }
    (crash, lens)
}

/// The first lines of a report.
fn describe(
    text: &mut Text<'_>,
    crash: &Crash,
    lens: &Lengths,
    (pc, address): (u64, u64),
    reporter: &Reporter,
    mailbox: &Mailbox,
) {
    let signal = match crash.signal {
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGBUS => "SIGBUS",
        libc::SIGILL => "SIGILL",
        _ => "SIGFPE",
    };
    text.add("jitcast: ")
        .add(signal)
        .add(" in published code: process ");
    text.decimal(lens.pid.unsigned_abs().into())
        .add(", thread ")
        .decimal(crash.thread.into());
    if !reporter.label.is_empty() {
        text.add(", label ").printable(reporter.label.as_bytes());
    }
    text.add("\n  at ");
    if lens.symbol > 0 {
        text.printable(&crash.symbol[..lens.symbol]);
    } else {
        text.add("?");
    }
    text.add("+").hex(crash.distance);
    if lens.unit > 0 {
        text.add(" of the unit ")
            .printable(&crash.unit[..lens.unit]);
        text.add(", generation ").decimal(crash.generation);
    }
    text.add("\n  pc ")
        .hex(pc)
        .add(" (w+")
        .hex(crash.place.into())
        .add("), address ")
        .hex(address);
    text.add("\n  inside at generation ").decimal(crash.inside);
    let word = |word| mailbox.word(word).load(Ordering::Relaxed);
    text.add("; the worker has applied generation ")
        .decimal(word(Word::Applied));
    text.add(", in ")
        .decimal(word(Word::Updates))
        .add(" updates");
}

/// Text that is put together without memory of its own; what does not fit is left out.
struct Text<'a> {
    to: &'a mut [u8],
    len: usize,
}

impl Text<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        let free = &mut self.to[self.len..];
        let count = bytes.len().min(free.len());
        free[..count].copy_from_slice(&bytes[..count]);
        self.len += count;
        self
    }

    fn add(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    /// A name that may be any bytes.
    fn printable(&mut self, name: &[u8]) -> &mut Self {
        for byte in name {
            let byte = if byte.is_ascii_control() { b'?' } else { *byte };
            self.bytes(&[byte]);
        }
        self
    }

    fn number(&mut self, mut value: u64, base: u64, at_least: usize) -> &mut Self {
        let mut digits = [b'0'; 20];
        let mut first = digits.len();
        while value > 0 || first > digits.len() - at_least {
            first -= 1;
            digits[first] = b"0123456789abcdef"[(value % base) as usize];
            value /= base;
        }
        self.bytes(&digits[first..])
    }

    fn decimal(&mut self, value: u64) -> &mut Self {
        self.number(value, 10, 1)
    }

    fn hex(&mut self, value: u64) -> &mut Self {
        self.add("0x").number(value, 16, 1)
    }

    fn hex_padded(&mut self, value: u64) -> &mut Self {
        self.number(value, 16, 16)
    }
}

/// Writes what can be written, and does not wait for long for a pipe that nobody reads; nobody is left to be told of the rest.
fn write_all(to: impl std::os::fd::AsFd, mut bytes: &[u8]) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    const PATIENCE: Timespec = Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    let mut ready = [PollFd::new(&to, PollFlags::OUT)];
    // A pipe that is ready takes as much as a report is long at the most.
    if !matches!(poll(&mut ready, Some(&PATIENCE)), Ok(1..)) {
        return;
    }
    while !bytes.is_empty() {
        match rustix::io::write(&to, bytes) {
            Ok(0) => return,
            Ok(count) => bytes = &bytes[count.min(bytes.len())..],
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_says_where() {
        let parse = |said: &str| CrashReports::parse(said.as_bytes());
        assert_eq!(parse(""), CrashReports::default());
        let both = CrashReports {
            to_stderr: true,
            directory: Some("/var/crash".into()),
        };
        assert_eq!(parse("stderr,/var/crash"), both);
    }

    #[test]
    fn numbers_are_written_and_what_does_not_fit_is_left_out() {
        let mut to = [0; 34];
        let mut text = Text {
            to: &mut to,
            len: 0,
        };
        text.decimal(u64::MAX)
            .hex(0)
            .decimal(0)
            .hex(255)
            .printable(b"a\nb");
        assert_eq!(&text.to[..text.len], b"184467440737095516150x000xffa?b");
        text.hex_padded(1);
        assert_eq!(&to, b"184467440737095516150x000xffa?b000");
    }
}
