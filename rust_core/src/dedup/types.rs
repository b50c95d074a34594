//! What dedup is given, and what it finds.

use arrow_buffer::{OffsetBuffer, ScalarBuffer};
use xxhash_rust::xxh3::Xxh3;

use super::answers::ShortAnswer;
use super::measures::TextMeasure;
use super::pictures::Closeness;
use super::texts::Texts;
use crate::access::{Access, advise};
use crate::error::Result;
use crate::judge::text::{Lexicon, Rule};

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
    pub(super) fn text_counts(self) -> bool {
        self != Self::Image
    }

    pub(super) fn images_count(self) -> bool {
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
    /// Whether texts and pictures that are proposed are compared closely, and short answers count;
    /// otherwise the thresholds decide.
    pub judged: bool,
    /// What decides about texts where they are judged.
    pub text_rule: Rule,
    /// Shingles of more texts than this propose nothing where texts are judged: they are of a
    /// template.
    pub common_from: usize,
}

impl Settings {
    /// Whether texts are compared closely, so that it counts what is common in them.
    pub fn judges_texts(&self) -> bool {
        self.judged && matches!(self.policy, Policy::Joint | Policy::Text)
    }
}

/// The samples: text, media, and how much each deserves to be kept.
///
/// The columns are those that were handed in, not copies: they may be files that are mapped.
#[derive(Debug)]
pub struct Samples {
    /// One text a row.
    pub prompts: Texts,
    /// `media[media_offsets[row]..media_offsets[row + 1]]` are the media of a row.
    pub media_offsets: OffsetBuffer<i64>,
    /// Numbers of distinct media.
    pub media: ScalarBuffer<u32>,
    /// Keep order: 0 is kept before 1; no two are equal, but `u32::MAX` for rows that take no part.
    pub rank: ScalarBuffer<u32>,
    /// One answer a row, or null.
    pub answers: Texts,
    /// Pairs of which a person said that they are no duplicates, each in both orders, ascending.
    pub overrides: Vec<(u32, u32)>,
}

impl Samples {
    pub(super) fn media_of(&self, row: u32) -> &[u32] {
        let row = row as usize;
        &self.media[self.media_offsets[row] as usize..self.media_offsets[row + 1] as usize]
    }

    /// Tell the system how texts and media will be read.
    pub(super) fn advise(&self, access: Access) {
        self.prompts.advise(access);
        self.answers.advise(access);
        advise(bytemuck::cast_slice(&self.media), access);
        advise(bytemuck::cast_slice(&self.media_offsets), access);
    }

    pub(super) fn prompt(&self, row: u32) -> &str {
        self.prompts.value(row as usize)
    }

    /// What the answer states, if it is short enough to be a fact that another answer contradicts.
    fn short_answer(&self, row: u32) -> Option<ShortAnswer> {
        let answer = self.answers.get(row as usize)?;
        ShortAnswer::read(answer, Lexicon::english())
    }

    /// Equal for equal short answers to the same wording; 0 for no answer or a longer one.
    ///
    /// The wording counts as it does where short answers differ: of two rows with one answer, only the
    /// one that has the words of a third with another answer goes because of that.
    pub(super) fn short_answer_key(&self, row: u32) -> u128 {
        let Some(answer) = self.short_answer(row) else { return 0 };
        let mut key = Xxh3::new();
        answer.add_to(&mut key);
        for word in self.prompt(row).split_whitespace() {
            key.update(b"\0");
            key.update(word.as_bytes());
        }
        key.digest128()
    }

    /// Whether both have short answers, and these contradict each other.
    pub(super) fn answers_differ(&self, a: u32, b: u32) -> bool {
        let both = self.short_answer(a).zip(self.short_answer(b));
        both.is_some_and(|(a, b)| a.contradicts(&b))
    }

    /// Whether two prompts are equal but for white space; case counts.
    pub(super) fn same_wording(&self, a: u32, b: u32) -> bool {
        self.prompt(a).split_whitespace().eq(self.prompt(b).split_whitespace())
    }

    /// Those that a person said this one is no duplicate of.
    pub(super) fn kept_apart_from(&self, row: u32) -> impl Iterator<Item = u32> + '_ {
        let start = self.overrides.partition_point(|&(found, _)| found < row);
        self.overrides[start..].iter().take_while(move |pair| pair.0 == row).map(|pair| pair.1)
    }

    /// Whether a person said of any other that this one is no duplicate of it.
    pub(super) fn has_override(&self, row: u32) -> bool {
        self.kept_apart_from(row).next().is_some()
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
    /// Whether both have short answers that differ: one of them is wrong.
    pub conflict: bool,
    /// Which of [`Found::differences`] says what differs in their texts; none of texts that were not
    /// judged, or are equal.
    pub differences: Option<u32>,
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
    /// What differs in the texts of rows that were removed and of those that stay, and why it makes no
    /// difference.
    pub differences: Vec<Box<str>>,
    /// What differs in the texts of each of the misses, at least one of which makes one.
    pub missed_differences: Vec<Option<String>>,
    /// Of the texts that were compared, those of a language that there are no word lists for.
    pub without_word_lists: u64,
    /// What was measured of texts, now or by an earlier run.
    pub measures: Vec<(u128, TextMeasure)>,
    /// Pairs that were measured.
    pub compared: u64,
    /// Rows that stay although not every near picture was compared with theirs, as there are too
    /// many.
    pub not_all_judged: u64,
}

/// What a close comparison of two media found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PictureVerdict {
    /// Whether one is a copy of the other: saved again, resized, brightened, or the like.
    pub copy: bool,
    /// Whether they are equal pixel for pixel.
    pub equal: bool,
}

/// Compares media closely. The same pair has the same verdict, whenever it is asked.
pub trait PictureJudge: Sync {
    /// A verdict for each pair of media, the smaller number first.
    fn judge(&self, pairs: &[(u32, u32)]) -> Result<Vec<PictureVerdict>>;
}
