//! The psABI's formulas, as text: parsed, evaluated, and solved for one operand.
//!
//! Source: System V ABI, AMD64 supplement (psABI x86-64) 1.0, section 4.4.1.

use core::fmt;

/// An operand of a formula.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// `S`: the symbol's address.
    Symbol,
    /// `A`: the addend.
    Addend,
    /// `P`: the address of the field.
    Place,
    /// `G`: the offset of the symbol's entry from the global offset table.
    Entry,
    /// `GOT`: the address of the global offset table.
    Table,
    /// `L`: the address of the symbol's entry in the procedure linkage table.
    Linkage,
    /// `Z`: the symbol's size.
    Size,
    /// `TLS`: the start of the thread-local block that the symbol lies in. (Ours: the psABI has words only.)
    Block,
}

const NAMES: [(&str, Operand); 8] = [
    ("S", Operand::Symbol),
    ("A", Operand::Addend),
    ("P", Operand::Place),
    ("G", Operand::Entry),
    ("GOT", Operand::Table),
    ("L", Operand::Linkage),
    ("Z", Operand::Size),
    ("TLS", Operand::Block),
];

/// A sum of operands, each added or subtracted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Formula(Vec<(i128, Operand)>);

/// A text that is no formula.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoFormula(String);

impl fmt::Display for NoFormula {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is no formula", self.0)
    }
}

impl std::error::Error for NoFormula {}

impl Formula {
    /// Reads `S + A - P` and the like; `0` is the empty sum.
    ///
    /// # Errors
    ///
    /// Anything but names of operands with a sign between each two.
    pub fn parse(text: &str) -> Result<Self, NoFormula> {
        let wrong = || NoFormula(text.to_owned());
        let mut terms = Vec::new();
        let mut words = text.split_whitespace();
        let mut sign = 1;
        loop {
            let word = words.next().ok_or_else(wrong)?;
            if word != "0" {
                let name = NAMES.iter().find(|(name, _)| *name == word);
                terms.push((sign, name.ok_or_else(wrong)?.1));
            }
            sign = match words.next() {
                None => return Ok(Self(terms)),
                Some("+") => 1,
                Some("-") => -1,
                Some(_) => return Err(wrong()),
            };
        }
    }

    /// Whether the formula mentions `operand`.
    pub fn mentions(&self, operand: Operand) -> bool {
        self.0.iter().any(|&(_, other)| other == operand)
    }

    /// The sum. 128 bits hold every sum of 64-bit operands exactly.
    pub fn evaluate(&self, value: impl Fn(Operand) -> i128) -> i128 {
        self.0
            .iter()
            .map(|&(sign, operand)| sign * value(operand))
            .sum()
    }

    /// What `unknown` has to be for the sum to be `sum`; `None` if the formula does not mention it.
    pub fn solve(
        &self,
        unknown: Operand,
        sum: i128,
        value: impl Fn(Operand) -> i128,
    ) -> Option<i128> {
        let &(sign, _) = self.0.iter().find(|&&(_, operand)| operand == unknown)?;
        let zero = |operand| {
            if operand == unknown {
                0
            } else {
                value(operand)
            }
        };
        Some((sum - self.evaluate(zero)) * sign)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(operand: Operand) -> i128 {
        match operand {
            Operand::Symbol => 1,
            Operand::Addend => -1_000,
            Operand::Place => 1_000_000,
            Operand::Entry => 10i128.pow(9),
            Operand::Table => 10i128.pow(12),
            Operand::Linkage => 10i128.pow(15),
            Operand::Size => 10i128.pow(18),
            Operand::Block => 10i128.pow(21),
        }
    }

    #[test]
    fn formulas_are_sums() {
        let of = |text| Formula::parse(text).unwrap().evaluate(value);
        assert_eq!(of("0"), 0);
        assert_eq!(of("S + A"), -999);
        assert_eq!(of("S + A - P"), -1_000_999);
        assert_eq!(of("G + GOT + A - P"), 1_000_998_999_000);
        assert_eq!(of("Z + A"), 10i128.pow(18) - 1_000);
    }

    #[test]
    fn formulas_are_solved() {
        let formula = Formula::parse("G + GOT + A - P").unwrap();
        let sum = formula.evaluate(value);
        assert_eq!(
            formula.solve(Operand::Entry, sum, value),
            Some(10i128.pow(9))
        );
        assert_eq!(formula.solve(Operand::Place, sum, value), Some(1_000_000));
        assert_eq!(formula.solve(Operand::Size, sum, value), None);
    }

    #[test]
    fn what_is_no_formula_is_refused() {
        for text in ["", "S +", "S A", "+ S", "S * A", "X"] {
            assert!(Formula::parse(text).is_err(), "{text}");
        }
    }
}
