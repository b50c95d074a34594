//! The order of a window's packs, and of its steps where a step must be of one kind.
//!
//! A mixed window's packs are shuffled, and steps run on across windows. Where the packs of a step
//! must agree in having images, the packs of each kind are shuffled and cut into steps, the steps
//! are shuffled, and the window ends with a step. The step that is left over of a kind holds fewer
//! packs than the others: its units are spread over as many packs as a step has, so that the ranks
//! share its work instead of waiting for some of them.

use super::cost::Total;
use super::key::Key;
use super::plan::{Limits, Modality, Plan};

/// Which window, which decides its random choices.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WindowId {
    pub(crate) epoch: u64,
    pub(crate) window: u64,
}

impl WindowId {
    fn key(self, plan: &Plan, purpose: &str) -> Key {
        Key::new(plan.seed, self.epoch, self.window, purpose)
    }
}

/// Packs as places of the window's units, in the order of training.
pub(crate) fn arrange(
    plan: &Plan,
    id: WindowId,
    mut packs: Vec<Vec<usize>>,
    totals: &[Total],
) -> Vec<Vec<usize>> {
    let mut draws = id.key(plan, "bins").draws();
    if plan.modality == Modality::Mixed {
        draws.shuffle(&mut packs);
        return packs;
    }
    let size = plan.packs_per_step as usize;
    let has_images = |pack: &Vec<usize>| pack.iter().any(|&at| totals[at].images > 0);
    let (with, without): (Vec<_>, Vec<_>) = packs.into_iter().partition(has_images);
    let mut steps: Vec<Vec<Vec<usize>>> = Vec::new();
    for mut kind in [with, without] {
        draws.shuffle(&mut kind);
        while kind.len() >= size {
            let rest = kind.split_off(size);
            steps.push(std::mem::replace(&mut kind, rest));
        }
        if !kind.is_empty() {
            steps.push(spread(kind, size, totals, &plan.budget));
        }
    }
    id.key(plan, "steps").draws().shuffle(&mut steps);
    steps.concat()
}

/// Spread the units of a few packs of one kind over `size` packs: the largest first, each to the
/// lightest pack that can hold it, ties to the earlier. Units without an image follow those with
/// one, into packs that have one.
fn spread(
    packs: Vec<Vec<usize>>,
    size: usize,
    totals: &[Total],
    budget: &Limits,
) -> Vec<Vec<usize>> {
    let mut units = packs.concat();
    let has_images = |at: usize| totals[at].images > 0;
    units.sort_by_key(|&at| (!has_images(at), std::cmp::Reverse(totals[at].tokens()), at));
    let seeds = units.iter().filter(|&&at| has_images(at)).count();
    let open = if seeds == 0 { size } else { seeds.min(size) };
    let mut spread: Vec<(Total, Vec<usize>)> = vec![Default::default(); size];
    for &at in &units {
        let fits = |(_, (cost, units)): &(usize, &mut (Total, Vec<usize>))| {
            units.is_empty() || budget.hold(&(*cost + totals[at]))
        };
        let lightest = spread[..open].iter_mut().enumerate().filter(fits);
        let lightest = lightest.min_by_key(|(pack, (cost, _))| (cost.tokens(), *pack));
        let Some((_, (cost, units))) = lightest else {
            // Under several limits the spread may get stuck; what was packed before always fits.
            let mut packs = packs;
            packs.resize(size, Vec::new());
            return packs;
        };
        *cost += totals[at];
        units.push(at);
    }
    spread.into_iter().map(|(_, units)| units).collect()
}
