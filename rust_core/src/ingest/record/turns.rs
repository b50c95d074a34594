//! What was asked and answered in a record, in any of the layouts of conversations.
//!
//! - messages with a speaker: `{"from", "value"}`, `{"role", "content"}`, under any of the names of
//!   [`CONVERSATIONS`], also as JSON text; a user's message opens a turn, what the assistant says
//!   until the next one is its answer;
//! - pairs: `{"user", "assistant"}` (The Cauldron), `{"question", "answer"}`, `[question, answer]`;
//! - `questions` as a list of pairs, or as lists of questions and of answers, which are not a
//!   conversation: none is what another one rests on.

use std::borrow::Cow;
use std::fmt;

use super::super::Rejection;
use super::super::role::{ROLE_NAMES, Role};
use super::fields::{Names, is_empty, plain_text, wrong_type};
use super::json::{Map, Text, Value};
use super::literal::structured;
use super::pictures::{MediaReference, collect_value};

/// Fields of conversations; under the first two nothing else can stand.
pub(super) const CONVERSATIONS: Names = Names::of(&[
    "conversations",
    "messages",
    "conversation",
    "dialog",
    "dialogue",
    "texts",
    "turns",
    "qa_pairs",
    "qas",
]);
pub(super) const STRICT: usize = 2;

/// The most turns of a record: each holds what was said before it.
const MOST_TURNS: usize = 4096;

/// The most different answers of one question that are counted.
const MOST_ANSWERS: usize = 64;

const QUESTION_KEYS: [&str; 7] =
    ["user", "question", "human", "query", "prompt", "instruction", "q"];
const ANSWER_KEYS: [&str; 8] =
    ["assistant", "answer", "gpt", "response", "output", "bot", "a", "answers"];

/// A field, or an item of one, as rejections call it: `messages[3]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    name: &'a str,
    index: usize,
}

impl<'a> Place<'a> {
    /// The whole of a field.
    pub(super) fn field(name: &'a str) -> Self {
        Self { name, index: usize::MAX }
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            usize::MAX => f.write_str(self.name),
            index => write!(f, "{}[{index}]", self.name),
        }
    }
}

/// One message, as it is kept for the turns after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message<'j> {
    /// Who said it.
    pub role: Role,
    /// What was said, with its media marks.
    pub text: Text<'j>,
}

/// A question by its place in the talk, and its answer.
#[derive(Debug, Default)]
pub(super) struct Turn<'j> {
    pub answer: Option<Text<'j>>,
    /// How many messages of the talk were before it; the one after them is the question.
    pub before: usize,
    /// Parts of its content that are a picture or video and do not say which.
    pub nameless: [usize; 2],
}

/// A conversation.
#[derive(Debug, Default)]
pub(super) struct Talk<'j> {
    pub turns: Vec<Turn<'j>>,
    /// Everything that was said, in order.
    pub said: Vec<Message<'j>>,
    /// Media that messages name themselves.
    pub media: Vec<MediaReference<'j>>,
    /// Questions that have nothing to do with each other.
    pub independent: bool,
}

impl<'j> Talk<'j> {
    /// Something was asked; `nameless` counts pictures and videos that the message does not name.
    pub(super) fn ask(&mut self, question: Text<'j>, nameless: [usize; 2]) {
        let before = self.said.len();
        self.say(Role::User, question);
        self.turns.push(Turn { answer: None, before, nameless });
    }

