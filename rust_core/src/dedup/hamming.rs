//! All pairs of 64-bit hashes within a radius, joined.
//!
//! Cut the bits into m parts. Two hashes that differ in at most r bits agree in m - r parts at least
//! (the pigeonhole principle, as in multi-index hashing by Norouzi, Punjani and Fleet, 2014, but for
//! several parts at once). So the hashes are sorted by each choice of m - r parts, and only hashes of
//! one run are compared: with m = 6, r = 4 and ten million random hashes, runs of four.
//!
//! Real hashes are not random. In a long run, the bits that all members share are left out, and the rest
//! is the same problem again with fewer bits. Before that, neighbours in several orders are joined;
//! where the run is one set by then, nothing is left to find in it. So a neighbourhood of any size
//! costs little: its members are not compared with each other again and again.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rayon::prelude::*;

use super::union_find::UnionFind;
use crate::error::{Error, Result};
use crate::parallel::{Interrupt, with_threads};

/// A hash, and the number it belongs to.
pub type Hash = (u64, u32);

/// `(distance, smaller number, larger number)` of two hashes beyond the radius.
pub type Miss = (u32, u32, u32);

/// What a search found beside the sets.
#[derive(Debug)]
pub struct Near {
    /// Some pairs at most three bits beyond the radius, nearest first. They depend on the hashes alone.
    pub misses: Vec<Miss>,
    /// Hashes sorted and pairs compared, which varies with the threads where hashes crowd.
    pub steps: u64,
}

const MISS_BITS: u32 = 3;
const MISSES: usize = 256;
/// Runs up to this length are compared pair by pair.
const SHORT: usize = 32;
/// Runs from this length are divided among threads.
const SHARED: usize = 1 << 14;
/// What sorting costs, in comparisons, for each hash and each halving.
const SORTING: f64 = 3.0;
/// Sorts beyond which no other number of parts is considered.
const MOST_SORTS: f64 = 1e5;

/// Join the numbers of all hashes within `radius` of each other in `sets`, on the threads of the
/// current pool.
pub fn join_near(
    mut hashes: Vec<Hash>,
    radius: u32,
    sets: &UnionFind,
    interrupt: &Interrupt,
) -> Result<Near> {
    hashes.par_sort_unstable();
    // Those of one hash are joined here, and only the smallest goes on.
    hashes.dedup_by(|next, kept| {
        let same = next.0 == kept.0;
        if same {
            sets.union(next.1, kept.1);
        }
        same
    });
    let (nearest, steps) = (Nearest::default(), AtomicU64::default());
    let search = Search { radius, sets, interrupt, nearest, steps };
    search.divide(&mut hashes, 2)?;
    Ok(Near { misses: search.nearest.into_sorted(), steps: search.steps.into_inner() })
}

/// For each hash the place of the first one that it is connected with by hashes within `radius` of each
/// other.
pub fn near_hashes(
    hashes: &[u64],
    radius: u32,
    threads: usize,
    interrupt: &Interrupt,
) -> Result<Vec<u32>> {
    let places = u32::try_from(hashes.len())
        .map_err(|_| Error::invalid("hashes", hashes.len(), "fewer than 2^32"))?;
    with_threads(threads, || {
        let sets = UnionFind::new(hashes.len());
        join_near(hashes.iter().copied().zip(0..).collect(), radius, &sets, interrupt)?;
        Ok((0..places).map(|place| sets.root(place)).collect())
    })?
}

struct Search<'a> {
    radius: u32,
    sets: &'a UnionFind,
    interrupt: &'a Interrupt,
    nearest: Nearest,
    steps: AtomicU64,
}

