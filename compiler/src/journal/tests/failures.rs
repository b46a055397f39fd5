//! A file system that refuses: what was published goes on, and the publisher is told.

use std::collections::BTreeSet;

use super::disk::{Choices, Disk, Refusal};
use super::{
    VERSIONS, compact, has_all_contents, image, options, publish, publish_error, remove, start,
    unit,
};
use crate::history::{ContentHash, RetainedUnit};
use crate::journal::objects::path;
use crate::journal::{JournalError, LOG};
use crate::{JournalOptions, PublishError, PublishOptions};

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
    publish(&compiler, 0, 0);
    has_all_contents(&compiler).unwrap();
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
    for round in 0..200 {
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
fn compaction_keeps_the_state_and_what_retained_units_were_made_from() {
    let disk = Disk::default();
    let compiler = start(&disk, &options()).unwrap();
    publish(&compiler, 0, 0);
    for version in [0, 1, 2, 3, 3] {
        publish(&compiler, 1, version);
    }
    let (expected, len) = (image(&compiler), disk.contents(LOG).len());
    compact(&compiler).unwrap();
    assert!(image(&compiler) == expected);
    assert!(
        disk.contents(LOG).len() < len + 4096,
        "it holds the state once"
    );
    // One of `a` and the last one of `b` are live, and those before can be had again: version 0 is gone.
    let kept = [unit(0, 0), unit(1, 1), unit(1, 2), unit(1, 3)];
    let kept = kept.map(|unit| path(ContentHash::of(&unit.files[0].bytes)));
    let objects = disk.names().into_iter();
    let objects = objects.filter(|name| name.starts_with("objects/"));
    assert_eq!(objects.collect::<BTreeSet<_>>(), BTreeSet::from(kept));
    drop(compiler);
    let compiler = start(&disk, &options()).unwrap();
    assert!(image(&compiler) == expected);
    has_all_contents(&compiler).unwrap();
    let oldest = expected.history.oldest();
    compiler
        .rollback(Some(oldest), PublishOptions::default())
        .unwrap();
    let state = compiler.state.lock();
    let published = &state.history.published()["b"].unit;
    assert!(published.is_same(&RetainedUnit::new(unit(1, 1))));
}

#[test]
fn another_number_of_retained_publications_counts_from_the_restart_on() {
    let disk = Disk::default();
    let compiler = start(&disk, &options()).unwrap();
    for version in 0..VERSIONS {
        publish(&compiler, 0, version);
    }
    drop(compiler);
    let retaining = |retain| {
        let compiler = super::start_with(&disk, &options(), retain).unwrap();
        let count = compiler.status().history.len();
        has_all_contents(&compiler).unwrap();
        (compiler, count)
    };
    // The log still has them all.
    assert_eq!(retaining(10).1, VERSIONS);
    let (compiler, count) = retaining(1);
    assert_eq!(count, 1);
    compact(&compiler).unwrap();
    drop(compiler);
    assert_eq!(retaining(10).1, 1);
}

#[test]
fn an_object_that_changed_on_disk_is_noticed_and_kept_anew() {
    let disk = Disk::default();
    let compiler = start(&disk, &options()).unwrap();
    publish(&compiler, 0, 0);
    publish(&compiler, 0, 1);
    drop(compiler);
    let object = path(ContentHash::of(&unit(0, 0).files[0].bytes));
    disk.overwrite(&object, b"something else");
    let compiler = start(&disk, &options()).unwrap();
    let before = image(&compiler);
    let refused = compiler.rollback(None, PublishOptions::default());
    let error = publish_error(refused).to_string();
    for phrase in [
        object.as_str(),
        "the unit `a`",
        "missing or damaged",
        "help: publish that version",
    ] {
        assert!(error.contains(phrase), "`{phrase}` in {error}");
    }
    assert!(image(&compiler) == before);
    publish(&compiler, 0, 0);
    has_all_contents(&compiler).unwrap();
}

#[test]
fn nothing_is_written_down_of_what_is_published_already() {
    let disk = Disk::default();
    let compiler = start(&disk, &options()).unwrap();
    let published = compiler.publish(&[unit(0, 0).clone()]).unwrap();
    drop(compiler);
    let compiler = start(&disk, &options()).unwrap();
    let before = disk.contents(LOG);
    let again = compiler.change(&crate::Changeset {
        units: &[unit(0, 0).clone()],
        options: PublishOptions {
            if_changed: true,
            ..PublishOptions::default()
        },
        ..crate::Changeset::default()
    });
    assert_eq!(again.unwrap(), published, "also by the clock of that time");
    assert_eq!(disk.contents(LOG), before);
    remove(&compiler, 0).unwrap();
    assert!(matches!(
        remove(&compiler, 0),
        Err(PublishError::NoSuchUnit { .. })
    ));
}
