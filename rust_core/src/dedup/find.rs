//! Which samples are duplicates of which, under a policy.
//!
//! 1. Exact duplicates collapse onto the best of each group; the rest of the work sees only these.
//! 2. Bands propose: rows that share a MinHash band of their text and, where images count, whose
//!    images have connected hashes. So one template question on a million pictures never meets.
//! 3. Rows are visited in keep order. A row is compared with the kept rows of its buckets, image
//!    first, then text; the first that is near removes it and is its evidence. If its image has as
//!    many samples as may stay, it is dropped. Otherwise it is kept, and may remove others.
//!
//! Step 3 is the definition of the result: a row goes only because of one that stays.

use std::collections::{HashMap, HashSet};

use arrow_array::LargeStringArray;
use rayon::prelude::*;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::bands::Buckets;
use super::minhash::MinHasher;
use super::pictures::{Closeness, NearMedia, Pictures};
use super::text::{Shingler, jaccard};
use crate::error::Result;
use crate::parallel::{Interrupt, with_threads};

/// What makes two samples duplicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Near images and near text; text alone where there is no image.
    Joint,
    /// Near images; samples without one are left alone.
    Image,
    /// Near text.
    Text,
    /// Equal images and equal normalised text.
    Exact,
}

impl Policy {
    fn text_counts(self) -> bool {
        self != Self::Image
    }

    fn images_count(self) -> bool {
        self != Self::Text
    }
}

/// The thresholds.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// What makes a duplicate.
    pub policy: Policy,
    /// Tokens in a shingle.
    pub shingle_words: usize,
    /// Jaccard index from which two texts are near.
    pub text_threshold: f32,
    /// MinHash bands.
    pub bands: usize,
    /// MinHash values in a band.
    pub rows_per_band: usize,
    /// When two pictures are near.
    pub closeness: Closeness,
    /// Samples that may stay on one image.
    pub max_per_image: Option<usize>,
}

/// The samples: text, media, and how much each deserves to be kept.
#[derive(Debug)]
pub struct Samples {
    /// One text a row.
    pub prompts: LargeStringArray,
    /// `media[media_offsets[row]..media_offsets[row + 1]]` are the media of a row.
    pub media_offsets: Vec<i64>,
    /// Numbers of distinct media.
    pub media: Vec<u32>,
    /// Keep order: 0 is kept before 1; no two are equal.
    pub rank: Vec<u32>,
}

impl Samples {
    fn media_of(&self, row: u32) -> &[u32] {
        let row = row as usize;
        &self.media[self.media_offsets[row] as usize..self.media_offsets[row + 1] as usize]
    }

    fn prompt(&self, row: u32) -> &str {
        self.prompts.value(row as usize)
    }
}

/// Why a sample was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Equal text and media, as far as the policy looks at them.
    Exact,
    /// Near by its measures.
    Near,
    /// One more on an image than may stay.
    MaxPerImage,
}

/// A removed sample and its evidence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Duplicate {
    /// The sample removed.
    pub row: u32,
    /// The sample that stays.
    pub kept: u32,
    /// Why.
    pub kind: Kind,
    /// Of the shingle sets of the two; none where text had no say.
    pub jaccard: Option<f32>,
    /// Of 64 bits, the largest over the media; none where images had no say.
    pub hamming: Option<u32>,
}

/// Two samples that both stay, a little beyond a threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NearMiss {
    /// One of them.
    pub row: u32,
    /// The other.
    pub other: u32,
    /// Measured, or none.
    pub jaccard: Option<f32>,
    /// Measured, or none.
    pub hamming: Option<u32>,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// Ascending by row; no row twice, no kept row among them.
    pub duplicates: Vec<Duplicate>,
    /// Some pairs beyond a threshold, nearest first.
    pub misses: Vec<NearMiss>,
    /// Pairs that were measured.
    pub compared: u64,
}

/// Kept rows of one bucket a row is compared with at most: bounds the work where thousands of texts
/// are alike but not near.
const LEADERS: usize = 512;
const MISS_MARGIN: f32 = 0.15;
const MISSES: usize = 200;
/// Near misses remembered on the way.
const MISSES_SEEN: usize = 100_000;

/// Rows whose shingles are made ahead of the decisions, on all threads.
const BLOCK: usize = 4096;

