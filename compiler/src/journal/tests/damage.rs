//! Logs that are not what was written: cut off, changed, or made to deceive.

use proptest::prelude::*;

use super::disk::Disk;
use super::{LEAVE_TRAPS, begin, image, options, publish, remove, start, unit};
use crate::journal::log::{Found, Kind, Log};
use crate::journal::storage::Storage;
use crate::journal::{JournalError, LOG};
use crate::{Compiler, StartError};

/// A journal of three publications, and what was there after each.
fn three() -> (Disk, Vec<super::Image>) {
    let disk = Disk::default();
    let compiler = start(&disk, &options()).unwrap();
    let images = (0..3).map(|index| {
        publish(&compiler, index, 0);
        image(&compiler)
    });
    let images = images.collect();
    (disk, images)
}

/// A journal with all that there can be: a base, removals under users, quarantines, rollbacks, canaries.
pub(super) fn eventful() -> Disk {
    let (disk, compiler) = {
        let (disk, _) = three();
        let compiler = start(&disk, &options()).unwrap();
        (disk, compiler)
    };
    publish(&compiler, 1, 1);
    super::compact(&compiler).unwrap();
    begin(&compiler, 1, 2).unwrap();
    begin(&compiler, 2, 2).unwrap();
    compiler.promote("b").unwrap();
    compiler.abort("c").unwrap();
    remove(&compiler, 0).unwrap();
    compiler.quarantine(&["c".to_owned()]).unwrap();
    publish(&compiler, 2, 1);
    compiler.rollback(None, LEAVE_TRAPS).unwrap();
    remove(&compiler, 2).unwrap();
    disk
}

/// Does everything that a publisher can do, wherever it is refused.
fn use_all(compiler: &Compiler) {
    let _ = compiler.rollback(None, LEAVE_TRAPS);
    let oldest = compiler.status().oldest_retained;
    let _ = compiler.rollback(Some(oldest), LEAVE_TRAPS);
    let _ = compiler.restore(&["c".to_owned()]);
    for index in 0..3 {
        let _ = begin(compiler, index, 0);
        let _ = compiler.promote(super::UNITS[index]);
        let _ = begin(compiler, index, 1);
        let _ = compiler.abort(super::UNITS[index]);
    }
    for index in 0..3 {
        let _ = compiler.publish(&[unit(index, 1).clone()]);
    }
    let _ = compiler.quarantine(&["c".to_owned()]);
    for index in 0..3 {
        let _ = remove(compiler, index);
    }
    let _ = super::compact(compiler);
    compiler.status();
}

/// The records of a log, each with its place and the place after it.
pub(super) fn records(disk: &Disk) -> Vec<(Kind, Vec<u8>, u64, u64)> {
    let log = Log::open(disk.open(LOG).unwrap().unwrap()).unwrap();
    let (mut at, mut found) = (Log::start(), Vec::new());
    while let Found::Record(kind, payload, next) = log.read(at).unwrap() {
        found.push((kind, payload, at, next));
        at = next;
    }
    assert_eq!(at, log.len(), "the log is whole");
    found
}

pub(super) fn refusal(disk: &Disk) -> JournalError {
    match start(disk, &options()) {
        Err(StartError::Journal(error)) => error,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("the damage goes unnoticed"),
    }
}

fn check(compiler: &Compiler, expected: &super::Image, what: &str) {
    let found = image(compiler);
    assert!(found == *expected, "{what}: {:?}", found.status);
}

#[test]
fn a_last_record_that_was_torn_anywhere_is_cut_off() {
    let (disk, images) = three();
    let whole = disk.contents(LOG);
    let (_, _, start_of_last, _) = *records(&disk).last().unwrap();
    for len in start_of_last as usize..whole.len() {
        // What a file system may leave behind the end: nothing, or blocks that were never written.
        for tail in [0, 4096] {
            let mut torn = whole[..len].to_vec();
            torn.resize(len + tail, 0);
            disk.overwrite(LOG, &torn);
            let compiler =
                start(&disk, &options()).unwrap_or_else(|error| panic!("{len}: {error}"));
            // Only zeros may have been torn off.
            let is_whole = torn.starts_with(&whole);
            let (left, expected) = if is_whole {
                (whole.len() as u64, &images[2])
            } else {
                (start_of_last, &images[1])
            };
            assert_eq!(disk.contents(LOG).len() as u64, left, "{len}");
            check(&compiler, expected, &len.to_string());
        }
    }
    // It goes on from there.
    disk.overwrite(LOG, &whole[..whole.len() - 1]);
    let compiler = start(&disk, &options()).unwrap();
    let generation = publish(&compiler, 2, 1);
    let expected = image(&compiler);
    drop(compiler);
    let compiler = start(&disk, &options()).unwrap();
    assert_eq!(compiler.status().generation, generation);
    check(&compiler, &expected, "published after the cut");
}

