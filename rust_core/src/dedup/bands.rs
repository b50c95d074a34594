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
    /// Buckets of equal keys; row r has the keys `keys[r * bands..(r + 1) * bands]`.
    pub fn new(keys: &[u64], bands: usize) -> Self {
        let mut members: Vec<(u32, u32)> = Vec::new();
        let mut count = 0;
        for band in 0..bands {
            let mut shared = shared_keys(keys, bands, band);
            shared.par_sort_unstable();
            for run in shared.chunk_by(|a, b| a.0 == b.0).filter(|run| run.len() > 1) {
                members.extend(run.iter().map(|&(_, row)| (row, count)));
                count += 1;
            }
        }
        members.par_sort_unstable();
        let rows = (keys.len() / bands) as u32;
        let start = |row: u32| members.partition_point(|&(found, _)| found < row) as u32;
        Self {
            starts: (0..=rows).into_par_iter().map(start).collect(),
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

/// `(key, row)` of all rows whose key another row has, and of a few others.
fn shared_keys(keys: &[u64], bands: usize, band: usize) -> Vec<(u64, u32)> {
    let of_band = || keys.iter().skip(band).step_by(bands);
    let slots = (8 * keys.len() / bands).next_power_of_two().max(64);
    let slot = |key: u64| (key >> 32) as usize & (slots - 1);
    let mut counts = vec![0_u8; slots];
    for &key in of_band() {
        let count = &mut counts[slot(key)];
        *count = count.saturating_add(1);
    }
    let rows = of_band().zip(0..).filter(|(key, _)| counts[slot(**key)] > 1);
    rows.map(|(&key, row)| (key, row)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_share_a_bucket_if_and_only_if_they_share_a_key(
            keys in prop::collection::vec([0_u64..6, 0_u64..6], 1..30),
        ) {
            let spread: Vec<[u64; 2]> = keys.iter().map(|row| row.map(|key| key << 32)).collect();
            let buckets = Buckets::new(spread.as_flattened(), 2);
            for a in 0..keys.len() {
                for b in 0..a {
                    let meet = buckets.of(a).iter().any(|bucket| buckets.of(b).contains(bucket));
                    let same = keys[a].iter().zip(&keys[b]).any(|(x, y)| x == y);
                    prop_assert_eq!(meet, same);
                }
            }
        }
    }
}
