//! A file system that refuses: what was published goes on, and the publisher is told.

use std::collections::BTreeSet;

use super::disk::{Choices, Disk, Refusal};
use super::{VERSIONS, compact, image, is_same, options, publish, publish_error, start, unit};
use crate::JournalOptions;
use crate::journal::{JournalError, LOG};

#[test]
fn a_publication_that_finds_no_room_is_refused_whole() {
    let disk = Disk::default();
    let compiler = start(&disk, &options()).unwrap();
    publish(&compiler, 0, 0);
    let (before, log) = (image(&compiler), disk.contents(LOG));
    // The object is there already, so it is the record that finds no room.
    publish(&compiler, 0, 1);
    publish(&compiler, 0, 0);
    let (before_refusal, log_before) = (image(&compiler), disk.contents(LOG));
    disk.refuse(Refusal::Write);
    let error = publish_error(compiler.publish(&[unit(0, 1).clone()]));
    assert!(matches!(error, JournalError::NotWritten { .. }), "{error}");
    let text = error.to_string();
    for phrase in ["nothing of it is visible", "the-journal", "help: make room"] {
        assert!(text.contains(phrase), "`{phrase}` in {text}");
    }
    assert!(image(&compiler) == before_refusal);
    assert_eq!(
        disk.contents(LOG),
        log_before,
        "what was written of it is cut off"
    );
    assert_ne!(
        (before.status, log.len()),
        (before_refusal.status, log_before.len())
    );
    // The next one is taken, and is there after a restart.
    publish(&compiler, 0, 1);
    let expected = image(&compiler);
    drop(compiler);
    assert!(image(&start(&disk, &options()).unwrap()) == expected);
}

#[test]
fn an_object_that_finds_no_room_refuses_its_publication() {
    let disk = Disk::default();
    let compiler = start(&disk, &options()).unwrap();
    let before = image(&compiler);
    disk.refuse(Refusal::Write);
    let error = publish_error(compiler.publish(&[unit(0, 0).clone()]));
    assert!(matches!(error, JournalError::NotWritten { .. }), "{error}");
    assert!(image(&compiler) == before);
    let generation = publish(&compiler, 0, 0);
    let source = compiler.sources_of(generation, "a").unwrap().unwrap();
    assert!(is_same(&source, unit(0, 0)));
}

/// The story: on a full file system, what a refused publication had brought would keep out the next one.
#[test]
fn nothing_of_a_refused_publication_takes_up_room() {
    let disk = Disk::default();
    let compiler = start(&disk, &options()).unwrap();
    publish(&compiler, 0, 0);
    let names = disk.names();
    // The first write that is refused is that of an object, the second one that of a record.
    for after in [0, 1] {
        disk.refuse_after(after, Refusal::Write);
        publish_error(compiler.publish(&[unit(0, 1).clone()]));
        assert_eq!(disk.names(), names);
    }
    publish(&compiler, 0, 1);
}

#[test]
fn a_log_that_is_restarted_often_stays_bounded() {
    let disk = Disk::default();
    let options = JournalOptions {
        compact_above_bytes: 16 << 10,
        ..options()
    };
    let mut longest = 0;
    for round in 0..60 {
        let compiler = start(&disk, &options).unwrap();
        publish(&compiler, 0, round % VERSIONS);
        longest = longest.max(disk.contents(LOG).len());
    }
    assert!(longest < 64 << 10, "{longest} bytes");
}

/// The story: after a failed fsync the system may drop the pages that it could not write and call the next fsync a
/// success, so nothing may be written behind them.
#[test]
fn a_sync_that_fails_after_the_commit_is_told_and_ends_the_journal() {
    let disk = Disk::default();
    let compiler = start(&disk, &options()).unwrap();
    publish(&compiler, 0, 0);
    publish(&compiler, 0, 1);
    let generation = publish(&compiler, 0, 0);
    disk.refuse(Refusal::Sync);
    let error = publish_error(compiler.publish(&[unit(0, 1).clone()]));
    let text = error.to_string();
    assert!(matches!(error, JournalError::NotDurable { .. }), "{error}");
    for phrase in [
        "is visible to workers, but not durable",
        "help: look after the disk",
    ] {
        assert!(text.contains(phrase), "`{phrase}` in {text}");
    }
    assert_eq!(
        compiler.status().generation,
        generation + 1,
        "it is visible"
    );
    let error = publish_error(compiler.publish(&[unit(0, 2).clone()]));
    assert!(matches!(error, JournalError::Failed { .. }), "{error}");
    assert_eq!(compiler.status().generation, generation + 1);
    let expected = image(&compiler);
    drop(compiler);
    let compiler = start(&disk, &options()).unwrap();
    assert!(
        image(&compiler) == expected,
        "this time the pages were there"
    );
    publish(&compiler, 0, 2);
}

