//! Caps that keep the work for a file linear in its length, whatever its headers claim.
//!
//! A file may say that a thousand sections, or a million names, all lie in the same bytes. What is read is
//! therefore counted, and compared with what a file of that length can honestly hold.

use crate::error::Problem;

/// How many bytes of names a file may have for each of its own bytes. Names share bytes honestly only
/// where one is the end of another.
const NAMES_PER_BYTE: u64 = 16;

/// What may still be read of one file.
#[derive(Debug)]
pub(crate) struct Budget {
    len_bytes: u64,
    contents_left: u64,
    names_left: u64,
}

impl Budget {
    /// The budget of a file of `len_bytes`.
    pub(crate) fn new(len_bytes: usize) -> Self {
        let len_bytes = len_bytes as u64;
        Self {
            len_bytes,
            contents_left: len_bytes,
            names_left: len_bytes.saturating_mul(NAMES_PER_BYTE),
        }
    }

    /// Counts the bytes of a section or member. They never overlap in an honest file.
    pub(crate) fn contents(&mut self, len_bytes: u64) -> Result<(), Problem> {
        let what = "the sum of the lengths of its parts";
        let over = || Problem::Limit {
            what,
            value: self.len_bytes - self.contents_left + len_bytes.min(1 << 62),
            limit: self.len_bytes,
        };
        let left = self.contents_left.checked_sub(len_bytes);
        self.contents_left = left.ok_or_else(over)?;
        Ok(())
    }

    /// Counts the bytes of a name.
    pub(crate) fn name(&mut self, name: &[u8]) -> Result<(), Problem> {
        let limit = self.len_bytes.saturating_mul(NAMES_PER_BYTE);
        let over = || Problem::Limit {
            what: "the sum of the lengths of its names",
            value: limit - self.names_left + name.len() as u64,
            limit,
        };
        let left = self.names_left.checked_sub(name.len() as u64);
        self.names_left = left.ok_or_else(over)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_its_own_length_and_no_more() {
        let mut budget = Budget::new(10);
        assert_eq!(budget.contents(6), Ok(()));
        assert_eq!(budget.contents(4), Ok(()));
        assert!(matches!(
            budget.contents(1),
            Err(Problem::Limit {
                value: 11,
                limit: 10,
                ..
            })
        ));
        assert!(matches!(
            budget.contents(u64::MAX),
            Err(Problem::Limit { limit: 10, .. })
        ));
    }

    #[test]
    fn names_may_share_bytes_to_a_degree() {
        let mut budget = Budget::new(1);
        assert_eq!(budget.name(&[b'x'; 16]), Ok(()));
        assert!(matches!(
            budget.name(b"x"),
            Err(Problem::Limit {
                value: 17,
                limit: 16,
                ..
            })
        ));
    }
}
