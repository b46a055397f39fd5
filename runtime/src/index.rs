//! A persistent index from 64-bit keys to records: a hash array mapped trie, copied along the path of each
//! change, so that a root keeps meaning what it meant.
//!
//! Layout of a node: a word with the bitmap of children (low half) and which of them are records (high half);
//! a word with the newest generation below; then a word for each child, its offset. A record begins with its
//! key and its generation. Invariant: five bits of the key choose a child, from the low end; a node's newest
//! generation is the maximum over its records, so a walk may leave out what a worker has applied.

use std::collections::BTreeMap;

use crate::addr::SegmentOffset;
use crate::heap::{SegmentFull, Txn};
use crate::geometry::{Area, Region};
use crate::memory::{Corrupt, Memory, View};

const BITS: u32 = 5;
const DEPTH_MAX: u32 = 64u32.div_ceil(BITS);
const FANOUT: usize = 1 << BITS;

/// A node, read into this process.
#[derive(Clone, Copy, Debug)]
struct Node {
    bitmap: u32,
    records: u32,
    newest: u64,
    children: [u32; FANOUT],
}

impl Node {
    const EMPTY: Self = Self { bitmap: 0, records: 0, newest: 0, children: [0; FANOUT] };

    fn read(view: &View, at: SegmentOffset) -> Result<Self, Corrupt> {
        let head = view.load(at)?;
        let (bitmap, records) = (head as u32, (head >> 32) as u32);
        if records & !bitmap != 0 || bitmap == 0 {
            return Err(Corrupt { what: "index node", at });
        }
        let words = view.words(at, 2 + bitmap.count_ones() as usize)?;
        let word = |index: usize| crate::memory::load(&words[index]);
        let mut node = Self { bitmap, records, newest: word(1), ..Self::EMPTY };
        for (index, slot) in bits(bitmap).enumerate() {
            node.children[slot] = word(2 + index) as u32;
        }
        Ok(node)
    }

    fn len_bytes(&self) -> u32 {
        16 + 8 * self.bitmap.count_ones()
    }

    fn write(&self, txn: &mut Txn<'_>) -> Result<SegmentOffset, SegmentFull> {
        let mut words = [0u64; 2 + FANOUT];
        words[0] = u64::from(self.records) << 32 | u64::from(self.bitmap);
        words[1] = self.newest;
        let mut count = 2;
        for slot in bits(self.bitmap) {
            words[count] = self.children[slot].into();
            count += 1;
        }
        let at = txn.alloc(Area::Control, self.len_bytes(), 8)?.offset();
        txn.memory().write_bytes(at, zerocopy::IntoBytes::as_bytes(&words[..count]));
        Ok(at)
    }

    /// Puts `child` into `slot`; none empties it.
    fn put(&mut self, slot: usize, child: SegmentOffset, is_record: bool) {
        let is_there = !child.is_none();
        self.bitmap = self.bitmap & !(1 << slot) | u32::from(is_there) << slot;
        self.records = self.records & !(1 << slot) | u32::from(is_there && is_record) << slot;
        self.children[slot] = child.get();
    }

    fn has(&self, slot: usize) -> bool {
        self.bitmap >> slot & 1 == 1
    }

    fn is_record(&self, slot: usize) -> bool {
        self.records >> slot & 1 == 1
    }
}

fn bits(mut map: u32) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        (map != 0).then(|| {
            let slot = map.trailing_zeros() as usize;
            map &= map - 1;
            slot
        })
    })
}

fn slot_of(key: u64, depth: u32) -> usize {
    (key >> (depth * BITS)) as usize & (FANOUT - 1)
}

fn key_of(view: &View, record: u32) -> Result<u64, Corrupt> {
    view.load(SegmentOffset::new(record))
}

/// The record under `key`, if there is one.
///
/// # Errors
/// [`Corrupt`] if the index is not what [`insert`] writes.
pub fn get(view: &View, root: SegmentOffset, key: u64) -> Result<Option<SegmentOffset>, Corrupt> {
    let mut at = root;
    for depth in 0..DEPTH_MAX {
        if at.is_none() {
            return Ok(None);
        }
        let slot = slot_of(key, depth);
        let head = view.load(at)?;
        let (bitmap, records) = (head as u32, (head >> 32) as u32);
        if bitmap >> slot & 1 == 0 {
            return Ok(None);
        }
        let before = (bitmap & ((1u32 << slot) - 1)).count_ones();
        let place = at.checked_add(16 + 8 * u64::from(before)).ok_or(Corrupt { what: "index node", at })?;
        let child = SegmentOffset::new(view.load(place)? as u32);
        if records >> slot & 1 == 1 {
            return Ok((view.load(child)? == key).then_some(child));
        }
        at = child;
    }
    Err(Corrupt { what: "index deeper than its keys", at })
}