impl Search<'_> {
    /// Join what is near in a run of distinct hashes.
    ///
    /// Whether a long run is divided depends on what other threads have joined by then, so misses are
    /// counted only above the first such decision: in the `counted` topmost levels.
    fn divide(&self, run: &mut [Hash], counted: u32) -> Result<()> {
        if run.len() <= SHORT {
            return self.compare(run, counted > 0);
        }
        self.interrupt.check()?;
        if counted == 0 && self.is_one_set(run) {
            return Ok(());
        }
        let bits = varying(run);
        self.join_neighbours(run, bits, counted > 0);
        if self.is_one_set(run) {
            return Ok(());
        }
        let counted = counted.saturating_sub(1);
        match Parts::of(bits, self.radius, run.len()) {
            Some(parts) => self.choose(run, &parts, 0, parts.equal, counted),
            None => self.compare(run, counted > 0),
        }
    }

    /// Divide the runs of `run` that agree in `equal` of the parts from `from` on, for each choice.
    fn choose(
        &self,
        run: &mut [Hash],
        parts: &Parts,
        from: usize,
        equal: usize,
        counted: u32,
    ) -> Result<()> {
        if counted == 0 && self.is_one_set(run) {
            return Ok(());
        }
        for next in from..=parts.masks.len() - equal {
            self.each_run(run, parts.masks[next], &|run: &mut [Hash]| {
                if run.len() <= SHORT || equal == 1 {
                    self.divide(run, counted)
                } else {
                    self.choose(run, parts, next + 1, equal - 1, counted)
                }
            })?;
        }
        Ok(())
    }

    /// `work` of every run of two and more hashes that agree in `mask`.
    fn each_run(
        &self,
        run: &mut [Hash],
        mask: u64,
        work: &(dyn Fn(&mut [Hash]) -> Result<()> + Sync),
    ) -> Result<()> {
        self.steps.fetch_add(run.len() as u64, Ordering::Relaxed);
        let agree = |a: &Hash, b: &Hash| (a.0 ^ b.0) & mask == 0;
        sort_by_bits(run, |hash| hash & mask);
        if run.len() < SHARED {
            run.chunk_by_mut(agree).filter(|run| run.len() > 1).try_for_each(work)
        } else {
            run.par_chunk_by_mut(agree).filter(|run| run.len() > 1).try_for_each(work)
        }
    }

    /// Join neighbours in orders that begin at different bits, as long as that joins many. In a crowd,
    /// this makes one set of nearly all, at the price of few sorts.
    fn join_neighbours(&self, run: &mut [Hash], bits: u64, counted: bool) {
        let orders = bits.count_ones().div_ceil(self.radius.max(1));
        let mut misses = Vec::new();
        for order in 0..orders {
            let turn = 64 * order / orders;
            sort_by_bits(run, |hash| hash.rotate_left(turn));
            self.steps.fetch_add(run.len() as u64, Ordering::Relaxed);
            let mut joined = 0;
            for (a, b) in run.iter().zip(&run[1..]) {
                let distance = (a.0 ^ b.0).count_ones();
                if distance <= self.radius {
                    joined += usize::from(self.sets.merged(a.1, b.1));
                } else if counted && order == 0 && distance <= self.radius + MISS_BITS {
                    misses.push(miss(distance, a.1, b.1));
                }
            }
            if joined < run.len() / 8 {
                break;
            }
        }
        self.nearest.add(misses);
    }

    /// Compare every two hashes of a run.
    fn compare(&self, run: &[Hash], counted: bool) -> Result<()> {
        self.steps.fetch_add((run.len() * (run.len() - 1) / 2) as u64, Ordering::Relaxed);
        let reach = if counted { self.nearest.reach(self.radius) } else { self.radius };
        let row = |at: usize| {
            let mut misses = Vec::new();
            let (hash, number) = run[at];
            for &(other_hash, other) in &run[at + 1..] {
                let distance = (hash ^ other_hash).count_ones();
                if distance <= self.radius {
                    self.sets.union(number, other);
                } else if distance <= reach {
                    misses.push(miss(distance, number, other));
                }
            }
            self.nearest.add(misses);
        };
        if run.len() <= SHORT {
            (0..run.len()).for_each(row);
            return Ok(());
        }
        (0..run.len()).into_par_iter().with_min_len(SHORT).try_for_each(|at| {
            self.interrupt.check()?;
            row(at);
            Ok(())
        })
    }

    fn is_one_set(&self, run: &[Hash]) -> bool {
        let root = self.sets.root(run[0].1);
        run.iter().all(|hash| self.sets.root(hash.1) == root)
    }
}

fn miss(distance: u32, a: u32, b: u32) -> Miss {
    (distance, a.min(b), a.max(b))
}

