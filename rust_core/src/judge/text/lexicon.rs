//! What is known of English: words, their inflections, synonyms, and phrases of courtesy.
//!
//! The word lists are SCOWL's, the rest is written by hand; `data/README.md` has sources and licences.
//! A word has a lemma (the same for its plural and its British spelling) and a meaning (the same for
//! listed synonyms too). Both are hashes, so that two words are compared by two numbers.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::OnceLock;

use super::normal::without_accents;
use crate::dedup::text::hash_word;

const WORDS: &str = include_str!("data/words.txt");
const VARIANTS: &str = include_str!("data/variants.txt");
const ENGLISH: &str = include_str!("data/english.txt");

/// What may be said of a word, one bit each.
pub mod flag {
    /// In a word list.
    pub const KNOWN: u16 = 1;
    /// In a list of common words.
    pub const COMMON: u16 = 2;
    /// May come or go without a change of the question.
    pub const FREE: u16 = 4;
    /// A word of the grammar.
    pub const FUNCTION: u16 = 8;
    /// Marks a text as English.
    pub const STRONG: u16 = 16;
    /// Denies something.
    pub const NEGATION: u16 = 32;
    /// Has no synonyms and inflections.
    pub const PROTECTED: u16 = 64;
    /// Asks for an answer after `can you`.
    pub const REQUEST: u16 = 128;
    /// Says nothing of what a question is about: grammar, negation, courtesy.
    pub const EMPTY: u16 = 256;
}

/// What is known of one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    /// Hash of its basic form.
    pub lemma: u64,
    /// Hash of the first of its synonyms.
    pub meaning: u64,
    /// Bits of [`flag`].
    pub flags: u16,
}

impl Word {
    /// Whether it has one of these bits.
    pub fn is(&self, bits: u16) -> bool {
        self.flags & bits != 0
    }
}

/// A phrase of courtesy, as the meanings of its words.
#[derive(Debug)]
pub(crate) struct Phrase {
    pub(crate) meanings: Vec<u64>,
    /// A request must follow, which stays.
    pub(crate) before_request: bool,
}

/// Keys are hashes already.
#[derive(Debug, Default)]
pub struct SameHash(u64);

impl Hasher for SameHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// A map from 64-bit hashes.
pub(crate) type HashKeyed<T> = HashMap<u64, T, BuildHasherDefault<SameHash>>;

/// Words and phrases of one language.
#[derive(Debug)]
pub struct Lexicon {
    words: HashKeyed<Word>,
    subjects: Subjects,
    numbers: HashKeyed<&'static str>,
    /// Longest first.
    pub(crate) courtesy: Vec<Phrase>,
    /// Longest first.
    pub(crate) closing: Vec<Phrase>,
}

