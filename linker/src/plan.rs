//! From relocations to fixups: what each field will hold, and which cells and stubs that takes.
//!
//! Nothing has an address yet. A fixup names its operands; [`crate::apply`] computes.

use std::collections::{BTreeMap, HashMap};

use object::LittleEndian as LE;

use crate::answer::Answers;
use crate::classify::{self, Number, Storage, Use};
use crate::dynamic::{self, DynamicCells, Held};
use crate::error::{LinkError, Misuse, Problem};
use crate::fixup::{Detour, Field, Fixup, Target};
use crate::input::{Area, Reference};
use crate::layout::{CELLS, CONSTANTS, Content, MODULE, Spot};
use crate::mutant::{Mutant, makes};
use crate::object_file::{ObjectFile, Relocations, ask_ahead};
use crate::relocation::{ABSOLUTE, CELL, COPY, RELATIVE, Refusal, Resolved, Row};
use crate::request::{Request, Symbols, read};
use crate::unit::{Meaning, Own, Unit};

/// "None" among the references of globals.
const NONE: u32 = u32::MAX;

/// What was planned.
#[derive(Debug, Default)]
pub(crate) struct Plan<'a> {
    /// What each field will hold that is not answered for.
    pub(crate) fixups: Vec<Fixup>,
    pub(crate) answers: Answers<'a>,
    pub(crate) detours: Vec<Detour>,
    pub(crate) references: Vec<Reference<'a>>,
    /// The reference of each global that has one, else [`NONE`].
    reference_of: Vec<u32>,
    /// What each of the unit's own cells holds the address of.
    pub(crate) cells: Vec<Spot>,
    cell_of: HashMap<Spot, u32>,
    pub(crate) dynamic: DynamicCells,
    /// References that have to be the host's, being reached from the thread pointer, with the first site.
    pub(crate) from_thread: BTreeMap<u32, Spot>,
    /// What each of the unit's own constants is.
    pub(crate) constants: Vec<u64>,
    constant_of: HashMap<u64, u32>,
}

/// What a relocation of text comes to.
enum Planned {
    /// Its field leads to this.
    Field(Target),
    /// The same, and its instruction need not go through a cell.
    Relaxed(Target),
    /// Its instruction becomes another one, which is among the detours.
    Detour,
}

/// Plans every relocation of the unit that is placed.
pub(crate) fn plan<'a>(unit: &Unit<'a>) -> Result<Plan<'a>, LinkError> {
    let mut plan = Plan {
        reference_of: vec![NONE; unit.globals.list.len()],
        ..Plan::default()
    };
    let mut symbols = Symbols::default();
    let (mut sharing, mut others) = (0, 0);
    for object in &unit.objects {
        let room = if shares(object) {
            &mut sharing
        } else {
            &mut others
        };
        *room += object.relocation_count;
    }
    plan.answers.reserve(sharing);
    plan.fixups.reserve(others);
    let globals = unit.globals.list.len();
    plan.references.reserve(globals.min(sharing + others));
    for (number, object) in unit.objects.iter().enumerate() {
        ask_ahead(&unit.objects, number);
        symbols.begin(unit, number);
        let shares = shares(object);
        if shares {
            plan.answers.begin(object.symbols.len());
        }
        for table in &object.relocations {
            if let Some(chunk) = unit.chunk_of(number, table.section) {
                plan.table(unit, &mut symbols, number, table, chunk, shares)?;
            }
        }
    }
    plan.resolvers(unit);
    plan.copies(unit)?;
    if let Some(start) = unit.block_start() {
        let module = Spot {
            chunk: MODULE,
            offset: 0,
        };
        let filled = dynamic::fixup(module, ABSOLUTE, Target::Spot(start), 0);
        plan.fixups.push(filled);
    }
    plan.own_cells();
    Ok(plan)
}

/// Whether the relocations of an object share answers. Where most symbols are asked for but once, looking for them costs more
/// than it saves.
fn shares(object: &ObjectFile<'_>) -> bool {
    object.relocation_count >= object.symbols.len()
}

impl<'a> Plan<'a> {
    /// All fixups, those of relocations that are answered for too.
    pub(crate) fn all_fixups(&self) -> impl Iterator<Item = Fixup> {
        let answered = self.answers.fixups(|_| true);
        answered.chain(self.fixups.iter().copied())
    }