#[test]
fn a_record_that_changed_before_others_is_refused() {
    let (disk, _) = three();
    let whole = disk.contents(LOG);
    let records = records(&disk);
    let (_, before_last) = records.split_last().unwrap();
    for (kind, _, at, next) in before_last {
        for byte in (*at as usize..*next as usize).step_by(61) {
            let mut changed = whole.clone();
            changed[byte] ^= 1 << (byte % 8);
            if changed[byte..]
                .iter()
                .zip(&whole[byte..])
                .all(|(a, b)| a == b)
            {
                continue;
            }
            disk.overwrite(LOG, &changed);
            if *kind == Kind::Publication && is_padding(&whole, *at, byte) {
                continue;
            }
            let error = refusal(&disk);
            let JournalError::Damaged { at: found, .. } = &error else {
                panic!("{error}");
            };
            assert!(*found == *at || *kind == Kind::Opening, "{error}");
            let text = error.to_string();
            for phrase in [
                "the-journal",
                "is damaged",
                "after generation",
                "help: put a copy",
            ] {
                assert!(text.contains(phrase), "`{phrase}` in {text}");
            }
            assert_eq!(disk.contents(LOG), changed, "it is left as it is");
        }
    }
}

/// Whether a byte of the record at `at` fills it up to a multiple of eight: it means nothing.
fn is_padding(log: &[u8], at: u64, byte: usize) -> bool {
    let at = at as usize;
    let len = u64::from_le_bytes(log[at + 8..at + 16].try_into().unwrap());
    byte >= at + 24 + len as usize
}

#[test]
fn what_is_no_log_is_left_alone() {
    let (disk, _) = three();
    disk.overwrite(LOG, b"precious");
    let error = refusal(&disk);
    assert!(matches!(error, JournalError::Foreign { .. }), "{error}");
    assert_eq!(disk.contents(LOG), b"precious");
    let mut newer = b"JITCASTJ\xff\0\0\0".to_vec();
    newer.resize(64, 0);
    disk.overwrite(LOG, &newer);
    let error = refusal(&disk);
    assert!(
        matches!(error, JournalError::Version { found: 255, .. }),
        "{error}"
    );
}

/// The story: an object that holds the bytes of a record, at the end of a record that was torn, is no reason to
/// take the log for damaged.
#[test]
fn what_publishers_send_is_not_taken_for_a_record() {
    let (disk, images) = three();
    let (_, _, at, next) = *records(&disk).first().unwrap();
    let mut torn = disk.contents(LOG);
    let record = torn[at as usize..next as usize].to_vec();
    let mut last = vec![0xff; 64];
    last.extend(record);
    torn.extend(last);
    disk.overwrite(LOG, &torn);
    check(
        &start(&disk, &options()).unwrap(),
        &images[2],
        "a record elsewhere",
    );
}

#[test]
fn another_window_is_refused_and_the_journals_is_the_default() {
    let (disk, images) = three();
    let with_window = |mib: Option<u64>| {
        let journal = options();
        let past = super::Past::open(&disk, &journal).unwrap();
        let options = crate::CompilerOptions {
            geometry: mib.map(|mib| jitcast_runtime::Geometry::new(mib << 20).unwrap()),
            journal: Some(journal),
            ..crate::CompilerOptions::default()
        };
        Compiler::with_journal(&options, Box::new(disk.clone()), past)
    };
    check(
        &with_window(None).unwrap(),
        &images[2],
        "no window asked for",
    );
    let error = with_window(Some(16)).unwrap_err().to_string();
    assert!(error.contains("help: leave --window out"), "{error}");
}

#[test]
fn processor_features_that_this_machine_lacks_are_named() {
    let (disk, _) = three();
    let known = records(&disk);
    rewrite(&disk, &known, |kind, payload| {
        if kind == Kind::Opening {
            // The header's features, after two bytes of length.
            payload[2 + 24 + 7] = 0x80;
        }
    });
    let error = refusal(&disk);
    assert!(matches!(error, JournalError::Cpu { .. }), "{error}");
    assert!(error.to_string().contains("feature bit 63"), "{error}");
}

/// Writes the log anew with payloads that `change` has changed, and checksums that hold.
pub(super) fn rewrite(
    disk: &Disk,
    records: &[(Kind, Vec<u8>, u64, u64)],
    change: impl Fn(Kind, &mut Vec<u8>),
) {
    let mut log = Log::begin(disk.create(LOG).unwrap()).unwrap();
    for (kind, payload, _, _) in records {
        let mut payload = payload.clone();
        change(*kind, &mut payload);
        let mut record = vec![0; 24];
        record.extend(payload);
        log.add(*kind, record).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// With checksums that hold, too, nothing that lies there ends in a panic: not while it is read, nor when it
    /// is published to.
    #[test]
    fn hostile_records_are_refused_or_served(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        swap in prop::option::of((any::<prop::sample::Index>(), any::<prop::sample::Index>())),
    ) {
        let disk = eventful();
        let mut known = records(&disk);
        let count = known.len();
        let payload = &mut known[which.index(count)].1;
        for (at, byte) in changes {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        if let Some(cut) = cut {
            payload.truncate(cut.index(payload.len()));
        }
        if let Some((a, b)) = swap {
            known.swap(a.index(count), b.index(count));
        }
        rewrite(&disk, &known, |_, _| {});
        if let Ok(compiler) = start(&disk, &options()) {
            use_all(&compiler);
        }
    }
}
