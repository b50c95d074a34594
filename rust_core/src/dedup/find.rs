//! Which samples are duplicates of which, under a policy.
//!
//! 1. Exact duplicates collapse onto the best of each group; the rest of the work sees only these.
//! 2. Bands propose: rows that share a MinHash band of their text and, where images count, whose
//!    images have connected hashes. So one template question on a million pictures never meets.
//! 3. Within a component, rows are walked in keep order. A row is compared with the kept rows of its
//!    buckets, image first, then text; the first that is near removes it and is its evidence.
//!    Otherwise it is kept, and may remove others.
//! 4. Of the samples on one image, those beyond the cap are dropped.
//!
//! Step 3 is the definition of the result: a row goes only if it is near to one that stays.

use std::collections::{HashMap, HashSet};

use arrow_array::LargeStringArray;
use rayon::prelude::*;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::bands::{Component, components};
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
        let near_media = match policy {
            Policy::Joint | Policy::Image => pictures.search(settings.closeness.radius),
            Policy::Text | Policy::Exact => NearMedia::default(),
        };
        interrupt.check()?;
        let mut found = Found::default();
        let survivors = collapse_exact(samples, settings, interrupt, &mut found.duplicates)?;
        let finder = Finder { samples, pictures, settings, components: &near_media.components };
        if policy != Policy::Exact {
            finder.remove_near(&survivors, interrupt, &mut found)?;
        }
        found.duplicates.sort_unstable_by_key(|duplicate| duplicate.row);
        if let Some(cap) = settings.max_per_image {
            finder.cap_images(cap, &mut found.duplicates);
        }
        let stays: HashSet<u32> = finder.staying(&found.duplicates).collect();
        found.misses.retain(|miss| stays.contains(&miss.row) && stays.contains(&miss.other));
        finder.name_media_misses(&near_media, &mut found);
        Ok(found)
    })?
}

/// Groups of equal samples: the best stays, the rest are exact duplicates of it.
fn collapse_exact(
    samples: &Samples,
    settings: &Settings,
    interrupt: &Interrupt,
    duplicates: &mut Vec<Duplicate>,
) -> Result<Vec<u32>> {
    let policy = settings.policy;
    let rows = samples.rank.len() as u32;
    let mut keyed: Vec<(u128, u32, u32)> = (0..rows)
        .into_par_iter()
        .map_init(
            || Shingler::new(settings.shingle_words),
            |reader, row| {
                interrupt.check()?;
                let key = exact_key(samples, policy, reader, row);
                Ok((key, samples.rank[row as usize], row))
            },
        )
        .collect::<Result<_>>()?;
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
    survivors.sort_unstable();
    Ok(survivors)
}

/// Equal for samples that are equal in all the policy looks at.
fn exact_key(samples: &Samples, policy: Policy, reader: &mut Shingler, row: u32) -> u128 {
    let mut key = Vec::new();
    if policy.text_counts() {
        key.extend(reader.exact_key(samples.prompt(row)).to_le_bytes());
    }
    if policy.images_count() {
        key.extend(samples.media_of(row).iter().flat_map(|media| media.to_le_bytes()));
    }
    if key.is_empty() {
        key.extend(row.to_be_bytes()); // nothing to compare: equal to none
        key.push(0);
    }
    xxh3_128(&key)
}

struct Finder<'a> {
    samples: &'a Samples,
    pictures: &'a Pictures,
    settings: &'a Settings,
    components: &'a [u32],
}

