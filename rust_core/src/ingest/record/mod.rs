//! One record of any of the usual layouts to its samples.
//!
//! ```text
//! LLaVA      {"id", "image": "a.jpg" | [..], "video", "conversations": [{"from", "value"}, ..]}
//! chat       {"images": [..], "messages": [{"role", "content": ".." | [{"type", "text"}, ..]}, ..]}
//! pairs      {"images", "texts": [{"user", "assistant"}, ..]}
//! plain      {"image", "question" | "prompt" | .., "answer" | "response" | ..}
//!            and "choices" | "options" | "A", "B", ..; "context" | "hint" | ..; "input"; "history"
//! MM-RLHF    {"id", "image" | "video", "question", "models_output", ..}
//!            {"id", "image" | "video", "prompt", "chosen", "rejected", ..}
//! TRL        {"prompt": [{"role", "content"}], "chosen": [..], "rejected": [..]}
//! ```
//!
//! - [`fields`] knows the names of fields and which were read, [`literal`] lists that are texts;
//! - [`pictures`] finds media, [`marks`] the places of a text where they belong;
//! - [`single`] reads the records that most tables hold by their names alone;
//! - [`turns`] reads conversations and [`plain`] rows of columns, both as a talk of single turns;
//! - [`options`] finds the options of a question, [`listed`] whether it lists them already, and
//!   [`prompt`] puts a question together;
//! - [`alone`] tells which turns need those before them by the words of [`lexicon`], [`unread`] what
//!   was not read.
//!
//! A conversation is split into single turns, as the paper MM-RLHF does (section 2.1): each question
//! with its answer is a sample, with all media of the record and with what was said before it.

mod alone;
mod fields;
mod json;
mod lexicon;
mod listed;
mod literal;
mod marks;
mod options;
mod parse;
mod pictures;
mod plain;
mod prompt;
mod single;
mod stored_hash;
mod turns;
mod unread;

pub use fields::ColumnMap;
pub use json::Text;
pub use pictures::MediaReference;
pub use prompt::{LONG_ANSWER, question_type};
pub use stored_hash::StoredHash;
pub use turns::Message;
pub use unread::UnreadField;

use self::fields::Fields;
use self::json::Map;
use self::marks::{Marks, MediaCount};
use self::single::Shape;
use self::turns::Talk;
use super::Rejection;
use super::role::Role;

/// The most messages before a turn that are kept with it, besides the system prompt.
pub const MOST_HISTORY: usize = 64;

/// The most characters of the messages that are kept with a turn.
pub const LONGEST_HISTORY: usize = 16_384;

/// A question and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample<'j> {
    /// The complete question, without media marks.
    pub prompt: Text<'j>,
    /// The answer, where there is one.
    pub answer: Option<Text<'j>>,
    /// `mcq`, `long` or `short`.
    pub question_type: &'static str,
    /// The options of the question, without their letters; empty where it has none.
    pub options: Vec<Text<'j>>,
    /// The system prompt and the last messages before the question, in order.
    pub history: Vec<Message<'j>>,
    /// Whether the question cannot be understood without [`Self::history`].
    pub needs_history: bool,
}

/// The most lists of field names that are remembered.
const MOST_SHAPES: usize = 8;

/// What a record holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'j> {
    /// As the user gave it.
    pub id: Option<Text<'j>>,
    /// Whether the record is one of several pairs of the same query, so that its id repeats.
    pub is_pair: bool,
    /// In the order of the record.
    pub media: Vec<MediaReference<'j>>,
    /// One outcome a turn, at least one.
    pub turns: Vec<Result<Sample<'j>, Rejection>>,
    /// Fields that are not read and look like a part of the sample.
    pub unread: Vec<UnreadField>,
}

/// Every field name under which [`read_record`] looks without being told.
pub fn fields() -> Vec<&'static str> {
    let lists = [fields::ID, fields::PROMPT, fields::ANSWER, turns::CONVERSATIONS];
    let names = lists.into_iter().flat_map(|names| names.all).copied();
    names.chain(pictures::names()).chain(options::names()).chain(plain::names()).collect()
}

/// Read a record from its JSON text.
///
/// `attached` is the number of media that belong to the record by their file names; those that the
/// record names itself do not count then.
pub fn read_record<'j>(
    json: &'j [u8],
    columns: &ColumnMap,
    attached: usize,
) -> Result<Record<'j>, Rejection> {
    RecordReader::new(columns).read(json, attached)
}

/// Reads records one after another; those of the same field names are known by them.
#[derive(Debug)]
pub struct RecordReader<'c> {
    columns: &'c ColumnMap,
    shapes: Vec<Shape>,
}

impl<'c> RecordReader<'c> {
    /// A reader that knows these names of the user's.
    pub fn new(columns: &'c ColumnMap) -> Self {
        Self { columns, shapes: Vec::new() }
    }

    /// The next record, as [`read_record`] reads it.
    pub fn read<'j>(&mut self, json: &'j [u8], attached: usize) -> Result<Record<'j>, Rejection> {
        let fields = fields::parse(json)?;
        if self.columns.is_empty() {
            let known = self.shapes.iter().position(|shape| shape.fits(&fields));
            let at = known.unwrap_or_else(|| {
                if self.shapes.len() == MOST_SHAPES {
                    self.shapes.clear();
                }
                self.shapes.push(Shape::of(&fields));
                self.shapes.len() - 1
            });
            let read = self.shapes.get(at).and_then(|shape| single::read(&fields, shape, attached));
            if let Some(outcome) = read {
                return outcome;
            }
        }
        read_any(&fields, self.columns, attached)
    }
}

