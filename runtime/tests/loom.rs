//! Models of the protocols, explored exhaustively within loom's bounds. Run by
//! `RUSTFLAGS="--cfg loom" cargo test -p jitcast-runtime --release --test loom`.
//!
//! The code under test is the code that runs in shared memory; only the atomics are loom's. Loom has no
//! membarrier, so both halves of that barrier are `SeqCst` fences here, and it executes what the compiler
//! emitted, so a missing *compiler* fence stays invisible.
#![cfg(loom)]

use std::sync::atomic::AtomicUsize;

use jitcast_runtime::atomic::{AtomicU64, Ordering, fence};
use jitcast_runtime::gate::{Door, Gate, HeadPointer, NEVER};
use jitcast_runtime::pin;
use jitcast_runtime::ring::{RECORD_WORDS, Record, Ring};
use loom::sync::Arc;
use loom::thread;

/// Every execution with at most three preemptions: more explode without having found anything new.
fn bounded() -> loom::model::Builder {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder
}

/// Explores `model` and says how many executions that took.
fn explore(name: &str, model: impl Fn() + Sync + Send + 'static) {
    static EXECUTIONS: AtomicUsize = AtomicUsize::new(0);
    let before = EXECUTIONS.load(std::sync::atomic::Ordering::Relaxed);
    bounded().check(move || {
        EXECUTIONS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        model();
    });
    let count = EXECUTIONS.load(std::sync::atomic::Ordering::Relaxed) - before;
    println!("{name}: {count} executions");
}

/// Whether exploring `model` finds a fault.
fn fails(model: impl Fn() + Sync + Send + 'static) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| bounded().check(model))).is_err()
}

/// A ring of two places, so that a third record laps the first.
struct SmallRing {
    head: AtomicU64,
    intent: AtomicU64,
    words: Vec<AtomicU64>,
}

impl SmallRing {
    fn new() -> Self {
        let words = (0..2 * RECORD_WORDS).map(|_| AtomicU64::new(0)).collect();
        Self {
            head: AtomicU64::new(1),
            intent: AtomicU64::new(1),
            words,
        }
    }

    fn ring(&self) -> Ring<'_> {
        Ring::new(&self.head, &self.intent, &self.words)
    }
}

/// Every word tells which generation wrote it.
fn record(generation: u64) -> Record {
    [generation; RECORD_WORDS]
}

#[test]
fn a_reader_sees_a_record_whole_or_learns_that_it_was_lapped() {
    explore("ring", || {
        let shared = Arc::new(SmallRing::new());
        shared.ring().publish(&record(2));
        let writer = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                (3..=4).for_each(|generation| shared.ring().publish(&record(generation)))
            })
        };
        let head = shared.ring().head();
        // The writer laps 2 with 4; whatever is published cannot be missed but by being lapped.
        for generation in [2, head.max(3)]
            .into_iter()
            .filter(|generation| *generation <= head)
        {
            match shared.ring().read(generation) {
                Some(read) => assert_eq!(read, record(generation)),
                None => assert!(generation == 2),
            }
        }
        writer.join().unwrap();
        assert_eq!(shared.ring().head(), 4);
        assert_eq!(shared.ring().read(4), Some(record(4)));
        assert_eq!(shared.ring().read(2), None);
    });
}

/// The story: without the release fence between announcement and record, a reader can copy words of the
/// record that laps it and still read the old announcement.
#[test]
fn a_ring_without_its_fence_is_caught() {
    let publish_without_fence = |ring: &SmallRing, generation: u64| {
        ring.intent.store(generation, Ordering::Relaxed);
        let at = (generation as usize & 1) * RECORD_WORDS;
        for (word, value) in ring.words[at..].iter().zip(record(generation)) {
            word.store(value, Ordering::Relaxed);
        }
        ring.head.store(generation, Ordering::Release);
    };
    assert!(fails(move || {
        let shared = Arc::new(SmallRing::new());
        shared.ring().publish(&record(2));
        let writer = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                (3..=4).for_each(|generation| publish_without_fence(&shared, generation))
            })
        };
        if let Some(read) = shared.ring().read(2) {
            assert_eq!(read, record(2));
        }
        writer.join().unwrap();
    }));
}

