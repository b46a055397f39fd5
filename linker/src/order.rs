//! Sorting by numbers, in linear time.

/// What is shorter is sorted by comparing.
const FEW: usize = 64;

/// Sorts `list` by `key`, what is equal in the order in which it was: a byte of the keys at a time, from the last on, and
/// only bytes in which they differ. So places of a unit take two or three rounds.
pub(crate) fn sort<T: Copy>(list: &mut Vec<T>, key: impl Fn(&T) -> u64) {
    if list.is_sorted_by_key(&key) {
        return;
    }
    if list.len() < FEW {
        list.sort_by_key(key);
        return;
    }
    let first = key(&list[0]);
    let differing = list.iter().fold(0, |bits, item| bits | (key(item) ^ first));
    let mut other = list.clone();
    for shift in (0..u64::BITS).step_by(8) {
        if differing >> shift & 0xff == 0 {
            continue;
        }
        let byte = |item: &T| (key(item) >> shift & 0xff) as usize;
        let mut next = [0_usize; 256];
        for item in &*list {
            next[byte(item)] += 1;
        }
        let mut sum = 0;
        for start in &mut next {
            (*start, sum) = (sum, sum + *start);
        }
        for item in &*list {
            let place = &mut next[byte(item)];
            other[*place] = *item;
            *place += 1;
        }
        core::mem::swap(list, &mut other);
    }
}

#[cfg(test)]
mod tests {
    use super::sort;

    /// Against the standard library's stable sort: few and many, in every byte, with equal keys and without.
    #[test]
    fn it_is_the_stable_order() {
        let mut seed = 1_u64;
        for len in [0, 1, 2, 63, 64, 65, 1000] {
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
