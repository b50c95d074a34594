//! From the normal form to tokens: what means something, and in which sentence it stands.
//!
//! | token | what |
//! |---|---|
//! | word | letters, digits and `_` from a letter on; contractions as their words (`don't`: do not) |
//! | variable | a single letter, its case kept, unless it is the word `a` or `I` |
//! | number | digits with `.`, `,`, `:`, `/` between them; separators of thousands dropped |
//! | sign | operators, units' signs, `!` of a factorial, a prime, `-` in mathematics, `.` inside a name |
//! | bracket | beside numbers, signs and variables alone |
//! | character | of a script without spaces, with its marks |
//!
//! Other punctuation, marks of lists and emphasis are no tokens.

use unicode_normalization::char::is_combining_mark;

use super::normal::is_unspaced;

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A word, or part of a contraction.
    Word,
    /// A single letter that stands for something.
    Variable,
    /// Digits.
    Number,
    /// An operator or a symbol.
    Sign,
    /// One of `()[]{}`.
    Bracket,
    /// One character of a script without spaces.
    Character,
}

/// A token as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is found and read by itself")]
pub(crate) struct Found {
    /// Lower case, except where case means something.
    pub(crate) text: String,
    pub(crate) kind: Kind,
    /// A capital where none is due, so that it may be a name.
    pub(crate) name: bool,
    /// Between quotation marks.
    pub(crate) quoted: bool,
    /// Of code: with digits, `_` or a capital inside.
    pub(crate) identifier: bool,
    /// A single letter between words: a word in some languages.
    pub(crate) between_words: bool,
    /// Number of its sentence.
    pub(crate) sentence: u32,
}

/// Tokens, and of every sentence whether it is a question.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) tokens: Vec<Found>,
    pub(crate) questions: Vec<bool>,
}

/// The tokens of a text in normal form.
pub(crate) fn scan(normal: &str) -> Scan {
    let characters: Vec<char> = normal.chars().collect();
    let mut scanner = Scanner::new(&characters);
    scanner.run();
    scanner.drop_plain_brackets();
    Scan { tokens: scanner.tokens, questions: scanner.questions }
}

pub(super) struct Scanner<'a> {
    pub(super) text: &'a [char],
    pub(super) at: usize,
    pub(super) tokens: Vec<Found>,
    questions: Vec<bool>,
    pub(super) quote: Option<char>,
    /// Places of marks of emphasis.
    pub(super) emphasis: Vec<usize>,
    /// No letter differs in case from another.
    one_case: bool,
    /// Capitals are few enough to mean something.
    capitals_mean: bool,
}

pub(super) fn is_letter(character: char) -> bool {
    character.is_alphabetic() || !character.is_ascii() && is_combining_mark(character)
}

pub(super) fn is_in_word(character: char) -> bool {
    character.is_alphanumeric()
        || character == '_'
        || !character.is_ascii() && is_combining_mark(character)
}

/// `n't` written without its apostrophe.
const UNMARKED: [&str; 16] = [
    "aren", "isn", "wasn", "weren", "don", "doesn", "didn", "hasn", "haven", "hadn", "couldn",
    "wouldn", "shouldn", "mustn", "needn", "ain",
];

/// Units of which a capital makes another one: milli and mega, byte and bit.
const MEGA: [&str; 8] = ["MW", "MV", "MJ", "MA", "Mg", "MΩ", "Mb", "Gb"];

impl<'a> Scanner<'a> {
    fn new(text: &'a [char]) -> Self {
        let cased = || text.iter().filter(|c| c.is_uppercase() || c.is_lowercase());
        let one_case = cased().all(|c| c.is_uppercase()) || cased().all(|c| c.is_lowercase());
        let words =
            || text.split(|c| !c.is_alphabetic()).filter(|word| word.len() > 1).map(|word| word[0]);
        let capitals = words().filter(|first| first.is_uppercase()).count();
        Self {
            text,
            at: 0,
            tokens: Vec::new(),
            questions: vec![false],
            quote: None,
            emphasis: Vec::new(),
            one_case,
            capitals_mean: !one_case && 5 * capitals < 3 * words().count(),
        }
    }

    /// The character `offset` away, a line's end outside the text.
    pub(super) fn peek(&self, offset: isize) -> char {
        let place = self.at.checked_add_signed(offset);
        place.and_then(|place| self.text.get(place)).copied().unwrap_or('\n')
    }

    fn run(&mut self) {
        while let Some(&character) = self.text.get(self.at) {
            if character == '\n' {
                self.end_sentence(false);
                self.quote = None;
                self.at += 1;
            } else if character.is_ascii_digit()
                || character == '.'
                    && self.peek(1).is_ascii_digit()
                    && !is_in_word(self.peek(-1))
                    && self.peek(-1) != '.'
            {
                self.number();
            } else if is_letter(character) {
                self.word();
            } else {
                self.sign(character);
            }
        }
    }

