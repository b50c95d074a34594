//! Picking, one after another.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rayon::prelude::*;

use super::layout::{Layout, Stratum};
use super::plan::Plan;
use super::share::allot;
use super::{Candidates, Choice, Embeddings, Group, NO_ROW, Order, Pick, Quotas, Skip, Within};
use crate::error::Result;
use crate::parallel::Interrupt;

/// Candidates compared between two looks at the interrupt.
const COMPARED_AT_ONCE: usize = 4096;

/// The closest chosen neighbour of a candidate within its cluster, as far as it was compared.
#[derive(Debug, Clone, Copy)]
struct Closest {
    cosine: f32,
    /// Position of that neighbour among the chosen of the cluster.
    neighbour: u32,
    /// How many of the chosen of the cluster it has been compared with.
    compared: u32,
}

impl Closest {
    const UNKNOWN: Self = Self { cosine: f32::NEG_INFINITY, neighbour: 0, compared: 0 };

    /// Compare the row with those chosen since the last time.
    fn update(&mut self, embeddings: &Embeddings<'_>, row: u32, chosen: &[(u32, Vec<f32>)]) {
        if row == NO_ROW {
            return;
        }
        for (position, (_, other)) in chosen.iter().enumerate().skip(self.compared as usize) {
            let cosine = embeddings.cosine(row, other);
            if cosine > self.cosine {
                self.cosine = cosine;
                self.neighbour = position as u32;
            }
        }
        self.compared = chosen.len() as u32;
    }
}

/// The state of a choice in the making.
pub(super) struct Picker<'a> {
    candidates: &'a Candidates<'a>,
    quotas: &'a Quotas,
    within: &'a Within<'a>,
    keys: &'a [u64],
    interrupt: &'a Interrupt,
    plan: Plan,
    layout: Layout,
    /// Pairs the plan does not admit; it never admits them again unless the goal gets worse.
    closed: Vec<bool>,
    /// How often the goal got worse as candidates were passed over.
    setbacks: usize,
    /// Picks so far by question type, modality, source and cluster.
    by_type: Vec<u64>,
    by_modality: Vec<u64>,
    by_source: Vec<u64>,
    by_cluster: Vec<u64>,
    /// The chosen of each cluster with their rows in single precision, where distances matter.
    chosen: Vec<Vec<(u32, Vec<f32>)>>,
    /// Of the candidate at each position of the pools, where distances matter.
    closest: Vec<Closest>,
    choice: Choice,
}

impl<'a> Picker<'a> {
    pub(super) fn new(
        candidates: &'a Candidates<'a>,
        quotas: &'a Quotas,
        within: &'a Within<'a>,
        keys: &'a [u64],
        interrupt: &'a Interrupt,
    ) -> Self {
        let layout = Layout::new(candidates, quotas, keys);
        let pairs = quotas.modalities.len() * quotas.sources.len();
        let left = layout.left_by_pair(pairs, None);
        let count = quotas.count.min(left.iter().sum());
        let positions = if within.embeddings.is_some() { layout.order.len() } else { 0 };
        Self {
            candidates,
            quotas,
            within,
            keys,
            interrupt,
            plan: Plan::new(count, &left, &quotas.modalities, &quotas.sources),
            closed: vec![false; pairs],
            setbacks: 0,
            by_type: vec![0; quotas.ratios.len()],
            by_modality: vec![0; quotas.modalities.len()],
            by_source: vec![0; quotas.sources.len()],
            by_cluster: vec![0; layout.clusters],
            chosen: vec![Vec::new(); layout.clusters],
            closest: vec![Closest::UNKNOWN; positions],
            layout,
            choice: Choice::default(),
        }
    }

    /// Fill the floors, then share out the rest.
    pub(super) fn run(mut self) -> Result<Choice> {
        for modality in 0..self.by_modality.len() as u32 {
            self.share_out(Some(Group::Modality(modality)))?;
        }
        for source in 0..self.by_source.len() as u32 {
            self.share_out(Some(Group::Source(source)))?;
        }
        self.share_out(None)?;
        Ok(self.choice)
    }

