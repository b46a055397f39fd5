//! Names that hostile input brings, numbered: each is hashed once when it is looked for, and never again when the table
//! grows.
//!
//! A name is a polynomial over the field of `2^61 - 1` elements: its bytes, seven at a time, are the coefficients, and its
//! length is the last. It is hashed to the polynomial's value at a point that is drawn for each table, of `2^59`, times an odd number
//! that is drawn too. Two names of n coefficients differ by a polynomial that is not zero and of degree n at most, which has n zeros
//! at most: so for whoever does not know the point they collide once in `2^59 / n` times, whatever they are, and
//! meet in one of m buckets about twice in m. No table is asked twice what it was drawn for, and no output depends on it.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// A Mersenne prime.
const PRIME: u64 = (1 << 61) - 1;

/// How many bytes make a coefficient.
const STEP: usize = 7;

/// The bits of a word that make one.
const COEFFICIENT: u64 = (1 << (8 * STEP)) - 1;

/// How many coefficients of a name are compared without looking for it in its file.
const INLINE: usize = 2;

/// A name and its hash.
///
/// Its first bytes lie beside it: names lie in as many places as there are files, and each would be a cache miss.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Name<'a> {
    hash: u64,
    /// The first [`INLINE`] coefficients, zero if there are fewer.
    first: u64,
    second: u64,
    bytes: &'a [u8],
}

impl<'a> Name<'a> {
    /// What it is.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

impl PartialEq for Name<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
            && self.bytes.len() == other.bytes.len()
            && (self.first, self.second) == (other.first, other.second)
            && (self.bytes.len() <= INLINE * STEP || self.bytes == other.bytes)
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

    /// What its names are hashed by.
    pub(crate) fn key(&self) -> Key {
        self.key
    }

    /// The number of `name`, and whether it is new; `None` if there are 2^32 - 1 others.
    #[inline]
    pub(crate) fn number(&mut self, name: Name<'a>) -> Option<(u32, bool)> {
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
    factor: u64,
}

impl Default for Key {
    /// Draws one.
    fn default() -> Self {
        let random = RandomState::new();
        Self {
            point: random.hash_one(0) >> 5,
            factor: random.hash_one(1) | 1,
        }
    }
}

impl Key {
    /// `bytes` as a key.
    pub(crate) fn name<'a>(&self, bytes: &'a [u8]) -> Name<'a> {
        let mut polynomial = Polynomial::new(*self);
        let mut rest = bytes;
        while let Some(word) = rest.first_chunk() {
            polynomial.add(u64::from_le_bytes(*word) & COEFFICIENT);
            rest = &rest[STEP..];
        }
        if !rest.is_empty() {
            let last = rest.iter().rev();
            polynomial.add(last.fold(0, |word, &byte| word << 8 | u64::from(byte)));
        }
        polynomial.name(bytes)
    }

    /// The name at the start of `strings`, which ends before the first zero; nothing, if there is none.
    #[inline]
    pub(crate) fn first_of<'a>(&self, strings: &'a [u8]) -> Option<Name<'a>> {
        let mut polynomial = Polynomial::new(*self);
        let mut len = 0;
        while let Some(word) = strings.get(len..)?.first_chunk() {
            let word = u64::from_le_bytes(*word);
            let zeros = zeros(word) & COEFFICIENT;
            if zeros == 0 {
                polynomial.add(word & COEFFICIENT);
                len += STEP;
                continue;
            }
            let before = zeros.trailing_zeros() & !7;
            if before > 0 {
                polynomial.add(word & ((1 << before) - 1));
            }
            return Some(polynomial.name(strings.get(..len + before as usize / 8)?));
        }
        let rest = strings.get(len..)?.iter();
        let end = len + rest.take_while(|&&byte| byte != 0).count();
        (end < strings.len()).then(|| self.name(&strings[..end]))
    }
}

/// How long what `strings` begin with is, up to the first zero; nothing, if there is none.
#[inline]
pub(crate) fn len_of_first(strings: &[u8]) -> Option<usize> {
    let (words, rest) = strings.as_chunks();
    for (index, word) in words.iter().enumerate() {
        let zeros = zeros(u64::from_le_bytes(*word));
        if zeros != 0 {
            return Some(index * size_of_val(word) + zeros.trailing_zeros() as usize / 8);
        }
    }
    let end = rest.iter().position(|&byte| byte == 0)?;
    Some(strings.len() - rest.len() + end)
}

