//! Free ranges of one area: best fit, coalescing, in logarithmic time.
//!
//! Invariant: free ranges are disjoint, never adjacent to one another, and listed once by start and once
//! by length; what is neither free nor above the watermark is in use.

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
    free_bytes: u64,
}

impl Space {
    /// All of `area`, free.
    pub fn new(area: Region) -> Self {
        Self {
            area,
            watermark: area.start,
            by_start: BTreeMap::new(),
            by_len: BTreeSet::new(),
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
        self.by_len.last().map_or(tail, |&(len, _)| len.max(tail))
    }

    /// What could be had, as the longest ranges that hold nothing else.
    pub fn free_ranges(&self) -> impl Iterator<Item = Region> {
        let holes = self.by_start.iter().map(|(&start, &len_bytes)| Region { start, len_bytes });
        let tail = Region { start: self.watermark, len_bytes: self.area.end() - self.watermark };
        holes.chain((tail.len_bytes > 0).then_some(tail))
    }

    /// Takes `len_bytes` at a multiple of `align_bytes` (a power of two); an empty range takes nothing.
    pub fn alloc(&mut self, len_bytes: u32, align_bytes: u32) -> Option<Region> {
        debug_assert!(align_bytes.is_power_of_two());
        if len_bytes == 0 {
            return Some(Region { start: self.area.start, len_bytes: 0 });
        }
        self.alloc_free(len_bytes, align_bytes).or_else(|| self.alloc_fresh(len_bytes, align_bytes))
    }

    /// Returns a range that [`Space::alloc`] gave. What is not all in use stays as it is: who gives that back was lied to about
    /// what is there, by a journal, and what else lies there is not to be given away.
    pub fn free(&mut self, range: Region) {
        if range.len_bytes == 0 || !self.area.contains(range.offset(), range.len_bytes.into()) {
            return;
        }
        let last = self.by_start.range(..range.end()).next_back().map(|(&start, &len)| (start, len));
        if range.end() > self.watermark || last.is_some_and(|(start, len)| start + len > range.start) {
            return;
        }
        let mut merged = range;
        if let Some((start, len)) = last.filter(|(start, len)| start + len == range.start) {
            self.forget(start, len);
            merged = Region { start, len_bytes: merged.len_bytes + len };
        }
        if let Some(&len) = self.by_start.get(&range.end()) {
            self.forget(range.end(), len);
            merged.len_bytes += len;
        }
        if merged.end() == self.watermark {
            self.watermark = merged.start;
        } else {
            self.remember(merged);
        }
    }

    /// Takes exactly `range`, if all of it is free: what an allocator did before is done again.
    pub fn take(&mut self, range: Region) -> bool {
        if !self.area.contains(range.offset(), range.len_bytes.into()) || range.len_bytes == 0 {
            return range.len_bytes == 0;
        }
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
        let last = self.by_start.range(..range.end()).next_back();
        used.contains(range.offset(), range.len_bytes.into())
            && last.is_none_or(|(start, len)| start + len <= range.start)
    }

    /// What is in use, as the longest ranges that hold nothing else.
    pub fn used(&self) -> Vec<Region> {
        let mut used = Vec::new();
        let mut start = self.area.start;
        for (&free, &len) in &self.by_start {
            used.push(Region { start, len_bytes: free - start });
            start = free + len;
        }
        used.push(Region { start, len_bytes: self.watermark - start });
        used.retain(|range| range.len_bytes > 0);
        used
    }

    fn alloc_free(&mut self, len_bytes: u32, align_bytes: u32) -> Option<Region> {
        // The best fit that alignment allows; with few alignments in use, the first candidates fit.
        let (found_len, start, aligned) = self
            .by_len
            .range((len_bytes, 0)..)
            .take(16)
            .find_map(|&(len, start)| {
                let aligned = start.checked_next_multiple_of(align_bytes)?;
                (aligned - start <= len - len_bytes).then_some((len, start, aligned))
            })
            .or_else(|| {
                let wanted = len_bytes.checked_add(align_bytes - 1)?;
                let &(len, start) = self.by_len.range((wanted, 0)..).next()?;
                Some((len, start, start.next_multiple_of(align_bytes)))
            })?;
        self.forget(start, found_len);
        self.remember(Region { start, len_bytes: aligned - start });
        let end = aligned + len_bytes;
        self.remember(Region { start: end, len_bytes: start + found_len - end });
        Some(Region { start: aligned, len_bytes })
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
            steps in prop::collection::vec((1u32..300, 0u32..8, any::<prop::sample::Index>(), any::<bool>()), 1..200)
        ) {
            let mut space = Space::new(AREA);
            let mut held: Vec<Region> = Vec::new();
            for (len, align, pick, free) in steps {
                if free && !held.is_empty() {
                    space.free(held.swap_remove(pick.index(held.len())));
                } else if let Some(range) = space.alloc(len, 1 << align) {
                    prop_assert!(range.start.is_multiple_of(1 << align) && range.len_bytes == len);
                    prop_assert!(AREA.contains(range.offset(), len.into()));
                    prop_assert!(held.iter().all(|other| range.end() <= other.start || other.end() <= range.start));
                    held.push(range);
                }
                let used: u64 = held.iter().map(|range| u64::from(range.len_bytes)).sum();
                prop_assert_eq!(space.used_bytes(), used);
            }
            let mut copy = Space::new(AREA);
            prop_assert!(space.used().into_iter().all(|range| copy.take(range)));
            prop_assert_eq!((&copy.by_start, copy.watermark), (&space.by_start, space.watermark));
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
        ) {
            let mut space = Space::new(AREA);
            for len in lens {
                let _ = space.alloc(len, 1);
            }
            for (start, len_bytes) in frees {
                let range = Region { start, len_bytes };
                let before = space.used_bytes();
                let expected = if space.is_used(range) { before - u64::from(len_bytes) } else { before };
                space.free(range);
                prop_assert_eq!(space.used_bytes(), expected);
                let listed: u64 = space.used().iter().map(|range| u64::from(range.len_bytes)).sum();
                prop_assert_eq!(listed, expected);
            }
        }
    }
}
