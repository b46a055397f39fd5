//! Linking a unit that is read: its bytes go to their areas, its symbols get places, and [`Fields`] fills the rest.

use std::collections::HashSet;
use std::sync::Arc;

use jitcast_runtime::{Patch, PatchTarget, SegmentOffset, module};

use crate::carry::Carriage;
use crate::error::{LinkError, Problem, SymbolRefusal};
use crate::fields::Fields;
use crate::input::{Area, Binding, Carried, Linked, Place, PlacedSymbol, Placement};
use crate::layout::{Content, MODULE, Spot};
use crate::prepared::Prepared;
use crate::relocation::Refusal;
use crate::unit::Meaning;

/// `int3`: what lies between functions is not to be run.
const TEXT_PADDING: u8 = 0xcc;

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
            needs: Arc::clone(&self.needs),
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
            if let Some(place) = linked
                .area_and_patches(chunk.area)
                .0
                .get_mut(start..start + bytes.len())
            {
                place.copy_from_slice(bytes);
            }
        }
        self.fill_module(at, &mut linked);
        self.check_host(bindings)?;
        let carriage = Carriage::new(self, at, carried, &mut linked.patches)
            .map_err(|problem| LinkError::new(self.name, problem))?;
        Fields::new(self, at, bindings, carriage).fill(&mut linked)?;
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
        let copies = self.unit.copies.iter();
        let copies: HashSet<&str> = copies
            .map(|&(global, _)| self.unit.globals.list[global as usize].name)
            .collect();
        for (name, binding) in self
            .references()
            .iter()
            .map(|found| found.name)
            .zip(bindings)
        {
            let copied = copies.contains(name);
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
        let outside = || Problem::Placement("a place of the unit is outside every window");
        let chunk = &self.unit.chunks[spot.chunk as usize];
        let offset = u64::from(chunk.position) + u64::from(spot.offset);
        Ok((
            chunk.area,
            at.start(chunk.area)
                .checked_add(offset)
                .ok_or_else(outside)?,
        ))
    }

    /// Where the unit's block of thread-local storage would start, if it lay where its image does.
    pub(crate) fn block_start(&self, at: &Placement) -> i128 {
        let position = self.plot.block.map_or(0, |block| block.position);
        i128::from(at.private.get()) + i128::from(position)
    }

    /// Every definition's place, in the order of [`Prepared::definitions`], before anything is linked: units
    /// that are published together refer to one another.
    ///
    /// # Errors
    ///
    /// A placement outside every window.
    pub fn symbols(&self, at: &Placement) -> Result<Vec<PlacedSymbol>, LinkError> {
        let mut symbols = Vec::with_capacity(self.unit.defined.len());
        for ((definition, &global), &node) in (0..).zip(&self.unit.defined).zip(&self.nodes) {
            let place = self.symbol(global, at);
            symbols.push(PlacedSymbol {
                definition,
                place: place.map_err(|problem| LinkError::new(self.name, problem))?,
                node,
            });
        }
        Ok(symbols)
    }

    /// The place of a global that the unit defines.
    fn symbol(&self, global: u32, at: &Placement) -> Result<Place, Problem> {
        let Some(own) = self.unit.own(global) else {
            return match self.unit.definition(global)? {
                Meaning::Absolute(value) => Ok(Place::Absolute(value)),
                _ => Err(Problem::Corrupt("definition that is none".into())),
            };
        };
        let (area, offset) = self.place(own.spot, at)?;
        if !own.thread_local {
            return Ok(Place::At(area, offset));
        }
        let in_block = u64::try_from(i128::from(offset.get()) - self.block_start(at));
        let (module, offset) = self
            .module(at)
            .zip(in_block.ok())
            .ok_or_else(|| Problem::Corrupt("thread-local symbol outside its block".into()))?;
        Ok(Place::ThreadLocal { module, offset })
    }

    /// Says where in its object a problem is.
    pub(crate) fn blame(&self, site: Spot, problem: Problem) -> LinkError {
        match self.unit.chunks[site.chunk as usize].origin {
            Some((object, section)) if !matches!(problem, Problem::Placement(_)) => self
                .unit
                .objects[object as usize]
                .error_at(section as usize, u64::from(site.offset), problem),
            _ => LinkError::new(self.name, problem),
        }
    }
}

impl Linked {
    /// The bytes of an area, and the patches beside them.
    pub(crate) fn area_and_patches(&mut self, area: Area) -> (&mut [u8], &mut Vec<Patch>) {
        let bytes = match area {
            Area::Text => &mut self.text,
            Area::ReadOnly => &mut self.read_only,
            Area::Private => &mut self.template,
            Area::SharedData => &mut self.shared,
        };
        (bytes, &mut self.patches)
    }
}
