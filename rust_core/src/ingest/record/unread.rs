//! Fields that are not read, and look like a part of the sample.

use super::super::shorten;
use super::fields::{Fields, PROMPT};
use super::json::Value;
use super::pictures::{MediaReference, collect_value, is_media};
use super::prompt::{CONTEXT, INPUT, states};
use super::turns::{CONVERSATIONS, Message};
use super::{options, plain};

/// Longest example of a value, in characters.
const LONGEST_EXAMPLE: usize = 80;

/// Shortest text, in characters, that may be a part of a question.
const SHORTEST_TEXT: usize = 24;

/// A field that is not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadField {
    /// `name`, or `name.inner` for a field of an object.
    pub name: String,
    /// `picture`, `picture id`, `text`, `list of texts` or `messages`.
    pub kind: &'static str,
    /// The beginning of its value.
    pub example: String,
}

/// What is said of the sample by fields of these names is of no other kind than these.
const LABELS: [&str; 23] = [
    "id", "ids", "source", "sources", "dataset", "license", "url", "urls", "link", "split", "hash",
    "model", "category", "subject", "topic", "type", "language", "score", "scores", "date", "task",
    "tag", "models",
];

/// Names of a picture or video by its number, which says nothing of where it is.
const PICTURE_IDS: [&str; 7] =
    ["image_id", "imageid", "img_id", "image_index", "video_id", "coco_id", "data_id"];

/// The fields that nobody has read and that look like a text, options, messages or a picture; for a
/// record `without_media` also the number of a picture. A field by whose name a question or its
/// options are known is one of them whatever it holds, unless that was `said` too.
pub(super) fn fields(
    fields: &Fields<'_, '_>,
    without_media: bool,
    said: &[Message<'_>],
) -> Vec<UnreadField> {
    let mut found = Vec::new();
    each(fields, |name, value| {
        let is_id = PICTURE_IDS.iter().any(|known| name.eq_ignore_ascii_case(known));
        let numbered = (without_media && is_id && !value.is_null()).then_some("picture id");
        let named = || if is_known(name) { kind_of_known(value, said) } else { None };
        // Beside its media a record may say where they came from.
        let of_value = kind_of(name, value)
            .filter(|kind| *kind != "picture" || without_media || !is_label(name));
        if let Some(kind) = of_value.or(numbered).or_else(named) {
            found.push(UnreadField { name: name.to_owned(), kind, example: example(value) });
        }
    });
    found
}

/// Whether a question, what it is asked of or its options are looked for under a name.
fn is_known(name: &str) -> bool {
    let lists = [PROMPT.all, CONVERSATIONS.all, &CONTEXT[..], INPUT.all, &[plain::QUESTIONS]];
    let names = lists.into_iter().flatten().copied().chain(options::names());
    names.into_iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// What the value of such a field is, where it says something that was not said.
fn kind_of_known(value: &Value<'_>, said: &[Message<'_>]) -> Option<&'static str> {
    let is_new = |text: &str| {
        let text = text.trim();
        !text.is_empty() && !said.iter().any(|message| states(&message.text, text))
    };
    let kind = match value {
        Value::Array(items) if items.iter().all(Value::is_string) => "list of texts",
        Value::Array(_) => "messages",
        _ => "text",
    };
    any_text(value, &is_new).then_some(kind)
}

/// Whether any text in a value is such a one.
fn any_text(value: &Value<'_>, is_such: &impl Fn(&str) -> bool) -> bool {
    match value {
        Value::String(text) => is_such(text),
        Value::Array(items) => items.iter().any(|item| any_text(item, is_such)),
        Value::Object(inner) => inner.values().any(|item| any_text(item, is_such)),
        _ => false,
    }
}

/// The media in fields that nobody has read: for a record that would have none otherwise.
pub(super) fn media<'j>(fields: &Fields<'_, 'j>) -> Vec<MediaReference<'j>> {
    let (mut media, mut taken) = (Vec::new(), Vec::new());
    each(fields, |name, value| {
        let mut found = Vec::new();
        if is_media(value) && collect_value(name, value, &mut found).is_ok() {
            taken.push(name.to_owned());
            // One picture may be named twice.
            found.retain(|reference| !media.contains(reference));
            media.append(&mut found);
        }
    });
    let all = fields.all;
    for name in taken {
        let outer = name.split_once('.').map_or(name.as_str(), |(outer, _)| outer);
        if let Some((name, _)) = all.get_key_value(&name).or_else(|| all.get_key_value(outer)) {
            fields.mark_read(name);
        }
    }
    media
}

/// Every field that was not read; of an object, each of its fields.
fn each<'j>(fields: &Fields<'_, 'j>, mut visit: impl FnMut(&str, &Value<'j>)) {
    for (name, value) in fields.all.iter() {
        match value {
            _ if fields.was_read(name) => {}
            Value::Object(inner) if !is_media(value) && !is_known(name) => {
                for (key, value) in inner.iter() {
                    visit(&format!("{name}.{key}"), value);
                }
            }
            _ => visit(name, value),
        }
    }
}

fn kind_of(name: &str, value: &Value<'_>) -> Option<&'static str> {
    if is_media(value) {
        return Some("picture");
    }
    let is_label = is_label(name);
    match value {
        Value::String(text) => is_sentence(text, is_label).then_some("text"),
        Value::Array(items) if items.iter().all(Value::is_object) && !items.is_empty() => {
            let holds_text = items.iter().any(|item| {
                item.as_object().is_some_and(|o| {
                    o.values().any(|v| v.as_str().is_some_and(|t| is_sentence(t, false)))
                })
            });
            holds_text.then_some("messages")
        }
        Value::Array(items) if !is_label && items.len() >= 2 => {
            items.iter().all(Value::is_string).then_some("list of texts")
        }
        _ => None,
    }
}

/// Whether a field of this name says something of the sample.
fn is_label(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name).to_ascii_lowercase();
    last.split(['_', '-', ' ']).any(|word| LABELS.contains(&word))
}

/// Several words, or a text in a script without blanks.
fn is_sentence(text: &str, is_label: bool) -> bool {
    let long = text.chars().nth(SHORTEST_TEXT - 1).is_some();
    let words = text.split_whitespace().nth(2).is_some();
    let ideographs =
        text.chars().take(200).filter(|c| ('\u{3040}'..'\u{AC00}').contains(c)).count() >= 8;
    !is_label && ((long && words) || ideographs)
}

fn example(value: &Value<'_>) -> String {
    match value {
        Value::String(text) => shorten(text, LONGEST_EXAMPLE),
        Value::Array(items) => {
            let first: Vec<Value<'_>> = items.iter().take(3).cloned().collect();
            shorten(&Value::Array(first).to_string(), LONGEST_EXAMPLE)
        }
        other => shorten(&other.to_string(), LONGEST_EXAMPLE),
    }
}
