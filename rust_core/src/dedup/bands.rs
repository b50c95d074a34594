//! Candidates: rows that share a key meet in a bucket.
//!
//! Nearly all keys are had by one row alone. Keys are parted by their leading bits; in each part a small
//! table of counts finds most of these without sorting. What is left is sorted, and runs of equal keys
//! become buckets.
//!
//! Near texts share many keys, so that many buckets have the same rows: one of these stands for all.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_128;

use super::partitions::{Partitions, Room};
use crate::error::Result;
use crate::parallel::Interrupt;

/// A place that no row has.
pub(super) const NOWHERE: u32 = u32::MAX;

/// Keys of rows: `[high half, low half, row]`.
pub(super) type KeyParts = Partitions<3>;

/// Which rows meet, by their place in an order.
#[derive(Debug)]
pub(super) struct Buckets {
    /// `[place, bucket]`, each once.
    members: Partitions<2>,
    /// Of every bucket, how many rows it has.
    pub(super) sizes: Vec<u32>,
    /// A bit for every place that is in a bucket.
    met: Vec<AtomicU64>,
}

/// Buckets that were found so far.
#[derive(Default)]
struct Found {
    sizes: Vec<u32>,
    /// Hashes of their places: of buckets of the same rows one is enough.
    seen: HashSet<u128>,
}

impl Buckets {
    /// Rows meet that have a key in common; `places` are those of rows in the order, [`NOWHERE`] for
    /// rows that are not in it.
    pub(super) fn new(
        keys: &KeyParts,
        places: &[u32],
        room: Room<'_>,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let bits = (u32::BITS - (places.len() as u32).leading_zeros()).max(1);
        let members = Partitions::new(2 * places.len(), bits, room)?;
        let found = Mutex::new(Found::default());
        let met: Vec<AtomicU64> =
            (0..places.len().div_ceil(64)).map(|_| AtomicU64::default()).collect();
        (0..keys.len()).into_par_iter().try_for_each(|part| {
            interrupt.check()?;
            let runs = Runs::of_keys(keys.take(part)?, places);
            let new = runs.into_members(&found);
            for &[place, _] in &new {
                met[place as usize / 64].fetch_or(1 << (place % 64), Ordering::Relaxed);
            }
            members.push(&new)
        })?;
        let sizes = found.into_inner().unwrap_or_else(PoisonError::into_inner).sizes;
        Ok(Self { members, sizes, met })
    }

    /// Whether a place is in a bucket.
    pub(super) fn has(&self, place: u32) -> bool {
        let bits = self.met.get(place as usize / 64);
        bits.is_some_and(|bits| bits.load(Ordering::Relaxed) >> (place % 64) & 1 == 1)
    }

    /// A reader of `[place, bucket]` in ascending order; there may be one.
    pub(super) fn members(&self) -> Members<'_> {
        Members { parts: &self.members, part: 0, read: Vec::new(), start: 0 }
    }
}

/// Reads `[place, bucket]` in ascending order.
pub(super) struct Members<'a> {
    parts: &'a Partitions<2>,
    part: usize,
    read: Vec<[u32; 2]>,
    /// Of those that were read, those before here are done.
    start: usize,
}

impl Members<'_> {
    /// The next ones, of places before `end`.
    pub(super) fn before(&mut self, end: u32) -> Result<Vec<[u32; 2]>> {
        let mut members = Vec::new();
        loop {
            let rest = &self.read[self.start..];
            let count = rest.partition_point(|member| member[0] < end);
            members.extend_from_slice(&rest[..count]);
            self.start += count;
            if self.start < self.read.len() || self.part == self.parts.len() {
                return Ok(members);
            }
            self.read = self.parts.take(self.part)?;
            self.read.par_sort_unstable();
            (self.part, self.start) = (self.part + 1, 0);
        }
    }
}

/// Rows with equal keys, by their places.
struct Runs {
    places: Vec<u32>,
    ends: Vec<usize>,
}

