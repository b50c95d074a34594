//! The fields of a record: found by the user's names or the usual ones, and which were read.

use std::cell::RefCell;
use std::collections::HashMap;

use super::super::Rejection;
use super::json::{Map, Text, Value};
use super::parse;

/// Which field of a record holds what, where the user said so: `prompt -> "q"`.
pub type ColumnMap = HashMap<String, String>;

pub(super) const ID: Names =
    Names::of(&["id", "question_id", "uid", "sample_id", "task_id", "__key__"]);
pub(super) const PROMPT: Names = Names::of(&[
    "prompt",
    "question",
    "query",
    "instruction",
    "problem",
    "caption",
    "text",
    "input",
    "q",
]);
pub(super) const ANSWER: Names = Names::of(&[
    "answer",
    "response",
    "output",
    "chosen",
    "solution",
    "multiple_choice_answer",
    "answers",
    "gt_answer",
    "ground_truth",
    "completion",
    "outputs",
]);

/// Names of fields that mean the same, in the order in which they are looked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names {
    pub all: &'static [&'static str],
    /// Those of [`mark_of`].
    marks: u64,
}

impl Names {
    pub(super) const fn of(all: &'static [&'static str]) -> Self {
        let (mut marks, mut at) = (0, 0);
        while at < all.len() {
            marks |= mark_of(all[at]);
            at += 1;
        }
        Self { all, marks }
    }
}

/// Bytes of a broken record that its rejection shows.
const SHOWN: usize = 60;

/// The object that a record is. Numbers that are none (`NaN`, `Infinity`), which Python writes and
/// JSON does not have, count as absent.
pub(super) fn parse(json: &[u8]) -> Result<Map<'_>, Rejection> {
    let text =
        std::str::from_utf8(json).map_err(|error| broken(json, &format!("not UTF-8: {error}")))?;
    let value =
        parse::parse(text).map_or_else(|| serde_json::from_str(text), Ok).or_else(|error| {
            without_nan(text)
                .and_then(|text| serde_json::from_str(&text).ok().map(Value::into_owned))
                .ok_or_else(|| broken(json, &error.to_string()))
        })?;
    match value {
        Value::Object(fields) => Ok(fields),
        other => Err(wrong_type("the record", &other, "an object")),
    }
}

/// The text with `null` in the place of each `NaN` and `Infinity` outside of strings.
fn without_nan(text: &str) -> Option<String> {
    if !text.contains("NaN") && !text.contains("Infinity") {
        return None;
    }
    let (mut cleaned, mut rest, mut in_string) = (String::with_capacity(text.len()), text, false);
    while let Some(character) = rest.chars().next() {
        let word = ["NaN", "-Infinity", "Infinity"].into_iter().find(|word| rest.starts_with(word));
        let (taken, written) = match (word, character) {
            (Some(word), _) if !in_string => (word.len(), "null"),
            (_, '\\') => {
                let escaped = rest.chars().nth(1).map_or(0, char::len_utf8);
                (1 + escaped, rest.get(..=escaped)?)
            }
            _ => {
                in_string ^= character == '"';
                (character.len_utf8(), rest.get(..character.len_utf8())?)
            }
        };
        cleaned.push_str(written);
        rest = rest.get(taken..)?;
    }
    Some(cleaned)
}

fn broken(json: &[u8], what: &str) -> Rejection {
    let start = String::from_utf8_lossy(json.get(..SHOWN).unwrap_or(json));
    Rejection::new("broken_record", format!("{what}; it begins {start:?}"))
}

/// The rejection of a value of another type than `expected`.
pub(super) fn wrong_type(what: &str, found: &Value<'_>, expected: &str) -> Rejection {
    let kind = match found {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    Rejection::new("wrong_type", format!("{what} is {kind}, expected {expected}"))
}

/// Whether a value says nothing.
pub(super) fn is_empty(value: &Value<'_>) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.iter().all(is_empty),
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// A text, number or truth value as text.
pub(super) fn plain_text<'j>(value: &Value<'j>) -> Option<Text<'j>> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string().into()),
        Value::Bool(word) => Some(Text::Borrowed(word)),
        _ => None,
    }
}

/// The fields of a record, by the user's names first and the usual ones after.
pub(super) struct Fields<'a, 'j> {
    pub(super) all: &'a Map<'j>,
    pub(super) columns: &'a ColumnMap,
    read: RefCell<Vec<&'a str>>,
    /// Whether a name has capitals, so that names are worth comparing in any case.
    has_capitals: bool,
    /// The marks of all names: most names that are looked for are not there.
    marks: u64,
    /// A bit for the lowest six bits of the first byte of each name.
    firsts: u64,
}

/// One of 64 bits for a name: equal names have the same.
const fn mark_of(name: &str) -> u64 {
    let bytes = name.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return 1 };
    1 << ((bytes.len() * 31 + *first as usize * 7 + *last as usize) % 64)
}

