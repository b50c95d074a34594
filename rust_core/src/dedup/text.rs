//! From a text to the set of its shingles, in one pass and without making strings.
//!
//! 1. Normalise: superscripts and subscripts to `^2` and `_2`, Unicode NFKC, lower case except where case
//!    means something: single letters (`x` and `X`) and `M` for mega. (Plain ASCII skips the first two.)
//! 2. Tokens: runs of letters and digits; every sign that is not mere punctuation (`+`, `=`, `%`) by
//!    itself, for `3 + 4` is not `3 - 4`; every character of a script written without spaces.
//! 3. Shingles: every three neighbouring tokens, as a 64-bit hash. A text of fewer than three tokens
//!    is one shingle.
//!
//! Similarity is the Jaccard index of the two sets.

use unicode_normalization::UnicodeNormalization;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::judge::text::normal::keep_position;

/// Reads texts; its buffers live from text to text, so that none is allocated twice.
#[derive(Debug, Default)]
pub struct Shingler {
    width: usize,
    /// The normalised text, white space made single, and [`PADDING`] zeros behind it.
    normal: Vec<u8>,
    tokens: Vec<Token>,
    /// Places of capitals that stay.
    capitals: Vec<usize>,
}

/// A token by its hash, and where it stands in the normalised text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) hash: u64,
    pub(crate) start: u32,
    pub(crate) end: u32,
}

impl Token {
    /// Of `text[start..end]`; [`PADDING`] bytes behind it must be there to be read.
    fn new(text: &[u8], start: usize, end: usize) -> Self {
        Self { hash: hash_token(text, start, end), start: start as u32, end: end as u32 }
    }
}

/// Bytes that may be read behind a token.
const PADDING: usize = 16;

impl Shingler {
    /// A shingler of `width` tokens.
    pub fn new(width: usize) -> Self {
        Self { width: width.max(1), ..Self::default() }
    }

    /// Replace `shingles` by those of `text`, in the order of the text, repeats included.
    ///
    /// Returns the hash of the normalised text: equal for texts that are equal in the exact sense.
    pub fn read(&mut self, text: &str, shingles: &mut Vec<u64>) -> u128 {
        self.normal.clear();
        self.tokens.clear();
        if text.is_ascii() {
            self.read_ascii(text.as_bytes());
        } else {
            self.read_unicode(text);
        }
        let length = self.normal.len() - PADDING;
        let normal = &self.normal[..length];
        shingles.clear();
        if self.tokens.is_empty() {
            // Punctuation alone: no two such texts are alike unless they are equal.
            shingles.push(xxh3_64(normal));
        } else if self.tokens.len() < self.width {
            shingles.push(combine(&self.tokens));
        } else {
            shingles.extend(self.tokens.windows(self.width).map(combine));
        }
        xxh3_128(normal)
    }

    /// The tokens of the text read last.
    pub(crate) fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// The normalised text read last, in which the tokens stand.
    pub(crate) fn normal(&self) -> &[u8] {
        &self.normal
    }

    /// The shingles of `text` as a set: ascending, without repeats.
    pub fn shingle_set(&mut self, text: &str) -> Box<[u64]> {
        let mut shingles = Vec::new();
        self.read(text, &mut shingles);
        shingles.sort_unstable();
        shingles.dedup();
        shingles.into_boxed_slice()
    }

