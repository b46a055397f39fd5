//! Forks: a child is a worker of its own from before its first instruction.
//!
//! Nobody can ask in a fork handler, so a mailbox and a connection for the next child lie ready ([`crate::link`]), known to the
//! compiler process. Before the fork it is pinned at the generation that the forking thread is inside at, or else at what is
//! applied; the child maps it in the place of its parent's, whose pins it leaves alone. Private data, slots and handles are the
//! parent's, copied, so no constructor runs again. Invariant: while the fork is under way nothing is applied, and from the moment
//! at which the child exists some pin that the compiler process sees holds what it may run.
//!
//! A worker that attaches later is held as it is, too: a lock that another thread had would never be free in the child.
//!
//! A child without a mailbox (the compiler process is gone, or the descriptors are), or of a raw clone(2), which runs no handlers,
//! finds the page wiped that guards compare with, and is told that it is not attached.

use std::cell::RefCell;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, Once, PoisonError};

use jitcast_runtime::mailbox::{Mailbox, ThreadWord, Word};
use jitcast_runtime::pin;

use crate::debug;
use crate::fault::{Fault, seeded};
use crate::late::{self, Late};
use crate::life::Life;
use crate::link::{HeldTalk, Spare};
use crate::startup::protect;
use crate::thread_record;
use crate::trap;
use crate::unwind::windows;
use crate::worker::{Inner, State};

/// A worker whose process is about to fork.
struct Forking {
    // Declared, and so dropped, before the worker that they belong to.
    talk: HeldTalk<'static>,
    state: MutexGuard<'static, State>,
    worker: Arc<Inner>,
    life: Life,
    /// The record of the forking thread, and its pin before the fork; and whether it had one.
    thread: u32,
    pin: u64,
    known: bool,
    spare: Option<Spare>,
}

/// A worker that attaches later.
struct Attaching {
    // Declared, and so dropped, before the worker that it belongs to.
    _held: late::Held<'static>,
    _worker: Arc<Late>,
}

/// What a fork holds on to.
struct Fork {
    workers: Vec<Forking>,
    _late: Vec<Attaching>,
    _late_list: MutexGuard<'static, late::List>,
    _list: MutexGuard<'static, trap::List>,
    _windows: MutexGuard<'static, ()>,
    _handlers: MutexGuard<'static, protect::Previous>,
    _debug: debug::Listed,
}

thread_local! {
    static FORK: RefCell<Option<Fork>> = const { RefCell::new(None) };
}

/// Makes children of this process workers, from now on.
pub(crate) fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: functions of this library, which is never unloaded (a worker's threads hold it). Without room for handlers
        // children are told that they are not attached.
        let _ = unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
    });
}

extern "C" fn before() {
    // First: who attaches takes the locks of the worker that comes of it while it holds this.
    let late: Vec<_> = late::workers().into_iter().filter_map(keep).collect();
    let known = trap::workers();
    let mut workers = Vec::with_capacity(known.len());
    for worker in known {
        // One that forks in a constructor holds the state itself, and its child is no worker.
        if worker.is_attached_here() && worker.starting().here().is_none() {
            workers.extend(hold(worker));
        }
    }
    let fork = Fork {
        workers,
        _late: late,
        _late_list: late::lock_list(),
        _list: trap::lock_list(),
        _windows: windows::lock_changes(),
        _handlers: protect::lock(),
        _debug: debug::lock_list(),
    };
    let _ = FORK.try_with(|place| place.replace(Some(fork)));
}

/// Holds a worker that attaches later as it is.
fn keep(worker: Arc<Late>) -> Option<Attaching> {
    let held = worker.hold()?;
    // SAFETY: what it locks lies in the worker, which is kept beside it, and outlives it.
    let held = unsafe { core::mem::transmute::<late::Held<'_>, late::Held<'static>>(held) };
    Some(Attaching {
        _held: held,
        _worker: worker,
    })
}

/// Holds a worker as it is, and pins what its child may run.
fn hold(worker: Arc<Inner>) -> Option<Forking> {
    let mut state = worker
        .state()
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let mut talk = worker.link().talk();
    let spare = worker.link().take_ahead(&mut talk);
    let (thread, known) = match thread_record::record_of(&worker) {
        Some(thread) => (thread, true),
        None => {
            worker.release_ended_threads();
            (worker.mailbox().claim(this_thread())?, false)
        }
    };
    let word = worker.mailbox().thread(thread, ThreadWord::Pin);
    let before = word.load(Ordering::Relaxed);
    if before == 0 {
        // An error leaves the pin at 0: then nothing of what was applied can be run, and the child is not attached.
        let _ = worker.enter_held(&mut state, thread);
    }
    let pinned = word.load(Ordering::Relaxed);
    let spare = spare.filter(|_| pinned != 0);
    if let Some(spare) = &spare {
        copy(&worker, &spare.mailbox, thread, pinned);
    }
    let life = worker.life().save(thread);
    // SAFETY: the state lies in the worker, which is kept beside the guard, and outlives it.
    let state =
        unsafe { core::mem::transmute::<MutexGuard<'_, State>, MutexGuard<'static, State>>(state) };
    // SAFETY: as for the state.
    let talk = unsafe { core::mem::transmute::<HeldTalk<'_>, HeldTalk<'static>>(talk) };
    Some(Forking {
        talk,
        state,
        worker,
        life,
        thread,
        pin: before,
        known,
        spare,
    })
}

