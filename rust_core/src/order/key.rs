//! Where every random choice of an order comes from: a key, and numbers counted off from it.
//!
//! ```text
//! hash = BLAKE3("mmrlhf order:1" | 0x00 | seed | epoch | stream | purpose)[..16]    numbers u64 LE
//! low, high = the hash as two u64 LE
//! round key i = mix64((mix64(seed) ^ (low if i is even, else high)) + (i + 1) * GOLDEN)
//! draw c      = mix64(mix64(low + (c + 1) * GOLDEN) ^ high)
//! ```
//!
//! All four inputs go through one hash, so that (seed 1, epoch 0) and (seed 0, epoch 1) have nothing
//! in common, as they would have under `seed + epoch`. Any change here is a new `order` version.

use std::mem::size_of;

/// The version of everything that decides an order; part of every plan and cursor.
pub const ORDER_VERSION: u32 = 1;

/// Two to the sixty-fourth over the golden ratio, odd: the step of splitmix64.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

const DOMAIN: &[u8] = b"mmrlhf order:1\0";

/// The finaliser of splitmix64: a bijection in which each bit in moves half of the bits out.
pub fn mix64(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// What one choice depends on; two keys that differ in any part are unrelated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    seed: u64,
    low: u64,
    high: u64,
}

impl Key {
    /// The key of `purpose` in `stream` (a source, a window, a query) of an epoch.
    pub fn new(seed: u64, epoch: u64, stream: u64, purpose: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(DOMAIN);
        for number in [seed, epoch, stream] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(purpose.as_bytes());
        let mut halves = [0; 2];
        let hash = hasher.finalize();
        for (half, bytes) in halves.iter_mut().zip(hash.as_bytes().chunks_exact(size_of::<u64>())) {
            *half = bytes.iter().rev().fold(0, |number, &byte| (number << 8) | u64::from(byte));
        }
        Self { seed, low: halves[0], high: halves[1] }
    }

    /// The keys of a network's rounds.
    pub(crate) fn rounds<const N: usize>(&self) -> [u64; N] {
        std::array::from_fn(|round| {
            let half = if round % 2 == 0 { self.low } else { self.high };
            mix64((mix64(self.seed) ^ half).wrapping_add(GOLDEN.wrapping_mul(round as u64 + 1)))
        })
    }

    /// Numbers counted off from this key.
    pub fn draws(self) -> Draws {
        Draws { key: self, count: 0 }
    }
}

/// A counter generator: draw `c` is a function of the key and `c` alone.
#[derive(Debug, Clone)]
pub struct Draws {
    key: Key,
    count: u64,
}

impl Draws {
    fn next_number(&mut self) -> u64 {
        self.count += 1;
        let step = GOLDEN.wrapping_mul(self.count);
        mix64(mix64(self.key.low.wrapping_add(step)) ^ self.key.high)
    }

    /// A number below `bound`, every one equally likely; `bound` is not 0.
    ///
    /// The upper half of draw times bound, drawn again while the lower half falls into the part
    /// that would favour small numbers (Lemire 2019).
    pub fn below(&mut self, bound: u64) -> u64 {
        loop {
            let product = u128::from(self.next_number()) * u128::from(bound);
            let low = product as u64;
            if low >= bound || low >= bound.wrapping_neg() % bound {
                return (product >> 64) as u64;
            }
        }
    }

    /// Put `items` into an order in which every arrangement is equally likely (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_key_matters() {
        let keys = [
            Key::new(0, 0, 0, "perm"),
            Key::new(1, 0, 0, "perm"),
            Key::new(0, 1, 0, "perm"),
            Key::new(0, 0, 1, "perm"),
            Key::new(0, 0, 0, "bins"),
        ];
        for (at, one) in keys.iter().enumerate() {
            for other in &keys[..at] {
                assert_ne!((one.low, one.high), (other.low, other.high));
                assert_ne!(one.rounds::<6>(), other.rounds::<6>());
            }
        }
    }

    #[test]
    fn every_arrangement_is_as_likely() {
        // 6 arrangements of 3, 6,000 shuffles: 1,000 each, standard deviation 29.
        let mut seen = std::collections::BTreeMap::new();
        for stream in 0..6000 {
            let mut items = [0, 1, 2];
            Key::new(3, 0, stream, "test").draws().shuffle(&mut items);
            *seen.entry(items).or_insert(0_u32) += 1;
        }
        assert_eq!(seen.len(), 6);
        assert!(seen.values().all(|&count| count.abs_diff(1000) < 150), "{seen:?}");
    }
}
