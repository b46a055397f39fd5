//! Free ranges of one area: best fit, coalescing, in logarithmic time; what is taken in sequence, in constant time mostly.
//!
//! Invariant: free ranges are disjoint, never adjacent to one another or the watermark, and listed once by start and once by length, but
//! for one that may be open: what is taken in sequence comes from its start. What is neither free nor above the watermark is in use.

use std::collections::{BTreeMap, BTreeSet};

use crate::geometry::Region;

/// The allocator of one area.
#[derive(Clone, Debug)]
pub struct Space {
    area: Region,
    /// First offset that was never handed out.
    watermark: u32,
    by_start: BTreeMap<u32, u32>,
    by_len: BTreeSet<(u32, u32)>,
    /// The free range that is being used up, which is not listed; an empty one is none.
    open: Region,
    /// What is free, listed or open, bytes.
    free_bytes: u64,
}

/// The least hole that is used up by what is taken in sequence, as long as there is such a one, bytes: what is taken together by a
/// small publication fits.
const SEQUENCE_BYTES: u32 = 4 << 10;

impl Space {
    /// All of `area`, free.
    pub fn new(area: Region) -> Self {
        Self {
            area,
            watermark: area.start,
            by_start: BTreeMap::new(),
            by_len: BTreeSet::new(),
            open: Region::default(),
            free_bytes: 0,
        }
    }

    /// The area that is divided.
    pub fn area(&self) -> Region {
        self.area
    }

    /// First offset that was never handed out.
    pub fn watermark(&self) -> u32 {
        self.watermark
    }

    /// Bytes handed out and not returned.
    pub fn used_bytes(&self) -> u64 {
        u64::from(self.watermark - self.area.start) - self.free_bytes
    }

    /// The longest range that could be had now, bytes.
    pub fn largest_free_bytes(&self) -> u32 {
        let tail = self.area.end() - self.watermark;
        let listed = self.by_len.last().map_or(0, |&(len, _)| len);
        listed.max(self.open.len_bytes).max(tail)
    }

    /// What could be had, as the longest ranges that hold nothing else.
    pub fn free_ranges(&self) -> impl Iterator<Item = Region> {
        let tail = Region { start: self.watermark, len_bytes: self.area.end() - self.watermark };
        self.holes().chain((tail.len_bytes > 0).then_some(tail))
    }

    /// The free ranges before the watermark, in order.
    fn holes(&self) -> impl Iterator<Item = Region> {
        let listed = |(&start, &len_bytes): (&u32, &u32)| Region { start, len_bytes };
        let open = Some(self.open).filter(|open| open.len_bytes > 0);
        let before = self.by_start.range(..self.open.start).map(listed);
        before.chain(open).chain(self.by_start.range(self.open.start..).map(listed))
    }

    /// The last free range before `end` that is before the watermark.
    fn last_hole(&self, end: u32) -> Option<Region> {
        let listed = self.by_start.range(..end).next_back().map(|(&start, &len_bytes)| Region { start, len_bytes });
        let open = Some(self.open).filter(|open| open.len_bytes > 0 && open.start < end);
        listed.max(open)
    }

    /// Takes `len_bytes` at a multiple of `align_bytes` (a power of two); an empty range takes nothing.
    pub fn alloc(&mut self, len_bytes: u32, align_bytes: u32) -> Option<Region> {
        debug_assert!(align_bytes.is_power_of_two());
        if len_bytes == 0 {
            return Some(Region { start: self.area.start, len_bytes: 0 });
        }
        self.close();
        self.alloc_free(len_bytes, align_bytes).or_else(|| self.alloc_fresh(len_bytes, align_bytes))
    }

    /// Takes `len_bytes`, a multiple of eight as all that is taken of this space, after what was taken so before, if there is room.
    pub fn alloc_next(&mut self, len_bytes: u32) -> Option<Region> {
        if len_bytes == 0 {
            return self.alloc(0, 8);
        }
        if len_bytes > self.open.len_bytes && !self.open_hole(len_bytes) {
            return self.alloc_fresh(len_bytes, 8);
        }
        let taken = Region { start: self.open.start, len_bytes };
        self.open = Region { start: taken.end(), len_bytes: self.open.len_bytes - len_bytes };
        self.free_bytes -= u64::from(len_bytes);
        Some(taken)
    }

    /// Sees to it that what is taken in sequence lies together for the next `len_bytes`, if there is room for that.
    pub fn gather(&mut self, len_bytes: u32) {
        if len_bytes > self.open.len_bytes {
            self.open_hole(len_bytes);
        }
    }

    /// Goes on with another hole, of `len_bytes` at the least, if there is one.
    fn open_hole(&mut self, len_bytes: u32) -> bool {
        let longest = self.by_len.last().map_or(0, |&(len, _)| len);
        if longest < len_bytes {
            return false;
        }
        self.close();
        let wanted = len_bytes.max(SEQUENCE_BYTES).min(longest);
        let Some(hole) = self.best_fit(wanted, 8).filter(|hole| hole.start.is_multiple_of(8)) else {
            return false;
        };
        self.forget(hole.start, hole.len_bytes);
        self.open = hole;
        self.free_bytes += u64::from(hole.len_bytes);
        true
    }

