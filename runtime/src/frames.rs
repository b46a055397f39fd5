//! What is known of a stretch of text: how to unwind through its functions, and what they are called.
//!
//! Two tables of one form, sorted by place: a word with the number of entries (low half) and the number of the unit
//! (high half); then two words for each entry, its start and length, and what belongs to it: the offset of its
//! FDE, or the offset in the table and the length of its name. Names follow the entries, UTF-8.
//!
//! Invariant: whoever finds another unit's number at the head of a table knows that the table is gone.

use crate::addr::SegmentOffset;
use crate::geometry::{Area, Geometry, Region};
use crate::memory::{Corrupt, View};
use crate::records::MAX_NAME_BYTES;

const HEAD_BYTES: u32 = 8;
const ENTRY_BYTES: u32 = 16;

/// How to unwind through a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The function.
    pub start: SegmentOffset,
    /// Its length, bytes.
    pub len_bytes: u32,
    /// Its record in an `.eh_frame` section.
    pub fde: SegmentOffset,
}

/// What a function is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name<'a> {
    /// The function.
    pub start: SegmentOffset,
    /// Its length, bytes.
    pub len_bytes: u32,
    /// Its name; not more of it than [`MAX_NAME_BYTES`] is stored.
    pub name: &'a str,
}

/// The table of `frames`, which are sorted, of unit number `unit`.
pub fn frame_table(unit: u32, frames: &[Frame]) -> Vec<u8> {
    let entries = frames.iter();
    let entries = entries.map(|frame| (frame.start, frame.len_bytes, u64::from(frame.fde.get())));
    table(unit, (frames.len(), 0), entries)
}

/// The table of `names`, which are sorted, of unit number `unit`.
pub fn name_table(unit: u32, names: &[Name<'_>]) -> Vec<u8> {
    let stored = |name: &Name<'_>| name.name.floor_char_boundary(MAX_NAME_BYTES);
    let mut at = u64::from(HEAD_BYTES) + names.len() as u64 * u64::from(ENTRY_BYTES);
    let entries = names.iter().map(|name| {
        let (place, len_bytes) = (at, stored(name) as u64);
        at += len_bytes;
        (name.start, name.len_bytes, len_bytes << 32 | place & u64::from(u32::MAX))
    });
    let text_len = names.iter().map(stored).sum();
    let mut bytes = table(unit, (names.len(), text_len), entries);
    for name in names {
        bytes.extend_from_slice(&name.name.as_bytes()[..stored(name)]);
    }
    bytes
}

/// A table of `count` entries, with room for `more_bytes` after it.
fn table(
    unit: u32,
    (count, more_bytes): (usize, usize),
    entries: impl Iterator<Item = (SegmentOffset, u32, u64)>,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES as usize + count * ENTRY_BYTES as usize + more_bytes);
    let head = u64::from(unit) << 32 | count as u64;
    bytes.extend_from_slice(&head.to_le_bytes());
    for (start, len_bytes, what) in entries {
        let range = u64::from(len_bytes) << 32 | u64::from(start.get());
        bytes.extend_from_slice(&range.to_le_bytes());
        bytes.extend_from_slice(&what.to_le_bytes());
    }
    bytes
}

/// The function around `at`, by the table at `region`; `None` if there is none, or the table is not that of unit
/// number `unit`. Neither allocates nor locks.
///
/// # Errors
/// [`Corrupt`] if the table is not readable.
pub fn find_frame(view: &View, region: Region, unit: u32, at: SegmentOffset) -> Result<Option<Frame>, Corrupt> {
    let found = find(view, region, unit, at)?;
    Ok(found.map(|(start, len_bytes, what)| Frame { start, len_bytes, fde: SegmentOffset::new(what as u32) }))
}

/// Where the function around `at` is, as [`find_name`] finds its name.
///
/// # Errors
/// [`Corrupt`] if the table is not readable.
pub fn find_extent(view: &View, region: Region, unit: u32, at: SegmentOffset) -> Result<Option<Region>, Corrupt> {
    let found = find(view, region, unit, at)?;
    Ok(found.and_then(|(start, len_bytes, _)| Region::new(start.get(), len_bytes)))
}

/// The function around `at` and its name, as [`find_frame`] finds its frame.
///
/// # Errors
/// [`Corrupt`] if the table is not readable, or the name not UTF-8.
pub fn find_name(
    view: &View,
    region: Region,
    unit: u32,
    at: SegmentOffset,
) -> Result<Option<(SegmentOffset, String)>, Corrupt> {
    let Some((start, name)) = find_name_place(view, region, unit, at)? else {
        return Ok(None);
    };
    let mut bytes = vec![0; name.len_bytes as usize];
    view.copy(name.offset(), &mut bytes)?;
    let corrupt = Corrupt { what: "name of a function", at: region.offset() };
    let name = String::from_utf8(bytes).map_err(|_| corrupt)?;
    Ok(Some((start, name)))
}

