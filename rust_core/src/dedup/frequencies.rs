//! Which shingles are common in a corpus, and which words that no list has are its own.
//!
//! A shingle of many texts is part of a template and says little of a question: it proposes nothing.
//! A word that several texts have is no slip of the fingers, though no word list has it.
//!
//! Of many texts a sample is counted: one in 2^k, those whose hash begins with k zeros, so that the
//! result depends on the texts alone, not on their order. Equal texts count once.

use arrow_array::{Array, LargeStringArray};
use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::text::Shingler;
use crate::error::Result;
use crate::judge::text::lexicon::{HashKeyed, Lexicon};
use crate::parallel::Interrupt;

/// Texts up to which the shingles of all are counted; of more, at least half as many.
const SHINGLE_SAMPLE: usize = 1 << 10;
/// The same for words.
const WORD_SAMPLE: usize = 1 << 12;
/// Of the texts at least one in 2^6 is counted.
const LARGEST_SHIFT: u32 = 6;
/// Texts of the sample in which an unlisted word must be to count as known.
const KNOWN_FROM: u32 = 3;

/// Numbers of texts by the hash of a common shingle or of a word that no list has.
#[derive(Debug, Clone, Default)]
pub struct Frequencies {
    shingles: HashKeyed<u32>,
    words: HashKeyed<u32>,
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
        let [shingle_shift, word_shift] = [SHINGLE_SAMPLE, WORD_SAMPLE].map(|sample| {
            let shift = (texts.len() / sample).checked_ilog2().map_or(0, |log| log + 1);
            shift.min(LARGEST_SHIFT)
        });
        // No shingle is in more texts than there are.
        let shingles_count = texts.len() > cap;
        let rows: Vec<usize> = (0..texts.len()).collect();
        let parts: Vec<Vec<Text>> = rows
            .par_chunks(4096)
            .map(|rows| {
                interrupt.check()?;
                let mut reader = Shingler::new(width);
                let read_row = |&row: &usize| {
                    let text = texts.value(row);
                    let zeros = xxh3_64(text.as_bytes()).leading_zeros();
                    let shingles = shingles_count && zeros >= shingle_shift;
                    (zeros >= word_shift).then(|| read(&mut reader, text, shingles, lexicon))
                };
                Ok(rows.iter().filter_map(read_row).collect())
            })
            .collect::<Result<_>>()?;
        let mut sample: Vec<Text> = parts.into_iter().flatten().collect();
        sample.par_sort_unstable_by_key(|text| text.exact);
        sample.dedup_by_key(|text| text.exact);
        let shingles = sample.iter().flat_map(|text| &text.shingles).copied().collect();
        let words = sample.iter().flat_map(|text| &text.words).copied().collect();
        let common_from = (cap >> shingle_shift) as u32 + 1;
        Ok(Self {
            shingles: frequent(shingles, common_from, shingle_shift),
            words: frequent(words, KNOWN_FROM, word_shift),
        })
    }

    /// The tables of the shingles and of the words, each as two columns of one length, ascending by
    /// hash.
    pub fn to_columns(&self) -> [(Vec<u64>, Vec<u32>); 2] {
        [&self.shingles, &self.words].map(|counts| {
            let rows = counts.iter().map(|(&hash, &count)| (hash, count));
            let mut rows: Vec<(u64, u32)> = rows.collect();
            rows.sort_unstable();
            rows.into_iter().unzip()
        })
    }

    /// From the tables of [`Self::to_columns`].
    pub fn from_columns(tables: [(&[u64], &[u32]); 2]) -> Self {
        let [shingles, words] = tables
            .map(|(hashes, counts)| hashes.iter().copied().zip(counts.iter().copied()).collect());
        Self { shingles, words }
    }

    /// A number that tables have in common if their hashes are made in the same way.
    pub fn form(width: usize) -> u64 {
        let probe = "A probe of 1,000 words: naïve 猫 x² don't";
        let mut reader = Shingler::new(width);
        let mut hashes = Vec::new();
        reader.read(probe, &mut hashes);
        hashes.extend(reader.tokens().iter().map(|token| token.hash));
        let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect();
        xxh3_64(&bytes)
    }

    /// Whether any shingle is common.
    pub fn has_common_shingles(&self) -> bool {
        !self.shingles.is_empty()
    }

    /// Whether a shingle is common.
    pub fn is_common(&self, shingle: u64) -> bool {
        self.shingles.contains_key(&shingle)
    }

    /// Whether a word that no list has is one of the corpus.
    pub fn is_known_word(&self, word: u64) -> bool {
        self.words.contains_key(&word)
    }
}

/// What is counted of a text.
struct Text {
    exact: u128,
    /// The sets of its shingles and of its unlisted words.
    shingles: Vec<u64>,
    words: Vec<u64>,
}

fn read(reader: &mut Shingler, text: &str, with_shingles: bool, lexicon: &Lexicon) -> Text {
    let mut shingles = Vec::new();
    let exact = reader.read(text, &mut shingles);
    if !with_shingles {
        shingles = Vec::new();
    }
    let is_word = |first: u8| first.is_ascii_lowercase() || !first.is_ascii();
    let unlisted = reader.tokens().iter().filter(|token| {
        is_word(reader.normal()[token.start as usize]) && lexicon.subject(token.hash).is_none()
    });
    let mut words: Vec<u64> = unlisted.map(|token| token.hash).collect();
    for set in [&mut shingles, &mut words] {
        set.sort_unstable();
        set.dedup();
    }
    Text { exact, shingles, words }
}

/// Hashes that occur at least `from` times, with the number of texts that this stands for.
fn frequent(mut hashes: Vec<u64>, from: u32, shift: u32) -> HashKeyed<u32> {
    hashes.par_sort_unstable();
    let runs = hashes.chunk_by(|a, b| a == b).filter(|run| run.len() as u32 >= from);
    runs.map(|run| (run[0], (run.len() as u32).saturating_mul(1 << shift))).collect()
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
        let tables = frequencies.to_columns();
        let again = Frequencies::from_columns(tables.each_ref().map(|(h, c)| (&h[..], &c[..])));
        assert_eq!(again.to_columns(), tables);
    }
}