    /// Lists what is open.
    fn close(&mut self) {
        let open = std::mem::take(&mut self.open);
        self.free_bytes -= u64::from(open.len_bytes);
        self.remember(open);
    }

    /// Returns a range that [`Space::alloc`] gave. What is not all in use stays as it is: who gives that back was lied to about
    /// what is there, by a journal, and what else lies there is not to be given away.
    pub fn free(&mut self, range: Region) {
        if range.len_bytes == 0 || !self.area.contains(range.offset(), range.len_bytes.into()) {
            return;
        }
        let last = self.last_hole(range.end());
        if range.end() > self.watermark || last.is_some_and(|last| last.end() > range.start) {
            return;
        }
        let mut merged = range;
        let mut opens = false;
        if let Some(last) = last.filter(|last| last.end() == range.start) {
            opens |= self.drop_hole(last);
            merged = Region { start: last.start, len_bytes: merged.len_bytes + last.len_bytes };
        }
        let next = self.by_start.get(&range.end()).copied();
        let next = next.map(|len_bytes| Region { start: range.end(), len_bytes });
        let open = Some(self.open).filter(|open| open.len_bytes > 0 && open.start == range.end());
        if let Some(next) = open.or(next) {
            opens |= self.drop_hole(next);
            merged.len_bytes += next.len_bytes;
        }
        if merged.end() == self.watermark {
            self.watermark = merged.start;
        } else if opens {
            self.open = merged;
            self.free_bytes += u64::from(merged.len_bytes);
        } else {
            self.remember(merged);
        }
    }

    /// Takes a hole out; whether it was open.
    fn drop_hole(&mut self, hole: Region) -> bool {
        let is_open = hole == self.open;
        if is_open {
            self.open = Region::default();
            self.free_bytes -= u64::from(hole.len_bytes);
        } else {
            self.forget(hole.start, hole.len_bytes);
        }
        is_open
    }

    /// Takes exactly `range`, if all of it is free: what an allocator did before is done again.
    pub fn take(&mut self, range: Region) -> bool {
        if !self.area.contains(range.offset(), range.len_bytes.into()) || range.len_bytes == 0 {
            return range.len_bytes == 0;
        }
        self.close();
        if range.start >= self.watermark {
            let gap = Region { start: self.watermark, len_bytes: range.start - self.watermark };
            self.watermark = range.end();
            self.remember(gap);
            return true;
        }
        let Some((&start, &len)) = self.by_start.range(..=range.start).next_back() else {
            return false;
        };
        let end = start + len;
        if range.end() > end {
            return false;
        }
        self.forget(start, len);
        self.remember(Region { start, len_bytes: range.start - start });
        self.remember(Region { start: range.end(), len_bytes: end - range.end() });
        true
    }

    /// Whether all of `range` is in use.
    pub fn is_used(&self, range: Region) -> bool {
        let used = Region { start: self.area.start, len_bytes: self.watermark - self.area.start };
        let last = self.last_hole(range.end());
        used.contains(range.offset(), range.len_bytes.into()) && last.is_none_or(|last| last.end() <= range.start)
    }

    /// What is in use, as the longest ranges that hold nothing else.
    pub fn used(&self) -> Vec<Region> {
        let mut used = Vec::new();
        let mut start = self.area.start;
        for hole in self.holes() {
            used.push(Region { start, len_bytes: hole.start - start });
            start = hole.end();
        }
        used.push(Region { start, len_bytes: self.watermark - start });
        used.retain(|range| range.len_bytes > 0);
        used
    }

    fn alloc_free(&mut self, len_bytes: u32, align_bytes: u32) -> Option<Region> {
        let hole = self.best_fit(len_bytes, align_bytes)?;
        let start = hole.start.next_multiple_of(align_bytes);
        self.forget(hole.start, hole.len_bytes);
        self.remember(Region { start: hole.start, len_bytes: start - hole.start });
        let end = start + len_bytes;
        self.remember(Region { start: end, len_bytes: hole.end() - end });
        Some(Region { start, len_bytes })
    }

    /// The smallest free range that has `len_bytes` at a multiple of `align_bytes`; with few alignments in use, the first
    /// candidates do.
    fn best_fit(&self, len_bytes: u32, align_bytes: u32) -> Option<Region> {
        let hole = |&(len_bytes, start): &(u32, u32)| Region { start, len_bytes };
        let fits = |hole: &Region| {
            let aligned = hole.start.checked_next_multiple_of(align_bytes);
            aligned.is_some_and(|aligned| aligned - hole.start <= hole.len_bytes - len_bytes)
        };
        let first = self.by_len.range((len_bytes, 0)..).take(16).map(hole).find(fits);
        first.or_else(|| {
            let wanted = len_bytes.checked_add(align_bytes - 1)?;
            self.by_len.range((wanted, 0)..).next().map(hole)
        })
    }

