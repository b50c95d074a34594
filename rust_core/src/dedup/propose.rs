//! The keys by which texts that may ask the same meet.
//!
//! | key | of | finds |
//! |---|---|---|
//! | exact | the normalised text | equal texts |
//! | band | MinHash over the shingles that are not common in the corpus | texts that share much of what is their own |
//! | content | the meanings of the words that are no grammar, in any order | copies with other manners, synonyms, spelling |
//!
//! The shingles of a template are common, so they make nobody meet; a text of common shingles alone has
//! no bands, and meets its copies by its content. A word that is not known counts as itself, and in
//! further content keys as the known words that it may be mistyped for.

use std::collections::HashMap;

use super::frequencies::Frequencies;
use super::minhash::MinHasher;
use super::text::{Shingler, Token, hash_word};
use crate::judge::text::lexicon::flag;
use crate::judge::text::normal::without_accents;
use crate::judge::text::{Lexicon, neighbours};

/// How many keys there are.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Tokens in a shingle.
    pub shingle_words: usize,
    /// MinHash bands.
    pub bands: usize,
    /// MinHash values in a band.
    pub rows_per_band: usize,
}

/// Makes keys; one for all threads, each with a [`KeyReader`] of its own.
#[derive(Debug)]
pub struct Proposer<'a> {
    settings: Settings,
    minhash: MinHasher,
    frequencies: &'a Frequencies,
    lexicon: Option<&'a Lexicon>,
}

impl<'a> Proposer<'a> {
    /// A proposer for the corpus that `frequencies` were counted in; without a lexicon there are no
    /// content keys.
    pub fn new(
        settings: Settings,
        frequencies: &'a Frequencies,
        lexicon: Option<&'a Lexicon>,
    ) -> Self {
        let minhash = MinHasher::new(settings.bands * settings.rows_per_band);
        Self { settings, minhash, frequencies, lexicon }
    }

    /// A reader with buffers.
    pub fn reader(&self) -> KeyReader<'_> {
        KeyReader {
            proposer: self,
            shingler: Shingler::new(self.settings.shingle_words),
            shingles: Vec::new(),
            signature: Vec::new(),
            subjects: Vec::new(),
            corrections: HashMap::new(),
        }
    }
}

/// Content keys of a text at most, beside that of its words as they are.
const CORRECTED_KEYS: usize = 4;
/// Known words that one unknown word may be mistyped for, at most.
const CORRECTIONS: usize = 2;
/// Unknown words up to which corrections are tried; more are another language.
const UNKNOWN_WORDS: usize = 3;

/// Reads the keys of one text after another.
#[derive(Debug)]
pub struct KeyReader<'a> {
    proposer: &'a Proposer<'a>,
    shingler: Shingler,
    shingles: Vec<u64>,
    signature: Vec<u32>,
    subjects: Vec<Option<u32>>,
    /// What unknown words add to a key.
    corrections: HashMap<Box<[u8]>, Vec<u64>>,
}

impl KeyReader<'_> {
    /// Append the keys of `text`, and return its exact key.
    ///
    /// Texts meet if they have a key in common; the same key may be appended twice.
    pub fn keys(&mut self, text: &str, keys: &mut Vec<u64>) -> u128 {
        let exact = self.shingler.read(text, &mut self.shingles);
        let Proposer { settings, minhash, frequencies, .. } = self.proposer;
        if frequencies.has_common_shingles() {
            self.shingles.retain(|shingle| !frequencies.is_common(*shingle));
        }
        if !self.shingles.is_empty() {
            minhash.sign(&self.shingles, &mut self.signature);
            let bands = self.signature.chunks_exact(settings.rows_per_band).take(settings.bands);
            keys.extend(bands.zip(0_u64..).map(|(values, band)| {
                values.iter().fold(band, |key, &value| {
                    (key ^ u64::from(value)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31)
                })
            }));
        }
        if let Some(lexicon) = self.proposer.lexicon {
            self.push_content(lexicon, keys);
        }
        exact
    }

    /// The exact key of `text` alone.
    pub fn exact(&mut self, text: &str) -> u128 {
        self.shingler.read(text, &mut self.shingles)
    }

    fn push_content(&mut self, lexicon: &Lexicon, keys: &mut Vec<u64>) {
        let mut content = Content::default();
        let tokens = self.shingler.tokens();
        let text = self.shingler.normal();
        // The table is larger than the nearest cache: looked up one after the other, with nothing
        // decided in between, words wait for each other's memory no longer.
        self.subjects.clear();
        self.subjects.extend(tokens.iter().map(|token| lexicon.subject(token.hash)));
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            at += 1;
            if let Some(subject) = self.subjects[at - 1] {
                content.add(subject);
                continue;
            }
            let spelling = &text[token.start as usize..token.end as usize];
            match spelling {
                [b'0'..=b'9', ..] => {
                    let groups = 1 + thousands(text, &tokens[at - 1..]);
                    at += groups - 1;
                    content.add(number(text, &tokens[at - groups..at]) as u32);
                }
                [letter] if letter.is_ascii_alphabetic() => {
                    let contracted = text[..token.start as usize].ends_with(b"'")
                        || text[..token.start as usize].ends_with("’".as_bytes());
                    if !contracted {
                        let lower = [letter.to_ascii_lowercase()];
                        content.add(std::str::from_utf8(&lower).map_or(0, hash_word) as u32);
                    }
                }
                [sign] if sign.is_ascii() => {}
                _ => content.unknown.push(*token),
            }
        }
        if content.words == 0 {
            // Grammar alone is what such a text says.
            let words = tokens.iter().filter_map(|token| lexicon.get(token.hash));
            let words = words.filter(|word| word.is(flag::EMPTY) && !word.is(flag::FREE));
            let shares = words.map(|word| share(word.meaning as u32));
            content.grammar = shares.fold(0, u64::wrapping_add);
        }
        content.push_keys(keys, |token, read| {
            let spelling = &text[token.start as usize..token.end as usize];
            if let Some(found) = self.corrections.get(spelling) {
                read.extend(found);
                return;
            }
            let found = corrections(spelling, token.hash, lexicon, self.proposer.frequencies);
            read.extend(&found);
            if self.corrections.len() == REMEMBERED {
                self.corrections.clear();
            }
            self.corrections.insert(spelling.into(), found);
        });
    }
}

