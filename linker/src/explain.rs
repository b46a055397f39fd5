//! What the linker made of each relocation, and where it put each piece: for people who ask why.

use core::fmt;
use std::collections::HashMap;

use jitcast_runtime::SegmentOffset;
use object::LittleEndian as LE;

use crate::dynamic::Held;
use crate::fixup::{Fixup, Rewrite, Target};
use crate::input::{Area, Placement};
use crate::layout::{CELLS, CONSTANTS, Content, DYNAMIC_CELLS, MODULE, Spot, THUNKS};
use crate::prepared::Prepared;
use crate::relocation::{self, Relocation, Resolved};

/// A relocation of an input, and what became of it.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The object.
    pub file: String,
    /// The section of the field, and the field's offset there, bytes.
    pub section: String,
    /// See `section`.
    pub offset: u64,
    /// The kind, with its formula.
    pub relocation: &'static Relocation,
    /// The symbol that it names.
    pub symbol: String,
    /// The addend.
    pub addend: i64,
    /// What is stored leads there.
    pub target: String,
    /// When the field's value is known.
    pub resolved: Resolved,
    /// What was done with the instruction or the field.
    pub done: Done,
}

/// What was done for a relocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Nothing: there is no field.
    Nothing,
    /// The field was filled.
    Stored,
    /// A patch: each worker fills the field.
    Patched,
    /// The load of a cell became a `lea`.
    LoadToLea,
    /// A `lea` became the load of a cell.
    LeaToLoad,
    /// A call through a cell became a direct one.
    DirectCall,
    /// A jump through a cell became a direct one.
    DirectJump,
    /// A `movabs` of an address became a `lea`.
    MovabsToLea,
    /// A `movabs` of an address became the load of a cell.
    MovabsToLoad,
    /// An access by absolute address became one by displacement.
    OffsetToOperand,
    /// The instruction became a jump to a thunk that does the same by way of a cell.
    Thunk,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing",
            Self::Stored => "stored",
            Self::Patched => "patched in each worker",
            Self::LoadToLea => "load of the cell became lea",
            Self::LeaToLoad => "lea became a load of the cell",
            Self::DirectCall => "call through the cell became direct",
            Self::DirectJump => "jump through the cell became direct",
            Self::MovabsToLea => "movabs became lea",
            Self::MovabsToLoad => "movabs became a load of the cell",
            Self::OffsetToOperand => "absolute operand became PC-relative",
            Self::Thunk => "goes through a thunk",
        })
    }
}

/// A piece of a unit, placed.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The area.
    pub area: Area,
    /// Where it starts in the window.
    pub at: SegmentOffset,
    /// Its length, bytes.
    pub len_bytes: u64,
    /// Its alignment, bytes.
    pub align_bytes: u64,
    /// The object and section that it came from, or what the linker made.
    pub what: String,
}

/// How many relocations a unit has, and what was done for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All of them.
    pub relocations: usize,
    /// Those that each worker patches.
    pub patched: usize,
    /// Those for which an instruction became another one.
    pub changed: usize,
}

/// What is done for a fixup, and when.
fn done(fixup: &Fixup) -> (Resolved, Done) {
    let done = match fixup.rewrite {
        Rewrite::Nothing if fixup.row.resolved == Resolved::AtAttach => {
            return match fixup.target {
                Target::Number(_) => (Resolved::AtLink, Done::Stored),
                _ => (Resolved::AtAttach, Done::Patched),
            };
        }
        Rewrite::Nothing => Done::Stored,
        Rewrite::Lea => Done::LoadToLea,
        Rewrite::Load => Done::LeaToLoad,
        Rewrite::Call => Done::DirectCall,
        Rewrite::MovabsToLea => Done::MovabsToLea,
        Rewrite::MovabsToLoad => Done::MovabsToLoad,
        Rewrite::OffsetToOperand => Done::OffsetToOperand,
        Rewrite::Jump(_) => Done::DirectJump,
    };
    (fixup.row.resolved, done)
}

