//! Near pictures: by Hamming distance of their perceptual hashes, and by colour.
//!
//! The hash sees luma alone: a red circle and a teal one of the same luma have the same hash. So two
//! pictures are near only if the means of a coarse colour grid also agree within a tolerance, where
//! both are known.
//!
//! Where pictures are judged afterwards, near pictures are no more than proposed, and more are: those whose
//! colours agree after one gain and offset.
//!
//! Near hashes are found by [`hamming`](super::hamming).

use arrow_array::{Array, LargeListArray, UInt8Array, UInt32Array, UInt64Array};
use arrow_buffer::{OffsetBuffer, ScalarBuffer};

use super::colours::{Layout, equal_within, explained_within};
use super::hamming::join_near;
use super::union_find::UnionFind;
use crate::data_type::describe;
use crate::error::{Error, Result};
use crate::image::batch::COLOUR_BYTES;
use crate::parallel::Interrupt;

/// The pictures of distinct media: one for an image, several for a video. The columns are not copied:
/// they may be files that are mapped.
#[derive(Debug, Clone)]
pub struct Pictures {
    starts: Vec<u32>,
    hashes: ScalarBuffer<u64>,
    colour_starts: OffsetBuffer<i64>,
    colours: ScalarBuffer<u8>,
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

impl Pictures {
    /// Pictures in the order of their media: `media[i]` (ascending) is whose picture i is. Each has a
    /// hash, and a list of [`COLOUR_BYTES`] of colours or an empty one where they are not known.
    pub fn new(
        number_of_media: usize,
        media: &UInt32Array,
        hashes: &UInt64Array,
        colours: &LargeListArray,
    ) -> Result<Self> {
        let lengths = [media.len(), hashes.len(), colours.len()];
        if lengths.iter().any(|&length| length != media.len()) {
            let found = format!("{lengths:?}");
            return Err(Error::invalid("pictures, hashes, colours", found, "equal lengths"));
        }
        let Some(values) = colours.values().as_any().downcast_ref::<UInt8Array>() else {
            return Err(Error::invalid("colours", describe(colours.data_type()), "lists of uint8"));
        };
        let offsets = colours.offsets();
        let whole = |length: usize| length == 0 || length == COLOUR_BYTES;
        if let Some(length) = offsets.lengths().find(|&length| !whole(length)) {
            let expected = format!("{COLOUR_BYTES} bytes, or none");
            return Err(Error::invalid("colours of a picture", length, expected));
        }
        let media = media.values();
        if !media.is_sorted() || media.last().is_some_and(|&last| last as usize >= number_of_media)
        {
            return Err(Error::invalid("media of pictures", "unsorted", "ascending row numbers"));
        }
        let mut starts = Vec::with_capacity(number_of_media + 1);
        for (picture, &of) in media.iter().enumerate() {
            starts.resize((of as usize + 1).max(starts.len()), picture as u32);
        }
        starts.resize(number_of_media + 1, media.len() as u32);
        Ok(Self {
            starts,
            hashes: hashes.values().clone(),
            colour_starts: offsets.clone(),
            colours: values.values().clone(),
        })
    }

    /// Its colours, where they are known.
    fn colour(&self, picture: usize) -> Option<&Layout> {
        let span = self.colour_starts[picture] as usize..self.colour_starts[picture + 1] as usize;
        self.colours[span].as_chunks().0.first()
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
        let (Some(a), Some(b)) = (self.colour(a), self.colour(b)) else { return true };
        equal_within(a, b, tolerance) || closeness.judged && explained_within(a, b, tolerance)
    }

    /// Every pair of near hashes joined, those of the first pictures of media; see [`NearMedia`].
    pub fn search(&self, radius: u32, interrupt: &Interrupt) -> Result<NearMedia> {
        let number_of_media = self.starts.len().saturating_sub(1);
        let sets = UnionFind::new(number_of_media);
        let first = (0..number_of_media as u32)
            .filter(|&media| !self.span(media).is_empty())
            .map(|media| (self.hashes[self.span(media).start], media))
            .collect();
        let near = join_near(first, radius, &sets, interrupt)?;
        let components = (0..number_of_media as u32).map(|media| sets.root(media)).collect();
        Ok(NearMedia { components, misses: near.misses })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_schema::{DataType, Field};
    use proptest::prelude::*;

    use super::*;

    fn colours(of: &[Option<Layout>]) -> LargeListArray {
        let lengths = of.iter().map(|colour| colour.map_or(0, |colour| colour.len()));
        let offsets = OffsetBuffer::from_lengths(lengths);
        let values: Vec<u8> = of.iter().flatten().flatten().copied().collect();
        let item = Arc::new(Field::new("item", DataType::UInt8, true));
        LargeListArray::new(item, offsets, Arc::new(UInt8Array::from(values)), None)
    }

    fn pictures(hashes: &[u64], of: &[Option<Layout>]) -> Pictures {
        let media: UInt32Array = (0..hashes.len() as u32).collect::<Vec<_>>().into();
        Pictures::new(hashes.len(), &media, &hashes.to_vec().into(), &colours(of)).expect("valid")
    }

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
            let pictures = pictures(&hashes, &vec![Some([0; COLOUR_BYTES]); n]);
            let closeness = Closeness { radius, colour_tolerance: None, judged };
            let found = pictures.search(radius, &Interrupt::default()).expect("not interrupted");
            // Naive: all pairs.
            let forest = UnionFind::new(n);
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
    fn colour_decides_where_luma_does_not() {
        let pictures =
            pictures(&[7; 3], &[Some([10; COLOUR_BYTES]), Some([60; COLOUR_BYTES]), None]);
        let near = |other, colour_tolerance| {
            let closeness = Closeness { radius: 4, colour_tolerance, judged: false };
            pictures.near(0, other, closeness)
        };
        assert_eq!(near(1, None), Some(0));
        assert_eq!(near(1, Some(50)), Some(0));
        assert_eq!(near(1, Some(49)), None);
        assert_eq!(near(2, Some(0)), Some(0));
    }

    #[test]
    fn media_may_have_any_number_of_pictures() {
        let media = UInt32Array::from(vec![1, 1, 4]);
        let pictures = Pictures::new(6, &media, &vec![3, 5, 3].into(), &colours(&[None; 3]));
        let pictures = pictures.expect("valid");
        let spans: Vec<_> = (0..6).map(|media| pictures.span(media)).collect();
        assert_eq!(spans, [0..0, 0..2, 2..2, 2..2, 2..3, 3..3]);
        let refused = Pictures::new(4, &media, &vec![3, 5, 3].into(), &colours(&[None; 3]));
        assert!(refused.is_err());
    }
}
