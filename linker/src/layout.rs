//! Where each piece of a unit goes in its area.
//!
//! Invariant: after [`lay_out`], pieces of one area do not overlap, each is aligned as it asked, and the
//! pieces of private or shared data that have bytes come before those that are zero.

use crate::error::Problem;
use crate::input::{Area, Extent, Extents};
use crate::mutant::{Mutant, makes};
use crate::order;

/// A place in a unit before it has an address: a chunk, and an offset in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Spot {
    pub(crate) chunk: u32,
    pub(crate) offset: u32,
}

impl Spot {
    /// A number by which places are in order.
    pub(crate) fn key(self) -> u64 {
        u64::from(self.chunk) << 32 | u64::from(self.offset)
    }

    pub(crate) fn plus(self, bytes: u32) -> Self {
        Self {
            offset: self.offset.saturating_add(bytes),
            ..self
        }
    }
}

/// The bytes of a chunk.
#[derive(Clone, Debug)]
pub(crate) enum Content<'a> {
    /// As they lie in the input.
    Input(&'a [u8]),
    /// Made by the linker.
    Made(Vec<u8>),
    /// Zeros, this many.
    Zero(u64),
}

/// What is placed as one piece: a section, a common symbol, or what the linker adds.
#[derive(Clone, Debug)]
pub(crate) struct Chunk<'a> {
    pub(crate) area: Area,
    /// Chunks of a lower rank come first in their area.
    pub(crate) rank: u8,
    pub(crate) align_bytes: u64,
    /// The alignment by which data is packed: its own, or the strictest of its group.
    pub(crate) pack_bytes: u64,
    /// Chunks of one group lie beside one another, in their order; 0 is none.
    pub(crate) group: u32,
    pub(crate) content: Content<'a>,
    /// Object and section.
    pub(crate) origin: Option<(u32, u32)>,
    /// Each thread has its own copy; the chunk is its initial image, or zeros that are nowhere.
    pub(crate) thread_local: bool,
    /// Offset in the unit's part of its area, bytes.
    pub(crate) position: u32,
}

/// Ranks of private chunks: what is patched lies together, so that patching touches few pages.
pub(crate) const RANK_PATCHED: u8 = 0;
pub(crate) const RANK_PLAIN: u8 = 1;
/// The initial image of thread-local storage, which is one piece.
const RANK_THREAD_LOCAL: u8 = 2;
const RANK_ZERO: u8 = u8::MAX;

/// The rank of the thunks, which no other text has.
const RANK_THUNKS: u8 = u8::MAX;
/// Their [`Chunk::sort_key`].
const THUNKS_KEY: u64 = (RANK_THUNKS as u64) << RANK_SHIFT;
/// Where the rank is in a [`Chunk::sort_key`].
const RANK_SHIFT: u32 = 40;

/// The chunks that every unit starts with, whether it needs them or not.
pub(crate) const THUNKS: u32 = 0;
pub(crate) const CONSTANTS: u32 = 1;
pub(crate) const CELLS: u32 = 2;
/// Cells that hold something else than an address of the unit's own.
pub(crate) const DYNAMIC_CELLS: u32 = 3;
/// What tells the unit from others in its process ([`jitcast_runtime::module`]).
pub(crate) const MODULE: u32 = 4;
/// How to unwind.
pub(crate) const FRAMES: u32 = 5;

impl<'a> Chunk<'a> {
    /// The chunks that the linker itself adds, in the order of their numbers.
    pub(crate) fn made() -> Vec<Self> {
        let made = |area, rank, align_bytes| Self {
            area,
            rank,
            align_bytes,
            pack_bytes: align_bytes,
            group: 0,
            content: Content::Made(Vec::new()),
            origin: None,
            thread_local: false,
            position: 0,
        };
        vec![
            made(Area::Text, RANK_THUNKS, 1),
            made(Area::ReadOnly, RANK_PLAIN, 1),
            made(Area::Private, RANK_PATCHED, 1),
            made(Area::Private, RANK_PATCHED, 1),
            made(Area::Private, RANK_PATCHED, 1),
            made(Area::ReadOnly, RANK_PLAIN, 1),
        ]
    }

