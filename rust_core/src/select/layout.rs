//! The candidates, laid out so that the next one of a kind is at hand.
//!
//! A *bay* holds the candidates of one question type in one cluster. Its *piles*, side by side,
//! hold those of one pair of modality and source each, in seeded order. What has been taken or left
//! out lies before the first position of its pile.

use std::ops::Range;

use rayon::prelude::*;

use super::{Candidates, Quotas};

/// Candidates of one question type, cluster, modality and source.
#[derive(Debug)]
pub(super) struct Pile {
    /// `modality * sources + source`.
    pub(super) pair: usize,
    /// Places that still hold a candidate.
    pub(super) positions: Range<usize>,
}

/// Candidates of one question type in one cluster.
#[derive(Debug)]
pub(super) struct Bay {
    pub(super) question_type: usize,
    /// Index of the cluster, counted from 0 in the order of the clusters' numbers.
    pub(super) cluster: usize,
    pub(super) piles: Range<usize>,
    /// How many were picked from it.
    pub(super) picked: u64,
}

/// All piles, in the order of question type, cluster and pair.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) piles: Vec<Pile>,
    pub(super) bays: Vec<Bay>,
    pub(super) clusters: usize,
    /// Candidate at each place.
    pub(super) order: Vec<u32>,
}

impl Layout {
    /// Lay out the candidates whose question type has a ratio.
    pub(super) fn new(candidates: &Candidates<'_>, quotas: &Quotas, keys: &[u64]) -> Self {
        let sources = quotas.sources.len();
        let place = |&candidate: &u32| {
            let i = candidate as usize;
            let pair = candidates.modalities[i] as usize * sources + candidates.sources[i] as usize;
            (candidates.question_types[i] as usize, candidates.clusters[i], pair)
        };
        let mut order: Vec<u32> = (0..candidates.question_types.len() as u32)
            .filter(|&i| quotas.ratios[candidates.question_types[i as usize] as usize] > 0.0)
            .collect();
        order.par_sort_unstable_by_key(|i| (place(i), keys[*i as usize], *i));
        let mut numbers: Vec<i32> =
            order.iter().map(|&i| candidates.clusters[i as usize]).collect();
        numbers.par_sort_unstable();
        numbers.dedup();

        let mut piles: Vec<Pile> = Vec::new();
        let mut bays: Vec<Bay> = Vec::new();
        let mut start = 0;
        for run in order.chunk_by(|a, b| place(a) == place(b)) {
            let (question_type, number, pair) = place(&run[0]);
            let cluster = numbers.partition_point(|&other| other < number);
            let next = piles.len() + 1;
            match bays.last_mut() {
                Some(bay) if (bay.question_type, bay.cluster) == (question_type, cluster) => {
                    bay.piles.end = next;
                }
                _ => bays.push(Bay { question_type, cluster, piles: next - 1..next, picked: 0 }),
            }
            piles.push(Pile { pair, positions: start..start + run.len() });
            start += run.len();
        }
        Self { piles, bays, clusters: numbers.len(), order }
    }

    /// How many candidates of each pair are left, for one question type or for all.
    pub(super) fn left_by_pair(&self, pairs: usize, question_type: Option<usize>) -> Vec<u64> {
        let mut left = vec![0; pairs];
        for bay in &self.bays {
            if question_type.is_none_or(|wanted| wanted == bay.question_type) {
                for pile in &self.piles[bay.piles.clone()] {
                    left[pile.pair] += pile.positions.len() as u64;
                }
            }
        }
        left
    }
}