/// What the compiler and one thread of a worker share: the head, the pin, and one word of text, which holds
/// the generation whose code it is.
struct Text {
    head: AtomicU64,
    pin: AtomicU64,
    text: AtomicU64,
}

/// The thread runs generation 1's code, which generation 2 retires; the compiler reuses it for generation 3.
fn pin_against_reuse(thread_fence: bool, compiler_fence: bool) {
    let shared = Arc::new(Text {
        head: AtomicU64::new(1),
        pin: AtomicU64::new(0),
        text: AtomicU64::new(1),
    });
    let worker = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            let head = if thread_fence {
                pin::enter(&shared.pin, 1, &shared.head, false)
            } else {
                shared.pin.store(1, Ordering::Relaxed);
                shared.head.load(Ordering::Acquire)
            };
            // Something new: it would be applied, and this text not entered.
            if head == 1 {
                assert_eq!(
                    shared.text.load(Ordering::Relaxed),
                    1,
                    "the text was reused under the guard"
                );
            }
            pin::leave(&shared.pin, 0);
        })
    };
    shared.head.store(2, Ordering::Release);
    if compiler_fence {
        fence(Ordering::SeqCst);
    }
    let oldest = pin::oldest([&shared.pin].into_iter());
    // Retired by generation 2.
    if oldest.is_none_or(|oldest| oldest >= 2) {
        shared.text.store(3, Ordering::Relaxed);
    }
    worker.join().unwrap();
}

#[test]
fn text_is_not_reused_under_a_pin() {
    explore("pin against reuse", || pin_against_reuse(true, true));
}

#[test]
fn leaving_out_either_half_of_the_barrier_is_caught() {
    assert!(
        fails(|| pin_against_reuse(false, true)),
        "the thread's half"
    );
    assert!(
        fails(|| pin_against_reuse(true, false)),
        "the compiler's half"
    );
}

/// A thread copies a word of what another one's pin may hold, and takes it only if that pin is there afterwards. The compiler reuses
/// the memory once the pin is gone.
fn validation_against_reuse(reader_fence: bool, compiler_fence: bool) {
    let shared = Arc::new(Text {
        head: AtomicU64::new(2),
        pin: AtomicU64::new(1),
        text: AtomicU64::new(1),
    });
    let holder = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || pin::leave(&shared.pin, 0))
    };
    let reader = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            let copy = shared.text.load(Ordering::Relaxed);
            if reader_fence {
                pin::before_validation();
            }
            if shared.pin.load(Ordering::Acquire) == 1 {
                assert_eq!(copy, 1, "what was reused passed for what the pin held");
            }
        })
    };
    if pin::oldest([&shared.pin].into_iter()).is_none() {
        if compiler_fence {
            pin::before_reuse();
        }
        shared.text.store(3, Ordering::Relaxed);
    }
    holder.join().unwrap();
    reader.join().unwrap();
}

#[test]
fn what_another_pin_held_is_told_from_what_was_reused() {
    explore("validation", || validation_against_reuse(true, true));
}

#[test]
fn validating_without_either_fence_is_caught() {
    assert!(
        fails(|| validation_against_reuse(false, true)),
        "the reader's"
    );
    assert!(
        fails(|| validation_against_reuse(true, false)),
        "the compiler's"
    );
}

