//! The barrier of which threads execute nothing, on the processors that there are: who enters stores a pin and looks at the head,
//! without a fence, and who looks at pins has every processor execute one first (membarrier).
//!
//! A store is seen by others once it has left the processor's store buffer, which takes long if stores before it miss the
//! caches. So the thread that enters does it behind such. Two processes share a head, a pin and a word that stands for text.

mod common;

use std::fs::File;
use std::hint::{black_box, spin_loop};
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use common::noise::Noise;
use common::process::PATIENCE;
use common::role;
use common::scratch::Scratch;
use jitcast::runtime::pin;
use rustix::mm::{MapFlags, ProtFlags, mmap};
use rustix::thread::{MembarrierCommand, membarrier};

/// The role of the process that enters.
const ENTERS: &str = "enters behind stores that miss the caches";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(ENTERS, enter)]);
}

/// What both processes share; each word in a cache line of its own.
#[derive(Clone, Copy)]
enum Word {
    /// The round that has begun: the generation that is published.
    Round,
    Head,
    Pin,
    /// The generation whose text it is.
    Text,
    /// The round whose pin was looked at, and whose text was reused if nobody was seen inside.
    Looked,
    /// The round that has ended.
    Left,
    /// How often text was reused under the thread that was inside.
    Missed,
}

#[derive(Clone, Copy)]
struct Shared(NonNull<AtomicU64>);

impl Shared {
    fn map(file: &File) -> Self {
        let (len, prot) = (4096, ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a new mapping, which is never unmapped, of a file of this length that nobody makes shorter.
        let at = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                prot,
                MapFlags::SHARED,
                file.as_fd(),
                0,
            )
        };
        Self(NonNull::new(at.unwrap().cast()).unwrap())
    }

    fn word(&self, word: Word) -> &AtomicU64 {
        // SAFETY: within the page.
        let at = unsafe { self.0.add(word as usize * 16) };
        // SAFETY: aligned, mapped for good, and all accesses are atomic, in both processes.
        unsafe { at.as_ref() }
    }

    /// Waits for `word` to be `value`. Where processors are scarce the other process needs this one's.
    fn wait(&self, word: Word, value: u64, deadline: Instant) {
        let mut looks = 0u32;
        while self.word(word).load(Ordering::Acquire) != value {
            looks += 1;
            if looks.is_multiple_of(2000) {
                assert!(
                    Instant::now() < deadline,
                    "the other process does not go on"
                );
                std::thread::yield_now();
            }
            spin_loop();
        }
    }
}

/// How many stores are on their way: fewer than a store buffer has room for.
const STORES: usize = 16;

/// The role: is inside in each round, unless it sees that something new was published, until round 0 comes.
fn enter(path: &str) {
    membarrier(MembarrierCommand::RegisterGlobalExpedited).unwrap();
    let shared = Shared::map(&File::options().read(true).write(true).open(path).unwrap());
    // Larger than what processors cache.
    let cold: Vec<_> = (0..16 << 20).map(AtomicU64::new).collect();
    let mut noise = Noise(7);
    let deadline = Instant::now() + 4 * PATIENCE;
    role::report("ready");
    for round in 1.. {
        let mut places = [0; STORES];
        places.fill_with(|| noise.below(cold.len() as u64) as usize);
        let cold = black_box(&cold[..]);
        let mut looks = 0u32;
        loop {
            match shared.word(Word::Round).load(Ordering::Acquire) {
                0 if round > 1 => return,
                now if now == round => break,
                _ => spin_loop(),
            }
            looks += 1;
            if looks.is_multiple_of(2000) {
                assert!(Instant::now() < deadline, "no round {round}");
                std::thread::yield_now();
            }
        }
        for place in places {
            cold[place].store(round, Ordering::Relaxed);
        }
        let head = pin::enter(
            shared.word(Word::Pin),
            round,
            shared.word(Word::Head),
            false,
        );
        if head == round {
            // Inside, as long as it takes the other one to look, and to reuse what it takes for free.
            shared.wait(Word::Looked, round, deadline);
            if shared.word(Word::Text).load(Ordering::Acquire) != round {
                shared.word(Word::Missed).fetch_add(1, Ordering::Relaxed);
            }
        }
        pin::leave(shared.word(Word::Pin), 0);
        shared.word(Word::Left).store(round, Ordering::Release);
    }
}

/// Publishes, looks at the pin and reuses text, round after round, until `rounds` are done or one pin has been missed: how many
/// were.
fn missed(rounds: u64, barrier: bool) -> u64 {
    let scratch = Scratch::new();
    let path = scratch.write("shared", [0; 4096]);
    let shared = Shared::map(&File::options().read(true).write(true).open(&path).unwrap());
    let mut thread = role::start(ENTERS, &path);
    assert_eq!(role::next_report(&mut thread), "ready");
    let mut noise = Noise(11);
    let deadline = Instant::now() + PATIENCE;
    let missed = || shared.word(Word::Missed).load(Ordering::Relaxed);
    for round in 1..=rounds {
        shared.word(Word::Head).store(round, Ordering::Relaxed);
        shared.word(Word::Text).store(round, Ordering::Relaxed);
        shared.word(Word::Round).store(round, Ordering::Release);
        (0..noise.below(400)).for_each(|_| spin_loop());
        // Generation `round + 1` retires the text.
        shared.word(Word::Head).store(round + 1, Ordering::Release);
        if barrier {
            membarrier(MembarrierCommand::GlobalExpedited).unwrap();
        }
        let oldest = pin::oldest([shared.word(Word::Pin)].into_iter());
        if oldest.is_none_or(|oldest| oldest > round) {
            shared.word(Word::Text).store(round + 1, Ordering::Relaxed);
        }
        shared.word(Word::Looked).store(round, Ordering::Release);
        shared.wait(Word::Left, round, deadline);
        if missed() > 0 {
            break;
        }
    }
    shared.word(Word::Round).store(0, Ordering::Release);
    let missed = missed();
    thread.finish().succeeded();
    missed
}

/// Whether this machine can show it.
fn is_shown() -> bool {
    let several = std::thread::available_parallelism().is_ok_and(|count| count.get() > 1);
    let allowed = membarrier(MembarrierCommand::GlobalExpedited).is_ok();
    if !(several && allowed) {
        eprintln!("SKIPPED: one processor only, or membarrier is forbidden");
    }
    several && allowed
}

#[test]
fn a_pin_whose_store_is_under_way_is_seen() {
    if is_shown() {
        assert_eq!(missed(5000, true), 0);
    }
}

/// The story: without membarrier, text is reused under a thread whose pin is still in its store buffer.
#[test]
fn leaving_the_membarrier_out_is_noticed() {
    if is_shown() {
        assert_eq!(missed(u64::MAX - 1, false), 1, "no pin was missed");
    }
}
