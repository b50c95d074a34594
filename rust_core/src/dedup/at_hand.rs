//! Texts in the forms in which they are compared, as far as there is room for them.
//!
//! A text that is not at hand is read again from its column, so the room decides about time alone. When
//! half of it is full, what was used last becomes old, and what was old before goes.

use std::collections::HashMap;
use std::sync::Arc;

use rayon::prelude::*;

use super::keys::Finder;
use super::text::Shingler;
use crate::judge::text::Prepared;

/// A text that is compared with others.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) shingles: Box<[u64]>,
    /// None where texts are not judged.
    pub(super) prepared: Option<Prepared>,
}

/// Texts by row.
pub(super) struct TextsAtHand<'a> {
    finder: &'a Finder<'a>,
    /// Bytes of recent texts that make them old.
    most: u64,
    bytes: u64,
    recent: HashMap<u32, Arc<Text>>,
    old: HashMap<u32, Arc<Text>>,
}

impl<'a> TextsAtHand<'a> {
    pub(super) fn new(finder: &'a Finder<'a>, memory: u64) -> Self {
        Self { finder, most: memory / 2, bytes: 0, recent: HashMap::new(), old: HashMap::new() }
    }

    /// The text of a row; it is kept at hand.
    pub(super) fn keep(&mut self, row: u32) -> Arc<Text> {
        if let Some(text) = self.recent.get(&row) {
            return Arc::clone(text);
        }
        let text = self.read(row);
        self.insert(row, Arc::clone(&text));
        text
    }

    /// Keep the texts of these rows at hand, read by all threads.
    pub(super) fn keep_all(&mut self, rows: Vec<u32>) {
        let made: Vec<(u32, Arc<Text>)> =
            rows.into_par_iter().map(|row| (row, self.read(row))).collect();
        for (row, text) in made {
            if !self.recent.contains_key(&row) {
                self.insert(row, text);
            }
        }
    }

    /// The text of a row.
    pub(super) fn read(&self, row: u32) -> Arc<Text> {
        if let Some(text) = self.recent.get(&row).or_else(|| self.old.get(&row)) {
            return Arc::clone(text);
        }
        let Finder { settings, ref texts, .. } = *self.finder;
        let prompt = self.finder.prompt(row);
        Arc::new(Text {
            shingles: Shingler::new(settings.shingle_words).shingle_set(prompt),
            prepared: texts.as_ref().map(|texts| texts.prepare(prompt)),
        })
    }

    fn insert(&mut self, row: u32, text: Arc<Text>) {
        self.bytes += text.bytes();
        self.recent.insert(row, text);
        if self.bytes > self.most {
            self.old = std::mem::take(&mut self.recent);
            self.bytes = 0;
        }
    }
}

impl Text {
    /// Bytes in memory, about.
    fn bytes(&self) -> u64 {
        let tokens = self.prepared.as_ref().map_or(&[][..], |prepared| &prepared.tokens);
        let spelled: usize =
            tokens.iter().map(|token| token.text.len().next_multiple_of(16) + 16).sum();
        (size_of_val(&self.shingles[..]) + size_of_val(tokens) + spelled + 256) as u64
    }
}