/// Find the duplicates; see the top of the file.
pub fn find(
    samples: &Samples,
    pictures: &Pictures,
    settings: &Settings,
    threads: usize,
    interrupt: &Interrupt,
) -> Result<Found> {
    with_threads(threads, || {
        let policy = settings.policy;
        let near_media = pictures.search(settings.closeness.radius);
        interrupt.check()?;
        let finder = Finder { samples, pictures, settings, components: &near_media.components };
        let keys = finder.keys(interrupt)?;
        let mut exact = Vec::new();
        let mut order = collapse_exact(samples, policy, keys.exact, &mut exact);
        order.sort_unstable_by_key(|&row| samples.rank[row as usize]);
        let buckets = finder.buckets(&order, &keys.bands);
        let mut found = Decisions::new(&finder, buckets.count).run(&order, &buckets, interrupt)?;
        found.duplicates.extend(exact);
        found.duplicates.sort_unstable_by_key(|duplicate| duplicate.row);
        point_to_what_stays(&mut found.duplicates);
        finder.finish_misses(&near_media, &mut found);
        Ok(found)
    })?
}

/// What is equal to a removed sample, its media included, went for the same reason as that one.
fn point_to_what_stays(duplicates: &mut [Duplicate]) {
    let removed: HashMap<u32, Duplicate> =
        duplicates.iter().map(|duplicate| (duplicate.row, *duplicate)).collect();
    for duplicate in duplicates {
        if let Some(of) = removed.get(&duplicate.kept) {
            *duplicate = Duplicate { row: duplicate.row, ..*of };
        }
    }
}

/// Groups of equal samples: the best stays, the rest are exact duplicates of it.
fn collapse_exact(
    samples: &Samples,
    policy: Policy,
    exact_keys: Vec<u128>,
    duplicates: &mut Vec<Duplicate>,
) -> Vec<u32> {
    let ranked = exact_keys.into_iter().zip(&samples.rank).zip(0..);
    let mut keyed: Vec<(u128, u32, u32)> =
        ranked.map(|((key, &rank), row)| (key, rank, row)).collect();
    keyed.par_sort_unstable();
    let mut survivors = Vec::new();
    for group in keyed.chunk_by(|a, b| a.0 == b.0) {
        let kept = group[0].2;
        survivors.push(kept);
        let jaccard = policy.text_counts().then_some(1.0);
        let has_media = policy.images_count() && !samples.media_of(kept).is_empty();
        let hamming = has_media.then_some(0);
        let exact = |row| Duplicate { row, kept, kind: Kind::Exact, jaccard, hamming };
        duplicates.extend(group[1..].iter().map(|&(_, _, row)| exact(row)));
    }
    survivors
}

/// What is computed of every sample, by reading its text once.
#[derive(Default)]
struct Keys {
    /// Equal for samples that are equal in all the policy looks at.
    exact: Vec<u128>,
    /// `bands` a row: equal in one for samples that may be near.
    bands: Vec<u64>,
}

struct Finder<'a> {
    samples: &'a Samples,
    pictures: &'a Pictures,
    settings: &'a Settings,
    components: &'a [u32],
}

