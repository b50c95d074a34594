//! Which layout a record has, as a talk of single turns.

use std::borrow::Cow;

use super::super::Rejection;
use super::super::role::Role;
use super::fields::{ANSWER, Fields, Names, PROMPT, is_empty, plain_text, wrong_type};
use super::json::{Text, Value};
use super::literal::structured;
use super::options;
use super::turns::{CONVERSATIONS, Place, STRICT, Talk, answer_text, is_message, is_talk, listed};

const SYSTEM: Names = Names::of(&["system", "system_prompt", "system_message"]);
pub(super) const QUESTIONS: &str = "questions";

/// Fields that are read besides those of the question and the answer.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    let own =
        ["rejected", "history", QUESTIONS, "correct_choice_idx", "direct_answers", "label", "a"];
    own.into_iter()
        .chain(SYSTEM.all.iter().copied())
        .chain(super::prompt::CONTEXT)
        .chain(["inputs"])
}

/// What was asked and answered, with what was said before.
pub(super) fn read<'j>(fields: &Fields<'_, 'j>) -> Result<Talk<'j>, Rejection> {
    let mut talk = Talk::default();
    if let Some((name, system)) = fields.find("system", &SYSTEM)
        && let Some(text) = plain_text(system).filter(|text| !text.trim().is_empty())
    {
        fields.mark_read(name);
        talk.say(Role::System, text);
    }
    if !fields.columns.contains_key("prompt") && read_conversation(fields, &mut talk)? {
        // An answer, or those of a pair, may stand beside the conversation that they end.
        let open = talk.turns.last().is_some_and(|turn| turn.answer.is_none());
        if open
            && !talk.independent
            && let Some(answer) = read_answer(fields)?
        {
            talk.reply(answer);
        }
        return Ok(talk);
    }
    read_history(fields, &mut talk)?;
    match fields.take("prompt", &PROMPT) {
        // TRL: the prompt is a conversation that the chosen answer ends.
        Some((name, Value::Array(items)))
            if !items.is_empty() && items.iter().all(Value::is_object) =>
        {
            talk.read(name, items)?;
            if let Some(answer) = read_answer(fields)? {
                talk.reply(answer);
            }
        }
        Some((name, value)) => {
            let Some(question) = plain_text(value) else {
                return Err(wrong_type(name, value, "a text or messages"));
            };
            talk.ask(question, [0; 2]);
            if let Some(answer) = read_answer(fields)? {
                talk.reply(answer);
            }
        }
        None => read_implicit(fields, &mut talk)?,
    }
    Ok(talk)
}

/// A conversation under one of its names, if the record has one.
fn read_conversation<'j>(fields: &Fields<'_, 'j>, talk: &mut Talk<'j>) -> Result<bool, Rejection> {
    let names = if fields.may_have(&CONVERSATIONS) { CONVERSATIONS.all } else { &[] };
    for (number, &name) in names.iter().enumerate() {
        let Some((name, value)) = fields.get(name) else { continue };
        let asked = PROMPT.all.iter().any(|name| fields.get(name).is_some_and(|f| !is_empty(f.1)));
        if is_empty(value) && asked {
            continue;
        }
        let items =
            listed(value).filter(|items| number < STRICT || (!items.is_empty() && is_talk(items)));
        match items {
            Some(items) => {
                refuse_own_media(name, &items)?;
                fields.mark_read(name);
                talk.read(name, &items)?;
                return Ok(true);
            }
            None if number < STRICT => return Err(wrong_type(name, value, "a list of messages")),
            None => {}
        }
    }
    read_questions(fields, talk)
}

/// `questions`: pairs, or texts with the answers in a list beside them.
fn read_questions<'j>(fields: &Fields<'_, 'j>, talk: &mut Talk<'j>) -> Result<bool, Rejection> {
    let Some(mut items) = fields.get(QUESTIONS).and_then(|(_, value)| listed(value)) else {
        return Ok(false);
    };
    if items.is_empty()
        || PROMPT.all.iter().any(|name| fields.get(name).is_some_and(|f| !is_empty(f.1)))
    {
        return Ok(false);
    }
    if items.iter().all(Value::is_string) {
        let answers =
            fields.take_among(&["answers", "answer"]).and_then(|(_, value)| listed(value));
        let answers = answers.filter(|answers| answers.len() == items.len());
        let paired = items.iter().enumerate().map(|(index, question)| {
            let answer = answers.as_ref().and_then(|answers| answers.get(index).cloned());
            Value::Array(vec![question.clone(), answer.unwrap_or(Value::Null)])
        });
        items = Cow::Owned(paired.collect());
    }
    refuse_own_media(QUESTIONS, &items)?;
    if !is_talk(&items) {
        return Ok(false);
    }
    if let Some((name, _)) = fields.get(QUESTIONS) {
        fields.mark_read(name);
    }
    talk.independent = true;
    talk.read(QUESTIONS, &items)?;
    Ok(true)
}

