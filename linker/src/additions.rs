//! What the linker itself adds to a unit: copies of the host's data, the unit's module, thunks of indirect functions.

use std::collections::HashMap;

use jitcast_runtime::module;
use object::LittleEndian as LE;
use object::elf;
use object::read::elf::Sym as _;

use crate::error::{LinkError, Problem};
use crate::input::Options;
use crate::layout::{Chunk, Content, MODULE, Spot, THUNKS};
use crate::mutant::{Mutant, makes};
use crate::resolve::Strength;
use crate::unit::{DSO_HANDLE, Unit, push};

/// The length of the thunk of an indirect function: `endbr64; jmp *cell(%rip)`, padded.
pub(crate) const RESOLVED_LEN: u32 = 16;
/// Where its displacement is.
pub(crate) const RESOLVED_FIELD: u32 = 6;

impl Unit<'_> {
    /// Makes a chunk of each datum of the host that the unit wants a copy of.
    pub(crate) fn copy_host_data(&mut self, options: &Options) -> Result<(), LinkError> {
        if options.copies.is_empty() {
            return Ok(());
        }
        let lengths: HashMap<&str, u64> = options
            .copies
            .iter()
            .map(|(name, len_bytes)| (name.as_str(), *len_bytes))
            .collect();
        let mut total = 0;
        for (number, global) in (0..).zip(&self.globals.list) {
            let Some(&len_bytes) = lengths.get(global.name) else {
                continue;
            };
            if global.strength != Strength::Undefined {
                continue;
            }
            // Together, since every undefined symbol may ask for one.
            total = u64::saturating_add(total, len_bytes);
            if total > Options::COPY_LEN_BYTES {
                let problem = Problem::Limit {
                    what: "the length of all copies of host data",
                    value: total,
                    limit: Options::COPY_LEN_BYTES,
                };
                return Err(LinkError::new(global.name, problem));
            }
            // As strictly as any scalar or vector of its length may need it.
            let align_bytes = len_bytes.next_power_of_two().clamp(1, 32);
            let content = Content::Made(vec![0; len_bytes as usize]);
            let chunk = Chunk::private(content, align_bytes);
            self.copies.push((number, self.chunks.len() as u32));
            push(&mut self.chunks, chunk)
                .map_err(|problem| LinkError::new(global.name, problem))?;
        }
        Ok(())
    }

    /// Gives the unit a module, if something asks for one.
    pub(crate) fn make_module(&mut self) {
        let handle = self.globals.find(DSO_HANDLE);
        let is_asked_for = handle.is_some_and(|global| global.strength == Strength::Undefined);
        if self.has_block || is_asked_for {
            let module = &mut self.chunks[MODULE as usize];
            module.align_bytes = module::ALIGN_BYTES.into();
            module.content = Content::Made(vec![0; module::BYTES as usize]);
        }
    }

    /// Whether the unit has a module.
    pub(crate) fn has_module(&self) -> bool {
        self.chunks[MODULE as usize].len_bytes() > 0
    }

    /// The piece of thread-local storage that will come first, if there is any: not always the first of the files.
    pub(crate) fn block_start(&self) -> Option<Spot> {
        if !self.has_block {
            return None;
        }
        let pieces = (0..).zip(&self.chunks);
        let mut pieces = pieces.filter(|(_, chunk)| chunk.thread_local);
        let first = if makes(Mutant::ImageByFile) {
            pieces.next()
        } else {
            pieces.min_by_key(|(_, chunk)| (chunk.bytes().is_none(), chunk.sort_key()))
        };
        first.map(|(chunk, _)| Spot { chunk, offset: 0 })
    }

    /// Gives each indirect function the thunk that it is to everybody who refers to it.
    pub(crate) fn find_resolvers(&mut self) -> Result<(), LinkError> {
        if !self.globals.has_indirect {
            return Ok(());
        }
        let mut found = Vec::new();
        for (number, object) in self.objects.iter().enumerate() {
            for (index, symbol) in (0..).zip(object.symbols.symbols()) {
                if symbol.st_type() == elf::STT_GNU_IFUNC
                    && let Some(section) = object.symbol_section(index, symbol)?
                    && self.chunk_of(number, section).is_some()
                {
                    let label = || object.symbol_label(index);
                    let spot = self.spot(number, section, symbol.st_value(LE), label);
                    found.push(spot.map_err(|problem| object.error(problem))?);
                }
            }
        }
        let mut thunks = Vec::new();
        for spot in found {
            let next = self.resolvers.len() as u32;
            if *self.resolver_of.entry(spot).or_insert(next) == next {
                self.resolvers.push(spot);
                let mut thunk = [0xcc; RESOLVED_LEN as usize];
                thunk[..10].copy_from_slice(&[0xf3, 0x0f, 0x1e, 0xfa, 0xff, 0x25, 0, 0, 0, 0]);
                thunks.extend_from_slice(&thunk);
            }
        }
        if !thunks.is_empty() {
            let home = &mut self.chunks[THUNKS as usize];
            home.align_bytes = RESOLVED_LEN.into();
            home.content = Content::Made(thunks);
        }
        Ok(())
    }

    /// What an indirect function, whose resolver lies at `spot`, is to those who refer to it.
    pub(crate) fn resolved(&self, spot: Spot) -> Spot {
        let index = self.resolver_of.get(&spot).copied();
        index.map_or(spot, |index| Spot {
            chunk: THUNKS,
            offset: index * RESOLVED_LEN,
        })
    }
}
