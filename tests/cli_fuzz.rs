//! `jitcast fuzz` as people use it.

mod common;

use common::process::{Process, Stream, finish, jitcast};
use common::serve::table;
use jitcast::linker::relocation::TABLE;
use rustix::process::Signal;

#[test]
fn every_kind_is_counted_and_compared() {
    let done = finish(&mut jitcast(&["fuzz", "--seed", "5", "--time", "4"])).succeeded();
    let rows = table(&done.stdout);
    assert_eq!(rows.len(), TABLE.len() + 1, "{}", done.stdout);
    for (row, kind) in rows[1..].iter().zip(&TABLE) {
        assert_eq!(row[0], kind.name);
        let numbers: Vec<u64> = row[1..].iter().map(|cell| cell.parse().unwrap()).collect();
        assert!(numbers[1] > 0, "{row:?}");
        assert_eq!(
            numbers[0],
            numbers[1..].iter().sum::<u64>(),
            "each site is one of these: {row:?}"
        );
    }
    let last = done.stdout.lines().last().unwrap();
    assert!(
        last.contains(" cases, ") && last.contains(" 0 failures in "),
        "{last}"
    );
}

#[test]
fn a_kind_that_was_never_compared_fails_the_run() {
    let done = finish(&mut jitcast(&["fuzz", "--seed", "5", "--time", "0s"]));
    done.failed(&[
        "no site was compared of R_X86_64_NONE, R_X86_64_64, ",
        "try more --time",
    ]);
}

#[test]
fn one_case_can_be_run_again() {
    let run = || {
        let done = finish(&mut jitcast(&["fuzz", "--seed", "5", "--case", "3"])).succeeded();
        table(&done.stdout)
    };
    assert_eq!(run(), run());
}

#[test]
fn ctrl_c_ends_it_with_its_counts() {
    let mut fuzz = Process::start(&mut jitcast(&["fuzz", "--seed", "5", "--time", "10m"]));
    fuzz.await_line(Stream::Out, "the seed", |line| line == "seed 5");
    fuzz.signal(Signal::INT);
    let done = fuzz.finish();
    assert_eq!(done.code, Some(130), "{done:#?}");
    assert!(done.stdout.contains(" 0 failures in "), "{done:#?}");
}