/// Fills the mailbox of a child whose only thread, of record `thread`, begins inside at `generation`.
fn copy(worker: &Inner, to: &Mailbox, thread: u32, generation: u64) {
    for word in [
        Word::Fenced,
        Word::Applied,
        Word::Base,
        Word::Missing,
        Word::Failed,
        Word::Object,
        Word::Mapped,
        Word::Wanted,
    ] {
        let value = worker.mailbox().word(word).load(Ordering::Relaxed);
        to.word(word).store(value, Ordering::Relaxed);
    }
    to.thread(thread, ThreadWord::Tid)
        .store(this_thread(), Ordering::Relaxed);
    to.word(Word::Threads)
        .store(u64::from(thread) + 1, Ordering::Release);
    if seeded(Fault::ChildUnpinned) {
        return;
    }
    // By a thread that is inside, and leaves only after the fork.
    pin::hand_over(
        to.thread(thread, ThreadWord::Pin),
        generation,
        to.word(Word::HandedOver),
    );
}

extern "C" fn in_parent() {
    let fork = FORK.try_with(RefCell::take).ok().flatten();
    let Some(Fork {
        workers,
        _late,
        _late_list,
        _list,
        _windows,
        _handlers,
        _debug,
    }) = fork
    else {
        return;
    };
    drop((_late_list, _list, _windows, _handlers, _debug));
    for forking in workers {
        let Forking {
            mut talk,
            state,
            worker,
            thread,
            pin,
            known,
            spare,
            ..
        } = forking;
        // The child has its own by now; if there is none, its connection ends with this.
        drop(spare);
        if known {
            pin::leave(worker.mailbox().thread(thread, ThreadWord::Pin), pin);
        } else {
            worker.release_thread(thread);
        }
        worker.link().ask_ahead(&mut talk);
        drop((state, talk));
    }
}

extern "C" fn in_child() {
    let fork = FORK.try_with(RefCell::take).ok().flatten();
    let Some(Fork {
        workers,
        _late,
        _late_list,
        _list,
        _windows,
        _handlers,
        _debug,
    }) = fork
    else {
        return;
    };
    drop((_late_list, _list, _windows, _handlers, _debug));
    for forking in workers {
        let Forking {
            mut talk,
            mut state,
            worker,
            life,
            thread,
            pin,
            known,
            spare,
        } = forking;
        if let Some(spare) = spare
            && take_over(&worker, &spare, thread).is_ok()
        {
            worker.link().begin_anew(&mut talk);
            worker.set_number(spare.number);
            worker.life().restore(&life, thread);
            worker.open_gate(state.applied);
            worker.await_seat(&mut state);
            if state.tools.begin_anew() {
                // The next guard makes files of its own.
                worker.close_gate();
            }
            if known && !seeded(Fault::ChildUnpinned) {
                pin::leave(worker.mailbox().thread(thread, ThreadWord::Pin), pin);
            } else if !known {
                worker.release_thread(thread);
            }
        } else {
            let_go(&worker);
        }
        drop((talk, state));
    }
}

/// The parent's mailbox is none of this child's, which is no worker: else it would seem to the compiler process that the parent
/// lives as long as the child.
fn let_go(worker: &Inner) {
    worker.link().let_go();
    // SAFETY: this thread is the only one of the process.
    let _ = unsafe { worker.mailbox().forget() };
}

fn take_over(worker: &Inner, spare: &Spare, thread: u32) -> std::io::Result<()> {
    worker.link().take_over(spare)?;
    // SAFETY: this thread is the only one of the process.
    unsafe { worker.mailbox().replace(spare.descriptor()?) }?;
    let tid = worker.mailbox().thread(thread, ThreadWord::Tid);
    tid.store(this_thread(), Ordering::Relaxed);
    worker.barriers().register_again();
    Ok(())
}

fn this_thread() -> u64 {
    rustix::thread::gettid()
        .as_raw_nonzero()
        .get()
        .unsigned_abs()
        .into()
}
