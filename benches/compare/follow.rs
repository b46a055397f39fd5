//! Followers: worker processes that call the newest version of a function, and tell when they first got its result.
//!
//! Between batches a follower sleeps, so contestants whose turn it is not take no processor from the one whose turn it is.

use std::path::PathBuf;
use std::sync::atomic::{AtomicPtr, Ordering};

use jitcast::runtime::header::Control;
use jitcast::runtime::sys;
use jitcast::worker::Worker;
use serde::{Deserialize, Serialize};

use crate::board::{self, Board, Times};
use crate::common::attach;
use crate::jit;
use crate::library::{self, Adds, Library, adds_at};
use crate::process::Pinned;
use crate::rows::functions;

/// How a follower learns of a version, and gets to call it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Means {
    /// A word tells; a record in a ring says where the version is, whose text was just written, and the function is called
    /// through a slot. Nobody who brings new code can do with less.
    Bare {
        /// Of memory with the code of the versions.
        text: String,
        /// The clock is read when the word tells, too.
        watched: bool,
    },
    /// A guard tells, as in every host.
    Jitcast {
        socket: String,
        others: Others,
        /// The head is watched, too, to know when something is new.
        watched: bool,
    },
    /// A word tells; the function is in a library of its own.
    Library { folder: PathBuf, count: u64 },
    /// A word tells; the process compiles that many functions for itself.
    CraneliftJit { functions: usize },
}

/// What the other threads of a worker do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Others {
    /// There are none.
    None,
    /// Three have called published code, and sleep.
    Idle,
    /// One of three sleeps inside a guard.
    Inside,
}

/// The role.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Follow {
    pub(crate) means: Means,
    /// Sleeps until it is woken, instead of looking again and again.
    pub(crate) asleep: bool,
    pub(crate) board: String,
    pub(crate) number: usize,
    pub(crate) cpu: usize,
}

pub(crate) fn play(role: &Follow) {
    let _pinned = Pinned::to(role.cpu);
    let board = Board::open(&role.board);
    let mut follower: Box<dyn FnMut(u64) -> Times + '_> = match &role.means {
        Means::Bare { text, watched } => bare(&board, text, *watched, role.asleep),
        Means::Library { folder, count } => {
            let (board, asleep) = (&board, role.asleep);
            Box::new(move |event| {
                await_head(board, event, asleep);
                open(&library::c_path(folder, event % count))
            })
        }
        Means::CraneliftJit { functions } => {
            let (board, asleep, isa) = (&board, role.asleep, jit::isa());
            Box::new(move |event| {
                await_head(board, event, asleep);
                compile(&isa, &functions::text(*functions, event))
            })
        }
        Means::Jitcast {
            socket,
            others,
            watched,
        } => {
            let worker = attach(socket);
            keep_company(&worker, *others);
            // One looks when it was published, for all: others follow on its processor, and to look is no part of what is measured.
            jitcast(worker, *watched, role.asleep, role.number == 0)
        }
    };
    let mut batch = 0;
    loop {
        batch = board.await_batch(batch);
        let ready = Times {
            published_ns: None,
            noticed_ns: 0,
            called_ns: 0,
        };
        board.tell(role.number, 0, ready);
        for event in 1..=board.events().load(Ordering::Relaxed) {
            let times = follower(event);
            board.tell(role.number, event, times);
        }
    }
}

/// Waits until the head is `event`.
fn await_head(board: &Board, event: u64, asleep: bool) {
    while board.head().load(Ordering::Acquire) != event {
        if asleep {
            board::sleep(board.head(), event - 1);
        } else {
            std::hint::spin_loop();
        }
    }
}

/// Versions that a bare text has room for, a cache line each: when one is written, no processor has its line for long.
pub(crate) const BARE_VERSIONS: u64 = 1 << 16;

/// Distance between versions in a bare text, bytes.
pub(crate) const BARE_VERSION_BYTES: u64 = 64;

/// The code of version `event`, `lea bonus(%rdi),%rax; ret`, as one word.
pub(crate) fn bare_code(event: u64) -> u64 {
    let bonus = library::bonus(event) as u8;
    u64::from_le_bytes([0x48, 0x8d, 0x47, bonus, 0xc3, 0xcc, 0xcc, 0xcc])
}

