//! One text as the judge compares it: tokens with all that is known of them.

use super::lexicon::{Lexicon, Phrase, Word, flag};
use super::normal::{normalise, without_accents};
use super::scan::{Found, Kind, scan};
use crate::dedup::text::hash_word;

/// A token and what is known of it.
#[derive(Debug, Clone)]
pub struct Token {
    /// Its spelling, lower case except where case means something.
    pub text: Box<str>,
    /// What it is.
    pub kind: Kind,
    /// Of the spelling.
    pub(crate) hash: u64,
    /// Of the basic form; the hash of the spelling where that is not known.
    pub(crate) lemma: u64,
    /// Of the first synonym.
    pub(crate) meaning: u64,
    /// Bits of [`flag`].
    pub(crate) flags: u16,
    /// Never explained away: a name, quoted, or an identifier.
    pub(crate) fixed: Option<Fixed>,
    /// Part of a phrase of courtesy at an edge of its sentence.
    pub(crate) courtesy: bool,
    pub(crate) sentence: u32,
}

/// Why a word is never explained away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fixed {
    Quoted,
    Name,
    Identifier,
}

impl Token {
    pub(crate) fn is(&self, bits: u16) -> bool {
        self.flags & bits != 0
    }

    /// Whether it must be the same in both texts, whatever else is explained.
    pub(crate) fn is_hard(&self) -> bool {
        self.kind != Kind::Word || self.is(flag::NEGATION)
    }

    /// Whether it may come or go.
    pub(crate) fn is_free(&self) -> bool {
        self.is(flag::FREE) && self.fixed.is_none()
    }
}

/// One text, read once and compared often.
#[derive(Debug, Clone)]
pub struct Prepared {
    pub(crate) tokens: Vec<Token>,
    /// Of every sentence that has tokens, whether it is a question.
    pub(crate) questions: Vec<bool>,
    /// Of all tokens in order.
    pub(crate) whole: u64,
    /// Of the tokens that must be the same, in any order.
    pub(crate) hard: u64,
    english: bool,
}

impl Prepared {
    /// Read a text; `is_known` says of the hash of an unlisted word whether the corpus has it often.
    pub fn new(text: &str, lexicon: &Lexicon, is_known: impl Fn(u64) -> bool) -> Self {
        let scanned = scan(&normalise(text));
        // All words are looked up before anything is decided: most of the time goes by waiting for the
        // memory of the table, and so the words do not wait for each other.
        let known: Vec<Option<&Word>> = scanned
            .tokens
            .iter()
            .map(|token| lexicon.get(hash_word(&token.text)).filter(|_| token.kind == Kind::Word))
            .collect();
        let english = is_english(&scanned.tokens, &known);
        let mut tokens: Vec<Token> = scanned
            .tokens
            .into_iter()
            .zip(known)
            .map(|(found, word)| {
                if english {
                    english_token(found, word, lexicon, &is_known)
                } else {
                    other_token(found)
                }
            })
            .collect();
        if english {
            keep_quantities(&mut tokens);
            mark_courtesy(&mut tokens, lexicon);
        }
        let whole = tokens.iter().fold(0, |hash: u64, token| {
            (hash ^ token.hash).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31)
        });
        let hard = tokens.iter().filter(|token| token.is_hard());
        let hard = hard.fold(0, |sum: u64, token| sum.wrapping_add(mix(token.hash)));
        Self { tokens, questions: scanned.questions, whole, hard, english }
    }

    /// Whether the word lists were used; other languages are compared without.
    pub fn uses_word_lists(&self) -> bool {
        self.english
    }

    /// Whether a sentence of it is a question.
    pub fn asks(&self) -> bool {
        self.questions.contains(&true)
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The tokens in the order of the text.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }
}