    fn table(
        &mut self,
        unit: &Unit<'a>,
        symbols: &mut Symbols<'_>,
        object: usize,
        table: &Relocations<'a>,
        chunk: u32,
        shares: bool,
    ) -> Result<(), LinkError> {
        let home = &unit.chunks[chunk as usize];
        let Content::Input(bytes) = home.content else {
            return Ok(());
        };
        let in_text = home.area == Area::Text;
        let shares = shares && in_text;
        if shares {
            self.answers.begin_batch(chunk, table.entries);
        }
        let mut left = table.entries;
        while let Some((entry, rest)) = match shares {
            true => self.answers.give_known(left, bytes),
            false => left.split_first(),
        } {
            left = rest;
            let planned = match read(unit, symbols, object, table, chunk, bytes, entry) {
                Ok(Some(request)) if in_text => self.text(unit, &request, shares),
                Ok(Some(request)) => self.data(unit, &request).map(|()| None),
                Ok(None) => Ok(None),
                Err(problem) => Err(problem),
            };
            match planned {
                Ok(answer) if shares => self.answers.give(answer),
                Ok(_) => {}
                Err(problem) => {
                    let object = &unit.objects[object];
                    return Err(object.error_at(table.section, entry.r_offset.get(LE), problem));
                }
            }
        }
        Ok(())
    }

    /// Plans a relocation of text; where it shares with others, returns its answer.
    fn text(
        &mut self,
        unit: &Unit<'a>,
        request: &Request<'_>,
        shares: bool,
    ) -> Result<Option<u32>, Problem> {
        let field = request.site.offset as usize;
        let usage = classify::in_text(&request.row, request.bytes, field, request.addend);
        let (target, relaxed) = match self.used(unit, request, usage)? {
            Planned::Field(target) => (target, false),
            Planned::Relaxed(target) => (target, true),
            Planned::Detour => return Ok(None),
        };
        let mut fixup = request.fixup(target);
        if relaxed {
            fixup.relax(usage);
        }
        let answer = match shares {
            true => self.answers.keep(request, usage, &fixup),
            false => None,
        };
        if answer.is_none() {
            self.fixups.push(fixup);
        }
        Ok(answer)
    }

    /// Plans what an instruction of text does with a symbol.
    fn used(
        &mut self,
        unit: &Unit<'a>,
        request: &Request<'_>,
        usage: Use,
    ) -> Result<Planned, Problem> {
        let meaning = match usage {
            Use::Number(_) => return Ok(Planned::Field(self.number(unit, request, usage)?)),
            Use::Thread(storage) => {
                let target = self.thread_local(unit, request, storage)?;
                return Ok(Planned::Field(target));
            }
            _ => self.addressed(unit, request)?,
        };
        // What is far rarer than the rest is decided elsewhere, by a copy.
        let target = match (usage, meaning) {
            (Use::Word, &Meaning::Absolute(value)) => Target::Number(value),
            (Use::Word, _) => {
                self.immediate(unit, request, *meaning)?;
                return Ok(Planned::Detour);
            }
            (Use::Branch, Meaning::Own(own)) => Target::Spot(own.spot),
            (Use::Branch, Meaning::External(_)) if request.addend != -4 => {
                return Err(request.misuse(unit, Misuse::BranchInside));
            }
            (Use::Branch, &Meaning::External(global)) => self.stub(unit, global)?,
            (Use::TakeAddress | Use::Operand, &Meaning::External(global)) => {
                let cell = self.address_cell(unit, global)?;
                self.detour(request, cell);
                return Ok(Planned::Detour);
            }
            (Use::TakeAddress | Use::Operand, &Meaning::Absolute(value)) => {
                let cell = self.constant(value);
                self.detour(request, cell);
                return Ok(Planned::Detour);
            }
            (
                Use::TakeAddress,
                &Meaning::Own(Own {
                    exported: Some(global),
                    has_stub: true,
                    ..
                }),
            ) => self.stub(unit, global)?,
            (Use::TakeAddress | Use::Operand | Use::Near, Meaning::Own(own)) => {
                Target::Spot(own.spot)
            }
            (Use::TakeAddress | Use::Operand | Use::Near, Meaning::Window) => Target::Window,
            (Use::IndirectCall | Use::IndirectJump | Use::GotLoad | Use::GotEntry, _) => {
                return self.through_got(unit, request, usage, meaning);
            }
            (Use::Branch, Meaning::Absolute(_) | Meaning::Window) => {
                return Err(request.misuse(unit, Misuse::RelativeToAbsolute));
            }
            _ => self.elsewhere(unit, request, usage, *meaning)?,
        };
        Ok(Planned::Field(target))
    }

