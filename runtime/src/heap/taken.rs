//! What a transaction has taken of an area.
//!
//! Invariant: ranges are disjoint, and listed once. Mostly each follows the one before, and is but an addition.

use std::collections::BTreeMap;

use crate::geometry::Region;

/// Ranges of one area.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// The lengths of all but the latest, by their starts.
    others: BTreeMap<u32, u32>,
    /// The latest; an empty one is none.
    latest: Region,
}

impl Taken {
    /// Adds a range that is not among them.
    pub(super) fn add(&mut self, range: Region) {
        if self.latest.len_bytes > 0 && self.latest.end() == range.start {
            self.latest.len_bytes += range.len_bytes;
        } else if range.len_bytes > 0 {
            self.put_by(self.latest);
            self.latest = range;
        }
    }

    /// Takes `range` out, if all of it is there.
    pub(super) fn remove(&mut self, range: Region) -> bool {
        let around = |found: &Region| found.contains(range.offset(), range.len_bytes.into());
        let other = || {
            let (&start, &len_bytes) = self.others.range(..=range.start).next_back()?;
            Some(Region { start, len_bytes })
        };
        let Some(found) = Some(self.latest).filter(around).or_else(|| other().filter(around)) else {
            return false;
        };
        if found == self.latest {
            self.latest = Region::default();
        } else {
            self.others.remove(&found.start);
        }
        self.put_by(Region { start: found.start, len_bytes: range.start - found.start });
        self.put_by(Region { start: range.end(), len_bytes: found.end() - range.end() });
        true
    }

    /// All of them, in no particular order.
    pub(super) fn ranges(&self) -> impl Iterator<Item = Region> {
        let others = self.others.iter().map(|(&start, &len_bytes)| Region { start, len_bytes });
        others.chain(Some(self.latest).filter(|latest| latest.len_bytes > 0))
    }

    fn put_by(&mut self, range: Region) {
        if range.len_bytes > 0 {
            self.others.insert(range.start, range.len_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_added_and_not_removed_is_there(
            steps in prop::collection::vec((0u32..40, 0u32..6, any::<bool>()), 1..60)
        ) {
            let (mut taken, mut model) = (Taken::default(), BTreeSet::new());
            for (start, len_bytes, adds) in steps {
                let (range, units) = (Region { start, len_bytes }, start..start + len_bytes);
                if adds && units.clone().all(|unit| !model.contains(&unit)) {
                    taken.add(range);
                    model.extend(units);
                } else if !adds && len_bytes > 0 {
                    // Ranges that follow one another may be two, of which none has all.
                    let whole = taken.ranges().any(|found| found.contains(range.offset(), len_bytes.into()));
                    prop_assert_eq!(taken.remove(range), whole);
                    model.retain(|unit| !(whole && units.contains(unit)));
                }
                let mut units: Vec<_> = taken.ranges().flat_map(|range| range.start..range.end()).collect();
                units.sort_unstable();
                prop_assert!(units.iter().eq(&model), "{:?}, {:?}", units, model);
            }
        }
    }
}
