//! What is retained, for how long, and what it leads back to.

use super::*;
use crate::contents::Contents;

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
        imports: Vec::new(),
        reclaim: Reclaim::Auto,
        link: LinkOptions::default(),
    }
}

/// A history and what its files contain.
#[derive(Clone)]
struct Retained {
    history: History,
    contents: Contents,
}

fn record(retained: &mut Retained, generation: u64, sources: &[UnitSource], removed: &[&str]) {
    let units: Vec<_> = sources.iter().map(RetainedUnit::new).collect();
    let removed: Vec<_> = removed.iter().map(ToString::to_string).collect();
    let (history, contents) = (&mut retained.history, &mut retained.contents);
    let forgotten = history.record((generation, 0), &units, &removed);
    for (unit, source) in units.iter().zip(sources) {
        contents.hold(unit, source);
    }
    forgotten.iter().for_each(|unit| contents.release(unit));
}

fn undone(retained: &Retained, to: Option<u64>) -> (Vec<(String, Vec<u8>)>, Vec<String>) {
    let undo = retained.history.undo(to).unwrap();
    let unit = |unit: &RetainedUnit| {
        let source = retained.contents.source(unit);
        (source.name, source.files[0].bytes.clone())
    };
    (undo.units.iter().map(unit).collect(), undo.removals)
}

/// Four publications; the last three are retained.
fn history() -> Retained {
    let mut history = Retained {
        history: History::new(3, 2),
        contents: Contents::default(),
    };
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
        let error = history.history.undo(Some(to)).unwrap_err();
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
    let count = |history: &Retained| history.contents.len();
    assert_eq!(count(&history), 3);
    record(&mut history, 8, &[], &["a", "c"]);
    record(&mut history, 9, &[source("a", b"9")], &[]);
    record(&mut history, 10, &[source("a", b"9")], &[]);
    record(&mut history, 11, &[source("a", b"9")], &[]);
    assert_eq!(count(&history), 1);
    let contents: BTreeSet<_> = history.history.contents().collect();
    assert_eq!(contents.len(), 1, "what the history names is what is held");
}

#[test]
fn a_history_that_retains_nothing_still_knows_what_is_published() {
    let unit = |bytes| RetainedUnit::new(&source("a", bytes));
    let mut forgetful = History::new(0, 2);
    forgetful.record((3, 0), &[unit(b"1")], &[]);
    assert!(matches!(
        forgetful.undo(None),
        Err(PublishError::NothingToRollBack)
    ));
    assert!(forgetful.published_as(&[unit(b"1")]).is_some());
    assert!(forgetful.published_as(&[unit(b"2")]).is_none());
    // What replaces it is all that is forgotten.
    assert_eq!(forgetful.record((4, 0), &[unit(b"2")], &[]), [unit(b"1")]);
}

#[test]
fn a_stored_history_is_as_good_as_before() {
    let retained = history();
    let stored = postcard::to_stdvec(&retained.history).unwrap();
    let mut again = Retained {
        history: postcard::from_bytes(&stored).unwrap(),
        ..retained.clone()
    };
    again.history.set_retain(3);
    for to in 3..7 {
        assert_eq!(undone(&again, Some(to)), undone(&retained, Some(to)));
    }
    for history in [&mut again, &mut retained.clone()] {
        record(history, 8, &[source("a", b"8"), source("c", b"8")], &[]);
        assert_eq!(history.contents.len(), 4);
    }
    again.history.set_retain(1);
    assert_eq!(
        (again.history.oldest(), again.history.entries().count()),
        (7, 1)
    );
}

/// The story: a history that somebody has written by hand must not lead to where nothing is.
#[test]
fn a_history_that_does_not_fit_is_noticed() {
    let history = history().history;
    let published = |history: &History| {
        let published = history.published.iter();
        published
            .map(|(name, unit)| (name.clone(), unit.generation))
            .collect::<Vec<_>>()
    };
    let units = published(&history);
    let fits = |history: &History, generation| {
        history.fits(generation, units.iter().map(|(name, at)| (name, *at)))
    };
    assert!(fits(&history, 7) && fits(&history, 2000));
    assert!(!fits(&history, 6), "it is of a later generation");
    let changes: [fn(&mut History); 7] = [
        |history| drop(history.published.remove("a")),
        |history| history.published.get_mut("a").unwrap().generation += 1,
        |history| "b".clone_into(&mut history.published.get_mut("a").unwrap().unit.name),
        |history| history.oldest = 4,
        |history| history.entries.swap(0, 1),
        |history| history.entries[1].removed.extend(["never".to_owned()]),
        |history| {
            let before = history.entries[0].before.get_mut("a").unwrap();
            "b".clone_into(&mut before.as_mut().unwrap().name);
        },
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut changed = history.clone();
        change(&mut changed);
        assert!(!fits(&changed, 7), "{index}");
    }
}
