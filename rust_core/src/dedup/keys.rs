//! By which keys samples meet: equal ones for samples that are equal, and for those that may be near.

use std::sync::OnceLock;

use rayon::prelude::*;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::bands::KeyParts;
use super::frequencies::Frequencies;
use super::gathered::Gathered;
use super::measures::pair;
use super::partitions::{Partitions, Room};
use super::pictures::Pictures;
use super::propose::{KeyReader, Proposer};
use super::text::Shingler;
use super::text_keys::TextKeys;
use super::types::{Policy, Samples, Settings};
use crate::error::Result;
use crate::judge::text::TextJudge;
use crate::parallel::Interrupt;

/// Rows whose texts are read between two checks for an interrupt.
const CHUNK: usize = 2048;

/// What is computed of every sample, by reading its text once.
pub(super) struct Keys {
    /// `[key, row]`: equal for samples that are equal in all the policy looks at, but for answers.
    pub(super) exact: Partitions<5>,
    /// Equal in one for samples that may be near.
    pub(super) near: KeyParts,
}

/// The samples with all that decides about them.
pub(super) struct Finder<'a> {
    pub(super) samples: &'a Samples,
    pub(super) pictures: &'a Pictures,
    pub(super) settings: &'a Settings,
    /// Of every row, where they were made before.
    pub(super) text_keys: Option<&'a TextKeys>,
    pub(super) components: &'a [u32],
    /// None where texts have no say, or their shingles decide.
    pub(super) texts: Option<TextJudge<'a>>,
    /// Set once it is known which texts will be compared.
    pub(super) gathered: OnceLock<Gathered>,
}

impl Finder<'_> {
    /// The keys of every row.
    pub(super) fn keys(&self, room: Room<'_>, interrupt: &Interrupt) -> Result<Keys> {
        let nothing = Frequencies::default();
        let frequencies = self.texts.as_ref().map_or(&nothing, |texts| texts.frequencies);
        let proposer = Proposer::of(self.settings, frequencies);
        let rows = self.samples.rank.len();
        let keys = Keys {
            exact: Partitions::new(rows, u32::BITS, room.share(25))?,
            near: Partitions::new(rows * (self.settings.bands + 2), u32::BITS, room.share(75))?,
        };
        let chunks = (0..rows.div_ceil(CHUNK)).into_par_iter();
        chunks.try_for_each_init(
            || proposer.reader(),
            |reader, chunk| {
                interrupt.check()?;
                let (mut exact, mut near, mut of_row) = (Vec::new(), Vec::new(), Vec::new());
                for row in (chunk * CHUNK..rows.min((chunk + 1) * CHUNK)).map(|row| row as u32) {
                    of_row.clear();
                    let key = self.read_keys(row, reader, &mut of_row);
                    let words = [96, 64, 32, 0].map(|shift| (key >> shift) as u32);
                    exact.push([words[0], words[1], words[2], words[3], row]);
                    near.extend(of_row.iter().map(|key| [(key >> 32) as u32, *key as u32, row]));
                }
                keys.exact.push(&exact)?;
                keys.near.push(&near)
            },
        )?;
        Ok(keys)
    }

    /// The key of what a row is, and those by which it meets others.
    fn read_keys(&self, row: u32, reader: &mut KeyReader<'_>, near: &mut Vec<u64>) -> u128 {
        let policy = self.settings.policy;
        let mut text = None;
        if !policy.text_counts() {
            // A sample without images meets none.
            if !self.samples.media_of(row).is_empty() {
                near.push(self.media_key(row));
            }
        } else if self.may_be_near() {
            text = Some(match self.text_keys {
                Some(known) => {
                    let known = known.of(row);
                    near.extend_from_slice(known.near);
                    known.exact
                }
                None => reader.keys(self.samples.prompt(row), near),
            });
            if policy.images_count() {
                let images = self.media_key(row);
                for key in near {
                    *key = (*key ^ images).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31);
                }
            }
        } else {
            text = Some(reader.exact(self.samples.prompt(row)));
        }
        self.content_key(row, text)
    }

    /// Of rows that are equal otherwise, it differs for other short answers, or for one in other words:
    /// these may have different fates.
    pub(super) fn answer_key(&self, row: u32) -> u128 {
        let Settings { judged, policy, .. } = *self.settings;
        let answers_count = policy.text_counts() && self.may_be_near();
        if judged && answers_count { self.samples.short_answer_key(row) } else { 0 }
    }

    fn content_key(&self, row: u32, text: Option<u128>) -> u128 {
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

    /// Equal for samples whose images may be near: of the components of its media, in order.
    pub(super) fn media_key(&self, row: u32) -> u64 {
        let media = self.samples.media_of(row).iter();
        let key: Vec<u8> = media.flat_map(|&media| self.component(media).to_le_bytes()).collect();
        xxh3_64(&key)
    }

    fn component(&self, media: u32) -> u32 {
        self.components.get(media as usize).copied().unwrap_or(media)
    }

    /// Hamming distance of the media of two samples if each is near its counterpart, the largest;
    /// where near images are not enough for the policy, each has to equal its counterpart.
    pub(super) fn hamming(&self, a: u32, b: u32) -> Option<u32> {
        let (a, b) = (self.samples.media_of(a), self.samples.media_of(b));
        if !matches!(self.settings.policy, Policy::Joint | Policy::Image) {
            return (a == b).then_some(0);
        }
        if a.len() != b.len() {
            return None;
        }
        let mut farthest = 0;
        for (&a, &b) in a.iter().zip(b) {
            farthest = farthest.max(self.pictures.near(a, b, self.settings.closeness)?);
        }
        Some(farthest)
    }

    /// What the texts of two rows are known by to later runs, where their keys are.
    pub(super) fn text_pair(&self, row: u32, kept: u32) -> Option<u128> {
        self.text_keys.map(|keys| pair(keys.of(row).content, keys.of(kept).content))
    }

    /// The text of a row.
    pub(super) fn prompt(&self, row: u32) -> &str {
        let gathered = self.gathered.get().and_then(|gathered| gathered.text(row));
        gathered.unwrap_or_else(|| self.samples.prompt(row))
    }

    /// Whether samples that are not equal may be duplicates.
    pub(super) fn may_be_near(&self) -> bool {
        self.settings.policy != Policy::Exact
    }

    /// Whether two samples are equal in all that the policy looks at.
    pub(super) fn equal(&self, a: u32, b: u32) -> bool {
        let (policy, samples) = (self.settings.policy, self.samples);
        let media = !policy.images_count() || samples.media_of(a) == samples.media_of(b);
        let text = |row: u32| match self.text_keys {
            Some(keys) => keys.of(row).exact,
            None => Shingler::new(self.settings.shingle_words)
                .read(samples.prompt(row), &mut Vec::new()),
        };
        media && (!policy.text_counts() || text(a) == text(b))
    }

    /// Whether two samples have short answers of which one is wrong.
    pub(super) fn answers_differ(&self, a: u32, b: u32) -> bool {
        let Settings { judged, policy, .. } = *self.settings;
        judged && policy.text_counts() && self.samples.answers_differ(a, b)
    }
}
