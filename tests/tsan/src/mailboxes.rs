//! The runtime's parts by themselves: a directory in which records are replaced, under threads that pin themselves, read, hand pins
//! over to others and leave.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use jitcast_runtime::geometry::{Area, Geometry, MIN_WINDOW_BYTES, Region};
use jitcast_runtime::header::Control;
use jitcast_runtime::heap::{Backing, Heap};
use jitcast_runtime::index;
use jitcast_runtime::mailbox::{FIRST_GENERATION, Mailbox, ThreadWord};
use jitcast_runtime::memory::{HeapMemory, Memory};
use jitcast_runtime::pin;
use jitcast_runtime::ring::RECORD_WORDS;
use jitcast_runtime::segment::create_mailbox;

use crate::tally::{Kind, Tally};

/// How long it publishes.
const DURATION: Duration = Duration::from_secs(2);

/// Threads that read.
const READERS: u64 = 3;

/// Records of the directory.
const KEYS: u64 = 40;

/// Memory that needs no backing.
struct Backed;

impl Backing for Backed {
    fn reserve(&self, _range: Region) -> io::Result<()> {
        Ok(())
    }

    fn fill(&self, _range: Region, _template: Region) -> io::Result<()> {
        Ok(())
    }
}

/// What all threads have.
struct Shared<'a> {
    memory: &'a Memory,
    mailbox: &'a Mailbox,
    stop: AtomicBool,
    tally: &'a Tally,
}

/// Publishes while others read.
pub(crate) fn run(tally: &Tally) {
    let geometry = Geometry::new(MIN_WINDOW_BYTES.into()).expect("within the limits");
    let memory = HeapMemory::new(geometry.shared());
    let (mailbox, _, _) = create_mailbox(1).expect("a mailbox");
    let shared = Shared {
        memory: memory.memory(),
        mailbox: &mailbox,
        stop: AtomicBool::new(false),
        tally,
    };
    thread::scope(|scope| {
        let readers = [(); READERS as usize].map(|()| scope.spawn(|| read(&shared)));
        publish(&shared, &geometry);
        shared.stop.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().expect("a reader does not panic");
        }
    });
    assert_eq!(mailbox.oldest_pin(), None);
}

fn publish(shared: &Shared<'_>, geometry: &Geometry) {
    let control = Control::new(shared.memory).expect("a whole control area");
    let mut heap = Heap::new(geometry);
    let mut root = jitcast_runtime::SegmentOffset::NONE;
    let mut records = [None; KEYS as usize];
    let end = Instant::now() + DURATION;
    for generation in FIRST_GENERATION.. {
        if Instant::now() > end {
            return;
        }
        let mut txn = heap.begin(shared.memory, &Backed, generation);
        let key = generation % KEYS;
        let region = txn.alloc(Area::Control, 64, 8).expect("room");
        let words = [key, generation].map(u64::to_le_bytes).concat();
        shared.memory.write_bytes(region.offset(), &words);
        root = index::insert(&mut txn, root, region.offset()).expect("room");
        if let Some(old) = records[key as usize].replace(region) {
            txn.retire(Area::Control, old);
        }
        let mut record = [0; RECORD_WORDS];
        record[0] = generation;
        control.commit(root);
        control.ring().publish(&record);
        txn.commit();
        // The threads' halves are fences too, since nothing here is registered with membarrier.
        fence(Ordering::SeqCst);
        let before = heap.retired_bytes();
        heap.reclaim(shared.mailbox.oldest_pin().unwrap_or(u64::MAX));
        if heap.retired_bytes() < before {
            shared.tally.count(Kind::Reused);
        }
        // So that a reader catches up, and looks, now and then.
        if generation % 8 == 0 {
            thread::sleep(Duration::from_micros(300));
        }
    }
}

/// Pins a record of this thread's own, and looks at what is published.
fn read(shared: &Shared<'_>) {
    let thread = shared.mailbox.claim(1).expect("a record");
    let word = shared.mailbox.thread(thread, ThreadWord::Pin);
    let control = Control::new(shared.memory).expect("a whole control area");
    let (mut seen, mut looks) = (0, 0u32);
    while !shared.stop.load(Ordering::Relaxed) {
        let head = pin::enter(word, seen, control.head_word(), true);
        if head != seen {
            seen = head;
        } else if seen != 0 {
            check(shared, seen);
            looks += 1;
            if looks.is_multiple_of(16) {
                hand_over(shared, seen);
            }
        }
        pin::leave(word, 0);
    }
    shared.mailbox.release(thread);
}

/// Another thread, which is inside from its beginning.
fn hand_over(shared: &Shared<'_>, generation: u64) {
    let Some(taker) = shared.mailbox.claim_for_another(generation) else {
        return;
    };
    thread::scope(|scope| {
        let taken = scope.spawn(move || {
            check(shared, generation);
            shared.mailbox.release(taker);
        });
        taken.join().expect("a taker does not panic");
    });
    shared.tally.count(Kind::Handed);
}

/// Reads the whole directory, by a thread inside at `generation`.
fn check(shared: &Shared<'_>, generation: u64) {
    let control = Control::new(shared.memory).expect("a whole control area");
    let root = control.root();
    let mut newest = 0;
    let looked = index::walk(shared.memory, root, 0, &mut |at| {
        let written = shared
            .memory
            .load(jitcast_runtime::SegmentOffset::new(at.get() + 8))?;
        newest = newest.max(written);
        Ok::<_, jitcast_runtime::Corrupt>(())
    });
    looked.expect("a directory");
    assert!(newest >= generation, "{newest} at {generation}");
}
