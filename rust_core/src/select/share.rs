//! Sharing a number of units by ratios.

/// Share `amount` units among groups by the method of Webster, going on from what they `have`.
///
/// Each unit goes to the group with the largest `ratio / (2 have + 1)` that has not reached its
/// limit; ties go to the first. Unlike largest remainders, this method never takes a unit from one
/// group because the total grew, so a shortfall of one group only ever adds to the others.
///
/// Returns the units each group is given; fewer than `amount` in all where the limits say so.
pub fn allot(amount: u64, ratios: &[f64], have: &[u64], limits: &[u64]) -> Vec<u64> {
    let mut given = vec![0; ratios.len()];
    for _ in 0..amount {
        let mut neediest: Option<(f64, usize)> = None;
        for (group, &ratio) in ratios.iter().enumerate() {
            if given[group] >= limits[group] || ratio <= 0.0 {
                continue;
            }
            let need = ratio / (2 * (have[group] + given[group]) + 1) as f64;
            if neediest.is_none_or(|(largest, _)| need > largest) {
                neediest = Some((need, group));
            }
        }
        let Some((_, group)) = neediest else { break };
        given[group] += 1;
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_that_divide_the_amount_are_met_exactly() {
        let free = [u64::MAX; 3];
        assert_eq!(allot(300, &[4.0, 5.0, 1.0], &[0; 3], &free), [120, 150, 30]);
        // 3 units at 4:5:1: the first two needs are 5 and 4, then 5/3 against 4/3 and 1.
        assert_eq!(allot(3, &[4.0, 5.0, 1.0], &[0; 3], &free), [1, 2, 0]);
    }

    #[test]
    fn a_shortfall_goes_to_the_others_in_proportion() {
        assert_eq!(allot(100, &[4.0, 5.0, 1.0], &[0; 3], &[u64::MAX, 5, u64::MAX]), [76, 5, 19]);
        assert_eq!(allot(100, &[1.0, 1.0], &[0; 2], &[3, 4]), [3, 4]);
        assert_eq!(allot(10, &[1.0, 0.0], &[0; 2], &[4, 100]), [4, 0]);
    }

    #[test]
    fn what_a_group_has_counts() {
        assert_eq!(allot(10, &[1.0, 1.0], &[6, 0], &[u64::MAX; 2]), [2, 8]);
    }
}