/// A thread that is inside starts another, which is inside too, and leaves. The compiler looks at the new one's pin
/// first.
fn hand_over_against_reuse(settles: bool) {
    struct Shared {
        giver: AtomicU64,
        taker: AtomicU64,
        handed: AtomicU64,
        text: AtomicU64,
    }
    let shared = Arc::new(Shared {
        giver: AtomicU64::new(1),
        taker: AtomicU64::new(0),
        handed: AtomicU64::new(0),
        text: AtomicU64::new(1),
    });
    let threads = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            pin::hand_over(&shared.taker, 1, &shared.handed);
            pin::leave(&shared.giver, 0);
            // From here on it is the new thread that runs.
            assert_eq!(
                shared.text.load(Ordering::Relaxed),
                1,
                "reused under the new thread"
            );
            pin::leave(&shared.taker, 0);
        })
    };
    let look = || pin::oldest([&shared.taker, &shared.giver].into_iter());
    let oldest = if settles {
        let handed = || shared.handed.load(Ordering::Acquire);
        pin::settled(handed, 2, look).unwrap_or(Some(1))
    } else {
        look()
    };
    if oldest.is_none() {
        shared.text.store(2, Ordering::Relaxed);
    }
    threads.join().unwrap();
}

#[test]
fn a_pin_that_is_handed_over_is_not_missed() {
    explore("pin handed over", || hand_over_against_reuse(true));
}

#[test]
fn a_look_that_is_not_repeated_is_caught() {
    assert!(fails(|| hand_over_against_reuse(false)));
}

/// Two mailboxes: a thread that is inside forks, so that its child begins inside with a mailbox of its own, and leaves. The
/// compiler process looks at the child's first, and at each as it always does. `looks_again`: at all of them, if a pin was
/// handed over meanwhile, whoever's.
fn fork_against_reuse(looks_again: bool) {
    struct Mailbox {
        pin: AtomicU64,
        handed: AtomicU64,
    }
    impl Mailbox {
        fn new(pin: u64) -> Self {
            let (pin, handed) = (AtomicU64::new(pin), AtomicU64::new(0));
            Self { pin, handed }
        }

        fn handed(&self) -> u64 {
            self.handed.load(Ordering::Acquire)
        }

        fn oldest_pin(&self) -> Option<u64> {
            let look = || pin::oldest([&self.pin].into_iter());
            pin::settled(|| self.handed(), 2, look).unwrap_or(Some(1))
        }
    }
    let mailboxes = Arc::new([Mailbox::new(0), Mailbox::new(1)]);
    let text = Arc::new(AtomicU64::new(1));
    let forking = {
        let (mailboxes, text) = (Arc::clone(&mailboxes), Arc::clone(&text));
        thread::spawn(move || {
            let [child, parent] = &*mailboxes;
            pin::hand_over(&child.pin, 1, &child.handed);
            pin::leave(&parent.pin, 0);
            let found = text.load(Ordering::Relaxed);
            assert_eq!(found, 1, "reused under the child");
            pin::leave(&child.pin, 0);
        })
    };
    let look = || mailboxes.iter().filter_map(Mailbox::oldest_pin).min();
    let oldest = if looks_again {
        let handed = || mailboxes.iter().map(Mailbox::handed).sum::<u64>();
        pin::settled(handed, 2, look).unwrap_or(Some(1))
    } else {
        look()
    };
    if oldest.is_none() {
        text.store(2, Ordering::Relaxed);
    }
    forking.join().unwrap();
}

#[test]
fn a_pin_that_is_handed_over_to_another_mailbox_is_not_missed() {
    explore("pin handed over to a child", || fork_against_reuse(true));
}

#[test]
fn a_look_at_all_mailboxes_that_is_not_repeated_is_caught() {
    assert!(fails(|| fork_against_reuse(false)));
}

/// How a commit goes wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slip {
    Nothing,
    /// The root is stored without release.
    RootRelaxed,
    /// The head is.
    HeadRelaxed,
    /// The head is stored before the root.
    HeadFirst,
}