impl Lexicon {
    /// That of English; read once in a process.
    pub fn english() -> &'static Self {
        static ENGLISH: OnceLock<Lexicon> = OnceLock::new();
        ENGLISH.get_or_init(Self::read)
    }

    /// What is known of the lower-case word with this hash.
    pub fn get(&self, hash: u64) -> Option<&Word> {
        self.words.get(&hash)
    }

    /// What the lower-case word with this hash adds to the subject of a text: 0 if it says nothing, and
    /// none for a word that is not known.
    #[inline]
    pub fn subject(&self, hash: u64) -> Option<u32> {
        self.subjects.get(hash)
    }

    /// The digits that a word of a number stands for.
    pub fn digits(&self, hash: u64) -> Option<&'static str> {
        self.numbers.get(&hash).copied()
    }

    fn read() -> Self {
        let sections = Sections::read(ENGLISH);
        let mut flags: HashMap<&str, u16> = HashMap::new();
        for line in WORDS.lines() {
            match line.strip_suffix('+') {
                Some(word) => flags.insert(word, flag::KNOWN | flag::COMMON),
                None => flags.insert(line, flag::KNOWN),
            };
        }
        for (section, bit) in [
            ("free", flag::FREE | flag::FUNCTION),
            ("function", flag::FUNCTION),
            ("strong", flag::STRONG),
            ("negation", flag::NEGATION),
            ("protected", flag::PROTECTED),
            ("requests", flag::REQUEST),
            ("contracted", flag::EMPTY),
        ] {
            for word in sections.entries(section) {
                *flags.entry(word).or_default() |= bit | flag::KNOWN;
            }
        }
        let phrases = sections.entries("courtesy").chain(sections.entries("closing"));
        for word in phrases.flat_map(|phrase| phrase.split(' ')).filter(|word| *word != "~") {
            *flags.entry(word).or_default() |= flag::EMPTY | flag::KNOWN;
        }
        let grammar = flag::FUNCTION | flag::NEGATION;
        for flags in flags.values_mut().filter(|flags| **flags & grammar != 0) {
            *flags |= flag::EMPTY;
        }
        let listed = ["synonyms", "inflections"].map(|section| sections.pairs(section));
        for (word, _) in listed.into_iter().flatten() {
            *flags.entry(word).or_default() |= flag::KNOWN;
        }
        let forms = Forms::new(&sections, &flags);
        let empty: HashSet<&str> = flags
            .iter()
            .filter(|(_, flags)| **flags & flag::EMPTY != 0)
            .map(|(word, _)| forms.of(word).1)
            .collect();
        let words: HashKeyed<Word> = flags
            .iter()
            .map(|(&word, &flags)| {
                let (lemma, meaning) = forms.of(word);
                let flags = flags | (flag::EMPTY * u16::from(empty.contains(meaning)));
                (
                    hash_word(word),
                    Word { lemma: hash_word(lemma), meaning: hash_word(meaning), flags },
                )
            })
            .collect();
        let numbers: HashKeyed<&str> = sections
            .entries("numbers")
            .filter_map(|entry| entry.split_once(' '))
            .map(|(word, digits)| (hash_word(word), digits))
            .collect();
        let listed = words.iter().filter(|(hash, word)| word.is(flag::EMPTY) || !is_letter(**hash));
        let subjects = Subjects::new(listed.map(|(&hash, word)| {
            let digits = numbers.get(&hash).map(|digits| hash_word(digits));
            let meaning = digits.unwrap_or(if word.is(flag::EMPTY) { 0 } else { word.meaning });
            (hash, meaning as u32)
        }));
        let mut lexicon =
            Self { words, subjects, numbers, courtesy: Vec::new(), closing: Vec::new() };
        lexicon.courtesy = lexicon.phrases(&sections, "courtesy");
        lexicon.closing = lexicon.phrases(&sections, "closing");
        lexicon
    }

    fn phrases(&self, sections: &Sections, section: &str) -> Vec<Phrase> {
        let mut phrases: Vec<Phrase> = sections
            .entries(section)
            .map(|entry| {
                let words = entry.split(' ').filter(|word| *word != "~");
                let hashes = words.map(hash_word);
                let meaning = |hash| self.get(hash).map_or(hash, |word| word.meaning);
                Phrase {
                    meanings: hashes.map(meaning).collect(),
                    before_request: entry.ends_with('~'),
                }
            })
            .collect();
        phrases.sort_by_key(|phrase| std::cmp::Reverse(phrase.meanings.len()));
        phrases
    }
}

fn is_letter(hash: u64) -> bool {
    ('a'..='z').any(|letter| hash_word(letter.encode_utf8(&mut [0; 4])) == hash)
}

/// Numbers by the hash of a word, 8 bytes an entry, so that most of the table stays in the cache.
#[derive(Debug)]
struct Subjects {
    /// The high half of the hash, never 0 where there is an entry, and the number.
    slots: Vec<[u32; 2]>,
}

impl Subjects {
    fn new(entries: impl Iterator<Item = (u64, u32)>) -> Self {
        let mut entries: Vec<(u64, u32)> = entries.collect();
        // Slots must not depend on the order of a hash map.
        entries.sort_unstable();
        let mut slots = vec![[0; 2]; (entries.len() * 3 / 2).next_power_of_two()];
        let mask = slots.len() - 1;
        for (hash, number) in entries {
            let mut slot = hash as usize & mask;
            while slots[slot][0] != 0 {
                slot = (slot + 1) & mask;
            }
            slots[slot] = [Self::tag(hash), number];
        }
        Self { slots }
    }

    fn tag(hash: u64) -> u32 {
        (hash >> 32) as u32 | 1
    }