/// The key of a record that [`floor`] is to find: an offset, its highest bits first.
pub fn by_place(place: SegmentOffset) -> u64 {
    (0..PLACE_GROUPS).fold(0, |key, group| {
        let bits = u64::from(place.get()) >> (BITS * (PLACE_GROUPS - 1 - group)) & (FANOUT as u64 - 1);
        key | bits << (BITS * group)
    })
}

/// The place whose key is `key`.
fn place_of(key: u64) -> u64 {
    (0..PLACE_GROUPS).fold(0, |place, group| place << BITS | (key >> (BITS * group)) & (FANOUT as u64 - 1))
}

/// Groups of bits in an offset.
const PLACE_GROUPS: u32 = u32::BITS.div_ceil(BITS);

/// Of the records under keys by [`by_place`], the one at `place`, or else the last before it. Neither
/// allocates nor locks.
///
/// # Errors
/// [`Corrupt`] if the index is not what [`insert`] writes.
pub fn floor(view: &View, root: SegmentOffset, place: SegmentOffset) -> Result<Option<SegmentOffset>, Corrupt> {
    let key = by_place(place);
    // The nearest child so far that lies before the place as a whole, and whether it is a record.
    let mut before = None;
    let mut at = root;
    for depth in 0..DEPTH_MAX {
        if at.is_none() {
            break;
        }
        let (slot, node) = (slot_of(key, depth), Node::read(view, at)?);
        let lower = node.bitmap & ((1u32 << slot) - 1);
        if let Some(last) = lower.checked_ilog2() {
            before = Some((node.children[last as usize], node.is_record(last as usize)));
        }
        let child = SegmentOffset::new(node.children[slot]);
        if !node.has(slot) {
            break;
        } else if node.is_record(slot) {
            if place_of(view.load(child)?) <= place.get().into() {
                return Ok(Some(child));
            }
            break;
        }
        at = child;
    }
    for _ in 0..=DEPTH_MAX {
        match before {
            None => return Ok(None),
            Some((record, true)) => return Ok(Some(SegmentOffset::new(record))),
            Some((child, false)) => {
                let node = Node::read(view, SegmentOffset::new(child))?;
                let last = node.bitmap.ilog2() as usize;
                before = Some((node.children[last], node.is_record(last)));
            }
        }
    }
    Err(Corrupt { what: "index deeper than its keys", at: root })
}

/// Calls `visit` with every record that is newer than generation `applied`, in no particular order.
///
/// # Errors
/// [`Corrupt`], or the first error of `visit`.
pub fn walk<E: From<Corrupt>>(
    view: &View,
    root: SegmentOffset,
    applied: u64,
    visit: &mut dyn FnMut(SegmentOffset) -> Result<(), E>,
) -> Result<(), E> {
    walk_below(view, root, applied, 0, visit)
}

fn walk_below<E: From<Corrupt>>(
    view: &View,
    at: SegmentOffset,
    applied: u64,
    depth: u32,
    visit: &mut dyn FnMut(SegmentOffset) -> Result<(), E>,
) -> Result<(), E> {
    if at.is_none() {
        return Ok(());
    }
    if depth == DEPTH_MAX {
        return Err(Corrupt { what: "index deeper than its keys", at }.into());
    }
    let node = Node::read(view, at)?;
    if node.newest <= applied {
        return Ok(());
    }
    for slot in bits(node.bitmap) {
        let child = SegmentOffset::new(node.children[slot]);
        if !node.is_record(slot) {
            walk_below(view, child, applied, depth + 1, visit)?;
        } else if view.load(SegmentOffset::new(child.get().wrapping_add(8)))? > applied {
            visit(child)?;
        }
    }
    Ok(())
}

/// Calls `visit` with the key of every record that one of two indexes has and the other has not, or has another record for. What
/// they have in common is not looked at: the cost is that of the changes.
///
/// # Errors
/// [`Corrupt`], or the first error of `visit`.
pub fn changes<E: From<Corrupt>>(
    view: &View,
    before: SegmentOffset,
    after: SegmentOffset,
    visit: &mut dyn FnMut(u64) -> Result<(), E>,
) -> Result<(), E> {
    changes_below(view, Below::index(before), Below::index(after), 0, visit)
}