    pub(super) fn end_sentence(&mut self, question: bool) {
        let sentence = self.questions.len() as u32 - 1;
        if self.tokens.last().is_some_and(|last| last.sentence == sentence) {
            if let Some(last) = self.questions.last_mut() {
                *last |= question;
            }
            self.questions.push(false);
        } else if question && sentence > 0 {
            // `?!` and `??`.
            self.questions[sentence as usize - 1] = true;
        }
    }

    fn starts_sentence(&self) -> bool {
        let sentence = self.questions.len() as u32 - 1;
        self.tokens.last().is_none_or(|last| last.sentence != sentence)
    }

    pub(super) fn push(&mut self, text: String, kind: Kind) -> &mut Found {
        self.tokens.push(Found {
            text,
            kind,
            name: false,
            quoted: self.quote.is_some(),
            identifier: false,
            between_words: false,
            sentence: self.questions.len() as u32 - 1,
        });
        let last = self.tokens.len() - 1;
        &mut self.tokens[last]
    }

    fn number(&mut self) {
        let start = self.at;
        self.at += usize::from(self.text[start] == '.');
        while self.peek(0).is_ascii_digit()
            || matches!(self.peek(0), '.' | ',' | ':' | '/') && self.peek(1).is_ascii_digit()
        {
            self.at += 1;
        }
        let mut digits: String = self.text[start..self.at].iter().collect();
        let opened = start > 0 && matches!(self.text[start - 1], '(' | '[' | '{');
        if !opened && has_thousands(&digits) {
            digits.retain(|c| c != ',');
        }
        if digits.starts_with('.') {
            digits.insert(0, '0');
        }
        self.push(digits, Kind::Number);
    }

    fn word(&mut self) {
        let start = self.at;
        if let Some(end) = self.abbreviation() {
            let letters = self.text[start..end].iter().filter(|c| **c != '.');
            let text = letters.flat_map(|c| c.to_lowercase()).collect();
            let name = self.capitals_mean && self.text[start].is_uppercase();
            self.push(text, Kind::Word).name = name;
            self.at = end;
            return;
        }
        while is_in_word(self.peek(0))
            || self.peek(0) == '\'' && is_letter(self.peek(1)) && self.at > start
        {
            self.at += 1;
        }
        while self.text[self.at - 1] == '_' {
            self.at -= 1;
        }
        let raw = &self.text[start..self.at];
        if raw.iter().any(|&c| is_unspaced(c)) {
            self.unspaced(start);
        } else if raw.len() == 1 {
            self.single_letter(raw[0]);
        } else {
            self.long_word(start);
        }
    }

    /// The end of letters with a full stop behind each: `e.g.`, `U.S.A.`.
    fn abbreviation(&self) -> Option<usize> {
        let pair = |at: usize| {
            self.text.get(at).is_some_and(|c| c.is_alphabetic() && !is_unspaced(*c))
                && self.text.get(at + 1) == Some(&'.')
        };
        let mut end = self.at;
        while pair(end) {
            end += 2;
        }
        let whole = !self.text.get(end).is_some_and(|c| is_in_word(*c));
        (end >= self.at + 4 && whole && !is_in_word(self.peek(-1))).then_some(end)
    }

    fn unspaced(&mut self, start: usize) {
        let mut word = String::new();
        let text = self.text;
        for &character in &text[start..self.at] {
            if is_unspaced(character) {
                if !word.is_empty() {
                    let before = std::mem::take(&mut word);
                    self.push(before, Kind::Word);
                }
                match self.tokens.last_mut() {
                    Some(last) if is_combining_mark(character) && last.kind == Kind::Character => {
                        last.text.push(character);
                    }
                    _ => {
                        self.push(character.to_string(), Kind::Character);
                    }
                }
            } else if character != '\'' {
                word.extend(character.to_lowercase());
            }
        }
        if !word.is_empty() {
            self.push(word, Kind::Word);
        }
    }

    fn single_letter(&mut self, letter: char) {
        let before = self.text.get(self.at.wrapping_sub(2)).copied().unwrap_or('\n');
        let next = self.peek(1);
        let word_follows = self.peek(0) == ' '
            && (next.is_ascii_digit()
                || matches!(next, '"' | '\'')
                || is_letter(next) && is_in_word(self.peek(2)));
        let after_word = self.starts_sentence()
            || self.tokens.last().is_some_and(|last| last.kind == Kind::Word);
        let between_words = matches!(before, ' ' | '\n' | '"' | '\'') && word_follows && after_word;
        let lower: String = letter.to_lowercase().collect();
        if between_words && matches!(letter, 'a' | 'A' | 'i' | 'I') {
            self.push(lower, Kind::Word);
            return;
        }
        let text = if self.one_case { lower } else { letter.to_string() };
        self.push(text, Kind::Variable).between_words = between_words;
    }