/// The compiler process commits generation 2: it writes a node, stores the root that refers to it, and publishes the record. One
/// worker is told by the head, and another one, which attaches, by nobody.
fn commit_and_read(slip: Slip) {
    struct Shared {
        ring: SmallRing,
        root: AtomicU64,
        /// The nodes of the roots 0 and 1: the generation that wrote each.
        nodes: [AtomicU64; 2],
    }
    impl Shared {
        fn publish(&self, slip: Slip) {
            if slip != Slip::HeadRelaxed {
                return self.ring.ring().publish(&record(2));
            }
            // As `Ring::publish`, but for the last store.
            self.ring.intent.store(2, Ordering::Relaxed);
            fence(Ordering::Release);
            for (word, value) in self.ring.words.iter().zip(record(2)) {
                word.store(value, Ordering::Relaxed);
            }
            self.ring.head.store(2, Ordering::Relaxed);
        }

        /// The generation of the directory that there is.
        fn read(&self) -> u64 {
            let root = self.root.load(Ordering::Acquire);
            let generation = self.nodes[root as usize].load(Ordering::Relaxed);
            assert_eq!(generation, root + 1, "what the root refers to is not there");
            generation
        }
    }
    let shared = Arc::new(Shared {
        ring: SmallRing::new(),
        root: AtomicU64::new(0),
        nodes: [AtomicU64::new(1), AtomicU64::new(0)],
    });
    let told = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            let head = shared.ring.ring().head();
            assert!(shared.read() >= head, "a directory older than the head");
            if head == 2 {
                assert_eq!(shared.ring.ring().read(2), Some(record(2)));
            }
        })
    };
    let attaches = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            shared.read();
        })
    };
    shared.nodes[1].store(2, Ordering::Relaxed);
    if slip == Slip::HeadFirst {
        shared.publish(slip);
    }
    // As `Control::commit`.
    let release = match slip {
        Slip::RootRelaxed => Ordering::Relaxed,
        _ => Ordering::Release,
    };
    shared.root.store(1, release);
    if slip != Slip::HeadFirst {
        shared.publish(slip);
    }
    told.join().unwrap();
    attaches.join().unwrap();
}

#[test]
fn a_commit_is_seen_whole_by_root_and_by_head() {
    explore("commit", || commit_and_read(Slip::Nothing));
}

#[test]
fn a_commit_without_its_order_is_caught() {
    for slip in [Slip::RootRelaxed, Slip::HeadRelaxed, Slip::HeadFirst] {
        assert!(fails(move || commit_and_read(slip)), "{}", slip as u8);
    }
}

/// A worker with a thread inside at generation 1 goes on to another object, in which generation 2 has retired what that
/// thread runs. `says_first`: that its pins hold the object, before it looks at the floor; `looks_again`: the compiler process,
/// at who does, after it has raised the floor.
fn going_on_against_reuse(says_first: bool, looks_again: bool) {
    struct Shared {
        held: AtomicU64,
        pin: AtomicU64,
        floor: AtomicU64,
        text: AtomicU64,
    }
    let shared = Arc::new(Shared {
        held: AtomicU64::new(0),
        pin: AtomicU64::new(1),
        floor: AtomicU64::new(1),
        text: AtomicU64::new(1),
    });
    let worker = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            let look = || shared.floor.load(Ordering::Acquire);
            let floor = if says_first {
                pin::hold(&shared.held, 1, look)
            } else {
                let floor = look();
                pin::hold(&shared.held, 1, || floor)
            };
            // Else it stays where it is.
            if floor <= 1 {
                let text = shared.text.load(Ordering::Relaxed);
                assert_eq!(text, 1, "reused under a worker that has gone on");
            }
            pin::leave(&shared.pin, 0);
        })
    };
    let oldest = || {
        let holds = shared.held.load(Ordering::Acquire) == 1;
        let pins = [&shared.pin].into_iter().filter(|_| holds);
        pin::oldest(pins).unwrap_or(2)
    };
    let announced = oldest();
    shared.floor.store(announced, Ordering::Release);
    fence(Ordering::SeqCst);
    if announced >= 2 && (!looks_again || oldest() >= 2) {
        shared.text.store(3, Ordering::Relaxed);
    }
    worker.join().unwrap();
}

