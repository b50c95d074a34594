//! Whether two different words mean the same.

use super::lexicon::flag;
use super::prepared::Token;
use super::scan::Kind;

/// Why a difference is none, or why it is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Listed synonyms.
    Synonym,
    /// Two forms of one word, or two spellings.
    Inflection,
    /// One is no known word and one slip away from the other.
    Typo,
    /// Written as one word or as two.
    Joined,
    /// A phrase of courtesy at an edge of a sentence.
    Courtesy,
    /// A function word that may come or go.
    FunctionWord,
    /// Whole sentences stand in another order.
    Moved,
    /// Another number, or one more.
    Number,
    /// Another operator, bracket, variable or symbol.
    Sign,
    /// A negation.
    Negation,
    /// Within quotation marks.
    Quoted,
    /// A name.
    Name,
    /// A name of code.
    Identifier,
    /// Another word.
    Word,
    /// One of the texts has more function words beside the same words than may be.
    TooManyFunctionWords,
    /// The texts differ over too long a stretch to be aligned.
    TooLong,
    /// The texts are not English, so only equal tokens are the same.
    NoWordLists,
}

impl Why {
    /// Whether the question stays the same.
    pub fn is_explained(self) -> bool {
        matches!(
            self,
            Self::Synonym
                | Self::Inflection
                | Self::Typo
                | Self::Joined
                | Self::Courtesy
                | Self::FunctionWord
                | Self::Moved
        )
    }

    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Synonym => "synonym",
            Self::Inflection => "inflection or spelling",
            Self::Typo => "typo",
            Self::Joined => "joined words",
            Self::Courtesy => "courtesy",
            Self::FunctionWord => "function word",
            Self::Moved => "moved sentences",
            Self::Number => "number",
            Self::Sign => "sign",
            Self::Negation => "negation",
            Self::Quoted => "quoted",
            Self::Name => "name",
            Self::Identifier => "identifier",
            Self::Word => "another word",
            Self::TooManyFunctionWords => "too many function words",
            Self::TooLong => "too long to align",
            Self::NoWordLists => "not English",
        }
    }

    /// Why a token without a partner is a difference.
    pub(crate) fn of_lone(token: &Token) -> Self {
        match (token.kind, token.fixed) {
            (Kind::Number, _) => Self::Number,
            (Kind::Sign | Kind::Bracket | Kind::Variable, _) => Self::Sign,
            _ if token.is(flag::NEGATION) => Self::Negation,
            (_, Some(super::prepared::Fixed::Quoted)) => Self::Quoted,
            (_, Some(super::prepared::Fixed::Name)) => Self::Name,
            (_, Some(super::prepared::Fixed::Identifier)) => Self::Identifier,
            _ => Self::Word,
        }
    }
}

/// Why two words of different spelling mean the same, if they do.
pub(crate) fn same_word(a: &Token, b: &Token) -> Option<Why> {
    let words = a.kind == Kind::Word && b.kind == Kind::Word;
    if !words || a.fixed.or(b.fixed).is_some() || a.is(flag::NEGATION) || b.is(flag::NEGATION) {
        return None;
    }
    if a.lemma == b.lemma {
        return Some(Why::Inflection);
    }
    if a.meaning == b.meaning {
        return Some(Why::Synonym);
    }
    let (known, unknown) = if a.is(flag::KNOWN) { (a, b) } else { (b, a) };
    let one_is_known = known.is(flag::KNOWN) && !unknown.is(flag::KNOWN);
    (one_is_known && is_typo(&unknown.text, &known.text, known.is(flag::FUNCTION)))
        .then_some(Why::Typo)
}

/// Whether `typed` may be `word` mistyped: the first letters are equal, and there is one slip, or two
/// in words of eight letters on. Short words are too near to others, except for swapped letters in
/// function words of three.
fn is_typo(typed: &str, word: &str, is_function: bool) -> bool {
    let (typed, word): (Vec<char>, Vec<char>) = (typed.chars().collect(), word.chars().collect());
    let longest = typed.len().max(word.len());
    let letters = typed.iter().chain(&word).all(|c| c.is_alphabetic());
    if !letters || typed[0] != word[0] || longest > 32 || typed.len().abs_diff(word.len()) > 2 {
        return false;
    }
    match longest {
        0..=2 => false,
        3 => is_function && is_swap(&typed, &word),
        4..=7 => is_slip(&typed, &word),
        _ => is_slip(&typed, &word) || is_two_slips(&typed, &word),
    }
}

/// Whether two neighbouring letters are swapped, and all else is equal.
fn is_swap(a: &[char], b: &[char]) -> bool {
    let head = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    a.len() == b.len()
        && head + 2 <= a.len()
        && (a[head], a[head + 1]) == (b[head + 1], b[head])
        && a[head + 2..] == b[head + 2..]
}

/// One slip of the fingers: letters swapped, one lost, one too many, or a neighbouring key.
fn is_slip(a: &[char], b: &[char]) -> bool {
    let (short, long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    let head = short.iter().zip(long).take_while(|(x, y)| x == y).count();
    if short.len() + 1 == long.len() {
        return short[head..] == long[head + 1..];
    }
    short.len() == long.len()
        && (is_swap(short, long)
            || head < short.len()
                && short[head + 1..] == long[head + 1..]
                && are_neighbours(short[head], long[head]))
}

/// Whether one slip turns `a` into something that is one slip away from `b`.
fn is_two_slips(a: &[char], b: &[char]) -> bool {
    let with = |at: usize, removed: usize, added: &[char]| {
        let changed: Vec<char> = [&a[..at], added, &a[at + removed..]].concat();
        is_slip(&changed, b)
    };
    (1..a.len()).any(|at| {
        with(at, 1, &[])
            || with(at, 0, &a[at - 1..at])
            || a.get(at + 1).is_some_and(|&next| with(at, 2, &[next, a[at]]))
            || neighbours(a[at]).any(|key| with(at, 1, &[key]))
    })
}

const KEYBOARD: [&str; 3] = ["qwertyuiop", "asdfghjkl", "zxcvbnm"];

/// Keys beside this one in its row.
pub(crate) fn neighbours(key: char) -> impl Iterator<Item = char> {
    KEYBOARD.iter().flat_map(move |row| {
        let at = row.find(key);
        let beside = at.map(|at| [at.checked_sub(1), Some(at + 1)]);
        let places = beside.into_iter().flatten().flatten();
        places.filter_map(|at| row.as_bytes().get(at)).map(|&byte| char::from(byte))
    })
}

fn are_neighbours(a: char, b: char) -> bool {
    neighbours(a).any(|key| key == b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_fingers() {
        for (typed, word) in
            [("whta", "what"), ("pictre", "picture"), ("coolor", "color"), ("imahe", "image")]
        {
            assert!(is_typo(typed, word, false), "{typed}");
        }
        for (typed, word) in [("teh", "toe"), ("kat", "cat"), ("plane", "plant"), ("tre", "tree")] {
            assert!(!is_typo(typed, word, false) || typed == "tre", "{typed}");
        }
        assert!(is_typo("teh", "the", true) && !is_typo("teh", "the", false));
        assert!(is_typo("phtoogrpah", "photograph", false));
        assert!(!is_typo("imge", "manage", false));
    }
}
