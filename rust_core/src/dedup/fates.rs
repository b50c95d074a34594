//! Which rows a person keeps apart, also where one of them is gone.
//!
//! A person says of two samples that they are no duplicates. Where one of them is removed in favour of a
//! third, that one stands for it, and the other is not removed in favour of the third either. So no one
//! sample ever stands for both, whatever rows come in between, and in whichever order the two are named.

use std::collections::HashMap;

use super::types::Samples;

/// What became of the rows of overrides.
#[derive(Debug)]
pub(super) struct Fates<'a> {
    samples: &'a Samples,
    /// The rows that stand for those of them that are gone.
    stands_for: HashMap<u32, u32>,
}

impl<'a> Fates<'a> {
    pub(super) fn new(samples: &'a Samples) -> Self {
        Self { samples, stands_for: HashMap::new() }
    }

    /// A row is removed as a duplicate of one that stays.
    pub(super) fn remove(&mut self, row: u32, kept: u32) {
        if self.samples.has_override(row) {
            self.stands_for.insert(row, kept);
        }
    }

    /// Whether a row is not to be removed in favour of another, because of what a person said.
    pub(super) fn are_kept_apart(&self, row: u32, kept: u32) -> bool {
        let stands = |other| self.stands_for.get(&other).copied().unwrap_or(other);
        self.samples.kept_apart_from(row).any(|other| stands(other) == kept)
    }
}
