//! An order: a plan over a dataset, from which any window of any epoch is computed.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::arrange::WindowId;
use super::cost::{Costs, Total};
use super::latest::Latest;
use super::plan::{Draw, Plan};
use super::sequence::Sequence;
use super::subset::Subset;
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
    /// The units of the plan's part of the dataset.
    units: Arc<Subset>,
    /// What is drawn: those units, or their queries.
    drawn: Arc<Subset>,
    /// How much of it each source has, and how much makes a window.
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
        let part = part_of(&plan, costs.as_ref())?;
        let units = match &part {
            None => Arc::new(Subset::all(costs.units())),
            Some(queries) => Arc::new(units_of(&plan, costs.as_ref(), queries)?),
        };
        let (drawn, sources) = match plan.draw {
            Draw::Unit => (Arc::clone(&units), sources),
            Draw::Query => {
                let sources = costs.query_sources();
                let all = || Arc::new(Subset::all(sources.iter().sum()));
                (part.unwrap_or_else(all), sources)
            }
        };
        let window = u64::from(plan.window);
        let draws_per_window = match plan.draw {
            Draw::Unit => window,
            Draw::Query => (window * drawn.len() / units.len().max(1)).max(1),
        };
        let sources = ranges(&sources).map(|rows| drawn.below(rows.end) - drawn.below(rows.start));
        Ok(Self {
            plan_hash: plan.hash()?,
            sources: sources.collect(),
            plan,
            costs,
            dataset,
            manifest,
            units,
            drawn,
            draws_per_window,
            sequence: Latest::default(),
        })
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

    /// The units of the plan's part of the dataset.
    pub(super) fn units(&self) -> &Subset {
        &self.units
    }

    /// What is drawn in an epoch, in order, as numbers within the plan's part of the dataset: units, or
    /// queries where the plan draws those.
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
            let found = self.drawn.row(sequence.unit(place));
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
        let Some(number) = self.drawn.number(drawn) else { return Ok(None) };
        let place = self.sequence(epoch)?.place(number);
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

/// The rows of each source, of so many each.
pub(super) fn ranges(sources: &[u64]) -> impl Iterator<Item = Range<u64>> + '_ {
    sources.iter().scan(0, |end, rows| {
        *end += rows;
        Some(*end - rows..*end)
    })
}

/// The queries of the plan's part of the dataset; `None` is all.
fn part_of(plan: &Plan, costs: &dyn Costs) -> Result<Option<Arc<Subset>>> {
    let part = costs.part();
    if part.is_some() == plan.hold_out.is_some() {
        return Ok(part);
    }
    let named = |is_part| if is_part { "a part of the queries" } else { "all queries" };
    let (found, expected) = (named(part.is_some()), named(plan.hold_out.is_some()));
    Err(Error::invalid("plan: hold_out", found, expected))
}

/// The units of some queries.
fn units_of(plan: &Plan, costs: &dyn Costs, queries: &Subset) -> Result<Subset> {
    let units = Subset::of_ranges(queries.ranges().map(|run| {
        // The units of all queries follow each other.
        Ok(costs.units_of(run.start)?.start..costs.units_of(run.end - 1)?.end)
    }))?;
    if units.is_empty() {
        let unit = plan.unit.name();
        let found = format!("no {unit} in the {} queries of this part", queries.len());
        let expected = "some\n\nhint: another share or seed of hold_out";
        return Err(Error::invalid("hold_out", found, expected));
    }
    Ok(units)
}