/// What a record of any layout means.
fn read_any<'j>(
    all: &Map<'j>,
    columns: &ColumnMap,
    attached: usize,
) -> Result<Record<'j>, Rejection> {
    let fields = Fields::new(all, columns);
    let id = fields.id()?;
    let is_pair = all.contains_key("chosen") && all.contains_key("rejected");
    let (mut media, mut count) = pictures::collect(&fields)?;
    let mut talk = plain::read(&fields)?;
    let has_media = attached > 0 || !media.is_empty() || !talk.media.is_empty();
    let mut texts = without_marks(&talk, has_media);
    let mut extra = prompt::Extra::read(&fields, &talk)?;
    if media.is_empty() {
        media = std::mem::take(&mut talk.media);
        count = MediaCount::of_images(media.len());
    }
    // Names within the text are the media themselves, or marks of media that are named elsewhere.
    let all_marks = texts.iter_mut().map(|(_, marks)| marks).chain([&mut extra.marks]);
    let named: Vec<String> = all_marks.flat_map(|marks| std::mem::take(&mut marks.named)).collect();
    if media.is_empty() && attached == 0 {
        media = named.into_iter().map(|name| MediaReference::Named(name.into())).collect();
        if media.is_empty() {
            media = unread::media(&fields);
            texts = without_marks(&talk, !media.is_empty());
        }
        count = MediaCount::of_images(media.len());
    }
    if attached > 0 {
        count = MediaCount::of_images(attached);
    }
    if let Some((_, marks)) = texts.first_mut() {
        marks.add(extra.marks.clone());
    }
    marks::check(texts.iter().map(|(_, marks)| marks), count)?;
    let several = count.images + count.videos > 1;
    let mut samples = Vec::with_capacity(talk.turns.len().max(1));
    for (number, (mut text, _)) in texts.into_iter().enumerate() {
        if !several {
            text = text.part(marks::strip_numbered);
        }
        samples.push(sample(&mut talk, number, text, &mut extra));
    }
    if samples.is_empty() {
        samples.push(Err(prompt::empty()));
    }
    let unread = unread::fields(&fields, media.is_empty() && attached == 0, &talk.said);
    Ok(Record { id, is_pair, media, turns: samples, unread })
}

/// The questions without their media marks, and these.
fn without_marks<'j>(talk: &Talk<'j>, has_media: bool) -> Vec<(Text<'j>, Marks)> {
    let strip = |turn: &turns::Turn<'j>| {
        let (text, mut marks) = marks::strip(&talk.question(turn), has_media);
        marks.images += turn.nameless[0];
        marks.videos += turn.nameless[1];
        (text, marks)
    };
    talk.turns.iter().map(strip).collect()
}

/// The sample of one turn, whose text without marks is given.
fn sample<'j>(
    talk: &mut Talk<'j>,
    number: usize,
    text: Text<'j>,
    extra: &mut prompt::Extra<'j>,
) -> Result<Sample<'j>, Rejection> {
    let Some(turn) = talk.turns.get_mut(number) else { return Err(prompt::empty()) };
    let (answer, before) = (turn.answer.take(), turn.before);
    if text.is_empty() {
        return Err(prompt::empty());
    }
    let before = talk.said.get(..before).unwrap_or_default();
    let is_first = talk.independent || !before.iter().any(|message| message.role == Role::User);
    let needs_history = !is_first && alone::needs_history(&text);
    let (prompt, options) = extra.complete(text);
    let answer = answer.map(|answer| answer.part(str::trim)).filter(|answer| !answer.is_empty());
    let question_type =
        if options.is_empty() { question_type(&prompt, answer.as_deref()) } else { "mcq" };
    let history = history(before, talk.independent);
    Ok(Sample { prompt, answer, question_type, options, history, needs_history })
}

/// The system prompt and the last of the messages that fit within the limits.
fn history<'j>(before: &[Message<'j>], independent: bool) -> Vec<Message<'j>> {
    let (system, said): (Vec<&Message<'j>>, Vec<&Message<'j>>) =
        before.iter().partition(|message| message.role == Role::System);
    let mut room = LONGEST_HISTORY;
    let mut fits = |message: &&Message<'j>| {
        // Texts of many megabytes are not counted to their end.
        let length = match message.text.len() {
            ..=LONGEST_HISTORY => message.text.chars().count(),
            _ => message.text.chars().take(LONGEST_HISTORY + 1).count(),
        };
        let fits = length <= room;
        room = room.saturating_sub(length);
        fits
    };
    let mut kept: Vec<Message<'j>> = system.into_iter().take_while(&mut fits).cloned().collect();
    if !independent {
        let last = said.into_iter().rev().take(MOST_HISTORY).take_while(&mut fits);
        let mut last: Vec<Message<'j>> = last.cloned().collect();
        last.reverse();
        kept.append(&mut last);
    }
    kept
}
