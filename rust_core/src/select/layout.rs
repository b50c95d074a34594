//! The candidates, sorted so that the next one of a kind is found at once.
//!
//! A *stratum* holds the candidates of one question type in one cluster. Its *pools*, side by side,
//! hold those of one pair of modality and source each, in seeded order. What has been taken or left
//! out lies before the first position of its pool.

use std::ops::Range;

use rayon::prelude::*;

use super::{Candidates, Quotas};

/// Candidates of one question type, cluster, modality and source.
#[derive(Debug)]
pub(super) struct Pool {
    /// `modality * sources + source`.
    pub(super) pair: usize,
    /// Places that still hold a candidate.
    pub(super) positions: Range<usize>,
}

/// Candidates of one question type in one cluster.
#[derive(Debug)]
pub(super) struct Stratum {
    pub(super) question_type: usize,
    /// Index of the cluster, counted from 0 in the order of the clusters' numbers.
    pub(super) cluster: usize,
    pub(super) pools: Range<usize>,
    /// How many were picked from it.
    pub(super) picked: u64,
}

/// All pools, in the order of question type, cluster and pair.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) pools: Vec<Pool>,
    pub(super) strata: Vec<Stratum>,
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

        let mut pools: Vec<Pool> = Vec::new();
        let mut strata: Vec<Stratum> = Vec::new();
        let mut start = 0;
        for run in order.chunk_by(|a, b| place(a) == place(b)) {
            let (question_type, number, pair) = place(&run[0]);
            let cluster = numbers.partition_point(|&other| other < number);
            let (first, next) = (pools.len(), pools.len() + 1);
            let same = |last: &&mut Stratum| {
                (last.question_type, last.cluster) == (question_type, cluster)
            };
            if let Some(stratum) = strata.last_mut().filter(same) {
                stratum.pools.end = next;
            } else {
                let pools = first..next;
                strata.push(Stratum { question_type, cluster, pools, picked: 0 });
            }
            pools.push(Pool { pair, positions: start..start + run.len() });
            start += run.len();
        }
        Self { pools, strata, clusters: numbers.len(), order }
    }

    /// How many candidates of each pair are left, for one question type or for all.
    pub(super) fn left_by_pair(&self, pairs: usize, question_type: Option<usize>) -> Vec<u64> {
        let mut left = vec![0; pairs];
        for stratum in &self.strata {
            if question_type.is_none_or(|wanted| wanted == stratum.question_type) {
                for pool in &self.pools[stratum.pools.clone()] {
                    left[pool.pair] += pool.positions.len() as u64;
                }
            }
        }
        left
    }
}
