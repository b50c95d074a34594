//! Candidates: rows that share a key, gathered into buckets, and buckets into components.
//!
//! Nearly all keys are had by one row alone. A small table of counts finds most of these without
//! sorting; what is left of a band is sorted, and runs of equal keys become buckets. One band at a
//! time is in memory, and a band could be cut further by the leading bits of its keys.

use rayon::prelude::*;

use super::union_find::UnionFind;

/// Rows that may be near each other, and the buckets that say so.
#[derive(Debug, PartialEq, Eq)]
pub struct Component {
    /// `(row, bucket)`, ascending; no other component has these rows or buckets.
    pub members: Vec<(u32, u32)>,
}

/// Buckets of equal keys; row r has the keys `keys[r * bands..(r + 1) * bands]`.
pub fn components(keys: &[u64], bands: usize) -> Vec<Component> {
    let rows = keys.len() / bands;
    let mut forest = UnionFind::new(rows);
    let mut members: Vec<(u32, u32)> = Vec::new();
    let mut buckets = 0;
    for band in 0..bands {
        let mut shared = shared_keys(keys, bands, band);
        shared.par_sort_unstable();
        for run in shared.chunk_by(|a, b| a.0 == b.0).filter(|run| run.len() > 1) {
            for &(_, row) in run {
                forest.union(run[0].1, row);
                members.push((row, buckets));
            }
            buckets += 1;
        }
    }
    let mut rooted: Vec<(u32, u32, u32)> =
        members.into_iter().map(|(row, bucket)| (forest.root(row), row, bucket)).collect();
    rooted.par_sort_unstable();
    rooted
        .chunk_by(|a, b| a.0 == b.0)
        .map(|run| Component {
            members: run.iter().map(|&(_, row, bucket)| (row, bucket)).collect(),
        })
        .collect()
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
    use super::*;

    #[test]
    fn rows_are_connected_through_any_band() {
        // Band 0 joins 0 and 1, band 1 joins 1 and 2; row 3 is alone.
        let keys = [[1, 5], [1, 6], [2, 6], [3, 7]].map(|row| row.map(|key: u64| key << 32));
        let found = components(keys.as_flattened(), 2);
        assert_eq!(found, vec![Component { members: vec![(0, 0), (1, 0), (1, 1), (2, 1)] }]);
    }
}