    /// What a turn asks.
    pub(super) fn question(&self, turn: &Turn<'j>) -> Text<'j> {
        self.said.get(turn.before).map(|message| message.text.clone()).unwrap_or_default()
    }

    /// Something was said that opens no turn; of the assistant, it answers the last one.
    pub(super) fn say(&mut self, role: Role, text: Text<'j>) {
        self.said.push(Message { role, text });
    }

    pub(super) fn reply(&mut self, text: Text<'j>) {
        self.say(Role::Assistant, text.clone());
        if let Some(turn) = self.turns.last_mut() {
            turn.answer = Some(match turn.answer.take() {
                Some(said) => format!("{}\n{}", &*said, &*text).into(),
                None => text,
            });
        }
    }

    /// Messages, or pairs of question and answer, under the field `name`.
    pub(super) fn read(&mut self, name: &str, items: &[Value<'j>]) -> Result<(), Rejection> {
        if items.len() > 2 * MOST_TURNS {
            let detail =
                format!("{name} has {} messages, the limit is {}", items.len(), 2 * MOST_TURNS);
            return Err(Rejection::new("too_many_turns", detail));
        }
        for (index, item) in items.iter().enumerate() {
            let what = Place { name, index };
            match item {
                Value::Object(message) if speaker_of(message).is_some() => {
                    self.read_message(what, message)?;
                }
                Value::Object(pair) => match pair_of(pair) {
                    Some((question, answer)) => self.read_pair(what, question, answer)?,
                    None => return Err(no_speaker(what, pair)),
                },
                Value::Array(pair) if matches!(pair.len(), 1 | 2) => {
                    self.read_pair(what, &pair[0], pair.get(1).unwrap_or(&Value::Null))?;
                }
                other => return Err(wrong_type(&what.to_string(), other, "an object")),
            }
        }
        Ok(())
    }

    fn read_pair(
        &mut self,
        what: Place<'_>,
        question: &Value<'j>,
        answer: &Value<'j>,
    ) -> Result<(), Rejection> {
        let Some(question) = plain_text(question) else {
            return Err(wrong_type(&what.to_string(), question, "a question and its answer"));
        };
        self.ask(question, [0; 2]);
        if let Some(answer) = answer_text(what, answer)? {
            self.reply(answer);
        }
        Ok(())
    }

    fn read_message(&mut self, what: Place<'_>, message: &Map<'j>) -> Result<(), Rejection> {
        let Some((speaker, role)) = speaker_of(message) else { return Ok(()) };
        let content = ["value", "content", "text"]
            .iter()
            .find_map(|key| message.get(key).filter(|value| !value.is_null()));
        let calls = message.get("tool_calls").or_else(|| message.get("function_call"));
        let mut nameless = [0; 2];
        let text = self.content(what, content.unwrap_or(&Value::Null), &mut nameless)?;
        for key in ["image", "images", "video", "videos"] {
            if let Some(value) = message.get(key).filter(|value| !is_empty(value)) {
                collect_value(&format!("{what}.{key}"), value, &mut self.media)?;
            }
        }
        let name = role.as_str().unwrap_or_default();
        match Role::parse(name) {
            Some(Role::User) => self.ask(text, nameless),
            Some(Role::Assistant) if content.is_none() => {
                let calls = calls.map(Value::to_string).unwrap_or_default();
                self.say(Role::Assistant, calls.into());
            }
            Some(Role::Assistant) => self.reply(text),
            Some(other) => self.say(other, text),
            None if Role::is_call(name) => self.say(Role::Assistant, text),
            None => return Err(unknown_role(&format!("{what}.{speaker}"), role)),
        }
        Ok(())
    }

    /// A text, or the texts of a list of parts; what parts name are media.
    fn content(
        &mut self,
        what: Place<'_>,
        content: &Value<'j>,
        nameless: &mut [usize; 2],
    ) -> Result<Text<'j>, Rejection> {
        match content {
            Value::Null => Ok(Text::default()),
            Value::String(text) => Ok(text.clone()),
            Value::Array(parts) => {
                let mut texts = Vec::new();
                for part in parts {
                    match part {
                        Value::String(text) => texts.push(&**text),
                        Value::Object(part) => {
                            self.part_media(what, part, nameless)?;
                            texts.extend(
                                ["text", "content"].iter().find_map(|key| part.get(key)?.as_str()),
                            );
                        }
                        _ => {}
                    }
                }
                Ok(texts.join("\n").into())
            }
            Value::Object(inner) => {
                let held =
                    ["parts", "text", "content", "value"].iter().find_map(|key| inner.get(key));
                match held {
                    Some(held @ (Value::String(_) | Value::Array(_))) => {
                        self.content(what, held, nameless)
                    }
                    _ => Err(wrong_type(&what.to_string(), content, "a text or a list of parts")),
                }
            }
            other => Err(wrong_type(&what.to_string(), other, "a text or a list of parts")),
        }
    }

    /// The media of one part: `{"type": "image", "image": ".."}` and the like.
    fn part_media(
        &mut self,
        what: Place<'_>,
        part: &Map<'j>,
        nameless: &mut [usize; 2],
    ) -> Result<(), Rejection> {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
        let is_visual = kind.contains("image") || kind.contains("video");
        let own = ["image", "image_url", "video", "video_url"];
        let more: &[&str] =
            if is_visual { &["source", "path", "url", "data", "base64"] } else { &[] };
        let named = own
            .iter()
            .chain(more)
            .find_map(|key| Some((*key, part.get(key).filter(|value| !is_empty(value))?)));
        if let Some((key, value)) = named {
            return collect_value(&format!("{what}.{key}"), value, &mut self.media);
        }
        if is_visual {
            nameless[usize::from(kind.contains("video"))] += 1;
        }
        Ok(())
    }
}

/// The value of a conversation's field as a list; a text may spell one out.
pub(super) fn listed<'a, 'j>(value: &'a Value<'j>) -> Option<Cow<'a, [Value<'j>]>> {
    match value {
        Value::Array(items) => Some(Cow::Borrowed(items)),
        // A table may hold the messages as one object of lists.
        Value::Object(columns) => transposed(columns).map(Cow::Owned),
        Value::String(text) => match structured(text)? {
            Value::Array(items) => Some(Cow::Owned(items)),
            Value::Object(columns) => transposed(&columns).map(Cow::Owned),
            _ => None,
        },
        _ => None,
    }
}

