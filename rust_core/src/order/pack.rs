//! Packing the units of a window: best-fit decreasing under several limits, in whole numbers.
//!
//! ```text
//! share of a limit  = floor(amount * 2^32 / limit)
//! weight of a limit = 2^16 * what the window takes of it / what it takes of the scarcest, at least 1
//! score             = sum over limits of weight * share
//! ```
//!
//! Units come by score, largest first, ties by unit; each goes into the pack with the smallest score
//! of what is left among those where it fits every limit, ties to the older pack. What fits in every
//! measure has no larger score, so the search begins at the unit's own. The weights make the
//! scarcest limit decide: with one limit this is plain best-fit decreasing.
//!
//! Units of one draw (those of a query, where queries are drawn) cost much the same and would fill a
//! pack by themselves, so a pack takes no more of them than its share: their number over the fewest
//! packs that the window can need, rounded up. Only when so many packs are open, and none of them has
//! room for a unit within its share, may one exceed it, as a pack more would cost more.

use std::collections::BTreeSet;

use super::cost::Total;
use super::plan::{Limits, MEASURES};

/// Units put into packs; all are given as places in the list handed in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packing {
    /// The units of each pack, in the order they were placed.
    pub packs: Vec<Vec<u32>>,
    /// Units that fit no pack, in order.
    pub too_large: Vec<u32>,
}

/// Pack units that cost so much; `unit_of` names them for ties, `draw_of` gives those that are kept
/// apart the same small number, `opens` marks those that come before all others and open a pack each.
pub fn best_fit_decreasing(
    totals: &[Total],
    limits: &Limits,
    unit_of: impl Fn(u32) -> u64,
    draw_of: impl Fn(u32) -> u32,
    opens: impl Fn(u32) -> bool,
) -> Packing {
    let places = 0..totals.len() as u32;
    let (mut fitting, too_large): (Vec<u32>, Vec<u32>) =
        places.partition(|&place| limits.hold(&totals[place as usize]));
    let scale = Scale::of(limits, fitting.iter().map(|&place| &totals[place as usize]));
    let amounts = |place: u32| Limits::measures(&totals[place as usize]);
    fitting.sort_by_cached_key(|&place| {
        let larger_first = std::cmp::Reverse(scale.score(&amounts(place)));
        (!opens(place), larger_first, unit_of(place), place)
    });

    let fewest = fewest_packs(limits, fitting.iter().map(|&place| &totals[place as usize]));
    // A query without units has a number too, so that there may be more numbers than units.
    let draws = fitting.iter().map(|&place| draw_of(place)).max().map_or(0, |most| most + 1);
    let mut shares = vec![0_usize; draws as usize];
    for &place in &fitting {
        shares[draw_of(place) as usize] += 1;
    }
    for share in &mut shares {
        *share = if *share == 1 { usize::MAX } else { share.div_ceil(fewest) };
    }
    let mut open = OpenPacks::new(&scale, fewest, fitting.iter().map(|&place| amounts(place)));
    let mut packs: Vec<Vec<u32>> = Vec::new();
    for place in fitting {
        let draw = draw_of(place);
        let pack = open.take(&amounts(place), (draw, shares[draw as usize]), opens(place));
        if pack == packs.len() {
            packs.push(Vec::new());
        }
        packs[pack].push(place);
    }
    Packing { packs, too_large }
}

/// Packs that are not full, found by the score of what is left in them.
///
/// They are kept apart by which measures are used up, that is have less left than the smallest
/// amount that any unit takes: a full measure would else be found out pack by pack.
struct OpenPacks<'a> {
    scale: &'a Scale,
    /// With fewer packs, shares are kept.
    fewest: usize,
    smallest: [u64; MEASURES],
    left: Vec<[u64; MEASURES]>,
    /// The draws of the units in each.
    draws: Vec<Vec<u32>>,
    by_score: [BTreeSet<(u64, usize)>; 1 << MEASURES],
}

impl<'a> OpenPacks<'a> {
    fn new(scale: &'a Scale, fewest: usize, units: impl Iterator<Item = [u64; MEASURES]>) -> Self {
        let mut smallest = [u64::MAX; MEASURES];
        for amounts in units {
            for (smallest, amount) in smallest.iter_mut().zip(amounts).filter(|(_, a)| *a > 0) {
                *smallest = amount.min(*smallest);
            }
        }
        let (left, draws) = (Vec::new(), Vec::new());
        Self { scale, fewest, smallest, left, draws, by_score: Default::default() }
    }