    fn data(&mut self, unit: &Unit<'a>, request: &Request<'_>) -> Result<(), Problem> {
        let row = request.row;
        let usage = classify::in_data(&row);
        let target = match usage {
            Use::Number(_) => self.number(unit, request, usage)?,
            Use::Thread(storage) => self.thread_local(unit, request, storage)?,
            _ => {
                let meaning = self.addressed(unit, request)?;
                match usage {
                    Use::Word => self.word(unit, *meaning, request.addend)?,
                    Use::GotEntry => self.got_entry(unit, request, meaning)?,
                    _ => self.elsewhere(unit, request, usage, *meaning)?,
                }
            }
        };
        let is_address = row.resolved == Resolved::AtAttach && !matches!(target, Target::Number(_));
        if is_address && unit.chunks[request.site.chunk as usize].area == Area::SharedData {
            return Err(request.misuse(unit, Misuse::AddressInShared));
        }
        self.fixups.push(request.fixup(target));
        Ok(())
    }

    /// What a symbol means that is taken to have an address.
    #[inline(always)]
    fn addressed<'r>(
        &self,
        unit: &Unit<'a>,
        request: &Request<'r>,
    ) -> Result<&'r Meaning, Problem> {
        match request.meaning(unit)? {
            Meaning::Own(own) if own.thread_local => Err(request.misuse(unit, Misuse::ThreadLocal)),
            meaning => Ok(meaning),
        }
    }

    /// A field that asks for a symbol's storage in the calling thread.
    fn thread_local(
        &mut self,
        unit: &Unit<'a>,
        request: &Request<'_>,
        storage: Storage,
    ) -> Result<Target, Problem> {
        let meaning = match (storage, *request.meaning(unit)?) {
            (_, Meaning::Own(own)) if !own.thread_local => {
                return Err(request.misuse(unit, Misuse::NotThreadLocal));
            }
            (_, Meaning::Absolute(_) | Meaning::Window) => {
                return Err(request.misuse(unit, Misuse::NotThreadLocal));
            }
            (_, meaning) => meaning,
        };
        let target = match (storage, meaning) {
            (Storage::Offset, Meaning::Own(own)) => Target::Spot(own.spot),
            (Storage::Block, Meaning::Own(_)) => self.dynamic.cell(Held::Block),
            (Storage::Offset | Storage::Block, _) => {
                return Err(request.refuse(unit, Refusal::OtherBlock));
            }
            (Storage::Pair, Meaning::Own(own)) => self.dynamic.cell(Held::Own(own.spot)),
            (Storage::Pair, Meaning::External(global)) => {
                let (number, reference) = self.reference(unit, global)?;
                reference.thread_local = true;
                self.dynamic.cell(Held::Pair(number))
            }
            (Storage::FromThread, Meaning::External(global)) => {
                let (number, reference) = self.reference(unit, global)?;
                reference.thread_local = true;
                self.from_thread.entry(number).or_insert(request.site);
                self.dynamic.cell(Held::FromThread(number))
            }
            (Storage::FromThread | Storage::Pair, _) => {
                return Err(request.refuse(unit, Refusal::InitialExec));
            }
        };
        Ok(target)
    }

    /// What makes indirect functions what their resolvers return.
    fn resolvers(&mut self, unit: &Unit<'a>) {
        for (index, &resolver) in (0..).zip(&unit.resolvers) {
            let cell = self.dynamic.cell(Held::Resolved(resolver));
            self.fixups.push(dynamic::thunk_fixup(index, cell));
        }
    }

    /// What fills the copies of host data.
    fn copies(&mut self, unit: &Unit<'a>) -> Result<(), LinkError> {
        for &(global, chunk) in &unit.copies {
            let len_bytes = unit.chunks[chunk as usize].len_bytes();
            let bound = self.reference(unit, global).map(|(number, reference)| {
                reference.address = true;
                Target::Bound(number)
            });
            let name = unit.globals.list[global as usize].name;
            let target = bound.map_err(|problem| LinkError::new(name, problem))?;
            let site = Spot { chunk, offset: 0 };
            let addend = len_bytes.cast_signed();
            self.fixups.push(dynamic::fixup(site, COPY, target, addend));
        }
        Ok(())
    }

    /// A field that holds a number, the same wherever the unit lies.
    fn number(
        &mut self,
        unit: &Unit<'a>,
        request: &Request<'_>,
        usage: Use,
    ) -> Result<Target, Problem> {
        let target = match usage {
            Use::Number(Number::Table) => Target::Window,
            Use::Number(Number::Size) => {
                let size = unit.size_of(request.origin.0 as usize, request.symbol);
                Target::Number(size.ok_or_else(|| request.refuse(unit, Refusal::Size))?)
            }
            _ => match *request.meaning(unit)? {
                Meaning::Absolute(value) => Target::Number(value),
                _ => return Err(request.refuse(unit, Refusal::Absolute)),
            },
        };
        Ok(target)
    }

    /// The target of what is neither an instruction's operand nor an address: a distance.
    fn elsewhere(
        &mut self,
        unit: &Unit<'a>,
        request: &Request<'_>,
        usage: Use,
        meaning: Meaning,
    ) -> Result<Target, Problem> {
        match usage {
            // Counted from the start of the cells, so the addend tells what is meant, as in an address.
            Use::FromTable | Use::StubFromTable => match meaning {
                Meaning::Own(_) | Meaning::Window => self.word(unit, meaning, request.addend),
                Meaning::External(_) if usage == Use::StubFromTable && request.addend != 0 => {
                    Err(request.misuse(unit, Misuse::BranchInside))
                }
                _ => self.distance(unit, request, meaning, usage == Use::StubFromTable),
            },
            _ => self.distance(unit, request, meaning, usage == Use::StubDistance),
        }
    }

    /// The target of an absolute address.
    fn word(&mut self, unit: &Unit<'a>, meaning: Meaning, addend: i64) -> Result<Target, Problem> {
        match meaning {
            // An address inside a function is that of its code: the stub has no inside.
            Meaning::Own(Own {
                exported: Some(global),
                has_stub: true,
                ..
            }) if addend == 0 || makes(Mutant::StubInside) => self.stub(unit, global),
            Meaning::Own(own) => Ok(Target::Spot(own.spot)),
            Meaning::Absolute(value) => Ok(Target::Number(value)),
            Meaning::Window => Ok(Target::Window),
            Meaning::External(global) => self.bound(unit, global),
        }
    }

    /// What a global of somebody else is bound to, for a patch.
    pub(crate) fn bound(&mut self, unit: &Unit<'a>, global: u32) -> Result<Target, Problem> {
        let (number, reference) = self.reference(unit, global)?;
        reference.address = true;
        Ok(Target::Bound(number))
    }

    /// The target of a distance that is no displacement. The addend does not tell what is meant, since it
    /// also holds where the distance is counted from.
    fn distance(
        &mut self,
        unit: &Unit<'a>,
        request: &Request<'_>,
        meaning: Meaning,
        to_stub: bool,
    ) -> Result<Target, Problem> {
        match meaning {
            Meaning::Own(Own {
                exported: Some(global),
                has_stub: true,
                ..
            }) => self.stub(unit, global),
            Meaning::Own(own) => Ok(Target::Spot(own.spot)),
            Meaning::Window => Ok(Target::Window),
            Meaning::External(global) if to_stub => self.stub(unit, global),
            Meaning::External(_) => Err(request.misuse(unit, Misuse::RelativeOutside)),
            Meaning::Absolute(_) => Err(request.misuse(unit, Misuse::RelativeToAbsolute)),
        }
    }

    /// An instruction that goes through a symbol's GOT entry: relaxed where that is possible, else a cell.
    fn through_got(
        &mut self,
        unit: &Unit<'a>,
        request: &Request<'_>,
        usage: Use,
        meaning: &Meaning,
    ) -> Result<Planned, Problem> {
        let callee = matches!(usage, Use::IndirectCall | Use::IndirectJump)
            || (usage == Use::GotLoad && !request.address);
        match *meaning {
            _ if usage == Use::GotEntry => {}
            Meaning::External(global) if callee && !makes(Mutant::CallByAddress) => {
                let (number, reference) = self.reference(unit, global)?;
                reference.call_cell = true;
                return Ok(Planned::Field(Target::CallCell(number)));
            }
            Meaning::Own(Own {
                exported: Some(global),
                has_stub: true,
                ..
            }) if !callee => return Ok(Planned::Relaxed(self.stub(unit, global)?)),
            Meaning::Own(own) => return Ok(Planned::Relaxed(Target::Spot(own.spot))),
            _ => {}
        }
        Ok(Planned::Field(self.got_entry(unit, request, meaning)?))
    }

    /// A symbol's GOT entry: a cell.
    fn got_entry(
        &mut self,
        unit: &Unit<'a>,
        request: &Request<'_>,
        meaning: &Meaning,
    ) -> Result<Target, Problem> {
        match *meaning {
            Meaning::Absolute(value) => Ok(self.constant(value)),
            Meaning::Window => Err(request.misuse(unit, Misuse::TableEntry)),
            Meaning::External(global) => self.address_cell(unit, global),
            Meaning::Own(Own {
                exported: Some(global),
                ..
            }) => self.address_cell(unit, global),
            Meaning::Own(own) => Ok(self.own_cell(own.spot)),
        }
    }

    fn detour(&mut self, request: &Request<'_>, cell: Target) {
        self.redirect(request, Field::Displacement, CELL, cell);
    }

    /// An absolute address in text, where none is stored.
    fn immediate(
        &mut self,
        unit: &Unit<'a>,
        request: &Request<'_>,
        meaning: Meaning,
    ) -> Result<(), Problem> {
        let (row, target) = match meaning {
            Meaning::External(global) => (CELL, self.address_cell(unit, global)?),
            _ => (RELATIVE, self.word(unit, meaning, request.addend)?),
        };
        self.redirect(request, Field::Immediate, row, target);
        Ok(())
    }

    fn redirect(&mut self, request: &Request<'_>, field: Field, row: Row, target: Target) {
        let fixup = Fixup {
            row,
            ..request.fixup(target)
        };
        self.detours.push(Detour {
            fixup,
            field,
            origin: request.origin,
        });
    }

    fn reference(
        &mut self,
        unit: &Unit<'a>,
        global: u32,
    ) -> Result<(u32, &mut Reference<'a>), Problem> {
        let missing = || Problem::Corrupt("symbol that does not exist".into());
        let entry = self.reference_of.get_mut(global as usize);
        let entry = entry.ok_or_else(missing)?;
        if *entry == NONE {
            let symbol = unit.globals.list.get(global as usize).ok_or_else(missing)?;
            *entry = u32::try_from(self.references.len())
                .ok()
                .filter(|number| number & crate::Needs::REFERENCE == 0)
                .ok_or_else(|| Problem::Corrupt("too many references".into()))?;
            self.references.push(Reference {
                name: symbol.name,
                version: unit.globals.version(global),
                weak: !symbol.wanted,
                own: unit.definition_of(global),
                call_cell: false,
                address_cell: false,
                stub: false,
                address: false,
                thread_local: false,
            });
        }
        let number = *entry;
        Ok((number, &mut self.references[number as usize]))
    }

    fn stub(&mut self, unit: &Unit<'a>, global: u32) -> Result<Target, Problem> {
        let (number, reference) = self.reference(unit, global)?;
        reference.stub = true;
        Ok(Target::Stub(number))
    }

    fn address_cell(&mut self, unit: &Unit<'a>, global: u32) -> Result<Target, Problem> {
        let (number, reference) = self.reference(unit, global)?;
        reference.address_cell = true;
        Ok(Target::AddressCell(number))
    }

    /// A cell of the unit's own, for what nobody else sees.
    fn own_cell(&mut self, spot: Spot) -> Target {
        let next = self.cells.len() as u32;
        let number = *self.cell_of.entry(spot).or_insert(next);
        if number == next {
            self.cells.push(spot);
        }
        Target::Spot(Spot {
            chunk: CELLS,
            offset: number.saturating_mul(8),
        })
    }

    /// A cell that holds a number, among the unit's read-only data.
    fn constant(&mut self, value: u64) -> Target {
        let next = self.constants.len() as u32;
        let number = *self.constant_of.entry(value).or_insert(next);
        if number == next {
            self.constants.push(value);
        }
        Target::Spot(Spot {
            chunk: CONSTANTS,
            offset: number.saturating_mul(8),
        })
    }

    /// Fills the unit's own cells.
    fn own_cells(&mut self) {
        let cells = (0_u32..).step_by(8).zip(&self.cells);
        self.fixups.extend(cells.map(|(offset, &spot)| {
            let site = Spot {
                chunk: CELLS,
                offset,
            };
            dynamic::fixup(site, ABSOLUTE, Target::Spot(spot), 0)
        }));
        self.fixups.extend(self.dynamic.fixups());
    }
}
