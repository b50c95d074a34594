//! Candidates: rows that share a key meet in a bucket.
//!
//! Nearly all keys are had by one row alone. A small table of counts finds most of these without
//! sorting; what is left of a band is sorted, and runs of equal keys become buckets. One band at a
//! time is in memory, and a band could be cut further by the leading bits of its keys.

use rayon::prelude::*;

/// The buckets of every row.
#[derive(Debug, Default)]
pub struct Buckets {
    starts: Vec<u32>,
    numbers: Vec<u32>,
    /// Number of buckets.
    pub count: usize,
}

impl Buckets {
    /// Buckets of equal keys; row r has the keys `keys[r * bands..(r + 1) * bands]`, and keys of
    /// different bands are different.
    pub fn new(keys: &[u64], bands: usize) -> Self {
        let rows = keys.len() / bands;
        let of_band = |band: usize| move || keys.iter().skip(band).step_by(bands).copied().zip(0..);
        Self::collect(rows, (0..bands).map(|band| shared_keys(rows, of_band(band))))
    }

    /// Buckets of equal keys; row r has the keys `keys[offsets[r]..offsets[r + 1]]`.
    ///
    /// A part of the keys at a time is in memory beside them.
    pub fn of_lists(keys: &[u64], offsets: &[u64]) -> Self {
        let of_row = |row: usize| &keys[offsets[row] as usize..offsets[row + 1] as usize];
        let rows = offsets.len().saturating_sub(1);
        let of_part = |part: u64| {
            move || {
                (0..rows).flat_map(move |row| {
                    let of_part = of_row(row).iter().filter(move |key| *key >> PART_SHIFT == part);
                    of_part.map(move |key| (*key, row as u32))
                })
            }
        };
        let parts = 0..1 << (64 - PART_SHIFT);
        Self::collect(rows, parts.map(|part| shared_keys(keys.len() >> 4, of_part(part))))
    }

    /// From `(key, row)` of parts that have no key in common.
    fn collect(rows: usize, parts: impl Iterator<Item = Vec<(u64, u32)>>) -> Self {
        let mut members: Vec<(u32, u32)> = Vec::new();
        let mut count = 0;
        for mut shared in parts {
            shared.par_sort_unstable();
            shared.dedup();
            for run in shared.chunk_by(|a, b| a.0 == b.0).filter(|run| run.len() > 1) {
                members.extend(run.iter().map(|&(_, row)| (row, count)));
                count += 1;
            }
        }
        members.par_sort_unstable();
        let start = |row: u32| members.partition_point(|&(found, _)| found < row) as u32;
        Self {
            starts: (0..=rows as u32).into_par_iter().map(start).collect(),
            numbers: members.into_iter().map(|(_, bucket)| bucket).collect(),
            count: count as usize,
        }
    }

    /// The buckets of a row; none for a row that shares no key.
    pub fn of(&self, row: usize) -> &[u32] {
        match (self.starts.get(row), self.starts.get(row + 1)) {
            (Some(&start), Some(&end)) => &self.numbers[start as usize..end as usize],
            _ => &[],
        }
    }
}

/// Keys are taken in 16 parts by their leading bits.
const PART_SHIFT: u32 = 60;

/// `(key, row)` of all rows whose key another row has, and of a few others; about `expected` keys.
fn shared_keys<I: Iterator<Item = (u64, u32)>>(
    expected: usize,
    keys: impl Fn() -> I,
) -> Vec<(u64, u32)> {
    let slots = (8 * expected).next_power_of_two().max(64);
    let slot = |key: u64| (key >> 28) as usize & (slots - 1);
    let mut counts = vec![0_u8; slots];
    for (key, _) in keys() {
        let count = &mut counts[slot(key)];
        *count = count.saturating_add(1);
    }
    keys().filter(|(key, _)| counts[slot(*key)] > 1).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn meet(buckets: &Buckets, a: usize, b: usize) -> bool {
        buckets.of(a).iter().any(|bucket| buckets.of(b).contains(bucket))
    }

    proptest! {
        #[test]
        fn rows_share_a_bucket_if_and_only_if_they_share_a_key(
            keys in prop::collection::vec([0_u64..6, 0_u64..6], 1..30),
        ) {
            let spread: Vec<[u64; 2]> = keys.iter().map(|row| row.map(|key| key << 32)).collect();
            let buckets = Buckets::new(spread.as_flattened(), 2);
            for a in 0..keys.len() {
                for b in 0..a {
                    let same = keys[a].iter().zip(&keys[b]).any(|(x, y)| x == y);
                    prop_assert_eq!(meet(&buckets, a, b), same);
                }
            }
        }

        #[test]
        fn lists_of_keys_may_be_of_any_length(
            lists in prop::collection::vec(prop::collection::vec(0_u64..9, 0..4), 0..20),
        ) {
            let spread = |key: &u64| key.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let keys: Vec<u64> = lists.iter().flatten().map(spread).collect();
            let lengths = lists.iter().map(|list| list.len() as u64);
            let ends = lengths.scan(0, |end, length| { *end += length; Some(*end) });
            let offsets: Vec<u64> = [0].into_iter().chain(ends).collect();
            let buckets = Buckets::of_lists(&keys, &offsets);
            for a in 0..lists.len() {
                for b in 0..a {
                    let same = lists[a].iter().any(|key| lists[b].contains(key));
                    prop_assert_eq!(meet(&buckets, a, b), same);
                }
            }
            let alone = |row: &usize| buckets.of(*row).is_empty();
            let shares = |row: &usize| (0..lists.len()).any(|other| other != *row && meet(&buckets, *row, other));
            prop_assert!((0..lists.len()).all(|row| alone(&row) != shares(&row)));
        }
    }
}