    fn read_ascii(&mut self, text: &[u8]) {
        self.normal.reserve(text.len() + PADDING + 1);
        let spaced = memchr::memchr3(b'\n', b'\t', b'\r', text).is_some()
            || memchr::memmem::find(text, b"  ").is_some();
        let words = text.trim_ascii();
        if spaced {
            for word in words.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()) {
                self.normal.extend_from_slice(word);
                self.normal.push(b' ');
            }
        } else if !words.is_empty() {
            self.normal.extend_from_slice(words);
            self.normal.push(b' ');
        }
        self.capitals.clear();
        find_capitals(&self.normal, &mut self.capitals);
        self.normal.make_ascii_lowercase();
        for &capital in &self.capitals {
            self.normal[capital].make_ascii_uppercase();
        }
        let length = self.normal.len();
        self.normal.resize(length + PADDING, 0);
        let mut start = 0;
        for end in memchr::memchr_iter(b' ', &self.normal[..length]) {
            cut_word(&self.normal, start, end, &mut self.tokens);
            start = end + 1;
        }
    }

    fn read_unicode(&mut self, text: &str) {
        let composed: String = keep_position(text).nfkc().collect();
        let mut spaced = String::with_capacity(composed.len() + 1);
        for word in composed.split_whitespace() {
            spaced.push_str(word);
            spaced.push(' ');
        }
        let lower = lower_case(&spaced);
        self.normal.extend_from_slice(lower.as_bytes());
        self.normal.resize(self.normal.len() + PADDING, 0);
        let mut start = 0; // of the word that is being read, in `normal`
        let mut at = 0;
        for character in lower.chars() {
            let (class, end) = (class(character), at + character.len_utf8());
            if !matches!(class, Class::Word) {
                if start < at {
                    self.tokens.push(Token::new(&self.normal, start, at));
                }
                if matches!(class, Class::Alone) {
                    self.tokens.push(Token::new(&self.normal, at, end));
                }
                start = end;
            }
            at = end;
        }
    }
}

/// The places of capitals that stay in ASCII text of single spaces; see [`stays_capital`].
fn find_capitals(text: &[u8], found: &mut Vec<usize>) {
    // Nearly all texts have few: that is seen for many bytes at once.
    let lone = |before: u8, this: u8, after: u8| {
        this.is_ascii_uppercase() & !before.is_ascii_alphanumeric() & !after.is_ascii_alphanumeric()
    };
    let inner = text.iter().zip(text.iter().skip(1)).zip(text.iter().skip(2));
    let any = inner.fold(0_u8, |any, ((x, y), z)| any | u8::from(lone(*x, *y, *z)));
    let first = text.len() > 1 && lone(b' ', text[0], text[1]);
    let at = |place: usize| text.get(place).map_or(' ', |&byte| char::from(byte));
    let stays = |place: usize| {
        let before = [place.wrapping_sub(2), place.wrapping_sub(1)].map(at);
        stays_capital(before, at(place), [place + 1, place + 2, place + 3].map(at))
    };
    if any > 0 || first {
        let places = (0..text.len()).filter(|&place| text[place].is_ascii_uppercase());
        found.extend(places.filter(|&place| stays(place)));
    } else {
        found.extend(memchr::memchr2_iter(b'M', b'G', text).filter(|&place| stays(place)));
    }
}

/// Lower case, except for capitals that stay.
fn lower_case(text: &str) -> String {
    let mut lower = String::with_capacity(text.len());
    let mut before = [' ', ' '];
    for (at, this) in text.char_indices() {
        let mut rest = text[at + this.len_utf8()..].chars();
        let mut next = || rest.next().unwrap_or(' ');
        if this.is_uppercase() && stays_capital(before, this, [next(), next(), next()]) {
            lower.push(this);
        } else {
            lower.extend(this.to_lowercase());
        }
        before = [before[1], this];
    }
    lower
}

/// Whether the case of a capital means something: a single letter, unless it is a word between words
/// (`A`, `I`, and letters beyond ASCII except Greek), and behind a number the M of mega, and the prefix of
/// bits.
fn stays_capital(before: [char; 2], this: char, after: [char; 3]) -> bool {
    let is_unit = match this {
        'M' => matches!(after[0], 'W' | 'V' | 'J' | 'A' | 'g' | 'Ω' | 'b'),
        'G' => after[0] == 'b',
        _ => false,
    };
    if is_unit && !after[1].is_alphanumeric() {
        let number = if before[1] == ' ' { before[0] } else { before[1] };
        return number.is_ascii_digit();
    }
    if !this.is_uppercase() || before[1].is_alphanumeric() || after[0].is_alphanumeric() {
        return false;
    }
    let is_word = matches!(this, 'A' | 'I') || !this.is_ascii() && !('Α'..='Ω').contains(&this);
    let between = before[1] == ' ' && after[0] == ' ' && after[1].is_alphabetic();
    !(is_word && between && after[2].is_alphanumeric())
}

