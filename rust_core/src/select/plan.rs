//! A plan that keeps the goal in reach: how many to take from each pair of groups.
//!
//! Floors and caps bind two columns at once (modality and source), so choosing one by one can paint
//! itself into a corner: the last pick of a capped source, spent on a plentiful modality, may be the
//! one a scarce modality needed. The plan is a flow of N units of least cost through
//!
//! ```text
//! start -> modality -> (modality, source) -> source -> end        and  start -> end  for the unmet
//! ```
//!
//! where the first `floor` units of a group earn 1 and a unit that goes past all groups costs more
//! than all floors together. So it reaches N if any choice can, and among those misses the fewest
//! units of floors. Each pick then either follows the plan, or the plan is mended around it by one
//! cycle of cost 0; where no such cycle exists, that pick would put the goal out of reach.

use super::Bound;

/// Cost of one unit of the goal left unmet: above anything that floors can earn along a path.
const UNMET: i64 = 1 << 32;

const START: usize = 0;
const END: usize = 1;

/// The plan for pairs of a row group (modality) and a column group (source).
#[derive(Debug)]
pub(super) struct Plan {
    network: Network,
    /// The edge of each pair, row-major.
    pairs: Vec<usize>,
    bypass: usize,
    count: u64,
}

impl Plan {
    /// Plan `count` units over pairs of which `available` (row-major) are there.
    pub(super) fn new(count: u64, available: &[u64], rows: &[Bound], columns: &[Bound]) -> Self {
        let mut network = Network::new(2 + rows.len() + columns.len());
        let row_node = |row: usize| 2 + row;
        let column_node = |column: usize| 2 + rows.len() + column;
        for (row, bound) in rows.iter().enumerate() {
            network.add_bounded(START, row_node(row), *bound);
        }
        for (column, bound) in columns.iter().enumerate() {
            network.add_bounded(column_node(column), END, *bound);
        }
        let pairs = available
            .iter()
            .enumerate()
            .map(|(pair, &units)| {
                let (row, column) = (pair / columns.len(), pair % columns.len());
                network.add(row_node(row), column_node(column), units, 0)
            })
            .collect();
        let bypass = network.add(START, END, count, UNMET);
        network.send(START, END, count);
        Self { network, pairs, bypass, count }
    }

    /// How many units can be had in all, those already taken included.
    pub(super) fn reach(&self) -> u64 {
        self.count - self.network.residual[self.bypass ^ 1]
    }

    /// Whether one unit of `pair` can be taken with the reach and the floors still in reach.
    pub(super) fn admits(&self, pair: usize) -> bool {
        self.network.residual[self.pairs[pair] ^ 1] > 0 || self.mend(pair).is_some()
    }

    /// Take one unit of `pair`, if the plan admits it.
    pub(super) fn take(&mut self, pair: usize) -> bool {
        let edge = self.pairs[pair];
        if self.network.residual[edge ^ 1] == 0 {
            let Some(cycle) = self.mend(pair) else { return false };
            self.network.push(&cycle, 1);
        }
        // What is taken can no longer be planned away: it leaves the residual network.
        self.network.residual[edge ^ 1] -= 1;
        true
    }

    /// A cycle of cost 0 that plans one more unit of `pair`.
    fn mend(&self, pair: usize) -> Option<Vec<usize>> {
        let edge = self.pairs[pair];
        if self.network.residual[edge] == 0 {
            return None;
        }
        let (from, to) = (self.network.tails[edge], self.network.tails[edge ^ 1]);
        let (cost, mut cycle) = self.network.cheapest_path(to, from)?;
        cycle.push(edge);
        (cost == 0).then_some(cycle)
    }

    /// One unit of `pair` turned out not to be there; whether that made the goal worse.
    pub(super) fn lose(&mut self, pair: usize) -> bool {
        let edge = self.pairs[pair];
        if self.network.residual[edge] > 0 {
            self.network.residual[edge] -= 1;
            return false;
        }
        if self.network.residual[edge ^ 1] == 0 {
            return false;
        }
        let (from, to) = (self.network.tails[edge], self.network.tails[edge ^ 1]);
        self.network.residual[edge ^ 1] -= 1;
        // The bypass makes sure that there is a way round.
        let Some((cost, path)) = self.network.cheapest_path(from, to) else { return true };
        self.network.push(&path, 1);
        cost > 0
    }
}

/// A flow network as pairs of edges: `edge ^ 1` is the way back and holds what flows.
#[derive(Debug)]
struct Network {
    nodes: usize,
    /// The node an edge leaves; the one it enters is the tail of its way back.
    tails: Vec<usize>,
    /// What an edge can still take.
    residual: Vec<u64>,
    costs: Vec<i64>,
}

impl Network {
    fn new(nodes: usize) -> Self {
        Self { nodes, tails: Vec::new(), residual: Vec::new(), costs: Vec::new() }
    }

    fn add(&mut self, from: usize, to: usize, capacity: u64, cost: i64) -> usize {
        self.tails.extend([from, to]);
        self.residual.extend([capacity, 0]);
        self.costs.extend([cost, -cost]);
        self.tails.len() - 2
    }

    /// Two parallel edges: the units of the floor earn, the rest up to the cap do not.
    fn add_bounded(&mut self, from: usize, to: usize, bound: Bound) {
        let floor = bound.floor.min(bound.cap);
        self.add(from, to, floor, -1);
        self.add(from, to, bound.cap - floor, 0);
    }

