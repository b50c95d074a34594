//! Near pictures: by Hamming distance of their perceptual hashes, and by colour.
//!
//! The hash sees luma alone: a red circle and a teal one of the same luma have the same hash. So two
//! pictures are near only if the means of a coarse colour grid also agree within a tolerance.
//!
//! Where pictures are judged afterwards, near pictures are no more than proposed, and more are: those whose
//! colours agree after one gain and offset.
//!
//! Near hashes are found by the pigeonhole principle (multi-index hashing, Norouzi, Punjani and Fleet
//! 2014): two hashes that differ in at most r bits agree in at least one of r + 1 chunks, so sorting
//! by each chunk in turn brings every near pair together once.

use super::colours::{Layout, equal_within, explained_within};
use super::union_find::UnionFind;
use crate::error::{Error, Result};
use crate::image::batch::COLOUR_BYTES;

/// The pictures of distinct media: one for an image, several for a video.
#[derive(Debug, Clone, Default)]
pub struct Pictures {
    starts: Vec<u32>,
    hashes: Vec<u64>,
    colours: Vec<Layout>,
}

/// How far apart two pictures may be and still be near.
#[derive(Debug, Clone, Copy)]
pub struct Closeness {
    /// Bits of 64.
    pub radius: u32,
    /// Largest difference of a mean colour, of 255; none looks at luma alone.
    pub colour_tolerance: Option<u8>,
    /// Whether near pictures are judged afterwards, which widens what is near by brightness, contrast
    /// and saturation.
    pub judged: bool,
}

/// Media whose hashes are near, and pairs that just are not.
#[derive(Debug, Default)]
pub struct NearMedia {
    /// For each media the smallest one it is connected with by near hashes: near media are always
    /// in one component, media in one component need not be near.
    pub components: Vec<u32>,
    /// `(distance, media, media)` of some pairs a few bits beyond the radius, nearest first.
    pub misses: Vec<(u32, u32, u32)>,
}

const MISS_BITS: u32 = 3;
const MISSES: usize = 256;

impl Pictures {
    /// Pictures in the order of their media: `media[i]` (ascending) is whose picture i is. Each has a
    /// hash and [`COLOUR_BYTES`] of colours.
    pub fn new(
        number_of_media: usize,
        media: &[u32],
        hashes: &[u64],
        colours: &[u8],
    ) -> Result<Self> {
        let colours = colours.as_chunks::<COLOUR_BYTES>().0;
        let lengths = [media.len(), hashes.len(), colours.len()];
        if lengths.iter().any(|&length| length != media.len()) {
            let found = format!("{lengths:?}");
            return Err(Error::invalid("pictures, hashes, colours", found, "equal lengths"));
        }
        let ascending = media.is_sorted() && media.iter().all(|&m| (m as usize) < number_of_media);
        if !ascending {
            return Err(Error::invalid("media of pictures", "unsorted", "ascending row numbers"));
        }
        let start = |m: usize| media.partition_point(|&found| (found as usize) < m) as u32;
        let starts = (0..=number_of_media).map(start).collect();
        Ok(Self { starts, hashes: hashes.to_vec(), colours: colours.to_vec() })
    }

    fn span(&self, media: u32) -> std::ops::Range<usize> {
        let media = media as usize;
        match (self.starts.get(media), self.starts.get(media + 1)) {
            (Some(&start), Some(&end)) => start as usize..end as usize,
            _ => 0..0,
        }
    }

    /// Hamming distance of two media if they are near, the largest over their pictures.
    ///
    /// Media without pictures are near to themselves alone.
    pub fn near(&self, a: u32, b: u32, closeness: Closeness) -> Option<u32> {
        if a == b {
            return Some(0);
        }
        let (a, b) = (self.span(a), self.span(b));
        if a.is_empty() || a.len() != b.len() {
            return None;
        }
        let mut farthest = 0;
        for (a, b) in a.zip(b) {
            let distance = (self.hashes[a] ^ self.hashes[b]).count_ones();
            if distance > closeness.radius || !self.colours_agree(a, b, closeness) {
                return None;
            }
            farthest = farthest.max(distance);
        }
        Some(farthest)
    }

