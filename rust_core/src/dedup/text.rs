//! From a text to the set of its shingles, in one pass and without making strings.
//!
//! 1. Normalise: Unicode NFKC, lower case. (Plain ASCII skips the first.)
//! 2. Tokens: runs of letters and digits; every sign that is not mere punctuation (`+`, `=`, `%`) by
//!    itself, for `3 + 4` is not `3 - 4`; every character of a script written without spaces.
//! 3. Shingles: every three neighbouring tokens, as a 64-bit hash. A text of fewer than three tokens
//!    is one shingle.
//!
//! Similarity is the Jaccard index of the two sets.

use unicode_normalization::UnicodeNormalization;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

/// Buffers that live from text to text, so that none is allocated twice.
#[derive(Debug, Default)]
pub struct Shingler {
    normal: String,
    tokens: Vec<u64>,
    width: usize,
}

impl Shingler {
    /// A shingler of `width` tokens.
    pub fn new(width: usize) -> Self {
        Self { width: width.max(1), ..Self::default() }
    }

    /// The hash of the normalised text, white space made single: equal texts in the exact sense.
    pub fn exact_key(&mut self, text: &str) -> u128 {
        self.normalise(text);
        let mut single = String::with_capacity(self.normal.len());
        for word in self.normal.split_whitespace() {
            single.push_str(word);
            single.push(' ');
        }
        xxh3_128(single.as_bytes())
    }

    /// Replace `shingles` by those of `text`, in the order of the text, repeats included.
    pub fn shingles(&mut self, text: &str, shingles: &mut Vec<u64>) {
        self.normalise(text);
        self.tokens.clear();
        tokenise(&self.normal, &mut self.tokens);
        shingles.clear();
        if self.tokens.is_empty() {
            // Punctuation alone: no two such texts are alike unless they are equal.
            shingles.push(xxh3_64(self.normal.trim().as_bytes()));
        } else if self.tokens.len() < self.width {
            shingles.push(combine(&self.tokens));
        } else {
            shingles.extend(self.tokens.windows(self.width).map(combine));
        }
    }

    /// The shingles of `text` as a set: ascending, without repeats.
    pub fn shingle_set(&mut self, text: &str) -> Box<[u64]> {
        let mut shingles = Vec::new();
        self.shingles(text, &mut shingles);
        shingles.sort_unstable();
        shingles.dedup();
        shingles.into_boxed_slice()
    }

    fn normalise(&mut self, text: &str) {
        self.normal.clear();
        if text.is_ascii() {
            self.normal.push_str(text);
            self.normal.make_ascii_lowercase();
        } else {
            self.normal.extend(text.nfkc().flat_map(char::to_lowercase));
        }
    }
}

/// |a ∩ b| / |a ∪ b| of two sets, each ascending and without repeats.
pub fn jaccard(a: &[u64], b: &[u64]) -> f32 {
    let (mut i, mut j, mut common) = (0, 0, 0_usize);
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        common += usize::from(x == y);
        i += usize::from(x <= y);
        j += usize::from(y <= x);
    }
    let union = a.len() + b.len() - common;
    if union == 0 { 1.0 } else { common as f32 / union as f32 }
}

fn tokenise(normal: &str, tokens: &mut Vec<u64>) {
    let bytes = normal.as_bytes();
    let mut start = None;
    let end_word = |start: &mut Option<usize>, end: usize, tokens: &mut Vec<u64>| {
        if let Some(start) = start.take() {
            tokens.push(xxh3_64(&bytes[start..end]));
        }
    };
    for (at, character) in normal.char_indices() {
        match class(character) {
            Class::Word => start = start.or(Some(at)),
            Class::Gap => end_word(&mut start, at, tokens),
            Class::Alone => {
                end_word(&mut start, at, tokens);
                tokens.push(xxh3_64(&bytes[at..at + character.len_utf8()]));
            }
        }
    }
    end_word(&mut start, normal.len(), tokens);
}

#[derive(Clone, Copy)]
enum Class {
    Word,
    Gap,
    Alone,
}

const ASCII: [Class; 128] = {
    let mut classes = [Class::Gap; 128];
    let mut byte = 0_u8;
    while byte < 128 {
        if byte.is_ascii_alphanumeric() {
            classes[byte as usize] = Class::Word;
        } else if matches!(
            byte,
            b'+' | b'-'
                | b'*'
                | b'/'
                | b'='
                | b'<'
                | b'>'
                | b'%'
                | b'$'
                | b'#'
                | b'&'
                | b'@'
                | b'^'
                | b'|'
                | b'~'
                | b'\\'
        ) {
            classes[byte as usize] = Class::Alone;
        }
        byte += 1;
    }
    classes
};

