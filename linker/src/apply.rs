//! Pure arithmetic: from fixups and places to bytes and patches.

use jitcast_runtime::{Patch, PatchKind, PatchTarget, SegmentOffset, module};

use crate::carry::Carriage;
use crate::error::{LinkError, Problem, SymbolRefusal};
use crate::fixup::{Fixup, Rewrite, Target};
use crate::input::{Area, Binding, Carried, Linked, Place, PlacedSymbol, Placement};
use crate::layout::{Content, MODULE, Spot};
use crate::mutant::{Mutant, makes};
use crate::prepared::Prepared;
use crate::relocation::{OFFSET, Operands, Refusal, Resolved};
use crate::unit::Meaning;

/// `int3`: what lies between functions is not to be run.
const TEXT_PADDING: u8 = 0xcc;

/// Where the window starts, and the global offset table.
const WINDOW: SegmentOffset = SegmentOffset::new(0);

impl<'a> Prepared<'a> {
    /// Computes every field, now that the unit has a place. Pure arithmetic.
    ///
    /// `bindings` are in the order of [`Prepared::references`]. The areas need not be mapped anywhere.
    ///
    /// # Errors
    ///
    /// A value that its field cannot hold; a placement that is not aligned as [`Prepared::extents`] asks, or
    /// bindings that lack what a reference asked for.
    pub fn link(&self, at: &Placement, bindings: &[Binding]) -> Result<Linked, LinkError> {
        self.link_carrying(at, bindings, &[])
    }