    /// A chunk of the unit's own, among what is patched.
    pub(crate) fn private(content: Content<'a>, align_bytes: u64) -> Self {
        Self {
            area: Area::Private,
            rank: RANK_PATCHED,
            align_bytes,
            pack_bytes: align_bytes,
            group: 0,
            content,
            origin: None,
            thread_local: false,
            position: 0,
        }
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        match &self.content {
            Content::Input(bytes) => bytes.len() as u64,
            Content::Made(bytes) => bytes.len() as u64,
            Content::Zero(len_bytes) => *len_bytes,
        }
    }

    /// The bytes, if there are any.
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        match &self.content {
            Content::Input(bytes) => Some(bytes),
            Content::Made(bytes) => Some(bytes),
            Content::Zero(_) => None,
        }
    }

    /// A number that chunks are laid out by, those that have the same in the order of the files.
    pub(crate) fn sort_key(&self) -> u64 {
        let rank = match (&self.content, self.area) {
            _ if self.thread_local => RANK_THREAD_LOCAL,
            (Content::Zero(_), Area::Private | Area::SharedData) => RANK_ZERO,
            _ => self.rank,
        };
        // Code stays in the order of the files, which is that of its callers; data packs best by alignment, the strictest first.
        let looseness = match self.area {
            Area::Text => 0,
            _ => self.pack_bytes.leading_zeros(),
        };
        u64::from(rank) << RANK_SHIFT | u64::from(looseness) << 32 | u64::from(self.group)
    }
}

/// The rank of a text section: the pages of what runs rarely are kept apart.
#[inline]
pub(crate) fn text_rank(name: &str) -> u8 {
    let Some(rest) = name.strip_prefix(".text.") else {
        return 1;
    };
    match rest.as_bytes().first() {
        Some(b'h') if rest.starts_with("hot") => 0,
        Some(b'u') if rest.starts_with("unlikely") => 2,
        Some(b's') if rest.starts_with("startup") => 2,
        Some(b'e') if rest.starts_with("exit") => 2,
        Some(b'c') if rest.starts_with("cold") => 2,
        _ => 1,
    }
}

/// Where everything of a unit goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plot {
    pub(crate) extents: Extents,
    /// How much of the private data has bytes.
    pub(crate) template_len_bytes: u64,
    /// How much of the shared data has.
    pub(crate) shared_len_bytes: u64,
    pub(crate) block: Option<Block>,
}

/// The unit's thread-local storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// Where its initial image lies in the private data.
    pub(crate) position: u32,
    pub(crate) image_len_bytes: u64,
    /// The length of each thread's copy.
    pub(crate) len_bytes: u64,
    pub(crate) align_bytes: u64,
}