fn mix(hash: u64) -> u64 {
    (hash ^ hash >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

/// At least three of five words are known, and a longer text has a word of English grammar.
fn is_english(tokens: &[Found], known: &[Option<&Word>]) -> bool {
    let mut counts = [0_usize; 3];
    let words = tokens.iter().zip(known);
    for (_, word) in words.filter(|(token, _)| token.kind == Kind::Word && !token.identifier) {
        counts[0] += 1;
        counts[1] += usize::from(word.is_some());
        counts[2] += usize::from(word.is_some_and(|word| word.is(flag::STRONG)));
    }
    let [words, known, strong] = counts;
    let characters = tokens.iter().filter(|token| token.kind == Kind::Character).count();
    words > 0
        && 2 * characters <= words
        && 5 * known >= 3 * words
        && (words < 6 || 20 * strong >= words)
}

/// Without word lists: the spelling is all.
fn other_token(found: Found) -> Token {
    let text = match found.kind {
        Kind::Variable if found.between_words => found.text.to_lowercase(),
        _ => found.text,
    };
    let hash = hash_word(&text);
    Token {
        text: text.into(),
        kind: found.kind,
        hash,
        lemma: hash,
        meaning: hash,
        flags: 0,
        fixed: None,
        courtesy: false,
        sentence: found.sentence,
    }
}

fn english_token(
    found: Found,
    word: Option<&Word>,
    lexicon: &Lexicon,
    is_known: impl Fn(u64) -> bool,
) -> Token {
    let fixed = match &found {
        Found { quoted: true, .. } => Some(Fixed::Quoted),
        Found { identifier: true, .. } => Some(Fixed::Identifier),
        Found { name: true, .. } => Some(Fixed::Name),
        _ => None,
    };
    let mut token = Token { fixed, ..other_token(Found { between_words: false, ..found }) };
    if token.kind != Kind::Word {
        return token;
    }
    if let Some(digits) = lexicon.digits(token.hash) {
        let hash = hash_word(digits);
        return Token {
            text: digits.into(),
            kind: Kind::Number,
            hash,
            lemma: hash,
            meaning: hash,
            ..token
        };
    }
    let plain = || {
        let plain = (!token.text.is_ascii()).then(|| without_accents(&token.text))?;
        lexicon.get(hash_word(&plain))
    };
    if let Some(word) = word.or_else(plain) {
        (token.lemma, token.meaning, token.flags) = (word.lemma, word.meaning, word.flags);
    } else if is_known(token.hash) {
        token.flags = flag::KNOWN;
    }
    // Grammar and courtesy begin with a capital behind a comma too, and are no names.
    if token.is(flag::EMPTY) && token.fixed == Some(Fixed::Name) {
        token.fixed = None;
    }
    token
}

/// `a few` is not `few`.
fn keep_quantities(tokens: &mut [Token]) {
    for at in 1..tokens.len() {
        if matches!(&*tokens[at].text, "few" | "little" | "lot") && &*tokens[at - 1].text == "a" {
            tokens[at - 1].flags &= !flag::FREE;
        }
    }
}

/// Phrases of courtesy from both edges of every sentence inwards.
fn mark_courtesy(tokens: &mut [Token], lexicon: &Lexicon) {
    for sentence in tokens.chunk_by_mut(|a, b| a.sentence == b.sentence) {
        let mut start = 0;
        while let Some(length) = lexicon.courtesy.iter().find_map(|phrase| {
            let follows = |token: &Token| token.is(flag::REQUEST);
            let length = phrase.meanings.len();
            let complete = starts_with(sentence.get(start..)?, phrase)
                && (!phrase.before_request || sentence.get(start + length).is_some_and(follows));
            complete.then_some(length)
        }) {
            sentence[start..start + length].iter_mut().for_each(|token| token.courtesy = true);
            start += length;
        }
        let mut end = sentence.len();
        while let Some(length) = lexicon.closing.iter().find_map(|phrase| {
            let begin = end.checked_sub(phrase.meanings.len()).filter(|begin| *begin >= start)?;
            // What is left must still be a question.
            let left = sentence[start..begin].iter().filter(|token| !token.is_free()).count();
            (left >= 2 && starts_with(&sentence[begin..end], phrase)).then_some(end - begin)
        }) {
            sentence[end - length..end].iter_mut().for_each(|token| token.courtesy = true);
            end -= length;
        }
    }
}

fn starts_with(tokens: &[Token], phrase: &Phrase) -> bool {
    tokens.len() >= phrase.meanings.len()
        && phrase.meanings.iter().zip(tokens).all(|(meaning, token)| {
            token.meaning == *meaning && token.kind == Kind::Word && token.fixed.is_none()
        })
}
