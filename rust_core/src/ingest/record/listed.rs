//! Whether a question lists its options already.

use super::json::Text;
use super::options::{LETTER_ENDS, flat, letter};

/// What may stand behind an option of a list.
const ENDS: [char; 6] = ['.', ',', ';', '?', '!', ')'];

/// What a sentence that follows the options on their line begins with.
const ORDERS: [&str; 9] =
    ["answer", "choose", "select", "pick", "please", "give", "respond", "reply", "only"];

/// Whether a question lists these options already, in their order: each behind its letter or
/// number, or each on lines of its own. Words of a sentence are no list.
pub(super) fn are_in(question: &str, options: &[Text<'_>]) -> bool {
    may_be_in(question, options) && are_read_in(question, options)
}

/// Whether a question has the words of the options, so that it may list them. Their order and what
/// stands around them is not looked at; letters beyond ASCII may be anything.
fn may_be_in(question: &str, options: &[Text<'_>]) -> bool {
    let ascii = options.iter().filter(|option| option.is_ascii());
    let words = ascii.flat_map(|option| option.split_whitespace());
    let mut words = words.map(|word| word.trim_end_matches(ENDS)).filter(|word| !word.is_empty());
    !question.is_ascii() || words.all(|word| has_word(question.as_bytes(), word.as_bytes()))
}

/// Whether a text has a word somewhere, in any case.
fn has_word(text: &[u8], word: &[u8]) -> bool {
    let Some(first) = word.first() else { return true };
    memchr::memchr2_iter(first.to_ascii_lowercase(), first.to_ascii_uppercase(), text)
        .filter_map(|at| text.get(at..at + word.len()))
        .any(|found| found.eq_ignore_ascii_case(word))
}

fn are_read_in(question: &str, options: &[Text<'_>]) -> bool {
    let lines = question.lines().map(flat).filter(|line| !line.is_empty());
    let question = lines.collect::<Vec<_>>().join("\n").to_lowercase();
    let held = options.iter().enumerate().map(|(index, option)| {
        let lower = flat(option).to_lowercase();
        let bare = lower.trim_end_matches(ENDS);
        (index, if bare.is_empty() { lower } else { bare.to_owned() })
    });
    let held: Vec<(usize, String)> = held.filter(|(_, option)| !option.is_empty()).collect();
    if held.is_empty() {
        return false;
    }
    let starts = (0..question.len()).filter(|&at| {
        let before = at.checked_sub(1).and_then(|at| question.as_bytes().get(at));
        matches!(before, None | Some(b' ' | b'\n' | b'(' | b'['))
            || matches!(question.as_bytes().get(at), Some(b'(' | b'['))
    });
    let marks = first_marks(&held);
    starts.filter_map(|at| question.get(at..).map(|rest| (at, rest))).any(|(at, rest)| {
        let is_line = at == 0 || question.as_bytes().get(at - 1) == Some(&b'\n');
        // Most words of a question begin no list.
        if !is_line && !rest.as_bytes().first().is_some_and(|first| marks.contains(first)) {
            return false;
        }
        (0..=1).any(|base| lists(rest, is_line, &held, base))
    })
}

/// What the mark of the first option may begin with: a bracket, its letter, or its number.
fn first_marks(held: &[(usize, String)]) -> Vec<u8> {
    let index = held.first().map_or(0, |(index, _)| *index);
    let names = [letter(index).to_lowercase(), index.to_string(), (index + 1).to_string()];
    let firsts = names.iter().filter_map(|name| name.as_bytes().first().copied());
    firsts.chain(*b"([").collect()
}

/// Whether a text begins with these options; numbers before them count from `base`.
fn lists(text: &str, begins_line: bool, options: &[(usize, String)], base: usize) -> bool {
    let (mut rest, mut begins_line) = (text, begins_line);
    let mut bracketed = true;
    for (number, (index, option)) in options.iter().enumerate() {
        let marked = after_mark(rest, *index, base)
            .and_then(|(after, closed)| Some((after_option(after, option)?, closed)));
        let unmarked =
            || after_option(rest, option).filter(|after| begins_line && ends_line(after));
        bracketed &= marked.is_some_and(|(_, closed)| closed);
        let Some(after) = marked.map(|(after, _)| after).or_else(unmarked) else { return false };
        let end = after.trim_start_matches(ENDS);
        let is_last = number + 1 == options.len();
        let parted = end.is_empty() || end.starts_with([' ', '\n']);
        // Letters in brackets are those of options, wherever the sentence ends.
        let ends = || bracketed || after.len() != end.len() || ends_line(end) || orders(end);
        if !parted || (is_last && !ends()) {
            return false;
        }
        begins_line = ends_line(end);
        rest = end.trim_start();
        for word in ["and ", "or ", "| ", "/ "] {
            rest = rest.strip_prefix(word).filter(|_| !begins_line).unwrap_or(rest);
        }
    }
    true
}

/// Whether a text begins with an order, as after the options of a question.
fn orders(text: &str) -> bool {
    let word = text.split_whitespace().next().unwrap_or_default();
    ORDERS.contains(&word.trim_end_matches([':', ',']))
}

/// Whether a line ends here, after a sentence at most.
fn ends_line(text: &str) -> bool {
    let text = text.trim_start_matches(ENDS);
    text.is_empty() || text.starts_with('\n')
}

/// What follows `a.`, `a)`, `a:`, `(a)`, `[a]`, the same with the number, or a bullet; and whether
/// the letter stands in brackets.
fn after_mark(text: &str, index: usize, base: usize) -> Option<(&str, bool)> {
    let of = |name: &str| {
        let between = |open, close| {
            text.strip_prefix(open).and_then(|rest| rest.strip_prefix(name)?.strip_prefix(close))
        };
        let closed = between('(', ')').or_else(|| between('[', ']')).map(|rest| (rest, true));
        closed.or_else(|| Some((text.strip_prefix(name)?.strip_prefix(LETTER_ENDS)?, false)))
    };
    if !text.starts_with(|first: char| first.is_ascii_alphanumeric() || "([".contains(first)) {
        return None;
    }
    let after = of(&letter(index).to_lowercase()).or_else(|| of(&(index + base).to_string()));
    after.map(|(rest, closed)| (rest.trim_start(), closed))
}

/// What follows an option, whose words may stand on several lines.
fn after_option<'a>(text: &'a str, option: &str) -> Option<&'a str> {
    let text = ["- ", "* ", "\u{2022} "].iter().find_map(|b| text.strip_prefix(b)).unwrap_or(text);
    let (head, rest) = (text.get(..option.len())?, text.get(option.len()..)?);
    let same = |(a, b): (u8, u8)| a == b || (a == b'\n' && b == b' ');
    head.bytes().zip(option.bytes()).all(same).then_some(rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_list_is_passed_over(
            question in "(a|B|cat|dog| |\n|A\\. |B\\. |\\(b\\) |\\.|,|é|E){0,9}",
            options in prop::collection::vec("(a|b|Cat|dog| |\n|\\.|,|É|e){0,3}", 1..3),
        ) {
            let options: Vec<Text<'_>> = options.iter().map(|text| Text::Borrowed(text)).collect();
            prop_assert_eq!(are_in(&question, &options), are_read_in(&question, &options));
        }
    }

    #[test]
    fn options_within_a_question_are_found() {
        let texts = |options: &[&'static str]| -> Vec<Text<'static>> {
            options.iter().map(|&option| Text::Borrowed(option)).collect()
        };
        for text in [
            "Which?\nA. cat\nB. dog",
            "Which? (A) cat (B) dog",
            "Which? (a) Cat, or (b) Dog?",
            "Which?\n1. cat\n2. dog\nAnswer briefly.",
            "Which?\n0) cat\n1) dog",
            "cat\n\n dog",
            "Which?\n- cat\n- dog",
            "A: cat. B: dog. Which?",
            "Which?(A) cat (B) dog",
            "Is it (A)cat or (B)dog in the picture?",
            "Which? [A] cat [B] dog",
            "A. cat B. dog Answer with the letter.",
            "Which (A: cat, B: dog)?",
            "A\u{ff0e}cat\nB\u{ff0e}dog",
        ] {
            assert!(are_in(text, &texts(&["cat", "dog"])), "{text}");
        }
        for text in [
            "Which?",
            "Cat or dog?",
            "cat, dog",
            "What is the cat doing?",
            "A. cat\nB. dog house",
            "A. cats\nB. dog",
            "(B) cat (A) dog",
            "cat\nIs it\ndog",
            "The cat that lives in the house, not the dog",
        ] {
            assert!(!are_in(text, &texts(&["cat", "dog"])), "{text}");
        }
        assert!(!are_in("What does abc stand for?", &texts(&["a", "b", "c"])));
        assert!(!are_in("What is the cat doing?", &texts(&["cat", "doing"])));
        assert!(!are_in("10 12-packs", &texts(&["10", "12"])));
        assert!(are_in("Which?\nA. cat\nC. dog", &texts(&["cat", "", "dog"])));
        assert!(are_in("Which?\nA. if x:\n  y\nB. z", &texts(&["if x:\n  y", "z."])));
        assert!(are_in("Which?\nA. \u{e9}t\u{e9}\nB. 1.5", &texts(&["\u{c9}t\u{e9}", "1.5"])));
    }
}
