//! Names that hostile input brings, numbered: each is hashed once when it is looked for, and never again when the table
//! grows.
//!
//! A name is a polynomial over the field of `2^61 - 1` elements: its length, then its bytes, eight at a time, are the
//! coefficients. It is hashed to the polynomial's value at a point that is drawn for each table, times an odd number that is
//! drawn too. Two names of n coefficients differ by a polynomial that is not zero and of degree n at most, which has n zeros
//! at most in each direction: so for whoever does not know the point they collide once in `2^61 / n` times, whatever they are, and
//! meet in one of m buckets about twice in m. No table is asked twice what it was drawn for, and no output depends on it.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// A Mersenne prime.
const PRIME: u64 = (1 << 61) - 1;

/// How many bytes of a name are compared without looking for it in its file.
const INLINE: usize = 16;

/// A name and its hash.
///
/// Its first bytes lie beside it: names lie in as many places as there are files, and each would be a cache miss.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Name<'a> {
    hash: u64,
    /// The first [`INLINE`] bytes, with zeros behind them if there are fewer.
    first: [u64; INLINE / 8],
    bytes: &'a [u8],
}

impl PartialEq for Name<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
            && self.bytes.len() == other.bytes.len()
            && self.first == other.first
            && (self.bytes.len() <= INLINE || self.bytes == other.bytes)
    }
}

/// Names, numbered from 0 in the order in which they come first.
#[derive(Debug, Default)]
pub(crate) struct Names<'a> {
    key: Key,
    /// The numbers by their names: a few bytes for each, which stay in a cache where the names would not.
    numbers: HashTable<u32>,
    list: Vec<Name<'a>>,
}

impl<'a> Names<'a> {
    /// Makes room for `count` more.
    pub(crate) fn reserve(&mut self, count: usize) {
        let list = &self.list;
        self.numbers
            .reserve(count, |&number| list[number as usize].hash);
        self.list.reserve(count);
    }

    /// The number of `name`, and whether it is new; `None` if there are 2^32 - 1 others.
    #[inline]
    pub(crate) fn number(&mut self, name: &'a [u8]) -> Option<(u32, bool)> {
        let name = self.key.name(name);
        let list = &mut self.list;
        let entry = self.numbers.entry(
            name.hash,
            |&number| list[number as usize] == name,
            |&number| list[number as usize].hash,
        );
        match entry {
            Entry::Occupied(known) => Some((*known.get(), false)),
            Entry::Vacant(place) => {
                let number = u32::try_from(list.len()).ok();
                let number = number.filter(|&number| number < u32::MAX)?;
                place.insert(number);
                list.push(name);
                Some((number, true))
            }
        }
    }

    /// The number of `name`, if it is known.
    pub(crate) fn find(&self, name: &[u8]) -> Option<u32> {
        if self.list.is_empty() {
            return None;
        }
        let name = self.key.name(name);
        let is_it = |&number: &u32| self.list[number as usize] == name;
        self.numbers.find(name.hash, is_it).copied()
    }
}

/// What the names of one table are hashed by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    point: u64,
    /// The second coordinate of the point: what the upper halves of the coefficients count.
    upper: u64,
    factor: u64,
}

impl Default for Key {
    /// Draws one.
    fn default() -> Self {
        let random = RandomState::new();
        Self {
            point: random.hash_one(0) & PRIME,
            upper: random.hash_one(1) & PRIME,
            factor: random.hash_one(2) | 1,
        }
    }
}

