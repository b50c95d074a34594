//! Lists and objects that were written as text: JSON, or as Python prints them.
//!
//! Tables without nested types hold `["a", "b"]`, `['a', 'b']`, `{'A': 'a'}` or numpy's `['a' 'b']`.

use super::json::{Map, Text, Value};

/// Levels of lists within lists that are followed.
const DEEPEST: usize = 16;

/// The list or object that a text spells out; `None` for any other text.
pub(super) fn structured(text: &str) -> Option<Value<'static>> {
    let text = text.trim();
    if !matches!(text.as_bytes(), [b'[', .., b']'] | [b'{', .., b'}']) {
        return None;
    }
    if let Ok(value) = serde_json::from_str::<Value<'_>>(text) {
        return Some(value.into_owned());
    }
    let mut parser = Parser { text, at: 0 };
    let value = parser.value(0)?;
    parser.skip_blanks();
    (parser.at == text.len()).then_some(value)
}

/// Reads one literal of Python from `at` on.
struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_blanks(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    fn take(&mut self, wanted: u8) -> Option<()> {
        self.skip_blanks();
        (self.peek() == Some(wanted)).then(|| self.at += 1)
    }

    fn value(&mut self, depth: usize) -> Option<Value<'static>> {
        self.skip_blanks();
        match self.peek()? {
            _ if depth > DEEPEST => None,
            b'[' => self.list(depth, b']'),
            b'(' => self.list(depth, b')'),
            b'{' => self.object(depth),
            quote @ (b'\'' | b'"') => self.string(quote).map(|text| Value::String(text.into())),
            _ => self.word(),
        }
    }

    /// Items with commas between them, or with blanks alone as numpy prints them.
    fn list(&mut self, depth: usize, end: u8) -> Option<Value<'static>> {
        self.at += 1;
        let mut items = Vec::new();
        while self.take(end).is_none() {
            items.push(self.value(depth + 1)?);
            let _ = self.take(b',');
        }
        Some(Value::Array(items))
    }

    fn object(&mut self, depth: usize) -> Option<Value<'static>> {
        self.at += 1;
        let mut fields = Vec::new();
        while self.take(b'}').is_none() {
            let name = match self.value(depth + 1)? {
                Value::String(name) => name,
                Value::Number(number) => Text::from(number.to_string()),
                _ => return None,
            };
            self.take(b':')?;
            fields.push((name, self.value(depth + 1)?));
            let _ = self.take(b',');
        }
        Some(Value::Object(Map::of(fields)))
    }

    fn string(&mut self, quote: u8) -> Option<String> {
        self.at += 1;
        let mut string = String::new();
        let mut characters = self.text.get(self.at..)?.char_indices();
        while let Some((offset, character)) = characters.next() {
            match character {
                '\\' => string.push(match characters.next()?.1 {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    other @ ('\\' | '\'' | '"') => other,
                    _ => return None,
                }),
                _ if character == char::from(quote) => {
                    self.at += offset + 1;
                    return Some(string);
                }
                _ => string.push(character),
            }
        }
        None
    }

    fn word(&mut self) -> Option<Value<'static>> {
        let rest = self.text.get(self.at..)?;
        let end = rest.find([',', ']', ')', '}', ':', ' ', '\n']).unwrap_or(rest.len());
        let word = rest.get(..end)?;
        self.at += end;
        match word {
            "None" | "nan" => Some(Value::Null),
            "True" => Some(Value::Bool("true")),
            "False" => Some(Value::Bool("false")),
            number => serde_json::from_str::<serde_json::Number>(number).ok().map(Value::Number),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    fn structured(text: &str) -> Option<serde_json::Value> {
        super::structured(text).map(|value| (&value).into())
    }

    #[test]
    fn lists_of_python_and_numpy_are_read() {
        assert_eq!(structured("['a', \"it's\", 'x\\'y']"), Some(json!(["a", "it's", "x'y"])));
        assert_eq!(structured("['a' 'b']"), Some(json!(["a", "b"])));
        assert_eq!(structured("{'A': 'x', 'B': None}"), Some(json!({"A": "x", "B": null})));
        assert_eq!(structured("[(1, 2.5), True]"), Some(json!([[1, 2.5], true])));
        assert_eq!(structured("[\"a\"]"), Some(json!(["a"])));
    }

    #[test]
    fn other_texts_are_none() {
        for text in ["", "[", "[a]", "['a'", "['a'] b]", "{1}", "[x](y)", "[]]", "{'a' 'b'}"] {
            assert_eq!(structured(text), None, "{text}");
        }
        assert_eq!(structured(&("[".repeat(500) + &"]".repeat(500))), None);
    }
}