    fn long_word(&mut self, start: usize) {
        let raw = &self.text[start..self.at];
        let after_number = self.tokens.last().is_some_and(|last| last.kind == Kind::Number);
        if after_number && MEGA.iter().any(|unit| unit.chars().eq(raw.iter().copied())) {
            self.push(raw.iter().collect(), Kind::Sign);
            return;
        }
        let lower = lower_case(raw);
        let capital = raw[0].is_uppercase();
        let capitals = capital && raw.iter().all(|c| !c.is_lowercase());
        let name = self.capitals_mean && capital && (capitals || !self.starts_sentence());
        let inner = raw.windows(2).any(|pair| pair[0].is_lowercase() && pair[1].is_uppercase());
        let identifier = inner || raw.iter().any(|c| *c == '_' || c.is_numeric());
        let parts = match expanded(&lower) {
            [_, ""] => vec![lower],
            parts => parts.map(str::to_owned).to_vec(),
        };
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            let found = self.push(part, Kind::Word);
            (found.name, found.identifier) = (name, identifier);
        }
    }

    /// Brackets around words alone say nothing.
    fn drop_plain_brackets(&mut self) {
        let kinds: Vec<(Kind, bool)> = self
            .tokens
            .iter()
            .map(|token| (token.kind, matches!(token.text.as_str(), "#" | "@" | "$" | "%" | "&")))
            .collect();
        let means = |&(kind, plain): &(Kind, bool)| match kind {
            Kind::Number | Kind::Variable => true,
            Kind::Sign => !plain,
            _ => false,
        };
        let mut place = 0..;
        self.tokens.retain(|token| {
            let at = place.next().unwrap_or_default();
            let near = &kinds[usize::max(at, 2) - 2..kinds.len().min(at + 3)];
            token.kind != Kind::Bracket || near.iter().any(means)
        });
    }
}

fn lower_case(word: &[char]) -> String {
    if !word.iter().all(char::is_ascii) {
        return word.iter().collect::<String>().to_lowercase();
    }
    let mut lower = String::with_capacity(word.len());
    lower.extend(word.iter().map(char::to_ascii_lowercase));
    lower
}

/// The words of a contraction in lower case; of any other word, itself and an empty one.
fn expanded(word: &str) -> [&str; 2] {
    match word {
        "won't" | "wont" => return ["will", "not"],
        "can't" | "cannot" | "cant" => return ["can", "not"],
        "shan't" => return ["shall", "not"],
        "let's" => return ["let", "us"],
        _ => {}
    }
    let unmarked = || {
        let stem = word.strip_suffix('t').filter(|stem| UNMARKED.contains(stem))?;
        stem.strip_suffix('n')
    };
    match word.strip_suffix("n't").or_else(unmarked) {
        Some("ai") => return ["is", "not"],
        Some(verb) if !verb.is_empty() => return [verb, "not"],
        _ => {}
    }
    match word.rsplit_once('\'') {
        Some((head, "s")) => [head, "'s"],
        Some((head, "re")) => [head, "are"],
        Some((head, "ve")) => [head, "have"],
        Some((head, "ll")) => [head, "will"],
        Some((head, "m")) => [head, "am"],
        Some((head, "d")) => [head, "would"],
        _ => [word, ""],
    }
}

/// `1,000` and `12,345,678`.
fn has_thousands(digits: &str) -> bool {
    let mut groups = digits.split(',');
    let is_digits = |group: &str| group.bytes().all(|byte| byte.is_ascii_digit());
    let first = groups.next().is_some_and(|group| matches!(group.len(), 1..=3) && is_digits(group));
    first && digits.contains(',') && groups.all(|group| group.len() == 3 && is_digits(group))
}

#[cfg(test)]
mod tests {
    use super::super::normal::normalise;
    use super::*;

    fn tokens(text: &str) -> String {
        let found = scan(&normalise(text)).tokens;
        found.into_iter().map(|token| token.text).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn mathematics_keeps_its_signs() {
        assert_eq!(tokens("Compute (2 + 3) * 4."), "compute ( 2 + 3 ) * 4");
        assert_eq!(tokens("Is 5! = 120?"), "is 5 ! = 120");
        assert_eq!(tokens("Find f'(2) for f(x) = x³"), "find f ' ( 2 ) for f ( x ) = x ^ 3");
        assert_eq!(tokens("over [0, 1) and -5 - x"), "over [ 0 1 ) and - 5 - x");
        assert_eq!(tokens("1,000 or 3.5 or .5 or [1,200]"), "1000 or 3.5 or 0.5 or [ 1,200 ]");
        assert_eq!(tokens("Is 5 MW more than 5 mW?"), "is 5 MW more than 5 mw");
    }

    #[test]
    fn prose_does_not() {
        assert_eq!(tokens("A well-known (old) dog!"), "a well known old dog");
        assert_eq!(tokens("I don't, can't; they're"), "i do not can not they are");
        assert_eq!(
            tokens("**Bold** and _other_ words\n- one\n# Two"),
            "bold and other words one two"
        );
        assert_eq!(tokens("The U.S. uses e.g. os.path"), "the us uses eg os . path");
    }

    #[test]
    fn case_counts_in_single_letters() {
        assert_eq!(tokens("Is X more than x?"), "is X more than x");
        assert_eq!(tokens("IS X MORE"), "is x more");
        assert_eq!(tokens("A dog and I run"), "a dog and i run");
    }

    #[test]
    fn scripts_without_spaces_are_read_by_character() {
        assert_eq!(tokens("AI图片2"), "ai 图 片 2");
    }
}