fn sort_by_bits(run: &mut [Hash], bits: impl Fn(u64) -> u64 + Sync) {
    if run.len() < SHARED {
        run.sort_unstable_by_key(|hash| bits(hash.0));
    } else {
        run.par_sort_unstable_by_key(|hash| bits(hash.0));
    }
}

/// The bits in which any two differ.
fn varying(run: &[Hash]) -> u64 {
    run.iter().fold(0, |bits, hash| bits | (hash.0 ^ run[0].0))
}

/// How bits are cut.
#[derive(Debug)]
struct Parts {
    /// The bits of each part.
    masks: Vec<u64>,
    /// How many of them two near hashes have in common, at least.
    equal: usize,
}

impl Parts {
    /// That with the least work, by an estimate for random hashes; none where it is least to compare
    /// every two.
    fn of(bits: u64, radius: u32, hashes: usize) -> Option<Self> {
        let (n, hashes) = (bits.count_ones(), hashes as f64);
        let sort = SORTING * hashes.log2();
        let mut least = hashes / 2.0;
        let mut best = None;
        let mut sorts = 1.0; // the choices of `radius` of `parts`
        for parts in radius + 1..=n {
            sorts *= f64::from(parts) / f64::from(parts - radius);
            if sorts > MOST_SORTS {
                break;
            }
            let equal = parts - radius;
            let run = hashes / f64::from(n * equal / parts).exp2();
            let cost = sorts * (sort + run / 2.0);
            if cost < least {
                (least, best) = (cost, Some((parts, equal)));
            }
        }
        let (parts, equal) = best?;
        Some(Self { masks: cut(bits, parts), equal: equal as usize })
    }
}

/// `parts` masks that share out the bits, of nearly equal size.
fn cut(bits: u64, parts: u32) -> Vec<u64> {
    let places: Vec<u32> = (0..64).filter(|place| bits >> place & 1 == 1).collect();
    let place = |part: u32| places.len() * part as usize / parts as usize;
    (0..parts)
        .map(|part| places[place(part)..place(part + 1)].iter().fold(0, |mask, p| mask | 1 << p))
        .collect()
}

/// The nearest misses so far.
#[derive(Debug)]
struct Nearest {
    found: Mutex<Vec<Miss>>,
    /// The largest distance that may still be among them.
    reach: AtomicU32,
}

impl Default for Nearest {
    fn default() -> Self {
        Self { found: Mutex::default(), reach: AtomicU32::new(u32::MAX) }
    }
}

impl Nearest {
    fn reach(&self, radius: u32) -> u32 {
        (radius + MISS_BITS).min(self.reach.load(Ordering::Relaxed))
    }

    fn add(&self, misses: Vec<Miss>) {
        if misses.is_empty() {
            return;
        }
        let Ok(mut found) = self.found.lock() else { return };
        found.extend(misses);
        if found.len() >= 16 * MISSES {
            keep_nearest(&mut found);
            if let Some(&(distance, ..)) = found.get(MISSES - 1) {
                self.reach.store(distance, Ordering::Relaxed);
            }
        }
    }

    fn into_sorted(self) -> Vec<Miss> {
        let mut found = self.found.into_inner().unwrap_or_default();
        keep_nearest(&mut found);
        found
    }
}

