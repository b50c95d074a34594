//! Small systems of linear equations.

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
