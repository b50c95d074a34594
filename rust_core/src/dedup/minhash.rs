//! MinHash signatures: texts of Jaccard index s agree in each value with probability s.
//!
//! Value i of a text is the least `a_i x + b_i` (modulo 2^32) over its shingles x, the high half of
//! each. The loop over the values is innermost and of fixed length, which the compiler turns into
//! vector instructions.

use crate::vector::vectorised;

/// The multipliers and offsets of `n` hash functions, from a fixed seed.
#[derive(Debug, Clone)]
pub struct MinHasher {
    multipliers: Vec<u32>,
    offsets: Vec<u32>,
}

const LANES: usize = 16;

impl MinHasher {
    /// A hasher of `length` values.
    pub fn new(length: usize) -> Self {
        let mut state = 0x2545_F491_4F6C_DD1D_u64;
        let mut next = || {
            // SplitMix64 (Steele, Lea, Flood 2014).
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            (z ^ z >> 31) as u32
        };
        let padded = length.next_multiple_of(LANES);
        let multipliers = (0..padded).map(|_| next() | 1).collect();
        let offsets = (0..padded).map(|_| next()).collect();
        Self { multipliers, offsets }
    }

    /// Replace `signature` by that of a text with these shingles.
    pub fn sign(&self, shingles: &[u64], signature: &mut Vec<u32>) {
        signature.clear();
        signature.resize(self.multipliers.len(), u32::MAX);
        let (multipliers, offsets) = (self.multipliers.as_chunks(), self.offsets.as_chunks());
        take_least(multipliers.0, offsets.0, shingles, signature.as_chunks_mut().0);
    }
}

type Lanes = [u32; LANES];

vectorised! {
    /// Lower each value to the least of its function over the shingles.
    fn take_least(
        multipliers: &[Lanes],
        offsets: &[Lanes],
        shingles: &[u64],
        signature: &mut [Lanes],
    ) {
        for ((least, multipliers), offsets) in signature.iter_mut().zip(multipliers).zip(offsets) {
            let mut lanes = *least;
            for &shingle in shingles {
                let high = (shingle >> 32) as u32;
                for lane in 0..LANES {
                    let value = multipliers[lane].wrapping_mul(high).wrapping_add(offsets[lane]);
                    lanes[lane] = lanes[lane].min(value);
                }
            }
            *least = lanes;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_value_is_the_least_of_its_function(
            shingles in prop::collection::vec(any::<u64>(), 1..60),
            length in 1_usize..100,
        ) {
            let hasher = MinHasher::new(length);
            let mut signature = Vec::new();
            hasher.sign(&shingles, &mut signature);
            for (i, &value) in signature.iter().enumerate() {
                let (a, b) = (hasher.multipliers[i], hasher.offsets[i]);
                let naive = shingles
                    .iter()
                    .map(|shingle| a.wrapping_mul((shingle >> 32) as u32).wrapping_add(b))
                    .min();
                prop_assert_eq!(Some(value), naive);
            }
        }
    }

    #[test]
    fn agreement_estimates_jaccard() {
        let hasher = MinHasher::new(1024);
        let sign = |range: std::ops::Range<u64>| {
            let shingles: Vec<u64> =
                range.map(|x| xxhash_rust::xxh3::xxh3_64(&x.to_le_bytes())).collect();
            let mut signature = Vec::new();
            hasher.sign(&shingles, &mut signature);
            signature
        };
        let (a, b) = (sign(0..900), sign(100..1000));
        let agreement = a.iter().zip(&b).filter(|(x, y)| x == y).count() as f64 / 1024.0;
        assert!((agreement - 0.8).abs() < 0.05, "{agreement}");
    }
}