/// Where the function around `at` begins, and where its name is ([`find_name`]). Neither allocates nor locks.
///
/// # Errors
/// [`Corrupt`] if the table is not readable.
pub fn find_name_place(
    view: &View,
    region: Region,
    unit: u32,
    at: SegmentOffset,
) -> Result<Option<(SegmentOffset, Region)>, Corrupt> {
    let Some((start, _, what)) = find(view, region, unit, at)? else {
        return Ok(None);
    };
    let corrupt = Corrupt { what: "name of a function", at: region.offset() };
    let (place, len_bytes) = (u64::from(what as u32), (what >> 32) as u32);
    let first = region.offset().checked_add(place).ok_or(corrupt)?;
    if len_bytes as usize > MAX_NAME_BYTES || !region.contains(first, len_bytes.into()) {
        return Err(corrupt);
    }
    Ok(Some((start, Region { start: first.get(), len_bytes })))
}

/// Calls `visit` with where each function of the table at `region` is and what it is called, in the order of their places; with
/// nothing if the table is not that of unit number `unit`.
///
/// # Errors
/// [`Corrupt`] if the table is not readable, or a name not UTF-8.
pub fn each_name(
    view: &View,
    region: Region,
    unit: u32,
    mut visit: impl FnMut(SegmentOffset, u32, &str),
) -> Result<(), Corrupt> {
    let corrupt = Corrupt { what: "names of functions", at: region.offset() };
    if region.len_bytes < HEAD_BYTES {
        return Ok(());
    }
    // One copy, so that a table of many names is read once.
    let bytes = view.bytes(region.offset(), region.len_bytes as usize)?;
    let (words, _) = bytes.as_chunks::<8>();
    let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
    let head = words.next().unwrap_or(0);
    let (count, owner) = (head as u32 as usize, (head >> 32) as u32);
    if owner != unit || count as u64 * u64::from(ENTRY_BYTES) > u64::from(region.len_bytes - HEAD_BYTES) {
        return Ok(());
    }
    for _ in 0..count {
        let (Some(range), Some(what)) = (words.next(), words.next()) else {
            return Err(corrupt);
        };
        let (place, len) = (what as u32 as usize, (what >> 32) as usize);
        let name = place.checked_add(len).and_then(|end| bytes.get(place..end)).filter(|_| len <= MAX_NAME_BYTES);
        let name = name.and_then(|name| core::str::from_utf8(name).ok()).ok_or(corrupt)?;
        visit(SegmentOffset::new(range as u32), (range >> 32) as u32, name);
    }
    Ok(())
}

fn find(view: &View, region: Region, unit: u32, at: SegmentOffset) -> Result<Option<(SegmentOffset, u32, u64)>, Corrupt> {
    if region.len_bytes < HEAD_BYTES {
        return Ok(None);
    }
    let head = view.load(region.offset())?;
    let (count, owner) = (head as u32, (head >> 32) as u32);
    if owner != unit || u64::from(count) * u64::from(ENTRY_BYTES) > u64::from(region.len_bytes - HEAD_BYTES) {
        return Ok(None);
    }
    let entry = |index: u32| SegmentOffset::new(region.start + HEAD_BYTES + index * ENTRY_BYTES);
    let (mut first, mut end) = (0, count);
    while first < end {
        let middle = first + (end - first) / 2;
        if view.load(entry(middle))? as u32 <= at.get() {
            first = middle + 1;
        } else {
            end = middle;
        }
    }
    let Some(index) = first.checked_sub(1) else {
        return Ok(None);
    };
    let range = view.load(entry(index))?;
    let (start, len_bytes) = (range as u32, (range >> 32) as u32);
    if at.get().wrapping_sub(start) >= len_bytes {
        return Ok(None);
    }
    let what = view.load(SegmentOffset::new(entry(index).get() + 8))?;
    Ok(Some((SegmentOffset::new(start), len_bytes, what)))
}

/// Length of [`stub_frames`], bytes.
pub const STUB_FRAMES_BYTES: u32 = 56;

/// Where the FDE is in [`stub_frames`], bytes.
pub const STUB_FDE: u32 = 24;

