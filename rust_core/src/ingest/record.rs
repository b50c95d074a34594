//! One record of any of the usual layouts to its samples.
//!
//! ```text
//! LLaVA      {"id", "image": "a.jpg" | [..], "video", "conversations": [{"from", "value"}, ..]}
//! chat       {"images": [..], "messages": [{"role", "content": ".." | [{"type", "text"}, ..]}, ..]}
//! plain      {"image", "question" | "prompt" | .., "answer" | "response" | ..}
//! MM-RLHF    {"id", "image" | "video", "question", "models_output", ..}
//!            {"id", "image" | "video", "prompt", "chosen", "rejected", ..}
//! ```
//!
//! A conversation is split into single turns, as the paper MM-RLHF does (section 2.1): each question
//! with its answer is a sample, with all media of the record. `<image>` and `<video>` marks are taken
//! out of the text, since the media list says what they mean.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::Rejection;
use super::role::Role;

/// Which field of a record holds what, where the user said so: `prompt -> "q"`.
pub type ColumnMap = HashMap<String, String>;

const ID: [&str; 5] = ["id", "question_id", "uid", "sample_id", "__key__"];
const PROMPT: [&str; 7] =
    ["prompt", "question", "query", "instruction", "problem", "caption", "text"];
const ANSWER: [&str; 5] = ["answer", "response", "output", "chosen", "solution"];
const IMAGE: [&str; 4] = ["image", "images", "image_path", "file_name"];
const VIDEO: [&str; 2] = ["video", "videos"];

/// Bytes of a broken record that its rejection shows.
const SHOWN: usize = 60;

/// Answers longer than this many characters are long (paper MM-RLHF, section 2.2).
pub const LONG_ANSWER: usize = 128;

/// A media file a record points to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MediaReference {
    /// By a name, to be looked for below the root of the source.
    Named(String),
    /// By the number of a cell that came with the record.
    Cell(u32),
}

/// A question and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The question, without media marks.
    pub prompt: String,
    /// The answer, where there is one.
    pub answer: Option<String>,
    /// `mcq`, `long` or `short`.
    pub question_type: &'static str,
}

/// What a record holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// As the user gave it.
    pub id: Option<String>,
    /// Whether the record is one of several pairs of the same query, so that its id repeats.
    pub is_pair: bool,
    /// In the order of the record.
    pub media: Vec<MediaReference>,
    /// One outcome a turn, at least one.
    pub turns: Vec<Result<Sample, Rejection>>,
}

/// Every field name under which [`read_record`] looks without being told.
pub fn fields() -> Vec<&'static str> {
    let lists = [&ID[..], &PROMPT, &ANSWER, &IMAGE, &VIDEO, &["conversations", "messages"]];
    lists.into_iter().flatten().copied().chain(["rejected"]).collect()
}

/// Read a record from its JSON text.
pub fn read_record(json: &[u8], columns: &ColumnMap) -> Result<Record, Rejection> {
    let text =
        std::str::from_utf8(json).map_err(|error| broken(json, &format!("not UTF-8: {error}")))?;
    let value: Value =
        serde_json::from_str(text).map_err(|error| broken(json, &error.to_string()))?;
    let Value::Object(fields) = value else {
        return Err(wrong_type("the record", &value, "an object"));
    };
    let fields = Fields { fields: &fields, columns };
    let is_pair = fields.fields.contains_key("chosen") && fields.fields.contains_key("rejected");
    let mut media = Vec::new();
    for (what, names) in [("image", &IMAGE[..]), ("video", &VIDEO[..])] {
        if let Some((name, value)) = fields.find(what, names) {
            collect_media(name, value, &mut media)?;
        }
    }
    if media.is_empty() {
        collect_message_media(&fields, &mut media)?;
    }
    Ok(Record { id: fields.id()?, is_pair, media, turns: turns(&fields)? })
}

fn broken(json: &[u8], what: &str) -> Rejection {
    let start = String::from_utf8_lossy(json.get(..SHOWN).unwrap_or(json));
    Rejection::new("broken_record", format!("{what}; it begins {start:?}"))
}

fn wrong_type(what: &str, found: &Value, expected: &str) -> Rejection {
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

/// The fields of a record, by the user's names first and the usual ones after.
struct Fields<'a> {
    fields: &'a Map<String, Value>,
    columns: &'a ColumnMap,
}

