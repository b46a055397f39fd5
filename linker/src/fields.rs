//! The fields of a unit: from fixups and places to bytes and patches. Pure arithmetic.
//!
//! Fixups come section by section, so that what is stored lies in the cache, and where a section goes is found out once.

use jitcast_runtime::{Patch, PatchKind, PatchTarget, SegmentOffset};
use object::LittleEndian as LE;
use object::elf::Rela64;

use crate::carry::Carriage;
use crate::error::{LinkError, Problem};
use crate::fixup::{Fixup, Rewrite, Target};
use crate::input::{Binding, Linked, Placement};
use crate::layout::Spot;
use crate::mutant::{Mutant, makes, makes_any};
use crate::prepared::Prepared;
use crate::relocation::{OFFSET, Operands, Resolved};
use crate::rewrite::rewrite;

/// Where the window starts, and the global offset table.
const WINDOW: SegmentOffset = SegmentOffset::new(0);

/// What the fields of a unit are computed from.
pub(crate) struct Fields<'p, 'a> {
    prepared: &'p Prepared<'a>,
    bindings: &'p [Binding],
    carriage: Carriage<'p>,
    /// Where each chunk starts in the window, bytes.
    starts: Vec<u64>,
    /// Where the unit's block of thread-local storage would start, if it lay where its image does.
    block_start: i128,
    /// Every place of the unit is where its chunk is, and no mistake is to be made.
    plain: bool,
}

impl<'p, 'a> Fields<'p, 'a> {
    pub(crate) fn new(
        prepared: &'p Prepared<'a>,
        at: &Placement,
        bindings: &'p [Binding],
        carriage: Carriage<'p>,
    ) -> Self {
        let chunks = prepared.unit.chunks.iter();
        let starts =
            chunks.map(|chunk| u64::from(at.start(chunk.area).get()) + u64::from(chunk.position));
        Self {
            prepared,
            bindings,
            plain: carriage.is_empty() && !makes_any(),
            carriage,
            starts: starts.collect(),
            block_start: prepared.block_start(at),
        }
    }

    /// Computes every field of `linked`, whose areas have the bytes of the input.
    pub(crate) fn fill(&self, linked: &mut Linked) -> Result<(), LinkError> {
        let plan = &self.prepared.plan;
        let answers = plan.answers.list();
        let ways: Vec<Option<Way>> = answers.iter().map(|answer| self.way(answer)).collect();
        for (chunk, mut entries, mut given) in plan.answers.batches() {
            let (bytes, patches) = self.bytes(chunk, linked);
            let home = self.starts[chunk as usize];
            loop {
                let count = store(&ways, home, (entries, given), bytes);
                let Some((entry, rest)) = entries.get(count..).and_then(<[_]>::split_first) else {
                    break;
                };
                let fixup = answers[given[count] as usize].of(entry, chunk);
                self.apply(&fixup, bytes, patches)?;
                (entries, given) = (rest, &given[count + 1..]);
            }
        }
        for run in plan
            .fixups
            .chunk_by(|one, next| one.site.chunk == next.site.chunk)
        {
            let chunk = run[0].site.chunk;
            let (bytes, patches) = self.bytes(chunk, linked);
            let home = self.starts[chunk as usize];
            for fixup in run {
                if let Some(way) = self.way(fixup)
                    && way
                        .store(home, fixup.asked().offset.into(), fixup.addend, bytes)
                        .is_some()
                {
                    continue;
                }
                self.apply(fixup, bytes, patches)?;
            }
        }
        Ok(())
    }