#[test]
fn a_worker_that_goes_on_holds_what_it_finds() {
    explore("going on", || going_on_against_reuse(true, true));
}

#[test]
fn leaving_out_either_half_of_going_on_is_caught() {
    assert!(fails(|| going_on_against_reuse(false, true)));
    assert!(fails(|| going_on_against_reuse(true, false)));
}

/// A worker is at an older object, whose floor nobody raises any more. It applies generation 2, which has retired shared data of
/// generation 1, while a thread enters or stays at that. The compiler process looks at what the worker says it has applied, and at
/// pins. `says_last`: the worker says it once nobody can stay; `looks_last`: at pins, after that; `barrier`: with one in between.
fn saying_what_is_applied(says_last: bool, looks_last: bool, barrier: bool) {
    struct Older {
        applied: AtomicU64,
        staying: AtomicU64,
        head: AtomicU64,
        floor: AtomicU64,
        pin: AtomicU64,
        said: AtomicU64,
        data: AtomicU64,
    }
    let shared = Arc::new(Older {
        applied: AtomicU64::new(1),
        staying: AtomicU64::new(0),
        head: AtomicU64::new(1),
        floor: AtomicU64::new(0),
        pin: AtomicU64::new(0),
        said: AtomicU64::new(1),
        data: AtomicU64::new(1),
    });
    let caller = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            let gate = Gate::new(&shared.applied, &shared.staying);
            let inside = gate.enter(&shared.pin, &shared.head).or_else(|| {
                pin::leave(&shared.pin, 0);
                gate.stay(&shared.pin, &shared.floor)
            });
            if inside == Some(1) {
                let data = shared.data.load(Ordering::Relaxed);
                assert_eq!(data, 1, "reused under a thread at an older object");
            }
            pin::leave(&shared.pin, 0);
        })
    };
    let worker = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            let gate = Gate::new(&shared.applied, &shared.staying);
            shared.head.store(2, Ordering::Release);
            gate.close();
            // Constructors run.
            gate.let_stay(1);
            if !says_last {
                shared.said.store(2, Ordering::Release);
            }
            gate.open(2);
            if says_last {
                shared.said.store(2, Ordering::Release);
            }
        })
    };
    let said = || shared.said.load(Ordering::Acquire);
    let pinned = || pin::oldest([&shared.pin].into_iter()).unwrap_or(2);
    let oldest = if looks_last {
        let said = said();
        if barrier {
            fence(Ordering::SeqCst);
        }
        said.min(pinned())
    } else {
        let pinned = pinned();
        fence(Ordering::SeqCst);
        pinned.min(said())
    };
    if oldest >= 2 {
        shared.data.store(3, Ordering::Relaxed);
    }
    caller.join().unwrap();
    worker.join().unwrap();
}

#[test]
fn a_worker_at_an_older_object_holds_what_it_may_enter_at() {
    explore("older object", || saying_what_is_applied(true, true, true));
}

#[test]
fn saying_it_too_early_or_looking_too_early_is_caught() {
    assert!(fails(|| saying_what_is_applied(false, true, true)));
    assert!(fails(|| saying_what_is_applied(true, false, true)));
    assert!(fails(|| saying_what_is_applied(true, true, false)));
}

/// What a worker's threads share: the gate, a door, the head, a pin, and two cells of functions that a publication replaces together.
/// A cell holds a version, or 16 times the version before it plus the new one: a selector.
struct Cells {
    applied: AtomicU64,
    staying: AtomicU64,
    generation: AtomicU64,
    door_head: HeadPointer,
    never: AtomicU64,
    head: AtomicU64,
    floor: AtomicU64,
    pin: AtomicU64,
    cells: [AtomicU64; 2],
}

