//! Some pairs of a query, chosen again each epoch.

use super::key::Key;

/// Which `count` of a query's `pairs` pairs an epoch takes, in rising order; all if it has no more.
///
/// `query` is any number that stays the query's own, such as its row.
pub fn choose_pairs(seed: u64, epoch: u64, query: u64, pairs: u32, count: u32) -> Vec<u32> {
    let mut chosen: Vec<u32> = (0..pairs).collect();
    if count < pairs {
        let mut draws = Key::new(seed, epoch, query, "pairs").draws();
        // A Fisher-Yates shuffle that stops once the first places are settled.
        for place in 0..count {
            let from = place + draws.below(u64::from(pairs - place)) as u32;
            chosen.swap(place as usize, from as usize);
        }
        chosen.truncate(count as usize);
        chosen.sort_unstable();
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_has_its_turn() {
        // 2 of 6 over 3,000 epochs: 1,000 turns each, standard deviation 26.
        let mut turns = [0_u32; 6];
        for epoch in 0..3000 {
            let chosen = choose_pairs(1, epoch, 9, 6, 2);
            assert!(chosen.len() == 2 && chosen[0] < chosen[1]);
            for pair in chosen {
                turns[pair as usize] += 1;
            }
        }
        assert!(turns.iter().all(|turns| turns.abs_diff(1000) < 130), "{turns:?}");
        assert_eq!(choose_pairs(1, 0, 9, 3, 4), [0, 1, 2]);
    }
}