    fn alloc_fresh(&mut self, len_bytes: u32, align_bytes: u32) -> Option<Region> {
        let aligned = self.watermark.checked_next_multiple_of(align_bytes)?;
        let end = aligned.checked_add(len_bytes)?;
        if end > self.area.end() {
            return None;
        }
        let gap = Region { start: self.watermark, len_bytes: aligned - self.watermark };
        self.watermark = end;
        self.remember(gap);
        Some(Region { start: aligned, len_bytes })
    }

    fn remember(&mut self, range: Region) {
        if range.len_bytes > 0 {
            self.by_start.insert(range.start, range.len_bytes);
            self.by_len.insert((range.len_bytes, range.start));
            self.free_bytes += u64::from(range.len_bytes);
        }
    }

    fn forget(&mut self, start: u32, len: u32) {
        self.by_start.remove(&start);
        self.by_len.remove(&(len, start));
        self.free_bytes -= u64::from(len);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AREA: Region = Region { start: 4096, len_bytes: 4096 };

    #[test]
    fn a_full_area_says_so_and_is_whole_again_after_free() {
        let mut space = Space::new(AREA);
        let all = space.alloc(4096, 16).unwrap();
        assert_eq!(space.alloc(1, 1), None);
        space.free(all);
        assert_eq!((space.used_bytes(), space.largest_free_bytes()), (0, 4096));
    }

    proptest! {
        #[test]
        fn ranges_are_disjoint_aligned_and_coalesce(
            steps in prop::collection::vec((1u32..300, 0u32..8, any::<prop::sample::Index>(), any::<bool>()), 1..200),
            in_words: bool,
        ) {
            let mut space = Space::new(AREA);
            let mut held: Vec<Region> = Vec::new();
            for (len, align, pick, free) in steps {
                // All of a space is divided in words, or nothing of it is taken in sequence.
                let (len, align) = if in_words { (len.next_multiple_of(8), align.max(3)) } else { (len, align) };
                let in_sequence = in_words && align < 6;
                if in_sequence && align == 5 {
                    space.gather(len);
                }
                if free && !held.is_empty() {
                    space.free(held.swap_remove(pick.index(held.len())));
                } else {
                    let align_bytes = if in_sequence { 8 } else { 1 << align };
                    let taken = if in_sequence { space.alloc_next(len) } else { space.alloc(len, align_bytes) };
                    prop_assert!(taken.is_some() || space.largest_free_bytes() < len + align_bytes);
                    if let Some(range) = taken {
                        prop_assert!(range.start.is_multiple_of(align_bytes) && range.len_bytes == len);
                        prop_assert!(AREA.contains(range.offset(), len.into()));
                        prop_assert!(held.iter().all(|other| range.end() <= other.start || other.end() <= range.start));
                        held.push(range);
                    }
                }
                let used: u64 = held.iter().map(|range| u64::from(range.len_bytes)).sum();
                prop_assert_eq!(space.used_bytes(), used);
                let free: u64 = space.free_ranges().map(|range| u64::from(range.len_bytes)).sum();
                prop_assert_eq!(free, u64::from(AREA.len_bytes) - used);
                let free: Vec<_> = space.free_ranges().collect();
                prop_assert!(free.windows(2).all(|pair| pair[0].end() < pair[1].start), "{:?}", space);
            }
            let mut copy = Space::new(AREA);
            prop_assert!(space.used().into_iter().all(|range| copy.take(range)));
            prop_assert!(copy.free_ranges().eq(space.free_ranges()), "{:?}, {:?}", copy, space);
            for range in &held {
                prop_assert!(space.is_used(*range) && !copy.take(*range));
                copy.free(*range);
                prop_assert!(!copy.is_used(*range) && copy.take(*range));
            }
            held.drain(..).for_each(|range| space.free(range));
            prop_assert_eq!((space.used_bytes(), space.watermark()), (0, AREA.start));
        }

        #[test]
        fn what_is_not_in_use_is_not_given_back(
            lens in prop::collection::vec(1u32..300, 1..20),
            frees in prop::collection::vec((4000u32..9000, 0u32..600), 1..40),
            in_sequence: bool,
        ) {
            let mut space = Space::new(AREA);
            for len in lens {
                let _ = space.alloc(len, 1);
            }
            for (start, len_bytes) in frees {
                let range = Region { start, len_bytes };
                let before = space.used_bytes();
                let mut expected = if space.is_used(range) { before - u64::from(len_bytes) } else { before };
                space.free(range);
                if in_sequence && space.alloc_next(16).is_some() {
                    expected += 16;
                }
                prop_assert_eq!(space.used_bytes(), expected);
                let listed: u64 = space.used().iter().map(|range| u64::from(range.len_bytes)).sum();
                prop_assert_eq!(listed, expected);
            }
        }
    }
}
