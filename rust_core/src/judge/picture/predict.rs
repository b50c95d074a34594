//! One picture predicted from another by what re-encoding, scaling and filters do.
//!
//! `b ~ c0 a + c1 g1 + c2 g2 + c3 g3 + c4 dx g1 + c5 dy g1 + c6 dx g2 + c7 dy g2 + c8`, where g1, g2 and
//! g3 are `a` blurred by Gaussians of 0.8, 1.6 and 3.2 pixels and dx, dy central differences. The
//! coefficients are those of weighted least squares with a small ridge towards `b = a`. In each of three
//! rounds a pixel whose residual r is large against the median of all loses weight,
//! `1 / (1 + (r / 3s)^2)` with `s = 1.5 median |r| + 1.5` (Cauchy's weight function).

use super::blur::{Field, pad};
use super::solve::{BLOCK, Products, solve};
use crate::image::Pixels;
use crate::vector::vectorised;

/// Number of coefficients, the constant among them.
const TERMS: usize = 9;
/// Pictures of more pixels than this are fitted by every second pixel of every second row.
const ALL_PIXELS: usize = 60_000;
const ROUNDS: usize = 3;
/// Of the ridge, for each pixel.
const RIDGE: f64 = 0.02;
/// Sums of pixels are made around the middle of their range, which loses no digits.
const MIDDLE: f32 = 128.0;

/// A picture with its blurs, from which others are predicted.
pub(super) struct Predictor {
    picture: Field,
    /// By 0.8, 1.6 and 3.2 pixels.
    blurs: [Field; 3],
}

/// Memory for the differences of a row.
struct Lines {
    padded: Vec<f32>,
    differences: [Vec<f32>; 4],
}

/// Coefficients by which one picture is predicted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Coefficients([f32; TERMS]);

impl Predictor {
    pub(super) fn new(picture: &Pixels) -> Self {
        let picture = Field::new(picture.width, picture.height, &picture.data);
        // Blurs add up: the squares of their deviations do.
        let first = picture.blurred(0.8);
        let second = first.blurred(0.8 * 3.0_f64.sqrt());
        let third = second.blurred(1.6 * 3.0_f64.sqrt());
        Self { picture, blurs: [first, second, third] }
    }

    /// The terms of row `y` but the constant; differences are made in `lines`.
    fn terms<'a>(&'a self, y: usize, lines: &'a mut Lines) -> [&'a [f32]; TERMS - 1] {
        for (pair, field) in lines.differences.chunks_exact_mut(2).zip(&self.blurs) {
            pad(field.row(y), 1, &mut lines.padded);
            half_difference(&lines.padded, &lines.padded[2..], &mut pair[0]);
            let [above, below] = field.around(y);
            half_difference(above, below, &mut pair[1]);
        }
        let [x1, y1, x2, y2] = &lines.differences;
        let [first, second, third] = self.blurs.each_ref().map(|blur| blur.row(y));
        [self.picture.row(y), first, second, third, x1, y1, x2, y2]
    }

    fn lines(&self) -> Lines {
        let width = self.picture.width;
        Lines {
            padded: vec![0.0; width + 2],
            differences: std::array::from_fn(|_| vec![0.0; width]),
        }
    }

    /// The coefficients that predict `target`, of the same size.
    pub(super) fn fit(&self, target: &Pixels) -> Coefficients {
        let samples = self.samples(target);
        let mut weights = vec![1.0_f32; samples.target.len()];
        let mut fitted = [0.0; TERMS];
        for round in 0..ROUNDS {
            let Some(found) = samples.least_squares(&weights) else {
                return samples.offset_alone();
            };
            fitted = found;
            if round + 1 < ROUNDS {
                samples.reweigh(&fitted, &mut weights);
            }
        }
        samples.accepted(fitted).unwrap_or_else(|| samples.offset_alone())
    }

    fn samples(&self, target: &Pixels) -> Samples {
        let step = if self.picture.data.len() <= ALL_PIXELS { 1 } else { 2 };
        let mut samples = Samples { terms: Default::default(), target: Vec::new() };
        let mut lines = self.lines();
        for y in (0..self.picture.height).step_by(step) {
            let lines = self.terms(y, &mut lines);
            for (at, (term, line)) in samples.terms.iter_mut().zip(lines).enumerate() {
                let middle = if at < 4 { MIDDLE } else { 0.0 };
                term.extend(line.iter().step_by(step).map(|value| value - middle));
            }
            let row = &target.data[y * target.width..][..target.width];
            samples.target.extend(row.iter().step_by(step).map(|&v| f32::from(v) - MIDDLE));
        }
        samples
    }

    /// The squares of what remains of `target`, row by row.
    pub(super) fn residual(&self, target: &Pixels, coefficients: Coefficients) -> Vec<f32> {
        let mut squares = vec![0.0; target.data.len()];
        let mut lines = self.lines();
        for (y, out) in squares.chunks_exact_mut(target.width).enumerate() {
            let row = &target.data[y * target.width..][..target.width];
            square_residual(&self.terms(y, &mut lines), &coefficients.0, row, out);
        }
        squares
    }
}

/// The pixels that are fitted, around [`MIDDLE`].
struct Samples {
    terms: [Vec<f32>; TERMS - 1],
    target: Vec<f32>,
}

