//! Which signs are tokens: those of mathematics and code are, punctuation and layout are not.

use unicode_normalization::char::is_combining_mark;

use super::normal::{ends_sentence, is_punctuation};
use super::scan::{Kind, Scanner, is_in_word, is_letter};

impl Scanner<'_> {
    pub(super) fn sign(&mut self, character: char) {
        let (before, next) = (self.peek(-1), self.peek(1));
        let pair = match (character, next) {
            ('!' | '=' | '<' | '>', '=') | ('-', '>') | ('*', '*') | ('&', '&') | ('|', '|') => {
                Some([character, next])
            }
            _ => None,
        };
        let start = self.at;
        self.at += 1;
        if self.emphasis.contains(&start) || self.is_layout(start) {
            return;
        }
        match character {
            ' ' => {}
            '*' | '_' if self.emphasised(start) => {}
            '&' if before == ' ' && next == ' ' && self.after_plain_word() => {
                self.push("and".to_owned(), Kind::Word);
            }
            _ if pair.is_some() => {
                self.at += 1;
                self.push(pair.into_iter().flatten().collect(), Kind::Sign);
            }
            '(' | ')' | '[' | ']' | '{' | '}' => {
                self.push(character.to_string(), Kind::Bracket);
            }
            '!' if self.is_factorial(start) => {
                self.push("!".to_owned(), Kind::Sign);
            }
            '.' | '?' | '!' | ';' | ':' => self.stop(character, before, next),
            '-' if self.is_minus(start) => {
                self.push("-".to_owned(), Kind::Sign);
            }
            '\'' if self.quote != Some('\'') && self.is_prime(start) => {
                self.push("'".to_owned(), Kind::Sign);
            }
            // Feet and inches, minutes and seconds.
            '\'' | '"'
                if self.quote != Some(character) && before.is_ascii_digit() && !is_letter(next) =>
            {
                self.push(character.to_string(), Kind::Sign);
            }
            '\'' | '"' | '`' => self.quotation(character, before),
            '/' if self.is_between_words(start) => {}
            '+' | '*' | '=' | '<' | '>' | '%' | '$' | '#' | '&' | '@' | '^' | '|' | '~' | '\\'
            | '/' | '_' => {
                self.push(character.to_string(), Kind::Sign);
            }
            _ if ends_sentence(character) => self.end_sentence(character == '\u{61F}'),
            _ if is_punctuation(character) || is_combining_mark(character) => {}
            _ => {
                self.push(character.to_string(), Kind::Sign);
            }
        }
    }

    /// Marks of lists, headings and quotations at the beginning of a line.
    fn is_layout(&mut self, start: usize) -> bool {
        if start > 0 && self.text[start - 1] != '\n' {
            return false;
        }
        let mark = self.text[start];
        let mut end = start;
        while mark == '#' && self.text.get(end + 1) == Some(&'#') {
            end += 1;
        }
        let letter = self.text.get(end + 2).is_some_and(|c| is_letter(*c));
        let listed = matches!(mark, '-' | '*' | '+' | '•' | '#') || mark == '>' && letter;
        let layout = listed && self.text.get(end + 1) == Some(&' ');
        if layout {
            self.at = end + 1;
        }
        layout
    }

    /// Whether a mark opens emphasis that is closed in the same line; remembers both.
    fn emphasised(&mut self, start: usize) -> bool {
        let mark = self.text[start];
        let length = self.text[start..].iter().take_while(|c| **c == mark).count();
        let word = |at: usize| self.text.get(at).is_some_and(|c| is_letter(*c));
        let opens = length <= 3
            && (start == 0 || !is_in_word(self.text[start - 1]))
            && word(start + length)
            && self.text.get(start + length + 1).is_some_and(|c| is_in_word(*c) || *c == ' ');
        if !opens {
            return false;
        }
        let rest = &self.text[start + length..];
        let line = rest.iter().position(|c| *c == '\n').unwrap_or(rest.len());
        let closes = |at: &usize| {
            rest[*at..].iter().take_while(|c| **c == mark).count() == length
                && rest[at - 1] != ' '
                && rest[at - 1] != mark
                && !rest.get(at + length).is_some_and(|c| is_in_word(*c))
        };
        let Some(close) = (1..line).find(closes) else { return false };
        let close = start + length + close;
        self.emphasis.extend((start..start + length).chain(close..close + length));
        self.at = start + length;
        true
    }

    fn after_plain_word(&self) -> bool {
        self.tokens.last().is_some_and(|last| last.kind == Kind::Word && !last.identifier)
    }

    /// `!` behind a number, a bracket or a single letter.
    fn is_factorial(&self, at: usize) -> bool {
        let Some(&before) = at.checked_sub(1).and_then(|at| self.text.get(at)) else {
            return false;
        };
        before.is_ascii_digit()
            || before == ')'
            || self.tokens.last().is_some_and(|last| last.kind == Kind::Variable)
                && before.is_alphabetic()
                && !matches!(before, 'i' | 'I')
    }

    /// The end of a sentence, or a point inside a name.
    fn stop(&mut self, character: char, before: char, next: char) {
        if next == ' ' || next == '\n' || !is_in_word(next) && next != character {
            self.end_sentence(character == '?');
        } else if character == '.' && is_in_word(before) && is_in_word(next) {
            if before.is_lowercase() && next.is_uppercase() {
                self.end_sentence(false);
            } else {
                self.push(".".to_owned(), Kind::Sign);
            }
        }
    }

    /// `-` before a number or variable, and behind one unless it stands for itself.
    fn is_minus(&self, at: usize) -> bool {
        let (before, after) = (&self.text[..at], &self.text[at + 1..]);
        let spaced = (before.last() == Some(&' '), after.first() == Some(&' '));
        if before.last() == Some(&'-') || after.first() == Some(&'-') {
            return false;
        }
        let before = before.strip_suffix(&[' ']).unwrap_or(before);
        let after = after.strip_prefix(&[' ']).unwrap_or(after);
        let left = before.iter().rev().take_while(|c| is_in_word(**c)).count();
        let right = after.iter().take_while(|c| is_in_word(**c)).count();
        let left_word = &before[before.len() - left..];
        let is_math = |word: &[char], edge: Option<&char>| {
            word.first().is_some_and(char::is_ascii_digit)
                || word.len() == 1
                || word.is_empty() && edge.is_some_and(|c| "()[]=+*/<>^|-.,".contains(*c))
        };
        let left_math = before.is_empty() || is_math(left_word, before.last());
        is_math(&after[..right], after.first()) && (left_math || spaced == (true, false))
    }

    /// `'` behind a single letter, a bracket or another prime.
    fn is_prime(&self, at: usize) -> bool {
        let before = at.checked_sub(1).map(|at| self.text[at]);
        match before {
            Some(')') => true,
            Some('\'') => self.tokens.last().is_some_and(|last| last.text == "'"),
            Some(before) if before.is_alphabetic() => {
                self.tokens.last().is_some_and(|last| last.kind == Kind::Variable)
            }
            _ => false,
        }
    }

    fn quotation(&mut self, character: char, before: char) {
        if self.quote == Some(character) {
            self.quote = None;
        } else if self.quote.is_none()
            && !is_in_word(before)
            && self.text[self.at..].iter().take_while(|c| **c != '\n').any(|c| *c == character)
        {
            self.quote = Some(character);
        }
    }

    /// `/` as in `and/or`.
    fn is_between_words(&self, at: usize) -> bool {
        let left = self.text[..at].iter().rev().take_while(|c| c.is_alphabetic()).count();
        left >= 3 && self.text.get(at + 1).is_some_and(|c| c.is_alphabetic())
    }
}
