//! The ring and the directory's index against models of them: a list, and a sorted map.
#![cfg(not(loom))]

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use jitcast_runtime::atomic::AtomicU64;
use jitcast_runtime::directory::Edit;
use jitcast_runtime::geometry::{Area, Geometry, MIN_WINDOW_BYTES, Region};
use jitcast_runtime::heap::{Backing, Heap, Txn};
use jitcast_runtime::memory::{Corrupt, HeapMemory};
use jitcast_runtime::records::{Root, SymbolRecord};
use jitcast_runtime::ring::{RECORD_WORDS, Record, Ring};
use jitcast_runtime::{SegmentOffset, index};
use proptest::prelude::*;
use zerocopy::FromZeros;

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

/// Records are put into their indexes at the end of an edit; it counts and gives up what there would be without that.
#[test]
fn an_edit_sees_what_it_has_changed() {
    let geometry = Geometry::new(MIN_WINDOW_BYTES.into()).unwrap();
    let heap_memory = HeapMemory::new(geometry.shared());
    let mut heap = Heap::new(&geometry);
    let symbol = |size| SymbolRecord {
        key: 7,
        generation: 2,
        size,
        name_len: 1,
        ..SymbolRecord::new_zeroed()
    };
    let mut txn = heap.begin(heap_memory.memory(), &Backed, 2);
    let mut edit = Edit::new(Root::new_zeroed(), SegmentOffset::NONE);
    for size in [1, 2] {
        edit.put_symbol(&mut txn, &symbol(size), "f", "").unwrap();
        assert_eq!(edit.symbol(&txn, 7).map(|found| found.size), Some(size));
    }
    let (root, root_at, _) = edit.finish(&mut txn, || 0).unwrap();
    assert_eq!(root.symbol_count, 1);
    txn.commit();
    // The one record, a node for it, and the root.
    let sizes = [size_of::<SymbolRecord>() + 8, 24, size_of::<Root>()];
    assert_eq!(
        heap.used_bytes(Area::Control),
        sizes.iter().sum::<usize>() as u64
    );

    let mut txn = heap.begin(heap_memory.memory(), &Backed, 3);
    let mut edit = Edit::new(root, root_at);
    edit.remove_symbol(&mut txn, 7);
    assert!(edit.symbol(&txn, 7).is_none());
    edit.remove_symbol(&mut txn, 7);
    let (root, ..) = edit.finish(&mut txn, || 0).unwrap();
    assert_eq!((root.symbol_count, root.symbols), (0, SegmentOffset::NONE));
    txn.commit();
    heap.reclaim(u64::MAX);
    assert_eq!(heap.used_bytes(Area::Control), size_of::<Root>() as u64);
}

/// What happens to the ring.
#[derive(Clone, Debug)]
enum Step {
    /// The writer publishes so many records.
    Publish(u8),
    /// A reader reads the record that is so far behind the head.
    Read(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1u8..8).prop_map(Step::Publish),
        (0u8..40).prop_map(Step::Read)
    ]
}

/// Offsets of a window: some that lie together, some of the ends.
fn place() -> impl Strategy<Value = u32> {
    prop_oneof![
        0u32..64,
        (0u32..64).prop_map(|n| 0x1234_0000 + n * 16),
        (0u32..8).prop_map(|n| n << 29),
        any::<u32>(),
        Just(u32::MAX)
    ]
}

