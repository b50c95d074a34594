//! Steps, ranks and cursors: whoever goes on, wherever and with how many, makes the same steps.

use std::collections::BTreeMap;
use std::sync::Arc;

use mmrlhf_core::Interrupt;
use mmrlhf_core::order::{
    Cost, Cursor, Ends, InMemoryCosts, Key, Limits, Mixture, Modality, Order, Packs, Plan, Rank,
    Stage, Step, Steps, TooLarge, Unit, share_out,
};

const RANKS: [u32; 5] = [1, 2, 3, 5, 8];

fn units(count: u64) -> Vec<Cost> {
    let mut draws = Key::new(2, 0, 0, "costs").draws();
    (0..count)
        .map(|_| {
            let images = draws.below(3) as u32;
            let image_tokens = images * (200 + draws.below(700) as u32);
            Cost { text_tokens: 30 + draws.below(900) as u32, image_tokens, images }
        })
        .collect()
}

fn plan(modality: Modality) -> Plan {
    let limits = Limits { tokens: Some(6000), images: Some(8), ..Limits::default() };
    Plan { window: 100, modality, ..Plan::new(Unit::Pair, 5, limits, 6) }
}

fn order(plan: Plan) -> Arc<Order> {
    let costs = Arc::new(InMemoryCosts::new(units(730)));
    Arc::new(Order::new(plan, costs, "b3:data".into(), 3).expect("an order"))
}

fn steps(order: &Arc<Order>, cursor: Cursor, epochs: u64) -> Vec<Step> {
    Steps::new(Arc::clone(order), cursor, epochs)
        .expect("the cursor's own order")
        .collect::<Result<_, _>>()
        .expect("steps")
}

/// The units of each step from a cursor on, gathered from all ranks, which must agree on cursors.
fn gathered(
    order: &Arc<Order>,
    cursor: &Cursor,
    ranks: u32,
    balance: bool,
) -> BTreeMap<u64, (Vec<u64>, String)> {
    let mut steps: BTreeMap<u64, (Vec<u64>, String)> = BTreeMap::new();
    for rank in 0..ranks {
        let from = Steps::new(Arc::clone(order), cursor.clone(), 2).expect("steps");
        for pack in Packs::new(from, Rank { rank, ranks, balance }).expect("a rank") {
            let pack = pack.expect("a pack");
            let bytes = pack.after.to_json().expect("JSON");
            let (units, after) =
                steps.entry(pack.step).or_insert_with(|| (Vec::new(), bytes.clone()));
            assert_eq!(*after, bytes, "rank {rank} of {ranks} at step {}", pack.step);
            units.extend(pack.pack.units);
        }
    }
    for (units, _) in steps.values_mut() {
        units.sort_unstable();
    }
    steps
}

#[test]
fn any_number_of_ranks_from_any_place_makes_the_same_steps() {
    for modality in [Modality::Mixed, Modality::Separate, Modality::ImageInEach] {
        let order = order(plan(modality));
        let all = steps(&order, Cursor::start(&order), 2);
        let expected = gathered(&order, &Cursor::start(&order), 1, false);
        assert_eq!(expected.len(), all.len());
        for at in [0, 1, all.len() / 2, all.len() - 1] {
            let from = if at == 0 { Cursor::start(&order) } else { all[at - 1].after.clone() };
            let from = Cursor::from_json(&from.to_json().expect("JSON")).expect("a cursor");
            for (ranks, balance) in RANKS.into_iter().flat_map(|r| [(r, false), (r, true)]) {
                let found = gathered(&order, &from, ranks, balance);
                let rest = expected.clone().split_off(&(at as u64));
                assert!(found == rest, "{modality:?}, {ranks} ranks from step {at}");
            }
        }
    }
}

