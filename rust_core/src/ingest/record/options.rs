//! The options of a multiple-choice question, in every form they are kept in.

use std::borrow::Cow;

use super::super::Rejection;
use super::fields::{Fields, Names, is_empty, plain_text, wrong_type};
use super::json::{Map, Text, Value};
use super::literal::structured;

/// Fields of options; the first that holds some is read.
pub(super) const OPTIONS: Names = Names::of(&[
    "choices",
    "options",
    "choice_list",
    "answer_choices",
    "multiple_choices",
    "multiple_choice_options",
    "option_list",
]);

/// What the names of columns of one option each begin with.
const STEMS: [&str; 6] = ["", "option_", "option", "choice_", "choice", "op"];

/// What stands behind a stem, for the first to the last option.
const SUFFIXES: [fn(u8) -> String; 4] = [
    |index| char::from(b'A' + index).to_string(),
    |index| char::from(b'a' + index).to_string(),
    |index| index.to_string(),
    |index| (index + 1).to_string(),
];

/// The most columns of options.
const MOST_COLUMNS: u8 = 26;

/// Columns that may be absent one after another, as writers that leave out empty values have it.
const MOST_ABSENT: usize = 1;

/// The most options; a longer list is none of options.
const MOST_OPTIONS: usize = 100;

/// The options that fields of the record hold; empty where there are none. A field of such a name
/// that lists nothing (a number, settings, a text of one part) is none of options and stays unread.
pub(super) fn read<'j>(fields: &Fields<'_, 'j>) -> Result<Vec<Text<'j>>, Rejection> {
    if let Some((name, value)) = fields.find("options", &OPTIONS).filter(|found| !is_empty(found.1))
    {
        let options = of_value(name, value)?;
        if !options.is_empty() {
            fields.mark_read(name);
            return Ok(options);
        }
    }
    for stem in STEMS {
        if !fields.any_begins(if stem.is_empty() { "A" } else { stem }) {
            continue;
        }
        // A single capital is a name of an option, a single digit or small letter may be anything.
        let suffixes = SUFFIXES.iter().take(if stem.is_empty() { 1 } else { SUFFIXES.len() });
        for suffix in suffixes {
            let options = of_columns(fields, stem, *suffix);
            if !options.is_empty() {
                return Ok(without_letters(options));
            }
        }
    }
    Ok(Vec::new())
}

/// The options of columns with this stem; an empty column is an empty option, so that those after
/// it keep their letters. None without the first column, or with fewer than two options.
fn of_columns<'j>(fields: &Fields<'_, 'j>, stem: &str, suffix: fn(u8) -> String) -> Vec<Text<'j>> {
    let (mut names, mut options, mut absent) = (Vec::new(), Vec::new(), 0);
    for index in 0..MOST_COLUMNS {
        match fields.all.get_key_value(&format!("{stem}{}", suffix(index))) {
            None if index == 0 || absent == MOST_ABSENT => break,
            None => {
                absent += 1;
                options.push(Text::default());
            }
            Some((_, Value::Array(_) | Value::Object(_))) => break,
            Some((name, value)) => {
                absent = 0;
                names.push(name);
                options.push(plain_text(value).unwrap_or_default().part(str::trim));
            }
        }
    }
    let options = without_empty_end(options);
    if options.iter().filter(|option| !option.is_empty()).count() < 2 {
        return Vec::new();
    }
    for name in names {
        fields.mark_read(name);
    }
    options
}

/// The options up to the last that says something.
fn without_empty_end(mut options: Vec<Text<'_>>) -> Vec<Text<'_>> {
    let end = options.iter().rposition(|option| !option.is_empty()).map_or(0, |last| last + 1);
    options.truncate(end);
    options
}

/// Every field name under which options are looked for, but for those with a stem.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    OPTIONS.all.iter().copied().chain((0..LETTERS.len()).filter_map(|at| LETTERS.get(at..=at)))
}

/// The options that a value holds; empty where it lists none.
pub(super) fn of_value<'j>(name: &str, value: &Value<'j>) -> Result<Vec<Text<'j>>, Rejection> {
    let options = match value {
        Value::Array(items) => of_list(name, items)?,
        Value::Object(fields) => of_object(name, fields)?,
        Value::String(text) => match structured(text) {
            Some(inner) => of_value(name, &inner)?,
            None => of_text(text),
        },
        _ => Vec::new(),
    };
    Ok(if options.len() > MOST_OPTIONS { Vec::new() } else { without_letters(options) })
}

