//! Which texts were seen before, and ids that are unique, in 16 bytes each.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use xxhash_rust::xxh3::xxh3_128;

/// The hash of a text as that of a table: it is one already.
#[derive(Debug, Default)]
struct LowBits(u64);

impl Hasher for LowBits {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |sum, byte| sum.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }
}

type OfHashes = BuildHasherDefault<LowBits>;

/// A set of texts, known by their 128-bit hashes.
///
/// Among ten million texts the chance that any two share a hash is about 10^-25.
#[derive(Debug, Default)]
pub struct FirstSeen(HashSet<u128, OfHashes>);

impl FirstSeen {
    /// Whether `text` is new; from now on it is not.
    pub fn insert(&mut self, text: &str) -> bool {
        self.0.insert(xxh3_128(text.as_bytes()))
    }
}

/// Gives records whose ids repeat ids of their own: `a`, `a#2`, `a#3`, ...
///
/// A record has its own id and, for several turns, one for each turn: `a#1`, `a#2`. All of them are
/// unique, so the second record `a` is `a#3` where the first has two turns. What a record gets
/// depends on the records before it alone.
#[derive(Debug, Default)]
pub struct UniqueIds {
    taken: HashSet<u128, OfHashes>,
    /// For an id that came more than once, the number to try next.
    next: HashMap<u128, u32, OfHashes>,
}

impl UniqueIds {
    /// The number of a record of this id with these turns: 1 keeps the id as it is, any other is put
    /// behind it as `#2`.
    pub fn claim(&mut self, id: &str, turns: &[u32]) -> u32 {
        let hash = |text: &str| xxh3_128(text.as_bytes());
        let key = hash(id);
        // Most ids come once, and of one turn.
        if turns.is_empty() && !self.next.contains_key(&key) && self.taken.insert(key) {
            return 1;
        }
        let first = self.next.get(&key).copied().unwrap_or(1);
        let mut number = first;
        loop {
            let own = if number == 1 { id.to_owned() } else { format!("{id}#{number}") };
            let turns = turns.iter().map(|turn| hash(&format!("{own}#{turn}")));
            let all: Vec<u128> = turns.chain([hash(&own)]).collect();
            let Some(after) = number.checked_add(1) else { return number };
            if !all.iter().any(|hash| self.taken.contains(hash)) {
                self.taken.extend(all);
                if number > 1 || first > 1 {
                    self.next.insert(key, after);
                }
                return number;
            }
            number = after;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_ids_are_numbered_and_never_meet_a_turn() {
        let mut ids = UniqueIds::default();
        assert_eq!(ids.claim("a", &[]), 1);
        assert_eq!(ids.claim("a", &[]), 2);
        assert_eq!(ids.claim("a", &[1, 2]), 3);
        assert_eq!(ids.claim("b", &[1, 2]), 1);
        assert_eq!(ids.claim("b", &[]), 3);
        assert_eq!(ids.claim("b#1", &[]), 2);
        assert_eq!(ids.claim("c#2", &[]), 1);
        assert_eq!(ids.claim("c", &[1, 2]), 3);
    }
}
