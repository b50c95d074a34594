//! What a short answer states, and when two of them contradict each other.
//!
//! | notation | of | compared by |
//! |---|---|---|
//! | letter | an option: `B`, `(b)`, `B. a cat` | the letter |
//! | number | digits, or a word for them, at the beginning: `3`, `three cats`, `$5` | the value |
//! | words | all the rest, units of measure among them | spelling without case, articles and number |
//!
//! Two answers contradict each other if they differ in a notation that both use. `B` and `a cat`, or
//! `B` and `2`, may be the letter, the text and the place of one option: nothing is known of such a pair.
//! `3 cats` and `three` agree; `3 cats` and `3 dogs` do not, nor do `5 cm` and `5 mm`. In doubt two
//! answers differ, since a copy that stays costs less than a question that is lost.

use xxhash_rust::xxh3::Xxh3;

use super::text::hash_word;
use crate::judge::text::Lexicon;

/// Answers of more words are prose, of which two differ without contradiction.
const LONGEST: usize = 5;

/// Whether two answers are short and contradict each other; see the top of the file.
pub fn answers_contradict(a: &str, b: &str) -> bool {
    let [a, b] = [a, b].map(|answer| ShortAnswer::read(answer, Lexicon::english()));
    a.zip(b).is_some_and(|(a, b)| a.contradicts(&b))
}

/// What is stated in each notation; none of two equal ones differs from a third that the other agrees
/// with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ShortAnswer {
    letter: Option<char>,
    /// Digits without needless zeros.
    number: Option<String>,
    /// Lemmas.
    words: Vec<u64>,
}

impl ShortAnswer {
    /// Of an answer that is short enough to be a fact that another answer contradicts.
    pub(super) fn read(answer: &str, lexicon: &Lexicon) -> Option<Self> {
        if !(1..=LONGEST).contains(&answer.split_whitespace().take(LONGEST + 1).count()) {
            return None;
        }
        let lower = answer.to_lowercase();
        let mut rest: Vec<&str> = lower.split_whitespace().map(bare_start).collect();
        let letter = rest.first().and_then(|first| option_letter(first, rest.len() == 1));
        if letter.is_some() {
            rest.remove(0);
        }
        let mut words: Vec<&str> = rest.into_iter().map(bare).filter(|w| !w.is_empty()).collect();
        let articles = words.iter().take_while(|word| ["a", "an", "the"].contains(word)).count();
        words.drain(..articles.min(words.len().saturating_sub(1)));
        let (number, words) = split_number(words);
        let lemma = |word: &str| {
            let hash = hash_word(word);
            lexicon.get(hash).map_or(hash, |known| known.lemma)
        };
        Some(Self { letter, number, words: words.into_iter().map(lemma).collect() })
    }

    /// Whether both use a notation in which they differ.
    pub(super) fn contradicts(&self, other: &Self) -> bool {
        fn differ<T: PartialEq>(a: Option<&T>, b: Option<&T>) -> bool {
            a.zip(b).is_some_and(|(a, b)| a != b)
        }
        let words = |answer: &Self| (!answer.words.is_empty()).then(|| answer.words.clone());
        differ(self.letter.as_ref(), other.letter.as_ref())
            || differ(self.number.as_ref(), other.number.as_ref())
            || differ(words(self).as_ref(), words(other).as_ref())
    }

    /// Equal for equal statements.
    pub(super) fn add_to(&self, key: &mut Xxh3) {
        key.update(self.letter.map(String::from).unwrap_or_default().as_bytes());
        key.update(b"\0");
        key.update(self.number.as_deref().unwrap_or_default().as_bytes());
        key.update(b"\0");
        for word in &self.words {
            key.update(&word.to_le_bytes());
        }
    }
}

/// Without the marks before a word; the point of `.5` is none.
fn bare_start(word: &str) -> &str {
    let bare = word.trim_start_matches(|c: char| ".,;:!?\"'`()[]*".contains(c));
    let point = word.len() - bare.len();
    let is_fraction = bare.starts_with(|c: char| c.is_ascii_digit());
    match word.get(point.wrapping_sub(1)..) {
        Some(with_point) if is_fraction && with_point.starts_with('.') => with_point,
        _ => bare,
    }
}

fn bare(word: &str) -> &str {
    word.trim_end_matches(|c: char| ".,;:!?\"'`()[]*".contains(c))
}

/// The letter of an option: alone, or with a mark behind it. `a cat` has none.
fn option_letter(word: &str, alone: bool) -> Option<char> {
    let mut characters = word.chars();
    let letter = characters.next().filter(char::is_ascii_lowercase)?;
    match (characters.next(), characters.next()) {
        (None, _) => alone.then_some(letter),
        (Some('.' | ')' | ':' | ']'), None) => Some(letter),
        _ => alone.then(|| bare(word)).filter(|bare| bare.len() == 1).map(|_| letter),
    }
}

