//! The texts that will be compared, brought together in memory.
//!
//! Texts lie in a mapped file, and those that are compared lie far apart in it: where the file is larger
//! than memory, each of them costs a read of the disk. They are few beside all texts, so one pass over
//! the file copies them, as far as there is room; the others are read where they are.

use super::bands::{Buckets, NOWHERE};
use super::texts::Texts;
use crate::error::Result;
use crate::parallel::Interrupt;

/// Copies of some texts, by row.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// Of every row the number of its copy, or [`NOWHERE`].
    numbers: Vec<u32>,
    ends: Vec<u64>,
    texts: String,
}

/// Rows between two looks at the interrupt.
const CHUNK: usize = 1 << 16;

impl Gathered {
    /// Copy the texts of the rows that meet another, in `memory` bytes; `places` are those of every row.
    pub(super) fn new(
        texts: &Texts,
        places: &[u32],
        buckets: &Buckets,
        memory: u64,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let memory = memory.saturating_sub(4 * texts.len() as u64);
        let length = |row: usize| texts.bytes(row);
        let meets = |row: usize| places[row] != NOWHERE && buckets.has(places[row]);
        let mut wanted = 0;
        let fitting = |row: &usize| {
            wanted += length(*row) + size_of::<u64>() as u64;
            wanted <= memory
        };
        let chosen: Vec<u32> = (0..texts.len())
            .filter(|&row| meets(row))
            .take_while(fitting)
            .map(|row| row as u32)
            .collect();
        let bytes = chosen.iter().map(|&row| length(row as usize)).sum::<u64>();
        let mut gathered = Self {
            numbers: vec![NOWHERE; if chosen.is_empty() { 0 } else { texts.len() }],
            ends: Vec::with_capacity(chosen.len()),
            texts: String::with_capacity(bytes as usize),
        };
        for chunk in chosen.chunks(CHUNK) {
            interrupt.check()?;
            for &row in chunk {
                gathered.numbers[row as usize] = gathered.ends.len() as u32;
                gathered.texts.push_str(texts.value(row as usize));
                gathered.ends.push(gathered.texts.len() as u64);
            }
        }
        Ok(gathered)
    }

    /// The copy of the text of a row, if there is one.
    pub(super) fn text(&self, row: u32) -> Option<&str> {
        let number = *self.numbers.get(row as usize).filter(|number| **number != NOWHERE)? as usize;
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.texts.get(start as usize..self.ends[number] as usize)
    }
}