/// The tokens of `text[start..end]`, lower-case ASCII without white space.
///
/// Nearly every word is letters and digits, or these and one sign of punctuation: then it is one
/// token, which is seen without looking at its bytes one by one.
fn cut_word(text: &[u8], start: usize, end: usize, tokens: &mut Vec<Token>) {
    let punctuated = matches!(text[start..end].last(), Some(b'.' | b',' | b'?' | b'!' | b':'));
    let word_end = end - usize::from(punctuated);
    if let Some(word) = Word::load(text, start, word_end).filter(Word::is_alphanumeric) {
        tokens.push(Token { hash: word.hash(), start: start as u32, end: word_end as u32 });
        return;
    }
    let mut word_start = end;
    for at in start..=end {
        let class = if at == end { Class::Gap } else { ASCII[usize::from(text[at] & 0x7F)] };
        if let Class::Word = class {
            word_start = word_start.min(at);
            continue;
        }
        if word_start < at {
            tokens.push(Token::new(text, word_start, at));
        }
        word_start = end;
        if let Class::Alone = class {
            tokens.push(Token::new(text, at, at + 1));
        }
    }
}

/// The hash of `text[start..end]`; [`PADDING`] bytes behind it must be there to be read.
fn hash_token(text: &[u8], start: usize, end: usize) -> u64 {
    match Word::load(text, start, end) {
        Some(word) => word.hash(),
        None => xxh3_64(&text[start..end]),
    }
}

/// The hash that a token of this spelling has.
pub(crate) fn hash_word(word: &str) -> u64 {
    let mut padded = [0; 2 * PADDING];
    match padded.get_mut(..word.len()) {
        Some(head) if word.len() <= PADDING => {
            head.copy_from_slice(word.as_bytes());
            hash_token(&padded, 0, word.len())
        }
        _ => xxh3_64(word.as_bytes()),
    }
}

/// One to 16 bytes in one number, zeros above.
struct Word {
    bytes: u128,
    length: usize,
}

impl Word {
    /// `text[start..end]`, unless it is empty or too long; [`PADDING`] bytes behind it are read.
    fn load(text: &[u8], start: usize, end: usize) -> Option<Self> {
        let length = end.wrapping_sub(start);
        if length.wrapping_sub(1) >= PADDING {
            return None;
        }
        let window = u128::from_le_bytes(*text.get(start..)?.first_chunk()?);
        let unused = 8 * (PADDING - length) as u32;
        Some(Self { bytes: window << unused >> unused, length })
    }

    /// Whether all bytes are lower-case letters or digits, all at once: adding `128 - x` to a byte
    /// below 128 sets its highest bit if it is at least x.
    fn is_alphanumeric(&self) -> bool {
        const ONES: u128 = u128::MAX / 0xFF;
        let at_least = |byte: u8| self.bytes + ONES * u128::from(128 - byte);
        let letter = at_least(b'a') & !at_least(b'z' + 1);
        let digit = at_least(b'0') & !at_least(b'9' + 1);
        let used = u128::MAX >> (8 * (PADDING - self.length) as u32);
        (letter | digit) & used & (ONES << 7) == used & (ONES << 7)
    }

    /// One wide product of its two halves.
    fn hash(&self) -> u64 {
        let low = self.bytes as u64 ^ 0x2D35_8DCC_AA6C_78A5;
        let high = (self.bytes >> 64) as u64 ^ 0x8BB8_4B93_962E_ACC9 ^ self.length as u64;
        fold(low, high)
    }
}

