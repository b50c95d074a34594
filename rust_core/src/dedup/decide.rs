//! Which rows stay, one by one in keep order.
//!
//! A row is compared with the kept rows that it shares a bucket with: those with the nearest pictures
//! first, then in keep order. The first that it is a duplicate of removes it and is its evidence. If
//! its image has as many samples as may stay, it is dropped. Otherwise it is kept, and may remove
//! others.
//!
//! Two rows with short answers that differ ask the same only if they have the same words: another
//! answer is evidence that a difference, however small, is what is asked about.
//!
//! Two rows are duplicates if their hashes, their texts and, where pictures are judged, their pictures
//! agree, asked in this order: the last is by far the most work. Pictures of a block of rows are judged
//! together on all threads, ahead of the decisions that need them. What is judged ahead in vain, and
//! how rows are put into blocks, changes no decision.

use std::collections::{BTreeSet, HashMap};

use rayon::prelude::*;

use super::at_hand::{Text, TextsAtHand};
use super::bands::Buckets;
use super::crowded::crowded;
use super::fates::Fates;
use super::kept_in::{KeptIn, LEADERS};
use super::keys::Finder;
use super::measures::{TextMeasure, TextMeasures};
use super::text::jaccard;
use super::types::{Duplicate, Found, Kind, NearMiss, PictureJudge, PictureVerdict};
use crate::error::Result;
use crate::judge::text::same_question;
use crate::parallel::Interrupt;

/// Kept rows whose pictures are judged for one row at most: bounds the work among thousands of
/// pictures of one layout. The nearest hashes come first.
const JUDGED: usize = 24;
const MISS_MARGIN: f32 = 0.15;
/// Near misses remembered on the way.
const MISSES_SEEN: usize = 100_000;
/// Verdicts about pictures that are remembered.
const VERDICTS: usize = 1 << 20;
/// Rows whose texts are read, and whose pictures are judged, ahead of the decisions.
const BLOCK: usize = 4096;

/// What has been kept so far, and where it is met.
pub(super) struct Decisions<'a> {
    finder: &'a Finder<'a>,
    judge: &'a dyn PictureJudge,
    verdicts: HashMap<(u32, u32), PictureVerdict>,
    kept_in: KeptIn,
    texts: TextsAtHand<'a>,
    measures: TextMeasures,
    /// A bit for every row whose text was compared and is of a language that there are no word lists for.
    unlisted: Vec<u64>,
    /// Of images with more samples than may stay, by the components of their media: the first sample
    /// that stays of each, and how many do.
    firsts: HashMap<u64, Vec<(u32, usize)>>,
    fates: Fates<'a>,
    found: Found,
}

/// A kept row that a row may be a duplicate of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    /// Of their media; none where images have no say.
    hamming: Option<u32>,
    rank: u32,
    row: u32,
}

/// What texts say of two rows.
enum Texts {
    Near(Option<f32>, Option<Box<str>>),
    /// The Jaccard index is a little below the threshold.
    Missed(f32),
    Apart,
}

impl<'a> Decisions<'a> {
    /// `sizes` are those of the buckets, `measures` those of an earlier run, `memory` bytes there are for
    /// texts.
    pub(super) fn new(
        finder: &'a Finder<'a>,
        judge: &'a dyn PictureJudge,
        sizes: &[u32],
        measures: TextMeasures,
        memory: u64,
    ) -> Self {
        Self {
            finder,
            judge,
            verdicts: HashMap::new(),
            kept_in: KeptIn::new(sizes),
            texts: TextsAtHand::new(finder, memory),
            measures,
            unlisted: vec![0; finder.samples.rank.len().div_ceil(64)],
            firsts: HashMap::new(),
            fates: Fates::new(finder.samples),
            found: Found::default(),
        }
    }

    /// Decide about all rows of `order`.
    pub(super) fn run(
        mut self,
        order: &[u32],
        buckets: &Buckets,
        interrupt: &Interrupt,
    ) -> Result<Found> {
        if let Some(cap) = self.finder.settings.max_per_image {
            self.firsts = crowded(self.finder, order, cap, interrupt)?;
        }
        let mut members = buckets.members();
        for (number, rows) in order.chunks(BLOCK).enumerate() {
            interrupt.check()?;
            let start = number * BLOCK;
            let members = members.before((start + rows.len()) as u32)?;
            let buckets: Vec<u32> = members.iter().map(|&[_, bucket]| bucket).collect();
            let mut at = 0;
            let block: Vec<(u32, &[u32])> = rows
                .iter()
                .zip(start as u32..)
                .map(|(&row, place)| {
                    let first = at;
                    at += members[first..].iter().take_while(|member| member[0] == place).count();
                    (row, &buckets[first..at])
                })
                .collect();
            self.read_ahead(&block);
            self.judge_ahead(&block)?;
            for (row, buckets) in block {
                interrupt.check()?;
                self.decide(row, buckets)?;
            }
        }
        let unlisted = self.unlisted.iter().map(|bits| u64::from(bits.count_ones()));
        self.found.without_word_lists = unlisted.sum();
        self.found.measures = self.measures.into_used();
        Ok(self.found)
    }