/// An `.eh_frame` section for the area of stubs, to lie at `at`. A stub leaves the stack as its caller left it:
/// the return address is on top.
pub fn stub_frames(geometry: &Geometry, at: SegmentOffset) -> [u8; STUB_FRAMES_BYTES as usize] {
    let stubs = geometry.region(Area::Stubs);
    let mut bytes = [0; STUB_FRAMES_BYTES as usize];
    let cie = [
        20, 0, 0, 0, 0, 0, 0, 0, // length, CIE
        1, b'z', b'R', 0, 1, 0x78, 16, 1, // version, augmentation, units of 1 and -8, return address in 16
        0x1b, // functions at signed distances of 32 bits
        0x0c, 7, 8, // DW_CFA_def_cfa: %rsp + 8
        0x90, 1, // DW_CFA_offset: the return address at CFA - 8
        0, 0,
    ];
    bytes[..cie.len()].copy_from_slice(&cie);
    let start = STUB_FDE as usize;
    let mut word = |offset: usize, value: u32| bytes[start + offset..start + offset + 4].copy_from_slice(&value.to_le_bytes());
    word(0, 20);
    word(4, STUB_FDE + 4);
    word(8, stubs.start.wrapping_sub(at.get() + STUB_FDE + 8));
    word(12, stubs.len_bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::HeapMemory;

    const SPAN: Region = Region { start: 4096, len_bytes: 4096 };
    const AT: SegmentOffset = SegmentOffset::new(4096 + 64);

    fn stored(bytes: &[u8]) -> (HeapMemory, Region) {
        let heap = HeapMemory::new(SPAN);
        heap.memory().write_bytes(AT, bytes);
        (heap, Region { start: AT.get(), len_bytes: bytes.len() as u32 })
    }

    fn frame(start: u32, len_bytes: u32) -> Frame {
        Frame { start: SegmentOffset::new(start), len_bytes, fde: SegmentOffset::new(start * 2) }
    }

    #[test]
    fn places_lead_to_the_function_around_them() {
        let frames = [frame(100, 10), frame(110, 5), frame(200, 1)];
        let (heap, region) = stored(&frame_table(7, &frames));
        let find = |at| find_frame(heap.memory(), region, 7, SegmentOffset::new(at)).unwrap();
        for (at, expected) in
            [(99, None), (100, Some(0)), (109, Some(0)), (110, Some(1)), (114, Some(1)), (115, None), (200, Some(2)), (201, None)]
        {
            assert_eq!(find(at), expected.map(|index: usize| frames[index]), "{at}");
        }
        let extent = find_extent(heap.memory(), region, 7, SegmentOffset::new(112));
        assert_eq!(extent, Ok(Region::new(110, 5)));
        let other = find_frame(heap.memory(), region, 8, SegmentOffset::new(100));
        assert_eq!(other, Ok(None), "another unit's table");
    }

    #[test]
    fn names_come_back_whole() {
        let long = "é".repeat(MAX_NAME_BYTES);
        let name = |start, name| Name { start: SegmentOffset::new(start), len_bytes: 8, name };
        let (heap, region) = stored(&name_table(1, &[name(8, "first"), name(16, ""), name(24, "dernière")]));
        let find = |at| find_name(heap.memory(), region, 1, SegmentOffset::new(at)).unwrap().map(|(_, name)| name);
        assert_eq!([15, 16, 31, 32].map(find), [Some("first".into()), Some(String::new()), Some("dernière".into()), None]);
        let mut all = Vec::new();
        each_name(heap.memory(), region, 1, |start, len_bytes, name| all.push((start.get(), len_bytes, name.to_owned()))).unwrap();
        assert_eq!(all, [(8, 8, "first".into()), (16, 8, String::new()), (24, 8, "dernière".into())]);
        each_name(heap.memory(), region, 2, |_, _, _| panic!("another unit's table")).unwrap();
        let cut = name_table(1, &[name(8, &long)]);
        assert_eq!(cut.len(), 8 + 16 + MAX_NAME_BYTES);
    }

    #[test]
    fn hostile_tables_are_refused_or_safe() {
        let good = name_table(1, &[Name { start: SegmentOffset::new(8), len_bytes: 8, name: "name" }]);
        for at in 0..good.len() {
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = byte;
                let (heap, region) = stored(&bytes);
                for len_bytes in [0, 7, 8, 23, region.len_bytes, u32::MAX - AT.get()] {
                    let region = Region { len_bytes, ..region };
                    let _ = find_name(heap.memory(), region, 1, SegmentOffset::new(9));
                    let _ = find_frame(heap.memory(), region, 1, SegmentOffset::new(9));
                    let _ = each_name(heap.memory(), region, 1, |_, _, _| ());
                }
            }
        }
    }
}