/// Unknown words whose corrections are remembered.
const REMEMBERED: usize = 1 << 16;

/// The sum of what the words of a text add to its content key.
#[derive(Debug, Default)]
struct Content {
    sum: u64,
    words: usize,
    /// The sum of the words that say nothing, for a text that has no others.
    grammar: u64,
    unknown: Vec<Token>,
}

impl Content {
    #[inline]
    fn add(&mut self, subject: u32) {
        self.sum = self.sum.wrapping_add(share(subject));
        self.words += usize::from(subject != 0);
    }

    /// The key of the words as they are, then those with corrected words.
    fn push_keys(&self, keys: &mut Vec<u64>, mut corrections: impl FnMut(&Token, &mut Vec<u64>)) {
        let unknown = self.unknown.iter().map(|token| share(token.hash as u32));
        let key = |sum: u64| finish(if sum == 0 { self.grammar } else { sum });
        keys.push(key(unknown.fold(self.sum, u64::wrapping_add)));
        if self.unknown.len() > UNKNOWN_WORDS {
            return;
        }
        let mut sums = vec![self.sum];
        let mut corrected = false;
        let mut read = Vec::new();
        for token in &self.unknown {
            read.clear();
            corrections(token, &mut read);
            corrected |= !read.is_empty();
            if read.is_empty() {
                read.push(share(token.hash as u32));
            }
            let combined =
                read.iter().flat_map(|share| sums.iter().map(|sum| sum.wrapping_add(*share)));
            sums = combined.take(CORRECTED_KEYS).collect();
        }
        if corrected {
            keys.extend(sums.into_iter().map(key));
        }
    }
}