#[test]
fn an_epoch_holds_each_unit_once_and_the_cursor_counts_it() {
    let order = order(plan(Modality::Mixed));
    let all = steps(&order, Cursor::start(&order), 2);
    for epoch in 0..2 {
        let of_epoch = all.iter().filter(|step| {
            let next = (step.after.window, step.after.pack) == (0, 0);
            step.after.epoch - u64::from(next) == epoch
        });
        let packs = of_epoch.flat_map(|step| &step.packs);
        let mut units: Vec<u64> = packs.flat_map(|pack| pack.units.iter().copied()).collect();
        units.sort_unstable();
        assert!(units.into_iter().eq(0..730), "epoch {epoch}");
    }
    let last = &all[all.len() - 1].after;
    let text: u64 = units(730).iter().map(|cost| u64::from(cost.text_tokens)).sum();
    assert_eq!((last.seen.pairs, last.seen.text_tokens), (2 * 730, 2 * text));
    assert_eq!((last.epoch, last.window, last.pack), (2, 0, 0));
    assert_eq!(last.step, all.len() as u64);
}

#[test]
fn ranks_get_as_many_packs_and_balanced_ones_even_work() {
    let order = order(plan(Modality::Mixed));
    let (mut work_in_turn, mut work_balanced) = (0, 0);
    for step in steps(&order, Cursor::start(&order), 1) {
        for ranks in RANKS.map(|ranks| ranks as usize) {
            let work = |shares: &[Vec<usize>]| {
                let tokens =
                    |&index: &usize| step.packs.get(index).map_or(0, |pack| pack.cost.image_tokens);
                shares.iter().map(|share| share.iter().map(tokens).sum::<u64>()).max().unwrap_or(0)
            };
            let in_turn = share_out(&step.packs, ranks, false);
            let balanced = share_out(&step.packs, ranks, true);
            work_in_turn += work(&in_turn);
            work_balanced += work(&balanced);
            for shares in [in_turn, balanced] {
                assert!(shares.iter().all(|share| share.len() == 6_usize.div_ceil(ranks)));
                let mut all = shares.concat();
                all.sort_unstable();
                assert!(all.into_iter().eq(0..6_usize.div_ceil(ranks) * ranks));
            }
        }
    }
    // What the busiest rank has to do, over all steps.
    assert!(work_balanced * 100 < work_in_turn * 95, "{work_balanced} of {work_in_turn}");
}

#[test]
fn a_cursor_of_another_plan_or_data_set_is_refused_by_name() {
    let order = order(plan(Modality::Mixed));
    let cursor = Cursor { dataset: "b3:other".into(), ..Cursor::start(&order) };
    let message = Steps::new(Arc::clone(&order), cursor, 1).err().expect("refused").to_string();
    assert_eq!(message, "cursor: found dataset b3:other, expected dataset b3:data");
    let limits = Limits { tokens: Some(7000), images: Some(8), ..Limits::default() };
    let other = self::order(Plan { seed: 6, budget: limits, ..plan(Modality::Mixed) });
    let cursor = Cursor::from_json(&Cursor::start(&other).to_json().expect("JSON"));
    let cursor = cursor.expect("a cursor");
    let refused = |cursor: Cursor| {
        Steps::new(Arc::clone(&order), cursor, 1).err().expect("refused").to_string()
    };
    let expected = "cursor: found budget.tokens 7000, seed 6, expected budget.tokens 6000, seed 5";
    assert_eq!(refused(cursor.clone()), expected);
    // A cursor that was saved without settings can name the hash alone.
    let message = refused(Cursor { settings: None, ..cursor });
    assert!(message.contains(", seed 6, expected plan b3:"), "{message}");
    let old = Cursor { settings: None, ..Cursor::start(&order) };
    assert!(!old.to_json().expect("JSON").contains("settings"));
    let after = Steps::new(Arc::clone(&order), old, 1).expect("the same plan").next();
    assert!(after.expect("a step").expect("a step").after.settings.is_some());
    let cursor = Cursor { pack: 10_000, ..Cursor::start(&order) };
    assert!(Steps::new(order, cursor, 1).is_err());
}

