//! What was measured of pairs of texts, kept for later runs: rows that are added are compared with the
//! others alone, and another threshold decides about what is known.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_128;

/// What is known of two texts.
#[derive(Debug, Clone, PartialEq)]
pub struct TextMeasure {
    /// Jaccard index of their shingles.
    pub jaccard: f32,
    /// Whether they ask the same; none where the Jaccard index decides.
    pub same: Option<bool>,
    /// Of each of them, whether there are no word lists for its language.
    pub unlisted: [bool; 2],
    /// What differs, where they ask the same.
    pub differences: Option<Box<str>>,
}

/// Measures by the hashes of two texts, the row that is decided about first.
#[derive(Debug)]
pub struct TextMeasures {
    known: HashMap<u128, TextMeasure>,
    used: HashMap<u128, TextMeasure>,
    most: usize,
}

/// Measures that are kept, at most.
const MOST: usize = 1 << 20;
/// Bytes of one in memory, about.
const BYTES: u64 = 128;

/// What two texts are known by.
pub(super) fn pair(a: u64, b: u64) -> u128 {
    xxh3_128(&[a.to_le_bytes(), b.to_le_bytes()].concat())
}

impl Default for TextMeasures {
    fn default() -> Self {
        Self::new([])
    }
}

impl TextMeasures {
    /// Those of an earlier run, by the same settings but for thresholds.
    pub fn new(known: impl IntoIterator<Item = (u128, TextMeasure)>) -> Self {
        Self { known: known.into_iter().collect(), used: HashMap::new(), most: MOST }
    }

    /// Those that were asked for or made since, ascending.
    pub fn into_used(self) -> Vec<(u128, TextMeasure)> {
        let mut used: Vec<(u128, TextMeasure)> = self.used.into_iter().collect();
        used.sort_unstable_by_key(|&(key, _)| key);
        used
    }

    /// Hold no more than fit into `memory` bytes.
    pub(super) fn limit(&mut self, memory: u64) {
        self.most = usize::try_from(memory / BYTES).unwrap_or(MOST).min(MOST);
        if self.known.len() > self.most {
            self.known.clear();
        }
    }

    pub(super) fn get(&self, key: u128) -> Option<&TextMeasure> {
        self.used.get(&key).or_else(|| self.known.get(&key))
    }

    /// As [`Self::get`]; it is one of those that are used.
    pub(super) fn take(&mut self, key: u128) -> Option<&TextMeasure> {
        if let Some(measure) = self.known.remove(&key) {
            self.used.insert(key, measure);
        }
        self.used.get(&key)
    }

    pub(super) fn insert(&mut self, key: u128, measure: &TextMeasure) {
        if self.used.len() + self.known.len() < self.most {
            self.used.insert(key, measure.clone());
        }
    }
}
