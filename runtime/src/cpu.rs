//! The processor features that code may use and a worker must have.

/// A set of x86-64 features, as the segment's header states it. The bits are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuFeatures(u64);

macro_rules! features {
    ($($bit:literal $name:tt),* $(,)?) => {
        const NAMES: &[(u32, &str)] = &[$(($bit, $name)),*];

        fn detect() -> u64 {
            let mut bits = 0;
            $(if std::arch::is_x86_feature_detected!($name) { bits |= 1 << $bit; })*
            bits
        }
    };
}

features! {
    0 "sse3", 1 "ssse3", 2 "sse4.1", 3 "sse4.2", 4 "popcnt", 5 "avx", 6 "avx2", 7 "fma", 8 "bmi1",
    9 "bmi2", 10 "lzcnt", 11 "avx512f", 12 "avx512dq", 13 "avx512vl", 14 "avx512bitalg",
    15 "avx512vbmi", 16 "cmpxchg16b",
}

impl CpuFeatures {
    /// What this processor has.
    pub fn host() -> Self {
        Self(detect())
    }

    /// The set with these bits.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The set as bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The names of what `self` needs and `available` lacks; bits without a name are listed by number.
    pub fn missing_from(self, available: Self) -> Vec<String> {
        let missing = self.0 & !available.0;
        (0..64)
            .filter(|bit| missing >> bit & 1 == 1)
            .map(|bit| {
                let name = NAMES.iter().find(|(known, _)| *known == bit);
                name.map_or_else(|| format!("feature bit {bit}"), |(_, name)| (*name).to_owned())
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_features_are_named() {
        let host = CpuFeatures::host();
        assert!(host.missing_from(host).is_empty());
        let wanted = CpuFeatures::from_bits(1 << 6 | 1 << 40);
        assert_eq!(wanted.missing_from(CpuFeatures::from_bits(1)), ["avx2", "feature bit 40"]);
    }
}