/// Refuse pairs that name pictures of their own: nobody reads these.
fn refuse_own_media(name: &str, items: &[Value<'_>]) -> Result<(), Rejection> {
    let pairs = items.iter().filter_map(Value::as_object).filter(|item| !is_message(item));
    let pairs: Vec<_> = pairs.collect();
    let keys = ["image_id", "image", "images", "video_id", "video"];
    let own = |key: &&str| pairs.iter().any(|pair| pair.get(key).is_some_and(|v| !is_empty(v)));
    keys.into_iter().find(own).map_or(Ok(()), |key| {
        let detail = format!(
            "{name} has {key} of its own: give each question a record of its own (a list of them, \
             or a line each)"
        );
        Err(Rejection::new("wrong_type", detail))
    })
}

/// ms-swift's `history`: the turns before the question, which are no samples of their own.
fn read_history<'j>(fields: &Fields<'_, 'j>, talk: &mut Talk<'j>) -> Result<(), Rejection> {
    let Some((name, value)) = fields.get("history").filter(|(_, value)| !is_empty(value)) else {
        return Ok(());
    };
    match (listed(value), plain_text(value)) {
        (Some(items), _) => talk.read(name, &items)?,
        (None, Some(text)) => talk.say(Role::User, text),
        (None, None) => return Err(wrong_type(name, value, "a list of questions and answers")),
    }
    fields.mark_read(name);
    talk.turns.clear();
    Ok(())
}

/// A record without a question: its answer may be a conversation that holds it (TRL, HH-RLHF).
fn read_implicit<'j>(fields: &Fields<'_, 'j>, talk: &mut Talk<'j>) -> Result<(), Rejection> {
    match fields.get("chosen") {
        Some((name, Value::Array(items))) if !items.is_empty() => {
            fields.mark_read(name);
            fields.take_among(&["rejected"]);
            talk.read(name, items)
        }
        Some((name, Value::String(dialog))) if dialog.trim_start().starts_with("Human:") => {
            fields.mark_read(name);
            fields.take_among(&["rejected"]);
            read_dialog(dialog, talk);
            Ok(())
        }
        _ => Err(fields.no_text()),
    }
}

/// `Human: .. Assistant: ..`, each at the beginning of a paragraph.
fn read_dialog(dialog: &str, talk: &mut Talk<'_>) {
    let text = format!("\n\n{}", dialog.trim_start());
    let mut rest = text.as_str();
    while let Some((role, body)) = rest.strip_prefix("\n\n").and_then(|r| r.split_once(':')) {
        let next = ["\n\nHuman:", "\n\nAssistant:"].iter().filter_map(|mark| body.find(mark)).min();
        let said = body.get(..next.unwrap_or(body.len())).unwrap_or_default().trim();
        match role {
            "Human" => talk.ask(Text::copy_of(said), [0; 2]),
            _ => talk.reply(Text::copy_of(said)),
        }
        rest = next.and_then(|at| body.get(at..)).unwrap_or_default();
    }
}

/// The answer as the record gives it; of A-OKVQA, the option it numbers.
fn read_answer<'j>(fields: &Fields<'_, 'j>) -> Result<Option<Text<'j>>, Rejection> {
    fields.take_among(&["rejected"]);
    if let Some((name, value)) =
        fields.take("answer", &ANSWER).filter(|(_, value)| !is_empty(value))
    {
        return answer_text(Place::field(name), value);
    }
    if let Some((name, Value::Number(number))) = fields.get("correct_choice_idx") {
        fields.mark_read(name);
        let options = options::read(fields)?;
        let index = number.as_u64().and_then(|number| usize::try_from(number).ok());
        return Ok(index.and_then(|index| options.get(index).cloned()));
    }
    // Beside any other question `a` may be an option.
    if let (Some(_), Some((name, value))) = (fields.get("q"), fields.get("a")) {
        fields.mark_read(name);
        return answer_text(Place::field(name), value);
    }
    // A number may be that of a class; a text is what somebody says of the picture.
    if let Some((name, value @ (Value::String(_) | Value::Array(_)))) = fields.get("label")
        && !is_empty(value)
        && let Ok(Some(label)) = answer_text(Place::field(name), value)
        && !value.as_array().is_some_and(|items| items.iter().any(|item| !item.is_string()))
    {
        fields.mark_read(name);
        return Ok(Some(label));
    }
    let direct = fields.take_among(&["direct_answers"]);
    let listed = direct.and_then(|(name, value)| Some((name, structured(value.as_str()?)?)));
    let Some((name, value)) = listed else { return Ok(None) };
    answer_text(Place::field(name), &value)
}