/// Whether a list is of messages or pairs.
pub(super) fn is_talk(items: &[Value<'_>]) -> bool {
    items.iter().all(|item| match item {
        Value::Object(fields) => speaker_of(fields).is_some() || pair_of(fields).is_some(),
        Value::Array(pair) => pair.len() == 2 && pair[0].is_string(),
        _ => false,
    })
}

/// `{"question": [..], "answer": [..]}` as a list of objects.
fn transposed<'j>(columns: &Map<'j>) -> Option<Vec<Value<'j>>> {
    let first = columns.iter().find_map(|(_, values)| values.as_array())?;
    let row = |index: usize| {
        let cells = columns.iter().filter_map(|(name, values)| {
            Some((Text::copy_of(name), values.as_array()?.get(index)?.clone()))
        });
        Value::Object(Map::of(cells.collect()))
    };
    Some((0..first.len()).map(row).collect())
}

/// Whether an object is of one speaker, and no pair.
pub(super) fn is_message(item: &Map<'_>) -> bool {
    speaker_of(item).is_some()
}

fn speaker_of<'a, 'j>(message: &'a Map<'j>) -> Option<(&'static str, &'a Value<'j>)> {
    ["from", "role", "speaker"].into_iter().find_map(|key| Some((key, message.get(key)?)))
}

fn pair_of<'a, 'j>(pair: &'a Map<'j>) -> Option<(&'a Value<'j>, &'a Value<'j>)> {
    let question = QUESTION_KEYS.iter().find_map(|key| pair.get(key).filter(|v| v.is_string()))?;
    let answer = ANSWER_KEYS.iter().find_map(|key| pair.get(key)).unwrap_or(&Value::Null);
    Some((question, answer))
}

fn no_speaker(what: Place<'_>, message: &Map<'_>) -> Rejection {
    let keys: Vec<&str> = message.keys().collect();
    let detail = format!("{what} has no from or role; its fields: {}", keys.join(", "));
    Rejection::new("wrong_type", detail)
}

fn unknown_role(what: &str, role: &Value<'_>) -> Rejection {
    let known: Vec<&str> = ROLE_NAMES.iter().map(|(name, _)| *name).collect();
    let shown = super::super::shorten(&role.to_string(), 60);
    Rejection::new(
        "unknown_role",
        format!("{what} is {shown}, expected one of {}", known.join(", ")),
    )
}

/// An answer: a text, a number, the answer of most annotators, or what the assistant says.
pub(super) fn answer_text<'j>(
    what: Place<'_>,
    value: &Value<'j>,
) -> Result<Option<Text<'j>>, Rejection> {
    match value {
        Value::Null => Ok(None),
        Value::Array(items)
            if items.iter().any(|item| item.get("role").or(item.get("from")).is_some()) =>
        {
            let mut talk = Talk::default();
            talk.ask(Text::default(), [0; 2]);
            // A chosen conversation repeats its prompt; what counts is the answer to the last question.
            talk.read(&what.to_string(), items)?;
            Ok(talk.turns.pop().and_then(|turn| turn.answer))
        }
        Value::Array(items) => {
            let mut counts: Vec<(Text<'j>, usize)> = Vec::new();
            for item in items {
                let Some(text) = answer_text(what, item)? else { continue };
                match counts.iter().position(|(known, _)| *known == text) {
                    Some(place) => counts[place].1 += 1,
                    None if counts.len() < MOST_ANSWERS => counts.push((text, 1)),
                    None => {}
                }
            }
            let most = counts.iter().map(|(_, count)| *count).max();
            Ok(counts.into_iter().find(|(_, count)| Some(*count) == most).map(|(text, _)| text))
        }
        Value::Object(fields) => {
            let keys = ["answer", "text", "content", "value", "response"];
            match keys.iter().find_map(|key| fields.get(key)) {
                Some(inner) => answer_text(what, inner),
                None => Err(wrong_type(&what.to_string(), value, "a text")),
            }
        }
        other => Ok(plain_text(other)),
    }
}
