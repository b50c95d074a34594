//! Which shingles are common in a corpus, and which words that no list has are its own.
//!
//! A shingle of many texts is part of a template and says little of a question: it proposes nothing.
//! A word that several texts have is no slip of the fingers, though no word list has it.
//!
//! Of many texts a sample is counted: every 2^k-th by the hash of the text, so that the result depends
//! on the texts alone, not on their order. Equal texts count once.

use arrow_array::{Array, LargeStringArray};
use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::text::Shingler;
use crate::error::Result;
use crate::judge::text::Lexicon;
use crate::judge::text::lexicon::HashKeyed;
use crate::parallel::Interrupt;

/// Texts up to which all are counted; of more, at least half as many.
const SAMPLE: usize = 1 << 14;
/// Of the texts at least one in 2^6 is counted.
const LARGEST_SHIFT: u32 = 6;
/// Texts of the sample in which an unlisted word must be to count as known.
const KNOWN_FROM: u32 = 3;

/// Numbers of texts by the hash of a common shingle or of a word that no list has.
#[derive(Debug, Clone, Default)]
pub struct Frequencies {
    counts: HashKeyed<u32>,
}

impl Frequencies {
    /// Count the shingles of `width` tokens; those of more than `cap` texts are common.
    pub fn count(
        texts: &LargeStringArray,
        width: usize,
        cap: usize,
        lexicon: &Lexicon,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let shift = (texts.len() / SAMPLE).checked_ilog2().map_or(0, |log| log + 1);
        let shift = shift.min(LARGEST_SHIFT);
        let rows: Vec<usize> = (0..texts.len()).collect();
        let parts: Vec<Vec<(u128, Vec<u64>, Vec<u64>)>> = rows
            .par_chunks(4096)
            .map(|rows| {
                interrupt.check()?;
                let mut reader = Shingler::new(width);
                let sampled = |row: &&usize| {
                    shift == 0 || xxh3_64(texts.value(**row).as_bytes()) >> (64 - shift) == 0
                };
                Ok(rows
                    .iter()
                    .filter(sampled)
                    .map(|&row| read(&mut reader, texts.value(row), lexicon))
                    .collect())
            })
            .collect::<Result<_>>()?;
        let mut sample: Vec<(u128, Vec<u64>, Vec<u64>)> = parts.into_iter().flatten().collect();
        sample.par_sort_unstable_by_key(|(exact, ..)| *exact);
        sample.dedup_by_key(|(exact, ..)| *exact);
        let shingles: Vec<u64> =
            sample.iter().flat_map(|(_, shingles, _)| shingles).copied().collect();
        let words: Vec<u64> = sample.iter().flat_map(|(.., words)| words).copied().collect();
        let common_from = (cap >> shift) as u32 + 1;
        let mut counts = HashKeyed::default();
        add_frequent(shingles, common_from, shift, &mut counts);
        add_frequent(words, KNOWN_FROM, shift, &mut counts);
        Ok(Self { counts })
    }

    /// The table as two columns of one length, ascending by hash.
    pub fn to_columns(&self) -> (Vec<u64>, Vec<u32>) {
        let mut rows: Vec<(u64, u32)> =
            self.counts.iter().map(|(&hash, &count)| (hash, count)).collect();
        rows.sort_unstable();
        rows.into_iter().unzip()
    }

    /// The table of [`Self::to_columns`].
    pub fn from_columns(hashes: &[u64], counts: &[u32]) -> Self {
        Self { counts: hashes.iter().copied().zip(counts.iter().copied()).collect() }
    }

    /// Whether a shingle is common.
    pub fn is_common(&self, shingle: u64) -> bool {
        self.counts.contains_key(&shingle)
    }

    /// Whether a word that no list has is one of the corpus.
    pub fn is_known_word(&self, word: u64) -> bool {
        self.counts.contains_key(&word_key(word))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    /// Whether nothing is common.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }
}

/// The exact key of a text, and the sets of its shingles and of its unlisted words.
fn read(reader: &mut Shingler, text: &str, lexicon: &Lexicon) -> (u128, Vec<u64>, Vec<u64>) {
    let mut shingles = Vec::new();
    let exact = reader.read(text, &mut shingles);
    let unlisted = reader.tokens().iter().filter(|word| lexicon.get(word.hash).is_none());
    let mut words: Vec<u64> = unlisted.map(|word| word_key(word.hash)).collect();
    for set in [&mut shingles, &mut words] {
        set.sort_unstable();
        set.dedup();
    }
    (exact, shingles, words)
}

/// Words and shingles share a table.
fn word_key(word: u64) -> u64 {
    !word
}

/// Hashes that occur at least `from` times, with the number of texts that this stands for.
fn add_frequent(mut hashes: Vec<u64>, from: u32, shift: u32, counts: &mut HashKeyed<u32>) {
    hashes.par_sort_unstable();
    for run in hashes.chunk_by(|a, b| a == b) {
        let count = run.len() as u32;
        if count >= from {
            counts.insert(run[0], count.saturating_mul(1 << shift));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_common_and_its_questions_are_not() {
        let texts: Vec<String> = (0..50)
            .map(|n| format!("tell me about the softmaxx number {n} and its square {}", n * n + 1))
            .collect();
        let texts = LargeStringArray::from(texts);
        let count = |cap| {
            let lexicon = Lexicon::english();
            Frequencies::count(&texts, 3, cap, lexicon, &Interrupt::default())
                .expect("no interrupt")
        };
        let frequencies = count(20);
        let shingle = |text: &str| Shingler::new(3).shingle_set(text)[0];
        assert!(frequencies.is_common(shingle("tell me about")));
        assert!(!frequencies.is_common(shingle("number 7 and")));
        assert!(frequencies.is_known_word(super::super::text::hash_word("softmaxx")));
        assert!(!count(50).is_common(shingle("tell me about")));
        let (hashes, counts) = frequencies.to_columns();
        assert_eq!(Frequencies::from_columns(&hashes, &counts).to_columns(), (hashes, counts));
    }
}
