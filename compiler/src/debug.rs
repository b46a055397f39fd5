//! What debugging information says of published units, for debuggers, profilers and people; and which workers are to show it.
//!
//! Nothing of it is kept: a unit is read and laid out again, from the sources that are retained of it, when somebody asks. Where a
//! unit's sections lie follows from its files and its options alone, so it comes out as it was published; that is checked by
//! its functions. Invariant: what was made of other files, or by a linker that lays out otherwise, says nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;

use gimli::{EndianSlice, LineProgramHeader, LineRow, LittleEndian, Section as _};
use jitcast_linker::{Carried, Place, Placement, Prepared};
use jitcast_runtime::SegmentOffset;
use jitcast_runtime::debug::{DebugSection, Lines, Row, Wanted};
use jitcast_runtime::mailbox::Word;

use crate::catalog::{Kind, Symbol, Unit};
use crate::changeset::Changeset;
use crate::compiler::Compiler;
use crate::error::PublishError;
use crate::history::RetainedUnit;
use crate::publish::{Batch, Publication, Retaining, UnitSource};
use crate::state::State;

/// A published unit, and all that it takes to lay it out again.
struct Known {
    source: UnitSource,
    placement: Placement,
    text_bytes: u32,
    /// Where its symbols lie.
    symbols: HashMap<String, (Kind, SegmentOffset)>,
}

/// How much of abbreviations is read of one unit at most, bytes: those of every object may overlap, as no compiler makes them.
const MAX_ABBREVIATION_BYTES: usize = 1 << 30;

impl Compiler {
    /// The debugging sections of the unit of this number, with the addresses of a window that begins at `base`; empty if nothing
    /// is known: it was compiled without, its sources are not retained, or it is not published any more.
    pub fn debug_sections(&self, unit: u32, base: u64) -> Vec<DebugSection> {
        let known = self.known_unit(unit);
        known.map_or_else(Vec::new, |known| known.sections(base).unwrap_or_default())
    }

    /// Which lines the code of the unit of this number comes from.
    pub fn lines(&self, unit: u32) -> Lines {
        let Some(known) = self.known_unit(unit) else {
            return Lines::default();
        };
        let sections = known.sections(0).unwrap_or_default();
        lines(&sections, known.placement.text, known.text_bytes)
    }

    /// The worker of process `pid`, or every worker, shows debuggers and profilers what is `wanted`, from its next guard on: so
    /// there is a publication, which changes nothing else. `None`: there is no such worker.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn want_shown(
        &self,
        pid: Option<i32>,
        wanted: Wanted,
    ) -> Result<Option<Publication>, PublishError> {
        let mut state = self.state.lock();
        let workers = self.workers.lock();
        let entries = workers.entries.iter();
        let meant = entries.filter(|entry| pid.is_none_or(|pid| entry.pid == pid));
        let mut found = pid.is_none();
        for entry in meant {
            found = true;
            // Before the head moves, by which workers find out.
            let word = entry.mailbox.word(Word::Wanted);
            word.store(wanted.word(), Ordering::Relaxed);
        }
        drop(workers);
        if !found {
            return Ok(None);
        }
        let nothing = Changeset::default();
        let publish = |state: &mut State| {
            let (generation, published_ns) =
                self.commit(state, &Retaining::nothing(), |site, txn, edit| {
                    Batch::new(site, &nothing, &[])?.write(txn, edit)
                })?;
            Ok(Publication {
                generation,
                published_ns,
                ..Publication::default()
            })
        };
        self.make_visible(&mut state, publish).map(Some)
    }

    fn known_unit(&self, number: u32) -> Option<Known> {
        let state = self.state.lock();
        let (name, unit, retained, symbol) = find(&state, number)?;
        if self.journal.lock().is_none() && !state.history.retains() {
            return None;
        }
        let own = unit.defines.iter().filter_map(|defined| {
            let symbol = symbol(defined).filter(|symbol| symbol.unit == *name)?;
            Some((defined.clone(), (symbol.kind, symbol.place)))
        });
        let symbols = own.collect();
        let mut sources = self.sources(&state, std::slice::from_ref(retained)).ok()?;
        let start =
            |region: jitcast_runtime::records::StoredRegion| SegmentOffset::new(region.start);
        Some(Known {
            source: sources.pop()?,
            placement: Placement {
                text: start(unit.text),
                read_only: start(unit.read_only),
                private: start(unit.private),
                shared: start(unit.shared),
                number: number.into(),
            },
            text_bytes: unit.text.len_bytes,
            symbols,
        })
    }
}

