//! Sorting by numbers, in linear time.

/// What is shorter is sorted by comparing.
const FEW: usize = 64;

/// How many bits are sorted by at a time, fewer of a shorter list: the counts stay in the first cache.
const FEWER_BITS: u32 = 8;
const BITS: u32 = 11;

/// Sorts `list` by `key`, what is equal in the order in which it was: some bits of the keys at a time, from the last on, and
/// only bits in which they differ. So places of a unit take two or three rounds.
pub(crate) fn sort<T: Copy>(list: &mut Vec<T>, key: impl Fn(&T) -> u64) {
    if list.is_sorted_by_key(&key) {
        return;
    }
    if list.len() < FEW {
        list.sort_by_key(key);
        return;
    }
    let bits = if list.len() < 1 << BITS {
        FEWER_BITS
    } else {
        BITS
    };
    let mask = (1 << bits) - 1;
    let first = key(&list[0]);
    let mut differing = list.iter().fold(0, |bits, item| bits | (key(item) ^ first));
    let mut other = list.clone();
    while differing != 0 {
        let shift = differing.trailing_zeros();
        let digit = |item: &T| (key(item) >> shift & mask) as usize;
        let mut next = [0_u32; 1 << BITS];
        for item in &*list {
            next[digit(item)] += 1;
        }
        let mut sum = 0;
        for start in &mut next[..1 << bits] {
            (*start, sum) = (sum, sum + *start);
        }
        for item in &*list {
            let place = &mut next[digit(item)];
            other[*place as usize] = *item;
            *place += 1;
        }
        core::mem::swap(list, &mut other);
        differing &= !(mask << shift);
    }
}

#[cfg(test)]
mod tests {
    use super::sort;

    /// Against the standard library's stable sort: few and many, in every byte, with equal keys and without.
    #[test]
    fn it_is_the_stable_order() {
        let mut seed = 1_u64;
        for len in [0, 1, 2, 63, 64, 65, 1000, 5000] {
            for mask in [0, 7, 0xff00, 0x00ff_00ff_0000_00ff, u64::MAX] {
                let next = |_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    seed ^ seed >> 29
                };
                let keys = (0..len).map(next);
                let list: Vec<_> = keys.map(|key| key & mask).zip(0_usize..).collect();
                let (mut sorted, mut expected) = (list.clone(), list);
                sort(&mut sorted, |&(key, _)| key);
                expected.sort_by_key(|&(key, _)| key);
                assert_eq!(sorted, expected, "{len} {mask:x}");
            }
        }
    }
}
