//! What a unit's code needs: a graph from its definitions to the names that they refer to, so that a worker
//! that lacks a host symbol can tell which functions must not run.
//!
//! In the segment: a word with the number of nodes and of edges; a word with the number of references and a
//! zero; the references, two words each ([`Reference`]); then 32-bit numbers: the index of each node's first
//! edge, and one past the last; then the edges. An edge's top bit tells a reference from another node.

use crate::addr::SegmentOffset;
use crate::geometry::Region;
use crate::memory::{Corrupt, View};
use crate::patch::ImportId;

/// The bit that tells an edge to a reference from one to a node.
pub const EDGE_TO_REFERENCE: u32 = 1 << 31;

/// What a unit refers to outside itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// A host symbol.
    Import(ImportId),
    /// A published symbol, by the hash of its name.
    Symbol(u64),
}

impl Reference {
    fn words(self) -> [u64; 2] {
        match self {
            Self::Import(import) => [0, import.get().into()],
            Self::Symbol(hash) => [1, hash],
        }
    }

    fn from_words([kind, value]: [u64; 2]) -> Option<Self> {
        match kind {
            0 => Some(Self::Import(ImportId::new(u32::try_from(value).ok()?))),
            1 => Some(Self::Symbol(value)),
            _ => None,
        }
    }
}

/// The graph, read into this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// What edges refer to.
    pub references: Vec<Reference>,
    /// Index of each node's first edge, and one past the last.
    pub first: Vec<u32>,
    /// Edges.
    pub edges: Vec<u32>,
}

impl Needs {
    /// The graph's bytes in the segment.
    pub fn to_bytes(&self) -> Vec<u8> {
        let nodes = self.first.len().saturating_sub(1) as u64;
        let mut bytes = Vec::with_capacity(16 + self.references.len() * 16 + (self.first.len() + self.edges.len()) * 4);
        let mut push = |word: u64| bytes.extend_from_slice(&word.to_le_bytes());
        push((self.edges.len() as u64) << 32 | nodes);
        push(self.references.len() as u64);
        self.references.iter().flat_map(|reference| reference.words()).for_each(&mut push);
        for number in self.first.iter().chain(&self.edges) {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// Reads the graph at `region`, which may be anything.
    ///
    /// # Errors
    /// [`Corrupt`] unless it is what [`Needs::to_bytes`] writes.
    pub fn read(view: &View, region: Region) -> Result<Self, Corrupt> {
        let corrupt = Corrupt { what: "graph of needs", at: region.offset() };
        let bytes = view.bytes(region.offset(), region.len_bytes as usize)?;
        Self::from_bytes(&bytes).ok_or(corrupt)
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (words, _) = bytes.as_chunks::<8>();
        let word = |index: usize| words.get(index).map(|word| u64::from_le_bytes(*word));
        let (counts, reference_count) = (word(0)?, usize::try_from(word(1)?).ok()?);
        let (nodes, edges) = (counts as u32 as usize, (counts >> 32) as usize);
        if reference_count > bytes.len() {
            return None;
        }
        let references = (0..reference_count)
            .map(|index| Reference::from_words([word(2 + 2 * index)?, word(3 + 2 * index)?]))
            .collect::<Option<Vec<_>>>()?;
        let (numbers, _) = bytes.get(16 + 16 * reference_count..)?.as_chunks::<4>();
        let mut numbers = numbers.iter().map(|number| u32::from_le_bytes(*number));
        let first: Vec<u32> = numbers.by_ref().take(nodes + 1).collect();
        let edges: Vec<u32> = numbers.take(edges).collect();
        let sorted = first.is_sorted() && *first.last()? as usize == edges.len();
        let inside = edges.iter().all(|edge| match edge & EDGE_TO_REFERENCE {
            0 => (*edge as usize) < nodes,
            _ => ((edge & !EDGE_TO_REFERENCE) as usize) < reference_count,
        });
        (first.len() == nodes + 1 && sorted && inside).then_some(Self { references, first, edges })
    }

    /// Every reference that the code of `node` reaches, once each.
    pub fn reachable(&self, node: u32) -> Vec<Reference> {
        let nodes = self.first.len().saturating_sub(1);
        let (mut seen, mut referred) = (vec![false; nodes], vec![false; self.references.len()]);
        let mut pending = vec![node];
        let mut found = Vec::new();
        while let Some(node) = pending.pop().map(|node| node as usize) {
            if node >= nodes || core::mem::replace(&mut seen[node], true) {
                continue;
            }
            for edge in &self.edges[self.first[node] as usize..self.first[node + 1] as usize] {
                if edge & EDGE_TO_REFERENCE == 0 {
                    pending.push(*edge);
                    continue;
                }
                let index = (edge & !EDGE_TO_REFERENCE) as usize;
                if !core::mem::replace(&mut referred[index], true) {
                    found.push(self.references[index]);
                }
            }
        }
        found
    }
}

/// Where nothing is needed.
pub const NO_NEEDS: SegmentOffset = SegmentOffset::NONE;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Needs {
        Needs {
            references: vec![Reference::Import(ImportId::new(7)), Reference::Symbol(u64::MAX)],
            first: vec![0, 2, 3, 3],
            edges: vec![1, EDGE_TO_REFERENCE, EDGE_TO_REFERENCE | 1],
        }
    }

    #[test]
    fn needs_follow_edges_and_come_back_from_bytes() {
        let needs = sample();
        assert_eq!(needs.reachable(0), [Reference::Import(ImportId::new(7)), Reference::Symbol(u64::MAX)]);
        assert_eq!(needs.reachable(1), [Reference::Symbol(u64::MAX)]);
        assert_eq!(needs.reachable(2), []);
        assert_eq!(needs.reachable(9), []);
        assert_eq!(Needs::from_bytes(&needs.to_bytes()), Some(needs));
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_refused_or_safe(mut bytes in prop::collection::vec(any::<u8>(), 0..200), flip in any::<prop::sample::Index>()) {
            let _ = Needs::from_bytes(&bytes).map(|needs| needs.reachable(0));
            bytes = sample().to_bytes();
            let at = flip.index(bytes.len());
            bytes[at] ^= 0x41;
            let _ = Needs::from_bytes(&bytes).map(|needs| needs.reachable(0));
        }
    }
}
