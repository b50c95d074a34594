//! JSON as nearly every record is written, parsed without a look at it twice.
//!
//! What this parser takes, it reads as `serde_json` does. What it does not take (damage, surrogates,
//! numbers that are no small integers beyond their digits, deep nesting) is left to `serde_json`,
//! which also says what is wrong.

use serde_json::Number;

use super::json::{Map, Text, Value};

/// Levels of lists and objects that are followed.
const DEEPEST: usize = 64;

/// Digits of an integer that surely fits.
const SAFE_DIGITS: usize = 18;

/// Fields and items for which there is room from the start.
const USUAL: usize = 4;

/// The value of a text; `None` where `serde_json` has to decide.
pub(super) fn parse(text: &str) -> Option<Value<'_>> {
    let mut parser = Parser { text, at: 0, unescaped: String::new() };
    let value = parser.value(0)?;
    parser.skip_blanks();
    (parser.at == text.len()).then_some(value)
}

struct Parser<'j> {
    text: &'j str,
    at: usize,
    unescaped: String,
}

impl<'j> Parser<'j> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// The next byte that is no white space; it is not passed.
    fn next(&mut self) -> Option<u8> {
        self.skip_blanks();
        self.peek()
    }

    fn skip_blanks(&mut self) {
        while let Some(b' ' | b'\n' | b'\t' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn value(&mut self, depth: usize) -> Option<Value<'j>> {
        match self.next()? {
            b'"' => self.string().map(Value::String),
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'-' | b'0'..=b'9' => self.number().map(Value::Number),
            b'n' => self.word("null", Value::Null),
            b't' => self.word("true", Value::Bool("true")),
            b'f' => self.word("false", Value::Bool("false")),
            _ => None,
        }
    }

    fn word(&mut self, word: &str, value: Value<'j>) -> Option<Value<'j>> {
        self.text.get(self.at..)?.starts_with(word).then(|| {
            self.at += word.len();
            value
        })
    }

    fn object(&mut self, depth: usize) -> Option<Value<'j>> {
        let mut fields = Vec::with_capacity(USUAL);
        self.items(b'}', depth, |parser| {
            if parser.next()? != b'"' {
                return None;
            }
            let name = match parser.plain() {
                Some(name) => Text::Borrowed(name),
                None => parser.string()?,
            };
            if parser.next()? != b':' {
                return None;
            }
            parser.at += 1;
            // Most values: passed in registers, where any other goes through memory.
            if parser.next()? == b'"'
                && let Some(text) = parser.plain()
            {
                fields.push((name, Value::String(Text::Borrowed(text))));
            } else {
                fields.push((name, parser.value(depth + 1)?));
            }
            Some(())
        })?;
        Some(Value::Object(Map::of(fields)))
    }

    fn array(&mut self, depth: usize) -> Option<Value<'j>> {
        let mut items = Vec::with_capacity(USUAL);
        self.items(b']', depth, |parser| {
            if parser.next()? == b'"'
                && let Some(text) = parser.plain()
            {
                items.push(Value::String(Text::Borrowed(text)));
            } else {
                items.push(parser.value(depth + 1)?);
            }
            Some(())
        })?;
        Some(Value::Array(items))
    }

    /// What stands between an opening bracket and its `end`, with commas between.
    fn items(
        &mut self,
        end: u8,
        depth: usize,
        mut item: impl FnMut(&mut Self) -> Option<()>,
    ) -> Option<()> {
        if depth > DEEPEST {
            return None;
        }
        self.at += 1;
        if self.next()? == end {
            self.at += 1;
            return Some(());
        }
        loop {
            item(self)?;
            let after = self.next()?;
            self.at += 1;
            if after == end {
                return Some(());
            }
            if after != b',' {
                return None;
            }
        }
    }

    fn number(&mut self) -> Option<Number> {
        let rest = self.text.get(self.at..)?;
        let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        let length = rest.bytes().take_while(is_part).count();
        let number = rest.get(..length)?;
        self.at += length;
        let digits = number.as_bytes();
        if digits.len() <= SAFE_DIGITS
            && digits.iter().all(u8::is_ascii_digit)
            && (digits.len() == 1 || digits.first() != Some(&b'0'))
        {
            let add = |sum: u64, digit: &u8| sum * 10 + u64::from(digit - b'0');
            return Some(digits.iter().fold(0, add).into());
        }
        serde_json::from_str(number).ok()
    }

    /// The string that begins here, if it has no escapes; else nothing is passed.
    fn plain(&mut self) -> Option<&'j str> {
        let start = self.at + 1;
        let end = start + special(self.text.as_bytes().get(start..)?)?;
        if self.text.as_bytes().get(end) != Some(&b'"') {
            return None;
        }
        self.at = end + 1;
        self.text.get(start..end)
    }

    /// The string that begins here.
    fn string(&mut self) -> Option<Text<'j>> {
        let start = self.at + 1;
        let end = start + special(self.text.as_bytes().get(start..)?)?;
        let plain = self.text.get(start..end)?;
        self.at = end + 1;
        match self.text.as_bytes().get(end)? {
            b'"' => Some(Text::Borrowed(plain)),
            b'\\' => self.escaped(plain),
            _ => None,
        }
    }

    /// The string that begins with `plain`, from behind the backslash after it on.
    fn escaped(&mut self, plain: &str) -> Option<Text<'j>> {
        self.unescaped.clear();
        self.unescaped.push_str(plain);
        loop {
            let escape = self.peek()?;
            self.at += 1;
            let character = match escape {
                b'n' => '\n',
                b't' => '\t',
                b'r' => '\r',
                b'b' => '\u{8}',
                b'f' => '\u{c}',
                b'"' | b'\\' | b'/' => char::from(escape),
                b'u' => {
                    let digits = self.text.get(self.at..self.at + 4)?;
                    // A sign before the digits is not of JSON; surrogates are no characters.
                    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                        return None;
                    }
                    self.at += 4;
                    char::from_u32(u32::from_str_radix(digits, 16).ok()?)?
                }
                _ => return None,
            };
            self.unescaped.push(character);
            let start = self.at;
            let end = start + special(self.text.as_bytes().get(start..)?)?;
            self.unescaped.push_str(self.text.get(start..end)?);
            self.at = end + 1;
            match self.text.as_bytes().get(end)? {
                b'"' => return Some(Text::copy_of(&self.unescaped)),
                b'\\' => {}
                _ => return None,
            }
        }
    }
}