/// Generation 1 is applied, and 2 published.
impl Cells {
    fn new() -> Arc<Self> {
        let cells = Arc::new(Self {
            applied: AtomicU64::new(1),
            staying: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            door_head: HeadPointer::new(core::ptr::null_mut()),
            never: AtomicU64::new(NEVER),
            head: AtomicU64::new(1),
            floor: AtomicU64::new(0),
            pin: AtomicU64::new(0),
            cells: [AtomicU64::new(1), AtomicU64::new(1)],
        });
        cells.door().open(1, &cells.head);
        cells
    }

    fn gate(&self) -> Gate<'_> {
        Gate::new(&self.applied, &self.staying)
    }

    fn door(&self) -> Door<'_> {
        Door::new(&self.generation, &self.door_head)
    }

    /// Calls through both cells under one guard, if the thread gets in.
    fn call_both(&self, enter: impl Fn(&Self) -> Option<u64>) {
        let Some(generation) = enter(self).or_else(|| {
            pin::leave(&self.pin, 0);
            self.gate().stay(&self.pin, &self.floor)
        }) else {
            return;
        };
        for cell in &self.cells {
            let found = match cell.load(Ordering::Acquire) {
                version @ 0..16 => version,
                selector if generation < selector % 16 => selector / 16,
                selector => selector % 16,
            };
            assert_eq!(found, generation, "the version of another generation");
        }
        pin::leave(&self.pin, 0);
    }

    /// Applies generation 2.
    fn apply(&self, close: impl Fn(&Self), selects: bool) {
        self.head.store(2, Ordering::Release);
        close(self);
        let inside = self.pin.load(Ordering::Acquire) != 0;
        if inside {
            self.gate().let_stay(1);
        }
        for cell in &self.cells {
            let value = if inside && selects { 16 + 2 } else { 2 };
            cell.store(value, Ordering::Release);
        }
        self.gate().open(2);
        self.door().open(2, &self.head);
        // The last one that is inside at 1 has left: cells lead straight to the new versions.
        fence(Ordering::SeqCst);
        let pin = self.pin.load(Ordering::Acquire);
        if pin == 0 || pin == 2 {
            self.cells
                .iter()
                .for_each(|cell| cell.store(2, Ordering::Release));
        }
    }
}

fn transition(
    enter: impl Fn(&Cells) -> Option<u64> + Copy + Send + Sync + 'static,
    close: impl Fn(&Cells),
    selects: bool,
) {
    let shared = Cells::new();
    let caller = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || (0..2).for_each(|_| shared.call_both(enter)))
    };
    shared.apply(close, selects);
    caller.join().unwrap();
}

/// By the thread's door.
fn enter(cells: &Cells) -> Option<u64> {
    // SAFETY: it was opened and shut with words of `cells`.
    unsafe { cells.door().enter(&cells.pin) }
}

/// By the gate itself, as a thread without a door.
fn enter_by_gate(cells: &Cells) -> Option<u64> {
    cells.gate().enter(&cells.pin, &cells.head)
}

/// As a worker does; its barrier that reaches the other threads is the one that `Gate::close` executes, here.
fn close(cells: &Cells) {
    cells.door().shut(&cells.never);
    cells.gate().close();
}

#[test]
fn calls_under_one_guard_are_of_one_generation() {
    explore("transition", || transition(enter, close, true));
    explore("transition by the gate", || {
        transition(enter_by_gate, close, true)
    });
}

#[test]
fn cells_that_do_not_tell_threads_apart_are_caught() {
    assert!(fails(|| transition(enter, close, false)));
    assert!(fails(|| transition(enter_by_gate, close, false)));
}

