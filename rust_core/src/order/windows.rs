//! An order: a plan over a dataset, from which any window of any epoch is computed.

use std::sync::Arc;

use rayon::prelude::*;

use super::arrange::WindowId;
use super::cost::{Costs, Total};
use super::latest::Latest;
use super::plan::Plan;
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
    sources: Vec<u64>,
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
        let plan_hash = plan.hash()?;
        let sequence = Latest::default();
        Ok(Self { plan, plan_hash, costs, dataset, manifest, sources, sequence })
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

    /// The number of units of each source.
    pub(super) fn sources(&self) -> &[u64] {
        &self.sources
    }

    /// The units of an epoch, in order.
    pub fn sequence(&self, epoch: u64) -> Result<Arc<Sequence>> {
        self.sequence.get(epoch, || Sequence::new(&self.plan, &self.sources, epoch))
    }

    /// The number of windows in an epoch.
    pub fn windows(&self, epoch: u64) -> Result<u64> {
        Ok(self.sequence(epoch)?.length().div_ceil(u64::from(self.plan.window)))
    }

    /// The packs of a window, in the order of training; an error where a unit's cost cannot be read.
    pub fn window(&self, epoch: u64, window: u64) -> Result<Window> {
        let sequence = self.sequence(epoch)?;
        let size = u64::from(self.plan.window);
        if window >= sequence.length().div_ceil(size) {
            let expected = format!("below {}", sequence.length().div_ceil(size));
            return Err(Error::invalid("window", window, expected));
        }
        let places = window * size..((window + 1) * size).min(sequence.length());
        let drawn = places.map(|place| self.draw(sequence.unit(place), epoch));
        let drawn = drawn.collect::<Result<Vec<Drawn>>>()?;
        pack_window(&self.plan, WindowId { epoch, window }, &drawn)
    }

    fn draw(&self, unit: u64, epoch: u64) -> Result<Drawn> {
        Ok(Drawn { unit, total: self.costs.total_in_epoch(unit, epoch)? })
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
