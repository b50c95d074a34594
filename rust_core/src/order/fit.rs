//! Whether every unit fits a pack, found before the first step instead of in some later window.

use std::ops::Range;

use rayon::prelude::*;

use super::cost::Total;
use super::plan::{Limits, MEASURES, Plan, TooLarge};
use super::windows::{Order, ranges};
use crate::error::{Error, Result};
use crate::parallel::Interrupt;

/// Units that are looked at between two checks for an interrupt.
const STRIDE: u64 = 4096;

/// How the units of an order fit its budget.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fit {
    /// The units that are drawn from.
    pub units: u64,
    /// Those that fit no pack.
    pub too_large: u64,
    /// The one of those with the most tokens, the lower number of equal ones, and what it costs.
    pub largest: Option<(u64, Total)>,
    /// The most that any unit has of each measure, in the order of the limits.
    most: [u64; MEASURES],
}

impl Fit {
    fn of(unit: u64, total: Total, budget: &Limits) -> Self {
        let fits = budget.hold(&total);
        Self {
            units: 1,
            too_large: u64::from(!fits),
            largest: (!fits).then_some((unit, total)),
            most: Limits::measures(&total),
        }
    }

    fn and(self, other: Self) -> Self {
        let size = |&(unit, total): &(u64, Total)| (total.tokens(), std::cmp::Reverse(unit));
        Self {
            units: self.units + other.units,
            too_large: self.too_large + other.too_large,
            largest: self.largest.into_iter().chain(other.largest).max_by_key(size),
            most: std::array::from_fn(|measure| self.most[measure].max(other.most[measure])),
        }
    }

    /// An error if the plan refuses units that are too large and there are some, or if none are left.
    pub fn check(&self, plan: &Plan) -> Result<()> {
        let Some((unit, total)) = self.largest else { return Ok(()) };
        let refused = plan.too_large == TooLarge::Error;
        let none_left = plan.too_large == TooLarge::Drop && self.too_large == self.units;
        if !refused && !none_left {
            return Ok(());
        }
        let Total { text_tokens, image_tokens, images, .. } = total;
        let name = plan.unit.name();
        let found = format!(
            "{} of {} units ({name}) above it, the largest {name} {unit} with {} tokens \
             ({text_tokens} of text, {image_tokens} of {images} images)",
            self.too_large,
            self.units,
            total.tokens(),
        );
        let expected = format!(
            "at most {}\n\nhint: a budget of {} holds every unit{}",
            named(plan.budget.limits().map(|limit| limit.map(u64::from))),
            named(self.enough(&plan.budget)),
            if refused { "; or too_large: \"drop\" or \"alone\"" } else { "" },
        );
        Err(Error::invalid("budget", found, expected))
    }

    /// The limits of a budget, raised where a unit has more.
    fn enough(&self, budget: &Limits) -> [Option<u64>; MEASURES] {
        let limits = budget.limits();
        std::array::from_fn(|at| limits[at].map(|limit| u64::from(limit).max(self.most[at])))
    }
}

/// `tokens=16384, images=8`.
fn named(limits: [Option<u64>; MEASURES]) -> String {
    let named = Limits::NAMES.iter().zip(limits);
    let set = named.filter_map(|(name, limit)| limit.map(|limit| format!("{name}={limit}")));
    set.collect::<Vec<_>>().join(", ")
}

impl Order {
    /// How the units of all sources that have a weight fit the budget, in an epoch.
    ///
    /// Every unit is read once, in the order of the dataset; an error where a cost cannot be read.
    /// Runs on the pool it is called in.
    pub fn fit(&self, epoch: u64, interrupt: &Interrupt) -> Result<Fit> {
        let strides: Vec<(u64, u64)> = self.drawn_from().flat_map(strides).collect();
        let fit = |(start, end): (u64, u64)| {
            interrupt.check()?;
            self.units().rows(start..end).try_fold(Fit::default(), |fit, unit| {
                let total = self.costs().total_in_epoch(unit, epoch)?;
                Ok(fit.and(Fit::of(unit, total, &self.plan().budget)))
            })
        };
        let fits = strides.into_par_iter().map(fit);
        fits.try_reduce(Fit::default, |one, other| Ok(one.and(other)))
    }

    /// The units of each source whose weight is not 0 throughout, as numbers of [`Order::units`].
    fn drawn_from(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mixture = self.plan().mixture.as_ref();
        let weighs = move |source: usize| {
            mixture.is_none_or(|mixture| {
                let of = |weights: &[u64]| weights.get(source).is_some_and(|&weight| weight > 0);
                mixture.stages.iter().any(|stage| of(&stage.weights))
            })
        };
        let sources = self.costs().sources();
        let numbers =
            |rows: Range<u64>| (self.units().below(rows.start), self.units().below(rows.end));
        let of_source: Vec<_> = ranges(&sources).map(numbers).collect();
        let of_source = of_source.into_iter().enumerate();
        of_source.filter(move |&(source, _)| weighs(source)).map(|(_, units)| units)
    }
}

fn strides((start, end): (u64, u64)) -> impl Iterator<Item = (u64, u64)> {
    (start..end).step_by(STRIDE as usize).map(move |at| (at, end.min(at + STRIDE)))
}
