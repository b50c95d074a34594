//! An order: a plan over a dataset, from which any window of any epoch is computed.

use std::sync::Arc;

use rayon::prelude::*;

use super::arrange::WindowId;
use super::cost::{Costs, Total};
use super::latest::Latest;
use super::plan::{Draw, Plan};
use super::sequence::Sequence;
use super::window::{Drawn, Window, pack_window};
use crate::error::{Error, Result};
use crate::parallel::Interrupt;

/// A plan over a dataset.
pub struct Order {
    plan: Plan,
    plan_hash: String,
    costs: Arc<dyn Costs>,
    dataset: String,
    manifest: u64,
    /// What is drawn from each source, and how much of it makes a window.
    sources: Vec<u64>,
    draws_per_window: u64,
    sequence: Latest<u64, Sequence>,
}

/// What a window comes to, enough to find a step or a sample without its packs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// The packs, those of weight 0 among them.
    pub packs: u64,
    /// The units in them.
    pub units: u64,
    /// What those cost.
    pub cost: Total,
    /// Units left out.
    pub dropped: u64,
}

impl Order {
    /// The order of a dataset, known by its hash and the version of its manifest.
    pub fn new(plan: Plan, costs: Arc<dyn Costs>, dataset: String, manifest: u64) -> Result<Self> {
        plan.check()?;
        let sources = costs.sources();
        let total = sources.iter().try_fold(0, |total: u64, &units| total.checked_add(units));
        if total != Some(costs.units()) {
            let expected = format!("{} units", costs.units());
            return Err(Error::invalid("sources of the dataset", format!("{sources:?}"), expected));
        }
        let window = u64::from(plan.window);
        let (sources, draws_per_window) = match plan.draw {
            Draw::Unit => (sources, window),
            Draw::Query => {
                let sources = costs.query_sources();
                let queries: u64 = sources.iter().sum();
                (sources, (window * queries / costs.units().max(1)).max(1))
            }
        };
        let (plan_hash, sequence) = (plan.hash()?, Latest::default());
        Ok(Self { plan, plan_hash, costs, dataset, manifest, sources, draws_per_window, sequence })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The plan's hash.
    pub fn plan_hash(&self) -> &str {
        &self.plan_hash
    }

    /// The dataset's hash.
    pub fn dataset(&self) -> &str {
        &self.dataset
    }

    /// The version of the dataset's manifest.
    pub fn manifest(&self) -> u64 {
        self.manifest
    }

    /// What the units cost.
    pub(super) fn costs(&self) -> &dyn Costs {
        self.costs.as_ref()
    }

    /// What is drawn in an epoch, in order: units, or queries where the plan draws those.
    pub fn sequence(&self, epoch: u64) -> Result<Arc<Sequence>> {
        self.sequence.get(epoch, || Sequence::new(&self.plan, &self.sources, epoch))
    }

    /// The number of windows in an epoch.
    pub fn windows(&self, epoch: u64) -> Result<u64> {
        Ok(self.sequence(epoch)?.length().div_ceil(self.draws_per_window))
    }

    /// The packs of a window, in the order of training; an error where a unit's cost cannot be read.
    pub fn window(&self, epoch: u64, window: u64) -> Result<Window> {
        let sequence = self.sequence(epoch)?;
        let size = self.draws_per_window;
        if window >= sequence.length().div_ceil(size) {
            let expected = format!("below {}", sequence.length().div_ceil(size));
            return Err(Error::invalid("window", window, expected));
        }
        let places = window * size..((window + 1) * size).min(sequence.length());
        let mut drawn = Vec::new();
        for (draw, place) in places.enumerate() {
            let draw = draw as u32;
            let found = sequence.unit(place);
            let units = match self.plan.draw {
                Draw::Unit => found..found + 1,
                Draw::Query => self.costs.units_of(found)?,
            };
            for unit in units {
                let total = self.costs.total_in_epoch(unit, epoch)?;
                drawn.push(Drawn { unit, total, draw });
            }
        }
        pack_window(&self.plan, WindowId { epoch, window }, &drawn)
    }

    /// The window that a unit is in; `None` if the epoch does not come to it.
    pub(super) fn window_of(&self, epoch: u64, unit: u64) -> Result<Option<u64>> {
        let drawn = match self.plan.draw {
            Draw::Query if unit < self.costs.units() => self.costs.query_of(unit)?,
            _ => unit,
        };
        let place = self.sequence(epoch)?.place(drawn);
        Ok(place.map(|place| place / self.draws_per_window))
    }

    /// What each window of an epoch comes to: the table by which any step is found.
    ///
    /// Runs on the pool it is called in.
    pub fn summarise(&self, epoch: u64, interrupt: &Interrupt) -> Result<Vec<Summary>> {
        let windows = 0..self.windows(epoch)?;
        let summary = |window| {
            interrupt.check()?;
            let Window { packs, dropped } = self.window(epoch, window)?;
            let cost = packs.iter().map(|pack| pack.cost).sum();
            Ok(Summary {
                packs: packs.len() as u64,
                units: packs.iter().map(|pack| pack.units.len() as u64).sum(),
                cost,
                dropped: dropped.len() as u64,
            })
        };
        windows.into_par_iter().map(summary).collect()
    }
}