/// The two halves of the product, folded together.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
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
fn combine(tokens: &[Token]) -> u64 {
    let folded = tokens.iter().fold(0x9E37_79B9_7F4A_7C15, |hash: u64, token| {
        (hash ^ token.hash).wrapping_mul(0xD6E8_FEB8_6659_FD93).rotate_left(29)
    });
    fold(folded, 0xA076_1D64_78BD_642F)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn set(text: &str) -> Box<[u64]> {
        Shingler::new(3).shingle_set(text)
    }

    fn exact_key(text: &str) -> u128 {
        Shingler::new(3).read(text, &mut Vec::new())
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
        fn jaccard_is_that_of_the_naive_sets(a in "[ab ,.]{0,40}", b in "[ab ,.]{0,40}") {
            let (x, y) = (naive(&a), naive(&b));
            prop_assume!(!x.contains(&vec![]) && !y.contains(&vec![]));
            let exact = x.intersection(&y).count() as f32 / x.union(&y).count() as f32;
            prop_assert!((jaccard(&set(&a), &set(&b)) - exact).abs() < f32::EPSILON);
        }

        #[test]
        fn case_and_spacing_are_no_difference(words in prop::collection::vec("[a-z]{2,6}", 1..20)) {
            let plain = words.join(" ");
            let noisy = format!("  {}\n", words.join(" \t ").to_uppercase());
            prop_assert_eq!(set(&plain), set(&noisy));
            prop_assert_eq!(exact_key(&plain), exact_key(&noisy));
        }

        #[test]
        fn both_readers_agree_on_ascii(text in "[ -~\\n\\t]{0,60}") {
            let (mut ascii, mut unicode) = (Shingler::new(3), Shingler::new(3));
            ascii.read_ascii(text.as_bytes());
            unicode.read_unicode(&text);
            prop_assert_eq!(ascii.normal, unicode.normal);
            prop_assert_eq!(ascii.tokens, unicode.tokens);
        }

        #[test]
        fn words_that_differ_have_other_hashes(a in "[a-c]{1,20}", b in "[a-c]{1,20}") {
            prop_assume!(a != b);
            prop_assert_ne!(set(&a), set(&b));
        }

        #[test]
        fn any_text_has_a_shingle(text: String) {
            prop_assert!(!set(&text).is_empty());
        }
    }

    #[test]
    fn what_means_something_makes_another_text() {
        for (a, b) in [
            ("What is 2² plus one?", "What is 22 plus one?"),
            ("1½ cups", "11⁄2 cups"),
            ("(a+b)c", "a+bc"),
            ("Is it 5! now", "Is it 5 now"),
            ("solve X + x", "solve x + x"),
            ("a motor of 5 MW", "a motor of 5 mW"),
            ("a file of 5 MB", "a file of 5 Mb"),
            ("a file of 5 GB", "a file of 5 Gb"),
            ("a wire of 5 MΩ", "a wire of 5 mΩ"),
            ("H₂O", "H2O"),
            ("Δ of it", "δ of it"),
        ] {
            assert_ne!(exact_key(a), exact_key(b), "{a} {b}");
        }
        assert_eq!(exact_key("A dog and I RUN"), exact_key("a dog and i run"));
        assert_eq!(exact_key("Я люблю Это"), exact_key("я люблю это"));
    }

    #[test]
    fn full_width_letters_are_letters() {
        assert_eq!(set("ＡＢＣ the cat sat"), set("abc the cat sat"));
    }

    #[test]
    fn signs_count_and_punctuation_does_not() {
        assert!(jaccard(&set("what is 3 + 4 here"), &set("what is 3 - 4 here")) < 0.5);
        assert_eq!(set("What is it, really?"), set("what is it really"));
        assert_ne!(exact_key("yes."), exact_key("yes?"));
    }

    #[test]
    fn scripts_without_spaces_are_compared_by_characters() {
        let similarity =
            jaccard(&set("这张图片里有什么动物呢请回答"), &set("这张图片里有什么动物呢请说明"));
        assert!((0.5..1.0).contains(&similarity), "{similarity}");
        assert_eq!(set("これは何ですか。"), set("これは何ですか"));
    }
}
