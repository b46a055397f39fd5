//! The example's own little language: `status >= 500 && ms * 2 > bytes`, over the fields of a record, which are 64-bit integers.

use std::fmt::Write;

/// The fields of a record, in their order.
pub(crate) const FIELDS: [&str; 3] = ["status", "bytes", "ms"];

/// A record.
pub(crate) type Record = [i64; FIELDS.len()];

/// An operator of two operands: its text, how it binds, the instruction that it becomes, and what it means.
type Operator = (&'static str, u8, &'static str, fn(i64, i64) -> i64);

/// Longer texts come before their beginnings.
const OPERATORS: [Operator; 11] = [
    ("||", 1, "bor", |a, b| a | b),
    ("&&", 2, "band", |a, b| a & b),
    ("==", 3, "icmp eq", |a, b| (a == b).into()),
    ("!=", 3, "icmp ne", |a, b| (a != b).into()),
    (">=", 3, "icmp sge", |a, b| (a >= b).into()),
    ("<=", 3, "icmp sle", |a, b| (a <= b).into()),
    (">", 3, "icmp sgt", |a, b| (a > b).into()),
    ("<", 3, "icmp slt", |a, b| (a < b).into()),
    ("+", 4, "iadd", i64::wrapping_add),
    ("-", 4, "isub", i64::wrapping_sub),
    ("*", 5, "imul", i64::wrapping_mul),
];

/// An expression.
#[derive(Debug)]
pub(crate) enum Expression {
    Field(usize),
    Number(i64),
    Two(&'static Operator, Box<[Expression; 2]>),
}

impl Expression {
    /// Reads a text; an error says what is left of it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut rest = text;
        match Self::binding(&mut rest, 0) {
            Some(expression) if rest.trim().is_empty() => Ok(expression),
            _ => Err(format!(
                "cannot read `{rest}` of `{text}`; fields are {FIELDS:?}"
            )),
        }
    }

    fn binding(rest: &mut &str, least: u8) -> Option<Self> {
        let mut left = Self::operand(rest)?;
        loop {
            *rest = rest.trim_start();
            let found = OPERATORS.iter().find(|(text, ..)| rest.starts_with(text));
            let Some(operator) = found.filter(|(_, binds, ..)| *binds > least) else {
                return Some(left);
            };
            *rest = &rest[operator.0.len()..];
            let right = Self::binding(rest, operator.1)?;
            left = Self::Two(operator, Box::new([left, right]));
        }
    }

    fn operand(rest: &mut &str) -> Option<Self> {
        *rest = rest.trim_start();
        if let Some(inner) = rest.strip_prefix('(') {
            *rest = inner;
            let expression = Self::binding(rest, 0)?;
            *rest = rest.trim_start().strip_prefix(')')?;
            return Some(expression);
        }
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric());
        let (word, left) = rest.split_at(end.unwrap_or(rest.len()));
        let field = FIELDS.iter().position(|field| *field == word);
        let number = || word.parse().ok().map(Self::Number);
        let operand = field.map(Self::Field).or_else(number)?;
        *rest = left;
        Some(operand)
    }

    /// What it is worth for a record, without compiling anything.
    pub(crate) fn interpret(&self, record: &Record) -> i64 {
        match self {
            Self::Field(field) => record[*field],
            Self::Number(number) => *number,
            Self::Two((.., apply), operands) => {
                let [left, right] = &**operands;
                apply(left.interpret(record), right.interpret(record))
            }
        }
    }

    /// The function `matches`, from the address of a record to what the expression is worth for it.
    pub(crate) fn to_clif(&self) -> String {
        let mut text = "function %matches(i64) -> i64 {\nblock0(v0: i64):\n".to_owned();
        let mut values = 0;
        let result = self.emit(&mut text, &mut values);
        let _ = writeln!(text, "    return v{result}\n}}");
        text
    }

    /// Writes what computes it: the number of the value.
    fn emit(&self, text: &mut String, values: &mut u32) -> u32 {
        let instruction = match self {
            Self::Field(field) => format!("load.i64 v0+{}", field * size_of::<i64>()),
            Self::Number(number) => format!("iconst.i64 {number}"),
            Self::Two((_, _, instruction, _), operands) => {
                let [left, right] = operands
                    .each_ref()
                    .map(|operand| operand.emit(text, values));
                format!("{instruction} v{left}, v{right}")
            }
        };
        *values += 1;
        // A string takes everything.
        let _ = writeln!(text, "    v{values} = {instruction}");
        if instruction.starts_with("icmp") {
            let compared = *values;
            *values += 1;
            let _ = writeln!(text, "    v{values} = uextend.i64 v{compared}");
        }
        *values
    }
}
