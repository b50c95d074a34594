//! A JSON value whose texts are those of the record it was read from.
//!
//! A text without escapes is a part of the record, any other is shared by all who keep it: either way
//! a copy of a [`Text`] copies no characters. What a record means is mostly which of its texts is
//! which, so most samples are made without a copy of any.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Number;

/// Fields from which on an object is sorted by name, and searched by halves.
const SEARCHED: usize = 12;

/// A text of a record, or one made of it.
#[derive(Clone)]
pub enum Text<'j> {
    /// A part of the record.
    Borrowed(&'j str),
    /// A text of its own.
    Shared(Arc<str>),
}

impl Text<'_> {
    /// A part of this text, as `part` finds it.
    pub(super) fn part(&self, part: impl Fn(&str) -> &str) -> Self {
        match self {
            Self::Borrowed(text) => Self::Borrowed(part(text)),
            Self::Shared(text) => match part(text) {
                whole if whole.len() == text.len() => self.clone(),
                inner => Self::Shared(inner.into()),
            },
        }
    }

    /// A copy of a text.
    pub(super) fn copy_of(text: &str) -> Text<'static> {
        Text::Shared(text.into())
    }

    fn into_owned(self) -> Text<'static> {
        match self {
            Self::Borrowed(text) => Self::copy_of(text),
            Self::Shared(text) => Text::Shared(text),
        }
    }
}

impl Default for Text<'_> {
    fn default() -> Self {
        Self::Borrowed("")
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Shared(text) => text,
        }
    }
}

impl AsRef<str> for Text<'_> {
    fn as_ref(&self) -> &str {
        self
    }
}

impl From<String> for Text<'_> {
    fn from(text: String) -> Self {
        Self::Shared(text.into())
    }
}

impl PartialEq for Text<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Text<'_> {}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// Any JSON value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'j> {
    Null,
    /// By its word, which stands where a text does: a value is moved in whole words then.
    Bool(&'static str),
    Number(Number),
    String(Text<'j>),
    Array(Vec<Self>),
    Object(Map<'j>),
}

/// The fields of an object, by name; of those of one name, the last.
#[derive(Debug, Clone, Default)]
pub(super) struct Map<'j>(Vec<(Text<'j>, Value<'j>)>);

impl<'j> Value<'j> {
    pub(super) fn as_str(&self) -> Option<&str> {
        if let Self::String(text) = self { Some(text) } else { None }
    }

    pub(super) fn as_text(&self) -> Option<&Text<'j>> {
        if let Self::String(text) = self { Some(text) } else { None }
    }

    pub(super) fn as_array(&self) -> Option<&Vec<Self>> {
        if let Self::Array(items) = self { Some(items) } else { None }
    }

    pub(super) fn as_object(&self) -> Option<&Map<'j>> {
        if let Self::Object(fields) = self { Some(fields) } else { None }
    }

    pub(super) fn as_u64(&self) -> Option<u64> {
        if let Self::Number(number) = self { number.as_u64() } else { None }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    pub(super) fn is_string(&self) -> bool {
        matches!(self, Self::String(_))
    }

    pub(super) fn is_object(&self) -> bool {
        matches!(self, Self::Object(_))
    }

    /// The field of an object.
    pub(super) fn get(&self, name: &str) -> Option<&Self> {
        self.as_object()?.get(name)
    }

    pub(super) fn into_owned(self) -> Value<'static> {
        match self {
            Self::Null => Value::Null,
            Self::Bool(truth) => Value::Bool(truth),
            Self::Number(number) => Value::Number(number),
            Self::String(text) => Value::String(text.into_owned()),
            Self::Array(items) => Value::Array(items.into_iter().map(Self::into_owned).collect()),
            Self::Object(Map(fields)) => {
                let owned =
                    |(name, value): (Text<'_>, Self)| (name.into_owned(), value.into_owned());
                Value::Object(Map(fields.into_iter().map(owned).collect()))
            }
        }
    }
}

impl<'j> Map<'j> {
    pub(super) fn get_key_value(&self, name: &str) -> Option<(&str, &Value<'j>)> {
        let at = if self.0.len() < SEARCHED {
            self.0.iter().position(|(known, _)| **known == *name)?
        } else {
            self.0.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?
        };
        self.at(at)
    }

    /// The field of this number, in the order of [`Self::names`].
    pub(super) fn at(&self, place: usize) -> Option<(&str, &Value<'j>)> {
        self.0.get(place).map(|(name, value)| (&**name, value))
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value<'j>> {
        self.get_key_value(name).map(|(_, value)| value)
    }

    pub(super) fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Names and values, by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Value<'j>)> {
        let mut fields: Vec<_> = self.0.iter().map(|(name, value)| (&**name, value)).collect();
        fields.sort_unstable_by_key(|(name, _)| *name);
        fields.into_iter()
    }

    /// The names, by name.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(name, _)| name)
    }