impl<'a> Fields<'a> {
    /// The first of these fields that holds something, with its name.
    fn find(&self, what: &str, names: &[&'a str]) -> Option<(&'a str, &'a Value)> {
        let chosen = self.columns.get(what).map(String::as_str);
        let get = |name: &'a str| Some((name, self.fields.get(name).filter(|v| !v.is_null())?));
        match chosen {
            Some(name) => get(name),
            None => names.iter().find_map(|name| get(name)),
        }
    }

    fn id(&self) -> Result<Option<String>, Rejection> {
        match self.find("id", &ID) {
            None => Ok(None),
            Some((_, Value::String(id))) => Ok(Some(id.clone()).filter(|id| !id.is_empty())),
            Some((_, Value::Number(id))) => Ok(Some(id.to_string())),
            Some((name, other)) => Err(wrong_type(name, other, "a text or a number")),
        }
    }

    fn no_text(&self) -> Rejection {
        let names: Vec<&str> = self.fields.keys().map(String::as_str).collect();
        let among = names.join(", ");
        let detail = match self.columns.get("prompt") {
            Some(name) => format!("no {name} among the fields: {among}"),
            None => format!("no conversation, question or prompt among the fields: {among}"),
        };
        Rejection::new("no_text", detail)
    }

    fn text(&self, what: &str, names: &[&'a str]) -> Result<Option<String>, Rejection> {
        match self.find(what, names) {
            None => Ok(None),
            Some((_, Value::String(text))) => Ok(Some(text.clone())),
            Some((_, Value::Number(number))) => Ok(Some(number.to_string())),
            Some((name, other)) => Err(wrong_type(name, other, "a text")),
        }
    }
}

/// Texts are names; `{"path": ..}` and `{"cell": ..}` are what tables hold; lists hold any of these.
fn collect_media(
    field: &str,
    value: &Value,
    media: &mut Vec<MediaReference>,
) -> Result<(), Rejection> {
    match value {
        Value::String(name) if !name.is_empty() => media.push(MediaReference::Named(name.clone())),
        Value::String(_) => {}
        Value::Array(items) => {
            for item in items.iter().filter(|item| !item.is_null()) {
                collect_media(field, item, media)?;
            }
        }
        Value::Object(place) => {
            if let Some(cell) = place.get("cell").and_then(Value::as_u64) {
                media.push(MediaReference::Cell(cell as u32));
            } else if let Some(Value::String(path)) = place.get("path") {
                media.push(MediaReference::Named(path.clone()));
            } else {
                return Err(wrong_type(field, value, "a path or picture bytes"));
            }
        }
        other => return Err(wrong_type(field, other, "a path or a list of paths")),
    }
    Ok(())
}

/// Media named within the messages of a chat: `{"type": "image", "image": ".."}` and the like.
fn collect_message_media(
    fields: &Fields<'_>,
    media: &mut Vec<MediaReference>,
) -> Result<(), Rejection> {
    let messages = fields.fields.get("messages").and_then(Value::as_array);
    let parts = messages.into_iter().flatten().filter_map(|message| message.get("content"));
    for part in parts.filter_map(Value::as_array).flatten() {
        for name in ["image", "image_url", "video", "video_url"] {
            match part.get(name) {
                None | Some(Value::Null) => {}
                Some(Value::Object(place)) if place.contains_key("url") => {
                    collect_media(name, place.get("url").unwrap_or(&Value::Null), media)?;
                }
                Some(value) => collect_media(name, value, media)?,
            }
        }
    }
    Ok(())
}

fn turns(fields: &Fields<'_>) -> Result<Vec<Result<Sample, Rejection>>, Rejection> {
    let asked_for = fields.columns.contains_key("prompt");
    let layouts = [("conversations", "from", "value"), ("messages", "role", "content")];
    for (name, speaker, content) in layouts.into_iter().filter(|_| !asked_for) {
        match fields.fields.get(name) {
            None | Some(Value::Null) => {}
            Some(Value::Array(messages)) => return split_turns(messages, name, speaker, content),
            Some(other) => return Err(wrong_type(name, other, "a list of messages")),
        }
    }
    let Some(prompt) = fields.text("prompt", &PROMPT)? else {
        return Err(fields.no_text());
    };
    let answer = fields.text("answer", &ANSWER)?;
    Ok(vec![sample(&prompt, answer)])
}

/// Each message of a user opens a turn; what the assistant says until the next is its answer.
fn split_turns(
    messages: &[Value],
    name: &str,
    speaker: &str,
    content: &str,
) -> Result<Vec<Result<Sample, Rejection>>, Rejection> {
    let mut turns: Vec<(String, Option<String>)> = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        let what = format!("{name}[{index}]");
        let Value::Object(message) = message else {
            return Err(wrong_type(&what, message, "an object"));
        };
        let role = message.get(speaker).unwrap_or(&Value::Null);
        let text = message_text(&what, message.get(content).unwrap_or(&Value::Null))?;
        match role.as_str().and_then(Role::parse) {
            Some(Role::User) => turns.push((text, None)),
            Some(Role::Assistant) => {
                if let Some((_, answer)) = turns.last_mut() {
                    match answer {
                        Some(said) => *said = format!("{said}\n{text}"),
                        None => *answer = Some(text),
                    }
                }
            }
            Some(Role::System) => {}
            // The answer to a question that needs a tool is not one that a model can be asked for.
            Some(Role::Tool) | None => {
                return Err(wrong_type(&format!("{what}.{speaker}"), role, "human or gpt"));
            }
        }
    }
    if turns.is_empty() {
        return Ok(vec![sample("", None)]);
    }
    Ok(turns.into_iter().map(|(prompt, answer)| sample(&prompt, answer)).collect())
}

/// A text, or the texts of a list of parts.
fn message_text(what: &str, content: &Value) -> Result<String, Rejection> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => {
            let texts: Vec<&str> =
                parts.iter().filter_map(|part| part.get("text")?.as_str()).collect();
            Ok(texts.join("\n"))
        }
        other => Err(wrong_type(what, other, "a text or a list of parts")),
    }
}

