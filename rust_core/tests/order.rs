//! The order of training: every unit once, by a permutation without pattern, in well-filled packs.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use mmrlhf_core::order::{
    Cost, Costs, Draw, InMemoryCosts, Key, KeyedPermutation, Limits, Modality, Order, Permutation,
    Plan, Shuffle, Shuffled, TooLarge, Unit,
};
use mmrlhf_core::{Error, Result};

fn key(epoch: u64) -> Key {
    Key::new(17, epoch, 0, "perm")
}

/// `permute` visits each of `0..n` once, and `invert` undoes it.
fn assert_bijection(n: u64, permute: impl Fn(u64) -> u64, invert: impl Fn(u64) -> u64) {
    let mut seen = vec![false; n as usize];
    for place in 0..n {
        let item = permute(place);
        assert!(!std::mem::replace(&mut seen[item as usize], true), "{item} comes twice in {n}");
        assert_eq!(invert(item), place, "n = {n}");
    }
}

#[test]
fn the_network_is_a_bijection_for_every_small_number() {
    for n in 1..=5000 {
        let keyed = KeyedPermutation::new(n, &key(n));
        assert_bijection(n, |place| keyed.permute(place), |item| keyed.invert(item));
    }
}

#[test]
fn the_network_is_a_bijection_about_powers_of_two() {
    for power in 1..=20 {
        for n in [(1 << power) - 1, 1 << power, (1 << power) + 1] {
            let keyed = KeyedPermutation::new(n, &key(power));
            assert_bijection(n, |place| keyed.permute(place), |item| keyed.invert(item));
        }
    }
}

#[test]
fn the_shuffle_is_a_bijection() {
    for n in (0..300).chain([4096, 131_072]) {
        let shuffled = Shuffled::new(n, key(n));
        assert_bijection(n, |place| shuffled.permute(place), |item| shuffled.invert(item));
    }
}

#[test]
fn the_largest_numbers_come_back() {
    for n in [u64::from(u32::MAX), 1 << 40, u64::MAX / 2 + 2, u64::MAX] {
        let keyed = KeyedPermutation::new(n, &key(0));
        for place in [0, 1, n / 3, n - 1] {
            assert!(keyed.permute(place) < n);
            assert_eq!(keyed.invert(keyed.permute(place)), place);
        }
    }
}

/// Measures of an order of n things that a random one has near 0.5, 1, 1 and 0.
struct Statistics {
    parity_flips: f64,
    neighbours: f64,
    fixed: f64,
    bit_correlation: f64,
}

fn statistics(n: u64, permute: impl Fn(u64) -> u64) -> Statistics {
    let items: Vec<u64> = (0..n).map(permute).collect();
    let steps = || items.windows(2).map(|pair| (pair[0], pair[1]));
    let share = |count: usize| count as f64 / (n - 1) as f64;
    let flips = steps().filter(|(one, next)| (one ^ next) & 1 == 1).count();
    // Of n - 1 neighbours, a random order has 2 whose numbers differ by one.
    let near = steps().filter(|(one, next)| one.abs_diff(*next) <= 1).count();
    let fixed = items.iter().enumerate().filter(|&(place, &item)| place as u64 == item).count();
    let agree = |bit: u32| {
        let same =
            items.iter().enumerate().filter(|&(place, item)| (place as u64 >> bit) & 1 == item & 1);
        (2.0 * same.count() as f64 / n as f64 - 1.0).abs()
    };
    Statistics {
        parity_flips: share(flips),
        neighbours: near as f64 / 2.0,
        fixed: fixed as f64,
        bit_correlation: (0..n.ilog2()).map(agree).fold(0.0, f64::max),
    }
}

