//! The order of n things by a key: any place in constant memory, both ways.
//!
//! ```text
//! b = max(2, bits of n - 1), split in a low half of ceil(b / 2) bits and a high half of the rest
//! six rounds:  even  high ^= mix64(low ^ key[i])      odd  low ^= mix64(high ^ key[i])
//! again while the result is >= n: the domain is below 2n, so under two tries on average
//! ```
//!
//! The bits are those of `n - 1` as a whole number: taking the logarithm instead loses an element
//! when n is one above a power of two. The round function is not affine, so the low bits of the
//! result follow no pattern of the low bits of the place. Up to [`SHUFFLED_UP_TO`] things are
//! shuffled outright, which is exact and costs at most a megabyte.

use super::key::Key;

/// Up to this many things a permutation is a Fisher-Yates shuffle held in memory.
pub const SHUFFLED_UP_TO: u64 = 1 << 17;

const ROUNDS: usize = 6;

/// A permutation of `0..n`, computed place by place.
#[derive(Debug, Clone)]
pub struct KeyedPermutation {
    n: u64,
    low_bits: u32,
    high_bits: u32,
    keys: [u64; ROUNDS],
}

impl KeyedPermutation {
    /// The permutation of `0..n` by this key.
    pub fn new(n: u64, key: &Key) -> Self {
        let bits = (u64::BITS - n.saturating_sub(1).leading_zeros()).max(2);
        let low_bits = bits.div_ceil(2);
        Self { n, low_bits, high_bits: bits - low_bits, keys: key.rounds() }
    }

    /// The item at `place`; `place` is below n.
    pub fn permute(&self, place: u64) -> u64 {
        debug_assert!(place < self.n);
        let mut item = place;
        loop {
            item = self.apply(item, 0..ROUNDS);
            if item < self.n {
                return item;
            }
        }
    }

    /// The place of `item`; `item` is below n.
    pub fn invert(&self, item: u64) -> u64 {
        debug_assert!(item < self.n);
        let mut place = item;
        loop {
            place = self.apply(place, (0..ROUNDS).rev());
            if place < self.n {
                return place;
            }
        }
    }

    /// The rounds in the order given: each is its own inverse.
    fn apply(&self, number: u64, rounds: impl Iterator<Item = usize>) -> u64 {
        let low_mask = (1 << self.low_bits) - 1;
        let high_mask = (1 << self.high_bits) - 1;
        let (mut high, mut low) = (number >> self.low_bits, number & low_mask);
        for round in rounds {
            if round % 2 == 0 {
                high ^= super::key::mix64(low ^ self.keys[round]) & high_mask;
            } else {
                low ^= super::key::mix64(high ^ self.keys[round]) & low_mask;
            }
        }
        (high << self.low_bits) | low
    }
}

/// A permutation of `0..n` held in memory with its inverse; n is at most [`SHUFFLED_UP_TO`].
#[derive(Debug, Clone)]
pub struct Shuffled {
    items: Vec<u32>,
    places: Vec<u32>,
}

impl Shuffled {
    /// The permutation of `0..n` by this key.
    pub fn new(n: u64, key: Key) -> Self {
        debug_assert!(n <= SHUFFLED_UP_TO);
        let mut items: Vec<u32> = (0..n as u32).collect();
        key.draws().shuffle(&mut items);
        let mut places = vec![0; items.len()];
        for (place, &item) in items.iter().enumerate() {
            places[item as usize] = place as u32;
        }
        Self { items, places }
    }

    /// The item at `place`; `place` is below n.
    pub fn permute(&self, place: u64) -> u64 {
        u64::from(self.items[place as usize])
    }

    /// The place of `item`; `item` is below n.
    pub fn invert(&self, item: u64) -> u64 {
        u64::from(self.places[item as usize])
    }
}

/// The permutation that orders use: shuffled where n is small, computed where it is not.
#[derive(Debug, Clone)]
pub enum Permutation {
    /// n is at most [`SHUFFLED_UP_TO`].
    Shuffled(Shuffled),
    /// n is larger.
    Keyed(KeyedPermutation),
}

impl Permutation {
    /// The permutation of `0..n` by this key.
    pub fn new(n: u64, key: Key) -> Self {
        if n <= SHUFFLED_UP_TO {
            Self::Shuffled(Shuffled::new(n, key))
        } else {
            Self::Keyed(KeyedPermutation::new(n, &key))
        }
    }

    /// The item at `place`; `place` is below n.
    pub fn permute(&self, place: u64) -> u64 {
        match self {
            Self::Shuffled(shuffled) => shuffled.permute(place),
            Self::Keyed(keyed) => keyed.permute(place),
        }
    }

    /// The place of `item`; `item` is below n.
    pub fn invert(&self, item: u64) -> u64 {
        match self {
            Self::Shuffled(shuffled) => shuffled.invert(item),
            Self::Keyed(keyed) => keyed.invert(item),
        }
    }
}
