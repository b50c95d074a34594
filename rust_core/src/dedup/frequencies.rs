//! Which shingles are common in a corpus, and which words that no list has are its own.
//!
//! A shingle of many texts is part of a template and says little of a question: it proposes nothing.
//! A word that several texts have is no slip of the fingers, though no word list has it.
//!
//! Of many texts a sample is counted: one in 2^k, those whose hash begins with k zeros, so that the
//! result depends on the texts alone, not on their order. Equal texts count once.

use std::cmp::Reverse;

use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::text::Shingler;
use super::texts::Texts;
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
/// Hashes that are in memory at once, about.
const HELD: usize = 1 << 23;
/// Letters to a word, about.
const LETTERS: usize = 5;
const CHUNK: usize = 4096;

/// Numbers of texts by the hash of a common shingle or of a word that no list has.
#[derive(Debug, Clone, Default)]
pub struct Frequencies {
    shingles: HashKeyed<u32>,
    words: HashKeyed<u32>,
}

impl Frequencies {
    /// Count the shingles of `width` tokens; those of more than `cap` texts are common.
    pub fn count(
        texts: &Texts,
        width: usize,
        cap: usize,
        lexicon: &Lexicon,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        Self::count_by_parts(texts, width, cap, lexicon, HELD, interrupt)
    }

    fn count_by_parts(
        texts: &Texts,
        width: usize,
        cap: usize,
        lexicon: &Lexicon,
        held: usize,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let [shingle_shift, word_shift] = [SHINGLE_SAMPLE, WORD_SAMPLE].map(|sample| {
            let shift = (texts.len() / sample).checked_ilog2().map_or(0, |log| log + 1);
            shift.min(LARGEST_SHIFT)
        });
        let mut sample = sample(texts, width, word_shift, interrupt)?;
        let counter = Counter { texts, width, held, interrupt };
        let words = counter.frequent(&sample, KNOWN_FROM, word_shift, |reader, _, words| {
            let is_word = |first: u8| first.is_ascii_lowercase() || !first.is_ascii();
            let unlisted = reader.tokens().iter().filter(|token| {
                is_word(reader.normal()[token.start as usize])
                    && lexicon.subject(token.hash).is_none()
            });
            words.extend(unlisted.map(|token| token.hash));
        })?;
        sample.retain(|text| text.zeros >= shingle_shift);
        // No shingle is in more texts than there are.
        if texts.len() <= cap {
            sample.clear();
        }
        let common_from = (cap >> shingle_shift) as u32 + 1;
        let shingles = counter.frequent(
            &sample,
            common_from,
            shingle_shift,
            |_, shingles: &[u64], found| found.extend_from_slice(shingles),
        )?;
        Ok(Self { shingles, words })
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

/// A text that is counted.
struct Sampled {
    row: usize,
    /// With which its hash begins.
    zeros: u32,
}

/// The texts whose hashes begin with so many zeros, one of equal ones, by row.
fn sample(
    texts: &Texts,
    width: usize,
    least_zeros: u32,
    interrupt: &Interrupt,
) -> Result<Vec<Sampled>> {
    let chunks = (0..texts.len().div_ceil(CHUNK)).into_par_iter();
    let parts: Vec<Vec<(u128, Reverse<u32>, usize)>> = chunks
        .map(|chunk| {
            interrupt.check()?;
            let (mut reader, mut shingles) = (Shingler::new(width), Vec::new());
            let mut found = Vec::new();
            for row in chunk * CHUNK..texts.len().min((chunk + 1) * CHUNK) {
                let text = texts.value(row);
                let zeros = xxh3_64(text.as_bytes()).leading_zeros();
                if zeros >= least_zeros {
                    found.push((reader.read(text, &mut shingles), Reverse(zeros), row));
                }
            }
            Ok(found)
        })
        .collect::<Result<_>>()?;
    let mut sample = parts.concat();
    sample.par_sort_unstable();
    // Of texts that are equal once they are normalised, the one with the most zeros.
    sample.dedup_by_key(|text| text.0);
    // Read in the order in which they lie: the file they are mapped from may be larger than memory.
    sample.par_sort_unstable_by_key(|text| text.2);
    Ok(sample.into_iter().map(|(_, Reverse(zeros), row)| Sampled { row, zeros }).collect())
}

/// Counts hashes of texts.
struct Counter<'a> {
    texts: &'a Texts,
    width: usize,
    /// Hashes in memory at once, about.
    held: usize,
    interrupt: &'a Interrupt,
}

impl Counter<'_> {
    /// Hashes that are of at least `from` texts, with the number of texts that this stands for.
    ///
    /// `read` appends those of a text, given its reader and its shingles. Where there are many, they are
    /// counted in several passes over the texts, by their leading bits.
    fn frequent(
        &self,
        sample: &[Sampled],
        from: u32,
        shift: u32,
        read: impl Fn(&Shingler, &[u64], &mut Vec<u64>) + Sync,
    ) -> Result<HashKeyed<u32>> {
        let letters: usize = sample.iter().map(|text| self.texts.value(text.row).len()).sum();
        let bits = (letters / LETTERS / self.held).checked_ilog2().map_or(0, |log| log + 1);
        let mut found = HashKeyed::default();
        for pass in 0..1_u64 << bits {
            let of_pass = |hash: &u64| hash.checked_shr(64 - bits).unwrap_or(0) == pass;
            let parts: Vec<Vec<u64>> = sample
                .par_chunks(CHUNK)
                .map(|sample| {
                    self.interrupt.check()?;
                    let mut reader = Shingler::new(self.width);
                    let (mut shingles, mut of_text) = (Vec::new(), Vec::new());
                    let mut hashes = Vec::new();
                    for text in sample {
                        reader.read(self.texts.value(text.row), &mut shingles);
                        of_text.clear();
                        read(&reader, &shingles, &mut of_text);
                        of_text.retain(of_pass);
                        of_text.sort_unstable();
                        of_text.dedup();
                        hashes.extend_from_slice(&of_text);
                    }
                    Ok(hashes)
                })
                .collect::<Result<_>>()?;
            let mut hashes = parts.concat();
            hashes.par_sort_unstable();
            let runs = hashes.chunk_by(|a, b| a == b).filter(|run| run.len() as u32 >= from);
            found.extend(runs.map(|run| (run[0], (run.len() as u32).saturating_mul(1 << shift))));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::LargeStringArray;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn many_passes_count_what_one_does(
            texts in prop::collection::vec("[a-c]{1,2}( [a-c]{1,2}){0,9}", 1..60),
            cap in 1_usize..8,
        ) {
            let texts = Texts::from(LargeStringArray::from(texts));
            let count = |held| {
                let (lexicon, interrupt) = (Lexicon::english(), Interrupt::default());
                let found = Frequencies::count_by_parts(&texts, 3, cap, lexicon, held, &interrupt);
                found.expect("no interrupt").to_columns()
            };
            prop_assert_eq!(count(1), count(HELD));
        }
    }

    #[test]
    fn a_template_is_common_and_its_questions_are_not() {
        let texts: Vec<String> = (0..50)
            .map(|n| format!("tell me about the softmaxx number {n} and its square {}", n * n + 1))
            .collect();
        let texts = Texts::from(LargeStringArray::from(texts));
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
