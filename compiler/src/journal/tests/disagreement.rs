//! Logs whose records can be read and whose checksums hold, but that do not agree with themselves.

use super::damage::{eventful, records, refusal, rewrite};
use super::disk::Disk;
use super::{LEAVE_TRAPS, compact, image, options, publish_error, start};
use crate::catalog::{Canary, Catalog, Variable};
use crate::journal::JournalError;
use crate::journal::log::Kind;
use crate::journal::record::Base;
use crate::{Audience, Compiler};

/// A journal that is one base: `b` uses `a`, which is removed, and `c` is quarantined.
fn one_base() -> Disk {
    let disk = eventful();
    let compiler = start(&disk, &options()).unwrap();
    compiler
        .publish(&[super::unit(2, 0).clone()])
        .unwrap_or_else(|error| panic!("{error}"));
    compact(&compiler).unwrap();
    let status = compiler.status();
    assert_eq!(
        (&status.traps[0].symbol[..], &status.quarantined[..]),
        ("a", &["c".to_owned()][..])
    );
    disk
}

/// The same with a base that `change` has changed.
fn changed(disk: &Disk, change: impl Fn(&mut Base)) {
    rewrite(disk, &records(disk), |kind, payload| {
        if kind == Kind::Base {
            let mut base: Base = postcard::from_bytes(payload).unwrap();
            change(&mut base);
            *payload = postcard::to_stdvec(&base).unwrap();
        }
    });
}

/// What is done to a catalog.
type Change = fn(&mut Catalog);

#[test]
fn a_catalog_that_says_something_else_than_the_directory_is_refused() {
    let changes: [(&str, Change); 18] = [
        ("the trap is lost", |it| it.orphans.clear()),
        ("the trap is a name", |it| {
            let (name, orphan) = it.orphans.drain().next().unwrap();
            it.symbols.insert(name, orphan);
        }),
        ("the trap has no cell", |it| {
            it.orphans.get_mut("a").unwrap().call_cell = None;
        }),
        ("the trap has another cell", |it| {
            it.orphans.get_mut("a").unwrap().call_cell = it.symbols["b"].call_cell;
        }),
        ("nobody uses the trap", |it| {
            it.units.get_mut("b").unwrap().uses.clear();
        }),
        ("what is used is nowhere", |it| {
            it.units.get_mut("b").unwrap().uses.push("d".to_owned());
        }),
        ("the quarantine is lost", |it| it.quarantined.clear()),
        ("another one is quarantined", |it| {
            it.quarantined.insert("b".to_owned());
        }),
        ("a cell is another one's", |it| {
            it.symbols.get_mut("b").unwrap().call_cell = it.symbols["c"].call_cell;
        }),
        ("a symbol is of another unit", |it| {
            "c".clone_into(&mut it.symbols.get_mut("b").unwrap().unit);
        }),
        ("a unit defines something twice", |it| {
            it.units.get_mut("b").unwrap().defines.push("b".to_owned());
        }),
        ("a unit's memory may be reused", |it| {
            it.units.get_mut("b").unwrap().keeps = false;
        }),
        ("a unit is newer", |it| {
            it.units.get_mut("b").unwrap().generation += 1;
        }),
        ("a variable lies where none is", |it| {
            let symbol = it.symbols.get_mut("b").unwrap();
            symbol.variable = Some(Variable {
                size: 8,
                align_bytes: 8,
                since: 0,
                fresh: symbol.place,
            });
        }),
        ("a name has no hash", |it| it.hashes.clear()),
        ("a unit is lost", |it| drop(it.units.remove("b"))),
        ("a host symbol is lost", |it| it.imports.clear()),
        ("a host symbol has other users", |it| {
            it.imports.values_mut().for_each(|import| import.users += 1);
        }),
    ];
    for (what, change) in changes {
        let disk = one_base();
        changed(&disk, |base| change(&mut base.catalog));
        let error = refusal(&disk);
        assert!(
            matches!(error, JournalError::Damaged { .. }),
            "{what}: {error}"
        );
    }
    let disk = one_base();
    changed(&disk, |_| {});
    start(&disk, &options()).unwrap();
}