/// Sums of these are as good as hashes of sorted lists.
fn share(subject: u32) -> u64 {
    let mixed = u64::from(subject).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    // Nothing adds nothing.
    (mixed ^ mixed >> 32).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn finish(sum: u64) -> u64 {
    let mixed = (sum ^ 0xC2B2_AE3D_27D4_EB4F ^ sum >> 32).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    mixed ^ mixed >> 32
}

/// How many tokens behind the first are further groups of its digits: `1,000,000` has two.
fn thousands(text: &[u8], tokens: &[Token]) -> usize {
    let is_digits = |token: &Token| {
        text[token.start as usize..token.end as usize].iter().all(u8::is_ascii_digit)
    };
    let first = &tokens[0];
    if first.end - first.start > 3 || !is_digits(first) {
        return 0;
    }
    let follows = |pair: &&[Token]| {
        let (before, group) = (&pair[0], &pair[1]);
        group.start == before.end + 1
            && text[before.end as usize] == b','
            && group.end - group.start == 3
            && is_digits(group)
    };
    tokens.windows(2).take_while(follows).count()
}

fn number(text: &[u8], groups: &[Token]) -> u64 {
    if let [whole] = groups {
        return whole.hash;
    }
    let digits = groups.iter().flat_map(|group| &text[group.start as usize..group.end as usize]);
    hash_word(&digits.map(|&digit| char::from(digit)).collect::<String>())
}

/// What the known words add that this unknown one may be meant for, the likeliest first.
fn corrections(
    spelling: &[u8],
    hash: u64,
    lexicon: &Lexicon,
    frequencies: &Frequencies,
) -> Vec<u64> {
    let Ok(word) = std::str::from_utf8(spelling) else { return Vec::new() };
    if frequencies.is_known_word(hash) || !word.chars().all(char::is_alphabetic) {
        return Vec::new();
    }
    if !word.is_ascii() {
        let plain = lexicon.subject(hash_word(&without_accents(word)));
        return plain.map(share).into_iter().collect();
    }
    if !(3..=20).contains(&word.len()) {
        return Vec::new();
    }
    let mut found: Vec<(u8, u64)> = Vec::new();
    for (order, candidate) in one_slip_away(spelling) {
        let candidate_hash = std::str::from_utf8(&candidate).map_or(0, hash_word);
        let Some(known) = lexicon.get(candidate_hash) else { continue };
        let plausible =
            candidate.len().max(word.len()) > 3 || order == SWAP && known.is(flag::FUNCTION);
        if plausible {
            let rare =
                8 * u8::from(!known.is(flag::COMMON)) + 4 * u8::from(!known.is(flag::FUNCTION));
            found.push((rare + order, share(lexicon.subject(candidate_hash).unwrap_or_default())));
        }
    }
    found.sort_unstable();
    let mut read: Vec<u64> = Vec::new();
    for (_, added) in found {
        if !read.contains(&added) && read.len() < CORRECTIONS {
            read.push(added);
        }
    }
    read
}

const SWAP: u8 = 0;
const OTHER_LENGTH: u8 = 1;
const OTHER_KEY: u8 = 2;

/// What one slip of the fingers makes of a word behind its first letter, or undoes.
fn one_slip_away(word: &[u8]) -> impl Iterator<Item = (u8, Vec<u8>)> {
    (1..=word.len()).flat_map(move |at| {
        let (head, tail) = word.split_at(at);
        let with = move |added: &[u8], rest: &[u8]| [head, added, rest].concat();
        let swapped = match tail {
            [x, y, rest @ ..] => Some((SWAP, with(&[*y, *x], rest))),
            _ => None,
        };
        let removed = tail.split_first().map(|(_, rest)| (OTHER_LENGTH, with(&[], rest)));
        let added = (b'a'..=b'z').map(move |letter| (OTHER_LENGTH, with(&[letter], tail)));
        let keyed = tail.split_first().into_iter().flat_map(move |(key, rest)| {
            neighbours(char::from(*key)).map(move |key| (OTHER_KEY, with(&[key as u8], rest)))
        });
        swapped.into_iter().chain(removed).chain(added).chain(keyed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meet(a: &str, b: &str) -> bool {
        let frequencies = Frequencies::default();
        let settings = Settings { shingle_words: 3, bands: 16, rows_per_band: 4 };
        let proposer = Proposer::new(settings, &frequencies, Some(Lexicon::english()));
        let mut reader = proposer.reader();
        let [a, b] = [a, b].map(|text| {
            let mut keys = Vec::new();
            reader.keys(text, &mut keys);
            keys
        });
        a.iter().any(|key| b.contains(key))
    }

    #[test]
    fn copies_meet_by_their_content() {
        for (a, b) in [
            ("What colour is the car?", "could you please tell me the color of this car"),
            ("Describe the chart.", "Describe the chatr, please!"),
            ("Name two big cities", "name 2 large citys"),
            ("Don't count the 1,000 apples", "Do not count 1000 apples"),
            ("What is this?", "what's thsi"),
            ("这张图片里有什么", "这张图片里有什么？"),
            ("Describe the café", "describe the cafe"),
        ] {
            assert!(meet(a, b), "{a} {b}");
        }
        assert!(!meet("What colour is the car?", "Describe the weather of two cities."));
    }

    #[test]
    fn common_shingles_propose_nothing() {
        let template =
            "Below is an instruction that describes a task. Write a response that completes it: ";
        let settings = Settings { shingle_words: 3, bands: 16, rows_per_band: 4 };
        let common: Vec<u64> = Shingler::new(3).shingle_set(template).to_vec();
        let counts = vec![5_000; common.len()];
        let frequencies = Frequencies::from_columns([(&common, &counts), (&[], &[])]);
        let proposer = Proposer::new(settings, &frequencies, Some(Lexicon::english()));
        let mut reader = proposer.reader();
        let mut keys = |text: &str| {
            let mut keys = Vec::new();
            reader.keys(text, &mut keys);
            keys
        };
        let bare = keys(template);
        assert_eq!(bare.len(), 1);
        assert_eq!(keys(&template.to_uppercase()), bare);
        let [a, b] =
            ["name a fruit", "say hello"].map(|question| keys(&format!("{template}{question}")));
        assert!(a.len() > 16 && !a.iter().any(|key| b.contains(key)));
    }
}