#[test]
fn a_plan_may_change_at_the_end_of_a_window() {
    let old = order(plan(Modality::Mixed));
    let limits = Limits { tokens: Some(9000), ..Limits::default() };
    let new = order(Plan { budget: limits, packs_per_step: 4, ..plan(Modality::Mixed) });
    for taken in [0, 1, 5, 9] {
        let before: Vec<Step> = Steps::new(Arc::clone(&old), Cursor::start(&old), 1)
            .expect("steps")
            .take(taken)
            .collect::<Result<_, _>>()
            .expect("steps");
        let cursor = before.last().map_or_else(|| Cursor::start(&old), |step| step.after.clone());
        let go_on = |cursor: Cursor| -> Vec<Step> {
            Steps::finish_window(Arc::clone(&old), Arc::clone(&new), cursor, 1)
                .expect("the same draws")
                .collect::<Result<_, _>>()
                .expect("steps")
        };
        let after = go_on(cursor);
        let packs = before.iter().chain(&after).flat_map(|step| &step.packs);
        let mut units: Vec<u64> = packs.flat_map(|pack| pack.units.iter().copied()).collect();
        units.sort_unstable();
        assert!(units.into_iter().eq(0..730), "changed after {taken} steps");
        for (at, step) in after.iter().enumerate() {
            assert!(go_on(step.after.clone()) == after[at + 1..], "stopped again at {at}");
        }
    }
    let other = order(Plan { window: 50, ..plan(Modality::Mixed) });
    let refused = Steps::finish_window(Arc::clone(&old), other, Cursor::start(&old), 1);
    let message = refused.err().expect("other draws").to_string();
    assert!(message.contains("window: found 50, expected 100"), "{message}");
}

/// The units of [`units`] that are above `tokens`, and the largest.
fn above(tokens: u64) -> (u64, u64, u64) {
    let all = units(730);
    let size = |cost: &Cost| u64::from(cost.text_tokens + cost.image_tokens);
    let over = all.iter().enumerate().filter(|(_, cost)| size(cost) > tokens);
    let largest = over.clone().rev().max_by_key(|(_, cost)| size(cost)).expect("some");
    (over.count() as u64, largest.0 as u64, size(largest.1))
}

#[test]
fn units_above_the_budget_are_counted_before_the_first_step() {
    let budget = |tokens| Limits { tokens: Some(tokens), ..Limits::default() };
    let plan =
        |too_large, tokens| Plan { too_large, budget: budget(tokens), ..plan(Modality::Mixed) };
    let (count, unit, tokens) = above(2000);
    let fit = |plan: &Plan| order(plan.clone()).fit(0, &Interrupt::default()).expect("costs");
    let refused = plan(TooLarge::Error, 2000);
    let found = fit(&refused);
    assert_eq!((found.units, found.too_large), (730, count));
    assert_eq!(found.largest.map(|(unit, total)| (unit, total.tokens())), Some((unit, tokens)));
    let message = found.check(&refused).expect_err("units above").to_string();
    assert!(message.contains(&format!("found {count} of 730 units (pair) above it")), "{message}");
    assert!(message.contains(&format!("a budget of tokens={tokens} holds every")), "{message}");
    let raised = plan(TooLarge::Error, tokens as u32);
    fit(&raised).check(&raised).expect("a budget that holds every unit");
    // What is left out is what windows leave out.
    let dropping = plan(TooLarge::Drop, 2000);
    fit(&dropping).check(&dropping).expect("left out");
    let summaries = order(dropping).summarise(0, &Interrupt::default()).expect("summaries");
    assert_eq!(summaries.iter().map(|summary| summary.dropped).sum::<u64>(), count);
    let alone = plan(TooLarge::Alone, 1);
    fit(&alone).check(&alone).expect("packs of their own");
    let nothing = plan(TooLarge::Drop, 1);
    assert!(fit(&nothing).check(&nothing).is_err());
}

#[test]
fn a_source_that_is_never_drawn_from_may_be_above_the_budget() {
    let costs = units(730);
    let mixture = |weights: Vec<u64>| Mixture {
        sources: vec!["small".into(), "large".into()],
        stages: vec![Stage { from_block: 0, weights }],
        block: 100,
        ends: Ends::StopFirst,
        units_per_epoch: None,
    };
    let mut sorted = costs;
    sorted.sort_by_key(|cost| cost.text_tokens + cost.image_tokens);
    let largest_small = sorted[399].text_tokens + sorted[399].image_tokens;
    let fit = |weights| {
        let limits = Limits { tokens: Some(largest_small), ..Limits::default() };
        let plan = Plan { mixture: Some(mixture(weights)), ..Plan::new(Unit::Pair, 5, limits, 6) };
        let costs = Arc::new(InMemoryCosts::of_sources(sorted.clone(), vec![400, 330]));
        let order = Order::new(plan, costs, "b3:data".into(), 3).expect("an order");
        order.fit(0, &Interrupt::default()).expect("costs")
    };
    assert_eq!((fit(vec![1, 0]).units, fit(vec![1, 0]).too_large), (400, 0));
    assert_eq!(fit(vec![1, 1]).units, 730);
    assert!(fit(vec![1, 1]).too_large > 300);
}