impl Key {
    /// `bytes` as a key.
    #[inline]
    pub(crate) fn name<'a>(&self, bytes: &'a [u8]) -> Name<'a> {
        let (words, rest) = bytes.as_chunks();
        let mut value = self.add(0, bytes.len() as u64);
        for word in words {
            value = self.add(value, u64::from_le_bytes(*word));
        }
        let last = last_word(bytes, rest.len());
        if !rest.is_empty() {
            // The length says how many of its zeros there are.
            value = self.add(value, last);
        }
        let first = match words {
            [] => [last, 0],
            [one] => [u64::from_le_bytes(*one), last],
            [one, two, ..] => [u64::from_le_bytes(*one), u64::from_le_bytes(*two)],
        };
        // Tables go by the lower bits, and those of a product are mixed best above.
        let hash = value.wrapping_mul(self.factor).rotate_left(32);
        Name { hash, first, bytes }
    }

    /// One coefficient more. The field holds 61 bits, so a word's halves are two coefficients, in two variables.
    #[inline]
    fn add(&self, value: u64, word: u64) -> u64 {
        // Below 2^62 * 2^61 + 2^32 * 2^61 + 2^32.
        let sum = u128::from(value) * u128::from(self.point)
            + u128::from(word >> 32) * u128::from(self.upper)
            + u128::from(word & u64::from(u32::MAX));
        let (low, high) = (sum as u64 & PRIME, (sum >> 61) as u64);
        // Below 2^61 + 2^62 + 2^33, and after another round below 2^61 + 4.
        let folded = low + high;
        (folded & PRIME) + (folded >> 61)
    }
}

/// The last `count` bytes, seven at most, with zeros behind them.
#[inline]
fn last_word(bytes: &[u8], count: usize) -> u64 {
    if count == 0 {
        return 0;
    }
    match bytes.last_chunk() {
        // What is not asked for is below.
        Some(word) => u64::from_le_bytes(*word) >> (64 - 8 * count),
        None => {
            let bytes = bytes.iter().rev().take(count);
            bytes.fold(0, |word, &byte| word << 8 | u64::from(byte))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn it_is_the_polynomial() {
        let (point, upper, factor) = (123_456_789_012_345_678, 987_654_321_098_765_432, 1);
        let key = Key {
            point,
            upper,
            factor,
        };
        let text = b"_ZN4name6that_is_longE";
        let times = |one: u64, two: u64| u128::from(one) * u128::from(two) % u128::from(PRIME);
        let mut expected = text.len() as u64;
        for chunk in text.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            let word = u64::from_le_bytes(word);
            let sum = times(expected, point) + times(word >> 32, upper) + u128::from(word as u32);
            expected = (sum % u128::from(PRIME)) as u64;
        }
        let found = key.name(text).hash.rotate_right(32) % PRIME;
        assert_eq!(found, expected);
    }

    /// At a point that an attacker would choose only the last word counts.
    #[test]
    fn names_that_collide_are_told_apart() {
        let key = Key {
            point: 0,
            upper: 1,
            factor: 1,
        };
        let names = [
            "0123456789abcdefX123456789abcdef",
            "0123456789abcdefY123456789abcdef",
            "0123456789Xbcdef0123456789abcdef",
            "X1234567 and more89abcdef",
            "89abcdef",
        ];
        let hash = key.name(b"89abcdef").hash;
        assert!(
            names[..3]
                .iter()
                .all(|name| key.name(name.as_bytes()).hash == hash)
        );
        let mut table = Names {
            key,
            ..Names::default()
        };
        for (number, name) in (0..).zip(names) {
            assert_eq!(table.number(name.as_bytes()), Some((number, true)));
        }
        for (number, name) in (0..).zip(names) {
            assert_eq!(table.number(name.as_bytes()), Some((number, false)));
            assert_eq!(table.find(name.as_bytes()), Some(number));
        }
    }

    #[test]
    fn names_are_told_apart() {
        let key = Key::default();
        let names: Vec<String> = (0..10_000).map(|number| format!("name_{number}")).collect();
        let zeros = [0; 64];
        let others = (0..zeros.len()).map(|len| &zeros[..len]);
        let all: Vec<&[u8]> = names.iter().map(String::as_bytes).chain(others).collect();
        let hashes: HashSet<u64> = all.iter().map(|name| key.name(name).hash).collect();
        assert_eq!(hashes.len(), all.len());
        // About as many of 16,384 buckets are taken as balls that are thrown would take: 7,500 or so.
        let buckets: HashSet<u64> = hashes.iter().map(|hash| hash & 0x3fff).collect();
        assert!(buckets.len() > 5_000, "{}", buckets.len());
        let mut table = Names::default();
        for (number, name) in (0..).zip(&all) {
            assert_eq!(table.find(name), None);
            assert_eq!(table.number(name), Some((number, true)));
        }
        for (number, name) in (0..).zip(&all) {
            assert_eq!(table.find(name), Some(number));
            assert_eq!(table.number(name), Some((number, false)));
        }
    }
}
