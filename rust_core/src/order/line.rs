//! The units of one source in one epoch, in order: shuffled over the whole source, or keeping
//! neighbours near.
//!
//! The block shuffle permutes blocks of 256 units, then shuffles the units of each window of 512
//! blocks. The last block may be short; it is permuted like the others, and what comes after it begins
//! so much earlier.

use std::convert::Infallible;
use std::sync::Arc;

use super::key::Key;
use super::latest::Latest;
use super::permutation::{Permutation, Shuffled};
use super::plan::Shuffle;

const BLOCK: u64 = 256;
const WINDOW_BLOCKS: u64 = 512;

/// Which line: two that differ in any part are unrelated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LineOf {
    pub(crate) seed: u64,
    pub(crate) epoch: u64,
    /// The source in the lower half, how often it began again in the upper.
    pub(crate) stream: u64,
}

/// The units `0..n` of a source in the order of an epoch.
#[derive(Debug)]
pub(crate) enum Line {
    Full(Permutation),
    Block(BlockShuffle),
}

impl Line {
    pub(crate) fn new(n: u64, shuffle: Shuffle, of: LineOf) -> Self {
        match shuffle {
            Shuffle::Full => {
                Self::Full(Permutation::new(n, Key::new(of.seed, of.epoch, of.stream, "perm")))
            }
            Shuffle::Block => Self::Block(BlockShuffle::new(n, of)),
        }
    }

    /// The unit at `place`; `place` is below n.
    pub(crate) fn unit(&self, place: u64) -> u64 {
        match self {
            Self::Full(permutation) => permutation.permute(place),
            Self::Block(blocks) => blocks.unit(place),
        }
    }

    /// The place of `unit`; `unit` is below n.
    pub(crate) fn place(&self, unit: u64) -> u64 {
        match self {
            Self::Full(permutation) => permutation.invert(unit),
            Self::Block(blocks) => blocks.place(unit),
        }
    }
}

/// Blocks permuted, units shuffled in windows of blocks.
#[derive(Debug)]
pub(crate) struct BlockShuffle {
    n: u64,
    blocks: u64,
    of: LineOf,
    order: Permutation,
    /// Where the last block is in that order, and by how much it is short.
    short_at: u64,
    missing: u64,
    window: Latest<u64, Shuffled>,
}

impl BlockShuffle {
    fn new(n: u64, of: LineOf) -> Self {
        let blocks = n.div_ceil(BLOCK);
        let order = Permutation::new(blocks, Key::new(of.seed, of.epoch, of.stream, "blocks"));
        let short_at = if blocks == 0 { 0 } else { order.invert(blocks - 1) };
        let missing = blocks * BLOCK - n;
        Self { n, blocks, of, order, short_at, missing, window: Latest::default() }
    }

    fn unit(&self, place: u64) -> u64 {
        let (first, window) = self.window_of(place);
        let place = first + window.permute(place - first);
        let at = self.block_at(place);
        self.order.permute(at) * BLOCK + place - self.start(at)
    }

    fn place(&self, unit: u64) -> u64 {
        let place = self.start(self.order.invert(unit / BLOCK)) + unit % BLOCK;
        let (first, window) = self.window_of(place);
        first + window.invert(place - first)
    }

    /// The first place of the block that stands at `at`.
    fn start(&self, at: u64) -> u64 {
        at * BLOCK - if at > self.short_at { self.missing } else { 0 }
    }

    /// The block that holds `place`: the short one shifts places by less than a block.
    fn block_at(&self, place: u64) -> u64 {
        let at = place / BLOCK;
        if at + 1 < self.blocks && self.start(at + 1) <= place { at + 1 } else { at }
    }

    /// The first place of the window that holds `place`, and the window's shuffle.
    fn window_of(&self, place: u64) -> (u64, Arc<Shuffled>) {
        let number = self.block_at(place) / WINDOW_BLOCKS;
        let first = self.start(number * WINDOW_BLOCKS);
        let end = ((number + 1) * WINDOW_BLOCKS).min(self.blocks);
        let end = if end == self.blocks { self.n } else { self.start(end) };
        let make = || {
            let purpose = format!("block window {number}");
            let key = Key::new(self.of.seed, self.of.epoch, self.of.stream, &purpose);
            Ok::<_, Infallible>(Shuffled::new(end - first, key))
        };
        let Ok(window) = self.window.get(number, make);
        (first, window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_each_unit_once_and_know_its_place() {
        for n in [1, 2, 255, 256, 257, 511, 513, 1000, 131_072, 131_073, 300_001] {
            for epoch in 0..2 {
                let of = LineOf { seed: 5, epoch, stream: 0 };
                let line = Line::new(n, Shuffle::Block, of);
                let mut seen = vec![false; n as usize];
                for place in 0..n {
                    let unit = line.unit(place);
                    assert!(!std::mem::replace(&mut seen[unit as usize], true), "{unit} of {n}");
                    assert_eq!(line.place(unit), place);
                }
            }
        }
    }

    #[test]
    fn a_window_reads_from_few_blocks() {
        let line = Line::new(1 << 20, Shuffle::Block, LineOf { seed: 5, epoch: 0, stream: 0 });
        let blocks: std::collections::BTreeSet<u64> =
            (0..BLOCK * WINDOW_BLOCKS).map(|place| line.unit(place) / BLOCK).collect();
        assert_eq!(blocks.len() as u64, WINDOW_BLOCKS);
    }
}