/// The highest bit of each byte of `word` that is zero; those above the lowest such byte may be wrong.
#[inline]
fn zeros(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 0xff;
    word.wrapping_sub(ONES) & !word & (ONES << 7)
}

/// The value of a polynomial whose coefficients come one by one.
struct Polynomial {
    key: Key,
    value: u64,
    /// How many there were.
    count: usize,
    first: u64,
    second: u64,
}

impl Polynomial {
    #[inline]
    fn new(key: Key) -> Self {
        Self {
            key,
            value: 0,
            count: 0,
            first: 0,
            second: 0,
        }
    }

    /// One coefficient more.
    #[inline]
    fn add(&mut self, coefficient: u64) {
        match self.count {
            0 => self.first = coefficient,
            1 => self.second = coefficient,
            _ => {}
        }
        self.count += 1;
        self.value = self.next(coefficient);
    }

    #[inline]
    fn next(&self, coefficient: u64) -> u64 {
        // Below 2^62 * 2^59 + 2^56.
        let sum = u128::from(self.value) * u128::from(self.key.point) + u128::from(coefficient);
        // Below 2^61 + 2^60 + 1, and as good as what is left of the sum.
        (sum as u64 & PRIME) + (sum >> 61) as u64
    }

    /// The name that it is of.
    #[inline]
    fn name(self, bytes: &[u8]) -> Name<'_> {
        // Its length, which says how many of the last coefficient's zeros are its own.
        let value = self.next(bytes.len() as u64);
        Name {
            // Tables go by the lower bits, and those of a product are mixed best above.
            hash: value.wrapping_mul(self.key.factor).rotate_left(32),
            first: self.first,
            second: self.second,
            bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn it_is_the_polynomial() {
        let (point, factor) = (123_456_789_012_345_678, 1);
        let key = Key { point, factor };
        let text = b"_ZN4name6that_is_longE";
        let times = |one: u64, two: u64| u128::from(one) * u128::from(two) % u128::from(PRIME);
        let mut coefficients: Vec<u64> = (text.chunks(STEP))
            .map(|chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                u64::from_le_bytes(word)
            })
            .collect();
        coefficients.push(text.len() as u64);
        let expected = coefficients.iter().fold(0, |value, &coefficient| {
            ((times(value, point) + u128::from(coefficient)) % u128::from(PRIME)) as u64
        });
        let found = key.name(text).hash.rotate_right(32) % PRIME;
        assert_eq!(found, expected);
    }

    /// Of every length, with whatever behind it, at the end of the table and before it.
    #[test]
    fn what_ends_with_a_zero_is_the_name_before_it() {
        let key = Key::default();
        let text = b"a_name.that\xff\x80\x01is$longer_than_a_few_words";
        for len in 0..=text.len() {
            let name = key.name(&text[..len]);
            for behind in [&b""[..], b"\x01", b"\0\0", b"\x80next\0", b"the next one\0"] {
                let table = [&text[..len], b"\0", behind].concat();
                let found = key.first_of(&table).unwrap();
                assert_eq!(
                    (found, found.bytes()),
                    (name, name.bytes()),
                    "{len} {behind:?}"
                );
            }
            assert_eq!(key.first_of(&text[..len]), None);
            assert_eq!(len_of_first(&text[..len]), None);
        }
    }

    /// At a point that an attacker would choose only the length counts.
    #[test]
    fn names_that_collide_are_told_apart() {
        let (point, factor) = (0, 1);
        let key = Key { point, factor };
        let names = [
            "0123456789abcdefX123456789abcdef",
            "0123456789abcdefY123456789abcdef",
            "0123456789Xbcdef0123456789abcdef",
            "X1234567 and more, so as long as",
        ];
        let hash = key.name(&[b' '; 32]).hash;
        assert!(
            names
                .iter()
                .all(|name| key.name(name.as_bytes()).hash == hash)
        );
        let mut table = Names {
            key,
            ..Names::default()
        };
        for (number, name) in (0..).zip(names) {
            assert_eq!(
                table.number(key.name(name.as_bytes())),
                Some((number, true))
            );
        }
        for (number, name) in (0..).zip(names) {
            assert_eq!(
                table.number(key.name(name.as_bytes())),
                Some((number, false))
            );
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
            assert_eq!(table.number(table.key().name(name)), Some((number, true)));
        }
        for (number, name) in (0..).zip(&all) {
            assert_eq!(table.find(name), Some(number));
            assert_eq!(table.number(table.key().name(name)), Some((number, false)));
        }
    }
}
