//! Sets of texts that are connected by near ones: what must not be parted by a split into training and
//! held-out data.
//!
//! Where [`find`](super::find) removes a text because of one that stays, here every near pair counts,
//! also between texts that dedup would both remove. MinHash bands propose, the Jaccard index of the
//! shingle sets decides.

use arrow_array::{Array, LargeStringArray};
use rayon::prelude::*;

use super::minhash::MinHasher;
use super::text::{Shingler, jaccard};
use super::union_find::UnionFind;
use crate::error::Result;
use crate::parallel::{Interrupt, with_threads};

const SHINGLE_WORDS: usize = 3;
/// With these, two texts of Jaccard index .8 meet with probability 1 - (1 - .8^4)^32 = 1 - 5e-8.
const BANDS: usize = 32;
const ROWS_PER_BAND: usize = 4;
/// Texts of one bucket with which a text is compared at most, the nearest before it in their order:
/// bounds the work where thousands share a template without being near.
const COMPARED: usize = 512;

/// For each text the first one that it is connected with by pairs of at least this Jaccard index.
pub fn near_texts(
    texts: &LargeStringArray,
    threshold: f32,
    threads: usize,
    interrupt: &Interrupt,
) -> Result<Vec<u32>> {
    with_threads(threads, || {
        let minhash = MinHasher::new(BANDS * ROWS_PER_BAND);
        let read: Vec<(Box<[u64]>, Vec<u32>)> = (0..texts.len())
            .into_par_iter()
            .map_init(
                || Shingler::new(SHINGLE_WORDS),
                |shingler, row| {
                    interrupt.check()?;
                    let shingles = shingler.shingle_set(texts.value(row));
                    let mut signature = Vec::new();
                    minhash.sign(&shingles, &mut signature);
                    Ok((shingles, signature))
                },
            )
            .collect::<Result<_>>()?;
        let sets = UnionFind::new(texts.len());
        for band in 0..BANDS {
            interrupt.check()?;
            let values =
                |row: u32| &read[row as usize].1[band * ROWS_PER_BAND..(band + 1) * ROWS_PER_BAND];
            let mut rows: Vec<u32> = (0..texts.len() as u32).collect();
            rows.par_sort_unstable_by(|&a, &b| values(a).cmp(values(b)).then(a.cmp(&b)));
            for bucket in rows.chunk_by(|&a, &b| values(a) == values(b)) {
                unite_near(bucket, &read, threshold, &sets);
            }
        }
        Ok((0..texts.len() as u32).map(|row| sets.root(row)).collect())
    })?
}

fn unite_near(bucket: &[u32], read: &[(Box<[u64]>, Vec<u32>)], threshold: f32, sets: &UnionFind) {
    for (place, &row) in bucket.iter().enumerate() {
        for &other in &bucket[place.saturating_sub(COMPARED)..place] {
            let apart = sets.root(row) != sets.root(other);
            if apart && jaccard(&read[row as usize].0, &read[other as usize].0) >= threshold {
                sets.union(row, other);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn texts_share_a_set_if_near_pairs_connect_them(
            texts in prop::collection::vec(prop::collection::vec("[ab]", 3..12), 1..20),
            threshold in 0.85_f32..1.0,
        ) {
            let texts: Vec<String> = texts.iter().map(|words| words.join(" ")).collect();
            let found = near_texts(
                &LargeStringArray::from_iter_values(&texts), threshold, 1, &Interrupt::default(),
            ).expect("no error");
            let set = |text: &str| Shingler::new(SHINGLE_WORDS).shingle_set(text);
            let naive = UnionFind::new(texts.len());
            for a in 0..texts.len() {
                for b in 0..a {
                    if jaccard(&set(&texts[a]), &set(&texts[b])) >= threshold {
                        naive.union(a as u32, b as u32);
                    }
                }
            }
            let naive: Vec<u32> = (0..texts.len() as u32).map(|row| naive.root(row)).collect();
            prop_assert_eq!(found, naive);
        }
    }
}