/// Where the first quote, backslash or control character is.
fn special(bytes: &[u8]) -> Option<usize> {
    let is_special = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
    let (blocks, _) = bytes.as_chunks::<16>();
    let any = |block: &[u8; 16]| block.iter().fold(false, |any, byte| any | is_special(*byte));
    let skipped = 16 * blocks.iter().take_while(|block| !any(block)).count();
    let rest = bytes.get(skipped..)?;
    let (words, last) = rest.as_chunks::<8>();
    let in_words = words
        .iter()
        .enumerate()
        .find_map(|(word, bytes)| Some(8 * word + special_of(u64::from_le_bytes(*bytes))?));
    let found = in_words.or_else(|| {
        let at = last.iter().position(|byte| is_special(*byte))?;
        Some(8 * words.len() + at)
    });
    found.map(|at| skipped + at)
}

/// The same of eight bytes, the first of them lowest.
///
/// The high bit of each byte says whether subtracting borrowed there. A borrow goes on into the bytes
/// above, so bits above the lowest one mean nothing.
fn special_of(word: u64) -> Option<usize> {
    const ONES: u64 = u64::MAX / 0xff;
    let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word;
    let is = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    let found = (below(word, 0x20) | is(b'"') | is(b'\\')) & (ONES << 7);
    (found != 0).then_some(found.trailing_zeros() as usize / 8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::special;

    proptest! {
        #[test]
        fn the_first_special_byte_is_found(
            bytes in prop::collection::vec(prop_oneof![40 => 0x21_u8.., 1 => Just(0x22), 1 => any::<u8>()], 0..70),
        ) {
            let naive = bytes.iter().position(|byte| matches!(byte, 0..0x20 | b'"' | b'\\'));
            prop_assert_eq!(special(&bytes), naive);
        }
    }
}
