//! Gaussian blurs. Pixels beyond an edge are those at the edge.

use crate::vector::vectorised;

/// A plane of floats, row by row.
#[derive(Debug, Clone)]
pub(super) struct Field {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) data: Vec<f32>,
}

impl Field {
    pub(super) fn new(width: usize, height: usize, bytes: &[u8]) -> Self {
        Self { width, height, data: bytes.iter().map(|&value| f32::from(value)).collect() }
    }

    pub(super) fn row(&self, y: usize) -> &[f32] {
        &self.data[y * self.width..][..self.width]
    }

    /// The rows above and below `y`; at an edge, the row itself.
    pub(super) fn around(&self, y: usize) -> [&[f32]; 2] {
        [self.row(y.saturating_sub(1)), self.row((y + 1).min(self.height - 1))]
    }

    /// The same, blurred by a Gaussian of this deviation in pixels, cut off at three deviations.
    pub(super) fn blurred(&self, deviation: f64) -> Self {
        let weights = kernel(deviation);
        let radius = weights.len() / 2;
        let (width, height) = (self.width, self.height);
        let mut across = vec![0.0; width * height];
        let mut padded = vec![0.0; width + 2 * radius];
        for (line, out) in self.data.chunks_exact(width).zip(across.chunks_exact_mut(width)) {
            pad(line, radius, &mut padded);
            let shifted: Vec<&[f32]> =
                (0..weights.len()).map(|at| &padded[at..][..width]).collect();
            weighted_sum(&shifted, &weights, out);
        }
        let mut data = vec![0.0; width * height];
        for (y, out) in data.chunks_exact_mut(width).enumerate() {
            let row = |at: usize| (y + at).saturating_sub(radius).min(height - 1);
            let rows: Vec<&[f32]> =
                (0..weights.len()).map(|at| &across[row(at) * width..][..width]).collect();
            weighted_sum(&rows, &weights, out);
        }
        Self { width, height, data }
    }
}

/// Copy `line` between `radius` repetitions of its ends.
pub(super) fn pad(line: &[f32], radius: usize, padded: &mut [f32]) {
    let (first, last) = (line[0], line[line.len() - 1]);
    padded[..radius].fill(first);
    padded[radius..radius + line.len()].copy_from_slice(line);
    padded[radius + line.len()..].fill(last);
}

/// Weights of sum 1.
fn kernel(deviation: f64) -> Vec<f32> {
    let radius = (3.0 * deviation).ceil() as i32;
    let weight = |at: i32| (-0.5 * (f64::from(at) / deviation).powi(2)).exp();
    let sum: f64 = (-radius..=radius).map(weight).sum();
    (-radius..=radius).map(|at| (weight(at) / sum) as f32).collect()
}

/// Floats that are added up in registers.
const STRETCH: usize = 32;

vectorised! {
    /// The sum of `lines`, each times its weight.
    fn weighted_sum(lines: &[&[f32]], weights: &[f32], out: &mut [f32]) {
        let whole = out.len() / STRETCH * STRETCH;
        for start in (0..whole).step_by(STRETCH) {
            let mut sums = [0.0_f32; STRETCH];
            for (line, &weight) in lines.iter().zip(weights) {
                for (sum, value) in sums.iter_mut().zip(&line[start..start + STRETCH]) {
                    *sum += weight * value;
                }
            }
            out[start..start + STRETCH].copy_from_slice(&sums);
        }
        for (at, out) in out.iter_mut().enumerate().skip(whole) {
            *out = 0.0;
            for (line, &weight) in lines.iter().zip(weights) {
                *out += weight * line[at];
            }
        }
    }
}