impl Prepared<'_> {
    /// What became of each relocation of the sections that are placed, in the order of the inputs.
    pub fn explain(&self) -> Vec<Explanation> {
        let mut fixups: HashMap<Spot, Vec<Fixup>> = HashMap::new();
        let mut thunk = Vec::new();
        for fixup in self.plan.all_fixups() {
            thunk.push(fixup);
            if !fixup.in_thunk {
                fixups.entry(fixup.asked()).or_default().append(&mut thunk);
            }
        }
        let mut explanations = Vec::new();
        for (number, object) in self.unit.objects.iter().enumerate() {
            for table in &object.relocations {
                let Some(chunk) = self.unit.chunk_of(number, table.section) else {
                    continue;
                };
                for entry in table.entries {
                    let offset = entry.r_offset.get(LE);
                    let spot = Spot {
                        chunk,
                        offset: offset as u32,
                    };
                    // Every kind that is left has a row.
                    let Some(relocation) = relocation::lookup(entry.r_type(LE, false)) else {
                        continue;
                    };
                    let mut explanation = Explanation {
                        file: object.name.clone(),
                        section: object.sections[table.section].name.to_owned(),
                        offset,
                        relocation,
                        symbol: object.symbol_label(entry.r_sym(LE, false)),
                        addend: entry.r_addend.get(LE),
                        target: "-".to_owned(),
                        resolved: Resolved::Never,
                        done: Done::Nothing,
                    };
                    if let Some(fixups) = fixups.get(&spot) {
                        self.tell(&mut explanation, fixups, chunk);
                    }
                    explanations.push(explanation);
                }
            }
        }
        explanations
    }

    fn tell(&self, explanation: &mut Explanation, fixups: &[Fixup], chunk: u32) {
        // What goes through a thunk has its cell there.
        let there = fixups
            .iter()
            .find(|fixup| fixup.site.chunk == THUNKS && chunk != THUNKS);
        let Some(here) = fixups.iter().find(|fixup| fixup.site.chunk == chunk) else {
            return;
        };
        explanation.target = self.target_name(there.unwrap_or(here).target);
        (explanation.resolved, explanation.done) = match there {
            Some(_) => (here.row.resolved, Done::Thunk),
            None => done(here),
        };
    }

    /// How many relocations there are, how many of them each worker patches, and for how many an instruction
    /// changed: [`Prepared::explain`] without the words.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        let of_inputs = |fixup: &Fixup| {
            let chunk = self.unit.chunks.get(fixup.site.chunk as usize);
            chunk.is_some_and(|home| home.origin.is_some())
        };
        for fixup in self.plan.all_fixups().filter(of_inputs) {
            counts.relocations += 1;
            match done(&fixup).1 {
                Done::Nothing | Done::Stored => {}
                Done::Patched => counts.patched += 1,
                _ => counts.changed += 1,
            }
        }
        counts
    }

    fn target_name(&self, target: Target) -> String {
        let reference = |reference: u32| {
            let found = self.references().get(reference as usize);
            found.map_or("", |found| found.name)
        };
        match target {
            Target::Spot(spot) => self.spot_name(spot),
            Target::Number(value) => format!("the number {value:#x}"),
            Target::Stub(number) => format!("the stub of `{}`", reference(number)),
            Target::CallCell(number) => format!("the call cell of `{}`", reference(number)),
            Target::AddressCell(number) => format!("the address cell of `{}`", reference(number)),
            Target::Bound(number) => format!("what `{}` is bound to", reference(number)),
            Target::Window => "the start of the window".to_owned(),
        }
    }

    fn spot_name(&self, spot: Spot) -> String {
        let index = spot.offset as usize / 8;
        match spot.chunk {
            CONSTANTS => {
                let value = self.plan.constants.get(index).copied().unwrap_or_default();
                format!("a constant that holds {value:#x}")
            }
            CELLS => match self.plan.cells.get(index) {
                Some(held) => format!("a cell with the address of {}", self.spot_name(*held)),
                None => "a cell".to_owned(),
            },
            DYNAMIC_CELLS => match self.plan.dynamic.held(spot.offset) {
                Some(Held::Block) => "the pair of the unit's block".to_owned(),
                Some(Held::Own(held)) => format!("the pair of {}", self.spot_name(held)),
                Some(Held::Pair(number)) => {
                    format!("the pair of `{}`", self.references()[number as usize].name)
                }
                Some(Held::FromThread(number)) => format!(
                    "a cell with the distance of `{}` from the thread pointer",
                    self.references()[number as usize].name
                ),
                Some(Held::Resolved(held)) => {
                    format!("a cell with what {} returns", self.spot_name(held))
                }
                None => "a cell".to_owned(),
            },
            _ => {
                let area = self.unit.chunks[spot.chunk as usize].area.name();
                format!(
                    "{}+{:#x} in {area}",
                    self.chunk_name(spot.chunk),
                    spot.offset
                )
            }
        }
    }

    fn chunk_name(&self, number: u32) -> String {
        let chunk = &self.unit.chunks[number as usize];
        if let Some((object, section)) = chunk.origin {
            let object = &self.unit.objects[object as usize];
            return format!("{}:{}", object.name, object.sections[section as usize].name);
        }
        match number {
            THUNKS => "thunks",
            CONSTANTS => "constants",
            CELLS => "cells of the unit's own",
            DYNAMIC_CELLS => "cells of other values",
            MODULE => "module",
            _ => "common symbols and copies",
        }
        .to_owned()
    }

    /// Where each piece lies if the unit is placed there, in the order of the window.
    pub fn map(&self, at: &Placement) -> Vec<Piece> {
        let pieces = (0..)
            .zip(&self.unit.chunks)
            .filter(|(_, chunk)| chunk.len_bytes() > 0);
        let mut pieces: Vec<Piece> = pieces
            .map(|(number, chunk)| {
                let mut what = self.chunk_name(number);
                if chunk.thread_local && matches!(chunk.content, Content::Zero(_)) {
                    what += " (zeros of each thread, nowhere in the window)";
                } else if chunk.thread_local {
                    what += " (what each thread's copy is made of)";
                }
                Piece {
                    area: chunk.area,
                    at: SegmentOffset::new(at.start(chunk.area).get().wrapping_add(chunk.position)),
                    len_bytes: chunk.len_bytes(),
                    align_bytes: chunk.align_bytes,
                    what,
                }
            })
            .collect();
        pieces.sort_by_key(|piece| (piece.at, piece.len_bytes));
        pieces
    }
}

impl Area {
    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::ReadOnly => "read-only data",
            Self::Private => "private data",
            Self::SharedData => "shared data",
        }
    }
}