    #[inline]
    fn get(&self, hash: u64) -> Option<u32> {
        let mask = self.slots.len() - 1;
        let mut slot = hash as usize & mask;
        loop {
            match self.slots[slot] {
                [0, _] => return None,
                [tag, number] if tag == Self::tag(hash) => return Some(number),
                _ => slot = (slot + 1) & mask,
            }
        }
    }
}

/// `english.txt`: lists of entries by section.
struct Sections(HashMap<&'static str, Vec<&'static str>>);

impl Sections {
    fn read(text: &'static str) -> Self {
        let mut sections: HashMap<&str, Vec<&str>> = HashMap::new();
        let mut section = "";
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some((name, _)) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
                section = name;
            } else {
                let entries = line.split(", ").map(str::trim).filter(|entry| !entry.is_empty());
                sections.entry(section).or_default().extend(entries);
            }
        }
        Self(sections)
    }

    fn entries(&self, section: &str) -> impl Iterator<Item = &'static str> {
        self.0.get(section).into_iter().flatten().copied()
    }

    /// Every further word of an entry, with the first.
    fn pairs(&self, section: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.entries(section).filter_map(|entry| entry.split_once(' ')).flat_map(|(first, rest)| {
            rest.split(' ').map(move |word| (word, first)).chain([(first, first)])
        })
    }
}

/// From a word to its basic form and to the first of its synonyms.
struct Forms<'a> {
    flags: &'a HashMap<&'static str, u16>,
    variants: HashMap<&'static str, &'static str>,
    synonyms: HashMap<&'static str, &'static str>,
    singular: Vec<&'static str>,
}

impl<'a> Forms<'a> {
    fn new(sections: &Sections, flags: &'a HashMap<&'static str, u16>) -> Self {
        let listed = VARIANTS.lines().filter_map(|line| line.split_once(' '));
        let mut singular: Vec<&str> = sections.entries("singular").collect();
        singular.sort_unstable();
        Self {
            flags,
            variants: listed.chain(sections.pairs("inflections")).collect(),
            synonyms: sections.pairs("synonyms").collect(),
            singular,
        }
    }

    fn of(&self, word: &'static str) -> (&'static str, &'static str) {
        let lemma = self.lemma(word);
        (lemma, self.synonyms.get(lemma).copied().unwrap_or(lemma))
    }

    /// Spelling first, then the singular, then its spelling.
    fn lemma(&self, word: &'static str) -> &'static str {
        let word = self.variant(word);
        if self.has(word, flag::PROTECTED) || self.synonyms.contains_key(word) {
            return word;
        }
        match self.singular_of(word) {
            Some(singular) => self.variant(singular),
            None => word,
        }
    }

    fn variant(&self, word: &'static str) -> &'static str {
        let plain = (!word.is_ascii())
            .then(|| self.flags.get_key_value(without_accents(word).as_str()))
            .flatten()
            .map_or(word, |(plain, _)| plain);
        self.variants.get(plain).copied().unwrap_or(plain)
    }

    fn has(&self, word: &str, bits: u16) -> bool {
        self.flags.get(word).is_some_and(|flags| flags & bits != 0)
    }

    /// A known word of at least three letters of which this one is the regular plural.
    fn singular_of(&self, word: &'static str) -> Option<&'static str> {
        let stem = word.strip_suffix('s')?;
        let irregular =
            self.singular.binary_search(&word).is_ok() || stem.ends_with(['s', 'u', 'i']);
        if irregular || self.has(word, flag::FUNCTION) {
            return None;
        }
        let known = |stem: &str| {
            stem.chars().count() >= 3
                && self.has(stem, flag::KNOWN)
                && !self.has(stem, flag::PROTECTED | flag::FUNCTION | flag::NEGATION)
        };
        if let Some(root) = word.strip_suffix("ies")
            && let Some((singular, _)) = self.flags.get_key_value(format!("{root}y").as_str())
            && known(singular)
        {
            return Some(singular);
        }
        if let Some(root) = stem.strip_suffix('e')
            && root.ends_with(['s', 'x', 'z', 'h', 'o'])
            && known(root)
        {
            return Some(root);
        }
        Some(stem).filter(|stem| known(stem))
    }
}