fn of_list<'j>(name: &str, items: &[Value<'j>]) -> Result<Vec<Text<'j>>, Rejection> {
    // Rows of a table have as many options as the longest; the rest is empty.
    let end = items.iter().rposition(|item| !is_empty(item)).map_or(0, |last| last + 1);
    let mut options = Vec::with_capacity(end);
    for item in items.iter().take(end) {
        options.push(match item {
            Value::String(text) => text.part(str::trim),
            Value::Null => Text::default(), // those after it keep their letters
            _ => {
                let inner = item.as_object().and_then(|fields| {
                    ["text", "value", "content", "option"].iter().find_map(|key| fields.get(key))
                });
                let text = plain_text(inner.unwrap_or(item)).map(|text| text.part(str::trim));
                text.ok_or_else(|| wrong_type(&format!("an item of {name}"), item, "a text"))?
            }
        });
    }
    Ok(options)
}

/// `{"A": .., "B": ..}`, `{"0": ..}`, or `{"text": [..], "label": [..]}` (ARC).
fn of_object<'j>(name: &str, fields: &Map<'j>) -> Result<Vec<Text<'j>>, Rejection> {
    if let Some(Value::Array(items)) =
        ["text", "choices", "options"].iter().find_map(|key| fields.get(key))
    {
        return of_list(name, items);
    }
    if !fields.names().all(is_letter) {
        return Ok(Vec::new()); // settings, say
    }
    let mut entries: Vec<(&str, &Value<'j>)> = fields.iter().collect();
    entries.sort_by_key(|(key, _)| (key.len(), *key));
    let items = at_their_places(&entries)
        .unwrap_or_else(|| entries.iter().map(|(_, value)| (*value).clone()).collect());
    of_list(name, &items)
}

/// The values at the places that their keys name, with nothing where a key is missing; `None` where
/// keys do not begin with one of the first two places, or two name the same place.
fn at_their_places<'j>(entries: &[(&str, &Value<'j>)]) -> Option<Vec<Value<'j>>> {
    let places: Option<Vec<usize>> = entries.iter().map(|(key, _)| place_of(key)).collect();
    let places = places?;
    let is_number = |key: &str| key.ends_with(|last: char| last.is_ascii_digit());
    let from_one = entries.iter().all(|(key, _)| is_number(key)) && !places.contains(&0);
    let first = usize::from(from_one);
    if *places.iter().min()? > first + 1 {
        return None;
    }
    let mut items = vec![Value::Null; places.iter().max()? + 1 - first];
    let mut taken = vec![false; items.len()];
    for (place, (_, value)) in places.iter().zip(entries) {
        if std::mem::replace(taken.get_mut(place - first)?, true) {
            return None;
        }
        *items.get_mut(place - first)? = (*value).clone();
    }
    Some(items)
}

/// What a key names: 0 for `A` and `option_a`, the number of `2` and `choice 2`.
fn place_of(key: &str) -> Option<usize> {
    let end = key.rsplit(|c: char| !c.is_ascii_digit()).next()?;
    if !end.is_empty() {
        return end.parse().ok();
    }
    let last = key.bytes().last().filter(u8::is_ascii_alphabetic)?;
    Some(usize::from(last.to_ascii_uppercase() - b'A'))
}

/// `A`, `0`, `option_1`.
fn is_letter(key: &str) -> bool {
    let lower = key.to_ascii_lowercase();
    let stem = ["option", "choice"].into_iter().find_map(|stem| lower.strip_prefix(stem));
    let rest = stem.unwrap_or(&lower).trim_start_matches(['_', ' ']);
    let number = rest.len() <= 2 && rest.bytes().all(|byte| byte.is_ascii_digit());
    !rest.is_empty() && (number || (rest.len() == 1 && rest.is_ascii()))
}

/// Options of one text: by their letters, or one a line, or between semicolons, bars or commas.
fn of_text(text: &str) -> Vec<Text<'static>> {
    let lettered = between_letters(text, true);
    if lettered.len() >= 2 {
        return lettered;
    }
    let texts = |parts: &mut dyn Iterator<Item = &str>| {
        let parts = parts.map(str::trim).filter(|part| !part.is_empty());
        parts.map(Text::copy_of).collect::<Vec<_>>()
    };
    for separator in ['\n', ';', '|'] {
        let parts = texts(&mut text.split(separator));
        if parts.len() >= 2 {
            return parts;
        }
    }
    let inner = text.trim().strip_prefix('[').and_then(|inner| inner.strip_suffix(']'));
    if let Some(inner) = inner {
        return texts(&mut inner.split(','));
    }
    // One comma is as likely a part of the option (`1,200`, `yes, it is`).
    let parts = texts(&mut text.split(", "));
    if parts.len() > 2 { parts } else { Vec::new() }
}

const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// The letter of an option, `A` for the first; a number after `Z`.
pub(super) fn letter(index: usize) -> Cow<'static, str> {
    match LETTERS.get(index..=index) {
        Some(letter) => letter.into(),
        None => (index + 1).to_string().into(),
    }
}