    /// Read the texts of those rows of a block that meet a kept row, or one before them in the block,
    /// and of the first that each meets, unless what they are to each other is known.
    fn read_ahead(&mut self, block: &[(u32, &[u32])]) {
        let Finder { samples, settings, .. } = *self.finder;
        if !settings.policy.text_counts() {
            return;
        }
        let mut first_in: HashMap<u32, u32> = HashMap::new();
        let mut rows: Vec<u32> = Vec::new();
        for &(row, buckets) in block {
            let met = buckets.iter().map(|&bucket| match self.kept_in.of(bucket).first() {
                Some(&kept) => kept,
                None => *first_in.entry(bucket).or_insert(row),
            });
            let others = met.filter(|&other| other != row);
            let first = others.min_by_key(|&other| samples.rank[other as usize]);
            if let Some(first) = first.filter(|&first| !self.is_measured(row, first)) {
                rows.extend([row, first]);
            }
        }
        rows.sort_unstable();
        rows.dedup();
        self.texts.keep_all(rows);
    }

    fn decide(&mut self, row: u32, buckets: &[u32]) -> Result<()> {
        let removal = match self.near(row, buckets)? {
            None => self.beyond_the_cap(row)?,
            near => near,
        };
        if let Some(duplicate) = removal {
            if duplicate.kind != Kind::MaxPerImage {
                self.fates.remove(row, duplicate.kept);
            }
            self.found.duplicates.push(duplicate);
            return Ok(());
        }
        for &bucket in buckets {
            self.kept_in.push(bucket, row);
        }
        Ok(())
    }

    /// The first of the candidates that a row is a duplicate of.
    fn near(&mut self, row: u32, buckets: &[u32]) -> Result<Option<Duplicate>> {
        let images = self.finder.settings.policy.images_count();
        let candidates = self.candidates(row, self.met(buckets), images);
        let (mut judged, mut passed_over) = (0, false);
        for (place, candidate) in candidates.iter().enumerate() {
            let kept = candidate.row;
            let compares_pictures = !self.pairs_to_judge(row, kept).is_empty();
            if compares_pictures && judged == JUDGED {
                passed_over = true; // those of the same pictures may come later
                continue;
            }
            self.found.compared += 1;
            let (jaccard, differences) = match self.kept_texts(row, kept) {
                Texts::Near(jaccard, differences) => (jaccard, differences),
                Texts::Missed(jaccard) => {
                    self.remember_miss(row, candidate, Some(jaccard));
                    continue;
                }
                Texts::Apart => continue,
            };
            let conflict = self.finder.answers_differ(row, kept);
            if conflict && !self.finder.samples.same_wording(row, kept) {
                self.remember_miss(row, candidate, jaccard);
                continue;
            }
            if compares_pictures {
                judged += 1;
                self.judge_with(row, &candidates[place..])?;
                if !self.pictures_agree(row, kept, conflict) {
                    self.remember_miss(row, candidate, jaccard);
                    continue;
                }
            }
            let differences = differences.map(|text| {
                self.found.differences.push(text);
                self.found.differences.len() as u32 - 1
            });
            let Candidate { hamming, .. } = *candidate;
            let alike = jaccard.is_none_or(|j| j >= 1.0) && hamming.is_none_or(|h| h == 0);
            let equal = alike && self.finder.equal(row, kept);
            let kind = if equal { Kind::Exact } else { Kind::Near };
            return Ok(Some(Duplicate {
                row,
                kept,
                kind,
                jaccard,
                hamming,
                conflict,
                differences,
            }));
        }
        self.found.not_all_judged += u64::from(passed_over);
        Ok(None)
    }

    /// The first kept rows of each bucket.
    fn met<'b>(&'b self, buckets: &'b [u32]) -> impl Iterator<Item = u32> + 'b {
        buckets.iter().flat_map(|&bucket| self.kept_in.of(bucket).iter().copied())
    }

