//! What units cost, and who knows it.

use std::ops::{Add, AddAssign};

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
}

/// Costs held in memory.
#[derive(Debug, Clone)]
pub struct InMemoryCosts {
    costs: Vec<Cost>,
    sources: Vec<u64>,
}

impl InMemoryCosts {
    /// One source of these units.
    pub fn new(costs: Vec<Cost>) -> Self {
        let sources = vec![costs.len() as u64];
        Self { costs, sources }
    }

    /// Several sources of so many units each, one after the other.
    pub fn of_sources(costs: Vec<Cost>, sources: Vec<u64>) -> Self {
        Self { costs, sources }
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
}