/// What stands behind the letter of an option; the last three are of Chinese texts.
pub(super) const LETTER_ENDS: [char; 6] = ['.', ')', ':', '\u{ff0e}', '\u{ff1a}', '\u{3001}'];

/// The options as lines: `A. cat`. One of several lines stays as it is, for its indentation may
/// matter; an empty one has no line, and the others keep their letters.
pub(super) fn as_lines(options: &[Text<'_>]) -> String {
    // A letter, its mark and the end of the line.
    let room = options.iter().map(|option| option.len() + 4).sum();
    let mut lines = String::with_capacity(room);
    for (index, option) in options.iter().enumerate() {
        let option = option.trim();
        if option.is_empty() {
            continue;
        }
        if !lines.is_empty() {
            lines.push('\n');
        }
        lines.push_str(&letter(index));
        lines.push_str(". ");
        lines.push_str(&if option.contains('\n') { option.into() } else { flat(option) });
    }
    lines
}

/// A text with one blank in the place of each stretch of white space.
pub(super) fn flat(text: &str) -> Cow<'_, str> {
    let is_flat = |pair: &[u8]| !matches!(pair, [_, b'\t'..=b'\r'] | [b' ', b' ']);
    if text.is_ascii() && text.as_bytes().windows(2).all(is_flat) {
        return text.trim().into();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ").into()
}

/// The options without the letters they begin with, if each begins with its own.
fn without_letters(options: Vec<Text<'_>>) -> Vec<Text<'_>> {
    let bare: Option<Vec<Text<'_>>> = options
        .iter()
        .enumerate()
        .map(|(index, option)| {
            if option.is_empty() {
                return Some(Text::default());
            }
            let own = letter(index);
            let own = &*own;
            let between =
                |open, close| option.strip_prefix(open)?.strip_prefix(own)?.strip_prefix(close);
            let rest = between('(', ')')
                .or_else(|| between('[', ']'))
                .or_else(|| option.strip_prefix(own)?.strip_prefix(LETTER_ENDS))?;
            Some(Text::copy_of(rest.trim()))
        })
        .collect();
    bare.filter(|_| options.len() >= 2).unwrap_or(options)
}

/// Places of the letters `A`, `B`, ... in a text, each at the start of a line or after a blank,
/// written `A.`, `A)`, `A:` or `(A)`: where the mark begins, and where its option does.
fn letters_in(text: &str) -> Vec<(usize, usize)> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut start = 0;
    for wanted in b'A'..=b'Z' {
        let rest = bytes.get(start..).unwrap_or_default();
        let place = memchr::memchr_iter(wanted, rest).map(|at| start + at).find_map(|at| {
            let before = at.checked_sub(1).and_then(|place| bytes.get(place)).unwrap_or(&b'\n');
            let after = bytes.get(at + 1).unwrap_or(&b' ');
            match before {
                b'(' => (*after == b')').then_some((at - 1, at + 2)),
                b'\n' | b' ' | b'\t' => matches!(after, b'.' | b')' | b':').then_some((at, at + 2)),
                _ => None,
            }
        });
        let Some(place) = place else { break };
        start = place.1;
        found.push(place);
    }
    found
}

/// Whether the text has an option A and an option B after it.
pub(super) fn are_offered(text: &str) -> bool {
    letters_in(text).len() >= 2
}

/// The options that a question lists by their letters; the last ends with its line.
pub(super) fn in_text(text: &str) -> Vec<Text<'static>> {
    between_letters(text, false)
}