/// What is below a child of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Below {
    Nothing,
    Record(SegmentOffset),
    Node(SegmentOffset),
}

impl Below {
    fn index(root: SegmentOffset) -> Self {
        if root.is_none() { Self::Nothing } else { Self::Node(root) }
    }

    /// The children, as if what is not a node yet were one.
    fn children(self, view: &View, depth: u32) -> Result<[Self; FANOUT], Corrupt> {
        let mut children = [Self::Nothing; FANOUT];
        match self {
            Self::Nothing => {}
            Self::Record(at) => children[slot_of(view.load(at)?, depth)] = self,
            Self::Node(at) => {
                let node = Node::read(view, at)?;
                for slot in bits(node.bitmap) {
                    let child = SegmentOffset::new(node.children[slot]);
                    children[slot] = if node.is_record(slot) { Self::Record(child) } else { Self::Node(child) };
                }
            }
        }
        Ok(children)
    }
}

fn changes_below<E: From<Corrupt>>(
    view: &View,
    before: Below,
    after: Below,
    depth: u32,
    visit: &mut dyn FnMut(u64) -> Result<(), E>,
) -> Result<(), E> {
    match (before, after) {
        _ if before == after => return Ok(()),
        (Below::Record(at), Below::Nothing) | (Below::Nothing, Below::Record(at)) => return visit(view.load(at)?),
        (Below::Record(before), Below::Record(after)) => {
            let (key, other) = (view.load(before)?, view.load(after)?);
            visit(key)?;
            return if other == key { Ok(()) } else { visit(other) };
        }
        _ => {}
    }
    let ((Below::Node(at), _) | (_, Below::Node(at))) = (before, after) else {
        return Ok(());
    };
    if depth == DEPTH_MAX {
        return Err(Corrupt { what: "index deeper than its keys", at }.into());
    }
    let before = before.children(view, depth)?;
    let after = after.children(view, depth)?;
    for (before, after) in before.into_iter().zip(after) {
        changes_below(view, before, after, depth + 1, visit)?;
    }
    Ok(())
}

/// Puts `record`, whose first word is its key, under that key, replacing what was there; returns the new
/// root. The replaced record itself stays the caller's to retire.
///
/// # Errors
/// [`SegmentFull`]; the transaction is then to be dropped.
pub fn insert(
    txn: &mut Txn<'_>,
    root: SegmentOffset,
    record: SegmentOffset,
) -> Result<SegmentOffset, SegmentFull> {
    let key = own(key_of(txn.memory(), record.get()));
    change(txn, root, &mut [(key, record)])
}

/// Takes `key` out; returns the new root. A key that is not there changes nothing.
///
/// # Errors
/// [`SegmentFull`]; the transaction is then to be dropped.
pub fn remove(txn: &mut Txn<'_>, root: SegmentOffset, key: u64) -> Result<SegmentOffset, SegmentFull> {
    if own(get(txn.memory(), root, key)).is_none() {
        return Ok(root);
    }
    change(txn, root, &mut [(key, SegmentOffset::NONE)])
}

/// Many changes at once, of different keys: puts the record of each under its key, or takes the key out where there is none. Each
/// node that changes is written once, one after another. So what a publication brings is read from few pages of memory.
///
/// # Errors
/// [`SegmentFull`]; the transaction is then to be dropped.
pub fn change(
    txn: &mut Txn<'_>,
    root: SegmentOffset,
    changes: &mut [(u64, SegmentOffset)],
) -> Result<SegmentOffset, SegmentFull> {
    if changes.is_empty() {
        return Ok(root);
    }
    changes.sort_unstable_by(|(key, _), (other, _)| by_path(*key, *other));
    change_below(txn, root, changes, 0)
}

/// The order in which a walk comes to records.
fn by_path(key: u64, other: u64) -> core::cmp::Ordering {
    let depth = (key ^ other).trailing_zeros() / BITS;
    slot_of(key, depth).cmp(&slot_of(other, depth))
}