    /// The bytes of a chunk, and the patches beside them.
    fn bytes<'l>(&self, chunk: u32, linked: &'l mut Linked) -> (&'l mut [u8], &'l mut Vec<Patch>) {
        let chunk = &self.prepared.unit.chunks[chunk as usize];
        let (area, patches) = linked.area_and_patches(chunk.area);
        let start = chunk.position as usize;
        // No further than the chunk: what lies beside it is not this relocation's. Zeros have no bytes here.
        let bytes = area.get_mut(start..start + chunk.len_bytes() as usize);
        (bytes.unwrap_or_default(), patches)
    }

    /// Where `spot` is in the window.
    fn place(&self, spot: Spot) -> Result<SegmentOffset, Problem> {
        let outside = || Problem::Placement("a place of the unit is outside every window");
        let place = self
            .position(spot)
            .and_then(|place| u32::try_from(place).ok());
        place.map(SegmentOffset::new).ok_or_else(outside)
    }

    /// The short way for a fixup, if it is as most are: a displacement to a place in the window.
    #[inline]
    fn way(&self, fixup: &Fixup) -> Option<Way> {
        if !self.plain || !fixup.row.is_displacement() {
            return None;
        }
        let binding = |reference: u32| self.bindings.get(reference as usize);
        let target = match fixup.target {
            Target::Spot(spot) => self.position(spot)?,
            Target::Stub(reference) => binding(reference)?.stub?.get().into(),
            Target::CallCell(reference) => binding(reference)?.call_cell?.get().into(),
            Target::AddressCell(reference) => binding(reference)?.address_cell?.get().into(),
            Target::Number(_) | Target::Bound(_) | Target::Window => return None,
        };
        Some(Way {
            target: u32::try_from(target).ok()?,
            rewrite: fixup.rewrite,
            asked_after: fixup.asked_after,
        })
    }

    /// Where `spot` would be, if there were no end to the window.
    #[inline]
    fn position(&self, spot: Spot) -> Option<u64> {
        let start = self.starts.get(spot.chunk as usize)?;
        Some(start + u64::from(spot.offset))
    }

    /// Computes a field, whatever it is.
    fn apply(
        &self,
        fixup: &Fixup,
        bytes: &mut [u8],
        patches: &mut Vec<Patch>,
    ) -> Result<(), LinkError> {
        let computed = self.compute(fixup, bytes, patches);
        computed.map_err(|problem| self.prepared.blame(fixup.site, problem))
    }

    fn compute(
        &self,
        fixup: &Fixup,
        bytes: &mut [u8],
        patches: &mut Vec<Patch>,
    ) -> Result<(), Problem> {
        let site = self.place(fixup.site)?;
        let target = match fixup.target {
            Target::Bound(reference) if fixup.row == OFFSET => {
                let offset = self
                    .bindings
                    .get(reference as usize)
                    .and_then(|found| found.block_offset);
                match offset {
                    Some(offset) => Operand::Number(offset),
                    None => self.target(fixup.target)?,
                }
            }
            Target::Spot(spot) => match self.carriage.place(&self.prepared.unit, fixup, spot)? {
                Some(place) => Operand::Patch(PatchTarget::Window(place)),
                None => self.target(fixup.target)?,
            },
            target => self.target(target)?,
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
                patches.push(Patch::of(kind, site, target, addend));
                return self.store(fixup, bytes, 0);
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
            TLS: self.block_start,
            GOT: origin,
            A: i128::from(fixup.addend),
            P: place,
        };
        self.store(fixup, bytes, fixup.row.compute(operands))
    }

    fn target(&self, target: Target) -> Result<Operand, Problem> {
        let lacks = || Problem::Placement("a reference lacks a cell or a stub that it asked for");
        let binding = |reference: u32| self.bindings.get(reference as usize).ok_or_else(lacks);
        let offset = match target {
            Target::Number(value) => return Ok(Operand::Number(value)),
            Target::Bound(reference) => return Ok(Operand::Patch(binding(reference)?.target)),
            Target::Window => WINDOW,
            Target::Spot(spot) => self.place(spot)?,
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

    /// Stores the value of a field among the `bytes` of its chunk, and changes the instruction around it.
    fn store(&self, fixup: &Fixup, bytes: &mut [u8], value: i128) -> Result<(), Problem> {
        let outside = || Problem::Corrupt("field outside its section".into());
        let field = fixup.site.offset as usize;
        rewrite(bytes, field, fixup.rewrite).ok_or_else(outside)?;
        let field = bytes.get_mut(field..).ok_or_else(outside)?;
        match fixup.row.field.store(field, value) {
            Ok(true) => Ok(()),
            Ok(false) => Err(outside()),
            Err(range) => {
                let unit = &self.prepared.unit;
                let origin = unit.chunks[fixup.site.chunk as usize].origin;
                let object = origin.and_then(|(object, _)| unit.objects.get(object as usize));
                let symbol = object.map(|object| object.symbol_label(fixup.symbol));
                Err(Problem::OutOfRange {
                    kind: fixup.row.name,
                    symbol: symbol.unwrap_or_default(),
                    range,
                })
            }
        }
    }
}

/// How a displacement is computed that leads to a place in the window, whatever its site and addend are.
struct Way {
    target: u32,
    rewrite: Rewrite,
    asked_after: i8,
}

impl Way {
    /// Does what [`Fields::apply`] would, if the displacement is in range: for the relocation of a field at `asked` in a chunk
    /// that starts at `home`, and has these `bytes`. Where it returns `None`, `apply` has to look, which stores anew or refuses.
    #[inline(always)]
    fn store(&self, home: u64, asked: u64, addend: i64, bytes: &mut [u8]) -> Option<()> {
        let field = asked.wrapping_sub(self.asked_after as u64);
        // What is outside of `bytes` comes to nothing below. All else is below 2^32, as every place in the window is; so a sum
        // that wraps around is far from zero, as the true one is.
        let site = home.wrapping_add(field).cast_signed();
        let distance = i64::from(self.target).wrapping_sub(site);
        let value = i32::try_from(distance.wrapping_add(addend)).ok()?;
        let field = field as usize;
        if self.rewrite != Rewrite::Nothing {
            rewrite(bytes, field, self.rewrite)?;
        }
        let place = bytes.get_mut(field..)?.first_chunk_mut()?;
        *place = value.to_le_bytes();
        Some(())
    }
}

/// Stores what relocations with these answers come to, up to the first that no short way leads to; returns how many there are
/// before it. Those without an answer are left alone.
#[inline(never)]
fn store(
    ways: &[Option<Way>],
    home: u64,
    (entries, given): (&[Rela64<LE>], &[u32]),
    bytes: &mut [u8],
) -> usize {
    let mut count = 0;
    for (entry, &answer) in entries.iter().zip(given) {
        let (asked, addend) = (entry.r_offset.get(LE), entry.r_addend.get(LE));
        let stored = match ways.get(answer as usize) {
            Some(Some(way)) => way.store(home, asked, addend, bytes),
            Some(None) => None,
            None => Some(()),
        };
        if stored.is_none() {
            break;
        }
        count += 1;
    }
    count
}

/// A target with a place.
enum Operand {
    Number(u64),
    Patch(PatchTarget),
}