fn keep_nearest(misses: &mut Vec<Miss>) {
    misses.sort_unstable();
    misses.dedup();
    misses.truncate(MISSES);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Joined = (Vec<u32>, Near);

    fn joined(hashes: &[u64], radius: u32, threads: usize) -> Joined {
        let sets = UnionFind::new(hashes.len());
        let numbered = hashes.iter().copied().zip(0..).collect();
        let interrupt = Interrupt::default();
        let near = with_threads(threads, || join_near(numbered, radius, &sets, &interrupt));
        let near = near.expect("threads").expect("not interrupted");
        ((0..hashes.len() as u32).map(|x| sets.root(x)).collect(), near)
    }

    /// All pairs.
    fn naive(hashes: &[u64], radius: u32) -> Vec<u32> {
        let sets = UnionFind::new(hashes.len());
        for (a, hash) in hashes.iter().enumerate() {
            for (b, other) in hashes[..a].iter().enumerate() {
                if (hash ^ other).count_ones() <= radius {
                    sets.union(a as u32, b as u32);
                }
            }
        }
        (0..hashes.len() as u32).map(|x| sets.root(x)).collect()
    }

    fn check(hashes: &[u64], radius: u32) -> std::result::Result<(), TestCaseError> {
        let (sets, Near { misses, .. }) = joined(hashes, radius, 1);
        prop_assert_eq!(&sets, &naive(hashes, radius));
        for &(distance, a, b) in &misses {
            prop_assert_eq!(distance, (hashes[a as usize] ^ hashes[b as usize]).count_ones());
            prop_assert!((radius + 1..=radius + MISS_BITS).contains(&distance) && a < b);
        }
        let (again, near) = joined(hashes, radius, 3);
        prop_assert_eq!((again, near.misses), (sets, misses));
        Ok(())
    }

    /// `count` hashes that differ from one of the centres in up to `flips` of the bits.
    fn crowd(centres: &[u64], bits: u64, flips: u32, count: u64, seed: u64) -> Vec<u64> {
        let mut state = seed;
        let mut draw = move || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ mixed >> 31
        };
        let place = |number: u64| {
            let mut left = bits;
            for _ in 0..number % u64::from(bits.count_ones()) {
                left &= left - 1;
            }
            1 << left.trailing_zeros()
        };
        (0..count)
            .map(|row| {
                let centre = centres[(row % centres.len() as u64) as usize];
                (0..flips).fold(centre, |hash, _| hash ^ place(draw()))
            })
            .collect()
    }

    proptest! {
        #[test]
        fn every_near_pair_is_in_one_set(
            centres in prop::collection::vec(any::<u64>(), 1..6),
            bits in prop_oneof![
                Just(u64::MAX), Just(0xffff), Just(0x0101_0101_0101_0101), any::<u64>()
            ],
            flips in 0_u32..12,
            count in 1_u64..1500,
            seed in any::<u64>(),
            radius in 0_u32..17,
        ) {
            prop_assume!(bits != 0);
            check(&crowd(&centres, bits, flips, count, seed), radius)?;
        }

        #[test]
        fn hashes_of_few_bits_are_compared_as_all_others(
            bits in 1_u32..14, radius in 0_u32..6, seed in any::<u64>(),
        ) {
            let mut hashes: Vec<u64> = (0..1_u64 << bits.min(11)).collect();
            for hash in &mut hashes {
                *hash = hash.wrapping_mul(seed | 1) & (u64::MAX >> (64 - bits));
            }
            check(&hashes, radius)?;
        }
    }

    #[test]
    fn a_crowd_is_not_compared_with_itself_again_and_again() {
        for (flips, bits) in [(3, u64::MAX), (4, u64::MAX), (4, 0xffff_ffff), (64, 0x1_ffff)] {
            let hashes = crowd(&[0x1234_5678_9abc_def0], bits, flips, 100_000, 7);
            let (_, near) = joined(&hashes, 4, 2);
            assert!(near.steps < 300 * hashes.len() as u64, "{flips} of {bits:x}: {}", near.steps);
        }
    }

    #[test]
    fn parts_share_out_the_bits() {
        for bits in [u64::MAX, 0xff00_ff00, 0x8000_0000_0000_0001] {
            for radius in 0..16 {
                for hashes in [40, 100_000, 10_000_000] {
                    let Some(parts) = Parts::of(bits, radius, hashes) else { continue };
                    assert_eq!(parts.masks.len(), parts.equal + radius as usize);
                    assert_eq!(
                        parts.masks.iter().map(|m| m.count_ones()).sum::<u32>(),
                        bits.count_ones()
                    );
                    assert_eq!(parts.masks.iter().fold(0, |all, mask| all ^ mask), bits);
                }
            }
        }
    }

    #[test]
    fn an_interrupt_ends_the_search() {
        let interrupt = Interrupt::default();
        interrupt.raise();
        let hashes =
            (0..1000_u64).map(|x| x.wrapping_mul(0x9e37_79b9_7f4a_7c15)).zip(0..).collect();
        let stopped = join_near(hashes, 4, &UnionFind::new(1000), &interrupt);
        assert!(matches!(stopped, Err(crate::Error::Interrupted)));
    }
}
