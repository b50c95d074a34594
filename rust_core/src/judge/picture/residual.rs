//! The window in which a prediction is worst.
//!
//! The error of a window of 5 by 5 pixels is the root of the mean square of what remains, E. How much
//! re-encoding leaves there depends on the detail around: T is the deviation of the target in the 10 by 10
//! pixels around the window. The score is the largest `E / sqrt(6^2 + (0.1 T)^2)`.
//!
//! Sums are sums of few non-negative numbers or of integers: running sums of floats cancel.

use super::predict::Predictor;
use crate::image::Pixels;
use crate::vector::vectorised;

/// Pixels along a window of errors.
pub(super) const WINDOW: usize = 5;
/// Pixels from one window to the next.
const STRIDE: usize = 3;
/// Pixels along a window of detail.
const AROUND: usize = 10;
/// Squared error that compression leaves everywhere.
const FLOOR: f32 = 36.0;
/// The part of the variance around that is forgiven.
const FORGIVEN: f32 = 0.01;

/// The worst window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Worst {
    pub(super) score: f32,
    /// Its first column and row.
    pub(super) place: [usize; 2],
}

/// How well `predictor` explains `target`, of the same size, at least 8 by 8.
pub(super) fn explain(predictor: &Predictor, target: &Pixels) -> Worst {
    let coefficients = predictor.fit(target);
    let squares = predictor.residual(target, coefficients);
    worst_window(&squares, target)
}

fn worst_window(squares: &[f32], target: &Pixels) -> Worst {
    let (width, height) = (target.width, target.height);
    let mut worst = (0.0, [0, 0]);
    let mut errors = vec![0.0; width];
    let mut sums = vec![[0_u32; 2]; width];
    for top in starts(height) {
        let rows = squares[top * width..(top + WINDOW) * width].chunks_exact(width);
        errors.fill(0.0);
        rows.for_each(|row| add(row, &mut errors));
        let around = around(top, height);
        sums.fill([0; 2]);
        let rows = target.data[around.start * width..around.end * width].chunks_exact(width);
        rows.for_each(|row| add_moments(row, &mut sums));
        // Sums of all columns before each one.
        let mut before = Vec::with_capacity(width + 1);
        before.push([0_u32; 2]);
        for &[sum, square] in &sums {
            let [s, q] = before[before.len() - 1];
            before.push([s + sum, q + square]);
        }
        for left in starts(width) {
            let error: f32 = errors[left..left + WINDOW].iter().sum();
            let columns = self::around(left, width);
            let count = (columns.len() * around.len()) as f32;
            let (start, end) = (before[columns.start], before[columns.end]);
            let (sum, square) = (u64::from(end[0] - start[0]), u64::from(end[1] - start[1]));
            // n sum(t^2) - sum(t)^2 is an integer, never negative.
            let spread = (columns.len() * around.len()) as u64 * square - sum * sum;
            let variance = spread as f32 / (count * count);
            let mean = error / (WINDOW * WINDOW) as f32;
            let score = mean / (FLOOR + FORGIVEN * variance);
            if score > worst.0 {
                worst = (score, [left, top]);
            }
        }
    }
    Worst { score: worst.0.sqrt(), place: worst.1 }
}

/// Where windows begin along a side: every third pixel, and the last place of all.
fn starts(side: usize) -> impl Iterator<Item = usize> {
    let last = side - WINDOW;
    (0..last).step_by(STRIDE).chain([last])
}

/// The pixels around a window, as many as there are along a side.
fn around(start: usize, side: usize) -> std::ops::Range<usize> {
    let length = AROUND.min(side);
    let first = start.saturating_sub((AROUND - WINDOW) / 2).min(side - length);
    first..first + length
}

vectorised! {
    fn add(row: &[f32], sums: &mut [f32]) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += value;
        }
    }

    /// Values and squares.
    fn add_moments(row: &[u8], sums: &mut [[u32; 2]]) {
        for ([sum, square], &value) in sums.iter_mut().zip(row) {
            *sum += u32::from(value);
            *square += u32::from(value) * u32::from(value);
        }
    }
}