#[test]
fn places_are_found_by_step_by_units_and_by_unit() {
    for modality in [Modality::Mixed, Modality::Separate] {
        let order = order(plan(modality));
        let start = Cursor::start(&order);
        let all = steps(&order, start.clone(), 1);
        let summaries = order.summarise(0, &Interrupt::default()).expect("summaries");
        let mut units = 0;
        for (number, step) in all.iter().enumerate() {
            let found = order.seek_step(&start, &summaries, number as u64 + 1).expect("a place");
            assert_eq!(found, step.after);
            if number + 1 < all.len() {
                let end = order.seek_end(&step.after, &summaries).expect("the end of the epoch");
                assert_eq!(end, all[all.len() - 1].after);
            }
            let more: u64 = step.packs.iter().map(|pack| pack.units.len() as u64).sum();
            for wanted in [units + 1, units + more] {
                let found = order.seek_units(&start, &summaries, wanted).expect("a place");
                assert_eq!(found, step.after, "{wanted} units");
            }
            units += more;
        }
        assert_eq!(order.seek_step(&start, &summaries, 0).expect("a place"), start);
        let end = order.seek_end(&start, &summaries).expect("the end of the epoch");
        assert_eq!(end, all[all.len() - 1].after);
        assert!(order.seek_step(&start, &summaries, all.len() as u64 + 1).is_err());
        assert!(order.seek_units(&start, &summaries, 731).is_err());
        for unit in [0, 17, 729] {
            let (window, pack) = order.find(0, unit).expect("a window").expect("a place");
            let packs = order.window(0, window).expect("a window").packs;
            assert!(packs[pack as usize].units.contains(&unit));
        }
        assert_eq!(order.find(0, 730).expect("no place"), None);
    }
}

/// Sources of 300, 100 and 330 units.
fn mixed(weights: [u64; 3], ends: Ends) -> Order {
    let mixture = Mixture {
        sources: ["a", "b", "c"].map(String::from).to_vec(),
        stages: vec![Stage { from_block: 0, weights: weights.to_vec() }],
        block: 64,
        ends,
        units_per_epoch: None,
    };
    let costs = InMemoryCosts::of_sources(units(730), vec![300, 100, 330]);
    let plan = Plan { mixture: Some(mixture), ..plan(Modality::Mixed) };
    Order::new(plan, Arc::new(costs), "b3:data".into(), 3).expect("an order")
}

#[test]
fn a_mixture_ends_as_it_is_asked_to() {
    for epoch in 0..3 {
        let of_source = |order: &Order| {
            let sequence = order.sequence(epoch).expect("a sequence");
            let mut counts = vec![0_u32; 730];
            (0..sequence.length()).for_each(|place| counts[sequence.unit(place) as usize] += 1);
            for (unit, &count) in counts.iter().enumerate() {
                let place = sequence.place(unit as u64);
                assert_eq!(place.is_some(), count > 0);
                assert!(place.is_none_or(|place| sequence.unit(place) == unit as u64));
            }
            counts
        };
        // b runs out first: 100 of it, and its share of the others within one unit of a block.
        let counts = of_source(&mixed([1, 1, 2], Ends::StopFirst));
        assert!(counts[300..400].iter().all(|&count| count == 1));
        assert!(counts.iter().all(|&count| count <= 1));
        assert!(counts[..300].iter().sum::<u32>().abs_diff(100) < 32);
        // c comes last; b is seen more than once by then, each unit as often as any other, or once more.
        let counts = of_source(&mixed([1, 1, 1], Ends::StopAll));
        assert!(counts[400..].iter().all(|&count| count == 1));
        assert!(counts[300..400].iter().all(|&count| count == 3 || count == 4));
        let counts = of_source(&mixed([1, 0, 1], Ends::Restart));
        assert_eq!(counts.iter().sum::<u32>(), 730);
        assert!(counts[300..400].iter().all(|&count| count == 0));
    }
}
