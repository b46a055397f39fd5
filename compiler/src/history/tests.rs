//! What is retained, for how long, and what it leads back to.

use super::*;

fn source(name: &str, bytes: &[u8]) -> UnitSource {
    let file = UnitFile {
        name: format!("{name}.o"),
        bytes: bytes.to_vec(),
        dialect: Dialect::Elf,
    };
    UnitSource {
        name: name.to_owned(),
        files: vec![file],
        signatures: vec![("f".to_owned(), "(i64) -> i64".parse().unwrap())],
        uncallable: Vec::new(),
        reclaim: Reclaim::Auto,
        link: LinkOptions::default(),
    }
}

fn record(history: &mut History, generation: u64, sources: &[UnitSource], removed: &[&str]) {
    let units: Vec<_> = sources.iter().map(RetainedUnit::new).collect();
    let removed: Vec<_> = removed.iter().map(ToString::to_string).collect();
    history.record((generation, 0), &units, sources, &removed);
}

fn undone(history: &History, to: Option<u64>) -> (Vec<(String, Vec<u8>)>, Vec<String>) {
    let undo = history.undo(to).unwrap();
    let unit = |unit: UnitSource| (unit.name, unit.files[0].bytes.clone());
    (undo.units.into_iter().map(unit).collect(), undo.removals)
}

/// Four publications; the last three are retained.
fn history() -> History {
    let mut history = History::new(3, 2);
    record(
        &mut history,
        3,
        &[source("a", b"1"), source("b", b"1")],
        &[],
    );
    record(
        &mut history,
        4,
        &[source("a", b"2"), source("c", b"3")],
        &[],
    );
    // One of symbols alone is no entry.
    record(&mut history, 5, &[], &[]);
    record(&mut history, 6, &[source("a", b"3")], &["b"]);
    record(&mut history, 7, &[source("a", b"1")], &[]);
    history
}

#[test]
fn every_retained_state_is_found_again() {
    let history = history();
    let unit = |name: &str, bytes: &[u8]| (name.to_owned(), bytes.to_vec());
    assert_eq!(undone(&history, None), (vec![unit("a", b"3")], vec![]));
    assert_eq!(undone(&history, Some(6)), undone(&history, None));
    let at_4 = (vec![unit("a", b"2"), unit("b", b"1")], vec![]);
    assert_eq!(undone(&history, Some(4)), at_4);
    assert_eq!(undone(&history, Some(5)), at_4);
    // `a` is what it was then.
    let at_3 = (vec![unit("b", b"1")], vec!["c".to_owned()]);
    assert_eq!(undone(&history, Some(3)), at_3);
    for to in [0, 2, 7, 8, u64::MAX] {
        let error = history.undo(Some(to)).unwrap_err();
        assert!(matches!(
            error,
            PublishError::CannotRollBack {
                oldest: 3,
                newest: 7,
                ..
            }
        ));
    }
}

#[test]
fn contents_are_held_once_and_as_long_as_they_may_be_wanted() {
    let mut history = history();
    let count = |history: &History| history.contents().count();
    assert_eq!(count(&history), 3);
    record(&mut history, 8, &[], &["a", "c"]);
    record(&mut history, 9, &[source("a", b"9")], &[]);
    record(&mut history, 10, &[source("a", b"9")], &[]);
    record(&mut history, 11, &[source("a", b"9")], &[]);
    assert_eq!(count(&history), 1);
    let mut forgetful = History::new(0, 2);
    record(&mut forgetful, 3, &[source("a", b"1")], &[]);
    assert_eq!(count(&forgetful), 0);
    assert!(matches!(
        forgetful.undo(None),
        Err(PublishError::NothingToRollBack)
    ));
    assert!(
        forgetful
            .published_as(&[RetainedUnit::new(&source("a", b"1"))])
            .is_some()
    );
    assert!(
        forgetful
            .published_as(&[RetainedUnit::new(&source("a", b"2"))])
            .is_none()
    );
}

#[test]
fn a_stored_history_is_as_good_as_before() {
    let history = history();
    let stored = postcard::to_stdvec(&history).unwrap();
    let contents: BTreeMap<_, _> = history
        .contents()
        .map(|(hash, bytes)| (hash, Arc::clone(bytes)))
        .collect();
    let mut again: History = postcard::from_bytes(&stored).unwrap();
    assert!(again.find_contents(|_| None).is_err());
    again
        .find_contents(|hash| contents.get(&hash).cloned())
        .unwrap();
    for to in 3..7 {
        assert_eq!(undone(&again, Some(to)), undone(&history, Some(to)));
    }
    for history in [&mut again, &mut history.clone()] {
        record(history, 8, &[source("a", b"8"), source("c", b"8")], &[]);
        assert_eq!(history.contents().count(), 4);
    }
}
