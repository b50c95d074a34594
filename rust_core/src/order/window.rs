//! The packs of one window: what is drawn together is packed together, and nothing is carried over.

use std::cmp::Reverse;
use std::collections::HashSet;

use super::arrange::{WindowId, arrange};
use super::cost::Total;
use super::pack::{Packing, best_fit_decreasing};
use super::plan::{Modality, Plan, TooLarge};
use crate::error::{Error, Result};

/// Each round packs the window once more; two or three are enough but for odd shapes.
const DEALING_ROUNDS: u32 = 8;

/// Units that are computed together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pack {
    /// In the order they were drawn; none in a pack of weight 0.
    pub units: Vec<u64>,
    /// What they cost together.
    pub cost: Total,
}

impl Pack {
    /// Whether it holds an image.
    pub fn has_images(&self) -> bool {
        self.cost.images > 0
    }
}

/// The packs of one window.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Window {
    /// In the order of training.
    pub packs: Vec<Pack>,
    /// Units left out for being too large, as the plan asks.
    pub dropped: Vec<u64>,
}

/// A unit as it is packed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drawn {
    pub(crate) unit: u64,
    pub(crate) total: Total,
    /// The number of the draw that it came with: units of one draw are packed apart.
    pub(crate) draw: u32,
}

/// Pack the units drawn for a window and put the packs in order.
pub(crate) fn pack_window(plan: &Plan, id: WindowId, drawn: &[Drawn]) -> Result<Window> {
    let totals: Vec<Total> = drawn.iter().map(|drawn| drawn.total).collect();
    let packing = match plan.modality {
        Modality::ImageInEach => deal_images(plan, drawn, &totals),
        Modality::Mixed | Modality::Separate => pack(plan, drawn, &totals, &HashSet::new()),
    };
    let too_large = packing.too_large.iter().map(|&at| at as usize);
    let places = |pack: Vec<u32>| pack.into_iter().map(|at| at as usize).collect();
    let mut packs: Vec<Vec<usize>> = packing.packs.into_iter().map(places).collect();
    let mut dropped = Vec::new();
    match plan.too_large {
        TooLarge::Error => too_large.take(1).try_for_each(|at| Err(refuse(&drawn[at], plan)))?,
        TooLarge::Alone => packs.extend(too_large.map(|at| vec![at])),
        TooLarge::Drop => dropped = too_large.map(|at| drawn[at].unit).collect(),
    }
    let packs = arrange(plan, id, packs, &totals);
    Ok(Window { packs: packs.into_iter().map(|pack| fill(pack, drawn)).collect(), dropped })
}

fn fill(mut places: Vec<usize>, drawn: &[Drawn]) -> Pack {
    places.sort_unstable();
    Pack {
        units: places.iter().map(|&at| drawn[at].unit).collect(),
        cost: places.iter().map(|&at| drawn[at].total).sum(),
    }
}

fn pack(plan: &Plan, drawn: &[Drawn], totals: &[Total], opens: &HashSet<u32>) -> Packing {
    let unit_of = |at: u32| drawn[at as usize].unit;
    let draw_of = |at: u32| drawn[at as usize].draw;
    best_fit_decreasing(totals, &plan.budget, unit_of, draw_of, |at| opens.contains(&at))
}

/// Pack so that as few packs as possible are without an image: as many of the units with the most
/// image tokens open packs as there turn out to be packs.
fn deal_images(plan: &Plan, drawn: &[Drawn], totals: &[Total]) -> Packing {
    let has_images = |&at: &u32| totals[at as usize].images > 0;
    let mut openers: Vec<u32> = (0..totals.len() as u32).filter(has_images).collect();
    openers.retain(|&at| plan.budget.hold(&totals[at as usize]));
    openers.sort_by_key(|&at| {
        let largest_first = Reverse(totals[at as usize].image_tokens);
        (largest_first, drawn[at as usize].unit, at)
    });
    let mut opens = HashSet::new();
    let mut round = 0;
    loop {
        round += 1;
        let packing = pack(plan, drawn, totals, &opens);
        let with_images = packing.packs.iter().filter(|pack| pack.iter().any(has_images)).count();
        if with_images == packing.packs.len()
            || opens.len() == openers.len()
            || round == DEALING_ROUNDS
        {
            return packing;
        }
        // More than before, since each opener has a pack and some pack has none.
        let count = packing.packs.len().min(openers.len());
        opens = openers[..count].iter().copied().collect();
    }
}

fn refuse(drawn: &Drawn, plan: &Plan) -> Error {
    let Total { text_tokens, image_tokens, images, .. } = drawn.total;
    Error::invalid(
        format!("unit {}", drawn.unit),
        format!("{text_tokens} tokens of text, {image_tokens} of {images} images"),
        format!("within {:?}, or too_large set to alone or drop", plan.budget),
    )
}