const fn bit_of(byte: u8) -> u64 {
    1 << (byte % 64)
}

impl<'a, 'j> Fields<'a, 'j> {
    pub(super) fn new(all: &'a Map<'j>, columns: &'a ColumnMap) -> Self {
        let has_capitals =
            all.names().any(|name| name.bytes().any(|byte| byte.is_ascii_uppercase()));
        let marks = all.names().fold(0, |marks, name| marks | mark_of(name));
        let first = |name: &str| name.as_bytes().first().map_or(0, |&byte| bit_of(byte));
        let firsts = all.names().fold(0, |firsts, name| firsts | first(name));
        let read = RefCell::new(Vec::with_capacity(all.len()));
        Self { all, columns, read, has_capitals, marks, firsts }
    }

    /// The first of these fields that holds something, with its name in the record.
    ///
    /// A name is looked for as it is, and where none is there, in any case.
    pub(super) fn find(&self, what: &str, names: &Names) -> Option<(&'a str, &'a Value<'j>)> {
        if let Some(name) = self.columns.get(what) {
            return self.get(name);
        }
        if self.marks & names.marks == 0 && !self.has_capitals {
            return None;
        }
        self.find_among(names.all)
    }

    /// The same, whatever the user's names are.
    pub(super) fn find_among(&self, names: &[&str]) -> Option<(&'a str, &'a Value<'j>)> {
        let said = |found: &(&'a str, &'a Value<'j>)| !is_empty(found.1);
        let mut empty = None;
        let exact = names.iter().find_map(|name| {
            let found = self.get(name)?;
            empty = empty.or(Some(found));
            Some(found).filter(said)
        });
        let in_any_case = || {
            let names = if self.has_capitals { names } else { &[] };
            names.iter().find_map(|wanted| {
                self.all.iter().find(|entry| entry.0.eq_ignore_ascii_case(wanted) && said(entry))
            })
        };
        exact.or_else(in_any_case).or(empty)
    }

    /// A field that is not null.
    pub(super) fn get(&self, name: &str) -> Option<(&'a str, &'a Value<'j>)> {
        if self.marks & mark_of(name) == 0 {
            return None;
        }
        let (name, value) = self.all.get_key_value(name)?;
        (!value.is_null()).then_some((name, value))
    }

    /// The same as [`Self::find`], and the field counts as read.
    pub(super) fn take(&self, what: &str, names: &Names) -> Option<(&'a str, &'a Value<'j>)> {
        self.find(what, names).inspect(|(name, _)| self.mark_read(name))
    }

    /// The same as [`Self::find_among`], and the field counts as read.
    pub(super) fn take_among(&self, names: &[&str]) -> Option<(&'a str, &'a Value<'j>)> {
        self.find_among(names).inspect(|(name, _)| self.mark_read(name))
    }

    /// Whether a name may be one of these, so that they are worth looking for.
    pub(super) fn may_have(&self, names: &Names) -> bool {
        self.has_capitals || self.marks & names.marks != 0
    }

    /// Whether a name begins like this, so that what may follow is worth looking for.
    pub(super) fn any_begins(&self, stem: &str) -> bool {
        stem.as_bytes().first().is_none_or(|&byte| self.firsts & bit_of(byte) != 0)
            && self.all.names().any(|name| name.starts_with(stem))
    }

    pub(super) fn mark_read(&self, name: &'a str) {
        self.read.borrow_mut().push(name);
    }

    pub(super) fn was_read(&self, name: &str) -> bool {
        self.read.borrow().contains(&name)
    }

    pub(super) fn id(&self) -> Result<Option<Text<'j>>, Rejection> {
        match self.take("id", &ID) {
            None => Ok(None),
            Some((_, Value::String(id))) => Ok(Some(id.clone()).filter(|id| !id.is_empty())),
            Some((_, Value::Number(id))) => Ok(Some(id.to_string().into())),
            Some((name, other)) => Err(wrong_type(name, other, "a text or a number")),
        }
    }

    /// The rejection of a record in which no question was found.
    pub(super) fn no_text(&self) -> Rejection {
        let names: Vec<&str> = self.all.keys().collect();
        let among = names.join(", ");
        let detail = match self.columns.get("prompt") {
            Some(name) => format!("no {name} among the fields: {among}"),
            None => format!("no conversation, question or prompt among the fields: {among}"),
        };
        Rejection::new("no_text", detail)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_that_are_none_count_as_absent() {
        let text =
            r#"{"a": NaN, "b": [Infinity, -Infinity, 1], "c": "NaN \" Infinity", "d\\": NaN}"#;
        let expected =
            json!({"a": null, "b": [null, null, 1], "c": "NaN \" Infinity", "d\\": null});
        let found = Value::Object(parse(text.as_bytes()).expect("an object"));
        assert_eq!(found, expected.into());
        assert_eq!(parse(b"{\"a\": NaN").expect_err("cut short").reason, "broken_record");
    }
}
