//! What each kind of relocation computes and writes, in the words of the psABI (x86-64 1.0, table 4.9).
//!
//! To add a kind, add a row. The formula and the field are text; nothing else knows them.

use crate::formula::Formula;

/// A kind of relocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// `r_type`.
    pub number: u32,
    /// The psABI's name.
    pub name: &'static str,
    /// What is computed.
    pub formula: &'static str,
    /// What it is written to: `signed`, `unsigned`, `either` or `any`, and the bits.
    pub field: &'static str,
}

const fn row(number: u32, name: &'static str, formula: &'static str, field: &'static str) -> Row {
    Row {
        number,
        name,
        formula,
        field,
    }
}

/// The kinds that occur in objects, in the order of their numbers.
pub const TABLE: [Row; 31] = [
    row(0, "R_X86_64_NONE", "0", "any 0"),
    row(1, "R_X86_64_64", "S + A", "any 64"),
    row(2, "R_X86_64_PC32", "S + A - P", "signed 32"),
    row(3, "R_X86_64_GOT32", "G + A", "signed 32"),
    row(4, "R_X86_64_PLT32", "L + A - P", "signed 32"),
    row(9, "R_X86_64_GOTPCREL", "G + GOT + A - P", "signed 32"),
    row(10, "R_X86_64_32", "S + A", "unsigned 32"),
    row(11, "R_X86_64_32S", "S + A", "signed 32"),
    row(12, "R_X86_64_16", "S + A", "either 16"),
    row(13, "R_X86_64_PC16", "S + A - P", "signed 16"),
    row(14, "R_X86_64_8", "S + A", "either 8"),
    row(15, "R_X86_64_PC8", "S + A - P", "signed 8"),
    row(17, "R_X86_64_DTPOFF64", "S + A - TLS", "any 64"),
    row(19, "R_X86_64_TLSGD", "G + GOT + A - P", "signed 32"),
    row(20, "R_X86_64_TLSLD", "G + GOT + A - P", "signed 32"),
    row(21, "R_X86_64_DTPOFF32", "S + A - TLS", "signed 32"),
    row(22, "R_X86_64_GOTTPOFF", "G + GOT + A - P", "signed 32"),
    // The displacement from the thread pointer, which lies at the end of an executable's block.
    row(23, "R_X86_64_TPOFF32", "S + A - TLS", "signed 32"),
    row(24, "R_X86_64_PC64", "S + A - P", "any 64"),
    row(25, "R_X86_64_GOTOFF64", "S + A - GOT", "any 64"),
    row(26, "R_X86_64_GOTPC32", "GOT + A - P", "signed 32"),
    row(27, "R_X86_64_GOT64", "G + A", "any 64"),
    row(28, "R_X86_64_GOTPCREL64", "G + GOT + A - P", "any 64"),
    row(29, "R_X86_64_GOTPC64", "GOT + A - P", "any 64"),
    row(30, "R_X86_64_GOTPLT64", "G + A", "any 64"),
    row(31, "R_X86_64_PLTOFF64", "L + A - GOT", "any 64"),
    row(32, "R_X86_64_SIZE32", "Z + A", "unsigned 32"),
    row(33, "R_X86_64_SIZE64", "Z + A", "any 64"),
    row(
        34,
        "R_X86_64_GOTPC32_TLSDESC",
        "G + GOT + A - P",
        "signed 32",
    ),
    row(41, "R_X86_64_GOTPCRELX", "G + GOT + A - P", "signed 32"),
    row(42, "R_X86_64_REX_GOTPCRELX", "G + GOT + A - P", "signed 32"),
];

/// The row of kind `number`.
pub fn lookup(number: u32) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.number == number)
}

/// A field, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Width, bytes: 0 to 8.
    pub width_bytes: usize,
    range: Option<(i128, i128)>,
    negative: bool,
}

impl Field {
    /// Reads `signed 32` and the like; `None` if the text is none.
    pub fn parse(text: &str) -> Option<Self> {
        let (sign, bits) = text.split_once(' ')?;
        let bits: u32 = bits.parse().ok().filter(|bits| *bits <= 64)?;
        let half = 1_i128 << bits >> 1;
        let range = match sign {
            "signed" => Some((-half, half - 1)),
            "unsigned" => Some((0, 2 * half - 1)),
            "either" => Some((-half, 2 * half - 1)),
            "any" => None,
            _ => return None,
        };
        Some(Self {
            width_bytes: bits as usize / 8,
            range,
            negative: sign == "signed",
        })
    }

    /// The first and last value that fit, if there are any.
    pub fn range(&self) -> Option<(i128, i128)> {
        self.range
    }

    /// The bytes that hold `value`, or `None` if it does not fit.
    pub fn encode(&self, value: i128) -> Option<Vec<u8>> {
        let fits = self
            .range
            .is_none_or(|(min, max)| (min..=max).contains(&value));
        fits.then(|| value.to_le_bytes()[..self.width_bytes].to_vec())
    }

    /// The number that `bytes` hold, as the processor or the reader of the field extends it.
    pub fn decode(&self, bytes: &[u8]) -> i128 {
        let unsigned = bytes
            .iter()
            .rev()
            .fold(0_i128, |value, &byte| value << 8 | i128::from(byte));
        let over = 1_i128 << (8 * bytes.len());
        if self.negative && unsigned >= over / 2 {
            unsigned - over
        } else {
            unsigned
        }
    }
}

impl Row {
    /// The formula; `None` if its text is none, which a test excludes.
    pub fn formula(&self) -> Option<Formula> {
        Formula::parse(self.formula).ok()
    }

    /// The field; `None` if its text is none, which a test excludes.
    pub fn field(&self) -> Option<Field> {
        Field::parse(self.field)
    }

    /// Whether the kind belongs to thread-local storage.
    pub fn is_thread_local(&self) -> bool {
        matches!(self.number, 17 | 19..=23 | 34)
    }

    /// Whether the kind is a use of the symbol's entry in the global offset table.
    pub fn uses_entry(&self) -> bool {
        self.formula.starts_with("G +")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_read() {
        for row in TABLE {
            assert!(row.formula().is_some(), "{}", row.name);
            assert!(row.field().is_some(), "{}", row.name);
            assert_eq!(lookup(row.number), Some(&row));
        }
        let numbers: Vec<u32> = TABLE.iter().map(|row| row.number).collect();
        assert!(numbers.is_sorted(), "in the order of their numbers");
    }

    #[test]
    fn fields_have_ends() {
        let fits = |field: &str, value| Field::parse(field).unwrap().encode(value).is_some();
        assert!(fits("signed 8", -128) && fits("signed 8", 127));
        assert!(!fits("signed 8", -129) && !fits("signed 8", 128));
        assert!(fits("unsigned 32", 0xffff_ffff) && !fits("unsigned 32", -1));
        assert!(fits("either 16", -0x8000) && fits("either 16", 0xffff));
        assert!(!fits("either 16", -0x8001) && !fits("either 16", 0x1_0000));
        assert!(fits("any 64", i128::MAX));
        let signed = Field::parse("signed 32").unwrap();
        assert_eq!(signed.decode(&[0xfc, 0xff, 0xff, 0xff]), -4);
        assert_eq!(signed.encode(-4), Some(vec![0xfc, 0xff, 0xff, 0xff]));
        assert_eq!(Field::parse("signed"), None);
        assert_eq!(Field::parse("signed 65"), None);
    }
}
