//! What lies in memory after a link: pieces at addresses.

use std::collections::BTreeMap;

/// Memory, as far as it was told.
#[derive(Clone, Debug, Default)]
pub struct Image {
    regions: BTreeMap<u64, Vec<u8>>,
}

impl Image {
    /// No memory yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes at `address`. Regions must not overlap; of two at one address the later one counts.
    pub fn add(&mut self, address: u64, bytes: Vec<u8>) {
        self.regions.insert(address, bytes);
    }

    /// `len` bytes from `address` on, if they lie in one region.
    pub fn read(&self, address: u64, len: usize) -> Option<&[u8]> {
        let (start, bytes) = self.regions.range(..=address).next_back()?;
        let skip = usize::try_from(address - start).ok()?;
        bytes.get(skip..skip.checked_add(len)?)
    }

    /// Up to `len` bytes from `address` on.
    pub fn read_some(&self, address: u64, len: usize) -> &[u8] {
        let Some((start, bytes)) = self.regions.range(..=address).next_back() else {
            return &[];
        };
        let skip = usize::try_from(address - start).unwrap_or(usize::MAX);
        let rest = bytes.get(skip..).unwrap_or_default();
        &rest[..len.min(rest.len())]
    }

    /// The 64-bit word at `address`.
    pub fn word(&self, address: u64) -> Option<u64> {
        let bytes = self.read(address, 8)?;
        bytes.first_chunk().map(|word| u64::from_le_bytes(*word))
    }

    /// Stores a word over memory that is there already; `false` if it is not.
    pub fn store(&mut self, address: u64, word: u64) -> bool {
        let Some((start, bytes)) = self.regions.range_mut(..=address).next_back() else {
            return false;
        };
        let skip = usize::try_from(address - start).unwrap_or(usize::MAX);
        let place = skip.checked_add(8).and_then(|end| bytes.get_mut(skip..end));
        if let Some(place) = place {
            place.copy_from_slice(&word.to_le_bytes());
            return true;
        }
        false
    }

    /// All regions, in the order of their addresses.
    pub fn regions(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.regions
            .iter()
            .map(|(&address, bytes)| (address, bytes.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::Image;

    #[test]
    fn reads_stay_inside_regions() {
        let mut image = Image::new();
        image.add(0x1000, vec![1, 2, 3, 4]);
        image.add(0x1004, vec![0; 8]);
        assert_eq!(image.read(0x1001, 2), Some(&[2, 3][..]));
        assert_eq!(image.read(0x1003, 2), None);
        assert_eq!(image.read(0xfff, 1), None);
        assert_eq!(image.read_some(0x1002, 9), [3, 4]);
        assert!(image.store(0x1004, 7) && !image.store(0x1005, 7));
        assert_eq!(image.word(0x1004), Some(7));
    }
}
