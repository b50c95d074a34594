//! Disjoint sets, which collect media whose hashes are close, directly or through others. They only
//! propose: whether two samples are duplicates is decided pair by pair in [`find`](super::find).
//!
//! The root of a set is its smallest member, whatever the order of the unions.

/// A forest over the numbers from 0.
#[derive(Debug)]
pub struct UnionFind(Vec<u32>);

impl UnionFind {
    /// `n` sets of one.
    pub fn new(n: usize) -> Self {
        Self((0..n as u32).collect())
    }

    /// The smallest member of the set of `x`.
    pub fn root(&mut self, x: u32) -> u32 {
        let mut x = x;
        while self.0[x as usize] != x {
            let parent = self.0[x as usize];
            self.0[x as usize] = self.0[parent as usize]; // halve the path on the way
            x = parent;
        }
        x
    }

    /// Make one set of the sets of `a` and `b`.
    pub fn union(&mut self, a: u32, b: u32) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b) as usize] = a.min(b);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn roots_are_the_smallest_reachable(edges in prop::collection::vec((0_u32..30, 0_u32..30), 0..40)) {
            let mut forest = UnionFind::new(30);
            for &(a, b) in &edges {
                forest.union(a, b);
            }
            // Naive: spread the smallest label along the edges until nothing changes.
            let mut labels: Vec<u32> = (0..30).collect();
            for _ in 0..30 {
                for &(a, b) in &edges {
                    let least = labels[a as usize].min(labels[b as usize]);
                    labels[a as usize] = least;
                    labels[b as usize] = least;
                }
            }
            let roots: Vec<u32> = (0..30).map(|x| forest.root(x)).collect();
            prop_assert_eq!(roots, labels);
        }
    }
}
