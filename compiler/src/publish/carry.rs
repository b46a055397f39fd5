//! Variables that outlive the version that brought them.

use jitcast_linker::Carried;
use jitcast_runtime::SegmentOffset;
use jitcast_runtime::geometry::Area;

use super::{Batch, kind_of};
use crate::catalog::{Kind, Variable};
use crate::error::PublishError;

impl Batch<'_, '_> {
    /// Settles which variables keep their places, and refuses those that do not fit.
    pub(super) fn carry_data(&mut self) -> Result<(), PublishError> {
        if !self.asked.options.keep_data {
            return Ok(());
        }
        let mut defined: Vec<_> = self.defined.iter().map(|(name, at)| (*name, *at)).collect();
        defined.sort_unstable();
        for (name, at) in defined {
            let new = *self.definition(at);
            let published = self.site.catalog.symbols.get(name);
            let old = published.and_then(|old| Some((old.place, old.variable?)));
            let Some((place, old)) =
                old.filter(|_| new.writable && kind_of(new.kind) == Kind::Data)
            else {
                continue;
            };
            let was_shared = self.is_shared(place);
            if was_shared != new.shared {
                return Err(PublishError::KeptMoves {
                    symbol: name.to_owned(),
                    unit: self.sources[at.0].name.clone(),
                    was_shared,
                });
            }
            // No code relies on more: what fits into less cannot be loaded by anything that wants more.
            let needed = new
                .align_bytes
                .min(new.size.checked_next_power_of_two().unwrap_or(u64::MAX));
            if old.size != new.size || !u64::from(place.get()).is_multiple_of(needed) {
                return Err(PublishError::KeptDiffers {
                    symbol: name.to_owned(),
                    unit: self.sources[at.0].name.clone(),
                    lengths: (old.size, new.size),
                    alignments: (old.align_bytes, new.align_bytes),
                });
            }
            self.carried.insert(at, (place, old));
        }
        Ok(())
    }

    /// Whether shared data lie at `place`.
    fn is_shared(&self, place: SegmentOffset) -> bool {
        let region = self.site.geometry.region(Area::SharedData);
        region.contains(place, 1)
    }

    /// Whether the new version of the datum `name` lies where the old one did.
    pub(super) fn is_carried(&self, name: &str) -> bool {
        let at = self.defined.get(name);
        at.is_some_and(|at| self.carried.contains_key(at))
    }

    /// What the linker is told of a unit of the batch: variables that lie where earlier versions had them, and what is
    /// unique in a process and was brought by others. Workers that have not had those start with the unit's own copy.
    pub(super) fn carried_by(&self, unit: usize) -> Vec<Carried> {
        let private = self.site.geometry.region(Area::Private);
        let definitions = self.units[unit].definitions().iter().enumerate();
        let carried = definitions.filter_map(|(definition, found)| {
            let (place, since) = if found.unique {
                let pooled = self.pooled(found.name)?;
                let elsewhere = pooled.since != self.number(unit);
                let is_private = private.contains(pooled.place, found.size);
                (elsewhere && is_private).then_some((pooled.place, pooled.since))?
            } else {
                let (place, variable) = *self.carried.get(&(unit, definition))?;
                (place, variable.since)
            };
            Some(Carried {
                definition,
                place,
                since,
            })
        });
        carried.collect()
    }

    /// Whether a variable that keeps its place lies in the data of unit `number`.
    pub(super) fn carries_from(&self, number: u32) -> bool {
        self.carried
            .values()
            .any(|(_, variable)| variable.since == number)
    }

    /// Where a definition of unit `unit` lies that was placed at `place`: inside a carried one, it is elsewhere too.
    pub(super) fn carried_place(
        &self,
        unit: usize,
        place: SegmentOffset,
        placed: &[Option<SegmentOffset>],
    ) -> Option<(SegmentOffset, Variable)> {
        let around = |(&(of, definition), &(kept, variable)): (
            &(usize, usize),
            &(SegmentOffset, Variable),
        )| {
            let fresh = placed
                .get(definition)
                .copied()
                .flatten()
                .filter(|_| of == unit)?;
            let inside = u64::from(place.get().checked_sub(fresh.get())?);
            let kept = kept
                .checked_add(inside)
                .filter(|_| inside < variable.size)?;
            Some((kept, variable))
        };
        self.carried.iter().find_map(around)
    }
}