    /// As [`Prepared::link`], with data that lie elsewhere.
    ///
    /// # Errors
    ///
    /// As [`Prepared::link`]; carried data that are reached in a way that does not tell which datum is meant.
    pub fn link_carrying(
        &self,
        at: &Placement,
        bindings: &[Binding],
        carried: &[Carried],
    ) -> Result<Linked, LinkError> {
        self.check(at, bindings)?;
        let extents = self.extents();
        let zeros = |len_bytes: u64| vec![0; len_bytes as usize];
        let mut linked = Linked {
            text: vec![TEXT_PADDING; extents.text.len_bytes as usize],
            read_only: zeros(extents.read_only.len_bytes),
            template: zeros(self.plot.template_len_bytes),
            shared: zeros(self.plot.shared_len_bytes),
            patches: Vec::new(),
            symbols: Vec::new(),
            needs: self.needs.clone(),
            init: self.slots(&self.startup.init, at)?,
            fini: self.slots(&self.startup.fini, at)?,
            module: self.module(at),
        };
        for chunk in &self.unit.chunks {
            let bytes = match &chunk.content {
                Content::Input(bytes) => bytes,
                Content::Made(bytes) => bytes.as_slice(),
                Content::Zero(_) => continue,
            };
            let start = chunk.position as usize;
            if let Some(place) = linked.area(chunk.area).get_mut(start..start + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        }
        self.fill_module(at, &mut linked);
        self.check_host(bindings)?;
        let carriage = Carriage::new(self, at, carried, &mut linked.patches)
            .map_err(|problem| LinkError::new(self.name, problem))?;
        for fixup in &self.plan.fixups {
            self.apply(fixup, at, (bindings, &carriage), &mut linked)
                .map_err(|problem| self.blame(fixup.site, problem))?;
        }
        linked.patches.sort_by_key(|patch| patch.site);
        linked.symbols = self.symbols(at)?;
        Ok(linked)
    }

    /// Where the unit's module is, if it has one.
    fn module(&self, at: &Placement) -> Option<SegmentOffset> {
        let spot = Spot {
            chunk: MODULE,
            offset: 0,
        };
        let place = self.place(spot, at).ok()?;
        self.unit.has_module().then_some(place.1)
    }

    /// Writes what the module says, but for the address of the image, which is patched.
    fn fill_module(&self, at: &Placement, linked: &mut Linked) {
        if !self.unit.has_module() {
            return;
        }
        let block = self.plot.block;
        let words = [
            (
                module::Word::ImageLen,
                block.map_or(0, |block| block.image_len_bytes),
            ),
            (
                module::Word::BlockLen,
                block.map_or(0, |block| block.len_bytes),
            ),
            (
                module::Word::Align,
                block.map_or(1, |block| block.align_bytes),
            ),
            (module::Word::Number, at.number),
        ];
        let start = self.unit.chunks[MODULE as usize].position as usize;
        for (word, value) in words {
            let at = start + word as usize * 8;
            if let Some(place) = linked.template.get_mut(at..at + 8) {
                place.copy_from_slice(&value.to_le_bytes());
            }
        }
    }

    /// What is copied has to be the host's, and so has what is reached from the thread pointer.
    fn check_host(&self, bindings: &[Binding]) -> Result<(), LinkError> {
        for (name, binding) in self
            .references()
            .iter()
            .map(|found| found.name)
            .zip(bindings)
        {
            let copied = self
                .unit
                .copies
                .iter()
                .any(|&(global, _)| self.unit.globals.list[global as usize].name == name);
            if copied && !matches!(binding.target, PatchTarget::Host(_)) {
                let (symbol, refusal) = (name.into(), SymbolRefusal::CopyOfPublished);
                return Err(LinkError::new(
                    self.name,
                    Problem::Symbol { symbol, refusal },
                ));
            }
        }
        for (&reference, &site) in &self.plan.from_thread {
            let binding = bindings.get(reference as usize);
            if binding.is_some_and(|binding| !matches!(binding.target, PatchTarget::Host(_))) {
                let problem = Problem::Refused {
                    kind: "R_X86_64_GOTTPOFF",
                    symbol: self.references()[reference as usize].name.into(),
                    refusal: Refusal::InitialExec,
                };
                return Err(self.blame(site, problem));
            }
        }
        Ok(())
    }

    fn slots(&self, spots: &[Spot], at: &Placement) -> Result<Vec<SegmentOffset>, LinkError> {
        let place = |&spot| Ok(self.place(spot, at)?.1);
        let places: Result<_, Problem> = spots.iter().map(place).collect();
        places.map_err(|problem| LinkError::new(self.name, problem))
    }

    fn check(&self, at: &Placement, bindings: &[Binding]) -> Result<(), LinkError> {
        let refuse = |what| Err(LinkError::new(self.name, Problem::Placement(what)));
        let extents = self.extents();
        let areas = [
            (extents.text, at.text),
            (extents.read_only, at.read_only),
            (extents.private, at.private),
            (extents.shared, at.shared),
        ];
        for (extent, start) in areas {
            if !u64::from(start.get()).is_multiple_of(extent.align_bytes) {
                return refuse("an area is not aligned as the unit needs it");
            }
            if start.checked_add(extent.len_bytes).is_none() {
                return refuse("an area ends outside every window");
            }
        }
        if bindings.len() != self.references().len() {
            return refuse("the number of bindings is not that of the references");
        }
        for (reference, binding) in self.references().iter().zip(bindings) {
            let complete = (binding.stub.is_some() || !reference.stub)
                && (binding.call_cell.is_some() || !reference.call_cell)
                && (binding.address_cell.is_some() || !reference.address_cell);
            if !complete {
                return refuse("a reference lacks a cell or a stub that it asked for");
            }
        }
        Ok(())
    }

    /// Where `spot` is in the window.
    pub(crate) fn place(
        &self,
        spot: Spot,
        at: &Placement,
    ) -> Result<(Area, SegmentOffset), Problem> {
        let outside = Problem::Placement("a place of the unit is outside every window");
        let chunk = &self.unit.chunks[spot.chunk as usize];
        let offset = u64::from(chunk.position) + u64::from(spot.offset);
        Ok((
            chunk.area,
            at.start(chunk.area).checked_add(offset).ok_or(outside)?,
        ))
    }

    fn apply(
        &self,
        fixup: &Fixup,
        at: &Placement,
        (bindings, carriage): (&[Binding], &Carriage<'_>),
        linked: &mut Linked,
    ) -> Result<(), Problem> {
        let (area, site) = self.place(fixup.site, at)?;
        let target = match fixup.target {
            Target::Bound(reference) if fixup.row == OFFSET => {
                let offset = bindings
                    .get(reference as usize)
                    .and_then(|found| found.block_offset);
                match offset {
                    Some(offset) => Operand::Number(offset),
                    None => self.target(fixup.target, at, bindings)?,
                }
            }
            Target::Spot(spot) => match carriage.place(&self.unit, fixup, spot)? {
                Some(place) => Operand::Patch(PatchTarget::Window(place)),
                None => self.target(fixup.target, at, bindings)?,
            },
            target => self.target(target, at, bindings)?,
        };
        let value = match target {
            // Modulo 2^64, a number may as well be one below zero.
            Operand::Number(value) => i128::from(value.cast_signed()),
            Operand::Patch(target) if fixup.row.resolved == Resolved::AtAttach => {
                let bare = makes(Mutant::PatchBare);
                let addend = if bare { 0 } else { fixup.addend };
                let kind = match (PatchKind::of(fixup.row.number), target) {
                    // The module of another unit is known by where it is.
                    (Some(PatchKind::TlsModule), PatchTarget::Window(_)) => PatchKind::Address,
                    (Some(kind), _) => kind,
                    (None, _) => return Err(Problem::UnknownRelocation(fixup.row.number)),
                };
                linked.patches.push(Patch::of(kind, site, target, addend));
                return linked.store(self, fixup, area, 0);
            }
            Operand::Patch(PatchTarget::Window(offset)) => i128::from(offset.get()),
            Operand::Patch(PatchTarget::Host(_)) => {
                return Err(Problem::Placement("a stub or a cell is outside the window"));
            }
        };
        // The table starts where the window does, with the cells, so a cell's offset is its place.
        let (place, origin) = (i128::from(site.get()), i128::from(WINDOW.get()));
        let operands = Operands {
            S: value,
            L: value,
            G: value,
            Z: value,
            TLS: self.block_start(at),
            GOT: origin,
            A: i128::from(fixup.addend),
            P: place,
        };
        linked.store(self, fixup, area, fixup.row.compute(operands))
    }

    /// Where the unit's block of thread-local storage would start, if it lay where its image does.
    fn block_start(&self, at: &Placement) -> i128 {
        let position = self.plot.block.map_or(0, |block| block.position);
        i128::from(at.private.get()) + i128::from(position)
    }

    fn target(
        &self,
        target: Target,
        at: &Placement,
        bindings: &[Binding],
    ) -> Result<Operand, Problem> {
        let lacks = || Problem::Placement("a reference lacks a cell or a stub that it asked for");
        let binding = |reference: u32| bindings.get(reference as usize).ok_or_else(lacks);
        let offset = match target {
            Target::Number(value) => return Ok(Operand::Number(value)),
            Target::Bound(reference) => return Ok(Operand::Patch(binding(reference)?.target)),
            Target::Window => WINDOW,
            Target::Spot(spot) => self.place(spot, at)?.1,
            Target::Stub(reference) => binding(reference)?.stub.ok_or_else(lacks)?,
            Target::CallCell(reference) => binding(reference)?.call_cell.ok_or_else(lacks)?,
            Target::AddressCell(reference) if makes(Mutant::CellsSwapped) => {
                let binding = binding(reference)?;
                binding
                    .call_cell
                    .or(binding.address_cell)
                    .ok_or_else(lacks)?
            }
            Target::AddressCell(reference) => binding(reference)?.address_cell.ok_or_else(lacks)?,
        };
        Ok(Operand::Patch(PatchTarget::Window(offset)))
    }

    /// Every definition's place, in the order of [`Prepared::definitions`], before anything is linked: units
    /// that are published together refer to one another.
    ///
    /// # Errors
    ///
    /// A placement outside every window.
    pub fn symbols(&self, at: &Placement) -> Result<Vec<PlacedSymbol>, LinkError> {
        let place = |(definition, &global): (usize, &u32)| {
            let placed = self
                .unit
                .definition(global)
                .and_then(|meaning| match meaning {
                    Meaning::Own(own) if own.thread_local => {
                        let place = i128::from(self.place(own.spot, at)?.1.get());
                        let offset = u64::try_from(place - self.block_start(at));
                        let module = self.module(at).zip(offset.ok());
                        let (module, offset) = module.ok_or_else(|| {
                            Problem::Corrupt("thread-local symbol outside its block".into())
                        })?;
                        Ok(PlacedSymbol {
                            definition,
                            place: Place::ThreadLocal { module, offset },
                            node: self.atoms.node(own.spot),
                        })
                    }
                    Meaning::Own(own) => {
                        let (area, offset) = self.place(own.spot, at)?;
                        let node = self.atoms.node(own.spot);
                        Ok(PlacedSymbol {
                            definition,
                            place: Place::At(area, offset),
                            node,
                        })
                    }
                    Meaning::Absolute(value) => Ok(PlacedSymbol {
                        definition,
                        place: Place::Absolute(value),
                        node: 0,
                    }),
                    Meaning::External(_) | Meaning::Window => {
                        Err(Problem::Corrupt("definition that is none".into()))
                    }
                });
            placed.map_err(|problem| LinkError::new(self.name, problem))
        };
        self.unit.defined.iter().enumerate().map(place).collect()
    }

    /// Says where in its object a problem is.
    fn blame(&self, site: Spot, problem: Problem) -> LinkError {
        match self.unit.chunks[site.chunk as usize].origin {
            Some((object, section)) if !matches!(problem, Problem::Placement(_)) => self
                .unit
                .objects[object as usize]
                .error_at(section as usize, u64::from(site.offset), problem),
            _ => LinkError::new(self.name, problem),
        }
    }
}

/// A target with a place.
enum Operand {
    Number(u64),
    Patch(PatchTarget),
}

impl Linked {
    fn area(&mut self, area: Area) -> &mut [u8] {
        match area {
            Area::Text => &mut self.text,
            Area::ReadOnly => &mut self.read_only,
            Area::Private => &mut self.template,
            Area::SharedData => &mut self.shared,
        }
    }

    /// Stores the value of a field, and changes the instruction around it.
    fn store(
        &mut self,
        prepared: &Prepared<'_>,
        fixup: &Fixup,
        area: Area,
        value: i128,
    ) -> Result<(), Problem> {
        let chunk = &prepared.unit.chunks[fixup.site.chunk as usize];
        let start = chunk.position as usize;
        let outside = || Problem::Corrupt("field outside its section".into());
        // No further than the chunk: what lies beside it is not this relocation's.
        let bytes = self
            .area(area)
            .get_mut(start..start + chunk.len_bytes() as usize)
            .ok_or_else(outside)?;
        let field = fixup.site.offset as usize;
        rewrite(bytes, field, fixup.rewrite).ok_or_else(outside)?;
        let field = bytes.get_mut(field..).ok_or_else(outside)?;
        match fixup.row.field.store(field, value) {
            Ok(true) => Ok(()),
            Ok(false) => Err(outside()),
            Err(range) => {
                let symbol = chunk
                    .origin
                    .and_then(|(object, _)| prepared.unit.objects.get(object as usize));
                let symbol = symbol
                    .map(|object| object.symbol_label(fixup.symbol))
                    .unwrap_or_default();
                Err(Problem::OutOfRange {
                    kind: fixup.row.name,
                    symbol,
                    range,
                })
            }
        }
    }
}

/// Changes the instruction whose field starts at `field`; `None` if its bytes are not there.
fn rewrite(bytes: &mut [u8], field: usize, rewrite: Rewrite) -> Option<()> {
    let before = |count: usize| field.checked_sub(count);
    match rewrite {
        Rewrite::Nothing => {}
        Rewrite::Lea if makes(Mutant::LeaWrong) => *bytes.get_mut(before(2)?)? = 0x8c,
        Rewrite::Lea => *bytes.get_mut(before(2)?)? = 0x8d,
        Rewrite::Load => *bytes.get_mut(before(2)?)? = 0x8b,
        Rewrite::Call if makes(Mutant::CallShort) => *bytes.get_mut(before(2)?)? = 0xe8,
        Rewrite::Call => bytes
            .get_mut(before(2)?..field)?
            .copy_from_slice(&[0x67, 0xe8]),
        Rewrite::MovabsToLea => without_immediate(bytes, field, 0x8d)?,
        Rewrite::MovabsToLoad => without_immediate(bytes, field, 0x8b)?,
        Rewrite::OffsetToOperand => {
            let instruction = bytes.get_mut(before(2)?..)?;
            // a0 to a3 are the loads, then the stores, of bytes and of words; 88 to 8b are the stores first.
            let opcode = instruction.first_mut()?;
            *opcode = 0x88 | (*opcode & 3) ^ 2;
            *instruction.get_mut(1)? = 0x05;
            instruction.get_mut(6..9)?.copy_from_slice(&NOP_3);
        }
        Rewrite::Jump(len_bytes) => {
            let start = before(1)?;
            let more = usize::from(makes(Mutant::JumpLong) && len_bytes == 6);
            let instruction = bytes.get_mut(start..start + usize::from(len_bytes) + more)?;
            instruction.fill(0x90);
            *instruction.first_mut()? = 0xe9;
        }
    }
    Some(())
}

/// `nopl (%rax)`, as Intel recommends for three bytes (SDM volume 2, `NOP`).
const NOP_3: [u8; 3] = [0x0f, 0x1f, 0x00];

/// Turns `movabs $x, %r` into another way to fill the register, whose displacement is at `field`.
fn without_immediate(bytes: &mut [u8], field: usize, opcode: u8) -> Option<()> {
    let instruction = bytes.get_mut(field.checked_sub(3)?..)?;
    let (rex, register) = (*instruction.first()?, *instruction.get(1)? & 7);
    let new = [0x48 | (rex & 1) << 2, opcode, 0x05 | register << 3];
    instruction.get_mut(..3)?.copy_from_slice(&new);
    if makes(Mutant::NopForgotten) {
        return Some(());
    }
    // nopl (%rax), as Intel recommends for three bytes (SDM volume 2, `NOP`).
    instruction
        .get_mut(7..10)?
        .copy_from_slice(&[0x0f, 0x1f, 0x00]);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten<const N: usize>(
        mut bytes: [u8; N],
        field: usize,
        how: Rewrite,
    ) -> Option<[u8; N]> {
        rewrite(&mut bytes, field, how).map(|()| bytes)
    }

    #[test]
    fn instructions_are_relaxed_as_the_psabi_says() {
        let call = rewritten([0xff, 0x15, 1, 2, 3, 4], 2, Rewrite::Call);
        assert_eq!(call, Some([0x67, 0xe8, 1, 2, 3, 4]), "addr32 call");
        let jump = rewritten([0xff, 0x25, 1, 2, 3, 4], 1, Rewrite::Jump(6));
        assert_eq!(
            jump,
            Some([0xe9, 0x90, 0x90, 0x90, 0x90, 0x90]),
            "the last nop stays"
        );
        let lea = rewritten([0x48, 0x8b, 0x05, 1, 2, 3, 4], 3, Rewrite::Lea);
        assert_eq!(lea, Some([0x48, 0x8d, 0x05, 1, 2, 3, 4]));
        let load = rewritten([0x48, 0x8d, 0x05, 1, 2, 3, 4], 3, Rewrite::Load);
        assert_eq!(load, Some([0x48, 0x8b, 0x05, 1, 2, 3, 4]));
    }

    #[test]
    fn immediates_become_displacements() {
        let movabs = [0x49, 0xbe, 1, 2, 3, 4, 5, 6, 7, 8];
        let lea = rewritten(movabs, 3, Rewrite::MovabsToLea);
        assert_eq!(lea, Some([0x4c, 0x8d, 0x35, 2, 3, 4, 5, 0x0f, 0x1f, 0x00]));
        let load = rewritten(movabs, 3, Rewrite::MovabsToLoad);
        assert_eq!(load, Some([0x4c, 0x8b, 0x35, 2, 3, 4, 5, 0x0f, 0x1f, 0x00]));
        let movabs = [0x48, 0xbc, 0, 0, 0, 0, 0, 0, 0, 0];
        let lea = rewritten(movabs, 3, Rewrite::MovabsToLea);
        assert_eq!(lea, Some([0x48, 0x8d, 0x25, 0, 0, 0, 0, 0x0f, 0x1f, 0x00]));
        let load = rewritten([0xa1, 1, 2, 3, 4, 5, 6, 7, 8], 2, Rewrite::OffsetToOperand);
        assert_eq!(load, Some([0x8b, 0x05, 2, 3, 4, 5, 0x0f, 0x1f, 0x00]));
        for (from, to) in [(0xa0, 0x8a), (0xa1, 0x8b), (0xa2, 0x88), (0xa3, 0x89)] {
            let done = rewritten([from, 0, 0, 0, 0, 0, 0, 0, 0], 2, Rewrite::OffsetToOperand);
            assert_eq!(done.map(|bytes| bytes[0]), Some(to));
        }
        for (len, field) in [(10, 2), (10, 4), (9, 3)] {
            let mut bytes = vec![0x48; len];
            assert_eq!(rewrite(&mut bytes, field, Rewrite::MovabsToLea), None);
        }
    }

    #[test]
    fn nothing_is_rewritten_outside_the_bytes() {
        for how in [Rewrite::Lea, Rewrite::Load, Rewrite::Call, Rewrite::Jump(6)] {
            assert_eq!(rewritten([0; 4], 0, how), None, "{how:?}");
        }
        assert_eq!(rewritten([0; 4], 1, Rewrite::Jump(6)), None);
    }
}