#[test]
fn the_network_has_no_pattern() {
    for n in [1000, 65_536, 65_537, 100_000, 131_072, 1_000_000] {
        let (mut neighbours, mut fixed) = (0.0, 0.0);
        for epoch in 0..10 {
            let keyed = KeyedPermutation::new(n, &key(epoch));
            let found = statistics(n, |place| keyed.permute(place));
            // Five standard deviations of a share of n coin tosses.
            let margin = 2.5 / (n as f64).sqrt();
            assert!((found.parity_flips - 0.5).abs() < margin, "{n}: {}", found.parity_flips);
            assert!(found.bit_correlation < 2.2 * margin, "{n}: {}", found.bit_correlation);
            neighbours += found.neighbours / 10.0;
            fixed += found.fixed / 10.0;
        }
        // Means of 10 counts that are Poisson with mean 2 (halved) and 1.
        assert!((neighbours - 1.0).abs() < 1.2, "{n}: {neighbours}");
        assert!((fixed - 1.0).abs() < 1.6, "{n}: {fixed}");
    }
}

#[test]
fn the_order_never_changes_between_releases() {
    let keyed = KeyedPermutation::new(1000, &key(3));
    let found: Vec<u64> = (0..8).map(|place| keyed.permute(place)).collect();
    assert_eq!(found, [367, 987, 34, 463, 314, 6, 353, 124]);
    let shuffled = Permutation::new(1000, key(3));
    let found: Vec<u64> = (0..8).map(|place| shuffled.permute(place)).collect();
    assert_eq!(found, [445, 129, 376, 524, 371, 208, 442, 492]);
    let large = Permutation::new(10_000_000, key(3));
    let found: Vec<u64> = (0..4).map(|place| large.permute(place)).collect();
    assert_eq!(found, [1_845_498, 1_514_713, 1_366_457, 2_919_137]);
}

/// Units in the shape of MM-RLHF: prompts and answers of skewed length, one image or none.
fn skewed_units(count: u64) -> Vec<Cost> {
    let mut draws = Key::new(1, 0, 0, "costs").draws();
    (0..count)
        .map(|_| {
            // The product of three draws is skewed like lengths of text are.
            let text = 60 + (0..3).fold(2400, |length, _| length * draws.below(1000) / 600);
            let image = [0, 729, 1500, 2900, 3700, 7000][draws.below(6) as usize];
            let (image, images) = if image == 0 { (0, 0) } else { (image + draws.below(300), 1) };
            Cost { text_tokens: text.min(8000) as u32, image_tokens: image as u32, images }
        })
        .collect()
}

fn plan(window: u32, tokens: u32) -> Plan {
    let budget = Limits { tokens: Some(tokens), ..Limits::default() };
    Plan { window, ..Plan::new(Unit::Pair, 17, budget, 8) }
}

fn order(plan: Plan, costs: Vec<Cost>) -> Order {
    Order::new(plan, Arc::new(InMemoryCosts::new(costs)), "b3:data".into(), 1).expect("an order")
}

/// The units of an epoch as its packs give them, and how full the packs are.
fn all_units(order: &Order, epoch: u64) -> (Vec<u64>, f64) {
    let (mut units, mut tokens, mut packs) = (Vec::new(), 0, 0);
    for window in 0..order.windows(epoch).expect("windows") {
        for pack in order.window(epoch, window).expect("a window").packs {
            assert!(order.plan().budget.hold(&pack.cost));
            tokens += pack.cost.tokens();
            packs += u64::from(!pack.units.is_empty());
            units.extend(pack.units);
        }
    }
    let budget = order.plan().budget.tokens.expect("a limit");
    (units, tokens as f64 / (packs * u64::from(budget)) as f64)
}

#[test]
fn packs_of_an_epoch_hold_each_unit_once_and_are_full() {
    let costs = skewed_units(20_000);
    for (window, fill) in [(4096, 0.99), (1024, 0.98)] {
        let order = order(plan(window, 32_768), costs.clone());
        let (mut units, filled) = all_units(&order, 0);
        assert!(filled > fill, "windows of {window}: {filled}");
        assert_ne!(units, all_units(&order, 1).0);
        units.sort_unstable();
        assert!(units.into_iter().eq(0..20_000));
    }
}