    /// Take this much for a unit of a draw from the best pack, or from a new one if none can give it
    /// or `new` asks for it.
    fn take(&mut self, amounts: &[u64; MEASURES], draw: (u32, usize), new: bool) -> usize {
        let mut found = if new { None } else { self.best(amounts, draw) };
        if found.is_none() && !new && self.left.len() >= self.fewest && draw.1 < usize::MAX {
            found = self.best(amounts, (draw.0, usize::MAX));
        }
        let pack = found.map_or(self.left.len(), |(_, pack)| pack);
        if let Some(found) = found {
            let used_up = self.used_up(pack);
            self.by_score[used_up].remove(&found);
        } else {
            self.left.push(self.scale.limits);
            self.draws.push(Vec::new());
        }
        self.draws[pack].push(draw.0);
        let left = &mut self.left[pack];
        for (left, take) in left.iter_mut().zip(amounts) {
            *left -= take;
        }
        let score = self.scale.score(left);
        let used_up = self.used_up(pack);
        self.by_score[used_up].insert((score, pack));
        pack
    }

    fn best(&self, amounts: &[u64; MEASURES], (draw, share): (u32, usize)) -> Option<(u64, usize)> {
        let least = (self.scale.score(amounts), 0);
        let needs = bits(amounts.map(|amount| amount > 0));
        let fits = |&(_, pack): &(u64, usize)| {
            let of_draw = || self.draws[pack].iter().filter(|&&held| held == draw).count();
            self.left[pack].iter().zip(amounts).all(|(left, take)| take <= left)
                && (share == usize::MAX || of_draw() < share)
        };
        let kinds = self.by_score.iter().enumerate().filter(|(used_up, _)| used_up & needs == 0);
        kinds.filter_map(|(_, packs)| packs.range(least..).copied().find(fits)).min()
    }

    fn used_up(&self, pack: usize) -> usize {
        let left = &self.left[pack];
        bits(std::array::from_fn(|measure| left[measure] < self.smallest[measure]))
    }
}

/// No fewer packs can hold these units; at least one.
fn fewest_packs<'a>(limits: &Limits, totals: impl Iterator<Item = &'a Total>) -> usize {
    let mut sums = [0; MEASURES];
    for total in totals {
        for (sum, amount) in sums.iter_mut().zip(Limits::measures(total)) {
            *sum += amount;
        }
    }
    let limits = limits.limits().map(|limit| limit.map_or(u64::MAX, u64::from));
    let packs = sums.iter().zip(limits).map(|(sum, limit)| sum.div_ceil(limit.max(1)));
    packs.max().unwrap_or(0).max(1) as usize
}

fn bits(measures: [bool; MEASURES]) -> usize {
    measures.iter().enumerate().map(|(measure, &set)| usize::from(set) << measure).sum()
}

/// Limits with their weights; a measure without limit has no bound and weight 0.
struct Scale {
    limits: [u64; MEASURES],
    weights: [u64; MEASURES],
}

impl Scale {
    fn of<'a>(limits: &Limits, totals: impl Iterator<Item = &'a Total>) -> Self {
        let limits = limits.limits().map(|limit| limit.map_or(u64::MAX, u64::from));
        let mut demands = [0_u128; MEASURES];
        for total in totals {
            let amounts = Limits::measures(total);
            for ((demand, amount), limit) in demands.iter_mut().zip(amounts).zip(limits) {
                *demand += u128::from(share(amount, limit));
            }
        }
        let most = demands.iter().copied().max().unwrap_or(0).max(1);
        let mut weights = demands.map(|demand| ((demand << 16) / most).max(1) as u64);
        for (weight, limit) in weights.iter_mut().zip(limits) {
            if limit == u64::MAX {
                *weight = 0;
            }
        }
        Self { limits, weights }
    }

    fn score(&self, amounts: &[u64; MEASURES]) -> u64 {
        let shares = amounts.iter().zip(self.limits).map(|(&amount, limit)| share(amount, limit));
        shares.zip(self.weights).map(|(share, weight)| share * weight).sum()
    }
}

/// Of a limit, in parts of 2^32; nothing where there is no limit, or none is left to share.
fn share(amount: u64, limit: u64) -> u64 {
    if limit == 0 || limit == u64::MAX { 0 } else { (amount << 32) / limit }
}
