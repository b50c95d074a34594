//! Shares of several sources, exact and without state.
//!
//! ```text
//! C_i      = floor(2^32 * (weights 0..=i) / (all weights))
//! cum_i(t) = floor(t * B * C_i / 2^32), t counted from the first block of a stage of the schedule
//! of source i in block t: (cum_i(t+1) - cum_{i-1}(t+1)) - (cum_i(t) - cum_{i-1}(t))
//! ```
//!
//! The counts of a block sum to B and never drift from the weights by more than one unit, however
//! far the epoch; any block is found in constant time. A count is not negative as long as a weight
//! is 0 or its share of a block is at least one unit, which [`Mixture::check`] sees to.

use serde::{Deserialize, Serialize};

use super::permutation::SHUFFLED_UP_TO;
use crate::error::{Error, Result};

/// Weights are carried as parts of this.
const WHOLE: u128 = 1 << 32;

/// When an epoch of a mixture is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ends {
    /// After [`Mixture::units_per_epoch`] units; sources that end begin again.
    Restart,
    /// Before the first unit that a source no longer has.
    StopFirst,
    /// When each source has been seen whole; those that end before begin again.
    StopAll,
}

/// Weights from a block on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// The first block they hold for.
    pub from_block: u64,
    /// One for each source, in whole numbers of any sum.
    pub weights: Vec<u64>,
}

/// How much of each source an epoch holds, and in which blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mixture {
    /// The names of the sources, in the order of the dataset.
    pub sources: Vec<String>,
    /// The schedule of weights, from block 0 of each epoch on.
    pub stages: Vec<Stage>,
    /// Units in which the shares are exact.
    #[serde(default = "default_block")]
    pub block: u32,
    /// When an epoch is over.
    pub ends: Ends,
    /// The length of an epoch that restarts its sources; `None` is as many as they have together.
    #[serde(default)]
    pub units_per_epoch: Option<u64>,
}

fn default_block() -> u32 {
    1 << 16
}

impl Mixture {
    /// An error unless the schedule covers every block with weights that a block can show.
    pub fn check(&self) -> Result<()> {
        if self.sources.is_empty() || self.sources.len() > usize::from(u16::MAX) {
            let found = format!("{} sources", self.sources.len());
            return Err(Error::invalid("mixture", found, "1 to 65535"));
        }
        if self.block == 0 || u64::from(self.block) > SHUFFLED_UP_TO {
            return Err(Error::invalid("mixture: block", self.block, "1 to 131072 units"));
        }
        if self.units_per_epoch.is_some() && self.ends != Ends::Restart {
            let expected = "nothing, unless the mixture restarts its sources";
            return Err(Error::invalid("mixture: units_per_epoch", "a number", expected));
        }
        let starts = || self.stages.iter().map(|stage| stage.from_block);
        if starts().next() != Some(0) || !starts().is_sorted_by(|one, other| one < other) {
            let found = format!("{:?}", starts().collect::<Vec<_>>());
            return Err(Error::invalid("mixture: from_block", found, "0, then rising"));
        }
        self.stages.iter().try_for_each(|stage| self.check_weights(stage))
    }

    fn check_weights(&self, stage: &Stage) -> Result<()> {
        let total: u128 = stage.weights.iter().map(|&weight| u128::from(weight)).sum();
        // The share in parts of WHOLE is rounded down twice, so it is checked as it will be used.
        let shown = |source: usize| {
            let parts = part(stage, source + 1, total) - part(stage, source, total);
            stage.weights[source] == 0 || parts * u128::from(self.block) >= WHOLE
        };
        if stage.weights.len() != self.sources.len()
            || total == 0
            || total > 1 << 64
            || !(0..self.sources.len()).all(shown)
        {
            return Err(Error::invalid(
                format!("mixture: weights from block {}", stage.from_block),
                format!("{:?}", stage.weights),
                format!(
                    "one for each of {} sources, each 0 or at least one unit in a block of {}",
                    self.sources.len(),
                    self.block
                ),
            ));
        }
        Ok(())
    }

