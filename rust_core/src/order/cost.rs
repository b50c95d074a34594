//! What units cost, and who knows it.

use std::ops::{Add, AddAssign, Range};
use std::sync::Arc;

use super::subset::Subset;
use crate::error::{Error, Result};

/// What one unit (a pair, a response or a query) takes up in a pack.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Cost {
    /// Tokens of text.
    pub text_tokens: u32,
    /// Tokens that stand for images.
    pub image_tokens: u32,
    /// Images, each frame of a video being one.
    pub images: u32,
}

/// What several units cost together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Total {
    /// Pairs of preference among the units.
    pub pairs: u64,
    /// Tokens of text.
    pub text_tokens: u64,
    /// Tokens that stand for images.
    pub image_tokens: u64,
    /// Images.
    pub images: u64,
}

impl Total {
    /// All tokens, of text and of images.
    pub fn tokens(&self) -> u64 {
        self.text_tokens + self.image_tokens
    }

    /// What one unit of `pairs` pairs costs.
    pub fn of(cost: Cost, pairs: u32) -> Self {
        Self {
            pairs: u64::from(pairs),
            text_tokens: u64::from(cost.text_tokens),
            image_tokens: u64::from(cost.image_tokens),
            images: u64::from(cost.images),
        }
    }
}

impl Add for Total {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            pairs: self.pairs + other.pairs,
            text_tokens: self.text_tokens + other.text_tokens,
            image_tokens: self.image_tokens + other.image_tokens,
            images: self.images + other.images,
        }
    }
}

impl AddAssign for Total {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl std::iter::Sum for Total {
    fn sum<I: Iterator<Item = Self>>(totals: I) -> Self {
        totals.fold(Self::default(), Add::add)
    }
}

/// A dataset as an order sees it: how many units, and what each costs.
///
/// Answers must be the same on every rank and at every call, else the plans of the ranks diverge: a
/// cost that cannot be read is an error, which planning passes on.
pub trait Costs: Send + Sync {
    /// The number of units; they are `0..units`.
    fn units(&self) -> u64;

    /// What a unit below [`Costs::units`] costs.
    fn cost(&self, unit: u64) -> Result<Cost>;

    /// What a unit comes to in one epoch, where its content changes between epochs (some pairs of a
    /// query, chosen again each time); its pairs are for the cursor's account of what was seen.
    fn total_in_epoch(&self, unit: u64, _epoch: u64) -> Result<Total> {
        Ok(Total::of(self.cost(unit)?, 1))
    }

    /// The units of each source of a mixture, in order: source 0 has the first so many units.
    fn sources(&self) -> Vec<u64> {
        vec![self.units()]
    }

    /// The queries of each source of a mixture, in order.
    fn query_sources(&self) -> Vec<u64>;

    /// The units of a query; those of all queries follow each other.
    fn units_of(&self, query: u64) -> Result<Range<u64>>;

    /// The query of a unit.
    fn query_of(&self, unit: u64) -> Result<u64>;

    /// The queries that the plan's part of the dataset has; `None` for a plan of all.
    fn part(&self) -> Option<Arc<Subset>> {
        None
    }
}

/// Costs held in memory.
#[derive(Debug, Clone)]
pub struct InMemoryCosts {
    costs: Vec<Cost>,
    sources: Vec<u64>,
    /// Where the units of each query begin, and where those of the last end.
    bounds: Vec<u64>,
    query_sources: Vec<u64>,
    part: Option<Arc<Subset>>,
}

impl InMemoryCosts {
    /// One source of these units.
    pub fn new(costs: Vec<Cost>) -> Self {
        let sources = vec![costs.len() as u64];
        Self::of_sources(costs, sources)
    }

    /// One source of queries of so many units each.
    pub fn of_queries(costs: Vec<Cost>, units: &[u64]) -> Result<Self> {
        let mut bounds = vec![0];
        for units in units {
            bounds.push(bounds[bounds.len() - 1] + units);
        }
        if bounds.last() != Some(&(costs.len() as u64)) {
            let found = format!("{} units of queries", bounds[bounds.len() - 1]);
            return Err(Error::invalid("queries", found, format!("{}", costs.len())));
        }
        let query_sources = vec![units.len() as u64];
        Ok(Self { bounds, query_sources, ..Self::new(costs) })
    }

    /// Several sources of so many units each, one after the other.
    pub fn of_sources(costs: Vec<Cost>, sources: Vec<u64>) -> Self {
        let bounds = (0..=costs.len() as u64).collect();
        let query_sources = sources.clone();
        Self { costs, sources, bounds, query_sources, part: None }
    }

    /// The same, for a plan that has these queries alone.
    #[must_use]
    pub fn of_part(self, queries: Subset) -> Self {
        Self { part: Some(Arc::new(queries)), ..self }
    }
}

impl Costs for InMemoryCosts {
    fn units(&self) -> u64 {
        self.costs.len() as u64
    }

    fn cost(&self, unit: u64) -> Result<Cost> {
        let cost = self.costs.get(unit as usize).copied();
        cost.ok_or_else(|| Error::invalid("unit", unit, format!("below {}", self.costs.len())))
    }

    fn sources(&self) -> Vec<u64> {
        self.sources.clone()
    }

    fn query_sources(&self) -> Vec<u64> {
        self.query_sources.clone()
    }

    fn units_of(&self, query: u64) -> Result<Range<u64>> {
        match self.bounds.get(query as usize..) {
            Some([start, end, ..]) => Ok(*start..*end),
            _ => Err(Error::invalid("query", query, format!("below {}", self.bounds.len() - 1))),
        }
    }

    fn query_of(&self, unit: u64) -> Result<u64> {
        self.cost(unit)?;
        Ok(self.bounds.partition_point(|&start| start <= unit) as u64 - 1)
    }

    fn part(&self) -> Option<Arc<Subset>> {
        self.part.clone()
    }
}
