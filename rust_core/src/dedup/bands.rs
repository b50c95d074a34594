//! Candidates: rows that share a key, gathered into buckets, and buckets into components.
//!
//! Band by band, `(key, row)` is sorted and runs of equal keys become buckets; keys that only one row
//! has, nearly all of them, are forgotten at once. One band at a time is in memory, and a band could
//! be cut further by the leading bits of its keys.

use rayon::prelude::*;

use super::union_find::UnionFind;

/// Rows that may be near each other, and the buckets that say so.
#[derive(Debug, PartialEq, Eq)]
pub struct Component {
    /// `(row, bucket)`, ascending; no other component has these rows or buckets.
    pub members: Vec<(u32, u32)>,
}

/// Buckets of equal keys over `rows` rows; `key(row, band)` is none where a row has none.
pub fn components(
    rows: usize,
    bands: usize,
    key: impl Fn(usize, usize) -> Option<u64> + Sync,
) -> Vec<Component> {
    let mut forest = UnionFind::new(rows);
    let mut members: Vec<(u32, u32)> = Vec::new();
    let mut buckets = 0;
    for band in 0..bands {
        let mut keys: Vec<(u64, u32)> = (0..rows)
            .into_par_iter()
            .filter_map(|row| Some((key(row, band)?, row as u32)))
            .collect();
        keys.par_sort_unstable();
        for run in keys.chunk_by(|a, b| a.0 == b.0).filter(|run| run.len() > 1) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_connected_through_any_band() {
        // Band 0 joins 0 and 1, band 1 joins 1 and 2; row 3 is alone, row 4 has no key.
        let keys = [[Some(1), Some(5)], [Some(1), Some(6)], [Some(2), Some(6)], [Some(3), Some(7)]];
        let found = components(5, 2, |row, band| keys.get(row).and_then(|bands| bands[band]));
        assert_eq!(found, vec![Component { members: vec![(0, 0), (1, 0), (1, 1), (2, 1)] }]);
    }
}
