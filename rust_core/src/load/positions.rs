//! Position ids: one number a token, or three for models that see an image's rows and columns.
//!
//! Text counts on in all three. For Qwen2-VL an image that begins at position p gives the token in
//! row r and column c of its merged patches the positions (p, p + r, p + c); the text after it
//! continues at p plus the longer side. Group k of a run of frames has (p + k * interval, p + r,
//! p + c), and the text after it continues as after an image, even if time has gone further.

use crate::order::Rule;

/// The merged patches of an image or of a run of frames.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Grid {
    pub(super) groups: u32,
    pub(super) rows: u32,
    pub(super) columns: u32,
    /// Positions in time between two groups.
    pub(super) interval: f32,
}

impl Grid {
    /// Of patches that are not merged yet; groups of frames are `spacing` seconds apart each frame.
    pub(super) fn of(rule: &Rule, [groups, rows, columns]: [u32; 3], spacing: f64) -> Self {
        let Rule::Qwen2Vl(resize) = rule else {
            return Self { groups, rows, columns, interval: 1.0 };
        };
        let timed = resize.video.as_ref().and_then(|video| {
            // In the 32-bit floats that transformers computes it with.
            let seconds = (f64::from(video.temporal) * spacing) as f32;
            video.tokens_per_second().map(|tokens| tokens as f32 * seconds)
        });
        let merge = resize.merge;
        let interval = timed.unwrap_or(1.0);
        Self { groups, rows: rows / merge, columns: columns / merge, interval }
    }
}

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

    /// So many tokens of an image or a run of frames.
    pub(super) fn visual(&mut self, count: usize, grid: &Grid) {
        let first = self.next;
        let [time, down, across] = self.lines.as_mut_slice() else { return self.text(count) };
        let (rows, columns) = (grid.rows.cast_signed(), grid.columns.cast_signed());
        for group in 0..grid.groups {
            let moment = first.saturating_add((group as f32 * grid.interval) as i32);
            for row in 0..rows {
                let count = columns as usize;
                time.extend(std::iter::repeat_n(moment, count));
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
