//! Position ids: one number a token, or three for models that see an image's rows and columns.
//!
//! Text counts on in all three. For Qwen2-VL an image that begins at position p gives the token in
//! row r and column c of its merged patches the positions (p, p + r, p + c); the text after it
//! continues after the largest of them.

use crate::order::{ImageShape, Rule};

/// The position ids of a batch while it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Positions {
    /// One line, or time, row and column.
    lines: Vec<Vec<i32>>,
    /// The position of the next token.
    next: i32,
    /// Where the sequences so far have left off.
    ends: Vec<i32>,
}

impl Positions {
    /// Positions as the models of a rule take them.
    pub(super) fn of(rule: Option<&Rule>) -> Self {
        let lines = if matches!(rule, Some(Rule::Qwen2Vl(_))) { 3 } else { 1 };
        Self { lines: vec![Vec::new(); lines], next: 0, ends: Vec::new() }
    }

    /// A sequence begins, as the continuation of its prefix if it has one.
    pub(super) fn begin(&mut self, prefix: Option<usize>) {
        self.next = prefix.and_then(|prefix| self.ends.get(prefix).copied()).unwrap_or(0);
    }

    /// The sequence ends.
    pub(super) fn end(&mut self) {
        self.ends.push(self.next);
    }

    /// So many tokens of text.
    pub(super) fn text(&mut self, count: usize) {
        let end = self.next + count as i32;
        for line in &mut self.lines {
            line.extend(self.next..end);
        }
        self.next = end;
    }

    /// The tokens of an image.
    pub(super) fn image(&mut self, rule: &Rule, shape: &ImageShape) {
        let Rule::Qwen2Vl(resize) = rule else { return self.text(shape.tokens as usize) };
        let rows = (shape.rows / resize.merge).cast_signed();
        let columns = (shape.columns / resize.merge).cast_signed();
        let first = self.next;
        if let [time, down, across] = self.lines.as_mut_slice() {
            for row in 0..rows {
                let count = columns as usize;
                time.extend(std::iter::repeat_n(first, count));
                down.extend(std::iter::repeat_n(first + row, count));
                across.extend(first..first + columns);
            }
        }
        self.next = first + rows.max(columns);
    }

    /// Numbers of a token, where it has more than one.
    pub(super) fn axes(&self) -> Option<usize> {
        (self.lines.len() > 1).then_some(self.lines.len())
    }

    /// All position ids, line by line.
    pub(super) fn rows(&self) -> impl Iterator<Item = &[i32]> {
        self.lines.iter().map(Vec::as_slice)
    }
}