fn sample(prompt: &str, answer: Option<String>) -> Result<Sample, Rejection> {
    let prompt = prompt.replace("<image>", "").replace("<video>", "").trim().to_owned();
    if prompt.is_empty() {
        return Err(Rejection::new("empty_prompt", "no question is left without its media marks"));
    }
    let answer = answer.map(|answer| answer.trim().to_owned()).filter(|answer| !answer.is_empty());
    let question_type = question_type(&prompt, answer.as_deref());
    Ok(Sample { prompt, answer, question_type })
}

/// `mcq` where the question offers options, else `long` or `short` by the length of the answer.
pub fn question_type(prompt: &str, answer: Option<&str>) -> &'static str {
    if offers_options(prompt) {
        "mcq"
    } else if answer.is_some_and(|answer| answer.chars().count() > LONG_ANSWER) {
        "long"
    } else {
        "short"
    }
}

/// Whether the text has an option A and an option B after it, each at the start of a line or
/// after a space, written `A.`, `A)`, `A:` or `(A)`.
fn offers_options(prompt: &str) -> bool {
    let bytes = prompt.as_bytes();
    let option_after = |letter: u8, start: usize| {
        let rest = bytes.get(start..).unwrap_or_default();
        memchr::memchr_iter(letter, rest).map(|at| start + at).find(|&at| {
            let before = at.checked_sub(1).and_then(|place| bytes.get(place)).unwrap_or(&b'\n');
            let after = bytes.get(at + 1).unwrap_or(&b' ');
            match before {
                b'(' => *after == b')',
                b'\n' | b' ' | b'\t' => matches!(after, b'.' | b')' | b':'),
                _ => false,
            }
        })
    };
    option_after(b'A', 0).and_then(|at| option_after(b'B', at)).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_seen_in_every_spelling() {
        for prompt in ["Which?\nA. cat\nB. dog", "Which? (A) cat (B) dog", "A) 1 B) 2", "A: x B: y"]
        {
            assert_eq!(question_type(prompt, None), "mcq", "{prompt}");
        }
        for prompt in ["Who is A. Lincoln?", "A bird, B-side", "Is (A) true?", "B. or A. Lee?"] {
            assert_eq!(question_type(prompt, None), "short", "{prompt}");
        }
    }

    #[test]
    fn exactly_128_characters_are_short() {
        assert_eq!(question_type("Why?", Some(&"é".repeat(128))), "short");
        assert_eq!(question_type("Why?", Some(&"é".repeat(129))), "long");
    }
}
