//! Which texts were seen before, in 16 bytes each.

use std::collections::HashSet;

use xxhash_rust::xxh3::xxh3_128;

/// A set of texts, known by their 128-bit hashes.
///
/// Among ten million texts the chance that any two share a hash is about 10^-25.
#[derive(Debug, Default)]
pub struct FirstSeen(HashSet<u128>);

impl FirstSeen {
    /// Whether `text` is new; from now on it is not.
    pub fn insert(&mut self, text: &str) -> bool {
        self.0.insert(xxh3_128(text.as_bytes()))
    }
}