    /// Those of some rows whose pictures are near, if images count, in the order in which they are
    /// compared.
    fn candidates(
        &self,
        row: u32,
        rows: impl Iterator<Item = u32>,
        images: bool,
    ) -> Vec<Candidate> {
        let Finder { samples, settings, .. } = *self.finder;
        let mut met: Vec<u32> = rows.collect();
        met.sort_unstable();
        met.dedup();
        let has_pictures = images && !samples.media_of(row).is_empty();
        let candidate = |other: u32| {
            let distance = if images { self.finder.hamming(row, other)? } else { 0 };
            let hamming = has_pictures.then_some(distance);
            let rank = samples.rank[other as usize];
            let apart = self.fates.are_kept_apart(row, other);
            (!apart).then_some(Candidate { hamming, rank, row: other })
        };
        let mut candidates: Vec<Candidate> = met.into_iter().filter_map(candidate).collect();
        if settings.judged {
            candidates.sort_unstable();
        } else {
            candidates.sort_unstable_by_key(|candidate| candidate.rank);
        }
        candidates
    }

    /// What the texts say, which are not kept at hand because of it.
    fn texts(&self, row: u32, kept: u32) -> Texts {
        if !self.finder.settings.policy.text_counts() {
            return Texts::Near(None, None);
        }
        let pair = self.finder.text_pair(row, kept);
        if let Some(known) = pair.and_then(|pair| self.measures.get(pair)) {
            return self.weigh(known);
        }
        self.weigh(&self.measure(&self.texts.read(row), &self.texts.read(kept)))
    }

    /// What the texts say, which are kept at hand.
    fn kept_texts(&mut self, row: u32, kept: u32) -> Texts {
        if !self.finder.settings.policy.text_counts() {
            return Texts::Near(None, None);
        }
        let pair = self.finder.text_pair(row, kept);
        let measure = match pair.and_then(|pair| self.measures.take(pair)) {
            Some(known) => known.clone(),
            None => {
                let [a, b] = [row, kept].map(|row| self.texts.keep(row));
                let measure = self.measure(&a, &b);
                if let Some(pair) = pair {
                    self.measures.insert(pair, &measure);
                }
                measure
            }
        };
        for (row, is_unlisted) in [row, kept].into_iter().zip(measure.unlisted) {
            self.unlisted[row as usize / 64] |= u64::from(is_unlisted) << (row % 64);
        }
        self.weigh(&measure)
    }

    fn is_measured(&self, row: u32, kept: u32) -> bool {
        self.finder.text_pair(row, kept).is_some_and(|pair| self.measures.get(pair).is_some())
    }

    fn measure(&self, a: &Text, b: &Text) -> TextMeasure {
        let jaccard = jaccard(&a.shingles, &b.shingles);
        let unlisted =
            [a, b].map(|text| text.prepared.as_ref().is_some_and(|p| !p.uses_word_lists()));
        let prepared = a.prepared.as_ref().zip(b.prepared.as_ref());
        let judged = self.finder.texts.as_ref().zip(prepared);
        let judged = judged.filter(|(texts, (a, b))| !texts.are_documents(a, b));
        let verdict = judged.map(|(_, (a, b))| same_question(a, b));
        let told = verdict.as_ref().filter(|found| found.same && !found.differences.is_empty());
        let differences = told.map(|found| found.to_string().into());
        TextMeasure { jaccard, same: verdict.map(|found| found.same), unlisted, differences }
    }

    fn weigh(&self, measure: &TextMeasure) -> Texts {
        let TextMeasure { jaccard, same, ref differences, .. } = *measure;
        let threshold = self.finder.settings.text_threshold;
        if same.unwrap_or(jaccard >= threshold) {
            Texts::Near(Some(jaccard), differences.clone())
        } else if jaccard >= threshold - MISS_MARGIN {
            Texts::Missed(jaccard)
        } else {
            Texts::Apart
        }
    }

    fn remember_miss(&mut self, row: u32, candidate: &Candidate, jaccard: Option<f32>) {
        if self.found.misses.len() < MISSES_SEEN {
            let Candidate { hamming, row: other, .. } = *candidate;
            self.found.misses.push(NearMiss { row, other, jaccard, hamming });
        }
    }

    /// The pairs of media that decide whether the pictures of two rows agree; none where they are
    /// equal, or where the hashes decide.
    fn pairs_to_judge(&self, row: u32, kept: u32) -> Vec<(u32, u32)> {
        let Finder { samples, settings, .. } = *self.finder;
        if !settings.judged || !settings.policy.images_count() {
            return Vec::new();
        }
        let pairs = samples.media_of(row).iter().zip(samples.media_of(kept));
        pairs.filter(|(a, b)| a != b).map(|(&a, &b)| (a.min(b), a.max(b))).collect()
    }

    /// Whether all pairs of media that were judged are copies; equal ones if answers contradict.
    fn pictures_agree(&self, row: u32, kept: u32, conflict: bool) -> bool {
        self.pairs_to_judge(row, kept).iter().all(|pair| {
            self.verdicts.get(pair).is_some_and(|found| found.equal || found.copy && !conflict)
        })
    }