impl Runs {
    fn of_keys(mut keys: Vec<[u32; 3]>, places: &[u32]) -> Self {
        let place = |key: &[u32; 3]| places[key[2] as usize];
        retain_shared(&mut keys, |key| place(key) != NOWHERE);
        let mut members: Vec<(u64, u32)> = keys
            .iter()
            .map(|key| (u64::from(key[0]) << 32 | u64::from(key[1]), place(key)))
            .collect();
        drop(keys);
        members.sort_unstable();
        members.dedup();
        let mut runs = Self { places: Vec::new(), ends: Vec::new() };
        for run in members.chunk_by(|a, b| a.0 == b.0).filter(|run| run.len() > 1) {
            runs.places.extend(run.iter().map(|&(_, place)| place));
            runs.ends.push(runs.places.len());
        }
        runs
    }

    /// `[place, bucket]` of those runs that are no bucket yet.
    fn into_members(self, found: &Mutex<Found>) -> Vec<[u32; 2]> {
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        let spans: Vec<&[u32]> =
            starts.zip(&self.ends).map(|(start, &end)| &self.places[start..end]).collect();
        let hashes: Vec<u128> =
            spans.iter().map(|places| xxh3_128(bytemuck::cast_slice(places))).collect();
        let mut members = Vec::new();
        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
        for (places, hash) in spans.into_iter().zip(hashes) {
            if found.seen.insert(hash) {
                let bucket = found.sizes.len() as u32;
                found.sizes.push(places.len() as u32);
                members.extend(places.iter().map(|&place| [place, bucket]));
            }
        }
        members
    }
}

/// Drop the keys that are not `wanted`, and most of those that one row alone has.
fn retain_shared(keys: &mut Vec<[u32; 3]>, wanted: impl Fn(&[u32; 3]) -> bool) {
    let slots = (4 * keys.len()).next_power_of_two().max(64);
    let slot = |key: &[u32; 3]| key[1] as usize & (slots - 1);
    let mut counts = vec![0_u8; slots];
    keys.retain(|key| {
        let wanted = wanted(key);
        let count = &mut counts[slot(key)];
        *count = count.saturating_add(u8::from(wanted));
        wanted
    });
    keys.retain(|key| counts[slot(key)] > 1);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The sets of places that meet, by place.
    fn found(lists: &[Vec<u64>], places: &[u32], room: Room<'_>) -> Vec<BTreeSet<u32>> {
        let keys = KeyParts::new(1 << 20, 32, room).expect("made");
        for (list, row) in lists.iter().zip(0_u32..) {
            let records: Vec<[u32; 3]> =
                list.iter().map(|&key| [(key >> 32) as u32, key as u32, row]).collect();
            keys.push(&records).expect("written");
        }
        let buckets = Buckets::new(&keys, places, room, &Interrupt::default()).expect("made");
        let mut rows = vec![BTreeSet::new(); buckets.sizes.len()];
        let mut before = None;
        let mut members = buckets.members();
        for end in (0..=places.len() as u32 + 3).step_by(3) {
            for [place, bucket] in members.before(end).expect("read") {
                assert!(before < Some((place, bucket)) && place < end, "ascending");
                before = Some((place, bucket));
                rows[bucket as usize].insert(place);
            }
        }
        let sizes: Vec<u32> = rows.iter().map(|rows| rows.len() as u32).collect();
        assert_eq!(sizes, buckets.sizes);
        rows.sort_unstable();
        rows
    }

    proptest! {
        #[test]
        fn a_bucket_for_every_set_of_rows_with_a_key_in_common(
            lists in prop::collection::vec(prop::collection::vec(0_u64..9, 0..4), 0..20),
            dropped in prop::collection::vec(any::<bool>(), 20),
            spilled in any::<bool>(),
        ) {
            let folder = std::env::temp_dir();
            let memory = if spilled { 0 } else { 1 << 30 };
            let room = Room { memory, scratch: Some(&folder) };
            let spread = |key: &u64| key.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let keys: Vec<Vec<u64>> = lists.iter().map(|list| list.iter().map(spread).collect()).collect();
            let mut order = 0;
            let places: Vec<u32> = (0..lists.len())
                .map(|row| if dropped[row] { NOWHERE } else { order += 1; order - 1 })
                .collect();
            let with = |key: u64| -> BTreeSet<u32> {
                let rows = (0..lists.len()).filter(|&row| lists[row].contains(&key));
                rows.map(|row| places[row]).filter(|&place| place != NOWHERE).collect()
            };
            let sets: BTreeSet<BTreeSet<u32>> = (0..9).map(with).filter(|set| set.len() > 1).collect();
            prop_assert_eq!(found(&keys, &places, room), sets.into_iter().collect::<Vec<_>>());
        }
    }
}
