//! The complete question: what it is about, the question, what it is asked of, and its options.

use super::super::Rejection;
use super::fields::{Fields, Names, is_empty, plain_text, wrong_type};
use super::json::{Text, Value};
use super::listed;
use super::marks::{self, Marks};
use super::options::{self, flat};
use super::pictures::names_media;
use super::turns::Talk;

/// Answers longer than this many characters are long (paper MM-RLHF, section 2.2).
pub const LONG_ANSWER: usize = 128;

/// Fields that stand before the question.
pub(super) const CONTEXT: [&str; 6] =
    ["context", "passage", "article", "paragraph", "story", "hint"];

/// Fields of Alpaca that stand after it.
pub(super) const INPUT: Names = Names::of(&["input", "inputs"]);

/// Characters from which on a text within a line of the question counts as a part of it.
const SHORTEST_STATED: usize = 12;

/// What a record has besides the question.
#[derive(Debug, Default)]
pub(super) struct Extra<'j> {
    context: Vec<Text<'j>>,
    input: Option<Text<'j>>,
    options: Vec<Text<'j>>,
    /// Of all of these.
    pub marks: Marks,
    /// The record has one turn, whose question they belong to.
    apply: bool,
}

impl<'j> Extra<'j> {
    /// The fields that belong to the question. Of several turns nobody can tell which they belong
    /// to, and a conversation has its context within; there they stay unread.
    pub(super) fn read(fields: &Fields<'_, 'j>, talk: &Talk<'j>) -> Result<Self, Rejection> {
        if talk.turns.len() != 1 {
            return Ok(Self::default());
        }
        let options = options::read(fields)?;
        let mut extra = Self { options, apply: true, ..Self::default() };
        // The place of a picture among options says which option it is, so marks stay there.
        for option in &extra.options {
            extra.marks.add(marks::strip(option, false).1);
        }
        for name in CONTEXT {
            let Some((name, value)) = fields.find_among(&[name]) else { continue };
            if let Some(text) = paragraph(value) {
                fields.mark_read(name);
                let (text, marks) = marks::strip(&text, false);
                extra.marks.add(marks);
                extra.context.push(text);
            }
        }
        if let Some((name, value)) = fields.find("", &INPUT).filter(|found| !is_empty(found.1))
            && !fields.was_read(name)
            && !value.as_str().is_some_and(names_media)
        {
            let Some(text) = paragraph(value) else {
                return Err(wrong_type(name, value, "a text"));
            };
            fields.mark_read(name);
            let (text, marks) = marks::strip(&text, false);
            extra.marks.add(marks);
            extra.input = Some(text);
        }
        Ok(extra)
    }

    /// The question with everything that belongs to it and does not stand in it, and the options.
    pub(super) fn complete(&mut self, question: Text<'j>) -> (Text<'j>, Vec<Text<'j>>) {
        if !self.apply || (self.context.is_empty() && self.input.is_none()) {
            return with_options(question, std::mem::take(&mut self.options));
        }
        let is_new = |text: &&str| !text.is_empty() && !states(&question, text);
        let listed = self.options.is_empty() || listed::are_in(&question, &self.options);
        let lines = if listed { String::new() } else { options::as_lines(&self.options) };
        let before = self.context.iter().map(|text| &**text).filter(is_new);
        let after = self.input.as_deref().filter(is_new);
        let parts: Vec<&str> = before.chain([&*question]).chain(after).collect();
        let mut prompt = parts.join("\n");
        if !lines.is_empty() {
            prompt = format!("{prompt}\n{lines}");
        }
        let options = std::mem::take(&mut self.options);
        (prompt.into(), if options.is_empty() { options::in_text(&question) } else { options })
    }
}

/// A question with the options that it does not list, and its options.
pub(super) fn with_options<'j>(
    question: Text<'j>,
    options: Vec<Text<'j>>,
) -> (Text<'j>, Vec<Text<'j>>) {
    if options.is_empty() {
        let options = options::in_text(&question);
        return (question, options);
    }
    if listed::are_in(&question, &options) {
        return (question, options);
    }
    let lines = options::as_lines(&options);
    let prompt =
        if lines.is_empty() { question } else { [&question, "\n", lines.as_str()].concat().into() };
    (prompt, options)
}

/// A text, or the texts of a list as lines; neither names of pictures nor nothing.
fn paragraph<'j>(value: &Value<'j>) -> Option<Text<'j>> {
    let text = match value {
        Value::Array(items) => {
            let texts = items.iter().map(plain_text).collect::<Option<Vec<_>>>()?;
            texts.iter().map(|text| &**text).collect::<Vec<_>>().join("\n").into()
        }
        other => plain_text(other)?,
    };
    let text = text.part(str::trim);
    (!text.is_empty() && !names_media(&text)).then_some(text)
}

/// Whether a question has this text already: as lines of its own, or, where it is long, as whole
/// words. A short text within a line may be a part of what is asked by chance.
pub(super) fn states(question: &str, text: &str) -> bool {
    let lines = |text: &str| {
        let lines = text.lines().map(flat).filter(|line| !line.is_empty());
        format!("\n{}\n", lines.collect::<Vec<_>>().join("\n"))
    };
    if lines(question).contains(&lines(text)) {
        return true;
    }
    let text = flat(text);
    if text.chars().count() < SHORTEST_STATED {
        return false;
    }
    let question = flat(question);
    // Between two letters or digits there is no boundary; beside any other character there is.
    let joined = |left: Option<char>, right: Option<char>| {
        left.is_some_and(char::is_alphanumeric) && right.is_some_and(char::is_alphanumeric)
    };
    question.match_indices(&*text).any(|(at, _)| {
        let before = question.get(..at).and_then(|before| before.chars().next_back());
        let after = question.get(at + text.len()..).and_then(|after| after.chars().next());
        !joined(before, text.chars().next()) && !joined(text.chars().next_back(), after)
    })
}

/// The rejection of a turn in which nothing is asked.
pub(super) fn empty() -> Rejection {
    Rejection::new("empty_prompt", "no question is left without its media marks")
}

/// `mcq` where the question offers options, else `long` or `short` by the length of the answer.
pub fn question_type(prompt: &str, answer: Option<&str>) -> &'static str {
    if options::are_offered(prompt) {
        "mcq"
    } else if answer.is_some_and(|answer| is_longer(answer, LONG_ANSWER)) {
        "long"
    } else {
        "short"
    }
}

/// Whether a text has more characters than these.
fn is_longer(text: &str, characters: usize) -> bool {
    text.len() > characters && text.chars().count() > characters
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
    fn a_text_is_stated_as_lines_or_as_long_whole_words() {
        for (question, text) in [
            ("Translate.\ngive\nNow.", "give"),
            ("Translate.\n a  b \n\nc", "a b\nc"),
            ("It began in 1914. When?", "It began in  1914."),
            ("In \u{201c}a longer text\u{201d}: why?", "a longer text"),
        ] {
            assert!(states(question, text), "{question} {text}");
        }
        for (question, text) in [
            ("Find the antonym of the given word.", "give"),
            ("Give the antonym of give.", "give"),
            ("A misunderstanding of it?", "understanding"),
            ("Is 123456789012 prime?", "2345678901234"),
            ("Is 1234567890123 prime?", "123456789012"),
        ] {
            assert!(!states(question, text), "{question} {text}");
        }
    }

    #[test]
    fn exactly_128_characters_are_short() {
        assert_eq!(question_type("Why?", Some(&"é".repeat(128))), "short");
        assert_eq!(question_type("Why?", Some(&"é".repeat(129))), "long");
    }
}
