//! A rank's share of each step.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;

use super::cursor::Cursor;
use super::steps::{Step, Steps};
use super::window::Pack;
use crate::error::{Error, Result};

/// One of the processes that share a step, and how they share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rank {
    /// This one, from 0.
    pub rank: u32,
    /// All of them.
    pub ranks: u32,
    /// Share so that the work on images is even; else in turn.
    pub balance: bool,
}

/// A pack as its rank gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankPack {
    /// The number of the step.
    pub step: u64,
    /// Which pack of the step; from the plan's packs on, an empty one that evens out the ranks.
    pub index: usize,
    /// The pack; without units it has weight 0, and the rank computes for the others' sake alone.
    pub pack: Pack,
    /// Whether any pack of the step holds an image, so that every rank runs the vision tower.
    pub step_has_images: bool,
    /// The position after the step, the same on every rank.
    pub after: Arc<Cursor>,
}

/// Which packs of a step each rank takes: as many for each, with numbers from `packs.len()` on for
/// empty ones. The packs of all ranks together do not depend on their number, which is not 0.
///
/// In turn, rank r takes r, r + ranks and so on. Balanced, packs go by image tokens (then by all
/// tokens), largest first, to the rank with the least of them that has room for one more; each rank
/// starts with its largest, so that large ones meet at every turn.
pub fn share_out(packs: &[Pack], ranks: usize, balance: bool) -> Vec<Vec<usize>> {
    let turns = packs.len().div_ceil(ranks);
    if !balance {
        return (0..ranks)
            .map(|rank| (0..turns).map(|turn| turn * ranks + rank).collect())
            .collect();
    }
    let work = |index: usize| {
        packs.get(index).map_or((0, 0), |pack| (pack.cost.image_tokens, pack.cost.tokens()))
    };
    let mut largest_first: Vec<usize> = (0..turns * ranks).collect();
    largest_first.sort_by_key(|&index| (Reverse(work(index)), index));
    let mut shares = vec![((0, 0), Vec::with_capacity(turns)); ranks];
    for index in largest_first {
        let free = shares.iter_mut().filter(|(_, share)| share.len() < turns);
        if let Some((load, share)) = free.min_by_key(|(load, _)| *load) {
            let (image_tokens, tokens) = work(index);
            *load = (load.0 + image_tokens, load.1 + tokens);
            share.push(index);
        }
    }
    shares.into_iter().map(|(_, share)| share).collect()
}

/// One rank's packs, step after step.
pub struct Packs {
    steps: Steps,
    rank: Rank,
    ready: VecDeque<RankPack>,
}

impl Packs {
    /// The packs of a rank.
    pub fn new(steps: Steps, rank: Rank) -> Result<Self> {
        if rank.rank >= rank.ranks {
            let expected = format!("below {}, the number of ranks", rank.ranks);
            return Err(Error::invalid("rank", rank.rank, expected));
        }
        Ok(Self { steps, rank, ready: VecDeque::new() })
    }

    /// The next step's packs of this rank, `None` after the last epoch.
    pub fn next_step(&mut self) -> Option<Result<Vec<RankPack>>> {
        let rest: Vec<RankPack> = self.ready.drain(..).collect();
        if !rest.is_empty() {
            return Some(Ok(rest));
        }
        Some(self.steps.next()?.map(|step| self.share(step)))
    }

    fn share(&self, step: Step) -> Vec<RankPack> {
        let Rank { rank, ranks, balance } = self.rank;
        let shares = share_out(&step.packs, ranks as usize, balance);
        let step_has_images = step.has_images();
        let Step { number, mut packs, after } = step;
        let after = Arc::new(after);
        let pack = |&index: &usize| RankPack {
            step: number,
            index,
            pack: packs.get_mut(index).map(std::mem::take).unwrap_or_default(),
            step_has_images,
            after: Arc::clone(&after),
        };
        shares[rank as usize].iter().map(pack).collect()
    }
}

impl Iterator for Packs {
    type Item = Result<RankPack>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() {
            match self.next_step()? {
                Ok(packs) => self.ready.extend(packs),
                Err(error) => return Some(Err(error)),
            }
        }
        self.ready.pop_front().map(Ok)
    }
}