/// Gives each chunk its position.
pub(crate) fn lay_out(chunks: &mut [Chunk<'_>], max_len_bytes: u64) -> Result<Plot, Problem> {
    let order = order(chunks);
    let is_image = |chunk: &Chunk<'_>| !matches!(chunk.content, Content::Zero(_));
    let block_align_bytes = chunks
        .iter()
        .filter(|chunk| chunk.thread_local)
        .map(|chunk| chunk.align_bytes)
        .max();
    // The image begins where a block may.
    if let Some(align_bytes) = block_align_bytes
        && let Some(&first) = (order.iter()).find(|&&number| {
            let chunk = &chunks[number as usize];
            chunk.thread_local && is_image(chunk)
        })
    {
        chunks[first as usize].align_bytes = align_bytes;
    }
    let mut block = block_align_bytes.map(|align_bytes| Block {
        position: 0,
        image_len_bytes: 0,
        len_bytes: 0,
        align_bytes,
    });
    let mut extents = Extents::default();
    let (mut template_len_bytes, mut shared_len_bytes) = (0, 0);
    let over = |value| Problem::Limit {
        what: "the length of the unit",
        value,
        limit: max_len_bytes,
    };
    for &number in &order {
        let chunk = &mut chunks[number as usize];
        if chunk.thread_local && !is_image(chunk) {
            continue;
        }
        let extent = match chunk.area {
            Area::Text => &mut extents.text,
            Area::ReadOnly => &mut extents.read_only,
            Area::Private => &mut extents.private,
            Area::SharedData => &mut extents.shared,
        };
        let packed = makes(Mutant::Unaligned) && chunk.area == Area::Text;
        let align_bytes = if packed { 1 } else { chunk.align_bytes };
        let start = align_up(extent.len_bytes, align_bytes);
        let end = start.saturating_add(chunk.len_bytes());
        if end > max_len_bytes {
            return Err(over(end));
        }
        chunk.position = u32::try_from(start).map_err(|_| over(start))?;
        extent.align_bytes = extent.align_bytes.max(chunk.align_bytes);
        extent.len_bytes = end;
        if let Some(block) = block.as_mut().filter(|_| chunk.thread_local) {
            if block.image_len_bytes == 0 {
                block.position = chunk.position;
            }
            block.image_len_bytes = end - u64::from(block.position);
            block.len_bytes = block.image_len_bytes;
        }
        if !matches!(chunk.content, Content::Zero(_)) && chunk.len_bytes() > 0 {
            match chunk.area {
                Area::Private => template_len_bytes = end,
                Area::SharedData => shared_len_bytes = end,
                Area::Text | Area::ReadOnly => {}
            }
        }
    }
    let mut len_bytes = 0;
    for extent in [
        &mut extents.text,
        &mut extents.read_only,
        &mut extents.private,
        &mut extents.shared,
    ] {
        // Each is that of a window at most.
        len_bytes += extent.len_bytes;
        if extent.len_bytes == 0 {
            *extent = Extent::default();
        }
    }
    if len_bytes > max_len_bytes {
        return Err(over(len_bytes));
    }
    if let Some(block) = &mut block {
        lay_out_zeros(chunks, &order, block, max_len_bytes)?;
    }
    Ok(Plot {
        extents,
        template_len_bytes,
        shared_len_bytes,
        block,
    })
}

/// The chunks in the order in which they are laid out: area by area, in most of which they are in order already.
fn order(chunks: &[Chunk<'_>]) -> Vec<u32> {
    const AREAS: usize = Area::SharedData as usize + 1;
    let mut areas = [const { Vec::new() }; AREAS];
    // Of code there may be thousands.
    areas[Area::Text as usize].reserve(chunks.len());
    // The last key of each, as long as they are in order.
    let mut last = [Some(0); AREAS];
    let mut thunks = None;
    for (number, chunk) in (0..).zip(chunks) {
        let (key, area) = (chunk.sort_key(), chunk.area as usize);
        // They come first, and nothing else goes last.
        if key == THUNKS_KEY {
            thunks = Some(number);
            continue;
        }
        last[area] = last[area].filter(|&last| last <= key).map(|_| key);
        areas[area].push(number);
    }
    areas[Area::Text as usize].extend(thunks);
    let mut order = Vec::with_capacity(chunks.len());
    for (mut list, last) in areas.into_iter().zip(last) {
        if last.is_none() {
            order::sort(&mut list, |&number| chunks[number as usize].sort_key());
        }
        order.extend(list);
    }
    order
}

/// The next multiple of `align_bytes`, a power of two, from `len_bytes` on: that of a window at most, so no sum overflows.
fn align_up(len_bytes: u64, align_bytes: u64) -> u64 {
    (len_bytes + (align_bytes - 1)) & !(align_bytes - 1)
}

/// Gives the zeros of thread-local storage their positions: behind the image, where they take no room.
fn lay_out_zeros(
    chunks: &mut [Chunk<'_>],
    order: &[u32],
    block: &mut Block,
    max_len_bytes: u64,
) -> Result<(), Problem> {
    let start = u64::from(block.position);
    for &number in order {
        let chunk = &mut chunks[number as usize];
        let Content::Zero(len_bytes) = chunk.content else {
            continue;
        };
        if !chunk.thread_local {
            continue;
        }
        let distance = align_up(block.len_bytes, chunk.align_bytes);
        let end = distance.saturating_add(len_bytes);
        let over = |value| Problem::Limit {
            what: "the length of thread-local storage",
            value,
            limit: max_len_bytes,
        };
        if end > max_len_bytes {
            return Err(over(end));
        }
        chunk.position = u32::try_from(start + distance).map_err(|_| over(end))?;
        block.len_bytes = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(area: Area, len_bytes: usize, align_bytes: u64, zero: bool) -> Chunk<'static> {
        let content = if zero {
            Content::Zero(len_bytes as u64)
        } else {
            Content::Made(vec![1; len_bytes])
        };
        Chunk {
            area,
            rank: RANK_PLAIN,
            align_bytes,
            pack_bytes: align_bytes,
            group: 0,
            content,
            origin: None,
            thread_local: false,
            position: 0,
        }
    }

    fn extent(len_bytes: u64, align_bytes: u64) -> Extent {
        Extent {
            len_bytes,
            align_bytes,
        }
    }

    #[test]
    fn zeros_come_last_and_are_not_in_the_template() {
        let mut chunks = [
            chunk(Area::Private, 100, 64, true),
            chunk(Area::Private, 3, 1, false),
            chunk(Area::Private, 8, 8, false),
        ];
        let plot = lay_out(&mut chunks, 1 << 20).unwrap();
        assert_eq!(chunks.map(|chunk| chunk.position), [64, 8, 0]);
        let private = plot.extents.private;
        assert_eq!((private, plot.template_len_bytes), (extent(164, 64), 11));
        assert_eq!(plot.extents.text, extent(0, 1));
        assert_eq!(plot.block, None);
    }

    #[test]
    fn text_keeps_its_order_and_its_alignment() {
        let mut chunks = [
            chunk(Area::Text, 5, 1, false),
            chunk(Area::Text, 16, 16, false),
            chunk(Area::Text, 1, 2, false),
        ];
        let plot = lay_out(&mut chunks, 1 << 20).unwrap();
        assert_eq!(chunks.map(|chunk| chunk.position), [0, 16, 32]);
        assert_eq!(plot.extents.text, extent(33, 16));
    }

    #[test]
    fn thread_local_zeros_follow_their_image_and_take_no_room() {
        let mut chunks = [
            chunk(Area::Private, 3, 1, false),
            chunk(Area::Private, 5, 4, false),
            chunk(Area::Private, 100, 32, true),
            chunk(Area::Private, 7, 1, true),
        ];
        chunks[1].thread_local = true;
        chunks[2].thread_local = true;
        let plot = lay_out(&mut chunks, 1 << 20).unwrap();
        assert_eq!(chunks.map(|chunk| chunk.position), [0, 32, 64, 37]);
        let block = Block {
            position: 32,
            image_len_bytes: 5,
            len_bytes: 132,
            align_bytes: 32,
        };
        assert_eq!(plot.block, Some(block));
        assert_eq!(plot.extents.private, extent(44, 32));
        assert_eq!(plot.template_len_bytes, 37);
    }

    #[test]
    fn a_unit_has_a_longest_length() {
        let fits = [
            chunk(Area::Private, 60, 1, true),
            chunk(Area::Text, 40, 1, false),
        ];
        assert!(lay_out(&mut fits.clone(), 100).is_ok());
        assert!(matches!(
            lay_out(&mut fits.clone(), 99),
            Err(Problem::Limit {
                value: 100,
                limit: 99,
                ..
            })
        ));
        let mut huge = [chunk(Area::Private, 0, 1, true)];
        huge[0].content = Content::Zero(u64::MAX);
        assert!(lay_out(&mut huge, 1 << 31).is_err());
    }

    #[test]
    fn what_runs_rarely_is_kept_apart() {
        assert!(text_rank(".text.hot.f") < text_rank(".text"));
        assert!(text_rank(".text") < text_rank(".text.unlikely"));
        assert_eq!(text_rank(".text.f"), text_rank(".text"));
    }
}
