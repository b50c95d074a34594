//! One picture predicted from another by what re-encoding, scaling and filters do.
//!
//! `b ~ c0 a + c1 g1 + c2 g2 + c3 g3 + c4 dx g1 + c5 dy g1 + c6 dx g2 + c7 dy g2 + c8`, where g1, g2 and
//! g3 are `a` blurred by Gaussians of 0.8, 1.6 and 3.2 pixels and dx, dy central differences. The
//! coefficients are those of weighted least squares with a small ridge towards `b = a`. In each of three
//! rounds a pixel whose residual r is large against the median of all loses weight,
//! `1 / (1 + (r / 3s)^2)` with `s = 1.5 median |r| + 1.5` (Cauchy's weight function).

use super::blur::{Field, pad};
use super::solve::solve;
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

    /// The terms of row `y` but the constant, each into a line of `terms`.
    fn terms(&self, y: usize, padded: &mut Vec<f32>, terms: &mut [Vec<f32>; TERMS - 1]) {
        let fields = [&self.picture, &self.blurs[0], &self.blurs[1], &self.blurs[2]];
        let (plain, differences) = terms.split_at_mut(4);
        for (term, field) in plain.iter_mut().zip(fields) {
            term.copy_from_slice(field.row(y));
        }
        padded.resize(self.picture.width + 2, 0.0);
        for (pair, field) in differences.chunks_exact_mut(2).zip(&self.blurs) {
            pad(field.row(y), 1, padded);
            half_difference(padded, &padded[2..], &mut pair[0]);
            let [above, below] = field.around(y);
            half_difference(above, below, &mut pair[1]);
        }
    }

    fn lines(&self) -> [Vec<f32>; TERMS - 1] {
        std::array::from_fn(|_| vec![0.0; self.picture.width])
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
        let (mut lines, mut padded) = (self.lines(), Vec::new());
        for y in (0..self.picture.height).step_by(step) {
            self.terms(y, &mut padded, &mut lines);
            for (at, (term, line)) in samples.terms.iter_mut().zip(&lines).enumerate() {
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
        let (mut lines, mut padded) = (self.lines(), Vec::new());
        for (y, out) in squares.chunks_exact_mut(target.width).enumerate() {
            self.terms(y, &mut padded, &mut lines);
            let row = &target.data[y * target.width..][..target.width];
            square_residual(&lines, &coefficients.0, row, out);
        }
        squares
    }
}

/// The pixels that are fitted, around [`MIDDLE`].
struct Samples {
    terms: [Vec<f32>; TERMS - 1],
    target: Vec<f32>,
}

/// Products of two of nine terms and a target.
const PRODUCTS: usize = TERMS * (TERMS + 3) / 2;

impl Samples {
    /// Coefficients around [`MIDDLE`].
    fn least_squares(&self, weights: &[f32]) -> Option<[f64; TERMS]> {
        let mut sums = [0.0; PRODUCTS];
        let ones = [1.0; BLOCK];
        let length = self.target.len();
        for start in (0..length).step_by(BLOCK) {
            let place = start..(start + BLOCK).min(length);
            let columns: [&[f32]; TERMS + 1] = std::array::from_fn(|term| match term {
                0..8 => &self.terms[term][place.clone()],
                8 => &ones[..place.len()],
                _ => &self.target[place.clone()],
            });
            add_products(&columns, &weights[place], &mut sums);
        }
        let mut products = sums.into_iter();
        let mut matrix = [[0.0; TERMS]; TERMS];
        let mut right = [0.0; TERMS];
        for row in 0..TERMS {
            for column in row..TERMS {
                matrix[row][column] = products.next()?;
                matrix[column][row] = matrix[row][column];
            }
            right[row] = products.next()?;
        }
        let ridge = RIDGE * length as f64;
        (0..TERMS - 1).for_each(|term| matrix[term][term] += ridge);
        right[0] += ridge;
        solve(matrix, right)
    }

    fn reweigh(&self, fitted: &[f64; TERMS], weights: &mut [f32]) {
        let terms: [&[f32]; TERMS - 1] = std::array::from_fn(|term| &self.terms[term][..]);
        residuals(&terms, &fitted.map(|value| value as f32), &self.target, weights);
        let scale = 3.0 * (1.5 * median_magnitude(weights) + 1.5);
        cauchy_weights(scale, weights);
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

/// Parts of one unit in which medians are found.
const BINS_A_UNIT: f32 = 16.0;

/// The median of the magnitudes, to a sixteenth.
pub(super) fn median_magnitude(values: &[f32]) -> f32 {
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

/// Pixels of which products are added up before they go to longer sums.
const BLOCK: usize = 512;
const LANES: usize = 16;

vectorised! {
    fn half_difference(first: &[f32], second: &[f32], out: &mut [f32]) {
        for ((out, a), b) in out.iter_mut().zip(first).zip(second) {
            *out = 0.5 * (b - a);
        }
    }

    fn square_residual(
        terms: &[Vec<f32>; TERMS - 1],
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

    /// The weighted sums of products of all columns but the last with those from themselves on.
    fn add_products(columns: &[&[f32]; TERMS + 1], weights: &[f32], sums: &mut [f64; PRODUCTS]) {
        let length = weights.len();
        let whole = length / LANES * LANES;
        let mut weighed = [0.0_f32; BLOCK];
        let mut at = 0;
        for (first, column) in columns.iter().enumerate().take(TERMS) {
            for ((out, value), weight) in weighed.iter_mut().zip(*column).zip(weights) {
                *out = value * weight;
            }
            for other in &columns[first..] {
                let mut lanes = [0.0_f32; LANES];
                for start in (0..whole).step_by(LANES) {
                    let (a, b) = (&weighed[start..start + LANES], &other[start..start + LANES]);
                    for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
                        *lane += a * b;
                    }
                }
                let mut sum = 0.0;
                for lane in lanes {
                    sum += f64::from(lane);
                }
                for (a, b) in weighed[whole..length].iter().zip(&other[whole..length]) {
                    sum += f64::from(a * b);
                }
                sums[at] += sum;
                at += 1;
            }
        }
    }
}