impl Finder<'_> {
    fn remove_near(
        &self,
        survivors: &[u32],
        interrupt: &Interrupt,
        found: &mut Found,
    ) -> Result<()> {
        let bands = if self.settings.policy == Policy::Image { 1 } else { self.settings.bands };
        let keys = self.band_keys(survivors, bands, interrupt)?;
        let groups = components(survivors.len(), bands, |index, band| {
            let usable = self.settings.policy != Policy::Image
                || !self.samples.media_of(survivors[index]).is_empty();
            usable.then(|| keys[index * bands + band])
        });
        drop(keys);
        let walked: Vec<Found> = groups
            .par_iter()
            .map(|group| self.walk(group, survivors, interrupt))
            .collect::<Result<_>>()?;
        for part in walked {
            found.duplicates.extend(part.duplicates);
            found.misses.extend(part.misses);
            found.compared += part.compared;
        }
        let margin = |miss: &NearMiss| 1.0 - miss.jaccard.unwrap_or(0.0);
        found.misses.sort_by(|a, b| {
            margin(a).total_cmp(&margin(b)).then((a.row, a.other).cmp(&(b.row, b.other)))
        });
        found.misses.truncate(MISSES);
        Ok(())
    }

    /// `bands` keys a survivor: of its images, its text, or both, as the policy says.
    fn band_keys(
        &self,
        survivors: &[u32],
        bands: usize,
        interrupt: &Interrupt,
    ) -> Result<Vec<u64>> {
        let rows_per_band = self.settings.rows_per_band;
        let minhash = MinHasher::new(bands * rows_per_band);
        let keys: Vec<Vec<u64>> = survivors
            .par_chunks(1024)
            .map(|rows| {
                interrupt.check()?;
                let mut reader = Shingler::new(self.settings.shingle_words);
                let (mut hashes, mut signature) = (Vec::new(), Vec::new());
                let mut keys = Vec::with_capacity(rows.len() * bands);
                for &row in rows {
                    let images = self.image_key(row);
                    if self.settings.policy == Policy::Image {
                        keys.push(images);
                        continue;
                    }
                    reader.shingles(self.samples.prompt(row), &mut hashes);
                    minhash.sign(&hashes, &mut signature);
                    let band_values = signature.chunks_exact(rows_per_band).take(bands);
                    keys.extend(band_values.map(|values| {
                        values.iter().fold(images, |key, &value| {
                            (key ^ u64::from(value))
                                .wrapping_mul(0x9E37_79B9_7F4A_7C15)
                                .rotate_left(31)
                        })
                    }));
                }
                Ok(keys)
            })
            .collect::<Result<_>>()?;
        Ok(keys.concat())
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

    /// Step 3 for one component.
    fn walk(&self, group: &Component, survivors: &[u32], interrupt: &Interrupt) -> Result<Found> {
        let mut found = Found::default();
        let mut reader = Shingler::new(self.settings.shingle_words);
        let mut buckets: HashMap<u32, Vec<u32>> = HashMap::new();
        let mut kept_shingles: HashMap<u32, Box<[u64]>> = HashMap::new();
        let mut members: Vec<&[(u32, u32)]> = group.members.chunk_by(|a, b| a.0 == b.0).collect();
        let row_of = |run: &[(u32, u32)]| survivors[run[0].0 as usize];
        members.sort_unstable_by_key(|run| self.samples.rank[row_of(run) as usize]);
        for run in members {
            interrupt.check()?;
            let row = row_of(run);
            let mut candidates: Vec<u32> = run
                .iter()
                .filter_map(|(_, bucket)| buckets.get(bucket))
                .flat_map(|kept| kept.iter().take(LEADERS).copied())
                .collect();
            candidates.sort_unstable_by_key(|&kept| self.samples.rank[kept as usize]);
            candidates.dedup();
            let shingles = reader.shingle_set(self.samples.prompt(row));
            let near = candidates.into_iter().find_map(|kept| {
                found.compared += 1;
                self.compare(row, &shingles, kept, &kept_shingles, &mut found.misses)
            });
            if let Some(duplicate) = near {
                found.duplicates.push(duplicate);
                continue;
            }
            for (_, bucket) in run {
                buckets.entry(*bucket).or_default().push(row);
            }
            kept_shingles.insert(row, shingles);
        }
        Ok(found)
    }

    fn compare(
        &self,
        row: u32,
        shingles: &[u64],
        kept: u32,
        kept_shingles: &HashMap<u32, Box<[u64]>>,
        misses: &mut Vec<NearMiss>,
    ) -> Option<Duplicate> {
        let policy = self.settings.policy;
        let has_media = policy.images_count() && !self.samples.media_of(row).is_empty();
        let hamming = if policy.images_count() { Some(self.hamming(row, kept)?) } else { None };
        let hamming = hamming.filter(|_| has_media);
        let mut similarity = None;
        if policy.text_counts() {
            let exact = jaccard(shingles, kept_shingles.get(&kept)?);
            if exact < self.settings.text_threshold {
                if exact >= self.settings.text_threshold - MISS_MARGIN && misses.len() < MISSES {
                    misses.push(NearMiss { row, other: kept, jaccard: Some(exact), hamming });
                }
                return None;
            }
            similarity = Some(exact);
        }
        Some(Duplicate { row, kept, kind: Kind::Near, jaccard: similarity, hamming })
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

    /// Step 4. Images count as one if near to the first of their kind, so that no chain of small
    /// differences makes one image of many.
    fn cap_images(&self, cap: usize, duplicates: &mut Vec<Duplicate>) {
        let mut order: Vec<u32> = self.staying(duplicates).collect();
        order.sort_unstable_by_key(|&row| self.samples.rank[row as usize]);
        let mut leaders: HashMap<u64, Vec<(u32, usize)>> = HashMap::new();
        for row in order {
            if self.samples.media_of(row).is_empty() {
                continue;
            }
            let alike = leaders.entry(self.media_key(row)).or_default();
            let known = alike
                .iter_mut()
                .take(LEADERS)
                .find(|(leader, _)| self.hamming(row, *leader).is_some());
            match known {
                Some((_, count)) if *count < cap => *count += 1,
                Some((leader, _)) => duplicates.push(Duplicate {
                    row,
                    kept: *leader,
                    kind: Kind::MaxPerImage,
                    jaccard: None,
                    hamming: self.hamming(row, *leader),
                }),
                None => alike.push((row, 1)),
            }
        }
        duplicates.sort_unstable_by_key(|duplicate| duplicate.row);
    }

    /// Rows that are not among the duplicates (which ascend by row).
    fn staying(&self, duplicates: &[Duplicate]) -> impl Iterator<Item = u32> {
        let removed: Vec<u32> = duplicates.iter().map(|duplicate| duplicate.row).collect();
        (0..self.samples.rank.len() as u32).filter(move |row| removed.binary_search(row).is_err())
    }

    /// Pairs of images just beyond the radius, each by one sample that stays.
    fn name_media_misses(&self, near_media: &NearMedia, found: &mut Found) {
        let mut of_media: HashMap<u32, u32> = HashMap::new();
        for row in self.staying(&found.duplicates) {
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
