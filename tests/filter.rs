//! The filters of examples/filter: what is published means what the expression says, in all processes that use it.

mod common;
#[path = "../examples/filter/expression.rs"]
mod expression;

use std::process::Command;

use common::host::Host;
use common::process::finish;
use expression::{Expression, FIELDS, Record};
use jitcast::compiler::front::{Options, compile_bytes};
use jitcast::worker::{Endpoint, Worker, WorkerOptions};
use proptest::prelude::*;

const OPERATORS: &[&str] = &["||", "&&", "==", "!=", ">=", "<=", ">", "<", "+", "-", "*"];

/// Texts of expressions, with blanks and parentheses here and there.
fn texts() -> impl Strategy<Value = String> {
    let operand = prop_oneof![
        proptest::sample::select(&FIELDS[..]).prop_map(str::to_owned),
        (0..2000_i64).prop_map(|number| number.to_string()),
    ];
    operand.prop_recursive(5, 32, 2, |inner| {
        let operators = proptest::sample::select(OPERATORS);
        (inner.clone(), operators, inner, any::<bool>()).prop_map(
            |(left, operator, right, inside)| {
                if inside {
                    format!("({left} {operator}{right})")
                } else {
                    format!("{left}{operator} {right}")
                }
            },
        )
    })
}

#[test]
fn what_is_published_means_what_the_expression_says() {
    let host = Host::sealed();
    let worker = Worker::attach(
        Endpoint::Path(host.socket.as_ref()),
        WorkerOptions::default(),
    )
    .unwrap();
    let records = proptest::collection::vec(any::<[i16; 3]>(), 8);
    let config = ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(text in texts(), records in records)| {
        let expression = Expression::parse(&text).unwrap_or_else(|error| panic!("{error}"));
        let compiled = compile_bytes("filter.clif", expression.to_clif().into(), &Options::default());
        let compiled = compiled.unwrap_or_else(|error| panic!("{error}"));
        let unit = jitcast::compiler::UnitSource::new("filter", [compiled]);
        host.compiler.publish(&[unit]).unwrap_or_else(|error| panic!("{error}"));
        let guard = worker.enter().unwrap();
        let matches = worker.function::<extern "C" fn(*const Record) -> i64>(&guard, "matches").unwrap();
        for record in records {
            let record = record.map(i64::from);
            prop_assert_eq!(matches.call(&guard, &raw const record), expression.interpret(&record), "{}", text);
        }
    });
}

#[test]
fn operators_bind_as_in_c() {
    let record = [503, 100, 20];
    for (text, value) in [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("10 - 3 - 2", 5),
        ("status >= 500 && ms * 2 > bytes || status == 404", 0),
        ("status >= 500 && ms * 6 > bytes", 1),
        ("1 < 2 == 1", 1),
    ] {
        assert_eq!(
            Expression::parse(text).unwrap().interpret(&record),
            value,
            "{text}"
        );
    }
    for text in [
        "",
        "1 +",
        "(1",
        "speed > 1",
        "1 2",
        "99999999999999999999",
        "1 & 2",
    ] {
        assert!(Expression::parse(text).is_err(), "{text}");
    }
}

/// The example itself compares the three ways, and fails if they do not agree.
#[test]
fn four_processes_use_what_was_compiled_once() {
    let target = std::env::current_exe().unwrap();
    let program = target.ancestors().nth(2).unwrap().join("examples/filter");
    assert!(
        program.exists(),
        "there is no {program:?}: `cargo build --example filter`"
    );
    let said = finish(Command::new(program).args(["status >= 500", "20000", "2"]))
        .succeeded()
        .stdout;
    let matches: Vec<_> = said
        .lines()
        .filter_map(|line| line.trim().rsplit_once("M/s  "))
        .collect();
    assert_eq!(matches.len(), 3, "{said}");
    let matches: f64 = matches[0].1.parse().unwrap();
    // Two of seven states.
    assert!((20_000.0..26_000.0).contains(&matches), "{said}");
}