proptest! {
    #[test]
    fn a_ring_keeps_the_newest_records_and_no_others(steps in prop::collection::vec(step(), 1..80)) {
        const PLACES: usize = 16;
        let (head, intent) = (AtomicU64::new(1), AtomicU64::new(1));
        let words: Vec<AtomicU64> = (0..PLACES * RECORD_WORDS).map(|_| AtomicU64::new(0)).collect();
        let ring = Ring::new(&head, &intent, &words);
        let mut published: Vec<Record> = Vec::new();
        for step in steps {
            match step {
                Step::Publish(count) => for _ in 0..count {
                    let generation = published.len() as u64 + 2;
                    let record = std::array::from_fn(|word| generation + (word as u64) * 1_000_003);
                    ring.publish(&record);
                    published.push(record);
                },
                Step::Read(behind) => {
                    let Some(generation) = ring.head().checked_sub(behind.into()).filter(|at| *at >= 2) else {
                        continue;
                    };
                    let expected = (usize::from(behind) < PLACES).then(|| published[generation as usize - 2]);
                    prop_assert_eq!(ring.read(generation), expected);
                }
            }
            prop_assert_eq!(ring.head(), published.len() as u64 + 1);
        }
    }

    #[test]
    fn many_records_at_once_make_the_index_that_they_make_one_by_one(
        batches in prop::collection::vec(
            prop::collection::btree_set(prop_oneof![0u64..2000, (0u64..64).prop_map(|n| n << 58), any::<u64>()], 1..400),
            1..4,
        )
    ) {
        let geometry = Geometry::new(MIN_WINDOW_BYTES.into()).unwrap();
        let mut made = Vec::new();
        for at_once in [false, true] {
            let heap_memory = HeapMemory::new(geometry.shared());
            let memory = heap_memory.memory();
            let mut heap = Heap::new(&geometry);
            let mut root = SegmentOffset::NONE;
            for (batch, generation) in batches.iter().zip(2..) {
                // The first time it comes to nothing.
                for commits in [false, true] {
                    let used = heap.used_bytes(Area::Control);
                    let mut txn = heap.begin(memory, &Backed, generation);
                    let mut record = |_| txn.alloc(Area::Control, 16, 8).unwrap().offset();
                    let records: Vec<_> = batch.iter().map(&mut record).collect();
                    for (record, key) in records.iter().zip(batch) {
                        memory.store(*record, *key);
                        memory.store(SegmentOffset::new(record.get() + 8), generation);
                    }
                    let after = if at_once {
                        let mut changes: Vec<_> = batch.iter().copied().zip(records).collect();
                        index::change(&mut txn, root, &mut changes).unwrap()
                    } else {
                        let insert = |root, record: &SegmentOffset| index::insert(&mut txn, root, *record).unwrap();
                        records.iter().fold(root, insert)
                    };
                    if commits {
                        root = after;
                        txn.commit();
                    } else {
                        drop(txn);
                        prop_assert_eq!(heap.used_bytes(Area::Control), used);
                    }
                }
            }
            for key in batches.iter().flatten() {
                let record = index::get(memory, root, *key).unwrap().unwrap();
                prop_assert_eq!(memory.load(record).unwrap(), *key);
            }
            let nodes = index::nodes(memory, root).unwrap();
            prop_assert!(nodes.windows(2).all(|pair| pair[0].end() <= pair[1].start));
            let mut lens: Vec<_> = nodes.iter().map(|node| node.len_bytes).collect();
            lens.sort_unstable();
            made.push((lens, heap.used_bytes(Area::Control), heap.retired_bytes()));
        }
        prop_assert_eq!(&made[0], &made[1]);
    }

    #[test]
    fn an_index_is_a_map_and_old_roots_keep_their_meaning(
        batches in prop::collection::vec(
            prop::collection::vec((prop_oneof![0u64..40, any::<u64>(), (0u64..4).prop_map(|n| n << 62)], any::<bool>()), 1..30),
            1..12,
        ),
        at_once in prop::collection::btree_set(0usize..12, 0..8),
    ) {
        let geometry = Geometry::new(MIN_WINDOW_BYTES.into()).unwrap();
        let heap_memory = HeapMemory::new(geometry.shared());
        let memory = heap_memory.memory();
        let mut heap = Heap::new(&geometry);
        let (mut root, mut model) = (SegmentOffset::NONE, BTreeMap::new());
        let mut history = Vec::new();
        for (number, batch) in batches.into_iter().enumerate() {
            let generation = number as u64 + 2;
            let mut txn = heap.begin(memory, &Backed, generation);
            let write = |txn: &mut Txn<'_>, key| {
                let record = txn.alloc(Area::Control, 16, 8).unwrap().offset();
                memory.store(record, key);
                memory.store(SegmentOffset::new(record.get() + 8), generation);
                record
            };
            if at_once.contains(&number) {
                // Those that are there already are put in anew, too; some are taken out that were never there.
                let batch: BTreeMap<_, _> = batch.into_iter().collect();
                let mut changes = Vec::new();
                for (key, keep) in batch {
                    if keep {
                        changes.push((key, write(&mut txn, key)));
                        model.insert(key, generation);
                    } else {
                        changes.push((key, SegmentOffset::NONE));
                        model.remove(&key);
                    }
                }
                root = index::change(&mut txn, root, &mut changes).unwrap();
            } else {
                for (key, keep) in batch {
                    if keep {
                        let record = write(&mut txn, key);
                        root = index::insert(&mut txn, root, record).unwrap();
                        model.insert(key, generation);
                    } else {
                        root = index::remove(&mut txn, root, key).unwrap();
                        model.remove(&key);
                    }
                }
            }
            // Each node lies in what is in use, and in nobody else's.
            let nodes = index::nodes(memory, root).unwrap();
            prop_assert!(nodes.windows(2).all(|pair| pair[0].end() <= pair[1].start));
            txn.commit();
            history.push((generation, root, model.clone()));
        }
        // Nothing was reclaimed, so every root must still mean what it meant.
        for (generation, root, model) in &history {
            for applied in [0, generation / 2, *generation] {
                let mut found = BTreeMap::new();
                index::walk(memory, *root, applied, &mut |record| {
                    found.insert(memory.load(record)?, memory.load(SegmentOffset::new(record.get() + 8))?);
                    Ok::<_, Corrupt>(())
                }).unwrap();
                let newer: BTreeMap<_, _> =
                    model.iter().filter(|(_, written)| **written > applied).map(|(k, v)| (*k, *v)).collect();
                prop_assert_eq!(found, newer);
            }
            for key in model.keys() {
                let record = index::get(memory, *root, *key).unwrap().unwrap();
                prop_assert_eq!(memory.load(record).unwrap(), *key);
            }
        }
        // What two of them tell of what changed between them, either way.
        for (_, root, model) in &history {
            for (_, other, others) in &history {
                let mut changed = BTreeMap::new();
                index::changes(memory, *root, *other, &mut |key| {
                    *changed.entry(key).or_insert(0) += 1;
                    Ok::<_, Corrupt>(())
                }).unwrap();
                let keys: BTreeSet<_> = model.keys().chain(others.keys()).collect();
                let differs = |key: &&u64| model.get(key) != others.get(key);
                let expected: BTreeMap<_, _> = keys.into_iter().filter(differs).map(|key| (*key, 1)).collect();
                prop_assert_eq!(changed, expected);
            }
        }
        // And what everybody has left behind is free again.
        let (before, retired) = (heap.used_bytes(Area::Control), heap.retired_bytes());
        heap.reclaim(u64::MAX);
        prop_assert_eq!(heap.used_bytes(Area::Control), before - retired);
    }

    #[test]
    fn a_place_leads_to_the_last_record_before_it(
        places in prop::collection::vec((place(), any::<bool>()), 1..60),
        asked in prop::collection::vec(place(), 20),
    ) {
        let geometry = Geometry::new(MIN_WINDOW_BYTES.into()).unwrap();
        let heap_memory = HeapMemory::new(geometry.shared());
        let memory = heap_memory.memory();
        let mut heap = Heap::new(&geometry);
        let mut txn = heap.begin(memory, &Backed, 2);
        let (mut root, mut model) = (SegmentOffset::NONE, BTreeMap::new());
        for (place, keep) in places {
            let key = index::by_place(SegmentOffset::new(place));
            if keep {
                let record = txn.alloc(Area::Control, 16, 8).unwrap().offset();
                memory.store(record, key);
                root = index::insert(&mut txn, root, record).unwrap();
                model.insert(place, record);
            } else {
                root = index::remove(&mut txn, root, key).unwrap();
                model.remove(&place);
            }
        }
        let known: Vec<u32> = model.keys().flat_map(|place| [*place, place.wrapping_sub(1), place.wrapping_add(1)]).collect();
        for place in asked.into_iter().chain(known) {
            let expected = model.range(..=place).next_back().map(|(_, record)| *record);
            prop_assert_eq!(index::floor(memory, root, SegmentOffset::new(place)), Ok(expected), "{:#x}", place);
        }
    }

    #[test]
    fn a_hostile_index_is_refused_or_read_without_harm(
        words in prop::collection::vec(prop_oneof![any::<u64>(), 0u64..0x4_0000_0000, Just(0x0000_0001_0000_0001)], 64),
        root in 0u32..600, key in any::<u64>(),
    ) {
        let span = Region { start: 0, len_bytes: 512 };
        let heap_memory = HeapMemory::new(span);
        for (at, word) in words.iter().enumerate() {
            heap_memory.memory().store(SegmentOffset::new(at as u32 * 8), *word);
        }
        let _ = index::get(heap_memory.memory(), SegmentOffset::new(root), key);
        let _ = index::floor(heap_memory.memory(), SegmentOffset::new(root), SegmentOffset::new(key as u32));
        let mut changes = 0u32;
        let _ = index::changes(heap_memory.memory(), SegmentOffset::new(root), SegmentOffset::new(key as u32), &mut |_| {
            changes += 1;
            if changes > 10_000 { Err(Corrupt { what: "cycle", at: SegmentOffset::NONE }) } else { Ok(()) }
        });
        let mut visits = 0u32;
        let _ = index::walk(heap_memory.memory(), SegmentOffset::new(root), 0, &mut |at| {
            visits += 1;
            if visits > 10_000 { Err(Corrupt { what: "cycle", at }) } else { Ok(()) }
        });
    }

    #[test]
    fn a_transaction_that_fails_leaves_no_trace(sizes in prop::collection::vec(1u32..5000, 1..40)) {
        let geometry = Geometry::new(MIN_WINDOW_BYTES.into()).unwrap();
        let heap_memory = HeapMemory::new(geometry.shared());
        let mut heap = Heap::new(&geometry);
        let used = |heap: &Heap| Area::ALL.map(|area| heap.used_bytes(area));
        let before = used(&heap);
        let mut txn = heap.begin(heap_memory.memory(), &Backed, 2);
        for (number, size) in sizes.iter().enumerate() {
            let area = Area::ALL[number % Area::COUNT];
            if let Ok(region) = txn.alloc(area, size.next_multiple_of(16), 16)
                && number % 3 == 0
            {
                txn.retire(area, region);
            }
        }
        drop(txn);
        prop_assert_eq!(used(&heap), before);
        prop_assert_eq!(heap.retired_bytes(), 0);
    }
}
