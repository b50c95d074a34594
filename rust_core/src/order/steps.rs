//! Step after step from a cursor on: the same steps on every rank, and each rank's packs of them.

use std::sync::Arc;

use super::cursor::Cursor;
use super::plan::Plan;
use super::window::Pack;
use super::windows::Order;
use crate::error::{Error, Result};

/// The packs between two moves of the optimiser, over all ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The number of the step, from 0 at the start of training.
    pub number: u64,
    /// As many as the plan says; the last are empty where an epoch or a finished window ends.
    pub packs: Vec<Pack>,
    /// The position after the step.
    pub after: Cursor,
}

impl Step {
    /// Whether any pack holds an image, so that every rank runs the vision tower.
    pub fn has_images(&self) -> bool {
        self.packs.iter().any(Pack::has_images)
    }
}

/// The steps from a cursor on, epoch after epoch.
pub struct Steps {
    order: Arc<Order>,
    /// The order that takes over at the end of the window.
    next_order: Option<Arc<Order>>,
    cursor: Cursor,
    /// The packs of the window that the cursor is in.
    packs: Option<Vec<Pack>>,
    epochs: u64,
}

impl Steps {
    /// The steps from a cursor on, up to the end of epoch `epochs - 1`.
    ///
    /// An error that lists what differs if the cursor is of another dataset or plan.
    pub fn new(order: Arc<Order>, cursor: Cursor, epochs: u64) -> Result<Self> {
        cursor.check(&order)?;
        let settings = Some(order.plan().clone());
        let cursor = Cursor { settings, ..cursor };
        let mut steps = Self { order, next_order: None, cursor, packs: None, epochs };
        steps.enter()?;
        Ok(steps)
    }

    /// As [`Steps::new`], but finishing the window that was begun under `order` before going on
    /// under `next_order`, another plan over the same dataset.
    ///
    /// Every unit is seen once, since both plans draw the same units for a window: they may differ
    /// in the budget, the steps and the image tokens, not in what is drawn. A cursor that already is
    /// of `next_order` goes on under it.
    pub fn finish_window(
        order: Arc<Order>,
        next_order: Arc<Order>,
        cursor: Cursor,
        epochs: u64,
    ) -> Result<Self> {
        if cursor.plan == next_order.plan_hash() {
            return Self::new(next_order, cursor, epochs);
        }
        same_draws(&order, &next_order)?;
        let begun = cursor.pack > 0;
        let mut steps = Self::new(order, cursor, epochs)?;
        if begun {
            steps.next_order = Some(next_order);
        } else {
            steps.go_on_under(next_order);
        }
        Ok(steps)
    }

    /// The position before the step that comes next.
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// An error unless the cursor is before a pack or at the end of its epochs.
    fn enter(&mut self) -> Result<()> {
        let Cursor { epoch, window, pack, .. } = self.cursor;
        if epoch >= self.epochs || (window, pack) == (0, 0) {
            return Ok(());
        }
        let packs = self.order.window(epoch, window)?.packs;
        if pack > 0 && pack >= packs.len() as u64 {
            let expected = format!("below {}, the packs of window {window}", packs.len());
            return Err(Error::invalid("cursor: pack", pack, expected));
        }
        self.packs = Some(packs);
        Ok(())
    }

    fn go_on_under(&mut self, order: Arc<Order>) {
        order.plan_hash().clone_into(&mut self.cursor.plan);
        self.cursor.settings = Some(order.plan().clone());
        self.cursor.manifest = order.manifest();
        self.order = order;
        self.packs = None;
    }

    /// The next step, `None` after the last epoch.
    fn take_step(&mut self) -> Result<Option<Step>> {
        let size = self.order.plan().packs_per_step as usize;
        let mut packs: Vec<Pack> = Vec::with_capacity(size);
        let mut empty_from = None;
        while packs.len() < size && self.cursor.epoch < self.epochs {
            if (self.cursor.window, self.cursor.pack) == (0, 0) && packs.is_empty() {
                // A second epoch without a pack means that there never will be one.
                if empty_from.replace(self.cursor.epoch).is_some() {
                    return Err(Error::invalid("dataset", "no unit to train on", "some"));
                }
            }
            if self.take_packs(&mut packs, size)? && !packs.is_empty() {
                break;
            }
        }
        if packs.is_empty() {
            return Ok(None);
        }
        for pack in &packs {
            self.cursor.seen.add(&pack.cost);
        }
        packs.resize(size, Pack::default());
        let number = self.cursor.step;
        self.cursor.step += 1;
        Ok(Some(Step { number, packs, after: self.cursor.clone() }))
    }

    /// Move packs of the cursor's window into a step; true where a step ends though it is not full.
    fn take_packs(&mut self, step: &mut Vec<Pack>, size: usize) -> Result<bool> {
        let Cursor { epoch, window, .. } = self.cursor;
        let windows = self.order.windows(epoch)?;
        if self.packs.is_none() && window < windows {
            self.packs = Some(self.order.window(epoch, window)?.packs);
        }
        let packs = self.packs.get_or_insert_default();
        let from = self.cursor.pack as usize;
        let to = packs.len().min(from + size - step.len());
        step.extend(packs[from..to].iter_mut().map(std::mem::take));
        self.cursor.pack = to as u64;
        if to < packs.len() {
            return Ok(false);
        }
        self.packs = None;
        (self.cursor.window, self.cursor.pack) = (window + 1, 0);
        let epoch_ends = window + 1 >= windows;
        if epoch_ends {
            (self.cursor.epoch, self.cursor.window) = (epoch + 1, 0);
        }
        let plan_ends = self.next_order.take().map(|order| self.go_on_under(order)).is_some();
        Ok(epoch_ends || plan_ends)
    }
}

impl Iterator for Steps {
    type Item = Result<Step>;

    fn next(&mut self) -> Option<Self::Item> {
        self.take_step().transpose()
    }
}

/// An error that lists what differs, unless two orders draw the same units for every window.
fn same_draws(order: &Order, next: &Order) -> Result<()> {
    // What may change is set to what it was; what is left differs in the draws.
    let Plan { budget, packs_per_step, too_large, modality, image_rule, .. } = order.plan().clone();
    let free =
        Plan { budget, packs_per_step, too_large, modality, image_rule, ..next.plan().clone() };
    let differences = free.differences(order.plan())?;
    let mut differences: Vec<String> = differences.iter().map(ToString::to_string).collect();
    if next.dataset() != order.dataset() {
        let (found, expected) = (next.dataset(), order.dataset());
        differences.push(format!("dataset: found {found}, expected {expected}"));
    }
    if differences.is_empty() {
        return Ok(());
    }
    let expected = "a change of budget, packs_per_step, too_large, modality or image_rule alone";
    Err(Error::invalid("plan after the window", differences.join("; "), expected))
}