    /// Send `units` from `from` to `to` at least cost, path by path.
    fn send(&mut self, from: usize, to: usize, mut units: u64) {
        while units > 0 {
            let Some((_, path)) = self.cheapest_path(from, to) else { return };
            let narrowest = path.iter().map(|&edge| self.residual[edge]).min().unwrap_or(0);
            let amount = narrowest.min(units);
            self.push(&path, amount);
            units -= amount;
        }
    }

    fn push(&mut self, path: &[usize], amount: u64) {
        for &edge in path {
            self.residual[edge] -= amount;
            self.residual[edge ^ 1] += amount;
        }
    }

    /// The cheapest path with capacity left on every edge, by Bellman and Ford: the network is small, and
    /// costs may be negative.
    fn cheapest_path(&self, from: usize, to: usize) -> Option<(i64, Vec<usize>)> {
        let mut distance = vec![i64::MAX; self.nodes];
        let mut arrived_by = vec![usize::MAX; self.nodes];
        distance[from] = 0;
        let mut changed = true;
        while changed {
            changed = false;
            for edge in 0..self.tails.len() {
                let (tail, head) = (self.tails[edge], self.tails[edge ^ 1]);
                if self.residual[edge] == 0 || distance[tail] == i64::MAX {
                    continue;
                }
                let through = distance[tail] + self.costs[edge];
                if through < distance[head] {
                    distance[head] = through;
                    arrived_by[head] = edge;
                    changed = true;
                }
            }
        }
        if distance[to] == i64::MAX {
            return None;
        }
        let mut path = Vec::new();
        let mut node = to;
        while node != from {
            path.push(arrived_by[node]);
            node = self.tails[arrived_by[node]];
        }
        Some((distance[to], path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROWS: usize = 2;
    const COLUMNS: usize = 3;

    /// The reference implementation: the best (units, floors met) over every matrix from `taken` to `available`.
    fn best(
        count: u64,
        taken: &[u64],
        available: &[u64],
        rows: &[Bound],
        columns: &[Bound],
    ) -> Option<(u64, u64)> {
        let mut matrix = taken.to_vec();
        let mut best = None;
        loop {
            let group = |cells: Vec<u64>, bound: &Bound| {
                let units = cells.iter().sum::<u64>();
                (units <= bound.cap).then_some(units.min(bound.floor.min(bound.cap)))
            };
            let row = |r| (0..COLUMNS).map(|c| matrix[r * COLUMNS + c]).collect();
            let column = |c| (0..ROWS).map(|r| matrix[r * COLUMNS + c]).collect();
            let met: Option<u64> = (0..ROWS)
                .map(|r| group(row(r), &rows[r]))
                .chain((0..COLUMNS).map(|c| group(column(c), &columns[c])))
                .sum();
            let units = matrix.iter().sum::<u64>();
            if let Some(met) = met
                && units <= count
            {
                best = best.max(Some((units, met)));
            }
            let Some(cell) = (0..matrix.len()).find(|&cell| matrix[cell] < available[cell]) else {
                return best;
            };
            matrix[..cell].copy_from_slice(&taken[..cell]);
            matrix[cell] += 1;
        }
    }

    fn bounds(groups: usize) -> impl Strategy<Value = Vec<Bound>> {
        let bound = (0_u64..4, prop_oneof![0_u64..6, Just(u64::MAX)])
            .prop_map(|(floor, cap)| Bound { floor, cap });
        proptest::collection::vec(bound, groups)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        /// A unit is given exactly if what can be reached afterwards is as good as before.
        #[test]
        fn takes_and_losses_agree_with_every_completion(
            count in 0_u64..12,
            mut available in proptest::collection::vec(0_u64..3, ROWS * COLUMNS),
            rows in bounds(ROWS),
            columns in bounds(COLUMNS),
            steps in proptest::collection::vec((0..ROWS * COLUMNS, any::<bool>()), 0..16),
        ) {
            let mut plan = Plan::new(count, &available, &rows, &columns);
            let mut taken = vec![0; ROWS * COLUMNS];
            let mut goal = best(count, &taken, &available, &rows, &columns);
            prop_assert_eq!(Some(plan.reach()), goal.map(|(units, _)| units));
            for (pair, lost) in steps {
                if taken[pair] == available[pair] {
                    prop_assert!(!plan.take(pair));
                } else if lost {
                    available[pair] -= 1;
                    let after = best(count, &taken, &available, &rows, &columns);
                    prop_assert_eq!(plan.lose(pair), after != goal);
                    goal = after;
                } else {
                    taken[pair] += 1;
                    let fits = best(count, &taken, &available, &rows, &columns) == goal;
                    prop_assert_eq!(plan.admits(pair), fits);
                    prop_assert_eq!(plan.take(pair), fits);
                    taken[pair] -= u64::from(!fits);
                }
                prop_assert_eq!(Some(plan.reach()), goal.map(|(units, _)| units));
            }
        }
    }

    #[test]
    fn the_last_unit_of_a_capped_source_is_kept_for_the_modality_that_needs_it() {
        // Rows image, text; columns a, b; one image and one text in a, one image in b; both images
        // and a are capped at one, so the only pair of two is (text, a) and (image, b).
        let capped = Bound { floor: 0, cap: 1 };
        let free = Bound { floor: 0, cap: u64::MAX };
        let mut plan = Plan::new(2, &[1, 1, 1, 0], &[capped, free], &[capped, free]);
        assert_eq!(plan.reach(), 2);
        assert!(!plan.take(0));
        assert!(plan.take(1));
        assert!(plan.take(2));
    }
}
