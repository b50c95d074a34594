//! Weighted least squares of a few unknowns, and the linear equations they lead to.

use crate::vector::vectorised;

/// Values of a column that are added up before they go to longer sums.
pub(super) const BLOCK: usize = 512;
const LANES: usize = 16;

/// Sums of weighted products of any two of N columns, the last of which is the target; those below the
/// diagonal are not made.
#[derive(Debug, Clone)]
pub(super) struct Products<const N: usize>([[f64; N]; N]);

impl<const N: usize> Products<N> {
    pub(super) fn new() -> Self {
        Self([[0.0; N]; N])
    }

    /// Add those of at most [`BLOCK`] values of each column.
    pub(super) fn add(&mut self, columns: &[&[f32]; N], weights: &[f32]) {
        add_products(columns, weights, &mut self.0);
    }

    /// The equations of M = N - 1 unknowns: a symmetric matrix, and the right side.
    pub(super) fn equations<const M: usize>(&self) -> ([[f64; M]; M], [f64; M]) {
        let matrix = std::array::from_fn(|row| {
            std::array::from_fn(|column| self.0[row.min(column)][row.max(column)])
        });
        (matrix, std::array::from_fn(|row| self.0[row][N - 1]))
    }
}

vectorised! {
    fn add_products<const N: usize>(
        columns: &[&[f32]; N],
        weights: &[f32],
        sums: &mut [[f64; N]; N],
    ) {
        let length = weights.len().min(BLOCK);
        let whole = length / LANES * LANES;
        let mut weighed = [0.0_f32; BLOCK];
        for (first, column) in columns.iter().enumerate().take(N - 1) {
            for ((out, value), weight) in weighed.iter_mut().zip(*column).zip(weights) {
                *out = value * weight;
            }
            for (second, other) in columns.iter().enumerate().skip(first) {
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
                sums[first][second] += sum;
            }
        }
    }
}

/// The solution of `matrix x = right`, by elimination with partial pivoting; none of a singular one.
pub(super) fn solve<const N: usize>(
    mut matrix: [[f64; N]; N],
    mut right: [f64; N],
) -> Option<[f64; N]> {
    for column in 0..N {
        let size = |row: &usize| matrix[*row][column].abs();
        let pivot = (column..N).max_by(|a, b| size(a).total_cmp(&size(b)))?;
        if matrix[pivot][column].abs() < 1e-12 || !matrix[pivot][column].is_finite() {
            return None;
        }
        matrix.swap(column, pivot);
        right.swap(column, pivot);
        for row in column + 1..N {
            let factor = matrix[row][column] / matrix[column][column];
            let (upper, lower) = matrix.split_at_mut(row);
            for (value, above) in lower[0].iter_mut().zip(&upper[column]).skip(column) {
                *value -= factor * above;
            }
            right[row] -= factor * right[column];
        }
    }
    for row in (0..N).rev() {
        let known: f64 = (row + 1..N).map(|column| matrix[row][column] * right[column]).sum();
        right[row] = (right[row] - known) / matrix[row][row];
    }
    right.iter().all(|value| value.is_finite()).then_some(right)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_solution_satisfies_the_equations(
            matrix in prop::array::uniform4(prop::array::uniform4(-9.0..9.0_f64)),
            right in prop::array::uniform4(-9.0..9.0_f64),
        ) {
            if let Some(x) = solve(matrix, right) {
                let largest = x.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
                for (row, value) in matrix.iter().zip(right) {
                    let sum: f64 = row.iter().zip(x).map(|(a, b)| a * b).sum();
                    prop_assert!((sum - value).abs() < 1e-9 * largest.max(1.0));
                }
            }
        }
    }

    #[test]
    fn a_singular_matrix_has_none() {
        assert_eq!(solve([[1.0, 2.0], [2.0, 4.0]], [1.0, 2.0]), None);
    }
}