impl Finder<'_> {
    /// Where the rows of `order` meet, by their place in it.
    fn buckets(&self, order: &[u32], keys: &[u64]) -> Buckets {
        let bands = self.bands();
        if self.settings.policy == Policy::Exact {
            return Buckets::default();
        }
        let of_row = |&row: &u32| &keys[row as usize * bands..(row as usize + 1) * bands];
        let ordered: Vec<u64> = order.iter().flat_map(of_row).copied().collect();
        Buckets::new(&ordered, bands)
    }

    /// Keys a row; where text plays no part, the images are the one key.
    fn bands(&self) -> usize {
        if self.settings.policy == Policy::Image { 1 } else { self.settings.bands }
    }

    /// The keys of every row.
    fn keys(&self, interrupt: &Interrupt) -> Result<Keys> {
        let minhash = MinHasher::new(self.bands() * self.settings.rows_per_band);
        let rows: Vec<u32> = (0..self.samples.rank.len() as u32).collect();
        let parts: Vec<Keys> = rows
            .par_chunks(1024)
            .map(|rows| {
                interrupt.check()?;
                let mut reader = Shingler::new(self.settings.shingle_words);
                let (mut shingles, mut signature) = (Vec::new(), Vec::new());
                let mut keys = Keys::default();
                for &row in rows {
                    let mut exact = None;
                    if self.settings.policy.text_counts() {
                        exact = Some(reader.read(self.samples.prompt(row), &mut shingles));
                        minhash.sign(&shingles, &mut signature);
                    }
                    keys.exact.push(self.exact_key(row, exact));
                    self.push_bands(row, &signature, &mut keys.bands);
                }
                Ok(keys)
            })
            .collect::<Result<_>>()?;
        let (exact, bands): (Vec<_>, Vec<_>) =
            parts.into_iter().map(|part| (part.exact, part.bands)).unzip();
        Ok(Keys { exact: exact.concat(), bands: bands.concat() })
    }

    fn push_bands(&self, row: u32, signature: &[u32], keys: &mut Vec<u64>) {
        let images = self.image_key(row);
        if self.settings.policy == Policy::Image {
            // A sample without images meets none: its key is its own.
            let lone = self.samples.media_of(row).is_empty();
            keys.push(if lone { xxh3_64(&row.to_le_bytes()) } else { images });
            return;
        }
        let values = signature.chunks_exact(self.settings.rows_per_band).take(self.bands());
        keys.extend(values.map(|values| {
            values.iter().fold(images, |key, &value| {
                (key ^ u64::from(value)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31)
            })
        }));
    }

    fn exact_key(&self, row: u32, text: Option<u128>) -> u128 {
        let media = self.samples.media_of(row);
        match text {
            Some(text) if media.is_empty() || !self.media_count() => text,
            None if media.is_empty() => u128::from(row), // nothing to compare: equal to none
            _ => {
                let mut key = text.unwrap_or_default().to_le_bytes().to_vec();
                key.extend(media.iter().flat_map(|media| media.to_le_bytes()));
                xxh3_128(&key)
            }
        }
    }

    /// Whether samples of equal text may have different fates because of their media: by the policy,
    /// or because one of them is over the cap of its image while another has no such image.
    fn media_count(&self) -> bool {
        self.settings.policy.images_count() || self.settings.max_per_image.is_some()
    }

    /// The same for samples whose images may be near; 0 for all where images do not count.
    fn image_key(&self, row: u32) -> u64 {
        if self.settings.policy.images_count() { self.media_key(row) } else { 0 }
    }

    /// Of the components of its media, in order.
    fn media_key(&self, row: u32) -> u64 {
        let media = self.samples.media_of(row).iter();
        let key: Vec<u8> = media.flat_map(|&media| self.component(media).to_le_bytes()).collect();
        xxh3_64(&key)
    }

    fn component(&self, media: u32) -> u32 {
        self.components.get(media as usize).copied().unwrap_or(media)
    }

    /// The largest distance over the media of two samples, if each is near its counterpart.
    fn hamming(&self, a: u32, b: u32) -> Option<u32> {
        let (a, b) = (self.samples.media_of(a), self.samples.media_of(b));
        if a.len() != b.len() {
            return None;
        }
        let mut farthest = 0;
        for (&a, &b) in a.iter().zip(b) {
            farthest = farthest.max(self.pictures.near(a, b, self.settings.closeness)?);
        }
        Some(farthest)
    }

    /// Misses of which both stay, and pairs of images just beyond the radius, each by one sample.
    fn finish_misses(&self, near_media: &NearMedia, found: &mut Found) {
        let removed: HashSet<u32> = found.duplicates.iter().map(|d| d.row).collect();
        found.misses.retain(|m| !removed.contains(&m.row) && !removed.contains(&m.other));
        found.misses.sort_by(|a, b| b.jaccard.unwrap_or(0.0).total_cmp(&a.jaccard.unwrap_or(0.0)));
        found.misses.truncate(MISSES);
        let mut of_media: HashMap<u32, u32> = HashMap::new();
        for row in (0..self.samples.rank.len() as u32).filter(|row| !removed.contains(row)) {
            if let [media] = self.samples.media_of(row) {
                of_media.entry(*media).or_insert(row);
            }
        }
        let named = near_media.misses.iter().filter_map(|(distance, a, b)| {
            let (row, other) = (*of_media.get(a)?, *of_media.get(b)?);
            Some(NearMiss { row, other, jaccard: None, hamming: Some(*distance) })
        });
        found.misses.extend(named);
    }
}

/// Step 3: what has been kept so far, and where it is met.
struct Decisions<'a> {
    finder: &'a Finder<'a>,
    kept_in: Vec<Vec<u32>>,
    kept_shingles: HashMap<u32, Box<[u64]>>,
    /// By the components of their media: the first sample that stays of an image, and how many do.
    firsts: HashMap<u64, Vec<(u32, usize)>>,
    found: Found,
}

