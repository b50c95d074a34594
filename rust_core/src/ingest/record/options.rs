//! The options of a multiple-choice question, in every form they are kept in.

use serde_json::{Map, Value};

use super::super::Rejection;
use super::fields::{Fields, is_empty, plain_text, wrong_type};
use super::literal::structured;

/// Fields of options; the first that holds some is read.
pub(super) const OPTIONS: [&str; 7] = [
    "choices",
    "options",
    "choice_list",
    "answer_choices",
    "multiple_choices",
    "multiple_choice_options",
    "option_list",
];

/// Stems of one field an option, and what is put behind them.
const COLUMNS: [(&str, &str); 10] = [
    ("", "ABCDEFGHIJ"),
    ("option_", "ABCDEFGHIJ"),
    ("option_", "abcdefghij"),
    ("option", "ABCDEFGHIJ"),
    ("option", "123456789"),
    ("option_", "123456789"),
    ("choice_", "abcdefghij"),
    ("choice_", "ABCDEFGHIJ"),
    ("choice", "123456789"),
    ("op", "abcd"),
];

/// The most options; a longer list is none of options.
const MOST_OPTIONS: usize = 100;

/// Most characters between two options of a text: `. B) `, ` or a `.
const LONGEST_GLUE: usize = 8;

/// The options that fields of the record hold; empty where there are none. A field of such a name
/// that lists nothing (a number, settings, a text of one part) is none of options and stays unread.
pub(super) fn read(fields: &Fields<'_>) -> Result<Vec<String>, Rejection> {
    if let Some((name, value)) = fields.find("options", &OPTIONS).filter(|found| !is_empty(found.1))
    {
        let options = of_value(name, value)?;
        if !options.is_empty() {
            fields.mark_read(name);
            return Ok(options);
        }
    }
    for (stem, letters) in COLUMNS {
        let first = letters.get(..1).unwrap_or_default();
        if !fields.any_begins(if stem.is_empty() { first } else { stem }) {
            continue;
        }
        let found = letters.chars().map_while(|letter| {
            let (name, value) = fields.get(&format!("{stem}{letter}"))?;
            let text = plain_text(value).filter(|text| !text.trim().is_empty())?;
            Some((name, text.trim().to_owned()))
        });
        let found: Vec<(&str, String)> = found.collect();
        if found.len() >= 2 {
            for (name, _) in &found {
                fields.mark_read(name);
            }
            return Ok(found.into_iter().map(|(_, text)| text).collect());
        }
    }
    Ok(Vec::new())
}

/// Every field name under which options are looked for.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    OPTIONS.into_iter().chain(["A", "B", "C", "D", "E", "F", "G", "H", "I", "J"])
}