/// Writes what the node at `at` becomes with `changes`, which are in the order of their paths; the node itself stays as it is while
/// an older root reaches it. If nothing is left, there is none.
fn change_below(
    txn: &mut Txn<'_>,
    at: SegmentOffset,
    changes: &[(u64, SegmentOffset)],
    depth: u32,
) -> Result<SegmentOffset, SegmentFull> {
    let mut node = if at.is_none() { Node::EMPTY } else { own(Node::read(txn.memory(), at)) };
    let replaced = Region { start: at.get(), len_bytes: if at.is_none() { 0 } else { node.len_bytes() } };
    if changes.iter().any(|(_, record)| !record.is_none()) {
        node.newest = txn.generation();
    }
    for group in changes.chunk_by(|(key, _), (other, _)| slot_of(*key, depth) == slot_of(*other, depth)) {
        let slot = slot_of(group[0].0, depth);
        if node.has(slot) && !node.is_record(slot) {
            let child = change_below(txn, SegmentOffset::new(node.children[slot]), group, depth + 1)?;
            node.put(slot, child, false);
            continue;
        }
        // What is there already and stays.
        let other = SegmentOffset::new(node.children[slot]);
        let other = node.has(slot).then(|| (own(key_of(txn.memory(), other.get())), other));
        let other = other.filter(|(key, _)| group.iter().all(|(new, _)| new != key));
        let mut several: Vec<_>;
        let there = match (group, other) {
            ([change], None) => std::slice::from_ref(change),
            (_, None) if group.iter().all(|(_, record)| !record.is_none()) => group,
            _ => {
                several = group.iter().copied().filter(|(_, record)| !record.is_none()).collect();
                if let Some(other) = other {
                    let place = several.partition_point(|(key, _)| by_path(*key, other.0).is_lt());
                    several.insert(place, other);
                }
                &several
            }
        };
        match there {
            [] => node.put(slot, SegmentOffset::NONE, false),
            [(_, record)] => node.put(slot, *record, true),
            _ => {
                let child = change_below(txn, SegmentOffset::NONE, there, depth + 1)?;
                node.put(slot, child, false);
            }
        }
    }
    txn.retire(Area::Control, replaced);
    if node.bitmap == 0 { Ok(SegmentOffset::NONE) } else { node.write(txn) }
}

/// The compiler process is the only writer of the index; what it reads back is what it wrote.
fn own<T>(result: Result<T, Corrupt>) -> T {
    result.expect("the single writer's own index is intact")
}

/// Where every node is, for one who reads back what others may have written: each node once, each record where
/// its key says, and none newer than the nodes above it say.
///
/// # Errors
/// [`Corrupt`] if the index is not what [`insert`] writes.
pub fn nodes(view: &View, root: SegmentOffset) -> Result<Vec<Region>, Corrupt> {
    let mut found = BTreeMap::new();
    let mut pending = vec![(root, 0, 0, u64::MAX)];
    while let Some((at, depth, prefix, newest)) = pending.pop() {
        if at.is_none() {
            continue;
        }
        let corrupt = Corrupt { what: "index that is no trie", at };
        let node = Node::read(view, at)?;
        let is_dated = (1..=newest).contains(&node.newest);
        if depth == DEPTH_MAX || !is_dated || found.insert(at, node.len_bytes()).is_some() {
            return Err(corrupt);
        }
        for slot in bits(node.bitmap) {
            let child = SegmentOffset::new(node.children[slot]);
            let prefix = prefix | (slot as u64) << (depth * BITS);
            let mask = 1u64.checked_shl((depth + 1) * BITS).map_or(u64::MAX, |bit| bit - 1);
            if !node.is_record(slot) {
                pending.push((child, depth + 1, prefix, node.newest));
                continue;
            }
            let generation = view.load(child.checked_add(8).ok_or(corrupt)?)?;
            let is_dated = (1..=node.newest).contains(&generation);
            if key_of(view, child.get())? & mask != prefix || !is_dated {
                return Err(corrupt);
            }
        }
    }
    Ok(found.into_iter().map(|(at, len_bytes)| Region { start: at.get(), len_bytes }).collect())
}

/// Reads back every record, for one who adopts a segment or counts it.
///
/// # Errors
/// [`Corrupt`] if the index is not what [`insert`] writes.
pub fn records(memory: &Memory, root: SegmentOffset) -> Result<Vec<SegmentOffset>, Corrupt> {
    let mut found = Vec::new();
    walk(memory, root, 0, &mut |record| {
        found.push(record);
        Ok::<_, Corrupt>(())
    })?;
    Ok(found)
}