/// The number that words begin with, and what is left; a sign of currency, or of what is counted,
/// becomes a word.
fn split_number(words: Vec<&str>) -> (Option<String>, Vec<&str>) {
    let Some(&first) = words.first() else { return (None, words) };
    if words.len() == 1 && matches!(first, "no" | "none" | "nothing") {
        return (Some("0".to_owned()), words);
    }
    let (currency, behind) = match first.chars().next().and_then(symbol) {
        Some(name) => (Some(name), &first[first.chars().next().map_or(0, char::len_utf8)..]),
        None => (None, first),
    };
    let length = behind.find(|c: char| !c.is_ascii_digit() && !".,-−+".contains(c));
    let (digits, unit) = behind.split_at(length.unwrap_or(behind.len()));
    let number = plain_number(digits).or_else(|| {
        let place = NUMBERS.iter().position(|word| *word == first)?;
        Some(place.to_string())
    });
    let Some(number) = number else { return (None, words) };
    let is_word = plain_number(digits).is_none();
    let glued = (!is_word && !unit.is_empty()).then_some(unit);
    let rest = glued.into_iter().chain(words[1..].iter().copied());
    (Some(number), currency.into_iter().chain(rest.map(unit_word)).collect())
}

const NUMBERS: [&str; 21] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
];

/// The name of a unit in the singular: names of units have no lemma, which protects them in questions.
fn unit_word(word: &str) -> &str {
    let mut characters = word.chars();
    match (characters.next().and_then(symbol), characters.next()) {
        (Some(name), None) => name,
        _ => match word {
            "dollars" => "dollar",
            "euros" => "euro",
            "cents" => "cent",
            "degrees" => "degree",
            _ => word,
        },
    }
}

/// The word for a sign that stands for a unit.
fn symbol(sign: char) -> Option<&'static str> {
    Some(match sign {
        '$' => "dollar",
        '€' => "euro",
        '£' => "pound",
        '%' => "percent",
        '°' => "degree",
        _ => return None,
    })
}

/// `-1,200.50` as `-1200.5`; none for what is no decimal number.
fn plain_number(text: &str) -> Option<String> {
    let (sign, digits) = match text.strip_prefix(['-', '−']) {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let groups: Vec<&str> = whole.split(',').collect();
    let grouped = groups.len() == 1
        || (1..=3).contains(&groups[0].len()) && groups[1..].iter().all(|group| group.len() == 3);
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !grouped || whole.len() + fraction.len() == 0 || !are_digits(fraction) {
        return None;
    }
    let whole = groups.concat();
    if !are_digits(&whole) {
        return None;
    }
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    let whole = if whole.is_empty() { "0" } else { whole };
    let sign = if whole == "0" && fraction.is_empty() { "" } else { sign };
    let point = if fraction.is_empty() { "" } else { "." };
    Some(format!("{sign}{whole}{point}{fraction}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contradict(a: &str, b: &str) -> bool {
        let read = |text: &str| ShortAnswer::read(text, Lexicon::english()).expect("short");
        assert_eq!(read(a).contradicts(&read(b)), read(b).contradicts(&read(a)));
        read(a).contradicts(&read(b))
    }

    #[test]
    fn answers_that_state_the_same_do_not_contradict() {
        for (a, b) in [
            ("3", "3.0"),
            ("3", "three"),
            ("Three cats.", "3"),
            ("1,200", "1200"),
            (".5", "0.50"),
            ("$5", "5 dollars"),
            ("50%", "50 percent"),
            ("20°", "20 degrees"),
            ("1 euro", "1 euros"),
            ("5cm", "5 cm"),
            ("a temple", "Temples."),
            ("cities", "the city"),
            ("colour", "color"),
            ("(B)", "b."),
            ("B. a cat", "B"),
            ("B) a cat", "cats"),
            ("none", "0"),
            ("-0", "0"),
        ] {
            assert!(!contradict(a, b), "{a} {b}");
        }
    }

    #[test]
    fn answers_in_different_notations_are_not_compared() {
        for (a, b) in [("1", "B"), ("B", "a cat"), ("2", "cat"), ("B", "yes"), ("3.5", "3,5")] {
            assert!(!contradict(a, b), "{a} {b}");
        }
    }

    #[test]
    fn answers_that_differ_contradict() {
        for (a, b) in [
            ("3", "4"),
            ("3", "four"),
            ("3.0", "3.1"),
            ("-3", "3"),
            ("A", "B"),
            ("A. cat", "B. cat"),
            ("A. cat", "A. dog"),
            ("3 cats", "3 dogs"),
            ("5 cm", "5mm"),
            ("5°C", "5°F"),
            ("$5", "5 euros"),
            ("yes", "no"),
            ("none", "2"),
            ("none", "a cat"),
            ("left", "right"),
            ("temple", "church"),
            ("not a cat", "a cat"),
        ] {
            assert!(contradict(a, b), "{a} {b}");
        }
    }

    #[test]
    fn prose_is_no_short_answer() {
        let read = |text: &str| ShortAnswer::read(text, Lexicon::english());
        assert!(read("it is one of the cats").is_none() && read(" ").is_none());
        assert!(read("one of the two cats").is_some());
    }
}