    /// The names, in no order that means anything.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| &**name)
    }

    /// The values, in that of [`Self::names`].
    pub(super) fn values(&self) -> impl Iterator<Item = &Value<'j>> {
        self.0.iter().map(|(_, value)| value)
    }

    /// An object of these fields, in any order.
    pub(super) fn of(mut fields: Vec<(Text<'j>, Value<'j>)>) -> Self {
        let is_repeated = |at: usize| {
            let (before, from) = fields.split_at(at);
            from.first().is_some_and(|(name, _)| before.iter().any(|(known, _)| known == name))
        };
        if fields.len() < SEARCHED && !(1..fields.len()).any(is_repeated) {
            return Self(fields);
        }
        // Stable, so that of one name the last is the last.
        fields.sort_by(|(one, _), (other, _)| str::cmp(one, other));
        fields.dedup_by(|later, earlier| {
            let same = later.0 == earlier.0;
            if same {
                std::mem::swap(later, earlier);
            }
            same
        });
        Self(fields)
    }
}

impl PartialEq for Map<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl From<&Value<'_>> for serde_json::Value {
    fn from(value: &Value<'_>) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(word) => Self::Bool(*word == "true"),
            Value::Number(number) => Self::Number(number.clone()),
            Value::String(text) => Self::String(text.to_string()),
            Value::Array(items) => Self::Array(items.iter().map(Self::from).collect()),
            Value::Object(fields) => {
                let fields = fields.iter().map(|(name, value)| (name.to_owned(), value.into()));
                Self::Object(fields.collect())
            }
        }
    }
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        serde_json::Value::from(self).fmt(f)
    }
}

impl<'j> Deserialize<'j> for Text<'j> {
    fn deserialize<D: Deserializer<'j>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

impl<'j> Deserialize<'j> for Value<'j> {
    fn deserialize<D: Deserializer<'j>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct TextVisitor;

impl<'j> Visitor<'j> for TextVisitor {
    type Value = Text<'j>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'j str) -> Result<Text<'j>, E> {
        Ok(Text::Borrowed(text))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Text<'j>, E> {
        Ok(Text::Shared(text.into()))
    }
}

struct ValueVisitor;

impl<'j> Visitor<'j> for ValueVisitor {
    type Value = Value<'j>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value<'j>, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, truth: bool) -> Result<Value<'j>, E> {
        Ok(Value::Bool(if truth { "true" } else { "false" }))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Value<'j>, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Value<'j>, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Value<'j>, E> {
        Ok(Number::from_f64(number).map_or(Value::Null, Value::Number))
    }

    fn visit_borrowed_str<E: Error>(self, text: &'j str) -> Result<Value<'j>, E> {
        Ok(Value::String(Text::Borrowed(text)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value<'j>, E> {
        Ok(Value::String(Text::Shared(text.into())))
    }

    fn visit_seq<A: SeqAccess<'j>>(self, mut items: A) -> Result<Value<'j>, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = items.next_element()? {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'j>>(self, mut fields: A) -> Result<Value<'j>, A::Error> {
        let mut all = Vec::new();
        while let Some(field) = fields.next_entry()? {
            all.push(field);
        }
        Ok(Value::Object(Map::of(all)))
    }
}

#[cfg(test)]
impl From<serde_json::Value> for Value<'static> {
    fn from(value: serde_json::Value) -> Self {
        serde_json::from_str::<Value<'_>>(&value.to_string()).expect("JSON").into_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::parse::parse;
    use super::*;

    /// JSON texts of any form: escapes, names that repeat, numbers of every kind, damage.
    fn text() -> impl Strategy<Value = String> {
        let string = r#""([a-c \n\t]|\\n|\\"|\\u00e9|\\ud83d\\ude00|\\u1|\\x|é){0,5}""#;
        let leaf = prop_oneof![
            string,
            Just("null".to_owned()),
            Just("true".to_owned()),
            "-?[0-9]{1,21}(\\.[0-9]{1,3})?(e-?[0-9]{1,3})?",
            "[a-z{}\\[\\],:]{1,2}",
        ];
        leaf.prop_recursive(3, 24, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5)
                    .prop_map(|items| format!("[{}]", items.join(", "))),
                prop::collection::vec(("\"[a-b]{0,2}\"", inner), 0..20).prop_map(|fields| {
                    let fields = fields.iter().map(|(name, value)| format!("{name}: {value}"));
                    format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_text_is_what_serde_json_makes_of_it(text in text()) {
            let expected = serde_json::from_str::<serde_json::Value>(&text);
            if let Some(found) = parse(&text) {
                prop_assert_eq!(Ok(found), serde_json::from_str(&text).map_err(|e| e.to_string()));
            }
            match (serde_json::from_str::<Value<'_>>(&text), expected) {
                (Ok(found), Ok(expected)) => {
                    prop_assert_eq!(serde_json::Value::from(&found), expected.clone());
                    prop_assert_eq!(found.to_string(), expected.to_string());
                    let fields = expected.as_object().into_iter().flatten();
                    for (name, value) in fields {
                        let found = found.get(name).map(serde_json::Value::from);
                        prop_assert_eq!(found.as_ref(), Some(value));
                    }
                    let names = expected.as_object().into_iter().flat_map(|fields| fields.keys());
                    let found_names = found.as_object().into_iter().flat_map(Map::keys);
                    prop_assert!(found_names.eq(names));
                    prop_assert_eq!(found.get("none"), None);
                    prop_assert_eq!(found.clone().into_owned(), found);
                }
                (found, expected) => prop_assert_eq!(
                    found.map_err(|error| error.to_string()),
                    Err(expected.map_or_else(|error| error.to_string(), |value| value.to_string()))
                ),
            }
        }
    }
}