    /// Units of the first `sources` sources in the blocks before `block`.
    fn before(&self, block: u64, sources: usize) -> u64 {
        let ends = self.stages.iter().skip(1).map(|stage| stage.from_block).chain([u64::MAX]);
        let mut units = 0;
        for (stage, end) in self.stages.iter().zip(ends) {
            let blocks = block.min(end).saturating_sub(stage.from_block);
            let total = stage.weights.iter().map(|&weight| u128::from(weight)).sum();
            let places = u128::from(blocks) * u128::from(self.block);
            units += (places * part(stage, sources, total) / WHOLE) as u64;
        }
        units
    }

    /// Units of `source` in the blocks before `block`.
    pub fn taken(&self, block: u64, source: usize) -> u64 {
        self.before(block, source + 1) - self.before(block, source)
    }

    /// Units of each source in a block.
    pub fn counts(&self, block: u64) -> Vec<u64> {
        let sources = 0..self.sources.len();
        sources.map(|source| self.taken(block + 1, source) - self.taken(block, source)).collect()
    }

    /// The block in which `source` gives its unit number `index`, counted on through restarts;
    /// `None` if the schedule never takes so many.
    pub fn block_of(&self, source: usize, index: u64) -> Option<u64> {
        const FARTHEST: u64 = 1 << 40;
        let mut after = 1;
        while self.taken(after, source) <= index {
            after *= 2;
            if after > FARTHEST {
                return None;
            }
        }
        let mut from = after / 2;
        while from + 1 < after {
            let middle = u64::midpoint(from, after);
            if self.taken(middle, source) <= index {
                from = middle;
            } else {
                after = middle;
            }
        }
        Some(from)
    }
}

/// The first `sources` weights of a stage in parts of [`WHOLE`].
fn part(stage: &Stage, sources: usize, total: u128) -> u128 {
    let weight: u128 = stage.weights[..sources].iter().map(|&weight| u128::from(weight)).sum();
    weight * WHOLE / total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mixture(weights: &[u64], block: u32) -> Mixture {
        Mixture {
            sources: weights.iter().map(u64::to_string).collect(),
            stages: vec![Stage { from_block: 0, weights: weights.to_vec() }],
            block,
            ends: Ends::Restart,
            units_per_epoch: None,
        }
    }

    #[test]
    fn shares_are_exact_and_never_drift() {
        let mixture = mixture(&[7, 0, 2, 1], 13);
        mixture.check().expect("10 weights in a block of 13");
        let mut taken = [0; 4];
        for block in 0..1000 {
            let counts = mixture.counts(block);
            assert_eq!(counts.iter().sum::<u64>(), 13);
            assert_eq!(counts[1], 0);
            for (source, count) in counts.iter().enumerate() {
                assert_eq!(mixture.taken(block, source), taken[source]);
                taken[source] += count;
                let fair = (block + 1) * 13 * mixture.stages[0].weights[source];
                assert!(taken[source].abs_diff(fair / 10) <= 1, "{taken:?} at block {block}");
            }
        }
    }

    #[test]
    fn a_weight_that_no_block_shows_is_refused() {
        assert!(mixture(&[1, 99_999], 65_536).check().is_err());
        assert!(mixture(&[2, 99_998], 65_536).check().is_ok());
        assert!(mixture(&[0, 0], 65_536).check().is_err());
    }

    #[test]
    fn the_block_of_a_unit_is_the_one_that_takes_it() {
        let mut mixture = mixture(&[3, 1], 8);
        mixture.stages.push(Stage { from_block: 5, weights: vec![0, 1] });
        for index in 0..30 {
            let block = mixture.block_of(0, index).expect("5 blocks of 6");
            assert!((mixture.taken(block, 0)..mixture.taken(block + 1, 0)).contains(&index));
        }
        assert_eq!(mixture.block_of(0, 30), None);
    }
}