    /// Judge the pictures of a row and the first of these candidates, if they are not yet; and, as
    /// look-alikes come in numbers, of the next ones with it.
    fn judge_with(&mut self, row: u32, candidates: &[Candidate]) -> Result<()> {
        let Some(first) = candidates.first() else { return Ok(()) };
        if self.unknown(row, first.row).is_empty() {
            return Ok(());
        }
        let near =
            candidates.iter().filter(|one| matches!(self.texts(row, one.row), Texts::Near(..)));
        let wanted = near.take(JUDGED).flat_map(|one| self.unknown(row, one.row)).collect();
        self.judge_all(wanted)
    }

    /// Judge the pictures of each row of a block with those of the first candidate, among the rows
    /// that are kept and those before it in the block.
    fn judge_ahead(&mut self, block: &[(u32, &[u32])]) -> Result<()> {
        let settings = self.finder.settings;
        if !settings.judged || !settings.policy.images_count() {
            return Ok(());
        }
        if self.verdicts.len() > VERDICTS {
            self.verdicts.clear();
        }
        // Rows of a block by bucket, and how many of them come before each row.
        let mut before: HashMap<u32, Vec<u32>> = HashMap::new();
        let mut met: Vec<(u32, &[u32], Vec<usize>)> = Vec::new();
        for &(row, buckets) in block {
            if buckets.is_empty() || self.finder.samples.media_of(row).is_empty() {
                continue;
            }
            let count = |&bucket: &u32| {
                let others = before.entry(bucket).or_default();
                others.push(row);
                (others.len() - 1).min(LEADERS)
            };
            let counts = buckets.iter().map(count).collect();
            met.push((row, buckets, counts));
        }
        let wanted: Vec<Vec<(u32, u32)>> = met
            .into_par_iter()
            .map(|(row, buckets, counts)| {
                let earlier = buckets.iter().zip(counts).flat_map(|(bucket, count)| {
                    before.get(bucket).map_or(&[][..], |others| &others[..count])
                });
                let rows = self.met(buckets).chain(earlier.copied());
                let candidates = self.candidates(row, rows, true);
                let near = |one: &&Candidate| matches!(self.texts(row, one.row), Texts::Near(..));
                let first = candidates.iter().find(near);
                first.map_or_else(Vec::new, |first| self.unknown(row, first.row))
            })
            .collect();
        self.judge_all(wanted.into_iter().flatten().collect())
    }

    fn unknown(&self, row: u32, kept: u32) -> Vec<(u32, u32)> {
        let mut pairs = self.pairs_to_judge(row, kept);
        pairs.retain(|pair| !self.verdicts.contains_key(pair));
        pairs
    }

    fn judge_all(&mut self, pairs: BTreeSet<(u32, u32)>) -> Result<()> {
        if pairs.is_empty() {
            return Ok(());
        }
        let pairs: Vec<(u32, u32)> = pairs.into_iter().collect();
        let verdicts = self.judge.judge(&pairs)?;
        self.verdicts.extend(pairs.into_iter().zip(verdicts));
        Ok(())
    }

    /// Counts a sample on its image, or drops it if as many as may stay are there.
    ///
    /// Images count as one if near to the first of their kind, so that no chain of small differences
    /// makes one image of many.
    fn beyond_the_cap(&mut self, row: u32) -> Result<Option<Duplicate>> {
        let finder = self.finder;
        let Some(cap) = finder.settings.max_per_image else { return Ok(None) };
        if self.firsts.is_empty() || finder.samples.media_of(row).is_empty() {
            return Ok(None);
        }
        let key = finder.media_key(row);
        let Some(alike) = self.firsts.get(&key) else { return Ok(None) };
        let firsts = alike.iter().take(LEADERS).map(|&(first, _)| first);
        let mut candidates = self.candidates(row, firsts, true);
        candidates.truncate(JUDGED);
        let unknown = candidates.iter().flat_map(|one| self.unknown(row, one.row)).collect();
        self.judge_all(unknown)?;
        let same = candidates.iter().find(|one| self.pictures_agree(row, one.row, false));
        let alike = self.firsts.entry(key).or_default();
        let Some(&Candidate { row: kept, hamming, .. }) = same else {
            if alike.len() < LEADERS {
                alike.push((row, 1)); // later ones would never be looked at
            }
            return Ok(None);
        };
        let Some((_, count)) = alike.iter_mut().find(|(first, _)| *first == kept) else {
            return Ok(None);
        };
        if *count < cap {
            *count += 1;
            return Ok(None);
        }
        let kind = Kind::MaxPerImage;
        let (jaccard, conflict, differences) = (None, false, None);
        Ok(Some(Duplicate { row, kept, kind, jaccard, hamming, conflict, differences }))
    }
}
