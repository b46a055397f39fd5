//! What many trials came to, kind by kind.

use jitcast_linker::relocation::TABLE;
use jitcast_oracle::Report;

/// The count of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The kind's name.
    pub name: &'static str,
    /// Sites made, counted at each base that they were looked at.
    pub sites: u64,
    /// Those that were compared with the formula.
    pub compared: u64,
    /// Those that a rule excused, after it had followed them.
    pub excused: u64,
    /// Those in COMDAT members that were discarded: there is nothing to compare.
    pub discarded: u64,
}

/// A line for each kind of the linker's table, in its order.
pub fn lines(report: &Report) -> Vec<Line> {
    let line = |row: &jitcast_linker::relocation::Relocation| {
        let tally = report.kinds.get(&row.number).cloned().unwrap_or_default();
        Line {
            name: row.name,
            sites: tally.sites,
            compared: tally.compared,
            excused: tally.excused.values().sum(),
            discarded: tally.apart.values().sum(),
        }
    };
    TABLE.iter().map(line).collect()
}

/// The kinds of the table of which no site was compared.
pub fn never_compared(report: &Report) -> Vec<&'static str> {
    let lines = lines(report);
    let never = lines.iter().filter(|line| line.compared == 0);
    never.map(|line| line.name).collect()
}
