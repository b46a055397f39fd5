//! What a publisher asks for: units, removals and symbol updates that become visible as one.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::publish::UnitSource;

/// Everything that one publication is to change: all of it becomes visible at once, or nothing.
///
/// ```
/// # use jitcast_compiler::front::{Options, compile_bytes};
/// # use jitcast_compiler::{Changeset, Compiler, CompilerOptions, UnitSource};
/// # fn same(name: &str) -> Result<UnitSource, Box<dyn std::error::Error>> {
/// #     let text = format!("function %{name}(i64) -> i64 {{\nblock0(v0: i64):\n    return v0\n}}");
/// #     Ok(UnitSource::new(name, [compile_bytes("same.clif", text.into(), &Options::default())?]))
/// # }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let compiler = Compiler::create(&CompilerOptions::default())?;
/// let old = compiler.publish(&[same("old")?])?;
/// let changes = Changeset {
///     units: &[same("new")?],
///     removals: &["old".to_owned()],
///     ..Changeset::default()
/// };
/// let done = compiler.change(&changes)?;
/// assert_eq!(done.generation, old.generation + 1);
/// assert_eq!(done.functions, ["new"]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Changeset<'a> {
    /// Units to publish; one that has the name of a published one replaces it.
    pub units: &'a [UnitSource],
    /// Names of published units to remove.
    pub removals: &'a [String],
    /// Updates of symbols.
    pub updates: &'a [SymbolUpdate],
    /// What it asks for besides.
    pub options: PublishOptions,
    /// Who runs the units, until the canary is promoted or aborted; `None`: every worker.
    pub canary: Option<&'a Audience>,
}

/// The workers that run a canary: also those that attach later, as long as it runs.
///
/// ```
/// # use jitcast_compiler::front::{Options, compile_bytes};
/// # use jitcast_compiler::{Audience, Changeset, Compiler, CompilerOptions, UnitSource};
/// # fn same(name: &str) -> Result<UnitSource, Box<dyn std::error::Error>> {
/// #     let text = format!("function %{name}(i64) -> i64 {{\nblock0(v0: i64):\n    return v0\n}}");
/// #     Ok(UnitSource::new(name, [compile_bytes("same.clif", text.into(), &Options::default())?]))
/// # }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let compiler = Compiler::create(&CompilerOptions::default())?;
/// compiler.publish(&[same("score")?])?;
/// let canary = Changeset {
///     units: &[same("score")?],
///     canary: Some(&Audience::Label("blue".to_owned())), // or Audience::Workers(2)
///     ..Changeset::default()
/// };
/// compiler.change(&canary)?;
/// compiler.promote("score")?; // or abort
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Audience {
    /// So many workers, at the least 1. When one of them ends, the next that attaches takes its place.
    Workers(u32),
    /// The workers that gave this label when they attached: 1 to 63 bytes.
    Label(String),
}

impl fmt::Display for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workers(1) => f.write_str("1 worker"),
            Self::Workers(count) => write!(f, "{count} workers"),
            Self::Label(label) => write!(f, "workers labelled `{label}`"),
        }
    }
}

impl Changeset<'_> {
    /// Whether units are asked for, and nothing else.
    pub(crate) fn is_units_only(&self) -> bool {
        !self.units.is_empty() && self.removals.is_empty() && self.updates.is_empty()
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.units.is_empty() && self.removals.is_empty() && self.updates.is_empty()
    }
}

/// A change of what a function's name leads to, without linking anything.
///
/// ```
/// # use jitcast_compiler::front::{Options, compile_bytes};
/// # use jitcast_compiler::{Changeset, Compiler, CompilerOptions, SymbolUpdate, UnitSource};
/// # fn same(name: &str) -> Result<UnitSource, Box<dyn std::error::Error>> {
/// #     let text = format!("function %{name}(i64) -> i64 {{\nblock0(v0: i64):\n    return v0\n}}");
/// #     Ok(UnitSource::new(name, [compile_bytes("same.clif", text.into(), &Options::default())?]))
/// # }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let compiler = Compiler::create(&CompilerOptions::default())?;
/// compiler.publish(&[same("score")?])?;
/// let updates = [SymbolUpdate::Quarantine("score".to_owned())];
/// compiler.change(&Changeset { updates: &updates, ..Changeset::default() })?;
/// compiler.restore(&["score".to_owned()])?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SymbolUpdate {
    /// Handles of this function lead to the fallbacks that their hosts gave them, and every other way to it to a trap,
    /// until it is restored; whatever is published under the name meanwhile. Only its own unit goes on calling it.
    Quarantine(String),
    /// The name leads to what is published again.
    Restore(String),
}

impl SymbolUpdate {
    /// The name that it is about.
    pub(crate) fn symbol(&self) -> &str {
        match self {
            Self::Quarantine(symbol) | Self::Restore(symbol) => symbol,
        }
    }
}

/// What the publisher asks for besides, and takes upon itself.
///
/// ```
/// # use jitcast_compiler::front::{Options, compile_bytes};
/// # use jitcast_compiler::{Changeset, Compiler, CompilerOptions, PublishOptions, UnitSource};
/// # fn same(name: &str) -> Result<UnitSource, Box<dyn std::error::Error>> {
/// #     let text = format!("function %{name}(i64) -> i64 {{\nblock0(v0: i64):\n    return v0\n}}");
/// #     Ok(UnitSource::new(name, [compile_bytes("same.clif", text.into(), &Options::default())?]))
/// # }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let compiler = Compiler::create(&CompilerOptions::default())?;
/// let units = [same("score")?];
/// let options = PublishOptions { if_changed: true, ..PublishOptions::default() };
/// let changes = Changeset { units: &units, options, ..Changeset::default() };
/// let first = compiler.change(&changes)?;
/// assert_eq!(compiler.change(&changes)?.generation, first.generation);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishOptions {
    /// Functions that others still use may go or be quarantined: their calls end the process that makes them, with a
    /// message, until the name is published again or restored.
    pub leave_traps: bool,
    /// Functions may get another signature: their callers are ready for it. Handles of the old signature lead to a
    /// trap then.
    pub change_signatures: bool,
    /// Variables that a replaced unit and its new version define alike keep their places and contents: those with a name
    /// that others see. Static ones have none, and start afresh, as all do without this.
    pub keep_data: bool,
    /// Nothing is done if all units are published with these very contents and options already, and nothing else is
    /// asked for: the answer is that publication. So publishers that start together link once. Without it units are
    /// linked again: their data start afresh, and names that are the host's are decided anew.
    pub if_changed: bool,
}
