//! What a judge found: sites counted by kind, and those that are wrong.

use core::fmt;
use std::collections::BTreeMap;

/// What became of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It holds what the formula gives.
    Compared,
    /// The rule of this name allows what it holds, which was followed to where it leads.
    Excused(&'static str),
    /// It was not looked at.
    Apart(&'static str),
    /// It is wrong.
    Wrong,
}

/// One site, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The object's number.
    pub object: usize,
    /// The section's number.
    pub section: usize,
    /// Where in it the field is.
    pub offset: u64,
    /// `r_type`.
    pub kind: u32,
    /// The bytes of the section that belong to the site: the field, and what was rewritten with it.
    pub range: core::ops::Range<usize>,
    /// What became of it.
    pub outcome: Outcome,
    /// The symbol is code that others see, or defined elsewhere: one linker may give it another address (that of a
    /// stub, say) than the next.
    pub canonical: bool,
}

/// How many sites of one kind there were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// All.
    pub sites: u64,
    /// Those that hold what the formula gives.
    pub compared: u64,
    /// Those that a rule allows, by the rule.
    pub excused: BTreeMap<&'static str, u64>,
    /// Those that were not looked at, by the reason.
    pub apart: BTreeMap<&'static str, u64>,
    /// Those that are wrong.
    pub wrong: u64,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The object.
    pub object: String,
    /// The section.
    pub section: String,
    /// Where in it.
    pub offset: u64,
    /// The relocation's name.
    pub kind: &'static str,
    /// The symbol and the addend.
    pub symbol: String,
    /// Why it is wrong.
    pub what: String,
    /// What the field should hold, if that is known.
    pub expected: Vec<u8>,
    /// What it holds.
    pub found: Vec<u8>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}+{:#x}: {} {}: {}",
            self.object, self.section, self.offset, self.kind, self.symbol, self.what
        )?;
        if !self.expected.is_empty() {
            write!(f, "; expected {:02x?}", self.expected)?;
        }
        if !self.found.is_empty() {
            write!(f, ", found {:02x?}", self.found)?;
        }
        Ok(())
    }
}

/// What a judge found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The sites, by the number of their kind.
    pub kinds: BTreeMap<u32, Tally>,
    /// What is wrong, in the order of the objects.
    pub findings: Vec<Finding>,
}

impl Report {
    pub(crate) fn count(&mut self, kind: u32, outcome: Outcome) {
        let tally = self.kinds.entry(kind).or_default();
        tally.sites += 1;
        match outcome {
            Outcome::Compared => tally.compared += 1,
            Outcome::Excused(rule) => *tally.excused.entry(rule).or_default() += 1,
            Outcome::Apart(why) => *tally.apart.entry(why).or_default() += 1,
            Outcome::Wrong => tally.wrong += 1,
        }
    }

    /// Adds what another judge found.
    pub fn add(&mut self, other: Self) {
        for (kind, more) in other.kinds {
            let tally = self.kinds.entry(kind).or_default();
            tally.sites += more.sites;
            tally.compared += more.compared;
            tally.wrong += more.wrong;
            for (rule, count) in more.excused {
                *tally.excused.entry(rule).or_default() += count;
            }
            for (why, count) in more.apart {
                *tally.apart.entry(why).or_default() += count;
            }
        }
        self.findings.extend(other.findings);
    }

    /// How many sites were looked at.
    pub fn looked_at(&self) -> u64 {
        let sum = |tally: &Tally| tally.compared + tally.excused.values().sum::<u64>();
        self.kinds.values().map(sum).sum()
    }
}