impl<'a> Decisions<'a> {
    fn new(finder: &'a Finder<'a>, buckets: usize) -> Self {
        Self {
            finder,
            kept_in: vec![Vec::new(); buckets],
            kept_shingles: HashMap::new(),
            firsts: HashMap::new(),
            found: Found::default(),
        }
    }

    fn run(mut self, order: &[u32], buckets: &Buckets, interrupt: &Interrupt) -> Result<Found> {
        let samples = self.finder.samples;
        let width = self.finder.settings.shingle_words;
        let text_counts = self.finder.settings.policy.text_counts();
        for (number, block) in order.chunks(BLOCK).enumerate() {
            interrupt.check()?;
            let places = number * BLOCK..number * BLOCK + block.len();
            let shingles: Vec<Box<[u64]>> = places
                .clone()
                .into_par_iter()
                .map_init(
                    || Shingler::new(width),
                    |reader, place| match buckets.of(place) {
                        [_, ..] if text_counts => reader.shingle_set(samples.prompt(order[place])),
                        _ => Box::default(),
                    },
                )
                .collect();
            for (place, shingles) in places.zip(shingles) {
                self.decide(order[place], buckets.of(place), shingles);
            }
        }
        Ok(self.found)
    }

    fn decide(&mut self, row: u32, buckets: &[u32], shingles: Box<[u64]>) {
        let removal = self.near(row, buckets, &shingles).or_else(|| self.beyond_the_cap(row));
        if let Some(duplicate) = removal {
            self.found.duplicates.push(duplicate);
            return;
        }
        for &bucket in buckets {
            self.kept_in[bucket as usize].push(row);
        }
        if !buckets.is_empty() {
            self.kept_shingles.insert(row, shingles);
        }
    }

    /// The first kept sample, in keep order, that is near to this one.
    fn near(&mut self, row: u32, buckets: &[u32], shingles: &[u64]) -> Option<Duplicate> {
        let lists = buckets.iter().map(|&bucket| &self.kept_in[bucket as usize]);
        let mut candidates: Vec<u32> =
            lists.flat_map(|kept| kept.iter().take(LEADERS)).copied().collect();
        let rank = &self.finder.samples.rank;
        candidates.sort_unstable_by_key(|&kept| rank[kept as usize]);
        candidates.dedup();
        candidates.into_iter().find_map(|kept| self.compare(row, shingles, kept))
    }

    fn compare(&mut self, row: u32, shingles: &[u64], kept: u32) -> Option<Duplicate> {
        self.found.compared += 1;
        let Finder { samples, settings, .. } = *self.finder;
        let mut hamming = None;
        if settings.policy.images_count() {
            let distance = self.finder.hamming(row, kept)?;
            hamming = Some(distance).filter(|_| !samples.media_of(row).is_empty());
        }
        let mut similarity = None;
        if settings.policy.text_counts() {
            let exact = jaccard(shingles, self.kept_shingles.get(&kept)?);
            if exact < settings.text_threshold {
                let close = exact >= settings.text_threshold - MISS_MARGIN;
                if close && self.found.misses.len() < MISSES_SEEN {
                    let miss = NearMiss { row, other: kept, jaccard: Some(exact), hamming };
                    self.found.misses.push(miss);
                }
                return None;
            }
            similarity = Some(exact);
        }
        Some(Duplicate { row, kept, kind: Kind::Near, jaccard: similarity, hamming })
    }

    /// Counts a sample on its image, or drops it if as many as may stay are there.
    ///
    /// Images count as one if near to the first of their kind, so that no chain of small differences
    /// makes one image of many.
    fn beyond_the_cap(&mut self, row: u32) -> Option<Duplicate> {
        let finder = self.finder;
        let cap = finder.settings.max_per_image?;
        if finder.samples.media_of(row).is_empty() {
            return None;
        }
        let alike = self.firsts.entry(finder.media_key(row)).or_default();
        for (first, count) in alike.iter_mut().take(LEADERS) {
            let Some(distance) = finder.hamming(row, *first) else { continue };
            if *count < cap {
                *count += 1;
                return None;
            }
            let (kept, hamming) = (*first, Some(distance));
            return Some(Duplicate { row, kept, kind: Kind::MaxPerImage, jaccard: None, hamming });
        }
        alike.push((row, 1));
        None
    }
}