    /// Pick what is missing to the floor of `group`, or to the goal, by the ratios of the types.
    fn share_out(&mut self, group: Option<Group>) -> Result<()> {
        loop {
            let before = self.choice.picks.len();
            for pair in 0..self.closed.len() {
                self.closed[pair] = !self.plan.admits(pair);
            }
            let missing = self.missing(group);
            let limits: Vec<u64> =
                (0..self.by_type.len()).map(|kind| self.limit(kind, group)).collect();
            let given = allot(missing, &self.quotas.ratios, &self.by_type, &limits);
            // The type with the least choice for what it is given goes first.
            let mut kinds: Vec<usize> = (0..given.len()).filter(|&kind| given[kind] > 0).collect();
            kinds.sort_by(|&a, &b| {
                let left = u128::from(limits[a]) * u128::from(given[b]);
                left.cmp(&(u128::from(limits[b]) * u128::from(given[a])))
            });
            for kind in kinds {
                self.fill(kind, given[kind], group)?;
            }
            if self.choice.picks.len() == before {
                return Ok(());
            }
        }
    }

    fn missing(&self, group: Option<Group>) -> u64 {
        let goal = self.plan.reach() - self.choice.picks.len() as u64;
        match group {
            None => goal,
            Some(group) => {
                let (bound, picked) = match group {
                    Group::Modality(m) => {
                        (self.quotas.modalities[m as usize], self.by_modality[m as usize])
                    }
                    Group::Source(s) => {
                        (self.quotas.sources[s as usize], self.by_source[s as usize])
                    }
                };
                bound.floor.min(bound.cap).saturating_sub(picked).min(goal)
            }
        }
    }

    /// How many more of a question type the caps and the open pairs allow, at most.
    fn limit(&self, question_type: usize, group: Option<Group>) -> u64 {
        let sources = self.by_source.len();
        let mut left = self.layout.left_by_pair(self.closed.len(), Some(question_type));
        for (pair, left) in left.iter_mut().enumerate() {
            if self.closed[pair] || !admits(group, pair, sources) {
                *left = 0;
            }
        }
        let allowed = |cap: u64, picked: u64, left: u64| left.min(cap - picked);
        let by_modality = left.chunks(sources).zip(&self.quotas.modalities).zip(&self.by_modality);
        let by_modality: u64 = by_modality
            .map(|((row, bound), &picked)| allowed(bound.cap, picked, row.iter().sum()))
            .sum();
        let by_source = self.quotas.sources.iter().zip(&self.by_source).enumerate();
        let by_source: u64 = by_source
            .map(|(s, (bound, &picked))| {
                allowed(bound.cap, picked, left.iter().skip(s).step_by(sources).sum())
            })
            .sum();
        by_modality.min(by_source)
    }

    /// Pick up to `wanted` of a question type, each from the cluster that has given least.
    fn fill(&mut self, question_type: usize, wanted: u64, group: Option<Group>) -> Result<()> {
        let mut strata = self.ranked_strata(question_type);
        let mut setbacks = self.setbacks;
        let mut picked = 0;
        while picked < wanted && (self.choice.picks.len() as u64) < self.plan.reach() {
            let Some(Reverse((_, _, stratum))) = strata.pop() else { break };
            if self.pick(stratum, group)? {
                picked += 1;
                strata.push(self.rank(stratum));
            }
            if self.setbacks != setbacks {
                // Strata that had nothing to give may have something again.
                setbacks = self.setbacks;
                strata = self.ranked_strata(question_type);
            }
        }
        Ok(())
    }

    /// The strata of a question type, the one to pick from next on top.
    fn ranked_strata(&self, question_type: usize) -> BinaryHeap<Reverse<(u64, u64, usize)>> {
        (0..self.layout.strata.len())
            .filter(|&stratum| self.layout.strata[stratum].question_type == question_type)
            .map(|stratum| self.rank(stratum))
            .collect()
    }

    /// Least picked of this type, then of all types, then the smallest cluster.
    fn rank(&self, stratum: usize) -> Reverse<(u64, u64, usize)> {
        let Stratum { picked, cluster, .. } = self.layout.strata[stratum];
        Reverse((picked, self.by_cluster[cluster], stratum))
    }

    /// Pick the next candidate of a stratum; false where it has none left that may be picked, or where
    /// the goal got worse on the way.
    fn pick(&mut self, stratum: usize, group: Option<Group>) -> Result<bool> {
        loop {
            self.interrupt.check()?;
            let Some((pool, position)) = self.next_position(stratum, group)? else {
                return Ok(false);
            };
            let pair = self.layout.pools[pool].pair;
            let cluster = self.layout.strata[stratum].cluster;
            match self.too_close(position, cluster) {
                Some(skip) if self.plan.admits(pair) => {
                    self.choice.skips.push(skip);
                    self.clear(pool, position);
                    if self.plan.lose(pair) {
                        // What was held back for a goal that cannot be met is free again, so
                        // another stratum may come first.
                        self.closed.fill(false);
                        self.setbacks += 1;
                        return Ok(false);
                    }
                }
                None if self.plan.take(pair) => {
                    let candidate = self.layout.order[position];
                    self.clear(pool, position);
                    self.record(candidate, stratum, pair, group);
                    return Ok(true);
                }
                _ => self.closed[pair] = true,
            }
        }
    }

