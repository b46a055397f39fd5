//! The journal on a file system that forgets whatever was not synced.

mod crashes;
mod damage;
mod disagreement;
mod disk;
mod failures;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use jitcast_runtime::Area;
use jitcast_runtime::heap::HeapImage;

use super::image::written;
use super::{JournalOptions, Past};
use crate::catalog::Catalog;
use crate::front::{Options, compile_bytes};
use crate::history::{History, RetainedUnit};
use crate::{
    Audience, Changeset, Compiler, CompilerOptions, PublishError, PublishOptions, StartError,
    Status, UnitSource,
};
use disk::Disk;

/// Names of the units that tests publish, and how many versions there are of each.
const UNITS: [&str; 3] = ["a", "b", "c"];
const VERSIONS: usize = 4;

/// A compiler that keeps its journal on `disk`.
fn start(disk: &Disk, options: &JournalOptions) -> Result<Compiler, StartError> {
    start_with(disk, options, crate::DEFAULT_RETAIN)
}

/// One that retains the last `retain` publications.
fn start_with(
    disk: &Disk,
    options: &JournalOptions,
    retain: usize,
) -> Result<Compiler, StartError> {
    let options = CompilerOptions {
        journal: Some(options.clone()),
        retain,
        reclaim_above_bytes: 0,
        ..CompilerOptions::with_window(8 << 20).unwrap()
    };
    let journal = options.journal.as_ref().unwrap();
    let past = Past::open(disk, journal)?;
    Compiler::with_journal(&options, Box::new(disk.clone()), past)
}

fn options() -> JournalOptions {
    JournalOptions::new("the-journal")
}

/// A version of a unit: a function of the unit's name; each but the first unit calls the one before. The second
/// one is kept when it is replaced.
fn unit(index: usize, version: usize) -> &'static UnitSource {
    static ALL: OnceLock<Vec<UnitSource>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let each = |index: usize| (0..VERSIONS).map(move |version| compile(index, version));
        (0..UNITS.len()).flat_map(each).collect()
    });
    &all[index * VERSIONS + version]
}

fn compile(index: usize, version: usize) -> UnitSource {
    let name = UNITS[index];
    let callee = if index == 0 {
        "putchar"
    } else {
        UNITS[index - 1]
    };
    let text = format!(
        "function %{name}(i64) -> i64 {{\n    fn0 = %{callee}(i64) -> i64\nblock0(v0: i64):\n    \
         v1 = call fn0(v0)\n    v2 = iconst.i64 {version}\n    v3 = iadd v1, v2\n    return v3\n}}\n"
    );
    let file = compile_bytes(&format!("{name}.clif"), text.into(), &Options::default()).unwrap();
    let mut source = UnitSource::new(name, [file]);
    if index == 1 {
        source.reclaim = crate::Reclaim::No;
    }
    source
}

/// Everything that a restart has to bring back.
#[derive(Clone, Debug, PartialEq)]
struct Image {
    status: Status,
    catalog: Catalog,
    history: History,
    heap: HeapImage,
    extents: [u32; Area::COUNT],
    /// What lies in each shared range that is in use, and the stubs.
    bytes: BTreeMap<u32, Vec<u8>>,
}

/// What `compiler` holds.
fn image(compiler: &Compiler) -> Image {
    let segment = compiler.segment();
    let (memory, geometry) = (segment.memory(), segment.geometry());
    let state = compiler.state.lock();
    // What nobody is inside any more may be retired in the one, and free in the other.
    let heap = HeapImage {
        retired: Vec::new(),
        floor: 0,
        ..state.heap.image()
    };
    let ranges = heap.live.iter();
    let ranges = ranges.filter_map(|(area, range)| match area {
        // Of private cells, the stubs of all but the first, which is the traps'.
        Area::CallCells => {
            let mut cells = *range;
            cells.start += 8;
            cells.len_bytes -= 8;
            (cells.len_bytes > 0).then(|| written(geometry, *area, cells))?
        }
        _ => written(geometry, *area, *range),
    });
    let bytes = ranges.map(|range| {
        let bytes = memory.bytes(range.offset(), range.len_bytes as usize);
        (range.start, bytes.unwrap())
    });
    let bytes = bytes.collect();
    let extents = state.latest.extents;
    let (catalog, history) = (state.catalog.clone(), state.history.clone());
    drop(state);
    Image {
        status: Status {
            retired_bytes: 0,
            areas: Vec::new(),
            backed_bytes: 0,
            // What this process has seen itself: a log that was written anew does not tell of it.
            removed: Vec::new(),
            held: Vec::new(),
            journal: None,
            errors: Vec::new(),
            ..compiler.status()
        },
        catalog,
        history,
        heap,
        extents,
        bytes,
    }
}

#[track_caller]
fn publish(compiler: &Compiler, index: usize, version: usize) -> u64 {
    let published = compiler.publish(&[unit(index, version).clone()]);
    published
        .unwrap_or_else(|error| panic!("{error}"))
        .generation
}

/// Writes the log anew, whatever its length.
fn compact(compiler: &Compiler) -> Result<(), super::JournalError> {
    let state = compiler.state.lock();
    let mut journal = compiler.journal.lock();
    journal
        .as_mut()
        .unwrap()
        .compact(&compiler.segment(), &state)
}

/// Whether what is published and what can be had again can be read from the journal.
fn has_all_contents(compiler: &Compiler) -> Result<(), String> {
    let state = compiler.state.lock();
    let mut journal = compiler.journal.lock();
    let journal = journal.as_mut().unwrap();
    let published = state.history.published().values().map(|known| &known.unit);
    let before = state
        .history
        .entries()
        .flat_map(|entry| entry.before.values());
    let canaries = state.catalog.canaries.values();
    let candidates = canaries.flat_map(|canary| &canary.retained);
    for unit in published.chain(before.flatten()).chain(candidates) {
        let source = journal.source(unit).map_err(|error| error.to_string())?;
        if RetainedUnit::new(&source) != *unit {
            return Err(format!("{} is made of something else", unit.name));
        }
    }
    Ok(())
}

/// Begins a canary of a version of a unit, for one worker.
fn begin(
    compiler: &Compiler,
    index: usize,
    version: usize,
) -> Result<crate::Publication, PublishError> {
    compiler.change(&Changeset {
        units: &[unit(index, version).clone()],
        canary: Some(&Audience::Workers(1)),
        ..Changeset::default()
    })
}

/// Removes a unit, whoever uses it.
fn remove(compiler: &Compiler, index: usize) -> Result<crate::Publication, PublishError> {
    compiler.change(&Changeset {
        removals: &[UNITS[index].to_owned()],
        options: LEAVE_TRAPS,
        ..Changeset::default()
    })
}

const LEAVE_TRAPS: PublishOptions = PublishOptions {
    leave_traps: true,
    change_signatures: false,
    keep_data: false,
    if_changed: false,
};

fn publish_error(result: Result<crate::Publication, PublishError>) -> super::JournalError {
    match result.expect_err("a refusal") {
        PublishError::Journal(error) => error,
        other => panic!("{other}"),
    }
}