    fn colours_agree(&self, a: usize, b: usize, closeness: Closeness) -> bool {
        let Some(tolerance) = closeness.colour_tolerance else { return true };
        let (a, b) = (&self.colours[a], &self.colours[b]);
        equal_within(a, b, tolerance) || closeness.judged && explained_within(a, b, tolerance)
    }

    /// Every pair of near hashes joined; see [`NearMedia`].
    pub fn search(&self, radius: u32) -> NearMedia {
        let number_of_media = self.starts.len().saturating_sub(1);
        let mut forest = UnionFind::new(number_of_media);
        let mut first: Vec<(u64, u32)> = (0..number_of_media as u32)
            .filter(|&media| !self.span(media).is_empty())
            .map(|media| (self.hashes[self.span(media).start], media))
            .collect();
        first.sort_unstable();
        // Media of one hash are joined here, and only the first goes on.
        first.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            if same {
                forest.union(next.1, kept.1);
            }
            same
        });
        let mut misses = Vec::new();
        for chunk in chunks(radius) {
            first.sort_unstable_by_key(|&(hash, media)| (hash & chunk, media));
            for run in first.chunk_by(|a, b| (a.0 ^ b.0) & chunk == 0) {
                for (at, &(hash, media)) in run.iter().enumerate() {
                    for &(other_hash, other) in &run[at + 1..] {
                        let distance = (hash ^ other_hash).count_ones();
                        if distance <= radius {
                            forest.union(media, other);
                        } else if distance <= radius + MISS_BITS {
                            misses.push((distance, media.min(other), media.max(other)));
                        }
                    }
                }
            }
            misses.sort_unstable();
            misses.dedup();
            misses.truncate(MISSES);
        }
        let components = (0..number_of_media as u32).map(|media| forest.root(media)).collect();
        NearMedia { components, misses }
    }
}

/// `radius + 1` masks that share out the 64 bits.
fn chunks(radius: u32) -> impl Iterator<Item = u64> {
    let count = radius.min(63) + 1;
    (0..count).map(move |index| {
        let (start, end) = (index * 64 / count, (index + 1) * 64 / count);
        (u64::MAX >> (64 - (end - start))) << start
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_near_pair_shares_a_component(
            seeds in prop::collection::vec(any::<u64>(), 1..6),
            flips in prop::collection::vec(prop::collection::vec(0_u32..64, 0..7), 1..40),
            radius in 0_u32..8,
            judged in any::<bool>(),
        ) {
            let hashes: Vec<u64> = flips
                .iter()
                .enumerate()
                .map(|(i, bits)| bits.iter().fold(seeds[i % seeds.len()], |h, bit| h ^ 1 << bit))
                .collect();
            let n = hashes.len();
            let media: Vec<u32> = (0..n as u32).collect();
            let pictures = Pictures::new(n, &media, &hashes, &vec![0; n * COLOUR_BYTES]).expect("valid");
            let closeness = Closeness { radius, colour_tolerance: None, judged };
            let found = pictures.search(radius);
            // Naive: all pairs.
            let mut forest = UnionFind::new(n);
            for a in 0..n {
                for b in 0..a {
                    let met = (hashes[a] ^ hashes[b]).count_ones() <= radius;
                    prop_assert_eq!(met, pictures.near(a as u32, b as u32, closeness).is_some());
                    if met {
                        forest.union(a as u32, b as u32);
                    }
                }
            }
            let naive: Vec<u32> = (0..n as u32).map(|x| forest.root(x)).collect();
            prop_assert_eq!(found.components, naive);
        }
    }

    #[test]
    fn chunks_cover_every_bit_once() {
        for radius in 0..64 {
            assert_eq!(chunks(radius).fold(0, |all, chunk| all ^ chunk), u64::MAX);
        }
    }

    #[test]
    fn colour_decides_where_luma_does_not() {
        let mut colours = vec![10; COLOUR_BYTES];
        colours.extend([60; COLOUR_BYTES]);
        let pictures = Pictures::new(2, &[0, 1], &[7, 7], &colours).expect("valid");
        let near = |colour_tolerance| {
            let closeness = Closeness { radius: 4, colour_tolerance, judged: false };
            pictures.near(0, 1, closeness)
        };
        assert_eq!(near(None), Some(0));
        assert_eq!(near(Some(50)), Some(0));
        assert_eq!(near(Some(49)), None);
    }
}