/// A journal that is one base, in which a canary of `b` runs, and another one of `c`.
fn with_canaries() -> Disk {
    let disk = eventful();
    let compiler = start(&disk, &options()).unwrap();
    super::publish(&compiler, 2, 0);
    for index in [1, 2] {
        super::begin(&compiler, index, 3).unwrap();
    }
    compact(&compiler).unwrap();
    disk
}

fn first(catalog: &mut Catalog) -> &mut Canary {
    catalog.canaries.values_mut().next().unwrap()
}

#[test]
fn canaries_that_are_not_those_of_the_directory_are_refused() {
    let changes: [(&str, Change); 17] = [
        ("a canary is lost", |it| drop(it.canaries.pop_first())),
        ("all are", |it| it.canaries.clear()),
        ("the audience is another one", |it| {
            first(it).audience = Audience::Workers(2);
        }),
        ("the audience has a label", |it| {
            first(it).audience = Audience::Label("blue".to_owned());
        }),
        ("its number is another one", |it| first(it).id += 100),
        ("it has no units", |it| first(it).units.clear()),
        ("a unit has another number", |it| {
            first(it).units[0].1.number += 100
        }),
        ("a unit is newer", |it| first(it).units[0].1.generation += 1),
        ("a unit's memory may be reused", |it| {
            first(it).units[0].1.keeps = false
        }),
        ("a unit uses what is nowhere", |it| {
            first(it).units[0].1.uses.push("d".to_owned());
        }),
        ("a symbol is lost", |it| drop(first(it).symbols.pop_first())),
        ("a symbol lies elsewhere", |it| {
            let place = it.symbols["c"].place;
            first(it).symbols.get_mut("b").unwrap().place = place;
        }),
        ("a symbol has another cell", |it| {
            let cell = it.symbols["c"].call_cell;
            first(it).symbols.get_mut("b").unwrap().call_cell = cell;
        }),
        ("a symbol is hidden that is not", |it| {
            first(it).hidden.push("c".to_owned())
        }),
        ("a symbol is hidden that is nowhere", |it| {
            first(it).hidden.push("d".to_owned())
        }),
        ("it was made of something else", |it| {
            first(it).retained[0].name = "d".to_owned();
        }),
        ("two have the same units", |it| {
            let canary = first(it).clone();
            it.canaries.insert(canary.id + 1000, canary);
        }),
    ];
    for (what, change) in changes {
        let disk = with_canaries();
        changed(&disk, |base| change(&mut base.catalog));
        let error = refusal(&disk);
        assert!(
            matches!(error, JournalError::Damaged { .. }),
            "{what}: {error}"
        );
    }
    let disk = with_canaries();
    changed(&disk, |_| {});
    let compiler = start(&disk, &options()).unwrap();
    assert_eq!(compiler.status().canaries.len(), 2);
    compiler.promote("b").unwrap();
    compiler.abort("c").unwrap();
}

#[test]
fn a_history_that_says_something_else_than_the_catalog_is_refused() {
    let disk = one_base();
    changed(&disk, |base| {
        // The same, but for what is published.
        base.history = crate::history::History::new(3, 1);
    });
    let error = refusal(&disk).to_string();
    assert!(
        error.contains("the history is not that of what is published"),
        "{error}"
    );
}

/// The story: whoever rolls back to what is named, but nowhere, must be told, and everything else goes on.
#[test]
fn a_history_whose_contents_are_nowhere_is_served_but_not_gone_back_to() {
    let disk = one_base();
    for name in disk.names() {
        if name.starts_with("objects/") {
            crate::journal::storage::Storage::remove(&disk, &name).unwrap();
        }
    }
    let compiler: Compiler = start(&disk, &options()).unwrap();
    let before = image(&compiler);
    let oldest = before.history.oldest();
    let error = publish_error(compiler.rollback(Some(oldest), LEAVE_TRAPS));
    assert!(matches!(error, JournalError::Object { .. }), "{error}");
    assert!(image(&compiler) == before);
    super::publish(&compiler, 1, 0);
}