#[test]
fn every_shuffle_and_modality_holds_each_unit_once() {
    let costs = skewed_units(5000);
    for shuffle in [Shuffle::Full, Shuffle::Block] {
        for modality in [Modality::Mixed, Modality::Separate, Modality::ImageInEach] {
            let order = order(Plan { shuffle, modality, ..plan(512, 16_384) }, costs.clone());
            let (mut units, _) = all_units(&order, 2);
            units.sort_unstable();
            assert!(units.into_iter().eq(0..5000), "{shuffle:?}, {modality:?}");
        }
    }
}

#[test]
fn units_of_a_drawn_query_are_in_one_window_and_in_different_packs() {
    // Six units a query, of one image each and so of much the same cost.
    let queries = skewed_units(1000);
    let costs: Vec<Cost> = queries.iter().flat_map(|&query| [query; 6]).collect();
    let drawn = |modality| {
        let costs = InMemoryCosts::of_queries(costs.clone(), &[6; 1000]).expect("queries");
        let plan = Plan { draw: Draw::Query, modality, ..plan(600, 32_768) };
        Order::new(plan, Arc::new(costs), "b3:data".into(), 1).expect("an order")
    };
    for modality in [Modality::Mixed, Modality::ImageInEach] {
        let order = drawn(modality);
        assert_eq!(order.windows(0).expect("windows"), 10);
        let (mut units, fill) = all_units(&order, 0);
        units.sort_unstable();
        assert!(units.into_iter().eq(0..6000));
        assert!(modality != Modality::Mixed || fill > 0.97, "{fill}");
        for window in 0..10 {
            let packs = order.window(0, window).expect("a window").packs;
            let units = || packs.iter().flat_map(|pack| &pack.units);
            for &unit in units() {
                let of_query = units().filter(|&&other| other / 6 == unit / 6).count();
                assert_eq!(of_query, 6);
                assert_eq!(order.find(0, unit).expect("a place").expect("a pack").0, window);
            }
            let mut together = 0;
            for pack in &packs {
                let queries: BTreeSet<u64> = pack.units.iter().map(|unit| unit / 6).collect();
                together += pack.units.len() - queries.len();
            }
            // Where a step must be of one kind, the last of each kind is spread over packs once more.
            let most = if modality == Modality::Mixed { 60 } else { 120 };
            assert!(
                together < most,
                "{together} of 600 pairs in the pack of another of their query"
            );
        }
    }
}

#[test]
fn a_query_of_more_units_than_packs_is_shared_out_evenly() {
    let cost = Cost { text_tokens: 10, ..Cost::default() };
    let costs = InMemoryCosts::of_queries(vec![cost; 100], &[60, 0, 40]).expect("queries");
    let plan = Plan { draw: Draw::Query, ..plan(100, 100) };
    let order = Order::new(plan, Arc::new(costs), "b3:data".into(), 1).expect("an order");
    let packs = order.window(0, 0).expect("a window").packs;
    assert_eq!(packs.len(), 10);
    for pack in packs {
        assert_eq!(pack.units.iter().filter(|&&unit| unit < 60).count(), 6);
    }
}

#[test]
fn only_pairs_are_drawn_by_query() {
    for unit in [Unit::Query, Unit::Response] {
        let plan = Plan { unit, draw: Draw::Query, ..plan(100, 100) };
        let error = plan.check().expect_err("no unit of pairs").to_string();
        assert!(error.contains("plan: draw: found query with unit"), "{error}");
    }
}

