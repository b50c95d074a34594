//! The 64-bit perceptual hash of a picture, bit for bit that of the Python package `imagehash`.
//!
//! 1. Luma, resized to 32 by 32 with Lanczos.
//! 2. Discrete cosine transform (type II, not normalised) along both axes.
//! 3. Of it the 8 by 8 lowest frequencies; each is one bit: above their median or not.

use dct::transform;

use super::pixels::Pixels;
use super::resize::{Filter, resize};

mod dct;

/// Pixels of a side of what is transformed.
pub(super) const SIDE: usize = dct::LENGTH;

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
    // Columns first, as scipy's transform of axis 0 followed by axis 1 does.
    let mut rows = [[0.0; SIDE]; LOW];
    for x in 0..SIDE {
        let mut column: [f64; SIDE] = std::array::from_fn(|y| f64::from(values[y * SIDE + x]));
        transform(&mut column);
        for (row, frequency) in rows.iter_mut().zip(column) {
            row[x] = frequency;
        }
    }
    let mut low = [0.0; LOW * LOW];
    for (row, out) in rows.iter_mut().zip(low.as_chunks_mut::<LOW>().0) {
        transform(row);
        out.copy_from_slice(&row[..LOW]);
    }
    low
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
        fn transform_agrees_with_its_definition(
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
