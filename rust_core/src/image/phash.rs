//! The 64-bit perceptual hash of a picture, bit for bit that of the Python package `imagehash`.
//!
//! 1. Luma, resized to 32 by 32 with Lanczos.
//! 2. Discrete cosine transform (type II, not normalised) along both axes.
//! 3. Of it the 8 by 8 lowest frequencies; each is one bit: above their median or not.

use super::Pixels;
use super::resize::{Filter, resize};

const SIDE: usize = 32;
const LOW: usize = 8;

/// The hash of `grey` pixels; the first (lowest) frequency is the highest bit, row by row.
pub fn phash(grey: Pixels) -> u64 {
    let small = resize(grey, SIDE, SIDE, Filter::Lanczos);
    let low = low_frequencies(&small.data);
    let mut sorted = low;
    sorted.sort_unstable_by(f64::total_cmp);
    let median = f64::midpoint(sorted[LOW * LOW / 2 - 1], sorted[LOW * LOW / 2]);
    low.iter().fold(0, |hash, &value| hash << 1 | u64::from(value > median))
}

/// The 8 by 8 lowest frequencies of 32 by 32 values, row by row.
fn low_frequencies(values: &[u8]) -> [f64; LOW * LOW] {
    let basis = Basis::new();
    // Columns first, as scipy's transform of axis 0 followed by axis 1 does.
    let mut columns = [[0.0; LOW]; SIDE];
    for (x, column) in columns.iter_mut().enumerate() {
        let line: [f64; SIDE] = std::array::from_fn(|y| f64::from(values[y * SIDE + x]));
        *column = basis.transform(&line);
    }
    let mut low = [0.0; LOW * LOW];
    for (y, out) in low.chunks_exact_mut(LOW).enumerate() {
        out.copy_from_slice(&basis.transform(&columns.map(|column| column[y])));
    }
    low
}

/// Cosines of the transform, by how often the line is folded before they apply.
///
/// `y[k] = 2 sum_n x[n] cos(pi k (2n + 1) / 64)`. Folding a line in the middle, `x[n] ± x[31 - n]`,
/// separates even from odd k. It is done less for speed than for exactness: where symmetry makes a
/// frequency zero it comes out as exactly zero, as from scipy, and not as noise around a median of
/// zero.
struct Basis {
    odd: [[f64; 16]; 4],
    twice_odd: [[f64; 8]; 2],
    four: [f64; 4],
}

impl Basis {
    fn new() -> Self {
        let cosine = |k: usize, n: usize| {
            2.0 * (std::f64::consts::PI * (k * (2 * n + 1)) as f64 / 64.0).cos()
        };
        Self {
            odd: std::array::from_fn(|i| std::array::from_fn(|n| cosine(2 * i + 1, n))),
            twice_odd: std::array::from_fn(|i| std::array::from_fn(|n| cosine(4 * i + 2, n))),
            four: std::array::from_fn(|n| cosine(4, n)),
        }
    }

    fn transform(&self, line: &[f64; SIDE]) -> [f64; LOW] {
        let (sums, odd) = fold::<SIDE, 16>(line);
        let (sums, twice_odd) = fold::<16, 8>(&sums);
        let (sums, four) = fold::<8, 4>(&sums);
        let odd = self.odd.each_ref().map(|cosines| dot(cosines, &odd));
        let twice_odd = self.twice_odd.each_ref().map(|cosines| dot(cosines, &twice_odd));
        let zero = 2.0 * sums.iter().sum::<f64>();
        let four = dot(&self.four, &four);
        [zero, odd[0], twice_odd[0], odd[1], four, odd[2], twice_odd[1], odd[3]]
    }
}

fn fold<const N: usize, const HALF: usize>(line: &[f64; N]) -> ([f64; HALF], [f64; HALF]) {
    let sums = std::array::from_fn(|n| line[n] + line[N - 1 - n]);
    let differences = std::array::from_fn(|n| line[n] - line[N - 1 - n]);
    (sums, differences)
}

fn dot<const N: usize>(a: &[f64; N], b: &[f64; N]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, frequency by frequency.
    fn naive(values: &[u8], u: usize, v: usize) -> f64 {
        let cosine = |k: usize, n: usize| {
            2.0 * (std::f64::consts::PI * (k * (2 * n + 1)) as f64 / 64.0).cos()
        };
        let mut sum = 0.0;
        for y in 0..SIDE {
            for x in 0..SIDE {
                sum += f64::from(values[y * SIDE + x]) * cosine(u, y) * cosine(v, x);
            }
        }
        sum
    }

    proptest! {
        #[test]
        fn folded_transform_agrees_with_its_definition(
            values in prop::collection::vec(any::<u8>(), SIDE * SIDE),
        ) {
            for (at, fast) in low_frequencies(&values).iter().enumerate() {
                let exact = naive(&values, at / LOW, at % LOW);
                prop_assert!((fast - exact).abs() < 1e-6, "{at}: {fast} {exact}");
            }
        }
    }

    #[test]
    fn a_flat_picture_has_one_frequency() {
        let flat = Pixels { width: 50, height: 40, channels: 1, data: vec![77; 2000] };
        assert_eq!(phash(flat), 1 << 63);
    }
}