fn class(character: char) -> Class {
    let code = character as u32;
    if let Some(&class) = ASCII.get(code as usize) {
        return class;
    }
    match code {
        // General punctuation and that of East Asia.
        0x2010..=0x2027 | 0x2030..=0x205E | 0x3000..=0x303F => Class::Gap,
        // Thai, Lao, Myanmar, Khmer; kana, Han and its extensions: written without spaces.
        0x0E00..=0x0EFF
        | 0x1000..=0x109F
        | 0x1780..=0x17FF
        | 0x3040..=0x30FF
        | 0x3400..=0x4DBF
        | 0x4E00..=0x9FFF
        | 0xF900..=0xFAFF
        | 0x20000..=0x3FFFF => Class::Alone,
        _ if character.is_alphanumeric() => Class::Word,
        _ if character.is_whitespace() || character.is_control() => Class::Gap,
        // Combining marks belong to the word they stand in.
        0x0300..=0x036F | 0x0900..=0x0DFF | 0x200B..=0x200D => Class::Word,
        _ => Class::Alone,
    }
}

/// One hash of a run of token hashes, in which order counts.
fn combine(tokens: &[u64]) -> u64 {
    let folded = tokens.iter().fold(0x9E37_79B9_7F4A_7C15, |hash: u64, token| {
        (hash ^ token).wrapping_mul(0xD6E8_FEB8_6659_FD93).rotate_left(29)
    });
    let wide = u128::from(folded) * 0xA076_1D64_78BD_642F;
    (wide >> 64) as u64 ^ wide as u64
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn set(text: &str) -> Box<[u64]> {
        Shingler::new(3).shingle_set(text)
    }

    /// The definition on strings: words are runs of letters and digits in lower-case ASCII.
    fn naive(text: &str) -> HashSet<Vec<String>> {
        let text = text.to_lowercase();
        let words: Vec<String> = text
            .split(|c: char| !c.is_alphanumeric())
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect();
        if words.len() < 3 {
            HashSet::from([words])
        } else {
            words.windows(3).map(<[_]>::to_vec).collect()
        }
    }

    proptest! {
        #[test]
        fn jaccard_is_that_of_the_naive_sets(a in "[abAB ,.]{0,40}", b in "[abAB ,.]{0,40}") {
            let (x, y) = (naive(&a), naive(&b));
            prop_assume!(!x.contains(&vec![]) && !y.contains(&vec![]));
            let exact = x.intersection(&y).count() as f32 / x.union(&y).count() as f32;
            prop_assert!((jaccard(&set(&a), &set(&b)) - exact).abs() < f32::EPSILON);
        }

        #[test]
        fn case_and_spacing_are_no_difference(words in prop::collection::vec("[a-z]{1,6}", 1..20)) {
            let plain = words.join(" ");
            let noisy = format!("  {}\n", words.join(" \t ").to_uppercase());
            prop_assert_eq!(set(&plain), set(&noisy));
            let mut shingler = Shingler::new(3);
            prop_assert_eq!(shingler.exact_key(&plain), shingler.exact_key(&noisy));
        }

        #[test]
        fn any_text_has_a_shingle(text: String) {
            prop_assert!(!set(&text).is_empty());
        }
    }

    #[test]
    fn full_width_letters_are_letters() {
        assert_eq!(set("ＡＢＣ the cat sat"), set("abc the cat sat"));
    }

    #[test]
    fn signs_count_and_punctuation_does_not() {
        assert!(jaccard(&set("what is 3 + 4 here"), &set("what is 3 - 4 here")) < 0.5);
        assert_eq!(set("What is it, really?"), set("what is it really"));
        let mut shingler = Shingler::new(3);
        assert_ne!(shingler.exact_key("yes."), shingler.exact_key("yes?"));
    }

    #[test]
    fn scripts_without_spaces_are_compared_by_characters() {
        let similarity =
            jaccard(&set("这张图片里有什么动物呢请回答"), &set("这张图片里有什么动物呢请说明"));
        assert!((0.5..1.0).contains(&similarity), "{similarity}");
        assert_eq!(set("これは何ですか。"), set("これは何ですか"));
    }
}