/// The options between the letters of a text, each up to the next. What follows the line of the
/// last is a part of it only in a text of nothing but options (`to_end`).
fn between_letters(text: &str, to_end: bool) -> Vec<Text<'static>> {
    let places = letters_in(text);
    if places.len() < 2 {
        return Vec::new();
    }
    let ends = places.iter().skip(1).map(|place| place.0).chain([text.len()]);
    let options = places.iter().zip(ends).enumerate().map(|(number, (place, end))| {
        let option = text.get(place.1..end).unwrap_or_default().trim();
        let is_whole = to_end || number + 1 < places.len();
        let option = if is_whole { option } else { option.lines().next().unwrap_or_default() };
        Text::copy_of(option.trim_end_matches([',', ';']).trim())
    });
    options.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(value: &serde_json::Value) -> Vec<Text<'static>> {
        of_value("options", &value.clone().into()).expect("options")
    }

    fn texts(options: &[Text<'static>]) -> Vec<String> {
        options.iter().map(|text| text.to_string()).collect()
    }

    #[test]
    fn options_are_read_in_every_form() {
        for value in [
            json!(["cat", "dog"]),
            json!(["A. cat", "B. dog"]),
            json!(["(A) cat", "(B) dog"]),
            json!({"A": "cat", "B": "dog", "C": null}),
            json!({"0": "cat", "1": "dog"}),
            json!({"text": ["cat", "dog"], "label": ["1", "2"]}),
            json!([{"text": "cat"}, {"text": "dog"}]),
            json!("[\"cat\", \"dog\"]"),
            json!("['cat', 'dog']"),
            json!("A. cat\nB. dog"),
            json!("(A) cat (B) dog"),
            json!("cat\ndog"),
            json!("cat; dog"),
            json!("[cat,dog]"),
        ] {
            assert_eq!(texts(&of(&value)), ["cat", "dog"], "{value}");
        }
        assert_eq!(texts(&of(&json!([1, 2.5, true]))), ["1", "2.5", "true"]);
        assert_eq!(of(&json!("[]")), []);
        assert_eq!(texts(&of(&json!("cat, dog, cow"))), ["cat", "dog", "cow"]);
        assert_eq!(texts(&of(&json!("1,200; 3,400"))), ["1,200", "3,400"]);
        assert_eq!(texts(&of(&json!("1,200, 3,400, 5"))), ["1,200", "3,400", "5"]);
        assert_eq!(texts(&of(&json!("A. if x:\n    y\nB. z\n  w"))), ["if x:\n    y", "z\n  w"]);
        for value in [
            json!(3),
            json!({"temperature": 1}),
            json!("1,200"),
            json!("yes, it is"),
            json!(vec![1; 101]),
        ] {
            assert_eq!(of(&value), [], "{value}");
        }
        assert!(of_value("options", &json!([["a"]]).into()).is_err());
        let ten = (0..11).map(|n| (n.to_string(), json!(n))).collect();
        let ten = of(&serde_json::Value::Object(ten));
        assert_eq!(ten.last().map(|text| &**text), Some("10"));
    }

    #[test]
    fn options_are_read_from_a_question() {
        assert_eq!(texts(&in_text("A. if x:\n  y\nB. z\nAnswer.")), ["if x:\n  y", "z"]);
        let listed = in_text("Which?\nA. cat\nB. dog\nAnswer with a letter.");
        assert_eq!(texts(&listed), ["cat", "dog"]);
        assert_eq!(texts(&in_text("Which? (A) cat, (B) dog")), ["cat", "dog"]);
        assert_eq!(in_text("Who is A. Lincoln?"), []);
    }
    #[test]
    fn a_missing_option_keeps_the_letters_of_the_others() {
        for (value, lines) in [
            (json!({"A": "cat", "B": null, "C": "dog"}), "A. cat\nC. dog"),
            (json!({"A": "cat", "C": "dog", "D": ""}), "A. cat\nC. dog"),
            (json!({"1": "cat", "3": "dog"}), "A. cat\nC. dog"),
            (json!([null, "cat", "dog"]), "B. cat\nC. dog"),
            (json!(["cat", "", "dog", null]), "A. cat\nC. dog"),
            (json!("['cat', None, 'dog']"), "A. cat\nC. dog"),
            (json!(["A. cat", null, "C. dog"]), "A. cat\nC. dog"),
            (json!({"x": "cat", "y": "dog"}), "A. cat\nB. dog"),
            (json!({"A": "cat", "a": "dog"}), "A. cat\nB. dog"),
        ] {
            assert_eq!(as_lines(&of(&value)), lines, "{value}");
        }
    }

    #[test]
    fn options_of_columns_are_read_whatever_they_are_named() {
        let columns = super::super::ColumnMap::new();
        for (names, expected) in [
            (["option_0", "option_1", "option_2"], "A. cat\nB. dog\nC. cow"),
            (["option_1", "option_2", "option_3"], "A. cat\nB. dog\nC. cow"),
            (["choice_0", "choice_1", "choice_3"], "A. cat\nB. dog\nD. cow"),
            (["A", "C", "D"], "A. cat\nC. dog\nD. cow"),
            (["A", "X", "Y"], ""),
            (["B", "C", "D"], ""),
        ] {
            let record = names.iter().zip(["cat", "dog", "cow"]);
            let text = |text| Value::String(Text::Borrowed(text));
            let record = record.map(|(name, value)| (Text::Borrowed(name), text(value)));
            let record = Map::of(record.collect());
            let found = read(&Fields::new(&record, &columns)).expect("options");
            assert_eq!(as_lines(&found), expected, "{names:?}");
        }
        let letters = (b'A'..=b'Z').map(|letter| char::from(letter).to_string());
        let record =
            letters.map(|letter| (Text::from(letter.clone()), Value::String(letter.into())));
        let record = Map::of(record.collect());
        assert_eq!(read(&Fields::new(&record, &columns)).expect("options").len(), 26);
    }
}