    /// The pool and position of the next candidate of a stratum in the order asked for.
    fn next_position(
        &mut self,
        stratum: usize,
        group: Option<Group>,
    ) -> Result<Option<(usize, usize)>> {
        let mut best: Option<(f32, u64, u32, usize, usize)> = None;
        for pool in self.layout.strata[stratum].pools.clone() {
            let pair = self.layout.pools[pool].pair;
            let mut positions = self.layout.pools[pool].positions.clone();
            if self.closed[pair] || !admits(group, pair, self.by_source.len()) {
                continue;
            }
            if self.within.order == Order::Seeded {
                positions.end = positions.end.min(positions.start + 1);
            }
            self.compare(positions.clone(), self.layout.strata[stratum].cluster)?;
            for position in positions {
                let candidate = self.layout.order[position];
                let cosine = match self.within.order {
                    Order::Seeded => 0.0,
                    Order::FarthestFirst => self.closest[position].cosine,
                };
                let rank = (cosine, self.keys[candidate as usize], candidate, pool, position);
                let smaller = |other: &(f32, u64, u32, usize, usize)| {
                    rank.0.total_cmp(&other.0).then((rank.1, rank.2).cmp(&(other.1, other.2)))
                };
                if best.as_ref().is_none_or(|best| smaller(best).is_lt()) {
                    best = Some(rank);
                }
            }
        }
        Ok(best.map(|(_, _, _, pool, position)| (pool, position)))
    }

    /// Bring the closest neighbours of the candidates at `positions` up to date.
    fn compare(&mut self, positions: std::ops::Range<usize>, cluster: usize) -> Result<()> {
        let Some(embeddings) = self.within.embeddings else { return Ok(()) };
        let chosen = &self.chosen[cluster];
        let order = &self.layout.order[positions.clone()];
        self.closest[positions]
            .par_chunks_mut(COMPARED_AT_ONCE)
            .zip(order.par_chunks(COMPARED_AT_ONCE))
            .try_for_each(|(closest, candidates)| {
                for (closest, &candidate) in closest.iter_mut().zip(candidates) {
                    let row = self.candidates.rows[candidate as usize];
                    closest.update(&embeddings, row, chosen);
                }
                self.interrupt.check()
            })
    }

    fn too_close(&self, position: usize, cluster: usize) -> Option<Skip> {
        let threshold = self.within.semantic_threshold?;
        let closest = self.closest[position];
        (closest.cosine >= threshold).then(|| Skip {
            candidate: self.layout.order[position],
            close_to: self.chosen[cluster][closest.neighbour as usize].0,
            cosine: closest.cosine,
        })
    }

    /// Take the candidate at `position` off its pool.
    fn clear(&mut self, pool: usize, position: usize) {
        let first = self.layout.pools[pool].positions.start;
        // In seeded order it is the first already; in the other the order of the rest is free.
        self.layout.order.swap(first, position);
        if !self.closest.is_empty() {
            self.closest.swap(first, position);
        }
        self.layout.pools[pool].positions.start += 1;
    }

    fn record(&mut self, candidate: u32, stratum: usize, pair: usize, floor: Option<Group>) {
        let sources = self.by_source.len();
        let stratum = &mut self.layout.strata[stratum];
        stratum.picked += 1;
        self.by_type[stratum.question_type] += 1;
        self.by_cluster[stratum.cluster] += 1;
        self.by_modality[pair / sources] += 1;
        self.by_source[pair % sources] += 1;
        if let Some(embeddings) = self.within.embeddings {
            let row = self.candidates.rows[candidate as usize];
            if row != NO_ROW {
                self.chosen[stratum.cluster].push((candidate, embeddings.row(row)));
            }
        }
        self.choice.picks.push(Pick { candidate, floor });
    }
}

fn admits(group: Option<Group>, pair: usize, sources: usize) -> bool {
    match group {
        None => true,
        Some(Group::Modality(modality)) => pair / sources == modality as usize,
        Some(Group::Source(source)) => pair % sources == source as usize,
    }
}
