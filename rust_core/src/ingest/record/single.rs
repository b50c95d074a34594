//! Records of one question, which the names of their fields tell.
//!
//! Most tables hold nothing but an id, a picture, a question, its options and an answer, each under
//! one of its usual names. Which field is which depends on the names alone, so it is decided once for
//! all records of the same names, and nothing else is looked for. What such a record means is defined
//! by [`super::read_any`]; a value that asks for more than this is left to it.

use super::super::Rejection;
use super::fields::{ANSWER, ID, Names, PROMPT, is_empty};
use super::json::{Map, Value};
use super::marks;
use super::options::{self, OPTIONS};
use super::pictures::{IMAGE, collect_value};
use super::prompt::{self, question_type};
use super::{Record, Sample};

/// The fields of records of the same names.
#[derive(Debug)]
pub(super) struct Shape {
    names: Vec<String>,
    places: Option<Places>,
}

/// Where the values of a record of one question stand among its fields.
#[derive(Debug, Default)]
struct Places {
    id: Option<usize>,
    image: Option<usize>,
    question: Option<usize>,
    options: Option<usize>,
    answer: Option<usize>,
}

impl Shape {
    /// The shape of a record.
    pub(super) fn of(fields: &Map<'_>) -> Self {
        let names = fields.names().map(str::to_owned).collect();
        Self { names, places: Places::of(fields) }
    }

    /// Whether a record has the same names.
    pub(super) fn fits(&self, fields: &Map<'_>) -> bool {
        self.names.len() == fields.len() && fields.names().zip(&self.names).all(|(a, b)| a == b)
    }
}

impl Places {
    /// `None` if a name is none of these, or two mean the same.
    fn of(fields: &Map<'_>) -> Option<Self> {
        let mut places = Self::default();
        for (at, name) in fields.names().enumerate() {
            let is_of = |names: &Names| names.all.contains(&name);
            let place = match () {
                () if is_of(&ID) => &mut places.id,
                () if is_of(&IMAGE) => &mut places.image,
                () if is_of(&PROMPT) => &mut places.question,
                () if is_of(&OPTIONS) => &mut places.options,
                () if is_of(&ANSWER) => &mut places.answer,
                () => return None,
            };
            if place.replace(at).is_some() {
                return None;
            }
        }
        places.question.is_some().then_some(places)
    }
}

/// The record, if it is one of a single question and no value of it is out of the ordinary.
pub(super) fn read<'j>(
    fields: &Map<'j>,
    shape: &Shape,
    attached: usize,
) -> Option<Result<Record<'j>, Rejection>> {
    let places = shape.places.as_ref()?;
    let field = |place: Option<usize>| fields.at(place?);
    let text = |place| match field(place) {
        Some((_, Value::String(text))) => (!text.is_empty()).then_some(Some(text)),
        Some(_) => None,
        None => Some(None),
    };
    let id = match field(places.id) {
        Some((_, Value::Number(id))) => Some(id.to_string().into()),
        _ => text(places.id)?.cloned(),
    };
    let (question, answer) = (text(places.question)??, text(places.answer)?);
    let mut media = Vec::new();
    if let Some((name, value)) = field(places.image) {
        if is_empty(value) {
            return None;
        }
        if let Err(rejection) = collect_value(name, value, &mut media) {
            return Some(Err(rejection));
        }
    }
    let options = match field(places.options) {
        Some((name, value)) => match options::of_value(name, value) {
            Ok(options) => Some(options).filter(|options| !options.is_empty())?,
            Err(rejection) => return Some(Err(rejection)),
        },
        None => Vec::new(),
    };
    if marks::are_in(question) || options.iter().any(marks::are_in) {
        return None;
    }
    let count = if attached > 0 { attached } else { media.len() };
    let question =
        if count > 1 { question.part(str::trim) } else { question.part(marks::strip_numbered) };
    if question.is_empty() {
        return None;
    }
    let (prompt, options) = prompt::with_options(question, options);
    let answer = answer.map(|answer| answer.part(str::trim)).filter(|answer| !answer.is_empty());
    let question_type =
        if options.is_empty() { question_type(&prompt, answer.as_deref()) } else { "mcq" };
    let history = Vec::new();
    let sample = Sample { prompt, answer, question_type, options, history, needs_history: false };
    Some(Ok(Record { id, is_pair: false, media, turns: vec![Ok(sample)], unread: Vec::new() }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{ColumnMap, RecordReader, read_any};
    use super::*;

    fn record() -> impl Strategy<Value = String> {
        let names = [ID.all, IMAGE.all, PROMPT.all, OPTIONS.all, ANSWER.all];
        let name = move |group: usize| prop::sample::select(names[group]).prop_map(str::to_owned);
        let others = ["A", "B", "context", "Prompt", "rejected", "image_1", "img", "note", "label"];
        let text = "(<image>|<image 1>|<img>a\\.png</img>|Picture 1:|a|B|A\\. |B\\. |\\\\n| |é|x\\.png){0,6}";
        let text = text.prop_map(|text: String| format!("\"{text}\""));
        let value = prop_oneof![
            8 => text.clone(),
            1 => prop::sample::select(&["null", "3", "-1.5", "true", "[]", "{}", "\"\"", "\"  \""][..])
                .prop_map(str::to_owned),
            2 => prop::collection::vec(text, 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            1 => prop::sample::select(&[
                r#"{"A": "x", "B": "y"}"#,
                r#"{"phash": "6a13eb42f2dff270", "width": 3}"#,
                r#"{"phash": "6a"}"#,
                r#"[["x"], 1]"#,
                r#"[{"role": "user", "content": "x"}]"#,
            ][..])
            .prop_map(str::to_owned),
        ];
        let other = prop::sample::select(others.to_vec()).prop_map(str::to_owned);
        let field = |name: BoxedStrategy<String>| (name, value.clone());
        let usual = (0..5).map(|group| prop::option::weighted(0.7, field(name(group).boxed())));
        let usual = usual.collect::<Vec<_>>();
        let more = prop_oneof![
            6 => Just(Vec::new()).boxed(),
            1 => prop::collection::vec(field(other.boxed()), 1..3).boxed(),
            1 => prop::collection::vec(field((0_usize..5).prop_flat_map(name).boxed()), 1..2).boxed(),
        ];
        (usual, more).prop_map(|(usual, more)| {
            let fields = usual.into_iter().flatten().chain(more);
            let fields = fields.map(|(name, value)| format!("\"{name}\": {value}"));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
        })
    }

    proptest! {
        #[test]
        fn a_record_means_what_it_means_without_its_shape(
            records in prop::collection::vec((record(), 0_usize..3), 1..8),
        ) {
            let columns = ColumnMap::new();
            let mut reader = RecordReader::new(&columns);
            for (record, attached) in &records {
                let fields = super::super::fields::parse(record.as_bytes()).expect("an object");
                let expected = read_any(&fields, &columns, *attached);
                for _ in 0..2 {
                    prop_assert_eq!(&reader.read(record.as_bytes(), *attached), &expected);
                }
            }
        }
    }

    #[test]
    fn the_usual_record_is_read_by_its_shape() {
        let record = r#"{"id": 1, "image": "a.png", "question": "Why?", "options": ["x", "y"], "answer": "A"}"#;
        let fields = super::super::fields::parse(record.as_bytes()).expect("an object");
        assert!(read(&fields, &Shape::of(&fields), 0).is_some());
    }
}
