//! Differences of colour, as multiples of what makes pictures different.
//!
//! Chroma comes at a quarter of the sides, each value a mean of about 8 by 8 pixels. Of each channel the
//! difference of the medians is taken out as far as it may be the tint of a whole picture, at most 12 of
//! 255 ([`TINT`]), and one gain between 0.5 and 1.6, which is saturation. One coloured spot on a grey page
//! says nothing of saturation, so that a gain is taken out only where an eighth of the values are
//! coloured ([`SPREAD`]). What remains, the residual, is looked at in two ways:
//!
//! - An *area* is displaced: the largest mean of 3 by 3 values, of either sign, against the noise of the
//!   pair. A palette displaces most areas a little and a few colours much, so that the limit is
//!   [`AREA`] and [`NOISE`] times what nine tenths of the residuals stay below, [`AREA_MOST`] at most. Where
//!   the rest of a picture is the same, a difference of a third of that is seen. Means forgive what
//!   palettes and resampling do to an edge.
//! - The *whole* is recoloured, which in a picture of faint colours displaces no area so far: the
//!   residuals have [`WHOLE`] or more as the root of their mean square, and [`UNEXPLAINED`] of the square
//!   of all that is coloured.
//!
//! Where one picture is grey and the other is not, no gain explains that: a distance of [`COLOURED`] from
//! grey counts.

use super::predict::middle_bin;
use super::warp::{Alignment, Area, cut, warp};
use crate::image::Pixels;

/// Largest distance from grey, of 255, up to which a picture is grey: what compression does to one.
const GREY: f32 = 4.0;

/// Largest difference of medians that is a tint: paper that yellowed, another white balance. Without a
/// limit all pictures of a single colour were copies of each other.
const TINT: f32 = 12.0;

/// One in so many values is coloured at least where saturation is known.
const SPREAD: usize = 8;

/// See the top of the file.
const AREA: f32 = 10.0;
const NOISE: f32 = 6.0;
const AREA_MOST: f32 = 26.0;
const WHOLE: f64 = 3.0;
const UNEXPLAINED: f64 = 0.25;
const COLOURED: f32 = 16.0;

/// How far `b` differs from `a` aligned with it, from 1 on another picture; none where both are grey.
pub(super) fn difference(
    a: &[Pixels; 2],
    b: &[Pixels; 2],
    alignment: Option<Alignment>,
) -> Option<f32> {
    let pairs: Vec<[Pixels; 2]> = a.iter().zip(b).map(|(a, b)| aligned(a, b, alignment)).collect();
    let saturation = |side: usize| {
        let distance = |pair: &[Pixels; 2]| pair[side].data.iter().map(|v| v.abs_diff(128)).max();
        f32::from(pairs.iter().filter_map(distance).max().unwrap_or(0))
    };
    match [saturation(0) < GREY, saturation(1) < GREY] {
        [true, true] => None,
        [false, false] => {
            let residuals: Vec<Residual> = pairs.iter().map(Residual::new).collect();
            let area = residuals.iter().map(Residual::largest_mean).fold(0.0, f32::max);
            let noise = residuals.iter().map(Residual::noise).fold(0.0, f32::max);
            Some((area / (AREA + NOISE * noise).min(AREA_MOST)).max(recoloured(&residuals)))
        }
        [first, _] => {
            let coloured = usize::from(first);
            let most = pairs.iter().map(|pair| deviation(&pair[coloured])).fold(0.0, f32::max);
            Some(most / COLOURED)
        }
    }
}

/// The whole, see the top of the file: both conditions hold from 1 on.
fn recoloured(residuals: &[Residual]) -> f32 {
    let sum = |of: fn(&Residual) -> f64| residuals.iter().map(of).sum::<f64>();
    let (left, all) = (sum(|r| r.squares), sum(|r| r.target_squares));
    let cells = residuals.first().map_or(1, |r| r.values.len().max(1)) as f64;
    let unexplained = (left / all.max(1.0) / UNEXPLAINED).sqrt();
    ((left / cells).sqrt() / WHOLE).min(unexplained) as f32
}

fn aligned(a: &Pixels, b: &Pixels, alignment: Option<Alignment>) -> [Pixels; 2] {
    let warped = alignment.and_then(|alignment| warp(a, alignment, 1, 1));
    match warped {
        Some((a, area)) => [a, cut(b, &area as &Area)],
        None => [a.clone(), b.clone()],
    }
}

fn median(plane: &Pixels) -> f32 {
    let mut counts = [0_usize; 256];
    plane.data.iter().for_each(|&value| counts[usize::from(value)] += 1);
    middle_bin(&counts) as f32
}

/// The largest distance from grey, less a tint.
fn deviation(plane: &Pixels) -> f32 {
    let tinted = 128.0 + (median(plane) - 128.0).clamp(-TINT, TINT);
    plane.data.iter().map(|&value| (f32::from(value) - tinted).abs()).fold(0.0, f32::max)
}

/// What is left of a channel when tint and gain are taken out.
struct Residual {
    width: usize,
    values: Vec<f32>,
    squares: f64,
    /// Of the second picture, around its median.
    target_squares: f64,
}

impl Residual {
    fn new([a, b]: &[Pixels; 2]) -> Self {
        let a_median = median(a);
        let b_median = a_median + (median(b) - a_median).clamp(-TINT, TINT);
        let pairs = || {
            let centred = |(&a, &b): (&u8, &u8)| (f32::from(a) - a_median, f32::from(b) - b_median);
            a.data.iter().zip(&b.data).map(centred)
        };
        // Values are integers of at most 255: the sums are exact.
        let sum = |of: fn(f32, f32) -> f32| pairs().map(|(x, y)| f64::from(of(x, y))).sum::<f64>();
        let (squares, products) = (sum(|x, _| x * x), sum(|x, y| x * y));
        let coloured = pairs().filter(|(x, _)| x.abs() >= GREY).count();
        let known = coloured * SPREAD >= a.data.len();
        let gain = if known { (products / squares).clamp(0.5, 1.6) as f32 } else { 1.0 };
        let values: Vec<f32> = pairs().map(|(x, y)| y - gain * x).collect();
        let squares = values.iter().map(|&value| f64::from(value * value)).sum();
        Self { width: a.width, values, squares, target_squares: sum(|_, y| y * y) }
    }

    /// What nine tenths of the residuals do not exceed.
    fn noise(&self) -> f32 {
        let mut sizes: Vec<f32> = self.values.iter().map(|value| value.abs()).collect();
        let place = 9 * (sizes.len() - 1) / 10;
        *sizes.select_nth_unstable_by(place, f32::total_cmp).1
    }

    /// The largest magnitude of a mean of 3 by 3 values; those beyond an edge are those at the edge.
    fn largest_mean(&self) -> f32 {
        let height = self.values.len() / self.width;
        let row = |y: usize| &self.values[y * self.width..][..self.width];
        let mut sums = vec![0.0; self.width];
        let mut largest = 0.0_f32;
        for y in 0..height {
            let lines = [row(y.saturating_sub(1)), row(y), row((y + 1).min(height - 1))];
            for (x, sum) in sums.iter_mut().enumerate() {
                *sum = lines[0][x] + lines[1][x] + lines[2][x];
            }
            for (x, sum) in sums.iter().enumerate() {
                let next = sums[(x + 1).min(self.width - 1)];
                largest = largest.max((sums[x.saturating_sub(1)] + sum + next).abs());
            }
        }
        largest / 9.0
    }
}
