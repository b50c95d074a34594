//! Queries that are held out from training: a part of a dataset by its content alone.
//!
//! ```text
//! number   = BLAKE3("mmrlhf hold_out:1" | 0x00 | seed | key)[..8]    numbers u64 LE
//! held out = number < floor(share * 2^64)
//! ```
//!
//! The key is the smallest key of the queries that go together, so that their side depends neither on
//! the order of rows nor on the size of the group, and a larger share holds out more and none less.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

const DOMAIN: &[u8] = b"mmrlhf hold_out:1\0";

/// The numbers of a hash.
const NUMBERS: f64 = 18_446_744_073_709_551_616.0;

/// One of the two sides of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// What is trained on.
    #[default]
    Train,
    /// What is held out from it.
    HeldOut,
}

impl Part {
    /// Its name, as in the plan.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::HeldOut => "held_out",
        }
    }
}

/// How much of a dataset is held out, and which part a plan is of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoldOut {
    /// The expected share of the queries that are held out; above 0 and below 1.
    pub share: f64,
    /// Which part the units of the plan are of.
    #[serde(default)]
    pub part: Part,
    /// Of the choice, apart from the seed of the plan.
    #[serde(default)]
    pub seed: u64,
}

// A share is a number, as [`HoldOut::check`] sees to.
impl Eq for HoldOut {}

impl HoldOut {
    /// An error unless both parts have a share.
    pub fn check(&self) -> Result<()> {
        if self.share > 0.0 && self.share < 1.0 {
            return Ok(());
        }
        Err(Error::invalid("plan: hold_out.share", self.share, "above 0 and below 1"))
    }

    /// Which part queries of this smallest key are of.
    pub fn part_of(&self, key: &[u8]) -> Part {
        let mut hasher = blake3::Hasher::new();
        hasher.update(DOMAIN).update(&self.seed.to_le_bytes()).update(key);
        let hash = hasher.finalize();
        let number = hash.as_bytes()[..8].iter().rev();
        let number = number.fold(0, |number, &byte| (number << 8) | u64::from(byte));
        // The product is exact, as it moves the exponent alone.
        if number < (self.share * NUMBERS) as u64 { Part::HeldOut } else { Part::Train }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_out(share: f64, seed: u64) -> Vec<u32> {
        let hold_out = HoldOut { share, part: Part::Train, seed };
        let is_held = |key: &u32| hold_out.part_of(&key.to_le_bytes()) == Part::HeldOut;
        (0..20_000).filter(is_held).collect()
    }

    #[test]
    fn a_larger_share_only_adds() {
        let (small, large) = (held_out(0.1, 3), held_out(0.25, 3));
        assert!(small.iter().all(|key| large.contains(key)));
        // Standard deviations 42 and 61.
        assert!(small.len().abs_diff(2000) < 200, "{}", small.len());
        assert!(large.len().abs_diff(5000) < 300, "{}", large.len());
        assert_ne!(held_out(0.1, 4), small);
    }

    #[test]
    fn a_share_is_between_none_and_all() {
        let of = |share| HoldOut { share, part: Part::Train, seed: 0 }.check();
        assert!(of(f64::MIN_POSITIVE).is_ok() && of(1.0 - f64::EPSILON).is_ok());
        for share in [0.0, 1.0, -0.1, 1.5, f64::NAN, f64::INFINITY] {
            assert!(of(share).is_err(), "{share}");
        }
    }
}