type Symbols<'a> = Box<dyn Fn(&str) -> Option<&'a Symbol> + 'a>;

/// The unit of this number, what it was made of, and by which its symbols are found.
fn find(state: &State, number: u32) -> Option<(&String, &Unit, &RetainedUnit, Symbols<'_>)> {
    let catalog = &state.catalog;
    let mut units = catalog.units.iter();
    if let Some((name, unit)) = units.find(|(_, unit)| unit.number == number) {
        let published = state.history.published().get(name)?;
        return Some((
            name,
            unit,
            &published.unit,
            Box::new(|name| catalog.symbols.get(name)),
        ));
    }
    catalog.canaries.values().find_map(|canary| {
        let mut units = canary.units.iter();
        let (name, unit) = units.find(|(_, unit)| unit.number == number)?;
        let mut retained = canary.retained.iter();
        let retained = retained.find(|retained| retained.name == *name)?;
        let symbols: Symbols<'_> = Box::new(|name| canary.symbols.get(name));
        Some((name, unit, retained, symbols))
    })
}

impl Known {
    /// Its debugging sections; `None`: what is retained is not what was published.
    fn sections(&self, base: u64) -> Option<Vec<DebugSection>> {
        let inputs = self.source.inputs();
        let prepared = Prepared::read(&self.source.name, &inputs, &self.source.options()).ok()?;
        if prepared.extents().text.len_bytes != u64::from(self.text_bytes) {
            return None;
        }
        let mut carried = Vec::new();
        for placed in prepared.symbols(&self.placement).ok()? {
            let definition = prepared.definitions().get(placed.definition)?;
            let known = self.symbols.get(definition.name);
            let (Place::At(_, own), Some(&(kind, place))) = (placed.place, known) else {
                continue;
            };
            if own != place {
                if kind != Kind::Data {
                    return None;
                }
                carried.push(Carried {
                    definition: placed.definition,
                    place,
                    since: 0,
                });
            }
        }
        Some(prepared.debug_sections(&self.placement, base, &carried))
    }
}

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// The lines of the text of `len_bytes` at `text`, as far as the sections, in which the window begins at 0, can be read.
fn lines(sections: &[DebugSection], text: SegmentOffset, len_bytes: u32) -> Lines {
    let find = |id: gimli::SectionId| {
        let section = sections.iter().find(|section| section.name == id.name());
        let bytes = section.map_or(&[][..], |section| &section.bytes);
        Ok::<_, gimli::Error>(EndianSlice::new(bytes, LittleEndian))
    };
    let mut reading = Reading {
        text: u64::from(text.get())..u64::from(text.get()) + u64::from(len_bytes),
        lines: Lines::default(),
        numbers: BTreeMap::new(),
        left: sections.iter().map(|section| section.bytes.len()).sum(),
        abbreviations_left: MAX_ABBREVIATION_BYTES,
    };
    if let Ok(dwarf) = gimli::Dwarf::load(find) {
        // What was read before something that is not understood counts.
        let _ = reading.read(&dwarf);
    }
    let mut lines = reading.lines;
    // Of several rows for one place the last one counts, but an end only where nothing else begins.
    lines.rows.sort_by_key(|row| (row.at, row.line != 0));
    lines.rows.reverse();
    lines.rows.dedup_by_key(|row| row.at);
    lines.rows.reverse();
    lines
}

/// Lines while they are read.
struct Reading {
    text: std::ops::Range<u64>,
    lines: Lines,
    /// The number of each file's name.
    numbers: BTreeMap<String, u32>,
    /// How many rows, and bytes of names, may still be read: a row takes a byte of a line program at least.
    left: usize,
    abbreviations_left: usize,
}