fn bare<'a>(
    board: &'a Board,
    text: &str,
    watched: bool,
    asleep: bool,
) -> Box<dyn FnMut(u64) -> Times + 'a> {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    let text = std::fs::File::open(text).unwrap();
    let len_bytes = (BARE_VERSIONS * BARE_VERSION_BYTES) as usize;
    let flags = MapFlags::SHARED | MapFlags::POPULATE;
    let prot = ProtFlags::READ | ProtFlags::EXEC;
    // SAFETY: a mapping at an address of the kernel's choice touches no memory that is in use.
    let base = unsafe { mmap(std::ptr::null_mut(), len_bytes, prot, flags, &text, 0) }.unwrap();
    let base = base.cast_const().cast::<()>();
    let slot = AtomicPtr::new(std::ptr::null_mut::<()>());
    Box::new(move |event| {
        await_head(board, event, asleep);
        let noticed_ns = watched.then(sys::monotonic_ns);
        let [number, at] = board.record(event);
        assert_eq!(number.load(Ordering::Relaxed), event);
        let at = at.load(Ordering::Relaxed) as usize;
        slot.store(base.wrapping_byte_add(at).cast_mut(), Ordering::Release);
        let function = adds_at(std::hint::black_box(&slot).load(Ordering::Acquire));
        let result = function(0);
        let called_ns = sys::monotonic_ns();
        assert_eq!(result, i64::from(library::bonus(event)));
        Times {
            published_ns: None,
            noticed_ns: noticed_ns.unwrap_or(called_ns),
            called_ns,
        }
    })
}

/// Opens a library, calls its function, and closes it again after the clock was read.
fn open(path: &std::ffi::CStr) -> Times {
    let noticed_ns = sys::monotonic_ns();
    let library = Library::open(path);
    std::hint::black_box(library.adds(c"adds")(0));
    let called_ns = sys::monotonic_ns();
    Times {
        published_ns: None,
        noticed_ns,
        called_ns,
    }
}

/// Compiles, and calls one function.
fn compile(isa: &jit::Isa, text: &str) -> Times {
    let noticed_ns = sys::monotonic_ns();
    let jit = jit::Jit::compile(isa, text);
    std::hint::black_box(adds_at(jit.address("adds"))(0));
    let called_ns = sys::monotonic_ns();
    Times {
        published_ns: None,
        noticed_ns,
        called_ns,
    }
}

fn jitcast(
    worker: Worker,
    watched: bool,
    asleep: bool,
    dates: bool,
) -> Box<dyn FnMut(u64) -> Times> {
    let guard = worker.enter().unwrap();
    let function = worker.function::<Adds>(&guard, "adds").unwrap();
    let mut last = function.call(&guard, 0);
    let mut seen = guard.generation();
    drop(guard);
    Box::new(move |_| {
        let mut noticed_ns = None;
        if watched {
            let control = Control::new(worker.window().control()).unwrap();
            while control.head_word().load(Ordering::Acquire) == seen {
                std::hint::spin_loop();
            }
            noticed_ns = Some(sys::monotonic_ns());
        }
        loop {
            if asleep {
                worker.wait(seen, None);
                noticed_ns.get_or_insert_with(sys::monotonic_ns);
            }
            let guard = worker.enter().unwrap();
            let result = function.call(&guard, 0);
            let called_ns = sys::monotonic_ns();
            seen = guard.generation();
            if result != last {
                last = result;
                let published_ns = dates.then(|| worker.published_ns(&guard).unwrap());
                return Times {
                    published_ns,
                    noticed_ns: noticed_ns.unwrap_or(called_ns),
                    called_ns,
                };
            }
            drop(guard);
        }
    })
}

/// Starts the other threads of a worker.
fn keep_company(worker: &Worker, others: Others) {
    let count = if others == Others::None { 0 } else { 3 };
    let (ready, all_ready) = std::sync::mpsc::channel();
    for number in 0..count {
        let (worker, ready) = (worker.clone(), ready.clone());
        std::thread::spawn(move || {
            let guard = worker.enter().unwrap();
            let guard = (others == Others::Inside && number == 0).then_some(guard);
            ready.send(()).unwrap();
            loop {
                std::thread::park();
                // Never reached without a wake that nobody sends; what is inside stays so.
                std::hint::black_box(&guard);
            }
        });
    }
    drop(ready);
    all_ready.iter().take(count).for_each(drop);
}
