//! Binding a unit: its private data filled and patched for this process.

use jitcast_runtime::geometry::Region;
use jitcast_runtime::records::{StoredRegion, UnitRecord};
use jitcast_runtime::{
    Corrupt, ImportId, Patch, PatchKind, PatchTarget, SegmentOffset, WorkerAddr,
};

use crate::error::UpdateError;
use crate::startup::Fresh;
use crate::thread_local::{Variable, missing_module};
use crate::worker::{Inner, State};

/// The distance from the thread pointer of what is missing: no address has it, so that an access crashes.
const NOWHERE: u64 = 1 << 62;

impl Inner {
    /// Fills a new unit's private data and patches it, but for what its own code has to be run for.
    pub(crate) fn bind_unit(
        &self,
        state: &mut State,
        at: SegmentOffset,
    ) -> Result<Fresh, UpdateError> {
        let view = self.window().control();
        let unit: UnitRecord = view.read(at)?;
        let mut fresh = Fresh::read(view, at, &unit)?;
        let data = [unit.private, unit.template, unit.patches];
        self.fill_unit(state, at, data, &mut fresh.resolvers)?;
        Ok(fresh)
    }

    /// Fills a unit's private data from its template, and does its patches but for those that take resolvers, which it lists.
    pub(crate) fn fill_unit(
        &self,
        state: &mut State,
        at: SegmentOffset,
        data: [StoredRegion; 3],
        resolvers: &mut Vec<(SegmentOffset, SegmentOffset)>,
    ) -> Result<(), UpdateError> {
        let view = self.window().control();
        let region = |stored: StoredRegion| {
            stored.region().ok_or(Corrupt {
                what: "range of a unit",
                at,
            })
        };
        let [private, template, patches] = data;
        let (private, template, patches) = (region(private)?, region(template)?, region(patches)?);
        if private.len_bytes > 0 {
            let template = if template.len_bytes == 0 {
                Vec::new()
            } else {
                view.bytes(template.offset(), template.len_bytes as usize)?
            };
            // SAFETY: the unit is newer than what is applied, so no slot leads to it yet, and its memory was
            // reused only after no thread could be inside what was there.
            unsafe { self.window().fill_private(private, &template) }?;
        }
        let size = size_of::<Patch>() as u32;
        if patches.len_bytes % size != 0 {
            return Err(Corrupt {
                what: "table of patches",
                at: patches.offset(),
            }
            .into());
        }
        let mut carried = Vec::new();
        for index in 0..patches.len_bytes / size {
            let at = SegmentOffset::new(patches.start + index * size);
            let patch: Patch = view.read(at)?;
            match (patch.kind(), patch.target()) {
                // Initial bytes are taken when they are patched.
                (Some(PatchKind::Copy), Some(PatchTarget::Window(from))) => {
                    carried.push((patch, from));
                }
                _ => self.patch(state, resolvers, private, at)?,
            }
        }
        for (patch, from) in carried {
            self.carry(state, private, &patch, from)?;
        }
        Ok(())
    }

    /// Gives a datum that an earlier version brought its initial bytes, unless this worker has had it.
    fn carry(
        &self,
        state: &State,
        private: Region,
        patch: &Patch,
        from: SegmentOffset,
    ) -> Result<(), UpdateError> {
        let addend = patch.addend.cast_unsigned();
        let (len_bytes, since) = (addend as u32, (addend >> 32) as u32);
        // What is a canary's, and was left out so far, is not this worker's yet.
        if state.units.has_had(since) && !state.canaries.leaves_out(since) {
            return Ok(());
        }
        let corrupt = |what| Corrupt {
            what,
            at: patch.site,
        };
        let site = Region::new(patch.site.get(), len_bytes);
        let site = site.ok_or_else(|| corrupt("range of a carried datum"))?;
        let apart = site.end() <= private.start || private.end() <= site.start;
        if !private.contains(from, len_bytes.into()) || !apart {
            return Err(corrupt("copy of a carried datum").into());
        }
        let from = self.window().addr_of(from);
        // SAFETY: the bytes lie in the unit's own data, filled just now, and the site does not (looked at above). It
        // belongs to no unit that this worker has had, so nobody looks there yet.
        unsafe { self.window().copy_private(patch.site, from, len_bytes) }?;
        Ok(())
    }

    fn patch(
        &self,
        state: &mut State,
        resolvers: &mut Vec<(SegmentOffset, SegmentOffset)>,
        private: Region,
        at: SegmentOffset,
    ) -> Result<(), UpdateError> {
        let corrupt = || Corrupt {
            what: "kind of a patch",
            at,
        };
        let patch: Patch = self.window().control().read(at)?;
        let target = patch.target().ok_or_else(corrupt)?;
        let value = match (patch.kind().ok_or_else(corrupt)?, target) {
            (PatchKind::Address, _) => self
                .address(state, target)
                .wrapping_add_signed(patch.addend),
            (PatchKind::Resolver, PatchTarget::Window(resolver)) => {
                resolvers.push((patch.site, resolver));
                return Ok(());
            }
            (PatchKind::Copy, PatchTarget::Host(import)) => {
                let len_bytes = u32::try_from(patch.addend).map_err(|_| corrupt())?;
                if !private.contains(patch.site, len_bytes.into()) {
                    return Err(Corrupt {
                        what: "copy of a host datum",
                        at,
                    }
                    .into());
                }
                if let Some(from) = state.imports.get(import).and_then(|import| import.address)
                    // A weak one that the host lacks: the copy is zeros.
                    && from != WorkerAddr::NULL
                {
                    // SAFETY: the host's datum, as long as the publisher says; the copy lies in the unit's own
                    // data, where nobody looks yet.
                    unsafe { self.window().copy_private(patch.site, from, len_bytes) }?;
                }
                return Ok(());
            }
            (kind, PatchTarget::Host(import)) => {
                let value = self.thread_local(state, kind, import).ok_or_else(corrupt)?;
                WorkerAddr::new(value).wrapping_add_signed(patch.addend)
            }
            _ => return Err(corrupt().into()),
        };
        // SAFETY: as for the data: the site lies there, where nobody looks yet.
        unsafe { self.window().patch_private(patch.site, value) }?;
        Ok(())
    }

    /// What stands for a thread-local symbol of the host.
    fn thread_local(&self, state: &mut State, kind: PatchKind, import: ImportId) -> Option<u64> {
        let known = state.imports.get(import).and_then(|known| known.address);
        let mut variable = None;
        if let Some(address) = known {
            variable = Variable::at(address.get());
            let lacks = match variable {
                None => Some("is not thread-local"),
                Some(Variable {
                    from_thread: None, ..
                }) if kind == PatchKind::ThreadOffset => Some(
                    "has its storage at no fixed distance from the thread pointer: load its library at start",
                ),
                Some(_) => None,
            };
            if let Some(why) = lacks {
                state.imports.lacks(import, why);
                variable = None;
            }
        }
        Some(match (kind, variable) {
            (PatchKind::TlsModule, Some(variable)) => variable.module,
            (PatchKind::TlsModule, None) => missing_module(import),
            (PatchKind::TlsOffset, Some(variable)) => variable.offset,
            (PatchKind::TlsOffset, None) => 0,
            (
                PatchKind::ThreadOffset,
                Some(Variable {
                    from_thread: Some(distance),
                    ..
                }),
            ) => distance.cast_unsigned(),
            (PatchKind::ThreadOffset, _) => NOWHERE,
            _ => return None,
        })
    }
}