#[test]
fn a_sync_that_fails_before_the_commit_leaves_nothing_visible() {
    let disk = Disk::default();
    let options = JournalOptions {
        durable: true,
        ..options()
    };
    let compiler = start(&disk, &options).unwrap();
    publish(&compiler, 0, 0);
    publish(&compiler, 0, 1);
    publish(&compiler, 0, 0);
    let before = image(&compiler);
    disk.refuse(Refusal::Sync);
    let error = publish_error(compiler.publish(&[unit(0, 1).clone()]));
    assert!(matches!(error, JournalError::NotWritten { .. }), "{error}");
    assert!(image(&compiler) == before);
    drop(compiler);
    disk.lose_power(&mut Choices(1));
    assert!(image(&start(&disk, &options).unwrap()) == before);
}

#[test]
fn a_compaction_that_fails_leaves_the_old_log() {
    let disk = Disk::default();
    let compiler = start(&disk, &options()).unwrap();
    publish(&compiler, 0, 0);
    for refusal in [Refusal::Write, Refusal::Sync] {
        let before = disk.contents(LOG);
        disk.refuse(refusal);
        compact(&compiler).unwrap_err();
        assert_eq!(disk.contents(LOG), before);
        assert!(!disk.names().contains(&"log.new".to_owned()));
        publish(&compiler, 0, 1);
    }
    let expected = image(&compiler);
    drop(compiler);
    assert!(image(&start(&disk, &options()).unwrap()) == expected);
}

#[test]
fn compaction_keeps_the_state_and_what_live_and_recent_units_were_made_from() {
    let disk = Disk::default();
    let compiler = start(&disk, &options()).unwrap();
    let first = publish(&compiler, 0, 0);
    for version in [1, 2, 3] {
        publish(&compiler, 1, version);
    }
    let before_last = publish(&compiler, 1, 0);
    let (expected, len) = (image(&compiler), disk.contents(LOG).len());
    compact(&compiler).unwrap();
    assert!(image(&compiler) == expected);
    assert!(
        disk.contents(LOG).len() < len + 4096,
        "it holds the state once"
    );
    // One is live, three are recent, and one of those is live too: version 1 is gone.
    let objects: BTreeSet<_> = disk
        .names()
        .into_iter()
        .filter(|name| name.starts_with("objects/"))
        .collect();
    assert_eq!(objects.len(), 4);
    drop(compiler);
    let compiler = start(&disk, &options()).unwrap();
    assert!(image(&compiler) == expected);
    let made_from = |generation, name| compiler.sources_of(generation, name).unwrap();
    assert!(is_same(&made_from(first, "a").unwrap(), unit(0, 0)));
    assert!(is_same(&made_from(before_last, "b").unwrap(), unit(1, 0)));
    assert!(is_same(
        &made_from(before_last - 1, "b").unwrap(),
        unit(1, 3)
    ));
    assert!(
        made_from(first + 1, "b").is_none(),
        "the oldest is forgotten"
    );
}

#[test]
fn an_object_that_changed_on_disk_is_noticed() {
    let disk = Disk::default();
    let compiler = start(&disk, &options()).unwrap();
    let generation = publish(&compiler, 0, 0);
    let object = disk
        .names()
        .into_iter()
        .find(|name| name.starts_with("objects/"))
        .unwrap();
    disk.overwrite(&object, b"something else");
    let error = compiler
        .sources_of(generation, "a")
        .unwrap_err()
        .to_string();
    for phrase in [
        object.as_str(),
        "the unit `a`",
        "missing or damaged",
        "help: publish the unit",
    ] {
        assert!(error.contains(phrase), "`{phrase}` in {error}");
    }
}