impl Reading {
    fn read(&mut self, dwarf: &gimli::Dwarf<Slice<'_>>) -> gimli::Result<()> {
        let mut units = dwarf.units();
        while let Some(header) = units.next()? {
            let (all, own) = (
                dwarf.debug_abbrev.reader().len(),
                header.debug_abbrev_offset(),
            );
            let most = all.saturating_sub(own.0);
            let Some(left) = self.abbreviations_left.checked_sub(most) else {
                return Ok(());
            };
            self.abbreviations_left = left;
            let unit = dwarf.unit(header)?;
            let Some(program) = unit.line_program.clone() else {
                continue;
            };
            let folder = unit
                .comp_dir
                .map(|folder| folder.to_string_lossy().into_owned());
            let mut known = HashMap::new();
            let mut rows = program.rows();
            while let Some((header, row)) = rows.next_row()? {
                if !self.take(1) {
                    return Ok(());
                }
                let at_end = row.end_sequence() && row.address() == self.text.end;
                if !at_end && !self.text.contains(&row.address()) {
                    continue;
                }
                let file = match known.get(&row.file_index()) {
                    Some(&number) => number,
                    None => {
                        let name = name_of(dwarf, &unit, header, row, folder.as_deref());
                        if !self.take(name.len()) {
                            return Ok(());
                        }
                        let number = self.number(name);
                        known.insert(row.file_index(), number);
                        number
                    }
                };
                let line = row
                    .line()
                    .map_or(0, |line| u32::try_from(line.get()).unwrap_or(0));
                self.lines.rows.push(Row {
                    // Inside the text, which ends below 4 GiB.
                    at: row.address() as u32,
                    line: if row.end_sequence() { 0 } else { line },
                    file,
                });
            }
        }
        Ok(())
    }

    /// Whether so much more may be read.
    fn take(&mut self, steps: usize) -> bool {
        let left = self.left.checked_sub(steps);
        self.left = left.unwrap_or(0);
        left.is_some()
    }

    fn number(&mut self, name: String) -> u32 {
        let next = self.numbers.len() as u32;
        let files = &mut self.lines.files;
        *self.numbers.entry(name).or_insert_with_key(|name| {
            files.push(name.clone());
            next
        })
    }
}

/// The path of a row's file, as far as debugging information says it.
fn name_of(
    dwarf: &gimli::Dwarf<Slice<'_>>,
    unit: &gimli::Unit<Slice<'_>>,
    header: &LineProgramHeader<Slice<'_>>,
    row: &LineRow,
    folder: Option<&str>,
) -> String {
    let text = |value| {
        let text = dwarf.attr_string(unit, value).ok()?;
        Some(text.to_string_lossy().into_owned())
    };
    let Some(file) = row.file(header) else {
        return "?".to_owned();
    };
    let name = text(file.path_name()).unwrap_or_default();
    let directory = file.directory(header).and_then(text);
    let mut path = std::path::PathBuf::new();
    // A later part that is absolute replaces those before it.
    for part in [folder, directory.as_deref(), Some(&name)]
        .into_iter()
        .flatten()
    {
        path.push(part);
    }
    path.display().to_string()
}

/// The answer to a question about a unit.
pub(crate) fn answer(compiler: &Compiler, payload: &[u8]) -> Result<Vec<u8>, String> {
    use jitcast_runtime::debug::{
        ASK_LINES, ASK_SECTIONS, DebugRequest, MAX_ANSWER_BYTES, encode_sections,
    };
    use zerocopy::FromBytes;

    let request = DebugRequest::read_from_bytes(payload)
        .map_err(|_| "malformed question about a unit".to_owned())?;
    let answer = match request.what {
        ASK_SECTIONS => encode_sections(&compiler.debug_sections(request.unit, request.base)),
        ASK_LINES => compiler.lines(request.unit).encode(),
        other => return Err(format!("nobody can answer question {other} about a unit")),
    };
    if answer.len() > MAX_ANSWER_BYTES as usize {
        return Err(format!(
            "debugging information of {} bytes exceeds the limit of {MAX_ANSWER_BYTES}\n  help: publish what is to be debugged as several units",
            answer.len()
        ));
    }
    Ok(answer)
}