#[test]
fn the_packs_of_a_step_are_of_one_kind() {
    let costs = skewed_units(5000);
    let mut without_images = Vec::new();
    for modality in [Modality::Separate, Modality::ImageInEach] {
        let order = order(Plan { modality, ..plan(512, 16_384) }, costs.clone());
        let mut without = 0;
        for window in 0..order.windows(0).expect("windows") {
            let packs = order.window(0, window).expect("a window").packs;
            assert_eq!(packs.len() % 8, 0);
            for step in packs.chunks(8) {
                let full: Vec<_> = step.iter().filter(|pack| !pack.units.is_empty()).collect();
                assert!(!full.is_empty());
                assert!(full.iter().all(|pack| pack.has_images() == full[0].has_images()));
                without += full.iter().filter(|pack| !pack.has_images()).count();
            }
        }
        without_images.push(without);
    }
    assert_eq!(without_images[1], 0);
}

#[test]
fn a_unit_above_the_budget_is_named_left_out_or_alone() {
    let mut costs = skewed_units(100);
    costs[42].text_tokens = 99_999;
    let with = |too_large| order(Plan { too_large, ..plan(4096, 16_384) }, costs.clone());
    let error = with(TooLarge::Error).window(0, 0).expect_err("unit 42 is too large");
    assert!(error.to_string().contains("unit 42: found 99999 tokens of text"), "{error}");
    let window = with(TooLarge::Drop).window(0, 0).expect("a window");
    assert_eq!(window.dropped, [42]);
    assert!(window.packs.iter().all(|pack| !pack.units.contains(&42)));
    let window = with(TooLarge::Alone).window(0, 0).expect("a window");
    assert!(window.packs.iter().any(|pack| pack.units == [42]));
}

#[test]
fn a_plan_keeps_its_hash_through_json() {
    let plan = plan(4096, 16_384);
    let again = Plan::from_json(&plan.to_json().expect("JSON")).expect("a plan");
    assert_eq!(again, plan);
    let short = r#"{"unit":"pair","seed":17,"budget":{"tokens":16384},"packs_per_step":8}"#;
    let hash = Plan::from_json(short).expect("a plan").hash().expect("a hash");
    assert_eq!(hash, plan.hash().expect("a hash"));
    assert_eq!(hash, "b3:4c168db1d3685537638a1caee2508cdd1aa932397748327e321c7bd69d452d3d");
    let other = Plan { packs_per_step: 4, ..plan.clone() };
    let differences = other.differences(&plan).expect("fields");
    let differences: Vec<String> = differences.iter().map(ToString::to_string).collect();
    assert_eq!(differences, ["packs_per_step: found 4, expected 8"]);
    let drawn = Plan { draw: Draw::Query, ..plan.clone() };
    assert_ne!(drawn.hash().expect("a hash"), hash);
    let differences = drawn.differences(&plan).expect("fields");
    assert_eq!(differences[0].to_string(), r#"draw: found "query", expected "unit""#);
    assert!(Plan::from_json(&short.replace("seed", "sead")).is_err());
    assert_eq!(InMemoryCosts::new(skewed_units(3)).units(), 3);
}

/// Units of which one cannot be read.
struct Damaged(u64);

impl Costs for Damaged {
    fn units(&self) -> u64 {
        100
    }

    fn cost(&self, unit: u64) -> Result<Cost> {
        if unit == self.0 {
            return Err(Error::invalid("responses, row 7", "damage", "none"));
        }
        Ok(Cost { text_tokens: 10, ..Cost::default() })
    }

    fn query_sources(&self) -> Vec<u64> {
        vec![100]
    }

    fn units_of(&self, query: u64) -> Result<Range<u64>> {
        Ok(query..query + 1)
    }

    fn query_of(&self, unit: u64) -> Result<u64> {
        Ok(unit)
    }
}

#[test]
fn a_window_with_a_unit_that_cannot_be_read_is_an_error() {
    let order = Order::new(plan(10, 100), Arc::new(Damaged(42)), "b3:data".into(), 1);
    let order = order.expect("an order");
    let failed: Vec<Error> = (0..10).filter_map(|window| order.window(0, window).err()).collect();
    assert_eq!(failed.len(), 1);
    assert!(failed[0].to_string().contains("responses, row 7"), "{}", failed[0]);
}