#[test]
fn a_transition_without_either_half_of_its_barrier_is_caught() {
    let no_fence = |cells: &Cells| {
        let generation = cells.generation.load(Ordering::Acquire);
        cells.pin.store(generation, Ordering::Relaxed);
        // SAFETY: as in `enter`.
        let head = unsafe { &*cells.door_head.load(Ordering::Acquire) };
        (head.load(Ordering::Acquire) == generation).then_some(generation)
    };
    let no_barrier = |cells: &Cells| {
        cells.door().shut(&cells.never);
        cells.applied.store(0, Ordering::Relaxed);
        cells.staying.store(0, Ordering::Relaxed);
    };
    assert!(
        fails(move || transition(enter, no_barrier, true)),
        "the half of who applies"
    );
}

#[test]
fn a_door_that_opens_too_early_is_caught() {
    let early = |cells: &Cells| {
        close(cells);
        cells.door().open(2, &cells.head);
    };
    assert!(fails(move || transition(enter, early, true)));
}

/// A thread closes the gate to apply something, and reads what generation 1, which is applied, reaches, if the floor lets it; the compiler
/// process reuses that. `pins_first`: the thread pins itself before the gate is closed, which takes the barrier between pin and floor;
/// `looks_again`: the compiler process, at the pin, after it has raised the floor.
fn closing_against_reuse(pins_first: bool, looks_again: bool) {
    struct Shared {
        applied: AtomicU64,
        staying: AtomicU64,
        pin: AtomicU64,
        floor: AtomicU64,
        text: AtomicU64,
    }
    let shared = Arc::new(Shared {
        applied: AtomicU64::new(1),
        staying: AtomicU64::new(0),
        pin: AtomicU64::new(0),
        floor: AtomicU64::new(1),
        text: AtomicU64::new(1),
    });
    let worker = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            let gate = Gate::new(&shared.applied, &shared.staying);
            let pin = || shared.pin.store(1, Ordering::Relaxed);
            if pins_first {
                pin();
            }
            gate.close();
            if !pins_first {
                pin();
            }
            // Else it reads the newest directory.
            if shared.floor.load(Ordering::Acquire) <= 1 {
                let text = shared.text.load(Ordering::Relaxed);
                assert_eq!(text, 1, "reused under a thread that applies");
            }
            pin::leave(&shared.pin, 0);
        })
    };
    let oldest = || pin::oldest([&shared.pin].into_iter()).unwrap_or(2);
    let announced = oldest();
    shared.floor.store(announced, Ordering::Release);
    fence(Ordering::SeqCst);
    if announced >= 2 && (!looks_again || oldest() >= 2) {
        shared.text.store(3, Ordering::Relaxed);
    }
    worker.join().unwrap();
}

#[test]
fn a_thread_that_applies_holds_what_it_reads() {
    explore("closing", || closing_against_reuse(true, true));
}

#[test]
fn leaving_out_either_half_of_closing_is_caught() {
    assert!(fails(|| closing_against_reuse(false, true)));
    assert!(fails(|| closing_against_reuse(true, false)));
}

/// Both cells are led elsewhere in a generation in which nothing is published, as for a worker that is given a seat: only if nobody
/// is inside.
fn rewriting(close: impl Fn(&Cells)) {
    let shared = Cells::new();
    let caller = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            if enter(&shared).is_some() {
                let [one, other] =
                    [0, 1].map(|cell: usize| shared.cells[cell].load(Ordering::Relaxed));
                assert_eq!(one, other, "led elsewhere under a guard");
            }
            pin::leave(&shared.pin, 0);
        })
    };
    close(&shared);
    if shared.pin.load(Ordering::Acquire) == 0 {
        let lead = |cell: &AtomicU64| cell.store(3, Ordering::Relaxed);
        shared.cells.iter().for_each(lead);
    }
    shared.gate().open(1);
    shared.door().open(1, &shared.head);
    caller.join().unwrap();
}

#[test]
fn a_shut_door_keeps_threads_out_though_nothing_is_new() {
    explore("shut door", || rewriting(close));
}

#[test]
fn a_door_that_is_not_shut_is_caught() {
    let open = |cells: &Cells| cells.gate().close();
    assert!(fails(move || rewriting(open)));
}
