//! Disjoint sets, which collect media whose hashes are close, directly or through others. They only
//! propose: whether two samples are duplicates is decided pair by pair in [`find`](super::find).
//!
//! The root of a set is its smallest member, whatever the order of the unions and whichever threads
//! make them: a root is only ever put below a smaller one, by one compare-and-swap.

use std::sync::atomic::{AtomicU32, Ordering};

/// A forest over the numbers from 0, which several threads may change at once.
#[derive(Debug)]
pub struct UnionFind(Vec<AtomicU32>);

impl UnionFind {
    /// `n` sets of one.
    pub fn new(n: usize) -> Self {
        Self((0..n as u32).map(AtomicU32::new).collect())
    }

    /// The smallest member of the set of `x`.
    pub fn root(&self, x: u32) -> u32 {
        let mut x = x;
        loop {
            let parent = self.parent(x);
            if parent == x {
                return x;
            }
            let above = self.parent(parent);
            if above != parent {
                // Halves the path on the way; a parent is always an ancestor, so nothing is lost where
                // another thread was faster.
                self.0[x as usize].store(above, Ordering::Relaxed);
            }
            x = above;
        }
    }

    /// Make one set of the sets of `a` and `b`.
    pub fn union(&self, a: u32, b: u32) {
        self.merged(a, b);
    }

    /// The same; whether they were two sets before.
    pub fn merged(&self, a: u32, b: u32) -> bool {
        let (mut a, mut b) = (a, b);
        loop {
            (a, b) = (self.root(a), self.root(b));
            if a == b {
                return false;
            }
            let (small, large) = (a.min(b), a.max(b));
            let linked = self.0[large as usize].compare_exchange(
                large,
                small,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            if linked.is_ok() {
                return true;
            }
        }
    }

    fn parent(&self, x: u32) -> u32 {
        self.0[x as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn roots_are_the_smallest_reachable(edges in prop::collection::vec((0_u32..30, 0_u32..30), 0..40)) {
            let forest = UnionFind::new(30);
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
