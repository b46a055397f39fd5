//! Random units, judged.

use std::collections::BTreeMap;

use jitcast_fuzz::{check, edge, session, strategy};
use jitcast_linker::relocation::TABLE;
use jitcast_oracle::{Report, table};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_site_holds_what_it_must(case in strategy::case()) {
        if let Err(failure) = check(&case) {
            return Err(TestCaseError::fail(failure.to_string()));
        }
    }

    #[test]
    fn ranges_end_where_the_abi_says(edge in edge::edge()) {
        if let Err(failure) = edge::check(&edge) {
            return Err(TestCaseError::fail(failure.to_string()));
        }
    }
}

/// What is never made is not tested.
#[test]
fn every_kind_is_made_and_compared() {
    let mut all = Report::default();
    for index in 0..200 {
        match session::run(1, index, || false) {
            Ok(report) => all.add(report),
            Err(failed) => panic!("{}\n{}", failed.failure, failed.trial.describe()),
        }
    }
    for row in &TABLE {
        let tally = all.kinds.get(&row.number).cloned().unwrap_or_default();
        assert!(tally.compared >= 10, "{}: {tally:?}", row.name);
        assert!(
            tally
                .apart
                .keys()
                .all(|why| *why == "discarded with its group"),
            "{}: {tally:?}",
            row.name
        );
    }
    let rules: BTreeMap<&str, u64> = all
        .kinds
        .values()
        .flat_map(|tally| tally.excused.clone())
        .collect();
    for rule in [
        "call *entry -> call",
        "jmp *entry -> jmp",
        "mov entry -> lea",
        "lea -> mov entry",
        "movabs -> lea",
        "movabs -> mov entry",
        "movabs memory -> mov",
        "thunk",
    ] {
        assert!(
            rules.contains_key(rule),
            "{rule} is never needed: {rules:?}"
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_objects() {
    for index in 0..20 {
        let objects = |seed| session::trial(seed, index).unwrap().objects();
        assert_eq!(objects(7), objects(7));
        assert_ne!(objects(7), objects(8));
    }
}

/// The linker's table and the oracle's were written apart; whoever adds a row to one adds it to the other.
#[test]
fn both_tables_have_the_same_kinds() {
    for row in &TABLE {
        let ours = table::lookup(row.number)
            .unwrap_or_else(|| panic!("fuzz/oracle/src/table.rs: add {}", row.name));
        assert_eq!((ours.name, ours.formula), (row.name, row.formula));
    }
}
