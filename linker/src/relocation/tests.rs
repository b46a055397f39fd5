//! The table against its own words: formulas, fields, numbers.

use super::*;
use crate::refusal::REFUSED;

/// Evaluates `S + A - P` and the like: terms joined by `+` and `-`.
fn evaluate(formula: &str, operands: &Operands) -> i128 {
    let mut sum = 0;
    let mut sign = 1;
    for word in formula.split_whitespace() {
        let term = match word {
            "+" | "-" => {
                sign = if word == "+" { 1 } else { -1 };
                continue;
            }
            "S" => operands.S,
            "A" => operands.A,
            "P" => operands.P,
            "G" => operands.G,
            "GOT" => operands.GOT,
            "L" => operands.L,
            "Z" => operands.Z,
            "TLS" => operands.TLS,
            number => number.parse().unwrap(),
        };
        sum += sign * term;
    }
    sum
}

#[test]
fn every_formula_says_what_its_function_computes() {
    // Powers of 1000 tell every operand and its sign apart.
    let operands = Operands {
        S: 1,
        A: -1_000,
        P: 1_000_000,
        G: 10i128.pow(9),
        GOT: 10i128.pow(12),
        L: 10i128.pow(15),
        Z: 10i128.pow(18),
        TLS: 10i128.pow(21),
    };
    for row in &TABLE {
        assert_eq!(
            (row.value)(operands),
            evaluate(row.formula, &operands),
            "{}",
            row.name
        );
    }
}

#[test]
#[expect(non_snake_case, reason = "the names are the psABI's")]
fn displacements_are_distances_from_their_fields() {
    let (X, A, P) = (10i128.pow(9), -1_000, 1_000_000);
    let operands = Operands {
        S: X,
        L: X,
        G: X,
        A,
        P,
        // Where the window starts; and what has no part in it.
        GOT: 0,
        Z: 10i128.pow(18),
        TLS: 10i128.pow(21),
    };
    let rows = TABLE.iter().filter_map(|row| Row::of(row.number));
    let rows: Vec<_> = rows.filter(|row| row.is_displacement()).collect();
    assert_eq!(rows.len(), 5);
    for row in rows {
        assert_eq!(row.compute(operands), X + A - P, "{}", row.name);
        assert_eq!(row.field, SIGNED_32, "{}", row.name);
    }
    for row in [MODULE, OFFSET, THREAD_OFFSET, RESOLVED, COPY] {
        assert!(!row.is_displacement(), "{}", row.name);
    }
}

#[test]
fn every_field_holds_its_last_value_and_no_further_one() {
    for row in &TABLE {
        let mut bytes = [0xaa; 8];
        let Some((min, max)) = row.field.range else {
            assert_eq!(row.field.store(&mut bytes, -1), Ok(true), "{}", row.name);
            continue;
        };
        for value in [min, max] {
            assert_eq!(row.field.store(&mut bytes, value), Ok(true), "{}", row.name);
            let width = usize::from(row.field.width_bytes);
            assert_eq!(bytes[..width], value.to_le_bytes()[..width]);
            assert!(bytes[width..].iter().all(|&byte| byte == 0xaa));
        }
        for value in [min - 1, max + 1] {
            assert_eq!(
                row.field.store(&mut bytes, value),
                Err(OutOfRange { value, min, max })
            );
        }
    }
}

#[test]
fn no_field_is_stored_past_the_end() {
    for row in TABLE.iter().filter(|row| row.field.width_bytes > 0) {
        let mut bytes = vec![0; usize::from(row.field.width_bytes) - 1];
        assert_eq!(row.field.store(&mut bytes, 0), Ok(false), "{}", row.name);
    }
}

#[test]
fn a_number_has_one_row() {
    for number in 0..64 {
        let rows = TABLE.iter().filter(|row| row.number == number).count();
        let refused = REFUSED.iter().filter(|row| row.0 == number).count();
        assert!(
            rows + refused <= 1,
            "relocation {number} has {rows} rows and {refused} refusals"
        );
    }
    assert_eq!((ABSOLUTE.number, RELATIVE.number, CELL.number), (1, 2, 9));
    assert_eq!(BLOCK_OFFSET.number, 17);
}