fn of_value(name: &str, value: &Value) -> Result<Vec<String>, Rejection> {
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

fn of_list(name: &str, items: &[Value]) -> Result<Vec<String>, Rejection> {
    // Rows of a table have as many options as the longest; the rest is empty.
    let end = items.iter().rposition(|item| !is_empty(item)).map_or(0, |last| last + 1);
    let held = items.iter().take(end).filter(|item| !item.is_null());
    held.map(|item| {
        let inner = item.as_object().and_then(|fields| {
            ["text", "value", "content", "option"].iter().find_map(|key| fields.get(*key))
        });
        let text = plain_text(inner.unwrap_or(item)).map(|text| text.trim().to_owned());
        text.ok_or_else(|| wrong_type(&format!("an item of {name}"), item, "a text"))
    })
    .collect()
}

/// `{"A": .., "B": ..}`, `{"0": ..}`, or `{"text": [..], "label": [..]}` (ARC).
fn of_object(name: &str, fields: &Map<String, Value>) -> Result<Vec<String>, Rejection> {
    if let Some(Value::Array(items)) =
        ["text", "choices", "options"].iter().find_map(|k| fields.get(*k))
    {
        return of_list(name, items);
    }
    if !fields.keys().all(|key| is_letter(key)) {
        return Ok(Vec::new()); // settings, say
    }
    let mut entries: Vec<(&String, &Value)> =
        fields.iter().filter(|(_, value)| !is_empty(value)).collect();
    entries.sort_by_key(|(key, _)| (key.len(), *key));
    let items: Vec<Value> = entries.into_iter().map(|(_, value)| value.clone()).collect();
    of_list(name, &items)
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
fn of_text(text: &str) -> Vec<String> {
    let lettered = in_text(text);
    if lettered.len() >= 2 {
        return lettered;
    }
    let separated = ['\n', ';', '|', ','].into_iter().map(|separator| {
        let parts = text.split(separator).map(str::trim).filter(|part| !part.is_empty());
        parts.map(str::to_owned).collect::<Vec<_>>()
    });
    separated.into_iter().find(|parts| parts.len() >= 2).unwrap_or_default()
}

/// The letter of an option, `A` for the first; a number after `Z`.
fn letter(index: usize) -> String {
    match u8::try_from(index) {
        Ok(index @ 0..26) => char::from(b'A' + index).to_string(),
        _ => (index + 1).to_string(),
    }
}

/// The options as lines: `A. cat`.
pub(super) fn as_lines(options: &[String]) -> String {
    let lines = options.iter().enumerate().map(|(index, option)| {
        format!("{}. {}", letter(index), option.split_whitespace().collect::<Vec<_>>().join(" "))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The options without the letters they begin with, if each begins with its own.
fn without_letters(options: Vec<String>) -> Vec<String> {
    let bare: Option<Vec<String>> = options
        .iter()
        .enumerate()
        .map(|(index, option)| {
            let own = letter(index);
            let rest = option
                .strip_prefix(&format!("({own})"))
                .or_else(|| option.strip_prefix(&own)?.strip_prefix(['.', ')', ':']))?;
            Some(rest.trim().to_owned())
        })
        .collect();
    bare.filter(|_| options.len() >= 2).unwrap_or(options)
}

/// Whether a question lists these options already: in their order, with little between them.
pub(super) fn are_in(question: &str, options: &[String]) -> bool {
    let flat = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    let question = flat(question);
    let options: Vec<String> = options.iter().map(|option| flat(option)).collect();
    let Some(first) = options.first().filter(|first| !first.is_empty()) else { return false };
    question.match_indices(first.as_str()).take(64).any(|(at, _)| {
        let mut end = at + first.len();
        options.iter().skip(1).all(|option| {
            let rest = question.get(end..).unwrap_or_default();
            let window = head(rest, option.len() + 4 * LONGEST_GLUE);
            let found = window.find(option.as_str());
            let near = found.filter(|&glue| {
                window.get(..glue).is_some_and(|glue| glue.chars().count() <= LONGEST_GLUE)
            });
            near.map(|glue| end += glue + option.len()).is_some()
        })
    })
}

/// At most so many bytes of a text.
fn head(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
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

/// The options that a text lists by their letters; each ends with its line or before the next.
pub(super) fn in_text(text: &str) -> Vec<String> {
    let places = letters_in(text);
    if places.len() < 2 {
        return Vec::new();
    }
    let ends = places.iter().skip(1).map(|place| place.0).chain([text.len()]);
    places
        .iter()
        .zip(ends)
        .map(|(place, end)| {
            let option = text.get(place.1..end).unwrap_or_default().trim();
            option.lines().next().unwrap_or_default().trim_end_matches([',', ';']).trim().to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(value: &Value) -> Vec<String> {
        of_value("options", value).expect("options")
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
            json!("cat, dog"),
        ] {
            assert_eq!(of(&value), ["cat", "dog"], "{value}");
        }
        assert_eq!(of(&json!([1, 2.5, true])), ["1", "2.5", "true"]);
        assert_eq!(of(&json!("[]")), [""; 0]);
        for value in [json!(3), json!({"temperature": 1}), json!("multiple"), json!(vec![1; 101])] {
            assert_eq!(of(&value), [""; 0], "{value}");
        }
        assert!(of_value("options", &json!([["a"]])).is_err());
        let ten: Map<String, Value> = (0..11).map(|n| (n.to_string(), json!(n))).collect();
        assert_eq!(of(&Value::Object(ten)).last().map(String::as_str), Some("10"));
    }

    #[test]
    fn options_within_a_question_are_found() {
        let options = ["cat".to_owned(), "dog".to_owned()];
        for text in ["Which?\nA. cat\nB. dog", "Which? (A) cat (B) dog", "Cat or dog?", "cat, dog"]
        {
            assert!(are_in(text, &options), "{text}");
        }
        for text in ["Which?", "Is it a cat?", "The cat that lives in the house, not the dog"] {
            assert!(!are_in(text, &options), "{text}");
        }
        assert_eq!(in_text("Which?\nA. cat\nB. dog\nAnswer with a letter."), ["cat", "dog"]);
        assert_eq!(in_text("Which? (A) cat, (B) dog"), ["cat", "dog"]);
        assert_eq!(in_text("Who is A. Lincoln?"), [""; 0]);
    }
}