impl Samples {
    /// Coefficients around [`MIDDLE`].
    fn least_squares(&self, weights: &[f32]) -> Option<[f64; TERMS]> {
        let mut products = Products::<{ TERMS + 1 }>::new();
        let ones = [1.0; BLOCK];
        let length = self.target.len();
        for start in (0..length).step_by(BLOCK) {
            let place = start..(start + BLOCK).min(length);
            let columns = std::array::from_fn(|term| match term {
                0..8 => &self.terms[term][place.clone()],
                8 => &ones[..place.len()],
                _ => &self.target[place.clone()],
            });
            products.add(&columns, &weights[place]);
        }
        let (mut matrix, mut right) = products.equations::<TERMS>();
        let ridge = RIDGE * length as f64;
        (0..TERMS - 1).for_each(|term| matrix[term][term] += ridge);
        right[0] += ridge;
        solve(matrix, right)
    }

    fn reweigh(&self, fitted: &[f64; TERMS], weights: &mut [f32]) {
        let terms: [&[f32]; TERMS - 1] = std::array::from_fn(|term| &self.terms[term][..]);
        residuals(&terms, &fitted.map(|value| value as f32), &self.target, weights);
        reweigh(1.5, weights);
    }

    /// The coefficients, unless they explain too much: from a gain near 0 or a large offset anything
    /// flat is predicted.
    fn accepted(&self, fitted: [f64; TERMS]) -> Option<Coefficients> {
        let gain: f64 = fitted[..4].iter().sum();
        let mean = |values: &[f32]| {
            let sum: f64 = values.iter().map(|&value| f64::from(value)).sum();
            sum / values.len().max(1) as f64
        };
        let means: Vec<f64> = self.terms.iter().map(|term| mean(term)).collect();
        let predicted: f64 = means.iter().zip(&fitted).map(|(mean, c)| mean * c).sum();
        let moved = (predicted + fitted[TERMS - 1] - means[0]).abs();
        let plausible = (0.6..=1.7).contains(&gain) && moved <= 48.0;
        plausible.then(|| {
            let mut coefficients = fitted.map(|value| value as f32);
            let constant = fitted[TERMS - 1] + f64::from(MIDDLE) * (1.0 - gain);
            coefficients[TERMS - 1] = constant as f32;
            Coefficients(coefficients)
        })
    }

    /// The picture itself, brighter or darker by at most 32.
    fn offset_alone(&self) -> Coefficients {
        let mut counts = [0_usize; 511];
        for (target, source) in self.target.iter().zip(&self.terms[0]) {
            counts[(target - source + 255.0) as usize] += 1;
        }
        let offset = middle_bin(&counts) as f32 - 255.0;
        let mut coefficients = [0.0; TERMS];
        coefficients[0] = 1.0;
        coefficients[TERMS - 1] = offset.clamp(-32.0, 32.0);
        Coefficients(coefficients)
    }
}

/// Cauchy's weights of residuals, in their place; `least` is a residual that is always good.
pub(super) fn reweigh(least: f32, residuals: &mut [f32]) {
    let scale = 3.0 * (1.5 * median_magnitude(residuals) + least);
    cauchy_weights(scale, residuals);
}

/// Parts of one unit in which medians are found.
const BINS_A_UNIT: f32 = 16.0;

/// The median of the magnitudes, to a sixteenth.
fn median_magnitude(values: &[f32]) -> f32 {
    let mut counts = vec![0_usize; 512 * BINS_A_UNIT as usize];
    let last = counts.len() - 1;
    for value in values {
        counts[((value.abs() * BINS_A_UNIT) as usize).min(last)] += 1;
    }
    (middle_bin(&counts) as f32 + 0.5) / BINS_A_UNIT
}

/// The bin with the element in the middle.
pub(super) fn middle_bin(counts: &[usize]) -> usize {
    let total: usize = counts.iter().sum();
    let mut below = 0;
    counts
        .iter()
        .position(|&count| {
            below += count;
            2 * below >= total
        })
        .unwrap_or(0)
}

vectorised! {
    fn half_difference(first: &[f32], second: &[f32], out: &mut [f32]) {
        for ((out, a), b) in out.iter_mut().zip(first).zip(second) {
            *out = 0.5 * (b - a);
        }
    }

    fn square_residual(
        terms: &[&[f32]; TERMS - 1],
        coefficients: &[f32; TERMS],
        target: &[u8],
        out: &mut [f32],
    ) {
        let length = out.len();
        let [a, g1, g2, g3, x1, y1, x2, y2] = std::array::from_fn(|term| &terms[term][..length]);
        let [c0, c1, c2, c3, c4, c5, c6, c7, c8] = *coefficients;
        let target = &target[..length];
        for (at, out) in out.iter_mut().enumerate() {
            let smooth = c8 + c0 * a[at] + c1 * g1[at] + c2 * g2[at] + c3 * g3[at];
            let edges = c4 * x1[at] + c5 * y1[at] + c6 * x2[at] + c7 * y2[at];
            let residual = f32::from(target[at]) - (smooth + edges).clamp(0.0, 255.0);
            *out = residual * residual;
        }
    }

    fn residuals(
        terms: &[&[f32]; TERMS - 1],
        coefficients: &[f32; TERMS],
        target: &[f32],
        out: &mut [f32],
    ) {
        let length = out.len();
        let [a, g1, g2, g3, x1, y1, x2, y2] = std::array::from_fn(|term| &terms[term][..length]);
        let [c0, c1, c2, c3, c4, c5, c6, c7, c8] = *coefficients;
        let target = &target[..length];
        for (at, out) in out.iter_mut().enumerate() {
            let smooth = c8 + c0 * a[at] + c1 * g1[at] + c2 * g2[at] + c3 * g3[at];
            let edges = c4 * x1[at] + c5 * y1[at] + c6 * x2[at] + c7 * y2[at];
            *out = target[at] - smooth - edges;
        }
    }

    /// Residuals in, weights out.
    fn cauchy_weights(scale: f32, values: &mut [f32]) {
        for value in values {
            let relative = *value / scale;
            *value = 1.0 / (1.0 + relative * relative);
        }
    }
}
